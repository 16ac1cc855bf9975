"""Runs commands side by side, one per slot; a slot is a device or a share of the CPU."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from common.system import gpu_count

TERMINATED = 128 + signal.SIGTERM  # what a shell calls the end by that signal
INTERRUPTED = {130: 130, -signal.SIGINT: 130, TERMINATED: TERMINATED, -signal.SIGTERM: TERMINATED}  # a job's end: ours
STARTED_BY_US = "FIVEFOLD_JOB"  # in a job's environment: the process that started it, and that it must not outlive

# A launcher's word to its own processes; a job is no rank of anything.
LAUNCHERS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True)
class Job:
    """One command under a name; ``command`` follows the Python interpreter."""

    name: str
    command: tuple[str, ...]
    log: str = ""  # file that its output is added to (default: it goes to ours)


def device_slots() -> list[dict[str, str]]:
    """The environment of each slot: one per GPU, or a single one for a machine without."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = map(str, range(gpu_count())) if visible is None else filter(None, visible.split(","))
    return [{"CUDA_VISIBLE_DEVICES": device} for device in devices] or [{}]


def run_jobs(
    jobs: Iterable[Job],
    slots: list[Mapping[str, str]],
    finished: Callable[[Job, int], None] = lambda job, exit_code: None,
) -> dict[str, int]:
    """Run every job once and return its exit code by name; a failed job does not stop the others.

    ``jobs`` is asked for the next one when a slot is free, not before. With one slot a job speaks for itself;
    with several, each line it prints is led by its name.
    ``finished`` is called in this thread as each job ends. Ctrl-C, SIGTERM (or any other exception here) ends
    all running jobs before it goes on.
    """
    waiting, free, ended = iter(jobs), list(slots), Queue()
    running: dict[str, subprocess.Popen] = {}
    exit_codes = {}
    with _sigterm_as_exit():
        try:
            while True:
                while free and (job := next(waiting, None)):
                    slot = free.pop(0)
                    running[job.name] = _start(job, slot, tagged=len(slots) > 1)
                    watch = threading.Thread(target=_watch, args=(job, slot, running[job.name], ended), daemon=True)
                    watch.start()
                if not running:
                    break
                job, slot, exit_code = ended.get()
                del running[job.name]
                free.append(slot)
                exit_codes[job.name] = exit_code
                finished(job, exit_code)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    return exit_codes


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM raise SystemExit(143) here, so that what must be cleaned up is; by itself it just ends a process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(job: Job, slot: Mapping[str, str], tagged: bool) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    environment |= {**slot, STARTED_BY_US: str(os.getpid())}
    command = [sys.executable, *job.command]
    if job.log:
        with Path(job.log).open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if not tagged:
        return subprocess.Popen(command, env=environment)
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )


def _watch(job: Job, slot: Mapping[str, str], process: subprocess.Popen, ended: Queue) -> None:
    try:
        for line in process.stdout or ():
            print(f"[{job.name}] {line}", end="", flush=True)
    finally:  # also when nobody reads our output any more
        ended.put((job, slot, process.wait()))
