"""The law of learning rate and batch size: what the runs of a sweep say, and how sure that is.

Every batch size B has one parabola with its lowest point at the optimum m_B. They share one curvature, and one number
that says how fast it grows with the batch size: few large steps forgive less than many small ones.

    log loss = level_B + curvature * B^narrowing * (log2 lr - m_B)^2 + noise

Along a line, m_B = a + slope * log2 B, this is linear least squares once the narrowing is known (it is tried in small
steps), and the slope, each optimum and each prediction is a quotient of two coefficients, -g / (2 * curvature).
Fieller's theorem turns the test "the quotient is r" into an interval, which has no end where the curvature itself may
be zero; the test's distribution comes from a bootstrap over the runs' residuals.

Slopes: 0, no relation; 0.5, square root (Krizhevsky 2014, Hoffer 2017; for Adam Malladi 2022); 1, linear
(Goyal 2017). The surge: with Adam the optimum rises, peaks where B is the gradient's noise scale, and falls
(Li 2024, arXiv 2405.14578).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from common.errors import UserError

MIN_STEPS = 60  # a run of fewer optimiser steps is hardly more than its warm-up
WORST = 2.5  # a loss above this many times its batch size's best lies outside any parabola
LAWS = {"no relation": 0.0, "square root": 0.5, "linear": 1.0}
HALF_WIDTH = 0.24  # an interval of this half-width cannot hold two of the laws
CLEAR = 2.0  # a smaller difference of AIC is no evidence (Burnham & Anderson 2002)
BOUND = 10.0  # no slope and no doubling beyond this is believed, so an interval that knows nothing ends here
DRAWS = 2000
FITTED = "fitted"


def fates(cells: pd.DataFrame) -> np.ndarray:
    """What becomes of each row of a sweep's table: "fitted", or why it is left out (text, n).

    Left out are diverged and failed runs; runs of under 60 steps; runs with more than 2.5 times the loss of their
    batch size's best; batch sizes with fewer than three learning rates left.
    """
    size, lr, nll = (cells[name].to_numpy() for name in ("batch_size", "lr", "nll"))
    fate = np.where(cells.status == "done", FITTED, cells.status).astype(object)
    fate[(fate == FITTED) & (cells.steps < MIN_STEPS)] = f"under {MIN_STEPS} steps"
    for batch_size in np.unique(size):
        own = (size == batch_size) & (fate == FITTED)
        far = own & (nll > WORST * nll[own].min(initial=np.inf))
        fate[far] = "far from the best"
        own &= ~far
        if len(np.unique(lr[own])) < 3:
            fate[own] = "alone with its batch size"
    return fate


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

    The first column is the squared term, ``groups`` (n) numbers the groups from 0. The residuals, divided by
    sqrt(1 - leverage) since a fit shrinks them, are drawn again ``draws`` times.
    """

    def __init__(self, columns: np.ndarray, groups: np.ndarray, y: np.ndarray, draws: int, seed: int):
        member = np.equal.outer(groups, np.arange(groups.max() + 1)).astype(float)
        sizes = member.sum(0)
        x = columns - member @ (member.T @ columns / sizes[:, None])
        self.covariance = np.linalg.inv(x.T @ x)  # of the coefficients, in units of noise^2
        self.coefficients = self.covariance @ (x.T @ y)
        residuals = y - member @ (member.T @ y / sizes) - x @ self.coefficients
        self.squares = float(residuals @ residuals)
        self.freedom = len(y) - len(sizes) - columns.shape[1]
        self.noise = math.sqrt(self.squares / self.freedom)

        leverage = 1 / sizes[groups] + np.einsum("ij,jk,ik->i", x, self.covariance, x)
        spread = residuals / np.sqrt(np.maximum(1 - leverage, 1e-9))
        drawn = np.random.default_rng(seed).choice(spread - spread.mean(), size=(draws, len(y)))
        products = drawn @ x
        self._drawn_errors = products @ self.covariance
        squares = (drawn**2).sum(1) - (drawn @ member) ** 2 @ (1 / sizes) - (products * self._drawn_errors).sum(1)
        self._drawn_noise = np.sqrt(np.maximum(squares, 1e-300) / self.freedom)

    @property
    def curvature(self) -> float:
        """The squared term's coefficient; below zero there is no lowest point."""
        return float(self.coefficients[0])

    def quotient(self, *weights: float) -> Estimate:
        """-(weights . the other coefficients) / (2 * curvature): where a parabola has its lowest point."""
        if self.curvature <= 0:
            return Estimate(0.0, -BOUND, BOUND)
        g = self.weighted(0.0, *weights)
        value = float(np.clip(-g @ self.coefficients / (2 * self.curvature), -BOUND, BOUND))
        limit = (np.quantile(self._drawn_tests(self.weighted(value, *weights)), 0.95) * self.noise) ** 2
        # The test accepts r where (g . coefficients + 2 r curvature)^2 <= limit * variance: a quadratic in r.
        square = 4 * (self.curvature**2 - limit * self.covariance[0, 0])
        linear = 4 * (g @ self.coefficients * self.curvature - limit * g @ self.covariance[0])
        constant = (g @ self.coefficients) ** 2 - limit * g @ self.covariance @ g
        if square <= 0:
            return Estimate(value, -BOUND, BOUND)
        root = math.sqrt(max(linear**2 - 4 * square * constant, 0.0))
        low, high = (-linear - root) / (2 * square), (-linear + root) / (2 * square)
        return Estimate(value, max(low, -BOUND), min(high, BOUND))

    def p_value(self, value: float, *weights: float) -> float:
        """Two-sided bootstrap p of "the quotient is ``value``"."""
        h = self.weighted(value, *weights)
        seen = abs(h @ self.coefficients) / (self.noise * math.sqrt(h @ self.covariance @ h))
        drawn = self._drawn_tests(self.weighted(self.quotient(*weights).value, *weights))
        return (1 + int((drawn >= seen).sum())) / (1 + len(drawn))

    def weighted(self, value: float, *weights: float) -> np.ndarray:
        """What the coefficients must be weighted with so that their sum is 0 where the quotient is ``value``."""
        h = np.zeros(len(self.coefficients))
        h[0], h[1 : 1 + len(weights)] = 2 * value, weights
        return h

    def _drawn_tests(self, h: np.ndarray) -> np.ndarray:
        return np.abs(self._drawn_errors @ h) / (self._drawn_noise * math.sqrt(h @ self.covariance @ h))


