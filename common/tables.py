"""Tables of labelled images: a pixel csv, a csv beside its photos, a folder of class folders, the embedded digits.

Reading is strict, since a lenient reader turns a damaged table into a quietly wrong one: every cell of every row
is checked, ids and labels stay the text that was written, and a mistake names its row (the first row below the
header is row 1) and its column.
"""

import csv
import gzip
import io
import math
import os
import re
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import numpy as np

from common.errors import UserError, warn
from common.files import sha256

EMBEDDED = "digits"
IMAGE_COLUMNS = ("image", "filename", "file", "path", "image_id", "id")  # the first one present names the photo
LABEL_COLUMNS = ("label", "predict", "target", "class")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Table:
    """n images with their ids and, where known, labels."""

    source: str  # what --data or --test named
    ids: np.ndarray  # text, n
    labels: np.ndarray  # text, n; empty where the table has no labels
    images: np.ndarray | list[Path]  # uint8 (n, height, width), or n image files
    id_name: str  # the id column of a submission made without a sample
    label_name: str  # its label column
    columns: dict[str, np.ndarray]  # the other columns: text, n each

    def row_shas(self) -> np.ndarray:
        """Text, n: the first 16 hex digits of the sha256 of each row's pixels, or of its image file's bytes."""
        contents = (_file_bytes(image) if isinstance(image, Path) else image.tobytes() for image in self.images)
        return text_array(sha256(content)[:16] for content in contents)


def read_train_table(data: str) -> Table:
    """Read ``digits`` (embedded), a ``.csv`` or ``.csv.gz`` of pixels or photo names, or a folder of class folders.

    Raises:
        UserError: the file, row or column that is wrong.
    """
    if data == EMBEDDED:
        return _embedded_digits(test=False)
    path = Path(data)
    table = _class_folders(path) if path.is_dir() else _csv_table(path, test=False)
    if not table.labels.size:
        raise UserError(data, "has no label column", f"name one of its columns {LABEL_COLUMNS[0]}")
    return _with_whole_labels(table)


def read_test_table(test: str, data: str) -> Table:
    """Read a test table (``.csv``, ``.csv.gz``) or a folder of images; its labels are kept where it has them.

    With ``test`` empty and ``data`` the embedded digits, this is their held-out part.
    """
    if (test or data) == EMBEDDED:
        return _embedded_digits(test=True)
    if not test:
        raise UserError("--test", "is not given", "name the test table or the folder of test images")
    path = Path(test)
    table = _image_folder(path) if path.is_dir() else _csv_table(path, test=True)
    if not any(table.labels):  # a column that waits to be filled in
        return replace(table, labels=text_array([]))
    return _with_whole_labels(table)


def read_cells(path: Path) -> dict[str, np.ndarray]:
    """Every column of a small csv as text, by name; each row has one cell per column."""
    return _cells(path, _csv_bytes(path).decode())


def text_array(texts) -> np.ndarray:
    """Texts as a one-dimensional array of Python strings."""
    return np.array(list(texts), dtype=object)


def row_of(source: str | Path, index: int) -> str:
    """Where an error sits: ``index`` counts the rows below the header from 0, a reader from 1."""
    return f"{source}, row {index + 1}"


# ---- the csv's text


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise UserError(str(path), what, "check the path") from error


def _csv_bytes(path: Path) -> bytes:
    """The file as checked UTF-8 with plain newlines, the last one included."""
    if not path.name.endswith((".csv", ".csv.gz")):
        raise UserError(str(path), "is not a .csv, a .csv.gz or a folder", "convert it to one of these")
    content = _file_bytes(path)
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(str(path), f"is not a whole gzip file ({error})", "download it again") from error
    if not content.strip():
        raise UserError(str(path), "is empty", "download it again")
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
            raise UserError(str(path), "has a carriage return inside a line", "save it with ordinary line ends")
    if not content.endswith(b"\n"):
        warn(f"{path} does not end with a newline: is its last row whole?")
        content += b"\n"
    while content.endswith(b"\n\n"):
        content = content[:-1]
    return content


def _header(path: Path, line: str) -> list[str]:
    try:
        header = next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, first line", f"is not valid csv ({error})", "check its quotes") from error
    for name, separator in (("semicolon", ";"), ("tab", "\t")):
        if len(header) == 1 and separator in line:
            raise UserError(str(path), f"looks {name}-separated", "save it with commas")
    name, count = Counter(header).most_common(1)[0]
    if count > 1:
        raise UserError(str(path), f"has {count} columns named {name!r}", "rename or remove one")
    if "" in header:
        raise UserError(str(path), "has a column without a name", "name every column in the first line")
    return header


