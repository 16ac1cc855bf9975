"""Schedule, batches, augmentation and precision: what a training step is made of."""

import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from common.base.errors import UserError
from common.data.augment import create_augmentation
from common.data.batches import TrainBatches
from common.data.decoding import Preparation
from common.data.geometry import affine
from common.data.inputs import Pixels, open_inputs
from common.data.reading import read_train_table
from common.data.scales import Normalise, levels_of
from common.data.transfer import HOST
from common.model.schedules import Length, warmup_cosine
from common.runs.config import Config, check_config
from common.train.hardware import asked_precision, usable_precision


class CourseScheduler(LRScheduler):
    """Linear warm-up and cosine as a well-known course writes it, for comparison."""

    def __init__(self, optimizer, T_max, eta_min=0, warmup_epochs=10, last_epoch=-1):
        self.eta_min, self.warmup_epochs, self.cosine_epochs = eta_min, warmup_epochs, T_max - warmup_epochs
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        if self.last_epoch < self.warmup_epochs:
            return [base_lr * (self.last_epoch + 1) / self.warmup_epochs for base_lr in self.base_lrs]
        done = (self.last_epoch - self.warmup_epochs) / self.cosine_epochs
        return [self.eta_min + (lr - self.eta_min) * (1 + math.cos(math.pi * done)) / 2 for lr in self.base_lrs]


