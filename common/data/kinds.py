"""The kinds of inputs, a row each in KINDS: what a row of a table is, and what follows from it before torch is loaded.

What a training and a prediction do with them is in common/data/inputs.py. Functions are named as text, as their files
need torch or read tables themselves. A table is common/data/table.py's, which imports this file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import numpy as np

from common.data.features import width
from common.data.sequences import picture_of
from common.data.stacks import Stack, content_of

PHOTO_SIDE = 224  # of photos, whose sizes vary, unless the model says otherwise


@dataclass(frozen=True)
class Kind:
    """A kind of inputs; only those ``of_images`` have channels, sizes, augmentation, views and pictures."""

    name: str
    content: Callable[[Any], bytes]  # of a row of the table, for its hash
    shape: Callable[[Any], tuple[int, int]]  # channels and side of the images as they are; (0, n) of n numbers
    open: str  # the function of common/data/inputs.py that makes them ready for a training
    scale: str  # the class of what brings them to zero mean and unit deviation
    of_images: bool = False
    row: str = "row"  # what one of them is called
    in_files: bool = False  # a file for each row, which may be missing, broken or another than before
    grey: bool = True  # without colours, in however many channels
    of_any_size: bool = False  # images of which a model looks at a square that it chooses itself
    describe: str = ""  # (table, preparation) -> lines that say what is done to them before a model sees them
    check: str = ""  # (table, workers, as written) -> the table, every row's file having been read once
    augment: tuple[str, str] = ("none", "none")  # the presets that auto stands for: in colour, grey
    views: str = "none"  # the preset of views that --tta auto tries
    # Of one of the rows of a table, by its number, for people; None: it has none.
    picture: Callable[[Any, int], Any] = lambda rows, row: rows[row]
    # Of the rows of a table, float (n) each by name: what may tell of a label and is no part of what a model looks for.
    probes: Callable[[Any], dict[str, Any]] = lambda rows: {}
    sections: tuple[str, ...] = ()  # of a run's page, beside the task's own (common/report)
    numbers: str = "features"  # what a model's input is made of, where it is no image
    takes: tuple[str, ...] = ()  # settings of a training that other kinds have no use for
    in_time: bool = False  # whether neighbouring rows are neighbours in time, whose labels are alike without a leak
    in_runs: tuple[str, ...] = ()  # those of models that are given rows in a run, not each by itself
    models: tuple[str, ...] = ()  # the nets that take them, the first unless another is chosen; empty: those of timm

    def __post_init__(self) -> None:
        """What an image has, others have not."""
        assert self.of_images or (self.views, *self.augment) == ("none",) * 3

    def preset(self, asked: str, channels: int) -> str:
        """The preset of augmentation that auto stands for; any other name is its own."""
        return self.augment[channels != 3] if asked == "auto" else asked

    def described(self, table: Any, prepare: Any) -> list[str]:
        """What is done to them before a model sees them, a line each."""
        return resolve_name(self.describe)(table, prepare) if self.describe else []

    def checked(self, tables: list[Any], workers: int, as_written: bool) -> list[Any]:
        """The tables, every row's file having been read once; raises UserError where one is broken."""
        return resolve_name(self.check)(tables, workers, as_written) if self.check else tables

    def scale_of(self, said: dict[str, Any]) -> Any:
        """What a weights file says of its inputs' scale."""
        return resolve_name(self.scale)(**said)


def _shape_of_pixels(table: Any) -> tuple[int, int]:
    return 1, table.images.shape[1]


def _shape_of_photos(table: Any) -> tuple[int, int]:
    first = table.images[0]
    return len(first.files) if isinstance(first, Stack) else 3, PHOTO_SIDE


def _shape_of_features(table: Any) -> tuple[int, int]:
    return 0, width(table.plan)


def _shape_of_sequences(table: Any) -> tuple[int, int]:
    return 0, table.images.width


def _content_of_features(cells: np.ndarray) -> bytes:
    return "\x1f".join(cells).encode()


PIXELS = Kind(
    name="pixels",
    row="image",
    of_images=True,
    content=np.ndarray.tobytes,
    shape=_shape_of_pixels,
    open="common.data.inputs:open_pixels",
    scale="common.data.scales:Normalise",
    describe="common.data.inputs:lines_on_pixels",
    augment=("digits", "digits"),
    views="digits",
)
PHOTOS = Kind(
    name="photos",
    row="image",
    of_images=True,
    in_files=True,
    grey=False,
    of_any_size=True,
    content=content_of,
    shape=_shape_of_photos,
    open="common.data.inputs:open_photos",
    scale="common.data.scales:Normalise",
    describe="common.data.decoding:lines_on_photos",
    check="common.data.photo_check:check_photos",
    augment=("photos", "photos_light"),
    views="hflip",
)
FEATURES = Kind(
    name="features",
    content=_content_of_features,
    shape=_shape_of_features,
    open="common.data.inputs:open_features",
    scale="common.data.features:FeatureScale",
    picture=lambda rows, row: None,
    takes=("drop", "offset"),
    models=("mlp",),
)
SEQUENCES = Kind(
    name="sequences",
    row="sequence",
    content=np.ndarray.tobytes,
    shape=_shape_of_sequences,
    open="common.data.frames:open_sequences",
    scale="common.data.frames:FrameScale",
    picture=lambda rows, row: picture_of(rows[row]),
    probes=lambda rows: {"frames": rows.lengths.astype(float)},
    sections=("lengths",),
    numbers="numbers a frame",
    takes=("crop_frames",),
    models=("sequence_cnn", "sequence_transformer"),
)
FRAMES = Kind(
    name="frames",
    row="frame",
    content=bytes,
    shape=_shape_of_sequences,
    open="common.data.frames:open_windows",
    scale="common.data.frames:FrameScale",
    picture=lambda rows, row: picture_of(rows.around(row)),
    sections=("utterances",),
    numbers="numbers a window",
    takes=("window",),
    in_time=True,
    models=("mlp", "frame_cnn"),
    in_runs=("frame_cnn",),
)
KINDS = {kind.name: kind for kind in (PIXELS, PHOTOS, FEATURES, SEQUENCES, FRAMES)}
