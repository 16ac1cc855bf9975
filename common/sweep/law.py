"""The law of learning rate and batch size: what the runs of a sweep say, and how sure that is.

Every batch size B has one parabola with its lowest point at the optimum m_B:

    log loss = level_B + curvature * (log2 lr - m_B)^2 + noise

All share one curvature, unless the runs refute that (an F test): few large steps may forgive less than many small ones,
and then each batch size has its own. Along a line, m_B = a + slope * log2 B, this is linear least squares, and the
slope, each optimum and each prediction is a quotient of two coefficients, -g / (2 * curvature). Fieller's theorem turns
the test "the quotient is r" into an interval, which has no end where the curvature itself may be zero; the test's
distribution comes from a bootstrap over the runs' residuals.

Slopes: 0, no relation; 0.5, square root (Krizhevsky 2014, Hoffer 2017; for Adam Malladi 2022); 1, linear
(Goyal 2017). The surge: with Adam the optimum rises, peaks where B is the gradient's noise scale, and falls
(Li 2024, arXiv 2405.14578).
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from common.base.errors import UserError
from common.sweep.regression import Estimate, Regression, f_test, p_of_f, squares_left, within

MIN_STEPS = 60  # a run of fewer optimiser steps is hardly more than its warm-up
WORST = 2.5  # a loss above this many times its batch size's best lies outside any parabola
LAWS = {"no relation": 0.0, "square root": 0.5, "linear": 1.0}
HALF_WIDTH = 0.24  # an interval of this half-width cannot hold two of the laws
CLEAR = 2.0  # a smaller difference of AIC is no evidence (Burnham & Anderson 2002)
DOUBTFUL = 4.0  # up to this difference the worse curve still has some support (ibid.), and a prediction allows for it
ONE_WIDTH = 0.01  # p below which one curvature for all batch sizes is refuted
DRAWS = 2000
FITTED = "fitted"


def fates(cells: pd.DataFrame) -> np.ndarray:
    """What becomes of each row of a sweep's table: "fitted", or why it is left out (text, n).

    Left out are diverged and failed runs; runs of under 60 steps; runs with more than 2.5 times the loss of their
    batch size's best; batch sizes with fewer than three learning rates left.
    """
    size, lr, nll = (cells[name].to_numpy() for name in ("batch_size", "lr", "nll_calibrated"))
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


def surge(u: np.ndarray | float, peak: float) -> np.ndarray:
    """log2 of lr / lr_max = 1 / (0.5 (sqrt(P / B) + sqrt(B / P))), with u = log2 B and peak = log2 P (Li 2024)."""
    return -np.log2(np.cosh((np.asarray(u) - peak) * math.log(2) / 2))


def surge_slope(u: np.ndarray | float, peak: float) -> np.ndarray:
    """The derivative of :func:`surge` by ``peak``."""
    return np.tanh((np.asarray(u) - peak) * math.log(2) / 2) / 2


@dataclass(frozen=True)
class Runs:
    """The runs to fit, as logarithms; less their means, since numbers near 0 keep a fit well-conditioned."""

    lr: np.ndarray  # log2 of the learning rate, less ``mean_lr`` (n)
    size: np.ndarray  # log2 of the batch size, less ``mean_size`` (n)
    loss: np.ndarray  # log of the log loss (n)
    mean_lr: float
    mean_size: float
    batch_sizes: np.ndarray  # all of them, in order
    groups: np.ndarray  # position of each run's batch size among ``batch_sizes`` (n)
    draws: int
    seed: int
    noise: np.ndarray  # of each run as a multiple of the usual one, the same for all runs of a batch size (n)

    def regression(self, columns: np.ndarray) -> Regression:
        """The runs' losses on columns (n, p), with a level per batch size; both in units of the run's noise."""
        return Regression(columns / self.noise[:, None], self.groups, self.loss / self.noise, self.draws, self.seed)

    def f_test(self, few: np.ndarray, many: np.ndarray) -> float:
        """p of "the further columns of ``many`` (n, p) tell nothing of the losses"."""
        return f_test(few / self.noise[:, None], many / self.noise[:, None], self.groups, self.loss / self.noise)

    @cached_property
    def member(self) -> np.ndarray:
        """1.0 where a run has a batch size (n, batch sizes)."""
        return np.equal.outer(self.groups, np.arange(len(self.batch_sizes))).astype(float)


@dataclass(frozen=True)
class Parabolas:
    """A parabola for each batch size, by itself: the others lend it nothing but the curvature, if that."""

    runs: Runs
    fit: Regression
    one_width: bool  # whether all share a curvature
    curvatures: np.ndarray  # log of the loss per squared doubling of the learning rate, of each batch size
    lowest: list[Estimate]  # where each is lowest: log2 of the learning rate, less the runs' mean
    losses: list[float]  # the log loss there (nats)

    @property
    def optima(self) -> list[Estimate]:
        """The best learning rate of each batch size."""
        return [each.power(self.runs.mean_lr) for each in self.lowest]

    @property
    def scale(self) -> np.ndarray:
        """The curvature of each run's batch size, in units of the middle one (n)."""
        middle = max(float(np.median(self.curvatures)), 1e-12)
        scale = np.clip(self.curvatures / middle, 1 / 16, 16) if not self.one_width else np.ones(len(self.curvatures))
        return scale[self.runs.groups]


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


