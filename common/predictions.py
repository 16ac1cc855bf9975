"""Predictions on disk: arrays without pickles, joined by id, never by position.

With many classes they can be kept in short form (common/shortlist.py).
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, warn, warn_of_unhashed
from common.files import write_file
from common.metrics import Answers, answers_of, blocks, joined_answers, names_in_short, score_of, targets_of
from common.runs import (
    MODEL_FILE,
    OOF_FILE,
    TTA_OOF_FILE,
    check_stated,
    fold_folder,
    model_sha256,
    read_metrics,
)
from common.shortlist import lengthen, on_columns, shared_columns, shorten
from common.splits import Folds, rows_named

# Kind (numpy's letter) and dimensions of each array in an npz file; ids, logits and classes are always there.
_ARRAYS = {
    "ids": ("U", 1),
    "logits": ("f", 2),
    "columns": ("i", 2),
    "classes": ("U", 1),
    "labels": ("U", 1),
    "fold": ("i", 1),
    "id_name": ("U", 0),
    "label_name": ("U", 0),
    "source": ("U", 0),
}
LARGE = 200_000_000  # numbers (0.8 GB): where predictions side by side would hold more, they are taken in short form
KEPT = (8, 64)  # likeliest classes of each row that the short form then keeps, at least and at most


@dataclass(frozen=True)
class Predictions:
    """What a run says about n rows; ids, labels and classes are text."""

    ids: np.ndarray  # (n), no id twice
    logits: np.ndarray  # float32 (n, classes), in short form (n, k + 1); of an average: the log of the mean probability
    classes: list[str]  # names; in long form of each column of logits
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=object))  # (n), empty: not known
    fold: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # (n), empty: not OOF
    id_name: str = "id"  # the columns of a submission made without a sample
    label_name: str = "label"
    source: dict[str, Any] = field(default_factory=dict)  # by infer.py: fold, tta, views (weights), models (sha256)
    # Short form: the class number of every column of logits but the last, int32 (n, k); empty: the long form.
    columns: np.ndarray = field(default_factory=lambda: np.empty((0, 0), dtype=np.int32))

    @property
    def is_short(self) -> bool:
        """Whether only some classes of each row are known one by one."""
        return self.columns.shape[1] > 0

    @property
    def others(self) -> int:
        """How many classes the last column of the logits stands for."""
        return len(self.classes) - self.columns.shape[1] if self.is_short else 1

    @property
    def predicted_numbers(self) -> np.ndarray:
        """The most probable class of each row, int64 (n)."""
        found = self.logits.argmax(axis=1)
        return self.columns[np.arange(len(found)), found].astype(np.int64) if self.is_short else found

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each row, text (n)."""
        return np.asarray(self.classes, dtype=object)[self.predicted_numbers]

    @property
    def targets(self) -> np.ndarray:
        """The labels as class numbers, int64 (n)."""
        return targets_of(self.labels, self.classes)

    @property
    def places(self) -> np.ndarray:
        """The column of the logits that each row's label stands in, int64 (n)."""
        targets = self.targets
        if not self.is_short:
            return targets
        found = self.columns == targets[:, None]
        return np.where(found.any(axis=1), found.argmax(axis=1), self.columns.shape[1])

    def answers(self) -> Answers:
        """What the metrics are made of, for rows whose labels are known."""
        found = answers_of(self.logits, self.places, self.others)
        return replace(found, predicted=self.predicted_numbers, targets=self.targets, classes=len(self.classes))

    def score(self) -> dict[str, float | int]:
        """n and every metric, for rows whose labels are known."""
        return score_of(self.answers())

    def long(self, rows: slice) -> np.ndarray:
        """The logits of some rows for all classes, (rows, classes)."""
        if self.is_short:
            return lengthen(self.logits[rows], self.columns[rows], len(self.classes))
        return self.logits[rows]


# ---- short form


def short_form(predictions: Predictions, kept: int) -> Predictions:
    """The same predictions with the ``kept`` likeliest classes of each row; as they are, where they have no more."""
    if kept + 1 >= predictions.logits.shape[1]:
        return predictions
    logits, columns = shorten(predictions.logits, predictions.columns, len(predictions.classes), kept)
    return replace(predictions, logits=logits, columns=columns)


