"""What a whole batch shares in training: images mixed with others, and a size drawn for the batch.

All draws are a function of a seed, so every process that works on a batch makes the same ones.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """How each image of a batch is mixed with another: arrays of one value per image."""

    share: np.ndarray  # of the image itself, 0..1
    cut: np.ndarray  # whether a box of the other image is pasted in; else the two are blended
    across: np.ndarray  # middle of the box, as a share of the side
    down: np.ndarray

    def part(self, which: slice) -> "Mixture":
        """The mixture of some of the batch's images."""
        return Mixture(self.share[which], self.cut[which], self.across[which], self.down[which])

    def __call__(
        self, images: Tensor, targets: Tensor, other_images: Tensor, other_targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images (n, channels, side, side) and soft targets (n, classes), each mixed with its other.

        Both ways are one thing: a mask says how much of a pixel is the image's own, and the target's share is the
        mask's mean.
        """
        share, across, down = (
            torch.from_numpy(values).to(images)[:, None] for values in (self.share, self.across, self.down)
        )
        cut = torch.from_numpy(self.cut).to(images.device)[:, None, None]
        side = (torch.arange(images.shape[-1], device=images.device) + 0.5) / images.shape[-1]
        half = (1 - share).sqrt() / 2
        box = ((side - down).abs() < half)[:, :, None] & ((side - across).abs() < half)[:, None]
        mask = torch.where(cut, 1 - box.float(), share[:, :, None])
        own = mask.mean((1, 2))[:, None]
        mask = mask[:, None]
        return mask * images + (1 - mask) * other_images, own * targets + (1 - own) * other_targets


def mixture(
    seed: int, count: int, mixup: float = 0.0, cutmix: float = 0.0, mix_share: float = 1.0, mix_until: float = 1.0
) -> Mixture:
    """Draw the mixture of a batch of ``count`` images.

    ``mixup`` (arXiv 1710.09412) and ``cutmix`` (arXiv 1905.04899) are the alpha of the Beta distribution of the shares;
    with both, one or the other at random. ``mix_share`` of the images are mixed at all. ``mix_until`` is the share of
    the epochs after which nothing is mixed; the caller looks at it.
    """
    random = np.random.default_rng(seed)
    cut = random.random(count) < (0.5 if mixup and cutmix else float(cutmix > 0))
    share = np.where(cut, random.beta(cutmix or 1, cutmix or 1, count), random.beta(mixup or 1, mixup or 1, count))
    share = np.where(random.random(count) < mix_share, share, 1.0)
    return Mixture(share, cut, random.random(count), random.random(count))


def size_of_batch(seed: int, sizes: tuple[int, ...] = ()) -> int:
    """The side in pixels of the images of one batch, drawn from ``sizes``."""
    return int(np.random.default_rng(seed).choice(sizes))
