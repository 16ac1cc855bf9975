"""Which learning rate goes with which batch size, how sure that is, and what it costs to know.

    python sweep.py run --data train.csv.gz --config recipes/digits_fast.yaml --epochs 2 --train-fraction 0.5
    python sweep.py fit                     # the law in plain sentences, and law.json
    python sweep.py fit --verify 48         # ... checked on a batch size that it has not seen
    python sweep.py plot                    # sweep.png
    python sweep.py find                    # the classic range test, beside the sweep's answer
    python sweep.py noise --batch-size 128  # the gradient noise scale along a whole training
    python sweep.py carry --tuned-at 128 --lr 6e-3 --batch-size 512    # what a tuned rate becomes there
    python sweep.py joint --sweeps A B C    # several sweeps in one fit: one slope? the batch or the steps?
    python sweep.py search --vary lr=1e-4..3e-2 opt=adamw,sgd    # Optuna over any settings

A sweep lies in runs/<run>_sweep/; its cells are ordinary runs of train_fold.py. The same command again goes on.
"""

import common  # noqa: F401  # isort: skip

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.base.cli import parse
from common.base.errors import UserError, run_script
from common.base.files import read_json, write_json
from common.base.result import Result
from common.base.system import cpu_count
from common.data.competition import competition_flags
from common.jobs.runner import SideBySide
from common.runs.config import Config
from common.sweep.cells import (
    FIGURE_FILE,
    FIND_FILE,
    LAW_FILE,
    NOISE_FILE,
    Sweep,
    find_sweep,
    noise_scale_in,
    read_cells,
    settled,
)
from common.sweep.checks import fitted, settings_of
from common.sweep.grid import Cell
from common.sweep.law import fit_law
from common.sweep.regression import Estimate
from common.sweep.run import asked_sweep, run_sweep
from common.sweep.verdict import law_json, lr_json, lr_text, sentences
from common.sweep.verification import earlier_verification, verify

TRAIN_SCRIPT = Path(__file__).with_name("train_fold.py")


@dataclass(frozen=True)
class Run(SideBySide, Config):
    """Train a grid of learning rates and batch sizes, everything else fixed: python sweep.py run"""

    # the grid
    COMMON = ("data", "work", "run", "config", "model", "epochs", "batch_sizes", "lrs", "repeats", "fold")
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)  # images per optimiser step
    lrs: tuple[str, ...] = ("auto",)  # peak learning rates (auto: chosen around lr * sqrt(size / batch_size))
    repeats: int = 1  # runs of every cell, each with its own seed
    budget: Literal["epochs", "steps"] = "epochs"  # what all cells share (steps: as many as the smallest size takes)
    fold: str = "0"  # number of the fold that is held out


@dataclass(frozen=True)
class Ended:
    """A sweep that has been run."""

    OLD_FLAGS = {"--runs": "--sweep"}
    sweep: str = ""  # its folder, or its name below runs_dir (default: the only one there)
    work: str = "."  # folder of one competition, short for --runs-dir DIR/runs
    runs_dir: str = "runs"  # folder that holds every run


@dataclass(frozen=True)
class Fit(Ended):
    """Fit the law to a sweep and print it: python sweep.py fit"""

    only: tuple[int, ...] = ()  # fit only these batch sizes, and leave law.json as it is
    predict: tuple[int, ...] = ()  # batch sizes to predict the best learning rate for
    verify: int = 0  # batch size outside the sweep: train a row of cells there and compare (0: off)


@dataclass(frozen=True)
class Plot(Ended):
    """Draw a sweep and its law: python sweep.py plot"""


@dataclass(frozen=True)
class Find(Ended):
    """The classic range test at one of the sweep's batch sizes: python sweep.py find"""

    batch_size: int = 0  # images per step (0: the middle one of the sweep)


@dataclass(frozen=True)
class Noise(Ended):
    """The gradient noise scale along a whole training of the sweep's settings: python sweep.py noise"""

    batch_size: int = 0  # images per step (0: the middle one of the sweep)
    lr: float = 0.0  # peak learning rate (0: the best one for the batch size)


@dataclass(frozen=True)
class Carry(Ended):
    """Carry a tuned learning rate to another batch size, by a sweep's law: python sweep.py carry --batch-size 512"""

    lr: float = 0.0  # the learning rate that suits --tuned-at (0: the sweep's own best there)
    tuned_at: int = 0  # batch size that it was tuned at (0: the middle one of the sweep)
    batch_size: int = 0  # batch size to carry it to
    noise_scale: float = 0.0  # of your own training, by sweep.py find or noise (0: the sweep's)


