"""Runs commands side by side, one per slot: a GPU, a share of the CPU, or of a cluster (common/jobs/cluster.py)."""

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from queue import Queue
from typing import Literal

from common.base.errors import ENVIRONMENT, INPUT, UserError, as_said, warn
from common.base.system import cpu_count, gpus, has_other_accelerator, is_job, is_launched, processes
from common.jobs.fork_server import ForkServer
from common.jobs.process import Job, Process, Slot, start_child
from common.jobs.screen import Screen

TERMINATED = 128 + signal.SIGTERM  # what a shell calls the end by that signal
# A job's exit code -> ours.
INTERRUPTED = {130: 130, -signal.SIGINT: 130, TERMINATED: TERMINATED, -signal.SIGTERM: TERMINATED}


@dataclass(frozen=True)
class SideBySide:
    """How jobs (folds of a run, cells of a sweep) are spread over what is there."""

    # trainings side by side
    jobs: int = 0  # trainings side by side on CPUs (0: one per core, short ones in turn); on a cluster the limit
    jobs_per_gpu: int = 1  # trainings side by side on each GPU
    hours: float = 0.0  # start nothing that would not finish within this time (0: no limit)
    engine: Literal["local", "ray"] = "local"  # where trainings run: this machine or a Ray cluster
    address: str = ""  # of the Ray cluster, host:port (default: the one that this machine belongs to)


@dataclass(frozen=True)
class LocalSlot:
    """A share of this machine: a GPU, named in the environment of its jobs, or threads."""

    environment: Mapping[str, str] = field(default_factory=dict)
    server: ForkServer | None = None  # which forks its jobs
    elsewhere = False

    def start(self, job: Job, piped: bool) -> Process:
        """Start a job as our child, or the server's."""
        start = self.server.start if self.server else start_child
        return start(job, self.environment, piped)


