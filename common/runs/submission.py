"""The file a competition scores: in the sample submission's form, and checked before it is written."""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.base.errors import UserError, warn
from common.base.files import write_file
from common.base.strict_csv import read_columns, row_of
from common.base.words import names_in_short, rows_named
from common.data.labels import split_names, told_separator
from common.runs.predictions import Predictions, check_predictions, rows_in_order
from common.score.label_sets import names_in
from common.score.logits import Outputs, blocks
from common.score.metrics import METRICS, check_positive, depth_of
from common.score.numbers import number_in
from common.score.task import MULTICLASS, Task

Fault = tuple[int, str, str]  # index of a row, what is wrong with it, what to do
TOP = 5  # names in a cell, where neither sample nor metric says how many


# ---- the forms


@dataclass(frozen=True)
class Asked:
    """What a form is told by: a sample's cells by column, and the competition's metric, "" if it is not known."""

    cells: Mapping[str, Sequence[str]]
    metric: str = ""

    @cached_property
    def answers(self) -> set[str]:
        """The distinct cells of the second column, but for empty ones."""
        return set(list(self.cells.values())[1]) - {""}

    @property
    def wants_probabilities(self) -> bool:
        """Whether the metric tells apart what 0 and 1 do not."""
        return bool(self.metric) and METRICS[self.metric].looks_at == "probabilities"

    @property
    def separator(self) -> str:
        """What stands between names in a cell; "" where none has two."""
        return told_separator(self.answers) if len(self.cells) == 2 else ""

    @property
    def names(self) -> int:
        """How many names a cell of the second column holds at most."""
        return max((len(answer.split()) for answer in self.answers), default=0)


@dataclass(frozen=True)
class Form:
    """One way to write answers into a csv: what a sample of it has, what is written, and what must hold of it."""

    words: str  # its columns, in words
    # A sample, names of the outputs -> number of the id's column, None: it is of another form.
    reads: Callable[[Asked, Sequence[str]], int | None]
    # Predictions, what the file must look like -> the cells of the columns without the id's, row by row.
    cells: Callable[[Predictions, "Sheet"], Iterator[Sequence[str]]]
    # Such cells, names of the outputs, separator of label sets -> what is wrong.
    checks: Callable[[Iterable[Sequence[str]], Sequence[str], str], Iterator[Fault]]
    of_probabilities: bool = False  # what a temperature changes
    has_more: bool = False  # whether columns that are no output's are labels that no training row has


def reads_label(asked: Asked, outputs: Sequence[str]) -> int | None:
    """Two columns: the id is the first, and the second is empty or has at least one class."""
    if len(asked.cells) != 2:
        return None
    return 0 if not asked.answers or asked.answers & set(outputs) else None


def label_cells(predictions: Predictions, sheet: "Sheet") -> Iterator[Sequence[str]]:
    """What is predicted, as text."""
    return zip(predictions.predicted, strict=True)


def check_labels(rows: Iterable[Sequence[str]], outputs: Sequence[str], separator: str) -> Iterator[Fault]:
    """Every label is a class."""
    known = set(outputs)
    for index, (label,) in enumerate(rows):
        if label not in known:
            yield index, f"label {label or 'empty'} is not a class", f"the classes are {names_in_short(outputs)}"


def reads_probabilities(asked: Asked, outputs: Sequence[str]) -> int | None:
    """A column per class, in any order, and another one."""
    known = set(outputs)
    others = [at for at, column in enumerate(asked.cells) if column not in known]
    return others[0] if len(asked.cells) == len(outputs) + 1 > 2 and len(others) == 1 else None


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


def reads_probability(asked: Asked, outputs: Sequence[str]) -> int | None:
    """Two classes, an id, and numbers from 0 to 1 that are no classes; or 0 and 1, where the metric looks at more."""
    if len(asked.cells) != 2 or len(outputs) != 2 or not all(map(_is_probability, asked.answers)):
        return None
    return 0 if asked.wants_probabilities or asked.answers and not asked.answers & set(outputs) else None


def check_probability(rows: Iterable[Sequence[str]], outputs: Sequence[str], separator: str) -> Iterator[Fault]:
    """Every cell is a number from 0 to 1."""
    for index, cells in enumerate(rows):
        if wrong := [cell for cell in cells if not _is_probability(cell)]:
            yield index, f"{wrong[0]} is no probability", "predict the test set again"


