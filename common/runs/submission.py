"""The file a competition scores: in the sample submission's form, and checked before it is written."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.base.errors import UserError, warn
from common.base.files import write_file
from common.base.strict_csv import read_cells, row_of
from common.base.words import names_in_short, rows_named
from common.runs.predictions import Predictions, check_predictions, rows_in_order
from common.score.logits import blocks, softmax


@dataclass(frozen=True)
class Form:
    """What a submission must look like."""

    columns: list[str]  # in their order
    id_column: int  # which of them holds the ids
    ids: list[str]  # in the order of the rows
    probabilities: bool  # one column per class instead of one label


def read_form(sample: str, ids: Sequence[str] | np.ndarray, classes: Sequence[str]) -> Form:
    """The form that a sample submission asks for, checked against the test's ids and the class list.

    A sample whose other columns are the class list asks for probabilities; any other one has the id in its first
    column and the label in its second. Call it before slow work: a wrong sample then costs no time.

    Raises:
        UserError: a sample that cannot be read, has other columns, or does not name exactly the test's ids.
    """
    cells = read_cells(Path(sample))
    columns = list(cells)
    known = set(classes)
    others = [column for column in columns if column not in known]
    probabilities = len(columns) == len(classes) + 1 > 2 and len(others) == 1
    if len(columns) != 2 and not probabilities:
        what = f"has the columns {', '.join(columns[:12])}, neither id and label nor id and one per class"
        raise UserError(sample, what, f"the classes are {', '.join(classes[:12])}")
    id_column = columns.index(others[0]) if probabilities else 0
    form = Form(columns, id_column, list(cells[columns[id_column]]), probabilities)
    _check_ids(sample, form.ids, ids)
    return form


def write_submission(
    path: Path, predictions: Predictions, sample: str = "", oof_predicted: Sequence[str] | np.ndarray = ()
) -> None:
    """Write the submission of ``predictions`` in the form of ``sample`` (a csv file, "" for none), checked.

    Args:
        path: the file to write.
        predictions: of every test row.
        sample: the competition's sample submission; without one the columns are the predictions' ``id_name`` and
            ``label_name``, the rows in their order.
        oof_predicted: the labels that the same models predict out of fold (text). Where the test's class shares
            differ wildly from them, a warning says so. Empty: not compared.

    Raises:
        UserError: the sample does not fit, or the finished file would not be valid; nothing is written.
    """
    check_predictions(path, predictions)
    if sample:
        form = read_form(sample, predictions.ids, predictions.classes)
    else:
        form = Form([predictions.id_name, predictions.label_name], 0, list(predictions.ids), probabilities=False)
    ordered = rows_in_order(predictions, form.ids, str(path))
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(form.columns)
    if form.probabilities:
        number = {name: at for at, name in enumerate(predictions.classes)}
        class_columns = [number[name] for name in form.columns if name in number]
        for rows in blocks(len(form.ids), len(number)):
            probabilities = softmax(ordered.long(rows))[:, class_columns]
            for row_id, shares in zip(form.ids[rows], probabilities, strict=True):
                cells = [f"{share:.9g}" for share in shares]
                writer.writerow([*cells[: form.id_column], row_id, *cells[form.id_column :]])
    else:
        writer.writerows(zip(form.ids, ordered.predicted, strict=True))
    check_submission(str(path), content.getvalue(), form, predictions.classes)
    for difference in share_differences(predictions.predicted, oof_predicted):
        warn(f"{path}: {difference}: was the test set read and prepared like the train table?")
    write_file(path, content.getvalue())


def check_submission(where: str, content: str, form: Form, classes: Sequence[str]) -> None:
    """Read a finished submission again and compare it with what it must be.

    Raises:
        UserError: other columns, other ids, another order or count, a label outside the class list, a probability
            that is not a number from 0 to 1, or a row of them that does not sum to 1.
    """
    columns, *rows = csv.reader(io.StringIO(content, newline=""))
    if columns != form.columns:
        raise UserError(where, f"has the columns {', '.join(columns)}", f"expected {', '.join(form.columns)}")
    ids = [row[form.id_column] for row in rows]
    _check_ids(where, ids, form.ids)
    for index, (row_id, expected) in enumerate(zip(ids, form.ids, strict=True)):
        if row_id != expected:
            raise UserError(row_of(where, index), f"has id {row_id}", f"expected {expected}: keep the order")
    domain = set(classes)
    for index, row in enumerate(rows):
        values = row[: form.id_column] + row[form.id_column + 1 :]
        if not form.probabilities and values[0] not in domain:
            what = f"label {values[0] or 'empty'} is not a class"
            raise UserError(row_of(where, index), what, f"the classes are {names_in_short(classes)}")
        if form.probabilities and not _are_probabilities(values):
            what = f"{', '.join(values[:12])} are not probabilities that sum to 1"
            raise UserError(row_of(where, index), what, "predict the test set again")


def share_differences(predicted: Sequence[str] | np.ndarray, oof_predicted: Sequence[str] | np.ndarray) -> list[str]:
    """The classes that the test set gets wildly more or less often than the OOF rows, one line each.

    Wildly means both: less than half or more than twice the OOF's share, and a difference of more than five standard
    errors (pooled two-proportion test). The first alone would fire on rare classes and small tests by chance; the
    second alone fires on any harmless drift once there are tens of thousands of rows. Five standard errors are one
    false alarm in 1.7 million comparisons, so a thousand classes do not raise one. Predictions are compared with
    predictions, since both lean the same way.
    """
    n, m = len(predicted), len(oof_predicted)
    if not n or not m:
        return []
    ours, theirs = Counter(map(str, predicted)), Counter(map(str, oof_predicted))
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
        parts = [f"lacks {rows_named(missing)} of the test set"] * bool(missing)
        parts += [f"names {rows_named(unknown)} that the test set lacks"] * bool(unknown)
        raise UserError(where, " and ".join(parts), "use the sample submission and test table of the same competition")


def _are_probabilities(values: Sequence[str]) -> bool:
    try:
        shares = [float(value) for value in values]
    except ValueError:
        return False
    return all(0 <= share <= 1 for share in shares) and math.isclose(sum(shares), 1, abs_tol=1e-6)
