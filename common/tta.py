"""Test-time augmentation: a preset is a dict of views with their weights; a view maps a batch to a batch.

Images are float (n, channels, height, width) in 0..1. Flips are no views for digits: a mirrored 2
looks like a 5.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from common.augment import affine


@dataclass(frozen=True)
class View:
    """What one forward pass sees of an image, and how much its probabilities count."""

    name: str
    look: Callable[[Tensor], Tensor]
    weight: float


def identity(images: Tensor) -> Tensor:
    """Images as they are."""
    return images


def moved(rotation: float = 0.0, zoom: float = 1.0, across: float = 0.0, down: float = 0.0) -> Callable:
    """A view that turns (degrees), enlarges (factor) and shifts (shares of the side) every image alike."""

    def look(images: Tensor) -> Tensor:
        each = images.new_ones(len(images))
        return affine(images, each * rotation, each * zoom, each * across, each * down)

    return look


# Half the weight on the image itself and the rest on small moves, as airbench weighs its views
# (github.com/KellerJordan/cifar10-airbench). 1/28 of the side is one pixel of a 28 px digit.
_DIGIT_MOVES = {
    "left": moved(across=-1 / 28),
    "right": moved(across=1 / 28),
    "up": moved(down=-1 / 28),
    "down": moved(down=1 / 28),
    "turned left": moved(rotation=-6),
    "turned right": moved(rotation=6),
    "smaller": moved(zoom=0.95),
    "larger": moved(zoom=1.05),
}

TTA = {
    "none": [View("identity", identity, 1.0)],
    "digits": [View("identity", identity, 0.5)]
    + [View(name, look, 0.5 / len(_DIGIT_MOVES)) for name, look in _DIGIT_MOVES.items()],
}
