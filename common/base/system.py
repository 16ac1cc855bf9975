"""The machine, its system and who started us; where systems differ, with a fallback that does no harm."""

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

NO_GPU = ("", "-1", "NoDevFiles")  # in CUDA_VISIBLE_DEVICES
SPINS = 1000  # turns of a waiting loop: a few microseconds
STARTED_BY_US = "FIVEFOLD_JOB"  # in a job's environment: the process that started it, and that it must not outlive
_PARENT = os.getppid()  # who started us, unless that one was quick to die


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, or was started from one of its cells."""
    return "ipykernel" in sys.modules or "JPY_PARENT_PID" in os.environ  # jupyter_client sets it for its kernels


def is_watched() -> bool:
    """Whether a person may see what this process prints while it prints it: at a terminal, or below a cell."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def cpu_count() -> int:
    """Cores this process may use: its affinity, and a container's quota (cgroup v2) where there is one."""
    try:
        cores = len(os.sched_getaffinity(0))
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
    except (OSError, ValueError):  # no quota
        return cores


def sync_folder(folder: Path) -> None:
    """Bring a rename in ``folder`` to disk; where folders cannot be opened (Windows) the system does it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def gpus() -> list[str]:
    """The NVIDIA GPUs that jobs may use, by the names CUDA_VISIBLE_DEVICES takes: those it says, or else all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return listed_gpus()
    return list(takewhile(lambda name: name not in NO_GPU, visible.split(",")))  # one that is wrong hides all after it


def listed_gpus() -> list[str]:
    """The GPUs of this machine, or the slices of a card that is cut into some (MIG), found without torch (seconds)."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    slices_of: dict[str, list[str]] = {}
    for line in listing.stdout.splitlines():
        if card := re.match(r"GPU (\d+):", line):
            slices_of[card[1]] = []
        elif piece := re.match(r"\s+MIG .*\(UUID: ([^)]+)\)", line):
            slices_of[[*slices_of][-1]].append(piece[1])
    return [name for card, slices in slices_of.items() for name in slices or [card]]


def has_other_accelerator() -> bool:
    """Whether torch may find a device here that :func:`gpus` does not name: Apple's or AMD's."""
    return (sys.platform == "darwin" and os.uname().machine == "arm64") or os.path.exists("/dev/kfd")


def is_launched() -> bool:
    """Whether a launcher has started this process: accelerate's, or torchrun."""
    return bool({"RANK", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys())


def processes() -> int:
    """Processes that the launcher has started to work together, on all machines; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among :func:`processes`, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_processes() -> int:
    """Those of the :func:`processes` that run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number among :func:`local_processes`, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_job() -> bool:
    """Whether one of our own scripts has started this process as a job (common/jobs/process.py)."""
    return STARTED_BY_US in os.environ


def end_with_starter() -> None:
    """In a job or under a launcher: do not outlive who started us (:func:`end_with_parent`)."""
    if is_job():
        end_with_parent(int(os.environ[STARTED_BY_US]))
    elif is_launched():
        end_with_parent()


def end_with_parent(parent: int = _PARENT) -> None:
    """Ask Linux to end this process when ``parent``, which started it, dies or is dead; elsewhere nothing happens.

    Without it `accelerate launch`, ended by SIGTERM, leaves its training process running.
    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            os.kill(os.getpid(), signal.SIGTERM)


def die_of_ctrl_c() -> None:
    """Let Ctrl-C end this process at once, like SIGTERM does, instead of at Python's next chance.

    One of several training processes that waits for the others in C++ code would not come to that chance.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def spin_briefly() -> bool:
    """Let OpenMP's threads sleep soon after they begin to wait, unless the user has set how; whether we did.

    By default they spin at each barrier for as long as it takes, in time that a busy neighbour needs, and wait so for
    the thread that has lost its core to it (benchmarks/busy.py). libgomp reads this when torch loads it.
    Source: GCC's libgomp manual, GOMP_SPINCOUNT.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    return os.environ.get("GOMP_SPINCOUNT") == str(SPINS)


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks instead of handing them back to the system at every training step; whether it does.

    Each returned block costs page faults at the next step. Source: mallopt(3), M_MMAP_THRESHOLD (-3; some versions
    take at most 32 MB), M_TRIM_THRESHOLD (-1), M_TOP_PAD (-2). Other C libraries are left alone.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    kept = any(libc.mallopt(-3, most) for most in (1 << 30, 32 << 20))
    return bool(kept and libc.mallopt(-1, 1 << 30) and libc.mallopt(-2, 64 << 20))


@contextmanager
def torch_loaded(threads: int) -> Iterator[None]:
    """Load torch and give it so many threads (0: all cores) meanwhile; a notebook's kernel then has its own again.

    What a kernel's C library keeps (:func:`keep_freed_memory`) cannot be asked for, and stays.
    """
    keep_freed_memory()
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or cpu_count())
    try:
        yield
    finally:
        torch.set_num_threads(before)
