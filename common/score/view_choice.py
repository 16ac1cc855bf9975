"""Which test-time views earn their place out of fold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.score.blending import convex_weights, target_probabilities
from common.score.calibration import cross_fitted, temperature
from common.score.logits import errors, log_mean_probability, losses, paired_difference


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
        f"{'':<{width}}  {'errors':>8}  {'errors':>8}  {'nll_calibrated against identity':>32}",
        f"{'view':<{width}}  {'alone':>8}  {'half':>8}  {'half, with its 95 % interval':>32}  {'weight':>8}",
    ]
    for name, found, weight in zip(names, scores, weights, strict=True):
        middle, around = found.difference, 1.96 * found.standard_error
        between = f"{middle:+.5f} ({middle - around:+.5f} to {middle + around:+.5f})" if found is not scores[0] else ""
        lines.append(
            f"{name:<{width}}  {found.errors_alone:>8,}  {found.errors_half:>8,}  {between:>32}  {weight:>8.4f}"
        )
    lines.append(
        "half: averaged with the identity; nll_calibrated: after a temperature fitted on the other folds' rows"
    )
    return "\n".join(lines)


def gain_text(identity: np.ndarray, averaged: np.ndarray, targets: np.ndarray, part: np.ndarray, how: str) -> str:
    """What the weighted views do to the OOF score, in one line."""
    before, after = (losses(cross_fitted(logits, targets, part), targets) for logits in (identity, averaged))
    difference, standard_error = paired_difference(after, before)
    return (
        f"all views, {how}: errors {errors(identity, targets):,} -> {errors(averaged, targets):,}, nll_calibrated "
        f"{before.mean():.5f} -> {after.mean():.5f} ({difference:+.5f} +- {1.96 * standard_error:.5f})"
    )
