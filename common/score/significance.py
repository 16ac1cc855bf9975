"""Is one run better than another? Both predict the same rows, so what counts is the rows that one alone has right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05  # a difference with a smaller p is called shown
DRAWS = 10_000
FEW_VALUES = 100


@dataclass(frozen=True)
class Comparison:
    """B against A on the same ``n`` rows; costs of 0 and 1 are errors."""

    n: int
    gained: int  # rows that cost less with B
    lost: int  # rows that cost less with A
    better: float  # how much less B costs, how many errors fewer it makes; below zero: more
    p: float  # of a difference at least as large, either way, where neither is better
    low: float  # 95 % interval of ``better``
    high: float
    least_shown: float  # the smallest difference that would be shown

    @property
    def changed(self) -> int:
        """Rows that cost more with one of the two."""
        return self.gained + self.lost


def compare(cost_a: np.ndarray, cost_b: np.ndarray, units: np.ndarray) -> Comparison:
    """A paired test and the paired bootstrap's interval.

    Where every cost is 0 or 1 the test is exact McNemar: if neither run is better, each row that one alone has right
    falls to either side like a fair coin (McNemar 1947, Psychometrika 12; exact: the binomial's two tails). Else p is
    the bootstrap's (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 15). Rows of one unit (copies
    of an image, a group) fall together: a unit counts once, for the side it helps more, and the bootstrap draws units.

    Args:
        cost_a, cost_b: what each row costs, bool or float (n); with bool: whether it is predicted wrong.
        units: equal values for rows that belong together, (n).
    """
    difference = cost_a.astype(float) - cost_b.astype(float)
    numbers = np.unique(units, return_inverse=True)[1]
    per_unit = np.bincount(numbers, weights=difference)
    wins, losses = int((per_unit > 0).sum()), int((per_unit < 0).sum())
    drawn = _resampled_sums(per_unit)
    low, high = (float(bound) for bound in np.quantile(drawn, [0.025, 0.975]))
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    if are_errors(cost_a) and are_errors(cost_b):
        test = (gained - lost, p_value(wins, losses), low, high, least_shown(gained + lost))
    else:
        against = min((drawn <= 0).mean(), (drawn >= 0).mean())
        test = (float(difference.sum()), min(1.0, 2 * float(against) + 1 / DRAWS), low, high, (high - low) / 2)
    return Comparison(len(difference), gained, lost, *test)


def are_errors(costs: np.ndarray) -> bool:
    """Whether every cost is 0 or 1."""
    return bool(((costs == 0) | (costs == 1)).all())


def _resampled_sums(per_unit: np.ndarray) -> np.ndarray:
    """Sums of units drawn with replacement, (DRAWS)."""
    random = np.random.default_rng(0)
    # Drawing units is drawing how often each of their values occurs, which is quick where they are few.
    values, occurrences = np.unique(per_unit, return_counts=True)
    if len(values) <= FEW_VALUES:
        return random.multinomial(len(per_unit), occurrences / len(per_unit), size=DRAWS) @ values
    return np.array([per_unit[random.integers(len(per_unit), size=len(per_unit))].sum() for _ in range(DRAWS)])


def p_value(wins: int, losses: int) -> float:
    """Two-sided p of a fair coin that falls ``wins`` and ``losses`` times to its two sides."""
    from scipy.stats import binomtest  # most of a second that `report.py --help` does not pay

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def least_shown(changed: int) -> int:
    """The smallest difference in errors that is shown where ``changed`` rows change sides; above ``changed``: none."""
    from scipy.stats import binom

    wins = int(binom.isf(LEVEL / 2, changed, 0.5)) + 1
    return 2 * wins - changed


def noise_floor(twins: Sequence[Comparison]) -> float:
    """How many errors a seed alone may make, from comparisons of runs that differ in nothing else; 0 without any.

    What so many changed rows may make by chance, or what the seeds did make, whichever is more.
    """
    return max((max(abs(each.better), each.least_shown) for each in twins), default=0)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, raised so that even one false "shown" among them all is rare.

    S. Holm 1979, Scandinavian Journal of Statistics 6.
    """
    raised, worst = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(np.argsort(p_values, kind="stable")):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[position]))
        raised[position] = worst
    return raised


def verdict(
    better: str, worse: str, found: Comparison, p_of_all: float, tests: int, floor: float = 0, metric: str = ""
) -> str:
    """One plain sentence: "B is 23 errors of 42,000 better than A, p = 0.08: not shown".

    ``p_of_all`` is Holm's p over ``tests`` tests; it decides. ``floor`` is what a seed alone may make, 0 if not known.
    ``metric`` is what they are compared by, "" for errors.
    """
    size = abs(found.better)
    says = f"{better} is {size:,} error{'s' * (size != 1)} of {found.n:,} better than {worse}"
    if metric:
        says = f"{better} is {size:.4f} better than {worse} by {metric}"
    if not size:
        same = f"have the same {metric}" if metric else f"make equally many errors of {found.n:,}"
        says = f"{better} and {worse} {same}"
    says += f", {says_p(found.p)}"
    if tests > 1 and says_p(p_of_all) != says_p(found.p):
        says += f" ({says_p(p_of_all)} as one of {tests} pairs)"
    most = f"{floor:.4f}" if metric else f"{floor:,}"
    if p_of_all >= LEVEL:
        return f"{says}: not shown"
    return f"{says}: shown" + (f" of these models, but a seed alone makes up to {most}" if size <= floor else "")


def says_p(p: float) -> str:
    """A p value with two digits, or as many as show on which side of the level it lies."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.2g}" if f"{p:.2g}" != f"{LEVEL:.2g}" else f"p = {p:.4f}"
