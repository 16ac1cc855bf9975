"""The ids of a table's rows: the column that they stand in, and what they may not be."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from common.base.errors import UserError, warn
from common.base.strict_csv import INDEX, names_in_header, row_of
from common.base.words import names_in_short
from common.data.competition import Competition
from common.data.features import is_number

ID_COLUMNS = ("id", "image_id", "ImageId")
ID_WORDS = ("id", "ids", "index", "idx", "key", "uid", "uuid", "guid")  # the last word of such a column's name


def id_column(
    path: Path, columns: dict[str, np.ndarray], competition: Competition, test: bool, sample: str, of_features: bool
) -> str:
    """The column that names the rows of a table of pixels or features; empty where they are numbered.

    It is told by what was said, by the sample submission, by its name, and by its cells: numbers in its place would
    put answers on other rows, and a model would learn from it as from a feature.

    Raises:
        UserError: there is no column of the name that was said; several columns may name the rows.
    """
    if competition.image_column in columns:
        return competition.image_column
    if competition.image_column and not test:
        raise UserError(
            str(path), f"has no column {competition.image_column!r}", f"its columns: {names_in_short([*columns])}"
        )
    unique = [name for name, cells in columns.items() if len(set(cells)) == len(cells)]
    sample = sample or competition.sample
    asked = next(iter(names_in_header(Path(sample))), "") if sample else ""
    if asked in columns and (test or asked in unique):
        return asked
    known = [name for name in ID_COLUMNS if name in columns]
    known += [name for name in columns if _is_called_id(name) and (test or name in unique)]
    if known:
        return known[0]
    if INDEX in unique:
        return INDEX
    likely = unique
    if of_features:  # few rows of a test table may differ in any column: what the train table has for ids is said there
        likely = [] if test else [name for name in unique if _names_rows(columns[name])]
    if len(likely) > 1:
        what = f"has several columns that may be the ids: {', '.join(likely)}"
        raise UserError(str(path), what, "name the right one with --image-column")
    if likely:
        warn(f"{path}: its ids are taken from the column {likely[0]}, where all cells differ")
    return next(iter(likely), "")


def without_index(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Remove the numbers of the rows that pandas has written along, where the ids are others; it is said."""
    if columns.pop(INDEX, None) is not None:
        warn(f"{path}: its column of row numbers (pandas' index) is not used")


def _is_called_id(name: str) -> bool:
    """Whether the last word of a column's name says id: PassengerId, row_id, imageid, guid."""
    words = re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)
    run_together = plain_name(name) in ("imageid", "imgid", "sampleid", "rowid")
    return bool(words) and (words[-1].lower() in ID_WORDS or run_together)


def _names_rows(cells: np.ndarray) -> bool:
    """Whether cells that all differ are names, or whole numbers counted up, rather than a measured quantity."""
    if not all(re.fullmatch("[0-9]{1,15}", cell) for cell in cells):
        return not any(map(is_number, cells))
    numbers = sorted(map(int, cells))
    return len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1


def plain_name(name: str) -> str:
    """A column's name without regard to case, spaces and underscores."""
    return re.sub("[^a-z0-9]", "", name.lower())


def refuse_doubles(path: Path, ids: np.ndarray, column: str) -> None:
    """Raise UserError where a row of ``ids`` (n), which stand in ``column``, is empty or named like an earlier one."""
    first = {}
    for index, name in enumerate(ids):
        if not name:
            raise UserError(f"{row_of(path, index)}, column {column}", "is empty", "fill it in or remove the row")
        if (earlier := first.setdefault(name, index)) != index:
            raise UserError(row_of(path, index), f"id {name!r} is also in row {earlier + 1}", "remove one of them")
    if len({unicodedata.normalize("NFC", name) for name in first}) < len(first):
        twins = Counter(unicodedata.normalize("NFC", name) for name in first).most_common(1)[0][0]
        warn(f"{path}: two rows are named {twins} and differ only in the Unicode form of an accent")
