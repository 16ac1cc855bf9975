"""Everything that differs between operating systems, each with a fallback that does no harm."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from common.base.errors import ENVIRONMENT, UserError

_PARENT = os.getppid()  # who started us, unless that one was quick to die


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


def has_other_accelerator() -> bool:
    """Whether torch may find a device here that :func:`gpu_count` does not count: Apple's or AMD's."""
    return (sys.platform == "darwin" and os.uname().machine == "arm64") or os.path.exists("/dev/kfd")


def is_launched() -> bool:
    """Whether a launcher has started this process: accelerate's, or torchrun."""
    return bool({"RANK", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys())


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
def locked(folder: Path, wait: bool = False) -> Iterator[Callable[[], None]]:
    """Hold the only right to write into ``folder``; freed by the system when the process dies.

    Yields a function to call before writing: it raises UserError where the folder was deleted or moved meanwhile,
    so that nothing is written beside whoever works there now.

    Raises:
        UserError: another process holds it and ``wait`` is off (exit 3), naming its host and pid; the folder
            cannot be written to, or its file system has no locks.
    """
    path = folder / ".lock"
    while not (file := _open_locked(path)):
        if not wait:
            raise UserError(str(folder), f"is in use by {_holder(path)}", "wait for it or end it", ENVIRONMENT)
        time.sleep(0.1)

    def check() -> None:
        if not _lies_at(file, path):
            raise UserError(str(folder), "was deleted or moved meanwhile", "run the same command again", ENVIRONMENT)

    with file:
        with suppress(OSError):  # a full disk is no reason to say nothing better later
            file.truncate(0)
            os.write(file.fileno(), f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
        yield check


def check_unlocked(folder: Path) -> None:
    """Raise UserError (exit 3) where another process holds the lock of ``folder``; makes nothing."""
    if (folder / ".lock").exists():
        with locked(folder):
            pass


def try_lock(file: IO) -> bool:
    """Lock an open file until it is closed; False where another process has locked it.

    Raises:
        OSError: its file system has no locks.
    """
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            place = file.tell()
            file.seek(1 << 30)  # far behind the text, which others may still read
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            finally:
                file.seek(place)
        return True
    except (BlockingIOError, PermissionError):
        return False


def _open_locked(path: Path) -> IO | None:
    """The lock file at ``path``, opened and locked; None where another process has locked it."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
            mine = try_lock(file)
        except OSError as error:
            what = f"cannot be written to ({error.strerror or error})"
            raise UserError(str(path.parent), what, "choose another folder", ENVIRONMENT) from error
        if mine and _lies_at(file, path):
            return file
        file.close()
        if not mine:
            return None  # else the folder was thrown away between open and lock: its lock is worth nothing


def _lies_at(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or "another process"
    except OSError:
        return "another process"
