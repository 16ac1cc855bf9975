"""What becomes of a sequence's frames as a whole: pooling that leaves padded frames out."""

import torch
from torch import Tensor, nn


def masked(frames: Tensor, real: Tensor) -> Tensor:
    """Frames (n, T, d) with 0 where they are not ``real``, bool (n, T)."""
    return frames.where(real[..., None], 0)


class StatisticsPooling(nn.Module):
    """Mean and deviation over the real frames of each sequence, (n, T, d) -> (n, 2 d), summed in float32.

    Source: Snyder et al. 2018, X-Vectors: Robust DNN Embeddings for Speaker Recognition.
    """

    def forward(self, frames: Tensor, real: Tensor) -> Tensor:
        count = real.sum(1)[:, None].float()
        mean = masked(frames.float(), real).sum(1) / count
        variance = masked((frames.float() - mean[:, None]).square(), real).sum(1) / count
        return torch.cat([mean, (variance + 1e-5).sqrt()], dim=1)


class PartsPooling(nn.Module):
    """Means over ``count`` equal parts of each sequence's time, (n, T, d) -> (n, ``count`` x d), summed in float32.

    A frame on the edge of two parts counts for each by its share, so that a sequence may have fewer frames than parts.
    Source: Wang et al. 2017, Temporal Pyramid Pooling Based Convolutional Neural Network for Action Recognition.
    """

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def forward(self, frames: Tensor, real: Tensor) -> Tensor:
        frames, size = masked(frames.float(), real), real.sum(1)[:, None].float() / self.count
        place = torch.arange(frames.shape[1], device=frames.device)
        means = []
        for part in range(self.count):
            shares = ((place + 1).minimum((part + 1) * size) - place.maximum(part * size)).clamp_min(0)
            means.append((shares[..., None] * frames).sum(1) / size)
        return torch.cat(means, dim=1)
