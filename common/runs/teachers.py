"""The runs that teach another: found, checked to have seen no row that a fold holds out, and recorded by it.

Fold k of a student learns from the teachers' models of fold k and from no others: those of the other folds, and so
their out-of-fold predictions, have seen the labels of the rows that fold k holds out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.base.errors import UserError
from common.base.files import read_json
from common.data.folds import Folds
from common.runs.config import Config
from common.runs.layout import CONFIG_FILE, fold_folder, is_finished, model_sha256, read_metrics

TAUGHT_BY = "taught_by"  # in a fold's config.json: the model files that it learned from


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
    for run in cfg.teacher:
        folder = teacher_folder(cfg, run)
        if not folder.is_dir():
            raise UserError("--teacher", f"there is no run {run}", "name a finished run, or its folder")
        if folder.resolve() == (Path(cfg.runs_dir) / cfg.run_name).resolve():
            raise UserError("--teacher", f"{run} is the run to be trained", "give the student another --run")
        for fold in todo:
            _check_fold(cfg, folds, fold_folder(folder, fold))


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


def taught_by(cfg: Config, fold_name: str) -> dict[str, Any]:
    """The sha256 of each model that teaches a fold, as its config.json records it; empty without teachers.

    ``fold_name`` is that of the fold's folder.
    """
    found = {f"{run}/{fold_name}": model_sha256(teacher_folder(cfg, run) / fold_name) for run in cfg.teacher}
    return {TAUGHT_BY: found} if found else {}


def check_same_teachers(path: Path, recorded: Mapping[str, str], cfg: Config, fold_name: str) -> None:
    """Raise UserError where a teacher was trained again since the fold began, as its config.json at ``path`` says."""
    for model, sha256 in taught_by(cfg, fold_name).get(TAUGHT_BY, {}).items():
        if recorded.get(model) != sha256:
            what = f"began with another model of the teacher {model}, which was trained again since"
            raise UserError(str(path), what, "use another --run, or --restart to delete this one")
