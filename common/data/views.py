"""Test-time augmentation: presets of views.

A view maps a batch of images to a batch, float (n, channels, height, width) in 0..1; a preset is a list of views with
their weights. torch is not imported here: a preset can be named before it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Look = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class View:
    """What one forward pass sees of an image, and how much its probabilities count."""

    name: str
    look: Look
    weight: float
    place: tuple[float, float] = (0.0, 0.0)  # across and down, of what it sees of a larger image; see cropped()


def identity(images: "Tensor") -> "Tensor":
    """Images as they are."""
    return images


def moved(rotation: float = 0.0, zoom: float = 1.0, across: float = 0.0, down: float = 0.0) -> Look:
    """A view that turns (degrees), enlarges (factor) and shifts (shares of the side) every image alike."""

    def look(images: "Tensor") -> "Tensor":
        from common.data.geometry import affine

        return affine(images, rotation, zoom, across, down)

    return look


def mirrored(images: "Tensor") -> "Tensor":
    """Left and right exchanged."""
    return images.flip(-1)


def upside_down(images: "Tensor") -> "Tensor":
    """Top and bottom exchanged."""
    return images.flip(-2)


def turned(quarters: int, mirror: bool = False) -> Look:
    """A view turned by some quarters of a circle, counter-clockwise; with ``mirror``, mirrored before that."""

    def look(images: "Tensor") -> "Tensor":
        return (images.flip(-1) if mirror else images).rot90(quarters, (-2, -1))

    return look


def scaled(factor: float) -> Look:
    """A view with ``factor`` times as many pixels a side, which the model must be able to take."""

    def look(images: "Tensor") -> "Tensor":
        from torch.nn.functional import interpolate

        side = round(images.shape[-1] * factor)
        return interpolate(images, (side, side), mode="bilinear", antialias=True)

    return look


def half_identity(looks: dict[str, Look]) -> list[View]:
    """Half the weight on the image itself and the rest on the views, as airbench weighs its own.

    Keller Jordan, github.com/KellerJordan/cifar10-airbench.
    """
    views = [View(name, look, 0.5 / len(looks)) for name, look in looks.items()]
    return [View("identity", identity, 0.5), *views]


# 1/28 of the side is one pixel of a 28 px digit.
SHIFTS = {
    "left": moved(across=-1 / 28),
    "right": moved(across=1 / 28),
    "up": moved(down=-1 / 28),
    "down": moved(down=1 / 28),
}
TURNS = {"turned left": moved(rotation=-6), "turned right": moved(rotation=6)}
ZOOMS = {"smaller": moved(zoom=0.95), "larger": moved(zoom=1.05)}
FLIPS = {"mirrored": mirrored, "upside down": upside_down}
TURNED = {"quarter turn": turned(1), "half turn": turned(2), "three quarters": turned(3)}
TRANSPOSED = {"transposed": turned(1, mirror=True), "transposed, half turn": turned(3, mirror=True)}
# (-1, -1) is the upper left corner of the photo that is kept, which is larger than what the model sees of it.
CORNERS = {"upper left": (-1, -1), "upper right": (1, -1), "lower left": (-1, 1), "lower right": (1, 1)}


TTA = {
    "none": [View("identity", identity, 1.0)],
    "digits": half_identity(SHIFTS | TURNS | ZOOMS),
    "shifts": half_identity(SHIFTS),
    "turns": half_identity(TURNS),
    "zooms": half_identity(ZOOMS),
    "flips": half_identity(FLIPS),  # not for digits: a mirrored 2 looks like a 5
    "hflip": half_identity({"mirrored": mirrored}),
    "d4": half_identity(FLIPS | TURNED | TRANSPOSED),  # the eight symmetries of a square
    "six": half_identity(FLIPS | {"half turn": turned(2)} | TRANSPOSED),
    "five_crop": [View("identity", identity, 0.5), *(View(name, identity, 1 / 8, at) for name, at in CORNERS.items())],
    "centre": half_identity({"centre": moved(zoom=8 / 7)}),  # the usual crop of 224 of 256 px
    "scales": half_identity({"7/8 of the size": scaled(7 / 8), "8/7 of the size": scaled(8 / 7)}),
}
TTA["brief_002"] = TTA["six"]  # its name in older runs, where two of the six were the same as others
