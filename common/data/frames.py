"""Sequences of frames while they are used: a batch of them is one float tensor.

All frames lie one after another in one tensor, so that a batch is an index into it and no window is copied before it is
needed. Behind a sequence's own frames, up to the longest of its batch, stand frames of NaN: a model tells its mask from
them, and one that forgets it gives NaN, which stops the run.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from common.data.augment import Augmentation, Uniform
from common.data.decoding import Preparation
from common.data.inputs import RESIDENT, Numbers, Reading
from common.data.sequences import SequenceFiles
from common.data.table import Table
from common.data.transfer import HOST, constant, copied_ahead, free_bytes, to_device
from common.data.utterances import TOGETHER

AT_ONCE = 1_000_000  # frames, when their mean is taken


@dataclass(frozen=True)
class FrameScale:
    """Each of a frame's d numbers to zero mean and unit deviation; one that is always the same has deviation 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_frames(cls, frames: Tensor, chosen: Tensor) -> "FrameScale":
        """The scale of the ``chosen`` ones, int64 (m), of frames (n, d), summed in float64."""
        parts = chosen.split(AT_ONCE)
        mean = sum(frames[part].double().sum(0) for part in parts) / len(chosen)
        std = (sum((frames[part].double() - mean).square().sum(0) for part in parts) / len(chosen)).sqrt()
        std = std.where(std > 1e-12 * mean.abs().clamp_min(1), 1.0)
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Scaled frames, float (..., k x d): one or several side by side."""
        mean, std = (constant(tuple(numbers), inputs.device) for numbers in (self.mean, self.std))
        return ((inputs.unflatten(-1, (-1, len(self.mean))) - mean) / std).flatten(-2)


@dataclass(frozen=True)
class Sequences(Numbers):
    """A sequence a row, padded to the longest of its batch."""

    frames: Tensor  # of all n, one after another: float16 or 32 (sum of T, d), on the device where it has room
    starts: Tensor  # int64 (n), where each begins, beside them
    lengths: Tensor  # int64 (n), in the host's memory

    @classmethod
    def of_files(cls, files: SequenceFiles, device: torch.device) -> "Sequences":
        """What the files hold."""
        frames = _on_device(files.frames, device)
        return cls(frames, torch.from_numpy(files.starts).to(frames.device), torch.from_numpy(files.lengths))

    def batches(self, row_batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Float32 (m, longest of the m, d), NaN behind each sequence's last frame."""
        return _made(map(self._padded, row_batches), self.frames.device, device)

    def _padded(self, rows: Tensor) -> Tensor:
        home, lengths = self.frames.device, self.lengths[rows]
        place = torch.arange(int(lengths.max()), device=home)
        rows, lengths = to_device(rows, home), to_device(lengths, home)[:, None]
        found = self.frames[self.starts[rows][:, None] + place.minimum(lengths - 1)].float()
        return found.masked_fill_((place >= lengths)[..., None], torch.nan)

    def scale_of(self, rows: Tensor, device: torch.device) -> FrameScale:
        """Every process looks at all of the rows' frames."""
        lengths = self.lengths[rows]
        ends = lengths.cumsum(0)
        chosen = torch.arange(int(ends[-1])) - (ends - lengths - self.starts.cpu()[rows]).repeat_interleave(lengths)
        return FrameScale.of_frames(self.frames.cpu(), chosen)

    def augmented(self, raw: Tensor, augment: Augmentation, uniform: Uniform, side: int) -> Tensor:
        """A random part of each sequence, where the training asks for one."""
        longest = augment.crop_frames
        return cropped_frames(raw, longest, uniform(1)[:, 0]) if longest else raw


