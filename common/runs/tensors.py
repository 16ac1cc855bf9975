"""Weights and training state as safetensors: one file, one rename, nothing that runs code when read.

The metadata is one key of sorted JSON without times (safetensors writes several keys in random order),
so that equal training gives equal bytes. It holds a sha256 over the tensors and one over the rest of itself, both
checked on reading.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import safetensors.torch
import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.base.errors import NUMBERS, UserError, warn_of_unhashed
from common.base.files import sha256_of_json, write_file
from common.runs.layout import METADATA_KEY, check_stated
from common.runs.saved_model import SavedModel

VERSION = 2  # 1 had no sha256 over the metadata
METADATA_SHA256 = "metadata_sha256"
_TENSOR, _DTYPE, _TUPLE = "tensor", "dtype", "tuple"  # what JSON lacks


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write tensors (any device and memory format) and JSON metadata in one step; returns the tensors' sha256.

    Raises:
        UserError: a tensor holds NaN or infinity (exit 4; nothing is written), or the disk refuses.
    """
    # A copy each: channels_last is not contiguous and tied weights share memory; safetensors takes neither.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    _check_finite(path, plain, "is not saved", "lower --lr, or set --clip-grad 1", NUMBERS)
    digest = _digest(plain)
    metadata = json.loads(json.dumps({**metadata, "version": VERSION, "sha256": digest}))
    metadata[METADATA_SHA256] = sha256_of_json(metadata, without=METADATA_SHA256)
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    write_file(path, safetensors.torch.save(plain, {METADATA_KEY: text}))
    return digest


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that :func:`save_tensors` wrote.

    Raises:
        UserError: missing, not safetensors, damaged, of a newer version, or not finite.
    """
    tensors, metadata = load_any(path, remedy_for(path))
    if not metadata:
        raise UserError(str(path), "was not written by Fivefold", remedy_for(path))
    check_stated(path, metadata["sha256"])
    return tensors, metadata


@dataclass(frozen=True)
class FoldModel:
    """A fold's model as its weights file holds it."""

    tensors: dict[str, Tensor]
    saved: SavedModel


def load_model(path: Path) -> FoldModel:
    """The model of a fold's weights file.

    Raises:
        UserError: as :func:`load_tensors` does, or the file does not say what its readers need.
    """
    tensors, metadata = load_tensors(path)
    return FoldModel(tensors, SavedModel.from_metadata(metadata, path, remedy_for(path)))


def remedy_for(path: Path) -> str:
    """What to do about a fold's file that is of no use."""
    return f"restore it, or delete {path.parent} and train this fold again"


def read_metadata(path: Path, remedy: str) -> dict[str, Any]:
    """What a safetensors file says of itself, unchecked and without its tensors; empty where it is not ours."""
    with _opened(path, remedy) as (_, metadata):
        return metadata


def load_any(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of any safetensors file; no metadata where :func:`save_tensors` did not write it."""
    with _opened(path, remedy) as (file, metadata):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    if metadata:
        _check_hashes(path, tensors, metadata, remedy)
    _check_finite(path, tensors, "is not usable", remedy)
    return tensors, metadata


@contextmanager
def _opened(path: Path, remedy: str) -> Iterator[tuple[safe_open, dict[str, Any]]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            yield file, metadata if isinstance(metadata, dict) else {}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(str(path), f"cannot be read as safetensors ({error})", remedy) from error


def _check_hashes(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], remedy: str) -> None:
    version = metadata.get("version")
    if version not in (1, VERSION):
        raise UserError(str(path), f"has version {version}, this code supports up to {VERSION}", "use matching code")
    if version == 1 and METADATA_SHA256 not in metadata:
        warn_of_unhashed(path.name)
    elif metadata.get(METADATA_SHA256) != sha256_of_json(metadata, without=METADATA_SHA256):
        raise UserError(str(path), "is damaged: its metadata does not match its sha256", remedy)
    if metadata.get("sha256") != _digest(tensors):
        raise UserError(str(path), "is damaged: its tensors do not match their sha256", remedy)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_finite(path: Path, tensors: Mapping[str, Tensor], what: str, remedy: str, exit_code: int = 2) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise UserError(f"{path}, tensor {name}", f"{what}: {count} values are NaN or infinite", remedy, exit_code)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under ``prefix.name``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors that stand under ``prefix``, by their own names."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}


def separate_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A nested state with each tensor moved into ``tensors`` and its name left in its place: the rest is JSON."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, torch.dtype):
        return {_DTYPE: str(value).removeprefix("torch.")}
    if isinstance(value, dict):
        return {str(key): separate_tensors(part, f"{name}.{key}", tensors) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [separate_tensors(part, f"{name}.{number}", tensors) for number, part in enumerate(value)]
        return {_TUPLE: parts} if isinstance(value, tuple) else parts
    return value


def join_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nested state that :func:`separate_tensors` took apart; whole-number keys are numbers again."""
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        if _DTYPE in value:
            return getattr(torch, value[_DTYPE])
        if _TUPLE in value:
            return tuple(join_tensors(part, tensors) for part in value[_TUPLE])
        return {int(key) if key.isdecimal() else key: join_tensors(part, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [join_tensors(part, tensors) for part in value]
    return value


def versions() -> dict[str, str]:
    """Versions of what decides the bits of a result."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "accelerate": accelerate.__version__,
    }