@pytest.mark.parametrize(("total", "warmup", "ratio"), [(100, 10, 0.01), (37, 1, 0.0), (500, 250, 0.1)])
def test_the_schedule_equals_the_courses_formula(total, warmup, ratio):
    """Value by value over the whole of training."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    course = CourseScheduler(optimiser, total, eta_min=0.5 * ratio, warmup_epochs=warmup)
    for step in range(total):
        assert 0.5 * warmup_cosine(step, Length(total, warmup, 1), ratio) == pytest.approx(course.get_last_lr()[0])
        optimiser.step()
        course.step()


def test_the_schedule_stays_at_its_floor():
    """Past the end the rate keeps the floor; the unclamped formula would be back at the peak at 1.9 x total."""
    assert [warmup_cosine(step, Length(100, 10, 1), 0.01) for step in (100, 150, 190, 1000)] == [0.01] * 4


def batches(images: torch.Tensor, **changes) -> TrainBatches:
    settings = {
        "inputs": Pixels(images),
        "targets": torch.arange(len(images)) % 3,
        "rows": torch.arange(len(images)),
        "num_classes": 3,
        "batch_size": 8,
        "micro_batches": 1,
        "process": 0,
        "processes": 1,
        "seed": 0,
        "augment": create_augmentation("digits", {}, grey=True),
        "normalise": Normalise((0.1,), (0.3,)),
        "label_smoothing": 0.1,
    }
    return TrainBatches(**(settings | changes))


@pytest.fixture
def images() -> torch.Tensor:
    return open_inputs(read_train_table("digits"), Preparation(1, 8, 8), HOST).values[:50]


def test_an_epoch_is_the_same_however_it_is_shared(images):
    """Two processes with two accumulation steps see, together, the augmented batches of one process."""
    whole = list(batches(images).epoch(3))
    parts = [list(batches(images, processes=2, process=rank, micro_batches=2).epoch(3)) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        shares = [parts[rank][2 * step + micro] for micro in (0, 1) for rank in (0, 1)]
        torch.testing.assert_close(torch.cat([share.inputs for share in shares]), batch.inputs)
        torch.testing.assert_close(torch.cat([share.targets for share in shares]), batch.targets)
        assert torch.equal(torch.cat([share.rows for share in shares]), batch.rows)


def test_steps_run_through_the_passes_and_their_parts_are_the_whole(images):
    """Cut into parts, a training of many steps sees the batches of whole passes, the last one as far as it goes."""
    passes = [batch for epoch in range(3) for batch in batches(images).epoch(epoch)]
    parts = [batch for part in range(2) for batch in batches(images, steps_an_epoch=8).epoch(part)]
    assert len(passes) == 18 and len(parts) == 16
    for whole, part in zip(passes, parts, strict=False):
        assert torch.equal(part.rows, whole.rows) and torch.equal(part.inputs, whole.inputs)


def test_an_epoch_holds_no_row_twice_and_another_epoch_another_order(images):
    """Whole batches only, each row at most once, reshuffled every epoch and with every seed."""
    own = {"augment": create_augmentation("none", {}, grey=True), "normalise": Normalise((0.0,), (1.0,))}

    def seen(epoch: int, **changes) -> list[bytes]:
        return [
            image.numpy().tobytes()
            for batch in batches(images, **own, **changes).epoch(epoch)
            for image in batch.inputs
        ]

    first = seen(0)
    assert len(first) == len(set(first)) == 48
    assert first == seen(0) and first != seen(1) and first != seen(0, seed=1)


def test_smoothing_is_in_training_targets_only(images):
    """Targets are 1 - s + s/C for the class and s/C elsewhere; with 0 they are one-hot."""
    targets = next(batches(images).epoch(0)).targets
    assert targets.max().item() == pytest.approx(0.9 + 0.1 / 3) and targets.min().item() == pytest.approx(0.1 / 3)
    targets = next(batches(images, label_smoothing=0.0).epoch(0)).targets
    assert set(targets.flatten().tolist()) == {0.0, 1.0}


def test_normalise_gives_zero_mean_and_unit_deviation(images):
    """Measured on the very images."""
    normalised = Normalise.of_levels(levels_of([images]))(images.float() / 255)
    assert normalised.mean().item() == pytest.approx(0, abs=1e-4)
    assert normalised.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_affine_moves_as_it_says():
    """A shift of 1/8 of an 8 px image is one pixel right or down; 90 degrees turn it counter-clockwise."""
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def moved(rotation=0.0, zoom=1.0, across=0.0, down=0.0):
        return affine(image, rotation, zoom, across, down)

    torch.testing.assert_close(moved(across=1 / 8)[..., 1:], image[..., :-1])
    torch.testing.assert_close(moved(down=1 / 8)[..., 1:, :], image[..., :-1, :])
    torch.testing.assert_close(moved(rotation=90), image.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    assert moved(zoom=0.5).sum() < image.sum() * 0.35  # a quarter of the area


def test_small_sizes_are_padded_and_larger_ones_resized():
    """8 px to 10 px keeps every pixel inside a black border; 8 px to 16 px is an interpolation."""
    table = read_train_table("digits")
    padded = open_inputs(table, Preparation(1, 10, 10), HOST).values
    assert np.array_equal(padded[:, 0, 1:9, 1:9].numpy(), table.images) and padded[:, :, 0].max() == 0
    resized = open_inputs(table, Preparation(3, 16, 16), HOST).values
    assert resized.shape == (len(table.ids), 3, 16, 16) and torch.equal(resized[:, 0], resized[:, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 30, "accumulate": 4}, "is not divisible by 1 process x 4 accumulation steps"),
        ({"epochs": 0}, "--epochs: 0 is out of range; use 1 or more"),
        ({"lr": -1.0}, "--lr: -1.0 is out of range"),
        ({"label_smoothing": 1.5}, "--label-smoothing: 1.5 is out of range"),
        ({"fold": "full", "select": "best"}, "needs validation rows"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_loaded(change, message):
    """One line that names the flag and what would do."""
    with pytest.raises(UserError, match=message):
        check_config(Config(**change), processes=1)


def test_precision_follows_the_launcher_unless_they_conflict(monkeypatch):
    """auto takes the launcher's value, fp16 on a CPU falls back in words, two different wishes are an error."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert asked_precision("auto") == "bf16"
    with pytest.raises(UserError, match="fp16 was asked for, but accelerate launch uses bf16"):
        asked_precision("fp16")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="asserts what a machine without a GPU does")
def test_fp16_on_a_cpu_falls_back_and_says_so(capsys):
    """Accelerate would accept it in silence."""
    assert usable_precision("fp16") == "no"
    assert "fp16 does not work on this device (cpu)" in capsys.readouterr().err
