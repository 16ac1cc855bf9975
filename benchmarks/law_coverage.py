"""Is the law's interval honest? Synthetic studies with a known answer: python -m benchmarks.law_coverage

Each study plans its cells (common/sweep/grid.py), draws their losses from a known truth and fits the law
(common/sweep/law.py), exactly as sweep.py does. Writes benchmarks/law_coverage.md.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import write_file
from common.sweep.grid import FIRST, Cell, Grid, missing, wanted
from common.sweep.joint import fit_joint, parts_of_a_fall
from common.sweep.law import LAWS, fit_law, surge

BATCH_SIZES = (8, 16, 32, 64, 128, 256, 512)
UNSEEN = 48  # a batch size that is predicted, not run
CARRIED = ((16, 64), (16, 256), (64, 512))  # batch sizes from and to which a tuned learning rate is carried
REPORT = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class Options:
    """Simulate studies of learning rate and batch size whose answer is known."""

    studies: int = 2000  # per case


@dataclass(frozen=True)
class Truth:
    """How the log loss of a run comes about. Around the best learning rate it is a parabola of log2 lr."""

    name: str
    slope: float  # of the best learning rate; the surge's is 0, since it peaks in the middle of the batch sizes
    noise: float  # standard deviation of one run's log loss
    surge: bool = False
    curvature: float = 0.02  # a learning rate x2 off costs 2 % of the loss
    drift: float = 0.0  # doublings of the curvature per doubling of the batch size
    lean: float = 1.0  # how many times steeper the loss is above the best learning rate than below it
    breaks: float = math.inf  # doublings above the best learning rate at which a run diverges
    uneven: float = 0.0  # how much the noise grows per doubling away from the best learning rate

    def optimum(self, batch_size: float) -> float:
        """log2 of the best learning rate."""
        u = math.log2(batch_size / 64)
        return math.log2(3e-3) + (float(surge(u, 0.0)) if self.surge else self.slope * u)

    def excess(self, batch_size: float, log2_lr: float) -> float:
        """Mean log loss above that of the best learning rate."""
        miss = log2_lr - self.optimum(batch_size)
        curvature = self.curvature * 2 ** (self.drift * math.log2(batch_size / 64))
        return curvature * miss**2 * (self.lean if miss > 0 else 1)

    def run(self, cells: list[Cell], random: np.random.Generator) -> pd.DataFrame:
        """The rows that a sweep would have recorded."""
        rows = []
        for cell in cells:
            miss = math.log2(cell.lr) - self.optimum(cell.batch_size)
            noise = self.noise * (1 + self.uneven * abs(miss)) * random.standard_normal()
            level = 0.05 * math.exp(0.02 * math.log2(cell.batch_size / 64) ** 2)
            status = "diverged" if miss > self.breaks else "done"
            nll = level * math.exp(self.excess(cell.batch_size, math.log2(cell.lr)) + noise)
            rows.append((cell.batch_size, cell.lr, cell.seed, 1000, status, nll if status == "done" else math.nan))
        return pd.DataFrame(rows, columns=["batch_size", "lr", "seed", "steps", "status", "nll_calibrated"])


def guessed_grid(truth: Truth, random: np.random.Generator) -> Grid:
    """A grid whose guess is up to x2.8 off at batch size 64."""
    return Grid(BATCH_SIZES, lr=2 ** (truth.optimum(64) + random.uniform(-1.5, 1.5)), batch_size=64)


def whole_sweep(truth: Truth, random: np.random.Generator) -> pd.DataFrame:
    """The default: both stages, edges, repeats of the centre."""
    grid, cells = guessed_grid(truth, random), truth.run([], random)
    while todo := missing(wanted(grid, cells), cells):
        cells = (
            pd.concat([cells, truth.run(todo, random)], ignore_index=True) if len(cells) else truth.run(todo, random)
        )
    return cells


def first_stage(truth: Truth, random: np.random.Generator) -> pd.DataFrame:
    """The default's first 35 runs: 7 batch sizes x 5 learning rates x4 apart."""
    grid = guessed_grid(truth, random)
    return truth.run([cell for batch_size in BATCH_SIZES for cell in grid.cells(batch_size, FIRST)], random)


