"""The cells of a sweep: each is claimed, trained by train_fold.py in a process of its own, scored and recorded.

runs/<run>_sweep/
    sweep.json         what all cells share, and the grid
    sweep.csv          a row per ended cell
    law.json, sweep.png, find_b<B>.json, noise_b<B>.json  by sweep.py fit, plot, find, noise
    <cell>/cell.json   written last: the cell has ended
    <cell>/train.log   what train_fold.py printed
    <cell>/fold<k>/    an ordinary run
    <cell>/claim/      locked by whoever trains the cell (train_fold.py locks the folders of the run itself)
    verify/<cell>/     cells of batch sizes outside the sweep
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.base.cli import flags_of
from common.base.errors import ENVIRONMENT, INPUT, NUMBERS, OUT_OF_MEMORY, UserError
from common.base.files import read_json, write_file, write_json
from common.base.locks import locked
from common.base.strict_csv import read_records
from common.data.folds import read_folds
from common.data.kinds import PIXELS
from common.jobs.deadline import Deadline
from common.jobs.process import Job, Slot
from common.jobs.runner import INTERRUPTED, SideBySide, loaded_once, run_jobs, slots_for
from common.runs.config import Config, differences, saved_config, training_settings
from common.runs.layout import METRICS_FILE, OLD_NAMES, OOF_FILE, fold_folder, todays_names
from common.runs.predictions import read_predictions
from common.score.calibration import calibrated_loss
from common.score.metrics import counted
from common.score.task import TASKS
from common.sweep.grid import Cell, Grid, missing
from common.sweep.law import MIN_STEPS

SWEEP_FILE = "sweep.json"
TABLE_FILE = "sweep.csv"
LAST_LINES = 20  # of a log, in which libraries may add theirs to ours
LAW_FILE = "law.json"
FIGURE_FILE = "sweep.png"
FIND_FILE = "find_b{}.json"
NOISE_FILE = "noise_b{}.json"
VERIFY_FOLDER = "verify"
CELL_FILE = "cell.json"
LOG_FILE = "train.log"
CLAIM_FOLDER = "claim"
COLUMNS = [
    "batch_size",
    "lr",
    "seed",
    "steps",
    "status",
    "nll_calibrated",
    "errors",
    "n",
    "seconds_per_epoch",
    "seconds",
]


@dataclass(frozen=True)
class Sweep:
    """What all cells share, and the grid they fill."""

    folder: Path
    config: Config  # epochs are those of the smallest batch size; lr and batch_size the grid's first guess
    grid: Grid
    budget: str  # what all cells have the same of: "epochs" or "steps"
    warmup: float  # share of the steps

    def epochs_of(self, cell: Cell) -> int:
        """Passes over the training rows."""
        scale = cell.batch_size / min(self.grid.batch_sizes) if self.budget == "steps" else 1
        return max(1, round(self.config.epochs * scale))

    def steps_of(self, cell: Cell, rows: int) -> int:
        """Optimiser steps of a cell's run over so many training rows."""
        return self.config.steps or rows // cell.batch_size * self.epochs_of(cell)

    def config_of(self, cell: Cell) -> Config:
        """The settings of a cell's run."""
        epochs = self.epochs_of(cell)
        return dataclasses.replace(
            self.config,
            runs_dir=str(self.folder),
            run=cell.name,
            config="",
            batch_size=cell.batch_size,
            lr=cell.lr,
            seed=self.config.seed + cell.seed,
            epochs=epochs,
            warmup_epochs=self.warmup * epochs,
        )

    def with_config(self, **changes: Any) -> "Sweep":
        """The same sweep with other settings."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    @property
    def says_budget(self) -> str:
        """What every cell had the same of, in words."""
        if self.config.steps:
            return f"{self.config.steps:,} steps"
        if self.budget == "steps":
            return "the same number of steps for every batch size"
        share = "" if self.config.train_fraction == 1 else f" of {self.config.train_fraction:.0%} of the rows"
        return f"{self.config.epochs} epochs{share}"

    @property
    def training_rows(self) -> int:
        """About how many images an epoch has."""
        folds = read_folds(Path(self.config.folds), self.config.task, self.config.positive)
        rows = round(self.config.train_fraction * int((folds.fold != int(self.config.fold)).sum()))
        return min(rows, self.config.limit) if self.config.limit else rows


def claim_sweep(sweep: Sweep) -> None:
    """Write sweep.json, unless the folder holds a sweep with other settings; its grid may grow.

    Raises:
        UserError: naming each setting that differs.
    """
    path = sweep.folder / SWEEP_FILE
    with locked(sweep.folder, wait=True):
        if path.exists() and (changed := differences(_fixed(read_sweep(sweep.folder)), _fixed(sweep))):
            remedy = "use the same settings or another --run"
            raise UserError(str(path), f"this sweep was made with different settings ({', '.join(changed)})", remedy)
        write_json(path, dataclasses.asdict(dataclasses.replace(sweep, folder=sweep.folder.name)))


def _fixed(sweep: Sweep) -> dict[str, Any]:
    augment = PIXELS.preset(sweep.config.augment, channels=1)  # what an older version wrote for today's auto
    fixed = training_settings(sweep.config) | {"augment": augment}
    fixed |= {"fold": sweep.config.fold, "warmup": sweep.warmup}
    if sweep.budget == "steps":
        fixed["steps_of_batch_size"] = min(sweep.grid.batch_sizes)
    return fixed | {"budget": sweep.budget}


def read_sweep(folder: Path) -> Sweep:
    """The sweep in ``folder``; raises UserError where there is none."""
    path = folder / SWEEP_FILE
    entries = read_json(path, grid=dict, config=dict, budget=str, warmup=(int, float))
    grid = {name: tuple(value) if isinstance(value, list) else value for name, value in entries["grid"].items()}
    try:
        return Sweep(folder, saved_config(entries["config"]), Grid(**grid), entries["budget"], entries["warmup"])
    except TypeError as error:
        raise UserError(str(path), f"does not have the entries of a sweep ({error})", "run the sweep again") from error


def read_cells(folder: Path) -> pd.DataFrame:
    """The table of all cells that have ended, a row each, by batch size, learning rate and seed."""
    rows = [todays_names(read_json(path), OLD_NAMES[TABLE_FILE]) for path in folder.glob(f"b*/{CELL_FILE}")]
    if not rows and (folder / TABLE_FILE).exists():  # a published sweep: the table without the runs
        text = ("status", "channels_last", "mixed_precision")
        return read_records(folder / TABLE_FILE, COLUMNS, text, OLD_NAMES[TABLE_FILE])
    cells = pd.DataFrame(rows, columns=COLUMNS)
    return cells.sort_values(["batch_size", "lr", "seed"], ignore_index=True)


def settled(sweep: Sweep) -> Sweep:
    """The sweep with the memory format and precision of its first cell, or as it is before there is one."""
    for path in sorted(sweep.folder.glob(f"b*/{CELL_FILE}")):
        cell = read_json(path)
        if cell["status"] == "done":
            return sweep.with_config(channels_last=cell["channels_last"], mixed_precision=cell["mixed_precision"])
    return sweep


class CellRunner:
    """Has the cells that ``plan`` asks for trained by ``script``, side by side as ``options`` say.

    ``plan`` maps the table of ended cells to all cells wanted so far. Several processes may do the same at once:
    a cell belongs to whoever locks its claim.

    Raises:
        UserError: a batch size of cells that are missing exceeds the training rows.
    """

    def __init__(self, sweep: Sweep, plan: Callable[[pd.DataFrame], list[Cell]], options: SideBySide, script: Path):
        self.sweep, self.plan, self.options, self.script = sweep, plan, options, script
        self.deadline = Deadline(options.hours)
        self.rows, self.slots = 0, []
        self.claims: dict[str, tuple[Cell, float, ExitStack]] = {}  # by name, with the time it began
        if todo := self._missing():
            self.rows = sweep.training_rows
            largest = max(cell.batch_size for cell in todo)
            if largest > self.rows:
                what = f"batch size {largest} exceeds the {self.rows:,} training rows"
                raise UserError("--batch-sizes", what, "leave it out")

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
