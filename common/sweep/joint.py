"""Several studies fitted at once: one slope for all or one each, and the best learning rate over batch size and steps.

A study is a sweep; its batch sizes have levels and, where the runs ask for it, curvatures of their own, as in
:mod:`common.sweep.parabolas`. What the optima m have in common is a surface over log2 of batch size and steps:

    m = b0 + b1 u + b2 s + b3 u^2 + b4 u s + b5 s^2,   u = log2 B, s = log2 S, less their means

in which every difference between two points is a quotient of coefficients, with Fieller's interval. Studies at one
number of epochs cannot tell u and s apart, since S = rows * epochs / B; studies at several numbers of steps can.

All studies share one noise, unless their runs refute that (Bartlett's test): then each run's loss is measured in units
of its study's noise, so that a study whose runs scatter more counts for less.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from common.base.errors import UserError
from common.sweep.parabolas import (
    DRAWS,
    FITTED,
    Parabolas,
    Runs,
    fates,
    fit_parabolas,
    grouped_runs,
    runs_of,
    with_curvatures,
)
from common.sweep.regression import Estimate, Regression, p_of_one_noise

CROSSED = 3  # numbers of steps that a curved surface needs at least
ONE_NOISE = 0.01  # p below which one noise for all studies is refuted


@dataclass(frozen=True)
class Joint:
    """Studies and what fits all of them; made by :func:`fit_joint`."""

    names: tuple[str, ...]
    cells: pd.DataFrame  # the rows that are fitted, with the number of their ``study``
    parabolas: Parabolas  # one for each batch size of each study
    studies: np.ndarray  # the study of each parabola
    steps: np.ndarray  # optimiser steps of each parabola's runs

    @property
    def batch_sizes(self) -> np.ndarray:
        """Of each parabola."""
        return self.parabolas.runs.batch_sizes

    @property
    def about_steps(self) -> np.ndarray:
        """The steps of each parabola, where those within about an eighth of a doubling count as one, the least."""
        eighths = np.round(8 * np.log2(self.steps))
        return np.array([self.steps[eighths == each].min() for each in eighths])

    @property
    def is_crossed(self) -> bool:
        """Whether batch size and steps vary independently, so that a surface can be fitted."""
        steps = self.about_steps
        of_size = [set(steps[self.batch_sizes == size].tolist()) for size in set(self.batch_sizes.tolist())]
        return len(of_size) >= CROSSED and min(map(len, of_size)) >= CROSSED

    @cached_property
    def slopes(self) -> tuple[Estimate, list[Estimate], float]:
        """The slope that all studies share, each study's own, and p of "they share it" (F test; 1 with one study)."""
        runs, count = self.parabolas.runs, len(self.names)
        own_study = np.equal.outer(self.studies, np.arange(count)).astype(float)[runs.groups]
        shared = np.column_stack([own_study, runs.size])
        own = np.column_stack([own_study, own_study * runs.size[:, None]])
        one, each = self._surface(shared), self._surface(own)
        picks = np.eye(1 + own.shape[1])
        slope = one.fit.quotient(np.eye(len(one.fit.coefficients))[1 + count], one.square)
        pad = len(each.fit.coefficients) - len(picks)
        slopes = [each.fit.quotient(np.pad(picks[1 + count + k], (0, pad)), each.square) for k in range(count)]
        return slope, slopes, self._p_of(shared, own) if count > 1 else 1.0

    def surface(self) -> "Surface":
        """The curved surface over batch size and steps.

        Raises:
            UserError: the studies do not cross batch sizes and steps.
        """
        if not self.is_crossed:
            what = f"a surface needs {CROSSED} batch sizes, each with {CROSSED} numbers of steps"
            raise UserError("--sweeps", what, "run the same batch sizes with --steps 64, 256 and 1024")
        return self._surface(self._shape)

    def p_values(self) -> dict[str, float]:
        """F tests on the surface, of what each name says; at "square root at equal steps" the steps are free."""
        shape, runs = self._shape, self.parabolas.runs
        of_steps, of_size = [2, 4, 5], [1, 3, 4]
        root = 0.5 * runs.size  # a given slope is a shift of every run's learning rate
        return {
            "steps have no part": self._p_of(np.delete(shape, of_steps, axis=1), shape),
            "batch size has no part": self._p_of(np.delete(shape, of_size, axis=1), shape),
            "plane": self._p_of(shape[:, :3], shape),
            "square root at equal steps": self._p_of(shape[:, [0, 2, 5]], shape, shift=root),
        }

    @property
    def _shape(self) -> np.ndarray:
        runs = self.parabolas.runs
        return _terms(runs.size, np.log2(self.steps)[runs.groups] - self.mean_steps)

    @property
    def mean_steps(self) -> float:
        """The mean of log2 of the steps over the runs, which the surface is centred on."""
        return float(np.log2(self.steps)[self.parabolas.runs.groups].mean())

    def _surface(self, covariates: np.ndarray) -> "Surface":
        runs = self.parabolas.runs
        columns = np.column_stack([runs.lr**2, runs.lr[:, None] * covariates]) * self.parabolas.scale[:, None]
        return Surface(runs.regression(with_curvatures(columns, self.parabolas)), runs, self.mean_steps)

    def _p_of(self, few: np.ndarray, many: np.ndarray, shift: np.ndarray | float = 0.0) -> float:
        """p of "the covariates ``few`` (n, p) of the optimum are enough, once learning rates are moved by -shift"."""
        runs, scale = self.parabolas.runs, self.parabolas.scale[:, None]
        less, whole = (
            np.column_stack([lr**2, lr[:, None] * covariates]) * scale
            for lr, covariates in ((runs.lr - shift, few), (runs.lr, many))
        )
        return runs.f_test(less, whole)


