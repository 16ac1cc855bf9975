"""Which cells a sweep runs: a function of what its finished cells show, so whoever plans, and whenever, plans alike."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from common.errors import UserError
from common.law import MIN_STEPS, Law

FIRST = (0, -2, 2, -4, 4)  # stage 1, in doublings of the guess, the likeliest first: x4 apart tells more than seeds do
FURTHEST = 12  # doublings of the guess, either way, at which a best cell on the edge is left there
CENTRE_SEEDS = 4  # runs of the centre cell, whose spread is the noise of one run


@dataclass(frozen=True, order=True)
class Cell:
    """One run of a sweep."""

    batch_size: int
    lr: float
    seed: int = 0

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"b{self.batch_size}_lr{self.lr:g}_s{self.seed}"


@dataclass(frozen=True)
class Grid:
    """What the user asked for."""

    batch_sizes: tuple[int, ...]
    lrs: tuple[float, ...] = ()  # a grid by hand; empty: chosen here
    lr: float = 3e-3  # a learning rate that is thought to suit ...
    batch_size: int = 64  # ... this batch size: others are guessed by the square-root rule
    repeats: int = 1  # seeds of every cell

    def rate(self, batch_size: int, doublings: int) -> float:
        """The learning rate so many doublings above the guess; three digits, so a cell has a readable name."""
        return float(f"{self.lr * math.sqrt(batch_size / self.batch_size) * 2.0**doublings:.3g}")

    def cells(self, batch_size: int, doublings: Iterable[int]) -> list[Cell]:
        """The cells of one batch size, each with every seed."""
        return [Cell(batch_size, self.rate(batch_size, d), seed) for d in doublings for seed in range(self.repeats)]


def wanted(grid: Grid, cells: pd.DataFrame) -> list[Cell]:
    """Every cell that the sweep asks for so far, finished or not; no new ones means that it is complete.

    Stage 1 is five learning rates per batch size, x4 apart, and one more step beyond the best as long as that
    is the last one tried. Stage 2 is the x2 neighbours of each fitted optimum, and the centre cell with other
    seeds. ``cells`` has one row per ended run: batch_size, lr, seed, steps, status, nll.
    """
    if grid.lrs:
        return [Cell(b, lr, seed) for lr in grid.lrs for b in grid.batch_sizes for seed in range(grid.repeats)]
    steps = {batch_size: _first_stage(grid, batch_size, cells) for batch_size in grid.batch_sizes}
    stage_1 = [
        cell
        for position in range(max(map(len, steps.values())))
        for batch_size, doublings in steps.items()
        for cell in grid.cells(batch_size, doublings[position : position + 1])
    ]
    if missing(stage_1, cells):
        return stage_1
    names = {cell.name for cell in stage_1}
    first = cells[[cell.name in names for cell in cells_of(cells)]]
    nearest = _nearest_steps(grid, steps, first)
    stage_2 = [cell for b, step in nearest.items() for cell in grid.cells(b, (step - 1, step + 1))]
    if nearest:
        middle = sorted(nearest)[len(nearest) // 2]
        centre = grid.rate(middle, nearest[middle])
        stage_2 += [Cell(middle, centre, seed) for seed in range(grid.repeats, CENTRE_SEEDS)]
    return stage_1 + stage_2


def missing(planned: Iterable[Cell], cells: pd.DataFrame) -> list[Cell]:
    """The planned cells that have not ended yet, in their order."""
    ended = set(cells_of(cells))
    return [cell for cell in planned if cell not in ended]


def cells_of(cells: pd.DataFrame) -> list[Cell]:
    """The cell of each row."""
    return [Cell(*row) for row in zip(cells.batch_size, cells.lr, cells.seed, strict=True)]


def on_edge(cells: pd.DataFrame) -> list[int]:
    """Batch sizes whose best learning rate is the lowest or the highest of those tried."""
    edges = []
    for batch_size, row in cells[cells.status != "failed"].groupby("batch_size"):
        loss = row.nll.where(row.status == "done", math.inf).groupby(row.lr).mean()
        if loss.idxmin() in (loss.index.min(), loss.index.max()):
            edges.append(int(batch_size))
    return edges


def _first_stage(grid: Grid, batch_size: int, cells: pd.DataFrame) -> list[int]:
    """The doublings of stage 1, extended step by step beyond a best cell on the edge."""
    steps = list(FIRST)
    row = cells[(cells.batch_size == batch_size) & (cells.status != "failed")]
    if not len(row) or (row.steps < MIN_STEPS).all():
        return steps
    loss = row.nll.where(row.status == "done", math.inf).groupby(row.lr).mean().to_dict()
    while True:
        known = {
            step: loss[grid.rate(batch_size, step)] for step in sorted(steps) if grid.rate(batch_size, step) in loss
        }
        if len(known) < len(steps) or len(missing(grid.cells(batch_size, steps), row)):
            return steps
        best = min(known, key=known.get)
        if min(steps) < best < max(steps) or abs(best) >= FURTHEST:
            return steps
        steps.append(best + int(math.copysign(2, best)))


def _nearest_steps(grid: Grid, steps: dict[int, list[int]], first: pd.DataFrame) -> dict[int, int]:
    """For each batch size with runs long enough, the stage-1 step next to its fitted optimum."""
    long = first[(first.status == "done") & (first.steps >= MIN_STEPS)]
    best = long.loc[long.groupby("batch_size").nll.idxmin()].set_index("batch_size").lr.to_dict()
    try:
        law = Law(long, draws=1)
        best |= {size: lr.value for size, lr in zip(law.batch_sizes.tolist(), law.optima, strict=True)}
    except UserError:
        pass  # too few to fit parabolas: the best cells stand
    nearest = {}
    for batch_size, lr in best.items():
        doublings = 2 * round(math.log2(lr / grid.rate(batch_size, 0)) / 2)
        nearest[batch_size] = int(np.clip(doublings, min(steps[batch_size]), max(steps[batch_size])))
    return nearest
