"""The law of learning rate and batch size: what the runs of a sweep say, and how sure that is.

Every batch size B has one parabola with its lowest point at the optimum m_B (common/sweep/parabolas.py). Along a line,
m_B = a + slope * log2 B, this is linear least squares, and the slope, each optimum and each prediction is a quotient of
two coefficients, -g / (2 * curvature). Fieller's theorem turns the test "the quotient is r" into an interval, which has
no end where the curvature itself may be zero; the test's distribution comes from a bootstrap over the runs' residuals.

Slopes: 0, no relation; 0.5, square root (Krizhevsky 2014, Hoffer 2017; for Adam Malladi 2022); 1, linear
(Goyal 2017). The surge: with Adam the optimum rises, peaks where B is the gradient's noise scale, and falls
(Li 2024, arXiv 2405.14578).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from common.base.errors import UserError
from common.sweep.parabolas import (
    DRAWS,
    FITTED,
    MIN_STEPS,
    Parabolas,
    Runs,
    fates,
    fit_parabolas,
    runs_of,
    with_curvatures,
)
from common.sweep.regression import Estimate, Regression, p_of_f, squares_left, within

LAWS = {"no relation": 0.0, "square root": 0.5, "linear": 1.0}
HALF_WIDTH = 0.24  # an interval of this half-width cannot hold two of the laws
CLEAR = 2.0  # a smaller difference of AIC is no evidence (Burnham & Anderson 2002)
DOUBTFUL = 4.0  # up to this difference the worse curve still has some support (ibid.), and a prediction allows for it


def surge(u: np.ndarray | float, peak: float) -> np.ndarray:
    """log2 of lr / lr_max = 1 / (0.5 (sqrt(P / B) + sqrt(B / P))), with u = log2 B and peak = log2 P (Li 2024)."""
    return -np.log2(np.cosh((np.asarray(u) - peak) * math.log(2) / 2))


def surge_slope(u: np.ndarray | float, peak: float) -> np.ndarray:
    """The derivative of :func:`surge` by ``peak``."""
    return np.tanh((np.asarray(u) - peak) * math.log(2) / 2) / 2


@dataclass(frozen=True)
class Curve:
    """The best learning rate over the batch size: a line in doublings, or with a ``peak`` the surge curve.

    Around its peak, the surge curve too is linear in height and peak.
    """

    runs: Runs
    fit: Regression
    peak: float | None  # log2 of the batch size, less the runs' mean

    def picks(self, *weights: float) -> tuple[np.ndarray, np.ndarray]:
        """What picks the linear and the squared term of the fit: its linear columns come with ``weights``."""
        linear, square = np.zeros((2, len(self.fit.coefficients)))
        linear[1:3], square[0] = weights, 1.0
        return linear, square

    def optimum(self, batch_size: float) -> Estimate:
        """The best learning rate of any batch size."""
        shift, slope = _shape(math.log2(batch_size) - self.runs.mean_size, self.peak)
        return self.fit.quotient(*self.picks(1.0, float(slope))).power(self.runs.mean_lr + float(shift))

    def ratio(self, before: float, after: float) -> Estimate:
        """The best learning rate at the batch size ``after``, as a multiple of that at ``before``."""
        if after == before:
            return Estimate(1.0, 1.0, 1.0)  # without an error to divide by
        (shift, slope), (shift_after, slope_after) = (
            _shape(math.log2(size) - self.runs.mean_size, self.peak) for size in (before, after)
        )
        change = self.fit.quotient(*self.picks(0.0, float(slope_after - slope)))
        return change.power(float(shift_after - shift))


def fit_curve(runs: Runs, parabolas: Parabolas, peak: float | None = None) -> Curve:
    """A curve through the optima, fitted to all runs at once: the line, or the surge curve with its ``peak``."""
    shift, slope = _shape(runs.size, peak)
    z = runs.lr - shift
    columns = np.stack([z * z, z, z * slope], axis=1) * parabolas.scale[:, None]
    return Curve(runs, runs.regression(with_curvatures(columns, parabolas)), peak)


def _shape(u: np.ndarray | float, peak: float | None) -> tuple[np.ndarray | float, np.ndarray | float]:
    """A curve's fixed part at u, log2 of the batch size, and what its second parameter is multiplied by there."""
    return (0.0, u) if peak is None else (surge(u, peak), surge_slope(u, peak))


def fit_surge(runs: Runs, parabolas: Parabolas) -> tuple[Curve, float]:
    """The surge curve, and the AIC of the line less its own; both have the same parameters."""
    x, u, scale = runs.lr, runs.size, parabolas.scale
    peak, squares = _best_peak(x, u, scale, runs.groups, runs.loss)
    on_line = squares_left(np.stack([x * x, x, u * x], axis=1) * scale[:, None], runs.groups, runs.loss)
    return fit_curve(runs, parabolas, peak), len(x) * math.log(on_line / squares)


