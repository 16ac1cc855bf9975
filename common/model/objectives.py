"""What a training minimises: an objective turns a model and a batch into one number, a row each in OBJECTIVES.

An objective may hold what it needs beside the model, such as a teacher.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from common.data.batches import Batch
from common.model.losses import Loss, create_loss
from common.runs.config import Config


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


def create_objective(cfg: Config, targets: Tensor, num_classes: int) -> Objective:
    """The objective of a training on rows of classes ``targets``, int64 (n).

    Raises:
        UserError: class weights that are not one for each class.
    """
    loss = create_loss(cfg.loss, targets, num_classes, **cfg.args("loss"))
    return OBJECTIVES["supervised"](loss)


OBJECTIVES: dict[str, Callable[[Loss], Objective]] = {"supervised": Supervised}
