"""How near a training step comes to what the machine can do: python -m benchmarks.limits

For each model: the arithmetic of a training step (torch's FlopCounterMode: two operations a multiply-add, forward and
backward), its speed on one batch that never changes, and what share that is of the rate that a plain product of large
matrices reaches on this machine, in fp32 and in bf16. A small share means that a step waits for memory, or for Python,
and not for arithmetic. With --compile also torch.compile's step, and after how many images its waiting time is earned.
Writes benchmarks/limits.md.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import common.model.networks  # noqa: F401 - registers digit_cnn with timm
from benchmarks.machine import hardware
from benchmarks.throughput import SETTINGS, Setting, images_per_second
from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import write_file
from common.base.system import keep_freed_memory

REPORT = Path(__file__).with_suffix(".md")
SIDE = 2048  # of the square matrices
COPIED = 64 << 20  # floats that are copied to measure the memory


@dataclass(frozen=True)
class Options:
    """Compare training steps with what the machine can do: python -m benchmarks.limits"""

    seconds: float = 5.0  # that each step is repeated
    compile: bool = False  # also torch.compile's step


def main() -> None:
    options = parse(Options)
    keep_freed_memory()
    rates = {"fp32": dense_rate(torch.float32), "bf16": dense_rate(torch.bfloat16)}
    memory = memory_rate()
    head = ["step", "GFLOP an image", "fp32, images/s", "share of the dense rate", "bf16, images/s", "share"]
    head += ["compiled fp32, images/s", "earned after (images)"] if options.compile else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for setting in SETTINGS:
        flops = flops_of_a_step(setting) / setting.batch_size
        speeds = {name: images_per_second(training_steps(setting, name), options.seconds) for name in rates}
        cells = [setting.name, f"{flops / 1e9:.3f}"]
        for name, speed in speeds.items():
            cells += [f"{speed:,.0f}", f"{flops * speed / rates[name]:.0%}"]
        if options.compile:
            cells += compiled(setting, speeds["fp32"], options.seconds)
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    dense = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {precision}" for precision, rate in rates.items())
    text = f"# A step and the machine's limits\n\n`python -m benchmarks.limits`: {hardware()}.\n"
    text += f"Products of {SIDE:,} x {SIDE:,} matrices: {dense}; copies: {memory / 1e9:.1f} GB/s read and written.\n\n"
    write_file(REPORT, text + "\n".join(lines) + "\n")


def dense_rate(dtype: torch.dtype) -> float:
    """Operations a second of a product of large square matrices."""
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    return 2 * SIDE**3 * times_a_second(lambda: a @ b)


def memory_rate() -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones(COPIED)
    target = torch.empty_like(source)
    return 2 * source.nbytes * times_a_second(lambda: target.copy_(source))


def times_a_second(work: Callable[[], object], repeats: int = 10) -> float:
    """How often a second; the fastest of a few repeats, since neighbours only slow it."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return 1 / best


def flops_of_a_step(setting: Setting) -> float:
    """Operations of the forward and backward pass of one batch."""
    with FlopCounterMode(display=False) as counter:
        next(training_steps(setting, "fp32"))
    return counter.get_total_flops()


def training_steps(setting: Setting, precision: str, compiled: bool = False) -> Iterator[int]:
    """Forward, backward and AdamW on one batch, in channels_last; yields the images of each."""
    channels = 3 if setting.photos else 1
    model = timm.create_model(setting.model, num_classes=10, in_chans=channels).train()
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(setting.batch_size, channels, setting.size, setting.size)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (setting.batch_size,))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0)
    if compiled:
        model.compile()
    while True:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        yield setting.batch_size


def compiled(setting: Setting, eager: float, seconds: float) -> list[str]:
    """The compiled step's speed, and the images after which compiling has paid for itself."""
    steps = training_steps(setting, "fp32", compiled=True)
    started = time.perf_counter()
    next(steps)
    waited = time.perf_counter() - started
    speed = images_per_second(steps, seconds)
    earned = f"{waited / (1 / eager - 1 / speed):,.0f} ({waited:.0f} s of compiling)" if speed > eager else "never"
    return [f"{speed:,.0f}", earned]


if __name__ == "__main__":
    run_script(main)
