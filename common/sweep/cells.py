"""What a sweep is, its files and its table; common/sweep/cell_runner.py has its cells trained.

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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from common.base.errors import UserError
from common.base.files import read_json, write_json
from common.base.locks import locked
from common.base.strict_csv import read_records
from common.data.kinds import PIXELS
from common.runs.config import Config, differences, saved_config, training_settings
from common.runs.layout import OLD_NAMES, todays_names
from common.sweep.grid import Cell, Grid

SWEEP_FILE = "sweep.json"
TABLE_FILE = "sweep.csv"
LAW_FILE = "law.json"
FIGURE_FILE = "sweep.png"
FIND_FILE = "find_b{}.json"
NOISE_FILE = "noise_b{}.json"
VERIFY_FOLDER = "verify"
CELL_FILE = "cell.json"
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
    def batch_sizes(self) -> list[int]:
        """Those of the grid and of the cells that have ended: the last command may have asked for a few alone."""
        return sorted({*self.grid.batch_sizes, *read_cells(self.folder).batch_size.tolist()})

    @property
    def middle_size(self) -> int:
        """The middle one of the batch sizes."""
        return self.batch_sizes[len(self.batch_sizes) // 2]

    @property
    def fixed(self) -> dict[str, Any]:
        """What must not change while the sweep goes on; its grid may grow."""
        augment = PIXELS.preset(self.config.augment, channels=1)  # what an older version wrote for today's auto
        fixed = training_settings(self.config) | {"augment": augment}
        fixed |= {"fold": self.config.fold, "warmup": self.warmup}
        if self.budget == "steps":
            fixed["steps_of_batch_size"] = min(self.grid.batch_sizes)
        return fixed | {"budget": self.budget}


class Claimed(Protocol):
    """A dataclass that describes a sweep or a search, whose file lies in its folder."""

    folder: Path

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that must not change while it goes on."""


def claim_folder(new: Claimed, file: str, read: Callable[[Path], Claimed]) -> bool:
    """Write ``file`` of a sweep or a search, unless its folder has one with other settings, as ``read`` says.

    Whether the folder had none.

    Raises:
        UserError: naming each setting that differs.
    """
    path = new.folder / file
    with locked(new.folder, wait=True):
        there = path.exists()
        if there and (changed := differences(read(new.folder).fixed, new.fixed)):
            what = f"this {path.stem} was made with different settings ({', '.join(changed)})"
            raise UserError(str(path), what, "use the same settings or another --run")
        write_json(path, dataclasses.asdict(dataclasses.replace(new, folder=new.folder.name)))
    return not there


def claim_sweep(sweep: Sweep) -> None:
    """Write sweep.json; raises UserError where the folder holds a sweep with other settings."""
    claim_folder(sweep, SWEEP_FILE, read_sweep)


def read_sweep(folder: Path) -> Sweep:
    """The sweep in ``folder``; raises UserError where there is none."""
    path = folder / SWEEP_FILE
    entries = read_json(path, grid=dict, config=dict, budget=str, warmup=(int, float))
    grid = {name: tuple(value) if isinstance(value, list) else value for name, value in entries["grid"].items()}
    try:
        return Sweep(folder, saved_config(entries["config"]), Grid(**grid), entries["budget"], entries["warmup"])
    except TypeError as error:
        raise UserError(str(path), f"does not have the entries of a sweep ({error})", "run the sweep again") from error


def find_sweep(runs_dir: Path, named: str) -> Sweep:
    """The sweep in the folder ``named``, which may lie below ``runs_dir``; without a name the only one there is.

    Raises:
        UserError: there is none, or it has to be named.
    """
    there = [path.parent for path in sorted(runs_dir.glob(f"*/{SWEEP_FILE}"))]
    found = [path for path in (Path(named), runs_dir / named) if path.is_dir()][:1] if named else there
    if len(found) == 1:
        return read_sweep(found[0])
    what = f"there is no folder {named}" if named else f"found {len(found)} sweeps below {runs_dir}"
    names = ", ".join(path.name for path in there)
    raise UserError("--sweep", what, f"name one: {names}" if there else "make one: python sweep.py run")


def read_cells(folder: Path) -> pd.DataFrame:
    """The table of all cells that have ended, a row each, by batch size, learning rate and seed."""
    rows = [todays_names(read_json(path), OLD_NAMES[TABLE_FILE]) for path in folder.glob(f"b*/{CELL_FILE}")]
    if not rows and (folder / TABLE_FILE).exists():  # a published sweep: the table without the runs
        text = ("status", "channels_last", "mixed_precision")
        return read_records(folder / TABLE_FILE, COLUMNS, text, OLD_NAMES[TABLE_FILE])
    cells = pd.DataFrame(rows, columns=COLUMNS)
    return cells.sort_values(["batch_size", "lr", "seed"], ignore_index=True)


def noise_scale_in(folder: Path) -> float:
    """The gradient noise scale early in a training, in images: the mean of those range tests that tell it, or 0."""
    found = [read_json(path)["noise_scale"] for path in sorted(folder.glob(FIND_FILE.format("*")))]
    told = [scale for scale in found if scale]
    return sum(told) / len(told) if told else 0.0


def settled(sweep: Sweep) -> Sweep:
    """The sweep with the memory format and precision of its first cell, or as it is before there is one."""
    for path in sorted(sweep.folder.glob(f"b*/{CELL_FILE}")):
        cell = read_json(path)
        if cell["status"] == "done":
            return sweep.with_config(channels_last=cell["channels_last"], mixed_precision=cell["mixed_precision"])
    return sweep
