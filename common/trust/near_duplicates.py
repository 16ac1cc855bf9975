"""The near-duplicates of a table: which pictures are compared, which rows stay together, what a score is worth then.

What makes two pictures a pair is in common/trust/picture_pairs.py.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from common.base.errors import UserError
from common.base.files import write_file
from common.base.strict_csv import text_array
from common.base.system import cpu_count
from common.data.folds import Folds
from common.data.groups import groups_of, joined_groups, named_groups
from common.data.table import Table
from common.trust.alignment import SIDE
from common.trust.picture_pairs import SMALLEST, Pairs, pairs_of
from common.trust.verdict import Finding, beside_folds

NEAR_DUPLICATES = "near-duplicates"  # as a group of --group, and as the kind of a finding
PAIRS_FILE = "near_duplicates.csv"
UNASKED = {True: 1_000, False: 10_000}  # pictures that are compared unasked: aligned, and as they are; a few seconds
SMALLEST_DRAWING = 16  # px: smaller ones are told apart by too few pixels
DIVIDED = 0.05  # share of the rows with a near-duplicate in another fold, above which the score is untrue
GIANT = 0.1  # share of the rows in one group of near-duplicates, above which somebody should look at it


@dataclass(frozen=True)
class NearDuplicates:
    """The near-duplicates among the n rows of a train table, and between them and a test table's m rows."""

    pairs: Pairs  # numbers from n on are test rows
    n: int

    def within_train(self) -> Pairs:
        """The pairs of train rows."""
        return self._where(self.pairs.second < self.n)

    def with_test(self) -> Pairs:
        """The pairs of a train and a test row."""
        return self._where((self.pairs.first < self.n) & (self.pairs.second >= self.n))

    def _where(self, kept: np.ndarray) -> Pairs:
        return Pairs(self.pairs.first[kept], self.pairs.second[kept], self.pairs.likeness[kept])


def pictures_of(table: Table) -> tuple[np.ndarray, bool] | None:
    """Grey pictures of all rows, uint8 (n, height, width), and whether to align them; None: none to compare."""
    if not table.kind.of_images:
        return None
    if table.kind.in_files:
        if not table.facts:
            return None
        shorter = np.minimum(table.facts["width"], table.facts["height"])
        return table.facts["small"], bool(np.median(shorter) >= SMALLEST)
    images = table.images
    if min(images.shape[1:]) < SMALLEST_DRAWING:
        return None
    if min(images.shape[1:]) < SMALLEST:
        return images, False
    small = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in images]
    return np.stack(small), True


def is_quick(table: Table, test: Table | None) -> bool:
    """Whether looking for near-duplicates takes a few seconds."""
    found = pictures_of(table)
    return not found or len(table.ids) + (len(test.ids) if test else 0) <= UNASKED[found[1]]


def find_near_duplicates(table: Table, test: Table | None) -> NearDuplicates | None:
    """The near-duplicates of a table and of the test rows; None where the pictures cannot be compared."""
    both = [pictures_of(each) for each in (table, test) if each]
    if None in both or len({(each[0].shape[1:], each[1]) for each in both}) > 1:
        return None
    pictures = np.concatenate([each[0] for each in both])
    return NearDuplicates(pairs_of(pictures, both[0][1], cpu_count()), len(table.ids))


def as_groups(table: Table, found: NearDuplicates) -> np.ndarray:
    """The group of each train row, text (n): the id of its first near-duplicate, or its own."""
    pairs = found.within_train()
    return named_groups(table.ids, pairs.first, pairs.second)


