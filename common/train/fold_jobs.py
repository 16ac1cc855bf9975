"""The folds of a run as jobs, each train_fold.py with one --fold: side by side on this machine, or on a cluster's."""

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from common.base.errors import ENVIRONMENT, UserError
from common.base.strict_csv import read_records
from common.jobs.deadline import Deadline
from common.jobs.process import Job, Slot
from common.jobs.runner import in_words, run_jobs
from common.runs.layout import CONFIG_FILE, LOG_FILE, fold_folder, unfinished

SIGKILL = getattr(signal, "SIGKILL", 9)  # Windows has none


def train_side_by_side(
    run_folder: Path,
    folds: Sequence[str],
    epochs: int,
    command: Sequence[str],
    slots: Sequence[Slot],
    threads: int,
    deadline: Deadline,
) -> None:
    """Train ``folds``, each in a process of its own on ``threads`` threads.

    ``command`` is the script with the arguments that would train them all.

    Raises:
        UserError: none of them can be trained; some of them failed (the others were trained all the same), or wrote
            elsewhere than we read.
    """

    def jobs() -> Iterator[Job]:
        for fold in folds:
            if not late(deadline, run_folder, fold, epochs):
                own = ("--no-restart", "--threads", str(threads), "--fold", fold)
                yield Job(f"fold {fold}", (*command, *own), environment=deadline.environment)

    exit_codes = run_jobs(jobs(), slots, none_began=lambda: not any(run_folder.glob(f"*/{CONFIG_FILE}")))
    if failed := {name: code for name, code in exit_codes.items() if code != 0}:
        named = ", ".join(f"{name} ({in_words(code)})" for name, code in failed.items())
        worst = max(failed.values()) if min(failed.values()) > 0 else ENVIRONMENT  # below 0: ended by a signal
        mend = "free memory, or lower --jobs," if -SIGKILL in failed.values() else "fix it"
        raise UserError("--fold all", f"{named} failed", f"{mend} and run the same command again", worst)
    if not deadline.is_set and unfinished(run_folder, folds):
        what = "holds no result of jobs that reported success"
        raise UserError(str(run_folder), what, "put --runs-dir on a disk that all nodes share", ENVIRONMENT)


def late(deadline: Deadline, run_folder: Path, fold: str, epochs: int) -> bool:
    """Whether a fold is better not begun any more: the epochs that it lacks would take as long as the run's median."""
    if not deadline.is_set:
        return False
    logs = {path.parent: read_records(path, ["seconds"]).seconds for path in run_folder.glob(f"*/{LOG_FILE}")}
    an_epoch = float(pd.concat(logs.values()).median()) if logs else 0.0
    missing = epochs - len(logs.get(fold_folder(run_folder, fold), ()))
    return deadline.leaves_out(missing * an_epoch, part=an_epoch)
