"""The file a competition scores: in the sample submission's form, and checked before it is written."""

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.base.errors import UserError, warn
from common.base.files import write_file
from common.base.strict_csv import read_columns, row_of
from common.base.words import names_in_short, rows_named
from common.data.labels import split_names, told_separator
from common.runs.predictions import Predictions, check_predictions, rows_in_order
from common.score.label_sets import names_in
from common.score.logits import Outputs, blocks
from common.score.task import MULTICLASS, Task

Fault = tuple[int, str, str]  # index of a row, what is wrong with it, what to do


# ---- the forms


@dataclass(frozen=True)
class Form:
    """One way to write answers into a csv: what a sample of it has, what is written, and what must hold of it."""

    words: str  # its columns, in words
    # Cells of a sample by column, names of the outputs -> number of the id's column, None: it is of another form.
    reads: Callable[[Mapping[str, Sequence[str]], Sequence[str]], int | None]
    cells: Callable[[Predictions, "Sheet"], Iterator[Sequence[str]]]  # those but the id's, row by row
    # Such cells, names of the outputs, separator of label sets -> what is wrong.
    checks: Callable[[Iterable[Sequence[str]], Sequence[str], str], Iterator[Fault]]


def reads_label(sample: Mapping[str, Sequence[str]], outputs: Sequence[str]) -> int | None:
    """Two columns: the id is the first, and the second is empty or has at least one class."""
    if len(sample) != 2:
        return None
    answers = set(list(sample.values())[1]) - {""}
    return 0 if not answers or answers & set(outputs) else None


def label_cells(predictions: Predictions, sheet: "Sheet") -> Iterator[Sequence[str]]:
    """What is predicted, as text."""
    return zip(predictions.predicted, strict=True)


def check_labels(rows: Iterable[Sequence[str]], outputs: Sequence[str], separator: str) -> Iterator[Fault]:
    """Every label is a class."""
    known = set(outputs)
    for index, (label,) in enumerate(rows):
        if label not in known:
            yield index, f"label {label or 'empty'} is not a class", f"the classes are {names_in_short(outputs)}"


def reads_probabilities(sample: Mapping[str, Sequence[str]], outputs: Sequence[str]) -> int | None:
    """A column per class, in any order, and another one."""
    known = set(outputs)
    others = [at for at, column in enumerate(sample) if column not in known]
    return others[0] if len(sample) == len(outputs) + 1 > 2 and len(others) == 1 else None


def probability_cells(predictions: Predictions, sheet: "Sheet") -> Iterator[Sequence[str]]:
    """The probability of each column's class or label, with nine digits."""
    number = {name: at for at, name in enumerate(predictions.classes)}
    wanted = [number[name] for name in sheet.asked]
    for rows in blocks(len(predictions.ids), len(number)):
        for shares in predictions.task.probabilities(Outputs(predictions.long(rows)))[:, wanted]:
            yield [f"{share:.9g}" for share in shares]


def check_probabilities(rows: Iterable[Sequence[str]], outputs: Sequence[str], separator: str) -> Iterator[Fault]:
    """Every row holds numbers from 0 to 1 that sum to 1."""
    for index, cells in enumerate(rows):
        if not _are_probabilities(cells):
            what = f"{', '.join(cells[:12])} are not probabilities that sum to 1"
            yield index, what, "predict the test set again"


def reads_probability(sample: Mapping[str, Sequence[str]], outputs: Sequence[str]) -> int | None:
    """An id and numbers from 0 to 1, at least one of them between, and two classes."""
    if len(sample) != 2 or len(outputs) != 2:
        return None
    answers = set(list(sample.values())[1])
    return 0 if all(map(_is_probability, answers)) and not answers & {"0", "1", *outputs} else None


def check_probability(rows: Iterable[Sequence[str]], outputs: Sequence[str], separator: str) -> Iterator[Fault]:
    """Every cell is a number from 0 to 1."""
    for index, cells in enumerate(rows):
        if wrong := [cell for cell in cells if not _is_probability(cell)]:
            yield index, f"{wrong[0]} is no probability", "predict the test set again"


def positive_class(column: str, outputs: Sequence[str], positive: str = "") -> str:
    """The class whose probability is asked for: ``positive``, the one that its column is called like, or 1 of 0 and 1.

    Raises:
        UserError: it cannot be told, or is no class.
    """
    if positive and positive not in outputs:
        raise UserError("--positive", f"{positive} is no class", f"the classes are {names_in_short(outputs)}")
    for name in (positive, column, "1"):
        if name in outputs:
            return name
    what = f"the sample's column {column} asks for the probability of one of the classes {' and '.join(outputs)}"
    raise UserError("--positive", f"is missing: {what}", f"name it, such as --positive {outputs[-1]}")


# ---- label sets


def reads_label_sets(sample: Mapping[str, Sequence[str]], outputs: Sequence[str]) -> int | None:
    """Two columns: the id is the first, and the second is empty or has a cell that names labels alone."""
    if len(sample) != 2:
        return None
    answers, known = set(list(sample.values())[1]) - {""}, set(outputs)
    separator = told_separator(answers)
    return 0 if not answers or any(known.issuperset(split_names(cell, separator)) for cell in answers) else None


