"""Tables of labelled images: a pixel csv, a csv beside its photos, a folder of class folders, the embedded digits.

Ids and labels stay the text that was written; a mistake names its row (the first row below the header is row 1).
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.base.errors import UserError, warn
from common.base.files import sha256
from common.base.strict_csv import cells_of, csv_bytes, file_bytes, header_of, row_of, text_array
from common.data.photos import class_folders, image_file, images_in, named_as_in
from common.data.pixels import is_pixel_header, read_pixels

EMBEDDED = "digits"
IMAGE_COLUMNS = ("image", "filename", "file", "path", "image_id", "name", "id")  # the first one present names the photo
ID_COLUMNS = ("id", "image_id", "ImageId")  # the first one present names the rows of a pixel table
LABEL_COLUMNS = ("label", "predict", "target", "class")


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

    @property
    def of_photos(self) -> bool:
        """Whether the images are files, to be decoded."""
        return not isinstance(self.images, np.ndarray)

    def row_shas(self) -> np.ndarray:
        """Text, n: the first 16 hex digits of the sha256 of each row's pixels, or of its image file's bytes."""
        contents = (file_bytes(image) if isinstance(image, Path) else image.tobytes() for image in self.images)
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
        raise UserError(data, "has no label column", f"rename one of its columns to {LABEL_COLUMNS[0]}")
    return _with_whole_labels(table)


def read_test_table(test: str, data: str, sample: str = "") -> Table:
    """Read a test table (``.csv``, ``.csv.gz``) or a folder of images; its labels are kept where it has them.

    The images of a folder are called as ``sample`` (a sample submission, "" for none) calls them: with or without
    folder and suffix. With ``test`` empty and ``data`` the embedded digits, this is their held-out part.
    """
    if (test or data) == EMBEDDED:
        return _embedded_digits(test=True)
    if not test:
        raise UserError("--test", "is missing", "name the test table or the folder of test images")
    path = Path(test)
    if path.is_dir():
        images = images_in(path)
        return _folder_table(path, named_as_in(Path(sample), images) if sample else images)
    table = _csv_table(path, test=True)
    if not any(table.labels):  # a column that waits to be filled in
        return replace(table, labels=text_array([]))
    return _with_whole_labels(table)


def _csv_table(path: Path, test: bool) -> Table:
    content = csv_bytes(path)
    header = header_of(path, content.partition(b"\n")[0].decode())
    if is_pixel_header(header):
        return _pixel_table(path, header, content)
    return _photo_table(path, cells_of(path, content.decode()), test)


def _pixel_table(path: Path, header: list[str], content: bytes) -> Table:
    """Ids are those of an id column, or else row numbers from 1."""
    images, columns = read_pixels(path, header, content)
    labels = columns.pop("label", text_array([]))
    id_name = next((name for name in ID_COLUMNS if name in columns), "")
    ids = columns.pop(id_name) if id_name else text_array(str(number) for number in range(1, len(images) + 1))
    _refuse_doubles(path, ids, id_name)
    return Table(str(path), ids, labels, images, id_name or "ImageId", "Label", columns)


def _photo_table(path: Path, columns: dict[str, np.ndarray], test: bool) -> Table:
    """Ids are the image column's cells; where the files lie, common/data/photos.py says."""
    id_name = next((name for name in IMAGE_COLUMNS if name in columns), "")
    if not id_name:
        what = f"has neither pixel columns nor one that names an image file ({', '.join(columns)})"
        raise UserError(str(path), what, f"name the image column one of {', '.join(IMAGE_COLUMNS)}")
    ids = columns.pop(id_name)
    _refuse_doubles(path, ids, id_name)
    images = [image_file(path, index, name) for index, name in enumerate(ids)]
    label_name = next((name for name in LABEL_COLUMNS if name in columns), "")
    if not label_name and not test and len(columns) == 1:
        label_name = next(iter(columns))
    labels = columns.pop(label_name, text_array([]))
    return Table(str(path), ids, labels, images, id_name, label_name or LABEL_COLUMNS[0], columns)


def _class_folders(root: Path) -> Table:
    """Labels are the names of the folders in ``root``."""
    images, labels = class_folders(root)
    return replace(_folder_table(root, images), labels=text_array(labels))


def _folder_table(root: Path, images: dict[str, Path]) -> Table:
    """Ids are paths relative to ``root``."""
    return Table(str(root), text_array(images), text_array([]), list(images.values()), "image", LABEL_COLUMNS[0], {})


def _with_whole_labels(table: Table) -> Table:
    if (empty := np.flatnonzero(table.labels == "")).size:
        raise UserError(row_of(table.source, empty[0]), "the label is empty", "fill it in or remove the row")
    return table


def _refuse_doubles(path: Path, ids: np.ndarray, column: str) -> None:
    first = {}
    for index, name in enumerate(ids):
        if not name:
            raise UserError(f"{row_of(path, index)}, column {column}", "is empty", "fill it in or remove the row")
        if (earlier := first.setdefault(name, index)) != index:
            raise UserError(row_of(path, index), f"id {name!r} is also in row {earlier + 1}", "remove one of them")
    if len({unicodedata.normalize("NFC", name) for name in first}) < len(first):
        twins = Counter(unicodedata.normalize("NFC", name) for name in first).most_common(1)[0][0]
        warn(f"{path}: two rows are named {twins} and differ only in the Unicode form of an accent")


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
