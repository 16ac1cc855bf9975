"""Sequences of frames: .npy files of shape (T, d), one a row, read strictly and without torch.

Shapes and kinds of numbers are told by the files' headers, so that all of them are checked before anything is computed;
nothing is ever unpickled. What a batch makes of them, common/data/frames.py says.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath

import numpy as np

from common.base.errors import UserError
from common.base.strict_csv import row_of

SUFFIX = ".npy"
KINDS = ("float16", "float32")
TORCHS = (".pt", ".pth", ".pkl")
# Of other files that sequences come in, which are pickles or of no fixed form.
FOREIGN = (*TORCHS, ".json", ".npz", ".h5", ".hdf5")
CONVERT = "docs/tasks.md has the few lines that turn it into .npy files and a table"
LENGTH_COLUMNS = ("length", "lengths", "frames", "n_frames", "num_frames")


@dataclass(frozen=True)
class SequenceFiles:
    """n sequences: the file of each, how many frames it has, and how many numbers, d, a frame has."""

    source: str  # the table or list that names them, for messages
    files: Sequence[Path]
    lengths: np.ndarray  # int64 (n), each at least 1
    width: int  # d

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> np.ndarray:
        """The frames of a sequence, (T, d)."""
        return self.frames[self.starts[row] : self.starts[row] + self.lengths[row]]

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames of one sequence after another; all are read, and checked, at once."""
        return iter(np.split(self.frames, self.starts[1:]))

    @cached_property
    def frames(self) -> np.ndarray:
        """The frames of all sequences, one after another: float16 (sum of T, d) where all files are, else float32.

        Raises:
            UserError: a number that is not finite, with row, file, frame and column.
        """
        sequences = [opened(row_of(self.source, row), file) for row, file in enumerate(self.files)]
        is_half = all(sequence.dtype.itemsize == 2 for sequence in sequences)
        frames, first = np.empty((self.lengths.sum(), self.width), np.float16 if is_half else np.float32), 0
        for row, sequence in enumerate(sequences):
            own = frames[first : first + len(sequence)]
            own[:] = sequence
            if not (finite := np.isfinite(own)).all():
                frame, column = (int(number) + 1 for number in np.argwhere(~finite)[0])
                what = f"{self.files[row]} has {own[frame - 1, column - 1]} in frame {frame}, number {column}"
                raise UserError(row_of(self.source, row), what, "correct the file, or remove the row")
            first += len(sequence)
        return frames

    @cached_property
    def starts(self) -> np.ndarray:
        """Where in :attr:`frames` each sequence begins, int64 (n)."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]])


def refuse_foreign(path: Path) -> None:
    """Raise UserError where ``path`` is a file that holds sequences in another form, or a folder of such files."""
    if path.suffix.lower() in FOREIGN:
        raise UserError(str(path), f"is no table and no folder of {SUFFIX} files", CONVERT)
    if os.path.isdir(path) and (found := [name for name in os.listdir(path) if name.lower().endswith(TORCHS)]):
        raise UserError(str(path), f"holds {min(found)}, which is no {SUFFIX} file", CONVERT)


def picture_of(frames: np.ndarray) -> np.ndarray:
    """A sequence (T, d) as grey pixels, uint8 (d, T): time from left to right, the last number on top."""
    values = frames.astype(np.float64)
    low, high = values.min(axis=0), values.max(axis=0)
    return np.rint(255 * (values - low) / np.where(high > low, high - low, 1)).astype(np.uint8).T[::-1].copy()


def sequence_column(columns: Mapping[str, np.ndarray]) -> str:
    """The first column all of whose cells name files of sequences, of whatever kind; "" where there is none."""
    suffixes = (SUFFIX, *FOREIGN)
    return next((name for name, cells in columns.items() if all(cell.lower().endswith(suffixes) for cell in cells)), "")


def read_sequences(source: str, root: Path, names: Sequence[str], lengths: Sequence[str] = ()) -> SequenceFiles:
    """The files that the rows of a table name, relative to the folder ``root``; their headers are checked.

    Args:
        source: the table, for messages.
        root: the folder that names are relative to.
        names: of the rows' files, with suffix.
        lengths: what a column of the table says of their frames; () where none does.

    Raises:
        UserError: a file that is missing, or is no float array (T, d) of at least one frame and of the same d as the
            others; a length that differs from what the table says.
    """
    files = []
    for index, name in enumerate(names):
        written = PureWindowsPath(name)  # knows both kinds of slashes and drives
        if ".." in written.parts or written.anchor:
            remedy = "put the files below it"
            raise UserError(row_of(source, index), f"{name!r} points outside of {root}", remedy)
        files.append(root / name)
    return checked(source, files, lengths)


def checked(source: str, files: Sequence[Path], lengths: Sequence[str] = ()) -> SequenceFiles:
    """The sequences in ``files``, as :func:`read_sequences` checks them."""
    shapes = [_shape(row_of(source, row), file) for row, file in enumerate(files)]
    width = _width(source, shapes)
    for row, (file, (frames, numbers)) in enumerate(zip(files, shapes, strict=True)):
        where = row_of(source, row)
        if numbers != width:
            what = f"{file} is {frames} x {numbers}, but most sequences have {width} numbers a frame"
            remedy = "transpose it to (T, d)" if frames == width else "make all files of the same features"
            raise UserError(where, what, remedy)
        if frames == 0:
            raise UserError(where, f"{file} has no frame", "remove the row")
        if len(lengths) and lengths[row] != str(frames):
            what = f"has the length {lengths[row]!r}, but {file} has {frames} frames"
            raise UserError(where, what, "correct it, or leave the column out with --drop")
    return SequenceFiles(source, files, np.array([frames for frames, _ in shapes], dtype=np.int64), width)


def _width(source: str, shapes: Sequence[tuple[int, int]]) -> int:
    """How many numbers a frame of most sequences has.

    Raises:
        UserError: it is their first sizes that agree.
    """
    (width, same), (_, same_firsts) = (
        Counter(sizes).most_common(1)[0]
        for sizes in ([numbers for _, numbers in shapes], [frames for frames, _ in shapes])
    )
    if same_firsts == len(shapes) > same:
        what = f"all sequences have {shapes[0][0]} rows and various columns: (d, T)?"
        raise UserError(source, what, "save them as (T, d), with array.T")
    return width


def _shape(where: str, file: Path) -> tuple[int, int]:
    """(T, d) of a file, by its header."""
    found = opened(where, file)
    if found.ndim != 2 or found.shape[1] == 0:
        shape = " x ".join(map(str, found.shape)) or "one number"
        raise UserError(where, f"{file} is {shape}", "save it as (T, d), frames by numbers")
    if found.dtype.name not in KINDS:
        raise UserError(where, f"{file} holds {found.dtype.name}", "save it as float16 or float32")
    return found.shape


def opened(where: str, file: Path) -> np.ndarray:
    """The array of a file, mapped into memory: its numbers are not read yet.

    Raises:
        UserError: it is missing or no .npy file, or contains pickles.
    """
    if file.suffix.lower() in FOREIGN:
        raise UserError(where, f"{file.name} is no {SUFFIX} file", CONVERT)
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        what = f"{file} cannot be read ({error.strerror or error})"
        raise UserError(where, what, "check the file's name in the table") from error
    except Exception as error:  # on damaged headers numpy raises several kinds
        what = f"{file} is damaged, no {SUFFIX} file, or contains pickles"
        raise UserError(where, what, "save it again with numpy.save, as numbers") from error
