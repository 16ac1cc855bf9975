"""Where a training step stands against the machine's own limits: arithmetic and memory.

    python -m benchmarks.limits

The limits are the rate of a large product of matrices and that of copying memory. A step is forward, backward and
AdamW. Its arithmetic is three times the forward pass's, products and convolutions alone; its memory is what all of its
operations read and write, one by one as torch does them without torch.compile. One thread; seconds are the processor's,
which neighbours disturb less than the clock's. A processor without bf16 multiplies matrices in it one number at a time,
slower than its convolutions, so that a share of that rate says nothing. Writes benchmarks/limits.md.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import common.model.networks  # noqa: F401 - registers digit_cnn with timm
from benchmarks.machine import hardware
from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import write_file
from common.base.system import keep_freed_memory

REPORT = Path(__file__).with_suffix(".md")
NETS = {  # name: side, channels, batch
    "digit_cnn": (28, 1, 128),
    "convnext_atto": (32, 1, 128),
    "tf_efficientnet_b0": (28, 1, 128),
    "tf_efficientnet_lite0": (160, 3, 32),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
MATRIX = 1024  # rows and columns of the product
COPIED = 2**26  # float32 numbers, 256 MB: more than any cache
HEAD = (
    "net",
    "GFLOP an image",
    "MB an image",
    "fp32, ms an image",
    "of that arithmetic",
    "of that memory",
    "share of the dense rate, fp32",
    "bf16, ms an image",
)


@dataclass(frozen=True)
class Options:
    """Measure training steps against the machine's limits: python -m benchmarks.limits"""

    repeats: int = 5  # of each measurement, whose median counts
    nets: tuple[str, ...] = tuple(NETS)  # the lines of the table


class MovedBytes(TorchDispatchMode):
    """Counts what operations read and write."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **kwargs or {})
        if not function.is_view:
            tensors = [each for each in tree_leaves((args, kwargs, found)) if isinstance(each, torch.Tensor)]
            self.bytes += sum(each.nbytes for each in tensors)
        return found


def main() -> None:
    options = parse(Options)
    keep_freed_memory()
    torch.set_num_threads(1)
    rates = {name: 2 * MATRIX**3 / seconds_of(product(dtype), options.repeats) for name, dtype in PRECISIONS.items()}
    numbers, copy = torch.rand(COPIED), torch.empty(COPIED)
    bandwidth = 2 * numbers.nbytes / seconds_of(lambda: copy.copy_(numbers), options.repeats)
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for name in options.nets:
        lines.append(f"| {' | '.join(row_of(name, rates, bandwidth, options.repeats))} |")
        print(lines[-1], flush=True)
    rate = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in rates.items())
    text = f"# A training step and the machine's limits\n\n`python -m benchmarks.limits`, one thread; {hardware()}.\n"
    text += (
        f"Products of {MATRIX} x {MATRIX} matrices: {rate}; copies: {bandwidth / 1e9:.0f} GB/s read and written.\n\n"
    )
    write_file(REPORT, text + "\n".join(lines) + "\n")
    print(text)


def row_of(name: str, rates: dict[str, float], bandwidth: float, repeats: int) -> list[str]:
    """A net's line of the table."""
    batch = NETS[name][2]
    model, images = net_of(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    flops = 3 * counter.get_total_flops() / batch  # a backward pass is two; of grouped convolutions torch counts more
    step = step_on(model, images, in_bf16=False)
    with MovedBytes() as moved:
        step()
    moved_bytes = moved.bytes / batch
    fp32 = seconds_of(step, repeats) / batch
    bf16 = seconds_of(step_on(*net_of(name), in_bf16=True), repeats) / batch
    arithmetic, memory = flops / rates["fp32"], moved_bytes / bandwidth
    found = [f"{flops / 1e9:.3f}", f"{moved_bytes / 1e6:.2f}", f"{1e3 * fp32:.2f}"]
    found += [f"{1e3 * arithmetic:.2f}", f"{1e3 * memory:.2f}", f"{arithmetic / fp32:.0%}"]
    return [name, *found, f"{1e3 * bf16:.2f}"]


def product(dtype: torch.dtype) -> Callable[[], object]:
    """A product of two matrices."""
    left, right = torch.rand(2, MATRIX, MATRIX).to(dtype)
    return lambda: left @ right


def net_of(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A net in training mode and a batch for it, in channels_last."""
    side, channels, batch = NETS[name]
    model = timm.create_model(name, num_classes=10, in_chans=channels).train().to(memory_format=torch.channels_last)
    return model, torch.rand(batch, channels, side, side).contiguous(memory_format=torch.channels_last)


def step_on(model: nn.Module, images: torch.Tensor, in_bf16: bool) -> Callable[[], object]:
    """A training step on one batch; at a learning rate of nothing it is never learnt by heart."""
    targets, optimiser = torch.randint(10, (len(images),)), torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """Median of the processor's seconds that a call takes, the first one not counted."""
    call()
    found = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return statistics.median(found)


if __name__ == "__main__":
    run_script(main)
