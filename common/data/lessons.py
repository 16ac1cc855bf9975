"""What a training learns from beside the labels of its table: what teachers say, and rows that have no label."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lessons:
    """Of the n rows of a table, and of u rows of another one that join them with numbers from n on.

    Tensors are on the training device. Without any, a training is one on labels alone.
    """

    taught: Tensor | None = None  # what teachers say, softened probabilities, float (n + u, c); NaN: not asked
    labels: Tensor | None = None  # soft pseudo-labels of the u rows, float (u, c); NaN: no say; None: no such rows
    weights: Tensor | None = None  # what a row's label counts for, float (n + u); None: 1 each
    in_each_batch: int = 0  # rows of the table in each global batch (0: as many as come)

    @property
    def joined(self) -> int:
        """How many rows join those of the table."""
        return 0 if self.labels is None else len(self.labels)

    @property
    def first_joined(self) -> int:
        """n, the number of the first of them."""
        return len(self.weights) - self.joined if self.joined else 0

    def own(self, rows: Tensor) -> Tensor:
        """Those of ``rows``, int64 (m), that are the table's, whose labels are known."""
        return rows[rows < self.first_joined] if self.joined else rows

    def with_joined(self, rows: Tensor, soft: Tensor) -> Tensor:
        """The soft targets of ``rows`` (m), where ``soft`` (m, c) has those of rows of the table."""
        at = rows - self.first_joined
        return torch.where((at < 0)[:, None], soft, self.labels[at.clamp_min(0)])

    def columns(self, rows: Tensor, targets: Tensor) -> Tensor:
        """All that the loss looks at of ``rows`` (m), side by side, so that mixing rows mixes it alike.

        Soft ``targets`` (m, c), weighted, their weight, and what is taught, as far as there are these.
        """
        parts = [targets]
        if self.weights is not None:
            weights = self.weights[rows, None]
            parts = [targets * weights, weights]
        if self.taught is not None:
            parts.append(self.taught[rows])
        return torch.cat(parts, dim=1) if len(parts) > 1 else targets

    def parts(self, columns: Tensor, outputs: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The columns taken apart again: targets (m, outputs), their weights (m), what is taught (m, outputs)."""
        targets, weights = columns[:, :outputs], None
        if self.weights is not None:
            weights = columns[:, outputs]
            targets = targets / weights.clamp_min(torch.finfo(weights.dtype).tiny)[:, None]
        return targets, weights, None if self.taught is None else columns[:, -outputs:]


def known_in_a_batch(known: int, joined: int, batch_size: int, share: float) -> int:
    """How many rows of a global batch are to be among the ``known`` ones: at least ``share``.

    0 where as many come by chance, every row being drawn alike.
    """
    least = min(math.ceil(share * batch_size), batch_size - 1)
    return least if joined and least * (known + joined) > known * batch_size else 0
