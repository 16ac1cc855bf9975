"""Models by name: everything timm has, and digit_cnn."""

import difflib
import math
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import resolve_data_config
from timm.models import get_deprecated_models
from torch import nn

from common.base.errors import UserError
from common.base.words import in_a_line
from common.data.decoding import CROP_MODES, Preparation
from common.model import digit_cnn, mlp  # noqa: F401  (registers them with timm)
from common.model.sequence_models import SequenceModel, check_mask

# The sizes that are tried, with the model's own, to tell a user which one a model can work at.
USUAL_SIZES = (28, 32, 48, 56, 64, 75, 96, 112, 128, 160, 192, 224, 256, 299, 384, 448, 512)

LEAST_SEEN = 0.75  # share of an image's side that a model must look at
PATCHES_PER_SIDE = 7  # a vision transformer of fewer sees too little of where things are

# What the data, other flags or the absence of a network decide.
DECIDED_ELSEWHERE = {"num_classes", "in_chans", "img_size", "features_only", "pretrained", "pretrained_cfg"}
DECIDED_ELSEWHERE |= {"pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable", "exportable"}

# Among a model's arguments, but no constructor's: training converts the finished model, and photos are prepared so.
SYNC_BN = "sync_bn"
RECOMPUTE = "grad_checkpointing"  # activations again in the backward pass, instead of keeping them
CROPS = {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"}


def create_model(name: str, model_args: Mapping[str, Any], num_classes: int, channels: int, img_size: int) -> nn.Module:
    """Build an untrained model at the size of its input, checked by one dry forward pass.

    Models with a position table (ViT, EVA ...) are built for ``img_size``; others take any size that
    survives their strides. The last layers start at zero, so that training starts from a uniform guess: timm's own
    start suits 1,000 classes, and with ten costs tf_efficientnet_b0 its first hundred steps (loss 2.25 after 120
    steps of 64 digits, 1.27 from zero).

    Raises:
        UserError: no such model, an argument it does not know or cannot be built with, or a size it cannot work at or
            looks at only a part of, with settings that do work.
    """
    if decided := sorted(DECIDED_ELSEWHERE & model_args.keys()):
        raise UserError("--model-args", f"{decided[0]} is set by the data and other flags", "leave it out")
    name, failure = current_name(name), None
    try:
        model = build(name, model_args, num_classes, channels, img_size)
        if sees_whole(model, num_classes, channels, img_size):
            start_at_zero(model)
            return model
    except UserError:
        raise
    except Exception as error:  # timm's builders raise whatever their arguments and sizes run into
        failure = error
    if failure is not None and fits(name, model_args, num_classes, channels, img_size):  # but not into memory
        raise _refusal(name, model_args, num_classes, channels, img_size, failure) from failure
    remedies = []
    for size, arguments in working_settings(name, model_args, num_classes, channels, img_size):
        pairs = " ".join(f"{argument}={value}".replace(" ", "") for argument, value in arguments.items())
        remedies.append(f"--img-size {size}" if size != img_size else f"--model-args {pairs}")
    if not remedies:
        raise _refusal(name, model_args, num_classes, channels, img_size, failure) from failure
    what = "would see only part of each image" if failure is None else "does not support that size"
    raise UserError("--model", f"the images are {img_size} px and {name} {what}", f"use {', or '.join(remedies)}")


def current_name(name: str) -> str:
    """timm's name today of a model: those from before 2023 are called otherwise now, with their weights after a dot.

    Raises:
        UserError: timm has no such model, or no such weights (after the dot) of it.
    """
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        names = {_bare(each): each for each in timm.list_models()}
        near = [each for key, each in names.items() if key.startswith(_bare(model))]
        near += [names[key] for key in difflib.get_close_matches(_bare(model), names, n=3) if names[key] not in near]
        remedy = f"did you mean {', '.join(near[:3])}?" if near else "timm.list_models() lists them all"
        raise UserError("--model", f"timm has no model {name}", remedy)
    renamed = get_deprecated_models().get(model) or model
    model, _, own_tag = renamed.partition(".")
    tags = [full.partition(".")[2] for full in timm.list_models(f"{model}.*", pretrained=True)]
    if (tag := tag or own_tag) and tag not in tags:
        raise UserError("--model", f"timm has no weights {tag} for {model}", f"use one of: {', '.join(tags) or 'none'}")
    return f"{model}.{tag}" if tag else model


def _bare(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def photo_size(name: str) -> int:
    """The side of the images that timm's weights of a model were made for, px; 0 where it says nothing.

    Raises:
        UserError: timm has no such model.
    """
    facts = timm.get_pretrained_cfg(current_name(name))
    return facts.input_size[-1] if facts else 0


def photo_preparation(name: str, model_args: Mapping[str, Any], channels: int, img_size: int) -> Preparation:
    """How photos are prepared for a model: as timm's data config says, unless ``model_args`` say otherwise.

    ``crop_pct`` is the share of a photo's side that the model sees. Source: timm.data.resolve_data_config, by which
    timm's own validation prepares images.

    Raises:
        UserError: a crop or interpolation that does not exist.
    """
    facts = timm.get_pretrained_cfg(current_name(name))
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
    one resizes), and an output stride turns the last strides into dilation. The first of each kind that works; among
    the sizes is the model's own, which may be the only one, and a smaller one comes last.
    """
    patches = [patch for patch in range(img_size // PATCHES_PER_SIDE, 1, -1) if img_size % patch == 0]
    sizes = sorted(
        {*USUAL_SIZES, photo_size(name)} - {0, img_size}, key=lambda size: (size < img_size, abs(size - img_size))
    )
    kinds = [
        [(img_size, {**model_args, "patch_size": patch}) for patch in patches if "patch_size" not in model_args],
        [(size, dict(model_args)) for size in sizes],
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
            return model.eval()(two_inputs(model, channels, img_size)).shape == (2, num_classes)
    except Exception:  # as in create_model
        return False


def build(name: str, model_args: Mapping[str, Any], num_classes: int, channels: int, img_size: int) -> nn.Module:
    """The model as timm makes it, unchecked.

    Raises:
        UserError: an argument that it does not know.
        Exception: of any kind, where timm refuses this size or the value of an argument.
    """
    own = {argument: value for argument, value in model_args.items() if argument not in (SYNC_BN, RECOMPUTE, *CROPS)}
    arguments = {"num_classes": num_classes, "in_chans": channels, **own}
    try:
        try:
            model = timm.create_model(name, img_size=img_size, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            model = timm.create_model(name, **arguments)
        return recomputing(model, name) if model_args.get(RECOMPUTE) else model
    except TypeError as error:
        # Python's words: argument 'x'; timm's own, of some families: argument(s): ['x'].
        if unknown := re.search(r"unexpected keyword argument[^']*'(\w+)'", str(error)):
            raise UserError("--model-args", f"{name} has no argument {unknown[1]}", "see its constructor") from error
        raise


def recomputing(model: nn.Module, name: str) -> nn.Module:
    """The model, keeping fewer activations and computing the others again: timm's own switch.

    Raises:
        UserError: it has none.
    """
    try:
        model.set_grad_checkpointing()
    except (AttributeError, AssertionError):
        raise UserError("--model-args", f"{name} has no {RECOMPUTE}", "leave it out, or use --accumulate") from None
    return model


def _refusal(
    name: str,
    model_args: Mapping[str, Any],
    num_classes: int,
    channels: int,
    img_size: int,
    failure: Exception | None,
) -> UserError:
    """What to say of a model that works at no size: that an argument's value is wrong, where it works without."""
    reason = in_a_line(failure) if failure else "it sees only part of each image at every usual size"
    sizes = {img_size, photo_size(name) or img_size}

    def works_without(*left_out: str) -> bool:
        others = {argument: value for argument, value in model_args.items() if argument not in left_out}
        return any(fits(name, others, num_classes, channels, size) for size in sizes)

    wrong = [argument for argument in model_args if works_without(argument)]
    if not wrong and model_args and works_without(*model_args):
        wrong = list(model_args)
    if not wrong:
        return UserError("--model", f"{name} cannot be used ({reason})", "check --model-args and --img-size")
    values = " ".join(f"{argument}={model_args[argument]}" for argument in wrong)
    return UserError("--model-args", f"{name} cannot be built with {values} ({reason})", "correct it or leave it out")


def last_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that depend on the number of classes, by name: those that timm names as a model's classifiers.

    There are several where a model has several heads (volo, distilled transformers), and they are a part of what
    ``get_classifier()`` gives where that is more than one layer (caformer). Of a head without a name in timm it is the
    last layer.
    """
    modules = dict(model.named_modules())
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    layers = [modules[name] for name in ([named] if isinstance(named, str) else named) if name in modules]
    heads = model.get_classifier()
    for head in heads if isinstance(heads, tuple | list) else [heads]:
        if not any(layer is part for layer in layers for part in head.modules()):
            layers.append(([head] + [part for part in head.modules() if isinstance(part, nn.Linear | nn.Conv2d)])[-1])
    return {name: module for name, module in modules.items() if any(module is layer for layer in layers)}


def start_at_zero(model: nn.Module) -> None:
    """Let every last layer give zeros, so that training starts from a uniform guess."""
    for layer in last_layers(model).values():
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


@torch.no_grad()
def check_training_mode(model: nn.Module, channels: int, img_size: int, model_args: Mapping[str, Any]) -> None:
    """Let a model see two images as in training, which shows what only dropout and the like make of its arguments.

    Raises:
        UserError: it cannot compute with one of ``model_args``.
    """
    try:
        model.train()(two_inputs(model, channels, img_size))
    except Exception as error:  # as in create_model
        values = " ".join(f"{argument}={value}" for argument, value in model_args.items())
        what = f"the model cannot be trained with {values} ({in_a_line(error)})"
        raise UserError("--model-args", what, "correct it or leave it out") from error


def two_inputs(model: nn.Module, channels: int, img_size: int) -> torch.Tensor:
    """Two black images, or, with 0 channels, two rows, or sequences for an answer each, of ``img_size`` features."""
    if isinstance(model, SequenceModel):
        return torch.zeros(2, model.fewest, img_size)
    return torch.zeros(2, channels, img_size, img_size) if channels else torch.zeros(2, img_size)


def works_at(model: nn.Module, num_classes: int, channels: int, img_size: int) -> bool:
    """Whether a model gives logits for images of this size too."""
    try:
        sees_whole(model, num_classes, channels, img_size)
    except Exception:  # as in create_model
        return False
    return True


@torch.no_grad()
def sees_whole(model: nn.Module, num_classes: int, channels: int, img_size: int) -> bool:
    """Whether the logits that a model gives for such images depend on the lower right of an image.

    A ViT with patches of 16 px takes images of 28 px without a word and looks at the first 16 x 16 alone. NaN gets
    through everything that a pixel can get through, also through branches that start at zero.

    Raises:
        Exception: of any kind, where the model takes no such images; ValueError where its output is no logits.
    """
    if isinstance(model, SequenceModel):
        check_mask(model, img_size)
        return True
    images = two_inputs(model, channels, img_size).to(next(model.parameters()).device)
    border = int(LEAST_SEEN * img_size)
    if channels:
        images[1, :, border:, border:] = torch.nan
    else:
        images[1] = torch.nan
    logits = model.eval()(images)  # eval: leaves BatchNorm's statistics alone
    if logits.shape != (2, num_classes):
        raise ValueError(f"its output is {tuple(logits.shape)} for 2 images of {num_classes} classes")
    return bool(logits[1].isnan().any())