def by_hand(truth: Truth, random: np.random.Generator) -> pd.DataFrame:
    """4 batch sizes x 4 learning rates x2 apart, the same ones for every batch size."""
    middle = truth.optimum(22.6) + random.uniform(-1.5, 1.5)
    return truth.run([Cell(b, 2 ** (middle + d)) for b in (8, 16, 32, 64) for d in (-1.5, -0.5, 0.5, 1.5)], random)


def crossed_studies(optimum: Callable[[float, float], float], noise: float, seed: int) -> dict[str, pd.DataFrame]:
    """Tables of three sweeps by their steps: 32, 128 and 512 images, crossed with 64, 256 and 1,024 steps.

    ``optimum`` gives log2 of the best learning rate of (batch size, steps); seven are tried around a guess of it.
    """
    random, tables = np.random.default_rng(seed), {}
    for steps in (64, 256, 1024):
        rows = []
        for batch_size in (32, 128, 512):
            best, guess = optimum(batch_size, steps), random.uniform(-1, 1)
            for miss in (guess + doublings for doublings in (*FIRST, -1, 1)):
                nll = 0.05 * math.exp(0.03 * miss**2 + noise * random.standard_normal())
                rows.append((batch_size, 2 ** (best + miss), 0, steps, "done", nll))
        columns = ["batch_size", "lr", "seed", "steps", "status", "nll_calibrated"]
        tables[str(steps)] = pd.DataFrame(rows, columns=columns)
    return tables


Design = Callable[[Truth, np.random.Generator], pd.DataFrame]


def study(truth: Truth, design: Design, seed: int) -> dict[str, float]:
    """One simulated study: what it cost and whether it was right."""
    cells = design(truth, np.random.default_rng(seed))
    law = fit_law(cells, seed=seed)
    predicted, (top, top_size) = law.predict(UNSEEN), law.surge_top
    wrong = [name for name in law.fitting if LAWS[name] != truth.slope]
    carried = [(law.ratio(*pair), 2 ** (truth.optimum(pair[1]) - truth.optimum(pair[0]))) for pair in CARRIED]
    return {
        "runs": len(cells),
        "covered": law.slope.low <= truth.slope <= law.slope.high,
        "half_width": law.slope.half_width,
        "wrong_ruled_out": not wrong,
        "undecided": law.more_runs > 0,
        "optimum_covered": np.mean(
            [e.low <= 2 ** truth.optimum(b) <= e.high for b, e in zip(law.batch_sizes, law.optima, strict=True)]
        ),
        "predicted_covered": predicted.low <= 2 ** truth.optimum(UNSEEN) <= predicted.high,
        "carried_covered": np.mean([ratio.low <= true <= ratio.high for ratio, true in carried]),
        "predicted_width": math.log2(predicted.high / predicted.low) / 2,
        "predicted_costs": math.expm1(truth.excess(UNSEEN, math.log2(predicted.value))),
        "surge_better": law.surge_gain > 0,
        "surge_clear": law.surges,
        "top_lr_near": abs(math.log2(top.value) - truth.optimum(64)) < math.log2(1.5),
        "top_size_near": abs(math.log2(top_size.value / 64)) < math.log2(1.5),
    }


def measure(truth: Truth, design: Design, studies: int) -> pd.Series:
    """Means of :func:`study`'s figures; medians of the widths, which have no mean where the curvature may be 0."""
    table = pd.DataFrame([study(truth, design, seed) for seed in range(studies)]).astype(float)
    widths = ["half_width", "predicted_width", "predicted_costs"]
    return pd.concat([table.drop(columns=widths).mean(), table[widths].median()])


def announced(studies: int) -> dict[str, float]:
    """Whether the number of further runs that an undecided study asks for is enough (noise 20 %, slope 0.5)."""
    truth, asked, enough = Truth("slope 0.5", 0.5, 0.2), [], []
    for seed in range(studies):
        random = np.random.default_rng(seed)
        cells = first_stage(truth, random)
        if more := fit_law(cells, seed=seed).more_runs:
            again = [Cell(row.batch_size, row.lr) for row in cells.sample(frac=1, random_state=seed).itertuples()]
            cells = pd.concat(
                [cells, truth.run([again[k % len(again)] for k in range(more)], random)], ignore_index=True
            )
            asked.append(more)
            enough.append(fit_law(cells, seed=seed).more_runs == 0)
    return {"undecided": len(asked) / studies, "asked": float(np.median(asked)), "enough": float(np.mean(enough))}


