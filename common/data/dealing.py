"""Dealing a table's rows to folds."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from common.base.errors import UserError, warn
from common.base.strict_csv import row_of, text_array
from common.base.words import names_in_short
from common.data.folds import ALWAYS_TRAINING, Folds, fold_numbers, missing_classes, moments_of, refuse_holes
from common.data.groups import groups_of
from common.data.reading import PART
from common.data.table import Table
from common.score.task import MULTICLASS, Task

Split = Literal["stratified", "kfold", "group", "stratified-group", "column", "holdout", "folders", "time"]


WIDE = 10_000_000  # groups x classes above which scikit-learn's stratified groups take too much memory (80 MB)


def make_folds(
    table: Table,
    k: int = 5,
    split: Split = "stratified",
    group: str = "",
    fold_column: str = "",
    seed: int = 0,
    rare: Literal["error", "train"] = "error",
    task: Task = MULTICLASS,
) -> Folds:
    """Deal the table's rows to folds as scikit-learn's splitters do.

    What must stay together is dealt as one unit: exact copies of an image and, in a group split, every row that
    is linked to another by a shared group or a shared image. ``holdout`` takes the first of ``k`` parts as the only
    validation part. ``rare`` = ``train`` puts units with a class too small for ``k`` folds, or with all rows of a class
    in one fold, into no fold. ``fold_column`` holds the folds of the split column, and of the split time the times: its
    blocks follow one another, and equal times are in one.

    Raises:
        UserError: a class with fewer than ``k`` distinct images, too few groups, or an unusable column.
    """
    labels, row_shas = table.labels, table.row_shas()
    if len(set(labels)) < 2:
        raise UserError(table.source, f"every label is {labels[0]}", "a model needs at least two to learn from")
    strata = task.stratum(labels)
    groups = _column(table, group, "--group") if group else text_array([])
    if split in ("column", "folders", "time"):
        fold, times = _as_told(table, split, fold_column, k)
        return Folds(table.ids, labels, fold, row_shas, groups, task, times)
    images = _numbered(_one_name(row_shas, table.pixel_shas) if table.pixel_shas.size else row_shas)
    units = _linked(images, _numbered(groups)) if "group" in split else images
    fold = np.full(len(labels), ALWAYS_TRAINING)
    dealt = np.arange(len(labels))
    if task.is_one_of:
        dealt = _rows_to_deal(table.source, strata, images, units, k, rare)
    _, first = np.unique(images[dealt], return_index=True)  # one row for each distinct image
    rows = dealt[first]
    if (found := len(set(units[rows]))) < k:
        what = f"{found} {'groups' if 'group' in split else 'distinct images'} cannot fill {k} folds"
        raise UserError(table.source, what, "lower --k")
    fold_of_unit = np.full(units.max() + 1, ALWAYS_TRAINING)
    if task.is_of_sets and split in ("stratified", "stratified-group", "holdout"):
        has = task.encode(labels[rows], task.outputs(labels))
        fold_of_unit[units[rows]] = _stratified_sets(table.source, has, task.outputs(labels), units[rows], k, seed)
        if split == "holdout":
            fold_of_unit[fold_of_unit > 0] = ALWAYS_TRAINING
    elif split == "stratified-group" and (units.max() + 1) * len(set(strata)) > WIDE:
        fold_of_unit[units[rows]] = _stratified_groups(_numbered(strata[rows]), units[rows], k, seed)
    else:
        number = _dealt(split, strata[rows], units[rows], k, seed)
        fold_of_unit[units[rows]] = np.where((split == "holdout") & (number > 0), ALWAYS_TRAINING, number)
    fold[dealt] = fold_of_unit[units[dealt]]
    missing = missing_classes(Folds(table.ids, labels, fold, row_shas, groups, task)) if task.is_one_of else []
    if missing and rare == "train":
        in_one_fold = np.isin(strata, [name for name, _ in missing])
        fold[np.isin(units, units[in_one_fold])] = ALWAYS_TRAINING
    elif missing:
        name, number = missing[0]
        what = f"every row of class {name} fell into fold {number}, so its model would never see that class"
        if (largest := np.bincount(units).max()) > len(units) / k:
            what += f" (the largest group has {largest:,} of {len(units):,} rows)"
        raise UserError(
            table.source, what, "try another --seed, --split stratified, or --rare train to only train on it"
        )
    refuse_holes(fold, table.source, "lower --k or try another --seed")
    if "group" in split:
        _warn_of_a_giant(table.source, groups[dealt], units[dealt], fold[dealt])
    return Folds(table.ids, labels, fold, row_shas, groups, task)


def _as_told(table: Table, split: Split, column: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The folds that a column or the folders tell, int64 (n), and the rows' times where they are blocks of time."""
    if split == "folders":
        return np.where(_column(table, PART, "--split folders") == "valid", 0, ALWAYS_TRAINING), text_array([])
    where = f"{table.source}, column {column}"
    if split == "column":
        return fold_numbers(_column(table, column, "--fold-column"), where), text_array([])
    times = _column(table, column, "--time-column")
    fold = _blocks(moments_of(times, where), k)
    refuse_holes(fold, table.source, "lower --k: a block needs a time of its own")
    return fold, times


