"""A job and the process that runs it: what a slot here and a slot on a cluster have in common."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from common.base.system import STARTED_BY_US

# Removed from a job's environment: it is not part of our launch.
LAUNCHERS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True)
class Job:
    """One command under a name; ``command`` follows the Python interpreter."""

    name: str
    command: tuple[str, ...]
    log: str = ""  # file that its output is added to (default: it goes to ours)
    environment: Mapping[str, str] = field(default_factory=dict)  # added to that of its slot
    folder: str = field(default_factory=os.getcwd)  # in which it runs


class Process(Protocol):
    """A running job; subprocess.Popen is one."""

    stdout: Iterable[str] | None  # what it prints: lines, and states of a bar, which end with a carriage return

    def wait(self) -> int:
        """Its exit code once it has ended, or minus the signal that ended it."""

    def terminate(self) -> None:
        """End it and what it started."""


class Slot(Protocol):
    """A place for one job at a time."""

    elsewhere: bool  # on another machine, perhaps

    def start(self, job: Job, piped: bool) -> Process:
        """Start a job there; ``piped`` says that its output is for us, not for the terminal."""


def start_child(job: Job, environment: Mapping[str, str], piped: bool) -> subprocess.Popen:
    """Start a job as a child of this process, on this machine; on a cluster's node too."""
    own = environment_of(os.getpid(), environment, job.environment)
    with output_of(job, piped) as (said, file):
        command = [sys.executable, *job.command]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=own, cwd=job.folder)
        process.stdout = said
        return process


def environment_of(starter: int, *added: Mapping[str, str]) -> dict[str, str]:
    """What a job that ``starter`` starts has in its environment: our own, and what is added to it."""
    found = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    for each in added:
        found |= each
    return found | {STARTED_BY_US: str(starter)}


@contextmanager
def output_of(job: Job, piped: bool) -> Iterator[tuple[Iterable[str] | None, IO[bytes] | None]]:
    """What a job prints, for us to read if it is ``piped`` and no log's, and the file that it goes to (None: ours)."""
    if job.log:
        with Path(job.folder, job.log).open("ab") as log:
            yield None, log
    elif piped:
        reading, writing = os.pipe()
        said = os.fdopen(reading, encoding="utf-8", errors="replace", newline="")
        with os.fdopen(writing, "wb") as file:
            yield said, file
    else:
        yield None, None
