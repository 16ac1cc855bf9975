"""A user's mistake ends with one line on stderr and an exit code; a bug keeps its traceback."""

import os
import sys
from collections.abc import Callable

INPUT = 2  # a file, a flag or a label is wrong
ENVIRONMENT = 3  # disk, lock, network or device
NUMBERS = 4  # the training itself broke down


class UserError(Exception):
    """What the user can mend, shown as ``error: <where>: <what is wrong>; <remedy>``.

    ``where`` names the file, and in it the row, column or tensor.
    """

    def __init__(self, where: str, what: str, remedy: str, exit_code: int = INPUT):
        super().__init__(f"{where}: {what}; {remedy}")
        self.exit_code = exit_code


class OwnError(UserError):
    """A :class:`UserError` that the other processes of a training do not meet: this one says it, whatever its rank."""


def warn(message: str) -> None:
    """Say on stderr, once and in one line, what goes on although the user may not want it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr, flush=True)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main; the one place where a :class:`UserError` is caught.

    Under a launcher every rank meets the same mistake, so rank 0 alone speaks (but see :class:`OwnError`).
    """
    for stream in (sys.stdout, sys.stderr):  # a log file sees each line at once, in any locale
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        main()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0" or isinstance(error, OwnError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` closed our stdout: not worth a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