@dataclass(frozen=True)
class Windows(Numbers):
    """A frame a row, with ``reach`` frames on either side of it; a sequence's ends are repeated."""

    frames: Tensor  # of all sequences, one after another: float16 or 32 (n, d)
    first: Tensor  # int64 (n): where each frame's sequence begins, beside them
    last: Tensor  # int64 (n): its last frame
    reach: int

    @classmethod
    def of_files(cls, files: SequenceFiles, reach: int, device: torch.device) -> "Windows":
        """What the files hold."""
        frames = _on_device(files.frames, device)
        starts, lengths = torch.from_numpy(files.starts), torch.from_numpy(files.lengths)
        ends = (each.repeat_interleave(lengths).to(cls.home_of(frames)) for each in (starts, starts + lengths - 1))
        return cls(frames, *ends, reach)

    @staticmethod
    def home_of(frames: Tensor) -> torch.device:
        """Where the sequences' ends are looked up."""
        return frames.device

    def batches(self, row_batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Float32 (m, (2 reach + 1) x d), in the order of time."""
        return _made(map(self._around, row_batches), self.frames.device, device)

    def _around(self, rows: Tensor) -> Tensor:
        rows = to_device(rows, self.frames.device)[:, None]
        place = rows + torch.arange(-self.reach, self.reach + 1, device=self.frames.device)
        return self.frames[place.maximum(self.first[rows]).minimum(self.last[rows])].float().flatten(1)

    def scale_of(self, rows: Tensor, device: torch.device) -> FrameScale:
        """Every process looks at all rows, each frame counted once."""
        return FrameScale.of_frames(self.frames.cpu(), rows)


@dataclass(frozen=True)
class Runs(Windows):
    """A frame a row, and of rows that follow one another one tensor of all that their windows hold.

    What a model of windows says of each frame, it says of a run at once. Batches are cut from runs of ``together``
    frames.
    """

    together: ClassVar[int] = TOGETHER

    @staticmethod
    def home_of(frames: Tensor) -> torch.device:
        """In the host's memory, where rows are."""
        return HOST

    def batches(self, row_batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Float32 (runs, 2 reach + longest run, d), NaN behind each; the m frames stand in the order of the rows."""
        return _made(map(self._along, row_batches), self.frames.device, device)

    def _along(self, rows: Tensor) -> Tensor:
        goes_on = (rows[1:] == rows[:-1] + 1) & (self.first[rows[1:]] == self.first[rows[:-1]])
        begins = torch.cat([torch.tensor([0]), 1 + (~goes_on).nonzero()[:, 0]])
        lengths = torch.cat([begins[1:], torch.tensor([len(rows)])]) - begins
        first = rows[begins]
        place = torch.arange(int(lengths.max()) + 2 * self.reach)
        wanted = (first[:, None] + place - self.reach).maximum(self.first[first, None]).minimum(self.last[first, None])
        is_behind = place >= lengths[:, None] + 2 * self.reach
        home = self.frames.device
        found = self.frames[to_device(wanted, home)].float()
        return found.masked_fill_(to_device(is_behind, home)[..., None], torch.nan)


def open_sequences(table: Table, prepare: Preparation, device: torch.device, reading: Reading) -> Sequences:
    """The frames of every row of a table of sequences."""
    return Sequences.of_files(table.images, device)


def open_windows(table: Table, prepare: Preparation, device: torch.device, reading: Reading) -> Windows:
    """The frames of a table of frames, with ``prepare.window`` frames on either side of each."""
    return (Runs if prepare.in_runs else Windows).of_files(table.images.sequences, prepare.window, device)


def cropped_frames(sequences: Tensor, longest: int, share: Tensor) -> Tensor:
    """A part of ``longest`` frames of each sequence (m, T, d) that has more, else all of it: (m, at most longest, d).

    ``share``, float (m) in 0..1 (below 1), says where the part begins.
    """
    if sequences.shape[1] <= longest:
        return sequences
    lengths = (~sequences[..., 0].isnan()).sum(1)
    first = (share * (lengths - longest + 1).clamp_min(1)).long()
    place = first[:, None] + torch.arange(longest, device=sequences.device)
    return sequences.take_along_dim(place[..., None], dim=1)


def _on_device(frames: np.ndarray, device: torch.device) -> Tensor:
    """All frames, on the device if they take a small part of its free memory."""
    return torch.from_numpy(frames).to(device if frames.nbytes <= RESIDENT * free_bytes(device) else HOST)


def _made(batches: Iterator[Tensor], home: torch.device, device: torch.device) -> Iterator[Tensor]:
    """Batches that are made where the frames are, on ``device``; copies run ahead."""
    if home == device:
        return batches
    return copied_ahead(map(Tensor.pin_memory, batches) if device.type == "cuda" else batches, device)
