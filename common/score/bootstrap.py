"""Intervals and comparisons of metrics that are no mean over rows, by drawing the rows again or leaving some out.

Rows are drawn with replacement within each class, so that every draw has as many of it as the rows themselves; rows
that belong together (a group, copies of an image) are drawn together (Efron and Tibshirani 1993, An Introduction to the
Bootstrap, chapters 8 and 16). benchmarks/bootstrap.py measures what they are worth with few positives.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from common.score.answers import Answers
from common.score.metrics import METRICS, goodness
from common.score.significance import Comparison, are_errors, compare

DRAWS = (200, 500)  # at least and at most
PARTS = 20  # of the jackknife: so many more values of the metric
WORK = 1e8  # numbers to be looked at in all draws together, about a second


def interval_of(metric: str, answers: Answers, units: np.ndarray | None = None) -> tuple[float, float]:
    """95 % interval of a metric: its own, or the bootstrap's percentiles; ``units`` as in :func:`drawn_rows`.

    Its own counts every row for itself: where units have two rows and more in the mean, it is too short.
    """
    own = METRICS[metric].interval
    if own and (units is None or 2 * len(np.unique(units)) > len(units)):
        return own(answers)
    ready = prepared(metric, answers)
    drawn = np.array([METRICS[metric].of(ready.rows(rows)) for rows in drawn_rows(metric, ready, units)])
    drawn = drawn[~np.isnan(drawn)]
    return tuple(np.quantile(drawn, [0.025, 0.975]).tolist()) if len(drawn) else (np.nan, np.nan)


def compare_by(metric: str, a: Answers, b: Answers, units: np.ndarray) -> Comparison:
    """B against A by a metric, in its own unit, or in errors where every row costs 0 or 1.

    Where the metric is a mean over rows, by what they cost; else by the paired bootstrap: both are scored on the same
    drawn rows.
    """
    costs, of = METRICS[metric].costs or (lambda answers: answers.costs), METRICS[metric].of
    found = compare(costs(a), costs(b), units)
    if METRICS[metric].costs:
        in_errors = are_errors(costs(a)) and are_errors(costs(b))
        sums = ("better", "low", "high", "least_shown")
        return found if in_errors else replace(found, **{name: getattr(found, name) / found.n for name in sums})
    a, b = prepared(metric, a), prepared(metric, b)
    values = [(of(a.rows(rows)), of(b.rows(rows))) for rows in drawn_rows(metric, a, units)]
    drawn = np.array([goodness(metric, ours) - goodness(metric, theirs) for theirs, ours in values])
    drawn = drawn[~np.isnan(drawn)]
    better = goodness(metric, of(b)) - goodness(metric, of(a))
    if not len(drawn):
        return replace(found, better=better, p=1.0, low=np.nan, high=np.nan, least_shown=np.nan)
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    p = min(1.0, 2 * min((drawn <= 0).mean(), (drawn >= 0).mean()) + 1 / len(drawn))
    return replace(found, better=better, p=float(p), low=low, high=high, least_shown=(high - low) / 2)


def jackknifed(metric: str, answers: Answers, units: np.ndarray | None = None) -> np.ndarray:
    """Pseudo-values of a metric (parts), the lower the better, of two runs on the same rows about the same parts.

    Their mean is the metric and their standard error its own: each is what the metric loses without one of
    :data:`PARTS` parts of the rows (the grouped jackknife; Efron and Tibshirani 1993, chapter 11). ``units`` as in
    :func:`drawn_rows`: a part holds whole ones.
    """
    ready, of = prepared(metric, answers), METRICS[metric].of
    unit, stratum = strata(answers, units)
    count = min(PARTS, len(stratum))
    part = np.empty(len(stratum), dtype=np.int64)
    part[np.lexsort((np.random.default_rng(0).random(len(stratum)), stratum))] = np.arange(len(stratum)) % count
    without = np.array([of(ready.rows(np.flatnonzero(part[unit] != number))) for number in range(count)])
    values = count * of(ready) - (count - 1) * without
    return values if METRICS[metric].lower_is_better else -values


def prepared(metric: str, answers: Answers) -> Answers:
    """The answers with what the metric looks at, and without what would be copied for nothing."""
    return replace(answers.ranked(), outputs=None) if METRICS[metric].of_ranks else answers.without_outputs()


def drawn_rows(metric: str, answers: Answers, units: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Rows, int64 (about n), of one draw after another, as many draws as can be scored in about a second.

    ``units`` (n) are equal for rows that are drawn together, None: each by itself. A unit is drawn from those whose
    rarest class is the same; label sets and numbers have no classes to draw from.
    """
    n, width = len(answers.costs), 1 if answers.ranks is None else answers.ranks.shape[1]
    unit, stratum = strata(answers, units)
    in_order, lengths = np.argsort(unit, kind="stable"), np.bincount(unit)
    starts = lengths.cumsum() - lengths
    by_stratum, sizes = np.argsort(stratum, kind="stable"), np.bincount(stratum)
    firsts, sizes = np.repeat(sizes.cumsum() - sizes, sizes), np.repeat(sizes, sizes)
    random = np.random.default_rng(0)
    for _ in range(int(np.clip(WORK / (n * width), *DRAWS))):
        picked = by_stratum[firsts + (random.random(len(sizes)) * sizes).astype(np.int64)]
        counts = lengths[picked]
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        yield in_order[np.repeat(starts[picked], counts) + within]


def strata(answers: Answers, units: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The number of each row's unit, int64 (n), and of each unit's stratum, int64 (units): its rarest class."""
    n = len(answers.costs)
    unit = np.arange(n) if units is None else np.unique(units, return_inverse=True)[1]
    stratum = np.zeros(unit.max() + 1, dtype=np.int64)
    if answers.targets.ndim == 1 and answers.targets.dtype.kind == "i":
        rarity = np.bincount(answers.targets).argsort(kind="stable").argsort(kind="stable")
        stratum = np.full(len(stratum), len(rarity))
        np.minimum.at(stratum, unit, rarity[answers.targets])
    return unit, stratum
