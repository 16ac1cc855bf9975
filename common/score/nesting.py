"""Nested scores: every row is predicted by a blend, a temperature and a choice between blends that have not seen it.

The rows of fold k are out of fold for their nets; they must be out of fold for whatever is learned on top as well. So
a blend is fitted on the other folds' rows, and where it is chosen among several, the choice for fold k rests on
predictions that neither row k nor the predicted row's own fold took part in.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.score.blending import Method, OofOutputs
from common.score.bootstrap import jackknifed
from common.score.calibration import cross_fitted
from common.score.logits import Outputs, paired_difference
from common.score.shortlist import on_columns


def nested(method: Method, data: OofOutputs) -> Outputs:
    """What (rows, columns) is said of each fold's rows by a blend fitted on the other folds' rows."""
    blended = np.empty(data.outputs.values.shape[1:], dtype=np.float32)
    for k in np.unique(data.fold):
        held_out = data.fold == k
        blended[held_out] = method(data.rows(~held_out))(data.outputs[:, held_out]).values
    return replace(data.outputs, values=blended)


@dataclass(frozen=True)
class Tried:
    """What a method predicts without having seen the rows, and what can be known of it without a whole fold."""

    outputs: Outputs  # (rows, columns): fold k's rows by a blend of the other folds' rows
    tempered: Outputs  # (rows, columns): the same, divided by a temperature of the other folds' rows
    temperature: float  # of all nested predictions: for rows yet to come
    evidence_without: list[np.ndarray]  # per fold k: :func:`evidence` of the other rows, all fitted without fold k
    costs_without: list[float]  # per fold k: what those rows cost by the metric
    losses: np.ndarray  # (rows): loss of every row, tempered


def try_method(method: Method, data: OofOutputs) -> Tried:
    """Fit ``method`` without each fold and without each pair of folds, and predict what was left out.

    With two folds nothing is left without both: the choice between methods then rests on rows that they were fitted
    on, and only the score stays honest.
    """
    fold, targets, task, shape = data.fold, data.targets, data.task, data.outputs.values.shape[1:]
    blends = {}
    kept, tempered = (replace(data.outputs, values=np.empty(shape, np.float32)) for _ in range(2))
    evidence_without, costs_without = [], []
    for outer in np.unique(fold):
        predicted = replace(data.outputs, values=np.empty(shape, np.float32))
        for inner in np.unique(fold):
            fitted_on = (fold != outer) & (fold != inner)
            if not fitted_on.any():
                fitted_on = fold != outer
            key = fitted_on.tobytes()
            if key not in blends:  # leaving out folds 1 and 2 is leaving out 2 and 1
                blends[key] = method(data.rows(fitted_on))
            predicted.values[fold == inner] = blends[key](data.outputs[:, fold == inner]).values
        held_out, rest = fold == outer, fold != outer
        scale = task.calibrate(predicted[rest], targets[rest])
        kept.values[held_out] = predicted.values[held_out]
        tempered.values[held_out] = predicted.values[held_out] / scale
        evidence_without.append(evidence(data, predicted[rest], predicted[rest] / scale, rest))
        costs_without.append(data.cost(predicted[rest], targets[rest]))
    scale = task.calibrate(kept, targets)
    return Tried(kept, tempered, scale, evidence_without, costs_without, task.loss(tempered, targets))


def evidence(
    data: OofOutputs, outputs: Outputs, tempered: Outputs, rows: np.ndarray | slice = slice(None)
) -> np.ndarray:
    """What two blends are compared by, the lower the better: each row's loss after a temperature, (m), or, where the
    metric is not the task's own, its values (parts) by the jackknife.

    ``outputs`` and ``tempered`` (m, columns) are of those of the ``rows`` of ``data``.
    """
    targets = data.targets[rows]
    if data.is_judged_by_loss:
        return data.task.loss(tempered, targets)
    units = data.units[rows] if len(data.units) else None
    return jackknifed(data.judged_by, data.task.answers(outputs, targets, data.names), units)


def choose(
    compared: Mapping[str, np.ndarray], costs: Mapping[str, float], units: np.ndarray | Sequence[int] = ()
) -> str:
    """The mean, unless another method beats it.

    A method beats the mean that costs no more (by the metric) and whose :func:`evidence` is lower by more than one
    standard error of the paired difference. Of several, the metric says which is the best, and at a tie the evidence.
    Learned weights differ from equal ones by a few images of thousands; whoever takes the best of all methods each time
    takes the luckiest.

    Args:
        compared: the :func:`evidence`, by name of the method.
        costs: what these rows cost by the metric, by name of the method.
        units: equal for losses of rows that are not independent, (rows); empty: all are.
    """
    beating = ["mean"]
    for name, found in compared.items():
        lower, standard_error = paired_difference(compared["mean"], found, units)
        if costs[name] <= costs["mean"] and lower > standard_error:
            beating.append(name)
    return min(beating, key=lambda name: (costs[name], compared[name].mean()))


@dataclass(frozen=True)
class Choice:
    """What :func:`choose` took: for each fold, and in the end."""

    name: str  # on all nested predictions: what is written
    in_fold: list[str]  # per fold, on what the other folds say
    outputs: Outputs  # (rows, columns): each fold's rows by the method chosen without it
    tempered: Outputs  # (rows, columns)
    leader: str = ""  # what all rows together choose

    @property
    def summary(self) -> str:
        """``softmax 3, mean 2``: how many folds chose what, and why another one is taken, if it is."""
        counts = Counter(self.in_fold).most_common()
        says = ", ".join(f"{name} {count}" for name, count in counts)
        if self.leader not in ("", self.name):
            return f"{says}; on all rows {self.leader}, which fewer than half of the folds chose"
        if counts and self.name != counts[0][0]:
            return f"{says}; on all rows {self.name} is not beaten by more than one standard error"
        return says


def choose_nested(tried: Mapping[str, Tried], data: OofOutputs) -> Choice:
    """Let each fold's method be chosen by the other folds: the choice is learned too, and this scores it."""
    like = tried["mean"].outputs
    outputs, tempered = (replace(like, values=np.empty_like(like.values)) for _ in range(2))
    in_fold, units = [], data.units if data.is_judged_by_loss else np.empty(0)
    for position, k in enumerate(np.unique(data.fold)):
        name = choose(
            {name: found.evidence_without[position] for name, found in tried.items()},
            {name: found.costs_without[position] for name, found in tried.items()},
            units[data.fold != k] if len(units) else units,
        )
        held_out = data.fold == k
        outputs.values[held_out] = tried[name].outputs.values[held_out]
        tempered.values[held_out] = tried[name].tempered.values[held_out]
        in_fold.append(name)
    final = choose(
        {name: evidence(data, found.outputs, found.tempered) for name, found in tried.items()},
        {name: data.cost(found.outputs, data.targets) for name, found in tried.items()},
        units,
    )
    # Chosen by few of the folds, it leads by luck: what was scored is, in most folds, something else.
    name = final if 2 * in_fold.count(final) >= len(in_fold) else "mean"
    return Choice(name, in_fold, outputs, tempered, final)


