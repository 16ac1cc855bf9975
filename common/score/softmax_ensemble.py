"""The learnable ensemble: a softmax weight for each model, trained on the loss of the weighted mean."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


class SoftmaxEnsemble(nn.Module):
    """The weighted mean of what several models say, (..., models) -> (...), float64.

    It starts at equal weights: from a random start, training that stops early gives another blend each time.
    """

    def __init__(self, models: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(models, dtype=torch.float64))  # before the softmax

    def forward(self, said: Tensor) -> Tensor:
        return said @ torch.softmax(self.weights, dim=-1)


def trained_weights(said: np.ndarray, loss_of: Callable[[Tensor], Tensor]) -> np.ndarray:
    """The weights (models), summing to 1, that minimise the mean loss, trained until they stand still.

    The loss is convex in the weights, so the start decides only what identical models get: equal shares.

    Args:
        said: what each model says of what is true, float64 (rows, models).
        loss_of: the loss of each weighted mean, (rows) -> (rows), convex.
    """
    of_models = torch.from_numpy(said)
    model = SoftmaxEnsemble(said.shape[1])
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=1000, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = loss_of(model(of_models)).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return torch.softmax(model.weights.detach(), dim=-1).numpy()
