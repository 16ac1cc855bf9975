"""How fast infer.py predicts: against its forward passes alone, and against the way of most notebooks.

    python -m benchmarks.inference --data train.csv.gz --test test.csv.gz

Five fold models, trained for a moment on a part of the train table, and the five views of --tta shifts predict the
first test rows. `fivefold` is infer.py by its own clock, from the read test table to written predictions; `notebook`
is benchmarks/notebook.py with five such views; `passes` is as many forward passes over one batch that never changes, in
the memory format of the run. Test rows per second; the contestants take turns, and ratios are taken within a round.
Writes benchmarks/inference.md.
"""

import gzip
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import affine

from benchmarks.notebook import Rows, predict
from benchmarks.ratios import write_speeds
from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import read_json, write_file
from common.base.system import cpu_count, keep_freed_memory
from common.runs.layout import INFERENCE_FILE, MODEL_FILE, fold_folder
from common.runs.tensors import load_model
from common.train.fold_models import create_saved
from common.train.loop import evaluation_batch

REPORT = Path(__file__).with_suffix(".md")
SETTINGS = {"digit_cnn": (28, 6_000), "convnext_atto": (32, 2_000), "efficientnet_b0": (28, 1_500)}  # side, test rows
FOLDS, VIEWS, BATCH, TRAIN_ROWS = 5, 5, 128, 2_000
SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))  # of the notebook's views


@dataclass(frozen=True)
class Options:
    """Measure test rows per second: python -m benchmarks.inference --data train.csv.gz --test test.csv.gz"""

    data: str = "train.csv.gz"  # train table of 28 x 28 digits
    test: str = "test.csv.gz"  # its test table
    work: str = "work/inference"  # folder for the runs
    rounds: int = 3  # turns of each contestant
    threads: int = 0  # CPU threads (0: all cores)


def main() -> None:
    options = parse(Options)
    keep_freed_memory()
    torch.set_num_threads(options.threads or cpu_count())
    work, rows = Path(options.work), []
    data = first_rows(Path(options.data), TRAIN_ROWS, work / "train.csv")
    script("folds.py", "--data", data, "--folds", work / "folds.csv")
    for model, (side, count) in SETTINGS.items():
        test = first_rows(Path(options.test), count, work / f"test-{count}.csv")
        train = ["--folds", work / "folds.csv", "--runs-dir", work, "--run", model, "--model", model, "--fold", "all"]
        train += ["--img-size", side, "--batch-size", BATCH, "--epochs", 1]
        script("train_fold.py", "--data", data, *train, "--threads", options.threads)
        for _ in range(options.rounds):
            found: dict[str, object] = {"setting": f"{model}, {side} px"}
            infer = ["--runs-dir", work, "--runs", model, "--tta", "shifts", "--folds", work / "folds.csv"]
            script("infer.py", "--data", data, "--test", test, *infer, "--threads", options.threads)
            found["fivefold"] = 1000 / read_json(work / model / INFERENCE_FILE)["seconds_per_1000_rows"]
            found |= {"notebook": notebook(work / model, side, test), "passes": passes(work / model, side)}
            print(found, flush=True)
            rows.append(found)
    about = f"{FOLDS} models x {VIEWS} views"
    write_speeds(REPORT, "Inference speed", about, rows, ["notebook", "fivefold", "passes"], "rows/s")


def script(name: str, *arguments: object) -> None:
    """Run a script of the product quietly; its errors are shown."""
    subprocess.run([sys.executable, name, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def first_rows(table: Path, count: int, path: Path) -> Path:
    """A table of the first ``count`` rows of another."""
    content = gzip.decompress(table.read_bytes()) if table.suffix == ".gz" else table.read_bytes()
    write_file(path, b"".join(content.splitlines(keepends=True)[: count + 1]))
    return path


def weights_of(run: Path) -> list[Path]:
    """The weights files of the fold models."""
    return [fold_folder(run, fold) / MODEL_FILE for fold in range(FOLDS)]


def notebook(run: Path, side: int, test: Path) -> float:
    """Rows per second in the way of benchmarks/notebook.py, reading the table not counted."""
    saved = load_model(weights_of(run)[0]).saved
    frame = pd.read_csv(test).assign(label=0)
    resize = [v2.Resize(side)] if side != 28 else []
    shifted = [
        v2.Lambda(lambda image, by=by: affine(image, angle=0.0, translate=list(by), scale=1.0, shear=[0.0, 0.0]))
        for by in SHIFTS
    ]
    views = [Rows(frame, len(saved.output_names), [*resize, shift]) for shift in shifted]
    started = time.perf_counter()
    predict(create_saved(saved), weights_of(run), views, BATCH)
    return len(frame) / (time.perf_counter() - started)


@torch.inference_mode()
def passes(run: Path, side: int, seconds: float = 10.0) -> float:
    """Rows per second of the forward passes alone, at the batch size of infer.py."""
    saved = load_model(weights_of(run)[0]).saved
    memory_format = getattr(torch, saved.memory_format)
    model = create_saved(saved).eval().to(memory_format=memory_format)
    images = torch.rand(evaluation_batch(BATCH), saved.cfg.channels, side, side)
    images = images.contiguous(memory_format=memory_format)
    model(images)
    rows, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        model(images)
        rows += len(images)
    return rows / (time.perf_counter() - started) / (FOLDS * VIEWS)


if __name__ == "__main__":
    run_script(main)