def _blocks(moments: np.ndarray, k: int) -> np.ndarray:
    """The number of the block that each moment (n) falls into, of ``k`` with about as many rows each."""
    _, numbers, rows = np.unique(moments, return_inverse=True, return_counts=True)
    middle = rows.cumsum() - rows / 2
    return (middle * k / len(moments)).astype(np.int64)[numbers]


def _one_name(row_shas: np.ndarray, pixel_shas: np.ndarray) -> np.ndarray:
    """The files' hashes, with the smallest for all files that show the same pixels."""
    smallest = {}
    for pixels, row_sha in zip(pixel_shas, row_shas, strict=True):
        smallest[pixels] = min(smallest.get(pixels, row_sha), row_sha)
    return text_array(smallest[pixels] for pixels in pixel_shas)


def _warn_of_a_giant(source: str, names: np.ndarray, units: np.ndarray, fold: np.ndarray) -> None:
    """Say where one group, or what copies tie together, has more rows than a fold should."""
    sizes = np.bincount(units)
    rows_of_fold = np.bincount(fold[fold != ALWAYS_TRAINING])
    if sizes.max() > len(units) / len(rows_of_fold):
        name = names[np.flatnonzero(units == sizes.argmax())[0]]
        shares = ", ".join(f"{rows:,}" for rows in sorted(rows_of_fold.tolist(), reverse=True))
        warn(
            f"{source}: the largest group ({name}) has {sizes.max():,} of {len(units):,} rows, "
            f"so the folds are uneven: {shares} rows"
        )


