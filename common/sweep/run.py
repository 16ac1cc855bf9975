"""A sweep from its command to its best cell."""

import math
from functools import partial
from pathlib import Path

from common.base.cli import parse
from common.base.errors import UserError, warn
from common.base.result import Result
from common.jobs.runner import SideBySide
from common.runs.config import Config, check_signatures
from common.sweep.cell_runner import CellRunner
from common.sweep.cells import Sweep, claim_sweep, read_cells
from common.sweep.checks import check_cells, check_same_folds, fitted
from common.sweep.grid import Grid, missing, on_edge, wanted


def asked_sweep(cfg: Config, batch_sizes: tuple[int, ...], lrs: tuple[str, ...], repeats: int, budget: str) -> Sweep:
    """The sweep around the settings ``cfg``; ``lrs`` as they were typed, or auto alone.

    Raises:
        UserError: a number out of range.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise UserError("--batch-sizes", f"{batch_sizes} cannot be trained", "give numbers above 0")
    if cfg.steps and budget == "steps":
        raise UserError("--budget", "steps has no meaning beside --steps: every cell takes as many", "leave it out")
    rates = () if lrs == ("auto",) else tuple(map(learning_rate, lrs))
    sizes = tuple(sorted(set(batch_sizes)))
    grid = Grid(sizes, rates, lr=cfg.lr, batch_size=cfg.batch_size, repeats=max(1, repeats))
    # A warm-up in epochs belongs to the epochs beside which it was written: the recipe's, or the command line's.
    recipe = parse(Config, ["--config", cfg.config] if cfg.config else [])
    written = cfg if cfg.warmup_epochs != recipe.warmup_epochs else recipe
    folder = Path(cfg.runs_dir) / f"{cfg.run_name}_sweep"
    return Sweep(folder, cfg, grid, budget, warmup=written.warmup_epochs / written.epochs)


def learning_rate(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise UserError("--lrs", f"{text} is not a valid learning rate", "give numbers above 0, or auto alone")
    return number


def run_sweep(asked: Sweep, options: SideBySide, script: Path) -> Result:
    """Train with ``script`` what a sweep asks for until nothing is missing or the time is over; its best cell.

    Raises:
        UserError: what :func:`common.sweep.checks.check_cells` refuses, before the sweep's folder is made; the folder
            holds a sweep with other settings or folds; see :meth:`CellRunner.run`.
    """
    check_signatures(asked.config)
    sweep, table, folds = fitted(asked)
    check_same_folds(sweep.folder, folds)
    plan, cells = partial(wanted, sweep.grid), read_cells(sweep.folder)
    todo = missing(plan(cells), cells)
    rows = check_cells(sweep, todo, table, folds, "--batch-sizes") if todo else 0
    runner = CellRunner(sweep, plan, rows, options, script)
    claim_sweep(sweep)
    cells = runner.run()
    if left := missing(plan(cells), cells):
        print(f"{sweep.folder}: {len(left)} cells are left; run the same command to continue")
    else:
        ended = ", ".join(f"{count} {status}" for status, count in cells.status.value_counts().items())
        print(f"{sweep.folder}: complete, {ended}")
        for batch_size in on_edge(cells):
            warn(f"batch size {batch_size}: its best learning rate is the last one tried; better ones may lie beyond")
    print(f"next: python sweep.py fit --sweep {sweep.folder}")
    done = cells[cells.status == "done"]
    return Result(done.loc[done.nll_calibrated.idxmin()].to_dict() if len(done) else None, sweep.folder)
