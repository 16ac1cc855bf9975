"""What a run's folder holds and how its files are called.

runs/.decoded/<key>.npy                                  photos as pixels, decoded once for all runs
runs/<run>/memory_format.json                            measured once for all folds
runs/<run>/fold<k>/  (or full/)
    config.json        settings, written first
    log.csv            a row per epoch
    checkpoint.safetensors   while it trains
    model.safetensors  the weights, with all that infer.py needs to know
    oof.npz            predictions of the rows that the fold held out
    metrics.json       written last: the fold is finished
    trace.json         with --trace
runs/<run>/test.npz, submission.csv, inference.json      by infer.py; with test-time augmentation also
    oof_tta.npz        the OOF predictions under the same views
runs/ensemble/weights.json, oof.npz, test.npz, submission.csv
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.base.errors import UserError, warn
from common.base.files import read_json

MEMORY_FORMAT_FILE = "memory_format.json"
CONFIG_FILE = "config.json"
LOG_FILE = "log.csv"
CHECKPOINT_FILE = "checkpoint.safetensors"
MODEL_FILE = "model.safetensors"
OOF_FILE = "oof.npz"
METRICS_FILE = "metrics.json"
TRACE_FILE = "trace.json"
TEST_FILE = "test.npz"
TTA_OOF_FILE = "oof_tta.npz"
INFERENCE_FILE = "inference.json"
SUBMISSION_FILE = "submission.csv"
WEIGHTS_FILE = "weights.json"
OLD_NAMES = {  # words that an earlier version wrote, and today's: such files are still read
    LOG_FILE: {"valid_loss": "nll"},
    WEIGHTS_FILE: {"tempered_nll": "nll_calibrated"},
    "sweep.csv": {"nll": "nll_calibrated"},
}
METADATA_KEY = "fivefold"  # of a safetensors file's metadata: all of it as one JSON text


def todays_names(value: Any, old_names: Mapping[str, str]) -> Any:
    """What was read of a json file, with every key that an earlier version wrote in today's word."""
    if isinstance(value, list):
        return [todays_names(part, old_names) for part in value]
    if isinstance(value, dict):
        return {old_names.get(name, name): todays_names(part, old_names) for name, part in value.items()}
    return value


def fold_folder(run_folder: Path, fold: int | str) -> Path:
    """The folder of one fold (a number, as int or text, or ``full``) of a run."""
    return run_folder / (fold if fold == "full" else f"fold{fold}")


def is_finished(fold_path: Path) -> bool:
    """Whether the training in a fold's folder came to its end."""
    return (fold_path / METRICS_FILE).is_file()


def unfinished(run_folder: Path, folds: Iterable[str]) -> list[str]:
    """Those of a run's folds whose training has not come to its end."""
    return [fold for fold in folds if not is_finished(fold_folder(run_folder, fold))]


def read_metrics(fold_path: Path) -> dict[str, Any]:
    """The metrics.json of a fold's folder; raises UserError where it is missing or damaged."""
    return read_json(fold_path / METRICS_FILE, folds_fingerprint=str)


def check_stated(path: Path, content: str) -> None:
    """Compare the sha256 of a file's ``content`` with what the fold's metrics.json, written last, says of it.

    Raises:
        UserError: the file is another one, such as another run's.
    """
    metrics_path = path.parent / METRICS_FILE
    stated = read_json(metrics_path).get("sha256_of", {}) if metrics_path.is_file() else {}
    if isinstance(stated, dict) and stated.get(path.name, content) != content:
        remedy = f"restore it, or delete {path.parent} and train this fold again"
        raise UserError(str(path), f"is not the file that {METRICS_FILE} beside it describes", remedy)