def reads_top(asked: Asked, outputs: Sequence[str]) -> int | None:
    """An id and cells of several names, at least one of them a class; no class has a space in its own name."""
    if len(asked.cells) != 2 or any(" " in name for name in outputs):
        return None
    names = {name for answer in asked.answers for name in answer.split()}
    return 0 if asked.names > 1 and names & set(outputs) else None


def top_cells(predictions: Predictions, sheet: "Sheet") -> Iterator[Sequence[str]]:
    """The names of the likeliest classes, the likeliest first; of equal ones the first class, as in argmax."""
    names = np.asarray(predictions.classes, dtype=object)
    for rows in blocks(len(predictions.ids), len(names)):
        order = np.argsort(-predictions.long(rows), axis=1, kind="stable")[:, : sheet.names]
        for likeliest in names[order]:
            yield [" ".join(likeliest)]


def check_top(rows: Iterable[Sequence[str]], outputs: Sequence[str], separator: str) -> Iterator[Fault]:
    """Every cell holds classes, none twice."""
    known = set(outputs)
    for index, (cell,) in enumerate(rows):
        names = cell.split()
        if not names or len(set(names)) < len(names) or not set(names) <= known:
            yield index, f"{cell or 'empty'} is no list of classes", f"the classes are {names_in_short(outputs)}"


# ---- label sets


def reads_label_sets(asked: Asked, outputs: Sequence[str]) -> int | None:
    """Two columns: the id is the first, and the second is empty or has a cell that names labels alone."""
    if len(asked.cells) != 2:
        return None
    answers, known, separator = asked.answers, set(outputs), asked.separator
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


def reads_label_probabilities(asked: Asked, outputs: Sequence[str]) -> int | None:
    """A column per label, in any order, and another one; further ones are labels that no training row has."""
    others = [at for at, column in enumerate(asked.cells) if column not in set(outputs)]
    return others[0] if set(outputs) <= asked.cells.keys() and others and len(asked.cells) > 2 else None


def label_probability_cells(predictions: Predictions, sheet: "Sheet") -> Iterator[Sequence[str]]:
    """The probability of each column's label, with nine digits; 0 for one that no training row has."""
    return _label_cells(predictions, sheet, predictions.task.probabilities(predictions.outputs), ".9g")


def _label_cells(predictions: Predictions, sheet: "Sheet", values: np.ndarray, shown: str) -> Iterator[Sequence[str]]:
    number = {name: at for at, name in enumerate(predictions.classes)}
    wanted = [number.get(name, -1) for name in sheet.asked]
    return ([f"{row[at]:{shown}}" if at >= 0 else "0" for at in wanted] for row in values)


def reads_label_columns(asked: Asked, outputs: Sequence[str]) -> int | None:
    """A column per label, in any order, with 0 or 1 in every cell, and another one; the metric looks at no more."""
    at = reads_label_probabilities(asked, outputs)
    numbers = [cell for name, cells in asked.cells.items() if name in set(outputs) for cell in cells]
    return None if asked.wants_probabilities or not set(numbers) <= {"0", "1", "0.0", "1.0"} else at


def label_column_cells(predictions: Predictions, sheet: "Sheet") -> Iterator[Sequence[str]]:
    """1 for a label that is predicted, 0 for one that is not."""
    return _label_cells(predictions, sheet, predictions.predicted_targets.astype(int), "d")


# ---- numbers


def reads_numbers(asked: Asked, outputs: Sequence[str]) -> int | None:
    """An id and a column a target: of one target whatever it is called; cells are numbers or empty."""
    known = set(outputs) & asked.cells.keys()
    others = [at for at, name in enumerate(asked.cells) if name not in known]
    if len(asked.cells) != len(outputs) + 1 or (len(others) != 1 and len(outputs) > 1):
        return None
    at, names = others[0], list(asked.cells)
    cells = [cell for name in names if name != names[at] for cell in asked.cells[name] if cell]
    return at if not any(map(math.isnan, map(number_in, cells))) else None


def number_cells(predictions: Predictions, sheet: "Sheet") -> Iterator[Sequence[str]]:
    """The numbers that are predicted, with as many digits as it takes to read back the same."""
    number = {name: at for at, name in enumerate(predictions.classes)}
    wanted = [number.get(name, 0) for name in sheet.asked]  # of one target the column may be called otherwise
    return (list(map(str, row)) for row in predictions.predicted_targets[:, wanted])


