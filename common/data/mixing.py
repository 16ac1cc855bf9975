"""What a whole batch shares in training: images mixed with others, and a size drawn for the batch.

All draws are a function of a seed, so every process that works on a batch makes the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Mixture(NamedTuple):
    """How each image of a batch is mixed with another: one value per image, float (n)."""

    share: Tensor  # of the image itself, 0..1
    cut: Tensor  # 1: a box of the other image is pasted in; 0: the two are blended
    across: Tensor  # middle of the box, as a share of the side
    down: Tensor

    def __call__(
        self, images: Tensor, targets: Tensor, other_images: Tensor, other_targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images (n, channels, side, side) and soft targets (n, outputs), each mixed with its other.

        Both ways are one thing: a mask says how much of a pixel is the image's own, and the target's share is the
        mask's mean.
        """
        share, cut, across, down = (values[:, None] for values in self)
        side = (torch.arange(images.shape[-1], device=images.device) + 0.5) / images.shape[-1]
        half = (1 - share).sqrt() / 2
        box = ((side - down).abs() < half)[:, :, None] & ((side - across).abs() < half)[:, None]
        mask = torch.where(cut[:, :, None] > 0, 1 - box.float(), share[:, :, None])
        own = mask.mean((1, 2))[:, None]
        mask = mask[:, None]
        return mask * images + (1 - mask) * other_images, own * targets + (1 - own) * other_targets


@dataclass(frozen=True)
class Mix:
    """How the images of a training are mixed.

    ``mixup`` (arXiv 1710.09412) and ``cutmix`` (arXiv 1905.04899) are the alpha of the Beta distribution of the shares;
    with both, one or the other at random. ``mix_share`` of the images are mixed at all, in all epochs but the last
    ones: ``mix_until`` is a share of the epochs.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    mix_share: float = 1.0
    mix_until: float = 1.0

    def mixes_in(self, epoch: int, epochs: int) -> bool:
        """Whether images are mixed in ``epoch`` (from 0) of ``epochs``."""
        return epoch < self.mix_until * epochs

    def __call__(self, seed: int, count: int) -> np.ndarray:
        """Draw the mixture of a batch of ``count`` images: the values of :class:`Mixture`, float32 (4, count)."""
        random = np.random.default_rng(seed)
        cut = random.random(count) < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        cut_share, blend_share = (random.beta(alpha or 1, alpha or 1, count) for alpha in (self.cutmix, self.mixup))
        share = np.where(random.random(count) < self.mix_share, np.where(cut, cut_share, blend_share), 1.0)
        return np.stack([share, cut, random.random(count), random.random(count)]).astype(np.float32)


def size_of_batch(seed: int, sizes: Sequence[int]) -> int:
    """The side in pixels of the images of one batch, drawn from ``sizes``."""
    return int(np.random.default_rng(seed).choice(sizes))
