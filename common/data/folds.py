"""The folds file: which row validates which model, decided once and joined by id ever after."""

import contextlib
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from common.base.errors import UserError
from common.base.files import sha256, write_file
from common.base.strict_csv import read_columns, row_of, text_array
from common.base.words import names_in_short, rows_named
from common.data.competition import beside, read_competition
from common.data.reading import read_train_table
from common.data.table import Table
from common.data.utterances import TOGETHER
from common.score.numbers import number_in
from common.score.task import MULTICLASS, Task, posed

ALWAYS_TRAINING = -1
_ROW_SHA, _FOLD = re.compile("[0-9a-f]{16}"), re.compile("-1|[0-9]{1,4}")  # a row each: re's own cache is slower


@dataclass(frozen=True)
class Folds:
    """Fold number of each of n rows: 0 to count - 1, or -1 for rows that every model trains on."""

    ids: np.ndarray  # text, n
    labels: np.ndarray  # text, n
    fold: np.ndarray  # int64, n
    row_shas: np.ndarray  # text, n
    groups: np.ndarray  # text, n; empty where the split knows no groups
    task: Task = MULTICLASS
    times: np.ndarray = field(default_factory=lambda: text_array([]))  # text, n; empty where the split knows no time
    gap: float = 0.0  # of time, between a block of held-out rows and those that its model trains on
    of_frames: bool = False  # whether rows are frames, of which neighbours are drawn together

    @property
    def count(self) -> int:
        return int(self.fold.max()) + 1

    @cached_property
    def output_names(self) -> list[str]:
        """The names of a model's outputs, such as the classes, in their order."""
        return self.task.outputs(self.labels)

    @property
    def says_outputs(self) -> str:
        """``10 classes``."""
        return f"{len(self.output_names)} {self.task.outputs_are}"

    @cached_property
    def targets(self) -> np.ndarray:
        """The task's target of each row: the class number, int64 (n)."""
        return self.task.encode(self.labels, self.output_names)

    @cached_property
    def strata(self) -> np.ndarray:
        """What every part of the rows should have its share of, such as each class: equal keys, (n)."""
        return self.task.stratum(self.labels)

    @cached_property
    def moments(self) -> np.ndarray:
        """The times as numbers, float64 (n)."""
        return moments_of(self.times, "folds file, column time")

    @property
    def fingerprint(self) -> str:
        """Sha256 of every id, label, fold and time, and of the gap; the order of the rows does not matter."""
        times = [self.times] if self.times.size else []
        rows = sorted(zip(self.ids, self.labels, self.fold.tolist(), *times, strict=True))
        return sha256(json.dumps([rows, self.gap] if times else rows).encode())


def missing_classes(folds: Folds) -> list[tuple[str, int]]:
    """Each class or label all of whose rows lie in one validation fold, with that fold: none is left to train on."""
    seen = {}
    for label, number in zip(folds.labels, folds.fold.tolist(), strict=True):
        for name in folds.task.names_in(label):
            seen.setdefault(name, set()).add(number)
    return sorted((name, min(found)) for name, found in seen.items() if len(found) == 1 and min(found) >= 0)


# ---- the file


def folds_text(folds: Folds) -> str:
    """The folds file's content: id,label,fold,row_sha and, if there are any, group and time."""
    columns = {"id": folds.ids, "label": folds.labels, "fold": folds.fold.tolist(), "row_sha": folds.row_shas}
    if folds.groups.size:
        columns["group"] = folds.groups
    if folds.times.size:
        columns["time"] = folds.times
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def write_folds(path: Path, folds: Folds) -> None:
    """Write ``folds`` as a csv."""
    write_file(path, folds_text(folds))


