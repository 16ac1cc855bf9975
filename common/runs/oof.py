"""The out-of-fold predictions of a run: what its folds' files say, joined by id and checked against the folds."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.base.errors import UserError, warn
from common.base.words import names_in_short, rows_named
from common.data.folds import Folds
from common.runs.layout import MODEL_FILE, OOF_FILE, TTA_OOF_FILE, fold_folder, model_sha256, read_metrics
from common.runs.predictions import Predictions, read_predictions, rows_in_order, short_form
from common.score.answers import Answers, joined_answers
from common.score.metrics import METRICS, score_of, shown_metrics


def oof_predictions(
    folds: Folds, rows: np.ndarray, logits: np.ndarray, source: dict[str, Any] | None = None
) -> Predictions:
    """``logits``, float32 (m, outputs), as predictions of the ``rows``, int64 (m), that folds held out."""
    labels, fold = folds.labels[rows], folds.fold[rows]
    return Predictions(folds.ids[rows], logits, folds.output_names, labels, fold, source=source or {}, task=folds.task)


def join_oof(run_folder: str | Path, folds: Folds, kept: int = 0) -> Predictions:
    """The run's predictions of every row that a fold holds out, in the order of ``folds``.

    With ``kept`` each fold is brought to the short form of so many classes as it is read, so that the matrix of all
    rows and outputs is never there.

    Raises:
        UserError: a fold that is missing or was trained with other folds; a row that is not there exactly once;
            other labels or outputs than those of ``folds``.
    """
    parts = [short_form(part, kept) if kept else part for part in _oof_parts(Path(run_folder), folds)]
    shortest = min((part.columns.shape[1] for part in parts if part.is_short), default=0)
    rows = folds.fold >= 0
    held_out_by = folds.fold[rows]
    logits = np.empty((len(held_out_by), shortest + 1 if shortest else len(folds.output_names)), dtype=np.float32)
    columns = np.empty((len(held_out_by) if shortest else 0, shortest), dtype=np.int32)
    for k in range(folds.count):
        part = short_form(parts.pop(0), shortest or len(folds.output_names))  # popped: freed as soon as it is copied
        logits[held_out_by == k] = part.logits
        if shortest:
            columns[held_out_by == k] = part.columns
    told = {"ids": folds.ids[rows], "labels": folds.labels[rows], "fold": held_out_by}
    return replace(part, logits=logits, columns=columns, **told)


def alike_in(folds: Folds, rows: np.ndarray) -> tuple[np.ndarray, str]:
    """Equal texts (m) for those of ``rows`` that are not independent: of one group, of one time, or else of one image.

    The second is the word for what they share, "" for images.
    """
    for alike, shared in ((folds.groups, "groups"), (folds.times, "times")):
        if alike.size:
            return alike[rows].astype(str), shared
    return folds.row_shas[rows].astype(str), ""


def units_of(folds: Folds) -> np.ndarray:
    """Equal numbers, int64 (m), for held-out rows that are not independent."""
    return np.unique(alike_in(folds, folds.fold >= 0)[0], return_inverse=True)[1]


def oof_score(run_folder: Path, folds: Folds, metric: str = "") -> dict[str, float | int]:
    """n and every metric of the run's OOF predictions, which are scored once, together; some only where they are asked
    for as ``metric``.

    Raises:
        UserError: as :func:`join_oof` does.
    """
    return score_of(oof_answers(run_folder, folds, metric), folds.task.metrics, metric)


def oof_answers(run_folder: Path, folds: Folds, metric: str = "") -> Answers:
    """The answers of the run's OOF predictions, fold after fold; unless ``metric`` looks at all probabilities, one fold
    is held at a time.

    Raises:
        UserError: as :func:`join_oof` does.
    """
    parts = (part.answers() for part in _oof_parts(run_folder, folds))
    if not any(METRICS[name].of_ranks for name in shown_metrics(folds.task.metrics, metric)):
        parts = (part.without_outputs() for part in parts)
    return joined_answers(list(parts))


def _oof_parts(run_folder: Path, folds: Folds) -> Iterator[Predictions]:
    """The predictions of each fold's rows, in the order of ``folds``, one fold after another."""
    for k in range(folds.count):
        fold_path = fold_folder(run_folder, k)
        theirs = read_metrics(fold_path)["folds_fingerprint"]
        if theirs != folds.fingerprint:
            what = f"was trained with different folds (fingerprint {theirs[:16]}, here {folds.fingerprint[:16]})"
            raise UserError(str(fold_path), what, "name the folds file it was trained with, or leave this run out")
        yield _rows_of_folds(fold_path / OOF_FILE, folds, folds.fold == k, "train this fold again")


def join_oof_like_test(
    run_folder: Path, folds: Folds, test: Predictions | None, kept: int = 0, inferred: Path | None = None
) -> Predictions:
    """The run's OOF predictions under the views that ``test``, its test.npz, was predicted with; None: no views.

    With ``kept`` they are in the short form of so many classes. ``inferred`` is the folder that infer.py wrote into
    (default: the run's own).

    Raises:
        UserError: as :func:`join_oof` does; no OOF predictions with these views.
    """
    oof = join_oof(run_folder, folds, kept)  # always: its checks are those of the folds
    if test is None or test.source["tta"] == "none":
        return oof
    path = (inferred or run_folder) / TTA_OOF_FILE
    remedy = f"run: python infer.py --tta {test.source['tta']} --runs {run_folder.name}, with --data and --folds"
    if not path.is_file():
        raise UserError(str(path), "is missing, though the test predictions were made with views", remedy)
    with_views = _rows_of_folds(path, folds, folds.fold >= 0, remedy)
    if with_views.source.get("views") != test.source["views"]:
        raise UserError(str(path), f"has different views from {run_folder.name}'s test predictions", remedy)
    _check_models(path, run_folder, with_views.source, remedy)
    return short_form(with_views, kept) if kept else with_views


def check_test_source(run_folder: Path, path: Path, test: Predictions) -> None:
    """Raise UserError unless ``test``, read from ``path``, was predicted by the models that the run holds now."""
    remedy = f"run: python infer.py --runs {run_folder.name}"
    if not test.source:
        raise UserError(str(path), "does not say which models and views predicted it", remedy)
    _check_models(path, run_folder, test.source, remedy)


def _check_models(path: Path, run_folder: Path, source: dict[str, Any], remedy: str) -> None:
    for name, theirs in source["models"].items():
        ours = model_sha256(run_folder / name)
        if not ours:
            warn(f"{run_folder / name / MODEL_FILE}: is missing, so {path} cannot be checked against it")
        elif ours != theirs:
            raise UserError(str(path), f"was predicted before {name} was trained again", remedy)


def _rows_of_folds(path: Path, folds: Folds, rows: np.ndarray, remedy: str) -> Predictions:
    """The predictions at ``path`` in the order of these ``rows`` (a mask) of ``folds``, outputs and labels checked."""
    found = rows_in_order(read_predictions(path), folds.ids[rows], str(path))
    if found.output_names != folds.output_names:
        theirs, ours = names_in_short(found.output_names), names_in_short(folds.output_names)
        what = f"has the {folds.task.outputs_are} {theirs}, but the folds have {ours}"
        raise UserError(str(path), what, remedy)
    wrong = found.ids[found.labels != folds.labels[rows]] if len(found.labels) else found.ids
    if len(wrong):
        raise UserError(str(path), f"has different labels from the folds in {rows_named(wrong)}", remedy)
    return replace(found, fold=folds.fold[rows])