def slots_for(
    options: SideBySide, threads: int, most: int, short: bool = False, alike: bool = False
) -> tuple[list[Slot], int]:
    """Where jobs run side by side, and the threads of each; ``threads`` are those asked for (0: a fair share).

    There will not be more than ``most`` jobs at a time. ``short`` jobs follow one another on a CPU, unless --jobs says
    otherwise: a process of their own would take longer to start than they take. Of ``most`` jobs that are ``alike``,
    and small enough for it, more than there are cores may share them (:func:`without_idle_cores`).

    Raises:
        UserError: a number out of range, an option without effect; a cluster that is not there or too small.
    """
    for name, least in (("jobs", 0), ("jobs_per_gpu", 1), ("hours", 0)):
        if not getattr(options, name) >= least:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(flag, f"{getattr(options, name)} is too small", f"use {least} or more")
    together = processes() > 1
    if together and (options.jobs, options.jobs_per_gpu, options.engine) != (0, 1, "local"):
        what = "its processes train each fold together, one fold after another"
        raise UserError("accelerate launch", what, "leave out either it or --jobs, --jobs-per-gpu and --engine")
    if together or is_job():
        return [LocalSlot()], threads
    if options.engine == "ray":
        from common.jobs.cluster import cluster_slots

        return cluster_slots(options.address, threads, options.jobs_per_gpu, min(options.jobs or most, most))
    if options.address:
        raise UserError("--address", "is for a Ray cluster and has no effect here", "add --engine ray")
    slots: list[Slot] = list(device_slots())
    if slots != [LocalSlot()]:
        if options.jobs:
            warn("--jobs has no effect: jobs run on the GPUs, and --jobs-per-gpu sets how many")
        slots *= options.jobs_per_gpu
    else:
        if options.jobs_per_gpu > 1:
            warn("--jobs-per-gpu has no effect: there is no GPU, and --jobs sets how many run on the CPU")
        alone = short or is_launched() or has_other_accelerator()
        cores = max(1, cpu_count() // max(1, threads))
        together = without_idle_cores(most, cores) if alike and threads <= 1 else cores
        slots *= options.jobs or (1 if alone else together)
        if options.jobs > most:
            warn(f"--jobs {options.jobs}: there are only {most} to run side by side")
    slots = slots[: max(1, most)]
    return slots, threads or max(1, cpu_count() // len(slots))


def without_idle_cores(jobs: int, cores: int) -> int:
    """How many jobs of one length and one thread to run at a time, so that they end soonest.

    Five on two cores take two and a half times as long as one, if three share the cores and then two have them, and
    three times in twos, the last of which is alone.
    """

    def duration(together: int) -> float:
        rounds, left = divmod(jobs, together)
        return rounds * together / cores + (max(1.0, left / cores) if left else 0.0)

    return min(range(cores, 2 * cores), key=duration)


def device_slots() -> list[LocalSlot]:
    """One slot per GPU, or a single one for a machine without."""
    return [LocalSlot({"CUDA_VISIBLE_DEVICES": name}) for name in gpus()] or [LocalSlot()]


@contextmanager
def loaded_once(slots: Sequence[Slot], jobs: int) -> Iterator[list[Slot]]:
    """The slots; where there will be several ``jobs``, all of them scripts, a server loads their libraries meanwhile.

    Only on Linux and on CPUs: with a GPU it was never tried.
    """
    on_cpus = all(slot == LocalSlot() for slot in slots) and not has_other_accelerator()
    if jobs < 2 or sys.platform != "linux" or not on_cpus:
        yield [*slots]
        return
    with closing(ForkServer()) as server:
        yield [LocalSlot(server=server)] * len(slots)


def spread(slots: Sequence[Slot], threads: int) -> str:
    """Where jobs run side by side, in words."""
    named = dict.fromkeys(getattr(slot, "environment", {}).get("CUDA_VISIBLE_DEVICES", "") for slot in slots)
    on = f" on GPU {' and GPU '.join(named)}" if all(named) else f", {threads} thread{'s' * (threads > 1)} each"
    return f"{len(slots)} side by side{on}"


def run_jobs(
    jobs: Iterable[Job],
    slots: Sequence[Slot],
    finished: Callable[[Job, int], None] = lambda job, exit_code: None,
    none_began: Callable[[], bool] = lambda: False,
) -> dict[str, int]:
    """Run every job and return its exit code by name; a failed job does not stop the others.

    ``jobs`` is asked for the next one when a slot is free, not before. With one slot here a job speaks for itself;
    else each line it prints is led by its name. A job that a signal has ended (the system was out of memory, a
    crash) is started once more: it goes on from its checkpoint.
    A job that is refused while ``none_began`` says that none has got beyond its checks is refused as all others will
    be: they are ended, and its error is raised as ours.
    ``finished`` is called in this thread as each job ends. Ctrl-C, SIGTERM (or any other exception here) ends
    all running jobs before it goes on.
    """
    waiting, free, ended = iter(jobs), list(range(len(slots))), Queue()
    running: dict[str, Process] = {}
    exit_codes, again = {}, set()
    piped = len(slots) > 1 or slots[0].elsewhere
    with _sigterm_as_exit(), closing(Screen(len(slots) if piped else 0)) as screen:

        def start(job: Job, slot: int) -> None:
            seen = replace(job, environment={**job.environment, **screen.environment})
            running[job.name] = slots[slot].start(seen, piped)
            watch = (job, slot, running[job.name], screen, ended)
            threading.Thread(target=_watch, args=watch, daemon=True).start()

        try:
            while True:
                while free and (job := next(waiting, None)):
                    start(job, free.pop(0))
                if not running:
                    break
                job, slot, exit_code = ended.get()
                if exit_code < 0 and exit_code not in INTERRUPTED and job.name not in again:
                    again.add(job.name)
                    screen.say(f"{job.name} was killed by {signal.Signals(-exit_code).name}: starting it once more\n")
                    start(job, slot)
                    continue
                del running[job.name]
                free.append(slot)
                exit_codes[job.name] = exit_code
                if said := screen.errors.get(job.name, ""):
                    if exit_code in (INPUT, ENVIRONMENT) and none_began():
                        raise as_said(said, exit_code)
                    screen.show(job.name, slot, said)
                finished(job, exit_code)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    return exit_codes


def in_words(exit_code: int) -> str:
    """How a job ended: its exit code, or the signal."""
    return f"exit {exit_code}" if exit_code >= 0 else signal.Signals(-exit_code).name


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


def _watch(job: Job, slot: int, process: Process, screen: Screen, ended: Queue) -> None:
    try:
        for said in process.stdout or ():
            with suppress(BrokenPipeError):  # nobody reads our output any more: a job must not wait for that
                screen.show(job.name, slot, said)
    finally:
        ended.put((job, slot, process.wait()))
