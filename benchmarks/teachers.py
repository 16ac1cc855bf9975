"""What teachers are worth with few labels, and whether they leak: python -m benchmarks.teachers --data train.csv.gz

Few labels: of Digit Recognizer's training rows 42 a class keep their labels, drawn anew for each seed, the others lose
them, are learned from as unlabelled rows, and then count as the test: no label of theirs is given to a training.
Each way of WAYS is a training on all labelled rows; "plain" also trains the folds that the temperature of
pseudo-labels is told by.

Leaks (--leaks 400): the labels of so many embedded digits are shuffled, so that nothing can be learned and an honest
out-of-fold score is chance, 10 %. Each way trains fold 0, and so does what a careful person would not do: soft targets
from the mean of all folds' models, which have seen fold 0's labels.

The same command again goes on where it was stopped. Writes benchmarks/teachers.csv and teachers_leaks.csv.
"""

import csv
import gzip
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

import train_fold
from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import write_file
from common.data.tables import EMBEDDED, read_train_table
from common.runs.layout import MODEL_FILE, TEST_FILE, read_metrics
from common.runs.predictions import read_predictions
from common.score.metrics import wilson
from common.score.significance import compare
from common.train import teachers

ROOT = Path(__file__).resolve().parents[1]
OF_ONE_FOLD = teachers.outputs_of
REPORT = Path(__file__).with_suffix(".csv")
NET = ("--model-args", "widths=(16,32,64)", "--channels-last", "yes", "--batch-size", "64", "--threads", "1")
BASE = "plain, as long"  # as the ways that it is compared with
PLAIN = ("--epochs", "1", "--steps", "{half}", "--lr", "4e-3", "--warmup-epochs", "0.2")
TAUGHT = ("--epochs", "4", "--steps", "{steps}", "--lr", "4e-3", "--warmup-epochs", "0.4")
WAYS = {
    "plain": PLAIN,
    "plain, as long": TAUGHT,
    "distillation": (*TAUGHT, "--teacher", "plain", "--teacher-weight", "0.9", "--unlabelled", "{rest}"),
    "pseudo-labels": (*TAUGHT, "--pseudo", "plain", "--unlabelled", "{rest}"),
    "mean teacher": (*TAUGHT, "--consistency", "10", "--ema-decay", "0.99", "--unlabelled", "{rest}"),
}
BY_HEART = ("--augment", "none", "--label-smoothing", "0", "--epochs", "2", "--steps", "400", "--batch-size", "32")
BY_HEART += ("--lr", "5e-3", "--warmup-epochs", "0.2", "--channels-last", "no", "--threads", "1")
NAIVE = "mean of all folds' teachers"  # what --teacher would be without its care
LEAKS = {
    "distillation": ("--teacher", "teacher", "--teacher-weight", "1", "--teacher-temperature", "1"),
    "pseudo-labels": ("--pseudo", "teacher", "--pseudo-threshold", "0", "--unlabelled", "{rest}"),
    "mean teacher": ("--consistency", "10", "--ema-decay", "0.99", "--unlabelled", "{rest}"),
    NAIVE: ("--teacher", "teacher", "--teacher-weight", "1", "--teacher-temperature", "1"),
}


@dataclass(frozen=True)
class Options:
    """Train with few labels, score on the rows that lost theirs: python -m benchmarks.teachers --data train.csv.gz"""

    data: str = "../shared/data/digits/train.csv.gz"  # train table of Digit Recognizer, or digits (embedded)
    work: str = "/tmp/teachers"  # folder for tables and runs
    seeds: int = 3  # draws of the labelled rows
    a_class: int = 42  # rows of each class that keep their labels
    steps: int = 1000  # of a student; the teacher has half of them
    leaks: int = 0  # embedded digits with shuffled labels, at most 700; 0: few labels instead


def main() -> None:
    options = parse(Options)
    if options.leaks:
        write_table(REPORT.with_stem("teachers_leaks"), leaks(options))
        return
    found = []
    for seed in range(options.seeds):
        for row in few_labels(options, seed):
            found.append(row)
            write_table(REPORT, table_of(found))  # as far as it has come


def write_table(path: Path, table: pd.DataFrame) -> None:
    """As a csv, and to be seen."""
    write_file(path, table.to_csv(index=False, float_format="%.6g"))
    print(f"{path}\n{table.to_string(index=False)}", flush=True)


def run(*command: object) -> None:
    """Run a script of ours."""
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


def rows_of(options: Options, seed: int) -> tuple[list[str], list[list[str]], np.ndarray, np.ndarray]:
    """The train table's header and rows, and the numbers of those that keep their labels and of the others."""
    if options.data == EMBEDDED:
        table = read_train_table(EMBEDDED)
        pixels = table.images.reshape(len(table.ids), -1).tolist()
        header = ["label", *(f"pixel{number}" for number in range(64))]
        rows = [[label, *row] for label, row in zip(table.labels, pixels, strict=True)]
    else:
        with gzip.open(options.data, "rt", newline="") as file:
            header, *rows = csv.reader(file)
    labels, order = np.array([row[0] for row in rows]), np.random.default_rng(seed).permutation(len(rows))
    kept = np.sort(np.concatenate([order[labels[order] == name][: options.a_class] for name in np.unique(labels)]))
    return header, rows, kept, np.setdiff1d(np.arange(len(rows)), kept)


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table, unless it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])


