"""Decoded photos, kept so that they are decoded once: in memory, or in one file that folds and processes share.

The file is an .npy file, written in one step and mapped into memory by its readers. Its name is the key of its content:
the photos' hashes, their preparation, and the versions of what decoded them.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from tqdm import tqdm

from common.base.errors import warn
from common.base.files import cache_folder, make_room, sha256, write_file
from common.base.locks import locked
from common.base.system import is_watched
from common.data.decoding import RULES, Decoder

CHUNK = 64  # photos that are decoded and written together
DEFAULT_GB = 4.0
SPARE = 1e9  # bytes of disk that are left free


@dataclass(frozen=True)
class Cache:
    """Room for decoded photos: ``gb`` gigabytes (1e9 bytes) of a folder, or of memory where ``folder`` is empty."""

    gb: float
    folder: str = ""


def photo_cache(gb: float = DEFAULT_GB, folder: str = "") -> Cache:
    """The cache of decoded photos in a folder that a user named, or else in his cache folder; never among the runs."""
    return Cache(gb, str((Path(folder, "fivefold") if folder else cache_folder()) / "photos"))


def keep(decoder: Decoder, cache: Cache, say: Callable[[str], None]) -> np.ndarray | None:
    """All photos decoded, uint8 (n, channels, stored, stored), or None where they do not fit; ``say`` is told which.

    Processes that come at the same time wait for the one that decodes. Other files in the folder, the longest unused
    first, make room.

    Raises:
        UserError: a photo cannot be decoded, or the file not be written.
    """
    prepare, folder = decoder.prepare, Path(cache.folder)
    shape = (len(decoder), prepare.channels, prepare.stored, prepare.stored)
    size = int(np.prod(shape, dtype=np.int64))
    again = f"decoded again for each batch by {decoder.workers} thread{'s' * (decoder.workers != 1)}"
    if not cache.gb:
        say(f"photos: {again}")
        return None
    if size > cache.gb * 1e9:
        say(f"photos: {_gigabytes(size)} decoded exceed --cache-gb {cache.gb:g}: {again}")
        return None
    started = time.perf_counter()
    if not cache.folder:
        images = np.empty(shape, np.uint8)
        for first, pixels in _chunks(decoder):
            images[first : first + len(pixels)] = pixels
        say(f"photos: {len(decoder):,} decoded in {time.perf_counter() - started:.1f} s, {_gigabytes(size)} of memory")
        return images
    path = folder / f"{_key(decoder)[:32]}.npy"
    with locked(folder, wait=True):
        if _mapped(path, shape) is not None:
            os.utime(path)
            say(f"photos: {_gigabytes(size)} in {path}, decoded before")
        else:
            make_room(folder, cache.gb * 1e9 - size)
            if shutil.disk_usage(folder).free < size + SPARE:
                warn(f"{folder}: no room for {_gigabytes(size)} of decoded photos, so they are {again}")
                return None
            write_file(path, partial(_write, decoder, shape))
            seconds = time.perf_counter() - started
            say(f"photos: {len(decoder):,} decoded in {seconds:.1f} s, {_gigabytes(size)} kept in {path}")
        return _mapped(path, shape)


def _write(decoder: Decoder, shape: tuple[int, ...], file: BinaryIO) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    for _, pixels in _chunks(decoder):
        file.write(pixels.tobytes())


def _chunks(decoder: Decoder) -> Iterator[tuple[int, np.ndarray]]:
    firsts = range(0, len(decoder), CHUNK)
    batches = decoder.batches(range(first, min(first + CHUNK, len(decoder))) for first in firsts)
    shown = is_watched()
    yield from zip(firsts, tqdm(batches, "decoding", len(firsts), leave=False, disable=not shown), strict=True)


def _key(decoder: Decoder) -> str:
    content = [RULES, PIL.__version__, asdict(decoder.prepare), list(decoder.row_shas)]
    return sha256(json.dumps(content).encode())


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The photos in a file, or None where it is not whole; copy on write, since torch wants to be allowed to write."""
    try:
        images = np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
