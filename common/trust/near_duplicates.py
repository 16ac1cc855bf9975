"""Can a score on these folds be trusted? What was looked at in the data, what was found, and what that does to a score.

folds.py prints it and writes near_duplicates.csv and trust.json beside the folds file; the report opens with it.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from common.base.errors import UserError, warn
from common.base.files import read_json, write_file, write_json
from common.base.strict_csv import text_array
from common.base.system import cpu_count
from common.data.folds import Folds
from common.data.groups import groups_of
from common.data.table import Table
from common.score.task import MULTICLASS, Task
from common.trust.alignment import SIDE
from common.trust.column_probes import columns_of, label_columns
from common.trust.dependence import in_words, strongest, told_by
from common.trust.picture_pairs import SMALLEST, Pairs, pairs_of
from common.trust.probes import letters_in, probes_of
from common.trust.quotes import quoted_targets
from common.trust.shifts import drawn_alike, separation, shifts

NEAR_DUPLICATES = "near-duplicates"  # as a group of --group
PAIRS_FILE, TRUST_FILE = "near_duplicates.csv", "trust.json"
AT_ONCE = {True: 1_000, False: 10_000}  # pictures that are compared unasked: aligned, and as they are; a few seconds
SMALLEST_DRAWING = 16  # px: smaller ones are told apart by too few pixels
DIVIDED = 0.05  # share of the rows with a near-duplicate in another fold, above which the score is untrue
GIANT = 0.1  # share of the rows in one group of near-duplicates, above which somebody should look at it
MOST_LINES = 8
MOST_NAMED = 20  # of the columns that differ
DOC = "docs/trust.md"


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    kind: str  # near-duplicates, leak or shift
    alarm: bool  # the score is not what it seems; else a note
    text: str
    details: Sequence[str] = ()  # a line each, where there is room

    def __str__(self) -> str:
        return f"{'alarm' if self.alarm else 'note'}: {self.text}"


@dataclass(frozen=True)
class Verdict:
    """What was looked at and what was found."""

    looked_at: list[str]
    findings: list[Finding]

    @property
    def alarms(self) -> list[Finding]:
        """What makes a score untrue."""
        return [finding for finding in self.findings if finding.alarm]

    def lines(self, is_alone: bool = True) -> list[str]:
        """At most eight lines for a terminal; not ``is_alone``: what the folds file itself shows was said before."""
        state = f"{len(self.alarms)} alarms" if len(self.alarms) > 1 else "an alarm" if self.alarms else "no alarm"
        state += "" if is_alone else " beside what is said above"
        ordered = sorted(self.findings, key=lambda finding: not finding.alarm)
        said = [(at, 0, str(finding)) for at, finding in enumerate(ordered)]
        for at, finding in enumerate(ordered):
            said += [(at, place, f"  {detail}") for place, detail in enumerate(finding.details, start=1)]
        shown = said if len(said) < MOST_LINES else said[: MOST_LINES - 2]
        lines = [f"trust        {state}; looked at {', '.join(self.looked_at)} ({DOC})"]
        lines += [line for _, _, line in sorted(shown)]
        if len(shown) < len(said):
            lines.append(f"and {len(said) - len(shown)} more in {TRUST_FILE}")
        return lines


# ---- near-duplicates


@dataclass(frozen=True)
class LookAlikes:
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
    return not found or len(table.ids) + (len(test.ids) if test else 0) <= AT_ONCE[found[1]]


def find_near_duplicates(table: Table, test: Table | None) -> LookAlikes | None:
    """The near-duplicates of a table and of the test rows; None where the pictures cannot be compared."""
    both = [pictures_of(each) for each in (table, test) if each]
    if None in both or len({(each[0].shape[1:], each[1]) for each in both}) > 1:
        return None
    pictures = np.concatenate([each[0] for each in both])
    return LookAlikes(pairs_of(pictures, both[0][1], cpu_count()), len(table.ids))


def as_groups(table: Table, found: LookAlikes) -> np.ndarray:
    """The group of each train row, text (n): the id of its first near-duplicate, or its own."""
    pairs = found.within_train()
    groups = groups_of(pairs.first, pairs.second, len(table.ids))
    first = np.unique(groups, return_index=True)[1]
    return table.ids[first[groups]]


def joined_groups(table: Table, names: Sequence[str], found: LookAlikes | None) -> tuple[Table, str]:
    """The table with one column whose equal cells stay in one fold, and that column's name.

    Rows that share a value of any of the named columns are tied, one to the next; an empty cell ties nobody.

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
    groups = groups_of(*np.concatenate(links).T, len(table.ids))
    first = np.unique(groups, return_index=True)[1]
    called = " and ".join(names)
    return replace(table, columns=table.columns | {called: table.ids[first[groups]]}), called


