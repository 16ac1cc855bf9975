"""Which column of a table holds the labels, or which columns, or which part of an image's name."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.base.errors import UserError
from common.base.strict_csv import names_in_header, read_columns, row_of, text_array
from common.base.words import names_in_short
from common.data.competition import Competition, task_of
from common.score.label_sets import SEPARATOR, sets_of
from common.score.numbers import SEPARATOR as NUMBERS_APART
from common.score.numbers import flaw_of_numbers
from common.score.task import MULTICLASS

LABEL_COLUMNS = ("label", "predict", "target", "class")  # the first one present, in any case
CLASS_WORDS = {"class", "classid", "category", "categoryid", "species", "breed"}  # in the name of a label column
MOST_GRADES = 20  # different numbers that pass for classes however few rows have them
_WORD = re.compile(r"[a-z]+")
# A number; of others than plain ones with what stands for its currency or unit.
_NUMBER = re.compile(r"([$€£¥]?)(-?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]*)?)( ?%| ?[a-zA-Z]{1,3})?")
_LIST = re.compile(r"\[.*\]|\{.*\}")
_ONE_HOT = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


@dataclass(frozen=True)
class Labels:
    """The labels of n rows as text; none where a table has none."""

    cells: np.ndarray
    name: str = ""
    taken: tuple[str, ...] = ()
    separator: str = ""  # between the names of a label set, as the table was written


NO_LABELS = Labels(text_array([]))


SEPARATORS = ("|", ";", ",", " ")  # between the names of a label set, the one that names are least likely to hold first


def told_separator(cells: Iterable[str]) -> str:
    """What separates the names in the cells of label sets, with the space that always follows it; empty where no cell
    has two."""
    cells = [cell.strip() for cell in cells]
    mark = next((mark for mark in SEPARATORS if any(mark in cell for cell in cells)), "")
    is_spaced = mark.strip() and all(part.startswith(" ") for cell in cells for part in cell.split(mark)[1:])
    return f"{mark} " if is_spaced else mark


def split_names(cell: str, separator: str) -> list[str]:
    """The names in a cell, without the spaces around them; of none where it is empty."""
    names = cell.split(separator.strip() or None)
    return [name.strip() for name in names] if cell.strip() else []


def class_prefix(columns: Sequence[str], classes: Sequence[str]) -> str | None:
    """What stands in front of every class's name among some columns' names: Status_ of Status_C and Status_D, mostly
    nothing. None where a class has no column."""
    fronts = {column.removesuffix(classes[0]) for column in columns if column.endswith(classes[0])}
    return next((front for front in sorted(fronts) if set(columns) >= {front + name for name in classes}), None)


def _told_by_sample(sample: str, columns: dict[str, np.ndarray]) -> str:
    """The one column whose cells are what the sample calls its columns; "" where none or several are."""
    asked = names_in_header(Path(sample))[1:] if sample else []
    cells = {name: sorted(set(column)) for name, column in columns.items()} if len(asked) > 1 else {}
    fit = [name for name, own in cells.items() if len(own) == len(asked) and class_prefix(asked, own) is not None]
    return fit[0] if len(fit) == 1 else ""


def take_labels(
    path: Path, columns: dict[str, np.ndarray], ids: np.ndarray, competition: Competition, test: bool, alone: bool
) -> Labels:
    """The labels of a table's rows, taken out of its ``columns``.

    Args:
        path: the table, for messages.
        columns: text, n each; a label column is removed from it.
        ids: text, n: the images' names.
        competition: what was said of the columns.
        test: whether the table may have no labels.
        alone: whether a column that is left alone holds the labels, whatever it is called.

    Raises:
        UserError: a train table has no labels, a column that was named is missing, a one-hot row has not one 1, a
            column of label sets that nobody said to be one.
    """
    task = task_of(competition)
    if competition.label_from_name and ids.size:
        return NO_LABELS if test else _from_names(path, ids, competition.label_from_name)
    said = competition.target_columns
    if missing := [name for name in said if name not in columns]:
        if test:
            return NO_LABELS
        raise UserError(str(path), f"has no column {missing[0]!r}", f"its columns: {', '.join(columns) or 'none'}")
    if task.is_number and (names := said or tuple(filter(None, [_usual_column(columns)]))):
        return _from_numbers(path, columns, names)
    if task.is_of_sets and (names := said if competition.label_columns else _named_by(competition.sample, columns)):
        return _from_switches(path, columns, names)
    if competition.label_columns:
        return _from_one_hot(path, columns, said)
    name = next(iter(said), "") or _usual_column(columns)
    if not name and not test and alone and len(columns) == 1:
        name = next(iter(columns))
    if not name and not test and not task.is_number:
        name = _told_by_sample(competition.sample, columns)
    if name and not test and competition.task != MULTICLASS.name:
        _refuse_lists(path, name, columns[name])
    if name and task.is_of_sets:
        return _from_sets(path, columns.pop(name), name, competition)
    if name:
        if not competition.task and (mark := _marks_sets(columns[name])):
            what = f"column {name} looks like sets of labels, with {_said(mark)} between their names"
            raise UserError(str(path), what, "say --task multilabel, or --task multiclass where each text is one class")
        return Labels(columns.pop(name), name, (f"labels       column {name} (--label-column)",))
    if test:
        return NO_LABELS
    switches = [name for name, cells in columns.items() if {cell.lower() for cell in cells} <= _ONE_HOT.keys()]
    if len(switches) > 1 and len(switches) == len(columns) and (_ones(columns, switches).sum(axis=1) == 1).all():
        return _from_one_hot(path, columns, switches)
    remedy = f"name it with --label-column: {names_in_short(list(columns))}" if columns else "use another table"
    words = Counter(frozenset(cells) for cells in columns.values() if len(set(cells)) == 2)
    shared = [] if switches else [pair for pair, count in words.items() if count > 1]
    if shared:
        alike = names_in_short([name for name, cells in columns.items() if set(cells) == shared[0]])
        written = " and ".join(map(repr, sorted(shared[0])))
        remedy += f"; {alike} look like one-hot columns: write 0 and 1 in place of {written}"
    if len(switches) > 1:
        remedy += f"; or name one-hot columns with --label-columns {' '.join(switches[:12])}"
    raise UserError(str(path), "has no label column", remedy)


def _usual_column(columns: dict[str, np.ndarray]) -> str:
    exact = [name for name in LABEL_COLUMNS if name in columns]
    return next(iter(exact + [name for name in columns if name.strip().lower() in LABEL_COLUMNS]), "")


def _ones(columns: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Which of the columns ``names`` are 1, int (n, columns)."""
    return np.array([[_ONE_HOT[cell.lower()] for cell in columns[name]] for name in names]).T


