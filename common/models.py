"""Models by name: everything timm has, and digit_cnn, a small plain network for small grey images."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.models import register_model
from torch import Tensor, nn

from common.errors import UserError

# The sizes that are tried, in this order, to tell a user which one a model can work at.
USUAL_SIZES = (28, 32, 48, 56, 64, 96, 112, 128, 160, 192, 224, 256, 299, 384, 448, 512)


# What the data, other flags or the absence of a network decide.
DECIDED_ELSEWHERE = {"num_classes", "in_chans", "img_size", "features_only", "pretrained", "pretrained_cfg"}
DECIDED_ELSEWHERE |= {"pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable", "exportable"}


class DigitCNN(nn.Module):
    """Five convolutions with BatchNorm and three poolings: the classic shape for 28 x 28 digits.

    ``img_size`` (at least 8) fixes the width of the last, fully connected layer. Input is
    (n, in_chans, img_size, img_size), output (n, num_classes).
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        img_size: int = 28,
        widths: Sequence[int] = (24, 48, 96),
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.num_classes = num_classes
        first, second, third = widths

        def convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
            return [
                nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]

        self.features = nn.Sequential(
            *convolution(in_chans, first, 5),
            nn.MaxPool2d(2),
            *convolution(first, second, 3),
            *convolution(second, second, 3),
            nn.MaxPool2d(2),
            *convolution(second, third, 3),
            *convolution(third, third, 3),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(drop_rate), nn.Linear(third * (img_size // 8) ** 2, num_classes)
        )

    def get_classifier(self) -> nn.Module:
        """The last layer, by timm's name for it."""
        return self.head[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@register_model
def digit_cnn(
    pretrained: bool = False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **model_args
) -> DigitCNN:
    """:class:`DigitCNN` with the signature that timm calls; there are no pretrained weights."""
    if pretrained:
        raise UserError("--model digit_cnn", "has no pretrained weights", "train it from scratch")
    return DigitCNN(**model_args)


def create_model(name: str, model_args: Mapping[str, Any], num_classes: int, channels: int, img_size: int) -> nn.Module:
    """Build an untrained model at the size of its input, checked by one dry forward pass.

    Models with a position table (ViT, EVA ...) are built for ``img_size``; others take any size that
    survives their strides. The last layer starts at zero, so that training starts from a uniform guess: timm's own
    start suits 1,000 classes, and with ten costs tf_efficientnet_b0 its first hundred steps (loss 2.25 after 120
    steps of 64 digits, 1.27 from zero).

    Raises:
        UserError: no such model, an argument it does not know, or a size it cannot work at,
            with the smallest usual size that it can.
    """
    for argument in DECIDED_ELSEWHERE & model_args.keys():
        raise UserError("--model-args", f"{argument} is decided by the data and other flags", "leave it out")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        remedy = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them all"
        raise UserError("--model", f"timm has no model {name}", remedy)
    model = _build(name, model_args, num_classes, channels, img_size)
    if isinstance(model, nn.Module) and _works(model, num_classes, channels, img_size):
        head = model.get_classifier()
        if isinstance(head, nn.Linear):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        return model
    for size in (size for size in USUAL_SIZES if size > img_size):
        candidate = _build(name, model_args, num_classes, channels, size)
        if isinstance(candidate, nn.Module) and _works(candidate, num_classes, channels, size):
            raise UserError(
                "--model",
                f"{name} needs at least {size} px, the images are {img_size}",
                f"use --img-size {size}",
            )
    reason = model if isinstance(model, Exception) else "its forward pass fails at every usual size"
    raise UserError("--model", f"{name} cannot be used ({reason})", "check --model-args and --img-size")


def _build(
    name: str, model_args: Mapping[str, Any], num_classes: int, channels: int, img_size: int
) -> nn.Module | Exception:
    """The model, or the exception with which timm refuses this size."""
    arguments = {"num_classes": num_classes, "in_chans": channels, **model_args}
    try:
        try:
            return timm.create_model(name, img_size=img_size, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, **arguments)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown:
            raise UserError("--model-args", f"{name} has no argument {unknown[1]}", "see its class in timm") from error
        raise
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        return error


@torch.no_grad()
def _works(model: nn.Module, num_classes: int, channels: int, img_size: int) -> bool:
    model.eval()  # leaves BatchNorm's statistics alone
    try:
        return model(torch.zeros(2, channels, img_size, img_size)).shape == (2, num_classes)
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError):
        return False