def near_duplicate_findings(table: Table, test: Table | None, folds: Folds, found: LookAlikes) -> list[Finding]:
    """What the pairs do to a score on these folds."""
    inner, outer = found.within_train(), found.with_test()
    findings = []
    if len(inner):
        fold, label = fold_of(folds, table), table.labels
        divided = fold[inner.first] != fold[inner.second]
        rows = np.unique(np.concatenate([inner.first[divided], inner.second[divided]]))
        sizes = np.bincount(groups_of(inner.first, inner.second, found.n))
        groups = int(np.count_nonzero(sizes > 1))
        text = f"{len(inner):,} near-duplicate pair{'s' * (len(inner) > 1)} among the training rows, "
        text += f"in {groups:,} group{'s' * (groups > 1)}, the largest of {sizes.max()} rows ({PAIRS_FILE})"
        if divided.any():
            text += (
                f"; the folds divide {divided.sum():,}, so {len(rows):,} of {found.n:,} rows are predicted by models "
            )
            text += f"that saw their like: keep them together with --group {NEAR_DUPLICATES}"
        else:
            text += "; no fold divides one"
        if (two := label[inner.first] != label[inner.second]).any():
            named = ", ".join(f"{table.ids[a]} and {table.ids[b]}" for a, b in _some(inner, two))
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


def _some(pairs: Pairs, kept: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(pairs.first[kept][:2].tolist(), pairs.second[kept][:2].tolist(), strict=True))


def fold_of(folds: Folds, table: Table) -> np.ndarray:
    """The fold of each of the table's rows, int64 (n); -1 also where the folds file lacks it."""
    known = dict(zip(folds.ids, folds.fold.tolist(), strict=True))
    return np.array([known.get(name, -1) for name in table.ids])


def write_pairs(path: Path, table: Table, test: Table | None, folds: Folds, found: LookAlikes) -> None:
    """Write the pairs, likeness first, with folds and labels of both sides."""
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
    write_file(path, file.getvalue())


# ---- leaks and shift


def leak_findings(table: Table, test: Table | None = None, task: Task = MULTICLASS) -> list[Finding]:
    """What the probes tell of the label, and the columns of a table of features that hold it."""
    probes = probes_of(table)
    if not (test and np.isin(letters_in(test), letters_in(table)).mean() > 0.5):
        probes.pop("name_letters", None)  # train files that are called by their class tell nothing of the test
    alike = drawn_alike(probes, probes_of(test)) if test else set()
    found = strongest(told_by(probes, table.labels))
    findings = [
        Finding("leak", told.is_alarm, in_words(told, others, told.probe in alike))
        for told, others in found
        if told.is_alarm or (told.share >= 0.02 and told.probe not in ("mean", "spread", "colour"))
    ]
    if table.plan and (said := label_columns(table, task)):
        findings.append(Finding("leak", True, said))
    return findings


def shift_findings(table: Table, test: Table, found: LookAlikes | None) -> list[Finding]:
    """What tells the test rows from the training rows; of near-duplicates one counts, or they would fake a shift."""
    parts = [probes_of(each) for each in (table, test)]
    if table.plan:
        parts = [part | columns_of(each, table.plan) for part, each in zip(parts, (table, test), strict=True)]
    if found and len(found.pairs):
        groups = groups_of(found.pairs.first, found.pairs.second, len(table.ids) + len(test.ids))
        kept = [np.unique(each, return_index=True)[1] for each in (groups[: found.n], groups[found.n :])]
        parts = [{name: values[rows] for name, values in part.items()} for part, rows in zip(parts, kept, strict=True)]
    differ = shifts(*parts)
    if not differ:
        return []
    auc, half = separation(*parts)
    text = f"train and test differ in {differ[0]} (medians)"
    if len(differ) > 1:
        text += f" and in {len(differ) - 1} more"
    text += f"; a forest tells them apart with an AUC of {auc:.2f} (0.50 ± {half:.2f} by chance): "
    return [Finding("shift", True, text + "OOF scores may not hold", [*map(str, differ[1:MOST_NAMED])])]


# ---- all of it


def judge(table: Table, test: Table | None, folds: Folds, found: LookAlikes | None, later: str = "") -> Verdict:
    """Look at all that there is; ``later``: the command that looks for near-duplicates, where that takes long."""
    looked_at = ["the order of the rows and what their files say, against the label"]
    if table.plan:
        looked_at.append("columns that hold the label")
    findings = [] if found is None else near_duplicate_findings(table, test, folds, found)
    if found:
        looked_at.insert(0, "near-duplicates")
    findings += leak_findings(table, test, folds.task)
    findings += [Finding("leak", True, said) for said in quoted_targets(folds, table)]
    if test:
        looked_at.append("train against test")
        findings += shift_findings(table, test, found)
    if later:
        looked_at.append(f"not yet at near-duplicates ({later} does)")
    return Verdict(looked_at, findings)


def write_verdict(folds_file: Path, verdict: Verdict, table: Table, test: Table | None, folds: Folds, found) -> None:
    """Write trust.json and, where pairs were looked for, near_duplicates.csv beside the folds file."""
    write_json(beside_folds(folds_file, TRUST_FILE), asdict(verdict))
    if found:
        write_pairs(beside_folds(folds_file, PAIRS_FILE), table, test, folds, found)


def read_verdict(folds_file: Path) -> Verdict | None:
    """What folds.py wrote beside its file, or None."""
    path = beside_folds(folds_file, TRUST_FILE)
    if not path.is_file():
        return None
    said = read_json(path, looked_at=list, findings=list)
    return Verdict(said["looked_at"], [Finding(**each) for each in said["findings"]])


def beside_folds(folds_file: Path, name: str) -> Path:
    """Where a file of a folds file lies: of other.csv it is called other.<name>."""
    return folds_file.with_name(name if folds_file.stem == "folds" else f"{folds_file.stem}.{name}")
