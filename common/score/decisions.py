"""Decisions learned on out-of-fold predictions, such as thresholds, scored on rows that they have not seen.

A task names the ways to learn one (``Task.decisions``). Each is learned on the other folds' rows and scored on the
fold's own: what is chosen and scored on the same rows flatters. The way with the best nested score is taken, at a tie
the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.score.calibration import PARTS
from common.score.logits import Outputs
from common.score.metrics import METRICS, goodness, show
from common.score.task import Decision, Task


@dataclass(frozen=True)
class DecisionStudy:
    """What was learned, and what it is worth."""

    metric: str
    names: Sequence[str]  # of the outputs
    way: str  # that is taken; empty: there is nothing to learn
    decision: Decision  # learned on all rows
    in_sample: Mapping[str, float]  # by way: the metric of the rows that it was learned on
    nested: Mapping[str, float]  # by way: the metric of all rows, each decided by what the other folds say
    predicted: np.ndarray | None = None  # (n, ...): the answers of the way taken, each decided by the other folds

    @property
    def text(self) -> str:
        """A line a way; empty where there is nothing to learn."""
        if not self.way:
            return ""
        lines = [f"decisions for {self.metric} (learned and scored on the same rows, and nested):"]
        for way, flattered in self.in_sample.items():
            taken = "  <- taken" if way == self.way else ""
            lines.append(
                f"  {way:<22} {show(self.metric, flattered):>9} {show(self.metric, self.nested[way]):>9}{taken}"
            )
        return "\n".join(lines)


def can_be_learned(task: Task, metric: str) -> bool:
    """Whether a decision can change the metric: not where it looks at more than answers, nor, of classes, where it is a
    mean over rows, whose best answer is the likeliest class."""
    looked_at = METRICS[metric].looks_at == "answers" and not (task.is_one_of and METRICS[metric].costs)
    return bool(task.decisions) and looked_at


def study_decisions(
    task: Task, outputs: Outputs, targets: np.ndarray, fold: np.ndarray, names: Sequence[str], metric: str
) -> DecisionStudy:
    """Learn a decision in each of the task's ways; nothing where there is none, or where none changes the metric.

    Args:
        outputs: (n, c), of rows that no model was trained on.
        targets: (n, ...).
        fold: int (n); of a single fold any five parts of its rows.
        names: of the outputs.
        metric: of METRICS.
    """
    nothing = DecisionStudy(metric, names, "", (), {}, {})
    if not can_be_learned(task, metric) or not len(targets):
        return nothing
    answers = task.answers(outputs, targets, names)
    part = fold if len(np.unique(fold)) > 1 else np.random.default_rng(0).permutation(len(targets)) % PARTS
    learned = {way: learn(outputs, answers, metric) for way, learn in task.decisions.items()}
    learned = {way: found for way, found in learned.items() if found is not None}
    in_sample = {
        way: METRICS[metric].of(answers.with_predicted(task.decide(outputs, found))) for way, found in learned.items()
    }
    if np.ptp(list(in_sample.values())) == 0:
        return nothing
    nested, decided = {}, {}
    for way in learned:
        predicted = np.empty_like(answers.predicted)
        for number in np.unique(part):
            own, others = part == number, part != number
            found = task.decisions[way](outputs[others], answers.rows(np.flatnonzero(others)), metric)
            predicted[own] = task.decide(outputs[own], found)
        nested[way], decided[way] = METRICS[metric].of(answers.with_predicted(predicted)), predicted
    way = max(nested, key=lambda name: goodness(metric, nested[name]))
    return DecisionStudy(metric, names, way, learned[way], in_sample, nested, decided[way])
