"""What a training minimises: an objective turns a model and a batch into one number, a row each in OBJECTIVES.

An objective may hold what it needs beside the model, such as a teacher.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from common.data.batches import Batch
from common.model.losses import Loss, create_loss
from common.runs.config import Config
from common.score.task import TASKS

# What a task's outputs say as probabilities; of numbers, as themselves.
PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "multiclass": lambda outputs: outputs.softmax(dim=1),
    "multilabel": torch.sigmoid,
}


def probabilities(task: str, outputs: Tensor) -> Tensor:
    """What outputs, float (n, c), say of each class or label, 0 to 1."""
    return PROBABILITIES[task](outputs)


class Objective(Protocol):
    """One number to be minimised."""

    def start_epoch(self, epoch: int) -> None:
        """To be called before each epoch (from 0)."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the batch, a number with gradients."""


class Supervised:
    """The loss between what the model says of the inputs and their targets."""

    def __init__(self, loss: Loss):
        self.loss = loss

    def start_epoch(self, epoch: int) -> None:
        """It is the same in every epoch."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.loss(model(batch.inputs), batch.targets)


class Distilled:
    """The loss of the labels and what teachers say, which stays as it is, in one sum.

    The teachers' part is the cross-entropy between their softened probabilities and the student's, times the square
    of the temperature, which keeps the gradients' size (Hinton et al., arXiv 1503.02531). ``alike`` is the task's own
    loss of soft targets.
    """

    def __init__(self, loss: Loss, alike: Loss, weight: float, temperature: float):
        self.loss, self.alike, self.weight, self.temperature = loss, alike, weight, temperature

    def start_epoch(self, epoch: int) -> None:
        """It is the same in every epoch."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs = model(batch.inputs)
        taught = self.alike(outputs / self.temperature, batch.taught) * self.temperature**2
        return (1 - self.weight) * self.loss(outputs, batch.targets) + self.weight * taught


def create_objective(cfg: Config, targets: Tensor, num_classes: int) -> Objective:
    """The objective of a training on rows of classes ``targets``, int64 (n).

    Raises:
        UserError: class weights that are not one for each class.
    """
    loss = create_loss(cfg.loss, targets, num_classes, **cfg.args("loss"))
    alike = create_loss(TASKS[cfg.task].losses[0], targets, num_classes)
    return OBJECTIVES[objective_name(cfg)](cfg, loss, alike)


def objective_name(cfg: Config) -> str:
    """The row of OBJECTIVES that the settings ask for."""
    return "distilled" if cfg.teacher else "supervised"


OBJECTIVES: dict[str, Callable[[Config, Loss, Loss], Objective]] = {
    "supervised": lambda cfg, loss, alike: Supervised(loss),
    "distilled": lambda cfg, loss, alike: Distilled(loss, alike, cfg.teacher_weight, cfg.teacher_temperature),
}
