"""sequence_cnn, sequence_transformer and frame_cnn: nets for sequences of frames, known to timm under these names.

A batch is one float tensor (n, longest T, d) in which a sequence's frames are followed by frames of NaN up to the
longest. The nets tell the mask from that, and nothing behind it looks at a padded frame: what is said of a sequence
does not depend on the others of its batch. frame_cnn answers for each frame, the others for a sequence as a whole.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.base.errors import UserError
from common.model.pooling import PartsPooling, StatisticsPooling, masked
from common.model.registration import register


def without_padding(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences (n, T, d) with 0 in place of their padded frames, and which frames are real, bool (n, T)."""
    real = ~inputs[..., 0].isnan()
    return masked(inputs, real), real


class FrameConvolution(nn.Module):
    """A convolution over time, a norm of each frame by itself, GELU and dropout; a residual where the shapes allow it.

    The norm is LayerNorm, whose statistics know neither padded frames nor other sequences nor other processes.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, drop_rate: float):
        super().__init__()
        self.stride, self.has_residual = stride, inputs == outputs and stride == 1
        self.convolution = nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(outputs)
        self.rest = nn.Sequential(nn.GELU(), nn.Dropout(drop_rate))

    def forward(self, frames: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        found = self.convolution(frames.transpose(1, 2)).transpose(1, 2)
        found, real = self.rest(self.norm(found)), real[:, :: self.stride]
        return masked(found + frames if self.has_residual else found, real), real


class FrameConvolutions(nn.Module):
    """Convolutions, one for each of ``widths``, each ``kernel`` (odd) frames wide; the first ones halve T."""

    def __init__(self, inputs: int, widths: Sequence[int], kernel: int, halvings: int, drop_rate: float):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"a kernel of {kernel} frames has no middle: use an odd number")
        if not 0 <= halvings <= len(widths):
            raise ValueError(f"{halvings} halvings and {len(widths)} convolutions: use 0 to {len(widths)}")
        layers, last = [], inputs
        for number, width in enumerate(widths):
            layers.append(FrameConvolution(last, width, kernel, 1 + (number < halvings), drop_rate))
            last = width
        self.layers = nn.ModuleList(layers)

    def forward(self, frames: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            frames, real = layer(frames, real)
        return frames, real


class SequenceModel(nn.Module):
    """What the nets share: one linear layer at the end, of ``inputs`` numbers.

    ``fewest`` are the frames that a sequence must have for one answer. ``noise`` is the deviation of Gaussian noise
    that is added in training to the frames, whose numbers have deviation 1.
    """

    fewest = 1

    def __init__(self, num_classes: int, inputs: int, drop_rate: float, noise: float):
        super().__init__()
        self.num_classes, self.noise = num_classes, noise
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(inputs, num_classes)

    def get_classifier(self) -> nn.Module:
        """The last layer, by timm's name for it."""
        return self.head

    def heard(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The frames (n, T, d) as the net sees them, 0 where they are padded, and which are real, bool (n, T)."""
        frames, real = without_padding(inputs)
        if self.training and self.noise:
            frames = masked(frames + self.noise * torch.randn_like(frames), real)
        return frames, real


class PooledModel(SequenceModel):
    """An answer for each sequence: the mask at the entry, and statistics over what the net makes of the frames.

    These forget the order of the frames; beside them are, where there are ``parts``, the means of so many of them.
    """

    def __init__(self, num_classes: int, width: int, drop_rate: float, noise: float, parts: int):
        super().__init__(num_classes, (2 + parts) * width, drop_rate, noise)
        self.pools = nn.ModuleList([StatisticsPooling(), PartsPooling(parts)] if parts else [StatisticsPooling()])

    def encoded(self, frames: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """What the net makes of each frame, (n, T', width), and which of these are real."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.encoded(*self.heard(inputs))
        return self.head(self.drop(torch.cat([pool(*found) for pool in self.pools], dim=1)))


class SequenceCNN(PooledModel):
    """Convolutions over time and pooled statistics.

    ``img_size`` is d, the numbers of a frame. ``widths`` has an entry for each convolution, of ``kernel`` frames; the
    first ``halvings`` of them step over every other frame; without any, the model is linear in what is pooled. Input is
    (n, T, d), output (n, num_classes).
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 0,
        img_size: int = 40,
        widths: Sequence[int] = (128, 128, 128, 128),
        kernel: int = 5,
        halvings: int = 1,
        drop_rate: float = 0.1,
        head_drop_rate: float = 0.3,
        noise: float = 0.0,
        parts: int = 0,
    ):
        super().__init__(num_classes, widths[-1] if widths else img_size, head_drop_rate, noise, parts)
        self.convolutions = FrameConvolutions(img_size, widths, kernel, halvings, drop_rate)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """timm's way to number a model's layers from the input on."""
        return {"stem": r"^convolutions\.layers\.0", "blocks": r"^convolutions\.layers\.(\d+)"}

    def encoded(self, frames: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """As in :class:`PooledModel`."""
        return self.convolutions(frames, real)


class SequenceTransformer(PooledModel):
    """Convolutions that shorten a sequence, places as sines and cosines, self-attention and pooled statistics.

    ``img_size`` is d, the numbers of a frame; ``depth`` layers of ``heads`` heads look at all frames of a sequence.
    Source: Vaswani et al. 2017, Attention Is All You Need, with the norm in front of each part.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 0,
        img_size: int = 40,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        kernel: int = 5,
        halvings: int = 1,
        drop_rate: float = 0.1,
        head_drop_rate: float = 0.3,
        noise: float = 0.0,
        parts: int = 0,
    ):
        super().__init__(num_classes, width, head_drop_rate, noise, parts)
        self.stem = FrameConvolutions(img_size, (width, width), kernel, halvings, drop_rate)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, drop_rate, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """timm's way to number a model's layers from the input on."""
        return {"stem": r"^stem", "blocks": [(r"^layers\.(\d+)", None), (r"^norm", (99_999,))]}

    def encoded(self, frames: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """As in :class:`PooledModel`."""
        frames, real = self.stem(frames, real)
        frames = frames + places(frames)
        for layer in self.layers:
            frames = layer(frames, src_key_padding_mask=~real)
        return self.norm(frames), real


class ContextConvolution(nn.Module):
    """A convolution of what stands on either side of each frame, so that the ends are lost: T -> T - 2 x ``lost``.

    A norm of each frame by itself, GELU and dropout follow; a residual where the width stays.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, drop_rate: float):
        super().__init__()
        self.lost, self.has_residual = kernel // 2 * dilation, inputs == outputs
        self.convolution = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)
        self.norm = nn.LayerNorm(outputs)
        self.rest = nn.Sequential(nn.GELU(), nn.Dropout(drop_rate))

    def forward(self, frames: Tensor) -> Tensor:
        found = self.rest(self.norm(self.convolution(frames.transpose(1, 2)).transpose(1, 2)))
        return found + frames[:, self.lost : frames.shape[1] - self.lost] if self.has_residual else found


class FrameCNN(SequenceModel):
    """An answer for each frame that has ``reach`` frames on either side: (n, T, d) -> (all these frames, num_classes).

    ``img_size`` is d. ``widths`` has an entry for each convolution, of ``kernel`` (odd) frames that are ``dilations``
    apart. Each frame is answered by what stands within its reach alone, as if every window were looked at by itself
    (Peddinti et al. 2015, A Time Delay Neural Network Architecture), for a fraction of the work.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 0,
        img_size: int = 39,
        widths: Sequence[int] = (192, 192, 192, 192, 192),
        dilations: Sequence[int] = (1, 1, 2, 3, 5),
        kernel: int = 5,
        drop_rate: float = 0.2,
        head_drop_rate: float = 0.2,
        noise: float = 0.0,
    ):
        super().__init__(num_classes, widths[-1], head_drop_rate, noise)
        if kernel % 2 == 0 or len(widths) != len(dilations):
            what = f"a kernel of {kernel}, {len(widths)} widths and {len(dilations)} dilations"
            raise ValueError(f"{what}: the kernel must be odd, and each width have a dilation")
        layers, last = [], img_size
        for width, dilation in zip(widths, dilations, strict=True):
            layers.append(ContextConvolution(last, width, kernel, dilation, drop_rate))
            last = width
        self.layers = nn.Sequential(*layers)
        self.reach = sum(layer.lost for layer in layers)
        self.fewest = 2 * self.reach + 1

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """timm's way to number a model's layers from the input on."""
        return {"stem": r"^layers\.0", "blocks": r"^layers\.(\d+)"}

    def forward(self, inputs: Tensor) -> Tensor:
        frames, real = self.heard(inputs)
        return self.head(self.drop(self.layers(frames)[real[:, 2 * self.reach :]]))


@torch.no_grad()
def check_mask(model: SequenceModel, width: int) -> None:
    """Refuse a net of frames of ``width`` numbers to which it matters who shares a sequence's batch.

    Raises:
        UserError: what it says of a sequence changes with padded frames behind it.
    """
    model.eval()
    few = model.fewest + 3
    long = torch.arange(2 * few * width, device=next(model.parameters()).device).cos().view(1, 2 * few, width)
    short = long[:, :few]
    padded = torch.cat([short, torch.full_like(short, torch.nan)], dim=1)
    alone, together = torch.cat([model(long), model(short)]), model(torch.cat([long, padded]))
    if not torch.allclose(alone, together, atol=1e-4):
        what = f"{type(model).__name__} looks at padded frames: a prediction would depend on its batch"
        raise UserError("--model", what, "set them to 0, or leave them out, in each of its layers")


def places(frames: Tensor) -> Tensor:
    """Sines and cosines (T, width) that tell where in the sequence each of ``frames`` (n, T, width) stands."""
    width = frames.shape[2]
    place = torch.arange(frames.shape[1], device=frames.device)[:, None]
    speed = torch.arange(0, width, 2, device=frames.device) * (-math.log(10_000) / width)
    angles = place * speed.exp()
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width].to(frames.dtype)


register("frame_cnn", FrameCNN)
register("sequence_cnn", SequenceCNN)
register("sequence_transformer", SequenceTransformer)