@dataclass(frozen=True)
class JointFit:
    """Fit several sweeps at once: python sweep.py joint --sweeps runs/a_sweep runs/b_sweep"""

    sweeps: tuple[str, ...] = ()  # their folders
    only: tuple[int, ...] = ()  # fit only these batch sizes
    min_steps: int = 0  # fit only the batch sizes whose runs have as many optimiser steps (0: all)
    out_dir: str = ""  # folder for joint.json and joint.png (default: they are not written)


@dataclass(frozen=True)
class Search(Config):
    """Search over any settings with Optuna, on one fold: python sweep.py search --vary lr=1e-4..3e-2"""

    vary: tuple[str, ...] = ("lr=1e-4..3e-2",)  # settings and their values: lr=1e-4..3e-2 opt=adamw,sgd
    trials: int = 20  # runs in total, over all workers
    fold: str = "0"  # number of the fold that is held out


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(__doc__)
        return
    if command not in COMMANDS:
        raise UserError("sweep.py", f"there is no command {command}", f"use {', '.join(COMMANDS)}")
    options, do = COMMANDS[command]
    do(parse(options, arguments[1:], competition_flags))


def run(options: Run) -> Result:
    """Train what the sweep asks for until nothing is missing or the time is over; its best cell."""
    return run_sweep(sweep_of(options), options, TRAIN_SCRIPT)


def sweep_of(options: Run) -> Sweep:
    """What the command line asks for.

    Raises:
        UserError: a number out of range, a setting that cannot be meant.
    """
    return asked_sweep(settings_of(options), options.batch_sizes, options.lrs, options.repeats, options.budget)


def ended_sweep(options: Ended) -> Sweep:
    """The sweep that the options name, or the only one there is."""
    return find_sweep(Path(options.runs_dir), options.sweep)


def fit(options: Fit) -> Result:
    """Fit the law, check it where asked, say it and write law.json; what that holds."""
    sweep = ended_sweep(options)
    cells = read_cells(sweep.folder)
    if options.only:
        cells = cells[cells.batch_size.isin(options.only)]
        if options.verify:
            raise UserError("--only", "--verify checks the law of all batch sizes", "use one of them")
    law = fit_law(cells)
    found = {"optimiser": sweep.config.opt, "n_runs": len(cells), "minutes": float(cells.seconds.sum() / 60)}
    print(f"{sweep.folder}: {found['n_runs']} runs with {found['optimiser']}, {found['minutes']:.0f} minutes")
    print("\n".join(sentences(law)))
    for batch_size, best, loss in zip(law.batch_sizes, law.optima, law.parabolas.losses, strict=True):
        print(f"batch size {batch_size:>5}: best lr {lr_text(best)}, nll_calibrated {loss:.4f}")
    for batch_size in options.predict:
        print(f"batch size {batch_size:>5}: predicted lr {lr_text(law.predict(batch_size))}")
    found |= law_json(law)
    found["predictions"] = [{"batch_size": size} | lr_json(law.predict(size)) for size in options.predict]
    if options.verify:
        found["verification"] = verify(sweep, law, cells, options.verify, TRAIN_SCRIPT)
    if not options.only:
        write_json(sweep.folder / LAW_FILE, earlier_verification(sweep, found) | found)
    return Result(found, sweep.folder)


def plot(options: Plot) -> Result:
    """Draw sweep.png."""
    from common.sweep.picture import draw_sweep

    sweep = ended_sweep(options)
    cells, cfg = read_cells(sweep.folder), sweep.config
    found = [read_json(path) for path in sorted(sweep.folder.glob(FIND_FILE.format("*")))]
    title = f"{cfg.model}, {cfg.opt}, {sweep.says_budget}"
    draw_sweep(sweep.folder / FIGURE_FILE, cells, fit_law(cells), title, found)
    print(f"{sweep.folder / FIGURE_FILE} written")
    return Result(None, sweep.folder)