def crossed(cause: str, studies: int, noise: float) -> dict[str, float]:
    """How often a crossed study's interval covers the part that batch size, and steps, have in a fall; one slope too.

    The best learning rate follows the square root of batch size and steps alike, or the surge curve of the batch size.
    """

    def optimum(batch_size: float, steps: float) -> float:
        u, s = math.log2(batch_size / 64), math.log2(steps / 256)
        return 0.5 * u + 0.5 * s if cause == "steps" else float(surge(u, 0.5))

    corners = (64, 524), (512, 524), (512, 64)
    best = [optimum(*corner) for corner in corners]
    true = {"batch size": best[1] - best[0], "steps": best[2] - best[1], "in all": best[2] - best[0]}
    found = []
    for seed in range(studies):
        joint = fit_joint(crossed_studies(optimum, noise, seed), seed=seed)
        parts = parts_of_a_fall(joint.surface(), corners[0], corners[2])
        row = {name: part.low <= true[name] <= part.high for name, part in parts.items()}
        slope = joint.slopes[0]  # at equal steps; the surge curve has none
        row["slope"] = slope.low <= 0.5 <= slope.high
        found.append(row | {"width": parts["steps"].half_width, "p": joint.p_values()["steps have no part"] < 0.05})
    return pd.DataFrame(found).astype(float).mean().to_dict()


def unlike(noises: Sequence[float], studies: int) -> dict[str, float]:
    """Studies of the square root with noises of their own, fitted at once: what covers 0.5, and what is refused."""
    truths = [Truth(f"{noise:.0%}", 0.5, noise) for noise in noises]
    found = []
    for seed in range(studies):
        random = np.random.default_rng(seed)
        joint = fit_joint({str(k): first_stage(truth, random) for k, truth in enumerate(truths)}, seed=seed)
        slope, slopes, p = joint.slopes
        row = {"one": slope.low <= 0.5 <= slope.high, "width": slope.half_width, "refused": p < 0.05}
        found.append(row | {"each": np.mean([own.low <= 0.5 <= own.high for own in slopes])})
    table = pd.DataFrame(found).astype(float)
    return table.mean().to_dict() | {"width": table.width.median()}


LINES = [Truth(f"slope {slope:g}", slope, noise) for slope in (0, 0.5, 1) for noise in (0.05, 0.1)]
SURGES = [Truth("surge", 0.0, noise, surge=True) for noise in (0.05, 0.1)]
HARDER = [
    replace(Truth("", slope, 0.05), name=f"slope {slope:g}, {name}", **change)
    for slope in (0.5, 1)
    for name, change in {
        "x2 off costs 8 %": {"curvature": 0.08},
        "curvature x8 over the batch sizes": {"curvature": 0.04, "drift": 0.5},
        "noise x2 at x16 off": {"uneven": 0.25},
        "x3 steeper above the best": {"lean": 3.0},
        "x3 steeper above, diverges at x8": {"lean": 3.0, "breaks": 3.0},
    }.items()
]
UNLIKE = [(0.05, 0.05, 0.05), (0.05, 0.1, 0.2)]
PLAN = {
    "The default's first stage, 7 batch sizes x 5 learning rates x4 apart": (first_stage, LINES + SURGES),
    "The whole default sweep": (whole_sweep, LINES + SURGES),
    "The whole default sweep where the model is wrong": (whole_sweep, HARDER),
    "By hand: 4 batch sizes x 4 learning rates x2 apart": (by_hand, LINES),
}
HEADER = [
    "truth", "noise", "runs", "slope's interval covers", "its half-width", "wrong laws ruled out", "cannot tell",
    "optimum's interval covers", "prediction's interval covers", "its half-width (doublings)", "its lr costs",
    "carried rate's interval covers", "surge has the lower AIC", "by 2 or more", "its lr within x1.5",
    "its batch size within x1.5",
]  # fmt: skip


