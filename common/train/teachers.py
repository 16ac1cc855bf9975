"""What teachers say of a fold's training rows, predicted when the fold begins by their models of this very fold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from common.base.errors import UserError
from common.base.words import names_in_short
from common.data.cache import Cache
from common.data.folds import Folds
from common.data.tables import Table
from common.data.views import TTA
from common.model.objectives import probabilities
from common.runs.config import Config
from common.runs.layout import MODEL_FILE
from common.runs.teachers import teacher_folder
from common.runs.tensors import load_model
from common.score.logits import Outputs
from common.train.fold_models import FoldModels


def outputs_of(
    models: Sequence[Path], table: Table, rows: np.ndarray, folds: Folds, cache: Cache, row_shas: Sequence[str] = ()
) -> np.ndarray:
    """The mean of what some models say of ``rows``, int64 (m), of a table: outputs, float32 (m, classes).

    Each model sees the images as its own training did; its classes are brought into the order of ``folds`` by name.
    Only the main process has the outputs; the other ones get an array without rows.

    Raises:
        UserError: a model of other classes, or of images of another shape.
    """
    of_each = []
    for path in models:
        model = load_model(path)
        if set(model.saved.classes) != set(folds.classes):
            what = f"knows {names_in_short(model.saved.classes)}, but the folds have {names_in_short(folds.classes)}"
            raise UserError(str(path), what, "name a teacher of the same classes")
        outputs = FoldModels([model], table, TTA["none"], row_shas, cache).of_fold(0, rows)[0]
        of_each.append(outputs[:, [model.saved.classes.index(name) for name in folds.classes]])
    return folds.task.average(Outputs(np.stack(of_each))).values


def shared(accelerator: Accelerator, outputs: np.ndarray, shape: tuple[int, int]) -> Tensor:
    """What only the main process has, float32 ``shape``, on the device of every process."""
    given = torch.from_numpy(outputs) if accelerator.is_main_process else torch.empty(shape)
    return broadcast(given.to(accelerator.device))


def taught(
    cfg: Config, folds: Folds, fold: Path, table: Table, rows: np.ndarray, cache: Cache, accelerator: Accelerator
) -> Tensor | None:
    """What the teachers of ``--teacher`` say of the training ``rows``, int64 (m), of a fold, whose folder is ``fold``.

    Softened probabilities of all n rows, float (n, classes); those of other rows are NaN. None without teachers. They
    are predicted again where a training goes on, to the same bits.
    """
    if not cfg.teacher:
        return None
    accelerator.print(f"{fold.name}: {' and '.join(cfg.teacher)} predict {len(rows):,} training rows")
    models = [teacher_folder(cfg, run) / fold.name / MODEL_FILE for run in cfg.teacher]
    outputs = outputs_of(models, table, rows, folds, cache, folds.row_shas)
    outputs = shared(accelerator, outputs, (len(rows), len(folds.classes)))
    said = torch.full((len(table.ids), len(folds.classes)), torch.nan, device=accelerator.device)
    said[torch.from_numpy(rows)] = probabilities(cfg.task, outputs / cfg.teacher_temperature)
    return said
