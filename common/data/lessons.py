"""What a training learns from beside the labels of its table."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lessons:
    """What teachers say of the n rows of a table."""

    taught: Tensor | None = None  # softened probabilities, float (n, c), on the training device; NaN: never asked for

    def columns(self, rows: Tensor, targets: Tensor) -> Tensor:
        """What the loss looks at of ``rows``, int64 (m): their soft ``targets`` (m, c) and, behind, what is taught."""
        return targets if self.taught is None else torch.cat([targets, self.taught[rows]], dim=1)

    def parts(self, columns: Tensor, outputs: int) -> tuple[Tensor, Tensor | None]:
        """The columns taken apart again: targets and what is taught, float (m, outputs) each."""
        return columns[:, :outputs], None if self.taught is None else columns[:, outputs:]
