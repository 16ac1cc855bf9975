"""A training step: accumulated batches, partial windows, clipping behind a loss scaler."""

import dataclasses

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.amp import GradScaler
from tqdm import tqdm

from common.data.batches import Examples
from common.data.decoding import Preparation
from common.data.inputs import Pixels, open_inputs
from common.data.reading import read_train_table
from common.data.transfer import HOST
from common.model.selection import Last
from common.runs.config import Config
from common.train.build import prepare_training
from common.train.loop import train_epoch

# No BatchNorm: its statistics, unlike everything else, are those of a micro-batch.
CONFIG = Config(
    model="test_vit", model_args=("patch_size=4",), img_size=8, channels=1, opt="sgd", lr=0.05, batch_size=24
)
CONFIG = dataclasses.replace(CONFIG, channels_last="no", epochs=2, threads=1)


@pytest.fixture(scope="module")
def digits() -> Examples:
    """100 digits of 8 x 8 pixels: four whole batches of 24, and four digits over."""
    table = read_train_table("digits")
    classes = sorted(set(table.labels))
    targets = torch.tensor([classes.index(label) for label in table.labels[:100]])
    images = open_inputs(table, Preparation(1, 8, 8), HOST).values[:100]
    return Examples(Pixels(images), targets, torch.arange(100), classes)


def trained(cfg: Config, digits, clip_grad: float = 0.0, accelerator: Accelerator | None = None):
    """The training after its first epoch, with the weights it started from."""
    torch.manual_seed(0)
    accelerator = accelerator or Accelerator(cpu=True, gradient_accumulation_steps=cfg.accumulate)
    training = prepare_training(cfg, accelerator, digits, Last(cfg.epochs, []))
    nn.init.normal_(training.model.get_classifier().weight, std=0.02)  # it starts at zero, and so would gradients
    start = [weight.detach().clone() for weight in training.model.parameters()]
    train_epoch(accelerator, training, clip_grad, tqdm(disable=True))
    return training, start


@pytest.mark.parametrize(("accumulate", "loss"), [(2, "cross-entropy"), (8, "focal")])
def test_accumulated_batches_are_the_big_batch(digits, accumulate, loss):
    """Halves and eighths of a batch train the same weights to 1e-6."""
    cfg = dataclasses.replace(CONFIG, loss=loss)
    whole, _ = trained(cfg, digits)
    parts, _ = trained(dataclasses.replace(cfg, accumulate=accumulate), digits)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_the_rows_left_over_are_no_smaller_step(digits):
    """100 rows are four whole windows of 24: every step is a full one, and no gradient waits for the next epoch."""
    training, start = trained(dataclasses.replace(CONFIG, accumulate=3), digits)
    assert training.batches.steps == 4
    assert len(list(training.batches.epoch(0))) == 4 * 3
    assert all(weight.grad is None for weight in training.model.parameters())
    moved = sum((new - old).abs().sum() for new, old in zip(training.model.parameters(), start, strict=True))
    assert moved > 0


def step_length(training, start) -> float:
    """The length of the way from ``start``, in units of the learning rate."""
    ways = [(new - old).flatten() for new, old in zip(training.model.parameters(), start, strict=True)]
    return float(torch.cat(ways).detach().norm() / training.learning_rate(0))


@pytest.mark.parametrize(("accumulate", "scaled"), [(3, False), (1, True), (3, True)])
def test_the_gradient_of_a_whole_window_is_clipped_after_unscaling(digits, accumulate, scaled, monkeypatch):
    """One step of plain SGD is as long as --clip-grad, whatever the loss was multiplied by for fp16's sake."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    if scaled:  # accelerate scales on CUDA alone; torch's scaler itself works anywhere
        accelerator.scaler, accelerator.native_amp = GradScaler("cpu", init_scale=1024.0), True
        monkeypatch.setitem(accelerator.state.__dict__, "_mixed_precision", "fp16")
    cfg = dataclasses.replace(CONFIG, accumulate=accumulate, batch_size=96, weight_decay=0.0)
    cfg = dataclasses.replace(cfg, opt="momentum", opt_args=("momentum=0.0",), warmup_epochs=0.0)
    training, start = trained(cfg, digits, clip_grad=0.01, accelerator=accelerator)
    assert training.batches.steps == 1
    assert step_length(training, start) == pytest.approx(0.01, rel=1e-3)
    free, start = trained(cfg, digits)
    assert step_length(free, start) > 0.05
