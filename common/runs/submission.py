"""The file a competition scores: in the sample submission's form, and checked before it is written."""

import csv
import io
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.base.errors import UserError, warn
from common.base.files import check_folder, write_file
from common.base.strict_csv import INDEX, read_columns, row_of
from common.base.words import names_in_short, rows_named
from common.data.labels import split_names
from common.data.spelling import same_but_for_spelling
from common.runs.forms import FORMS, Asked, Sheet, form_named, positive_class
from common.runs.predictions import Predictions, check_predictions, rows_in_order
from common.score.metrics import depth_of
from common.score.task import MULTICLASS, Task

TOP = 5  # names in a cell, where neither sample nor metric says how many


@dataclass(frozen=True)
class Wishes:
    """What a user or competition.json says of a submission beside the sample; "" where nothing is said."""

    form: str = ""  # of FORMS, where the sample's own is not meant
    positive: str = ""  # the class whose probability is asked for
    metric: str = ""  # the competition's
    separator: str = ""  # between the names of a label set, where no cell of the sample has two


@dataclass(frozen=True)
class Submitting:
    """What a script takes that writes a submission."""

    # the submission
    sample: str = ""  # the competition's sample submission (csv), whose columns, ids and order are taken
    submit: str = ""  # form of the submission: label, probability, probabilities, top5 (default: the sample's)
    positive: str = ""  # class whose probability is asked for (default: told by the sample, or the second)
    separator: str = ""  # between the names of a label set (default: as the sample or the train table has it)
    clip: bool = False  # numbers: keep answers within the range of the training targets, and say how many were outside
    submission: str = ""  # write the submission here as well, such as /kaggle/working/submission.csv

    def sheet_for(self, predictions: Predictions, metric: str, where: str = "") -> Sheet:
        """What the submission of ``predictions`` must look like, said where it can be taken for another thing.

        ``metric`` is the competition's; ``where`` stands before what is said.

        Raises:
            UserError: a sample of no known form, or of other rows.
        """
        wishes = Wishes(self.submit, self.positive, metric, self.separator)
        sheet = sheet_of(predictions, self.sample, wishes)
        if line := form_line(sheet):
            print(f"{where}{self.sample or 'submission'}: {line}")
        return sheet

    def check_place(self) -> None:
        """Refuse, before any work, a place that the submission cannot be written to."""
        if self.submission:
            check_folder(Path(self.submission).parent)


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
    said = _names_in(asked, task, wishes.separator)
    # A probability first: of samples of 0 and 1, which may be classes as well, the metric decides.
    for name in [form] if form else sorted(task.forms, key=lambda name: name != "probability"):
        says_so = form and FORMS[form].in_one_cell and len(columns) == 2
        id_column = 0 if says_so else FORMS[name].reads(asked, outputs)
        if id_column is not None:
            _check_ids(sample, asked.cells[columns[id_column]], ids)
            sheet = Sheet(columns, id_column, list(asked.cells[columns[id_column]]), name)
            if FORMS[name].has_more and (new := sorted(set(sheet.without_id(columns)) - set(outputs))):
                warn(f"{sample}: no training row has {names_in_short(new)}: 0 in every row")
            if name in ("label", "labels") and not form and (strange := said - set(outputs)):
                raise _no_classes(sample, asked, strange, said, task, outputs)
            wishes = replace(wishes, separator=asked.separator or wishes.separator)
            return _filled_in(sheet, outputs, wishes, names or (asked.names if len(columns) == 2 else 0))
    known = f"the {task.outputs_are} are {names_in_short(outputs)}"
    if len(columns) == 2 and not form and not task.is_number:
        _check_ids(sample, asked.cells[columns[0]], ids)
        raise _no_classes(sample, asked, said - set(outputs) or said, said, task, outputs)
    words = " nor ".join(FORMS[name].words for name in ([form] if form else task.forms))
    raise UserError(sample, f"has the columns {', '.join(columns[:12])}, neither {words}", known)


def _names_in(asked: Asked, task: Task, separator: str) -> set[str]:
    """What the cells of a sample's second column name: a class each, or the labels of a set."""
    if len(asked.cells) != 2 or task.is_number:
        return set()
    if task.is_one_of:
        return asked.answers
    return {name for cell in asked.answers for name in split_names(cell, asked.separator or separator)}


