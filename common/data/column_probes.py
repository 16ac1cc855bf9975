"""Tables of features: columns that hold the answer, answers that stand in other rows, what columns become.

A column is there to tell of the label, so what it tells is no leak; one that tells nearly all of it is the label
itself, or was made of it. Of labels that are numbers with many digits each is seldom there twice: where most of them
stand in a column of other rows too, the table is a moving window over time, and folds of random rows have the answers
of their held-out rows among the training rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.base.words import names_in_short
from common.data.features import FLAGGED, TEXT, encoded, read_plan
from common.data.probes import FEWEST, label_codes
from common.data.tables import Table
from common.score.task import Task

NEARLY_ALL = 0.95  # of the way to sorted by label; honest columns of known data sets reach 0.90 (docs/trust.md)
FEWEST_LABELLED = 10  # rows with and without a label: of fewer, chance alone may sort them
MANY_DISTINCT = 0.5  # share of the rows with a label of their own, from which on one is hardly there twice by chance
STANDING = 0.25  # share of the labels that stand in other rows, beyond what their neighbouring numbers do


@dataclass(frozen=True)
class Column:
    """What a column of a train table shows."""

    name: str
    share: float  # how far its order sorts the rows by label, 0 to 1
    standing: float  # share of the rows whose label stands in this column of another row, beyond chance


def columns_in_words(columns: Sequence[Column]) -> list[str]:
    """A sentence on columns that are the label, one on those that hold other rows' labels."""
    said = []
    if own := [each for each in columns if each.share >= NEARLY_ALL]:
        names = [each.name for each in own]
        said.append(
            f"column {names_in_short(names)} sorts the rows by label ({own[0].share:.0%} of the way): it is the label, "
            f"or was made of it; leave it out (--drop {names[0]}) unless the rows to come have it as well"
        )
    if others := [each for each in columns if each.share < NEARLY_ALL]:
        names = names_in_short([each.name for each in others])
        said.append(
            f"{others[0].standing:.0%} of the labels stand in column {names} of "
            "another training row: folds of random rows are told their own answers; deal whole blocks of time or place "
            "(--group, or --split column)"
        )
    return said


def columns_of(table: Table, plan: str) -> dict[str, np.ndarray]:
    """What each column of a table of features becomes under the train table's plan: numbers, float32 (n), by name."""
    names: list[str] = []
    for name, kind, texts in read_plan(plan):
        names += [f"column {name} is {text}" for text in texts] if kind == TEXT else [f"column {name}"]
        names += [f"column {name} is missing"] * (kind == FLAGGED)
    values = encoded(table.source, plan, table.feature_names, table.images)
    return dict(zip(names, values.T, strict=True))


def suspicious_columns(table: Table, task: Task) -> list[Column]:
    """The columns that hold the answer, of this row or of other ones; the plainest first."""
    is_number = numbers_of(table.labels) is not None
    labels = [label_codes(table.labels)]
    if not task.is_one_of:
        names = [set(task.names_in(label)) for label in table.labels]
        labels += [np.array([name in own for own in names], np.int64) for name in sorted(set().union(*names))]
        labels = [codes for codes in labels if np.bincount(codes).min() >= FEWEST_LABELLED]
    found = []
    for name, cells in zip(table.feature_names, table.images.T, strict=True):
        values = numbers_of(cells)
        if values is None:
            values = np.unique(cells.astype(str), return_inverse=True)[1].astype(float)
        share = max((told_share(values, codes) for codes in labels), default=0.0)
        column = Column(name, share, standing_elsewhere(table.labels, cells) if is_number else 0.0)
        if column.share >= NEARLY_ALL or column.standing >= STANDING:
            found.append(column)
    return sorted(found, key=lambda column: -max(column.share, column.standing))


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
    pairs, most = len(codes) - 1, len(codes) - np.count_nonzero(counts)
    if len(codes) < len(values) / 2 or pairs < FEWEST or most == pairs:
        return 0.0
    chance = float((counts * (counts - 1)).sum() / len(codes))  # of pairs neighbours
    alike = float(np.count_nonzero(codes[1:] == codes[:-1]))
    return (alike - chance) / (most - chance)


def standing_elsewhere(labels: np.ndarray, cells: np.ndarray) -> float:
    """The share of the rows whose label, a number, stands in ``cells`` (n) of another row, beyond chance.

    By chance as many stand there as of the numbers that differ from a label in its last digit.
    """
    numbers, others = labels.astype(float), numbers_of(cells)
    if others is None or len(np.unique(numbers)) < MANY_DISTINCT * len(numbers):
        return 0.0
    digits = max(len(label.partition(".")[2]) for label in labels)
    whole = np.rint(numbers * 10.0**digits)
    known = np.rint(others * 10.0**digits)
    values, counts = np.unique(known[np.isfinite(known)], return_counts=True)

    def stand(wanted: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
        return np.where(values[at] == wanted, counts[at], 0) - (known == wanted) > 0

    chance = np.mean([stand(whole + step).mean() for step in (-1, 1)])
    return float(max(0.0, stand(whole).mean() - chance))