def kept_classes(rows: int, classes: int, members: int, noise: int = 0) -> int:
    """How many likeliest classes to keep of ``members`` predictions that are worked on together; 0: all classes.

    Side by side each has the columns of all members, as have members of ``noise``.
    """
    if rows * classes * (members + noise) <= LARGE:
        return 0
    return min(max(KEPT[0], LARGE // (rows * members * (members + noise))), KEPT[1])


def side_by_side(members: Sequence[Predictions]) -> tuple[list[np.ndarray], Predictions]:
    """The logits of m predictions of the same rows over the same columns, (n, columns) each, and the first of them
    with these columns: what it says of classes, columns, places and others is true of all.

    Where one is in short form, the columns of a row are the classes that any of them keeps.
    """
    kept = min((each.columns.shape[1] for each in members if each.is_short), default=0)
    if not kept:
        return [each.logits for each in members], members[0]
    members, classes = [short_form(each, kept) for each in members], len(members[0].classes)
    if kept * len(members) + 1 >= classes:
        logits = [each.long(slice(None)) for each in members]
        return logits, replace(members[0], logits=logits[0], columns=np.empty((0, 0), np.int32))
    shared = shared_columns([each.columns for each in members], classes)
    logits = [on_columns(each.logits, each.columns, classes, shared) for each in members]
    return logits, replace(members[0], logits=logits[0], columns=shared)


# ---- files


def check_store(store: str) -> int:
    """How many likeliest classes ``store`` keeps: 0 for float32 and float16, k for top<k>.

    Raises:
        UserError: it is none of these.
    """
    if store in ("float32", "float16"):
        return 0
    if re.fullmatch("top([2-9]|[1-9][0-9]{1,4})", store):
        return int(store.removeprefix("top"))
    raise UserError("--store", f"there is no form {store}", "use float32, float16, or top64 (2 classes or more)")


def write_predictions(path: Path, predictions: Predictions, store: str = "float32") -> str:
    """Write ``predictions`` as npz and return the sha256 of its arrays; the same content always gives the same bytes.

    ``store`` is the form of the logits: ``float32``; ``float16``, where each row is moved so that its largest is 0,
    since half precision is finest there and no answer changes; ``top64``, the short form with the 64 likeliest.

    Raises:
        UserError: a number that is not finite, an id twice, arrays that do not fit together; nothing is written.
    """
    if kept := check_store(store):
        predictions = short_form(predictions, kept)
    check_predictions(path, predictions)
    whole = predictions.logits.astype(np.float32, copy=False)
    arrays = {
        "ids": np.asarray(predictions.ids, dtype=str),
        "logits": _half(whole) if store == "float16" else whole,
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
    if predictions.is_short:
        arrays["columns"] = predictions.columns.astype(np.int32, copy=False)
    arrays = {"sha256": np.asarray(digest(arrays))} | arrays  # the first: an archive that lost its end still has it
    write_file(path, lambda file: np.savez(file, **arrays))
    return str(arrays["sha256"])


def _half(logits: np.ndarray) -> np.ndarray:
    half = np.empty(logits.shape, dtype=np.float16)
    for rows in blocks(*logits.shape):
        moved = logits[rows] - logits[rows].max(axis=1, keepdims=True)
        half[rows] = np.maximum(moved, np.finfo(np.float16).min)
    return half


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Sha256 of names, kinds, shapes and bytes of arrays, but for the one that states it."""
    found = hashlib.sha256()
    for name in sorted(arrays.keys() - {"sha256"}):
        array = arrays[name]
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)  # no copy
    return found.hexdigest()


def read_predictions(path: Path) -> Predictions:
    """Read an oof.npz or test.npz and check that it is whole; nothing is unpickled.

    Raises:
        UserError: missing, damaged, edited or pickled; another fold's or run's; a number that is not finite; an id
            twice; shapes that do not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asanyarray(archive[name]) for name in archive.files}  # a member may be plain bytes
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise UserError(str(path), what, "run the step that writes it") from error
    except Exception as error:  # on damaged bytes numpy and zipfile raise a dozen kinds
        what = "is not a whole npz file without pickles"
        raise UserError(str(path), what, "run the step that writes it again") from error
    if unknown := sorted(arrays.keys() - _ARRAYS.keys() - {"sha256"}):
        raise UserError(str(path), f"holds an unknown {unknown[0]!r}", "run the step that writes it again")
    for name, (kind, dimensions) in _ARRAYS.items():
        needed = name in ("ids", "logits", "classes")
        if (name in arrays or needed) and _kind(arrays.get(name)) != (kind, dimensions):
            what = f"has no {name} of the right kind ({'text' if kind == 'U' else 'numbers'})"
            raise UserError(str(path), what, "run the step that writes it again")
    content = digest(arrays)
    if "sha256" not in arrays:
        warn_of_unhashed(path.name)
    elif str(arrays["sha256"]) != content:
        what = "is damaged or was edited: its arrays do not match their sha256"
        raise UserError(str(path), what, "run the step that writes it again")
    check_stated(path, content)
    empty = Predictions(np.empty(0), np.empty((0, 0)), [])
    predictions = Predictions(
        ids=arrays["ids"].astype(object),
        logits=arrays["logits"].astype(np.float32, copy=False),
        classes=[str(name) for name in arrays["classes"]],
        labels=arrays.get("labels", empty.labels).astype(object),
        fold=arrays.get("fold", empty.fold).astype(np.int64),
        id_name=str(arrays.get("id_name", empty.id_name)),
        label_name=str(arrays.get("label_name", empty.label_name)),
        source=_source(path, str(arrays.get("source", "{}"))),
        columns=arrays.get("columns", empty.columns).astype(np.int32),
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
    if (order == np.arange(len(order))).all():
        return predictions
    per_row = ("ids", "logits", "labels", "fold", "columns")
    parts = {name: getattr(predictions, name) for name in per_row if len(getattr(predictions, name))}
    return replace(predictions, **{name: part[order] for name, part in parts.items()})


def join_oof(run_folder: str | Path, folds: Folds, kept: int = 0) -> Predictions:
    """The run's predictions of every row that a fold holds out, in the order of ``folds``.

    With ``kept`` each fold is brought to the short form of so many classes as it is read, so that the matrix of all
    rows and classes is never there.

    Raises:
        UserError: a fold that is missing or was trained with other folds; a row that is not there exactly once;
            other labels or classes than those of ``folds``.
    """
    parts = [short_form(part, kept) if kept else part for part in _oof_parts(Path(run_folder), folds)]
    shortest = min((part.columns.shape[1] for part in parts if part.is_short), default=0)
    rows = folds.fold >= 0
    held_out_by = folds.fold[rows]
    logits = np.empty((len(held_out_by), shortest + 1 if shortest else len(folds.classes)), dtype=np.float32)
    columns = np.empty((len(held_out_by) if shortest else 0, shortest), dtype=np.int32)
    for k in range(folds.count):
        part = short_form(parts.pop(0), shortest or len(folds.classes))  # popped: freed as soon as it is copied
        logits[held_out_by == k] = part.logits
        if shortest:
            columns[held_out_by == k] = part.columns
    told = {"ids": folds.ids[rows], "labels": folds.labels[rows], "fold": held_out_by}
    return replace(part, logits=logits, columns=columns, **told)


def oof_score(run_folder: Path, folds: Folds) -> dict[str, float | int]:
    """n and every metric of the run's OOF predictions, which are scored once, together; one fold is held at a time.

    Raises:
        UserError: as :func:`join_oof` does.
    """
    return score_of(joined_answers([part.answers() for part in _oof_parts(run_folder, folds)]))


def _oof_parts(run_folder: Path, folds: Folds) -> Iterator[Predictions]:
    """The predictions of each fold's rows, in the order of ``folds``, one fold after another."""
    for k in range(folds.count):
        fold_path = fold_folder(run_folder, k)
        theirs = read_metrics(fold_path)["folds_fingerprint"]
        if theirs != folds.fingerprint:
            what = f"was trained with other folds (fingerprint {theirs[:16]}, here {folds.fingerprint[:16]})"
            raise UserError(str(fold_path), what, "name the folds file it was trained with, or leave this run out")
        yield _rows_of_folds(fold_path / OOF_FILE, folds, folds.fold == k, "train this fold again")


def join_oof_like_test(run_folder: Path, folds: Folds, test: Predictions | None, kept: int = 0) -> Predictions:
    """The run's OOF predictions under the views that ``test``, its test.npz, was predicted with; None: no views.

    With ``kept`` they are in the short form of so many classes.

    Raises:
        UserError: as :func:`join_oof` does; no OOF predictions with these views.
    """
    oof = join_oof(run_folder, folds, kept)  # always: its checks are those of the folds
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
            warn(f"{run_folder / name / MODEL_FILE}: is not there, so {path} is taken on trust")
        elif ours != theirs:
            raise UserError(str(path), f"was predicted before {name} was trained again", remedy)


def _rows_of_folds(path: Path, folds: Folds, rows: np.ndarray, remedy: str) -> Predictions:
    """The predictions at ``path`` in the order of these ``rows`` (a mask) of ``folds``, classes and labels checked."""
    found = rows_in_order(read_predictions(path), folds.ids[rows], str(path))
    if found.classes != folds.classes:
        what = f"has the classes {names_in_short(found.classes)}, the folds {names_in_short(folds.classes)}"
        raise UserError(str(path), what, remedy)
    wrong = found.ids[found.labels != folds.labels[rows]] if len(found.labels) else found.ids
    if len(wrong):
        raise UserError(str(path), f"has other labels than the folds at {rows_named(wrong)}", remedy)
    return replace(found, fold=folds.fold[rows])


def check_predictions(where: str | Path, predictions: Predictions) -> None:
    """Raise UserError unless ids are unique, shapes fit and every number is finite; ``where`` names the file."""
    rows, width = len(predictions.ids), len(predictions.classes)
    shape = (rows, predictions.columns.shape[1] + 1) if predictions.is_short else (rows, width)
    if np.shape(predictions.logits) != shape or len(set(predictions.classes)) != width or predictions.others < 1:
        what = f"has logits of shape {np.shape(predictions.logits)} for {rows} ids and {width} classes"
        raise UserError(str(where), what, "run the step that writes it again")
    if predictions.is_short and not _is_shortlist(predictions, rows, width):
        what = "names a class of a row twice, or one that is none, or the others as likelier than it"
        raise UserError(str(where), what, "run the step that writes it again")
    for name in ("labels", "fold"):
        if len(getattr(predictions, name)) not in (0, rows):
            what = f"has {len(getattr(predictions, name))} {name} for {rows} ids"
            raise UserError(str(where), what, "run the step that writes it again")
    if len(set(predictions.ids)) != rows:
        names, counts = np.unique(np.asarray(predictions.ids, dtype=str), return_counts=True)
        raise UserError(str(where), f"holds twice {rows_named(names[counts > 1])}", "run the step that writes it again")
    broken = np.zeros(rows, dtype=bool)
    for some in blocks(*shape):
        broken[some] = ~np.isfinite(predictions.logits[some]).all(axis=1)
    if broken.any():
        what = f"has numbers that are not finite at {rows_named(np.asarray(predictions.ids)[broken])}"
        raise UserError(str(where), what, "train this run again")


def _is_shortlist(predictions: Predictions, rows: int, classes: int) -> bool:
    columns, logits = predictions.columns, predictions.logits
    if len(columns) != rows or columns.shape[1] < 2 or (rows and (columns.min() < 0 or columns.max() >= classes)):
        return False
    in_order = np.sort(columns, axis=1)
    doubled = (in_order[:, 1:] == in_order[:, :-1]).any()
    return not doubled and not (logits[:, :-1].max(axis=1, initial=-np.inf) < logits[:, -1]).any()


def _source(path: Path, text: str) -> dict[str, Any]:
    try:
        source = dict(json.loads(text))
    except (TypeError, ValueError, RecursionError):
        source = {"models": None}
    if source and [type(source.get(name)) for name in ("fold", "tta", "views", "models")] != [str, str, dict, dict]:
        raise UserError(str(path), "does not say how it was made", "run the step that writes it again")
    return source


def _kind(array: np.ndarray | None) -> tuple[str, int] | None:
    return None if array is None else (array.dtype.kind, array.ndim)
