"""A user's mistake ends with one line on stderr and an exit code; a bug keeps its traceback."""

import errno
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from common.base.system import local_rank, processes, spin_briefly

INPUT = 2  # a file, a flag or a label is wrong
ENVIRONMENT = 3  # disk, lock, network or device
NUMBERS = 4  # the training itself broke down

LED_BY = "error: "  # the line with which a user's mistake ends a script

# With these words the message of a batch that does not fit begins; a sweep that reads them records a failed cell.
OUT_OF_MEMORY = "out of memory at"

# What any path that a user typed may meet, whichever function asks for it first.
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)


class UserError(Exception):
    """What the user can fix, shown as ``error: <where>: <what is wrong>; <remedy>``.

    ``where`` names the file, and in it the row, column or tensor.
    """

    def __init__(self, where: str, what: str, remedy: str, exit_code: int = INPUT):
        super().__init__(f"{where}: {what}; {remedy}")
        self.exit_code = exit_code

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback, below the cell of a notebook."""
        return [f"error: {self}"]


class OwnError(UserError):
    """A :class:`UserError` that the machine's other processes do not meet: this one says it, whatever its rank."""


def as_said(line: str, exit_code: int) -> UserError:
    """The error with which another of our processes has ended, from the line that it has said."""
    where, _, rest = line.strip().removeprefix(LED_BY).partition(": ")
    what, _, remedy = rest.rpartition("; ")
    return UserError(where, what, remedy, exit_code)


def refuse(flags: Mapping[str, Any], what: str, remedy: str) -> None:
    """Raise :class:`UserError` for the first of the ``flags`` that is set."""
    if flag := next((flag for flag, is_set in flags.items() if is_set), ""):
        raise UserError(flag, what, remedy)


def warn(message: str) -> None:
    """Say on stderr, once and in one line, what goes on although the user may not want it."""
    _say(f"warning: {message}")


@cache
def warn_of_unhashed(name: str) -> None:
    """Say, once for all files of a name, that nothing shows whether they are what was written."""
    warn(f"{name} has no sha256 and cannot be verified: an older version wrote it, or it was edited by hand")


def _say(line: str, own: bool = False) -> None:
    """One line on stderr, from one process of a machine or as its ``own``; a newline in a name is written as typed."""
    if own or local_rank() == 0:
        print(line.replace("\n", "\\n").replace("\r", "\\r"), file=sys.stderr, flush=True)


def refuse_several_processes(script: str) -> None:
    """Raise :class:`UserError` where a launcher has started several processes of a script that is made for one."""
    if processes() > 1:
        what = f"starts {processes()} processes, each of which would write the same files"
        raise UserError("accelerate launch", what, f"run python {script}, which takes one GPU")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main; the one place where a :class:`UserError` is caught.

    Under a launcher all processes of a machine meet the same mistake, so one alone speaks (but see :class:`OwnError`).
    """
    if sys.getfilesystemencoding() != "utf-8":  # a C locale: no file with an accent in its name could be opened
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for name in ("stdin", "stdout", "stderr"):  # closed by whoever started us
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):  # a log file sees each line at once, in any locale
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    spin_briefly()
    try:
        main()
    except UserError as error:
        _say(f"{LED_BY}{error}", own=isinstance(error, OwnError))
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "common"):
            raise
        _say(f"error: package {package}: is missing; pip install it, or activate the environment that has it")
        sys.exit(ENVIRONMENT)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` closed our stdout: not worth a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in _UNUSABLE:
            raise
        where = str(error.filename or "a file")
        where = where if len(where) <= 200 else f"{where[:80]} ..."
        _say(f"error: {where}: cannot be used ({error.strerror}); check its permissions or choose another name")
        sys.exit(INPUT)
