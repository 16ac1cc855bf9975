"""The inputs of a table's rows, wherever they lie while they are used: one protocol, a class for each kind.

A pixel table becomes one tensor on the device: 42,000 digits are 33 MB, so a batch is an index into it. Photos are
decoded once into a file that all folds and processes map into memory (common/data/cache.py), from there to a device
that has room for them, or, where they do not fit into the file, again for each batch by threads that work ahead
(common/data/decoding.py). Features are one tensor of numbers. :func:`open_inputs` makes a table's kind ready.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from common.base.errors import UserError
from common.data.augment import Augmentation, Uniform
from common.data.cache import Cache, keep
from common.data.decoding import Decoder, Preparation
from common.data.features import FeatureScale, encoded
from common.data.geometry import cropped
from common.data.photo_check import check_photos
from common.data.scales import Normalise, Scale, levels_of
from common.data.table import Table
from common.data.transfer import HOST, copied_ahead, free_bytes, to_device

PAD_UP_TO = 1.25  # a size at most this much above the images' own is reached by a black border
RESIDENT = 1 / 3  # of the device's free memory may hold photos, so that a batch is an index into them
WORTH_A_THREAD = 1e6  # bytes of a batch; smaller ones are gathered before a thread has woken up
MEASURED_AT_ONCE = 256  # images, when their mean is taken
MIDDLE = (0.0, 0.0)


class Inputs(Protocol):
    """The inputs of all n rows of a table."""

    lengths: Tensor | None  # of each row's own inputs, int64 (n), in the host's memory; None: all have one shape
    together: int  # rows, in their order, that stay together in the order of an epoch

    def batches(self, row_batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
        """The raw inputs of batches of rows, in their order, on ``device``, each made while the one before is used.

        The rows, int64 (m) each, are in the host's memory. Where lengths differ, a batch is padded to its longest.
        """

    def scale_of(self, rows: Tensor, device: torch.device) -> Scale:
        """What brings the inputs of some rows to zero mean and unit deviation, the same on every process.

        ``device`` is where processes meet.
        """

    def augmented(self, raw: Tensor, augment: Augmentation, uniform: Uniform, side: int) -> Tensor:
        """A batch for training, augmented but not scaled, float (m, ...); ``side`` is that of the model's input."""

    def seen(self, raw: Tensor, side: int, place: tuple[float, float] = MIDDLE) -> Tensor:
        """A batch as a model is scored on it, not scaled, float (m, ...).

        ``place`` is, across and down, where in larger inputs the model looks (:func:`common.data.geometry.cropped`).
        """


@dataclass(frozen=True)
class Reading:
    """How the files of a table that has a file for each row are read."""

    cache: Cache = Cache(0)
    row_shas: Sequence[str] = ()  # what the rows' files must hash to, n; empty: not known
    workers: int = 1
    say: Callable[[str], None] = print  # is told where what was read is kept


def open_inputs(table: Table, prepare: Preparation, device: torch.device, reading: Reading = Reading()) -> Inputs:
    """The inputs of a table, on the device where there is room for them.

    Raises:
        UserError: a file that is kept cannot be decoded, or is another than the hashes say.
    """
    return resolve_name(table.kind.open)(table, prepare, device, reading)


# ---- images


class Images:
    """What all images share: pixels of 0..255, of which a model is given shares, 0..1."""

    lengths: ClassVar[None] = None
    together: ClassVar[int] = 1

    def augmented(self, raw: Tensor, augment: Augmentation, uniform: Uniform, side: int) -> Tensor:
        return augment(_shares(raw), uniform, side)

    def seen(self, raw: Tensor, side: int, place: tuple[float, float] = MIDDLE) -> Tensor:
        return _shares(cropped(raw, side, *place))

    def scale_of(self, rows: Tensor, device: torch.device) -> Normalise:
        """Each process looks at its share of the rows."""
        group = torch.distributed if torch.distributed.is_available() and torch.distributed.is_initialized() else None
        own = rows[group.get_rank() :: group.get_world_size()] if group else rows
        counts = levels_of(self.batches(own.split(MEASURED_AT_ONCE), self.home))
        if group:
            counts = counts.to(device)
            group.all_reduce(counts)
        return Normalise.of_levels(counts.cpu())