def read_folds(path: Path, task: str = "", positive: str = "") -> Folds:
    """Read a folds file of a task; of the one that competition.json beside it says where none is given.

    ``positive`` is the class that is looked for.

    Raises:
        UserError: a missing column or fold, an empty or doubled id, a cell that is not what it should be.
    """
    if not path.exists():
        raise UserError(str(path), "does not exist", "make it with: python folds.py")
    said = read_competition(beside(str(path)))
    positive = positive or ("" if task else said.positive)
    task = posed(task or said.task or MULTICLASS.name, positive, said.target_columns)
    cells = read_columns(path)
    if missing := [name for name in ("id", "label", "fold", "row_sha") if name not in cells]:
        raise UserError(str(path), f"has no column {missing[0]}", "make it again with: python folds.py --force")
    ids, labels, row_shas = cells["id"], cells["label"], cells["row_sha"]
    first_row = {}
    for index, (name, label, row_sha) in enumerate(zip(ids, labels, row_shas, strict=True)):
        if flaw := task.flaw(label) if name else "is empty":
            raise UserError(row_of(path, index), f"the {'label' if name else 'id'} {flaw}", "restore the file")
        if not _ROW_SHA.fullmatch(row_sha):
            raise UserError(
                f"{row_of(path, index)}, column row_sha", f"{row_sha!r} is not a valid hash", "restore the file"
            )
        if (earlier := first_row.setdefault(name, index)) != index:
            raise UserError(row_of(path, index), f"id {name} is also in row {earlier + 1}", "restore the file")
    fold = fold_numbers(cells["fold"], str(path))
    groups, times = (cells.get(name, text_array([])) for name in ("group", "time"))
    moments_of(times, str(path))
    return Folds(ids, labels, fold, row_shas, groups, task, times, said.gap, said.targets == "frames")


def moments_of(cells: Sequence[str], where: str) -> np.ndarray:
    """Times as numbers, float64 (n): numbers as they are, dates as days since 1970.

    Raises:
        UserError: a cell that is neither, or one of the other kind than the first.
    """
    found, kinds = np.empty(len(cells)), set()
    for index, cell in enumerate(cells):
        found[index] = number = number_in(cell)
        kinds.add(math.isnan(number))
        if math.isnan(number):
            with contextlib.suppress(ValueError):
                moment = datetime.fromisoformat(cell)
                found[index] = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() / 86400
        if math.isnan(found[index]) or len(kinds) > 1:
            what = f"{cell!r} is no time: neither a number nor a date such as 2024-02-29"
            what = f"{cell!r} is of another kind than the times above it" if len(kinds) > 1 else what
            raise UserError(row_of(where, index), what, "correct it")
    return found


def fold_numbers(cells: Sequence[str], where: str) -> np.ndarray:
    """Cells as fold numbers, int64 (n); UserError where one is none, or a number is left out."""
    for index, cell in enumerate(cells):
        if not _FOLD.fullmatch(cell):
            what = f"fold {cell!r} is not a whole number from 0, or -1 for rows always trained on"
            raise UserError(row_of(where, index), what, "correct it")
    fold = np.array(cells, dtype=np.int64)
    refuse_holes(fold, where, "number the folds from 0 without gaps")
    return fold


def refuse_holes(fold: np.ndarray, where: str, remedy: str) -> None:
    """Raise UserError where a number below the largest has no row."""
    present = set(fold.tolist())
    for number in range(max(fold.max(), 0) + 1):
        if number not in present:
            raise UserError(where, f"there is no row in fold {number}", remedy)


# ---- folds and their table