def _cells(path: Path, text: str) -> dict[str, np.ndarray]:
    header = _header(path, text.partition("\n")[0])
    rows = []
    try:
        reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
        next(reader)
        for row in reader:
            rows.append(row)
            if len(row) != len(header):
                raise _wrong_width(path, len(rows) - 1, len(row), len(header))
    except csv.Error as error:
        raise UserError(row_of(path, len(rows)), f"is not valid csv ({error})", "check its quotes") from error
    if not rows:
        raise UserError(str(path), "has a header but no row", "download it again")
    return {name: text_array(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True)}


def _wrong_width(path: Path, index: int, found: int, expected: int) -> UserError:
    return UserError(row_of(path, index), f"has {found} fields, the header {expected}", "mend or remove the row")


def _csv_table(path: Path, test: bool) -> Table:
    content = _csv_bytes(path)
    header = _header(path, content.partition(b"\n")[0].decode())
    if any(_PIXEL.fullmatch(name) for name in header):
        return _pixel_table(path, header, content)
    return _photo_table(path, _cells(path, content.decode()), test)


def _with_whole_labels(table: Table) -> Table:
    if (empty := np.flatnonzero(table.labels == "")).size:
        raise UserError(row_of(table.source, empty[0]), "the label is empty", "fill it in or remove the row")
    return table


# ---- pixel tables

_PIXEL = re.compile(r"pixel(0|[1-9][0-9]*)")
_COMMA, _NEWLINE, _ZERO = b",\n0"
_BLOCK = 512  # rows parsed at once: few enough to stay in the processor's cache


def _pixel_table(path: Path, header: list[str], content: bytes) -> Table:
    """Ids are row numbers from 1; the columns may stand in any order."""
    pixel_columns = _pixel_columns(path, header)
    side = math.isqrt(len(pixel_columns))
    pixels, columns = _parse_pixels(path, header, pixel_columns, content[content.index(b"\n") + 1 :])
    labels = columns.pop("label", text_array([]))
    ids = text_array(str(number) for number in range(1, len(pixels) + 1))
    return Table(str(path), ids, labels, pixels.reshape(-1, side, side), "ImageId", "Label", columns)


def _pixel_columns(path: Path, header: list[str]) -> list[int]:
    """Where pixel0, pixel1, ... stand in the header."""
    positions = {int(name[5:]): at for at, name in enumerate(header) if _PIXEL.fullmatch(name)}
    count = len(positions)
    for number in range(count):
        if number not in positions:
            raise UserError(str(path), f"has {count} pixel columns but no pixel{number}", "download it again")
    if math.isqrt(count) ** 2 != count:
        raise UserError(str(path), f"has {count} pixel columns, not the square of a side", "download it again")
    return [positions[number] for number in range(count)]