def label_set_cells(predictions: Predictions, sheet: "Sheet") -> Iterator[Sequence[str]]:
    """The names of the labels that are predicted, as the sample separates them."""
    return ((sheet.separator.join(names_in(label)),) for label in predictions.predicted)


def check_label_sets(rows: Iterable[Sequence[str]], outputs: Sequence[str], separator: str) -> Iterator[Fault]:
    """Every name is a label."""
    known = set(outputs)
    for index, (cell,) in enumerate(rows):
        if unknown := [name for name in split_names(cell, separator) if name not in known]:
            yield index, f"{unknown[0]} is not a label", f"the labels are {names_in_short(outputs)}"


def reads_label_columns(sample: Mapping[str, Sequence[str]], outputs: Sequence[str]) -> int | None:
    """A column per label, in any order, with 0 or 1 in every cell, and another one."""
    at = reads_probabilities(sample, outputs)
    numbers = [cell for name, cells in sample.items() if name in set(outputs) for cell in cells]
    return at if set(numbers) <= {"0", "1", "0.0", "1.0"} else None


def label_column_cells(predictions: Predictions, sheet: "Sheet") -> Iterator[Sequence[str]]:
    """1 for a label that is predicted, 0 for one that is not."""
    number = {name: at for at, name in enumerate(predictions.classes)}
    wanted = [number[name] for name in sheet.asked]
    return (["1" if is_chosen else "0" for is_chosen in row] for row in predictions.predicted_targets[:, wanted])


FORMS = {
    "label": Form("id and label", reads_label, label_cells, check_labels),
    "probability": Form("id and a probability", reads_probability, probability_cells, check_probability),
    "probabilities": Form("id and one per class", reads_probabilities, probability_cells, check_probabilities),
    "labels": Form("id and labels", reads_label_sets, label_set_cells, check_label_sets),
    "label-columns": Form("id and 0 or 1 per label", reads_label_columns, label_column_cells, check_probability),
    "label-probabilities": Form(
        "id and a probability per label", reads_probabilities, probability_cells, check_probability
    ),
}


# ---- the file


@dataclass(frozen=True)
class Sheet:
    """What a submission must look like."""

    columns: list[str]  # in their order
    id_column: int  # which of them holds the ids
    ids: list[str]  # in the order of the rows
    form: str  # of FORMS
    positive: str = ""  # the class whose probability the only column holds
    separator: str = " "  # between the names of a label set

    @property
    def asked(self) -> list[str]:
        """What the columns but the id's are to hold, by the names of the outputs where there are such."""
        return [self.positive] if self.positive else self.without_id(self.columns)

    def without_id(self, row: Sequence[str]) -> list[str]:
        """The other cells of a row, or names of the other columns."""
        return [*row[: self.id_column], *row[self.id_column + 1 :]]


def read_form(
    sample: str,
    ids: Sequence[str] | np.ndarray,
    outputs: Sequence[str],
    task: Task = MULTICLASS,
    form: str = "",
    positive: str = "",
    separator: str = "",
) -> Sheet:
    """What a sample submission asks for, checked against the test's ids; ``outputs`` are the names of the task's.

    The task's forms are asked in turn whether the sample is of theirs, unless ``form`` says which it is. ``positive``
    is the class whose probability may be asked for; ``separator`` stands between the names of a label set where no cell
    of the sample has two. Call it before slow work: a wrong sample then costs no time.

    Raises:
        UserError: a sample that cannot be read, is of no form, or does not name exactly the test's ids.
    """
    cells = read_columns(Path(sample))
    columns = list(cells)
    if form and form not in task.forms:
        raise UserError("--submit", f"there is no form {form}", f"use {', '.join(task.forms)}")
    for name in [form] if form else task.forms:
        id_column = FORMS[name].reads(cells, outputs)
        if form in ("label", "probability", "labels") and len(columns) == 2:
            id_column = 0
        if id_column is not None:
            wanted = positive_class(columns[1], outputs, positive) if name == "probability" else ""
            answers = cells[columns[1]] if len(columns) == 2 else ()
            between = told_separator(answers) or separator or " "
            sheet = Sheet(columns, id_column, list(cells[columns[id_column]]), name, wanted, between)
            _check_ids(sample, sheet.ids, ids)
            return sheet
    known = f"the classes are {names_in_short(outputs)}"
    if len(columns) == 2 and not form:
        _check_ids(sample, cells[columns[0]], ids)
        answers = names_in_short(sorted(set(cells[columns[1]]) - {""}))
        what = f"has {answers} in column {columns[1]}, and none of them is a class"
        raise UserError(sample, what, f"{known}; if these are wanted nevertheless, say --submit label")
    words = " nor ".join(FORMS[name].words for name in ([form] if form else task.forms))
    raise UserError(sample, f"has the columns {', '.join(columns[:12])}, neither {words}", known)


