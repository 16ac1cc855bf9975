"""The forms of a submission, a row each in FORMS: how a sample of it is told, what is written, what must hold."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from common.base.errors import UserError
from common.base.words import names_in_short
from common.data.labels import class_prefix, split_names, told_separator
from common.runs.predictions import Predictions
from common.score.label_sets import names_in
from common.score.logits import Outputs, blocks
from common.score.metrics import METRICS, check_positive
from common.score.numbers import number_in

Fault = tuple[int, str, str]  # index of a row, what is wrong with it, what to do


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
class Asked:
    """What a form is told by: a sample's cells by column, and the competition's metric, "" if it is not known."""

    cells: Mapping[str, Sequence[str]]
    metric: str = ""

    @cached_property
    def answers(self) -> set[str]:
        """The distinct cells of the second column, but for empty ones."""
        return set(list(self.cells.values())[1]) - {""}

    @property
    def are_shares(self) -> bool:
        """Whether every cell of the second column is a number from 0 to 1."""
        return all(map(_is_probability, self.answers))

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
    cells: Callable[[Predictions, Sheet], Iterator[Sequence[str]]]
    # Such cells, names of the outputs, separator of label sets -> what is wrong.
    checks: Callable[[Iterable[Sequence[str]], Sequence[str], str], Iterator[Fault]]
    in_one_cell: bool = False  # whether an answer is one cell, beside the id's, whatever its column is called
    of_probabilities: bool = False  # what a temperature changes
    has_more: bool = False  # whether columns that are no output's are labels that no training row has


def reads_label(asked: Asked, outputs: Sequence[str]) -> int | None:
    """Two columns: the id is the first, and the second is empty or has at least one class."""
    if len(asked.cells) != 2:
        return None
    return 0 if not asked.answers or asked.answers & set(outputs) else None


def label_cells(predictions: Predictions, sheet: Sheet) -> Iterator[Sequence[str]]:
    """What is predicted, as text."""
    return zip(predictions.predicted, strict=True)


def check_labels(rows: Iterable[Sequence[str]], outputs: Sequence[str], separator: str) -> Iterator[Fault]:
    """Every label is a class."""
    known = set(outputs)
    for index, (label,) in enumerate(rows):
        if label not in known:
            yield index, f"label {label or 'empty'} is not a class", f"the classes are {names_in_short(outputs)}"


def reads_probabilities(asked: Asked, outputs: Sequence[str]) -> int | None:
    """A column per class, in any order, and another one; the same may stand in front of every class."""
    if len(asked.cells) != len(outputs) + 1 or (prefix := class_prefix(list(asked.cells), outputs)) is None:
        return None
    known = {prefix + name for name in outputs}
    return next(at for at, column in enumerate(asked.cells) if column not in known) if len(outputs) > 1 else None


def probability_cells(predictions: Predictions, sheet: Sheet) -> Iterator[Sequence[str]]:
    """The probability of each column's class or label, with nine digits."""
    number = {name: at for at, name in enumerate(predictions.output_names)}
    prefix = class_prefix(sheet.asked, predictions.output_names) or ""
    wanted = [number[name.removeprefix(prefix)] for name in sheet.asked]
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
    """Two classes, an id, and numbers from 0 to 1, one of them in between and no class unless the metric tells more."""
    if len(asked.cells) != 2 or len(outputs) != 2 or not asked.are_shares:
        return None
    between = [cell for cell in asked.answers if 0 < float(cell) < 1 and cell not in outputs]
    return 0 if asked.wants_probabilities or between else None


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


def top_cells(predictions: Predictions, sheet: Sheet) -> Iterator[Sequence[str]]:
    """The names of the likeliest classes, the likeliest first; of equal ones the first class, as in argmax."""
    names = np.asarray(predictions.output_names, dtype=object)
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


def label_set_cells(predictions: Predictions, sheet: Sheet) -> Iterator[Sequence[str]]:
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


def label_probability_cells(predictions: Predictions, sheet: Sheet) -> Iterator[Sequence[str]]:
    """The probability of each column's label, with nine digits; 0 for one that no training row has."""
    return _label_cells(predictions, sheet, predictions.task.probabilities(predictions.outputs), ".9g")


def _label_cells(predictions: Predictions, sheet: Sheet, values: np.ndarray, shown: str) -> Iterator[Sequence[str]]:
    number = {name: at for at, name in enumerate(predictions.output_names)}
    wanted = [number.get(name, -1) for name in sheet.asked]
    return ([f"{row[at]:{shown}}" if at >= 0 else "0" for at in wanted] for row in values)


def reads_label_columns(asked: Asked, outputs: Sequence[str]) -> int | None:
    """A column per label, in any order, with 0 or 1 in every cell, and another one; the metric looks at no more."""
    at = reads_label_probabilities(asked, outputs)
    numbers = [cell for name, cells in asked.cells.items() if name in set(outputs) for cell in cells]
    return None if asked.wants_probabilities or not set(numbers) <= {"0", "1", "0.0", "1.0"} else at


def label_column_cells(predictions: Predictions, sheet: Sheet) -> Iterator[Sequence[str]]:
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


def number_cells(predictions: Predictions, sheet: Sheet) -> Iterator[Sequence[str]]:
    """The numbers that are predicted, with as many digits as it takes to read back the same."""
    number = {name: at for at, name in enumerate(predictions.output_names)}
    wanted = [number.get(name, 0) for name in sheet.asked]  # of one target the column may be called otherwise
    return (list(map(str, row)) for row in predictions.predicted_targets[:, wanted])


def check_numbers(rows: Iterable[Sequence[str]], outputs: Sequence[str], separator: str) -> Iterator[Fault]:
    """Every cell is a finite number."""
    for index, cells in enumerate(rows):
        if wrong := [cell for cell in cells if math.isnan(number_in(cell))]:
            yield index, f"{wrong[0] or 'empty'} is not a number", "predict the test set again"


FORMS = {
    "label": Form("id and label", reads_label, label_cells, check_labels, in_one_cell=True),
    "probability": Form(
        "id and a probability",
        reads_probability,
        probability_cells,
        check_probability,
        in_one_cell=True,
        of_probabilities=True,
    ),
    "probabilities": Form(
        "id and one per class", reads_probabilities, probability_cells, check_probabilities, of_probabilities=True
    ),
    "top": Form("id and several names in a cell", reads_top, top_cells, check_top, in_one_cell=True),
    "labels": Form("id and labels", reads_label_sets, label_set_cells, check_label_sets, in_one_cell=True),
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
    """The class whose probability is asked for: ``positive``, the one that its column names, or else the second one.

    Raises:
        UserError: ``positive`` is no class.
    """
    check_positive(positive, outputs)
    if positive or column in outputs:
        return positive or column
    words = _words(column)
    named = [name for name in outputs if name and f" {_words(name)} " in f" {words} "]
    return max(named, key=len, default=outputs[-1])  # of no_tumour and tumour the longer


def _words(name: str) -> str:
    """A name's words in small letters, with one space between: is_malignant and IsMalignant say the same."""
    return " ".join(re.findall("[^\\W_]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower()))


def _is_probability(cell: str) -> bool:
    return 0 <= number_in(cell) <= 1  # NaN is not


def _are_probabilities(cells: Sequence[str]) -> bool:
    return all(map(_is_probability, cells)) and math.isclose(sum(map(float, cells)), 1, abs_tol=1e-6)
