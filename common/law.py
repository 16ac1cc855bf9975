"""The law of learning rate and batch size: what the runs of a sweep say, and how sure that is.

Every batch size B has one parabola, all of the same curvature, with its lowest point at the optimum m_B:

    log loss = level_B + curvature * (log2 lr - m_B)^2 + noise

The law joins the optima. Along a line, m_B = a + slope * log2 B, the model is linear least squares: the
slope, each optimum and each prediction is a quotient of two coefficients, -g / (2 * curvature). Fieller's
theorem turns the test "is the quotient r?" into an interval, unbounded where the curvature itself may be
zero; the test's distribution comes from a bootstrap of the runs' residuals instead of a t table.

Slopes: 0 no relation; 0.5 square root (Krizhevsky 2014, Hoffer 2017; Adam: Malladi 2022); 1 linear
(Goyal 2017). Surge: with Adam the optimum rises, peaks where B is the gradient's noise scale, and falls
(Li 2024, arXiv 2405.14578).
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from common.errors import UserError

MIN_STEPS = 60  # a run of fewer optimiser steps is hardly more than its warm-up
WORST = 2.5  # a loss above this many times its batch size's best lies outside any parabola
LAWS = {"no relation": 0.0, "square root": 0.5, "linear": 1.0}
HALF_WIDTH = 0.24  # an interval of this half-width cannot hold two of the laws
CLEAR = 2.0  # a smaller difference of AIC is no evidence (Burnham & Anderson 2002)
BOUND = 10.0  # an interval that knows nothing reaches this far to both sides: infinity is no JSON
DRAWS = 2000


def usable(cells: pd.DataFrame) -> np.ndarray:
    """Which rows of a sweep's table are fitted (bool, n).

    Left out, in this order: diverged and failed runs, runs of under 60 steps, runs with more than 2.5 times
    the loss of their batch size's best, batch sizes with fewer than three learning rates left.
    """
    kept = (cells.status == "done") & (cells.steps >= MIN_STEPS)
    best = cells.nll.where(kept).groupby(cells.batch_size).transform("min")
    kept &= cells.nll <= WORST * best
    return (kept & (cells.lr.where(kept).groupby(cells.batch_size).transform("nunique") >= 3)).to_numpy()


@dataclass(frozen=True)
class Quotient:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


class Regression:
    """Least squares of ``y`` with one free level per group, and quotients of its coefficients.

    ``columns`` (n, p) holds the squared term first; ``groups`` (n) numbers the groups from 0. The residuals,
    divided by sqrt(1 - leverage) to undo the fit's shrinking, are drawn again ``draws`` times.
    """

    def __init__(self, columns: np.ndarray, groups: np.ndarray, y: np.ndarray, draws: int, seed: int):
        member = np.equal.outer(groups, np.arange(groups.max() + 1)).astype(float)
        sizes = member.sum(0)
        x = columns - member @ ((member.T @ columns) / sizes[:, None])
        self.freedom = len(y) - len(sizes) - columns.shape[1]
        self.scale = np.linalg.inv(x.T @ x)
        self.theta = self.scale @ (x.T @ y)
        self.residuals = residuals = y - member @ (member.T @ y / sizes) - x @ self.theta
        self.squares = float(residuals @ residuals)
        self.noise = math.sqrt(self.squares / self.freedom)
        leverage = 1 / sizes[groups] + np.einsum("ij,jk,ik->i", x, self.scale, x)
        spread = residuals / np.sqrt(np.maximum(1 - leverage, 1e-9))
        self.drawn = drawn = np.random.default_rng(seed).choice(spread - spread.mean(), size=(draws, len(y)))
        moved = drawn @ x
        self.drawn_theta = moved @ self.scale  # minus theta
        explained = np.einsum("ij,ij->i", moved, self.drawn_theta) + (drawn @ member) ** 2 @ (1 / sizes)
        self.drawn_noise = np.sqrt(np.maximum((drawn**2).sum(1) - explained, 1e-300) / self.freedom)

    def quotient(self, *others: float) -> Quotient:
        """-(others . theta[1:]) / (2 theta[0]), where the parabola has its lowest point, with its interval."""
        g = np.array([0.0, *others])
        curvature = self.theta[0]
        if curvature <= 0:
            return Quotient(0.0, -BOUND, BOUND)
        value = -g @ self.theta / (2 * curvature)
        limit = (np.quantile(self._drawn_tests(g, value), 0.95) * self.noise) ** 2
        a = 4 * (curvature**2 - limit * self.scale[0, 0])
        b = 4 * (g @ self.theta * curvature - limit * g @ self.scale[0])
        c = (g @ self.theta) ** 2 - limit * g @ self.scale @ g
        if a <= 0:  # the curvature may be zero, and with it the lowest point anywhere
            return Quotient(value, value - BOUND, value + BOUND)
        root = math.sqrt(max(b * b - 4 * a * c, 0.0))
        low, high = (-b - root) / (2 * a), (-b + root) / (2 * a)
        return Quotient(value, max(low, value - BOUND), min(high, value + BOUND))

    def p_value(self, value: float, *others: float) -> float:
        """Two-sided bootstrap p of "the quotient is ``value``"."""
        g = np.array([0.0, *others])
        h = g + np.array([2 * value] + [0.0] * len(others))
        seen = abs(h @ self.theta) / (self.noise * math.sqrt(h @ self.scale @ h))
        estimate = -g @ self.theta / (2 * self.theta[0])
        drawn = self._drawn_tests(g, estimate)
        return (1 + int((drawn >= seen).sum())) / (1 + len(drawn))

    def _drawn_tests(self, g: np.ndarray, value: float) -> np.ndarray:
        h = g.copy()
        h[0] = 2 * value
        return np.abs(self.drawn_theta @ h) / (self.drawn_noise * math.sqrt(h @ self.scale @ h))


def surge(u: np.ndarray | float, peak: np.ndarray | float) -> np.ndarray:
    """log2 of lr / lr_max = 1 / (0.5 (sqrt(P / B) + sqrt(B / P))), with u = log2 B and peak = log2 P (Li 2024)."""
    return -np.log2(np.cosh((np.asarray(u) - peak) * math.log(2) / 2))


@dataclass(frozen=True)
class Surge:
    """The fitted surge curve; ``gain`` is AIC(line) - AIC(surge), positive where the surge is the better one."""

    lr_max: float
    batch_size: float
    gain: float

    @property
    def wins(self) -> bool:
        """Whether the runs speak clearly for it."""
        return self.gain >= CLEAR


@dataclass(frozen=True)
class Law:
    """What :func:`fit` found; learning rates and batch sizes in their own units."""

    slope: Quotient
    p_values: dict[str, float]  # of each of LAWS
    optima: list[dict[str, float]]  # batch_size, lr, low, high, nll (of the parabola's lowest point), runs
    curvature: float  # of log loss per squared doubling of lr
    noise: float  # standard deviation of one run's log loss around the line's parabolas
    repeat_noise: float  # the same among runs that differ in the seed only; 0: none were repeated
    line_p_value: float  # small where the optima leave the line by more than noise
    surge: Surge
    runs: int  # that were fitted
    _line: Regression = field(repr=False)
    _centre: tuple[float, float] = field(repr=False)  # log2 lr, log2 batch size
    _surge_draws: tuple[np.ndarray, np.ndarray] = field(repr=False)

    @property
    def fits(self) -> list[str]:
        """The laws whose slope lies in the interval."""
        return [name for name, value in LAWS.items() if self.slope.low <= value <= self.slope.high]

    @property
    def more_runs(self) -> int:
        """About how many further runs of this kind would leave one law at most; 0 where it is told already.

        The interval's width falls with the square root of the number of runs.
        """
        if len(self.fits) < 2:
            return 0
        half = (self.slope.high - self.slope.low) / 2
        if half == BOUND:  # the curvature is hardly seen: the first-order error stands in
            half = 2 * self._line.noise * math.sqrt(self._line.scale[2, 2]) / (2 * abs(self.curvature))
        return max(1, math.ceil(self.runs * ((half / HALF_WIDTH) ** 2 - 1)))

    def predict(self, batch_size: float) -> Quotient:
        """The best learning rate of any batch size: from the surge where it wins, else from the line."""
        u = math.log2(batch_size)
        if self.surge.wins:
            peaks, heights = self._surge_draws
            value = math.log2(self.surge.lr_max) + surge(u, math.log2(self.surge.batch_size))
            low, high = np.quantile(heights + surge(u, peaks), [0.025, 0.975])
            return _powers(Quotient(float(value), float(low), float(high)))
        return _powers(self._line.quotient(1.0, u - self._centre[1]), self._centre[0])

    def curve(self, name: str, batch_sizes: np.ndarray) -> np.ndarray:
        """The learning rate along the fitted ``line`` or ``surge``."""
        u = np.log2(batch_sizes)
        if name == "surge":
            return self.surge.lr_max * 2 ** surge(u, math.log2(self.surge.batch_size))
        middle = self._line.quotient(1.0, 0.0).value
        return 2 ** (self._centre[0] + middle + self.slope.value * (u - self._centre[1]))


def fit(cells: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> Law:
    """Fit the parabolas, the line and the surge curve to a sweep's table.

    ``cells`` has the columns batch_size, lr, steps, status and nll (mean log loss, nats).

    Raises:
        UserError: fewer than two batch sizes with three usable learning rates each.
    """
    cells, x, u, y, groups, centre = _prepared(cells)
    line = Regression(np.stack([x * x, x, u * x], axis=1), groups, y, draws, seed)
    free = _free(x, y, groups, draws, seed)
    peaks, heights, squares = _fit_surge(u, x, groups, y[:, None])
    gain = len(y) * math.log(line.squares / squares[0])  # as many parameters as the line
    found = Surge(2 ** (heights[0] + centre[0]), 2 ** (peaks[0] + centre[1]), gain)
    surge_draws = (np.empty(0), np.empty(0))
    if found.wins:
        peaks, heights, _ = _fit_surge(u, x, groups, _redrawn(u, x, groups, y, peaks[0], draws, seed))
        surge_draws = (peaks + centre[1], heights + centre[0])

    return Law(
        slope=line.quotient(0.0, 1.0),
        p_values={name: line.p_value(value, 0.0, 1.0) for name, value in LAWS.items()},
        optima=optima(cells, draws, seed),
        curvature=float(line.theta[0]),
        noise=line.noise,
        repeat_noise=_repeat_noise(cells),
        line_p_value=_f_test(line, free),
        surge=found,
        runs=len(y),
        _line=line,
        _centre=centre,
        _surge_draws=surge_draws,
    )


def optima(cells: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> list[dict[str, float]]:
    """Each batch size's optimum: batch_size, lr, low, high, nll (of the parabola's lowest point), runs.

    Raises:
        UserError: as :func:`fit`.
    """
    cells, x, _, y, groups, centre = _prepared(cells)
    free = _free(x, y, groups, draws, seed)
    rows = []
    for number, batch_size in enumerate(np.unique(cells.batch_size)):
        optimum = free.quotient(*np.eye(groups.max() + 1)[number])
        own = groups == number
        level = (y[own] - free.theta[0] * (x[own] - optimum.value) ** 2).mean()
        lr = _powers(optimum, centre[0])
        rows.append(
            {"batch_size": int(batch_size), "lr": lr.value, "low": lr.low, "high": lr.high}
            | {"nll": math.exp(level), "runs": int(own.sum())}
        )
    return rows


def _prepared(cells: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple]:
    """The usable cells; log2 lr and log2 batch size minus their means; log loss; group; the two means."""
    cells = cells[usable(cells)]
    sizes, groups = np.unique(cells.batch_size.to_numpy(), return_inverse=True)
    if len(sizes) < 2:
        what = f"{len(sizes)} of the batch sizes have three usable learning rates, two must"
        raise UserError("sweep", what, f"run more cells, or longer ones (a cell needs {MIN_STEPS} optimiser steps)")
    x, u = np.log2(cells.lr.to_numpy()), np.log2(sizes)[groups]
    centre = float(x.mean()), float(u.mean())
    return cells, x - centre[0], u - centre[1], np.log(cells.nll.to_numpy()), groups, centre


def _free(x: np.ndarray, y: np.ndarray, groups: np.ndarray, draws: int, seed: int) -> Regression:
    """The parabolas of shared curvature, each with an optimum of its own."""
    own = np.equal.outer(groups, np.arange(groups.max() + 1)) * x[:, None]
    return Regression(np.column_stack([x * x, own]), groups, y, draws, seed)


def _fit_surge(
    u: np.ndarray, x: np.ndarray, groups: np.ndarray, ys: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Peak, height and sum of squares (each m) of the surge curve for each column of ``ys`` (n, m).

    At a given peak the model is linear again; the peaks are tried in steps of a twentieth of a doubling,
    to three doublings beyond the batch sizes.
    """
    member = np.equal.outer(groups, np.arange(groups.max() + 1)) / np.sqrt(np.bincount(groups))
    total = (ys**2).sum(0) - ((member.T @ ys) ** 2).sum(0)
    best = np.zeros(ys.shape[1]), np.zeros(ys.shape[1]), np.full(ys.shape[1], np.inf)
    for peak in np.arange(u.min() - 3, u.max() + 3.01, 0.05):
        z = x - surge(u, peak)
        columns = np.stack([z * z, z], axis=1)
        columns -= member @ (member.T @ columns)
        products = columns.T @ ys
        theta = np.linalg.solve(columns.T @ columns, products)
        squares = np.where(theta[0] > 0, total - (products * theta).sum(0), np.inf)
        better = squares < best[2]
        for kept, new in zip(best, (peak, -theta[1] / (2 * theta[0]), squares), strict=True):
            np.copyto(kept, new, where=better)
    return best


