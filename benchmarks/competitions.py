"""Real competitions in miniature, from the downloaded files to a scored submission.

    make competitions MAKER=../shared/competitions/make.py

MAKER writes the competitions' files, with exact layouts and columns and toy sizes, and scores submissions by the
competitions' own metrics. Each is described once (``folds.py``), two runs are trained, blended and reported, and the
table of docs/competitions.md says what came out. Scores of such sizes say little, forms say all.
"""

import contextlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ensemble
import folds
import infer
import report
import train_fold
from common.base.cli import parse
from common.base.errors import UserError
from common.base.files import read_json, write_file, write_json
from common.data.competition import competition_flags, read_competition

SAMPLE = "--sample sample_submission.csv"
TRAINING = "--epochs 2 --img-size 32 --batch-size 16 --threads 1 --jobs 1 --channels-last no --warmup-epochs 0.5"
RUNS = {"first": "--run first", "second": "--run second --seed 1"}


@dataclass(frozen=True)
class Row:
    """What folds.py is told of a competition."""

    files: str  # where its files lie
    flags: str = ""  # what its files do not say


COMPETITIONS = {
    "digit-recognizer": Row(f"--data train.csv --test test.csv {SAMPLE}"),
    "fashion-mnist-csv": Row("--data fashion-mnist_train.csv --test fashion-mnist_test.csv"),
    "classify-leaves": Row(f"--data train.csv --test test.csv {SAMPLE}"),
    "cassava": Row(f"--data train.csv --test test_images {SAMPLE}"),
    "paddy": Row(f"--data train.csv --test test_images {SAMPLE}"),
    "product-10k": Row(f"--data train.csv --test test.csv {SAMPLE}"),
    "cifar-10": Row("--data trainLabels.csv --test test --sample sampleSubmission.csv"),
    "aptos2019": Row(f"--data train.csv --test test.csv {SAMPLE}", "--metric quadratic_kappa"),
    "dog-breed": Row(f"--data labels.csv --images train --test test {SAMPLE}", "--metric nll"),
    "dogs-vs-cats-redux": Row(
        f"--data train --test test {SAMPLE}", "--label-from-name ^(cat|dog) --positive dog --metric nll"
    ),
    "ml2023-hw3-food": Row(f"--data . --test test {SAMPLE}", "--label-from-name ([0-9]+)_ --split folders"),
    "humpback": Row(f"--data train.csv --test test {SAMPLE}", "--metric map@5 --rare train"),
    "siim-isic": Row(
        f"--data train.csv --images jpeg/train --test test.csv --test-images jpeg/test {SAMPLE}",
        "--metric auc --split stratified-group --group patient_id",
    ),
    "plant-pathology-2020": Row(f"--data train.csv --test test.csv {SAMPLE}", "--metric auc"),
    "plant-pathology-2021": Row(
        f"--data train.csv --test test_images {SAMPLE}", "--task multilabel --metric sample_f1"
    ),
    "human-protein-atlas": Row(
        f"--data train.csv --test test {SAMPLE}",
        "--image-suffixes _red _green _blue _yellow --task multilabel --metric macro_f1",
    ),
    "petfinder-pawpularity": Row(f"--data train.csv --test test.csv {SAMPLE}", "--task regression --metric rmse"),
}


def main(maker_path: str, *names: str) -> None:
    """Make the competitions, run each, and write the table; ``names``: only these, and no file is written.

    Where an earlier call was stopped, those that it has finished at the same commit are not run again.
    """
    if not os.path.isfile(maker_path):
        print(f"competitions: there is no {maker_path or 'maker'}; name the script that makes them: MAKER=PATH")
        return
    maker, home, rows, seconds, version = module_at(maker_path), Path("work/competitions").resolve(), [], 0.0, commit()
    for name in names or COMPETITIONS:
        kept = home / name / "row.json"
        found = read_json(kept) if kept.is_file() else {}
        if not version or found.get("commit") != version:
            found = {"commit": version} | timed_row(name, home, maker)
            write_json(kept, found)
        rows.append(found["cells"])
        seconds += found["seconds"]
        print(f"| {' | '.join(rows[-1])} |", flush=True)
    if not names:
        write_file(Path("docs/competitions.md"), page(rows, seconds / 60))