def fit_parabolas(runs: Runs) -> Parabolas:
    """The parabola of each batch size; they share one curvature unless an F test refutes that."""
    x, groups, count = runs.lr, runs.groups, len(runs.batch_sizes)
    linear, square = runs.member * x[:, None], runs.member * (x * x)[:, None]
    shared, own = np.column_stack([linear, x * x]), np.column_stack([linear, square])
    one_width = runs.f_test(shared, own) >= ONE_WIDTH
    fit = runs.regression(shared if one_width else own)
    picks = np.eye(len(fit.coefficients))
    squares = [picks[count]] * count if one_width else picks[count:]
    curvatures = np.stack(squares) @ fit.coefficients
    lowest = [fit.quotient(*pair) for pair in zip(picks[:count], squares, strict=True)]
    miss = x - np.array([each.value for each in lowest])[groups]
    rest = runs.loss - curvatures[groups] * miss**2
    losses = [math.exp(rest[groups == number].mean()) for number in range(count)]
    return Parabolas(runs, fit, one_width, curvatures, lowest, losses)


def fit_curve(runs: Runs, parabolas: Parabolas, peak: float | None = None) -> Curve:
    """A curve through the optima, fitted to all runs at once: the line, or the surge curve with its ``peak``."""
    shift, slope = _shape(runs.size, peak)
    z = runs.lr - shift
    columns = np.stack([z * z, z, z * slope], axis=1) * parabolas.scale[:, None]
    return Curve(runs, runs.regression(with_curvatures(columns, parabolas)), peak)


def with_curvatures(columns: np.ndarray, parabolas: Parabolas) -> np.ndarray:
    """Columns (n, p) of a fit through the optima, and where curvatures differ the derivative by each of them."""
    if parabolas.one_width:
        return columns
    runs = parabolas.runs
    fitted = columns @ replace(runs, draws=1).regression(columns).coefficients
    told = runs.member.T @ np.square(within(runs.groups, fitted[:, None])[:, 0] / runs.noise)
    others = np.delete(runs.member, told.argmax(), axis=1)  # relative to the curvature that is told best
    return np.column_stack([columns, others * fitted[:, None]])


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
    batch_sizes, groups = np.unique(cells.batch_size.to_numpy(), return_inverse=True)
    if (count := len(batch_sizes)) < 2:
        what = f"{count} of its batch sizes have the three learning rates that a fit needs; two must have them"
        raise UserError("sweep", what, f"run more cells, or longer ones (a cell needs {MIN_STEPS} optimiser steps)")
    lr, size = np.log2(cells.lr.to_numpy()), np.log2(batch_sizes)[groups]
    mean_lr, mean_size = float(lr.mean()), float(size.mean())
    loss = np.log(cells.nll_calibrated.to_numpy())
    alike = np.ones(len(loss))
    runs = Runs(lr - mean_lr, size - mean_size, loss, mean_lr, mean_size, batch_sizes, groups, draws, seed, alike)
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
