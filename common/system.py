"""Everything that differs between operating systems, each with a fallback that does no harm."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ENVIRONMENT, UserError


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


def gpu_count() -> int:
    """NVIDIA GPUs on this machine, counted without importing torch (seconds); 0 where there is no driver."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def end_with_parent() -> None:
    """Ask Linux to end this process when the one that started it dies; elsewhere nothing happens.

    Without it `accelerate launch`, ended by SIGTERM, leaves its training process running.
    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of handing them back to the system at every training step.

    Each returned block costs page faults at the next step. Source: mallopt(3), M_MMAP_THRESHOLD (-3),
    M_TRIM_THRESHOLD (-1), M_TOP_PAD (-2). Other C libraries are left alone.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            for option, value in ((-3, 1 << 30), (-1, 1 << 30), (-2, 64 << 20)):
                libc.mallopt(option, value)


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the only right to write into ``folder``; freed by the system when the process dies.

    Raises:
        UserError: another process holds it and ``wait`` is off (exit 3), naming its host and pid.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        what = f"cannot be written to ({error.strerror or error})"
        raise UserError(str(folder), what, "choose another folder", ENVIRONMENT) from error
    with file:
        while not _try_lock(file):
            if not wait:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise UserError(str(folder), f"is in use by {holder}", "wait for it or end it", ENVIRONMENT)
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _try_lock(file) -> bool:
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            file.seek(1 << 30)  # far behind the text, which others may still read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return True
    except OSError:
        return False