def timed_row(name: str, home: Path, maker: ModuleType) -> dict[str, Any]:
    """Make a competition below ``home`` and run it: its line of the table and how long that took."""
    shutil.rmtree(home / name, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        maker.main([str(home), name])
    started = time.monotonic()
    cells = result_of(name, home / name, COMPETITIONS[name], maker.score_file)
    return {"cells": cells, "seconds": time.monotonic() - started}


def commit() -> str:
    """The commit of the clone that is worked in; "" where it is none, or holds changes that are in no commit."""
    questions = ("rev-parse HEAD", "status --porcelain --untracked-files=no")
    head, changes = (subprocess.run(["git", *words.split()], capture_output=True, text=True) for words in questions)
    return "" if head.returncode or changes.returncode or changes.stdout else head.stdout.strip()


def module_at(path: str) -> ModuleType:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location("maker", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result_of(name: str, folder: Path, row: Row, score_file: Callable[[Path, Path], str]) -> list[str]:
    """A line of the table: competition, flags, metric, OOF and answers of each run and the blend, the form."""
    flags = row.flags.replace("|", "\\|")
    try:
        oof, submissions = chain(folder, row)
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        reason = " ".join(str(error).split()).replace("|", "\\|")
        return [name, f"`{flags}`" if flags else "none", "", "", "", f"refused: {reason}"]
    said = read_competition(folder / "work" / "competition.json")
    metric = said.metric or "accuracy"
    answers = [score_file(folder, path) for path in submissions]
    scored = [text if text.startswith("refused") else f"{float(text.split()[-1]):.3f}" for text in answers]
    form = submissions[-1].read_text(encoding="utf-8").splitlines()[:2]
    return [
        name,
        f"`{flags}`" if flags else "none",
        metric,
        ", ".join(f"{found[metric]:.3f}" if metric in found else "-" for found in oof),
        ", ".join(scored),
        " ⏎ ".join(shortened(line) for line in form),
    ]


def chain(folder: Path, row: Row) -> tuple[list[Mapping[str, Any]], list[Path]]:
    """The OOF scores and the submissions of two runs and their blend, in ``folder``/work, as a user makes them.

    Raises:
        UserError: what a user would be told.
    """
    work, before = folder / "work", Path.cwd()
    os.chdir(folder / "input")
    log = (folder / "log.txt").open("w", encoding="utf-8")
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            place = ["--work", str(work)]
            k = [] if "--split folders" in row.flags else ["--k", "3"]
            folds.main([*row.files.split(), *row.flags.split(), *k, *place])
            oof = [score_of(train_fold, train_fold.Train, f"{TRAINING} {run}", place) for run in RUNS.values()]
            score_of(infer, infer.Options, "--threads 1", place)
            oof.append(score_of(ensemble, ensemble.Options, "", place))
            report.main(place)
    finally:
        os.chdir(before)
        log.close()
    return oof, [work / "runs" / run / "submission.csv" for run in (*RUNS, "ensemble")]


def score_of(script: ModuleType, options: type, flags: str, place: Sequence[str]) -> Mapping[str, Any]:
    """Run a script as its command line does, and return what it scored."""
    return script.run(parse(options, [*flags.split(), *place], competition_flags)).score or {}


def shortened(line: str) -> str:
    """The first cells of a line."""
    cells = line.split(",")
    return ",".join(cell[:24] for cell in cells[:4]) + (",..." if len(cells) > 4 else "")


def page(rows: Sequence[Sequence[str]], minutes: float) -> str:
    """The table, with how it was made."""
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# Competitions in miniature

- **What to type**: the flags of your competition's row, behind `python folds.py --work DIR` and its files' names.
- **What to expect**: a submission in the competition's own form.
- **When not to**: for a score; these are toys of 80 to 400 images.

Real competitions with their exact file layouts, columns, ids, samples and metrics, and toy sizes: 80 to 400 small
images. Each is described once to `folds.py`, by its files and at most three flags; `train_fold.py`, `infer.py`,
`ensemble.py` and `report.py` are then told nothing but `--work`. The answers' scores are computed by the competition's
own metric from the submission files. Scores of such sizes say little; that a file is accepted, and in which form, is
what the table is for.

    make competitions MAKER=../shared/competitions/make.py      # {minutes:.0f} minutes on one thread

Two runs of `digit_cnn` (`{TRAINING}`), 3 folds. OOF and answers: the first run, the second, their blend. Form: the
first two lines of the blend's submission. The OOF of label sets is at a threshold of 1/2; their submissions are decided
by thresholds learned on the OOF rows.

| competition | flags beyond the files' names | metric | OOF | answers | form |
|---|---|---|---|---|---|
{lines}
"""


if __name__ == "__main__":
    main(*sys.argv[1:])
