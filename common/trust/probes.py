"""Probes: what is not the picture itself, such as a row's place or its file's size, and tells the label or the set.

Each probe is one number a row. What it tells of the label is their mutual information, in bins of equal size, beside
what it tells of shuffled labels: one threshold holds for all probes (common/trust/dependence.py). Train and test are
compared by Kolmogorov and Smirnov's test of each probe that a random split leaves alike (common/trust/shifts.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from common.data.table import Table

FEWEST = 20  # rows of either side


@dataclass(frozen=True)
class Probe:
    """What a probe is, in words."""

    words: str  # subject of "... tells 74 % of what there is to know about the label"
    family: str  # of several that say the same, one is named
    is_seen: bool  # whether the picture that a model is given may hold it
    advice: str = ""
    is_drawn: bool = True  # whether a random split leaves it alike in train and test
    unit: str = ""


_SEEN = "a model sees it as far as its pixels show it"
_SIZE = "a model sees it only as far as it survives the resizing"
PROBES = {
    "row": Probe(
        "the order of the rows", "order", False, "the table was sorted; your models cannot see it, a rival can", False
    ),
    "number": Probe(
        "the number in the file name",
        "name",
        False,
        "rows were numbered by class; your models cannot see it, a rival can",
        False,
    ),
    "id_number": Probe(
        "the number in the id",
        "name",
        False,
        "rows were numbered by their answer; your models cannot see it, a rival can",
        False,
    ),
    "name_letters": Probe(
        "which letters stand in the file name",
        "name",
        False,
        "files are called by their class, in the test too; your models cannot see it, a rival can",
        False,
    ),
    "id_letters": Probe(
        "which letters stand in the id", "name", False, "your models cannot see them, a rival can", False
    ),
    "width": Probe("the width", "size", True, _SIZE, unit=" px"),
    "height": Probe("the height", "size", True, _SIZE, unit=" px"),
    "aspect": Probe("the ratio of width and height", "size", True, _SIZE),
    "bytes": Probe("the size of the file", "size", True, _SIZE, unit=" bytes"),
    "bytes_per_pixel": Probe(
        "the bytes per pixel", "size", True, "a model sees it only as far as it sees how busy it is"
    ),
    "after_the_end": Probe(
        "what stands in the file after the image's end",
        "appended",
        False,
        "it is no part of the picture; your models cannot see it, a rival can",
        unit=" bytes",
    ),
    "jpeg_table": Probe(
        "the JPEG table (its sum: larger is coarser)",
        "jpeg",
        True,
        "a model may see it in the noise of the compression",
    ),
    "frames": Probe("the length", "size", True, "a model sees it unless it is trained on parts", unit=" frames"),
    "mean": Probe("the mean brightness", "pixels", True, _SEEN, unit=" of 255"),
    "spread": Probe("the contrast", "pixels", True, _SEEN, unit=" of 255"),
    "colour": Probe("how colourful the picture is", "pixels", True, _SEEN),
}


def probe_called(name: str) -> Probe:
    """What a probe is; a column of features is called by its own name."""
    return PROBES.get(name) or Probe(name, "columns", True, _SEEN)


def probes_of(table: Table) -> dict[str, np.ndarray]:
    """Each probe's number for the n rows of a table, float64 (n)."""
    if table.kind.in_time:
        return {}
    n, number = len(table.ids), "number" if table.kind.in_files else "id_number"
    found = {"row": np.arange(n, dtype=float), number: numbers_in(table.ids)}
    letters = "name_letters" if table.kind.in_files else "id_letters"
    found[letters] = np.unique(letters_in(table), return_inverse=True)[1]
    found |= {name: np.asarray(values, float) for name, values in table.facts.items() if name in PROBES}
    found |= table.kind.probes(table.images)
    if table.kind.of_images and not table.kind.in_files:
        flat = table.images.reshape(n, -1)
        parts = range(0, n, 4096)  # so that no float copy of all images is made
        found["mean"] = np.concatenate([flat[at : at + 4096].mean(1) for at in parts])
        found["spread"] = np.concatenate([flat[at : at + 4096].std(1) for at in parts])
    if np.array_equal(np.argsort(found[number], kind="stable"), found["row"]):
        del found[number]  # the rows stand in the order of their names
    return found


def numbers_in(ids: Sequence[str]) -> np.ndarray:
    """The last number in each file name, or 0 for all where not nearly every name has one, float64 (n)."""
    found = [re.findall("[0-9]+", PurePath(name).stem) for name in ids]
    if sum(map(bool, found)) < 0.9 * len(found):
        return np.zeros(len(found))
    return np.array([float(numbers[-1][:15]) if numbers else -1.0 for numbers in found])


def letters_in(table: Table) -> list[str]:
    """Each id without its digits; of a file only the name counts, without folder and suffix."""
    names = [PurePath(name).stem for name in table.ids] if table.kind.in_files else table.ids
    return [re.sub("[0-9]", "", name) for name in names]
