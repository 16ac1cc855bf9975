"""Nested scores: every row is predicted by a blend, a temperature and a choice between blends that have not seen it.

The rows of fold k are out of fold for their nets; they must be out of fold for whatever is learned on top as well. So
a blend is fitted on the other folds' rows, and where it is chosen among several, the choice for fold k rests on
predictions that neither row k nor the predicted row's own fold took part in.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.score.blending import Method, OofLogits
from common.score.calibration import cross_fitted, temperature
from common.score.logits import errors, log_mean_probability, losses, paired_difference
from common.score.shortlist import on_columns


def nested(method: Method, data: OofLogits) -> np.ndarray:
    """Log probabilities (rows, columns) where each fold's rows come from a blend fitted on the other folds' rows."""
    blended = np.empty(data.logits.shape[1:], dtype=np.float32)
    for k in np.unique(data.fold):
        held_out = data.fold == k
        blended[held_out] = method(data.rows(~held_out))(data.logits[:, held_out])
    return blended


@dataclass(frozen=True)
class Tried:
    """What a method predicts without having seen the rows, and what can be known of it without a whole fold."""

    logits: np.ndarray  # (rows, columns): fold k's rows by a blend of the other folds' rows
    tempered: np.ndarray  # (rows, columns): the same, divided by a temperature of the other folds' rows
    temperature: float  # of all nested predictions: for rows yet to come
    losses_without: list[np.ndarray]  # per fold k: log loss of each other row, tempered, all fitted without fold k
    errors_without: list[int]  # per fold k: errors among those rows
    losses: np.ndarray  # (rows): log loss of every row, tempered


def try_method(method: Method, data: OofLogits) -> Tried:
    """Fit ``method`` without each fold and without each pair of folds, and predict what was left out.

    With two folds nothing is left without both: the choice between methods then rests on rows that they were fitted
    on, and only the score stays honest.
    """
    fold, targets, shape = data.fold, data.targets, data.logits.shape[1:]
    blends = {}
    kept, tempered = np.empty(shape, np.float32), np.empty(shape, np.float32)
    losses_without, errors_without = [], []
    for outer in np.unique(fold):
        predicted = np.empty(shape, np.float32)
        for inner in np.unique(fold):
            fitted_on = (fold != outer) & (fold != inner)
            if not fitted_on.any():
                fitted_on = fold != outer
            key = fitted_on.tobytes()
            if key not in blends:  # leaving out folds 1 and 2 is leaving out 2 and 1
                blends[key] = method(data.rows(fitted_on))
            predicted[fold == inner] = blends[key](data.logits[:, fold == inner])
        held_out, rest = fold == outer, fold != outer
        scale = temperature(predicted[rest], targets[rest], data.tail_classes)
        kept[held_out], tempered[held_out] = predicted[held_out], predicted[held_out] / scale
        losses_without.append(losses(predicted[rest] / scale, targets[rest], data.tail_classes))
        errors_without.append(errors(predicted[rest], targets[rest]))
    scale = temperature(kept, targets, data.tail_classes)
    return Tried(kept, tempered, scale, losses_without, errors_without, losses(tempered, targets, data.tail_classes))


def choose(row_losses: Mapping[str, np.ndarray], wrong: Mapping[str, int]) -> str:
    """The mean, unless another method beats it.

    Among the methods with no more errors than the mean the one with the lowest log loss wins, if it is lower than the
    mean's by more than one standard error of the paired difference. Learned weights differ from equal ones by a few
    images of thousands; whoever takes the best of all methods each time takes the luckiest.

    Args:
        row_losses: log loss of each row (rows), after a temperature, by name of the method.
        wrong: errors among these rows, by name of the method.
    """
    able = [name for name in row_losses if wrong[name] <= wrong["mean"]]
    leader = min(able, key=lambda name: row_losses[name].mean())
    lower, standard_error = paired_difference(row_losses["mean"], row_losses[leader])
    return leader if lower > standard_error else "mean"


@dataclass(frozen=True)
class Choice:
    """What :func:`choose` took: for each fold, and in the end."""

    name: str  # on all nested predictions: what is written
    in_fold: list[str]  # per fold, on what the other folds say
    logits: np.ndarray  # (rows, columns): each fold's rows by the method chosen without it
    tempered: np.ndarray  # (rows, columns)

    @property
    def summary(self) -> str:
        """``softmax 3, mean 2``: how many folds chose what."""
        return ", ".join(f"{name} {count}" for name, count in Counter(self.in_fold).most_common())


def choose_nested(tried: Mapping[str, Tried], data: OofLogits) -> Choice:
    """Let each fold's method be chosen by the other folds: the choice is learned too, and this scores it."""
    logits, tempered = (np.empty_like(tried["mean"].logits) for _ in range(2))
    in_fold = []
    for position, k in enumerate(np.unique(data.fold)):
        name = choose(
            {name: found.losses_without[position] for name, found in tried.items()},
            {name: found.errors_without[position] for name, found in tried.items()},
        )
        held_out = data.fold == k
        logits[held_out], tempered[held_out] = tried[name].logits[held_out], tried[name].tempered[held_out]
        in_fold.append(name)
    final = choose(
        {name: found.losses for name, found in tried.items()},
        {name: errors(found.logits, data.targets) for name, found in tried.items()},
    )
    return Choice(final, in_fold, logits, tempered)