def write_submission(
    path: Path,
    predictions: Predictions,
    sample: str = "",
    oof_predicted: Sequence[str] | np.ndarray = (),
    form: str = "",
    positive: str = "",
    separator: str = "",
) -> None:
    """Write the submission of ``predictions`` in the form of ``sample`` (a csv file, "" for none), checked.

    Args:
        path: the file to write.
        predictions: of every test row.
        sample: the competition's sample submission; without one the columns are the predictions' ``id_name`` and
            ``label_name``, the rows in their order.
        oof_predicted: the labels that the same models predict out of fold (text). Where the test's class shares
            differ wildly from them, a warning says so. Empty: not compared.
        form: of FORMS, where the sample's own is not meant.
        positive: the class whose probability a sample with one probability asks for; empty where that can be told.
        separator: between the names of a label set, where the sample does not show it.

    Raises:
        UserError: the sample does not fit, or the finished file would not be valid; nothing is written.
    """
    check_predictions(path, predictions)
    if sample:
        sheet = read_form(sample, predictions.ids, predictions.classes, predictions.task, form, positive, separator)
    else:
        columns = [predictions.id_name, predictions.label_name]
        sheet = Sheet(columns, 0, list(predictions.ids), predictions.task.forms[0], separator=separator or " ")
    ordered = rows_in_order(predictions, sheet.ids, str(path))
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(sheet.columns)
    rows = FORMS[sheet.form].cells(ordered, sheet)
    for row_id, cells in zip(sheet.ids, rows, strict=True):
        writer.writerow([*cells[: sheet.id_column], row_id, *cells[sheet.id_column :]])
    check_submission(str(path), content.getvalue(), sheet, predictions.classes)
    predicted = predictions.predicted
    for difference in share_differences(predicted, oof_predicted, predictions.task):
        warn(f"{path}: {difference}: was the test set read and prepared like the train table?")
    write_file(path, content.getvalue())


def check_submission(where: str, content: str, sheet: Sheet, outputs: Sequence[str]) -> None:
    """Read a finished submission again and compare it with what it must be.

    Raises:
        UserError: other columns, other ids, another order or count, or cells that its form does not allow.
    """
    columns, *rows = csv.reader(io.StringIO(content, newline=""))
    if columns != sheet.columns:
        raise UserError(where, f"has the columns {', '.join(columns)}", f"expected {', '.join(sheet.columns)}")
    ids = [row[sheet.id_column] for row in rows]
    _check_ids(where, ids, sheet.ids)
    for index, (row_id, expected) in enumerate(zip(ids, sheet.ids, strict=True)):
        if row_id != expected:
            raise UserError(row_of(where, index), f"has id {row_id}", f"expected {expected}: keep the order")
    fault = next(FORMS[sheet.form].checks(map(sheet.without_id, rows), outputs, sheet.separator), None)
    if fault:
        index, what, remedy = fault
        raise UserError(row_of(where, index), what, remedy)


def share_differences(
    predicted: Sequence[str] | np.ndarray, oof_predicted: Sequence[str] | np.ndarray, task: Task = MULTICLASS
) -> list[str]:
    """The classes or labels that the test set gets wildly more or less often than the OOF rows, one line each.

    Wildly means both: less than half or more than twice the OOF's share, and a difference of more than five standard
    errors (pooled two-proportion test). The first alone would fire on rare classes and small tests by chance; the
    second alone fires on any harmless drift once there are tens of thousands of rows. Five standard errors are one
    false alarm in 1.7 million comparisons, so a thousand classes do not raise one. Predictions are compared with
    predictions, since both lean the same way.
    """
    n, m = len(predicted), len(oof_predicted)
    if not n or not m:
        return []
    ours, theirs = (
        Counter(name for label in labels for name in task.names_in(str(label))) for labels in (predicted, oof_predicted)
    )
    lines = []
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = ours[name] / n, theirs[name] / m
        pooled = (ours[name] + theirs[name]) / (n + m)
        error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        if abs(here - there) > 5 * error and not there / 2 <= here <= 2 * there:
            lines.append(f"{here:.1%} of the test rows are {name}, but {there:.1%} of the OOF rows")
    return lines


def _check_ids(where: str, ids: Sequence[str], test_ids: Sequence[str] | np.ndarray) -> None:
    doubled = [row_id for row_id, count in Counter(ids).items() if count > 1]
    if doubled:
        raise UserError(where, f"contains duplicate ids: {rows_named(doubled)}", "list every id once")
    given, known = set(ids), set(test_ids)
    missing = [row_id for row_id in test_ids if row_id not in given]
    unknown = [row_id for row_id in ids if row_id not in known]
    if missing or unknown:
        parts = [f"lacks {rows_named(missing)} of the test set" if missing else ""]
        parts += [f"names {rows_named(unknown)} that the test set lacks" if unknown else ""]
        raise UserError(
            where, " and ".join(filter(None, parts)), "use the sample submission and test table of the same competition"
        )


def _is_probability(cell: str) -> bool:
    try:
        return 0 <= float(cell) <= 1
    except ValueError:
        return False


def _are_probabilities(values: Sequence[str]) -> bool:
    try:
        shares = [float(value) for value in values]
    except ValueError:
        return False
    return all(0 <= share <= 1 for share in shares) and math.isclose(sum(shares), 1, abs_tol=1e-6)
