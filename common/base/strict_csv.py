"""The text of a csv, read strictly.

A lenient reader turns a damaged table into a quietly wrong one: every cell of every row is checked, and a mistake
names its row (the first row below the header is row 1).
"""

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from common.base.errors import UserError, warn
from common.base.files import REMEDY

if TYPE_CHECKING:
    import pandas as pd


INDEX = "Unnamed: 0"  # what pandas calls a first column without a name: it writes the rows' numbers or names there


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Every column of a small csv as text, by name; each row has one cell per column."""
    return columns_of(path, csv_bytes(path).decode())


def text_array(texts) -> np.ndarray:
    """Texts as a one-dimensional array of Python strings."""
    return np.array(list(texts), dtype=object)


def row_of(source: str | Path, index: int) -> str:
    """Where an error sits: ``index`` counts the rows below the header from 0, a reader from 1."""
    return f"{source}, row {index + 1}"


def file_bytes(path: Path, remedy: str = "check the path", error_of: type[UserError] = UserError) -> bytes:
    """A file's content; raises UserError, or that kind of it, where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise error_of(str(path), what, remedy) from error


def csv_bytes(path: Path, ours: bool = False) -> bytes:
    """The file as checked UTF-8 with plain newlines, the last one included.

    ``ours`` is a file that Fivefold adds row after row to: a last row that was cut short is left out with a warning.
    """
    if not path.name.endswith((".csv", ".csv.gz")):
        if not path.exists():
            raise UserError(str(path), "does not exist", "check the path")
        raise UserError(str(path), "is not a .csv, a .csv.gz or a folder", "convert it to one of these")
    content = file_bytes(path, REMEDY) if ours else file_bytes(path)
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(str(path), f"is not a complete gzip file ({error})", "download it again") from error
    if not content.strip():
        raise UserError(str(path), "is empty", _remedy(ours))
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"is not UTF-8 at byte {error.start}", "save it as UTF-8") from None
    if (nul := content.find(b"\0")) >= 0:
        raise UserError(str(path), f"has a NUL at byte {nul}", "save it as UTF-8 text")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n")
        if b"\r" in content:
            raise UserError(str(path), "has a carriage return inside a line", "save it with ordinary line endings")
    if ours and b"\n" in content and not content.endswith(b"\n"):
        warn(f"{path}: its last row is incomplete and is ignored")
        content = content[: content.rindex(b"\n") + 1]
    if not content.endswith(b"\n"):
        warn(f"{path} does not end with a newline: is its last row complete?")
        content += b"\n"
    while content.endswith(b"\n\n"):
        content = content[:-1]
    return content


def header_of(path: Path, line: str) -> list[str]:
    """The column names in a csv's first line."""
    try:
        header = next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, first line", f"is not valid csv ({error})", "check its quotes") from error
    for name, separator in (("semicolon", ";"), ("tab", "\t")):
        if len(header) == 1 and separator in line:
            raise UserError(str(path), f"looks {name}-separated", "save it with commas")
    doubled = [name for name, count in Counter(header).items() if count > 1]
    if doubled:
        places = [str(place) for place, name in enumerate(header, 1) if name == doubled[0]]
        what = f"has {len(places)} columns named {doubled[0]!r} ({', '.join(places)})"
        what += f", and {len(doubled) - 1} more names several times" if len(doubled) > 1 else ""
        raise UserError(str(path), what, "rename or remove one")
    if "" in header or not header:
        raise UserError(str(path), "has a column without a name", "name every column in the first line")
    return header


def names_in_header(path: Path) -> list[str]:
    """A csv's column names, read from its first line alone; none where something is wrong, which its reader says.

    A first column without a name is called :data:`INDEX`.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error):
        return []
    return [INDEX, *names[1:]] if len(names) > 1 and not names[0] else names


def with_named_index(content: bytes) -> bytes:
    """A csv whose first column, if it has no name, is called :data:`INDEX`."""
    start = next((mark for mark in (b'"",', b",") if content.startswith(mark)), b"")
    return f"{INDEX},".encode() + content[len(start) :] if start else content


def columns_of(path: Path, text: str, ours: bool = False) -> dict[str, np.ndarray]:
    """Every column of a csv's text, by name."""
    header = header_of(path, text.partition("\n")[0])
    rows = []
    try:
        reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
        next(reader)
        for row in reader:
            rows.append(row)
            if len(row) != len(header):
                raise wrong_width(path, len(rows) - 1, len(row), len(header))
    except csv.Error as error:
        raise UserError(row_of(path, len(rows)), f"is not valid csv ({error})", "check its quotes") from error
    if not rows:
        raise UserError(str(path), "has a header but no row", _remedy(ours))
    return {name: text_array(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True)}


def _remedy(ours: bool) -> str:
    return REMEDY if ours else "download it again"


def wrong_width(path: Path, index: int, found: int, expected: int) -> UserError:
    """What is said of a row with more or fewer cells than the header."""
    return UserError(row_of(path, index), f"has {found} fields, but the header has {expected}", "fix or remove the row")


def read_records(
    path: Path, columns: Sequence[str], text: Sequence[str] = (), old_names: Mapping[str, str] = MappingProxyType({})
) -> "pd.DataFrame":
    """A table with at least these ``columns``, numbers but for those in ``text``; an empty cell is NaN.

    A column that is called by one of the ``old_names`` (old: new) gets the new one, unless that is there as well.
    A last row that was cut short is left out with a warning: its last number may be another one than was written.

    Raises:
        UserError: no such csv (:func:`csv_bytes`, :func:`columns_of`); without one of the columns; a cell that is no
            number, with its row and column.
    """
    import pandas as pd

    cells = columns_of(path, csv_bytes(path, ours=True).decode(), ours=True)
    table = pd.DataFrame(cells).rename(columns={old: new for old, new in old_names.items() if new not in cells})
    if missing := [name for name in columns if name not in table]:
        raise UserError(str(path), f"has no column {missing[0]}", REMEDY)
    for name in (name for name in table if name not in text):
        numbers = pd.to_numeric(table[name], errors="coerce")
        wrong = numbers.isna() & ~table[name].isin(["", "nan", "NaN"])
        if wrong.any():
            row = int(wrong.argmax())
            where = f"{row_of(path, row)}, column {name}"
            raise UserError(where, f"{table[name][row][:40]!r} is not a number", REMEDY)
        table[name] = numbers
    return table
