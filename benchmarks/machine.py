"""The machine and the versions that a measurement was made with."""

import importlib.metadata
import platform
from pathlib import Path

import torch

from common.system import cpu_count


def hardware() -> str:
    """Processor, cores, GPUs and the versions that decide about speed, as one line of a report."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm", "accelerate")]
    return ", ".join([f"{cpu_count()} cores of {processor}", *(gpus or ["no GPU"]), *versions])
