"""Two folds on a machine's cores: one after another on all of them, side by side on half each, or shared by DDP.

    python -m benchmarks.side_by_side --data train.csv.gz

The same two folds are trained in each way, the ways in turn; counted are the training images per second of both folds
together in their second epoch, start-up and evaluation left out. Ratios are taken within a round. Writes
benchmarks/side_by_side.md.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.ratios import write_speeds
from common.base.cli import parse
from common.base.errors import run_script
from common.base.system import cpu_count
from common.data.dealing import make_folds
from common.data.folds import write_folds
from common.data.reading import read_train_table
from common.runs.layout import LOG_FILE, fold_folder

REPORT = Path(__file__).with_suffix(".md")
# Model, arguments, rows of an epoch.
SETTINGS = {
    "digit_cnn": ((), 8_000),
    "convnext_atto": (("--img-size", "32"), 3_000),
}
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--mixed_precision", "no")
ON_CPU = {"ACCELERATE_USE_CPU": "true"}  # with --multi_gpu: several processes on CPUs


@dataclass(frozen=True)
class Options:
    """Measure two folds in three ways: python -m benchmarks.side_by_side --data train.csv.gz"""

    data: str = "train.csv.gz"  # train table of 28 x 28 digits
    work: str = "work/side_by_side"  # folder for the runs
    rounds: int = 3  # turns of each way


def main() -> None:
    options, half = parse(Options), str(max(1, cpu_count() // 2))
    folds_file = Path(options.work) / "folds.csv"
    write_folds(folds_file, make_folds(read_train_table(options.data), k=2))
    ways = {
        "one after another": ((), ("--jobs", "1", "--threads", str(cpu_count()))),
        "side by side": ((), ("--jobs", "2", "--threads", half)),
        "DDP": (LAUNCH, ("--threads", half)),
    }
    rows = []
    for model, (arguments, count) in SETTINGS.items():
        train = ["--data", options.data, "--folds", str(folds_file), "--runs-dir", options.work, "--restart"]
        train += ["--fold", "all", "--model", model, *arguments, "--epochs", "2", "--batch-size", "128"]
        train += ["--limit", str(count)]
        for number in range(options.rounds):
            found: dict[str, object] = {"setting": model}
            for way, (launcher, how) in ways.items():
                command = [sys.executable, *launcher, "train_fold.py", *train, *how, "--run", f"{model}-{number}"]
                found[way] = speed(command, Path(options.work) / f"{model}-{number}", count // 128 * 128, way)
            print(found, flush=True)
            rows.append(found)
    write_speeds(REPORT, "Two folds on all cores", "Batches of 128", rows, list(ways), "images/s")


def speed(command: Sequence[str], run: Path, images: int, way: str) -> float:
    """Training images per second of both folds together."""
    subprocess.run(command, check=True, env={**os.environ, **ON_CPU}, stdout=subprocess.DEVNULL)
    seconds = [pd.read_csv(fold_folder(run, fold) / LOG_FILE).train_seconds.iloc[-1] for fold in (0, 1)]
    return float(sum(images / each for each in seconds) / (1 if way == "side by side" else 2))


if __name__ == "__main__":
    run_script(main)
