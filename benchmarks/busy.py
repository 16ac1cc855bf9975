"""Beside busy neighbours: how much of its share of the cores does each kind of work keep?

    python -m benchmarks.busy --data train.csv.gz --test test.csv.gz

OpenMP's threads spin at each barrier while they wait for one another, which burns the time that a neighbour needs, and
waits in vain for a thread that has lost its core. Each work is done once for each way of waiting, and neighbours that
never rest join while it runs: first none, then one, then two. So a line's ratios are taken within one process. Of work
on one thread, which waits for nobody, only our way is shown. Writes benchmarks/busy.md.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.inference import first_rows, script
from benchmarks.machine import hardware
from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import read_json, write_file
from common.base.system import SPINS, cpu_count
from common.runs.layout import INFERENCE_FILE, LOG_FILE, fold_folder
from common.sweep.cells import TABLE_FILE

REPORT = Path(__file__).with_suffix(".md")
OURS = f"ours, {SPINS:,} spins"
WAYS: dict[str, dict[str, str]] = {
    "as libgomp does": {"GOMP_SPINCOUNT": "300000"},  # what libgomp takes while there are no more threads than cores
    OURS: {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
NEIGHBOURS = (0, 1, 2)
BUSY = "while True: pass"
BATCH = 128
RATES = ("1e-3", "1.1e-3", "1.2e-3", "1.3e-3", "1.4e-3", "1.5e-3")  # a sweep's cells, two for each row of neighbours
Speeds = list[float]  # images per second, one for each of NEIGHBOURS


@dataclass(frozen=True)
class Options:
    """Train, predict and sweep beside busy neighbours: python -m benchmarks.busy --data train.csv.gz"""

    data: str = "train.csv.gz"  # train table of 28 x 28 digits
    test: str = "test.csv.gz"  # its test table
    ways: tuple[str, ...] = tuple(WAYS)  # of waiting, by their names in the table
    work: str = "work/busy"  # folder for the runs
    rows: int = 8_000  # of either table; half of the train table's are an epoch


class Work:
    """The commands that are measured, in one folder, with what they have in common."""

    def __init__(self, options: Options):
        self.folder, self.rows = Path(options.work), options.rows // 2
        shutil.rmtree(self.folder, ignore_errors=True)
        self.data = first_rows(Path(options.data), options.rows, self.folder / "train.csv")
        self.test = first_rows(Path(options.test), options.rows, self.folder / "test.csv")
        self.folds = ["--data", str(self.data), "--folds", str(self.folder / "folds.csv")]
        script("folds.py", *self.folds, "--k", 2)
        own = ["--batch-size", str(BATCH), "--channels-last", "no", "--mixed-precision", "no"]
        self.settings = [*self.folds, *own, "--runs-dir", str(self.folder)]

    def train(self, way: Mapping[str, str], threads: int, folds: Sequence[int] = (0,)) -> Speeds:
        """Folds side by side: an epoch that is not counted, then one for each number of neighbours."""
        command = ["train_fold.py", *self.settings, "--run", "busy", "--epochs", str(1 + len(NEIGHBOURS))]
        command += ["--fold", "all" if len(folds) > 1 else "0", "--jobs", str(len(folds)), "--threads", str(threads)]
        shutil.rmtree(self.folder / "busy", ignore_errors=True)  # whose log would be taken for this run's
        logs = [fold_folder(self.folder / "busy", fold) / LOG_FILE for fold in folds]
        beside_more_and_more(command, way, lambda: lines_in(logs[0]) - 1)
        images = self.rows // BATCH * BATCH
        return [sum(images / pd.read_csv(log).train_seconds[1 + number] for log in logs) for number in NEIGHBOURS]

    def sweep(self, way: Mapping[str, str]) -> Speeds:
        """Cells of one epoch, two at a time."""
        command = ["sweep.py", "run", *self.settings, "--run", "cells", "--epochs", "1", "--jobs", "2"]
        command += ["--threads", "1", "--batch-sizes", str(BATCH), "--lrs", *RATES]
        table = self.folder / "cells_sweep" / TABLE_FILE
        beside_more_and_more(command, way, lambda: lines_in(table) // 2)
        speed = self.rows / pd.read_csv(table).seconds_per_epoch
        return [speed[2 * number : 2 * number + 2].sum() for number in NEIGHBOURS]

    def predict(self, way: Mapping[str, str], threads: int) -> Speeds:
        """The test rows by the two models of the run ``busy``, by infer.py's own clock."""
        command = ["infer.py", *self.folds, "--runs-dir", str(self.folder), "--runs", "busy", "--test", str(self.test)]
        command += ["--tta", "none", "--threads", str(threads)]
        found = []
        for number in NEIGHBOURS:
            with contextlib.ExitStack() as neighbours:
                for _ in range(number):
                    neighbours.enter_context(neighbour())
                subprocess.run([sys.executable, *command], check=True, env=inherited() | way, stdout=subprocess.DEVNULL)
            found.append(1000 / read_json(self.folder / "busy" / INFERENCE_FILE)["seconds_per_1000_rows"])
        return found


def main() -> None:
    options = parse(Options)
    work, cores = Work(options), cpu_count()
    measured: dict[str, Callable[[Mapping[str, str]], Speeds]] = {
        f"training, {cores} threads": lambda way: work.train(way, cores),
        "training, one thread": lambda way: work.train(way, 1),
        "a sweep's cells, two at a time": work.sweep,
        "two folds side by side": lambda way: work.train(way, 1, (0, 1)),
        f"inference, {cores} threads": lambda way: work.predict(way, cores),
        "inference, one thread": lambda way: work.predict(way, 1),
    }
    lines = ["| work | waiting | alone, images/s | beside 1 | beside 2 | kept beside 1 | beside 2 |", "|---" * 7 + "|"]
    for name, speeds_of in measured.items():
        for way in options.ways if f"{cores} threads" in name else [OURS]:
            alone, *beside = speeds_of(WAYS[way])
            cells = [name, way, *(f"{speed:,.0f}" for speed in (alone, *beside))]
            lines.append(f"| {' | '.join([*cells, *(f'{speed / alone:.2f}' for speed in beside)])} |")
            print(lines[-1], flush=True)
    text = f"# On a busy machine\n\n`python -m benchmarks.busy`: {hardware()}.\ndigit_cnn, batches of {BATCH}, fp32.\n"
    fair = " and ".join(f"{1 - number / (2 * cores):.2f}" for number in NEIGHBOURS[1:])
    text += f"Beside 1 and 2 neighbours, each of which takes half of a core, a fair share of all cores is {fair}.\n\n"
    write_file(REPORT, text + "\n".join(lines) + "\n")
    print(text)


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """A process that never rests."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def beside_more_and_more(command: Sequence[str], way: Mapping[str, str], done: Callable[[], int]) -> None:
    """Run a script; a neighbour joins when the first part that is counted is ``done``, and one more after the next."""
    with contextlib.ExitStack() as neighbours:
        process = subprocess.Popen([sys.executable, *command], env=inherited() | way, stdout=subprocess.DEVNULL)
        joined = 0
        while process.poll() is None:
            if done() > joined and joined < NEIGHBOURS[-1]:
                neighbours.enter_context(neighbour())
                joined += 1
            time.sleep(0.05)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def inherited() -> dict[str, str]:
    """This process's environment without how threads wait, which the ways set."""
    return {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}


def lines_in(path: Path) -> int:
    """How many rows a table has so far."""
    return max(0, path.read_text().count("\n") - 1) if path.exists() else 0


if __name__ == "__main__":
    run_script(main)
