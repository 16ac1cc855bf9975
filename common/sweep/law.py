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
from typing import Any

import numpy as np
import pandas as pd

from common.base.errors import UserError
from common.sweep.regression import Estimate, Regression, f_test, p_of_f, squares_left, within

MIN_STEPS = 60  # a run of fewer optimiser steps is hardly more than its warm-up
WORST = 2.5  # a loss above this many times its batch size's best lies outside any parabola
LAWS = {"no relation": 0.0, "square root": 0.5, "linear": 1.0}
HALF_WIDTH = 0.24  # an interval of this half-width cannot hold two of the laws
CLEAR = 2.0  # a smaller difference of AIC is no evidence (Burnham & Anderson 2002)
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


class Law:
    """The parabolas, the line and the surge curve fitted to a sweep's table.

    ``cells`` has the columns batch_size, lr, steps, status, nll_calibrated (nats per row). Learning rates and losses
    come out in their own units. ``curvatures`` are log loss per squared doubling of the learning rate, ``best_losses``
    the parabolas' lowest points, one for each of ``batch_sizes``; ``noise`` is the standard deviation of one run's log
    loss around them.

    Raises:
        UserError: fewer than two batch sizes with three learning rates each to fit.
    """

    def __init__(self, cells: pd.DataFrame, draws: int = DRAWS, seed: int = 0):
        fate = fates(cells)
        self.left_out = pd.Series(fate[fate != FITTED]).value_counts().to_dict()
        self.cells = cells = cells[fate == FITTED]
        self.runs = len(cells)
        self.batch_sizes, groups = np.unique(cells.batch_size.to_numpy(), return_inverse=True)
        count = len(self.batch_sizes)
        if count < 2:
            what = f"{count} of its batch sizes have the three learning rates that a fit needs; two must have them"
            raise UserError("sweep", what, f"run more cells, or longer ones (a cell needs {MIN_STEPS} optimiser steps)")
        x, u, y = (
            np.log2(cells.lr.to_numpy()),
            np.log2(self.batch_sizes)[groups],
            np.log(cells.nll_calibrated.to_numpy()),
        )
        self._lr, self._size = float(x.mean()), float(u.mean())  # numbers near 0 keep the fit well-conditioned
        x, u = x - self._lr, u - self._size
        member = np.equal.outer(groups, np.arange(count)).astype(float)

        # Each batch size for itself, the others lend it nothing but the curvature, if that.
        linear, square = member * x[:, None], member * (x * x)[:, None]
        shared, own = np.column_stack([linear, x * x]), np.column_stack([linear, square])
        self.one_width = f_test(shared, own, groups, y) >= ONE_WIDTH
        self._free = Regression(shared if self.one_width else own, groups, y, draws, seed)
        picks = np.eye(len(self._free.coefficients))
        squares = [picks[count]] * count if self.one_width else picks[count:]
        self.curvatures = np.stack(squares) @ self._free.coefficients
        self._optima = [self._free.quotient(*pair) for pair in zip(picks[:count], squares, strict=True)]
        miss = x - np.array([each.value for each in self._optima])[groups]
        rest = y - self.curvatures[groups] * miss**2
        self.best_losses = [math.exp(rest[groups == number].mean()) for number in range(count)]

        # Along a curve. Where curvatures differ, their doubt enters as the derivative by each of them.
        middle = max(float(np.median(self.curvatures)), 1e-12)
        scale = (np.clip(self.curvatures / middle, 1 / 16, 16) if not self.one_width else np.ones(count))[groups]

        def fit(*columns: np.ndarray) -> Regression:
            columns = np.stack(columns, axis=1) * scale[:, None]
            if not self.one_width:
                fitted = Regression(columns, groups, y, 1, seed).fitted
                told = member.T @ np.square(within(groups, fitted[:, None])[:, 0])
                others = np.delete(member, told.argmax(), axis=1)  # relative to the curvature that is told best
                columns = np.column_stack([columns, others * fitted[:, None]])
            return Regression(columns, groups, y, draws, seed)

        self._line = fit(x * x, x, u * x)
        self.slope = self._line.quotient(*self._picks(0.0, 1.0))
        self.noise = self._free.noise

        # Around its best peak, the surge curve too is linear in height and peak.
        self._peak, squares = _best_peak(x, u, scale, groups, y)
        z = x - surge(u, self._peak)
        self._surge = fit(z * z, z, z * surge_slope(u, self._peak))
        on_line = squares_left(np.stack([x * x, x, u * x], axis=1) * scale[:, None], groups, y)
        self.surge_gain = len(y) * math.log(on_line / squares)  # AIC; both have the same parameters

    def _picks(self, *weights: float) -> tuple[np.ndarray, np.ndarray]:
        """What picks the linear and the squared term of a curve: its linear columns come with ``weights``."""
        linear, square = np.zeros((2, len(self._line.coefficients)))
        linear[1:3], square[0] = weights, 1.0
        return linear, square

    @property
    def optima(self) -> list[Estimate]:
        """The best learning rate of each of ``batch_sizes``."""
        return [each.power(self._lr) for each in self._optima]

    @property
    def p_values(self) -> dict[str, float]:
        """Of each law: how often runs that follow it would look at least as unlike it."""
        return {name: self._line.p_value(value, *self._picks(0.0, 1.0)) for name, value in LAWS.items()}

    @property
    def bend_p_value(self) -> float:
        """F test of "the optima lie on the line"; 1 with two batch sizes, which always do."""
        more = self._line.freedom - self._free.freedom
        if not more:
            return 1.0
        return p_of_f(self._line.squares, self._free.squares, more, self._free.freedom)

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
        linear, square = self._picks(0.0, 1.0)
        error = self._line.error(linear + 2 * self.slope.value * square) / (2 * abs(self._line.coefficients[0]))
        return max(1, math.ceil(self.runs * ((2 * error / HALF_WIDTH) ** 2 - 1)))

    @property
    def surges(self) -> bool:
        """Whether the runs speak clearly for the surge curve and against the line."""
        return self.surge_gain >= CLEAR

    @property
    def surge_top(self) -> tuple[Estimate, Estimate]:
        """The surge curve's highest learning rate and the batch size that it belongs to."""
        size = self._surge.quotient(*self._picks(0.0, 1.0)).power(self._peak + self._size)
        return self._surge.quotient(*self._picks(1.0, 0.0)).power(self._lr), size

    @property
    def repeat_noise(self) -> float:
        """Standard deviation of log loss among runs that differ in their seed only; 0 where none were repeated."""
        logs = np.log(self.cells.nll_calibrated).groupby([self.cells.batch_size, self.cells.lr])
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
            return self._line.quotient(*self._picks(1.0, u)).power(self._lr)
        rise = self._surge.quotient(*self._picks(1.0, float(surge_slope(u, self._peak))))
        return rise.power(self._lr + float(surge(u, self._peak)))

    def parabola(self, batch_size: int, lrs: np.ndarray) -> np.ndarray:
        """The fitted log loss (nats) of one of ``batch_sizes`` at other learning rates."""
        number = self.batch_sizes.tolist().index(batch_size)
        miss = np.log2(lrs) - self._lr - self._optima[number].value
        return self.best_losses[number] * np.exp(self.curvatures[number] * miss**2)

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
        costs = [f"{math.expm1(curvature):.1%}" for curvature in self.curvatures]
        ends = f"{costs[0]} at batch size {self.batch_sizes[0]} and {costs[-1]} at {self.batch_sizes[-1]}"
        lines.append(
            f"a learning rate x2 off costs {costs[0] if self.one_width else ends} of the loss; "
            f"one run scatters by {self.noise:.1%}{repeats}"
        )
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
                {
                    "batch_size": size,
                    "lr": best.value,
                    "lr_ci": [best.low, best.high],
                    "nll_calibrated": loss,
                    "curvature": curve,
                }
                for size, best, loss, curve in zip(
                    self.batch_sizes.tolist(), self.optima, self.best_losses, self.curvatures.tolist(), strict=True
                )
            ],
            "bend_p_value": self.bend_p_value,
            "surge": {
                "aic_gain": self.surge_gain,
                "lr": lr.value,
                "lr_ci": [lr.low, lr.high],
                "batch_size": size.value,
                "batch_size_ci": [size.low, size.high],
            },
            "one_curvature": self.one_width,
            "noise": self.noise,
            "repeat_noise": self.repeat_noise,
            "n_fitted": self.runs,
            "left_out": self.left_out,
            "verdict": self.sentences(),
        }


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


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
