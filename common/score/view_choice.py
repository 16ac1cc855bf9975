"""Which test-time views earn their place out of fold."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.score.blending import best_weights
from common.score.calibration import cross_fitted
from common.score.logits import Outputs, paired_difference
from common.score.metrics import counted
from common.score.task import Task

NOTHING = 1e-6  # a softmax never reaches 0: a share below this is none, and its forward pass is saved


@dataclass(frozen=True)
class ViewScore:
    """What a view does out of fold: alone, and averaged half and half with the image itself."""

    errors_alone: float
    errors_half: float
    difference: float  # loss of the half and half minus that of the image itself, each after a temperature
    standard_error: float  # of the difference, paired by row

    @property
    def helps(self) -> bool:
        """Whether the log loss falls by more than one standard error."""
        return self.difference + self.standard_error < 0


def score_views(outputs: Outputs, targets: np.ndarray, part: np.ndarray, task: Task) -> list[ViewScore]:
    """Score every view against the first one, the identity.

    Args:
        outputs: (views, n, columns), each row by a model that has not seen it.
        targets: (n, ...), the task's.
        part: (n); temperatures are fitted on the rows of the other parts. Averaging makes a net less sure and label
            smoothing did so before, so that without a temperature hardly a view would lower the loss.
    """

    def losses(of: Outputs) -> np.ndarray:
        return task.loss(cross_fitted(of, targets, part, task), targets)

    of_each = task.count(task.cost(outputs, targets))
    own_losses = losses(outputs[0])
    scores = [ViewScore(of_each[0].item(), of_each[0].item(), 0.0, 0.0)]
    for number in range(1, len(outputs)):
        half = task.average(outputs[[0, number]])
        found = paired_difference(losses(half), own_losses)
        scores.append(ViewScore(of_each[number].item(), task.count(task.cost(half, targets)).item(), *found))
    return scores


def choose_weights(outputs: Outputs, targets: np.ndarray, part: np.ndarray, task: Task) -> np.ndarray:
    """Weights (views), summing to 1: a share for the identity, the rest in equal parts for the views that help.

    The share is a half, as in the presets, unless a learned one lowers the loss by more than one standard error.
    It is learned at the identity's temperature, where what label smoothing did to the net is undone. A weight for each
    view would fit noise: views of one net differ in a few rows of thousands.
    """
    helping = np.array([score.helps for score in score_views(outputs, targets, part, task)])
    if not helping.any():
        return np.eye(len(outputs))[0]

    def identity_and_rest(scale: float) -> Outputs:
        rest = task.average(outputs[helping] / scale)
        return Outputs(np.stack([outputs.values[0] / scale, rest.values]), outputs.others)

    plain = identity_and_rest(1.0)
    learned = best_weights(identity_and_rest(task.calibrate(outputs[0], targets)), targets, task)
    learned = np.where(learned < NOTHING, 0, learned)
    learned = learned / learned.sum()
    halves = np.array([0.5, 0.5])
    with_halves, with_learned = (
        task.loss(cross_fitted(task.average(plain, weights), targets, part, task), targets)
        for weights in (halves, learned)
    )
    lower, standard_error = paired_difference(with_halves, with_learned)
    share, rest = learned if lower > standard_error else halves
    return np.where(helping, rest / helping.sum(), share * np.eye(len(outputs))[0])


def choose_views(outputs: Outputs, targets: np.ndarray, part: np.ndarray, task: Task) -> tuple[np.ndarray, Outputs]:
    """Choose views and weights, and score the choice on rows that it has not seen.

    Returns:
        The weights (views) that all rows choose, for rows yet to come, and outputs (n, columns) where each part's rows
        come from the views and weights that the other parts chose. Where these lose to the image itself, both are the
        image itself.
    """
    averaged = replace(outputs, values=np.empty(outputs.values.shape[1:], dtype=np.float32))
    for number in np.unique(part):
        rows, others = part == number, part != number
        weights = choose_weights(outputs[:, others], targets[others], part[others], task)
        averaged.values[rows] = task.average(outputs[:, rows], weights).values
    own, found = (task.loss(cross_fitted(each, targets, part, task), targets).mean() for each in (outputs[0], averaged))
    if found >= own:
        return np.eye(len(outputs))[0], outputs[0]
    return choose_weights(outputs, targets, part, task), averaged


def view_table(names: Sequence[str], scores: Sequence[ViewScore], weights: np.ndarray, task: Task) -> str:
    """What each view does alone and with the identity, as aligned text."""
    width = max(map(len, names))
    lines = [
        f"{'':<{width}}  {task.counted:>8}  {task.counted:>8}  {f'{task.compared} against identity':>32}",
        f"{'view':<{width}}  {'alone':>8}  {'half':>8}  {'half, with its 95 % interval':>32}  {'weight':>8}",
    ]
    for name, found, weight in zip(names, scores, weights, strict=True):
        middle, around = found.difference, 1.96 * found.standard_error
        between = f"{middle:+.5f} ({middle - around:+.5f} to {middle + around:+.5f})" if found is not scores[0] else ""
        alone, half = counted(found.errors_alone), counted(found.errors_half)
        lines.append(f"{name:<{width}}  {alone:>8}  {half:>8}  {between:>32}  {weight:>8.4f}")
    said = "" if task.is_number else "; nll_calibrated: after a temperature fitted on the other folds' rows"
    lines.append(f"half: averaged with the identity{said}")
    return "\n".join(lines)


def gain_text(identity: Outputs, averaged: Outputs, targets: np.ndarray, part: np.ndarray, how: str, task: Task) -> str:
    """What the weighted views do to the OOF score, in one line."""
    pair = (identity, averaged)
    before, after = (task.loss(cross_fitted(each, targets, part, task), targets) for each in pair)
    costs_before, costs_after = (task.count(task.cost(each, targets)).item() for each in pair)
    difference, standard_error = paired_difference(after, before)
    return (
        f"all views, {how}: {task.counted} {counted(costs_before)} -> {counted(costs_after)}, {task.compared} "
        f"{before.mean():.5f} -> {after.mean():.5f} ({difference:+.5f} +- {1.96 * standard_error:.5f})"
    )
