"""On Linux, jobs on CPUs are forked from a process that has loaded the libraries once, which is most of a job's start.

That process, the server, imports libraries and does nothing else. It runs no operation of theirs, so neither OpenMP nor
CUDA has begun in it, and what a job changes is that job's own. A job ends as any Python process does.

Python's own server (multiprocessing's forkserver) would import the script that we were started with in each job, which
a user's own may not be made for, and would end a job without what it has registered with atexit.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from common.base.system import end_with_starter, spin_briefly
from common.jobs.process import Job, Process, environment_of, output_of, start_child

LIBRARIES = ("torch._dynamo", "timm.optim", "accelerate", "pandas", "tyro")  # and with them torch, timm, numpy
# A job loads itself: our own code, and what reads the environment as it is loaded (the width of a bar).
LOADED_BY_JOBS = ("common", "tqdm")


class ForkServer:
    """The server as its starter sees it. It loads while the starter goes on, and ends when that does."""

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        encoding = ["-X", "utf8"] if sys.flags.utf8_mode else []  # else each job would start itself anew (run_script)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # the server's too, until it ignores it
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, *encoding, "-m", __name__, str(theirs.fileno())],
                    env=environment_of(os.getpid()),
                    cwd=Path(__file__).parents[2],
                    pass_fds=[theirs.fileno()],
                    stdout=subprocess.PIPE,  # so that its streams do not seek, which a job's outputs may not allow
                    stderr=subprocess.STDOUT,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def start(self, job: Job, environment: Mapping[str, str], piped: bool) -> Process:
        """Start a job, a script with its arguments; as :func:`start_child` does if there is no server any more."""
        own = environment_of(self.process.pid, environment, job.environment)
        order = json.dumps({"command": job.command, "folder": job.folder, "environment": own})
        status, theirs = os.pipe()
        with output_of(job, piped) as (said, file), os.fdopen(theirs, "wb"):
            outputs = [file.fileno()] * 2 if file else [1, 2]
            with suppress(OSError):
                socket.send_fds(self.link, [order.encode()], [theirs, *outputs])
        process = ForkedProcess(said, status)
        return process if process.pid else start_child(job, environment, piped)

    def close(self) -> None:
        """End the server, though it may still be loading."""
        self.link.close()
        self.process.terminate()
        self.process.communicate()


class ForkedProcess:
    """A job that the server has started: :class:`common.jobs.process.Process`."""

    def __init__(self, stdout: Iterable[str] | None, status: int):
        self.stdout = stdout
        self.status = os.fdopen(status, encoding="ascii")  # the server says a number a line: the process, its exit code
        self.pid = int(self.status.readline() or 0)
        self.lock, self.exit_code = threading.Lock(), None

    def wait(self) -> int:
        """Its exit code once it has ended; if that was with the server, SIGKILL's: the job deserves another start."""
        with self.lock:
            if self.exit_code is None:
                with self.status:
                    self.exit_code = int(self.status.readline() or -signal.SIGKILL)
            return self.exit_code

    def terminate(self) -> None:
        """End it."""
        if self.exit_code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


def load() -> None:
    """Load the libraries as a job would."""
    spin_briefly()
    for name in LIBRARIES:
        import_module(name)
    gc.freeze()  # a collection would write to, and so copy, the pages that jobs share


def serve(link: socket.socket) -> dict[str, Any] | None:
    """Fork a process for each order that comes over ``link``: returns the order there, and None here after the last."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    statuses: dict[int, int] = {}  # by process, where its exit code is to be said
    while True:
        ready, _, _ = select.select([link, woken], [], [])
        if woken in ready:
            os.read(woken, 1 << 16)
            for process in [*statuses]:
                ended, code = os.waitpid(process, os.WNOHANG)
                if ended:
                    _say(statuses[process], os.waitstatus_to_exitcode(code))
                    os.close(statuses.pop(process))
        if link in ready:
            order, given, _, _ = socket.recv_fds(link, 1 << 20, 3, socket.MSG_CMSG_CLOEXEC)
            if not order:
                return None
            status, *outputs = given
            process = os.fork()
            if not process:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, before)
                for number, output in enumerate(outputs, 1):
                    os.dup2(output, number)
                # Its own status stays open: were the server killed, it is not over before the job is.
                for descriptor in (*outputs, woken, wake, *statuses.values()):
                    os.close(descriptor)
                link.close()
                return json.loads(order)
            statuses[process] = status
            _say(status, process)
            for output in outputs:
                os.close(output)


def _say(status: int, number: int) -> None:
    os.write(status, b"%d\n" % number)


def run(command: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run a job's script in this process, which then looks as if it had been started for that."""
    import numpy as np
    import torch

    os.environ.clear()
    os.environ.update(environment)
    end_with_starter()
    os.chdir(folder)
    sys.argv, sys.orig_argv = command, [sys.executable, *command]
    sys.path[0] = str(Path(command[0]).resolve().parent)
    for name in [name for name in sys.modules if name.partition(".")[0] in LOADED_BY_JOBS]:
        del sys.modules[name]
    torch.default_generator.seed()  # each process has random states of its own; Python's sees to that itself
    np.random.seed()
    runpy.run_path(command[0], run_name="__main__")


def main() -> None:
    end_with_starter()
    for number in (1, 2):  # what libraries say as they are loaded, our starter has them say too
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    load()
    if order := serve(socket.socket(fileno=int(sys.argv[1]))):
        signal.signal(signal.SIGINT, interrupt)
        run(**order)


if __name__ == "__main__":
    main()
