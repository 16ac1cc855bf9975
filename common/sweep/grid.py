"""Which cells a sweep runs: a function of what its finished cells show, so whoever plans, and whenever, plans alike."""

import math
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

from common.base.errors import UserError
from common.sweep.law import fit_law
from common.sweep.parabolas import MIN_STEPS

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
    """Every cell that the sweep asks for so far, ended or not; when all have ended it is complete.

    Stage 1 is five learning rates per batch size, x4 apart, and one more step beyond the best for as long as that
    is the last one tried. Stage 2 is the x2 neighbours of each fitted optimum, and the centre cell with other
    seeds. ``cells`` has one row per ended run: batch_size, lr, seed, steps, status, nll_calibrated.
    """
    if grid.lrs:
        return [Cell(b, lr, seed) for lr in grid.lrs for b in grid.batch_sizes for seed in range(grid.repeats)]
    rows = _rows(cells)
    steps = {batch_size: _first_stage(grid, batch_size, rows[batch_size]) for batch_size in grid.batch_sizes}
    stage_1 = [
        cell
        for position in range(max(map(len, steps.values())))
        for batch_size, doublings in steps.items()
        for cell in grid.cells(batch_size, doublings[position : position + 1])
    ]
    if missing(stage_1, cells):
        return stage_1
    planned = set(stage_1)
    nearest = _nearest_steps(grid, steps, cells[[cell in planned for cell in cells_of(cells)]])
    stage_2 = [cell for batch_size, step in nearest.items() for cell in grid.cells(batch_size, (step - 1, step + 1))]
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
    columns = (cells[name].tolist() for name in ("batch_size", "lr", "seed"))
    return [Cell(*row) for row in zip(*columns, strict=True)]


def on_edge(cells: pd.DataFrame) -> list[int]:
    """Batch sizes whose best learning rate is the lowest or the highest of those tried."""
    losses = {batch_size: mean_losses(rows) for batch_size, rows in sorted(_rows(cells).items())}
    return [size for size, row in losses.items() if row and min(row, key=row.get) in (min(row), max(row))]


def mean_losses(rows: Iterable) -> dict[float, float]:
    """The mean log loss (nats) of each learning rate tried; infinite where a run diverged, absent where all failed.

    ``rows`` are those of one batch size, as the table's ``itertuples`` gives them.
    """
    losses = defaultdict(list)
    for row in rows:
        if row.status != "failed":
            losses[row.lr].append(row.nll_calibrated if row.status == "done" else math.inf)
    return {lr: sum(values) / len(values) for lr, values in losses.items()}


def _rows(cells: pd.DataFrame) -> dict[int, list]:
    """The table's rows by batch size; planning reads few rows often, for which pandas is slow."""
    rows = defaultdict(list)
    for row in cells.itertuples(index=False):
        rows[row.batch_size].append(row)
    return rows


def _first_stage(grid: Grid, batch_size: int, rows: list) -> list[int]:
    """The doublings of stage 1, extended step by step beyond a best cell on the edge."""
    steps, losses = list(FIRST), mean_losses(rows)
    ended = {(row.lr, row.seed) for row in rows}
    long = any(row.status == "done" and row.steps >= MIN_STEPS for row in rows)
    while long and all((cell.lr, cell.seed) in ended for cell in grid.cells(batch_size, steps)):
        tried = [step for step in steps if grid.rate(batch_size, step) in losses]
        best = min(tried, key=lambda step: losses[grid.rate(batch_size, step)])
        if min(steps) < best < max(steps) or abs(best) >= FURTHEST:
            break
        steps.append(best + int(math.copysign(2, best)))
    return steps


def _nearest_steps(grid: Grid, steps: dict[int, list[int]], first: pd.DataFrame) -> dict[int, int]:
    """For each batch size with runs long enough, the stage-1 step next to its fitted optimum."""
    long = first[(first.status == "done") & (first.steps >= MIN_STEPS)]
    best = {size: min(losses := mean_losses(rows), key=losses.get) for size, rows in sorted(_rows(long).items())}
    with suppress(UserError):  # too few to fit parabolas: the best cells stand
        law = fit_law(long, draws=1)
        best |= {size: lr.value for size, lr in zip(law.batch_sizes.tolist(), law.optima, strict=True)}
    nearest = {}
    for batch_size, lr in best.items():
        doublings = 2 * round(math.log2(lr / grid.rate(batch_size, 0)) / 2)
        nearest[batch_size] = max(min(steps[batch_size]), min(doublings, max(steps[batch_size])))
    return nearest