def grouped_by(table: Table, names: Sequence[str], found: NearDuplicates | None) -> tuple[Table, str]:
    """What :func:`joined_groups` makes of a table, where near-duplicates may be among what is named.

    Raises:
        UserError: near-duplicates are asked for where pictures cannot be compared.
    """
    if NEAR_DUPLICATES in names and not found:
        what = f"cannot be told: pictures below {SMALLEST_DRAWING} px, or of different kinds, are not compared"
        raise UserError(f"--group {NEAR_DUPLICATES}", what, "name a column of the table, or leave it out")
    if missing := [name for name in names if name not in (*table.columns, NEAR_DUPLICATES)]:
        return table, missing[0]
    if NEAR_DUPLICATES in names:
        table = replace(table, columns=table.columns | {NEAR_DUPLICATES: as_groups(table, found)})
    return joined_groups(table, names)


def near_duplicate_findings(table: Table, test: Table | None, folds: Folds, found: NearDuplicates) -> list[Finding]:
    """What the pairs do to a score on these folds."""
    inner, outer = found.within_train(), found.with_test()
    findings = []
    if len(inner):
        fold, label = fold_of(folds, table), table.labels
        divided = fold[inner.first] != fold[inner.second]
        rows = np.unique(np.concatenate([inner.first[divided], inner.second[divided]]))
        sizes = np.bincount(groups_of(inner.first, inner.second, found.n))
        groups = int(np.count_nonzero(sizes > 1))
        text = f"{len(inner):,} near-duplicate {'pairs' if len(inner) > 1 else 'pair'} among the training rows, "
        text += f"in {groups:,} {'groups' if groups > 1 else 'group'}, the largest of {sizes.max()} rows ({PAIRS_FILE})"
        if divided.any():
            text += f"; the folds divide {divided.sum():,}, so {len(rows):,} of {found.n:,} rows are predicted by "
            text += f"models that saw their like: keep them together with --group {NEAR_DUPLICATES}"
        else:
            text += "; no fold divides one"
        if (two := label[inner.first] != label[inner.second]).any():
            shown = zip(table.ids[inner.first[two]][:2], table.ids[inner.second[two]][:2], strict=True)
            named = ", ".join(f"{one} and {other}" for one, other in shown)
            text += f"; {two.sum()} carry two labels ({named})"
        if sizes.max() > max(GIANT * found.n, 10):
            text += "; look at the largest group: chains of alike pictures may tie strangers"
        findings.append(Finding(NEAR_DUPLICATES, len(rows) > DIVIDED * found.n, text))
    if test and len(outer):
        rows = np.unique(outer.second)
        share = len(rows) / len(test.ids)
        text = (
            f"{len(rows):,} of {len(test.ids):,} test rows ({share:.1%}) have a near-duplicate among the training rows"
        )
        text += ": the test score will lie above what new pictures would give" if share > 0.01 else ""
        findings.append(Finding(NEAR_DUPLICATES, False, text))
    return findings


def fold_of(folds: Folds, table: Table) -> np.ndarray:
    """The fold of each of the table's rows, int64 (n); -1 also where the folds file lacks it."""
    known = dict(zip(folds.ids, folds.fold.tolist(), strict=True))
    return np.array([known.get(name, -1) for name in table.ids])


def write_pairs(folds_file: Path, table: Table, test: Table | None, folds: Folds, found: NearDuplicates) -> None:
    """Write near_duplicates.csv beside the folds file: the pairs, the likest first, with folds and labels of both."""
    fold, ids = fold_of(folds, table), np.concatenate([table.ids, test.ids if test else text_array([])])
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["id", "other", "other_in", "likeness", "fold", "other_fold", "label", "other_label"])
    for at in np.argsort(-found.pairs.likeness, kind="stable"):
        one, two = int(found.pairs.first[at]), int(found.pairs.second[at])
        if one >= found.n:
            continue
        inside = two < found.n
        row = [ids[one], ids[two], "train" if inside else "test", f"{found.pairs.likeness[at]:.3f}", fold[one]]
        writer.writerow([*row, fold[two] if inside else "", table.labels[one], table.labels[two] if inside else ""])
    write_file(beside_folds(folds_file, PAIRS_FILE), file.getvalue())
