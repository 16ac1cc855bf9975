"""What each ingredient of the digit recipes is worth: one change at a time, several seeds, on half of the rows.

    python folds.py --data train.csv.gz --k 2 --seed 7 --folds halves.csv
    python -m benchmarks.digits --data train.csv.gz --folds halves.csv --runs-dir runs --seeds 2

Each line of STUDY is the base with one change, trained like any run by train_fold.py on the one half and scored on the
other, one process with one thread per core: 21,000 rows tell more than the 8,400 of a fifth. Its errors are compared
with the base's of the same seeds, row by row; a row counts once, however many seeds change it. So is its log loss,
after a temperature that other rows chose. What was searched on chooses and does not report: a recipe's score is that
of its five folds, with seeds that no search has seen. The same command again goes on where it was stopped. Writes
benchmarks/digits.csv, and what the mean of several of the nets makes, benchmarks/digits_members.csv.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import write_file
from common.base.system import cpu_count
from common.jobs.process import Job
from common.jobs.runner import LocalSlot, run_jobs
from common.runs.layout import OOF_FILE, fold_folder, is_finished, read_metrics
from common.runs.predictions import Predictions, read_predictions
from common.score.calibration import PARTS, cross_fitted
from common.score.logits import Outputs, paired_difference
from common.score.significance import compare

REPORT = Path(__file__).with_suffix(".csv")
FIRST_SEED = 20  # recipes are reported with 0, 1, 2
# The base is a net of its own, cheaper than recipes/digits_best.yaml's and trained for half as many steps.
BASE = ("--fold", "0", "--threads", "1", "--channels-last", "yes", "--mixed-precision", "bf16", "--epochs", "12")
BASE += ("--batch-size", "128", "--opt", "muon", "--lr", "8e-3")
VGG = ("--model-args", "widths=(32,64,128)", "depths=(2,2,2)", "first_kernel=3")
STUDY = {
    "base": VGG,
    "wider (48, 96, 192)": ("--model-args", "widths=(48,96,192)", "depths=(2,2,2)", "first_kernel=3"),
    "deeper (2, 3, 3)": ("--model-args", "widths=(32,64,128)", "depths=(2,3,3)", "first_kernel=3"),
    "digit_cnn (40, 80, 160)": ("--model-args", "widths=(40,80,160)"),
    "digit_cnn (40, 80, 160), elastic 0.02": ("--model-args", "widths=(40,80,160)", "--augment-args", "elastic=0.02"),
    "elastic 0.03": (*VGG, "--augment-args", "elastic=0.03"),
    "rotation 15, scale 0.15, shear 8": (*VGG, "--augment-args", "rotation=15", "scale=0.15", "shear=8"),
    "mixup 0.2": (*VGG, "--augment-args", "mixup=0.2"),
    "no augmentation": (*VGG, "--augment", "none"),
    "no shift": (*VGG, "--augment-args", "shift=0"),
    "dropout 0.4": (*VGG, "drop_rate=0.4"),
    "no smoothing": (*VGG, "--label-smoothing", "0"),
    "smoothing 0.2": (*VGG, "--label-smoothing", "0.2"),
    "no weight decay": (*VGG, "--weight-decay", "0"),
    "EMA 0.998, rate falls to a fifth": (*VGG, "--ema-decay", "0.998", "--schedule-args", "min_lr_ratio=0.2"),
    "AdamW, lr 4e-3": (*VGG, "--opt", "adamw", "--lr", "4e-3"),
    "lr 4e-3": (*VGG, "--lr", "4e-3"),
    "lr 1.6e-2": (*VGG, "--lr", "1.6e-2"),
    "batch size 256, lr 1.1e-2": (*VGG, "--batch-size", "256", "--lr", "1.1e-2"),
    "6 epochs": (*VGG, "--epochs", "6"),
    "24 epochs": (*VGG, "--epochs", "24"),
}


@dataclass(frozen=True)
class Options:
    """Train the study's settings on one half: python -m benchmarks.digits --data train.csv.gz --folds halves.csv"""

    data: str = "train.csv.gz"  # train table of Digit Recognizer
    folds: str = "halves.csv"  # its folds file, of two folds
    runs_dir: str = "runs"  # folder for the runs
    seeds: int = 2  # of each setting
    only: tuple[str, ...] = ()  # names of settings to train (default: all)