def _dealt(split: Split, strata: np.ndarray, units: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The fold of each row, int (n), by scikit-learn's splitter of that kind."""
    if split in ("stratified", "holdout"):
        return stratified(strata, k, seed)
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold

    splitter = {"kfold": KFold, "group": GroupKFold, "stratified-group": StratifiedGroupKFold}[split]
    parts = splitter(n_splits=k, shuffle=True, random_state=seed).split(
        strata, strata, units if "group" in split else None
    )
    fold = np.empty(len(strata), dtype=np.int64)
    for number, (_, part) in enumerate(parts):
        fold[part] = number
    return fold


def stratified(strata: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The fold of each row, int (n), as scikit-learn's shuffled StratifiedKFold deals them, without its import.

    Of the rows sorted by class every k-th goes to the same fold, which says how many of each class a fold gets; which
    ones is drawn, class by class in the order in which they first come.
    """
    _, first, numbers = np.unique(strata.astype(str), return_index=True, return_inverse=True)
    numbers = first.argsort().argsort()[numbers]
    order, random = np.sort(numbers), np.random.RandomState(seed)
    counts = np.stack([np.bincount(order[start::k], minlength=len(first)) for start in range(k)], axis=1)
    fold = np.empty(len(strata), dtype=np.int64)
    for number, of_each_fold in enumerate(counts):
        dealt = np.arange(k).repeat(of_each_fold)
        random.shuffle(dealt)
        fold[numbers == number] = dealt
    return fold


def _stratified_groups(targets: np.ndarray, units: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The fold of each row, whole units at a time, so that every class is spread evenly.

    As scikit-learn's StratifiedGroupKFold does it: the units with the most uneven classes come first, and each goes
    where its rows leave the classes' shares most even, at a tie into the smallest fold. But only the classes that a
    unit holds are looked at: scikit-learn keeps a matrix of groups x classes (8 GB for 100,000 x 10,000) and judges by
    the mean over all classes, in which a single one of thousands counts as a tie.

    Args:
        targets: (n) class numbers.
        units: (n) equal numbers for rows that stay together.
    """
    classes = targets.max() + 1
    pairs, rows_of_pair = np.unique(units * classes + targets, return_counts=True)
    unit_of_pair, class_of_pair = np.divmod(pairs, classes)
    names, first, size = np.unique(unit_of_pair, return_index=True, return_counts=True)
    sums, squares = (np.add.reduceat(rows_of_pair**power, first) for power in (1, 2))
    spread = np.sqrt(squares / classes - (sums / classes) ** 2)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    totals, dealt, rows_of_fold = np.bincount(targets), np.zeros((k, classes)), np.zeros(k)
    fold_of_unit = np.empty(names.max() + 1, dtype=np.int64)
    for unit in shuffled[np.argsort(-spread[shuffled], kind="stable")]:
        own = slice(first[unit], first[unit] + size[unit])
        numbers, rows = class_of_pair[own], rows_of_pair[own]
        shares = dealt[:, numbers] / totals[numbers] + np.eye(k)[:, :, None] * (rows / totals[numbers])
        uneven = shares.std(axis=1).sum(axis=1)
        chosen = np.lexsort((rows_of_fold, ~np.isclose(uneven, uneven.min())))[0]
        dealt[chosen, numbers] += rows
        rows_of_fold[chosen] += rows.sum()
        fold_of_unit[names[unit]] = chosen
    return fold_of_unit[units]


def _stratified_sets(
    source: str, has: np.ndarray, names: Sequence[str], units: np.ndarray, k: int, seed: int
) -> np.ndarray:
    """The fold of each row, whole units at a time, so that every label is spread evenly: iterative stratification.

    The label that the fewest rows left have comes first; each of its units goes where most rows of it are wanted, at a
    tie where most rows are, among the folds that are not full (Sechidis et al. 2011, "On the stratification of
    multi-label data"). The package iterative-stratification knows no groups. Labels with fewer rows than folds are
    said.

    Args:
        has: whether each row has each label, bool (n, labels).
        units: (n) equal numbers for rows that stay together.
    """
    if few := [f"{name} ({count})" for name, count in zip(names, has.sum(axis=0), strict=True) if count < k]:
        warn(f"{source}: fewer than {k} distinct rows have {names_in_short(few)}: some folds validate without them")
    numbers = np.unique(units, return_inverse=True)[1]
    counts = np.zeros((numbers.max() + 1, has.shape[1]), dtype=np.int64)
    np.add.at(counts, numbers, has)
    sizes = np.bincount(numbers)
    random = np.random.default_rng(seed)
    wanted = np.tile(counts.sum(axis=0) / k, (k, 1))
    room = np.full(k, sizes.sum() / k)
    left, fold_of_unit = counts.sum(axis=0), np.full(len(sizes), -1)
    shuffled = random.permutation(len(sizes))
    while (waiting := shuffled[fold_of_unit[shuffled] < 0]).size:
        labels = np.flatnonzero(left > 0)
        label = labels[left[labels].argmin()] if len(labels) else -1  # -1: rows without any label
        for unit in waiting[counts[waiting, label] > 0] if label >= 0 else waiting:
            want = wanted[:, label] if label >= 0 else room
            best = np.lexsort((random.random(k), room, want, room > 0))[-1]
            fold_of_unit[unit] = best
            wanted[best] -= counts[unit]
            room[best] -= sizes[unit]
            left = left - counts[unit]
    return fold_of_unit[numbers]


def _rows_to_deal(
    source: str, strata: np.ndarray, images: np.ndarray, units: np.ndarray, k: int, rare: Literal["error", "train"]
) -> np.ndarray:
    """Positions of the rows that go into folds: all but the units with a rare class.

    A unit is left out as a whole, which may make another class rare in turn.
    """
    rows = np.arange(len(strata))
    while True:
        counts = Counter(name for name, _ in set(zip(strata[rows], images[rows].tolist(), strict=True)))
        small = {name: count for name, count in counts.items() if count < k}
        if not small:
            return rows
        if rare == "error":
            named = ", ".join(f"{name} ({count})" for name, count in sorted(small.items())[:5])
            what = f"{len(small)} classes have fewer than {k} distinct images: {named}"
            raise UserError(source, what, "lower --k, or --rare train to keep their rows out of validation")
        out = units[rows][np.isin(strata[rows], list(small))]
        rows = rows[~np.isin(units[rows], out)]


def _linked(images: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Number of the connected part each row belongs to, where rows with one image or one group are linked."""
    behind = images.max() + 1 + groups  # numbers that no image has
    return groups_of(images, behind, behind.max() + 1)[images]


def _numbered(texts: np.ndarray) -> np.ndarray:
    """Equal texts get equal numbers from 0, whatever the order of the rows."""
    return np.unique(texts.astype(str), return_inverse=True)[1]


def _column(table: Table, name: str, flag: str) -> np.ndarray:
    if name not in table.columns:
        known = f"its other columns: {', '.join(table.columns) or 'none'}"
        if flag == "--group":
            known += "; a csv that has it can be named with --group-table"
        raise UserError(table.source, f"has no column {name!r} for {flag}", known)
    cells = table.columns[name]
    if (empty := np.flatnonzero(cells == "")).size:
        raise UserError(f"{row_of(table.source, empty[0])}, column {name}", "is empty", "fill it in")
    return cells