def model_sha256(fold_path: Path) -> str:
    """The sha256 over the weights that a fold's model file states; empty where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = fold_path / MODEL_FILE
    if not path.is_file():
        return ""
    try:
        with safe_open(path, framework="numpy") as file:
            return json.loads((file.metadata() or {})[METADATA_KEY])["sha256"]
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(str(path), f"cannot be read as a model ({error})", "restore it or train again") from error


def finished_folds(run_folder: Path, fold: str = "all") -> list[Path]:
    """The folders of all folds of a run, in order, or its ``full`` folder.

    Raises:
        UserError: a fold is missing or unfinished; 4 of 5 models are never averaged.
    """
    names = ["full"]
    if fold == "all":
        finished = [path for path in sorted(run_folder.glob("fold*")) if is_finished(path)]
        if not run_folder.is_dir():
            there = ", ".join(sorted({path.parent.name for path in run_folder.parent.glob("*/fold*")})) or "none"
            raise UserError(str(run_folder), "there is no such run", f"runs there: {there}")
        if not finished:
            remedy = f"train it: python train_fold.py --fold all --run {run_folder.name}, with its settings"
            raise UserError(str(run_folder), "has no finished fold", remedy)
        count = read_json(finished[0] / METRICS_FILE, fold_count=int)["fold_count"]
        names = [f"fold{k}" for k in range(count)]
    missing = [name for name in names if not is_finished(run_folder / name)]
    smoke = [name for name in names if name not in missing and read_metrics(run_folder / name).get("limit")]
    if missing:
        raise UserError(str(run_folder), f"has not finished {', '.join(missing)}", "train what is missing")
    if smoke:
        raise UserError(str(run_folder), "is a smoke run, trained with --limit", "train it without, or name other runs")
    return [run_folder / name for name in names]


def run_names(runs_dir: Path, runs: Iterable[str]) -> tuple[str, ...]:
    """The names of ``runs`` below ``runs_dir``: a path to one, ``runs/fast/``, is taken for its name, ``fast``.

    Raises:
        UserError: a path to a folder that lies elsewhere.
    """
    return tuple(_run_name(runs_dir, Path(run)) for run in runs)


def _run_name(runs_dir: Path, run: Path) -> str:
    is_name = len(run.parts) < 2 or (not run.is_absolute() and (runs_dir / run).exists())
    if is_name or not run.is_dir():
        return run.as_posix()
    if not run.resolve().is_relative_to(runs_dir.resolve()):
        raise UserError("--runs", f"{run} does not lie in {runs_dir}", f"name its folder: --runs-dir {run.parent}")
    return run.resolve().relative_to(runs_dir.resolve()).as_posix()


def folds_fingerprint(run_folder: Path) -> str:
    """Of the folds that a run with a finished fold was trained with."""
    return read_metrics(min(path.parent for path in run_folder.glob(f"f*/{METRICS_FILE}")))["folds_fingerprint"]


def was_added(run_folder: Path) -> bool:
    """Whether a run holds predictions made elsewhere (common/runs/added.py), and no model."""
    path = fold_folder(run_folder, 0) / CONFIG_FILE
    return path.is_file() and "added" in read_json(path)


def finished_runs(runs_dir: Path, fold: str = "all", fingerprint: str = "") -> list[str]:
    """Names of the direct children of ``runs_dir`` with every fold finished, sorted; others are named and left out.

    With the ``fingerprint`` of a folds file, so are runs that were trained with other folds.

    Raises:
        UserError: there is none.
    """
    found = []
    for run_folder in sorted({path.parent for path in runs_dir.glob("*/full" if fold == "full" else "*/fold*")}):
        try:
            finished_folds(run_folder, fold)
            if fingerprint and (theirs := folds_fingerprint(run_folder)) != fingerprint:
                what = f"was trained with different folds (fingerprint {theirs[:16]}, here {fingerprint[:16]})"
                raise UserError(str(run_folder), what, "name the folds file it was trained with to use it")
            found.append(run_folder.name)
        except UserError as error:
            warn(f"left out: {error}")
    if not found:
        of_folds = " that was trained with this folds file" if fingerprint else ""
        remedy = f"train one: python train_fold.py --fold {fold}"
        if fold == "all" and any(map(is_finished, runs_dir.glob("*/full"))):
            remedy += "; to predict with the model of all rows that is there: python infer.py --fold full"
        raise UserError(str(runs_dir), f"holds no finished run{of_folds}", remedy)
    return found