@dataclass(frozen=True)
class Surface:
    """The best learning rate over batch size and steps."""

    fit: Regression
    runs: Runs
    mean_steps: float

    @property
    def square(self) -> np.ndarray:
        """What picks the squared term of the fit."""
        return np.eye(len(self.fit.coefficients))[0]

    def optimum(self, batch_size: float, steps: float) -> Estimate:
        """The best learning rate."""
        return self.fit.quotient(self._picks(batch_size, steps), self.square).power(self.runs.mean_lr)

    def change(self, before: tuple[float, float], after: tuple[float, float]) -> Estimate:
        """Doublings of the best learning rate from one (batch size, steps) to another."""
        return self.fit.quotient(self._picks(*after) - self._picks(*before), self.square)

    def _picks(self, batch_size: float, steps: float) -> np.ndarray:
        u, s = math.log2(batch_size) - self.runs.mean_size, math.log2(steps) - self.mean_steps
        terms = _terms(np.array([u]), np.array([s]))[0]
        return np.concatenate([[0.0], terms, np.zeros(len(self.fit.coefficients) - 1 - len(terms))])


def _terms(u: np.ndarray, s: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(u), u, s, u * u, u * s, s * s], axis=1)


def fit_joint(studies: Mapping[str, pd.DataFrame], draws: int = DRAWS, seed: int = 0) -> Joint:
    """Fit the tables of several sweeps at once; columns and left-out runs as in :func:`common.sweep.law.fit_law`.

    Raises:
        UserError: a study without two batch sizes to fit.
    """
    tables = []
    for number, (name, cells) in enumerate(studies.items()):
        fitted = cells[fates(cells) == FITTED].assign(study=number)
        if fitted.batch_size.nunique() < 2:
            raise UserError(str(name), "fewer than two of its batch sizes can be fitted", "run more cells of it")
        tables.append(fitted)
    cells = pd.concat(tables, ignore_index=True)
    pairs, groups = np.unique(cells[["study", "batch_size"]].to_numpy(), axis=0, return_inverse=True)
    noise = _noises(tables)[cells.study.to_numpy()]
    runs = grouped_runs(cells, pairs[:, 1], groups.ravel(), noise, draws, seed)
    steps = cells.groupby(["study", "batch_size"]).steps.median().to_numpy()
    return Joint(tuple(map(str, studies)), cells, fit_parabolas(runs), pairs[:, 0], steps)


