"""The right of one process alone to write into a folder or file; the system frees it when the process dies."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from common.base.errors import ENVIRONMENT, UserError


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