def check_numbers(rows: Iterable[Sequence[str]], outputs: Sequence[str], separator: str) -> Iterator[Fault]:
    """Every cell is a finite number."""
    for index, cells in enumerate(rows):
        if wrong := [cell for cell in cells if math.isnan(number_in(cell))]:
            yield index, f"{wrong[0] or 'empty'} is not a number", "predict the test set again"


FORMS = {
    "label": Form("id and label", reads_label, label_cells, check_labels),
    "probability": Form("id and a probability", reads_probability, probability_cells, check_probability, True),
    "probabilities": Form("id and one per class", reads_probabilities, probability_cells, check_probabilities, True),
    "top": Form("id and several names in a cell", reads_top, top_cells, check_top),
    "labels": Form("id and labels", reads_label_sets, label_set_cells, check_label_sets),
    "label-columns": Form(
        "id and 0 or 1 per label", reads_label_columns, label_column_cells, check_probability, has_more=True
    ),
    "label-probabilities": Form(
        "id and a probability per label",
        reads_label_probabilities,
        label_probability_cells,
        check_probability,
        of_probabilities=True,
        has_more=True,
    ),
    "numbers": Form("id and a number per target column", reads_numbers, number_cells, check_numbers),
}


def form_named(form: str, known: Sequence[str]) -> tuple[str, int]:
    """``top5`` as its row of FORMS and its number of names, 0 where none is said.

    Raises:
        UserError: no such form, or none of the task's, ``known``.
    """
    name, digits = re.fullmatch("(.*?)([0-9]*)", form).groups()
    if name not in known or digits and (name != "top" or int(digits) < 1):
        raise UserError("--submit", f"there is no form {form}", f"use {', '.join(known)}, such as top5")
    return name, int(digits or 0)


def positive_class(column: str, outputs: Sequence[str], positive: str = "") -> str:
    """The class whose probability is asked for: ``positive``, the one that its column is called like, 1 of 0 and 1,
    or else the second one.

    Raises:
        UserError: ``positive`` is no class.
    """
    check_positive(positive, outputs)
    return next(name for name in (positive, column, "1", outputs[-1]) if name in outputs)


# ---- the file


@dataclass(frozen=True)
class Sheet:
    """What a submission must look like."""

    columns: list[str]  # in their order
    id_column: int  # which of them holds the ids
    ids: list[str]  # in the order of the rows
    form: str  # of FORMS
    positive: str = ""  # the class whose probability the only column holds
    names: int = 0  # how many a cell of the form top holds
    separator: str = " "  # between the names of a label set

    @property
    def asked(self) -> list[str]:
        """What the columns but the id's are to hold, by the names of the outputs where there are such."""
        return [self.positive] if self.positive else self.without_id(self.columns)

    @property
    def as_stored(self) -> dict[str, Any]:
        """All but the ids, as test.npz keeps it."""
        return {name: value for name, value in asdict(self).items() if name != "ids"}

    def without_id(self, row: Sequence[str]) -> list[str]:
        """The other cells of a row, or names of the other columns."""
        return [*row[: self.id_column], *row[self.id_column + 1 :]]


@dataclass(frozen=True)
class Wishes:
    """What a user or competition.json says of a submission beside the sample; "" where nothing is said."""

    form: str = ""  # of FORMS, where the sample's own is not meant
    positive: str = ""  # the class whose probability is asked for
    metric: str = ""  # the competition's
    separator: str = ""  # between the names of a label set, where no cell of the sample has two


