"""Models by name: everything timm has, and digit_cnn, a small plain network for small grey images."""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import resolve_data_config
from timm.models import register_model
from torch import Tensor, nn

from common.base.errors import UserError
from common.data.decoding import CROP_MODES, Preparation

# The sizes that are tried, in this order, to tell a user which one a model can work at.
USUAL_SIZES = (28, 32, 48, 56, 64, 75, 96, 112, 128, 160, 192, 224, 256, 299, 384, 448, 512)

LEAST_SEEN = 0.75  # share of an image's side that a model must look at
PATCHES_PER_SIDE = 7  # a vision transformer of fewer sees too little of where things are

# What the data, other flags or the absence of a network decide.
DECIDED_ELSEWHERE = {"num_classes", "in_chans", "img_size", "features_only", "pretrained", "pretrained_cfg"}
DECIDED_ELSEWHERE |= {"pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable", "exportable"}

# Among a model's arguments, but no constructor's: training converts the finished model, and photos are prepared so.
SYNC_BN = "sync_bn"
CROPS = {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"}


class DigitCNN(nn.Module):
    """Stages of convolutions with BatchNorm, each ending in a pooling: the classic shape for 28 x 28 digits.

    A stage has its entry of ``widths`` channels and of ``depths`` convolutions, 3 x 3 but for the very first one, which
    is ``first_kernel`` wide. ``img_size`` (at least 2 to the power of stages) fixes the width of the last, fully
    connected layer. Input is (n, in_chans, img_size, img_size), output (n, num_classes).
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        img_size: int = 28,
        widths: Sequence[int] = (24, 48, 96),
        depths: Sequence[int] = (1, 2, 2),
        first_kernel: int = 5,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        if len(widths) != len(depths):
            raise ValueError(f"{len(widths)} widths and {len(depths)} depths: give one of each for every stage")
        self.num_classes = num_classes

        def convolution(inputs: int, outputs: int, kernel: int, pooled: bool) -> list[nn.Module]:
            # The maximum of what is rectified is the rectified maximum: to the same bits for a quarter of the work.
            return [
                nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                *[nn.MaxPool2d(2)] * pooled,
                nn.ReLU(inplace=True),
            ]

        layers: list[nn.Module] = []
        inputs = in_chans
        for width, depth in zip(widths, depths, strict=True):
            for number in range(1, depth + 1):
                layers += convolution(inputs, width, 3 if layers else first_kernel, pooled=number == depth)
                inputs = width
        self.features = nn.Sequential(*layers)
        side = img_size // 2 ** len(widths)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(drop_rate), nn.Linear(inputs * side**2, num_classes))

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
        UserError: no such model, an argument it does not know, or a size it cannot work at or looks at only a part
            of, with settings that do work.
    """
    model_args = {argument: value for argument, value in model_args.items() if argument not in (SYNC_BN, *CROPS)}
    for argument in DECIDED_ELSEWHERE & model_args.keys():
        raise UserError("--model-args", f"{argument} is set by the data and other flags", "leave it out")
    _check_name(name)
    model = build(name, model_args, num_classes, channels, img_size)
    works, whole = (False, False) if isinstance(model, Exception) else _look(model, num_classes, channels, img_size)
    if works and whole:
        head = model.get_classifier()
        if isinstance(head, nn.Linear):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        return model
    remedies = []
    for size, arguments in working_settings(name, model_args, num_classes, channels, img_size):
        pairs = " ".join(f"{argument}={value}".replace(" ", "") for argument, value in arguments.items())
        remedies.append(f"--img-size {size}" if size != img_size else f"--model-args {pairs}")
    if not remedies:
        reason = model if isinstance(model, Exception) else "its forward pass fails at every usual size"
        raise UserError("--model", f"{name} cannot be used ({reason})", "check --model-args and --img-size")
    what = "would see only part of each image" if works else "does not support that size"
    raise UserError("--model", f"the images are {img_size} px and {name} {what}", f"use {', or '.join(remedies)}")


def photo_size(name: str) -> int:
    """The side of the images that timm's weights of a model were made for, px; 0 where it says nothing.

    Raises:
        UserError: timm has no such model.
    """
    _check_name(name)
    facts = timm.get_pretrained_cfg(name)
    return facts.input_size[-1] if facts else 0


def photo_preparation(name: str, model_args: Mapping[str, Any], channels: int, img_size: int) -> Preparation:
    """How photos are prepared for a model: as timm's data config says, unless ``model_args`` say otherwise.

    ``crop_pct`` is the share of a photo's side that the model sees. Source: timm.data.resolve_data_config, by which
    timm's own validation prepares images.

    Raises:
        UserError: a crop or interpolation that does not exist.
    """
    facts = timm.get_pretrained_cfg(name)
    own = resolve_data_config(pretrained_cfg=facts.to_dict()) if facts else {}
    used = {argument: model_args.get(argument, own.get(argument, default)) for argument, default in CROPS.items()}
    known = {"crop_mode": CROP_MODES, "interpolation": [each.name.lower() for each in Image.Resampling]}
    for argument, values in known.items():
        if used[argument] not in values:
            what = f"{argument}={used[argument]} does not exist"
            raise UserError("--model-args", what, f"use one of: {', '.join(values)}")
    share = used.pop("crop_pct")
    if not (isinstance(share, int | float) and 0 < share <= 1):
        raise UserError("--model-args", f"crop_pct={share} is not a valid share", "use more than 0, up to 1")
    mean = own.get("mean", (0.0,))
    mean = mean if len(mean) == channels else (sum(mean) / len(mean),) * channels
    fill = tuple(round(255 * value) for value in mean)
    return Preparation(channels, img_size, math.floor(img_size / share), fill=fill, **used)


def working_settings(
    name: str, model_args: Mapping[str, Any], num_classes: int, channels: int, img_size: int
) -> list[tuple[int, dict[str, Any]]]:
    """Sizes and arguments near the asked ones with which a model works; all of them keep pretrained weights.

    A smaller patch is resampled from the pretrained one, a size a little above the images' own is padding (a larger
    one resizes), and an output stride turns the last strides into dilation. The first of each kind that works.
    """
    patches = [patch for patch in range(img_size // PATCHES_PER_SIDE, 1, -1) if img_size % patch == 0]
    kinds = [
        [(img_size, {**model_args, "patch_size": patch}) for patch in patches if "patch_size" not in model_args],
        [(size, dict(model_args)) for size in USUAL_SIZES if size > img_size],
        [(img_size, {**model_args, "output_stride": 8})] if "output_stride" not in model_args else [],
    ]
    tried = (
        (setting for setting in kind if fits(name, setting[1], num_classes, channels, setting[0])) for kind in kinds
    )
    return [setting for working in tried for setting in islice(working, 1)]


def fits(name: str, model_args: Mapping[str, Any], num_classes: int, channels: int, img_size: int) -> bool:
    """Whether such a model gives logits for such images; on torch's meta device, which computes shapes alone."""
    try:
        with torch.device("meta"):
            model = build(name, model_args, num_classes, channels, img_size)
            if isinstance(model, Exception):
                return False
            return model.eval()(torch.zeros(2, channels, img_size, img_size)).shape == (2, num_classes)
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError, UserError):
        return False


def _check_name(name: str) -> None:
    """Refuse a model that timm does not have, or weights (after the dot) that it does not have of it."""
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        names = {each.replace("_", ""): each for each in timm.list_models()}
        bare = model.replace("_", "")
        near = [each for key, each in names.items() if key.startswith(bare)]
        near += [names[key] for key in difflib.get_close_matches(bare, names, n=3) if names[key] not in near]
        remedy = f"did you mean {', '.join(near[:3])}?" if near else "timm.list_models() lists them all"
        raise UserError("--model", f"timm has no model {name}", remedy)
    tags = [full.partition(".")[2] for full in timm.list_models(f"{model}.*", pretrained=True)]
    if tag and tag not in tags:
        raise UserError("--model", f"timm has no weights {tag} for {model}", f"use one of: {', '.join(tags) or 'none'}")


def build(
    name: str, model_args: Mapping[str, Any], num_classes: int, channels: int, img_size: int
) -> nn.Module | Exception:
    """The model as timm makes it, unchecked, or the exception with which timm refuses this size."""
    arguments = {"num_classes": num_classes, "in_chans": channels, **model_args}
    try:
        try:
            return timm.create_model(name, img_size=img_size, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, **arguments)
    except TypeError as error:
        # Python's words: argument 'x'; timm's own, of some families: argument(s): ['x'].
        if unknown := re.search(r"unexpected keyword argument[^']*'(\w+)'", str(error)):
            raise UserError("--model-args", f"{name} has no argument {unknown[1]}", "see its constructor") from error
        return error
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError, NotImplementedError) as error:
        return error


def works_at(model: nn.Module, num_classes: int, channels: int, img_size: int) -> bool:
    """Whether a model gives logits for images of this size too."""
    return _look(model, num_classes, channels, img_size)[0]


@torch.no_grad()
def _look(model: nn.Module, num_classes: int, channels: int, img_size: int) -> tuple[bool, bool]:
    """Whether the model gives logits for such images, and whether these depend on the lower right of an image.

    A ViT with patches of 16 px takes images of 28 px without a word and looks at the first 16 x 16 alone. NaN gets
    through everything that a pixel can get through, also through branches that start at zero.
    """
    images = torch.zeros(2, channels, img_size, img_size, device=next(model.parameters()).device)
    border = int(LEAST_SEEN * img_size)
    images[1, :, border:, border:] = torch.nan
    try:
        logits = model.eval()(images)  # eval: leaves BatchNorm's statistics alone
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError):
        return False, False
    return logits.shape == (2, num_classes), bool(logits[1].isnan().any())
