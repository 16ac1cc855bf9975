"""Between what a net that learns numbers says and the target's unit.

In training a net says how many deviations of the training rows' targets a row is off their mean, and is compared with
targets in the same measure: the learning rate then means the same for any unit. In evaluation it says the number. What
lies between are buffers of the net, so that its weights file is all that a prediction needs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TRANSFORMS = {"none": (lambda numbers: numbers, lambda numbers: numbers), "log1p": (np.log1p, torch.expm1)}


@dataclass(frozen=True)
class TargetScale:
    """What a fold's training rows say of their targets, a number a column."""

    transform: str  # of TRANSFORMS, done first
    start: np.ndarray  # float64 (c): the mean, or the lowest where the loss is bounded
    step: np.ndarray  # float64 (c): the deviation, or the range

    offset: int = -1  # which of a row's features is added; -1: none

    def learned(self, targets: np.ndarray) -> np.ndarray:
        """What the net learns of targets (n, c), less the offset where there is one: float32."""
        return ((TRANSFORMS[self.transform][0](targets) - self.start) / self.step).astype(np.float32)


def scale_of(targets: np.ndarray, transform: str, is_bounded: bool, offset: int = -1) -> TargetScale:
    """The scale of what is learned of the rows that a fold trains on, targets (n, c); a constant column has step 1."""
    values = TRANSFORMS[transform][0](targets)
    start, step = (values.min(0), np.ptp(values, axis=0)) if is_bounded else (values.mean(0), values.std(0))
    return TargetScale(transform, start, np.where(step > 0, step, 1.0), offset)


class Units(nn.Module):
    """From outputs (n, c) to the target's unit; ``offset`` weighs the net's ``inputs`` (n, width) that are added."""

    def __init__(self, columns: int, inputs: int, transform: str, is_bounded: bool, has_offset: bool):
        super().__init__()
        self.transform, self.is_bounded, self.has_offset = transform, is_bounded, has_offset
        self.register_buffer("start", torch.zeros(columns))
        self.register_buffer("step", torch.ones(columns))
        if has_offset:
            self.register_buffer("offset", torch.zeros(inputs))

    def forward(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        outputs = outputs.float()
        outputs = outputs.sigmoid() if self.is_bounded else outputs
        numbers = TRANSFORMS[self.transform][1](outputs * self.step + self.start)
        return numbers + (inputs.float() @ self.offset)[:, None] if self.has_offset else numbers

    def set(self, scale: TargetScale, inputs: Any) -> None:
        """Take a scale; ``inputs`` has the mean and deviation (``mean``, ``std``) by which the net's were scaled."""
        self.step.copy_(torch.from_numpy(scale.step))
        self.start.copy_(torch.from_numpy(scale.start))
        if self.has_offset:
            self.offset.zero_()
            self.offset[scale.offset] = inputs.std[scale.offset]
            self.start += inputs.mean[scale.offset]


def in_units(model: nn.Module, units: Units) -> nn.Module:
    """The model, in place, whose evaluation is in the target's unit."""
    model.add_module("units", units)
    model.register_forward_hook(_to_units)
    return model


def _to_units(model: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
    return outputs if model.training else model.units(outputs, inputs[0])
