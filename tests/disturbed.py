"""Processes that are disturbed on purpose: by a signal, or by strace at a chosen system call."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

FULL = os.environ.get("FIVEFOLD_FAULTS") == "full"  # `make faults`: every fault, instead of some of each kind
TIMEOUT = 120  # seconds until something hangs


def needs_strace() -> None:
    """Skip where strace is absent, but never on a build machine."""
    if not shutil.which("strace"):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs strace: apt-get install strace")


def wait_until(happened, what: str, seconds: float = TIMEOUT) -> None:
    """Look every few milliseconds; fail where it does not happen."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a thread of the process runs: a zombie does not, but its files stay open until its last thread ends."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # a thread has ended meanwhile
        return True
    return any(stat.rpartition(")")[2].split()[0] not in "ZX" for stat in stats)


class Server:
    """The process of tests/forked.py, which forks a child for each thing to do."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, str(ROOT / "tests" / "forked.py"), str(theirs.fileno())]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self.pid = self._answer()["pid"]

    def start(self, *do: object, environment: dict | None = None, limits: dict | None = None) -> "Child":
        """A child that runs a script's main with arguments, or one of the writers."""
        self.count += 1
        said = self.folder / f"said{self.count}"
        said.touch()
        order = {"do": list(map(str, do)), "environment": environment or {}, "limits": limits or {}, "said": str(said)}
        return Child(self, self.ask(order)["pid"], said)

    def ask(self, order: dict) -> dict:
        """Give an order and return the answer."""
        self.link.send(json.dumps(order).encode())
        return self._answer()

    def _answer(self) -> dict:
        self.link.settimeout(TIMEOUT)
        try:
            return json.loads(self.link.recv(1 << 16))
        except TimeoutError:
            self.process.kill()
            pytest.fail(f"no answer within {TIMEOUT} s")

    def close(self) -> None:
        """End it."""
        self.link.close()
        self.process.wait(timeout=TIMEOUT)


@dataclass
class Child:
    """A forked child; its output lies in a file."""

    server: Server
    pid: int
    output: Path

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        return self.server.ask({"wait": self.pid})["exit"]

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return alive(self.pid)

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended: until we wait for it, no other process gets its id."""
        os.kill(self.pid, number)

    def said(self) -> str:
        """Everything it has printed so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")


def start_together(server: Server, processes: int, *do: object) -> list[Child]:
    """Children that do the same together, as a launcher would start them."""
    if processes == 1:
        return [server.start(*do)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared = {**count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [server.start(*do, environment=environment) for environment in ranks]


@contextmanager
def strace(pid: int, *options: str, log: Path | str = os.devnull) -> Iterator[None]:
    """Watch a process and the children it forks from now on; each counts its system calls from its own start."""
    needs_strace()
    command = ["strace", "-f", "-p", str(pid), "-o", str(log), *options]
    watcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = watcher.stderr.readline()
    assert "attached" in said, said
    try:
        yield
    finally:
        watcher.send_signal(signal.SIGINT)
        watcher.communicate(timeout=TIMEOUT)


def calls_of(log: Path, pid: int) -> list[tuple[str, int, str]]:
    """The system calls of one process in strace's log: name, how manieth of that name, the whole line."""
    calls, counts = [], {}
    for line in log.read_text(errors="replace").splitlines():
        if found := re.match(rf"{pid} +(\w+)\(", line):
            name = found[1]
            counts[name] = counts.get(name, 0) + 1
            calls.append((name, counts[name], line))
    return calls
