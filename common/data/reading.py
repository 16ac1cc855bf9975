"""Reads a train or a test table: a csv, a folder of images, a list of utterances, the embedded digits.

Ids and labels stay the text that was written; a mistake names its row (the first row below the header is row 1).
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.base.errors import UserError, warn
from common.base.strict_csv import read_columns, row_of, text_array
from common.data.competition import NOTHING_SAID, Competition, task_of
from common.data.csv_tables import csv_table
from common.data.image_folders import class_folders, images_in, named_as_in, refuse_parts, words_of
from common.data.kinds import FRAMES, PHOTOS
from common.data.labels import NO_LABELS, take_labels
from common.data.photos import PhotoSearch
from common.data.sequences import refuse_foreign
from common.data.table import Table
from common.data.utterances import UTTERANCE, Utterances, read_test_frames, read_train_frames

EMBEDDED = "digits"
PART = "part of the data set"  # column of a folder table: train or valid, by the folder that an image lies in


def read_train_table(data: str, competition: Competition = NOTHING_SAID) -> Table:
    """Read ``digits`` (embedded), a ``.csv`` or ``.csv.gz``, a folder of class folders, or a list of utterances.

    ``competition`` says what the files do not tell: where photos lie, what columns mean, that frames have the labels.

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
        table = csv_table(path, competition, competition.images, test=False)
    return _with_whole_labels(table, competition)


def read_test_table(test: str, data: str, sample: str = "", competition: Competition = NOTHING_SAID) -> Table:
    """Read a test table (``.csv``, ``.csv.gz``), a folder of images or a list of utterances.

    Its labels are kept where it has them. The images of a folder are called as ``sample`` (a sample submission, "" for
    none) calls them: with or without folder and suffix. With ``test`` empty and ``data`` the embedded digits, this is
    their held-out part.

    Raises:
        UserError: the file, row or column that is wrong; no test table is named.
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
    table = csv_table(path, competition, competition.test_images, test=True, sample=sample)
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
