"""Tables of features: from the text of columns to the numbers that a model is given.

What a column is taken for is told once, by the train table, and travels with the weights: numbers as they come, numbers
with a flag where some are missing, and texts of few values as a 0/1 column each. How numbers are scaled is told by the
rows that a fold trains on (:class:`FeatureScale`).
"""

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.base.errors import UserError, warn
from common.base.strict_csv import row_of
from common.base.words import names_in_short

MISSING = ("", "NA", "N/A", "nan", "NaN", "null")
MOST_TEXTS = 50  # distinct texts of a column that become a 0/1 column each
MOSTLY = 0.9  # share of a column's cells that are numbers, above which the others are mistakes
DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+")
NUMBER, FLAGGED, TEXT = "number", "number and flag", "text"
Plan = list[tuple[str, str, list[str]]]  # a column's name, what it is taken for, its texts


def plan_of(source: Path | str, names: Sequence[str], cells: np.ndarray) -> tuple[str, tuple[str, ...]]:
    """What each column becomes, as JSON, and the same for people; columns with one value alone are left out.

    Args:
        source: the train table, for messages.
        names: of the columns.
        cells: text (n, columns).

    Raises:
        UserError: a cell that is no number among numbers, numbers with decimal commas, more texts than can be told
            apart, no column that is left.
    """
    plan, constant, kinds, wide = [], [], {}, {}
    for name, column in zip(names, cells.T, strict=True):
        if len(set(column)) == 1:
            constant.append(name)
            continue
        numbers = _numbers(source, name, column)
        if numbers is None:
            texts = sorted(set(column) - set(MISSING))
            if all(is_number(text) or DECIMAL_COMMA.fullmatch(text) for text in texts):
                row = next(row for row, cell in enumerate(column) if DECIMAL_COMMA.fullmatch(cell))
                where = f"{row_of(source, row)}, column {name}"
                remedy = f"write points in this column, or leave it out with --drop {shlex.quote(name)}"
                raise UserError(where, f"{column[row]!r} has a comma where a number has a point", remedy)
            if len(texts) > MOST_TEXTS:
                wide[name] = len(texts)
                continue
            plan.append((name, TEXT, texts))
        else:
            plan.append((name, FLAGGED if np.isnan(numbers).any() else NUMBER, []))
        kinds.setdefault(plan[-1][1], []).append(name)
    if wide:
        first, many = next(iter(wide.items()))
        what = f"column {first} has {many:,} different texts, too many for a 0/1 column each"
        raise UserError(str(source), what, f"leave it out: --drop {shlex.join(wide)}")
    if not plan:
        raise UserError(str(source), "has no column of features", "check its header, --drop and the label's column")
    words = {NUMBER: "numbers", FLAGGED: "numbers, some missing (a flag each)", TEXT: "texts (a 0/1 column a value)"}
    taken = [f"features     {len(found)} {words[kind]}: {names_in_short(found)}" for kind, found in kinds.items()]
    if constant:
        taken.append(f"left out     always the same: {names_in_short(constant)}")
    return json.dumps(plan), tuple(taken)


def read_plan(text: str) -> Plan:
    """What :func:`plan_of` wrote."""
    return [(name, kind, texts) for name, kind, texts in json.loads(text)]


def without(plan: str, dropped: Sequence[str]) -> str:
    """The plan without some columns.

    Raises:
        UserError: one of them is not there, or no column is left.
    """
    known = [name for name, _, _ in read_plan(plan)]
    if missing := [name for name in dropped if name not in known]:
        raise UserError("--drop", f"there is no column of features {missing[0]}", f"there are {names_in_short(known)}")
    if dropped and set(known) <= set(dropped):
        raise UserError("--drop", "leaves no column of features", "drop fewer")
    return json.dumps([entry for entry in json.loads(plan) if entry[0] not in dropped])


def column_at(plan: str, name: str) -> int:
    """Which of the numbers of a row is that of a column.

    Raises:
        UserError: there is no such column, it holds texts, or numbers are missing in it.
    """
    place = 0
    for known, kind, texts in read_plan(plan):
        if known == name and kind == NUMBER:
            return place
        if known == name:
            what = "some of its numbers are missing" if kind == FLAGGED else "it holds texts"
            raise UserError("--offset", f"cannot be column {name}: {what}", "name another")
        place += {NUMBER: 1, FLAGGED: 2, TEXT: len(texts)}[kind]
    names = [known for known, _, _ in read_plan(plan)]
    raise UserError("--offset", f"there is no column of features {name}", f"there are {names_in_short(names)}")


