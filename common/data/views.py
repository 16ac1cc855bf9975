"""Test-time augmentation: presets of views, and which of them earn their place out of fold.

A view maps a batch of images to a batch, float (n, channels, height, width) in 0..1; a preset is a list of views with
their weights. torch is not imported here: a preset can be named before it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.score.blending import convex_weights, target_probabilities
from common.score.calibration import cross_fitted, temperature
from common.score.metrics import errors, log_mean_probability, losses, paired_difference

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


# ---- which views help


@dataclass(frozen=True)
class ViewScore:
    """What a view does out of fold: alone, and averaged half and half with the image itself."""

    errors_alone: int
    errors_half: int
    difference: float  # log loss of the half and half minus that of the image itself, each after a temperature
    standard_error: float  # of the difference, paired by row

    @property
    def helps(self) -> bool:
        """Whether the log loss falls by more than one standard error."""
        return self.difference + self.standard_error < 0


def score_views(logits: np.ndarray, targets: np.ndarray, part: np.ndarray) -> list[ViewScore]:
    """Score every view against the first one, the identity.

    Args:
        logits: (views, n, classes), each row by a model that has not seen it.
        targets: (n) class numbers.
        part: (n); temperatures are fitted on the rows of the other parts. Averaging makes a net less sure and label
            smoothing did so before, so that without a temperature hardly a view would lower the log loss.
    """
    own_errors = errors(logits[0], targets)
    own_losses = losses(cross_fitted(logits[0], targets, part), targets)
    scores = [ViewScore(own_errors, own_errors, 0.0, 0.0)]
    for view in logits[1:]:
        half = log_mean_probability([logits[0], view])
        found = paired_difference(losses(cross_fitted(half, targets, part), targets), own_losses)
        scores.append(ViewScore(errors(view, targets), errors(half, targets), *found))
    return scores


def choose_weights(logits: np.ndarray, targets: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Weights (views), summing to 1: a share for the identity, the rest in equal parts for the views that help.

    The share is a half, as in the presets, unless a learned one lowers the log loss by more than one standard error.
    It is learned at the identity's temperature, where what label smoothing did to the net is undone. A weight for each
    view would fit noise: views of one net differ in a few rows of thousands.
    """
    helping = np.array([score.helps for score in score_views(logits, targets, part)])
    if not helping.any():
        return np.eye(len(logits))[0]
    identity_and_rest = np.stack([logits[0], log_mean_probability(logits[helping])])
    scale = temperature(logits[0], targets)
    learned = convex_weights(
        target_probabilities([logits[0] / scale, log_mean_probability(logits[helping] / scale)], targets)
    )
    halves = np.array([0.5, 0.5])
    with_halves, with_learned = (
        losses(cross_fitted(log_mean_probability(identity_and_rest, weights), targets, part), targets)
        for weights in (halves, learned)
    )
    lower, standard_error = paired_difference(with_halves, with_learned)
    share, rest = learned if lower > standard_error else halves
    return np.where(helping, rest / helping.sum(), share * np.eye(len(logits))[0])


def choose_views(logits: np.ndarray, targets: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose views and weights, and score the choice on rows that it has not seen.

    Returns:
        The weights (views) that all rows choose, for rows yet to come, and log probabilities (n, classes) where each
        part's rows come from the views and weights that the other parts chose. Where these lose to the image itself,
        both are the image itself.
    """
    averaged = np.empty(logits.shape[1:], dtype=np.float32)
    for number in np.unique(part):
        rows, others = part == number, part != number
        weights = choose_weights(logits[:, others], targets[others], part[others])
        averaged[rows] = log_mean_probability(logits[:, rows], weights)
    own, found = (losses(cross_fitted(each, targets, part), targets).mean() for each in (logits[0], averaged))
    if found >= own:
        return np.eye(len(logits))[0], logits[0]
    return choose_weights(logits, targets, part), averaged


def view_table(names: Sequence[str], scores: Sequence[ViewScore], weights: np.ndarray) -> str:
    """What each view does alone and with the identity, as aligned text."""
    width = max(map(len, names))
    lines = [
        f"{'':<{width}}  {'errors':>8}  {'errors':>8}  {'log loss against identity':>32}",
        f"{'view':<{width}}  {'alone':>8}  {'half':>8}  {'half, with its 95 % interval':>32}  {'weight':>8}",
    ]
    for name, found, weight in zip(names, scores, weights, strict=True):
        middle, around = found.difference, 1.96 * found.standard_error
        between = f"{middle:+.5f} ({middle - around:+.5f} to {middle + around:+.5f})" if found is not scores[0] else ""
        lines.append(
            f"{name:<{width}}  {found.errors_alone:>8,}  {found.errors_half:>8,}  {between:>32}  {weight:>8.4f}"
        )
    lines.append("half: averaged with the identity; log loss after a temperature fitted on the other folds' rows")
    return "\n".join(lines)


def gain_text(identity: np.ndarray, averaged: np.ndarray, targets: np.ndarray, part: np.ndarray, how: str) -> str:
    """What the weighted views do to the OOF score, in one line."""
    before, after = (losses(cross_fitted(logits, targets, part), targets) for logits in (identity, averaged))
    difference, standard_error = paired_difference(after, before)
    return (
        f"all views, {how}: errors {errors(identity, targets):,} -> {errors(averaged, targets):,}, log loss "
        f"{before.mean():.5f} -> {after.mean():.5f} ({difference:+.5f} +- {1.96 * standard_error:.5f})"
    )


TTA = {
    "none": [View("identity", identity, 1.0)],
    "digits": half_identity(SHIFTS | TURNS | ZOOMS),
    "shifts": half_identity(SHIFTS),
    "turns": half_identity(TURNS),
    "zooms": half_identity(ZOOMS),
    "flips": half_identity(FLIPS),  # not for digits: a mirrored 2 looks like a 5
    "hflip": half_identity({"mirrored": mirrored}),
    "d4": half_identity(FLIPS | TURNED | TRANSPOSED),  # the eight symmetries of a square
    # The six views of a course on leaves, the last two of which are its second and third again.
    "brief_002": [
        View("identity", identity, 1 / 6),
        View("mirrored", mirrored, 2 / 6),
        View("upside down", upside_down, 2 / 6),
        View("half turn", turned(2), 1 / 6),
    ],
    # Its purpose, six views of flips and transpositions that are six.
    "six": half_identity(FLIPS | {"half turn": turned(2)} | TRANSPOSED),
    "five_crop": [View("identity", identity, 0.5), *(View(name, identity, 1 / 8, at) for name, at in CORNERS.items())],
    "centre": half_identity({"centre": moved(zoom=8 / 7)}),  # the usual crop of 224 of 256 px
    "scales": half_identity({"7/8 of the size": scaled(7 / 8), "8/7 of the size": scaled(8 / 7)}),
}
