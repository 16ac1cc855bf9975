"""Settings against the rows, targets and files that a training needs: what can be refused before torch is loaded."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from common.base.errors import UserError, refuse
from common.data.competition import beside, read_competition
from common.data.features import column_at, without
from common.data.folds import Folds, split_rows
from common.data.kinds import KINDS
from common.data.table import Table
from common.runs.config import SIZE_FLAG, Config, check_file, check_transform, of_fold
from common.runs.teachers import check_teachers
from common.score.metrics import check_targets


def check_sources(cfg: Config, folds: Folds, todo: Sequence[str], size_flag: str = SIZE_FLAG) -> None:
    """Refuse what the folds ``todo`` cannot be trained on, or start from; ``size_flag`` has said the batch size.

    Raises:
        UserError: rows that do not fill one batch; weights or teachers that are not there, or must not be.
    """
    for fold in todo:
        filled_rows(folds, fold, cfg, size_flag)
        if cfg.weights:
            check_file("--weights", of_fold(cfg, fold).weights)
    check_teachers(cfg, folds, todo)


def filled_rows(folds: Folds, fold: str, cfg: Config, size_flag: str = SIZE_FLAG) -> np.ndarray:
    """The rows that a fold trains on; raises UserError, about ``size_flag``, where they do not fill one batch."""
    rows, _ = split_rows(folds, fold, cfg.train_fraction, cfg.limit)
    if len(rows) < cfg.batch_size:
        what = f"batch size {cfg.batch_size} exceeds the {len(rows)} training rows"
        raise UserError(size_flag, what, f"use at most {len(rows)}")
    return rows


def fitting(cfg: Config, table: Table, folds: Folds) -> Config:
    """The settings with the model that fits the table's kind of inputs where none was chosen.

    Raises:
        UserError: something that only images have, or a model of images; a metric or a transform that the targets do
            not have.
    """
    check_targets(cfg.metric, folds.targets)
    if cfg.target_transform != "none":
        check_transform(folds.targets)
    kind = table.kind
    dropped = read_competition(beside(cfg.folds)).drop  # already, from the table
    cfg = dataclasses.replace(cfg, drop=tuple(name for name in cfg.drop if name not in dropped))
    for name in {name for each in KINDS.values() for name in each.takes}.difference(kind.takes):
        if getattr(cfg, name):
            whose = " and ".join(each.name for each in KINDS.values() if name in each.takes)
            what = f"is for {whose}, but {table.source} has {kind.name}"
            raise UserError(f"--{name.replace('_', '-')}", what, "leave it out")
    if table.plan:
        plan = without(table.plan, cfg.drop)
        if cfg.offset:
            column_at(plan, cfg.offset)
    if kind.of_images:
        return cfg
    images_alone = {"channels": 0, "img_size": 0, "show_batch": ""}
    refused = [name for name, default in images_alone.items() if getattr(cfg, name, default) != default]
    if cfg.augment not in ("auto", "none"):
        refused.append("augment")
    if cfg.augment_args:
        refused.append("augment_args")
    if cfg.channels_last == "yes":
        refused.append("channels_last")
    if refused:
        flag = f"--{refused[0].replace('_', '-')}"
        raise UserError(flag, f"is for images, but {table.source} has {kind.name}", "leave it out")
    if cfg.model in kind.in_runs:
        what = f"would tear apart the {kind.name} that {cfg.model} takes in a row"
        tearing = {"--sampling": cfg.sampling == "balanced", "--unlabelled, --pseudo": cfg.joins_rows}
        refuse(tearing, what, "leave it out")
    if cfg.model == Config.model:
        return dataclasses.replace(cfg, model=kind.models[0])
    if cfg.model not in kind.models:
        sees = next((each.name for each in KINDS.values() if cfg.model in each.models), "images")
        what = f"{cfg.model} looks at {sees}, but {table.source} has {kind.name}"
        raise UserError("--model", what, f"use {' or '.join(kind.models)}")
    return cfg
