"""Predictions on disk: arrays without pickles, joined by id, never by position.

With many classes they can be kept in short form (common/score/shortlist.py).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.base.errors import UserError, warn_of_unhashed
from common.base.files import write_file
from common.base.words import rows_named
from common.runs.layout import check_stated
from common.score.answers import Answers
from common.score.logits import Outputs, blocks
from common.score.metrics import score_of
from common.score.shortlist import lengthen, on_columns, shared_columns, shorten
from common.score.task import MULTICLASS, TASKS, Task, posed

# Kind (numpy's letter) and dimensions of each array in an npz file; ids, logits and classes (the outputs' names, of
# every task) are always there.
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
    "task": ("U", 0),
    "decision": ("f", 1),
    "positive": ("U", 0),
    "form": ("U", 0),
}
# What is kept as JSON, by name.
_SOURCE = {"fold": str, "tta": str, "views": dict, "models": dict}
_FORM = {"columns": list, "id_column": int, "form": str, "positive": str, "names": int, "separator": str}
LARGE = 200_000_000  # numbers (0.8 GB): where predictions side by side would hold more, they are taken in short form
KEPT = (8, 64)  # likeliest classes of each row that the short form then keeps, at least and at most


@dataclass(frozen=True)
class Predictions:
    """What a run says about n rows; ids, labels and the outputs' names are text."""

    ids: np.ndarray  # (n), no id twice
    logits: np.ndarray  # float32 (n, outputs), in short form (n, k + 1); of an average: the log of the mean probability
    output_names: list[str]  # the classes, labels or target columns; in long form of each column of logits
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=object))  # (n), empty: not known
    fold: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # (n), empty: not OOF
    id_name: str = "id"  # the columns of a submission made without a sample
    label_name: str = "label"
    source: dict[str, Any] = field(default_factory=dict)  # by infer.py: fold, tta, views (weights), models (sha256)
    # Short form: the class number of every column of logits but the last, int32 (n, k); empty: the long form.
    columns: np.ndarray = field(default_factory=lambda: np.empty((0, 0), dtype=np.int32))
    task: Task = MULTICLASS
    decision: tuple[float, ...] = ()  # what the task decides by, such as thresholds; empty: its own
    form: dict[str, Any] = field(default_factory=dict)  # of their submission (common/runs/forms.py); empty: none

    @property
    def outputs(self) -> Outputs:
        """The logits, with what their last column stands for."""
        return Outputs(self.logits, self.others)

    @property
    def is_short(self) -> bool:
        """Whether only some classes of each row are known one by one."""
        return self.columns.shape[1] > 0

    @property
    def others(self) -> int:
        """How many classes the last column of the logits stands for."""
        return len(self.output_names) - self.columns.shape[1] if self.is_short else 1

    @property
    def predicted_targets(self) -> np.ndarray:
        """What is predicted of each row in the form of the targets: the most probable class, int64 (n)."""
        found = self.task.decide(self.outputs, self.decision)
        return self.columns[np.arange(len(found)), found].astype(np.int64) if self.is_short else found

    @property
    def predicted(self) -> np.ndarray:
        """What is predicted of each row in the form of the labels, text (n)."""
        return self.task.decode(self.predicted_targets, self.output_names)

    @property
    def targets(self) -> np.ndarray:
        """The labels as the task's targets: class numbers, int64 (n)."""
        return self.task.encode(self.labels, self.output_names)

    @property
    def places(self) -> np.ndarray:
        """The targets of :attr:`outputs`; in short form the column that each row's label stands in, int64 (n)."""
        targets = self.targets
        if not self.is_short:
            return targets
        found = self.columns == targets[:, None]
        return np.where(found.any(axis=1), found.argmax(axis=1), self.columns.shape[1])

    def answers(self) -> Answers:
        """What the metrics are made of, for rows whose labels are known."""
        found = self.task.answers(self.outputs, self.places, self.output_names, self.decision)
        if not self.is_short:
            return found
        return replace(found, predicted=self.predicted_targets, targets=self.targets)

    def score(self, metric: str = "") -> dict[str, float | int]:
        """n and every metric, for rows whose labels are known; some only where they are asked for as ``metric``."""
        return score_of(self.answers(), self.task.metrics, metric)

    def long(self, rows: slice) -> np.ndarray:
        """The logits of some rows for all classes, (rows, classes)."""
        if self.is_short:
            return lengthen(self.logits[rows], self.columns[rows], len(self.output_names))
        return self.logits[rows]


# ---- short form


