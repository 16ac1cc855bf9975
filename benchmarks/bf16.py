"""What bf16 does to a training step on a CPU: forward, backward and step on one batch, in turn with fp32.

    python -m benchmarks.bf16

One thread, batches of 128, random images; what `--mixed-precision bf16` is worth on the machine at hand. Writes
benchmarks/bf16.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import nn

import common.model.networks  # noqa: F401 - registers digit_cnn with timm
from benchmarks.limits import step_on
from benchmarks.ratios import write_speeds
from benchmarks.throughput import images_per_second
from common.base.cli import parse
from common.base.errors import run_script
from common.base.system import keep_freed_memory

REPORT = Path(__file__).with_suffix(".md")
SIDES = {"digit_cnn": 28, "resnet18": 28, "convnext_atto": 32, "edgenext_xx_small": 32, "efficientnet_b0": 28}
BATCH = 128


@dataclass(frozen=True)
class Options:
    """Measure training steps in bf16 and in fp32: python -m benchmarks.bf16"""

    rounds: int = 3  # turns of each precision
    seconds: float = 3.0  # that a turn takes


def main() -> None:
    options, rows = parse(Options), []
    keep_freed_memory()
    torch.set_num_threads(1)
    for name, side in SIDES.items():
        model = timm.create_model(name, num_classes=10, in_chans=1).train().to(memory_format=torch.channels_last)
        for _ in range(options.rounds):
            speeds = {
                precision: images_per_second(steps(model, side, precision == "bf16"), options.seconds)
                for precision in ("fp32", "bf16")
            }
            rows.append({"setting": f"{name}, {side} px", **speeds})
    about = f"One thread, batches of {BATCH}"
    write_speeds(REPORT, "bf16 on a CPU", about, rows, ["fp32", "bf16"], "images/s")


def steps(model: nn.Module, side: int, in_bf16: bool) -> Iterator[int]:
    """Training steps on one batch."""
    step = step_on(model, torch.rand(BATCH, 1, side, side).contiguous(memory_format=torch.channels_last), in_bf16)
    while True:
        step()
        yield BATCH


if __name__ == "__main__":
    run_script(main)
