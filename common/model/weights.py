"""Weights to start from: a safetensors file in our names or timm's, or timm's own from the hub."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor, nn

from common.base.errors import ENVIRONMENT, UserError
from common.data.batches import Normalise
from common.data.folds import Folds
from common.runs.saved_model import SavedModel
from common.runs.tensors import load_any, read_metadata

COUNTER = "num_batches_tracked"  # of BatchNorm; older files lack it, and only a momentum of None would look at it
REMEDY = "name a .safetensors file; convert others with safetensors.torch.save_file"
MOST_NEW = 0.2  # share of a model's tensors that may be missing in a file that is still said to fit


@dataclass(frozen=True)
class Loaded:
    """What :func:`load_weights` did: in words, and how the pixels must be normalised for these weights."""

    report: str
    normalise: Normalise | None  # None: the file does not say


def hub_file(name: str) -> Path:
    """timm's pretrained weights of a model, from the local cache or else downloaded.

    Raises:
        UserError: timm has none, or the hub cannot be reached (exit 3).
    """
    facts = timm.get_pretrained_cfg(name)
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


def load_weights(model: nn.Module, name: str, path: Path, classes: Sequence[str], channels: int) -> Loaded:
    """Put the weights of ``path`` into ``model``, timm's ``name``: what is taken, adapted, replaced and left is said.

    Colour weights become grey by summing a filter's channels (an image of three equal channels then gives what it
    gave), grey ones become colour by an equal share for each; patches and position tables are resampled by timm's own
    functions. The last layer stays new where its size or, in our own files, the list of classes differs.

    Raises:
        UserError: not safetensors, damaged, or the weights of another model.
    """
    tensors, metadata = load_any(path, REMEDY)
    if "optimiser" in metadata:
        raise UserError(str(path), "is the state of an unfinished training run", "use a model.safetensors")
    saved = SavedModel.from_metadata(metadata, path, REMEDY) if metadata else None
    tensors = _bare_names(tensors)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)  # timm's name for it
    if convert is not None:
        tensors = convert(tensors, model)
    tensors = {tensor_name: tensor for tensor_name, tensor in tensors.items() if not tensor_name.endswith(COUNTER)}
    own = {
        tensor_name: tensor for tensor_name, tensor in model.state_dict().items() if not tensor_name.endswith(COUNTER)
    }
    adapted = [_adapt_channels(tensor_name, tensors, own) for tensor_name in own if tensor_name in tensors]
    head = head_names(model)
    same_classes = saved is None or saved.classes == classes
    fits = same_classes and all(each in tensors and tensors[each].shape == own[each].shape for each in head)
    replaced = [] if fits else head
    taken = {each: tensors[each] for each in own if each in tensors and each not in replaced}
    missing = [each for each in own if each not in taken and each not in head]
    unlike = [each for each in taken if taken[each].shape != own[each].shape]
    if unlike:
        shapes = f"{tuple(taken[unlike[0]].shape)} in the file and {tuple(own[unlike[0]].shape)} in {name}"
        what = f"does not fit {name}: {unlike[0]} is {shapes} ({len(unlike)} such tensors)"
        raise UserError(str(path), what, "name the model and the --model-args that it belongs to")
    if len(missing) > MOST_NEW * len(own):
        what = f"does not fit {name}: {len(missing)} of {len(own)} tensors are missing, such as {missing[0]}"
        raise UserError(str(path), what, "name the model that it belongs to")
    model.load_state_dict(taken, strict=False)

    said = [f"{len(taken)} of {len(own)} tensors loaded", *filter(None, adapted)]
    if replaced:
        before, after = (len(source[head[-1]]) if head[-1] in source else 0 for source in (tensors, own))
        why = f"{before} classes in the file, {after} here" if before != after else "of another shape"
        said.append(f"new last layer {', '.join(replaced)} ({why if same_classes else 'other classes'})")
    if missing:
        said.append(f"new: {_few(missing)}")
    if left := [each for each in tensors if each not in own]:
        said.append(f"left in the file: {_few(left)}")
    pixels = saved.normalise if saved else getattr(model, "pretrained_cfg", None) or {}
    return Loaded(f"{path}: {'; '.join(said)}", _normalise_of(pixels, channels))


def _bare_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that DDP or torch.compile put before every name."""
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _adapt_channels(name: str, tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Fit a convolution that differs in its input channels alone, and say so."""
    weight, (ours, theirs) = tensors[name], (own[name].shape, tensors[name].shape)
    if len(ours) != 4 or len(theirs) != 4 or ours[0] != theirs[0] or ours[2:] != theirs[2:]:
        return ""
    if (theirs[1], ours[1]) == (3, 1):
        tensors[name] = weight.float().sum(1, keepdim=True)
        return f"{name} summed over its 3 colour channels"
    if (theirs[1], ours[1]) == (1, 3):
        tensors[name] = weight.float().repeat(1, 3, 1, 1) / 3
        return f"{name} spread over 3 colour channels"
    return ""


def head_names(model: nn.Module) -> list[str]:
    """The parameters of the last layer, or of each last layer where a model has several."""
    heads = model.get_classifier()
    heads = heads if isinstance(heads, tuple | list) else [heads]
    own = {id(parameter) for head in heads for parameter in head.parameters()}
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
