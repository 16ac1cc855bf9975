"""What test-time views do to the rows that each fold model has not seen: chosen there, and scored there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from common.base.errors import UserError
from common.data.cache import Cache
from common.data.folds import Folds
from common.data.table import Table
from common.data.views import View
from common.runs.tensors import FoldModel
from common.score.calibration import PARTS
from common.score.logits import Outputs
from common.score.view_choice import choose_views, gain_text, score_views, view_table
from common.train.fold_models import FoldModels

LARGEST = 500_000_000  # logits of all views of the OOF rows that are held at a time (2 GB)


@dataclass(frozen=True)
class ViewStudy:
    """The views of a run, and its held-out rows predicted under them."""

    used: list[View]  # with the weights to use
    said: list[dict[str, Any]]  # of each view that was tried, as inference.json has it
    rows: np.ndarray  # int64 (n): those that a fold holds out
    logits: np.ndarray  # float32 (n, outputs), by the model that has not seen the row
    text: str  # the table and what all views gain


def study_views(
    models: Sequence[FoldModel], table: Table, folds: Folds, views: Sequence[View], is_chosen: bool, cache: Cache
) -> ViewStudy:
    """Predict the held-out rows under each of the ``views``, the first of which is the image itself.

    Where views and weights ``is_chosen``, every fold's rows are averaged with those that the other folds chose.

    Raises:
        UserError: predictions that would not fit into memory, or are not finite numbers.
    """
    rows_of_fold = [np.flatnonzero(folds.fold == k) for k in range(folds.count)]
    rows = np.concatenate(rows_of_fold)
    if len(rows) * len(folds.output_names) * len(views) > LARGEST:
        what = f"would hold {len(views)} views of {len(rows):,} rows and {len(folds.output_names):,} classes in memory"
        raise UserError("--tta", what, "predict without test-time augmentation, or name a preset with fewer views")
    predict = FoldModels(models, table, views, folds.row_shas, cache)
    values = np.concatenate([predict.of_fold(k, rows_of_fold[k]) for k in range(folds.count)], axis=1)
    outputs, targets, task = Outputs(values), folds.targets[rows], folds.task
    # Two folds leave too little to choose views and temperatures apart; no net has seen these rows, so any parts do.
    part = folds.fold[rows] if folds.count > 2 else np.random.default_rng(0).permutation(len(rows)) % PARTS
    scores = score_views(outputs, targets, part, task)
    if is_chosen:
        weights, averaged = choose_views(outputs, targets, part, task)
    else:
        weights = np.array([view.weight for view in views])
        averaged = task.average(outputs, weights)
    how = "views and weights by the other folds" if is_chosen else "fixed"
    of_each = view_table([view.name for view in views], scores, weights, task)
    of_all = gain_text(outputs[0], averaged, targets, part, how, task)
    said = [
        {"name": view.name, "weight": weight, "helps": found.helps, **asdict(found)}
        for view, weight, found in zip(views, weights.tolist(), scores, strict=True)
    ]
    used = [replace(view, weight=weight) for view, weight in zip(views, weights.tolist(), strict=True) if weight > 0]
    return ViewStudy(used, said, rows, averaged.values, f"{of_each}\n{of_all}")
