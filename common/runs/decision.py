"""What a run, or a blend, decides by: learned on its out-of-fold predictions (common/score/decisions.py)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from common.runs.predictions import Predictions
from common.score.decisions import DecisionStudy, can_be_learned, study_decisions
from common.score.logits import Outputs


def learned_decision(oofs: Sequence[Predictions], metric: str) -> DecisionStudy:
    """The study of decisions on the out-of-fold predictions of several folds, or of all of them in one."""
    first, parts = oofs[0], [each for each in oofs if not each.is_short]
    if not parts or not can_be_learned(first.task, metric):
        return DecisionStudy(metric, first.classes, "", (), {}, {})
    whole = replace(
        first,
        **{
            name: np.concatenate([getattr(each, name) for each in parts])
            for name in ("ids", "logits", "labels", "fold")
        },
    )
    return study_decisions(first.task, Outputs(whole.logits), whole.targets, whole.fold, first.classes, metric)