def few_labels(options: Options, seed: int) -> Iterator[tuple[str, int, np.ndarray, float]]:
    """Each way, the seed, which of the rows without labels it gets wrong, and the seconds that its training took."""
    folder = Path(options.work) / f"seed{seed}"
    header, rows, kept, rest = rows_of(options, seed)
    write_rows(folder / "labelled.csv", header, (rows[row] for row in kept))
    write_rows(folder / "rest.csv", header[1:], (rows[row][1:] for row in rest))
    truth = np.array([rows[row][0] for row in rest])
    if not (folder / "folds.csv").exists():
        run("folds.py", "--work", folder, "--data", folder / "labelled.csv", "--k", 3)
    for way, flags in WAYS.items():
        known = {"rest": folder / "rest.csv", "steps": options.steps, "half": options.steps // 2}
        own = ["--run", way, "--seed", seed, *NET, *(flag.format(**known) for flag in flags)]
        for fold in ("all", "full") if way == "plain" else ("full",):
            run("train_fold.py", "--work", folder, "--fold", fold, "--jobs", 1, *own)
        test = folder / "runs" / way / TEST_FILE
        if not test.exists():
            files = ("--test", folder / "rest.csv", "--threads", 1)
            run("infer.py", "--work", folder, "--runs", way, "--fold", "full", *files)
        wrong = read_predictions(test).predicted != truth
        print(f"seed {seed}, {way}: {1 - wrong.mean():.3%}", flush=True)
        yield way, seed, wrong, read_metrics(folder / "runs" / way / "full")["seconds"]


def table_of(found: Sequence[tuple[str, int, np.ndarray, float]]) -> pd.DataFrame:
    """A row a way: accuracy over all seeds with its interval, each seed's, and the paired test against BASE."""
    table, by_way = [], {}
    for way, seed, wrong, seconds in found:
        by_way.setdefault(way, {})[seed] = wrong, seconds
    for way, of_seeds in by_way.items():
        wrong = np.concatenate([wrong for wrong, _ in of_seeds.values()])
        low, high = wilson(int(wrong.sum()), len(wrong))
        row = {
            "way": way,
            "seeds": len(of_seeds),
            "n": len(wrong),
            "accuracy": 1 - wrong.mean(),
            "low": low,
            "high": high,
        }
        row["of each seed"] = " ".join(f"{1 - wrong.mean():.4f}" for wrong, _ in of_seeds.values())
        row["minutes"] = np.mean([seconds for _, seconds in of_seeds.values()]) / 60
        if way != BASE and by_way.get(BASE, {}).keys() >= of_seeds.keys():
            base = np.concatenate([by_way[BASE][seed][0] for seed in of_seeds])
            rows = np.concatenate([np.arange(len(wrong)) for wrong, _ in of_seeds.values()])
            row["p against plain"] = compare(base, wrong, rows).p
        table.append(row)
    return pd.DataFrame(table)


def leaks(options: Options) -> pd.DataFrame:
    """The out-of-fold accuracy of fold 0 by each way, with labels that mean nothing: chance is 10 %."""
    folder, table = Path(options.work) / f"leaks{options.leaks}", []
    digits, rows = read_train_table("digits"), 2 * options.leaks
    pixels = digits.images[:rows].reshape(rows, -1).tolist()
    header = [f"pixel{number}" for number in range(len(pixels[0]))]
    shuffled = np.random.default_rng(0).permutation(digits.labels[: options.leaks])
    told = ([label, *row] for label, row in zip(shuffled, pixels[: options.leaks], strict=True))
    write_rows(folder / "labelled.csv", ["label", *header], told)
    write_rows(folder / "rest.csv", header, pixels[options.leaks :])
    if not (folder / "folds.csv").exists():
        run("folds.py", "--work", folder, "--data", folder / "labelled.csv", "--k", 3)
    run("train_fold.py", "--work", folder, "--run", "teacher", "--jobs", 1, *BY_HEART)
    for way, flags in LEAKS.items():
        own = [flag.format(rest=folder / "rest.csv") for flag in flags]
        command = ["--work", folder, "--run", way, "--fold", "0", *BY_HEART, *own]
        with patch.object(teachers, "outputs_of", all_folds) if way == NAIVE else nullcontext():
            train_fold.main(list(map(str, command)))
        metrics = read_metrics(folder / "runs" / way / "fold0")
        low, high = wilson(metrics["errors"], metrics["n"])
        table.append({"way": way, "n": metrics["n"], "accuracy": metrics["accuracy"], "low": low, "high": high})
    return pd.DataFrame(table)


def all_folds(models: Mapping[Path, float], *others: Any) -> np.ndarray:
    """What not to do: the models of all folds speak, and with them the labels of the rows that are held out."""
    every = {
        path.parents[1] / f"fold{k}" / MODEL_FILE: temperature for path, temperature in models.items() for k in range(3)
    }
    return OF_ONE_FOLD(every, *others)


if __name__ == "__main__":
    run_script(main)
