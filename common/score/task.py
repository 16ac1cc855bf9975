"""What an answer is: one row per task, which all other rooms ask; numpy only.

A row's label is text in every file. ``encode`` makes targets of labels, a net's outputs are compared with them by
``loss`` (what weights, views, temperatures and sweeps minimise) and by ``cost`` (what a person counts), and ``decide``
and ``decode`` make of outputs the text that a submission says. A new task is a row of TASKS and its functions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from common.base.errors import UserError
from common.base.words import names_in_short
from common.score import label_sets, numbers
from common.score.answers import Answers
from common.score.class_decisions import cut_points, decided_class, likeliest_class, threshold
from common.score.logits import Outputs, blocks, log_loss, mean_probability
from common.score.metrics import score_of
from common.score.temperature import temperature
from common.score.thresholds import half, one_a_label, one_for_all

Decision = Sequence[float]  # what a decision learned on OOF, such as thresholds; empty: nothing


@dataclass(frozen=True)
class Task:
    """What an answer is, for n rows and c outputs of a net. Tuples name rows of tables; the first is the default.

    Targets and outputs are in the labels' own unit: a net that learns numbers has its scale, the training rows' mean
    and deviation, among its weights (common/model/units.py).
    """

    name: str  # in files and messages; nobody branches on it
    outputs: Callable[[Sequence[str]], list[str]]  # labels -> names of the net's outputs, sorted once
    flaw: Callable[[str], str]  # a label's text -> what is wrong with it, "" if nothing
    stratum: Callable[[np.ndarray], np.ndarray]  # labels (n) -> keys (n) that folds and --train-fraction keep even
    names_in: Callable[[str], Sequence[str]]  # a label's text -> the outputs that it names, each to be learned
    encode: Callable[[Sequence[str], Sequence[str]], np.ndarray]  # labels, names of the outputs -> targets (n, ...)
    decode: Callable[[np.ndarray, Sequence[str]], np.ndarray]  # its inverse: targets, names -> labels, text (n)
    # Targets (m, ...), numbers (c) of the outputs, smoothing -> what a training loss compares, float (m, c); of arrays
    # and of tensors alike, so that it runs where the targets lie.
    soft: Callable[[Any, Any, float], Any]
    probabilities: Callable[[Outputs], np.ndarray]  # outputs -> float64 of the same shape, 0 to 1
    activation: str  # what a training makes probabilities with (common/model/objectives.py); "": there are none
    confidence: Callable[[Outputs], np.ndarray]  # outputs (n, c) -> probability of what decide says of them, (n)
    average: Callable[..., Outputs]  # outputs (m, n, c) of models, views or runs, weights (m; () equal) -> (n, c)
    loss: Callable[[Outputs, np.ndarray], np.ndarray]  # outputs, targets -> float (n)
    cost: Callable[..., np.ndarray]  # outputs, targets, decision -> (n): bool where right or wrong, else float
    calibrate: Callable[[Outputs, np.ndarray], float]  # outputs, targets -> what to divide outputs by, for a low loss
    decide: Callable[..., np.ndarray]  # outputs, decision -> what is answered, in the form of the targets
    answers: Callable[..., Answers]  # outputs, targets, names of the outputs, decision -> what the metrics look at
    decisions: Mapping[str, Callable[..., Decision]]  # ways to learn one: outputs, answers, metric -> it
    # Outputs (m, n, c), targets -> float (k, m): what each model says of what is true. The mean loss of the models'
    # mean with weights w is that of mixture_loss(these @ w), arrays and tensors alike, but for a constant.
    parts: Callable[[Outputs, np.ndarray], np.ndarray]
    mixture_loss: Callable[[Any], Any]
    half: Callable[[np.ndarray], np.ndarray] | None  # outputs -> float16 that means the same; None: there is none
    is_shortened: bool  # whether a file may keep each row's largest outputs alone (--store top64)
    outputs_are: str  # what the net's outputs stand for, in the plural
    is_one_of: bool  # whether a row is of exactly one of the outputs, by which it can be weighted and drawn
    metrics: tuple[str, ...]  # common/score/metrics.py
    losses: tuple[str, ...]  # common/model/losses.py
    forms: tuple[str, ...]  # common/runs/forms.py
    blends: tuple[str, ...]  # common/score/blending.py
    sections: tuple[str, ...]  # of a run's page, common/report
    positive: str = ""  # of two classes the one that is looked for, as a user says; "": the second
    # Whether outputs are numbers in a unit: learned in deviations from their mean, never smoothed, and not the same
    # any more where an image is turned or mirrored.
    is_number: bool = False
    counted: str = "errors"  # the metric that is the sum, or the mean, of the costs
    loss_metric: str = "nll"  # the metric that is the mean loss
    bounds: Callable[[np.ndarray], Decision] | None = None  # targets -> the decision that keeps answers in their range

    @property
    def is_of_sets(self) -> bool:
        """Whether a row may have several of the outputs, or none."""
        return not (self.is_one_of or self.is_number)

    @property
    def compared(self) -> str:
        """What blends, views and cells are compared by: the loss, after a temperature where the task has one."""
        return self.loss_metric if self.is_number else f"{self.loss_metric}_calibrated"

    def score(
        self, outputs: Outputs, targets: np.ndarray, names: Sequence[str] = (), metric: str = ""
    ) -> dict[str, float | int]:
        """What tables of results show: n and the task's metrics; ``names`` are the outputs', () of a short form.

        ``metric`` is one that is asked for: some are computed only then.
        """
        return score_of(self.answers(outputs, targets, names), self.metrics, metric)

    def count(self, costs: np.ndarray) -> Any:
        """The metric ``counted`` of costs (..., n): their sum where they are errors, else their mean."""
        return costs.mean(axis=-1) if self.is_number else costs.sum(axis=-1)


# ---- one class a row


def class_names(labels: Sequence[str]) -> list[str]:
    """The distinct labels, sorted as text: this order is the order of a model's outputs."""
    return sorted(set(labels))


