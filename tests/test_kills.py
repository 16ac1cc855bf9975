"""Training killed at random and started again: the bytes of the uninterrupted run, and no announced epoch lost."""

import random
import re
import secrets
import shutil
import signal
import socket
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import SMALL
from disturbed import FULL, Child, Server, needs_strace, strace, wait_until

KILLS = {1: 80, 2: 20} if FULL else {1: 8, 2: 2}  # by world size
EPOCHS = 8
# Calls that only saves make, three to a file: config, log, checkpoint, model, OOF, metrics.
IN_SAVES = ("fsync", "rename")
RESULTS = ("model.safetensors", "oof.npz")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    needs_strace()
    server = Server(tmp_path_factory.mktemp("said"))
    yield server
    server.close()


class Run:
    """One fold of a training with everything on that a checkpoint must bring back, over one or two processes."""

    def __init__(self, server: Server, tiny: Path, runs_dir: Path, processes: int):
        self.server, self.processes = server, processes
        places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", runs_dir, "--run", "it"]
        options = ["--fold", 0, "--epochs", EPOCHS, "--ema-decay", 0.9, "--select", "best", "--mixed-precision", "no"]
        self.command = ["train_fold", *places, *SMALL, *options]
        self.folder = runs_dir / "it" / "fold0"

    def start(self) -> list[Child]:
        """Its processes, as a launcher would start them."""
        if self.processes == 1:
            return [self.server.start(*self.command)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        shared |= {"OMP_NUM_THREADS": "1"}
        ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        return [self.server.start(*self.command, environment=environment) for environment in ranks]

    def finish(self) -> dict[str, bytes]:
        """Train to the end and return the results."""
        children = self.start()
        assert [child.wait() for child in children] == [0] * self.processes, children[0].said()
        assert not list(self.folder.glob(".*.tmp")) and not (self.folder / "checkpoint.safetensors").exists()
        return {name: (self.folder / name).read_bytes() for name in RESULTS}


def end_together(children: list[Child]) -> list[int]:
    """Exit codes; like a launcher, end what is left ten seconds after the first has ended."""
    wait_until(lambda: not all(child.alive for child in children), "an end")
    deadline = time.monotonic() + 10
    wait_until(lambda: not any(child.alive for child in children) or time.monotonic() > deadline, "the others' end")
    for child in children:
        child.signal(signal.SIGKILL)
    return [child.wait() for child in children]


def announced(child: Child) -> int:
    """The last epoch that a process has said is finished, 0 before the first."""
    return max(map(int, re.findall(r"epoch +(\d+)/", child.said())), default=0)


def went_on_after(child: Child) -> int:
    """The epoch that a process says it goes on after, 0 where it starts from scratch."""
    found = re.search(r"goes on after epoch (\d+)", child.said())
    return int(found[1]) if found else 0


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def uninterrupted(request, server, tiny, tmp_path_factory):
    """The results of a run that nothing has disturbed, what it said, and its seconds."""
    run = Run(server, tiny, tmp_path_factory.mktemp("whole"), request.param)
    started = time.monotonic()
    results = run.finish()
    return request.param, results, time.monotonic() - started


def test_killed_at_random_equals_uninterrupted(uninterrupted, server, tiny, tmp_path, figures):
    """SIGKILL again and again, half of the times inside a save: the same model and OOF bytes, no epoch lost."""
    processes, expected, seconds = uninterrupted
    seed, kills, in_saves, whole = secrets.randbits(32), 0, 0, 0
    draw, run, finished_epochs = random.Random(seed), None, 0
    figures("kills", total=KILLS[processes])
    while kills < KILLS[processes]:
        if run is None:
            run, finished_epochs = Run(server, tiny, tmp_path / str(whole), processes), 0
        saving = kills % 2 == 0
        call, number = draw.choice(IN_SAVES), draw.randrange(1, 12)
        watch = strace(server.pid, "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}")
        with watch if saving else nullcontext():
            children = run.start()
            if not saving:
                pause = time.monotonic() + draw.uniform(0.2, 1.0) * seconds
                wait_until(lambda until=pause: time.monotonic() > until, "a random moment")
                for child in children if draw.random() < 0.5 else children[-1:]:
                    child.signal(signal.SIGKILL)
            exit_codes = end_together(children)
        where = f"seed {seed}, kill {kills} ({f'{call} {number}' if saving else 'at a moment'}): {children[0].said()}"
        assert went_on_after(children[0]) >= finished_epochs or "is finished" in children[0].said(), where
        finished_epochs = max(finished_epochs, announced(children[0]))
        if -signal.SIGKILL in exit_codes:
            kills, in_saves = kills + 1, in_saves + saving
        if 0 in exit_codes or kills == KILLS[processes]:
            assert run.finish() == expected, where
            shutil.rmtree(run.folder)
            run, whole = None, whole + 1
    assert in_saves >= 0.3 * kills, f"seed {seed}"
    print(f"seed {seed}: {kills} kills, {in_saves} inside saves, {whole} runs, {processes} processes")
    figures("kills", done=kills)
