"""Frames that each have a label: a folder of .npy files and lists of utterances, as NTU's homework on phones has them.

A row is a frame, named <utterance>/<number from 1>. Labels are lines "<utterance> <label> <label> ..." of one file, a
label a frame, or a folder of .npy files with a whole number a frame. A list of test utterances has a name a line, in
the order in which a submission numbers their frames.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.base.errors import UserError, warn
from common.base.files import sha256
from common.base.strict_csv import file_bytes, text_array
from common.base.words import rows_named
from common.data.sequences import CONVERT, FOREIGN, SUFFIX, SequenceFiles, checked, opened

LABELS, LABELS_FOLDER = "train_labels.txt", "train_labels"
TRAIN_LIST = "train_split.txt"
LISTS = "*_split.txt"
SEEN = 25  # frames on either side of one, in its picture
TOGETHER = 100  # frames that follow one another, where some are drawn
UTTERANCE = "utterance"  # the column of a table of frames that says whose they are


@dataclass(frozen=True)
class FrameRows:
    """The n frames of sequences, one after another, each a row."""

    sequences: SequenceFiles

    @property
    def width(self) -> int:
        """How many numbers a frame has."""
        return self.sequences.width

    def __len__(self) -> int:
        return int(self.sequences.lengths.sum())

    def __getitem__(self, row: int) -> np.ndarray:
        """A frame's numbers, (d)."""
        return self.sequences.frames[row]

    def around(self, row: int) -> np.ndarray:
        """A frame in the middle of 51, (51, d); its sequence's ends are repeated."""
        starts, lengths = self.sequences.starts, self.sequences.lengths
        own = np.searchsorted(starts, row, side="right") - 1
        place = np.arange(row - SEEN, row + SEEN + 1).clip(starts[own], starts[own] + lengths[own] - 1)
        return self.sequences.frames[place]

    def __iter__(self) -> Iterator[bytes]:
        """What tells each frame from all others: its sequence's hash and its number there."""
        for frames in self.sequences:
            sha = sha256(frames.tobytes())
            yield from (f"{sha} {number}".encode() for number in range(1, len(frames) + 1))


@dataclass(frozen=True)
class Utterances:
    """What a list says of utterances: their frames, and the name and, where known, the label of each."""

    rows: FrameRows
    names: np.ndarray  # text (n): the utterance of each frame
    ids: np.ndarray  # text (n)
    labels: np.ndarray  # text (n), or (0)


def read_train_frames(folder: Path) -> Utterances:
    """The frames of the utterances that have labels, in train_labels.txt or train_labels/; any folder has their files.

    Raises:
        UserError: no labels, an utterance without file, twice, or with another count of labels than frames; lists that
            name other utterances.
    """
    path = folder / LABELS
    labels = _labels_in_lines(path) if path.is_file() else _labels_in_files(folder / LABELS_FOLDER)
    files = files_of(path, list(labels), folder)
    for at, (name, of_frames) in enumerate(labels.items()):
        if len(of_frames) != files.lengths[at]:
            what = f"{name} has {len(of_frames):,} labels, but {files.files[at]} has {files.lengths[at]:,} frames"
            raise UserError(f"{path}, row {at + 1}", what, "a label a frame: make the two agree")
    _compare_lists(folder, path, labels)
    return _frames_of(files, list(labels), text_array(label for each in labels.values() for label in each))


def _labels_in_lines(path: Path) -> dict[str, Sequence[str]]:
    """The labels of each utterance's frames, as a line an utterance says them."""
    lines = [line.split() for line in _lines(path)]
    return dict(zip(_distinct(path, [name for name, *_ in lines]), [labels for _, *labels in lines], strict=True))


