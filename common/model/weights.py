"""Weights to start from: a safetensors file in our names or timm's, or timm's own from the hub."""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import logging as hub_logging
from timm.models import adapt_input_conv
from torch import Tensor, nn

from common.base.errors import ENVIRONMENT, UserError
from common.base.words import in_a_line
from common.data.folds import Folds
from common.data.scales import Normalise, Scale
from common.model.networks import USUAL_SIZES, build, current_name, last_layers, photo_size
from common.runs.saved_model import SavedModel
from common.runs.tensors import load_any, read_metadata

COUNTER = "num_batches_tracked"  # of BatchNorm; older files lack it, and only a momentum of None would look at it
REMEDY = "name a .safetensors file; convert others with safetensors.torch.save_file"
# What torch.compile, FSDP and activation checkpointing put anywhere into a name.
INSIDE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
COLOURS_INSIDE = ("embeds.proj.weight",)  # of NaFlexViT: a patch is its pixels, each of three colours
MOST_NEW = 0.2  # share of a model's tensors that may be missing in a file that is still said to fit


@dataclass(frozen=True)
class Loaded:
    """What :func:`load_weights` did: in words, and how the pixels must be normalised for these weights."""

    report: str
    normalise: Scale | None  # None: the file does not say


def hub_file(name: str) -> Path:
    """timm's pretrained weights of a model, from the local cache or else downloaded.

    Raises:
        UserError: timm has none, or the hub cannot be reached (exit 3).
    """
    facts = timm.get_pretrained_cfg(current_name(name))
    if facts is None or not facts.hf_hub_id:
        raise UserError("--pretrained", f"there are no pretrained weights for {name}", "leave it out")
    if facts.hf_hub_filename:
        raise UserError("--pretrained", f"the weights of {name} are not plain safetensors", "use --weights FILE")
    hub_logging.set_verbosity_error()  # each of its retries would be a line
    download = partial(hf_hub_download, facts.hf_hub_id, "model.safetensors")
    try:
        try:
            return Path(download(local_files_only=True))  # asks no network
        except LocalEntryNotFoundError:
            return Path(download())
    except Exception as error:  # the hub's client has dozens, of its own and of its network libraries
        reason = " ".join(str(error).split()[:9])
        what = f"{facts.hf_hub_id} cannot be downloaded ({type(error).__name__}: {reason} ...)"
        remedy = "use --weights FILE, or download it where there is a network"
        raise UserError("--pretrained", what, remedy, ENVIRONMENT) from error


def check_unseen(path: Path, fold: str, folds: Folds) -> bool:
    """Refuse weights that were trained on rows that ``fold`` holds out: it would be scored on what it has seen.

    False for weights that were trained with different folds: nobody can tell what they have seen.

    Raises:
        UserError: the model of another fold, or of all rows, of the same folds file.
    """
    metadata = read_metadata(path, REMEDY)
    if fold == "full" or not metadata:
        return True
    saved = SavedModel.from_metadata(metadata, path, REMEDY)
    if saved.folds_fingerprint == folds.fingerprint and saved.fold != fold:
        whose = "all rows" if saved.fold == "full" else f"fold {saved.fold}"
        what = f"is the model of {whose} and has seen the rows that fold {fold} holds out"
        remedy = "start each fold from its own model: --weights 'runs/NAME/{fold}/model.safetensors'"
        raise UserError(str(path), what, remedy)
    return saved.folds_fingerprint == folds.fingerprint


