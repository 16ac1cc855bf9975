"""How fast train_fold.py trains: against the way of most notebooks, and against the arithmetic alone.

    python -m benchmarks.throughput --data train.csv.gz
    python -m benchmarks.throughput --data train.csv.gz --photos photos/train.csv    # adds the photos' line

For each model the contestants take turns on all cores. `fivefold` is `train_fold.py --fold all` with as many folds as
there are cores, side by side, with augmentation, smoothing, schedule and progress bars; `notebook` is
benchmarks/notebook.py on the same images; `accelerate` and `timm` are loops in the form of their own examples
(benchmarks/plain_loops.py); `ceiling` is, in one process per core, forward, backward and optimiser step
on one batch that never changes, in the faster memory format. Counted are training images per second after the first
steps, of all processes together. Machines drift, so the ratios are taken within a round, and the table shows their
medians. Writes benchmarks/throughput.md.
"""

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import timm
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

import common.model.networks  # noqa: F401 - registers digit_cnn with timm
from benchmarks.notebook import WORKERS, Rows, training_steps
from benchmarks.plain_loops import Decoded, accelerates_steps, timms_steps
from benchmarks.ratios import write_speeds
from common.base.cli import parse
from common.base.errors import run_script
from common.base.system import cpu_count, keep_freed_memory
from common.data.dealing import make_folds
from common.data.folds import write_folds
from common.data.reading import read_train_table
from common.runs.layout import LOG_FILE, fold_folder
from common.score.task import targets_of

REPORT = Path(__file__).with_suffix(".md")
CONTESTANTS = ("notebook", "accelerate", "timm", "ceiling")
WARM_UP, SECONDS = 5, 15.0  # steps that are not counted; seconds that a contestant other than fivefold then takes


@dataclass(frozen=True)
class Setting:
    """What is trained."""

    model: str
    size: int
    batch_size: int
    train_rows: int  # of fivefold's epochs
    photos: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}, {self.size} px"


SETTINGS = (
    Setting("digit_cnn", 28, 128, 16_000),
    Setting("convnext_atto", 32, 128, 6_000),
    Setting("efficientnet_b0", 28, 128, 5_000),
    Setting("tf_efficientnet_lite0", 160, 32, 600, photos=True),
)


@dataclass(frozen=True)
class Options:
    """Measure training images per second: python -m benchmarks.throughput --data train.csv.gz"""

    data: str = "train.csv.gz"  # train table of 28 x 28 digits
    photos: str = ""  # train table of photos, for the model that is trained on them
    work: str = "work/throughput"  # folder for the runs
    rounds: int = 3  # turns of each contestant
    models: tuple[str, ...] = ()  # those of the settings to measure (default: all)
    contestant: str = ""  # for the processes that this one starts: one of CONTESTANTS ...
    model: str = ""  # ... and its model


def main() -> None:
    options = parse(Options)
    settings = [setting for setting in SETTINGS if options.photos or not setting.photos]
    settings = [setting for setting in settings if not options.models or setting.model in options.models]
    if options.contestant:
        setting = next(setting for setting in settings if setting.model == options.model)
        torch.set_num_threads(cpu_count() // processes_of(options.contestant))
        steps = {"ceiling": ceiling_steps, "notebook": notebook_steps}.get(options.contestant, peers_steps)
        print(images_per_second(steps(setting, options)))
        return
    rows = []
    for setting in settings:
        for number in range(options.rounds):
            found: dict[str, object] = {"setting": setting.name}
            found["fivefold"] = fivefold(setting, options, number)
            found |= {name: together(name, setting) for name in CONTESTANTS}
            print(found, flush=True)
            rows.append(found)
    about = "Training steps in fp32; fivefold and ceiling a process per core, the others one"
    names = ["notebook", "fivefold", *CONTESTANTS[1:]]
    write_speeds(REPORT, "Training speed", about, rows, names, "images/s")


# ---- the contestants


def processes_of(contestant: str) -> int:
    """The ceiling has a process for each core; otherwise one uses them all."""
    return cpu_count() if contestant == "ceiling" else 1


def together(contestant: str, setting: Setting) -> float:
    """The speed of a contestant's processes, which run at the same time."""
    command = [sys.executable, "-m", "benchmarks.throughput", *sys.argv[1:]]
    command += ["--contestant", contestant, "--model", setting.model]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes_of(contestant))]
    return sum(float(process.communicate()[0].splitlines()[-1]) for process in processes)


