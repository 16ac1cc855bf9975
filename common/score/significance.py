"""Is one run better than another? Both predict the same rows, so what counts is the rows that one alone has right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, binomtest

LEVEL = 0.05  # a difference with a smaller p is called shown
DRAWS = 10_000


@dataclass(frozen=True)
class Comparison:
    """B against A on the same ``n`` rows."""

    n: int
    gained: int  # rows that only B has right
    lost: int  # rows that only A has right
    p: float  # of a difference at least as large, either way, where neither is better
    low: float  # 95 % interval of ``better``
    high: float

    @property
    def better(self) -> int:
        """How many errors fewer B makes; below zero where it makes more."""
        return self.gained - self.lost

    @property
    def changed(self) -> int:
        """Rows that one of the two alone has right."""
        return self.gained + self.lost


def compare(right_a: np.ndarray, right_b: np.ndarray, units: np.ndarray) -> Comparison:
    """Exact McNemar test and paired bootstrap interval.

    Where neither run is better, each row that one alone has right falls to either side like a fair coin (McNemar 1947,
    Psychometrika 12; exact: the binomial's two tails). Rows of one unit (copies of an image, a group) fall together:
    a unit counts once, for the side it helps more, and the bootstrap draws units.

    Args:
        right_a, right_b: whether each row is predicted right, bool (n).
        units: equal values for rows that belong together, (n).
    """
    difference = right_b.astype(int) - right_a.astype(int)
    numbers = np.unique(units, return_inverse=True)[1]
    per_unit = np.bincount(numbers, weights=difference).astype(int)
    wins, losses = int((per_unit > 0).sum()), int((per_unit < 0).sum())
    # Drawing units with replacement is drawing how often each of their few values occurs.
    values, occurrences = np.unique(per_unit, return_counts=True)
    random = np.random.default_rng(0)
    drawn = random.multinomial(len(per_unit), occurrences / len(per_unit), size=DRAWS) @ values
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = p_value(wins, losses)
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(len(difference), gained, lost, p, float(low), float(high))


def p_value(wins: int, losses: int) -> float:
    """Two-sided p of a fair coin that falls ``wins`` and ``losses`` times to its two sides."""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def least_shown(changed: int) -> int:
    """The smallest difference in errors that is shown where ``changed`` rows change sides; above ``changed``: none."""
    wins = int(binom.isf(LEVEL / 2, changed, 0.5)) + 1
    return 2 * wins - changed


def noise_floor(twins: Sequence[Comparison]) -> int:
    """How many errors a seed alone may make, from comparisons of runs that differ in nothing else; 0 without any.

    What so many changed rows may make by chance, or what the seeds did make, whichever is more.
    """
    return max((max(abs(each.better), least_shown(each.changed)) for each in twins), default=0)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, raised so that even one false "shown" among them all is rare.

    S. Holm 1979, Scandinavian Journal of Statistics 6.
    """
    raised, worst = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(np.argsort(p_values, kind="stable")):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[position]))
        raised[position] = worst
    return raised


def verdict(better: str, worse: str, found: Comparison, p_of_all: float, tests: int, floor: int = 0) -> str:
    """One plain sentence: "B is 23 errors of 42,000 better than A, p = 0.08: not shown".

    ``p_of_all`` is Holm's p over ``tests`` tests; it decides. ``floor`` is what a seed alone may make, 0 if not known.
    """
    size = abs(found.better)
    says = f"{better} is {size:,} error{'s' * (size != 1)} of {found.n:,} better than {worse}"
    if not size:
        says = f"{better} and {worse} make equally many errors of {found.n:,}"
    says += f", {says_p(found.p)}"
    if tests > 1 and says_p(p_of_all) != says_p(found.p):
        says += f" ({says_p(p_of_all)} as one of {tests} pairs)"
    if p_of_all >= LEVEL:
        return f"{says}: not shown"
    return f"{says}: shown" + (f" of these models, but a seed alone makes up to {floor:,}" if size <= floor else "")


def says_p(p: float) -> str:
    """A p value with two digits, or as many as show on which side of the level it lies."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.2g}" if f"{p:.2g}" != f"{LEVEL:.2g}" else f"p = {p:.4f}"
