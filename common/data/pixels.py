"""Tables whose cells are pixels: label,pixel0,pixel1, ... or label,1x1,1x2, ... or label,0,1,2, ...

Reading tens of thousands of rows takes seconds, and every fold, sweep cell and script would pay them again: what was
read from a large table is kept in the user's cache folder, under the hash of its content.
"""

import math
import os
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from common.base.errors import UserError
from common.base.files import cache_folder, make_room, sha256, write_file
from common.base.strict_csv import row_of, text_array, wrong_width

# How pixel columns are called, and how many there must be: a bare number may be anything, but a square of them is not.
_CALLED = (
    (re.compile(r"(?:pixels?|pix|px)[ _.-]?([0-9]+)", re.IGNORECASE), 1),
    (re.compile(r"p?[_.-]?([0-9]+)", re.IGNORECASE), 16),
    (re.compile(r"([0-9]+)[x_-]([0-9]+)", re.IGNORECASE), 16),  # row and column
)
_ANY_NAME = re.compile(r"(.*?)[ _.-]?([0-9]+)")  # x0, f0, v_1: as often features, so that a user says which
_LEAST = 16  # of those
_COMMA, _NEWLINE, _ZERO = b",\n0"
_BLOCK = 512  # rows parsed at once: few enough to stay in the processor's cache
_LARGE = 10e6  # bytes of a table that is worth keeping
_KEPT = 1e9  # bytes of all that is kept; what was not used for longest goes
_PARSER = 1  # to be raised when this file reads the same table to other values


def is_pixel_header(header: list[str], any_name: bool = False) -> bool:
    """Whether a table with these columns holds its images' pixels, which may have ``any_name`` with a number."""
    return bool(_numbered_columns(header, any_name))


def look_like_pixels(columns: Mapping[str, np.ndarray]) -> list[str]:
    """The columns that may be pixels or features: a square number of one name, in all cells integers from 0 to 255."""
    names = [name for same in _numbered_columns(list(columns), any_name=True).values() for name in same]
    shades = set(map(str, range(256)))
    return names if all(shades.issuperset(columns[name]) for name in names) else []


def _numbered_columns(header: list[str], any_name: bool = False) -> dict[tuple[int, ...], list[str]]:
    """The pixel columns' names by their numbers: of the pixel, or of its row and column."""
    for pattern, least in _CALLED:
        found = _by_number(header, pattern)
        if len(found) >= least and (least == 1 or math.isqrt(len(found)) ** 2 == len(found)):
            return found
    prefixes = {match[1] for match in map(_ANY_NAME.fullmatch, header) if match} if any_name else ()
    for prefix in sorted(prefixes):
        found = _by_number(header, re.compile(re.escape(prefix) + "[ _.-]?([0-9]+)"))
        if len(found) >= _LEAST and math.isqrt(len(found)) ** 2 == len(found):
            return found
    return {}


def _by_number(header: list[str], pattern: re.Pattern) -> dict[tuple[int, ...], list[str]]:
    found = {}
    for name in header:
        if match := pattern.fullmatch(name):
            found.setdefault(tuple(map(int, match.groups())), []).append(name)
    return found