def fivefold(setting: Setting, options: Options, number: int) -> float:
    """The speed of train_fold.py in the second and third epoch of folds side by side."""
    table = read_train_table(source(setting, options))
    folds_file, k = Path(options.work) / f"{'photos' if setting.photos else 'digits'}.csv", max(2, cpu_count())
    folds = make_folds(table, k=k)
    write_folds(folds_file, folds)
    in_folds = [int((folds.fold != fold).sum()) for fold in range(k)]
    fraction = min(1.0, setting.train_rows / in_folds[0])
    run = f"{setting.model}-{number}"
    command = [sys.executable, "train_fold.py", "--data", table.source, "--folds", str(folds_file)]
    command += ["--runs-dir", options.work, "--run", run, "--restart", "--model", setting.model, "--epochs", "3"]
    command += ["--img-size", str(setting.size), "--batch-size", str(setting.batch_size), "--lr", "1e-3"]
    command += ["--train-fraction", f"{fraction:.4f}", "--jobs", str(k), "--threads", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    speed = 0.0
    for fold, rows in enumerate(in_folds):
        log = pd.read_csv(fold_folder(Path(options.work) / run, fold) / LOG_FILE)
        trained = int(rows * fraction) // setting.batch_size * setting.batch_size
        speed += 2 * trained / log.train_seconds.iloc[1:].sum()
    return float(speed)


def notebook_steps(setting: Setting, options: Options) -> Iterator[int]:
    """Training in the way of benchmarks/notebook.py."""
    frame, classes = frame_of(setting, options)
    model = timm.create_model(setting.model, num_classes=len(classes), in_chans=3 if setting.photos else 1)
    rows = Rows(frame, len(classes), transforms_of(setting))
    return itertools.chain.from_iterable(training_steps(model, rows, setting.batch_size) for _ in itertools.count())


def peers_steps(setting: Setting, options: Options) -> Iterator[int]:
    """Training in the form of accelerate's or timm's example; the former with the notebook's transforms."""
    table = read_train_table(source(setting, options))
    channels = 3 if setting.photos else 1
    model = timm.create_model(setting.model, num_classes=len(set(table.labels)), in_chans=channels)
    if options.contestant == "timm":
        return timms_steps(model, Decoded(table), setting.batch_size, WORKERS, setting.size)
    transform = v2.Compose([*transforms_of(setting), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    return accelerates_steps(model, Decoded(table, transform), setting.batch_size, WORKERS)


def transforms_of(setting: Setting) -> list[torch.nn.Module]:
    """A notebook's augmentation."""
    if setting.photos:
        return [v2.RandomResizedCrop(setting.size, scale=(0.5, 1.0)), v2.RandomHorizontalFlip()]
    resize = [v2.Resize(setting.size)] if setting.size != 28 else []
    return [v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1)), *resize]


def ceiling_steps(setting: Setting, options: Options) -> Iterator[int]:
    """The same step on one batch, in the memory format that is faster."""
    keep_freed_memory()
    frame, classes = frame_of(setting, options)
    channels = 3 if setting.photos else 1
    rows = Rows(frame, len(classes), [v2.Resize((setting.size, setting.size))])
    items = [rows[index] for index in range(setting.batch_size)]
    images, targets = torch.stack([item[0] for item in items]), torch.stack([item[1] for item in items])

    def steps(memory_format: torch.memory_format) -> Iterator[int]:
        model = timm.create_model(setting.model, num_classes=len(classes), in_chans=channels).train()
        model, batch = model.to(memory_format=memory_format), images.contiguous(memory_format=memory_format)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.0)  # a batch learnt by heart has gradients of nothing
        while True:
            F.cross_entropy(model(batch), targets).backward()
            optimiser.step()
            optimiser.zero_grad()
            yield len(batch)

    formats = (torch.contiguous_format, torch.channels_last)
    return steps(max(formats, key=lambda each: images_per_second(steps(each), seconds=3.0)))


def images_per_second(steps: Iterator[int], seconds: float = SECONDS) -> float:
    """Images of the ``steps`` that begin within ``seconds`` after the warm-up, per second."""
    for _ in itertools.islice(steps, WARM_UP):
        pass
    images, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        images += next(steps)
    return images / (time.perf_counter() - started)


def source(setting: Setting, options: Options) -> str:
    """The train table of a setting."""
    return options.photos if setting.photos else options.data


def frame_of(setting: Setting, options: Options) -> tuple[pd.DataFrame, list[str]]:
    """The train table as a notebook has it, and the classes."""
    table = read_train_table(source(setting, options))
    classes = sorted(set(table.labels))
    if setting.photos:
        frame = pd.DataFrame({"path": table.images})
    else:
        pixels = table.images.reshape(len(table.ids), -1)
        frame = pd.DataFrame(pixels, columns=[f"pixel{number}" for number in range(pixels.shape[1])])
    frame.insert(0, "label", targets_of(table.labels, classes))
    return frame, classes


if __name__ == "__main__":
    run_script(main)
