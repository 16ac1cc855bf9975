"""mlp: a plain network of fully connected layers for tables of features, registered with timm under that name."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from common.model.registration import register


class MLP(nn.Module):
    """Fully connected layers with ReLU, one for each entry of ``widths``; without any it is linear.

    ``batch_norm`` stands before each ReLU (each of several processes then has its own, so that their number changes the
    result), ``drop_rate`` behind it; ``skip`` adds a linear map of the inputs to the outputs. Input is (n, img_size)
    where ``in_chans`` is 0, else images, whose pixels are laid in a row.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 0,
        img_size: int = 28,
        widths: Sequence[int] = (64,),
        drop_rate: float = 0.0,
        batch_norm: bool = False,
        skip: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        inputs = img_size if in_chans == 0 else in_chans * img_size**2
        layers, last = [], inputs
        for width in widths:
            layers.append(nn.Linear(last, width, bias=not batch_norm))
            layers += [nn.BatchNorm1d(width)] if batch_norm else []
            layers += [nn.ReLU(inplace=True), nn.Dropout(drop_rate)]
            last = width
        self.hidden = nn.Sequential(*layers)
        self.skip = nn.Linear(inputs, num_classes, bias=False) if skip else None
        if self.skip is not None:
            nn.init.normal_(self.skip.weight, std=0.01 / math.sqrt(inputs))
        self.head = nn.Linear(last, num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """timm's way to number a model's layers from the input on."""
        return {"stem": r"^skip", "blocks": r"^hidden\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        """The last layer, by timm's name for it."""
        return self.head

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.flatten(1)
        outputs = self.head(self.hidden(inputs))
        return outputs if self.skip is None else outputs + self.skip(inputs)


register("mlp", MLP)