def surge(u: np.ndarray | float, peak: float) -> np.ndarray:
    """log2 of lr / lr_max = 1 / (0.5 (sqrt(P / B) + sqrt(B / P))), with u = log2 B and peak = log2 P (Li 2024)."""
    return -np.log2(np.cosh((np.asarray(u) - peak) * math.log(2) / 2))


def surge_slope(u: np.ndarray | float, peak: float) -> np.ndarray:
    """The derivative of :func:`surge` by ``peak``."""
    return np.tanh((np.asarray(u) - peak) * math.log(2) / 2) / 2


class Law:
    """The parabolas, the line and the surge curve fitted to a sweep's table.

    ``cells`` has the columns batch_size, lr, steps, status, nll (mean log loss, nats). Learning rates and losses
    come out in their own units; curvature is log loss per squared doubling of the learning rate at the middle batch
    size, narrowing its doublings per doubling of the batch size, noise the standard deviation of one run's log loss.
    ``best_losses`` belong to the lowest points of the batch sizes' parabolas.

    Raises:
        UserError: fewer than two batch sizes with three learning rates each to fit.
    """

    def __init__(self, cells: pd.DataFrame, draws: int = DRAWS, seed: int = 0):
        fate = fates(cells)
        self.left_out = pd.Series(fate[fate != FITTED]).value_counts().to_dict()
        self.cells = cells = cells[fate == FITTED]
        self.runs = len(cells)
        self.batch_sizes, groups = np.unique(cells.batch_size.to_numpy(), return_inverse=True)
        if len(self.batch_sizes) < 2:
            what = f"{len(self.batch_sizes)} of its batch sizes have three learning rates to fit, two must"
            raise UserError("sweep", what, f"run more cells, or longer ones (a cell needs {MIN_STEPS} optimiser steps)")
        x, u, y = np.log2(cells.lr.to_numpy()), np.log2(self.batch_sizes)[groups], np.log(cells.nll.to_numpy())
        self._lr, self._size = float(x.mean()), float(u.mean())  # numbers near 0 keep the fit well-conditioned
        x, u = x - self._lr, u - self._size

        own = np.equal.outer(groups, np.arange(len(self.batch_sizes))) * x[:, None]
        self.narrowing = _best_narrowing(np.column_stack([x * x, own]), u, groups, y)
        scale = 2 ** (self.narrowing * u)

        def fit(*columns: np.ndarray) -> Regression:
            columns = np.column_stack(columns) * scale[:, None]
            return Regression(
                np.column_stack([columns, _more_narrowing(columns, u, groups, y)]), groups, y, draws, seed
            )

        self._free = fit(x * x, own)
        self._optima = [self._free.quotient(*row) for row in np.eye(len(self.batch_sizes))]
        miss = x - np.array([each.value for each in self._optima])[groups]
        rest = y - self._free.curvature * scale * miss**2
        self.best_losses = [math.exp(rest[groups == number].mean()) for number in range(len(self.batch_sizes))]
        self._line = fit(x * x, x, u * x)
        self.slope = self._line.quotient(0.0, 1.0)
        self.curvature, self.noise = self._line.curvature, self._line.noise

        # Around its best peak, the surge curve too is linear in height and peak.
        self._peak = _best_peak(x, u, scale, groups, y)
        z = x - surge(u, self._peak)
        self._surge = fit(z * z, z, z * surge_slope(u, self._peak))
        self.surge_gain = len(y) * math.log(self._line.squares / self._surge.squares)  # AIC; as many parameters

    @property
    def optima(self) -> list[Estimate]:
        """The best learning rate of each of ``batch_sizes``; the others lend it nothing but the curvature."""
        return [each.power(self._lr) for each in self._optima]

    @property
    def p_values(self) -> dict[str, float]:
        """Of each law: how often runs that follow it would look at least as unlike it."""
        return {name: self._line.p_value(value, 0.0, 1.0) for name, value in LAWS.items()}

    @property
    def bend_p_value(self) -> float:
        """F test of "the optima lie on the line"; 1 with two batch sizes, which always do."""
        more = self._line.freedom - self._free.freedom
        if not more:
            return 1.0
        ratio = (self._line.squares - self._free.squares) / more / self._free.noise**2
        return float(fdtrc(more, self._free.freedom, ratio))

    @property
    def fitting(self) -> list[str]:
        """The laws whose slope lies in the interval."""
        return [name for name, value in LAWS.items() if self.slope.low <= value <= self.slope.high]

    @property
    def more_runs(self) -> int:
        """About how many further runs of this kind would tell; 0 where the slope is told already.

        It is not where two laws are left, or the interval is as long as from one law to the next but one. The
        slope's standard error, to first order, falls with the square root of the number of runs.
        """
        if len(self.fitting) < 2 and self.slope.half_width < 2 * HALF_WIDTH:
            return 0
        h = self._line.weighted(self.slope.value, 0.0, 1.0)
        error = self.noise * math.sqrt(h @ self._line.covariance @ h) / (2 * abs(self.curvature))
        return max(1, math.ceil(self.runs * ((2 * error / HALF_WIDTH) ** 2 - 1)))

    @property
    def surges(self) -> bool:
        """Whether the runs speak clearly for the surge curve and against the line."""
        return self.surge_gain >= CLEAR

    @property
    def surge_top(self) -> tuple[Estimate, Estimate]:
        """The surge curve's highest learning rate and the batch size that it belongs to."""
        size = self._surge.quotient(0.0, 1.0).power(self._peak + self._size)
        return self._surge.quotient(1.0, 0.0).power(self._lr), size

    @property
    def repeat_noise(self) -> float:
        """Standard deviation of log loss among runs that differ in their seed only; 0 where none were repeated."""
        logs = np.log(self.cells.nll).groupby([self.cells.batch_size, self.cells.lr])
        freedom = (logs.size() - 1).sum()
        return math.sqrt(((logs.size() - 1) * logs.var().fillna(0)).sum() / freedom) if freedom else 0.0

    def predict(self, batch_size: float) -> Estimate:
        """The best learning rate of any batch size, along the curve of the smaller AIC.

        Where neither curve is clearly the better one, the interval holds those of both.
        """
        line, curve = self.along("line", batch_size), self.along("surge", batch_size)
        better = curve if self.surge_gain > 0 else line
        if abs(self.surge_gain) >= CLEAR:
            return better
        return Estimate(better.value, min(line.low, curve.low), max(line.high, curve.high))

    def along(self, curve: str, batch_size: float) -> Estimate:
        """The best learning rate of any batch size along the "line" or the "surge"."""
        u = math.log2(batch_size) - self._size
        if curve == "line":
            return self._line.quotient(1.0, u).power(self._lr)
        rise = self._surge.quotient(1.0, float(surge_slope(u, self._peak)))
        return rise.power(self._lr + float(surge(u, self._peak)))

    def curvature_at(self, batch_size: float) -> float:
        """Log loss per squared doubling of the learning rate at any batch size."""
        return self.curvature * 2 ** (self.narrowing * (math.log2(batch_size) - self._size))

    def parabola(self, batch_size: int, lrs: np.ndarray) -> np.ndarray:
        """The fitted log loss (nats) of one of ``batch_sizes`` at other learning rates."""
        number = self.batch_sizes.tolist().index(batch_size)
        miss = np.log2(lrs) - self._lr - self._optima[number].value
        curvature = self._free.curvature / self.curvature * self.curvature_at(batch_size)
        return self.best_losses[number] * np.exp(curvature * miss**2)

    def sentences(self) -> list[str]:
        """What was found, in plain words, the slope first."""
        ruled_out = [name for name in LAWS if name not in self.fitting]
        if self.surges:
            verdict = "only a mean, the optima follow a curve"
        elif self.more_runs:
            what = f"cannot tell {_listed(self.fitting)} apart" if len(self.fitting) > 1 else "too wide to tell"
            number = f"about {self.more_runs}" if self.more_runs <= 10 * self.runs else f"over {10 * self.runs}"
            verdict = f"{what}; {number} more runs would"
        elif self.fitting:
            verdict = f"{self.fitting[0]} fits, {_listed(ruled_out)} are ruled out"
        else:
            verdict = f"none of the laws fits: {_listed(ruled_out)} are ruled out"
        lines = [f"slope {self.slope.value:.2f} [{self.slope.low:.2f}, {self.slope.high:.2f}]: {verdict}"]

        lr, size = self.surge_top
        aic = f"AIC {-self.surge_gain:+.1f}"
        if not self.surges:
            worse = "worse" if self.surge_gain <= -CLEAR else "no better"
            lines.append(f"the surge curve (rise and fall) fits {worse} than the line ({aic})")
        elif self.batch_sizes[0] < size.value < self.batch_sizes[-1]:
            lines.append(
                f"the best learning rate rises and falls: the surge curve beats the line ({aic}); its top is "
                f"{lr.value:.2g} [{lr.low:.2g}, {lr.high:.2g}] at batch size {size.value:.0f} "
                f"[{size.low:.0f}, {size.high:.0f}]"
            )
        else:
            side = "above" if size.value > self.batch_sizes[-1] else "below"
            lines.append(f"the line bends: the surge curve beats it ({aic}), its top lies {side} the batch sizes tried")
        if self.bend_p_value < 0.05 and not self.surges:
            lines.append(
                f"the optima leave the line by more than noise (p = {self.bend_p_value:.2g}): the slope is a mean"
            )
        repeats = f" ({self.repeat_noise:.1%} between seeds)" if self.repeat_noise else ""
        ends = self.batch_sizes[0], self.batch_sizes[-1]
        costs = [f"{math.expm1(self.curvature_at(size)):.1%} at batch size {size}" for size in ends]
        lines.append(f"a learning rate x2 off costs {costs[0]} and {costs[1]} of the loss")
        lines.append(f"one run scatters around the parabolas by {self.noise:.1%}{repeats}")
        left_out = ", ".join(f"{count} {fate}" for fate, count in self.left_out.items())
        lines.append(f"{self.runs} runs are fitted" + (f", left out: {left_out}" if left_out else ""))
        return lines

    def as_json(self) -> dict[str, Any]:
        """Everything above, for law.json."""
        lr, size = self.surge_top
        return {
            "slope": self.slope.value,
            "slope_ci": [self.slope.low, self.slope.high],
            "p_values": self.p_values,
            "fitting": self.fitting,
            "more_runs": self.more_runs,
            "optima": [
                {"batch_size": int(batch_size), "lr": best.value, "lr_ci": [best.low, best.high], "nll": loss}
                for batch_size, best, loss in zip(self.batch_sizes, self.optima, self.best_losses, strict=True)
            ],
            "bend_p_value": self.bend_p_value,
            "surge": {
                "aic_gain": self.surge_gain,
                "lr": lr.value,
                "lr_ci": [lr.low, lr.high],
                "batch_size": size.value,
                "batch_size_ci": [size.low, size.high],
            },
            "curvature": self.curvature,
            "narrowing": self.narrowing,
            "noise": self.noise,
            "repeat_noise": self.repeat_noise,
            "n_fitted": self.runs,
            "left_out": self.left_out,
            "verdict": self.sentences(),
        }


