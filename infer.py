"""Predict the test rows with the K fold models of a run and write the submission; no network is needed.

    python infer.py                                             # every finished run, the embedded digits
    python infer.py --test test.csv.gz --sample sample_submission.csv --runs digits_fast --tta digits
    python infer.py --data train.csv.gz --score-tta             # what each view would have done on OOF

Everything but the test table comes from the runs' own files. Each model and each view predicts each row, their
probabilities are averaged, and runs/<run>/ gets test.npz and submission.csv.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.cli import parse
from common.config import differences
from common.errors import UserError, run_script, warn
from common.metrics import describe, log_mean_probability, score, targets_of
from common.predictions import Predictions, read_predictions, write_predictions
from common.runs import (
    MODEL_FILE,
    OOF_FILE,
    SUBMISSION_FILE,
    TEST_FILE,
    finished_folds,
    finished_runs,
    fold_folder,
)
from common.splits import Folds, match_folds, read_folds
from common.submission import read_form, write_submission
from common.system import cpu_count, keep_freed_memory
from common.tables import Table, read_test_table, read_train_table


@dataclass(frozen=True)
class Options:
    """Predict the test rows with the fold models of a run: python infer.py --test test.csv.gz"""

    test: str = ""  # test table, or a folder of images (default: the embedded digits' held-out part)
    sample: str = ""  # sample submission whose columns, ids and order the submission takes
    runs_dir: str = "runs"  # folder that holds every run
    runs: tuple[str, ...] = ()  # names of the runs (default: every one that has all its folds)
    out_dir: str = ""  # folder for <run>/test.npz and submission.csv (default: runs_dir, which may be read-only)
    fold: Literal["all", "full"] = "all"  # all: the mean of the fold models; full: the model of every row
    tta: Literal["none", "digits"] = "none"  # test-time augmentation; never flips for digits
    score_tta: bool = False  # print what each view of --tta digits would have done on OOF, and write nothing
    data: str = "digits"  # train table, which --score-tta predicts
    folds: str = "folds.csv"  # folds file, for --score-tta
    threads: int = 0  # CPU threads (0: all cores)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv)
    if options.score_tta and (options.test or options.sample or options.fold == "full" or options.tta != "none"):
        what = "predicts the training rows that each fold model has not seen"
        raise UserError("--score-tta", what, "leave out --test, --sample, --tta and --fold full")
    runs_dir = Path(options.runs_dir)
    runs = list(options.runs) or finished_runs(runs_dir, options.fold)
    folders = {run: finished_folds(runs_dir / run, options.fold) for run in runs}
    if options.score_tta:
        table = read_train_table(options.data)
        folds = match_folds(read_folds(Path(options.folds)), table)
    else:
        table = read_test_table(options.test, options.data)

    keep_freed_memory()
    import torch

    torch.set_num_threads(options.threads or cpu_count())
    for run in runs:
        models = read_models(folders[run])
        if options.score_tta:
            print_view_scores(run, models, table, folds)
        else:
            predict_test(runs_dir / run, Path(options.out_dir or runs_dir) / run, models, table, options)


# ---- the models of a run


def read_models(fold_folders: Sequence[Path]) -> list[tuple[dict, dict[str, Any]]]:
    """Weights and facts of each fold's model, checked to be the folds of one run.

    Raises:
        UserError: a damaged file, a model in another fold's folder, or folds that were trained differently.
    """
    from common.checkpoint import load_tensors

    paths = [folder / MODEL_FILE for folder in fold_folders]
    models = [load_tensors(path) for path in paths]
    shared = [
        facts["settings"] | {name: facts[name] for name in ("folds_fingerprint", "fold_count", "classes")}
        for _, facts in models
    ]
    for path, (_, facts), settings in zip(paths, models, shared, strict=True):
        if path.parent != fold_folder(path.parents[1], facts["fold"]):
            raise UserError(str(path), f"is the model of fold {facts['fold']}", "put every model into its own folder")
        if changed := differences(shared[0], settings):
            what = f"was trained otherwise than {paths[0]} ({', '.join(changed)})"
            raise UserError(str(path), what, "train all folds of a run alike")
    return models


# ---- predicting


def predict_with_each(models, table: Table, rows_of_model: Sequence[np.ndarray], tta: str) -> list[np.ndarray]:
    """Logits of each model for its rows of the table: arrays (views, rows, classes), float32."""
    import torch
    from accelerate import Accelerator

    from common.data import Normalise, image_shape, load_images
    from common.engine import evaluation_batch, predict
    from common.hardware import usable_precision
    from common.training import create_saved
    from common.tta import TTA

    facts = models[0][1]
    settings = facts["settings"]
    if image_shape(table) != tuple(facts["image_shape"]):
        what = f"has images of {image_shape(table)} (channels, side), the models were trained on {facts['image_shape']}"
        raise UserError(table.source, what, "take the test table that belongs to the train table")
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    precision = usable_precision(settings["mixed_precision"])
    at_once = evaluation_batch(settings["batch_size"] // (settings["accumulate"] * facts["processes"]))
    images = load_images(table, settings["channels"], settings["img_size"]).to(accelerator.device)
    model = create_saved(facts).to(accelerator.device, memory_format=getattr(torch, facts["memory_format"]))
    outputs = []
    for (tensors, facts), rows in zip(models, rows_of_model, strict=True):
        model.load_state_dict(tensors)
        normalise = Normalise(**facts["normalise"])
        rows = torch.from_numpy(rows).to(accelerator.device)
        outputs.append(predict(accelerator, model, images, rows, normalise, TTA[tta], precision, at_once))
    return outputs


def predict_test(run_folder: Path, out_folder: Path, models, table: Table, options: Options) -> None:
    """Average models and views over the test rows, then write test.npz and the checked submission."""
    from common.tta import TTA

    started = time.perf_counter()
    classes = models[0][1]["classes"]
    if options.sample:
        read_form(options.sample, table.ids, classes)  # a wrong sample is said before the work
    labels = table.labels
    if unknown := sorted(set(labels) - set(classes)):
        warn(f"{table.source}: its label column is not scored, {unknown[0]} is no class of the models")
        labels = labels[:0]
    everything = np.arange(len(table.ids))
    outputs = predict_with_each(models, table, [everything] * len(models), options.tta)
    weights = [view.weight for view in TTA[options.tta]] * len(models)
    test = Predictions(
        ids=table.ids,
        logits=log_mean_probability(np.concatenate(outputs), weights),
        classes=classes,
        labels=labels,
        id_name=table.id_name,
        label_name=table.label_name,
    )
    write_predictions(out_folder / TEST_FILE, test)
    write_submission(out_folder / SUBMISSION_FILE, test, options.sample, oof_predicted(run_folder, len(models)))
    seconds = time.perf_counter() - started
    print(
        f"{run_folder.name}: {len(table.ids):,} rows, {len(models)} models x {len(TTA[options.tta])} views, "
        f"{seconds:.1f} s, {len(table.ids) / seconds:,.0f} rows/s"
    )
    if len(test.labels):
        print(f"test {describe(score(test.logits, test.targets))}")
    print(f"submission: {out_folder / SUBMISSION_FILE}")


def oof_predicted(run_folder: Path, fold_count: int) -> np.ndarray:
    """The classes that the run predicts out of fold, as far as its files are at hand (text)."""
    paths = [run_folder / f"fold{k}" / OOF_FILE for k in range(fold_count)]
    return np.concatenate([read_predictions(path).predicted for path in paths if path.exists()] or [np.empty(0)])


def print_view_scores(run: str, models, table: Table, folds: Folds) -> None:
    """What each view alone, and all of them together, would have scored on the rows each model has not seen."""
    from common.tta import TTA

    fingerprint = models[0][1]["folds_fingerprint"]
    if fingerprint != folds.fingerprint:
        what = f"{run} was trained with other folds ({fingerprint[:16]}, here {folds.fingerprint[:16]})"
        raise UserError("--folds", what, "name the folds file that it was trained with")
    rows_of_model = [np.flatnonzero(folds.fold == k) for k in range(folds.count)]
    outputs = np.concatenate(predict_with_each(models, table, rows_of_model, "digits"), axis=1)
    targets = targets_of(folds.labels, folds.classes)[np.concatenate(rows_of_model)]
    views = TTA["digits"]
    weights = [view.weight for view in views]
    results = {view.name: score(logits, targets) for view, logits in zip(views, outputs, strict=True)}
    results["all, weighted"] = score(log_mean_probability(outputs, weights), targets)
    print(f"{run}: {len(targets):,} rows out of fold, each predicted by the model that has not seen it")
    print(f"{'view':<14} {'weight':>7} {'accuracy':>9} {'errors':>7} {'against identity':>17} {'log loss':>9}")
    for (name, result), weight in zip(results.items(), [*weights, sum(weights)], strict=True):
        gained = result["errors"] - results["identity"]["errors"]
        print(
            f"{name:<14} {weight:>7.4f} {result['accuracy']:>9.3%} {result['errors']:>7} {gained:>+17} "
            f"{result['nll']:>9.5f}"
        )


if __name__ == "__main__":
    run_script(main)
