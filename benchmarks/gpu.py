"""All that a GPU is needed to measure, in one command for the day that there is one.

    python -m benchmarks.gpu --digits train.csv.gz --photos photos/train.csv --weights tf_efficientnet_lite0.safetensors

Without --digits it takes the embedded digits, without --photos photos that it draws. Each part is kept in the work
folder as it ends: the same command goes on after the last one that did. Writes benchmarks/gpu.md, a line for each part,
with card, driver and versions. Without a GPU every part runs all the same, as far as it is not CUDA's.
"""

import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.numpy import load_file
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

import folds as folds_script
import infer
import train_fold
from benchmarks.machine import ROOT, hardware
from benchmarks.plain_loops import LOOPS, images_a_second
from benchmarks.scale import make_photos
from common.base.cli import parse
from common.base.errors import UserError, run_script
from common.base.files import read_json, write_file, write_json
from common.data import inputs
from common.data.augment_options import AUGMENTS
from common.data.batches import Examples
from common.data.decoding import Preparation
from common.data.inputs import Pixels, open_inputs
from common.data.reading import read_train_table
from common.model.selection import Last
from common.runs.config import Config
from common.runs.layout import MODEL_FILE, fold_folder, read_metrics
from common.train.build import prepare_training
from common.train.hardware import DTYPES, device_name, own_device, set_up_device, usable_precision
from common.train.loop import train_epoch

REPORT = Path(__file__).with_suffix(".md")
ON_GPU = torch.cuda.is_available()
EPOCH_ENDED = "epoch   1/"  # in what a training prints: the moment at which it is killed
DRAWN = 600  # photos, where none are named
Figures = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Measure what only a GPU can show: python -m benchmarks.gpu"""

    digits: str = "digits"  # Kaggle's train table of 28 x 28 digits (default: the embedded ones)
    photos: str = ""  # train table of photos (default: drawn ones)
    weights: str = ""  # tf_efficientnet_lite0's weights (default: none, it starts from scratch)
    work: str = "work/gpu"  # folder for the runs and for what each part has found
    parts: tuple[str, ...] = ()  # names of the parts to run (default: all)
    limit: int = 0  # rows used of each part of the data, for a look at whether it runs (0: all)

    @property
    def folder(self) -> Path:
        """Where everything lies."""
        return Path(self.work)

    def train(self, run: str, *arguments: str, data: str = "") -> Path:
        """Train, in this process or side by side in jobs; returns the run's folder."""
        data = data or self.digits
        folds = self.folder / f"folds-{Path(data).stem}.csv"
        if not folds.exists():
            folds_script.main(["--data", data, "--folds", str(folds)])
        runs_dir = self.folder / "runs"
        shutil.rmtree(runs_dir / run, ignore_errors=True)
        places = ["--data", data, "--folds", str(folds), "--runs-dir", str(runs_dir), "--run", run]
        limit = ["--limit", str(self.limit)] if self.limit else []
        train_fold.main([*places, "--channels-last", "yes", *limit, *arguments])
        return runs_dir / run


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    if unknown := set(options.parts) - PARTS.keys():
        raise UserError("--parts", f"there is no {', '.join(unknown)}", f"use some of {', '.join(PARTS)}")
    for name, part in PARTS.items():
        found = options.folder / f"{name}.json"
        if (options.parts and name not in options.parts) or found.exists():
            continue
        started = time.perf_counter()
        write_json(found, {"found": part(options), "seconds": time.perf_counter() - started})
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    write_report(options.folder)


def write_report(folder: Path) -> None:
    """A table with a line for each part that has been measured."""
    lines = ["| part | found | seconds |", "|---|---|---|"]
    for name in PARTS:
        if (folder / f"{name}.json").exists():
            part = read_json(folder / f"{name}.json", found=dict, seconds=float)
            said = "; ".join(f"{what}: {value}" for what, value in part["found"].items())
            lines.append(f"| {name} | {said} | {part['seconds']:.0f} |")
    text = "# On a GPU\n\n`python -m benchmarks.gpu`: " + hardware() + f".\nDriver: {driver()}.\n\n" + "\n".join(lines)
    write_file(REPORT if ON_GPU else folder / REPORT.name, text + "\n")