def row(truth: Truth, figures: pd.Series) -> list[str]:
    """One line of the report."""
    f = figures
    cells = [truth.name, f"{truth.noise:.0%}", f"{f.runs:.1f}", f"{f.covered:.1%}", f"{f.half_width:.3f}"]
    cells += ["" if truth.surge else f"{f.wrong_ruled_out:.1%}", f"{f.undecided:.1%}", f"{f.optimum_covered:.1%}"]
    cells += [f"{f.predicted_covered:.1%}", f"{f.predicted_width:.2f}", f"{f.predicted_costs:.2%}"]
    cells += [f"{f.carried_covered:.1%}", f"{f.surge_better:.1%}", f"{f.surge_clear:.1%}"]
    return cells + ([f"{f.top_lr_near:.1%}", f"{f.top_size_near:.1%}"] if truth.surge else ["", ""])


def main() -> None:
    """Run every case and write the report."""
    options, start = parse(Options), time.process_time()
    lines = [
        "# Is the law's interval honest?",
        "",
        f"`python -m benchmarks.law_coverage --studies {options.studies}`: {options.studies:,} synthetic studies per "
        "line, each planned, run and fitted as `sweep.py` does it. Unless a line says otherwise, a learning rate x2 "
        "off costs 2 % of the loss; the noise is one run's standard deviation of log loss; the guess that centres the "
        "grid is up to x2.8 off. All intervals are meant to be 95 %. Half-widths and costs are medians. The surge "
        "peaks at batch size 64, so its mean slope is 0. The prediction is for batch size "
        f"{UNSEEN}, which is never run; its cost is the loss above that of the best learning rate. A tuned learning "
        f"rate is carried {', '.join(f'from {before} to {after}' for before, after in CARRIED)} images.",
    ]
    for title, (design, truths) in PLAN.items():
        lines += ["", f"## {title}", "", f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
        for truth in truths:
            lines.append(f"| {' | '.join(row(truth, measure(truth, design, options.studies)))} |")
            print(lines[-1], flush=True)
    lines += [
        "",
        "## Batch sizes and steps crossed: what each has in a fall from (64, 524 steps) to (512, 64 steps)",
        "",
    ]
    heads = ["cause", "noise", "batch's part covered", "steps' part covered", "its half-width (doublings)"]
    heads += ["the fall covered", "steps said to have a part", "the slope of all studies covered"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for cause, noise in [(cause, noise) for cause in ("steps", "noise scale") for noise in (0.05, 0.1)]:
        f = crossed(cause, options.studies, noise)
        cells = [f"{f['batch size']:.1%}", f"{f['steps']:.1%}", f"{f['width']:.2f}", f"{f['in all']:.1%}"]
        cells += [f"{f['p']:.1%}", f"{f['slope']:.1%}" if cause == "steps" else ""]
        lines.append(f"| {' | '.join([cause, f'{noise:.0%}', *cells])} |")
        print(lines[-1], flush=True)
    lines += ["", "## Three studies of the square root fitted at once", ""]
    heads = ["noise of each", "one slope covered", "its half-width", "each study's slope covered", "one slope refused"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for noises in UNLIKE:
        f = unlike(noises, options.studies)
        cells = [", ".join(f"{noise:.0%}" for noise in noises), f"{f['one']:.1%}", f"{f['width']:.3f}"]
        cells += [f"{f['each']:.1%}", f"{f['refused']:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    found = announced(options.studies)
    lines += [
        "",
        "## Is the announced number of further runs enough?",
        "",
        f"First stage, slope 0.5, noise 20 %: {found['undecided']:.0%} of the studies cannot tell and ask for "
        f"{found['asked']:.0f} more runs (median). With those, {found['enough']:.0%} can tell.",
        "",
        f"{(time.process_time() - start) / 60:.0f} minutes of one core.",
    ]
    write_file(REPORT, "\n".join(lines) + "\n")
    print(lines[-3])


if __name__ == "__main__":
    run_script(main)
