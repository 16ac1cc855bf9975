"""Predictions on disk: arrays without pickles, joined by id, never by position."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, warn
from common.files import write_file
from common.metrics import targets_of
from common.runs import MODEL_FILE, OOF_FILE, TTA_OOF_FILE, fold_folder, model_sha256, read_metrics
from common.splits import Folds, rows_named

# Kind (numpy's letter) and dimensions of each array in an npz file; ids, logits and classes are always there.
_ARRAYS = {
    "ids": ("U", 1),
    "logits": ("f", 2),
    "classes": ("U", 1),
    "labels": ("U", 1),
    "fold": ("i", 1),
    "id_name": ("U", 0),
    "label_name": ("U", 0),
    "source": ("U", 0),
}


@dataclass(frozen=True)
class Predictions:
    """What a run says about n rows; ids, labels and classes are text."""

    ids: np.ndarray  # (n), no id twice
    logits: np.ndarray  # float32 (n, classes); of an average: the log of the mean probability
    classes: list[str]  # name of each column of logits
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=object))  # (n), empty: not known
    fold: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # (n), empty: not OOF
    id_name: str = "id"  # the columns of a submission made without a sample
    label_name: str = "label"
    source: dict[str, Any] = field(default_factory=dict)  # by infer.py: fold, tta, views (weights), models (sha256)

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each row, text (n)."""
        return np.asarray(self.classes, dtype=object)[self.logits.argmax(axis=1)]

    @property
    def targets(self) -> np.ndarray:
        """The labels as class numbers, int64 (n)."""
        return targets_of(self.labels, self.classes)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write ``predictions`` as npz; the same content always gives the same bytes.

    Raises:
        UserError: a number that is not finite, an id twice, arrays that do not fit together; nothing is written.
    """
    check_predictions(path, predictions)
    arrays = {
        "ids": np.asarray(predictions.ids, dtype=str),
        "logits": np.asarray(predictions.logits, dtype=np.float32),
        "classes": np.asarray(predictions.classes, dtype=str),
        "id_name": np.asarray(predictions.id_name),
        "label_name": np.asarray(predictions.label_name),
    }
    if len(predictions.labels):
        arrays["labels"] = np.asarray(predictions.labels, dtype=str)
    if len(predictions.fold):
        arrays["fold"] = np.asarray(predictions.fold, dtype=np.int64)
    if predictions.source:
        arrays["source"] = np.asarray(json.dumps(predictions.source, sort_keys=True, ensure_ascii=False))
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_file(path, content.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Read an oof.npz or test.npz and check that it is whole; nothing is unpickled.

    Raises:
        UserError: missing, damaged or pickled; a number that is not finite; an id twice; shapes that do not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise UserError(str(path), what, "run the step that writes it") from error
    except Exception as error:  # on damaged bytes numpy and zipfile raise a dozen kinds
        what = "is not a whole npz file without pickles"
        raise UserError(str(path), what, "run the step that writes it again") from error
    for name, (kind, dimensions) in _ARRAYS.items():
        needed = name in ("ids", "logits", "classes")
        if (name in arrays or needed) and _kind(arrays.get(name)) != (kind, dimensions):
            what = f"has no {name} of the right kind ({'text' if kind == 'U' else 'numbers'})"
            raise UserError(str(path), what, "run the step that writes it again")
    empty = Predictions(np.empty(0), np.empty((0, 0)), [])
    predictions = Predictions(
        ids=arrays["ids"].astype(object),
        logits=arrays["logits"].astype(np.float32),
        classes=[str(name) for name in arrays["classes"]],
        labels=arrays.get("labels", empty.labels).astype(object),
        fold=arrays.get("fold", empty.fold).astype(np.int64),
        id_name=str(arrays.get("id_name", empty.id_name)),
        label_name=str(arrays.get("label_name", empty.label_name)),
        source=_source(path, str(arrays.get("source", "{}"))),
    )
    check_predictions(path, predictions)
    return predictions


def rows_in_order(predictions: Predictions, ids: Sequence[str] | np.ndarray, where: str) -> Predictions:
    """The same predictions with their rows in the order of ``ids``; ``where`` names their file.

    Raises:
        UserError: the two do not hold the same ids, naming those that each side lacks.
    """
    position = {row_id: row for row, row_id in enumerate(predictions.ids)}
    missing = [row_id for row_id in ids if row_id not in position]
    surplus = sorted(position.keys() - set(ids))
    if missing or surplus:
        differences = [f"lacks {rows_named(missing)}"] * bool(missing) + [f"has unknown {rows_named(surplus)}"] * bool(
            surplus
        )
        raise UserError(where, f"{' and '.join(differences)}", "use predictions of exactly these rows, without --limit")
    order = np.fromiter((position[row_id] for row_id in ids), dtype=np.int64, count=len(ids))
    per_row = ("ids", "logits", "labels", "fold")
    parts = {name: getattr(predictions, name) for name in per_row if len(getattr(predictions, name))}
    return replace(predictions, **{name: part[order] for name, part in parts.items()})


def join_oof(run_folder: str | Path, folds: Folds) -> Predictions:
    """The run's predictions of every row that a fold holds out, in the order of ``folds``.

    Raises:
        UserError: a fold that is missing or was trained with other folds; a row that is not there exactly once;
            other labels or classes than those of ``folds``.
    """
    folder = Path(run_folder)
    parts = []
    for k in range(folds.count):
        fold_path = fold_folder(folder, k)
        theirs = read_metrics(fold_path).get("folds_fingerprint", "unknown")
        if theirs != folds.fingerprint:
            what = f"was trained with other folds (fingerprint {theirs[:16]}, here {folds.fingerprint[:16]})"
            raise UserError(str(fold_path), what, "name the folds file it was trained with, or leave this run out")
        part = _rows_of_folds(fold_path / OOF_FILE, folds, folds.fold == k, "train this fold again")
        parts.append(part)
    joined = replace(
        parts[0],
        ids=np.concatenate([part.ids for part in parts]),
        logits=np.concatenate([part.logits for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        fold=np.concatenate([part.fold for part in parts]),
    )
    return rows_in_order(joined, folds.ids[folds.fold >= 0], str(folder))


def join_oof_like_test(run_folder: Path, folds: Folds, test: Predictions | None) -> Predictions:
    """The run's OOF predictions under the views that ``test``, its test.npz, was predicted with; None: no views.

    Raises:
        UserError: as :func:`join_oof` does; no OOF predictions with these views.
    """
    oof = join_oof(run_folder, folds)  # always: its checks are those of the folds
    if test is None or test.source["tta"] == "none":
        return oof
    path = run_folder / TTA_OOF_FILE
    remedy = f"run: python infer.py --tta {test.source['tta']} --runs {run_folder.name}, with --data and --folds"
    if not path.is_file():
        raise UserError(str(path), "is missing, though the test predictions were made with views", remedy)
    with_views = _rows_of_folds(path, folds, folds.fold >= 0, remedy)
    if with_views.source.get("views") != test.source["views"]:
        raise UserError(str(path), f"has other views than {run_folder.name}'s test predictions", remedy)
    _check_models(path, run_folder, with_views.source, remedy)
    return with_views


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
            warn(f"{run_folder / name / MODEL_FILE}: is not there, so {path} is taken on trust")
        elif ours != theirs:
            raise UserError(str(path), f"was predicted before {name} was trained again", remedy)


def _rows_of_folds(path: Path, folds: Folds, rows: np.ndarray, remedy: str) -> Predictions:
    """The predictions at ``path`` in the order of these ``rows`` (a mask) of ``folds``, classes and labels checked."""
    found = rows_in_order(read_predictions(path), folds.ids[rows], str(path))
    if found.classes != folds.classes:
        what = f"has the classes {', '.join(found.classes)}, the folds {', '.join(folds.classes)}"
        raise UserError(str(path), what, remedy)
    wrong = found.ids[found.labels != folds.labels[rows]] if len(found.labels) else found.ids
    if len(wrong):
        raise UserError(str(path), f"has other labels than the folds at {rows_named(wrong)}", remedy)
    return replace(found, fold=folds.fold[rows])


def check_predictions(where: str | Path, predictions: Predictions) -> None:
    """Raise UserError unless ids are unique, shapes fit and every number is finite; ``where`` names the file."""
    rows, width = len(predictions.ids), len(predictions.classes)
    if np.shape(predictions.logits) != (rows, width) or len(set(predictions.classes)) != width:
        what = f"has logits of shape {np.shape(predictions.logits)} for {rows} ids and {width} classes"
        raise UserError(str(where), what, "run the step that writes it again")
    for name in ("labels", "fold"):
        if len(getattr(predictions, name)) not in (0, rows):
            what = f"has {len(getattr(predictions, name))} {name} for {rows} ids"
            raise UserError(str(where), what, "run the step that writes it again")
    if len(set(predictions.ids)) != rows:
        names, counts = np.unique(np.asarray(predictions.ids, dtype=str), return_counts=True)
        raise UserError(str(where), f"holds twice {rows_named(names[counts > 1])}", "run the step that writes it again")
    broken = ~np.isfinite(predictions.logits).all(axis=1)
    if broken.any():
        what = f"has numbers that are not finite at {rows_named(np.asarray(predictions.ids)[broken])}"
        raise UserError(str(where), what, "train this run again")


def _source(path: Path, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise UserError(str(path), "does not say how it was made", "run the step that writes it again") from error


def _kind(array: np.ndarray | None) -> tuple[str, int] | None:
    return None if array is None else (array.dtype.kind, array.ndim)
