"""A tiny data set, 60 digits of 8 x 8 pixels in three classes, and the whole chain run on it once."""

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forks import Forks

os.environ["OMP_NUM_THREADS"] = "1"  # two processes test side by side, and their threads would wait for one another
if "FIVEFOLD_GPU" not in os.environ:  # set by `make gpu` for test_gpu.py
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bits are promised on CPUs; what is tested of GPUs is told of some

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
# What keeps a training run small; every test that trains starts from it.
SMALL = ["--epochs", "3", "--batch-size", "8", "--threads", "1", "--channels-last", "no", "--warmup-epochs", "0.5"]

# A net whose statistics do not depend on which process sees a row.
WITHOUT_BATCHNORM = ["--model", "test_vit", "--model-args", "patch_size=4", "--opt", "sgd", "--lr", "0.05"]
WITHOUT_BATCHNORM += ["--batch-size", "12"]


# The closing line of figures: what the tests of faults, kills and fuzz have counted.
FIGURES = pytest.StashKey[dict]()
FIGURES_IN_ORDER = ("faults", "silent", "kills", "points", "oof", "fuzz")


def run_script(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a script of ours as a user would, from the repository, and return its output and exit code."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def write_photo(path: Path, number: int, bright: bool) -> None:
    """A small photo that is no copy of another; bright or dark."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 100, (12, 16, 3)) + 150 * bright
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_table(path: Path, *rows: list) -> None:
    """A csv of these rows, the header first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


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

    import folds

    folder = tmp_path_factory.mktemp("tiny")
    digits = load_digits(n_class=3)
    images = (digits.images * 255 / 16).astype(np.uint8)
    write_pixel_csv(folder / "train.csv", images[:60], [f"class {number}" for number in digits.target[:60]])
    write_pixel_csv(folder / "test.csv", images[60:84])
    rows = "\n".join(f"{number},class 0" for number in range(1, 25))
    (folder / "sample.csv").write_text(f"ImageId,Label\n{rows}\n", encoding="utf-8")
    folds.main(["--data", str(folder / "train.csv"), "--folds", str(folder / "folds.csv"), "--k", "3"])
    return folder


def train(tiny: Path, runs_dir: Path, *arguments: object) -> None:
    """Train on the tiny data in this process (torch is imported once for the whole suite)."""
    import train_fold

    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", runs_dir]
    train_fold.main([str(argument) for argument in [*places, *SMALL, "--jobs", 1, *arguments]])


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


@pytest.fixture
def synthetic(tiny, tmp_path, monkeypatch) -> Path:
    """The folder of a complete sweep (tests/sweeps.py), below the current one."""
    from sweeps import finished_sweep

    monkeypatch.chdir(tmp_path)
    return finished_sweep(tiny)


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Runs scripts of ours in milliseconds, in processes that have not imported torch."""
    server = Forks(tmp_path_factory.mktemp("answers"), torch=False)
    yield server
    server.close()


@pytest.fixture(scope="session")
def torch_forks(tmp_path_factory):
    """The same in processes that have."""
    server = Forks(tmp_path_factory.mktemp("answers"), torch=True)
    yield server
    server.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Forks processes that are killed, or whose system calls are made to fail."""
    from disturbed import Server

    if sys.platform != "linux":
        pytest.skip("forks and watches processes as Linux can")
    server = Server(tmp_path_factory.mktemp("said"))
    yield server
    server.close()


# What a case of faults.csv means by a command's first word; its further words are added.
MODEL = "--model test_efficientnet --img-size 32 --epochs 1 --batch-size 8 --threads 1 --channels-last no --jobs 1"
COMMANDS = {
    "folds": "folds.py --k 3 --data train.csv",
    "check": "folds.py --check --data train.csv --test test.csv",
    "train": f"train_fold.py --data train.csv {MODEL}",
    "infer": "infer.py --data train.csv --test test.csv --sample sample.csv --threads 1",
    "blend": "ensemble.py --sample sample.csv",
    "report": "report.py --data train.csv",
    "soup": "average.py --data train.csv --threads 1 --runs one two --run soup",
    "photo-folds": "folds.py --k 3 --data photos/train.csv --folds photos/folds.csv",
    "photo-train": f"train_fold.py --data photos/train.csv --folds photos/folds.csv --runs-dir photos/runs {MODEL}",
    "photo-infer": "infer.py --test photos/test.csv --runs-dir photos/runs --threads 1",
    "fit": "sweep.py fit --sweep sweep",
}


def words(command: str) -> list[str]:
    """A command of faults.csv as a script's name and its arguments."""
    first, *rest = shlex.split(command)
    return [*shlex.split(COMMANDS.get(first, first)), *rest]


@pytest.fixture(scope="session")
def undisturbed(tiny, torch_forks, tmp_path_factory) -> Path:
    """A folder with all that our scripts read and write, made by them: what the faults are injected into (a copy).

    60 rows of 8 x 8 pixels in 3 classes, once as a table and once as photos; 3 folds; two finished runs with their
    test predictions and blend, one that was stopped after its last epoch, one trained with other folds, one of the
    photos; a sweep's table.
    """
    from common.base.locks import locked

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "undisturbed"  # one for all workers
    with locked(folder.with_name("undisturbed.lock"), wait=True):
        if not folder.exists():
            making = folder.with_name("undisturbed.part")
            making.mkdir()
            make_undisturbed(making, tiny, torch_forks)
            making.rename(folder)
    return folder


def make_undisturbed(folder: Path, tiny: Path, torch_forks: Forks) -> None:
    """Write the tables, run the scripts on them."""
    from PIL import Image

    for name in ("train.csv", "test.csv", "sample.csv"):
        (folder / name).write_bytes((tiny / name).read_bytes().replace(b"\r\n", b"\n"))
    for part, first_column in (("train", "image,label"), ("test", "image")):
        rows = [line.split(",") for line in (folder / f"{part}.csv").read_text().splitlines()[1:]]
        lines = [first_column]
        (folder / "photos" / "images").mkdir(parents=True, exist_ok=True)
        for number, cells in enumerate(rows):
            label = cells[: len(cells) - 64]
            pixels = np.array(cells[-64:], dtype=np.uint8).reshape(8, 8)
            Image.fromarray(pixels).save(folder / "photos" / "images" / f"{part}{number:02}.png")
            lines.append(",".join([f"{part}{number:02}.png", *label]))
        (folder / "photos" / f"{part}.csv").write_text("\n".join(lines) + "\n")
    unfinished = folder / "runs" / "half" / "fold0" / "oof.npz"
    unfinished.mkdir(parents=True)  # a folder in a file's place ends the training after its last epoch
    for command, code in (
        ("folds", 0),
        ("folds --folds other_folds.csv --seed 1", 0),
        ("photo-folds", 0),
        ("train --run one", 0),
        ("train --run two --seed 1", 0),
        ("train --run half --fold 0", 3),
        ("train --run foreign --folds other_folds.csv --runs-dir other", 0),
        ("photo-train --run one", 0),
        ("infer --runs one two", 0),
        ("blend --runs one two", 0),
    ):
        answer = torch_forks.run(words(command), folder)
        assert answer.code == code, answer.err
    unfinished.rmdir()
    write_sweep(folder / "sweep")


def write_sweep(folder: Path, config=None) -> None:
    """A published sweep of some settings: its description and its table, the losses on one parabola per batch size."""
    from common.runs.config import Config
    from common.sweep.cells import COLUMNS, TABLE_FILE, Sweep, claim_sweep
    from common.sweep.grid import Grid

    claim_sweep(Sweep(folder, config or Config(fold="0"), Grid((8, 16, 32), lr=1e-3, batch_size=8), "epochs", 0.1))
    lines = [",".join(COLUMNS)]
    for batch_size in (8, 16, 32):
        for step in range(-2, 3):
            loss = 0.1 + 0.01 * (step + 0.3) ** 2
            lines.append(f"{batch_size},{1e-3 * 4.0**step},0,{8000 // batch_size},done,{loss},9,300,1.0,10.0")
    (folder / TABLE_FILE).write_text("\n".join(lines) + "\n")


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
