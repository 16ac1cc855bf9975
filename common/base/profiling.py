"""Where the time of a training goes: the parts of --profile, and torch's own trace of them for --trace."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from common.base.errors import warn
from common.base.files import write_file

_MANY_STEPS = 200  # of an epoch: more make a trace that takes gigabytes

_is_traced = False  # whether torch records what is done
_seconds: dict[str, float] | None = None  # of each part, while somebody wants to know


@contextmanager
def part(name: str) -> Iterator[None]:
    """Name what is done in this block, for the table of :func:`parts_timed` and for a trace."""
    if _seconds is None and not _is_traced:
        yield
        return
    import torch

    with torch.profiler.record_function(name):
        started = time.perf_counter()
        yield
        if _seconds is not None:
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()  # work only handed to the device counts where it was handed over
            _seconds[name] = _seconds.get(name, 0.0) + time.perf_counter() - started


@contextmanager
def parts_timed(wanted: bool) -> Iterator[None]:
    """Print a table of the time that each part of this block took, its parts in the order in which they came."""
    global _seconds
    if not wanted:
        yield
        return
    _seconds, started = {}, time.perf_counter()
    try:
        yield
        whole = time.perf_counter() - started
        _seconds["the rest"] = whole - sum(_seconds.values())
        print(f"{'part':<14}{'seconds':>9}{'share':>8}")
        for name, seconds in [*_seconds.items(), ("all", whole)]:
            print(f"{name:<14}{seconds:>9.2f}{seconds / whole:>8.1%}")
    finally:
        _seconds = None


@contextmanager
def traced(path: Path | None, steps: int) -> Iterator[None]:
    """Write torch's trace of this block, an epoch of ``steps`` steps, to ``path`` (json for ui.perfetto.dev)."""
    global _is_traced
    if path is None:
        yield
        return
    if steps > _MANY_STEPS:
        warn(f"--trace: the trace of {steps:,} steps is large; --train-fraction makes an epoch shorter")
    import torch

    _is_traced = True
    try:
        with torch.profiler.profile() as found:
            yield
    finally:
        _is_traced = False
    with TemporaryDirectory() as folder:
        found.export_chrome_trace(f"{folder}/{path.name}")
        write_file(path, Path(folder, path.name).read_bytes())
    print(f"{path} written: open it in ui.perfetto.dev")