def _checked_ones(path: Path, columns: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """:func:`_ones`; raises UserError where a cell is neither 0 nor 1."""
    for name in names:
        for index, cell in enumerate(columns[name]):
            if cell.lower() not in _ONE_HOT:
                raise UserError(f"{row_of(path, index)}, column {name}", f"{cell!r} is not 0 or 1", "correct it")
    return _ones(columns, names)


def _from_one_hot(path: Path, columns: dict[str, np.ndarray], names: Sequence[str]) -> Labels:
    ones = _checked_ones(path, columns, names)
    if (wrong := np.flatnonzero(ones.sum(axis=1) != 1)).size:
        what = f"has {ones[wrong[0]].sum()} ones in the columns {names_in_short(names)}"
        remedy = "a row has exactly one label; name other columns, or say --task multilabel"
        raise UserError(row_of(path, wrong[0]), what, remedy)
    cells = text_array(names[at] for at in ones.argmax(axis=1))
    for name in names:
        del columns[name]
    return Labels(cells, "label", (f"labels       one-hot columns {names_in_short(names)} (--label-columns)",))


def _from_numbers(path: Path, columns: dict[str, np.ndarray], names: Sequence[str]) -> Labels:
    """A row's numbers, a target column each."""
    for name in names:
        for index, cell in enumerate(columns[name]):
            if flaw := flaw_of_numbers(cell.strip().replace(NUMBERS_APART, " ")):
                remedy = "fill it in or remove the row" if not cell.strip() else "correct it or remove the row"
                raise UserError(f"{row_of(path, index)}, column {name}", flaw, remedy)
    cells = [[cell.strip() for cell in columns.pop(name)] for name in names]
    taken = f"labels       numbers of column{'s' * (len(names) > 1)} {names_in_short(names)} (--label-column)"
    return Labels(text_array(map(NUMBERS_APART.join, zip(*cells, strict=True))), names[0], (taken,))


# ---- label sets


def _named_by(sample: str, columns: dict[str, np.ndarray]) -> list[str]:
    """The 0/1 columns that the sample submission asks for; none where it has a single column of answers."""
    asked = list(read_columns(Path(sample))) if sample else []
    return [name for name in asked if name in columns and {cell.lower() for cell in columns[name]} <= _ONE_HOT.keys()]


def _from_switches(path: Path, columns: dict[str, np.ndarray], names: Sequence[str]) -> Labels:
    """A row's set is the names of its columns that are 1."""
    if marked := [name for name in names if SEPARATOR in name]:
        raise UserError(str(path), f"the column {marked[0]} has a {SEPARATOR} in its name", "rename it")
    names = sorted(names)
    ones = _checked_ones(path, columns, names)
    for name, count in zip(names, ones.sum(axis=0), strict=True):
        if not count:
            raise UserError(str(path), f"no row has the label {name}", "leave its column out with --label-columns")
        del columns[name]
    taken = f"labels       sets of the 0/1 columns {names_in_short(names)} (--label-columns)"
    return Labels(sets_of(ones == 1, names), "labels", (taken,))


def _from_sets(path: Path, cells: np.ndarray, name: str, competition: Competition) -> Labels:
    """A row's set is the names in its cell; an empty cell is the empty set, order and doubles do not matter."""
    separator = competition.separator or told_separator(cells) or " "
    found = [sorted(set(split_names(cell, separator))) for cell in cells]
    for index, names in enumerate(found):
        if wrong := [each for each in names if not each or SEPARATOR in each]:
            what = f"{cells[index]!r} has " + (f"a {SEPARATOR} in a name" if wrong[0] else "a label without a name")
            raise UserError(f"{row_of(path, index)}, column {name}", what, "correct it, or say --separator")
    taken = f"labels       sets in column {name} (--label-column), with {_said(separator)} between names (--separator)"
    return Labels(text_array(map(SEPARATOR.join, found)), name, (taken,), separator)


def _marks_sets(cells: np.ndarray) -> str:
    """What separates names where a column looks like label sets: few names in many combinations of several sizes, at
    least one of which also stands alone; else empty."""
    distinct = set(cells) - {""}
    mark = told_separator(distinct)
    sets = [split_names(cell, mark) for cell in distinct] if mark else []
    names = {name for each in sets for name in each}
    looks_like = len({len(each) for each in sets}) > 1 and len(names) < len(sets) and names & distinct
    return mark if looks_like else ""


def _refuse_lists(path: Path, name: str, cells: np.ndarray) -> None:
    """Raise UserError where every cell is a list as a program prints it, whose brackets would end up in the names."""
    if all(_LIST.fullmatch(cell.strip()) for cell in cells):
        where = f"{row_of(path, 0)}, column {name}"
        what = f"{cells[0]!r} is a list in brackets, as every cell of this column"
        raise UserError(where, what, "write the names alone, such as ant|bee, for --task multilabel")


def _said(separator: str) -> str:
    return "a space" if separator == " " else repr(separator) if " " in separator else separator


def _from_names(path: Path, ids: np.ndarray, expression: str) -> Labels:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise UserError("--label-from-name", f"{expression} is no regular expression ({error})", "correct it") from None
    if pattern.groups != 1:
        what = f"{expression} has {pattern.groups} groups"
        raise UserError("--label-from-name", what, "put the part that is the label, and no other, into brackets")
    labels = []
    for index, name in enumerate(ids):
        found = pattern.search(name)
        if not found or not found[1]:
            what = f"{expression} finds no label in {name!r}"
            raise UserError(row_of(path, index), what, "correct --label-from-name")
        labels.append(found[1])
    taken = f"labels       what {expression} finds in the images' names (--label-from-name)"
    return Labels(text_array(labels), "label", (taken,))


def refuse_numbers(source: str, labels: np.ndarray, k: int, column: str = "") -> None:
    """Raise UserError where labels are more different numbers than grades usually are, so that they may be a quantity.

    Numbers that count the classes, 0, 1, 2 and so on, pass, and whole numbers in a ``column`` whose name says that it
    holds classes, unless half of them have fewer than ``k`` rows: most could then be in no fold.
    """
    rows = Counter(map(str, labels))
    found = [_NUMBER.fullmatch(name) for name in rows] if len(rows) > MOST_GRADES else []
    if not found or not all(found) or len({each.group(1, 3) for each in found}) > 1:
        return
    rare = sum(count < k for count in rows.values())
    are_classes = {float(each[2].replace(",", "")) for each in found} == set(range(len(rows))) or (
        all(name.lstrip("-").isdecimal() for name in rows) and not CLASS_WORDS.isdisjoint(_WORD.findall(column.lower()))
    )
    if 2 * rare > len(rows) or not are_classes:
        what = f"has {len(rows):,} different numbers as labels, {rare:,} of them in fewer than {k} rows: a quantity?"
        raise UserError(source, what, "say --task regression for numbers, or --task multiclass for classes")