# ---- what each run is worth


def leave_one_out(method: Method, data: OofOutputs) -> list[dict[str, float]]:
    """What the blend loses without each of the runs: nested loss, its standard error, and errors (total cost)."""

    def scored(runs: list[int]) -> tuple[np.ndarray, float]:
        blended = nested(method, data.only(runs))
        tempered = cross_fitted(blended, data.targets, data.fold, data.task)
        return data.task.loss(tempered, data.targets), data.task.count(data.task.cost(blended, data.targets)).item()

    everyone = list(range(len(data.outputs)))
    whole, whole_cost = scored(everyone)
    found = []
    for run in everyone:
        without, without_cost = scored([other for other in everyone if other != run])
        difference, standard_error = paired_difference(without, whole, data.units)
        found.append({"difference": difference, "standard_error": standard_error, "errors": without_cost - whole_cost})
    return found


def overlap(costs: np.ndarray) -> np.ndarray:
    """(runs, runs): how much of what either of two costs both cost (Jaccard): of the rows that either gets wrong, the
    share that both do; 1 on the diagonal. ``costs`` are (runs, rows)."""
    both = np.array([[np.minimum(one, other).sum() for other in costs] for one in costs], dtype=np.float64)
    of_each = costs.sum(axis=1)
    either = of_each[:, None] + of_each - both
    return np.where(either > 0, both / np.where(either > 0, either, 1), 1.0)


def smallest_set(data: OofOutputs, blend: Outputs) -> list[int]:
    """The fewest runs whose plain mean comes within one paired standard error of a blend; empty where none does.

    Starts from the best run and adds the one that makes the mean best: by the metric where it is another one than the
    task's own, and else by the loss. ``blend`` is what the blend of all runs says (rows, columns), after a temperature.
    With such a metric it must come within one standard error by that as well.
    """
    blend_losses, of_blend = data.task.loss(blend, data.targets), evidence(data, blend, blend)
    kept: list[int] = []
    while len(kept) < len(data.outputs) - 1:
        candidates, means = {}, {}
        for run in set(range(len(data.outputs))) - set(kept):
            blended = data.task.average(data.outputs[[*kept, run]])
            tempered = cross_fitted(blended, data.targets, data.fold, data.task)
            candidates[run], means[run] = data.task.loss(tempered, data.targets), tempered
        costs = {run: 0 if data.is_judged_by_loss else data.cost(means[run], data.targets) for run in candidates}
        kept.append(min(candidates, key=lambda run: (costs[run], candidates[run].mean())))
        mean = means[kept[-1]]
        pairs = [(candidates[kept[-1]], blend_losses, data.units)]
        if not data.is_judged_by_loss:
            pairs.append((evidence(data, mean, mean), of_blend, ()))
        worse = [paired_difference(ours, theirs, units) for ours, theirs, units in pairs]
        if all(higher <= error + 1e-9 for higher, error in worse):  # the blend may be this very run
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
