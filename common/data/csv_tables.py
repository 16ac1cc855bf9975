"""A csv as a table: of pixels, of photo names, of features or of the names of sequences' files."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.base.errors import UserError, warn
from common.base.strict_csv import INDEX, columns_of, csv_bytes, header_of, text_array, with_named_index
from common.base.words import names_in_short
from common.data.competition import Competition
from common.data.features import is_feature_table, plan_of
from common.data.kinds import FEATURES, PHOTOS, PIXELS, SEQUENCES, Kind
from common.data.labels import take_labels
from common.data.photos import PhotoSearch
from common.data.pixels import is_pixel_header, look_like_pixels, read_pixels
from common.data.row_ids import id_column, plain_name, refuse_doubles, without_index
from common.data.sequences import LENGTH_COLUMNS, SUFFIX, read_sequences, sequence_column
from common.data.table import Table

# The first one present names the photo, or a pixel table's rows; in any case, with or without _.
IMAGE_COLUMNS = ("image", "filename", "file", "path", "image_id", "name", "id")


def csv_table(path: Path, competition: Competition, images: Sequence[str], test: bool, sample: str = "") -> Table:
    """The table that a csv of pixels, photo names, features or sequences is; ``images`` are the photos' folders.

    Raises:
        UserError: the row or column that is wrong; nothing tells what its rows are.
    """
    content = with_named_index(csv_bytes(path))
    header = header_of(path, content.partition(b"\n")[0].decode())
    if spaced := [name for name in header if name != name.strip()]:
        warn(f"{path}: the name of its column {spaced[0]!r} begins or ends with a space")
    if competition.inputs != "features" and is_pixel_header(header, any_name=competition.inputs == "images"):
        return _pixel_table(path, header, content, competition, test, sample)
    columns = columns_of(path, content.decode())
    if competition.inputs == SEQUENCES.name or (not competition.inputs and sequence_column(columns)):
        return _sequence_table(path, columns, competition, test, sample)
    if not competition.inputs and (pixels := look_like_pixels(columns)):
        what = f"its {len(pixels)} columns {pixels[0]} ... {pixels[-1]} may be the pixels of an image, or features"
        raise UserError(str(path), what, "say which with --inputs images or --inputs features")
    if competition.inputs == "features" or (not competition.inputs and _shows_features(path, columns, competition)):
        return _feature_table(path, columns, competition, test, sample)
    return _photo_table(path, columns, competition, images, test)


def _shows_features(path: Path, columns: dict[str, np.ndarray], competition: Competition) -> bool:
    """Whether a csv has columns of numbers, and nobody says or shows that its rows name photos."""
    named = {name: cells for name, cells in columns.items() if name != INDEX}
    if competition.image_column or competition.images or not is_feature_table(named):
        return False
    search = PhotoSearch(path)
    return not any(search.find(cell) for cells in columns.values() for cell in set(cells[:20]) if cell)


def _rows_of(
    path: Path,
    kind: Kind,
    columns: dict[str, np.ndarray],
    competition: Competition,
    test: bool,
    sample: str,
    names: Iterable[str],
) -> Table:
    """The rows of a csv but for their inputs: labels and ids, taken out of its columns.

    Ids are those of an id column, or else ``names``: of the rows' files, or numbers from 1.
    """
    labels = take_labels(path, columns, text_array([]), competition, test, alone=False)
    id_name = id_column(path, columns, competition, test, sample, of_features=kind is not PIXELS)
    ids = columns[id_name] if id_name else text_array(names)
    if kind is not PIXELS:  # beside which a column of ids may as well say what belongs together
        columns.pop(id_name, None)
    if id_name != INDEX:
        without_index(path, columns)
    refuse_doubles(path, ids, id_name or "id")
    unnamed = "the names of their files" if kind is SEQUENCES else "the rows' numbers from 1"
    taken = (f"ids          {f'column {id_name}' if id_name else unnamed} (--image-column)", *labels.taken)
    usual_id, usual_label = ("ImageId", "Label") if kind is PIXELS else ("id", "label")  # as Kaggle's digits have them
    label_name = labels.name if labels.name not in ("", "label") else usual_label
    called = (id_name or usual_id, label_name)
    return Table(str(path), ids, labels.cells, [], *called, columns, kind.name, taken, separator=labels.separator)


def _sequence_table(
    path: Path, columns: dict[str, np.ndarray], competition: Competition, test: bool, sample: str
) -> Table:
    """What a column says of the sequences' lengths is checked."""
    if not (column := sequence_column(columns)):
        what = f"has no column whose cells all end in {SUFFIX}"
        raise UserError(str(path), what, f"its columns: {', '.join(columns)}")
    names = columns.pop(column)
    stems = (Path(name).stem for name in names)
    table = _rows_of(path, SEQUENCES, columns, competition, test, sample, stems)
    length = next((name for name in columns if name.lower() in LENGTH_COLUMNS and name not in competition.drop), "")
    files = read_sequences(str(path), path.parent, names, columns.get(length, ()))
    said = (
        f"sequences    column {column}: {files.lengths.min():,} to {files.lengths.max():,} frames of {files.width} "
        f"numbers, median {np.median(files.lengths):,.0f}" + (f"; column {length} agrees" if length else "")
    )
    return replace(table, images=files, taken=(*table.taken, said))