def numbers_in(source: Path | str, names: Sequence[str], cells: np.ndarray, name: str) -> np.ndarray:
    """The numbers of one column, float64 (n)."""
    return _numbers(source, name, cells[:, list(names).index(name)], must=True)


def width(plan: str) -> int:
    """How many numbers a row becomes."""
    return sum({NUMBER: 1, FLAGGED: 2, TEXT: len(texts)}[kind] for _, kind, texts in read_plan(plan))


def encoded(source: Path | str, plan: str, names: Sequence[str], cells: np.ndarray) -> np.ndarray:
    """The numbers of each row, float32 (n, width), NaN where one is missing.

    Raises:
        UserError: the table lacks a column, or has a text where the train table had numbers.
    """
    at, found = {name: number for number, name in enumerate(names)}, []
    for name, kind, texts in read_plan(plan):
        if name not in at:
            remedy = f"name the train table's own, or leave the column out: folds.py --drop {shlex.quote(name)}"
            raise UserError(str(source), f"has no column {name!r}, which the train table has", remedy)
        column = cells[:, at[name]]
        if kind == TEXT:
            if unknown := sorted(set(column) - {*texts, *MISSING}):
                warn(f"{source}: column {name} has {names_in_short(unknown)}, unknown in training: none of its values")
            found += [column == text for text in texts]
            continue
        numbers = _numbers(source, name, column, must=True)
        found.append(numbers)
        if kind == FLAGGED:
            found.append(np.isnan(numbers))
    return np.stack(found, axis=1).astype(np.float32)


def is_number(cell: str) -> bool:
    """Whether a cell is a finite number."""
    try:
        return "_" not in cell and math.isfinite(float(cell))
    except ValueError:
        return False


def _numbers(source: Path | str, name: str, column: np.ndarray, must: bool = False) -> np.ndarray | None:
    """A column's numbers, float64 (n), NaN where one is missing; None where it holds texts.

    Raises:
        UserError: a cell that is none where most are, or where they ``must`` be.
    """
    values, wrong = np.full(len(column), np.nan), []
    for index, cell in enumerate(column):
        if cell.strip() in MISSING:
            continue
        if is_number(cell):
            values[index] = float(cell)
        else:
            wrong.append(index)
    known = len(column) - sum(cell.strip() in MISSING for cell in column)
    if wrong and (must or known - len(wrong) > MOSTLY * known):
        where = f"{row_of(source, wrong[0])}, column {name}"
        raise UserError(where, f"{column[wrong[0]]!r} is not a number", "correct it, or leave it empty")
    return None if wrong or not known else values


@dataclass(frozen=True)
class FeatureScale:
    """Features to zero mean and unit deviation, by the rows that a fold trains on; a missing number is their median.

    A column that is constant among these rows has deviation 1.
    """

    median: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_rows(cls, features: np.ndarray) -> "FeatureScale":
        """The scale of the features of some rows, float (n, width)."""
        values = features.astype(np.float64)
        missing = np.isnan(values)
        median = np.nanmedian(np.where(missing.all(axis=0), 0.0, values), axis=0)
        values = np.where(missing, median, values)
        std = values.std(axis=0)
        std = np.where(std > 1e-12 * np.maximum(1, np.abs(values).max(axis=0)), std, 1.0)
        return cls(tuple(median.tolist()), tuple(values.mean(axis=0).tolist()), tuple(std.tolist()))

    def __call__(self, features):
        """Scaled features, a tensor (m, width)."""
        median, mean, std = (features.new_tensor(numbers) for numbers in (self.median, self.mean, self.std))
        return (features.where(~features.isnan(), median) - mean) / std


def is_feature_table(columns: Mapping[str, np.ndarray]) -> bool:
    """Whether at least two columns hold numbers that are not all whole numbers counted up, as ids are."""
    found = 0
    for column in columns.values():
        distinct = set(column) - set(MISSING)
        try:
            numbers = {float(cell) for cell in distinct}
        except ValueError:
            continue
        found += bool(numbers) and len(distinct) < len(column) or any(number % 1 for number in numbers)
    return found >= 2
