"""Least squares with a level per group, and quotients of its coefficients with their intervals."""

import math
from dataclasses import dataclass

import numpy as np

BOUND = 10.0  # no slope and no doubling beyond this is believed, so an interval that knows nothing ends here


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval's length."""
        return (self.high - self.low) / 2

    @property
    def doublings(self) -> float:
        """Half the interval's length in doublings, of a number above 0."""
        return math.log2(self.high / self.low) / 2

    def power(self, shift: float) -> "Estimate":
        """2 ** (shift + number) of each of the three."""
        return Estimate(*(2 ** (shift + number) for number in (self.value, self.low, self.high)))


class Regression:
    """Least squares of ``y`` (n) on ``columns`` (n, p) with a free level per group; quotients of coefficients.

    ``groups`` (n) numbers the groups from 0. The residuals, divided by sqrt(1 - leverage) since a fit shrinks them,
    are drawn again ``draws`` times.
    """

    def __init__(self, columns: np.ndarray, groups: np.ndarray, y: np.ndarray, draws: int, seed: int):
        member = np.equal.outer(groups, np.arange(groups.max() + 1)).astype(float)
        sizes = member.sum(0)
        x = columns - member @ (member.T @ columns / sizes[:, None])
        self.covariance = np.linalg.inv(x.T @ x)  # of the coefficients, in units of noise^2
        self.coefficients = self.covariance @ (x.T @ y)
        self.fitted = columns @ self.coefficients  # (n), without the levels
        residuals = y - member @ (member.T @ y / sizes) - x @ self.coefficients
        self.squares = float(residuals @ residuals)
        self.freedom = len(y) - len(sizes) - columns.shape[1]
        self.noise = math.sqrt(self.squares / max(self.freedom, 1))

        leverage = 1 / sizes[groups] + np.einsum("ij,jk,ik->i", x, self.covariance, x)
        spread = residuals / np.sqrt(np.maximum(1 - leverage, 1e-9))
        drawn = np.random.default_rng(seed).choice(spread - spread.mean(), size=(draws, len(y)))
        products = drawn @ x
        self._drawn_errors = products @ self.covariance
        squares = (drawn**2).sum(1) - (drawn @ member) ** 2 @ (1 / sizes) - (products * self._drawn_errors).sum(1)
        self._drawn_noise = np.sqrt(np.maximum(squares, 1e-300) / max(self.freedom, 1))

    def quotient(self, linear: np.ndarray, square: np.ndarray) -> Estimate:
        """-(linear . coefficients) / (2 square . coefficients): where a parabola has its lowest point.

        ``linear`` and ``square`` (p) pick the coefficients of its linear and its squared term.
        """
        curvature, slope = square @ self.coefficients, linear @ self.coefficients
        if curvature <= 0:
            return Estimate(0.0, -BOUND, BOUND)
        value = float(np.clip(-slope / (2 * curvature), -BOUND, BOUND))
        limit = (np.quantile(self._drawn_tests(linear + 2 * value * square), 0.95) * self.noise) ** 2
        # The test accepts r where ((linear + 2 r square) . coefficients)^2 <= limit * variance: a quadratic in r.
        a = 4 * (curvature**2 - limit * square @ self.covariance @ square)
        b = 4 * (slope * curvature - limit * linear @ self.covariance @ square)
        c = slope**2 - limit * linear @ self.covariance @ linear
        if a <= 0:
            return Estimate(value, -BOUND, BOUND)
        root = math.sqrt(max(b**2 - 4 * a * c, 0.0))
        return Estimate(value, max((-b - root) / (2 * a), -BOUND), min((-b + root) / (2 * a), BOUND))

    def p_value(self, value: float, linear: np.ndarray, square: np.ndarray) -> float:
        """Two-sided bootstrap p of "the quotient is ``value``"."""
        seen = abs((linear + 2 * value * square) @ self.coefficients) / self.error(linear + 2 * value * square)
        drawn = self._drawn_tests(linear + 2 * self.quotient(linear, square).value * square)
        return (1 + int((drawn >= seen).sum())) / (1 + len(drawn))

    def error(self, weights: np.ndarray) -> float:
        """The standard error of the coefficients' sum with ``weights`` (p)."""
        return self.noise * math.sqrt(weights @ self.covariance @ weights)

    def _drawn_tests(self, weights: np.ndarray) -> np.ndarray:
        scale = math.sqrt(weights @ self.covariance @ weights)
        return np.abs(self._drawn_errors @ weights) / (self._drawn_noise * scale)


def within(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``values`` (n, p) less the mean of their group."""
    member = np.equal.outer(groups, np.arange(groups.max() + 1)) / np.sqrt(np.bincount(groups))
    return values - member @ (member.T @ values)


def squares_left(columns: np.ndarray, groups: np.ndarray, y: np.ndarray) -> float:
    """The sum of squares that the columns (n, p) and a level per group leave of ``y``."""
    x, y = within(groups, columns), within(groups, y[:, None])[:, 0]
    return float(np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum())


def f_test(few: np.ndarray, many: np.ndarray, groups: np.ndarray, y: np.ndarray) -> float:
    """p of "the further columns of ``many`` (n, p) are of no use"."""
    more, freedom = many.shape[1] - few.shape[1], len(y) - groups.max() - 1 - many.shape[1]
    return p_of_f(squares_left(few, groups, y), squares_left(many, groups, y), more, freedom)


def p_of_f(squares: float, less: float, more: int, freedom: int) -> float:
    """p of the F test that ``more`` further parameters, which leave ``freedom``, took squares down by chance."""
    from scipy.special import fdtrc  # `sweep.py --help` does not wait for it

    if freedom < 1 or not less > 0:
        return 1.0
    return float(fdtrc(more, freedom, max(squares - less, 0.0) / more / (less / freedom)))


def p_of_one_noise(squares: np.ndarray, freedoms: np.ndarray) -> float:
    """p of "all fits have one noise", of the squares that each leaves (k) and its degrees of freedom (Bartlett 1937).

    1 for a single fit, and where one leaves nothing by which its noise could be told.
    """
    from scipy.special import chdtrc  # as above

    if len(freedoms) < 2 or freedoms.min() < 1 or not squares.min() > 0:
        return 1.0
    whole, count = freedoms.sum(), len(freedoms)
    unlike = whole * math.log(squares.sum() / whole) - freedoms @ np.log(squares / freedoms)
    correction = 1 + ((1 / freedoms).sum() - 1 / whole) / (3 * (count - 1))
    return float(chdtrc(count - 1, unlike / correction))
