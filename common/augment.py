"""Training augmentation: batched functions of (images, uniform), one line each in AUGMENTS.

``images`` are float (n, channels, height, width) in 0..1; ``uniform(k)`` gives (n, k) random numbers
in 0..1 that depend on (seed, epoch, step, place in the batch) alone, so that an image is augmented
alike however many processes share the batch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Uniform = Callable[[int], Tensor]


def affine(images: Tensor, rotation: Tensor, zoom: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """One bilinear affine map per image, black beyond the border.

    ``rotation`` in degrees counter-clockwise, ``zoom`` as a factor (above 1 enlarges), ``across`` and ``down`` as
    shares of the side; each has one value per image.
    """
    angle = torch.deg2rad(rotation)
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # grid_sample looks up where each output pixel comes from, and counts the side as 2.
    matrix = torch.stack([cosine, -sine, -2 * across, sine, cosine, -2 * down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def none(images: Tensor, uniform: Uniform) -> Tensor:
    """Images as they are."""
    return images


def digits(images: Tensor, uniform: Uniform, rotation: float = 12.0, shift: float = 0.1, scale: float = 0.1) -> Tensor:
    """Rotate by up to ``rotation`` degrees, shift by up to ``shift`` of the side, scale by 1 +- ``scale``.

    The ranges cover about 95 % of the natural spread of MNIST digits (Deotte,
    github.com/cdeotte/MNIST-CNN-99.75).
    """
    draw = (uniform(4) * 2 - 1).unbind(1)
    return affine(images, draw[0] * rotation, 1 + draw[1] * scale, draw[2] * shift, draw[3] * shift)


AUGMENTS = {"none": none, "digits": digits}
