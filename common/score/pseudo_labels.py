"""Labels that a teacher gives to rows without any, as far as it is sure of them (Lee 2013, "Pseudo-Label")."""

import numpy as np

from common.score.logits import Outputs
from common.score.task import Task


def pseudo_labels(task: Task, outputs: Outputs, threshold: float, soft: bool, smoothing: float) -> np.ndarray:
    """Targets that a training compares, float32 (n, c), for calibrated outputs (n, c); NaN where they have no say.

    Of classes a row counts whose likeliest has the probability ``threshold``; of label sets each label by itself whose
    yes or no has it. ``soft`` targets are the probabilities, others the decision, smoothed like a label of one's own.
    """
    chances = task.probabilities(outputs)
    targets = chances if soft else task.soft(task.decide(outputs), np.arange(chances.shape[1]), smoothing)
    if task.is_one_of:
        sure = chances.max(axis=1, keepdims=True) >= threshold
    else:
        sure = np.maximum(chances, 1 - chances) >= threshold
    return np.where(sure, targets, np.nan).astype(np.float32)
