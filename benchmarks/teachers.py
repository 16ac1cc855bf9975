"""What teachers are worth with few labels, and whether they leak: python -m benchmarks.teachers --data train.csv.gz

Few labels: of a competition's training rows a few of each class keep their labels, drawn anew for each seed, the others
lose them, are learned from as unlabelled rows, and then count as the test: no label of theirs is given to a training.
Each way of WAYS is a training on all labelled rows; a way that labels rows for another one also trains the folds that
its temperature is told by. The settings were fixed before the first draw.

Leaks (--leaks 3000): the labels of so many rows are shuffled, so that nothing can be learned and an honest out-of-fold
score is chance, 10 %. Each way trains fold 0, and so does what a careful person would not do (CARELESS).

The same command again goes on where it was stopped. Writes benchmarks/teachers.csv, teachers_photos.csv and
teachers_leaks.csv.
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
from common.data.folds import Folds
from common.data.reading import EMBEDDED, read_train_table
from common.data.table import Table
from common.runs.layout import MODEL_FILE, TEST_FILE, read_metrics
from common.runs.oof import join_oof
from common.runs.predictions import read_predictions
from common.score.metrics import wilson
from common.score.significance import compare
from common.train import teachers

ROOT = Path(__file__).resolve().parents[1]
OF_ONE_FOLD = teachers.outputs_of
REPORT = Path(__file__).with_suffix(".csv")
BASE = "plain, as long"  # as the ways that it is compared with
REST = ("--unlabelled", "{rest}")
PSEUDO = (*REST, "--pseudo-threshold", "0.9", "--pseudo")
MEAN = ("--consistency", "10", "--consistency-ramp", "1", "--ema-decay", "0.99")
WAYS = {  # what each adds to a training as long as BASE
    "plain": (),
    BASE: (),
    "distillation": ("--teacher", "plain", "--teacher-weight", "0.9", *REST),
    "pseudo-labels": (*PSEUDO, "plain"),
    "pseudo-labels, second round": (*PSEUDO, "pseudo-labels"),
    "mean teacher": (*MEAN, *REST),
    "pseudo-labels and mean teacher": (*PSEUDO, "plain", *MEAN),
}
BY_HEART = ("--augment", "none", "--label-smoothing", "0", "--epochs", "2", "--batch-size", "32", "--lr", "5e-3")
BY_HEART += ("--warmup-epochs", "0.2", "--channels-last", "no", "--threads", "1")
DISTIL = ("--teacher", "teacher", "--teacher-weight", "1", "--teacher-temperature", "1")
ALL_PSEUDO = ("--pseudo", "teacher", "--pseudo-threshold", "0", "--unlabelled")
LEAKS = {
    "distillation": DISTIL,
    "pseudo-labels": (*ALL_PSEUDO, "{rest}"),
    "mean teacher": ("--consistency", "10", "--ema-decay", "0.99", *REST),
}


@dataclass(frozen=True)
class Options:
    """Train with few labels, score on the rows that lost theirs: python -m benchmarks.teachers --data train.csv.gz"""

    data: str = "../shared/data/digits/train.csv.gz"  # train table: of pixels, of photos, or digits (embedded)
    work: str = "/tmp/teachers"  # folder for tables and runs
    seeds: tuple[int, ...] = (0, 1, 2)  # draws of the labelled rows
    ways: tuple[str, ...] = tuple(WAYS)
    a_class: int = 42  # rows of each class that keep their labels
    steps: int = 2000  # of a student; the teacher has half of them
    weights: str = ""  # pretrained weights of the photos' net
    leaks: int = 0  # rows with shuffled labels; 0: few labels instead

    @property
    def net(self) -> tuple[str, ...]:
        """The flags of the net and of what all ways have in common."""
        if self.weights:
            net = ("--model", "tf_efficientnet_lite0", "--weights", self.weights, "--img-size", "96")
            net += ("--batch-size", "32", "--lr", "2e-3", "--backbone-lr-scale", "0.1", "--freeze", "batchnorm=True")
        else:
            net = ("--model-args", "widths=(16,32,64)", "--channels-last", "yes", "--batch-size", "64", "--lr", "4e-3")
        return (*net, "--threads", "1")

    def length(self, way: str) -> tuple[object, ...]:
        """The flags of a training's length."""
        if way == "plain":
            return "--epochs", 1, "--steps", self.steps // 2, "--warmup-epochs", 0.2
        return "--epochs", 4, "--steps", self.steps, "--warmup-epochs", 0.4


