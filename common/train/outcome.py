"""What a fold's training came to: the files it leaves, and the lines that say how good it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.runs.folder import save_fold
from common.runs.predictions import Predictions
from common.runs.saved_model import SavedModel
from common.score.metrics import best_epoch, describe, show
from common.train.training import Training, scores_in


def save_training(
    folder: Path,
    training: Training,
    saved: SavedModel,
    oof: Predictions | None,
    store: str,
    alike: tuple[np.ndarray, str],
) -> None:
    """Write the files of a fold whose training is over (:func:`common.runs.folder.save_fold`), and print its score."""
    saved = replace(saved, members=len(training.members.members) if training.members else 1)
    metrics = save_fold(folder, saved, training.scored.state_dict(), oof, store, figures_of(training), alike)
    if oof is None:
        return
    print(f"fold {saved.fold}: {describe(metrics, training.metric)}; {epochs_text(training, metrics)}")
    log, epochs = training.log, saved.cfg.epochs
    if len(log) < epochs:
        print(
            f"fold {saved.fold} stopped after {len(log)} of {epochs} epochs, at lr {log[-1]['lr']:.2e}. The "
            "rows that score it also decided when: compared with runs of fixed length its score is flattered"
        )


def figures_of(training: Training) -> dict[str, Any]:
    """What metrics.json says of the epochs."""
    log, metric, batches = training.log, training.metric, training.batches
    images = len(log) * batches.steps * batches.batch_size
    figures = {
        "seconds": sum(row["seconds"] for row in log),
        "images_per_second": images / sum(row["train_seconds"] for row in log),
        "epochs": len(log),
        "steps": len(log) * batches.steps,
    }
    if scores := scores_in(log, metric):
        best = best_epoch(scores)
        figures |= {"metric": metric, "last": log[-1][metric], "best": log[best][metric], "best_epoch": best + 1}
    return figures


def epochs_text(training: Training, metrics: dict[str, Any]) -> str:
    """The last epoch's score beside the best one's, or those of several nets."""
    metric = training.metric
    if training.selection.nets > 1:
        ends = training.log[training.batches.epochs - 1 :: training.batches.epochs]
        return "its nets alone " + ", ".join(show(metric, end[metric]) for end in ends)
    last = f"last epoch {show(metric, metrics['last'])}"
    if metrics["best"] == metrics["last"]:
        return f"{last}, none better"
    best = f"best {show(metric, metrics['best'])} (epoch {metrics['best_epoch']}: chosen on the rows it is scored on)"
    return f"{last}, {best}"
