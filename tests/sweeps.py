"""Sweeps that are finished at once: their losses are those of a study whose answer is known."""

from pathlib import Path

import numpy as np
import pandas as pd

import sweep
from benchmarks.law_coverage import Truth
from common.base.cli import parse
from common.base.files import write_json
from common.sweep.cells import CELL_FILE, VERIFY_FOLDER, claim_sweep
from common.sweep.grid import FIRST, Grid, cells_of, missing, wanted
from common.sweep.law import fit_law


def complete(grid: Grid, truth: Truth, seed: int = 0, together: int = 1000) -> pd.DataFrame:
    """The table of a sweep that ran to its end, a few cells at a time."""
    random = np.random.default_rng(seed)
    cells = truth.run([], random)
    while todo := missing(wanted(grid, cells), cells):
        ended = truth.run(todo[:together], random)
        cells = pd.concat([cells, ended], ignore_index=True) if len(cells) else ended
    return cells


def finished_sweep(tiny: Path) -> Path:
    """The folder, below the current one, of a complete sweep with slope 0.5 and 3 % noise, and of a verification row at
    batch size 48."""
    options = parse(sweep.Run, ["--data", str(tiny / "train.csv"), "--folds", str(tiny / "folds.csv"), "--run", "it"])
    asked, truth = sweep.sweep_of(options), Truth("", 0.5, 0.03, curvature=0.05)
    claim_sweep(asked)
    cells = complete(asked.grid, truth, seed=1)
    record(asked.folder, cells)
    row = Grid((48,), lr=fit_law(cells).predict(48).value, batch_size=48).cells(48, FIRST)
    record(asked.folder / VERIFY_FOLDER, truth.run(row, np.random.default_rng(1)))
    return asked.folder


def record(folder: Path, cells: pd.DataFrame) -> None:
    more = {"errors": 80, "n": 8400, "seconds_per_epoch": 9.0, "seconds": 20.0}
    for cell, values in zip(cells_of(cells), cells.to_dict("records"), strict=True):
        settled = {"channels_last": "no", "mixed_precision": "no"}
        write_json(folder / cell.name / CELL_FILE, values | more | settled)
