"""Predictions made elsewhere, two csv files, as a run's folder: ensemble.py and report.py take it like any other."""

from pathlib import Path

import numpy as np

from common.base.errors import UserError
from common.base.files import check_folder, write_json
from common.base.strict_csv import read_columns, row_of
from common.base.words import names_in_short
from common.data.folds import Folds
from common.runs.layout import CONFIG_FILE, METRICS_FILE, OOF_FILE, TEST_FILE, fold_folder
from common.runs.predictions import Predictions, rows_in_order, write_predictions
from common.score.numbers import number_in
from common.score.task import Task

LEAST = 1e-15  # of a probability: below, a log loss would be endless
SUM = 1e-3  # how far from 1 the probabilities of a row may sum, from rounding
SOURCE = {"fold": "all", "tta": "none", "views": {}, "models": {}}  # of predictions without models of ours


def add_run(run_folder: Path, oof_csv: Path, test_csv: Path, folds: Folds) -> Predictions:
    """Write the folder of a run from its predictions of every held-out row and of the test rows; returns the former.

    Each csv has an id and a probability for each class or label, or a number for each target, in columns of their
    names; of two classes also one column, that of the positive one (--positive, or the second). Which folds they were
    made with cannot be told.

    Raises:
        UserError: the folder is there already; a row missing, doubled or unknown; cells that are no probabilities or
            numbers.
    """
    if run_folder.exists():
        raise UserError(str(run_folder), "exists already", "give these predictions another name")
    check_folder(run_folder)
    held_out = folds.fold >= 0
    oof = rows_in_order(read_answers(oof_csv, folds), folds.ids[held_out], str(oof_csv))
    test = read_answers(test_csv, folds)
    labels, fold = folds.labels[held_out], folds.fold[held_out]
    for k in range(folds.count):
        own, folder = fold == k, fold_folder(run_folder, k)
        part = Predictions(oof.ids[own], oof.logits[own], folds.output_names, labels[own], fold[own], task=folds.task)
        sha256 = write_predictions(folder / OOF_FILE, part)
        write_json(folder / CONFIG_FILE, {"added": oof_csv.name, "folds_fingerprint": folds.fingerprint})
        facts = {"folds_fingerprint": folds.fingerprint, "fold_count": folds.count, "sha256_of": {OOF_FILE: sha256}}
        write_json(folder / METRICS_FILE, facts | part.score())
    write_predictions(run_folder / TEST_FILE, test)
    return Predictions(oof.ids, oof.logits, folds.output_names, labels, fold, task=folds.task)


def read_answers(path: Path, folds: Folds) -> Predictions:
    """The predictions that a csv of probabilities or numbers holds, in its order.

    Raises:
        UserError: other columns than an id and those, an id twice, or a row that is none of them.
    """
    cells, task, names = read_columns(path), folds.task, folds.output_names
    others = [name for name in cells if name not in names]
    one = task.is_one_of and len(names) == 2 and len(cells) == 2 and not set(names) & set(cells)
    if not one and (len(others) != 1 or len(cells) != len(names) + 1):
        each = "number" if task.is_number else "probability"
        what = (
            f"has the columns {names_in_short(list(cells))}, not an id and a {each} for each of the {task.outputs_are}"
        )
        raise UserError(str(path), what, f"these are {names_in_short(names)}")
    columns = [others[-1]] if one else names
    given = np.array([[number_in(cell) for cell in cells[name]] for name in columns]).T
    if one:
        positive = names.index(task.positive) if task.positive in names else 1
        given = np.concatenate([1 - given, given] if positive else [given, 1 - given], axis=1)
    wrong, what = _wrong(task, given)
    if wrong.any():
        row = int(wrong.argmax())
        said = ", ".join(str(cells[name][row]) for name in columns[:12])
        raise UserError(row_of(path, row), f"{said} are not {what}", f"write {what.split()[0]}")
    outputs = _outputs_of(task, given).astype(np.float32)
    return Predictions(cells[others[0]], outputs, names, source=SOURCE, id_name=others[0], task=task)


def _wrong(task: Task, given: np.ndarray) -> tuple[np.ndarray, str]:
    """The rows, bool (n), of ``given`` (n, c) that no answer of the task has, and what they are to be."""
    if task.is_number:
        return ~np.isfinite(given).all(axis=1), "numbers"
    wrong = ~((given >= 0) & (given <= 1)).all(axis=1)
    if task.is_one_of:
        return wrong | ~(np.abs(given.sum(axis=1) - 1) <= SUM), "probabilities that sum to 1"
    return wrong, "probabilities"


def _outputs_of(task: Task, given: np.ndarray) -> np.ndarray:
    """What a net would have said: numbers as they are, logits of probabilities."""
    if task.is_number:
        return given
    logs = np.log(np.maximum(given, LEAST))
    return logs if task.is_one_of else logs - np.log(np.maximum(1 - given, LEAST))
