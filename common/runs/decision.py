"""What a run, or a blend, decides by: learned on its out-of-fold predictions (common/score/decisions.py)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from common.base.errors import UserError
from common.runs.predictions import Predictions
from common.score.calibration import calibrated_loss, cross_fitted
from common.score.decisions import DecisionStudy, can_be_learned, study_decisions
from common.score.task import Task


def learned_decision(oofs: Sequence[Predictions], metric: str) -> DecisionStudy:
    """The study of decisions on the out-of-fold predictions of several folds, or of all of them in one."""
    first, parts = oofs[0], [each for each in oofs if not each.is_short]
    if not parts or not can_be_learned(first.task, metric):
        return DecisionStudy(metric, first.output_names, "", (), {}, {})
    whole = joined(parts)
    return study_decisions(first.task, whole.outputs, whole.targets, whole.fold, first.output_names, metric)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several folds in long form as one."""
    fields = ("ids", "logits", "labels", "fold")
    return replace(parts[0], **{name: np.concatenate([getattr(each, name) for each in parts]) for name in fields})


def temperature_of(oofs: Sequence[Predictions]) -> tuple[float, float, float]:
    """What to divide a run's outputs by, from its out-of-fold predictions; their loss before, and after, nested."""
    whole = joined(oofs)
    outputs, targets, task = whole.outputs, whole.targets, whole.task
    before = float(task.loss(outputs, targets).mean())
    if len(np.unique(whole.fold)) > 1:
        after = float(task.loss(cross_fitted(outputs, targets, whole.fold, task), targets).mean())
    else:
        after = calibrated_loss(outputs, targets, task)
    return task.calibrate(outputs, targets), before, after


def check_clip(task: Task) -> None:
    """Raise UserError where answers have no range to be kept in."""
    if not task.bounds:
        raise UserError("--clip", f"is for numbers, and the task is {task.name}", "leave it out")


def clipped(run: str, test: Predictions, oofs: Sequence[Predictions]) -> Predictions:
    """The test predictions whose answers stay within the range of the OOF rows' targets.

    Raises:
        UserError: the answers are no numbers, or there are no OOF predictions.
    """
    check_clip(test.task)
    if not oofs:
        what = f"needs the range of the training targets, but {run} has no OOF predictions"
        raise UserError("--clip", what, "leave it out")
    decided = replace(test, decision=test.task.bounds(np.concatenate([each.targets for each in oofs])))
    outside = (decided.predicted_targets != test.predicted_targets).any(axis=1).sum()
    print(f"{run}: --clip moves {outside:,} of {len(test.ids):,} answers into the range of the training targets")
    return decided