def load_weights(
    model: nn.Module,
    name: str,
    path: Path,
    output_names: Sequence[str],
    channels: int,
    model_args: Mapping[str, Any] = MappingProxyType({}),
) -> Loaded:
    """Put the weights of ``path`` into ``model``, timm's ``name``: what is taken, adapted, replaced and left is said.

    What wrappers put before the names is left out. Colour weights become grey by summing a filter's channels (an image
    of three equal channels then gives what it gave), grey ones become colour by an equal share for each; patches and
    position tables are resampled by timm's own functions. The last layers stay new where their size or, in our own
    files, the list of classes (or labels, or columns) differs.

    Raises:
        UserError: not safetensors, damaged, the weights of two models, or of another model or size.
    """
    tensors, metadata = load_any(path, REMEDY)
    if "optimiser" in metadata:
        raise UserError(str(path), "is the state of an unfinished training run", "use a model.safetensors")
    saved = SavedModel.from_metadata(metadata, path, REMEDY) if metadata else None
    own = _without_counters(model.state_dict())
    raw, prefix = tensors, ""
    for prefix in _prefixes(raw, own, str(path)):
        tensors = _converted(raw, prefix, model, f"{path}: does not fit {name}")
        if len(own.keys() & tensors.keys()) >= (1 - MOST_NEW) * len(own):
            break
    stems = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    stems = (stems,) if isinstance(stems, str) else stems
    adapted = [_adapt_channels(tensor_name, tensors, own, stems) for tensor_name in own if tensor_name in tensors]
    head = head_names(model)
    same_classes = saved is None or saved.output_names == output_names
    fits = same_classes and all(each in tensors and tensors[each].shape == own[each].shape for each in head)
    replaced = [] if fits else head
    taken = {each: tensors[each] for each in own if each in tensors and each not in replaced}
    missing = [each for each in own if each not in taken and each not in head]
    unlike = [each for each in taken if taken[each].shape != own[each].shape]
    if unlike:
        shapes = f"{tuple(taken[unlike[0]].shape)} in the file and {tuple(own[unlike[0]].shape)} in {name}"
        what = f"does not fit {name}: {unlike[0]} is {shapes} ({len(unlike)} such tensors)"
        sizes = [saved.preparation.side if saved else 0, photo_size(name), *USUAL_SIZES]
        for size in dict.fromkeys(filter(None, sizes)):
            if _is_for_size(size, raw, prefix, unlike, partial(build, name, model_args, len(output_names), channels)):
                raise UserError(str(path), f"{what}: it was made for {size} px", f"use --img-size {size}")
        raise UserError(str(path), what, "name the model and the --model-args that it belongs to")
    if len(missing) > MOST_NEW * len(own):
        what = f"does not fit {name}: {len(missing)} of {len(own)} tensors are missing, such as {missing[0]}"
        raise UserError(str(path), what, "name the model that it belongs to")
    model.load_state_dict(taken, strict=False)

    said = [f"{len(taken)} of {len(own)} tensors loaded", *filter(None, adapted)]
    if prefix:
        said.append(f"read without the {prefix} before each name")
    if replaced:
        before, after = (len(source[head[-1]]) if head[-1] in source else 0 for source in (tensors, own))
        why = f"{before} classes in the file, {after} here" if before != after else "of another shape"
        why = why if before else "none in the file"
        said.append(f"new last layer {', '.join(replaced)} ({why if same_classes else 'other classes'})")
    if missing:
        said.append(f"new: {_few(missing)}")
    if left := [each for each in tensors if each not in own]:
        said.append(f"left in the file: {_few(left)}")
    said_of_weights = f"{path}: {'; '.join(said)}"
    if saved and not saved.kind.of_images:
        return Loaded(said_of_weights, saved.scale)
    pixels = saved.normalise if saved else getattr(model, "pretrained_cfg", None) or {}
    return Loaded(said_of_weights, _normalise_of(pixels, channels))


def _without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}


def _prefixes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> list[str]:
    """What DDP, torch.compile or a class around the model may have put before each name, the likeliest first.

    It is what makes the names those of the model. Where nothing does, they may be of a kind that timm knows how to
    convert, as they are or without the words that stand before all of them.

    Raises:
        UserError: there are several such prefixes: a student and a teacher, or weights and their average.
    """
    names = [INSIDE.sub("", name).split(".") for name in tensors]
    starts = Counter(tuple(words[:end]) for words in names for end in range(len(words)) if ".".join(words[end:]) in own)
    fitting = [start for start, count in starts.items() if count >= (1 - MOST_NEW) * len(own)]
    prefixes = ["".join(f"{word}." for word in start) for start in fitting]
    if len(prefixes) > 1:
        named = " and ".join(f"{prefix}*" for prefix in sorted(prefixes))
        raise UserError(where, f"holds the weights of several models ({named})", "save those of one of them")
    common = os.path.commonprefix([words[:-1] for words in names])
    return prefixes or ["", "".join(f"{word}." for word in common)]


