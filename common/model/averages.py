"""Means of weights and of predictions, and the BatchNorm statistics that averaged weights lack."""

import copy
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data.inputs import Inputs
from common.data.scales import Scale

State = dict[str, Tensor]


def copy_of(state: Mapping[str, Tensor]) -> State:
    """The state with tensors of its own, in the host's memory: several of them would not fit beside a training."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def mean_of(state: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float) -> State:
    """(1 - share) x ``state`` + share x ``other``, in the host's memory as ``state`` is.

    Whole numbers (BatchNorm's counter) are the other's.
    """
    return {
        name: torch.lerp(tensor, found, share) if tensor.is_floating_point() else found
        for name, tensor in state.items()
        for found in [other[name].detach().to("cpu", copy=True)]
    }


@torch.no_grad()
def measure_batchnorm(
    model: nn.Module, inputs: Inputs, rows: Tensor, normalise: Scale, batch_size: int, side: int
) -> None:
    """Give BatchNorm the statistics of some rows' inputs, un-augmented, at the weights that the model has now.

    The model sees the middle ``side`` px of each, ``batch_size`` images at a time. The average of weights has had no
    batch of its own. ``rows`` are those of the training; every process measures all of them, in an order of its own, so
    all find the same. Unlike torch's update_bn, dropout stays off and layers that are frozen keep what
    they have.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    layers = [layer for layer in layers if layer.weight is None or layer.weight.requires_grad]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
        layer.train()
    # In a table that is sorted by class, batches of neighbours would lack the variance between classes.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    whole = (some for some in rows[order].split(batch_size) if len(some) == batch_size)
    for raw in inputs.batches(whole, next(model.parameters()).device):
        model(normalise(inputs.seen(raw, side)))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()


class Members(nn.Module):
    """``count`` copies of a model; their output is the log of their mean probability, float32 (n, outputs)."""

    def __init__(self, model: nn.Module, count: int):
        super().__init__()
        self.members = nn.ModuleList(copy.deepcopy(model) for _ in range(count))

    def forward(self, images: Tensor) -> Tensor:
        log_p = torch.stack([F.log_softmax(member(images).float(), dim=1) for member in self.members])
        return log_p.logsumexp(0) - math.log(len(self.members))