def flaw_of_class(label: str) -> str:
    """A class has a name."""
    return "" if label else "is empty"


def targets_of(labels: Sequence[str] | np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Class numbers (int64, n) of text labels.

    Raises:
        UserError: a label that is not in the class list.
    """
    number = {name: position for position, name in enumerate(classes)}
    try:
        return np.fromiter((number[str(label)] for label in labels), dtype=np.int64, count=len(labels))
    except KeyError as error:
        what = f"label {error} is not one of {names_in_short(classes)}"
        raise UserError("labels", what, "use the table the folds were made from") from None


def names_of(targets: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The class name of each class number, text (n)."""
    return np.asarray(classes, dtype=object)[targets]


def smoothed_one_hot(targets: Any, numbers: Any, smoothing: float) -> Any:
    """1 - s + s / classes for a row's class, s / classes elsewhere; (m, classes)."""
    return (targets[:, None] == numbers) * (1 - smoothing) + smoothing / len(numbers)


def is_wrong(outputs: Outputs, targets: np.ndarray, decision: Decision = ()) -> np.ndarray:
    """Whether the likeliest class is another than the row's, bool (..., n)."""
    return decided_class(outputs, decision) != targets


def class_answers(
    outputs: Outputs, targets: np.ndarray, names: Sequence[str], decision: Decision = (), positive: str = ""
) -> Answers:
    """What is decided, the place of the right class and the loss of each row, some rows at a time.

    ``positive`` is the class that is looked for, "" the second one.
    """
    predicted, ahead = (np.empty(len(targets), dtype=np.int64) for _ in range(2))
    for rows in blocks(*outputs.values.shape):
        own, column = outputs.values[rows], targets[rows, None]
        of_target = np.take_along_axis(own, column, axis=1)
        is_ahead = (own > of_target) | ((own == of_target) & (np.arange(own.shape[1]) < column))
        predicted[rows], ahead[rows] = decided_class(outputs[rows], decision), is_ahead.sum(axis=1)
    ahead[targets == outputs.values.shape[1] - 1] += outputs.others - 1  # which of the others is not known
    whole = outputs if outputs.others == 1 else None
    number = list(names).index(positive) if positive in names else 1
    return Answers(
        predicted, targets, log_loss(outputs, targets), predicted != targets, ahead, names, whole, positive=number
    )


def right_class(outputs: Outputs, targets: np.ndarray) -> np.ndarray:
    """What each of m models says of the right class, (n, m), divided by the row's largest.

    All that the log loss of a weighted mean depends on, but for a constant; the division keeps rows of which every
    model is sure and wrong above 0.
    """
    logs = np.stack([-log_loss(model, targets) for model in outputs], axis=1)
    return np.maximum(np.exp(logs - logs.max(axis=1, keepdims=True)), np.finfo(np.float64).tiny)


def minus_log(likelihoods: Any) -> Any:
    """The loss of likelihoods, an array or a tensor."""
    return -(np.log(likelihoods) if isinstance(likelihoods, np.ndarray) else likelihoods.log())


def half_logits(logits: np.ndarray) -> np.ndarray:
    """Each row moved so that its largest is 0: half precision is finest there, and no probability changes."""
    half = np.empty(logits.shape, dtype=np.float16)
    for rows in blocks(*logits.shape):
        moved = logits[rows] - logits[rows].max(axis=1, keepdims=True)
        half[rows] = np.maximum(moved, np.finfo(np.float16).min)
    return half


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="multiclass",
            outputs=class_names,
            flaw=flaw_of_class,
            stratum=lambda labels: labels,
            names_in=lambda label: (label,),
            encode=targets_of,
            decode=names_of,
            soft=smoothed_one_hot,
            probabilities=Outputs.softmax,
            activation="softmax",
            confidence=lambda outputs: outputs.softmax().max(axis=1),
            average=mean_probability,
            loss=log_loss,
            cost=is_wrong,
            calibrate=temperature,
            decide=decided_class,
            answers=class_answers,
            decisions={"likeliest": likeliest_class, "threshold": threshold, "cut points": cut_points},
            parts=right_class,
            mixture_loss=minus_log,
            half=half_logits,
            is_shortened=True,
            outputs_are="classes",
            is_one_of=True,
            metrics=(
                *("accuracy", "errors", "nll", "balanced_accuracy", "macro_f1", "top5", "quadratic_kappa"),
                *("f1", "mcc", "auc", "average_precision", "map@k"),
            ),
            losses=(
                *("cross-entropy", "focal", "ohem", "bce", "generalised-cross-entropy"),
                *("arcface", "cosface", "am-softmax", "lovasz-softmax"),
            ),
            forms=("label", "probability", "probabilities", "top"),
            blends=(
                *("mean", "geometric", "hand", "vote", "group-vote", "best"),
                *("softmax", "tempered", "greedy", "stack"),
            ),
            sections=("summary", "folds", "curves", "calibration", "confusions", "classes", "mistakes", "labels"),
        ),
        Task(
            name="multilabel",
            outputs=label_sets.set_names,
            flaw=label_sets.flaw_of_set,
            stratum=label_sets.rarest_name,
            names_in=label_sets.names_in,
            encode=label_sets.membership,
            decode=label_sets.sets_of,
            soft=label_sets.smoothed_membership,
            probabilities=label_sets.sigmoid,
            activation="sigmoid",
            confidence=label_sets.set_probability,
            average=label_sets.mean_odds,
            loss=label_sets.binary_log_loss,
            cost=label_sets.is_another_set,
            calibrate=label_sets.odds_temperature,
            decide=label_sets.chosen_labels,
            answers=label_sets.set_answers,
            decisions={"1/2": half, "one threshold": one_for_all, "one a label": one_a_label},
            parts=label_sets.right_sides,
            mixture_loss=minus_log,
            half=label_sets.half_odds,
            is_shortened=False,
            outputs_are="labels",
            is_one_of=False,
            metrics=(
                *("accuracy", "errors", "nll", "exact_match", "macro_f1"),
                *("sample_f1", "sample_f2", "map", "mean_auc"),
            ),
            losses=("bce", "sigmoid-focal", "asymmetric", "soft-fbeta", "lovasz-hinge"),
            forms=("labels", "label-columns", "label-probabilities"),
            blends=("mean", "hand", "best", "softmax", "greedy"),
            sections=("summary", "folds", "curves", "calibration", "label-table", "mistakes", "labels-of-sets"),
        ),
        Task(
            name="regression",
            outputs=numbers.column_names,
            flaw=numbers.flaw_of_numbers,
            stratum=numbers.quantile_of,
            names_in=lambda label: (),
            encode=numbers.numbers_of,
            decode=numbers.texts_of,
            soft=numbers.as_they_are,
            probabilities=lambda outputs: outputs.values,
            activation="",
            confidence=lambda outputs: np.ones(outputs.values.shape[:-1]),
            average=numbers.mean_number,
            loss=numbers.squared_error,
            cost=numbers.absolute_error,
            calibrate=numbers.no_temperature,
            decide=numbers.decided_numbers,
            answers=numbers.number_answers,
            decisions={},
            parts=numbers.errors_of_models,
            mixture_loss=lambda errors: errors**2,
            half=None,
            is_shortened=False,
            outputs_are="target columns",
            is_one_of=False,
            metrics=("rmse", "mse", "mae", "rmsle", "r2", "spearman"),
            losses=("mse", "mae", "huber", "bounded-bce"),
            forms=("numbers",),
            blends=("mean", "hand", "best", "softmax", "convex", "greedy"),
            sections=("summary", "folds", "curves", "residuals"),
            is_number=True,
            counted="mae",
            loss_metric="mse",
            bounds=numbers.seen_range,
        ),
    )
}
MULTICLASS = TASKS["multiclass"]


def posed(name: str, positive: str = "", columns: Sequence[str] = ()) -> Task:
    """A row of TASKS, with the class that is looked for and the names of the target columns where a user says them.

    Raises:
        UserError: the task looks for none.
    """
    task = TASKS[name]
    if positive and not task.is_one_of:
        raise UserError("--positive", f"has no meaning for the task {name}", "leave it out")
    if task.is_number and any(columns):
        return replace(task, outputs=numbers.named(columns))
    return replace(task, answers=partial(task.answers, positive=positive), positive=positive) if positive else task