@dataclass(frozen=True)
class Law:
    """What the runs of a sweep say of learning rate and batch size; made by :func:`fit_law`."""

    cells: pd.DataFrame  # the rows of the sweep's table that are fitted
    left_out: dict[str, int]  # how many others, by what became of them
    parabolas: Parabolas
    line: Curve
    surge: Curve
    surge_gain: float  # AIC of the line less that of the surge curve

    @property
    def batch_sizes(self) -> np.ndarray:
        """Those that are fitted, in order."""
        return self.parabolas.runs.batch_sizes

    @property
    def optima(self) -> list[Estimate]:
        """The best learning rate of each of ``batch_sizes``."""
        return self.parabolas.optima

    @property
    def noise(self) -> float:
        """Standard deviation of one run's log of the loss around the parabolas."""
        return self.parabolas.fit.noise

    @cached_property
    def slope(self) -> Estimate:
        """Of the line: doublings of the best learning rate per doubling of the batch size."""
        return self.line.fit.quotient(*self.line.picks(0.0, 1.0))

    @property
    def p_values(self) -> dict[str, float]:
        """Of each law: how often runs that follow it would look at least as unlike it."""
        picks = self.line.picks(0.0, 1.0)
        return {name: self.line.fit.p_value(value, *picks) for name, value in LAWS.items()}

    @property
    def bend_p_value(self) -> float:
        """F test of "the optima lie on the line"; 1 with two batch sizes, which always do."""
        line, free = self.line.fit, self.parabolas.fit
        more = line.freedom - free.freedom
        return p_of_f(line.squares, free.squares, more, free.freedom) if more else 1.0

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
        fit, (linear, square) = self.line.fit, self.line.picks(0.0, 1.0)
        error = fit.error(linear + 2 * self.slope.value * square) / (2 * abs(fit.coefficients[0]))
        return max(1, math.ceil(len(self.cells) * ((2 * error / HALF_WIDTH) ** 2 - 1)))

    @property
    def surges(self) -> bool:
        """Whether the runs speak clearly for the surge curve and against the line."""
        return self.surge_gain >= CLEAR

    @property
    def repeat_noise(self) -> float:
        """Standard deviation of log loss among runs that differ in their seed only; 0 where none were repeated."""
        logs = np.log(self.cells.nll_calibrated).groupby([self.cells.batch_size, self.cells.lr])
        freedom = (logs.size() - 1).sum()
        return math.sqrt(((logs.size() - 1) * logs.var().fillna(0)).sum() / freedom) if freedom else 0.0

    @property
    def surge_top(self) -> tuple[Estimate, Estimate]:
        """The surge curve's highest learning rate and the batch size that it belongs to."""
        curve, runs = self.surge, self.parabolas.runs
        size = curve.fit.quotient(*curve.picks(0.0, 1.0)).power(curve.peak + runs.mean_size)
        return curve.fit.quotient(*curve.picks(1.0, 0.0)).power(runs.mean_lr), size

    def predict(self, batch_size: float) -> Estimate:
        """The best learning rate of any batch size, along the curve of the smaller AIC.

        Unless the runs speak strongly for one of them, the interval holds those of both curves.
        """
        return self._of_both(self.line.optimum(batch_size), self.surge.optimum(batch_size))

    def ratio(self, before: float, after: float) -> Estimate:
        """The best learning rate at the batch size ``after``, as a multiple of that at ``before``; see predict."""
        return self._of_both(self.line.ratio(before, after), self.surge.ratio(before, after))

    def _of_both(self, line: Estimate, curve: Estimate) -> Estimate:
        better = curve if self.surge_gain > 0 else line
        if abs(self.surge_gain) >= DOUBTFUL:
            return better
        return Estimate(better.value, min(line.low, curve.low), max(line.high, curve.high))

    def parabola(self, batch_size: int, lrs: np.ndarray) -> np.ndarray:
        """The fitted log loss (nats) of one of ``batch_sizes`` at other learning rates."""
        own, number = self.parabolas, self.batch_sizes.tolist().index(batch_size)
        miss = np.log2(lrs) - own.runs.mean_lr - own.lowest[number].value
        return own.losses[number] * np.exp(own.curvatures[number] * miss**2)


def fit_law(cells: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> Law:
    """Fit parabolas, line and surge curve to a sweep's table.

    ``cells`` has the columns batch_size, lr, steps, status, nll_calibrated (nats per row). Learning rates and losses
    come out in their own units; their intervals rest on ``draws`` draws of the bootstrap.

    Raises:
        UserError: fewer than two batch sizes with three learning rates each to fit.
    """
    fate = fates(cells)
    left_out = pd.Series(fate[fate != FITTED]).value_counts().to_dict()
    cells = cells[fate == FITTED]
    if (count := cells.batch_size.nunique()) < 2:
        what = f"{count} of its batch sizes have the three learning rates that a fit needs; two must have them"
        raise UserError("sweep", what, f"run more cells, or longer ones (a cell needs {MIN_STEPS} optimiser steps)")
    runs = runs_of(cells, draws, seed)
    parabolas = fit_parabolas(runs)
    return Law(cells, left_out, parabolas, fit_curve(runs, parabolas), *fit_surge(runs, parabolas))


def _best_peak(
    x: np.ndarray, u: np.ndarray, scale: np.ndarray, groups: np.ndarray, y: np.ndarray
) -> tuple[float, float]:
    """The surge curve's best peak and its sum of squares.

    ``scale`` (n) is each run's curvature in units of the middle one. At a given peak the model is linear; peaks are
    tried in steps of a twentieth of a doubling, to three doublings beyond the batch sizes. Without any lowest point
    the squares are those of the levels alone.
    """
    peaks = np.arange(u.min() - 3, u.max() + 3, 0.05)
    z = x[:, None] - surge(u[:, None], peaks)
    y = within(groups, y[:, None])[:, 0]
    z, squared = (within(groups, scale[:, None] * each) for each in (z, z * z))
    a, b, c = (squared**2).sum(0), (squared * z).sum(0), (z**2).sum(0)
    p, q = y @ squared, y @ z
    curvature, linear = (c * p - b * q) / (a * c - b * b), (a * q - b * p) / (a * c - b * b)
    squares = np.where(curvature > 0, y @ y - curvature * p - linear * q, y @ y)
    best = int(squares.argmin())
    return float(peaks[best]), float(squares[best])
