"""The batches of a training, cut from the images by a rule that knows nothing but the seed and the epoch."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.base.profiling import part
from common.data.augment import Augmentation, Uniform
from common.data.images import Images, pixels_of
from common.data.mixing import size_of_batch
from common.score.task import MULTICLASS, Task

MEASURED_AT_ONCE = 4096  # images, when their mean is taken


def seed_of(purpose: str, *parts: int) -> int:
    """One well-mixed seed for a purpose from several small numbers, such as ("order", seed, epoch)."""
    entropy = [zlib.crc32(purpose.encode()), *parts]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1  # torch's seeds are signed


@dataclass(frozen=True)
class Normalise:
    """Pixels to zero mean and unit deviation, per channel, in units of 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_batches(cls, batches: Iterable[Tensor]) -> "Normalise":
        """Mean and deviation of uint8 images (n, channels, height, width) in batches; constant channels keep 1."""
        counts = sum(
            torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).cpu()
            for images in batches
        )
        shares = counts.double() / counts.sum(1, keepdim=True)
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean = (shares * levels).sum(1)
        std = ((shares * levels**2).sum(1) - mean**2).clamp_min(0).sqrt()
        return cls(tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist()))

    def __call__(self, images: Tensor) -> Tensor:
        mean = images.new_tensor(self.mean).view(1, -1, 1, 1)
        std = images.new_tensor(self.std).view(1, -1, 1, 1)
        return (images - mean) / std


@dataclass(frozen=True)
class Examples:
    """What a fold trains on: ``rows`` of a table, its images and targets; tensors are on the training device."""

    images: Images  # of all n rows of the table
    targets: Tensor  # their class numbers, int64 (n)
    rows: Tensor  # those to train on, int64 (m)
    classes: Sequence[str]

    @cached_property
    def normalise(self) -> Normalise:
        """What brings the images of the rows to zero mean and unit deviation."""
        return Normalise.of_batches(pixels_of(self.images, self.rows.split(MEASURED_AT_ONCE), self.rows.device))


@dataclass(frozen=True)
class Batch:
    """The rows that a process takes at a time: m of a table."""

    inputs: Tensor  # what the model is given, float (m, channels, side, side)
    targets: Tensor  # soft, float (m, classes)
    rows: Tensor  # their numbers in the table, int64 (m); a mixed image goes by its own


@dataclass(frozen=True)
class Share:
    """A process's part of a global batch, before it is looked up."""

    step: int  # of the epoch: the number of the global batch
    place: slice  # in the global batch
    rows: Tensor  # int64 (m)
    partners: Tensor  # the rows that they are mixed with, int64 (m); empty without mixing


