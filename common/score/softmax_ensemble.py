"""The learnable ensemble: a softmax weight for each model, trained on the log loss of the weighted mean."""

import numpy as np
import torch
from torch import Tensor, nn


class SoftmaxEnsemble(nn.Module):
    """The weighted mean of several models' probabilities, (..., models) -> (...), float64.

    It starts at equal weights: from a random start, training that stops early gives another blend each time.
    """

    def __init__(self, models: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(models, dtype=torch.float64))  # before the softmax

    def forward(self, probabilities: Tensor) -> Tensor:
        return probabilities @ torch.softmax(self.weights, dim=-1)


def trained_weights(probabilities: np.ndarray) -> np.ndarray:
    """The weights (models), summing to 1, that minimise the log loss, trained until they stand still.

    The loss is convex in the weights, so the start decides only what identical models get: equal shares.

    Args:
        probabilities: what each model says of the right class, float64 (rows, models), all above 0.
    """
    right_class = torch.from_numpy(probabilities)
    model = SoftmaxEnsemble(probabilities.shape[1])
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=1000, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -model(right_class).log().mean()
        value.backward()
        return value

    optimizer.step(loss)
    return torch.softmax(model.weights.detach(), dim=-1).numpy()