def main() -> None:
    options = parse(Options)
    run_jobs(jobs(options), [LocalSlot()] * cpu_count(), lambda job, exit_code: print(f"{job.name}: exit {exit_code}"))
    found = {name: dict(results(Path(options.runs_dir), name)) for name in STUDY}
    for path, table in ((REPORT, study_table(found)), (REPORT.with_stem("digits_members"), members_table(found))):
        write_file(path, table.to_csv(index=False, float_format="%.6g"))
        print(f"{path}\n{table.to_string(index=False)}")


def jobs(options: Options) -> Iterator[Job]:
    """Every run that is not finished, seed by seed, so that a study cut short has all settings."""
    places = ("--data", options.data, "--folds", options.folds, "--runs-dir", options.runs_dir)
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        for name in options.only or STUDY:
            run = run_name(name, seed)
            if not is_finished(fold_folder(Path(options.runs_dir) / run, "0")):
                own = ("--run", run, "--seed", str(seed))
                yield Job(run, ("train_fold.py", *places, *BASE, *STUDY[name], *own))


def run_name(setting: str, seed: int) -> str:
    """The run's folder: letters, digits and the seed."""
    return "-".join("".join(each if each.isalnum() or each == "." else " " for each in setting).split() + [str(seed)])


def results(runs_dir: Path, name: str) -> Iterator[tuple[int, tuple[Predictions, float]]]:
    """Of each finished seed, the predictions of the rows held out, and the minutes that its training took."""
    for folder in runs_dir.glob(f"{run_name(name, 0)[:-1]}[0-9]*/fold0"):
        seed = folder.parent.name.rpartition("-")[2]
        if folder.parent.name == run_name(name, seed) and is_finished(folder):
            yield int(seed), (read_predictions(folder / OOF_FILE), read_metrics(folder)["seconds"] / 60)


def study_table(found: dict[str, dict[int, tuple[Predictions, float]]]) -> pd.DataFrame:
    """A row per setting: seeds trained, errors and their deviation, minutes, and the comparison with the base."""
    rows = []
    for name, runs in found.items():
        if not runs:
            continue
        wrong = [int((oof.predicted != oof.labels).sum()) for oof, _ in runs.values()]
        row = {"setting": name, "seeds": len(runs), "n": sum(len(oof.ids) for oof, _ in runs.values())}
        row |= {"accuracy": 1 - sum(wrong) / row["n"], "errors": np.mean(wrong)}
        row |= {"sd": np.std(wrong, ddof=1) if len(wrong) > 1 else np.nan}
        row["minutes"] = np.mean([minutes for _, minutes in runs.values()])
        shared = sorted(runs.keys() & found["base"].keys())
        if name != "base" and shared:
            ours, base = ([each[seed][0] for seed in shared] for each in (runs, found["base"]))
            wrong_rows = [np.concatenate([oof.predicted != oof.labels for oof in each]) for each in (base, ours)]
            against = compare(*wrong_rows, np.tile(np.arange(len(ours[0].ids)), len(shared)))
            row |= {"fewer errors": against.better / len(shared), "p": against.p}
            difference, error = paired_difference(tempered_losses(ours), tempered_losses(base))
            row |= {"log loss against the base": difference, "standard error": error}
        rows.append(row)
    return pd.DataFrame(rows)


def tempered_losses(runs: list[Predictions]) -> np.ndarray:
    """Each row's log loss, the mean over runs, after a temperature that other rows chose."""
    part = np.arange(len(runs[0].ids)) % PARTS
    tempered = [cross_fitted(oof.outputs, oof.targets, part, oof.task) for oof in runs]
    return np.mean([oof.task.loss(each, oof.targets) for oof, each in zip(runs, tempered, strict=True)], axis=0)


def members_table(found: dict[str, dict[int, tuple[Predictions, float]]]) -> pd.DataFrame:
    """Errors of the mean of k nets, over all sets of k: of the base's seeds, and of all five shapes of net."""
    shapes = list(STUDY)[:5]
    rows = []
    for what, names in (("seeds of the base", shapes[:1]), ("shapes and seeds", shapes)):
        nets = [oof for name in names for oof, _ in found[name].values()]
        for count in range(1, len(nets) + 1):
            means = []
            for some in combinations(nets, count):
                task, outputs = some[0].task, Outputs(np.stack([oof.logits for oof in some]))
                means.append(task.cost(task.average(outputs), some[0].targets).sum().item())
            row = {"nets of": what, "in the mean": count, "sets": len(means), "errors": np.mean(means)}
            rows.append(row | {"fewest": min(means), "most": max(means), "n": len(nets[0].ids)})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run_script(main)