def _redrawn(
    u: np.ndarray, x: np.ndarray, groups: np.ndarray, y: np.ndarray, peak: float, draws: int, seed: int
) -> np.ndarray:
    """``y`` (n) as ``draws`` other studies would have seen it (n, draws), if the surge curve were the truth."""
    z = x - surge(u, peak)
    model = Regression(np.stack([z * z, z], axis=1), groups, y, draws, seed)
    return (y - model.residuals)[:, None] + model.drawn.T


def _repeat_noise(cells: pd.DataFrame) -> float:
    """Standard deviation of log loss among runs of one batch size and learning rate; 0 without repeats."""
    logs = np.log(cells.nll).groupby([cells.batch_size, cells.lr])
    freedom = int((logs.size() - 1).sum())
    return math.sqrt(((logs.size() - 1) * logs.var(ddof=1).fillna(0)).sum() / freedom) if freedom else 0.0


def _f_test(line: Regression, free: Regression) -> float:
    """p of "the optima lie on the line"; 1 with two batch sizes, which always do."""
    if line.freedom == free.freedom:
        return 1.0
    more = line.freedom - free.freedom
    return float(fdtrc(more, free.freedom, (line.squares - free.squares) / more / free.noise**2))


def _powers(quotient: Quotient, centre: float = 0.0) -> Quotient:
    return Quotient(*(2 ** (centre + number) for number in (quotient.value, quotient.low, quotient.high)))
