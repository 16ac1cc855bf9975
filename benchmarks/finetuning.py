"""Seven ways to use the same pretrained weights on photos, at one budget: fold 0, three seeds each.

    python -m benchmarks.finetuning --data photos/train.csv --weights tf_efficientnet_lite0.safetensors

Every way sees each training photo EPOCHS times at SIDE px, with the same augmentation, batches and schedule; they
differ in their flags in WAYS alone. A logistic regression on features that are computed once stands beside them. Each
cell is an ordinary run of train_fold.py; the same command again goes on where it was stopped, and ends by writing the
table of what is finished to benchmarks/finetuning.csv. The rates were not tuned here: one of each usual size, the same
for all ways that use them.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import read_json, write_file, write_json
from common.data.cache import photo_cache
from common.data.folds import match_folds, read_folds
from common.data.inputs import Reading, open_inputs
from common.data.reading import read_train_table
from common.jobs.process import Job
from common.jobs.runner import LocalSlot, run_jobs
from common.model.networks import create_model, photo_preparation
from common.model.weights import load_weights
from common.runs.layout import is_finished, read_metrics
from common.score.logits import Outputs

MODEL, SIDE, EPOCHS = "tf_efficientnet_lite0", 96, 3
SETTINGS = ["--model", MODEL, "--img-size", str(SIDE), "--epochs", str(EPOCHS), "--batch-size", "32"]
SETTINGS += ["--augment", "photos_light", "--warmup-epochs", "0.25", "--channels-last", "yes", "--threads", "1"]
SETTINGS += ["--lr", "2e-3", "--fold", "0"]
SLOW = ["--backbone-lr-scale", "0.1"]  # of everything before the last layer
STILL = ["--freeze", "batchnorm=True"]
# Name: flags, and whether it starts from the weights.
WAYS = {
    "from scratch": ([], False),
    "plain: one rate for all layers": ([], True),
    "head only": (["--freeze", f"backbone={EPOCHS}"], True),
    "head for an epoch, then all": (["--freeze", "backbone=1", *SLOW], True),
    "backbone at a tenth of the rate": (SLOW, True),
    "the same, BatchNorm frozen": ([*SLOW, *STILL], True),
    "the same, BatchNorm frozen, EMA": ([*SLOW, *STILL, "--ema-decay", "0.98"], True),
}

REGRESSION_FILE = "regression.json"
SQUASHED = {"crop_mode": "squash", "crop_pct": 1.0}
FEATURES = {
    "160 px, the whole photo squashed to a square": (160, SQUASHED),
    "160 px, the middle as timm's data config cuts it": (160, {}),
    "224 px, squashed": (224, SQUASHED),
    "224 px, the middle": (224, {}),
}


@dataclass(frozen=True)
class Options:
    """Compare ways of fine-tuning: python -m benchmarks.finetuning --data photos/train.csv --weights FILE"""

    data: str  # train table of photos
    weights: str  # timm's weights of tf_efficientnet_lite0
    folds: str = "folds.csv"  # its folds file
    runs_dir: str = "runs"  # folder for the runs, one for each way and seed
    seeds: int = 3  # runs of each way
    features: bool = False  # only a logistic regression on features, of each preparation in FEATURES, over all folds


def main() -> None:
    options = parse(Options)
    if options.features:
        print(markdown(feature_table(options)))
        return
    places = ["--data", options.data, "--folds", options.folds, "--runs-dir", options.runs_dir]
    for seed in range(options.seeds):  # a whole round of ways comes before the next
        for number, (name, (flags, pretrained)) in enumerate(WAYS.items()):
            run = name_of(number, seed)
            if is_finished(Path(options.runs_dir) / run / "fold0"):
                continue
            start = ["--weights", options.weights] if pretrained else []
            own = ["--run", run, "--seed", str(seed), *start, *flags]
            run_jobs([Job(f"{name}, seed {seed}", ("train_fold.py", *places, *SETTINGS, *own))], [LocalSlot()])
    if not (Path(options.runs_dir) / REGRESSION_FILE).is_file():
        write_json(Path(options.runs_dir) / REGRESSION_FILE, regression_on_features(options, SIDE, {}, [0]))
    path = Path(__file__).with_suffix(".csv")
    table = way_table(Path(options.runs_dir), options.seeds)
    write_file(path, table.to_csv(index=False))
    print(f"{path}\n{markdown(table)}")


def markdown(table: pd.DataFrame) -> str:
    """A table as a page shows it."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def regression_on_features(options: Options, side: int, crops: dict, numbers: list[int]) -> dict[str, float]:
    """A logistic regression on what the last layer of the loaded model is given, for each of some folds.

    Returns accuracy and log loss over the rows of these folds, their number, and seconds. Every regression has the same
    strength, C = 0.01 on standardised features.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    table = read_train_table(options.data)
    folds = match_folds(read_folds(Path(options.folds)), table)
    prepare = photo_preparation(MODEL, crops, 3, side)
    cache = photo_cache()
    inputs = open_inputs(table, prepare, torch.device("cpu"), Reading(cache, folds.row_shas))
    model = create_model(MODEL, {}, len(folds.output_names), 3, side)
    normalise = load_weights(model, MODEL, Path(options.weights), folds.output_names, 3).normalise
    model = model.eval().to(memory_format=torch.channels_last)
    features = []
    with torch.inference_mode():
        for raw in inputs.batches(torch.arange(len(table.ids)).split(64), torch.device("cpu")):
            seen = normalise(inputs.seen(raw, side))
            features.append(model.forward_head(model.forward_features(seen), pre_logits=True))
    features, targets = torch.cat(features).numpy(), folds.targets
    rows, shares = np.isin(folds.fold, numbers), np.zeros((len(targets), len(folds.output_names)))
    for number in numbers:
        held_out = folds.fold == number
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        shares[held_out] = regression.fit(features[~held_out], targets[~held_out]).predict_proba(features[held_out])
    found = folds.task.score(Outputs(np.log(shares[rows] + 1e-12)), targets[rows], folds.output_names)
    return {**found, "rows": int(rows.sum()), "seconds": time.perf_counter() - started}


def feature_table(options: Options) -> pd.DataFrame:
    """What a logistic regression makes of the features of each preparation in FEATURES, over all five folds."""
    rows = []
    for name, (side, crops) in FEATURES.items():
        found = regression_on_features(options, side, crops, list(range(5)))
        errors = round((1 - found["accuracy"]) * found["rows"])
        rows.append({"features of": name, "OOF": f"{found['accuracy']:.2%}", "errors": errors})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def name_of(number: int, seed: int) -> str:
    """The run of a way's seed."""
    return f"way{number}_seed{seed}"


def way_table(runs_dir: Path, seeds: int) -> pd.DataFrame:
    """A row for each way with a finished seed: accuracy in percent, its sd over seeds, log loss."""
    rows = []
    found_of = {}
    for number, name in enumerate(WAYS):
        folders = [runs_dir / name_of(number, seed) / "fold0" for seed in range(seeds)]
        found_of[name] = [read_metrics(folder) for folder in folders if is_finished(folder)]
    found_of["the bar: logistic regression on features computed once"] = [read_json(runs_dir / REGRESSION_FILE)]
    for name, found in found_of.items():
        if not found:
            continue
        accuracy, nll = (np.array([each[key] for each in found]) for key in ("accuracy", "nll"))
        spread = f"{100 * accuracy.std(ddof=1):.2f}" if len(found) > 1 else ""
        row = {"way": name, "seeds": len(found), "accuracy %": f"{100 * accuracy.mean():.2f}", "sd": spread}
        rows.append(row | {"log loss": f"{nll.mean():.3f}"})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run_script(main)
