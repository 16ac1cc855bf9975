"""What a training minimises: an objective turns a model and a batch into one number.

An objective may hold what it needs beside the model, such as a teacher.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from common.data.batches import Batch
from common.model.losses import Loss, create_loss, of_known_labels
from common.runs.config import Config
from common.score.task import TASKS

Forward = Callable[[Tensor], Tensor]  # inputs -> outputs, float32 (m, c)

# What makes probabilities of outputs; a task names its own (common/score/task.py).
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda outputs: outputs.softmax(dim=1),
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True)
class Given:
    """What objectives are made of beside the settings."""

    loss: Loss  # that was chosen
    alike: Loss  # by which what teachers say is compared
    average: Forward | None  # what the moving average of the net says
    micro_batches: int  # of an epoch


class Objective(Protocol):
    """One number to be minimised."""

    def __init__(self, cfg: Config, given: Given):
        """What the settings ask for."""

    def start_epoch(self, epoch: int) -> None:
        """To be called before each epoch (from 0); most are the same in all."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the batch, a number with gradients."""


class Supervised(Objective):
    """The loss between what the model says of the inputs and their targets."""

    def __init__(self, cfg: Config, given: Given):
        self.loss = given.loss

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.loss(model(batch.inputs), batch.targets, batch.weights)


class Distilled(Objective):
    """The loss of the labels and what teachers say, which stays as it is, in one sum.

    Numbers are compared by the loss itself. Else the teachers' part is the cross-entropy between their softened
    probabilities and the student's, times the square of the temperature, which keeps the gradients' size (Hinton et
    al., arXiv 1503.02531).
    """

    def __init__(self, cfg: Config, given: Given):
        self.loss, self.alike = given.loss, given.alike
        self.weight, self.temperature = (
            cfg.teacher_weight,
            1.0 if TASKS[cfg.task].is_number else cfg.teacher_temperature,
        )

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs = model(batch.inputs)
        taught = self.alike(outputs / self.temperature, batch.taught) * self.temperature**2
        told = self.loss(outputs, batch.targets, batch.weights)
        return (1 - self.weight) * told + self.weight * taught


class MeanTeacher(Objective):
    """The loss of the labels, and how far the net is from its own moving average on another augmentation of a batch.

    The mean over all rows, with labels or without, of the squared distance of probabilities; its weight rises in the
    first epochs like exp(-5 (1 - t)^2), as the average is worth nothing at first (Tarvainen and Valpola, arXiv
    1703.01780).
    """

    def __init__(self, cfg: Config, given: Given):
        self.loss, self.average, self.micro_batches = given.loss, given.average, given.micro_batches
        self.weight, self.ramp = cfg.consistency, cfg.consistency_ramp * given.micro_batches
        self.probabilities, self.done = ACTIVATIONS[TASKS[cfg.task].activation], 0

    def start_epoch(self, epoch: int) -> None:
        """Where the ramp-up stands."""
        self.done = epoch * self.micro_batches

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs = model(batch.inputs)
        own, average = self.probabilities(outputs.float()), self.probabilities(self.average(batch.again))
        apart = (own - average).square().sum(dim=1).mean()
        left = max(0.0, 1 - self.done / self.ramp) if self.ramp else 0.0
        self.done += 1
        return self.loss(outputs, batch.targets, batch.weights) + self.weight * math.exp(-5 * left**2) * apart


def create_objective(
    cfg: Config, targets: Tensor, num_classes: int, average: Forward | None = None, micro_batches: int = 1
) -> Objective:
    """The objective of a training on rows of classes ``targets``, int64 (n).

    ``average`` is what the moving average of the net says of inputs, ``micro_batches`` how many there are in an epoch.

    Raises:
        UserError: class weights that are not one for each class.
    """
    task = TASKS[cfg.task]
    loss = create_loss(cfg.loss, targets, num_classes, **cfg.args("loss"))
    if cfg.pseudo and not task.is_one_of:
        loss = of_known_labels(loss)
    alike = loss if task.is_number else create_loss(task.losses[0], targets, num_classes)
    return OBJECTIVES[objective_name(cfg)](cfg, Given(loss, alike, average, micro_batches))


def objective_name(cfg: Config) -> str:
    """The row of OBJECTIVES that the settings ask for."""
    if cfg.teacher:
        return "distilled"
    return "mean-teacher" if cfg.consistency else "supervised"


OBJECTIVES: dict[str, type[Objective]] = {
    "supervised": Supervised,
    "distilled": Distilled,
    "mean-teacher": MeanTeacher,
}