def split_rows(folds: Folds, fold: str, train_fraction: float, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (int64) to train on and to validate on when ``fold`` ("full": none) is held out.

    Of folds that are blocks of time, rows within the gap of the held-out block are in neither part.
    ``train_fraction`` of each class is trained on, and ``limit`` rows (0: all) of either part are kept, drawn at random
    but the same for every seed. Of frames pieces of some that follow one another are drawn.
    """
    held_out = np.zeros(len(folds.fold), dtype=bool) if fold == "full" else folds.fold == int(fold)
    near = np.zeros_like(held_out)
    if folds.times.size and held_out.any():
        block = folds.moments[held_out]
        near = (folds.moments >= block.min() - folds.gap) & (folds.moments <= block.max() + folds.gap)
    train, valid = np.flatnonzero(~held_out & ~near), np.flatnonzero(held_out)
    random = np.random.default_rng(0)  # not --seed: repeats with other seeds must train on the same rows
    if folds.of_frames:
        wanted = round(train_fraction * len(train))
        return tuple(
            _pieces(rows, min(limit or len(rows), most), random)
            for rows, most in ((train, wanted), (valid, len(valid)))
        )
    if train_fraction < 1:
        numbers = np.unique(folds.strata.astype(str), return_inverse=True)[1][train]
        of_each_class = np.split(train[np.argsort(numbers, kind="stable")], np.cumsum(np.bincount(numbers))[:-1])
        kept = [rows[: max(1, round(train_fraction * len(rows)))] for rows in map(random.permutation, of_each_class)]
        train = np.sort(np.concatenate(kept))
    if limit:
        train, valid = (np.sort(random.permutation(rows)[:limit]) for rows in (train, valid))
    return train, valid


def _pieces(rows: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    """``most`` of the rows, in pieces of TOGETHER that follow one another, in their order."""
    pieces = np.split(rows, range(TOGETHER, len(rows), TOGETHER))
    return np.sort(np.concatenate([pieces[number] for number in random.permutation(len(pieces))])[:most])


def read_data(data: str, folds_file: str, task: str = "", positive: str = "") -> tuple[Table, Folds]:
    """The train table, and the folds in its row order; arguments as in :func:`read_folds`.

    Raises:
        UserError: either cannot be read, or they do not belong together.
    """
    table = read_train_table(data, read_competition(beside(folds_file)))
    return table, match_folds(read_folds(Path(folds_file), task, positive), table)


def match_folds(folds: Folds, table: Table) -> Folds:
    """The folds in the table's row order, joined by id. Photos are not read here: who decodes one checks its hash.

    Raises:
        UserError: the rows that are missing, foreign, or have another label or image than when folds were made.
    """
    if findings := changed_rows(folds, table, hash_images=not table.kind.in_files):
        remedy = "name the table that the folds were made from with --data; python folds.py --check says more"
        raise UserError(table.source, f"differs from the folds file: {findings[0]}", remedy)
    position = {name: at for at, name in enumerate(folds.ids)}
    order = np.array([position[name] for name in table.ids])
    of_each = ("labels", "fold", "row_shas", "groups", "times")
    parts = {name: getattr(folds, name) for name in of_each}
    return replace(folds, ids=table.ids, **{name: part[order] if part.size else part for name, part in parts.items()})


def changed_rows(folds: Folds, table: Table, hash_images: bool = True) -> list[str]:
    """How the table differs from the one that ``folds`` was made of: one line each for a kind of change."""
    known = dict(zip(folds.ids, folds.row_shas, strict=True))
    row_shas = table.row_shas() if hash_images else text_array(known.get(name, "") for name in table.ids)
    made_of = {row[0]: row[1:] for row in zip(folds.ids, folds.labels, folds.row_shas, strict=True)}
    present = {row[0]: row[1:] for row in zip(table.ids, table.labels, row_shas, strict=True)}
    shared = [name for name in made_of if name in present]
    changes = {
        "only in the folds file": [name for name in made_of if name not in present],
        "only in the table": [name for name in present if name not in made_of],
        "with another label": [name for name in shared if made_of[name][0] != present[name][0]],
        "with another image": [name for name in shared if made_of[name][1] != present[name][1]],
    }
    findings = [f"{rows_named(ids)} {change}" for change, ids in changes.items() if ids]
    if changes["with another image"] and Counter(folds.row_shas) == Counter(row_shas):
        findings.append("the table holds the same images in another order, and its ids follow that order")
    return findings


def by_pixels(folds: Folds, table: Table) -> Folds:
    """The folds with the hashes of what decoded photos show instead of their files', as far as they are known."""
    if not table.pixel_shas.size:
        return folds
    known = dict(zip(table.ids, table.pixel_shas, strict=True))
    return replace(folds, row_shas=text_array(map(known.get, folds.ids, folds.row_shas)))


def leaks(folds: Folds, test: Table | None = None) -> list[str]:
    """What would make a validation or test score untrue: one line for each kind, naming the rows."""
    by_class = dict(missing_classes(folds))
    in_test = set() if test is None else set(test.image_shas())
    found = {
        "are exact copies that lie in different folds": _divided(folds.row_shas, folds.fold),
        "are exact copies with different labels": _divided(folds.row_shas, folds.labels),
        "belong to groups that lie in different folds": _divided(folds.groups, folds.fold),
        f"are all there is of class {names_in_short(list(by_class))}, in one fold: none left to train on": [
            at for at, label in enumerate(folds.labels) if not by_class.keys().isdisjoint(folds.task.names_in(label))
        ],
        "are also in the test set": [at for at, row_sha in enumerate(folds.row_shas) if row_sha in in_test],
    }
    return [f"{rows_named(folds.ids[rows])} {what}" for what, rows in found.items() if rows]


def _divided(keys: np.ndarray, values: np.ndarray) -> list[int]:
    """Positions of the keys that occur with more than one value, equal keys side by side."""
    positions = {}
    for at, key in enumerate(keys):
        positions.setdefault(key, []).append(at)
    shared = [rows for rows in positions.values() if len(rows) > 1]  # first: most keys occur once
    return [at for rows in shared if len(set(values[rows])) > 1 for at in rows]
