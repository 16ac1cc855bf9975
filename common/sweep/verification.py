"""A law checked on a batch size that it was not fitted to."""

import dataclasses
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.base.errors import UserError
from common.base.files import read_json
from common.jobs.runner import SideBySide
from common.sweep.cell_runner import CellRunner
from common.sweep.cells import LAW_FILE, VERIFY_FOLDER, Sweep, read_cells, settled
from common.sweep.checks import check_cells, fitted
from common.sweep.grid import FIRST, Grid, mean_losses, missing
from common.sweep.law import Law, fit_law
from common.sweep.parabolas import WORST
from common.sweep.verdict import lr_json, lr_text


def verify(sweep: Sweep, law: Law, cells: pd.DataFrame, batch_size: int, script: Path) -> dict[str, Any]:
    """Train one row of cells with ``script`` at a batch size outside the sweep, and compare its optimum with the
    prediction, in print and for law.json.

    Raises:
        UserError: the batch size belongs to the sweep or cannot be trained, or too few of the cells can be fitted.
    """
    if batch_size in sweep.batch_sizes:
        raise UserError("--verify", f"batch size {batch_size} belongs to the sweep", "name one that does not")
    predicted = law.predict(batch_size)
    # x4 apart as in the sweep where a parabola is wide enough for that, else x2.
    curvature = np.interp(batch_size, law.batch_sizes, law.parabolas.curvatures)
    doublings = FIRST if curvature * max(FIRST) ** 2 < math.log(WORST) else (0, -1, 1, -2, 2)
    row = Grid((batch_size,), lr=predicted.value, batch_size=batch_size).cells(batch_size, doublings)
    beside = dataclasses.replace(settled(sweep), folder=sweep.folder / VERIFY_FOLDER)
    rows = 0
    if todo := missing(row, read_cells(beside.folder)):
        _, table, folds = fitted(beside)
        rows = check_cells(beside, todo, table, folds, "--verify")
    held_out = CellRunner(beside, lambda _: row, rows, SideBySide(), script).run()
    both = fit_law(pd.concat([cells, held_out[held_out.batch_size == batch_size]], ignore_index=True))
    if batch_size not in both.batch_sizes:
        raise UserError("--verify", f"too few of its {len(row)} cells can be fitted", "name another batch size")
    measured = both.optima[both.batch_sizes.tolist().index(batch_size)]
    apart = abs(math.log2(measured.value / predicted.value))
    agrees = apart <= math.hypot(predicted.doublings, measured.doublings)
    losses = mean_losses(held_out[held_out.batch_size == batch_size].itertuples())
    cost = losses[row[0].lr] / min(losses.values()) - 1
    print(
        f"batch size {batch_size:>5}: predicted lr {lr_text(predicted)}, measured {lr_text(measured)}: "
        f"{'they agree' if agrees else 'they differ by more than chance'} (x{2**apart:.2f})\n"
        f"the run at lr {row[0].lr:.2e} has a loss {cost:.1%} above the best of {len(losses)} learning rates there"
    )
    return {
        "batch_size": batch_size,
        "predicted": lr_json(predicted),
        "measured": lr_json(measured),
        "agrees": agrees,
        "cost": cost if math.isfinite(cost) else None,
    }


def earlier_verification(sweep: Sweep, found: dict[str, Any]) -> dict[str, Any]:
    """What an earlier --verify wrote into law.json, if it was of the same runs."""
    path = sweep.folder / LAW_FILE
    with suppress(UserError):  # a damaged file is replaced
        earlier = read_json(path) if path.is_file() else {}
        if earlier.get("n_runs") == found["n_runs"] and "verification" in earlier:
            return {"verification": earlier["verification"]}
    return {}