def _noises(studies: Sequence[pd.DataFrame]) -> np.ndarray:
    """Standard deviation of a run's log loss in each study as a multiple of that in all (k): 1 if they are alike."""
    fits = [fit_parabolas(runs_of(cells, draws=1, seed=0)).fit for cells in studies]
    squares, freedoms = np.array([fit.squares for fit in fits]), np.array([fit.freedom for fit in fits])
    if p_of_one_noise(squares, freedoms) >= ONE_NOISE:
        return np.ones(len(studies))
    return np.sqrt(squares / freedoms / (squares.sum() / freedoms.sum()))


def parts_of_a_fall(surface: Surface, before: tuple[float, float], after: tuple[float, float]) -> dict[str, Estimate]:
    """Doublings that the best learning rate changes from one (batch size, steps) to another, and each cause's part.

    The batch size changes first, at the steps of ``before``, and then the steps; what the square root of the batch
    size would have added is said beside it.
    """
    between = after[0], before[1]
    return {
        "in all": surface.change(before, after),
        "batch size": surface.change(before, between),
        "steps": surface.change(between, after),
    }


def shared_slope(joint: Joint) -> str:
    """The slope that fits all studies best, and whether it fits them."""
    slope, _, p = joint.slopes
    fits = "one slope for all fits" if p >= 0.05 else "one slope for all does not fit"
    return f"slope {_text(slope)} in all studies; {fits} (F test, p = {p:.2g})"


def joint_sentences(joint: Joint) -> list[str]:
    """What several studies say together, in plain words."""
    lines = [f"{len(joint.cells)} runs of {len(joint.names)} studies are fitted"]
    least, most = joint.parabolas.runs.noise.min(), joint.parabolas.runs.noise.max()
    if least < most:
        what = f"in one study x{least:.1f}, in another x{most:.1f} as much as in all: each counts by its own noise"
        lines.append(f"runs scatter unlike, {what}")
    lines += [f"slope {_text(own)}: {name}" for name, own in zip(joint.names, joint.slopes[1], strict=True)]
    lines.append(shared_slope(joint))
    if not joint.is_crossed:
        return lines
    surface = joint.surface()
    for size in sorted(set(joint.batch_sizes.tolist())):
        of_size = joint.steps[joint.batch_sizes == size]
        least, most = int(of_size.min()), int(of_size.max())
        change = surface.change((size, least), (size, most))
        lines.append(
            f"batch size {size}: from {least} to {most} steps the best lr changes by {_text(change)} doublings"
        )
    for steps in sorted({int(steps) for steps in joint.about_steps}):
        sizes = sorted({int(size) for size in joint.batch_sizes})
        change = surface.change((sizes[0], steps), (sizes[-1], steps))
        root = math.log2(sizes[-1] / sizes[0]) / 2
        what = f"{steps} steps: from {sizes[0]} to {sizes[-1]} images the best lr changes by {_text(change)} doublings"
        lines.append(f"{what}; the square root would be {root:+.2f}")
    lines += [f"p = {found:.2g} of: {name}" for name, found in joint.p_values().items()]
    return lines


def joint_json(joint: Joint) -> dict[str, Any]:
    """All that was found, for joint.json."""
    slope, slopes, p = joint.slopes
    optima = zip(
        joint.studies.tolist(), joint.batch_sizes.tolist(), joint.steps.tolist(), joint.parabolas.optima, strict=True
    )
    found = {
        "studies": list(joint.names),
        "n_fitted": len(joint.cells),
        "slope": _json(slope),
        "slopes": [_json(own) for own in slopes],
        "one_slope_p_value": p,
        "optima": [
            {"study": joint.names[study], "batch_size": size, "steps": steps, "lr": _json(best)}
            for study, size, steps, best in optima
        ],
        "verdict": joint_sentences(joint),
    }
    return found | ({"p_values": joint.p_values()} if joint.is_crossed else {})


def _text(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def _json(estimate: Estimate) -> Sequence[float]:
    return [estimate.value, estimate.low, estimate.high]
