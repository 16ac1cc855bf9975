"""The runs that teach another: found, checked to have seen no row that a fold holds out, and recorded by it.

Fold k of a student learns from the teachers' models of fold k and from no others: those of the other folds, and so
their out-of-fold predictions, have seen the labels of the rows that fold k holds out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.base.errors import UserError
from common.base.files import read_json, sha256
from common.data.competition import Competition
from common.data.folds import Folds
from common.data.reading import EMBEDDED, read_test_table
from common.data.table import Table
from common.runs.config import Config
from common.runs.layout import CONFIG_FILE, finished_folds, fold_folder, is_finished, model_sha256, read_metrics

TAUGHT_BY = "taught_by"  # in a fold's config.json: the models and files that it learns from


def teacher_folder(cfg: Config, run: str) -> Path:
    """The folder of a run that is named by its name or by a path."""
    own = Path(cfg.runs_dir) / run
    return own if own.is_dir() or not Path(run).is_dir() else Path(run)


def check_teachers(cfg: Config, folds: Folds, todo: Sequence[str]) -> None:
    """Refuse, before torch is loaded, teachers that cannot teach the folds ``todo``, or must not.

    Raises:
        UserError: a run that does not exist or is the student itself; a fold that is not finished or was trained with
            other folds, with --limit, or for another task.
    """
    for flag, runs in (("--teacher", cfg.teacher), ("--pseudo", cfg.pseudo)):
        for run in runs:
            folder = teacher_folder(cfg, run)
            if not folder.is_dir():
                raise UserError(flag, f"there is no run {run}", "name a finished run, or its folder")
            if folder.resolve() == (Path(cfg.runs_dir) / cfg.run_name).resolve():
                raise UserError(flag, f"{run} is the run to be trained", "give the student another --run")
            for fold in todo:
                _check_fold(cfg, folds, fold_folder(folder, fold))
            if flag == "--pseudo":  # whose out-of-fold predictions say how sure is sure
                for path in finished_folds(folder):
                    _check_fold(cfg, folds, path)


def _check_fold(cfg: Config, folds: Folds, path: Path) -> None:
    if not is_finished(path):
        raise UserError(str(path), "is not finished, so that it cannot teach", "train it first")
    metrics = read_metrics(path)
    if metrics["folds_fingerprint"] != folds.fingerprint:
        what = "was trained with different folds and may have seen the rows that are held out here"
        raise UserError(str(path), what, "name a run that was trained with the same folds file")
    if metrics.get("limit"):
        raise UserError(str(path), "is a smoke run, trained with --limit", "name another teacher")
    task = read_json(path / CONFIG_FILE).get("task", Config.task)
    if task != cfg.task:
        raise UserError(str(path), f"was trained for the task {task}, not {cfg.task}", "name another teacher")


def read_unlabelled(cfg: Config, table: Table, competition: Competition) -> Table:
    """The table of ``--unlabelled``, whose rows join those of the train table.

    Raises:
        UserError: it cannot be read, or its rows are of another kind or size.
    """
    found = read_test_table(cfg.unlabelled, cfg.data, competition.sample, competition)
    shapes = [each.kind.shape(each) for each in (found, table)] if table.kind.of_images else ["", ""]
    if found.kind is not table.kind or shapes[0] != shapes[1]:
        what = f"has {found.kind.name} {shapes[0]}, but {table.source} has {table.kind.name} {shapes[1]}"
        raise UserError(f"--unlabelled {found.source}", what, "name rows of the same kind and size")
    return found


def with_unlabelled(cfg: Config, competition: Competition) -> Config:
    """The settings with the test table where rows are wanted and none were named.

    Raises:
        UserError: nobody says which it is.
    """
    if cfg.unlabelled or not cfg.joins_rows:
        return cfg
    embedded = EMBEDDED if cfg.data == EMBEDDED else ""
    if not (path := competition.test or embedded):
        raise UserError("--unlabelled", "is missing", "name the table or the folder of rows without labels")
    return replace(cfg, unlabelled=path)


def taught_by(cfg: Config, fold_name: str) -> dict[str, Any]:
    """What teaches a fold, as its config.json records it: the sha256 of each model, and of the unlabelled rows' file.

    ``fold_name`` is that of the fold's folder. Of a folder its files' names and sizes count. Empty without teachers.
    """
    runs = dict.fromkeys([*cfg.teacher, *cfg.pseudo])
    found = {f"{run}/{fold_name}": model_sha256(teacher_folder(cfg, run) / fold_name) for run in runs}
    path = Path(cfg.unlabelled)
    if cfg.unlabelled and path.is_file():
        found[cfg.unlabelled] = sha256(path.read_bytes())
    elif cfg.unlabelled and path.is_dir():
        files = sorted((file.relative_to(path).as_posix(), file.stat().st_size) for file in path.rglob("*"))
        found[cfg.unlabelled] = sha256(json.dumps(files).encode())
    return {TAUGHT_BY: found} if found else {}


def check_same_teachers(path: Path, recorded: Mapping[str, str], cfg: Config, fold_name: str) -> None:
    """Raise UserError where a fold began with another model or file than there is now; its config.json is ``path``."""
    for name, content in taught_by(cfg, fold_name).get(TAUGHT_BY, {}).items():
        if recorded.get(name) != content:
            what = f"began to learn from {name} as it was before it changed"
            raise UserError(str(path), what, "use another --run, or --restart to delete this one")