def driver() -> str:
    """The version of NVIDIA's driver."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.strip().replace("\n", ", ")
    except OSError:
        return "none"


# ---- parts


def device(options: Options) -> Figures:
    """What the card is and can do."""
    own = own_device()
    found = {"card": device_name(own), "architectures": " ".join(torch.cuda.get_arch_list()) if ON_GPU else "none"}
    return found | {precision: usable_precision(precision) == precision for precision in ("no", *DTYPES)}


def precision(options: Options) -> Figures:
    """Accuracy and speed of fold 0 in each precision: they should not differ by more than half a point."""
    found = {}
    for name, flags in (
        ("float32", ("--mixed-precision", "no")),
        ("TF32", ("--mixed-precision", "no", "--tf32")),
        ("bf16", ("--mixed-precision", "bf16")),
        ("fp16", ("--mixed-precision", "fp16", "--clip-grad", "1", "--accumulate", "2", "--ema-decay", "0.99")),
    ):
        if name == "TF32" and not ON_GPU:
            continue
        metrics = read_metrics(fold_folder(options.train(name, *flags, "--fold", "0", "--epochs", "2"), "0"))
        found[name] = f"accuracy {metrics['accuracy']:.4f}, {metrics['images_per_second']:,.0f} images/s"
    return found


def bits(options: Options) -> Figures:
    """The largest difference of a weight between two equal runs, and one that was killed and went on."""
    found = {}
    for name, flags in (("as it is", ()), ("--deterministic", ("--deterministic",))):
        flags = (*flags, "--fold", "0", "--epochs", "3", "--warmup-epochs", "0")
        first, second = (options.train(f"bits{number}", *flags) for number in (1, 2))
        third = first.with_name("bits3")
        command = [str(ROOT / "train_fold.py"), "--data", options.digits, "--runs-dir", str(third.parent)]
        command += ["--folds", str(options.folder / f"folds-{Path(options.digits).stem}.csv"), "--run", third.name]
        command += ["--channels-last", "yes", *(("--limit", str(options.limit)) if options.limit else ()), *flags]
        interrupted(command, third)
        found[f"again, {name}"] = largest_difference(first, second)
        found[f"killed and resumed, {name}"] = largest_difference(first, third)
    return found


def interrupted(command: list[str], run_folder: Path) -> None:
    """Kill a training after its first epoch, then let it go on."""
    shutil.rmtree(run_folder, ignore_errors=True)
    training = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    for said in training.stdout:
        if EPOCH_ENDED in said:
            break
    training.kill()
    training.wait()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def largest_difference(first: Path, second: Path) -> float:
    """Between the weights of fold 0 of two runs."""
    one, other = (load_file(fold_folder(folder, "0") / MODEL_FILE) for folder in (first, second))
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def trained_epoch(options: Options, preset: str, precision: str = "no") -> tuple[Callable[[], float], int]:
    """What trains an epoch of digits under a preset of augmentation, and its number of steps."""
    table = read_train_table("digits")
    count, device = min(options.limit or 1024, len(table.ids)), own_device()
    colours = 3 if preset == "photos" else 1
    cfg = Config(
        model="resnet18" if ON_GPU else "test_resnet",
        img_size=32,
        channels=colours,
        batch_size=32,
        epochs=99,
        augment=preset,
    )
    targets = torch.from_numpy(table.labels[:count].astype(np.int64)).to(device)
    images = open_inputs(table, Preparation(colours, 32, 32), device).values[:count]
    examples = Examples(Pixels(images), targets, torch.arange(count), [str(digit) for digit in range(10)])
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    training = prepare_training(cfg, accelerator, examples, Last(cfg.epochs, []))
    return lambda: train_epoch(accelerator, training, 0.0, tqdm(disable=True)), training.batches.steps


def waits(options: Options) -> Figures:
    """How often an epoch waits for the device, as torch itself warns of it: a few times, however many steps."""
    found = {}
    for preset in [name for name in AUGMENTS if name != "brief_002"] if ON_GPU else ["digits"]:
        epoch, steps = trained_epoch(options, preset)
        epoch()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn") if ON_GPU else None
            epoch()
            torch.cuda.set_sync_debug_mode("default") if ON_GPU else None
        said = sum("synchroniz" in str(each.message) for each in caught)
        found[preset] = f"{said} in {steps} steps"
    return found


def busy(options: Options) -> Figures:
    """The share of an epoch's wall time in which kernels run, with cuDNN's choice of algorithms on and off."""
    found = {}
    for name, one_size in (("benchmark on", True), ("benchmark off", False)):
        set_up_device(tf32=False, deterministic=False, one_size=one_size)
        epoch, steps = trained_epoch(options, "digits")
        epoch()
        started = time.perf_counter()
        activities = [ProfilerActivity.CUDA] if ON_GPU else [ProfilerActivity.CPU]
        with profile(activities=activities) as profiler:
            epoch()
        wall = time.perf_counter() - started
        kind = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
        seconds = sum(getattr(event, kind) for event in profiler.key_averages()) / 1e6
        found[name] = f"{seconds / wall:.0%} of {1000 * wall / steps:.1f} ms a step"
    return found


def side_by_side(options: Options) -> Figures:
    """Seconds of all folds of digits_fast, one, three and five at a time on a card, also compiled; then digits_best."""
    seconds = {}
    small = ("--batch-size", "16", "--epochs", "1", "--img-size", "28") if options.limit else ()
    for at_once in (1, 3, 5) if ON_GPU else (1,):
        for name, flags in (("", ()), (", compiled", ("--compile",))) if ON_GPU else (("", ()),):
            started = time.perf_counter()
            flags = (*flags, *(("--jobs-per-gpu", str(at_once)) if ON_GPU else ("--jobs", "1")))
            options.train("fast", "--config", str(ROOT / "recipes/digits_fast.yaml"), "--fold", "all", *flags, *small)
            seconds[f"{at_once} at a time{name}"] = time.perf_counter() - started, flags
    found = {name: f"{taken:.0f} s" for name, (taken, _) in seconds.items()}
    if ON_GPU:
        started, (name, (_, flags)) = time.perf_counter(), min(seconds.items(), key=lambda item: item[1][0])
        options.train("best", "--config", str(ROOT / "recipes/digits_best.yaml"), "--fold", "all", *flags)
        found[f"digits_best, {name}"] = f"{time.perf_counter() - started:.0f} s"
    return found


def photos(options: Options) -> Figures:
    """Images a second of photos that lie on the device, in a mapped file, and are decoded for each batch."""
    table = options.photos or str(drawn_photos(options))
    flags = [
        "--model",
        "tf_efficientnet_lite0" if ON_GPU else "test_efficientnet",
        "--img-size",
        "224" if ON_GPU else "64",
        "--augment",
        "photos",
    ]
    flags += ["--fold", "0", "--epochs", "2", "--batch-size", "32", "--mixed-precision", "bf16" if ON_GPU else "no"]
    flags += ["--weights", options.weights] if options.weights else []
    found, resident = {}, inputs.RESIDENT
    ways = (("on the device", resident, "8"), ("in a file", 0, "8"), ("decoded each time", 0, "0"))
    for name, share, gigabytes in ways:
        inputs.RESIDENT = share
        try:
            run_folder = options.train("photos", *flags, "--cache-gb", gigabytes, data=table)
        finally:
            inputs.RESIDENT = resident
        metrics = read_metrics(fold_folder(run_folder, "0"))
        found[name] = f"{metrics['images_per_second']:,.0f} images/s"
    return found


def plain(options: Options) -> Figures:
    """Images a second of plain loops, to stand beside the photos'."""
    table, side = read_train_table(options.photos or str(drawn_photos(options))), 224 if ON_GPU else 64
    model = "tf_efficientnet_lite0" if ON_GPU else "test_efficientnet"
    workers = 8 if ON_GPU else 0
    found = {name: images_a_second(loop(table, side, workers), model, table) for name, loop in LOOPS.items()}
    return {name: f"{speed:,.0f} images/s" for name, speed in found.items()}


