"""Every photo of a table decoded once before anything is trained: what is broken or odd is said, little is kept."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.base.errors import OwnError, UserError, warn
from common.base.files import sha256
from common.base.strict_csv import row_of, text_array
from common.base.system import is_watched
from common.data.decoding import DEEPEST, FEW, PNG, Photo, decode
from common.data.stacks import Stack, content_of
from common.data.table import Table

NAMED = 5  # broken files in a message
MANY_POOR = 0.1  # of the images with more than 8 bits
AT_ONCE = 1024  # files that wait to be checked
JPEG = b"\xff\xd8"
ENDS = ((JPEG, b"\xff\xd9", 2), (PNG, b"IEND", 8))  # how a file begins, its last mark, bytes from there to the end
SMALL = 64  # px of the grey picture that is kept of a checked photo: SIDE of common/trust/alignment.py


@dataclass(frozen=True)
class Look:
    """What is kept of a photo that was decoded once."""

    flaw: str = ""  # why it could not be
    animated: bool = False
    peak: int = -1
    levels: int = -1
    is_reduced: bool = False
    pixel_sha: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        return self.facts["width"], self.facts["height"]


def check_photos(tables: Sequence[Table], workers: int, as_written: bool = False) -> list[Table]:
    """Decode every photo of some tables and keep little of it: with each photo's facts and its pixels' hash.

    A large JPEG is decoded at a reduced size, and whole only where another photo may show the same pixels. Warns of
    animations.

    Raises:
        OwnError: how many cannot be decoded, and the first of them with their rows; 16-bit files that use few of
            their values, unless they are taken ``as_written``.
    """
    with ThreadPoolExecutor(workers) as pool:
        looks = [_in_turn(pool, _look, table.images) for table in tables]
        for table, of_table in zip(tables, looks, strict=True):
            _judge(table, of_table, as_written)
        every = [look for of_table in looks for look in of_table]
        whole_sizes = {look.size for look in every if not look.is_reduced}
        of_hash = Counter(look.pixel_sha for look in every)
        for table, of_table in zip(tables, looks, strict=True):
            doubtful = [
                row
                for row, look in enumerate(of_table)
                if look.is_reduced and (look.size in whole_sizes or of_hash[look.pixel_sha] > 1)
            ]
            shas = _in_turn(pool, _whole_sha, [table.images[row] for row in doubtful])
            for row, pixel_sha in zip(doubtful, shas, strict=True):
                of_table[row] = replace(of_table[row], pixel_sha=pixel_sha)
    return [
        replace(
            table,
            pixel_shas=text_array(look.pixel_sha for look in of_table),
            facts={name: np.array([look.facts[name] for look in of_table]) for name in of_table[0].facts},
        )
        for table, of_table in zip(tables, looks, strict=True)
    ]


def _in_turn(pool: ThreadPoolExecutor, function: Callable[..., Any], images: Sequence[Path | Stack]) -> list[Any]:
    found = []
    for first in tqdm(range(0, len(images), AT_ONCE), "checking", leave=False, disable=not is_watched()):
        found += pool.map(function, images[first : first + AT_ONCE])
    return found


def _look(image: Path | Stack) -> Look:
    content = content_of(image, error_of=OwnError)
    try:
        photo = decode(content, at_least=SMALL // 2)
    except ValueError as error:
        return Look(str(error))
    pixels = _in_colour(photo.image)
    facts = photo_facts(photo, pixels, content)
    return Look("", photo.animated, photo.peak, photo.levels, photo.is_reduced, _pixel_sha(photo, pixels), facts)


def _whole_sha(image: Path | Stack) -> str:
    photo = decode(content_of(image, error_of=OwnError))
    return _pixel_sha(photo, _in_colour(photo.image))


def _in_colour(image: Image.Image) -> Image.Image:
    """The same without a copy where it has colours already: grey written as colour looks the same."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _pixel_sha(photo: Photo, pixels: Image.Image) -> str:
    return sha256(str(photo.size).encode() + pixels.tobytes() + photo.others)[:16]


def _judge(table: Table, looks: Sequence[Look], as_written: bool) -> None:
    """Raise OwnError where photos of a table are broken, or use few of their values; warn of animations."""
    broken = [(row, look.flaw) for row, look in enumerate(looks) if look.flaw]
    if broken:
        first, what = broken[0]
        named = f"{table.images[first]} {what}"
        if len(broken) > 1:
            others = ", ".join(f"row {row + 1} ({table.images[row].name})" for row, _ in broken[1:NAMED])
            more = ", ..." if len(broken) > NAMED else ""
            named += f"; {len(broken)} images are broken in total, also {others}{more}"
        raise OwnError(row_of(table.source, first), named, "restore them or remove their rows")
    if moving := [row for row, look in enumerate(looks) if look.animated]:
        file = table.images[moving[0]].name
        warn(f"{table.source}: {len(moving)} images are animations; only their first frame is used ({file})")
    poor = [row for row, look in enumerate(looks) if 0 <= look.levels <= FEW]
    what = ""
    if 0 <= (peak := max(look.peak for look in looks)) < DEEPEST // 4:
        what = f"{sum(look.peak >= 0 for look in looks)} images have 16 bits but no value above {peak:,} of {DEEPEST:,}"
        what += f", so that the model would see at most {round(peak * 255 / DEEPEST) + 1} grey levels"
    elif poor and len(poor) >= MANY_POOR * (deep := sum(look.levels >= 0 for look in looks)):
        what = f"{len(poor)} of {deep} images with more than 8 bits would lose most of their grey levels and keep"
        what += f" {min(looks[row].levels for row in poor)} to {max(looks[row].levels for row in poor)}"
    if what and not as_written:
        raise UserError(table.source, what, "scale them to 8 bits, or take them so with --as-written")


def photo_facts(photo: Photo, pixels: Image.Image, content: bytes) -> dict[str, Any]:
    """What common/trust/probes.py asks of a photo and its file, and ``small``, which is compared with the others'.

    ``small`` is all of the picture, grey, uint8 (64, 64); brightness and colour are taken from few pixels as well.
    """
    small = np.asarray(pixels.convert("L").resize((SMALL, SMALL), Image.Resampling.BILINEAR))
    colours = np.asarray(pixels.resize((16, 16), Image.Resampling.BOX), dtype=float)
    width, height = photo.size
    ends = [content.rfind(mark) + after for begin, mark, after in ENDS if content.startswith(begin) and mark in content]
    return {
        "small": small,
        "width": width,
        "height": height,
        "aspect": width / height,
        "bytes": len(content),
        "bytes_per_pixel": len(content) / (width * height),
        "after_the_end": len(content) - ends[0] if ends else 0,
        "jpeg_table": photo.jpeg_table,
        "mean": float(small.mean()),
        "spread": float(small.std()),
        "colour": float(np.ptp(colours, axis=2).mean()),
    }