@dataclass(frozen=True)
class TrainBatches:
    """The micro-batches that one process trains on, epoch by epoch.

    ``rows`` index ``images`` (uint8, all rows of the table) and ``targets`` (int64 class numbers); rows and targets
    are on the training device. The order of an epoch and each image's augmentation follow from (seed, epoch)
    alone: every process walks the same global batches of ``batch_size`` rows and takes its share, and
    the rows left over after the last whole batch wait for another epoch.
    """

    images: Images
    targets: Tensor
    rows: Tensor
    num_classes: int
    batch_size: int
    micro_batches: int
    process: int
    processes: int
    seed: int
    augment: Augmentation
    normalise: Normalise
    label_smoothing: float
    epochs: int = 1  # of the training
    first_epoch: int = 0  # its number in the fold: the nets of --select members draw other orders
    sampling: str = "uniform"  # or "balanced"
    side: int = 0  # of the model's input, where the images are larger (0: the images' own)
    task: Task = MULTICLASS

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch."""
        return len(self.rows) // self.batch_size

    @property
    def micro_batch_size(self) -> int:
        """Images that a process takes at a time."""
        return self.batch_size // (self.processes * self.micro_batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The micro-batches of an epoch (from 0), ``micro_batches`` of them for each optimiser step."""
        mixes = self.augment.mix is not None and self.augment.mix.mixes_in(epoch, self.epochs)
        epoch += self.first_epoch
        shares = self._shares(self.order_of(epoch), mixes)
        wanted = (torch.cat([share.rows, share.partners]) for share in shares)
        found = pixels_of(self.images, wanted, self.rows.device)
        for share in shares:
            with part("data"):
                pixels = next(found)
            with part("augmentation"):
                batch = self._batch(pixels, share, epoch)
            yield batch

    def _shares(self, order: Tensor, mixes: bool) -> list[Share]:
        """What this process takes of each global batch of an epoch, whose rows are in ``order``, int64 (n).

        An image's partner in mixing is the one at the same place from the global batch's end.
        """
        size, shares = self.micro_batch_size, []
        for step, batch in enumerate(order.split(self.batch_size)[: self.steps]):
            for micro_batch in range(self.micro_batches):
                first = (micro_batch * self.processes + self.process) * size
                place = slice(first, first + size)
                partners = batch.flip(0)[place] if mixes else batch[:0]
                shares.append(Share(step, place, batch[place], partners))
        return shares

    def _batch(self, pixels: Tensor, share: Share, epoch: int) -> Batch:
        """A share as the model is given it: augmented, mixed and brought to the batch's size where asked for.

        ``pixels`` are those of its rows and then of its partners, each augmented as it is in its own place.
        """
        rows, partners, step = share.rows, share.partners, share.step
        seed = seed_of("augmentation", self.seed, epoch, step)
        images, targets = self.augmented(pixels[: len(rows)], self._uniform(seed, share.place)), self.targets_of(rows)
        if len(partners):
            other_images = self.augmented(pixels[len(rows) :], self._uniform(seed, share.place, from_end=True))
            mixture = self.augment.mix(seed_of("mixing", self.seed, epoch, step), self.batch_size).part(share.place)
            images, targets = mixture(images, targets, other_images, self.targets_of(partners))
        if self.augment.sizes:
            side = size_of_batch(seed_of("size", self.seed, epoch, step), self.augment.sizes)
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        return Batch(images, targets, rows)

    def order_of(self, epoch: int) -> Tensor:
        """The rows of an epoch in order, int64 (n): each once, or with "balanced" sampling each class equally often.

        A class's rows are then dealt out like cards, all of them before one comes again: of a common class some wait
        for another epoch, of a rare one none is drawn more than one time more often than another.
        """
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, epoch))

        def shuffled(rows: Tensor) -> Tensor:
            return rows[torch.randperm(len(rows), generator=generator).to(rows.device)]

        if self.sampling == "uniform":
            return shuffled(self.rows)
        targets = self.targets[self.rows]
        by_class = self.rows[targets.argsort(stable=True)]
        classes = by_class.split(targets.unique(return_counts=True)[1].tolist())
        share = -(-len(self.rows) // len(classes))
        deals = [torch.cat([shuffled(rows) for _ in range(-(-share // len(rows)))])[:share] for rows in classes]
        return shuffled(torch.cat(deals))[: len(self.rows)]

    def augmented(self, pixels: Tensor, uniform: Uniform) -> Tensor:
        """Augmented and normalised images, float (m, channels, side, side), of uint8 pixels (m, channels, ...)."""
        return self.normalise(self.augment(pixels.float().div_(255), uniform, self.side))

    def targets_of(self, rows: Tensor) -> Tensor:
        """What the loss compares, smoothed: the task's soft targets, float (m, outputs)."""
        numbers = torch.arange(self.num_classes, device=self.targets.device)
        return self.task.soft(self.targets[rows], numbers, self.label_smoothing)

    def _uniform(self, seed: int, share: slice, from_end: bool = False) -> Uniform:
        device = self.rows.device
        generator = torch.Generator(device).manual_seed(seed)

        def uniform(k: int) -> Tensor:
            numbers = torch.rand(self.batch_size, k, generator=generator, device=device)
            return (numbers.flip(0) if from_end else numbers)[share]

        return uniform