def _parse_pixels(
    path: Path, header: list[str], pixel_columns: list[int], body: bytes
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The pixels, uint8 (n, pixels), and the other columns as text.

    Cells are cut and read by numpy from the raw bytes, which checks every one of them and is still as fast as
    a csv parser: a cell is one to three digits, at most 255.
    """
    content = np.frombuffer(body, np.uint8)
    line_ends = np.flatnonzero(content == _NEWLINE)
    if not line_ends.size:
        raise UserError(str(path), "has a header but no row", "download it again")
    pixels = np.empty((len(line_ends), len(pixel_columns)), np.uint8)
    texts = {name: (at, []) for at, name in enumerate(header) if not _PIXEL.fullmatch(name)}
    begin = 0
    for first in range(0, len(line_ends), _BLOCK):
        lines = line_ends[first : first + _BLOCK]
        block, lines, begin = content[begin : lines[-1] + 1], lines - begin, lines[-1] + 1
        ends = np.flatnonzero((block == _COMMA) | (block == _NEWLINE)).astype(np.int32)
        widths = np.diff(np.searchsorted(ends, lines), prepend=-1)
        if (wrong := np.flatnonzero(widths != len(header))).size:
            raise _wrong_width(path, first + wrong[0], widths[wrong[0]], len(header))
        starts = np.concatenate(([0], ends[:-1] + 1), dtype=np.int32).reshape(-1, len(header))
        ends = ends.reshape(-1, len(header))
        for at, cells in texts.values():
            spans = zip(starts[:, at], ends[:, at], strict=True)
            cells += [_unquoted(block[start:end].tobytes().decode()) for start, end in spans]
        values, valid = _small_integers(block, starts[:, pixel_columns], ends[:, pixel_columns])
        if not valid.all():
            row, number = np.argwhere(~valid)[0]
            at = pixel_columns[number]
            cell = block[starts[row, at] : ends[row, at]].tobytes().decode()
            where = f"{row_of(path, first + row)}, column pixel{number}"
            raise UserError(where, f"{cell[:40]!r} is not an integer from 0 to 255", "correct the value")
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


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


# ---- photos


def _photo_table(path: Path, columns: dict[str, np.ndarray], test: bool) -> Table:
    """Ids are the image column's cells; the files lie in the csv's folder or in images/ below it."""
    id_name = next((name for name in IMAGE_COLUMNS if name in columns), "")
    if not id_name:
        what = f"has neither pixel columns nor one that names an image file ({', '.join(columns)})"
        raise UserError(str(path), what, f"name it one of {', '.join(IMAGE_COLUMNS)}")
    ids = columns.pop(id_name)
    _refuse_doubles(path, ids)
    images = [_image_file(path, index, name) for index, name in enumerate(ids)]
    label_name = next((name for name in LABEL_COLUMNS if name in columns), "")
    if not label_name and not test and len(columns) == 1:
        label_name = next(iter(columns))
    labels = columns.pop(label_name, text_array([]))
    return Table(str(path), ids, labels, images, id_name, label_name or LABEL_COLUMNS[0], columns)


def _image_file(path: Path, index: int, name: str) -> Path:
    """The file a row names, with or without its suffix; never one outside the csv's folder."""
    root, where = path.parent, row_of(path, index)
    named = PureWindowsPath(name)  # knows both kinds of slashes and drives
    if named.anchor or ".." in named.parts:
        raise UserError(where, f"{name!r} leads out of {root}", "name images by their path below the csv's folder")
    for folder in (root, root / "images"):
        for suffix in ("", *IMAGE_SUFFIXES):
            file = folder / f"{name}{suffix}"
            if os.path.isfile(file):  # unlike Path.is_file, says no to a name that is too long
                _refuse_outside(root, file, where)
                return file
    raise UserError(where, f"there is no image {name!r} below {root}", "put it there or remove the row")


def _class_folders(root: Path) -> Table:
    """Ids are paths relative to ``root``, labels the names of the folders in it."""
    stray = [file.name for file in root.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    if stray:
        raise UserError(str(root), f"holds {len(stray)} images beside its class folders ({stray[0]})", "move them")
    table = _image_folder(root)
    labels = text_array(name.partition("/")[0] for name in table.ids)
    folders = {folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")}
    if empty := sorted(folders - set(labels)):
        raise UserError(str(root / empty[0]), "is a class folder without an image", "fill it or remove it")
    return replace(table, labels=labels)


def _image_folder(root: Path) -> Table:
    """Every image below ``root``; ids are paths relative to it, in their order as text."""
    visible = (name for name in root.rglob("*") if not any(part[0] == "." for part in name.relative_to(root).parts))
    files = [file for file in visible if file.is_file()]
    images = {file.relative_to(root).as_posix(): file for file in files if file.suffix.lower() in IMAGE_SUFFIXES}
    if not images:
        raise UserError(str(root), "holds no image", f"name a folder of {', '.join(IMAGE_SUFFIXES)} files")
    if len(images) < len(files):
        other = next(file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES)
        warn(f"{root}: {len(files) - len(images)} files are not images and are left out ({other.name})")
    for name, file in images.items():
        _refuse_outside(root, file, f"{root}, {name}")
    ids = sorted(images)
    return Table(
        str(root), text_array(ids), text_array([]), [images[name] for name in ids], "image", LABEL_COLUMNS[0], {}
    )


def _refuse_outside(root: Path, file: Path, where: str) -> None:
    if not file.resolve().is_relative_to(root.resolve()):
        raise UserError(where, f"{file.name} is a link that leads out of {root}", "copy the image into the folder")


def _refuse_doubles(path: Path, ids: np.ndarray) -> None:
    first = {}
    for index, name in enumerate(ids):
        if (earlier := first.setdefault(name, index)) != index:
            raise UserError(row_of(path, index), f"id {name!r} is also in row {earlier + 1}", "remove one of them")


# ---- the embedded digits


def _embedded_digits(test: bool) -> Table:
    """scikit-learn's 1,797 handwritten digits, 8 x 8: 1,437 to train on, 360 held out with known labels.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    parts = train_test_split(np.arange(1797), test_size=360, stratify=digits.target, random_state=0)
    rows = np.sort(parts[test])
    images = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
    ids = text_array(str(number) for number in range(1, len(rows) + 1))
    return Table(EMBEDDED, ids, text_array(map(str, digits.target[rows])), images, "ImageId", "Label", {})
