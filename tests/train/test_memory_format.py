"""The memory format is chosen by time that is measured, and only where it computes the same."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from common.runs.layout import MEMORY_FORMAT_FILE
from common.train import hardware


class Clock:
    """Shows that a step of the first format takes a second, and one of the second format ``seconds``."""

    def __init__(self, seconds: float):
        self.steps, self.now, self.calls = (1.0, seconds), 0.0, 0

    def perf_counter(self) -> float:
        self.calls += 1
        if self.calls % 2 == 0:  # each step begins and ends
            self.now += self.steps[(self.calls // 2 - 1) % 2]
        return self.now


def net() -> nn.Module:
    """With all that a format may change: a convolution, BatchNorm, and dropout, which each draws in its own order."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 3))


class WrongInChannelsLast(nn.Conv2d):
    """As BatchNorm's and strided convolutions' gradients have been on Apple's GPUs."""

    def forward(self, images):
        is_last = self.weight.is_contiguous(memory_format=torch.channels_last)
        return super().forward(images) * (3 if is_last else 1)


def chosen(folder, create_model=net) -> str:
    accelerator = Accelerator(cpu=True)
    return hardware.memory_format("auto", folder, accelerator, create_model, (4, 3, 12, 12))


@pytest.mark.parametrize(("seconds", "expected"), [(0.9, "channels_last"), (0.97, "contiguous_format")])
def test_a_small_gain_does_not_change_the_bits(seconds, expected, tmp_path, monkeypatch):
    """Below a twentieth the difference is noise, and the choice would be a coin's; what was measured is recorded."""
    monkeypatch.setattr(hardware, "time", Clock(seconds))
    assert chosen(tmp_path) == expected
    recorded = json.loads((tmp_path / MEMORY_FORMAT_FILE).read_text())["seconds_per_step"]
    assert recorded == {"contiguous_format": 1.0, "channels_last": seconds}


def test_a_format_with_other_gradients_is_not_chosen(tmp_path, monkeypatch, capsys):
    """However fast it is: and somebody hears of it."""
    monkeypatch.setattr(hardware, "time", Clock(0.1))
    assert chosen(tmp_path, lambda: WrongInChannelsLast(3, 2, 3)) == "contiguous_format"
    assert "channels_last computes other gradients" in capsys.readouterr().err


def test_apples_gpus_keep_the_format_without_faults(tmp_path, capsys):
    """channels_last has had wrong gradients there: it is not tried, and who asks for it is warned."""
    apple = SimpleNamespace(device=torch.device("mps"))
    assert hardware.memory_format("auto", tmp_path, apple, nn.Module, ()) == "contiguous_format"
    assert hardware.memory_format("yes", tmp_path, apple, nn.Module, ()) == "channels_last"
    assert "wrong gradients" in capsys.readouterr().err
