"""Training killed at random and started again: the bytes of the uninterrupted run, and no announced epoch lost."""

import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT, SMALL
from disturbed import FULL, Child, Server, alive, start_together, strace, wait_until

from common.runs.predictions import read_predictions
from common.runs.tensors import load_tensors

KILLS = {1: 80, 2: 20} if FULL else {1: 8, 2: 2}  # by world size
EPOCHS = 8
LONG = 60 if FULL else 1000  # not over before a launcher is ended, even where the machine stalls
# Calls that only saves make, three to a file: config, log, checkpoint, model, OOF, metrics.
IN_SAVES = ("fsync", "rename")
# By world size: either way the last step of every epoch has its share in the weights that are kept.
AVERAGES = {1: ("--ema-decay", 0.9), 2: ("--select", "swa", "--select-args", "last=8")}
RESULTS = ("model.safetensors", "oof.npz")


class Run:
    """One fold of a training with everything on that a checkpoint must bring back, over one or two processes."""

    def __init__(self, server: Server, tiny: Path, runs_dir: Path, processes: int, epochs: int = EPOCHS):
        self.server, self.processes, self.epochs = server, processes, epochs
        places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", runs_dir, "--run", "it"]
        options = ["--fold", 0, "--epochs", epochs, "--mixed-precision", "no", *AVERAGES[processes]]
        self.command = ["train_fold", *places, *SMALL, *options]
        self.folder = runs_dir / "it" / "fold0"

    def start(self, *more: object) -> list[Child]:
        """Its processes, as a launcher would start them, with ``more`` options."""
        return start_together(self.server, self.processes, *self.command, *more)

    def finish(self) -> dict[str, bytes]:
        """Train to the end and return the results."""
        children = self.start()
        assert [child.wait() for child in children] == [0] * self.processes, children[0].said()
        assert not list(self.folder.glob(".*.tmp")) and not (self.folder / "checkpoint.safetensors").exists()
        assert (self.folder / "log.csv").read_text().count("\n") == self.epochs + 1
        return {name: (self.folder / name).read_bytes() for name in RESULTS}


def end_together(children: list[Child]) -> list[int]:
    """Exit codes; like a launcher, end what is left ten seconds after the first has ended."""
    wait_until(lambda: not all(child.alive for child in children), "an end")
    deadline = time.monotonic() + 10
    wait_until(lambda: not any(child.alive for child in children) or time.monotonic() > deadline, "the others' end")
    for child in children:
        child.signal(signal.SIGKILL)
    return [child.wait() for child in children]


def epochs_in(said: str) -> list[int]:
    """The epochs that a process has said are finished."""
    return list(map(int, re.findall(r"epoch +(\d+)/", said)))


def announced(child: Child) -> int:
    """The last epoch that a process has said is finished, 0 before the first."""
    return max(epochs_in(child.said()), default=0)


def wait_for_epoch(child: Child, epoch: int) -> None:
    """Until it has said that this epoch is finished; fail, with what it has said, where it ends before."""
    wait_until(lambda: announced(child) >= epoch or not child.alive, f"epoch {epoch}")
    assert announced(child) >= epoch, child.said()


def resumed_after(child: Child, unsaid: int = 0) -> int:
    """The epoch after which a process says that it resumes; ``unsaid`` where it does not say so."""
    found = re.search(r"resumes after epoch (\d+)", child.said())
    return int(found[1]) if found else unsaid


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
                time.sleep(draw.uniform(0.2, 1.0) * seconds)
                for child in children if draw.random() < 0.5 else children[-1:]:
                    child.signal(signal.SIGKILL)
            exit_codes = end_together(children)
        where = f"seed {seed}, kill {kills} ({f'{call} {number}' if saving else 'at a moment'}): {children[0].said()}"
        assert resumed_after(children[0], unsaid=finished_epochs) >= finished_epochs, where
        assert all(epoch > finished_epochs for epoch in epochs_in(children[0].said())), where
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