def find(options: Find) -> Result:
    """Make the range test and say how far it is from what whole runs say."""
    sweep = settled(ended_sweep(options))
    batch_size = options.batch_size or sweep.middle_size
    best = fit_law(read_cells(sweep.folder)).predict(batch_size)
    sweep, table, folds = fitted(sweep)

    from common.sweep.range_test import range_test

    threads = sweep.config.threads or cpu_count()
    found = range_test(dataclasses.replace(sweep.config, batch_size=batch_size, threads=threads), table, folds)
    result = Result(dataclasses.asdict(found), sweep.folder)
    write_json(sweep.folder / FIND_FILE.format(batch_size), result.score)
    ratio = found.lr / best.value
    print(f"batch size {batch_size}: the range test suggests lr {found.lr:.2e}, the sweep {lr_text(best)}")
    print(f"the range test is x{max(ratio, 1 / ratio):.1f} {'above' if ratio > 1 else 'below'} the sweep")
    return result


def noise(options: Noise) -> Result:
    """Train once and say how the gradient's noise scale grows."""
    sweep = settled(ended_sweep(options))
    batch_size = options.batch_size or sweep.middle_size
    lr = options.lr or fit_law(read_cells(sweep.folder)).predict(batch_size).value
    sweep, table, folds = fitted(sweep)

    from common.sweep.range_test import noise_along

    cfg = dataclasses.replace(sweep.config_of(Cell(batch_size, lr)), threads=sweep.config.threads or cpu_count())
    found = [dataclasses.asdict(part) for part in noise_along(cfg, table, folds)]
    for part in found:
        print(f"steps {part['first_step']:>6} to {part['last_step']:<6} noise scale {part['noise_scale']:.0f} images")
    write_json(sweep.folder / NOISE_FILE.format(batch_size), {"batch_size": batch_size, "lr": lr, "parts": found})
    return Result({"parts": found}, sweep.folder)


def carry(options: Carry) -> Result:
    """Say what a tuned learning rate becomes at another batch size."""
    sweep = ended_sweep(options)
    law = fit_law(read_cells(sweep.folder))
    before, after = options.tuned_at or sweep.middle_size, options.batch_size
    if after < 1:
        raise UserError("--batch-size", "is not said", "give the batch size to carry the learning rate to")
    lr, scale = options.lr or law.predict(before).value, noise_ratio(options, sweep)
    ratio = law.ratio(before * scale, after * scale)
    carried = Estimate(lr * ratio.value, lr * ratio.low, lr * ratio.high)
    root = lr * math.sqrt(after / before)
    print(f"from {before} to {after} images: {lr_text(carried)}; the square root alone would say {root:.2e}")
    return Result(lr_json(carried) | {"square_root": root}, sweep.folder)


def noise_ratio(options: Carry, sweep: Sweep) -> float:
    """The sweep's gradient noise scale as a multiple of the user's own, in which units a turn carries over.

    Raises:
        UserError: the sweep's was never measured.
    """
    if not options.noise_scale:
        return 1.0
    if not (measured := noise_scale_in(sweep.folder)):
        what = f"that of {sweep.folder} was never measured"
        raise UserError("--noise-scale", what, f"run: python sweep.py find --sweep {sweep.folder}")
    return measured / options.noise_scale


def joint(options: JointFit) -> Result:
    """Fit several sweeps at once and say what they have in common."""
    from common.sweep.joint import fit_joint, joint_json, joint_sentences

    if len(options.sweeps) < 2:
        raise UserError("--sweeps", "a joint fit needs two sweeps", "name the folders of two or more")
    tables = {name: read_cells(ended_sweep(Ended(sweep=name)).folder) for name in options.sweeps}
    if options.only:
        tables = {name: cells[cells.batch_size.isin(options.only)] for name, cells in tables.items()}
    tables = {name: cells[cells.steps >= options.min_steps] for name, cells in tables.items()}
    found = fit_joint(tables)
    print("\n".join(joint_sentences(found)))
    score = joint_json(found)
    if options.out_dir:
        from common.sweep.joint_picture import draw_joint

        write_json(Path(options.out_dir) / "joint.json", score)
        draw_joint(Path(options.out_dir) / "joint.png", found)
    return Result(score, Path(options.out_dir or options.sweeps[0]))


def search(options: Search) -> Result:
    """Search with Optuna; the best trial."""
    from common.sweep.search import search as search_with_optuna

    return search_with_optuna(settings_of(options), options.vary, options.trials, TRAIN_SCRIPT)


COMMANDS = {
    "run": (Run, run),
    "fit": (Fit, fit),
    "plot": (Plot, plot),
    "find": (Find, find),
    "noise": (Noise, noise),
    "carry": (Carry, carry),
    "joint": (JointFit, joint),
    "search": (Search, search),
}


if __name__ == "__main__":
    run_script(main)
