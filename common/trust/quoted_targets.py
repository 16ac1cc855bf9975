"""Targets that stand among the features of other rows, as yesterday's value does in a table with a row a day."""

import numpy as np

from common.data.folds import Folds, split_rows
from common.data.table import Table
from common.score.numbers import SEPARATOR, number_in

DISTINCT = 0.5  # share of the rows with a value of their own, below which equal numbers mean nothing
MANY = 0.05  # share of the held-out rows, beyond chance, that is worth a word
MOVES = (-2, -1, 1, 2)  # units of the last place: numbers near the targets stand among features by chance alone
CERTAIN = 4.0  # standard deviations beyond chance


def quoted_targets(folds: Folds, table: Table) -> list[str]:
    """A line a target where many held-out rows have one that a row which their model trains on has as a feature."""
    if not table.plan or not folds.task.is_number:
        return []
    several = np.array([label.split(SEPARATOR) for label in folds.labels])
    return [said for targets in several.T for said in _quoted(targets, folds, table)]


def _quoted(targets: np.ndarray, folds: Folds, table: Table) -> list[str]:
    """The same for one of the targets, text (n)."""
    if len(set(targets)) < DISTINCT * len(targets):
        return []
    wide = [at for at, cells in enumerate(table.images.T) if len(set(cells)) >= DISTINCT * len(cells)]
    asked = np.stack([targets, *_near(targets)])
    quoted, columns = np.zeros(asked.shape, dtype=bool), set()
    for k in range(folds.count):
        train, valid = split_rows(folds, str(k), 1.0, 0)
        for at in wide:
            found = np.isin(asked[:, valid], table.images[train, at].astype(str))
            quoted[:, valid] |= found
            columns |= {table.feature_names[at]} if found[0].mean() > found[1:].mean() + MANY else set()
    quoted, chance = quoted[0], float(quoted[1:].mean())
    if quoted.mean() <= chance + MANY + CERTAIN * (chance * (1 - chance) / len(targets)) ** 0.5:
        return []
    return [
        f"{quoted.sum():,} of {len(targets):,} targets stand in {' and '.join(sorted(columns))} of rows that their "
        "models train on: the score flatters; --split time --time-column C --gap N, or --group C, keeps such rows apart"
    ]


def _near(targets: np.ndarray) -> list[np.ndarray]:
    """Numbers, as texts with the targets' decimals, that lie a few units of the last place from them."""
    places = [len(text.partition(".")[2]) for text in targets]
    return [
        np.array(
            [f"{number_in(text) + move / 10**digits:.{digits}f}" for text, digits in zip(targets, places, strict=True)]
        )
        for move in MOVES
    ]
