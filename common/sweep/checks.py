"""What is checked before a sweep or a search begins: its cells and trials would be refused for it one by one."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from common.base.errors import UserError
from common.data.competition import beside, read_competition
from common.data.folds import Folds, read_data, split_rows
from common.data.table import Table
from common.runs.config import SIZE_FLAG, Config, check_config, saved_config
from common.runs.fitting import check_sources, fitting
from common.runs.layout import METRICS_FILE, read_metrics
from common.runs.teachers import read_unlabelled, teacher_folder, with_unlabelled
from common.sweep.cells import Sweep
from common.sweep.grid import Cell


def settings_of(options: Config) -> Config:
    """What all runs of a sweep or a search have in common: the settings of a training among the options.

    Raises:
        UserError: a setting that cannot be meant.
    """
    cfg = saved_config(vars(options)).of_task
    # The batch sizes are those of the cells and trials, which are checked with them; cfg's only places a guess.
    check_config(dataclasses.replace(cfg, batch_size=cfg.accumulate), processes=1)
    if cfg.restart:
        raise UserError("--restart", "would delete a whole sweep", "delete its folder, or name another --run")
    if not cfg.fold.isdecimal():
        raise UserError("--fold", f"{cfg.fold} is not a single fold", "give its number")
    # The runs' own --runs-dir is the sweep's folder, where no run of that name lies.
    teachers = {way: tuple(str(teacher_folder(cfg, run)) for run in getattr(cfg, way)) for way in ("teacher", "pseudo")}
    return dataclasses.replace(cfg, **teachers)


def fitted(sweep: Sweep) -> tuple[Sweep, Table, Folds]:
    """The sweep with the model that fits what its cells train on, and that."""
    cfg = sweep.config
    table, folds = read_data(cfg.data, cfg.folds, cfg.task, cfg.positive)
    return dataclasses.replace(sweep, config=fitting(cfg, table, folds)), table, folds


def check_cells(sweep: Sweep, todo: Sequence[Cell], table: Table, folds: Folds, size_flag: str) -> int:
    """Refuse the cells ``todo``, of batch sizes that ``size_flag`` has said; the rows that each trains on.

    Raises:
        UserError: settings that do not go together, or files that cannot be used.
    """
    for cell in todo:
        check_config(sweep.config_of(cell), processes=1, size_flag=size_flag)
    largest = max(todo, key=lambda cell: cell.batch_size)
    check_files(sweep.config_of(largest), table, folds, size_flag)
    cfg = sweep.config
    return len(split_rows(folds, cfg.fold, cfg.train_fraction, cfg.limit)[0])


def check_same_folds(folder: Path, folds: Folds) -> None:
    """Refuse to go on with the sweep or search in ``folder`` whose runs were trained with other folds.

    Raises:
        UserError: naming both folds' fingerprints.
    """
    for metrics in list(folder.glob(f"*/fold*/{METRICS_FILE}"))[:1]:
        theirs, ours = read_metrics(metrics.parent)["folds_fingerprint"][:16], folds.fingerprint[:16]
        if theirs != ours:
            what = f"its runs were trained with different folds (fingerprint {theirs}, here {ours})"
            raise UserError(str(folder), what, "name the folds file it was begun with, or use another --run")


def check_files(cfg: Config, table: Table, folds: Folds, size_flag: str = SIZE_FLAG) -> None:
    """Refuse, before anything is written, what a run with the settings ``cfg`` would refuse of its files.

    Raises:
        UserError: no such fold, too few rows; unlabelled rows, weights or teachers that cannot be used.
    """
    if int(cfg.fold) >= folds.count:
        raise UserError("--fold", f"there is no fold {cfg.fold}", f"use 0 to {folds.count - 1}")
    competition = read_competition(beside(cfg.folds))
    cfg = with_unlabelled(cfg, competition)
    if cfg.unlabelled:
        read_unlabelled(cfg, table, competition)
    check_sources(cfg, folds, [cfg.fold], size_flag)
