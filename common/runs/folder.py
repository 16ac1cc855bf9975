"""A run's folder while it is trained in: looked at before torch is loaded, gone on with or thrown away, completed.

What lies in it is said in common/runs/layout.py.
"""

import dataclasses
import os
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from common.base.errors import ENVIRONMENT, OwnError, UserError
from common.base.files import check_folder, read_json, remove_strays, write_json
from common.base.locks import check_unlocked, locked
from common.base.system import rank
from common.data.folds import Folds
from common.runs.config import Config, differences, training_settings
from common.runs.decision import learned_decision
from common.runs.layout import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    MODEL_FILE,
    OOF_FILE,
    fold_folder,
    is_finished,
    read_metrics,
    unfinished,
)
from common.runs.oof import alike_in, join_oof, oof_answers
from common.runs.predictions import Predictions, write_predictions
from common.runs.saved_model import SavedModel
from common.runs.teachers import TAUGHT_BY, check_same_teachers, taught_by
from common.score.answers import Answers
from common.score.bootstrap import interval_of
from common.score.decisions import can_be_learned
from common.score.metrics import describe, score_of, show

FEWEST = 5  # groups or times whose drawing says anything


def check_place(run_folder: Path, wanted: list[str]) -> None:
    """Refuse, before torch is loaded, a run's folder that cannot be written into or that another process trains in."""
    if rank() == 0:
        check_folder(run_folder)
        folders = [fold_folder(run_folder, fold) for fold in wanted]
        for folder in [folder for folder in folders if not is_finished(folder)][:1]:  # a later one may be free by then
            check_unlocked(folder)


def start_over(run_folder: Path) -> None:
    """Throw a run away after saying what is in it; refused while another process trains in it."""
    if not run_folder.exists():
        return
    if not any(run_folder.glob(f"*/{CONFIG_FILE}")):
        raise UserError(str(run_folder), "is not a run that --restart may delete", "delete it yourself")
    with ExitStack() as locks:
        for folder in sorted(path.parent for path in run_folder.glob(f"*/{CONFIG_FILE}")):
            locks.enter_context(locked(folder))
            state = "finished" if is_finished(folder) else "unfinished"
            print(f"--restart deletes {folder} ({state}: {', '.join(sorted(os.listdir(folder)))})")
        files = sorted(path.name for path in run_folder.iterdir() if path.is_file())
        print(f"--restart deletes {run_folder} ({', '.join(files)})")
        if os.name != "posix":
            locks.close()  # Windows removes no open file
        shutil.rmtree(run_folder)


def check_settings(folder: Path, cfg: Config, folds: Folds) -> None:
    """Refuse a run that was made with other settings or folds, and a fold, in ``folder``, begun with other teachers.

    Raises:
        UserError: naming each setting that differs.
    """
    settings = training_settings(cfg) | {"folds_fingerprint": folds.fingerprint}
    for other in sorted(folder.parent.glob(f"*/{CONFIG_FILE}")):
        recorded = read_json(other)
        teachers = recorded.pop(TAUGHT_BY, {})
        if changed := differences(recorded, settings):
            remedy = "use the same settings, another --run, or --restart to delete the run"
            raise UserError(str(other), f"this run was made with different settings ({', '.join(changed)})", remedy)
        if other.parent == folder and not is_finished(folder):
            check_same_teachers(other, teachers, cfg, folder.name)


def start_or_go_on(folder: Path, cfg: Config, folds: Folds) -> None:
    """Refuse a run that was made otherwise (:func:`check_settings`); else sweep up and leave our own settings."""
    check_settings(folder, cfg, folds)
    sweep_up(folder)
    if not (folder / CONFIG_FILE).exists():
        settings = training_settings(cfg) | {"folds_fingerprint": folds.fingerprint}
        write_json(folder / CONFIG_FILE, settings | taught_by(cfg, folder.name))


def sweep_up(folder: Path) -> None:
    """Remove what a killed training has left in a fold's folder, which the caller holds."""
    remove_strays(folder)
    if is_finished(folder):
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def as_recorded(cfg: Config, recorded: Mapping[str, Any]) -> Config:
    """The settings with what only a training finds out (0 and auto mean: find out), as a fold's config.json has it."""
    open_ones = [name for name in ("channels", "img_size") if not getattr(cfg, name)]
    if cfg.augment == "auto":
        open_ones.append("augment")
    if cfg.mixed_precision != "no":  # what was asked for may not have worked
        open_ones.append("mixed_precision")
    return dataclasses.replace(cfg, **{name: recorded[name] for name in open_ones if name in recorded})


