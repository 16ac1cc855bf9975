"""Predict the test rows with the K fold models of a run and write the submission; no network is needed.

    python infer.py                                             # every finished run, the embedded digits
    python infer.py --data train.csv.gz --test test.csv.gz --sample sample_submission.csv --tta auto
    python infer.py --data train.csv.gz --score-tta --views digits flips    # what each view would have done on OOF

Each model and each view predicts each row, their probabilities are averaged, and runs/<run>/ gets test.npz,
submission.csv and inference.json. Test-time augmentation (--tta) also predicts the training rows out of fold under the
same views, oof_tta.npz, so that a blend learns from what it will be applied to.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.base.cli import parse
from common.base.errors import UserError, run_script, warn
from common.base.files import check_folder, write_json
from common.base.system import cpu_count, keep_freed_memory
from common.data.cache import DEFAULT_GB, Cache
from common.data.folds import Folds, match_folds, read_folds
from common.data.tables import Table, read_test_table, read_train_table
from common.data.views import TTA, View
from common.runs.config import differences
from common.runs.layout import (
    INFERENCE_FILE,
    MODEL_FILE,
    OOF_FILE,
    SUBMISSION_FILE,
    TEST_FILE,
    TTA_OOF_FILE,
    finished_folds,
    finished_runs,
    fold_folder,
    run_names,
)
from common.runs.predictions import Predictions, check_store, read_predictions, write_predictions
from common.runs.submission import read_form, write_submission
from common.score.calibration import PARTS
from common.score.logits import blocks, log_mean_probability
from common.score.metrics import describe
from common.score.view_choice import choose_views, gain_text, score_views, view_table

Models = list[tuple[dict, dict[str, Any]]]  # weights and facts of each
AT_ONCE = 100_000_000  # logits held at a time (0.4 GB)


@dataclass(frozen=True)
class Options:
    """Predict the test rows with the fold models of a run: python infer.py --test test.csv.gz"""

    test: str = ""  # test table, or a folder of images (default: the embedded digits' held-out part)
    sample: str = ""  # sample submission whose columns, ids and order the submission takes
    runs_dir: str = "runs"  # folder that holds every run
    runs: tuple[str, ...] = ()  # names of the runs (default: every one that has all its folds)
    out_dir: str = ""  # folder for each run's output (default: runs_dir; set it where that is read-only)
    fold: Literal["all", "full"] = "all"  # all: the mean of the fold models; full: the model trained on every row
    tta: str = "none"  # test-time augmentation: none, auto (the views that help on OOF), or a preset's fixed weights
    views: tuple[str, ...] = ("digits",)  # presets whose views --tta auto and --score-tta try; flips are not for digits
    score_tta: bool = False  # print what each of --views would have done on OOF, and write nothing
    store: str = "float32"  # format of test.npz: float32, float16 (half as large), top64 (64 likeliest classes per row)
    data: str = "digits"  # train table, for --tta and --score-tta
    folds: str = "folds.csv"  # folds file, for --tta and --score-tta
    threads: int = 0  # CPU threads (0: all cores)
    cache_gb: float = DEFAULT_GB  # GB of memory for decoded photos (0, or too few: decoded again for each model)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv)
    check_options(options)
    runs_dir = Path(options.runs_dir)
    runs = run_names(runs_dir, options.runs) or finished_runs(runs_dir, options.fold)
    for run in runs:
        finished_folds(runs_dir / run, options.fold)
        if not options.score_tta:
            check_folder(Path(options.out_dir or runs_dir) / run)
    if options.score_tta or options.tta != "none":
        train = read_train_table(options.data)
        folds = match_folds(read_folds(Path(options.folds)), train)
        for run in runs:
            finished_folds(runs_dir / run)  # views are scored by the fold models, even where --fold full predicts
    test = None if options.score_tta else read_test_table(options.test, options.data, options.sample)

    keep_freed_memory()
    import torch

    torch.set_num_threads(options.threads or cpu_count())
    for run in runs:
        out_folder = Path(options.out_dir or runs_dir) / run
        models = read_models(finished_folds(runs_dir / run, options.fold))
        if options.sample:
            read_form(options.sample, test.ids, models[0][1]["classes"])  # a wrong sample is said before the work
        views, scores = TTA.get(options.tta, []), []
        if options.score_tta or options.tta != "none":
            fold_models = models if options.fold == "all" else read_models(finished_folds(runs_dir / run))
            views, scores, oof = score_out_of_fold(run, fold_models, train, folds, options)
            if not options.score_tta:  # before test.npz: a blend refuses the two where their views differ
                write_predictions(out_folder / TTA_OOF_FILE, oof, options.store)
        if not options.score_tta:
            predict_test(runs_dir / run, out_folder, models, test, views, scores, options)


def check_options(options: Options) -> None:
    """Raise UserError where a preset does not exist or options do not go together."""
    check_store(options.store)
    if options.score_tta and (options.test or options.sample or options.fold == "full" or options.tta != "none"):
        what = "predicts the training rows that each fold model has not seen"
        raise UserError("--score-tta", what, "leave out --test, --sample, --tta and --fold full")
    presets = [name for name in TTA if name != "none"]
    for flag, name, known in [("--tta", options.tta, ["none", "auto", *presets])] + [
        ("--views", name, presets) for name in options.views
    ]:
        if name not in known:
            raise UserError(flag, f"{name} is unknown", f"use one of: {', '.join(known)}")
    if options.views != Options.views and not options.score_tta and options.tta != "auto":
        raise UserError("--views", "has no effect without --tta auto or --score-tta", "leave it out")


# ---- the models of a run


def read_models(fold_folders: Sequence[Path]) -> Models:
    """Weights and facts of each fold's model, checked to be the folds of one run.

    Raises:
        UserError: a damaged file, a model in another fold's folder, or folds that were trained differently.
    """
    from common.runs.tensors import load_model

    paths = [folder / MODEL_FILE for folder in fold_folders]
    models = [load_model(path) for path in paths]
    shared = [
        facts["settings"] | {name: facts[name] for name in ("folds_fingerprint", "fold_count", "classes")}
        for _, facts in models
    ]
    for path, (_, facts), settings in zip(paths, models, shared, strict=True):
        if path.parent != fold_folder(path.parents[1], facts["fold"]):
            raise UserError(str(path), f"is the model of fold {facts['fold']}", "put each model in its own folder")
        if changed := differences(shared[0], settings):
            what = f"was trained with different settings from {paths[0]} ({', '.join(changed)})"
            raise UserError(str(path), what, "train all folds of a run with the same settings")
    return models


# ---- predicting


def predictor(
    models: Models, table: Table, views: Sequence[View], row_shas: Sequence[str], cache_gb: float
) -> Callable[[int, np.ndarray], np.ndarray]:
    """A function that predicts rows of the table: (number of a model, row numbers) -> logits float32 (views, rows,
    classes).

    ``row_shas`` (n) are what the table's photos must hash to (empty: not known); ``cache_gb`` of memory are for them.
    """
    import torch
    from accelerate import Accelerator

    from common.data.batches import Normalise
    from common.data.images import image_shape, read_images
    from common.model.networks import works_at
    from common.train.build import create_saved, saved_predictor, saved_preparation
    from common.train.loop import check_logits

    facts = models[0][1]
    settings = facts["settings"]
    if image_shape(table) != tuple(facts["image_shape"]):
        (channels, side), (its_channels, its_side) = image_shape(table), facts["image_shape"]
        what = (
            f"has {channels} x {side} x {side} images, but the models expect {its_channels} x {its_side} x {its_side}"
        )
        raise UserError(table.source, what, "name the test table that belongs to the train table with --test")
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    prepare = saved_preparation(facts)
    if prepare.side == prepare.stored and any(view.place != (0, 0) for view in views):
        what = "looks outside the middle of an image, but these models already see all of it"
        raise UserError("--tta", what, "leave out the five crops")
    images = read_images(table, prepare, accelerator.device, Cache(cache_gb), row_shas, torch.get_num_threads())
    predict = saved_predictor(facts, accelerator, images)
    model = create_saved(facts).to(accelerator.device, memory_format=getattr(torch, facts["memory_format"]))
    for side in {view.look(torch.zeros(1, 1, prepare.side, prepare.side)).shape[-1] for view in views}:
        if side != settings["img_size"] and not works_at(model, len(facts["classes"]), settings["channels"], side):
            what = f"{settings['model']}, built for {settings['img_size']} px, does not work at {side} px"
            raise UserError("--tta", what, "leave out the views of other sizes")

    def predict_rows(number: int, rows: np.ndarray) -> np.ndarray:
        tensors, facts = models[number]
        model.load_state_dict(tensors)
        logits = replace(predict, normalise=Normalise(**facts["normalise"]))(model, rows, views)
        check_logits(f"{facts['run']}, fold {facts['fold']}", logits, "train this fold again with a lower --lr")
        return logits

    return predict_rows


def predict_with_each(
    models: Models,
    table: Table,
    rows_of_model: Sequence[np.ndarray],
    views: Sequence[View],
    row_shas: Sequence[str] = (),
    cache_gb: float = Options.cache_gb,
) -> list[np.ndarray]:
    """Logits of each model for its rows of the table: arrays (views, rows, classes), float32; see :func:`predictor`."""
    predict_rows = predictor(models, table, views, row_shas, cache_gb)
    return [predict_rows(number, rows) for number, rows in enumerate(rows_of_model)]


def average_of_all(
    models: Models, table: Table, views: Sequence[View], cache_gb: float = Options.cache_gb
) -> np.ndarray:
    """The log of the mean probability of models and views, float32 (rows, classes).

    Some rows at a time by all models, so that what one model says of all rows is never kept.
    """
    predict_rows, rows = predictor(models, table, views, (), cache_gb), len(table.ids)
    classes = len(models[0][1]["classes"])
    weights = [view.weight for view in views] * len(models)
    averaged = np.empty((rows, classes), dtype=np.float32)
    for some in blocks(rows, classes * len(weights), AT_ONCE):
        numbers = np.arange(rows)[some]
        outputs = np.concatenate([predict_rows(number, numbers) for number in range(len(models))])
        averaged[some] = log_mean_probability(outputs, weights)
    return averaged


def predict_test(
    run_folder: Path,
    out_folder: Path,
    models: Models,
    table: Table,
    views: Sequence[View],
    scores: Sequence[dict[str, Any]],
    options: Options,
) -> None:
    """Average models and views over the test rows, then write test.npz and the checked submission."""
    started = time.perf_counter()
    classes = models[0][1]["classes"]
    labels = table.labels
    if unknown := sorted(set(labels) - set(classes)):
        warn(f"{table.source}: its label column is not scored: {unknown[0]} is not a class of the models")
        labels = labels[:0]
    test = Predictions(
        ids=table.ids,
        logits=average_of_all(models, table, views, options.cache_gb),
        classes=classes,
        labels=labels,
        id_name=table.id_name,
        label_name=table.label_name,
        source=source_of(models, views, options),
    )
    seconds = time.perf_counter() - started
    write_predictions(out_folder / TEST_FILE, test, options.store)
    write_submission(out_folder / SUBMISSION_FILE, test, options.sample, oof_predicted(run_folder, len(models)))
    facts = {"rows": len(table.ids), "models": len(models), "tta": options.tta, "views": scores}
    facts |= {"seconds": seconds, "seconds_per_1000_rows": 1000 * seconds / len(table.ids)}
    write_json(out_folder / INFERENCE_FILE, facts)
    print(
        f"{run_folder.name}: {len(table.ids):,} rows, {len(models)} models x {len(views)} views, "
        f"{seconds:.1f} s, {len(table.ids) / seconds:,.0f} rows/s"
    )
    if len(test.labels):
        print(f"test {describe(test.score())}")
    print(f"submission: {out_folder / SUBMISSION_FILE}")


def source_of(models: Models, views: Sequence[View], options: Options) -> dict[str, Any]:
    """What predictions are made of, as their file says: ensemble.py compares it with what is there."""
    folders = ["full" if facts["fold"] == "full" else fold_folder(Path(), facts["fold"]).name for _, facts in models]
    return {
        "fold": "full" if "full" in folders else "all",
        "tta": options.tta,
        "views": {view.name: view.weight for view in views},
        "models": {folder: facts["sha256"] for folder, (_, facts) in zip(folders, models, strict=True)},
    }


def oof_predicted(run_folder: Path, fold_count: int) -> np.ndarray:
    """The classes that the run predicts out of fold, as far as its files are at hand (text)."""
    paths = [run_folder / f"fold{k}" / OOF_FILE for k in range(fold_count)]
    return np.concatenate([read_predictions(path).predicted for path in paths if path.exists()] or [np.empty(0)])


# ---- test-time augmentation


def score_out_of_fold(
    run: str, models: Models, table: Table, folds: Folds, options: Options
) -> tuple[list[View], list[dict[str, Any]], Predictions]:
    """The views to use with their weights, what inference.json says of each, and the OOF predictions under them.

    Where the views are chosen (--tta auto, --score-tta), every fold's rows are averaged with the views and weights that
    the other folds chose.
    """
    fingerprint = models[0][1]["folds_fingerprint"]
    if fingerprint != folds.fingerprint:
        what = f"{run} was trained with different folds ({fingerprint[:16]}, here {folds.fingerprint[:16]})"
        raise UserError("--folds", what, "name the folds file that it was trained with")
    chosen = options.tta not in TTA or options.score_tta
    presets = options.views if chosen else (options.tta,)
    views = list({view.name: view for preset in presets for view in TTA[preset]}.values())
    rows_of_model = [np.flatnonzero(folds.fold == k) for k in range(folds.count)]
    rows = np.concatenate(rows_of_model)
    if len(rows) * len(folds.classes) * len(views) > 5 * AT_ONCE:
        what = f"would hold {len(views)} views of {len(rows):,} rows and {len(folds.classes):,} classes in memory"
        raise UserError("--tta", what, "predict without test-time augmentation, or name a preset with fewer views")
    outputs = predict_with_each(models, table, rows_of_model, views, folds.row_shas, options.cache_gb)
    logits = np.concatenate(outputs, axis=1)
    targets = folds.targets[rows]
    # Two folds leave too little to choose views and temperatures apart; no net has seen these rows, so any parts do.
    part = folds.fold[rows] if folds.count > 2 else np.random.default_rng(0).permutation(len(rows)) % PARTS

    scores = score_views(logits, targets, part)
    if chosen:
        weights, averaged = choose_views(logits, targets, part)
    else:
        weights = np.array([view.weight for view in views])
        averaged = log_mean_probability(logits, weights)
    print(f"{run}: {len(rows):,} rows out of fold, each predicted by the model that has not seen it")
    print(view_table([view.name for view in views], scores, weights))
    print(gain_text(logits[0], averaged, targets, part, "views and weights by the other folds" if chosen else "fixed"))

    known = [
        {"name": view.name, "weight": weight, "helps": found.helps, **asdict(found)}
        for view, weight, found in zip(views, weights.tolist(), scores, strict=True)
    ]
    used = [replace(view, weight=weight) for view, weight in zip(views, weights.tolist(), strict=True) if weight > 0]
    labels, fold = folds.labels[rows], folds.fold[rows]
    oof = Predictions(folds.ids[rows], averaged, folds.classes, labels, fold, source=source_of(models, used, options))
    return used, known, oof


if __name__ == "__main__":
    run_script(main)
