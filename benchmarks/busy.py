"""A training beside busy neighbours: how much of its share of the cores does it keep?

    python -m benchmarks.busy --data train.csv.gz

OpenMP's threads spin at each barrier while they wait for one another, which burns the time that a neighbour needs, and
waits in vain for a thread that has lost its core. The ways take turns, each in the quiet and beside one and two
processes that never rest; counted are the training images per second of the second epoch. Writes benchmarks/busy.md.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.ratios import write_speeds
from common.base.cli import parse
from common.base.errors import run_script
from common.base.system import SPINS, cpu_count
from common.data.dealing import make_folds
from common.data.folds import write_folds
from common.data.tables import read_train_table
from common.runs.layout import LOG_FILE, fold_folder

REPORT = Path(__file__).with_suffix(".md")
WAYS: dict[str, dict[str, str]] = {
    "as libgomp does": {"GOMP_SPINCOUNT": "300000"},  # what libgomp takes while there are no more threads than cores
    f"ours, {SPINS:,} spins": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
NEIGHBOURS = (0, 1, 2)
BUSY = "while True: pass"


@dataclass(frozen=True)
class Options:
    """Train beside busy neighbours: python -m benchmarks.busy --data train.csv.gz"""

    data: str = "train.csv.gz"  # train table of 28 x 28 digits
    work: str = "work/busy"  # folder for the runs
    rounds: int = 3  # turns of each way
    rows: int = 4_000  # of an epoch


def main() -> None:
    options = parse(Options)
    folds_file = Path(options.work) / "folds.csv"
    write_folds(folds_file, make_folds(read_train_table(options.data), k=2))
    train = ["train_fold.py", "--data", options.data, "--folds", str(folds_file), "--runs-dir", options.work]
    train += ["--fold", "0", "--epochs", "2", "--batch-size", "128", "--limit", str(options.rows)]
    train += ["--run", "busy", "--restart", "--channels-last", "no", "--mixed-precision", "no"]
    rows = []
    for number in range(options.rounds):
        for neighbours in NEIGHBOURS:
            found: dict[str, object] = {"setting": f"{cpu_count()} threads, {neighbours} neighbours"}
            for way, environment in WAYS.items():
                with busy(neighbours):
                    found[way] = speed(train, environment, Path(options.work) / "busy", options.rows // 128 * 128)
            print(number, found, flush=True)
            rows.append(found)
    write_speeds(REPORT, "A training on a busy machine", "digit_cnn, batches of 128", rows, list(WAYS), "images/s")


@contextmanager
def busy(neighbours: int) -> Iterator[None]:
    """So many processes that never rest."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(neighbours)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def speed(command: list[str], environment: Mapping[str, str], run: Path, images: int) -> float:
    """Training images per second of the last epoch."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    subprocess.run([sys.executable, *command], check=True, env=inherited | environment, stdout=subprocess.DEVNULL)
    return images / float(pd.read_csv(fold_folder(run, 0) / LOG_FILE).train_seconds.iloc[-1])


if __name__ == "__main__":
    run_script(main)
