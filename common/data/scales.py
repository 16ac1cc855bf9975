"""What brings inputs to zero mean and unit deviation, as the rows that a fold trains on have them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from common.data.transfer import constant


class Scale(Protocol):
    """A dataclass whose fields are numbers, for the weights file; called with inputs it returns scaled ones."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Scaled inputs, float, of the same shape."""


@dataclass(frozen=True)
class Normalise:
    """Pixels to zero mean and unit deviation, per channel, in units of 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_levels(cls, counts: Tensor) -> "Normalise":
        """Mean and deviation of so many pixels of each level, int64 (channels, 256); a deviation of 0 is 1."""
        shares = counts.double() / counts.sum(1, keepdim=True)
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean = (shares * levels).sum(1)
        std = ((shares * levels**2).sum(1) - mean**2).clamp_min(0).sqrt()
        return cls(tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist()))

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = (constant(tuple(values), images.device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std


def levels_of(batches: Iterable[Tensor]) -> Tensor:
    """How many pixels of uint8 images (n, channels, height, width) have each level: int64 (channels, 256)."""
    return sum(
        torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).cpu()
        for images in batches
    )