def read_pixels(path: Path, header: list[str], content: bytes) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The images, uint8 (n, side, side), and the other columns as text; the columns may stand in any order."""
    pixel_columns = _pixel_columns(path, header)
    side = math.isqrt(len(pixel_columns))
    kept = cache_folder() / f"{sha256(content)}-{_PARSER}.npz"
    found = _kept_before(kept)
    if not found:
        found = _parse_pixels(path, header, pixel_columns, content)
        if len(content) > _LARGE:
            _keep(kept, *found)
    return found[0].reshape(-1, side, side), found[1]


def _kept_before(kept: Path) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    """What :func:`_keep` wrote, or None where there is no such file or it is damaged (zip has checksums)."""
    try:
        with np.load(kept, allow_pickle=False) as file:
            arrays = dict(file)
        os.utime(kept)
        return arrays.pop("pixels"), {name[1:]: text_array(cells) for name, cells in arrays.items()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(kept: Path, pixels: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    """Write them for later; where that does not work, nothing is lost but time."""
    texts = {f"_{name}": cells.astype(str) for name, cells in columns.items()}
    with suppress(UserError, OSError):
        write_file(kept, partial(np.savez, pixels=pixels, **texts))
        make_room(kept.parent, _KEPT)


def _pixel_columns(path: Path, header: list[str]) -> list[int]:
    """Where the pixels stand in the header, in the order of their numbers, which begin with 0 or 1."""
    names = _numbered_columns(header, any_name=True)
    count, first = len(names), min(1, *min(names))
    if doubled := next((of_one for of_one in names.values() if len(of_one) > 1), None):
        raise UserError(str(path), f"has columns {' and '.join(doubled)} for one pixel", "remove one of them")
    side = range(first, first + math.isqrt(count))
    expected = list(product(side, side)) if len(min(names)) > 1 else [(first + number,) for number in range(count)]
    if gap := next((number for number in expected if number not in names), None):
        called = "x".join(map(str, gap)) if len(gap) > 1 else f"pixel{gap[0]}"
        raise UserError(str(path), f"has {count} pixel columns but no {called}", "download it again")
    if count % 3 == 0 and math.isqrt(count // 3) ** 2 == count // 3:
        what = f"has {count} pixel columns, three for each of {count // 3} pixels, and a table's images are grey here"
        raise UserError(str(path), what, "write the images to files and name them in a table")
    if math.isqrt(count) ** 2 != count:
        raise UserError(str(path), f"has {count} pixel columns, which is not a square number", "download it again")
    return [header.index(names[number][0]) for number in expected]


def _parse_pixels(
    path: Path, header: list[str], pixel_columns: list[int], content: bytes
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The pixels, uint8 (n, pixels), and the other columns as text.

    Cells are cut and read by numpy from the raw bytes, which checks every one of them and is still as fast as
    a csv parser: a cell is one to three digits, at most 255.
    """
    content = np.frombuffer(content, np.uint8)[content.index(b"\n") + 1 :]
    line_ends = np.flatnonzero(content == _NEWLINE)
    if not line_ends.size:
        raise UserError(str(path), "has a header but no row", "download it again")
    pixels = np.empty((len(line_ends), len(pixel_columns)), np.uint8)
    others = set(range(len(header))).difference(pixel_columns)
    texts = {name: (at, []) for at, name in enumerate(header) if at in others}
    begin = 0
    for first in range(0, len(line_ends), _BLOCK):
        lines = line_ends[first : first + _BLOCK]
        block, lines, begin = content[begin : lines[-1] + 1], lines - begin, lines[-1] + 1
        ends = np.flatnonzero((block == _COMMA) | (block == _NEWLINE)).astype(np.int32)
        widths = np.diff(np.searchsorted(ends, lines), prepend=-1)
        if (wrong := np.flatnonzero(widths != len(header))).size:
            row = wrong[0]
            if b'"' in block[lines[row - 1] + 1 if row else 0 : lines[row]].tobytes():
                what = "has a comma or a line break between quotes, which a table of pixels cannot have"
                raise UserError(row_of(path, first + row), what, "write another character in a copy of it")
            raise wrong_width(path, first + row, widths[row], len(header))
        starts = np.concatenate(([0], ends[:-1] + 1), dtype=np.int32).reshape(-1, len(header))
        ends = ends.reshape(-1, len(header))
        for at, cells in texts.values():
            spans = zip(starts[:, at], ends[:, at], strict=True)
            found = [_unquoted(block[start:end].tobytes().decode()) for start, end in spans]
            if None in found:
                where = row_of(path, first + found.index(None))
                raise UserError(where, "has a quote that does not end in its cell", "check its quotes")
            cells += found
        values, valid = _small_integers(block, starts[:, pixel_columns], ends[:, pixel_columns])
        if not valid.all():
            row, number = np.argwhere(~valid)[0]
            at = pixel_columns[number]
            cell = block[starts[row, at] : ends[row, at]].tobytes().decode()
            where = f"{row_of(path, first + row)}, column {header[at]}"
            remedy = "correct the value, or say --inputs features where the columns are no pixels"
            raise UserError(where, f"{cell[:40]!r} is not an integer from 0 to 255", remedy)
        pixels[first : first + len(lines)] = values
    return pixels, {name: text_array(cells) for name, (_, cells) in texts.items()}


def _small_integers(block: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values (uint16) of the cells ``block[start:end]`` and whether each is an integer from 0 to 255."""
    lengths = ends - starts
    # An empty cell's last byte is the separator before it, which is no digit; what lies before the block is not used.
    ones, tens, hundreds = (block.take(ends - place, mode="clip") - _ZERO for place in (1, 2, 3))
    tens, hundreds = np.where(lengths > 1, tens, 0), np.where(lengths > 2, hundreds, 0)
    values = 100 * hundreds.astype(np.uint16) + 10 * tens.astype(np.uint16) + ones
    valid = (ones <= 9) & (tens <= 9) & (hundreds <= 2) & (values <= 255) & (lengths <= 3)
    return values, valid


def _unquoted(cell: str) -> str | None:
    """The text of a cell; None where a quote begins it and does not end it."""
    if not cell.startswith('"'):
        return cell
    return cell[1:-1].replace('""', '"') if re.fullmatch('"([^"]|"")*"', cell) else None