def short_form(predictions: Predictions, kept: int) -> Predictions:
    """The same predictions with the ``kept`` likeliest classes of each row; as they are, where they have no more, or
    where the task needs all."""
    if kept + 1 >= predictions.logits.shape[1] or not predictions.task.is_shortened:
        return predictions
    logits, columns = shorten(predictions.logits, predictions.columns, len(predictions.output_names), kept)
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
    with these columns: what it says of outputs, columns, places and others is true of all.

    Where one is in short form, the columns of a row are the classes that any of them keeps.
    """
    kept = min((each.columns.shape[1] for each in members if each.is_short), default=0)
    if not kept:
        return [each.logits for each in members], members[0]
    members, classes = [short_form(each, kept) for each in members], len(members[0].output_names)
    if kept * len(members) + 1 >= classes:
        logits = [each.long(slice(None)) for each in members]
        return logits, replace(members[0], logits=logits[0], columns=np.empty((0, 0), np.int32))
    shared = shared_columns([each.columns for each in members], classes)
    logits = [on_columns(each.logits, each.columns, classes, shared) for each in members]
    return logits, replace(members[0], logits=logits[0], columns=shared)


# ---- files


def check_store(store: str, task: Task = MULTICLASS) -> int:
    """How many likeliest classes ``store`` keeps: 0 for float32 and float16, k for top<k>.

    Raises:
        UserError: it is none of these, or keeps a part of what the task needs as a whole.
    """
    if store == "float32" or (store == "float16" and task.half):
        return 0
    if not task.is_shortened:
        remedy = "use float32 or float16" if task.half else "use float32"
        raise UserError("--store", f"{store} does not fit {task.name}", remedy)
    if re.fullmatch("top([2-9]|[1-9][0-9]{1,4})", store):
        return int(store.removeprefix("top"))
    raise UserError("--store", f"there is no format {store}", "use float32, float16, or topN such as top64 (N >= 2)")


def write_predictions(path: Path, predictions: Predictions, store: str = "float32") -> str:
    """Write ``predictions`` as npz and return the sha256 of its arrays; the same content always gives the same bytes.

    ``store`` is the form of the logits: ``float32``; ``float16``, in the task's way that changes no answer; ``top64``,
    the short form with the 64 likeliest.

    Raises:
        UserError: a number that is not finite, an id twice, arrays that do not fit together; nothing is written.
    """
    if kept := check_store(store, predictions.task):
        predictions = short_form(predictions, kept)
    check_predictions(path, predictions)
    whole = predictions.logits.astype(np.float32, copy=False)
    arrays = {
        "ids": np.asarray(predictions.ids, dtype=str),
        "logits": predictions.task.half(whole) if store == "float16" else whole,
        "classes": np.asarray(predictions.output_names, dtype=str),
        "id_name": np.asarray(predictions.id_name),
        "label_name": np.asarray(predictions.label_name),
        "task": np.asarray(predictions.task.name),
    }
    if predictions.task.positive:
        arrays["positive"] = np.asarray(predictions.task.positive)
    if predictions.form:
        arrays["form"] = np.asarray(json.dumps(predictions.form, sort_keys=True, ensure_ascii=False))
    if len(predictions.labels):
        arrays["labels"] = np.asarray(predictions.labels, dtype=str)
    if len(predictions.fold):
        arrays["fold"] = np.asarray(predictions.fold, dtype=np.int64)
    if predictions.source:
        arrays["source"] = np.asarray(json.dumps(predictions.source, sort_keys=True, ensure_ascii=False))
    if predictions.decision:
        arrays["decision"] = np.asarray(predictions.decision, dtype=np.float64)
    if predictions.is_short:
        arrays["columns"] = predictions.columns.astype(np.int32, copy=False)
    arrays = {"sha256": np.asarray(digest(arrays))} | arrays  # the first: an archive that lost its end still has it
    write_file(path, lambda file: np.savez(file, **arrays))
    return str(arrays["sha256"])


def damaged(where: str | Path, what: str) -> UserError:
    """The error of a file that must be written again."""
    return UserError(str(where), what, "run the step that writes it again")


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
        raise damaged(path, "is damaged or truncated, or contains pickles") from error
    if unknown := sorted(arrays.keys() - _ARRAYS.keys() - {"sha256"}):
        raise damaged(path, f"contains an unknown {unknown[0]!r}")
    for name, (kind, dimensions) in _ARRAYS.items():
        needed = name in ("ids", "logits", "classes")
        if (name in arrays or needed) and _kind(arrays.get(name)) != (kind, dimensions):
            what = f"has no {name} of the right type ({'text' if kind == 'U' else 'numbers'})"
            raise damaged(path, what)
    content = digest(arrays)
    if "sha256" not in arrays:
        warn_of_unhashed(path.name)
    elif str(arrays["sha256"]) != content:
        raise damaged(path, "is damaged or was edited: its arrays do not match their sha256")
    check_stated(path, content)
    task = str(arrays.get("task", MULTICLASS.name))  # older files do not say
    if task not in TASKS:
        raise UserError(str(path), f"is of the task {task}, which this version does not know", "use a newer version")
    empty = Predictions(np.empty(0), np.empty((0, 0)), [])
    predictions = Predictions(
        ids=arrays["ids"].astype(object),
        logits=arrays["logits"].astype(np.float32, copy=False),
        output_names=[str(name) for name in arrays["classes"]],
        labels=arrays.get("labels", empty.labels).astype(object),
        fold=arrays.get("fold", empty.fold).astype(np.int64),
        id_name=str(arrays.get("id_name", empty.id_name)),
        label_name=str(arrays.get("label_name", empty.label_name)),
        source=_stated(path, str(arrays.get("source", "{}")), _SOURCE, "how it was made"),
        columns=arrays.get("columns", empty.columns).astype(np.int32),
        decision=tuple(arrays["decision"].tolist()) if "decision" in arrays else (),
        task=posed(task, str(arrays.get("positive", ""))),
        form=_stated(path, str(arrays.get("form", "{}")), _FORM, "what its submission looks like"),
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
        found = {"lacks": missing, "has extra": surplus}
        what = " and ".join(f"{verb} {rows_named(names)}" for verb, names in found.items() if names)
        raise UserError(where, what, "use predictions of exactly these rows, without --limit")
    order = np.fromiter((position[row_id] for row_id in ids), dtype=np.int64, count=len(ids))
    if (order == np.arange(len(order))).all():
        return predictions
    per_row = ("ids", "logits", "labels", "fold", "columns")
    parts = {name: getattr(predictions, name) for name in per_row if len(getattr(predictions, name))}
    return replace(predictions, **{name: part[order] for name, part in parts.items()})


def check_predictions(where: str | Path, predictions: Predictions) -> None:
    """Raise UserError unless ids are unique, shapes fit and every number is finite; ``where`` names the file."""
    rows, width = len(predictions.ids), len(predictions.output_names)
    shape = (rows, predictions.columns.shape[1] + 1) if predictions.is_short else (rows, width)
    if np.shape(predictions.logits) != shape or len(set(predictions.output_names)) != width or predictions.others < 1:
        what = f"has logits of shape {np.shape(predictions.logits)} for {rows} ids and {width} outputs"
        raise damaged(where, what)
    if predictions.is_short and not _is_shortlist(predictions, rows, width):
        what = "invalid short form: a row has a class twice, an unknown class, or others rated above all its classes"
        raise damaged(where, what)
    for name in ("labels", "fold"):
        if len(getattr(predictions, name)) not in (0, rows):
            raise damaged(where, f"has {len(getattr(predictions, name))} {name} for {rows} ids")
    if len(set(predictions.ids)) != rows:
        names, counts = np.unique(np.asarray(predictions.ids, dtype=str), return_counts=True)
        raise damaged(where, f"contains duplicate ids: {rows_named(names[counts > 1])}")
    broken = np.zeros(rows, dtype=bool)
    for some in blocks(*shape):
        broken[some] = ~np.isfinite(predictions.logits[some]).all(axis=1)
    if broken.any():
        what = f"has values that are not finite in {rows_named(np.asarray(predictions.ids)[broken])}"
        raise UserError(str(where), what, "train this run again")


def _is_shortlist(predictions: Predictions, rows: int, classes: int) -> bool:
    columns, logits = predictions.columns, predictions.logits
    if len(columns) != rows or columns.shape[1] < 2 or (rows and (columns.min() < 0 or columns.max() >= classes)):
        return False
    in_order = np.sort(columns, axis=1)
    doubled = (in_order[:, 1:] == in_order[:, :-1]).any()
    return not doubled and not (logits[:, :-1].max(axis=1, initial=-np.inf) < logits[:, -1]).any()


def _stated(path: Path, text: str, kinds: Mapping[str, type], of_what: str) -> dict[str, Any]:
    """What a file says in JSON of a thing, by name; empty where it says nothing."""
    try:
        found = dict(json.loads(text))
    except (TypeError, ValueError, RecursionError):
        found = {"": None}
    if found and {name: type(value) for name, value in found.items()} != kinds:
        raise damaged(path, f"does not state {of_what}")
    return found


def _kind(array: np.ndarray | None) -> tuple[str, int] | None:
    return None if array is None else (array.dtype.kind, array.ndim)