# ---- what each run is worth


def leave_one_out(method: Method, data: OofLogits) -> list[dict[str, float]]:
    """What the blend loses without each of the runs: nested log loss, its standard error, and errors."""

    def scored(runs: list[int]) -> tuple[np.ndarray, int]:
        blended = nested(method, data.only(runs))
        tempered = cross_fitted(blended, data.targets, data.fold, data.tail_classes)
        return losses(tempered, data.targets, data.tail_classes), errors(blended, data.targets)

    everyone = list(range(len(data.logits)))
    whole, whole_errors = scored(everyone)
    found = []
    for run in everyone:
        without, without_errors = scored([other for other in everyone if other != run])
        cost, standard_error = paired_difference(without, whole)
        found.append({"difference": cost, "standard_error": standard_error, "errors": without_errors - whole_errors})
    return found


def overlap(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(runs, runs): of the rows that either of two gets wrong, the share that both do (Jaccard); 1 on the diagonal."""
    wrong = logits.argmax(axis=-1) != targets
    both = np.array([[(one & other).sum() for other in wrong] for one in wrong], dtype=np.float64)
    counts = wrong.sum(axis=1)
    either = counts[:, None] + counts - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def smallest_set(data: OofLogits, blend_losses: np.ndarray) -> list[int]:
    """The fewest runs whose plain mean comes within one paired standard error of a blend; empty where none does.

    Starts from the best run and adds the one that lowers the mean's log loss most. ``blend_losses`` (rows) are those
    of the blend of all runs.
    """
    kept: list[int] = []
    while len(kept) < len(data.logits) - 1:
        candidates = {}
        for run in set(range(len(data.logits))) - set(kept):
            blended = log_mean_probability(data.logits[[*kept, run]], others=data.tail_classes)
            tempered = cross_fitted(blended, data.targets, data.fold, data.tail_classes)
            candidates[run] = losses(tempered, data.targets, data.tail_classes)
        kept.append(min(candidates, key=lambda run: candidates[run].mean()))
        higher, standard_error = paired_difference(candidates[kept[-1]], blend_losses)
        if higher <= standard_error + 1e-9:  # the blend may be this very run
            return kept
    return []


def noise_members(logits: np.ndarray, count: int, columns: np.ndarray, classes: int) -> np.ndarray:
    """``count`` runs that know nothing: the rows of real ones in shuffled order, (count, rows, columns).

    In short form (``columns`` not empty) a shuffled row is about classes that are mostly not those of its new place.
    """
    random, found = np.random.default_rng(0), []
    for number in range(count):
        order = random.permutation(logits.shape[1])
        shuffled = logits[number % len(logits)][order]
        found.append(on_columns(shuffled, columns[order], classes, columns) if columns.shape[1] else shuffled)
    return np.stack(found)