def _feature_table(
    path: Path, columns: dict[str, np.ndarray], competition: Competition, test: bool, sample: str
) -> Table:
    """Every column that is neither id nor label is a feature."""
    rows = len(next(iter(columns.values()), ()))
    table = _rows_of(path, FEATURES, columns, competition, test, sample, map(str, range(1, rows + 1)))
    if missing := [name for name in competition.drop if name not in columns and not test]:
        raise UserError(
            str(path), f"has no column {missing[0]!r} for --drop", f"its columns: {names_in_short([*columns])}"
        )
    names = [name for name in columns if name not in competition.drop]
    cells = np.array([columns[name] for name in names], dtype=object).reshape(len(names), rows).T
    plan, said = ("", ()) if test else plan_of(path, names, cells)
    return replace(table, images=cells, taken=(*table.taken, *said), feature_names=tuple(names), plan=plan)


def _pixel_table(
    path: Path, header: list[str], content: bytes, competition: Competition, test: bool, sample: str
) -> Table:
    images, columns = read_pixels(path, header, content)
    numbers = map(str, range(1, len(images) + 1))
    return replace(_rows_of(path, PIXELS, columns, competition, test, sample, numbers), images=images)


def _photo_table(
    path: Path, columns: dict[str, np.ndarray], competition: Competition, images: Sequence[str], test: bool
) -> Table:
    """Ids are the image column's cells; where the files lie, common/data/photos.py says."""
    search = PhotoSearch(path, images, competition.image_suffixes, "folds.py --test-images" if test else "--images")
    id_name = _image_column(path, columns, competition, search)
    ids = columns.pop(id_name)
    without_index(path, columns)
    refuse_doubles(path, ids, id_name)
    files = search.files(ids, id_name)
    labels = take_labels(path, columns, ids, competition, test, alone=True)
    places = ", ".join(sorted({str(file.parent) for file in files})[:3])
    taken = (f"images       column {id_name} (--image-column), in {places} (--images)", *labels.taken)
    if is_feature_table(columns):
        taken += (f"not used     beside photos: {names_in_short(list(columns))} (--inputs features uses them alone)",)
    called = (id_name, labels.name or "label")
    return Table(str(path), ids, labels.cells, files, *called, columns, PHOTOS.name, taken, separator=labels.separator)


def _image_column(path: Path, columns: dict[str, np.ndarray], competition: Competition, search: PhotoSearch) -> str:
    """The column that names the photos: the one that was said, one of the usual names, or the one with photos."""
    if name := competition.image_column:
        if name not in columns:
            raise UserError(str(path), f"has no column {name!r}", f"its columns: {', '.join(columns)}")
        return name
    usual = [name for name in IMAGE_COLUMNS if name in columns]
    plain = [plain_name(name) for name in IMAGE_COLUMNS]
    usual += sorted((name for name in columns if plain_name(name) in plain and name not in usual), key=len)
    for name in usual:
        if any(map(search.has, columns[name])):
            return name
    with_photos = [name for name, cells in columns.items() if any(map(search.has, cells))]
    with_photos = [name for name in with_photos if name != INDEX] or with_photos
    if len(with_photos) == 1:
        return with_photos[0]
    if usual and not with_photos:
        return usual[0]  # whose missing photo is then named
    places = ", ".join(map(str, search.searched))
    what = f"has neither pixel columns nor one that names an image file ({', '.join(columns)}) in {places}"
    remedy = f"name the image column with --image-column and the images' folder with {search.flag}"
    raise UserError(str(path), what, remedy)
