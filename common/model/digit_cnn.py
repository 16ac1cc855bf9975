"""digit_cnn: a small plain network for small grey images, registered with timm under that name."""

from collections.abc import Callable, Sequence
from typing import Literal

from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from common.model.registration import register


class DigitCNN(nn.Module):
    """Stages of convolutions with BatchNorm, each ending in a pooling: the classic shape for 28 x 28 digits.

    A stage has its entry of ``widths`` channels and of ``depths`` convolutions, 3 x 3 but for the very first one, which
    is ``first_kernel`` wide. With ``first_padding="valid"`` that one sees whole windows only: 28 pixels become 24, a
    quarter less arithmetic, and digits with an empty margin lose nothing. ``img_size`` (what is left of it at least 2
    to the power of stages) fixes the width of the last, fully connected layer, unless ``global_pool`` takes each
    channel's maximum (or "avg") over the image first: for what may lie anywhere in it. Input is (n, in_chans, img_size,
    img_size), output (n, num_classes).
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        img_size: int = 28,
        widths: Sequence[int] = (24, 48, 96),
        depths: Sequence[int] = (1, 2, 2),
        first_kernel: int = 5,
        first_padding: Literal["same", "valid"] = "same",
        drop_rate: float = 0.0,
        global_pool: Literal["", "max", "avg"] = "",
    ):
        super().__init__()
        if len(widths) != len(depths):
            raise ValueError(f"{len(widths)} widths and {len(depths)} depths: give one of each for every stage")
        self.num_classes = num_classes

        def convolution(inputs: int, outputs: int, kernel: int, padding: int, pooled: bool) -> list[nn.Module]:
            # The maximum of what is rectified is the rectified maximum: to the same bits for a quarter of the work.
            return [
                nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False),
                nn.BatchNorm2d(outputs),
                *[nn.MaxPool2d(2)] * pooled,
                nn.ReLU(inplace=True),
            ]

        layers: list[nn.Module] = []
        inputs, kernel, padding = in_chans, first_kernel, {"same": first_kernel // 2, "valid": 0}[first_padding]
        side = img_size + 2 * padding - first_kernel + 1
        for width, depth in zip(widths, depths, strict=True):
            for number in range(1, depth + 1):
                layers += convolution(inputs, width, kernel, padding, pooled=number == depth)
                inputs, kernel, padding = width, 3, 1
        self.features = nn.Sequential(*layers)
        side = 1 if global_pool else side // 2 ** len(widths)
        pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True) if global_pool else nn.Flatten()
        self.head = nn.Sequential(pool, nn.Dropout(drop_rate), nn.Linear(inputs * side**2, num_classes))

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """timm's way to number a model's layers from the input on: stages end at a pooling, layers are convolutions."""

        def number_of(name: str) -> float:
            if not name.startswith("features."):
                return float("inf")
            up_to = self.features[: int(name.split(".")[1]) + 1]
            return sum(isinstance(module, nn.MaxPool2d if coarse else nn.Conv2d) for module in up_to)

        return number_of

    def get_classifier(self) -> nn.Module:
        """The last layer, by timm's name for it."""
        return self.head[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


register("digit_cnn", DigitCNN)