def main() -> None:
    options = parse(Options)
    if options.leaks:
        write_table(REPORT.with_stem("teachers_leaks"), leaks(options))
        return
    found = []
    for seed in options.seeds:
        for row in few_labels(options, seed):
            found.append(row)
            write_table(REPORT.with_stem("teachers_photos") if options.weights else REPORT, table_of(found))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """As a csv, and to be seen."""
    write_file(path, table.to_csv(index=False, float_format="%.6g"))
    print(f"{path}\n{table.to_string(index=False)}", flush=True)


def run(*command: object) -> None:
    """Run a script of ours."""
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


@dataclass(frozen=True)
class Rows:
    """A competition's train table as text."""

    header: list[str]
    rows: list[list[str]]
    labels: np.ndarray  # text (n)

    def write(self, path: Path, some: Iterable[int], labels: Mapping[int, str] | None = None) -> None:
        """``some`` of the rows as a table, unless it is there: with ``labels``, or without a column of them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        at = self.header.index("label")
        if not path.exists():
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                left_out = at if labels is None else len(self.header)
                writer.writerow(name for place, name in enumerate(self.header) if place != left_out)
                for number in some:
                    row = self.rows[number]
                    writer.writerow([*row[:at], *([] if labels is None else [labels[number]]), *row[at + 1 :]])


def read_rows(data: str) -> Rows:
    """The whole of a train table."""
    if data == EMBEDDED:
        table = read_train_table(EMBEDDED)
        pixels = table.images.reshape(len(table.ids), -1).tolist()
        header = ["label", *(f"pixel{number}" for number in range(64))]
        return Rows(header, [[label, *row] for label, row in zip(table.labels, pixels, strict=True)], table.labels)
    with gzip.open(data, "rt", newline="") if data.endswith(".gz") else Path(data).open(newline="") as file:
        header, *rows = csv.reader(file)
    return Rows(header, rows, np.array([row[header.index("label")] for row in rows]))


def draw(labels: np.ndarray, a_class: int, seed: int) -> np.ndarray:
    """The numbers of ``a_class`` rows of each class, in order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == name][:a_class] for name in np.unique(labels)]))


def make_folds(options: Options, folder: Path) -> None:
    """Three folds of the labelled rows, unless they are there."""
    photos = Path(options.data).resolve().parent
    images = ("--images", photos, "--test-images", photos) if options.weights else ()
    if not (folder / "folds.csv").exists():
        run("folds.py", "--work", folder, "--data", folder / "labelled.csv", "--k", 3, *images)


def few_labels(options: Options, seed: int) -> Iterator[tuple[str, int, pd.Series, float]]:
    """Each way, the seed, whether it gets each row without a label wrong, and the seconds that its training took."""
    folder, table = Path(options.work) / f"seed{seed}", read_rows(options.data)
    kept = draw(table.labels, options.a_class, seed)
    rest = np.setdiff1d(np.arange(len(table.rows)), kept)
    table.write(folder / "labelled.csv", kept, dict(enumerate(table.labels.tolist())))
    table.write(folder / "rest.csv", rest)
    make_folds(options, folder)
    labellers = {flags[flags.index("--pseudo") + 1] for flags in map(WAYS.get, options.ways) if "--pseudo" in flags}
    for way in options.ways:
        flags = (flag.format(rest=folder / "rest.csv") for flag in WAYS[way])
        own = ["--run", way, "--seed", seed, *options.net, *options.length(way), *flags]
        for fold in ("all", "full") if way in labellers else ("full",):
            run("train_fold.py", "--work", folder, "--fold", fold, "--jobs", 1, *own)
        test = folder / "runs" / way / TEST_FILE
        if not test.exists():
            files = ("--test", folder / "rest.csv", "--threads", 1)
            run("infer.py", "--work", folder, "--runs", way, "--fold", "full", *files)
        wrong = pd.Series(read_predictions(test).predicted != table.labels[rest], index=rest)
        print(f"seed {seed}, {way}: {1 - wrong.mean():.3%}", flush=True)
        yield way, seed, wrong, read_metrics(folder / "runs" / way / "full")["seconds"]