@dataclass(frozen=True)
class Pixels(Images):
    """Images in memory: ``values`` are uint8 (n, channels, side, side)."""

    values: Tensor

    @property
    def home(self) -> torch.device:
        """Where they are."""
        return self.values.device

    def batches(self, row_batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
        return batches_of(self.values, row_batches, device)


@dataclass(frozen=True)
class Photos(Images):
    """Images that are decoded for each batch."""

    decoder: Decoder
    home: ClassVar[torch.device] = HOST

    def batches(self, row_batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
        decoded = map(torch.from_numpy, self.decoder.batches(rows.tolist() for rows in row_batches))
        return copied_ahead(map(Tensor.pin_memory, decoded) if device.type == "cuda" else decoded, device)


def _shares(pixels: Tensor) -> Tensor:
    return pixels.float().div_(255)


def open_pixels(table: Table, prepare: Preparation, device: torch.device, reading: Reading) -> Pixels:
    """All images of a pixel table on the device, uint8 (n, channels, side, side).

    Grey becomes colour by repeating its channel (a view: no memory). A table is padded when the new size is at most a
    quarter larger, else resized (bilinear).
    """
    images = _fit(torch.from_numpy(table.images)[:, None], prepare.side)
    return Pixels(images.to(device).expand(-1, prepare.channels, -1, -1))


def lines_on_pixels(table: Table, prepare: Preparation) -> list[str]:
    """What is done to the images before a model sees them; nothing where they stay as they are."""
    (own_channels, own_size), img_size = table.kind.shape(table), prepare.side
    said = []
    if img_size != own_size:
        how = "padded" if own_size < img_size <= own_size * PAD_UP_TO else "resized"
        said.append(f"{own_size} px {how} to {img_size} px")
    if prepare.channels != own_channels:
        said.append("grey repeated as three channels")
    return [", ".join(said)] if said else []


def open_photos(table: Table, prepare: Preparation, device: torch.device, reading: Reading) -> Pixels | Photos:
    """Photos as squares of ``prepare.stored`` px."""
    decoder = Decoder(table, prepare, reading.row_shas, reading.workers)
    try:
        kept = keep(decoder, reading.cache, reading.say)
    except UserError:
        check_photos([table], reading.workers, as_written=True)  # one broken file seldom comes alone
        raise
    if kept is None:
        return Photos(decoder)
    return Pixels(torch.from_numpy(kept).to(device if kept.nbytes <= RESIDENT * free_bytes(device) else HOST))


def _fit(images: Tensor, size: int) -> Tensor:
    own = images.shape[-1]
    if size == own:
        return images
    if own < size <= own * PAD_UP_TO:
        before = (size - own) // 2
        return F.pad(images, [before, size - own - before] * 2)
    shape = (len(images), 1, size, size)
    fitted = torch.empty(shape, dtype=torch.uint8)
    for some, target in zip(images.split(4096), fitted.split(4096), strict=True):  # float copies stay small
        resized = F.interpolate(some.float(), size=(size, size), mode="bilinear", antialias=True)
        target.copy_(resized.round_().clamp_(0, 255))
    return fitted


# ---- features


class Numbers:
    """What all inputs that are no images share: a model is given them as they are."""

    lengths: ClassVar[Tensor | None] = None
    together: ClassVar[int] = 1

    def augmented(self, raw: Tensor, augment: Augmentation, uniform: Uniform, side: int) -> Tensor:
        return raw

    def seen(self, raw: Tensor, side: int, place: tuple[float, float] = MIDDLE) -> Tensor:
        return raw


@dataclass(frozen=True)
class Features(Numbers):
    """Numbers in columns: ``values`` are float (n, width), NaN where one is missing."""

    values: Tensor

    def batches(self, row_batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
        return batches_of(self.values, row_batches, device)

    def scale_of(self, rows: Tensor, device: torch.device) -> FeatureScale:
        return FeatureScale.of_rows(self.values.cpu()[rows].numpy())


def open_features(table: Table, prepare: Preparation, device: torch.device, reading: Reading) -> Features:
    """The columns' numbers on the device, as ``prepare.features`` says."""
    found = encoded(table.source, prepare.features, table.feature_names, table.images)
    return Features(torch.from_numpy(found).to(device))


def padded_to(longest: int, batch: Tensor) -> Tensor:
    """Sequences (m, T, d) with frames of NaN behind each: (m, longest, d), or as they are where they are as long."""
    return F.pad(batch, (0, 0, 0, longest - batch.shape[1]), value=torch.nan) if batch.shape[1] < longest else batch


# ---- of two tables


@dataclass(frozen=True)
class Joined:
    """The inputs of two tables of one kind, prepared alike: rows from ``count`` on are the second's."""

    first: Inputs
    count: int
    second: Inputs

    @property
    def lengths(self) -> Tensor | None:
        own = [self.first.lengths, self.second.lengths]
        return None if own[0] is None else torch.cat(own)

    @property
    def together(self) -> int:
        return self.first.together

    def batches(self, row_batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
        row_batches = list(row_batches)
        of_each = [rows < self.count for rows in row_batches]
        wanted = (
            [rows[own] for rows, own in zip(row_batches, of_each, strict=True) if own.any()],
            [rows[~own] - self.count for rows, own in zip(row_batches, of_each, strict=True) if not own.all()],
        )
        first, second = (
            part.batches(some, device) for part, some in zip((self.first, self.second), wanted, strict=True)
        )
        for own in of_each:
            if own.all() or not own.any():
                yield next(first if own.all() else second)
                continue
            places = to_device(torch.cat([own.nonzero(), (~own).nonzero()])[:, 0].argsort(), device)
            yield torch.cat(self._of_one_length(next(first), next(second)))[places]

    def _of_one_length(self, *parts: Tensor) -> Sequence[Tensor]:
        """Batches whose rows differ in length, each padded to its own longest, padded to the longest of all."""
        if self.lengths is None:
            return parts
        longest = max(part.shape[1] for part in parts)
        return [padded_to(longest, part) for part in parts]

    def scale_of(self, rows: Tensor, device: torch.device) -> Scale:
        """Of rows of the first table alone."""
        return self.first.scale_of(rows, device)

    def augmented(self, raw: Tensor, augment: Augmentation, uniform: Uniform, side: int) -> Tensor:
        return self.first.augmented(raw, augment, uniform, side)

    def seen(self, raw: Tensor, side: int, place: tuple[float, float] = MIDDLE) -> Tensor:
        return self.first.seen(raw, side, place)


# ---- from memory


def batches_of(values: Tensor, row_batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Batches of the rows of a tensor (n, ...), in their order; what is not on the device is gathered ahead."""
    row_batches = list(row_batches)
    if values.device.type != "cpu":
        rows = to_device(torch.cat(row_batches), values.device)  # of all batches at once
        yield from (values[some] for some in rows.split([len(batch) for batch in row_batches]))
    elif device.type == "cpu" and values[:1].nbytes * max(map(len, row_batches), default=0) < WORTH_A_THREAD:
        yield from (values[rows] for rows in row_batches)
    else:
        yield from copied_ahead((_gathered(values, rows, device.type == "cuda") for rows in row_batches), device)


def _gathered(values: Tensor, rows: Tensor, pinned: bool) -> Tensor:
    """Some of the rows; torch uses pinned memory again once the copies out of it are done."""
    found = torch.empty((len(rows), *values.shape[1:]), dtype=values.dtype, pin_memory=pinned)
    return torch.index_select(values, 0, rows, out=found)
