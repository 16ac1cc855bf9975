"""Is the law's interval honest? Synthetic studies with a known answer: python -m benchmarks.law_coverage

Each study plans its cells (common/grid.py), draws their losses from a known truth and fits the law
(common/law.py), exactly as sweep.py does. Writes benchmarks/law_coverage.md.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from common.cli import parse
from common.errors import run_script
from common.grid import FIRST, Cell, Grid, missing, wanted
from common.law import fit, surge

BATCH_SIZES = (8, 16, 32, 64, 128, 256, 512)
UNSEEN = 48  # a batch size that is predicted, not run


@dataclass(frozen=True)
class Options:
    """Simulate studies of learning rate and batch size whose answer is known."""

    studies: int = 2000  # per case
    seed: int = 0  # of the first study


@dataclass(frozen=True)
class Truth:
    """How the log loss of one run comes about; learning rates count in doublings around the truth at batch 64."""

    name: str
    slope: float  # of the best learning rate; of a surge: 0, by its symmetry over the batch sizes
    noise: float  # standard deviation of one run's log loss
    shape: Callable[[float, float], float] = lambda doublings, slope: slope * doublings
    curvature: float = 0.02  # a x2 miss costs 2 % of the loss
    lean: float = 1.0  # how much steeper the loss rises above the best learning rate than below it
    diverges: float = math.inf  # doublings above the best learning rate from which a run breaks down
    uneven: float = 0.0  # how much the noise grows per doubling away from the best learning rate

    def optimum(self, batch_size: float) -> float:
        """log2 of the best learning rate."""
        return math.log2(3e-3) + self.shape(math.log2(batch_size / 64), self.slope)

    def run(self, cells: list[Cell], random: np.random.Generator) -> pd.DataFrame:
        """The rows that a sweep would have recorded."""
        rows = []
        for cell in cells:
            miss = math.log2(cell.lr) - self.optimum(cell.batch_size)
            cost = self.curvature * miss**2 * (self.lean if miss > 0 else 1)
            noise = self.noise * (1 + self.uneven * abs(miss)) * random.standard_normal()
            level = 0.05 * math.exp(0.02 * math.log2(cell.batch_size / 64) ** 2)
            status = "diverged" if miss > self.diverges else "done"
            nll = math.nan if status == "diverged" else level * math.exp(cost + noise)
            rows.append((cell.batch_size, cell.lr, cell.seed, 1000, status, nll))
        return pd.DataFrame(rows, columns=["batch_size", "lr", "seed", "steps", "status", "nll"])


def surge_shape(doublings: float, _: float) -> float:
    """A surge that peaks at batch 64."""
    return float(surge(doublings, 0.0))


def whole_design(truth: Truth, random: np.random.Generator) -> pd.DataFrame:
    """The default sweep: both stages, edges and repeats; its guess is up to x2.8 off."""
    grid = Grid(BATCH_SIZES, lr=2 ** (truth.optimum(64) + random.uniform(-1.5, 1.5)), batch_size=64)
    cells = truth.run([], random)
    while todo := missing(wanted(grid, cells), cells):
        cells = pd.concat([cells, truth.run(todo, random)]) if len(cells) else truth.run(todo, random)
    return cells


def first_stage(truth: Truth, random: np.random.Generator) -> pd.DataFrame:
    """The default's first 35 runs only."""
    grid = Grid(BATCH_SIZES, lr=2 ** (truth.optimum(64) + random.uniform(-1.5, 1.5)), batch_size=64)
    return truth.run([cell for b in BATCH_SIZES for cell in grid.cells(b, FIRST)], random)


def four_by_four(truth: Truth, random: np.random.Generator) -> pd.DataFrame:
    """Four batch sizes x four learning rates x2 apart, the same ones everywhere, one run each."""
    middle = truth.optimum(22.6) + random.uniform(-1.5, 1.5)
    return truth.run([Cell(b, 2 ** (middle + d)) for b in (8, 16, 32, 64) for d in (-1.5, -0.5, 0.5, 1.5)], random)


def study(truth: Truth, design: Callable[[Truth, np.random.Generator], pd.DataFrame], seed: int) -> dict[str, float]:
    """One simulated study: what it cost and whether it was right."""
    cells = design(truth, np.random.default_rng(seed))
    law = fit(cells, seed=seed)
    predicted, answer = law.predict(UNSEEN), 2 ** truth.optimum(UNSEEN)
    return {
        "runs": len(cells),
        "covered": law.slope.low <= truth.slope <= law.slope.high,
        "half_width": (law.slope.high - law.slope.low) / 2,
        "miss": law.slope.value - truth.slope,
        "undecided": law.more_runs > 0,
        "wrong_law_kept": any(law.slope.low <= s <= law.slope.high for s in (0, 0.5, 1) if s != truth.slope),
        "optimum_covered": np.mean(
            [row["low"] <= 2 ** truth.optimum(row["batch_size"]) <= row["high"] for row in law.optima]
        ),
        "predicted_covered": predicted.low <= answer <= predicted.high,
        "surge_better": law.surge.gain > 0,
        "surge_clear": law.surge.wins,
        "surge_lr_near": abs(math.log2(law.surge.lr_max) - truth.optimum(64)) < math.log2(1.5),
        "surge_size_near": abs(math.log2(law.surge.batch_size / 64)) < math.log2(1.5),
        "off_line": law.line_p_value < 0.05,
    }


def cases() -> list[tuple[Truth, Callable]]:
    """Every truth with the design it is met with."""
    lines = [Truth(f"slope {slope:g}", slope, noise) for slope in (0, 0.5, 1) for noise in (0.05, 0.1)]
    surges = [Truth("surge", 0.0, noise, surge_shape) for noise in (0.05, 0.1)]
    plain = Truth("slope 0.5", 0.5, 0.05)
    harder = [
        change
        for slope in (0.5, 1)
        for change in (
            replace(plain, name=f"slope {slope:g}, x2 miss costs 8 %", slope=slope, curvature=0.08),
            replace(plain, name=f"slope {slope:g}, x3 steeper above", slope=slope, lean=3.0),
            replace(
                plain, name=f"slope {slope:g}, x3 steeper above, breaks down at x8", slope=slope, lean=3.0, diverges=3.0
            ),
            replace(plain, name=f"slope {slope:g}, noise grows away from the best", slope=slope, uneven=0.25),
        )
    ]
    return (
        [(truth, first_stage) for truth in lines + surges]
        + [(truth, whole_design) for truth in lines + surges + harder]
        + [(truth, four_by_four) for truth in lines]
    )


def measure(truth: Truth, design: Callable, studies: int, seed: int) -> pd.Series:
    """The mean of each of study's figures."""
    return pd.DataFrame([study(truth, design, seed + number) for number in range(studies)]).astype(float).mean()


def main() -> None:
    """Run every case and write the table."""
    options, start = parse(Options), time.perf_counter()
    for truth, design in cases():
        figures = measure(truth, design, options.studies, options.seed)
        print(design.__name__, truth.name, truth.noise, figures.round(3).to_dict(), flush=True)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    run_script(main)
