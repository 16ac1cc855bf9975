"""Whether two versions of Fivefold give the same bits: one line for each case, exit code 1 where one differs.

    python -m benchmarks.same_bits ../old --digits train.csv.gz --photos photos/train.csv \
        --weights tf_efficientnet_lite0.safetensors

Each case runs the same commands in the other checkout and in this one, on one thread, then compares every model
tensor, every array of logits, and the bytes of folds.csv and submission.csv. The last case lets this version read the
run folders that the other one has written. A case without its data is skipped in one line.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from safetensors.numpy import load_file

from benchmarks.machine import ROOT
from common.base.cli import parse
from common.base.errors import UserError, run_script

FIXED = ("--threads", "1", "--channels-last", "no")
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--mixed_precision", "no")
EPOCH_ENDED = "epoch   1/"  # in what a training prints: the moment at which it is killed
ARRAYS = ("ids", "logits", "columns", "labels", "fold", "classes")  # of an .npz


@dataclass(frozen=True)
class Options:
    """Compare the results of two checkouts bit for bit: python -m benchmarks.same_bits OLD_CHECKOUT"""

    other: Annotated[str, tyro.conf.Positional]  # checkout of the version to compare with
    digits: str = ""  # Kaggle's train table of 28 x 28 digits
    photos: str = ""  # train table of photos
    weights: str = ""  # tf_efficientnet_lite0's weights
    work: str = "work/same_bits"  # folder for the runs of both
    cases: tuple[str, ...] = ()  # names of the cases to run (default: all)


@dataclass(frozen=True)
class Command:
    """A script with its arguments, run in a case's folder; ``killed``: once before, and ended after its first epoch."""

    script: str
    arguments: tuple[str, ...]
    launcher: tuple[str, ...] = ()
    killed: bool = False


def train(*arguments: str, launcher: tuple[str, ...] = (), killed: bool = False) -> Command:
    """A training on one thread with a fixed memory format."""
    return Command(
        "train_fold.py", (*FIXED, "--jobs", "1", *arguments) if not launcher else arguments, launcher, killed
    )


def cases(options: Options) -> dict[str, list[Command]]:
    """The commands of each case, by its name; empty where the data for it was not named."""
    folds, quick = Command("folds.py", ()), ("--epochs", "2")
    embedded = [
        folds,
        train("--config", str(ROOT / "recipes/embedded.yaml"), *quick),
        train("--config", str(ROOT / "recipes/embedded_second.yaml"), *quick),
        Command("infer.py", ("--tta", "auto", "--threads", "1")),
        Command("ensemble.py", ()),
    ]
    digits = ("--data", options.digits)
    rich = ("--limit", "3000", "--ema-decay", "0.99", "--augment-args", "mixup=0.2", "--accumulate", "2", "--fold", "0")
    lite = ("--data", options.photos, "--model", "tf_efficientnet_lite0", "--weights", options.weights)
    lite += ("--img-size", "96", "--augment", "photos", "--epochs", "1", "--limit", "300", "--fold", "0")
    members = ("--select", "members", "--select-args", "count=2", "--epochs", "2")
    return {
        "embedded digits, two recipes, views, blend": embedded,
        "members, EMA, mixup, accumulation": [
            Command("folds.py", digits),
            train(*digits, *rich, *members, "--warmup-epochs", "0.5"),
        ]
        if options.digits
        else [],
        "photos with weights": [Command("folds.py", ("--data", options.photos)), train(*lite)]
        if options.photos and options.weights
        else [],
        "killed and resumed": [folds, train("--epochs", "3", "--fold", "1", "--ema-decay", "0.9", killed=True)],
        "two processes": [folds, train(*FIXED, *quick, "--fold", "0", launcher=LAUNCH)],
        "average of two runs": [
            folds,
            train("--run", "a", *quick),
            train("--run", "b", *quick, "--seed", "1"),
            Command("average.py", ("--runs", "a", "b", "--run", "mean", "--threads", "1")),
        ],
    }


def main() -> None:
    options = parse(Options)
    other, work = Path(options.other).resolve(), Path(options.work).resolve()
    if not (other / "train_fold.py").is_file():
        raise UserError(str(other), "is not a checkout of Fivefold", "name a folder that holds train_fold.py")
    differing = []
    for name, commands in cases(options).items():
        if options.cases and name not in options.cases:
            continue
        if not commands:
            print(f"{name}: skipped, its data was not named")
            continue
        folders = {checkout: work / name / checkout.name for checkout in (other, ROOT)}
        for checkout, folder in folders.items():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for command in commands:
                run(checkout, command, folder)
        differing += compare(name, folders[other], folders[ROOT])
        if any(command.script == "ensemble.py" for command in commands):
            differing += compare_reading(f"{name}: folders of the other version", folders[other], commands)
    sys.exit(bool(differing))


def run(checkout: Path, command: Command, folder: Path) -> None:
    """Run a command of a checkout in a folder; raises UserError where it fails."""
    line = [sys.executable, *command.launcher, str(checkout / command.script), *absolute(command.arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if command.killed:
        training = subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        for said in training.stdout:
            if EPOCH_ENDED in said:
                break
        training.kill()
        training.wait()
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(" ".join(line), f"failed in {folder}", done.stderr.strip().splitlines()[-1])


def absolute(arguments: tuple[str, ...]) -> Iterator[str]:
    """Arguments with paths that hold in any folder."""
    return (str(Path(each).resolve()) if "/" in each and Path(each).exists() else each for each in arguments)


def compare_reading(name: str, old: Path, commands: list[Command]) -> list[str]:
    """Infer, blend and report with this version on the runs that the other one trained."""
    folder = old.with_name("read")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(old, folder)
    for command in commands:
        if command.script in ("infer.py", "ensemble.py"):
            run(ROOT, command, folder)
    run(ROOT, Command("report.py", ()), folder)
    return compare(name, old, folder)


def compare(name: str, old: Path, new: Path) -> list[str]:
    """Print whether two folders hold the same results; the files that differ."""
    kinds = {"**/model.safetensors": tensors, "**/*.npz": arrays, "**/folds.csv": content, "**/submission.csv": content}
    files = {path.relative_to(old): read for kind, read in kinds.items() for path in sorted(old.glob(kind))}
    differing = [
        str(path) for path, read in files.items() if not (new / path).exists() or not same(read, path, old, new)
    ]
    print(
        f"{name}: " + (f"DIFFERS in {', '.join(differing)}" if differing else f"same bits in {len(files)} files"),
        flush=True,
    )
    return differing


def same(read, path: Path, old: Path, new: Path) -> bool:
    """Whether a file's content is the same in both folders, to the bit."""
    ours, theirs = read(new / path), read(old / path)
    return ours.keys() == theirs.keys() and all(
        ours[key].dtype == theirs[key].dtype and ours[key].tobytes() == theirs[key].tobytes() for key in theirs
    )


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a weights file, without what it says of itself."""
    return load_file(path)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of predictions."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in ARRAYS if name in archive.files}


def content(path: Path) -> dict[str, np.ndarray]:
    """A file's bytes."""
    return {"bytes": np.frombuffer(path.read_bytes(), dtype=np.uint8)}


if __name__ == "__main__":
    run_script(main)
