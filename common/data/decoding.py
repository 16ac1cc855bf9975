"""From a photo's bytes to the square of pixels that a model is given, by fixed rules.

Each odd kind of image has its rule, so that the training and the test set are read alike:

- EXIF orientation is applied, where it can be read. Colour profiles are not.
- Transparent pixels (RGBA, grey with alpha, palette or tRNS transparency) are laid on white.
- CMYK, YCbCr, palette and 1-bit images are converted as Pillow converts them.
- 16-bit grey is scaled by 255/65535, never clipped; so are 32-bit integers, which must lie within 16 bits. Floats must
  lie within 0..1.
- Of an animation the first frame counts; folds.py says so.
- An image of more than MAX_PIXELS is refused from its header, before anything is decoded.
- A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as long as that leaves twice the pixels asked for.
- What cannot be decoded whole is an error with its file and row; nothing is put in its place.
"""

import contextlib
import io
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from common.base.errors import OwnError
from common.base.files import sha256
from common.base.strict_csv import row_of
from common.data.stacks import content_of, contents_in
from common.data.table import Table

RULES = 1  # to be raised with every change of what the pixels become: decoded photos are kept in files
MAX_PIXELS = 50_000_000
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # the only decoders that a file's bytes may choose
AHEAD = 4  # batches that are being decoded while one is used
LOOKED_AT = 100  # photos whose sides stand for all
MUCH_LOST = 0.7  # of an average photo: below, what to do is said
ORIENTATION = 0x0112  # the one EXIF tag that is used
PNG = b"\x89PNG\r\n\x1a\n"
DEEPEST = 65535  # of 16 bits
FEW = 64  # grey levels, of 256


@cache
def _set_up_pillow() -> None:
    """Set Pillow's limit and silence its warnings, once a photo is read: both hold for the whole process."""
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow raises above twice its limit and warns below: one is enough
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of odd metadata, which is not used


def _fitted(photo: Image.Image, side: int, method: Image.Resampling, fill: tuple[int, ...]) -> Image.Image:
    """The largest square in the middle."""
    return ImageOps.fit(photo, (side, side), method)


def _padded(photo: Image.Image, side: int, method: Image.Resampling, fill: tuple[int, ...]) -> Image.Image:
    """All of it, with bars in the mean colour along the longer sides."""
    return ImageOps.pad(photo, (side, side), method, color=fill if len(fill) > 1 else fill[0])


def _squashed(photo: Image.Image, side: int, method: Image.Resampling, fill: tuple[int, ...]) -> Image.Image:
    """All of it, without regard to its proportions."""
    return photo.resize((side, side), method)


# How a photo becomes a square, by timm's names of it.
CROP_MODES: dict[str, Callable[..., Image.Image]] = {"center": _fitted, "border": _padded, "squash": _squashed}


@dataclass(frozen=True)
class Preparation:
    """How photos become squares: a function of the model alone, the same in training, validation and test.

    A photo is resized once, to ``stored`` px; the model sees the middle ``side`` px of that, and a random crop in
    training may take its part from anywhere in it.
    """

    channels: int  # 1 grey, 3 colour
    side: int  # of the model's input, px
    stored: int  # of what is decoded and kept, px
    crop_mode: str = "center"  # a name in CROP_MODES
    interpolation: str = "bicubic"  # Pillow's name of the method
    fill: tuple[int, ...] = (0,)  # of bars, a value a channel
    window: int = 0  # frames on either side of one (common/data/frames.py)
    in_runs: bool = False  # of frames that follow one another
    features: str = ""  # what columns become instead (common/data/features.py)

    def __call__(self, content: bytes) -> np.ndarray:
        """The pixels of an image file's bytes, uint8 (channels, stored, stored).

        Raises:
            ValueError: it cannot be decoded; why.
        """
        if self.channels not in (1, 3):
            parts = contents_in(content)
            if len(parts) != self.channels:
                raise ValueError(f"is {max(1, len(parts))} files, but the model expects {self.channels} channels")
            refuse_other_sizes(parts := [read_photo(part, self.stored).convert("L") for part in parts])
            return np.concatenate([self._square(part, self.fill[:1]) for part in parts])
        return self._square(read_photo(content, self.stored).convert("L" if self.channels == 1 else "RGB"), self.fill)

    def _square(self, photo: Image.Image, fill: tuple[int, ...]) -> np.ndarray:
        method = Image.Resampling[self.interpolation.upper()]
        pixels = np.asarray(CROP_MODES[self.crop_mode](photo, self.stored, method, fill))
        return np.ascontiguousarray(pixels.reshape(self.stored, self.stored, -1).transpose(2, 0, 1))

    def __str__(self) -> str:
        """What it does, for people."""
        how = {"center": "middle square", "border": "whole, with bars", "squash": "squashed to a square"}
        colour = {1: "grey", 3: "colour"}.get(self.channels, f"{self.channels} channels")
        said = f"photos resized once to {self.stored} px ({how[self.crop_mode]}, {self.interpolation}, {colour})"
        return said + (f", the model sees {self.side} px of them" if self.side < self.stored else "")