def table_of(found: Sequence[tuple[str, int, pd.Series, float]]) -> pd.DataFrame:
    """A row a way: accuracy over all seeds, each seed's, and the paired test against BASE.

    The seeds' tests share most of their rows: the interval is that of one test, and in the paired test the answers to
    one row count together.
    """
    table, by_way = [], {}
    for way, seed, wrong, seconds in found:
        by_way.setdefault(way, {})[seed] = wrong, seconds
    for way, of_seeds in by_way.items():
        wrong, count = pd.concat([wrong for wrong, _ in of_seeds.values()]), len(of_seeds)
        low, high = wilson(round(wrong.sum() / count), len(wrong) // count)
        row = {"way": way, "seeds": count, "n": len(wrong), "accuracy": 1 - wrong.mean(), "low": low, "high": high}
        row["of each seed"] = " ".join(f"{1 - wrong.mean():.4f}" for wrong, _ in of_seeds.values())
        row["minutes"] = np.mean([seconds for _, seconds in of_seeds.values()]) / 60
        if way != BASE and by_way.get(BASE, {}).keys() >= of_seeds.keys():
            base = pd.concat([by_way[BASE][seed][0] for seed in of_seeds])
            row["p against plain"] = compare(base.to_numpy(), wrong.to_numpy(), wrong.index.to_numpy()).p
        table.append(row)
    return pd.DataFrame(table)


def leaks(options: Options) -> pd.DataFrame:
    """The out-of-fold accuracy of fold 0 by each way, with labels that mean nothing: chance is 10 %."""
    folder, table, found = Path(options.work) / f"leaks{options.leaks}", read_rows(options.data), []
    order = np.random.default_rng(0).permutation(len(table.rows))[: 2 * options.leaks]
    told, rest = np.sort(order[: options.leaks]), np.sort(order[options.leaks :])
    shuffled = np.random.default_rng(1).permutation(table.labels[told])
    table.write(folder / "labelled.csv", told, dict(zip(told.tolist(), shuffled.tolist(), strict=True)))
    for name, rows in (("rest", rest), ("same", told)):
        table.write(folder / f"{name}.csv", rows)
    make_folds(options, folder)
    length = (*BY_HEART, "--steps", options.leaks)
    run("train_fold.py", "--work", folder, "--run", "teacher", "--jobs", 1, *length)
    for way, flags in (LEAKS | {way: flags for way, (_, flags) in CARELESS.items()}).items():
        own = [flag.format(rest=folder / "rest.csv", same=folder / "same.csv") for flag in flags]
        command = ["--work", folder, "--run", way, "--fold", "0", *length, *own]
        with patch.object(teachers, "outputs_of", CARELESS[way][0]) if way in CARELESS else nullcontext():
            train_fold.main(list(map(str, command)))
        metrics = read_metrics(folder / "runs" / way / "fold0")
        low, high = wilson(metrics["errors"], metrics["n"])
        found.append({"way": way, "n": metrics["n"], "accuracy": metrics["accuracy"], "low": low, "high": high})
    return pd.DataFrame(found)


def all_folds(models: Mapping[Path, float], *others: Any) -> np.ndarray:
    """What the models of all folds say: with them speak the labels of the rows that are held out."""
    every = {
        path.parents[1] / f"fold{k}" / MODEL_FILE: temperature for path, temperature in models.items() for k in range(3)
    }
    return OF_ONE_FOLD(every, *others)


def out_of_fold(models: Mapping[Path, float], table: Table, rows: np.ndarray, folds: Folds, *_: Any) -> np.ndarray:
    """What a teacher's out-of-fold predictions say: other folds' models made them, which saw the held-out labels."""
    (path,) = models
    return join_oof(path.parents[1], folds).outputs.values[rows]


# What --teacher and --pseudo would be without their care: what speaks for the teacher's model of the fold, and flags.
CARELESS = {
    "distillation, the mean of all folds' models": (all_folds, DISTIL),
    "distillation, the teacher's out-of-fold predictions": (out_of_fold, DISTIL),
    "pseudo-labels of the held-out rows, by all folds' models": (all_folds, (*ALL_PSEUDO, "{same}")),
}


if __name__ == "__main__":
    run_script(main)
