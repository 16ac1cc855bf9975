"""Tables of labelled images: a pixel csv, a csv beside its photos, a folder of class folders, the embedded digits.

Ids and labels stay the text that was written; a mistake names its row (the first row below the header is row 1).
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from common.base.errors import UserError, warn
from common.base.files import sha256
from common.base.strict_csv import (
    INDEX,
    columns_of,
    csv_bytes,
    header_of,
    read_columns,
    row_of,
    text_array,
    with_named_index,
)
from common.base.words import names_in_short
from common.data.competition import NOTHING_SAID, Competition, task_of
from common.data.features import is_feature_table, plan_of
from common.data.image_folders import class_folders, images_in, named_as_in, refuse_parts, words_of
from common.data.kinds import FEATURES, FRAMES, KINDS, PHOTOS, PIXELS, SEQUENCES, Kind
from common.data.labels import NO_LABELS, take_labels
from common.data.photos import PhotoSearch
from common.data.pixels import is_pixel_header, look_like_pixels, read_pixels
from common.data.row_ids import id_column, plain_name, refuse_doubles, without_index
from common.data.sequences import (
    LENGTH_COLUMNS,
    SUFFIX,
    SequenceFiles,
    read_sequences,
    refuse_foreign,
    sequence_column,
)
from common.data.stacks import Stack
from common.data.utterances import UTTERANCE, FrameRows, Utterances, read_test_frames, read_train_frames

EMBEDDED = "digits"
PART = "part of the data set"  # column of a folder table: train or valid, by the folder that an image lies in
# The first one present names the photo, or a pixel table's rows; in any case, with or without _.
IMAGE_COLUMNS = ("image", "filename", "file", "path", "image_id", "name", "id")


@dataclass(frozen=True)
class Table:
    """n images with their ids and, where known, labels."""

    source: str  # what --data or --test named
    ids: np.ndarray  # text, n
    labels: np.ndarray  # text, n; empty where the table has no labels
    # uint8 (n, height, width), or n image files, or features: text (n, columns), or sequences, or their frames
    images: np.ndarray | list[Path] | list[Stack] | SequenceFiles | FrameRows
    id_name: str  # the id column of a submission made without a sample
    label_name: str  # its label column
    columns: dict[str, np.ndarray]  # the other columns: text, n each
    inputs: str = PIXELS.name  # a name in KINDS: what its rows are
    taken: tuple[str, ...] = ()  # what was taken for what, a line each, with the flag that changes it
    feature_names: tuple[str, ...] = ()  # of the columns of ``images``, where these are text
    plan: str = ""  # what these become (common/data/features.py); empty in a test table
    separator: str = ""  # between the names of a label set, as the table was written
    pixel_shas: np.ndarray = field(default_factory=lambda: text_array([]))  # text, n: of decoded photos; empty: unknown
    facts: dict[str, np.ndarray] = field(default_factory=dict)  # of decoded photos, n each: common/data/photo_check.py

    @property
    def kind(self) -> Kind:
        """What follows from what its rows are."""
        return KINDS[self.inputs]

    def row_shas(self) -> np.ndarray:
        """Text, n: the first 16 hex digits of the sha256 of each row's pixels, features or image file's bytes."""
        return text_array(sha256(self.kind.content(row))[:16] for row in self.images)

    def image_shas(self) -> np.ndarray:
        """Text, n: equal for rows that show the same pixels, as far as photos were decoded; else :meth:`row_shas`."""
        return self.pixel_shas if self.pixel_shas.size else self.row_shas()


def read_train_table(data: str, competition: Competition = NOTHING_SAID) -> Table:
    """Read ``digits`` (embedded), a ``.csv`` or ``.csv.gz`` of pixels or photo names, or a folder of class folders.

    ``competition`` says where the photos lie and what the columns mean, where the files do not tell it.

    Raises:
        UserError: the file, row or column that is wrong.
    """
    if data == EMBEDDED:
        return _embedded_digits(test=False)
    path = Path(data)
    refuse_foreign(path)
    if competition.targets == FRAMES.name:
        table = _frame_table(path, read_train_frames(path))
    elif os.path.isdir(path):
        table = _class_folders(path, competition)
    else:
        table = _csv_table(path, competition, competition.images, test=False)
    return _with_whole_labels(table, competition)


def read_test_table(test: str, data: str, sample: str = "", competition: Competition = NOTHING_SAID) -> Table:
    """Read a test table (``.csv``, ``.csv.gz``) or a folder of images; its labels are kept where it has them.

    The images of a folder are called as ``sample`` (a sample submission, "" for none) calls them: with or without
    folder and suffix. With ``test`` empty and ``data`` the embedded digits, this is their held-out part.
    """
    if (test or data) == EMBEDDED:
        return _embedded_digits(test=True)
    if not test:
        raise UserError("--test", "is missing", "name the test table or the folder of test images")
    path = Path(test)
    if competition.targets == FRAMES.name:
        return _numbered(_frame_table(path, read_test_frames(path)), sample)
    if os.path.isdir(path) and competition.image_suffixes:
        return _stacks_in(path, sample, competition)
    if os.path.isdir(path):
        images = images_in(path, trusted=path in map(Path, competition.test_images))
        refuse_parts(path, images, "test")
        return _folder_table(path, named_as_in(Path(sample), images) if sample else images)
    table = _csv_table(path, competition, competition.test_images, test=True, sample=sample)
    if why := _no_answers(table, sample):
        if any(table.labels):
            warn(f"{test}: its label column is not scored: {why}")
        return replace(table, labels=text_array([]))
    return _with_whole_labels(table, competition)


def _no_answers(table: Table, sample: str) -> str:
    """Why the label column of a test table holds no answers; empty where it may."""
    if not any(table.labels):
        return "it is empty"  # a column that waits to be filled in
    called = Path(table.source).name.lower()
    if "sample" in called and "submission" in called:
        return "it is a sample submission's"
    if sample:
        cells = list(read_columns(Path(sample)).values())
        if len(cells) == 2 and dict(zip(*cells, strict=True)) == dict(zip(table.ids, table.labels, strict=True)):
            return "it is the sample submission's"
    if len(table.labels) > 1 and len(set(table.labels)) == 1:
        return f"all {len(table.labels)} cells are {table.labels[0]!r}, which is no set of answers"
    return ""


def _csv_table(path: Path, competition: Competition, images: Sequence[str], test: bool, sample: str = "") -> Table:
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


def _frame_table(path: Path, found: Utterances) -> Table:
    """A row a frame; whose it is says the column utterance."""
    lengths = found.rows.sequences.lengths
    each = f"{lengths.min():,} to {lengths.max():,} of {found.rows.width} numbers each"
    taken = f"frames       of {len(lengths):,} utterances, {each}"
    columns = {UTTERANCE: found.names}
    return Table(str(path), found.ids, found.labels, found.rows, "Id", "Class", columns, FRAMES.name, (taken,))


def _numbered(table: Table, sample: str) -> Table:
    """A test table of frames whose ids are those of the sample submission, in order, or else numbers from 0.

    Raises:
        UserError: the sample has another number of rows than there are frames.
    """
    ids = text_array(map(str, range(len(table.ids))))
    if sample:
        ids = next(iter(read_columns(Path(sample)).values()))
        if len(ids) != len(table.ids):
            what = f"has {len(ids):,} rows, but the utterances of {table.source} have {len(table.ids):,} frames"
            raise UserError(sample, what, "name the list that belongs to the sample with --test")
    return replace(table, ids=ids)


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


def _class_folders(root: Path, competition: Competition) -> Table:
    """Labels are the names of the folders in ``root``, or what ``label_from_name`` finds in each image's path.

    Where ``competition.images`` are folders in ``root``, such as train and valid, only what lies in them counts.
    """
    named = list(map(Path, competition.images))
    inside = [folder for folder in named if folder != root and folder.is_relative_to(root)]
    if not inside:
        return _class_folder(root, competition, trusted=root in named)
    found = [_class_folder(folder, competition, trusted=True) for folder in inside]
    names = [folder.relative_to(root).as_posix() for folder in inside]
    prefixed = [f"{name}/{image}" for name, part in zip(names, found, strict=True) for image in part.ids]
    whole = _folder_table(root, dict(zip(prefixed, [file for part in found for file in part.images], strict=True)))
    parts = [
        min(words_of(folder.name), default="") for folder, part in zip(inside, found, strict=True) for _ in part.ids
    ]
    taken = (f"images       in {', '.join(map(str, inside))} (--images)", *found[0].taken)
    labels = np.concatenate([part.labels for part in found])
    return replace(whole, labels=labels, columns={PART: text_array(parts)}, taken=taken)


def _class_folder(root: Path, competition: Competition, trusted: bool) -> Table:
    if competition.label_from_name:
        images = images_in(root, trusted)
        found = take_labels(root, {}, text_array(images), competition, test=False, alone=False)
        return replace(_folder_table(root, images), labels=found.cells, taken=found.taken)
    images, labels = class_folders(root, trusted)
    taken = ("labels       the names of the folders (--label-from-name)",)
    return replace(_folder_table(root, images), labels=text_array(labels), taken=taken)


def _stacks_in(root: Path, sample: str, competition: Competition) -> Table:
    """The images of a folder that are several files each, which the sample submission's first column names."""
    if not sample:
        what = "needs a sample submission to name the images of a test folder"
        raise UserError("--image-suffixes", what, "name it with --sample, or give --test a table")
    column, ids = next(iter(read_columns(Path(sample)).items()))
    files = PhotoSearch(Path(sample), [str(root)], competition.image_suffixes, "--test").files(ids, column)
    return Table(str(root), ids, NO_LABELS.cells, files, "image", "label", {}, PHOTOS.name)


def _folder_table(root: Path, images: dict[str, Path]) -> Table:
    """Ids are paths relative to ``root``."""
    files = list(images.values())
    return Table(str(root), text_array(images), NO_LABELS.cells, files, "image", "label", {}, PHOTOS.name)


def _with_whole_labels(table: Table, competition: Competition) -> Table:
    flaw = task_of(competition).flaw
    for index, label in enumerate(table.labels):
        if what := flaw(label):
            raise UserError(row_of(table.source, index), f"the label {what}", "fill it in or remove the row")
    return table


def _embedded_digits(test: bool) -> Table:
    """scikit-learn's 1,797 handwritten digits, 8 x 8: 1,437 to train on, 360 held out with known labels.

    The file holds what load_digits and a stratified train_test_split give, so that nobody waits for their import.
    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (CC BY 4.0).
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as digits:
        rows = digits["held_out"] == test
        images, labels = digits["images"][rows], text_array(map(str, digits["labels"][rows]))
    ids = text_array(str(number) for number in range(1, len(labels) + 1))
    return Table(EMBEDDED, ids, labels, images, "ImageId", "Label", {})