def _converted(tensors: Mapping[str, Tensor], prefix: str, model: nn.Module, misfit: str) -> dict[str, Tensor]:
    """The tensors without a prefix, under the names and in the shapes of ``model`` as far as timm can convert them."""
    tensors = {INSIDE.sub("", name).removeprefix(prefix): tensor for name, tensor in tensors.items()}
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)  # timm's name for it
    try:
        return _without_counters(tensors if convert is None else convert(tensors, model))
    except Exception as error:  # names that timm half knows may lead it anywhere
        where, _, what = misfit.partition(": ")
        raise UserError(where, f"{what} ({in_a_line(error)})", "name the model that it belongs to") from error


def _is_for_size(
    size: int, tensors: Mapping[str, Tensor], prefix: str, names: Sequence[str], build_at: Callable[[int], nn.Module]
) -> bool:
    """Whether the model for images of ``size`` px has these tensors in the shapes of the file."""
    try:
        with torch.device("meta"):
            model = build_at(size)
        tensors = _converted(tensors, prefix, model, "")
    except Exception:  # a size that the model does not take
        return False
    own = model.state_dict()
    return all(own[each].shape == tensors[each].shape for each in names)


def _adapt_channels(name: str, tensors: dict[str, Tensor], own: Mapping[str, Tensor], stems: Sequence[str]) -> str:
    """Fit a convolution that differs in its input channels alone, and say so.

    One of ``stems`` (the first convolutions, by name) may see each channel several times: in space-to-depth order, the
    channels of a pixel lie together.
    """
    weight, (ours, theirs) = tensors[name], (own[name].shape, tensors[name].shape)
    if len(ours) == len(theirs) == 2 and ours[0] == theirs[0] and name.removesuffix(".weight") in stems:
        return _adapt_patches(name, tensors, ours[1], theirs[1])
    if len(ours) != 4 or len(theirs) != 4 or ours[0] != theirs[0] or ours[2:] != theirs[2:] or ours == theirs:
        return ""
    if ours[1] != 1 and theirs[1] != 1 and name.removesuffix(".weight") not in stems:
        return ""
    if theirs[1] == 3 * ours[1]:
        tensors[name] = adapt_input_conv(1, weight.float())
        return f"{name} summed over its 3 colour channels"
    if ours[1] == 3 * theirs[1]:
        tensors[name] = weight.float().repeat_interleave(3, dim=1) / 3
        return f"{name} spread over 3 colour channels"
    if theirs[1] == 3 and name.removesuffix(".weight") in stems:  # in timm's way
        tensors[name] = adapt_input_conv(ours[1], weight.float())
        return f"{name} repeated over {ours[1]} channels"
    return ""


def _adapt_patches(name: str, tensors: dict[str, Tensor], ours: int, theirs: int) -> str:
    """As :func:`_adapt_channels` for a linear layer on patches that lie flat: colours inside of a pixel, or outside."""
    weight, pixels, colours = tensors[name].float(), min(ours, theirs), -1 if name in COLOURS_INSIDE else 1
    if theirs == 3 * ours:
        tensors[name] = weight.unflatten(1, (pixels, 3) if colours == -1 else (3, pixels)).sum(dim=colours)
        return f"{name} summed over its 3 colour channels"
    if ours == 3 * theirs:
        tensors[name] = torch.stack([weight / 3] * 3, dim=2 if colours == -1 else 1).flatten(1)
        return f"{name} spread over 3 colour channels"
    return ""


def head_names(model: nn.Module) -> list[str]:
    """The parameters of the last layer, or of each last layer where a model has several."""
    own = {id(parameter) for layer in last_layers(model).values() for parameter in layer.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in own]


def _normalise_of(pixels: Mapping[str, Any], channels: int) -> Normalise | None:
    """The mean and deviation that weights expect, fitted to ``channels``; None where nothing is said of them."""
    if not pixels.get("mean"):
        return None

    def fitted(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels

    return Normalise(fitted(pixels["mean"]), fitted(pixels["std"]))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
