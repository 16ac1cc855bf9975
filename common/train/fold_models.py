"""The models of a run's folds: read from their files, checked to belong together, and used to predict a table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from common.base.errors import UserError, warn
from common.data.cache import DEFAULT_GB, Cache
from common.data.inputs import MIDDLE, Reading, open_inputs
from common.data.table import Table
from common.data.views import View
from common.model.averages import Members
from common.model.networks import works_at
from common.runs.config import differences
from common.runs.layout import MODEL_FILE, fold_folder
from common.runs.saved_model import SavedModel
from common.runs.tensors import FoldModel, load_model
from common.score.logits import Outputs, blocks
from common.score.task import TASKS
from common.train.build import create_untrained
from common.train.hardware import check_devices, own_device, usable_precision
from common.train.loop import Predictor, check_logits, evaluation_batch, not_finite
from common.train.memory import out_of_memory_said

AT_ONCE = 100_000_000  # logits held at a time (0.4 GB)
TOO_LARGE = "memory", "does not hold the models, their images and predictions", "free memory, or lower --cache-gb"
FEW_ROWS, FEW_NUMBERS = 2_000, 20_000_000  # of which each model's own outputs are kept
IN_MEMORY = Cache(DEFAULT_GB)


def read_models(fold_folders: Sequence[Path]) -> list[FoldModel]:
    """The model of each fold's folder, checked to be the folds of one run.

    Raises:
        UserError: a damaged file, a model in another fold's folder, or folds that were trained differently.
    """
    paths = [folder / MODEL_FILE for folder in fold_folders]
    models = [load_model(path) for path in paths]
    for path, model in zip(paths, models, strict=True):
        if path.parent != fold_folder(path.parents[1], model.saved.fold):
            raise UserError(str(path), f"is the model of fold {model.saved.fold}", "put each model in its own folder")
        if changed := differences(models[0].saved.shared, model.saved.shared):
            what = f"was trained with different settings from {paths[0]} ({', '.join(changed)})"
            raise UserError(str(path), what, "train all folds of a run with the same settings")
    return models


def create_saved(saved: SavedModel) -> nn.Module:
    """The module that takes the tensors of a weights file."""
    model = create_untrained(saved.cfg, len(saved.output_names))
    return model if saved.members == 1 else Members(model, saved.members)


class FoldModels:
    """The models of a run's folds, which predict the rows of one table under the same views.

    One network takes the weights of each in turn. ``row_shas`` (n) are what the table's photos must hash to (empty: not
    known); ``cache`` keeps their pixels.

    Raises:
        UserError: images of another shape, or views that these models cannot see.
    """

    @out_of_memory_said(*TOO_LARGE)
    def __init__(
        self,
        models: Sequence[FoldModel],
        table: Table,
        views: Sequence[View],
        row_shas: Sequence[str] = (),
        cache: Cache = IN_MEMORY,
    ):
        saved = models[0].saved
        check_images(saved, table)
        check_devices()
        accelerator = Accelerator(cpu=own_device().type == "cpu")
        prepare = saved.preparation
        if prepare.side == prepare.stored and any(view.place != MIDDLE for view in views):
            what = "looks outside the middle of an image, but these models already see all of it"
            raise UserError("--tta", what, "leave out the five crops")
        self.models, self.views, self.output_names = models, views, saved.output_names
        self.predict = Predictor(
            accelerator,
            inputs=open_inputs(table, prepare, accelerator.device, Reading(cache, row_shas, torch.get_num_threads())),
            normalise=saved.scale,
            precision="",  # each model's own
            batch_size=evaluation_batch(saved.micro_batch),
            side=prepare.side,
        )
        trained_in = {model.saved.precision for model in models}
        self.precisions = {name: usable_precision(name, trained=True) for name in sorted(trained_in)}
        self.network = create_saved(saved).to(accelerator.device, memory_format=getattr(torch, saved.memory_format))
        check_sides(self.network, saved, views)

    def ready(self, k: int) -> tuple[nn.Module, Predictor]:
        """The network with the k-th model's weights, and what predicts with them as its training did."""
        model = self.models[k]
        self.network.load_state_dict(model.tensors)
        precision = self.precisions[model.saved.precision]
        return self.network, replace(self.predict, normalise=model.saved.scale, precision=precision)

    @out_of_memory_said(*TOO_LARGE)
    def of_fold(self, k: int, rows: np.ndarray) -> np.ndarray:
        """Logits of ``rows``, int64 (m), by the k-th model: float32 (views, m, outputs).

        Raises:
            UserError: they are not finite numbers (exit 4).
        """
        network, predict = self.ready(k)
        logits, saved = logits_of(predict, network, rows, self.views), self.models[k].saved
        check_logits(f"{saved.run}, fold {saved.fold}", logits, "train this fold again with a lower --lr")
        return logits

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """The log of the mean probability of models and views, float32 (m, outputs), for ``rows``, int64 (m).

        Some rows at a time by all models, so that what one model says of all rows is never kept; of the first rows
        :attr:`one_by_one` keeps what each model says, float (models, rows, outputs).
        """
        weights, task = [view.weight for view in self.views] * len(self.models), TASKS[self.models[0].saved.task]
        averaged = np.empty((len(rows), len(self.output_names)), dtype=np.float32)
        for some in blocks(len(rows), len(self.output_names) * len(weights), AT_ONCE):
            outputs = np.concatenate([self.of_fold(k, rows[some]) for k in range(len(self.models))])
            averaged[some] = task.average(Outputs(outputs), weights).values
            if some.start == 0:
                few = outputs[:, : max(1, min(FEW_ROWS, FEW_NUMBERS // (len(weights) * len(self.output_names))))]
                of_each = few.reshape(len(self.models), len(self.views), *few.shape[1:])
                own = [view.weight for view in self.views]
                self.one_by_one = np.stack([task.average(Outputs(views), own).values for views in of_each])
        return averaged


def logits_of(predict: Predictor, network: nn.Module, rows: np.ndarray, views: Sequence[View]) -> np.ndarray:
    """What ``predict`` says of ``rows``, float32 (views, m, outputs); in float32 what is beyond fp16's range.

    It ends at 65,504, and a net trained in another precision, or on other images, may not keep to it.
    """
    logits = predict(network, rows, views)
    if predict.precision == "fp16" and len(beyond := not_finite(logits)):
        warn(f"{len(beyond):,} of {len(rows):,} rows are beyond fp16's range: they are predicted in float32")
        logits[:, beyond] = replace(predict, precision="no")(network, rows[beyond], views)
    return logits


def check_images(saved: SavedModel, table: Table) -> None:
    """Raise UserError where the table's images have another shape than those that the models were trained on."""
    remedy = "name the test table that belongs to the train table with --test"
    if table.kind is not saved.kind:
        what = f"has {table.kind.name}, but the models were trained on {saved.kind.name}"
        raise UserError(table.source, what, remedy)
    if table.feature_names or table.kind.shape(table) == saved.image_shape:
        return
    (channels, side), (its_channels, its_side) = table.kind.shape(table), saved.image_shape
    what = f"has {side} numbers a frame, but the models expect {its_side}"
    if table.kind.of_images:
        what = (
            f"has {channels} x {side} x {side} images, but the models expect {its_channels} x {its_side} x {its_side}"
        )
    raise UserError(table.source, what, remedy)


def check_sides(network: nn.Module, saved: SavedModel, views: Sequence[View]) -> None:
    """Raise UserError where a view shows images of a size that the network does not take."""
    cfg, side = saved.cfg, saved.preparation.side
    for seen in {view.look(torch.zeros(1, 1, side, side)).shape[-1] for view in views}:
        if seen != cfg.img_size and not works_at(network, len(saved.output_names), cfg.channels, seen):
            what = f"{cfg.model}, built for {cfg.img_size} px, does not work at {seen} px"
            raise UserError("--tta", what, "leave out the views of other sizes")