def drawn_photos(options: Options) -> Path:
    """The table of photos that are drawn once."""
    folder = options.folder / "drawn"
    make_photos(folder, 120 if options.limit else DRAWN, classes=4)
    return folder / "train.csv"


def inference(options: Options) -> Figures:
    """Rows a second of infer.py with five models, without and with five views."""
    options = replace(options, limit=0)  # what --limit has trained is not predicted with
    options.train("inferred", "--fold", "all", "--epochs", "1", "--jobs", "1")
    found = {}
    for name in ("none", "shifts"):
        places = ["--runs-dir", str(options.folder / "runs"), "--runs", "inferred", "--data", options.digits]
        started = time.perf_counter()
        infer.main([*places, "--folds", str(options.folder / f"folds-{Path(options.digits).stem}.csv"), "--tta", name])
        found[name] = f"{time.perf_counter() - started:.1f} s"
    return found


def tests(options: Options) -> Figures:
    """The tests that are skipped without a GPU; what failed is named."""
    command = [sys.executable, "-m", "pytest", "--durations=0", "-rf", "tests/train/test_gpu.py"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "FIVEFOLD_GPU": "1"}, capture_output=True, text=True, timeout=240
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("FAILED") or " in " in line]
    return {"tests/train/test_gpu.py": ", ".join(said)}


PARTS: dict[str, Callable[[Options], Figures]] = {
    part.__name__: part
    for part in (device, precision, bits, waits, busy, side_by_side, photos, plain, inference, tests)
}

if __name__ == "__main__":
    run_script(main)
