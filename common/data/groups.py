"""Groups, such as drivers, patients or sites, whose rows stay in one fold: of several columns, or of another table."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.base.errors import UserError, warn
from common.base.strict_csv import columns_of, csv_bytes, row_of, text_array, with_named_index
from common.base.words import names_in_short, rows_named
from common.data.image_folders import IMAGE_SUFFIXES, NamedImages
from common.data.table import Table
from common.data.utterances import UTTERANCE


def groups_of(first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
    """Equal numbers for those of n things that pairs, int64 (m) each, tie together, one to the next, int64 (n)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    return connected_components(links, directed=False)[1].astype(np.int64)


def named_groups(ids: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The first id of those that pairs of rows, int64 (m) each, tie to each of the ids, text (n)."""
    groups = groups_of(first, second, len(ids))
    return ids[np.unique(groups, return_index=True)[1][groups]]


def joined_groups(table: Table, names: Sequence[str]) -> tuple[Table, str]:
    """The table with one column whose equal cells stay in one fold, and that column's name.

    Rows that share a value of any of the named columns are tied, one to the next; an empty cell ties nobody.
    """
    empty = {name: int((table.columns[name] == "").sum()) for name in names}
    for name, count in empty.items():
        if count:
            warn(f"{table.source}: column {name} is empty in {count:,} rows: by it they belong to no group")
    if len(names) < 2 and not any(empty.values()):
        return table, names[0] if names else ""
    links = []
    for name in names:
        cells = table.columns[name].astype(str)
        order = np.argsort(cells, kind="stable")
        same = (cells[order][1:] == cells[order][:-1]) & (cells[order][1:] != "")
        links.append(np.stack([order[:-1][same], order[1:][same]], axis=1))
    called = " and ".join(names)
    return replace(table, columns=table.columns | {called: named_groups(table.ids, *np.concatenate(links).T)}), called


def with_groups(table: Table, path: Path, group: str) -> Table:
    """The table with the column ``group`` of the csv at ``path``, whose rows may be more, and in another order.

    The csv's column that names most of the table's rows joins them; a name may lack folders and suffix.

    Raises:
        UserError: the csv has no such column, or names a row not at all or in two groups.
    """
    columns = columns_of(path, with_named_index(csv_bytes(path)).decode())
    if group not in columns:
        raise UserError(str(path), f"has no column {group!r} for --group", f"its columns: {', '.join(columns)}")
    groups = columns.pop(group)
    names = table.columns.get(UTTERANCE, table.ids)  # what the csv may know its rows by
    known = NamedImages((name, Path(name)) for name in dict.fromkeys(names))
    found = {name: [_rows_named(known, cell) for cell in cells] for name, cells in columns.items()}
    joined = max(found, key=lambda name: sum(map(bool, found[name])), default="")
    group_of: dict[str, str] = {}
    for index, rows in enumerate(found.get(joined, ())):
        if len(rows) > 1:
            what = f"{columns[joined][index]!r} may be {rows[0]} or {rows[1]}"
            raise UserError(row_of(path, index), what, "name the row as the train table does")
        for row in map(str, rows):
            if group_of.setdefault(row, groups[index]) != groups[index]:
                what = f"{row} is in the group {groups[index]} and in {group_of[row]}"
                raise UserError(row_of(path, index), what, "leave it in one")
    if missing := [name for name in dict.fromkeys(names) if str(Path(name)) not in group_of]:
        what = f"names {rows_named(missing)} of {table.source} in none of its columns {names_in_short(list(columns))}"
        raise UserError(str(path), what, "name each row of the train table in it")
    cells = text_array(group_of[str(Path(name))] for name in names)
    taken = f"groups' table {path}, joined by its column {joined} (--group-table)"
    return replace(table, columns={**table.columns, group: np.asarray(cells)}, taken=(*table.taken, taken))


def _rows_named(known: NamedImages, cell: str) -> list[Path]:
    """The rows that a cell may mean; it may have the image's suffix where the train table has none."""
    stem, suffix = os.path.splitext(cell)
    return known.find(cell) or (known.find(stem) if suffix.lower() in IMAGE_SUFFIXES else [])
