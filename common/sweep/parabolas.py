"""The parabola of each batch size: which runs of a sweep are fitted, and where each has its lowest point.

    log loss = level_B + curvature * (log2 lr - m_B)^2 + noise

All share one curvature, unless the runs refute that (an F test): few large steps may forgive less than many small ones,
and then each batch size has its own.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from common.sweep.regression import Estimate, Regression, f_test, within

MIN_STEPS = 60  # a run of fewer optimiser steps is hardly more than its warm-up
WORST = 2.5  # a loss above this many times its batch size's best lies outside any parabola
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


def runs_of(cells: pd.DataFrame, draws: int, seed: int) -> Runs:
    """The rows of a sweep's table that are fitted, a group for each batch size."""
    batch_sizes, groups = np.unique(cells.batch_size.to_numpy(), return_inverse=True)
    return grouped_runs(cells, batch_sizes, groups, np.ones(len(cells)), draws, seed)


def grouped_runs(
    cells: pd.DataFrame, batch_sizes: np.ndarray, groups: np.ndarray, noise: np.ndarray, draws: int, seed: int
) -> Runs:
    """Rows of sweeps' tables (n), each in the group (n) of its batch size and with the noise (n) of its sweep."""
    lr, size, loss = (
        np.log2(cells.lr.to_numpy()),
        np.log2(cells.batch_size.to_numpy()),
        np.log(cells.nll_calibrated.to_numpy()),
    )
    mean_lr, mean_size = float(lr.mean()), float(size.mean())
    return Runs(lr - mean_lr, size - mean_size, loss, mean_lr, mean_size, batch_sizes, groups, draws, seed, noise)


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


def with_curvatures(columns: np.ndarray, parabolas: Parabolas) -> np.ndarray:
    """Columns (n, p) of a fit through the optima, and where curvatures differ the derivative by each of them."""
    if parabolas.one_width:
        return columns
    runs = parabolas.runs
    fitted = columns @ replace(runs, draws=1).regression(columns).coefficients
    told = runs.member.T @ np.square(within(runs.groups, fitted[:, None])[:, 0] / runs.noise)
    others = np.delete(runs.member, told.argmax(), axis=1)  # relative to the curvature that is told best
    return np.column_stack([columns, others * fitted[:, None]])
