"""A tiny data set, 60 digits of 8 x 8 pixels in three classes, and the whole chain run on it once."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
# What keeps a training run small; every test that trains starts from it.
SMALL = ["--epochs", "3", "--batch-size", "8", "--threads", "1", "--channels-last", "no", "--warmup-epochs", "0.5"]


# The closing line of figures: what the tests of faults, kills and fuzz have counted.
FIGURES = pytest.StashKey[dict]()
FIGURES_IN_ORDER = ("faults", "silent", "kills", "points", "oof", "fuzz")


def run_script(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a script of ours as a user would, from the repository, and return its output and exit code."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def write_pixel_csv(path: Path, images: np.ndarray, labels: list[str] | None = None) -> Path:
    """Write (n, side, side) uint8 images as a pixel csv, with a label column where labels are given."""
    names = [f"pixel{number}" for number in range(images[0].size)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((["label"] if labels else []) + names)
        for row, image in enumerate(images):
            writer.writerow(([labels[row]] if labels else []) + image.ravel().tolist())
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A folder with train.csv (60 labelled rows), test.csv (24 rows), sample.csv and folds.csv (3 folds)."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("tiny")
    digits = load_digits(n_class=3)
    images = (digits.images * 255 / 16).astype(np.uint8)
    write_pixel_csv(folder / "train.csv", images[:60], [f"class {number}" for number in digits.target[:60]])
    write_pixel_csv(folder / "test.csv", images[60:84])
    rows = "\n".join(f"{number},class 0" for number in range(1, 25))
    (folder / "sample.csv").write_text(f"ImageId,Label\n{rows}\n", encoding="utf-8")
    made = run_script("folds.py", "--data", folder / "train.csv", "--folds", folder / "folds.csv", "--k", 3)
    assert made.returncode == 0, made.stderr
    return folder


def train(tiny: Path, runs_dir: Path, *arguments: object) -> None:
    """Train on the tiny data in this process (torch is imported once for the whole suite)."""
    import train_fold

    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", runs_dir]
    train_fold.main([str(argument) for argument in [*places, *SMALL, *arguments]])


@pytest.fixture(scope="session")
def chain(tiny, tmp_path_factory) -> Path:
    """The runs folder of the whole chain: two runs of three folds, their test predictions, their blend."""
    import ensemble
    import infer

    runs_dir = tmp_path_factory.mktemp("chain") / "runs"
    train(tiny, runs_dir, "--run", "one", "--fold", "all")
    train(tiny, runs_dir, "--run", "two", "--fold", "all", "--seed", 1, "--ema-decay", 0.9, "--select", "best")
    places = ["--runs-dir", str(runs_dir), "--sample", str(tiny / "sample.csv"), "--folds", str(tiny / "folds.csv")]
    infer.main(["--test", str(tiny / "test.csv"), "--data", str(tiny / "train.csv"), "--tta", "digits", *places])
    ensemble.main(places)
    return runs_dir


def pytest_configure(config) -> None:
    """Start the counters; a worker of pytest-xdist sends its own home in its output when it ends."""
    config.stash[FIGURES] = {}
    if hasattr(config, "workeroutput"):
        config.workeroutput["figures"] = config.stash[FIGURES]


@pytest.fixture(scope="session")
def figures(pytestconfig):
    """`figures(name, done=0, total=0)` adds to a counter of the closing line.

    A test adds its total when it starts and what is done when that has passed; a counter without a total is printed
    alone: `fuzz 140000`.
    """

    def add(name: str, done: int = 0, total: int = 0) -> None:
        counter = pytestconfig.stash[FIGURES].setdefault(name, [0, 0])
        counter[0] += done
        counter[1] += total

    return add


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """Add the counters of a worker that has ended to those of the process that prints them."""
    counters = node.config.stash[FIGURES]
    for name, (done, total) in getattr(node, "workeroutput", {}).get("figures", {}).items():
        counter = counters.setdefault(name, [0, 0])
        counter[0] += done
        counter[1] += total


def pytest_terminal_summary(terminalreporter, config) -> None:
    """Print the closing line: `faults 187/187, kills 10/10, points 214/214, oof 432/432, fuzz 140000`."""
    counters = config.stash[FIGURES]
    names = [*(name for name in FIGURES_IN_ORDER if name in counters), *sorted(set(counters) - set(FIGURES_IN_ORDER))]
    figures_of = [(name, *counters[name]) for name in names]
    parts = [f"{name} {done}/{total}" if total else f"{name} {done}" for name, done, total in figures_of]
    if parts:
        terminalreporter.write_line(", ".join(parts))