@pytest.mark.parametrize(
    ("sent", "expected", "processes", "whom"),
    [
        (signal.SIGTERM, -signal.SIGTERM, 1, [0]),
        (signal.SIGINT, 130, 1, [0]),
        (signal.SIGINT, -signal.SIGINT, 2, [0, 1]),
        (signal.SIGTERM, -signal.SIGTERM, 2, [1]),
    ],
    ids=["SIGTERM", "Ctrl-C", "Ctrl-C to both", "SIGTERM to rank 1"],
)
def test_a_signal_ends_training_at_once(sent, expected, processes, whom, server, tiny, tmp_path):
    """SIGTERM (143 in a shell) or Ctrl-C (130): over within ten seconds, and the last finished epoch stands."""
    run = Run(server, tiny, tmp_path, processes, epochs=1000)
    children = run.start()
    wait_for_epoch(children[0], 2)
    for rank in whom:
        children[rank].signal(sent)
    wait_until(lambda: not any(child.alive for child in children), "the end", seconds=10)
    exit_codes = [child.wait() for child in children]
    assert [exit_codes[rank] for rank in whom] == [expected] * len(whom) and 0 not in exit_codes
    finished = len(load_tensors(run.folder / "checkpoint.safetensors")[1]["log"])
    assert announced(children[0]) <= finished <= announced(children[0]) + 1
    assert not (run.folder / "model.safetensors").exists()


def test_all_processes_stop_together_when_the_time_is_over(server, tiny, tmp_path):
    """--hours with two processes: both end well after the same epoch, whose checkpoint stands."""
    run, hours, stopped = Run(server, tiny, tmp_path, 2, epochs=100_000), 0.001, None
    while not stopped:  # on a busy machine there may be no time to begin at all
        children = run.start("--hours", hours)
        assert [child.wait() for child in children] == [0, 0], children[0].said()
        stopped, hours = re.search(r"fold 0 stops after epoch ([1-9]\d*) of 100000: ", children[0].said()), 4 * hours
    log = load_tensors(run.folder / "checkpoint.safetensors")[1]["log"]
    assert int(stopped[1]) == announced(children[0]) == len(log)


@pytest.mark.parametrize(("flags", "expected"), [(["--lr", -1], 2), (["--lr", 1e30], 4)], ids=["input", "numbers"])
def test_rank_0_alone_says_what_all_meet(flags, expected, server, tiny, tmp_path):
    """A mistake, or a loss that is no number: one line from two processes, and both end with its exit code."""
    run = Run(server, tiny, tmp_path, 2)
    run.command += flags
    children = run.start()
    assert [child.wait() for child in children] == [expected, expected]
    assert [child.said().count("error: ") for child in children] == [1, 0]
    assert "error: " in children[0].said().splitlines()[-1] and not children[1].said()


def test_other_processes_and_threads_go_on_with_a_warning(server, tiny, tmp_path):
    """Begun by two processes, ended by one with other threads: both are named, and every row is predicted once."""
    begun = Run(server, tiny, tmp_path, 2)
    children = begun.start()
    wait_for_epoch(children[0], 1)
    for child in children:
        child.signal(signal.SIGKILL)
        child.wait()
    child = server.start(*begun.command, "--threads", 2)
    assert child.wait() == 0, child.said()
    for what in ("processes changed from 2 to 1", "threads changed from 1 to 2"):
        assert f"{what}: expect equivalent, not bit-identical, results" in child.said()
    assert resumed_after(child) >= announced(children[0])
    assert len(read_predictions(begun.folder / "oof.npz").ids) == 20


def test_a_run_that_is_in_use_or_gone_is_left_alone(server, tiny, tmp_path):
    """A second process is refused and names the first; the lock dies with its holder; a moved folder is not remade."""
    first, again = (Run(server, tiny, tmp_path, 1, epochs=1000) for _ in range(2))
    [holder] = first.start()
    wait_for_epoch(holder, 1)
    [refused] = again.start()
    assert refused.wait() == 3
    assert f"\nerror: {first.folder}: is in use by pid {holder.pid} on {socket.gethostname()};" in f"\n{refused.said()}"
    holder.signal(signal.SIGKILL)
    holder.wait()
    [heir] = again.start()
    wait_for_epoch(heir, announced(holder) + 1)
    first.folder.parent.rename(tmp_path / "moved")
    assert heir.wait() == 3 and heir.said().count("error: ") == 1
    assert f"error: {first.folder}: was deleted or moved meanwhile; run the same command again\n" in heir.said()
    assert not first.folder.parent.exists()


