"""What a table is: n rows with ids, labels, inputs and other columns; common/data/reading.py reads one."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.base.files import sha256
from common.base.strict_csv import text_array
from common.data.kinds import KINDS, PIXELS, Kind
from common.data.sequences import SequenceFiles
from common.data.stacks import Stack
from common.data.utterances import FrameRows


@dataclass(frozen=True)
class Table:
    """n rows with their ids, inputs and, where known, labels."""

    source: str  # what --data or --test named
    ids: np.ndarray  # text, n
    labels: np.ndarray  # text, n; empty where the table has no labels
    # uint8 (n, height, width), or n image files, or features: text (n, columns), or sequences, or their frames
    images: np.ndarray | list[Path] | list[Stack] | SequenceFiles | FrameRows
    id_name: str  # the id column of a submission made without a sample
    label_name: str  # its label column
    columns: dict[str, np.ndarray]  # the other columns: text, n each
    inputs: str = PIXELS.name  # a name in KINDS: what its rows are
    taken: tuple[str, ...] = ()  # what was taken for what, a line each, with the flag that changes it
    feature_names: tuple[str, ...] = ()  # of the columns of ``images``, where these are text
    plan: str = ""  # what these become (common/data/features.py); empty in a test table
    separator: str = ""  # between the names of a label set, as the table was written
    pixel_shas: np.ndarray = field(default_factory=lambda: text_array([]))  # text, n: of decoded photos; empty: unknown
    facts: dict[str, np.ndarray] = field(default_factory=dict)  # of decoded photos, n each: common/data/photo_check.py

    @property
    def kind(self) -> Kind:
        """What follows from what its rows are."""
        return KINDS[self.inputs]

    def row_shas(self) -> np.ndarray:
        """Text, n: the first 16 hex digits of the sha256 of each row's pixels, features or image file's bytes."""
        return text_array(sha256(self.kind.content(row))[:16] for row in self.images)

    def image_shas(self) -> np.ndarray:
        """Text, n: equal for rows that show the same pixels, as far as photos were decoded; else :meth:`row_shas`."""
        return self.pixel_shas if self.pixel_shas.size else self.row_shas()