def check_shared(folder: Path, patience: float = 60) -> None:
    """Refuse to train beside processes of another machine on a run that this one cannot see.

    A network disk may show a new folder late; ``patience`` is how many seconds it gets.
    """
    end = time.monotonic() + patience
    while not (folder / CONFIG_FILE).exists():
        if time.monotonic() > end:
            what = f"created by the main process but not visible on {socket.gethostname()}"
            raise OwnError(str(folder), what, "put --runs-dir on a disk that all machines share", ENVIRONMENT)
        time.sleep(0.5)


def save_fold(
    folder: Path,
    saved: SavedModel,
    tensors: Mapping[str, Any],
    oof: Predictions | None,
    store: str,
    figures: Mapping[str, Any],
    alike: tuple[np.ndarray, str],
) -> dict[str, Any]:
    """Write model, OOF predictions (if any) and, last, metrics.json with its ``figures``; returns the metrics.

    ``alike`` says which rows of the OOF predictions are not independent (:func:`common.runs.oof.alike_in`). The
    checkpoint has then done its work.
    """
    from common.runs.tensors import save_tensors

    sha256_of = {MODEL_FILE: save_tensors(folder / MODEL_FILE, tensors, saved.to_metadata())}
    metrics = saved.in_metrics | figures
    if oof is not None:
        sha256_of[OOF_FILE] = write_predictions(folder / OOF_FILE, oof, store)
        metrics |= oof.score(saved.cfg.metric)
        units, shared = alike
        if shared and "accuracy" in metrics and len(set(units)) >= FEWEST:
            metrics["low"], metrics["high"] = interval_of("accuracy", oof.answers(), units)
    metrics["sha256_of"] = sha256_of
    write_json(folder / METRICS_FILE, metrics)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return metrics


def finished_line(folder: Path, fold: str, metric: str) -> str:
    """That a fold is finished, with its score if it has one."""
    metrics = read_metrics(folder)
    return f"fold {fold} is finished" + (f": {describe(metrics, metric)}" if "n" in metrics else "")


def with_interval(scores: dict[str, Any], answers: Answers, folds: Folds, metric: str) -> str:
    """A score in words, with the interval that groups or times allow, and what the most frequent class alone is worth.

    ``answers`` are those of :func:`common.runs.oof.oof_answers`.
    """
    units, shared = alike_in(folds, np.argsort(folds.fold, kind="stable")[(folds.fold < 0).sum() :])
    first = "accuracy" if "accuracy" in scores else metric
    low, high = interval_of(first, answers, units)
    says = describe(scores | {"low": low, "high": high}, metric)
    if first != "accuracy":
        says = f"{describe(scores, metric)}, 95 % interval of {first} {show(first, low)} - {show(first, high)}"
    if not shared:
        return says
    says += f" by {len(set(units)):,} {shared}, whose rows are alike"
    if folds.task.is_one_of:
        often = np.bincount(answers.targets).argmax()
        others = answers.targets != often
        share = show("accuracy", 1 - others.mean())
        says += f"; {folds.output_names[often]} alone would be right in {share} of the rows"
        says += f", and in the others the run is in {show('accuracy', 1 - answers.costs[others].mean())}"
    return says


def say_result(run_folder: Path, folds: Folds, metric: str) -> dict[str, Any] | None:
    """Print the score of every fold, and of the joined out-of-fold predictions, the local CV, which is returned.

    Where folds are missing, they are printed instead.
    """
    numbers = [str(number) for number in range(folds.count)]
    if left := unfinished(run_folder, numbers):
        print(f"{run_folder.name}: no time left for fold {', '.join(left)}; run the same command to continue")
        return None
    for number in numbers:
        print(f"fold {number}: {describe(read_metrics(fold_folder(run_folder, number)), metric)}")
    answers = oof_answers(run_folder, folds, metric)
    scores = score_of(answers, folds.task.metrics, metric)
    is_said = folds.task.is_number or alike_in(folds, folds.fold >= 0)[1]
    said = with_interval(scores, answers, folds, metric) if is_said else describe(scores, metric)
    print(f"local CV of {run_folder.name}: {said}")
    if can_be_learned(folds.task, metric) and (text := learned_decision([join_oof(run_folder, folds)], metric).text):
        print(text)
    return scores