def _labels_in_files(folder: Path) -> dict[str, Sequence[str]]:
    """The labels of each utterance's frames, whole numbers in a .npy file an utterance."""
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not files:
        remedy = f"write {LABELS} with a line an utterance, or see docs/tasks.md"
        raise UserError(str(folder.parent), f"has neither {LABELS} nor {folder.name}/*{SUFFIX}", remedy)
    found = {}
    for file in files:
        labels = opened(str(folder), file)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            what = f"{file.name} holds {labels.dtype.name} of {labels.ndim} dimensions"
            raise UserError(str(folder), what, "save a whole number a frame")
        found[file.stem] = [str(label) for label in labels.tolist()]
    return found


def read_test_frames(path: Path) -> Utterances:
    """The frames of the utterances that a list names, in its order; their files lie in any folder below its own.

    Raises:
        UserError: no list, an utterance without a file or twice.
    """
    names = _distinct(path, _lines(path))
    return _frames_of(files_of(path, names, path.parent), names, text_array([]))


def files_of(path: Path, names: Sequence[str], folder: Path) -> SequenceFiles:
    """The .npy files of the utterances that a list at ``path`` names, at any depth below ``folder``, checked.

    Raises:
        UserError: a name without a file, or with several.
    """
    found = npy_files(folder)
    files = []
    for at, name in enumerate(names):
        of_name = found.get(name, [])
        if len(of_name) != 1:
            what = (
                f"{name}{SUFFIX} is missing below {folder}"
                if not of_name
                else f"{name} may be {of_name[0]} or {of_name[1]}"
            )
            remedy = "add the file, or take the line out" if not of_name else "remove one of them"
            raise UserError(f"{path}, row {at + 1}", what, remedy)
        files.append(of_name[0])
    return checked(str(path), files)


def npy_files(folder: Path) -> dict[str, list[Path]]:
    """The .npy files below a folder, by their names without suffix.

    Raises:
        UserError: there are none, but such as have to be converted.
    """
    found, foreign = {}, None
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name != LABELS_FOLDER)
        for file in sorted(files):
            stem, suffix = os.path.splitext(file)
            if suffix == SUFFIX:
                found.setdefault(stem, []).append(Path(place, file))
            elif suffix in FOREIGN:
                foreign = foreign or Path(place, file)
    if not found:
        what = f"contains no {SUFFIX} file" + (f", but {foreign.name}" if foreign else "")
        raise UserError(str(folder), what, CONVERT if foreign else "name the folder that holds them")
    return found


def _frames_of(files: SequenceFiles, names: Sequence[str], labels: np.ndarray) -> Utterances:
    of_each = np.repeat(np.array(names, dtype=object), files.lengths)
    ids = text_array(
        f"{name}/{number}"
        for name, frames in zip(names, files.lengths.tolist(), strict=True)
        for number in range(1, frames + 1)
    )
    return Utterances(FrameRows(files), of_each, ids, labels)


def _compare_lists(folder: Path, labels: Path, names: Iterable[str]) -> None:
    """Raise UserError where train_split.txt names other utterances than the labels; warn of files in no list."""
    known, train = set(names), folder / TRAIN_LIST
    if train.is_file() and (differ := known ^ set(_lines(train))):
        what = f"names other utterances than {labels.name}: {rows_named(sorted(differ))} in one of them only"
        raise UserError(str(train), what, "make the two agree, or remove the list")
    listed = known.union(*(_lines(path) for path in sorted(folder.glob(LISTS))))
    if surplus := sorted(npy_files(folder).keys() - listed):
        warn(f"{folder}: {rows_named(surplus)} of its {SUFFIX} files in no list: not used")


def _lines(path: Path) -> list[str]:
    """The lines of a text file, without those that are empty."""
    try:
        lines = file_bytes(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"is not UTF-8 at byte {error.start}", "save it as UTF-8 text") from None
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise UserError(str(path), "is empty", "name an utterance a line")
    return found


def _distinct(path: Path, names: list[str]) -> list[str]:
    first = {}
    for at, name in enumerate(names):
        if (earlier := first.setdefault(name, at)) != at:
            raise UserError(f"{path}, row {at + 1}", f"{name} is also in row {earlier + 1}", "remove one of them")
    return names