def test_out_of_memory_names_the_batch_and_what_would_fit(server, tiny, tmp_path):
    """On a machine with too little: one line with exit 3, and a --accumulate that divides the batch."""
    size = int(re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text())[1]) * 1024
    run = Run(server, tiny, tmp_path, 1, epochs=1)
    command = [*run.command, "--img-size", 256, "--batch-size", 40, "--augment", "none"]
    child = server.start(*command, limits={"RLIMIT_AS": size + 300_000_000})
    assert child.wait() == 3 and child.said().count("error: ") == 1, child.said()
    said = child.said().splitlines()[-1]
    assert said.startswith("error: --batch-size: out of memory at 40 images at a time: ")
    assert "; free memory and run it again, or --restart with a smaller --batch-size, " in said
    assert said.endswith("or with --accumulate 2 for the same batch")


# ---- with a real launcher, which is two thirds of the time


WHOM = ("launcher", "rank 0", "rank 1", "group")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
EVERY = [(sent, whom, n) for n in (1, 2) for whom in WHOM for sent in SIGNALS if (whom, n) != ("rank 1", 1)]
SOME = [(signal.SIGTERM, "launcher", 1), (signal.SIGKILL, "launcher", 2)]


@pytest.fixture(scope="module")
def undisturbed(server, tiny, tmp_path_factory):
    """The results of a long run that nothing has disturbed, for a number of processes."""

    @cache
    def results(processes: int) -> dict[str, bytes]:
        return Run(server, tiny, tmp_path_factory.mktemp("undisturbed"), processes, epochs=LONG).finish()

    return results


@pytest.mark.parametrize(("sent", "whom", "processes"), EVERY if FULL else SOME)
def test_nothing_outlives_its_launcher(sent, whom, processes, server, tiny, tmp_path, figures, undisturbed):
    """However a launched training is ended: over within ten seconds, exit code not 0, nothing left, and resumed."""
    figures("signals", total=1)
    run = Run(server, tiny, tmp_path, processes, epochs=LONG)
    options = ["--multi_gpu", f"--num_processes={processes}", "--main_process_port=0"] if processes > 1 else []
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "train_fold.py", *run.command[1:]]
    said = tmp_path / "said"
    with said.open("wb") as output:
        launcher = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        wait_until(lambda: epochs_in(said.read_text()), "an epoch")
        below = processes_below(launcher.pid)
        ranks = {rank: pid for pid in below if (rank := rank_of(pid)) is not None}
        assert len(ranks) == processes
        if whom == "group":
            os.killpg(launcher.pid, sent)
        else:
            os.kill(launcher.pid if whom == "launcher" else ranks[int(whom[-1])], sent)
        assert launcher.wait(timeout=10) != 0
        wait_until(lambda: not any(map(alive, below)), "the end of all that it has started", seconds=5)
    finally:
        if launcher.poll() is None:
            launcher.kill()
    finished_epochs = max(epochs_in(said.read_text()))
    children = run.start()
    if FULL:
        assert [child.wait() for child in children] == [0] * processes, children[0].said()
        assert run.finish() == undisturbed(processes)
    else:
        wait_for_epoch(children[0], finished_epochs + 1)
        for child in children:
            child.signal(signal.SIGKILL)
            child.wait()
    assert resumed_after(children[0]) >= finished_epochs
    figures("signals", done=1)


def processes_below(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [*children, *(grandchild for child in children for grandchild in processes_below(child))]


def rank_of(pid: int) -> int | None:
    """The rank of a training process; a single one has no RANK, but the launcher's precision."""
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    names = dict(entry.partition("=")[::2] for entry in environment if entry)
    if b"train_fold.py" not in Path(f"/proc/{pid}/cmdline").read_bytes() or "ACCELERATE_MIXED_PRECISION" not in names:
        return None
    return int(names.get("RANK", "0"))