def share_kept(table: Table, prepare: Preparation) -> float:
    """The share of an average photo's area that the model sees, 0 to 1, told by the headers of some of them."""
    middle = (prepare.side / prepare.stored) ** 2
    if prepare.crop_mode != "center":
        return middle
    shares = []
    for path in table.images[:: max(1, len(table.images) // LOOKED_AT)]:
        with contextlib.suppress(OSError, Image.DecompressionBombError), Image.open(path, formats=FORMATS) as photo:
            shares.append(min(photo.size) / max(photo.size))
    return middle * float(np.mean(shares or [1.0]))


def lines_on_photos(table: Table, prepare: Preparation) -> list[str]:
    """What is done to the photos before a model sees them."""
    lines = [str(prepare)]
    if (share := share_kept(table, prepare)) < 0.995:
        remedy = "; --model-args crop_mode=squash crop_pct=1.0 keeps all" if share < MUCH_LOST else ""
        lines.append(f"the model sees {share:.0%} of an average photo{remedy}")
    return lines


@dataclass(frozen=True)
class Photo:
    """A decoded image, and what its file says of itself."""

    image: Image.Image  # upright, L or RGB
    animated: bool
    peak: int  # the largest value of a 16-bit file; -1: it has fewer bits, or floats
    levels: int = -1  # how many are left of a file of more than 8 bits, 256 unless many are lost; -1: it has no more
    jpeg_table: int = 0  # sum of the first quantisation table: the larger, the lower the quality; 0: no JPEG
    size: tuple[int, int] = (0, 0)  # px, upright and as the file has it, however small it was decoded
    others: bytes = b""  # pixels of the channels beyond the third

    @property
    def is_reduced(self) -> bool:
        """Whether the image is smaller than in the file."""
        return self.size != self.image.size


def read_photo(content: bytes, at_least: int = 0) -> Image.Image:
    """The image in ``content``, upright, its mode L or RGB; a JPEG may come at a reduced size (see ``at_least``, px).

    Raises:
        ValueError: it cannot be decoded whole, or has too many pixels; why.
    """
    return decode(content, at_least).image


def decode(content: bytes, at_least: int = 0) -> Photo:
    """As :func:`read_photo`, with what the file says of itself."""
    if not content:
        raise ValueError("is empty")
    if channels := [decode(part) for part in contents_in(content)]:
        return _stacked(channels)
    _set_up_pillow()
    try:
        try:
            return _decode(content, at_least)
        except (Image.DecompressionBombError, MemoryError):
            raise
        except Exception:
            if (pixels_alone := _without_notes(content)) == content:
                raise
            return _decode(pixels_alone, at_least)
    except Image.DecompressionBombError:
        raise ValueError(f"has more than {MAX_PIXELS:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders meet damaged bytes with exceptions of every kind
        raise ValueError(f"cannot be decoded ({str(error) or type(error).__name__})") from error


def _stacked(channels: Sequence[Photo]) -> Photo:
    """Colours of the first three channels, for comparisons and people; black where there are but two."""
    grey = [photo.image.convert("L") for photo in channels]
    refuse_other_sizes(grey)
    image = Image.merge("RGB", [*grey[:3], *[Image.new("L", grey[0].size)] * (3 - len(grey))])
    moves, others = any(photo.animated for photo in channels), b"".join(each.tobytes() for each in grey[3:])
    peak, levels = (max(getattr(photo, name) for photo in channels) for name in ("peak", "levels"))
    return Photo(image, moves, peak, levels, size=image.size, others=others)


def refuse_other_sizes(channels: Sequence[Image.Image]) -> None:
    """Raise ValueError where the channels of one image differ in size."""
    if len({channel.size for channel in channels}) > 1:
        raise ValueError("and the files of the other channels have different sizes")


def _decode(content: bytes, at_least: int) -> Photo:
    with Image.open(io.BytesIO(content), formats=FORMATS) as photo:
        size = photo.size
        if at_least and (reduced := min(8, min(photo.size) // (2 * at_least))) > 1:
            photo.draft(None, (photo.width // reduced, photo.height // reduced))
        animated = photo.format != "MPO" and getattr(photo, "is_animated", False)  # MPO: a JPEG with a preview
        deep_colour = any(";16" in str(tile[3]) for tile in photo.tile)  # which Pillow reads as 8 bits
        photo.load()
        peak, tables = -1, getattr(photo, "quantization", None) or {}
        if photo.mode.startswith("I"):
            peak = int(np.asarray(photo).max())
        elif deep_colour:
            peak = 257 * int(np.asarray(photo.convert("RGB")).max())
        image = _eight_bits(_upright(photo))
        size = size if image.size == photo.size else size[::-1]
        levels = _levels(photo, image, deep_colour)
        return Photo(image, animated, peak, levels, sum(tables.get(0, ())), size)


def _levels(photo: Image.Image, image: Image.Image, deep_colour: bool) -> int:
    """How many levels a colour has at most in the ``image`` that became of a ``photo`` with more than 8 bits, 256 where
    these are not few or the photo has less than four times as many. Of deep colours Pillow shows but 8 bits."""
    is_whole = photo.mode[0] in "IF"
    if not (is_whole or deep_colour):
        return -1
    left = int(np.count_nonzero(np.reshape(image.histogram(), (-1, 256)), axis=1).max())
    if is_whole:
        return left if left <= FEW and len(np.unique(np.asarray(photo))) > 4 * left else 256
    return left if 4 * left <= FEW else 256


def _upright(photo: Image.Image) -> Image.Image:
    """The photo turned as its camera says, if that can be read; a broken note leaves the pixels as they are."""
    turns = Image.Transpose
    by_number = (turns.FLIP_LEFT_RIGHT, turns.ROTATE_180, turns.FLIP_TOP_BOTTOM, turns.TRANSPOSE)
    by_number += (turns.ROTATE_270, turns.TRANSVERSE, turns.ROTATE_90)
    try:
        number = photo.getexif().get(ORIENTATION, 1)
        number = number[0] if isinstance(number, bytes | tuple) else int(number)
        return photo.transpose(by_number[number - 2]) if 2 <= number <= 8 else photo
    except Exception:  # as many kinds as there are ways to write a wrong note
        return photo


def _without_notes(content: bytes) -> bytes:
    """A PNG without texts, colour profiles and what else is not used, however long or damaged these are.

    Source: PNG Specification, 5.3: a chunk is its length, type, data and CRC.
    """
    if not content.startswith(PNG):
        return content
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        kind, whole = content[at + 4 : at + 8], content[at + 4 : end - 4]
        is_sound = content[end - 4 : end] == zlib.crc32(whole).to_bytes(4)
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or (kind == b"eXIf" and is_sound):
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _eight_bits(photo: Image.Image) -> Image.Image:
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        white = Image.new("RGBA", photo.size, "white")
        return Image.alpha_composite(white, photo).convert("RGB")
    if photo.mode.startswith("I") or photo.mode == "F":
        values, most = np.asarray(photo, dtype=np.float64), 1.0 if photo.mode == "F" else 65535.0
        if not (values.min() >= 0 and values.max() <= most):  # NaN is neither
            outside = f"has values from {values.min():g} to {values.max():g}, outside 0 to {most:g}"
            raise ValueError(f"{outside}: it must be scaled to 8 bits")
        return Image.fromarray(np.rint(values * (255 / most)).astype(np.uint8))
    return photo if photo.mode in ("L", "RGB") else photo.convert("RGB" if photo.mode != "1" else "L")


# ---- the photos of a table


@dataclass
class Decoder:
    """The photos of a table's rows as pixels; ``row_shas`` (n, of folds.csv) are what their bytes must hash to."""

    table: Table
    prepare: Preparation
    row_shas: Sequence[str] = ()  # empty: nothing is known of them, as of a test set
    workers: int = 1
    decoded: int = 0  # so far

    def __len__(self) -> int:
        return len(self.table.ids)

    def __call__(self, row: int) -> np.ndarray:
        """One row's pixels, uint8 (channels, stored, stored).

        Raises:
            OwnError: the file is missing, another than when the folds were made, or cannot be decoded.
        """
        path, where = self.table.images[row], row_of(self.table.source, row)
        content = content_of(path, error_of=OwnError)
        if len(self.row_shas) and sha256(content)[:16] != self.row_shas[row]:
            raise OwnError(where, f"{path} is not the image that the folds were made from", "restore it")
        try:
            pixels = self.prepare(content)
        except ValueError as error:
            raise OwnError(where, f"{path} {error}", "restore the image") from error
        self.decoded += 1
        return pixels

    def batches(self, row_batches: Iterable[Sequence[int]]) -> Iterator[np.ndarray]:
        """Pixels of batches of m rows, uint8 (m, channels, stored, stored), while later ones are already being decoded.

        Threads, since Pillow lets go of the interpreter while it decodes and resizes.
        """
        pool, waiting = ThreadPoolExecutor(self.workers), []
        try:
            for rows in row_batches:
                waiting.append([pool.submit(self, row) for row in rows])
                if len(waiting) > AHEAD:
                    yield np.stack([found.result() for found in waiting.pop(0)])
            for batch in waiting:
                yield np.stack([found.result() for found in batch])
        finally:
            pool.shutdown(cancel_futures=True)
