"""Deal a train table's rows to folds, once: python folds.py --data train.csv.gz --k 5

Everything later reads the file written here, so every model is scored on the same rows. Exact copies of an image
go into one fold. `python folds.py --check --data train.csv.gz --test test.csv.gz` audits a folds file against its
data and ends with exit code 1 where it finds something.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from common.base.cli import parse
from common.base.errors import UserError, run_script, warn
from common.base.result import Result
from common.base.system import cpu_count
from common.data.dealing import Split, make_folds
from common.data.decoding import check_photos
from common.data.folds import Folds, changed_rows, folds_text, leaks, read_folds, write_folds
from common.data.tables import EMBEDDED, Table, read_test_table, read_train_table


@dataclass(frozen=True)
class Options:
    """Write folds.csv (id,label,fold,row_sha[,group]), or audit it: python folds.py [--check]"""

    data: str = "digits"  # train table (.csv, .csv.gz), folder of class folders, or digits (embedded)
    test: str = ""  # test table or folder of images whose rows must not be among the training rows
    folds: str = "folds.csv"  # the file to write or to check
    k: int = 5  # number of folds
    split: Split = "stratified"  # column: folds made by others; holdout: one of k parts validates, the rest train
    group: str = ""  # column whose equal values stay in one fold
    fold_column: str = ""  # column with the folds made by others
    seed: int = 0  # for the shuffle before rows are dealt
    rare: Literal["error", "train"] = "error"  # classes with fewer than k images: refuse, or only train on them
    force: bool = False  # replace a folds file that differs
    check: bool = False  # audit the folds file instead of writing it


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv)
    result = run(options)
    if options.check and result.score["findings"]:
        sys.exit(1)


def run(options: Options) -> Result:
    """Write the folds file, or audit it; the number of rows and of findings, and the file's folder.

    Raises:
        UserError: options that contradict each other; a table that cannot be read; another folds file stands there.
    """
    check_options(options)
    table = read_train_table(options.data)
    test = read_test_table(options.test, options.data) if options.test or options.data == EMBEDDED else None
    for photos in (table, test):
        if photos is not None and photos.of_photos:
            check_photos(photos, cpu_count())
    path = Path(options.folds)
    if options.check:
        found = audit(path, table, test)
    else:
        folds = make_folds(
            table, options.k, options.split, options.group, options.fold_column, options.seed, options.rare
        )
        write_once(path, folds, options.force)
        print(summary(table, folds))
        found = leaks(folds, test)
        for finding in found:
            warn(finding)
    return Result({"rows": len(table.ids), "findings": len(found)}, path.parent)


def check_options(options: Options) -> None:
    """Refuse flags that contradict each other or would have no effect."""
    path, used = "", [field.name for field in fields(Options)]
    if options.check:
        path, used = "--check", ["data", "test", "folds", "check"]
    elif options.split == "column":
        path, used = "--split column", ["data", "test", "folds", "split", "fold_column", "group", "force"]
    for field in fields(Options):
        if field.name not in used and getattr(options, field.name) != field.default:
            raise UserError(f"--{field.name.replace('_', '-')}", f"has no effect with {path}", "leave it out")
    if options.k < 2:
        raise UserError("--k", f"{options.k} is too few", "use 2 or more")
    grouped = options.split in ("group", "stratified-group")
    if grouped and not options.group:
        raise UserError("--group", f"is needed by --split {options.split}", "name the column")
    if options.group and not grouped and options.split != "column":
        remedy = "use --split group or --split stratified-group"
        raise UserError("--group", f"has no effect with --split {options.split}", remedy)
    if (options.split == "column") != bool(options.fold_column):
        raise UserError("--fold-column", "goes with --split column", "give both or neither")


def write_once(path: Path, folds: Folds, force: bool) -> None:
    """Write the folds file unless it stands there already; a different one is replaced only by ``force``."""
    if path.is_dir():
        raise UserError("--folds", f"{path} is a folder", "name a file, such as folds.csv")
    if path.is_file() and not force:
        if path.read_text(encoding="utf-8", errors="replace") != folds_text(folds):
            what = "holds different folds, and scores on different folds files cannot be compared"
            raise UserError(str(path), what, "use it as it is, write to another --folds, or replace it with --force")
        print(f"{path} already exists with these folds")
    else:
        write_folds(path, folds)
        print(f"{path} written")


def summary(table: Table, folds: Folds) -> str:
    """What was dealt, in a few lines."""
    copies = len(folds.ids) - len(set(folds.row_shas))
    sizes = [int(np.sum(folds.fold == number)) for number in range(folds.count)]
    lines = [
        f"data         {table.source}: {len(folds.ids):,} rows, {len(folds.classes)} classes, {copies:,} exact copies",
        f"folds        {folds.count}, of {', '.join(f'{size:,}' for size in sizes)} rows",
        f"fingerprint  {folds.fingerprint[:16]}",
    ]
    if always := int(np.sum(folds.fold < 0)):
        lines.insert(2, f"no fold      {always:,} rows that are only trained on")
    return "\n".join(lines)


def audit(path: Path, table: Table, test: Table | None) -> list[str]:
    """Print and return every finding, or say what was checked."""
    folds = read_folds(path)
    findings = changed_rows(folds, table) + leaks(folds, test)
    for finding in findings:
        print(f"{path}: {finding}")
    if findings:
        return findings
    print(f"{path} is clean. Checked against {table.source}:")
    print(f"- {len(folds.ids):,} rows have the ids, labels and images the folds were made from, in any order")
    print("- no image lies in two folds or has two labels")
    if folds.groups.size:
        print(f"- none of {len(set(folds.groups)):,} groups lies in two folds")
    print(f"- each of {len(folds.classes)} classes has rows to train on in each of {folds.count} folds")
    print(
        f"- none of {len(test.ids):,} test rows is among them"
        if test
        else "- (no --test: not compared with a test set)"
    )
    return findings


if __name__ == "__main__":
    run_script(main)