def _within(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``values`` (..., n, p) less the mean of their group."""
    member = np.equal.outer(groups, np.arange(groups.max() + 1)) / np.sqrt(np.bincount(groups))
    return values - member @ (member.T @ values)


def _best_narrowing(columns: np.ndarray, u: np.ndarray, groups: np.ndarray, y: np.ndarray) -> float:
    """The doublings of curvature per doubling of batch size, from -1 to 1, with the smallest sum of squares.

    ``columns`` (n, p) are those of the parabolas without it.
    """
    tried = np.arange(-20, 21) / 20
    x = _within(groups, columns * 2 ** np.multiply.outer(tried, u)[:, :, None])
    products = x.transpose(0, 2, 1) @ y
    explained = products * np.linalg.solve(x.transpose(0, 2, 1) @ x, products[:, :, None])[:, :, 0]
    return float(tried[explained.sum(1).argmax()])


def _more_narrowing(columns: np.ndarray, u: np.ndarray, groups: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The derivative of the fit on ``columns`` by the narrowing (n), whose doubt thus enters every interval.

    Within a batch size the parabolas are the fitted columns but for a constant, which the levels take up.
    """
    coefficients, *_ = np.linalg.lstsq(_within(groups, columns), y, rcond=None)
    return u * (columns @ coefficients)


def _best_peak(x: np.ndarray, u: np.ndarray, scale: np.ndarray, groups: np.ndarray, y: np.ndarray) -> float:
    """The surge curve's best peak.

    ``scale`` (n) is each run's curvature in units of the middle one. At a given peak the model is linear; peaks are
    tried in steps of a twentieth of a doubling, to three doublings beyond the batch sizes. Without any lowest point
    the squares are those of the levels alone.
    """
    peaks = np.arange(u.min() - 3, u.max() + 3, 0.05)
    z = x[:, None] - surge(u[:, None], peaks)
    y = _within(groups, y[:, None])[:, 0]
    z, squared = (_within(groups, scale[:, None] * each) for each in (z, z * z))
    a, b, c = (squared**2).sum(0), (squared * z).sum(0), (z**2).sum(0)
    p, q = y @ squared, y @ z
    curvature, linear = (c * p - b * q) / (a * c - b * b), (a * q - b * p) / (a * c - b * b)
    squares = np.where(curvature > 0, y @ y - curvature * p - linear * q, y @ y)
    return float(peaks[squares.argmin()])


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
