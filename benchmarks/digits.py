"""What each ingredient of the digit recipes is worth: one change at a time, several seeds, on fold 0.

    python -m benchmarks.digits --data train.csv.gz --folds folds.csv --runs-dir runs --seeds 3

Each line of STUDY is the base with one change, trained like any run by train_fold.py, one process with one thread per
core. Its errors are compared with the base's of the same seeds, row by row; a row counts once, however many seeds
change it. Fold 0 is searched on, so its scores choose and do not report: a recipe's score is that of all folds with
seeds that no search has seen. The same command again goes on where it was stopped. Writes benchmarks/digits.csv.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.cli import parse
from common.errors import run_script
from common.files import write_file
from common.jobs import Job, LocalSlot, run_jobs
from common.predictions import read_predictions
from common.runs import OOF_FILE, fold_folder, is_finished, read_metrics
from common.significance import compare
from common.system import cpu_count

REPORT = Path(__file__).with_suffix(".csv")
BASE = ("--config", "recipes/digits_fast.yaml", "--mixed-precision", "bf16", "--fold", "0", "--threads", "1")
STUDY = {
    "base": (),
    "AdamW, lr 4e-3": ("--opt", "adamw", "--lr", "4e-3"),
    "NAdamW, lr 4e-3": ("--opt", "nadamw", "--lr", "4e-3"),
    "lr 4e-3": ("--lr", "4e-3"),
    "lr 1.6e-2": ("--lr", "1.6e-2"),
    "no augmentation": ("--augment", "none"),
    "rotation 10": ("--augment-args", "rotation=10"),
    "rotation 15": ("--augment-args", "rotation=15"),
    "no shift": ("--augment-args", "shift=0"),
    "elastic": ("--augment-args", "elastic=0.02"),
    "mixup 0.1": ("--augment-args", "mixup=0.1"),
    "no smoothing": ("--label-smoothing", "0"),
    "smoothing 0.05": ("--label-smoothing", "0.05"),
    "smoothing 0.2": ("--label-smoothing", "0.2"),
    "no weight decay": ("--weight-decay", "0"),
    "EMA 0.99": ("--ema-decay", "0.99"),
    "onecycle": ("--schedule", "onecycle"),
    "dropout 0.2": ("--model-args", "drop_rate=0.2"),
    "batch size 64, lr 5.7e-3": ("--batch-size", "64", "--lr", "5.7e-3"),
    "batch size 256, lr 1.1e-2": ("--batch-size", "256", "--lr", "1.1e-2"),
    "wider (40, 80, 160)": ("--model-args", "widths=(40,80,160)"),
    "10 epochs": ("--epochs", "10"),
    "fp32": ("--mixed-precision", "no"),
}


@dataclass(frozen=True)
class Options:
    """Train the study's settings on fold 0: python -m benchmarks.digits --data train.csv.gz"""

    data: str = "train.csv.gz"  # train table of Digit Recognizer
    folds: str = "folds.csv"  # its folds file
    runs_dir: str = "runs"  # folder for the runs
    seeds: int = 3  # of each setting
    only: tuple[str, ...] = ()  # names of settings to train (default: all)


def main() -> None:
    options = parse(Options)
    run_jobs(jobs(options), [LocalSlot()] * cpu_count(), lambda job, exit_code: print(f"{job.name}: exit {exit_code}"))
    table = study_table(Path(options.runs_dir), options.seeds)
    write_file(REPORT, table.to_csv(index=False))
    print(table.to_string(index=False))


def jobs(options: Options) -> Iterator[Job]:
    """Every run that is not finished, seed by seed, so that a study cut short has all settings."""
    places = ("--data", options.data, "--folds", options.folds, "--runs-dir", options.runs_dir)
    for seed in range(options.seeds):
        for name in options.only or STUDY:
            run = run_name(name, seed)
            if not is_finished(fold_folder(Path(options.runs_dir) / run, "0")):
                own = ("--run", run, "--seed", str(seed))
                yield Job(run, ("train_fold.py", *places, *BASE, *STUDY[name], *own))


def run_name(setting: str, seed: int) -> str:
    """The run's folder: letters, digits and the seed."""
    return "-".join("".join(each if each.isalnum() or each == "." else " " for each in setting).split() + [str(seed)])


def study_table(runs_dir: Path, seeds: int) -> pd.DataFrame:
    """A row per setting: seeds trained, errors and their deviation, minutes, and the comparison with the base."""
    right = {name: dict(results(runs_dir, name, seeds)) for name in STUDY}
    rows = []
    for name, found in right.items():
        if not found:
            continue
        errors = [int((~each).sum()) for each in found.values()]
        metrics = [read_metrics(fold_folder(runs_dir / run_name(name, seed), "0")) for seed in found]
        row = {"setting": name, "seeds": len(found), "n": len(found) * len(next(iter(found.values())))}
        row |= {"accuracy": 1 - sum(errors) / row["n"], "errors": np.mean(errors)}
        row |= {"sd": np.std(errors, ddof=1) if len(errors) > 1 else np.nan}
        row["minutes"] = np.mean([each["seconds"] / 60 for each in metrics])
        shared = sorted(found.keys() & right["base"].keys())
        if name != "base" and shared:
            ours, base = (np.concatenate([each[seed] for seed in shared]) for each in (found, right["base"]))
            against = compare(base, ours, np.tile(np.arange(len(ours) // len(shared)), len(shared)))
            row |= {"fewer errors": against.better / len(shared), "p": against.p}
        rows.append(row)
    return pd.DataFrame(rows)


def results(runs_dir: Path, name: str, seeds: int) -> Iterator[tuple[int, np.ndarray]]:
    """Of each finished seed, whether each row of fold 0 is predicted right."""
    for seed in range(seeds):
        folder = fold_folder(runs_dir / run_name(name, seed), "0")
        if is_finished(folder):
            oof = read_predictions(folder / OOF_FILE)
            yield seed, oof.predicted == oof.labels


if __name__ == "__main__":
    run_script(main)
