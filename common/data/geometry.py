"""Where the pixels of a batch are looked up: points, and images at points.

Points are as grid_sample has them: (n, side, side, 2), x and y, the image spans -1..1; each says where an output pixel
comes from.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.augment_options import PADDING
from common.data.transfer import constant


def points_of(images: Tensor, side: int = 0) -> Tensor:
    """Where each pixel of the images is: the points that change nothing, or all of it at another ``side`` (0: own)."""
    side = side or images.shape[-1]
    steps = (torch.arange(side, device=images.device) * 2 + 1) / side - 1
    down, across = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([across, down], dim=2).expand(len(images), -1, -1, -1)


def moved(points: Tensor, rotation: Tensor, zoom: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """The points under one affine map per image.

    ``rotation`` in degrees counter-clockwise, ``zoom`` as a factor (above 1 enlarges), ``across`` and ``down`` as
    shares of the side; each has one value per image.
    """
    angle = torch.deg2rad(rotation)
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    matrix = torch.stack([cosine, sine, -sine, cosine], dim=1).view(-1, 2, 2)
    shifted = -2 * torch.stack([across, down], dim=1)[:, None]
    if points.device.type != "cpu":
        return written_out(points, matrix, shifted)
    with torch.autocast("cpu", enabled=False):  # in bf16 a turn would be off by most of a pixel
        return torch.baddbmm(shifted, points.flatten(1, 2), matrix).view(points.shape)


def written_out(points: Tensor, matrix: Tensor, shifted: Tensor) -> Tensor:
    """The points times (n, 2, 2), plus (n, 1, 2): slower on a CPU, but neither autocast nor TF32 rounds it on a GPU."""
    across, down = points[..., :1], points[..., 1:]
    return shifted[:, None] + across * matrix[:, None, None, 0] + down * matrix[:, None, None, 1]


def sample(images: Tensor, points: Tensor, border: str = "black") -> Tensor:
    """The images (n, channels, side, side) at the points, bilinear."""
    return F.grid_sample(images, points, mode="bilinear", padding_mode=PADDING[border], align_corners=False)


def cropped(images: Tensor, side: int, across: float = 0.0, down: float = 0.0) -> Tensor:
    """A square of ``side`` px of larger images (n, channels, height, width); -1 is the left or upper end, 1 the other.

    The middle one is timm's centre crop.
    """
    left, top = (round((1 + place) * (images.shape[-1] - side) / 2) for place in (across, down))
    return images[..., top : top + side, left : left + side]


def affine(images: Tensor, rotation: float, zoom: float, across: float, down: float) -> Tensor:
    """All images under the same affine map (see :func:`moved`), black beyond the border."""
    points = moved(points_of(images[:1]), *constant(((rotation,), (zoom,), (across,), (down,)), images.device))
    return sample(images, points.expand(len(images), -1, -1, -1))
