"""Tables of numbers that we wrote ourselves, row after row: log.csv and sweep.csv."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from common.base.errors import UserError, warn

REMEDY = "restore it or run the step that writes it"


def read_records(path: Path, columns: Sequence[str], text: Sequence[str] = ()) -> pd.DataFrame:
    """A table with at least these ``columns``, numbers but for those in ``text``; an empty cell is NaN.

    A last row that was cut short is left out with a warning: its last number may be another one than was written.

    Raises:
        UserError: missing, no text, without one of the columns or without a row; a row with other fields than the
            header; a cell that is no number, with its row and column.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        what = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise UserError(str(path), what, REMEDY) from error
    whole, newline, rest = content.rpartition("\n")
    if rest and newline:
        warn(f"{path}: its last row is incomplete and is ignored")
    try:
        header, *rows = csv.reader((whole if newline else rest).splitlines(), strict=True)
    except (csv.Error, ValueError) as error:
        raise UserError(str(path), f"is not a valid table ({error})", REMEDY) from error
    if missing := [name for name in columns if name not in header]:
        raise UserError(str(path), f"has no column {missing[0]}", REMEDY)
    if len(set(header)) < len(header) or not rows:
        raise UserError(str(path), "has a duplicate column" if rows else "has no complete row", REMEDY)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise UserError(f"{path}, row {number}", f"has {len(row)} fields, but the header has {len(header)}", REMEDY)
    table = pd.DataFrame(rows, columns=header)
    for name in (name for name in header if name not in text):
        numbers = pd.to_numeric(table[name], errors="coerce")
        wrong = numbers.isna() & ~table[name].isin(["", "nan", "NaN"])
        if wrong.any():
            row = int(wrong.argmax())
            where = f"{path}, row {row + 1}, column {name}"
            raise UserError(where, f"{table[name][row][:40]!r} is not a number", REMEDY)
        table[name] = numbers
    return table
