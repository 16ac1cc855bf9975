"""The machine that a measurement was made on, and what a script of ours takes of it."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from common.base.errors import UserError
from common.base.system import cpu_count

ROOT = Path(__file__).parents[1]


def hardware() -> str:
    """Processor, cores, GPUs and the versions that decide about speed, as one line of a report."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm", "accelerate")]
    return ", ".join([f"{cpu_count()} cores of {processor}", *(gpus or ["no GPU"]), *versions])


def measured(command: Sequence[str], log: Path) -> dict[str, float]:
    """Run a script in a process of its own: its peak memory (MB), CPU seconds and seconds; ``log`` takes its output.

    The peak is read while it runs, twenty times a second: what Linux says at the end counts this process's memory too.

    Raises:
        UserError: it failed.
    """
    started, peak = time.perf_counter(), 0
    with log.open("a", encoding="utf-8") as file:
        child = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=file, stderr=file)
        while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
            peak = max(peak, _peak_kb(child.pid))
            time.sleep(0.05)
    _, status, usage = ended
    if status:
        raise UserError(str(log), f"{' '.join(command)} failed", "see its last lines")
    found = {"peak_mb": peak / 1024, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    return found | {"seconds": time.perf_counter() - started}


def _peak_kb(pid: int) -> int:
    """The largest resident memory of a process so far; 0 while it ends."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
