"""Trackers (TensorBoard, Weights & Biases ...) through Accelerate: they get each epoch's row of log.csv."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from common.base.errors import ENVIRONMENT, UserError


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that accelerate does not know, or (exit 3) that is not installed: it would leave it out."""
    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError("--log-with", f"there is no tracker {name}", f"use {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in installed:
            raise UserError("--log-with", f"{name} is not installed", f"pip install {name}", ENVIRONMENT)


@contextmanager
def tracked(accelerator: Accelerator, run: str, fold: str, settings: dict[str, Any]) -> Iterator[None]:
    """Log with what the accelerator was told to; TensorBoard writes into ``<its project folder>/<run>``."""
    accelerator.init_trackers(run, init_kwargs={"wandb": {"name": f"{run} {fold}"}})
    plain = {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in settings.items()
    }
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard":  # it would open a second run for them; config.json lies beside its file
            tracker.store_init_configuration(plain)
    yield
    for tracker in accelerator.trackers:  # Accelerator.end_training would end all communication, and folds may follow
        tracker.finish()


def tracking(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """The arguments of an Accelerator that logs with these trackers below ``folder``."""
    return {"log_with": list(names), "project_dir": str(folder)} if names else {}