def _no_classes(
    sample: str, asked: Asked, strange: set[str], said: set[str], task: Task, outputs: Sequence[str]
) -> UserError:
    """What is told where some of what a sample ``said`` is ``strange``: no class or label; with the flags to go on."""
    called = "class" if task.is_one_of else "label"
    what = f"has {names_in_short(sorted(strange))} in column {list(asked.cells)[1]}, and "
    what += f"none of them is a {called}" if strange == said else f"that is no {called}"
    remedy = f"the {task.outputs_are} are {names_in_short(outputs)}; if these are wanted nevertheless, say --submit "
    remedy += task.forms[0]
    if len(outputs) == 2 and asked.are_shares:
        remedy += ", or --submit probability where a number is asked for"
    return UserError(sample, what, remedy)


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
    task, outputs, stored = predictions.task, predictions.output_names, predictions.form
    form, names = form_named(wishes.form, task.forms) if wishes.form else (stored.get("form", task.forms[0]), 0)
    ids = list(predictions.ids)
    if stored and form == stored["form"] and not (wishes.positive or names):
        return Sheet(**stored, ids=ids)
    if form == "probability" and len(outputs) != 2:
        raise UserError("--submit", f"probability needs two classes, not {len(outputs)}", "use probabilities")
    answers = [predictions.label_name] if FORMS[form].in_one_cell else outputs
    id_name = "id" if predictions.id_name == INDEX else predictions.id_name
    return _filled_in(Sheet([id_name, *answers], 0, ids, form), outputs, wishes, names)


def write_submission(
    path: Path, predictions: Predictions, sheet: Sheet, oof_predicted: Sequence[str] | np.ndarray = ()
) -> None:
    """Write the text of :func:`submission_text`; an earlier submission of another content is kept beside it.

    Raises:
        UserError: the finished file would not be valid; nothing is written.
    """
    text = submission_text(path, predictions, sheet, oof_predicted)
    keep_earlier(path, text.encode())
    write_file(path, text)


def submission_text(
    path: Path, predictions: Predictions, sheet: Sheet, oof_predicted: Sequence[str] | np.ndarray = ()
) -> str:
    """The submission of ``predictions`` as ``sheet`` says it must look (:func:`sheet_of`), checked.

    Args:
        path: the file that it is for.
        predictions: of every test row.
        sheet: what the file must look like.
        oof_predicted: the labels that the same models predict out of fold (text). Where the test's class shares
            differ wildly from them, a warning says so. Empty: not compared.

    Raises:
        UserError: the finished file would not be valid.
    """
    check_predictions(path, predictions)
    ordered = rows_in_order(predictions, sheet.ids, str(path))
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(sheet.columns)
    rows = FORMS[sheet.form].cells(ordered, sheet)
    for row_id, cells in zip(sheet.ids, rows, strict=True):
        writer.writerow([*cells[: sheet.id_column], row_id, *cells[sheet.id_column :]])
    check_submission(str(path), content.getvalue(), sheet, predictions.output_names)
    predicted = predictions.predicted
    for difference in share_differences(predicted, oof_predicted, predictions.task):
        warn(f"{path}: {difference}: was the test set read and prepared like the train table?")
    return content.getvalue()


def keep_earlier(path: Path, content: bytes = b"") -> None:
    """Copy an earlier submission to submission.1.csv, or the next free number, unless the new ``content`` is the same
    or the copy is there already."""
    if not path.is_file() or (earlier := path.read_bytes()) == content:
        return
    for number in itertools.count(1):
        copy = path.with_name(f"{path.stem}.{number}{path.suffix}")
        if not copy.exists():
            write_file(copy, earlier)
        if copy.read_bytes() == earlier:
            print(f"{path}: another one was there, kept as {copy.name}")
            return


def sheet_of(predictions: Predictions, sample: str = "", wishes: Wishes = Wishes()) -> Sheet:
    """What the submission of some predictions, whose logits are not looked at, must look like.

    ``sample`` is the competition's sample submission, a csv; "": see :func:`sheet_without_sample`.

    Raises:
        UserError: the sample cannot be read, is of no form, or does not name exactly these rows.
    """
    if sample:
        return read_form(sample, predictions.ids, predictions.output_names, predictions.task, wishes)
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
        remedy = "use the sample submission and test table of the same competition"
        if missing and (alike := same_but_for_spelling(unknown, missing)):
            remedy = f"write the test table's {alike[1]!r} as {alike[0]!r}, and so all its ids, in a copy of it"
        raise UserError(where, " and ".join(filter(None, parts)), remedy)
