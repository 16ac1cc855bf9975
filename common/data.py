"""Images as one uint8 tensor in memory, and the batches that are cut from it.

42,000 digits are 33 MB, so a batch is an index into the tensor and augmentation one batched call:
no workers, no per-image Python.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from common.augment import Augmentation, Uniform
from common.errors import UserError
from common.tables import Table

PAD_UP_TO = 1.25  # a size at most this much above the images' own is reached by a black border


def seed_of(purpose: str, *parts: int) -> int:
    """One well-mixed seed for a purpose from several small numbers, such as ("order", seed, epoch)."""
    entropy = [zlib.crc32(purpose.encode()), *parts]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1  # torch's seeds are signed


def image_shape(table: Table) -> tuple[int, int]:
    """(channels, side) of the images as they are; (3, 224) for photos, whose sizes vary."""
    return (1, table.images.shape[1]) if isinstance(table.images, np.ndarray) else (3, 224)


def load_images(table: Table, channels: int, img_size: int) -> Tensor:
    """All images of a table as uint8 (n, channels, img_size, img_size).

    Grey becomes colour by repeating its channel (a view: no memory), colour becomes grey by luminance.
    A pixel table is padded when the new size is at most a quarter larger, else resized (bilinear).

    Raises:
        UserError: a photo cannot be decoded, with its row.
    """
    if isinstance(table.images, np.ndarray):
        return _fit(torch.from_numpy(table.images)[:, None], img_size).expand(-1, channels, -1, -1)
    images = torch.empty(len(table.ids), channels, img_size, img_size, dtype=torch.uint8)
    for row, path in enumerate(table.images):
        try:
            with Image.open(path) as photo:
                photo = ImageOps.exif_transpose(photo).convert("L" if channels == 1 else "RGB")
                pixels = np.asarray(photo.resize((img_size, img_size), Image.Resampling.BICUBIC))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{table.source}, row {row + 1}", f"{path} cannot be decoded ({error})", "restore the image"
            ) from error
        images[row] = torch.from_numpy(pixels.reshape(img_size, img_size, channels).transpose(2, 0, 1).copy())
    return images


def conversion(table: Table, channels: int, img_size: int) -> str:
    """What :func:`load_images` does to the images, in words; empty where they stay as they are."""
    own_channels, own_size = image_shape(table)
    if not isinstance(table.images, np.ndarray):
        return f"photos resized to {img_size} px, {'grey' if channels == 1 else 'colour'}"
    said = []
    if img_size != own_size:
        how = "padded" if own_size < img_size <= own_size * PAD_UP_TO else "resized"
        said.append(f"{own_size} px {how} to {img_size} px")
    if channels != own_channels:
        said.append("grey repeated as three channels")
    return ", ".join(said)


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


@dataclass(frozen=True)
class Normalise:
    """Pixels to zero mean and unit deviation, per channel, in units of 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> "Normalise":
        """Mean and deviation of uint8 ``images`` (n, channels, height, width); constant channels keep 1."""
        counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).cpu()
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
class TrainBatches:
    """The micro-batches that one process trains on: (images, soft targets), epoch by epoch.

    ``rows`` index ``images`` (uint8, all rows of the table, on the training device) and ``targets``
    (int64 class numbers). The order of an epoch and each image's augmentation follow from (seed, epoch)
    alone: every process walks the same global batches of ``batch_size`` rows and takes its share, and
    the rows left over after the last whole batch wait for another epoch.
    """

    images: Tensor
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
    epochs: int = 1  # of the whole training
    sampling: str = "uniform"  # or "balanced"

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch."""
        return len(self.rows) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float (m, channels, side, side) and targets float (m, classes), m images at a time."""
        order = self.order_of(epoch)
        size = self.batch_size // (self.processes * self.micro_batches)
        for step in range(self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            for micro_batch in range(self.micro_batches):
                first = (micro_batch * self.processes + self.process) * size
                yield self._micro_batch(batch, slice(first, first + size), epoch, step)

    def _micro_batch(self, batch: Tensor, share: slice, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """A process's share of a batch, mixed with other images and brought to the batch's size where asked for.

        An image's partner in mixing is the one at the same place from the batch's end, augmented as it is there.
        """
        seed, mix = seed_of("augmentation", self.seed, epoch, step), self.augment.mix
        images, targets = self.images_of(batch[share], self._uniform(seed, share)), self.targets_of(batch[share])
        if mix and epoch < mix.keywords["mix_until"] * self.epochs:
            others = batch.flip(0)[share]
            other_images = self.images_of(others, self._uniform(seed, share, from_end=True))
            mixture = mix(seed_of("mixing", self.seed, epoch, step), self.batch_size).part(share)
            images, targets = mixture(images, targets, other_images, self.targets_of(others))
        if self.augment.size:
            side = self.augment.size(seed_of("size", self.seed, epoch, step))
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        return images, targets

    def order_of(self, epoch: int) -> Tensor:
        """The rows of an epoch in their order: each once, or with "balanced" sampling each class equally often.

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

    def images_of(self, rows: Tensor, uniform: Uniform) -> Tensor:
        """Augmented and normalised images of some rows."""
        return self.normalise(self.augment(self.images[rows].float().div_(255), uniform))

    def targets_of(self, rows: Tensor) -> Tensor:
        """One-hot targets of some rows, smoothed: 1 - s + s / classes for the class, s / classes elsewhere."""
        one_hot = F.one_hot(self.targets[rows], self.num_classes).float()
        return one_hot * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes

    def _uniform(self, seed: int, share: slice, from_end: bool = False) -> Uniform:
        device = self.images.device
        generator = torch.Generator(device).manual_seed(seed)

        def uniform(k: int) -> Tensor:
            numbers = torch.rand(self.batch_size, k, generator=generator, device=device)
            return (numbers.flip(0) if from_end else numbers)[share]

        return uniform
