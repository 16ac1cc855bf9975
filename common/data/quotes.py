"""Targets that stand among the features of other rows, as yesterday's value does in a table with a row a day."""

import numpy as np

from common.data.folds import Folds, split_rows
from common.data.tables import Table

DISTINCT = 0.5  # share of the rows with a value of their own, below which equal numbers mean nothing
MANY = 0.05  # share of the held-out rows that is worth a word


def quoted_targets(folds: Folds, table: Table) -> list[str]:
    """A line where many held-out rows have a target that a row which their model trains on has as a feature."""
    targets = folds.labels
    if not table.plan or not folds.task.is_number or len(set(targets)) < DISTINCT * len(targets):
        return []
    wide = [at for at, cells in enumerate(table.images.T) if len(set(cells)) >= DISTINCT * len(cells)]
    quoted, columns = np.zeros(len(targets), dtype=bool), set()
    for k in range(folds.count):
        train, valid = split_rows(folds, str(k), 1.0, 0)
        for at in wide:
            found = np.isin(targets[valid].astype(str), table.images[train, at].astype(str))
            quoted[valid[found]] = True
            columns |= {table.feature_names[at]} if found.mean() > MANY else set()
    if quoted.mean() <= MANY:
        return []
    return [
        f"{quoted.sum():,} of {len(targets):,} targets stand in {' and '.join(sorted(columns))} of rows that their "
        "models train on: the score flatters; --split time --time-column C --gap N, or --group C, keeps such rows apart"
    ]
