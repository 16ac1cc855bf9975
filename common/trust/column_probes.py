"""Tables of features: columns that hold the row's own answer, and the numbers that columns become.

A column is there to tell of the label, so what it tells is no leak; one that tells nearly all of it is the label
itself, or was made of it.
"""

from functools import partial

import numpy as np

from common.base.words import names_in_short
from common.data.features import FLAGGED, TEXT, encoded, read_plan
from common.data.table import Table
from common.score.task import Task
from common.trust.dependence import is_reached, label_codes
from common.trust.probes import FEWEST

NEARLY_ALL = 0.95  # of the way to sorted by label; honest columns of known data sets reach 0.90 (docs/trust.md)
FEWEST_LABELLED = 10  # rows with and without a label: of fewer, chance alone may sort them


def feature_probes(table: Table, plan: str) -> dict[str, np.ndarray]:
    """What each column of a table of features becomes under the train table's plan: numbers, float32 (n), by name."""
    names: list[str] = []
    for name, kind, texts in read_plan(plan):
        names += [f"column {name} is {text}" for text in texts] if kind == TEXT else [f"column {name}"]
        if kind == FLAGGED:
            names.append(f"column {name} is missing")
    values = encoded(table.source, plan, table.feature_names, table.images)
    return dict(zip(names, values.T, strict=True))


def label_columns(table: Table, task: Task) -> str:
    """A sentence on the columns of a train table that are the label, or nearly; empty where none is."""
    labels = [label_codes(table.labels)]
    if task.is_of_sets:
        names = [set(task.names_in(label)) for label in table.labels]
        labels += [np.array([name in own for own in names], np.int64) for name in sorted(set().union(*names))]
        labels = [codes for codes in labels if np.bincount(codes).min() >= FEWEST_LABELLED]
    found = {}
    for name, cells in zip(table.feature_names, table.images.T, strict=True):
        values = numbers_of(cells)
        if values is None:
            values = np.unique(cells.astype(str), return_inverse=True)[1].astype(float)
        for codes in labels:
            share = told_share(values, codes)
            if share > found.get(name, NEARLY_ALL) and not is_reached(partial(told_share, values), codes):
                found[name] = share
    names = sorted(found, key=lambda name: -found[name])
    if not names:
        return ""
    return (
        f"column {names_in_short(names)} sorts the rows by label ({found[names[0]]:.0%} of the way): it is the label, "
        f"or was made of it; leave it out (--drop {names[0]}) unless the rows to come have it as well"
    )


def numbers_of(cells: np.ndarray) -> np.ndarray | None:
    """Cells as numbers, NaN where empty; None where one is no number."""
    try:
        return np.array([float(cell) if cell else np.nan for cell in cells])
    except ValueError:
        return None


def told_share(values: np.ndarray, codes: np.ndarray) -> float:
    """How far the rows in the order of a column's numbers are sorted by label: 0 as by chance, 1 completely.

    That is, how often neighbours share a label, beside the most that is possible; equal numbers stand in any order.
    """
    known = np.flatnonzero(np.isfinite(values))
    known = np.random.default_rng(0).permutation(known)
    codes = codes[known[np.argsort(values[known], kind="stable")]]
    counts = np.bincount(codes)
    most = len(codes) - np.count_nonzero(counts)  # pairs of neighbours that may share a label
    chance = float((counts * (counts - 1)).sum() / len(codes))
    if len(codes) < max(FEWEST, len(values) / 2) or most < chance + 1:
        return 0.0
    alike = float(np.count_nonzero(codes[1:] == codes[:-1]))
    return (alike - chance) / (most - chance)
