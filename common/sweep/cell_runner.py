"""Has the cells of a sweep trained: each is claimed, trained by train_fold.py in a process of its own, and recorded."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.base.cli import flags_of
from common.base.errors import ENVIRONMENT, INPUT, NUMBERS, OUT_OF_MEMORY, UserError
from common.base.files import read_json, write_file, write_json
from common.base.locks import locked
from common.jobs.deadline import Deadline
from common.jobs.process import Job, Slot
from common.jobs.runner import INTERRUPTED, SideBySide, loaded_once, run_jobs, slots_for
from common.runs.layout import METRICS_FILE, OOF_FILE, fold_folder
from common.runs.predictions import read_predictions
from common.score.calibration import calibrated_loss
from common.score.metrics import counted
from common.score.task import TASKS
from common.sweep.cells import CELL_FILE, SWEEP_FILE, TABLE_FILE, Sweep, read_cells, settled
from common.sweep.grid import Cell, missing
from common.sweep.parabolas import MIN_STEPS

LOG_FILE = "train.log"
CLAIM_FOLDER = "claim"
LAST_LINES = 20  # of a log, in which libraries may add theirs to ours


class CellRunner:
    """Has the cells that ``plan`` asks for trained by ``script``, side by side as ``options`` say.

    ``plan`` maps the table of ended cells to all cells wanted so far, each of which trains on ``rows`` rows (those that
    are missing have passed :func:`common.sweep.checks.check_cells`). Several processes may do the same at once: a cell
    belongs to whoever locks its claim.
    """

    def __init__(
        self, sweep: Sweep, plan: Callable[[pd.DataFrame], list[Cell]], rows: int, options: SideBySide, script: Path
    ):
        self.sweep, self.plan, self.rows, self.options, self.script = sweep, plan, rows, options, script
        self.deadline, self.slots = Deadline(options.hours), []
        self.claims: dict[str, tuple[Cell, float, ExitStack]] = {}  # by name, with the time it began

    def run(self) -> pd.DataFrame:
        """Train until nothing is missing, or nothing more can end in time; returns the table.

        Raises:
            UserError: the very first cells are refused for a reason that will meet all; the disk is full.
        """
        if not self._missing():
            return self._cells()
        most = len(self.plan(self._cells()))  # not what is missing: a sweep that goes on has the threads it began with
        slots, threads = slots_for(self.options, self.sweep.config.threads, most)
        self.sweep = self.sweep.with_config(threads=threads)
        with loaded_once(slots, len(self._missing())) as self.slots:
            self._train_all()
        return self._cells()

    def _train_all(self) -> None:
        with locked(self.sweep.folder, wait=True):  # the first cell measures for all others, so it runs alone
            self.sweep = settled(self.sweep)
            while "auto" in (self.sweep.config.channels_last, self.sweep.config.mixed_precision):
                if not self._train(self._missing()[:1], self.slots[:1]):
                    break
                self.sweep = settled(self.sweep)
        print(f"all cells: {self._shared()}", flush=True)
        while todo := self._missing():
            if not self._train(todo, self.slots):
                if all(self._late(cell) for cell in todo):
                    break
                time.sleep(1)  # others train what is left; what they find may ask for more

    def _cells(self) -> pd.DataFrame:
        return read_cells(self.sweep.folder)

    def _missing(self) -> list[Cell]:
        cells = self._cells()
        return missing(self.plan(cells), cells)

    def _train(self, todo: list[Cell], slots: list[Slot]) -> bool:
        """Train those of ``todo`` that nobody else does; whether there were any."""
        try:
            return bool(run_jobs(self._claimed(todo), slots, self._ended))
        finally:
            for _, _, claim in self.claims.values():
                claim.close()
            self.claims.clear()

    def _claimed(self, todo: list[Cell]) -> Iterator[Job]:
        """A job for each cell that is free, that has not ended, and that can end in time."""
        for cell in todo:
            folder, claim = self.sweep.folder / cell.name, ExitStack()
            if self._late(cell):
                continue
            try:
                claim.enter_context(locked(folder / CLAIM_FOLDER))
            except UserError:
                continue  # another process trains it
            if (folder / CELL_FILE).exists():
                claim.close()
                continue
            self.claims[cell.name] = cell, time.monotonic(), claim
            command = (str(self.script), *flags_of(self.sweep.config_of(cell)))
            yield Job(cell.name, command, log=str(folder / LOG_FILE))

    def _ended(self, job: Job, exit_code: int) -> None:
        """Score and record a cell whose process has ended, and say how far the sweep is."""
        if exit_code in INTERRUPTED:  # with us, most likely: it says nothing about the cell
            sys.exit(INTERRUPTED[exit_code])
        cell, start, claim = self.claims.pop(job.name)
        folder = self.sweep.folder / cell.name
        with claim:
            if exit_code == INPUT and not len(self._cells()):  # nothing to keep: the corrected command begins anew
                (self.sweep.folder / SWEEP_FILE).unlink(missing_ok=True)
            first = not (self._cells().status == "done").any()
            stop_if_all_fail(folder / LOG_FILE, exit_code, first, "sweep")
            row = dataclasses.asdict(cell) | {"seconds": time.monotonic() - start} | self._result(cell, exit_code)
            write_json(folder / CELL_FILE, row)
        cells = self._cells()
        write_file(self.sweep.folder / TABLE_FILE, cells.to_csv(index=False))
        planned = self.plan(cells)
        left = sum(self._expected_seconds(cells, other) for other in missing(planned, cells)) / len(self.slots)
        says = row["status"]
        if says == "done":
            task = TASKS[self.sweep.config.task]
            says = (
                f"{task.compared} {row['nll_calibrated']:.4f}, {counted(row['errors'])} {task.counted} of {row['n']:,}"
            )
        print(
            f"{len(planned) - len(missing(planned, cells)):>3}/{len(planned)}  {job.name:<20} {says}  "
            f"{row['seconds']:.0f} s, {left / 60:.0f} min left",
            flush=True,
        )

    def _result(self, cell: Cell, exit_code: int) -> dict[str, Any]:
        """What a cell's process came to."""
        epochs = self.sweep.epochs_of(cell)
        if exit_code:
            status = "diverged" if exit_code == NUMBERS else "failed"
            return {"status": status, "exit_code": exit_code, "steps": self.sweep.steps_of(cell, self.rows)}
        fold = fold_folder(self.sweep.folder / cell.name, self.sweep.config.fold)
        metrics = read_json(fold / METRICS_FILE)
        return {
            "status": "done",
            "steps": metrics["steps"],
            "seconds_per_epoch": metrics["steps"] / epochs * cell.batch_size / metrics["images_per_second"],
            "channels_last": "yes" if metrics["memory_format"] == "channels_last" else "no",
            "mixed_precision": metrics["computed_in"],
            **out_of_fold(fold),
        }

    def _late(self, cell: Cell) -> bool:
        return self.deadline.misses(self._expected_seconds(self._cells(), cell))

    def _expected_seconds(self, cells: pd.DataFrame, cell: Cell) -> float:
        """What a cell of the nearest batch size took (median), and more where this one has more steps."""
        if not len(cells):
            return 0.0
        distance = (np.log2(cells.batch_size) - math.log2(cell.batch_size)).abs()
        nearest = cells[distance == distance.min()]
        other = Cell(int(nearest.batch_size.iloc[0]), 0.0)
        steps, other_steps = (self.sweep.steps_of(each, self.rows) for each in (cell, other))
        return float(nearest.seconds.median() * max(1.0, steps / max(1, other_steps)))

    def _shared(self) -> str:
        """What all cells have in common, in one line."""
        cfg, sizes = self.sweep.config, sorted({cell.batch_size for cell in self.plan(self._cells())})
        steps = {size: self.sweep.steps_of(Cell(size, 0.0), self.rows) for size in sizes}
        most, least = max(steps.values()), min(steps.values())
        count = f"{most:,}" if most == least else f"{most:,} to {least:,}"
        short = [str(size) for size in sizes if steps[size] < MIN_STEPS]
        return (
            f"{cfg.model}, {' '.join((cfg.opt, *cfg.opt_args))}, fold {cfg.fold}, {self.rows:,} rows, "
            f"{count} steps, warm-up {self.sweep.warmup:.0%} of them, "
            f"schedule {' '.join((cfg.schedule, *cfg.schedule_args))}, weight decay {cfg.weight_decay:g}, "
            f"mixed precision {cfg.mixed_precision}, channels_last {cfg.channels_last}, {cfg.threads} threads"
            + (f"; batch size {', '.join(short)}: under {MIN_STEPS} steps, not fitted" if short else "")
        )


def stop_if_all_fail(log: Path, exit_code: int, first: bool, of: str) -> None:
    """End a sweep or a search, ``of`` which a job has failed, for a reason that will meet all others.

    ``log`` is what the job has printed; ``first``: none has succeeded before it. A batch that does not fit is the
    job's own; what else the machine refuses, it will refuse to the next.

    Raises:
        UserError: with the job's last words and its exit code.
    """
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    fits = not any(OUT_OF_MEMORY in line for line in said[-LAST_LINES:])
    if (exit_code == ENVIRONMENT and fits) or (exit_code == INPUT and first):
        last = said[-1].removeprefix("error: ") if said else "it printed nothing"
        raise UserError(str(log), last, f"the {of} stops here", exit_code)


def out_of_fold(fold_path: Path) -> dict[str, Any]:
    """How good the predictions of a fold's held-out rows are."""
    oof = read_predictions(fold_path / OOF_FILE)
    outputs, targets = oof.outputs, oof.places
    loss, costs = calibrated_loss(outputs, targets, oof.task), oof.task.cost(outputs, targets)
    return {"nll_calibrated": loss, "errors": oof.task.count(costs).item(), "n": len(oof.ids)}
