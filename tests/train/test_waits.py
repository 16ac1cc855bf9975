"""Nothing in a training step makes the host wait for a GPU, counted on a CPU by the names of the calls that would."""

import dataclasses
import sys
from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from switches import SWITCHES
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from common.data import batches as batches_module
from common.data import scales as scales_module
from common.data.batches import Examples, TrainBatches
from common.data.inputs import Pixels
from common.data.scales import Normalise
from common.model.selection import Last
from common.runs.config import Config
from common.train.build import prepare_training
from common.train.loop import train_epoch

# They copy to the host, or from memory that is not pinned, or have a size or an error flag that the host must know.
ALWAYS = {Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__}
ALWAYS |= {Tensor.__index__, Tensor.nonzero, torch.nonzero, Tensor.unique, torch.unique, torch.masked_select}
ALWAYS |= {Tensor.new_tensor, torch.tensor, torch.as_tensor, torch.linalg.inv, torch.linalg.solve, torch.bincount}
MODEL = {"model": "test_vit", "model_args": ("patch_size=4",), "epochs": 2, "threads": 1, "warmup_epochs": 0.0}
CONFIG = Config(img_size=16, channels=3, batch_size=8, channels_last="no", augment="none", **MODEL)


class Waits(TorchFunctionMode):
    """Collects the calls that would wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        masks = isinstance(arguments[1] if len(arguments) > 1 else None, Tensor) and arguments[1].dtype == torch.bool
        waits = function in ALWAYS or (function in (Tensor.__getitem__, Tensor.__setitem__) and masks)
        if function in (Tensor.to, Tensor.cuda):  # to another type is no copy between memories
            waits = any(isinstance(each, torch.device | str) for each in [*arguments, *keywords.values()])
        if waits and not in_torch():
            self.found.append(getattr(function, "__name__", str(function)))
        return function(*arguments, **keywords)


def in_torch() -> bool:
    """Whether an optimiser asks for its count of steps, or clipping brings norms to the device where they are."""
    frame = sys._getframe(2)
    while frame is not None:
        if "/torch/optim/" in frame.f_code.co_filename or frame.f_code.co_filename.endswith("/clip_grad.py"):
            return True
        frame = frame.f_back
    return False


@pytest.fixture
def waits_in(monkeypatch):
    """The calls that wait in an epoch of so many steps, by a training with such settings."""
    monkeypatch.setattr(batches_module, "to_device", lambda tensor, device: tensor)  # pinned, on a GPU: does not wait

    def waits_in(steps: int, changes: dict, clip_grad: float = 0.0) -> list[str]:
        cfg = dataclasses.replace(CONFIG, **changes)
        images = torch.randint(0, 256, (8 * steps, 3, 16, 16), dtype=torch.uint8)
        examples = Examples(Pixels(images), torch.arange(8 * steps) % 4, torch.arange(8 * steps), list("abcd"))
        examples.__dict__["normalise"] = Normalise((0.5,) * 3, (0.25,) * 3)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=cfg.accumulate)
        training = prepare_training(cfg, accelerator, examples, Last(cfg.epochs, []))
        with Waits() as waits:
            train_epoch(accelerator, training, clip_grad, tqdm(disable=True))
        return waits.found

    return waits_in


def waits_of_a_step(waits_in, *settings) -> dict[str, int]:
    """Those that three steps have and two have not, with their number: what an epoch does once is in both."""
    few, many = Counter(waits_in(2, *settings)), Counter(waits_in(3, *settings))
    return dict(many - few)


@pytest.mark.parametrize("switch", SWITCHES)
def test_no_augmentation_waits(switch, waits_in, monkeypatch):
    """Each of them by itself; what works image by image is done by the thread that is ahead, as on a GPU."""
    monkeypatch.setattr(TrainBatches, "augments_ahead", property(lambda self: self.augment.on_host))
    value = SWITCHES[switch] if switch != "sizes" else (16,)
    assert waits_of_a_step(waits_in, {"augment_args": (f"{switch}={value}".replace(" ", ""),)}) == {}


@pytest.mark.parametrize(
    ("changes", "clip_grad"),
    [
        ({}, 0.0),
        ({"augment": "photos", "augment_args": ("mixup=0.2", "cutmix=1.0"), "label_smoothing": 0.1}, 1.0),
        ({"accumulate": 2, "ema_decay": 0.9, "augment": "digits"}, 1.0),
        ({"loss": "focal", "sampling": "balanced", "opt": "sgd"}, 0.0),
        ({"loss": "bce", "opt": "muon", "freeze": ("backbone=1",)}, 0.0),
    ],
)
def test_no_step_waits(changes, clip_grad, waits_in):
    """Batches, loss, accumulation, clipping, the average of the weights, optimisers of three kinds."""
    assert waits_of_a_step(waits_in, changes, clip_grad) == {}


def test_a_wait_that_is_put_back_is_counted(waits_in, monkeypatch):
    """A constant that is made of Python's numbers at each step is found."""

    def made_each_time(values, device):
        return torch.tensor(values)

    monkeypatch.setattr(scales_module, "constant", made_each_time)
    assert waits_of_a_step(waits_in, {}) == {"tensor": 2}
