"""Every model family on real digits: does it take a step from 28 px, and how far does it get in the same few epochs?

    python -m benchmarks.zoo --data train.csv.gz --minutes 40    # trains the families one after another, writes zoo.csv
    python -m benchmarks.zoo --steps                              # training steps of every family, also the biggest
    python -m benchmarks.zoo --heads                              # what depends on the classes in every model of timm

A quarter of the training rows of fold 0, two epochs, from scratch, one thread: a table of what runs and how fast, not
of what is best. The same command again goes on where it was stopped.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from common.base.cli import parse
from common.base.errors import UserError, run_script
from common.base.files import write_file
from common.jobs.process import Job
from common.jobs.runner import LocalSlot, run_jobs
from common.model.networks import create_model, photo_size, working_settings
from common.model.weights import COUNTER, head_names, load_weights
from common.runs.layout import is_finished, read_metrics
from common.score.metrics import describe

SETTINGS = ["--fold", "0", "--train-fraction", "0.25", "--epochs", "2", "--batch-size", "64"]
SETTINGS += ["--lr", "2e-3", "--warmup-epochs", "0.5", "--threads", "1"]
# Convolutions learn at that rate; plain transformers want a lower one (at 2e-3 vit_tiny stays at chance).
RATES = {"eva02_tiny_patch14_224": "5e-4", "vit_tiny_patch16_224": "5e-4"}
SIDE = 28  # px of the digits
# As digits are trained on: the first setting that the start-up check proposes, unless this says otherwise.
FAMILIES = {
    "digit_cnn": "",
    "tf_efficientnet_b0.ns_jft_in1k": "",
    "convnext_atto.d2_in1k": "",
    "mobilenetv2_100": "",
    "resnet18": "",
    "edgenext_xx_small": "",
    "eva02_tiny_patch14_224": "patch_size=7",
    "vit_tiny_patch16_224": "patch_size=7",
    "efficientnet_b1": "",
    "resnet34": "",
    "tiny_vit_5m_224": "",
    "resnet50": "",
    "efficientnet_b2": "",
    "seresnext50_32x4d": "",
    "efficientnet_b3": "",
    "legacy_xception": "",
    "convnext_small": "",
}
BIGGER = (
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "xception41",
    "seresnext101_32x4d",
)
BIGGER += ("senet154", "legacy_senet154", "inception_resnet_v2")


@dataclass(frozen=True)
class Options:
    """Train every model family on digits: python -m benchmarks.zoo --data train.csv.gz"""

    data: str = "digits"  # train table of digits
    folds: str = "folds.csv"  # its folds file
    runs_dir: str = "runs"  # folder for the runs, one for each family
    minutes: float = 40.0  # start no family after that long
    steps: bool = False  # only a few training steps of every family, without data
    heads: bool = False  # only whether last_layers names what depends on the number of classes, for all models of timm


def main() -> None:
    options = parse(Options)
    if options.steps:
        step_table()
    elif options.heads:
        check_heads()
    else:
        train_families(options)
        path = Path(__file__).with_name("zoo.csv")
        write_file(path, family_table(Path(options.runs_dir)).to_csv(index=False))
        print(f"{path}\n{path.read_text()}")


def setting_of(name: str) -> tuple[int, dict]:
    """(img_size, model_args) with which the start-up check lets ``name`` train on digits."""
    arguments = dict([pair.split("=")] if (pair := FAMILIES.get(name, "")) else [])
    arguments = {argument: int(value) for argument, value in arguments.items()}
    try:
        create_model(name, arguments, 10, 1, SIDE)
        return SIDE, arguments
    except UserError:
        return working_settings(name, arguments, 10, 1, SIDE)[0]


def train_families(options: Options) -> None:
    """One process after another, each an ordinary run of train_fold.py."""
    places = ["--data", options.data, "--folds", options.folds, "--runs-dir", options.runs_dir]
    started = time.monotonic()
    for name in FAMILIES:
        if is_finished(Path(options.runs_dir) / name / "fold0"):
            continue
        if time.monotonic() - started > options.minutes * 60:
            print(f"no time for {name}")
            break
        size, arguments = setting_of(name)
        own = ["--model", name, "--img-size", str(size)] + (["--lr", RATES[name]] if name in RATES else [])
        own += ["--model-args", *(f"{argument}={value}" for argument, value in arguments.items())] if arguments else []
        run_jobs([Job(name, ("train_fold.py", *places, *SETTINGS, *own))], [LocalSlot()])


def family_table(runs_dir: Path) -> pd.DataFrame:
    """A row for each family that is finished: its setting, size, score, and speed."""
    rows = []
    for name in FAMILIES:
        folder = runs_dir / name / "fold0"
        if not is_finished(folder):
            continue
        metrics, (size, arguments) = read_metrics(folder), setting_of(name)
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            names = file.keys()
            names = [each for each in names if "running_" not in each and "num_batches" not in each]
            weights = sum(file.get_tensor(each).numel() for each in names)
        setting = " ".join([f"{size} px", *(f"{argument}={value}" for argument, value in arguments.items())])
        row = {"family": name, "input": setting, "weights (million)": f"{weights / 1e6:.2f}"}
        row |= {"fold 0": describe(metrics), "memory format": metrics["memory_format"]}
        row |= {
            "images/s in training": f"{metrics['images_per_second']:.0f}",
            "minutes": f"{metrics['seconds'] / 60:.1f}",
        }
        rows.append(row)
    return pd.DataFrame(rows)


def step_table() -> None:
    """Two training steps on 16 digits for every family, timed in CPU seconds, which other processes do not lengthen."""
    torch.set_num_threads(1)
    print("| family | input | weights (million) | images per CPU second in training |\n|---|---|---|---|")
    for name in (*FAMILIES, *BIGGER):
        size, arguments = setting_of(name)
        model = create_model(name, arguments, 10, 1, size).train().to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
        images = torch.rand(16, 1, size, size).to(memory_format=torch.channels_last)
        targets, seconds = torch.arange(16) % 10, []
        for _ in range(3):  # the first moves the last layer alone, which starts at zero, and warms up
            started = time.process_time()
            F.cross_entropy(model(images), targets).backward()
            optimiser.step()
            optimiser.zero_grad()
            seconds.append(time.process_time() - started)
        assert model.eval()(images).isfinite().all(), name
        weights = sum(weight.numel() for weight in model.parameters()) / 1e6
        setting = " ".join([f"{size} px", *(f"{argument}={value}" for argument, value in arguments.items())])
        print(f"| {name} | {setting} | {weights:.1f} | {16 / min(seconds[1:]):.0f} |", flush=True)


def check_heads() -> None:
    """Build every model of timm for 10 and for 13 classes, as shapes alone, and print those that our heads miss; then
    the smallest model of each family for real, and print those that do not start and load as they should.

    The first part takes eight minutes of one core, the second a few more.
    """
    names, right, smallest = timm.list_models(), 0, {}
    for name in names:
        with torch.device("meta"):
            model, other = (timm.create_model(name, num_classes=count) for count in (10, 13))
        shapes = {each: tensor.shape for each, tensor in other.named_parameters()}
        depend = [each for each, tensor in model.named_parameters() if tensor.shape != shapes[each]]
        try:
            found = head_names(model)
        except AttributeError:
            print(f"{name}: has no head, so it cannot be trained", flush=True)
            continue
        right += found == depend
        size = (sum(tensor.numel() for tensor in model.parameters()), name)
        if (family := type(model).__module__).startswith("timm."):  # ours take no photos, most of them
            smallest[family] = min(size, smallest.get(family, size))
        if found != depend:
            print(f"{name}: {depend} depend on the classes, found {found}", flush=True)
    print(f"{right:,} of {len(names):,} models: what depends on the classes is what last_layers names")
    check_families([name for _, name in sorted(smallest.values())])


def check_families(names: Sequence[str]) -> None:
    """Print those of some models that do not start from equal logits, or that lose more than their last layers where
    weights have another number of classes."""
    right, classes = 0, [f"class {number}" for number in range(10)]
    for name in names:
        size = photo_size(name) or 224
        try:
            source, model = (create_model(name, {}, count, 3, size) for count in (13, 10))
            is_even = not model.train()(torch.rand(2, 3, size, size)).any()
            with TemporaryDirectory() as folder:
                path = Path(folder) / "weights.safetensors"
                save_file({each: tensor.clone().contiguous() for each, tensor in source.state_dict().items()}, path)
                load_weights(model, name, path, classes, 3)
        except UserError as error:
            print(f"{name}: {error}", flush=True)
            continue
        heads, own = head_names(model), model.state_dict()
        lost = [
            each
            for each, tensor in source.state_dict().items()
            if each not in heads and not each.endswith(COUNTER) and not torch.equal(own[each], tensor)
        ]
        right += is_even and not lost
        if not is_even or lost:
            print(f"{name}: starts from {'equal' if is_even else 'other'} logits, loses {lost[:3]}", flush=True)
    print(f"{right} of {len(names)} families start from equal logits and keep all but the last layers of weights")


if __name__ == "__main__":
    run_script(main)