def read_form(
    sample: str, ids: Sequence[str] | np.ndarray, outputs: Sequence[str], task: Task, wishes: Wishes = Wishes()
) -> Sheet:
    """What a sample submission asks for, checked against the test's ids; ``outputs`` are the names of the task's.

    The task's forms are asked in turn whether the sample is of theirs, unless the wishes say which it is. Call it
    before slow work: a wrong sample then costs no time.

    Raises:
        UserError: a sample that cannot be read, is of no form, or does not name exactly the test's ids.
    """
    asked = Asked(read_columns(Path(sample)), wishes.metric)
    columns = list(asked.cells)
    form, names = form_named(wishes.form, task.forms) if wishes.form else ("", 0)
    # A probability first: of samples of 0 and 1, which may be classes as well, the metric decides.
    for name in [form] if form else sorted(task.forms, key=lambda name: name != "probability"):
        id_column = FORMS[name].reads(asked, outputs)
        if form in ("label", "probability", "top", "labels") and len(columns) == 2:
            id_column = 0
        if id_column is not None:
            _check_ids(sample, asked.cells[columns[id_column]], ids)
            sheet = Sheet(columns, id_column, list(asked.cells[columns[id_column]]), name)
            if FORMS[name].has_more and (new := sorted(set(sheet.without_id(columns)) - set(outputs))):
                warn(f"{sample}: no training row has {names_in_short(new)}: 0 in every row")
            wishes = replace(wishes, separator=asked.separator or wishes.separator)
            return _filled_in(sheet, outputs, wishes, names or (asked.names if len(columns) == 2 else 0))
    known = f"the {task.outputs_are} are {names_in_short(outputs)}"
    if len(columns) == 2 and not form and not task.is_number:
        _check_ids(sample, asked.cells[columns[0]], ids)
        what = f"has {names_in_short(sorted(asked.answers))} in column {columns[1]}, and none of them is a class"
        remedy = f"{known}; if these are wanted nevertheless, say --submit {task.forms[0]}"
        raise UserError(sample, what, remedy)
    words = " nor ".join(FORMS[name].words for name in ([form] if form else task.forms))
    raise UserError(sample, f"has the columns {', '.join(columns[:12])}, neither {words}", known)


def _filled_in(sheet: Sheet, outputs: Sequence[str], wishes: Wishes, names: int) -> Sheet:
    """The sheet with what its form leaves open: the positive class, the number of ``names`` (0: not said), what stands
    between names."""
    if sheet.form == "probability":
        column = sheet.without_id(sheet.columns)[0]
        return replace(sheet, positive=positive_class(column, outputs, wishes.positive))
    if sheet.form == "top":
        names = names if names > 1 else depth_of(wishes.metric) or TOP
        return replace(sheet, names=min(names, len(outputs)))
    return replace(sheet, separator=wishes.separator or " ")


def sheet_without_sample(predictions: Predictions, wishes: Wishes) -> Sheet:
    """What a submission looks like that no sample describes: the form that the predictions were written in before, or
    their own names of columns and the task's first form; the wishes override both.

    Raises:
        UserError: no such form.
    """
    task, outputs, stored = predictions.task, predictions.classes, predictions.form
    form, names = form_named(wishes.form, task.forms) if wishes.form else (stored.get("form", task.forms[0]), 0)
    ids = list(predictions.ids)
    if stored and form == stored["form"] and not (wishes.positive or names):
        return Sheet(**stored, ids=ids)
    if form == "probability" and len(outputs) != 2:
        raise UserError("--submit", f"probability needs two classes, not {len(outputs)}", "use probabilities")
    answers = [predictions.label_name] if form in ("label", "probability", "top", "labels") else outputs
    return _filled_in(Sheet([predictions.id_name, *answers], 0, ids, form), outputs, wishes, names)


def write_submission(
    path: Path, predictions: Predictions, sheet: Sheet, oof_predicted: Sequence[str] | np.ndarray = ()
) -> None:
    """Write the submission of ``predictions`` as ``sheet`` says it must look (:func:`sheet_of`), checked.

    Args:
        path: the file to write.
        predictions: of every test row.
        sheet: what the file must look like.
        oof_predicted: the labels that the same models predict out of fold (text). Where the test's class shares
            differ wildly from them, a warning says so. Empty: not compared.

    Raises:
        UserError: the finished file would not be valid; nothing is written.
    """
    check_predictions(path, predictions)
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


def sheet_of(predictions: Predictions, sample: str = "", wishes: Wishes = Wishes()) -> Sheet:
    """What the submission of some predictions, whose logits are not looked at, must look like.

    ``sample`` is the competition's sample submission, a csv; "": see :func:`sheet_without_sample`.

    Raises:
        UserError: the sample cannot be read, is of no form, or does not name exactly these rows.
    """
    if sample:
        return read_form(sample, predictions.ids, predictions.classes, predictions.task, wishes)
    return sheet_without_sample(predictions, wishes)


def form_line(sheet: Sheet) -> str:
    """What the sample asks for, where it could be taken for another thing, in one line; "" where it could not."""
    column = sheet.without_id(sheet.columns)[0]
    if sheet.positive:
        return f"column {column}: the probability of {sheet.positive} (--positive, --submit label)"
    if sheet.form == "top":
        return f"column {column}: the {sheet.names} likeliest classes (--submit)"
    return ""


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
