"""Deal a train table's rows to folds, once: python folds.py --data train.csv.gz --k 5

Everything later reads the file written here, so every model is scored on the same rows. Exact copies of an image
go into one fold. `python folds.py --check --data train.csv.gz --test test.csv.gz` audits a folds file against its
data and ends with exit code 1 where it finds something.
"""

import common  # noqa: F401  # isort: skip

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np

from common.base.cli import chosen, parse
from common.base.errors import UserError, run_script, warn
from common.base.result import Result
from common.base.strict_csv import names_in_header, read_columns
from common.base.system import cpu_count
from common.data.competition import (
    NOTHING_SAID,
    Competition,
    at_work,
    beside,
    competition_flags,
    next_command,
    read_competition,
    task_of,
    told,
    told_by_sample,
    work_flags,
    write_competition,
)
from common.data.dealing import Split, make_folds
from common.data.folds import Folds, by_pixels, changed_rows, folds_text, leaks, read_folds, split_rows, write_folds
from common.data.groups import with_groups
from common.data.image_folders import parts_of
from common.data.labels import refuse_numbers
from common.data.reading import EMBEDDED, read_test_table, read_train_table
from common.data.spelling import look_alikes
from common.data.stacks import MOST_CHANNELS
from common.data.table import Table
from common.data.utterances import UTTERANCE
from common.runs.forms import FORMS
from common.runs.submission import Wishes, form_line, read_form
from common.score.metrics import check_metric, check_positive, check_targets
from common.score.task import MULTICLASS, posed
from common.trust.judge import judge
from common.trust.near_duplicates import (
    NEAR_DUPLICATES,
    NearDuplicates,
    find_near_duplicates,
    grouped_by,
    is_quick,
    write_pairs,
)
from common.trust.verdict import write_verdict

INPUTS = {"images": "images", "photos": "images", "features": "features", "sequences": "sequences"}  # as said: read


@dataclass(frozen=True)
class Options(Competition):
    """Write folds.csv (id,label,fold,row_sha[,group]), or audit it: python folds.py [--check]"""

    COMMON = ("data", "images", "label_column", "test", "sample", "metric", "task", "group", "work", "check")
    data: str = "digits"
    inputs: tuple[str, ...] = ()  # what a row of the csv shows: photos, features or sequences (default: told from it)
    # where the folds lie
    work: str = "."  # folder of one competition, short for --folds DIR/folds.csv; later scripts take it too
    folds: str = "folds.csv"  # the file to write or to check
    # the folds
    k: int = 5  # number of folds
    split: Split = "stratified"  # column: folds made by others; folders: valid/ validates; holdout: one of k parts does
    # which rows stay together, and what to do in doubt
    group: tuple[str, ...] = ()  # columns whose equal values stay in one fold; near-duplicates: edited copies
    group_table: str = ""  # csv that has the groups' column where the train table has not; joined by the images' names
    fold_column: str = ""  # column with the folds made by others
    seed: int = 0  # for the shuffle before rows are dealt
    rare: Literal["error", "train"] = "error"  # classes with fewer than k images: refuse, or only train on them
    as_written: bool = False  # go on where labels or groups differ only in spaces, or 16-bit photos use few values
    force: bool = False  # replace a folds file that differs
    check: bool = False  # audit the folds file instead of writing it


# What says how a table is read: frames have none.
OF_TABLES = (
    "images",
    "image_suffixes",
    "image_column",
    "label_column",
    "label_columns",
    "label_from_name",
    "test_images",
)
OF_TABLES += ("positive", "inputs", "drop", "task", "separator", "fold_column", "time_column", "gap", "as_written")
SAID = (*(field.name for field in fields(Competition)), "as_written")  # what tells how files are read


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, known_flags)
    result = run(options)
    if options.check and result.score["findings"]:
        sys.exit(1)
    if not options.check:
        print(next_command("train_fold.py", options))


def known_flags(options: type, arguments: Sequence[str]) -> list[str]:
    """What need not be typed: an audit reads the files that the folds were made of."""
    return (competition_flags if "--check" in arguments else work_flags)(options, arguments)


def run(options: Options) -> Result:
    """Write the folds file, or audit it; the number of rows and of findings, and the file's folder.

    Raises:
        UserError: options that contradict each other; a table that cannot be read; another folds file stands there.
    """
    options = told(options) if options.check else at_work(options)
    check_options(options)
    competition = described(options)
    if competition.targets and not options.check:
        options = replace(options, group=options.group or (UTTERANCE,))  # neighbours are no strangers
    table, test = read_tables(options, competition)
    path = Path(options.folds)
    pairs = find_near_duplicates(table, test) if is_wanted(options, table, test) else None
    if options.check:
        found = audit(path, table, test, options.as_written)
        folds = read_folds(path)
    else:
        competition, table, folds = dealt(options, competition, table, pairs)
        found = leaks(by_pixels(folds, table), test)
    is_late = not is_wanted(options, table, test)
    later = next_command("folds.py", options, "--check").removeprefix("next: ") if is_late else ""
    verdict = judge(table, test, folds, pairs, later)  # before a file is written: it may refuse the test table
    if not options.check:
        write_once(path, folds, options.force)
        if competition != NOTHING_SAID or beside(options.folds).is_file():
            write_competition(beside(options.folds), competition)
        print(summary(table, folds, options, competition, test))
        for finding in found:
            warn(finding)
    print("\n".join(verdict.lines(is_alone=not found)))
    write_verdict(path, verdict)
    if pairs:
        write_pairs(path, table, test, folds, pairs)
    found = [*found, *map(str, verdict.alarms)]
    return Result({"rows": len(table.ids), "findings": len(found)}, path.parent)


def dealt(
    options: Options, competition: Competition, table: Table, pairs: NearDuplicates | None
) -> tuple[Competition, Table, Folds]:
    """What is known of the competition once its table is read, the table with its rows' groups, and their folds."""
    competition = replace(competition, separator=table.separator or competition.separator)
    if task_of(competition).is_number and not competition.target_columns:
        competition = replace(competition, label_column=table.label_name)
    task = posed(competition.task or MULTICLASS.name, columns=competition.target_columns)
    if table.inputs == "features" and table.id_name in names_in_header(Path(options.data)):
        competition = replace(competition, inputs="features", image_column=table.id_name)
    names = {name for label in table.labels for name in task.names_in(label)}
    groups = [cell for name in options.group for cell in table.columns.get(name, ())]
    for finding in [] if options.as_written else spellings(names, groups):
        remedy = "correct a copy of the table (--images says where its photos lie), or keep both with --as-written"
        raise UserError(table.source, finding, remedy)
    if not competition.task:
        refuse_numbers(table.source, table.labels, options.k, table.label_name)
    table, group = grouped_by(table, options.group, pairs)
    column = options.time_column or options.fold_column
    folds = make_folds(table, options.k, split_of(options), group, column, options.seed, options.rare, task)
    if competition.metric:
        check_metric(competition.metric, folds.output_names, folds.task.metrics)
        check_targets(competition.metric, folds.targets)
    check_positive(competition.positive, folds.output_names)
    return competition, table, replace(folds, gap=options.gap)


def split_of(options: Options) -> Split:
    """How rows are dealt: with groups, the default keeps them together."""
    return "stratified-group" if options.group and options.split == "stratified" else options.split


def is_wanted(options: Options, table: Table, test: Table | None) -> bool:
    """Whether near-duplicates are looked for now: asked for, or a matter of seconds."""
    return options.check or NEAR_DUPLICATES in options.group or is_quick(table, test)


def described(options: Options) -> Competition:
    """What is said of the competition's files: by flags, or, where they are silent, when the folds were made."""
    before = read_competition(beside(options.folds)) if options.check else NOTHING_SAID
    said = {field.name: getattr(options, field.name) for field in fields(Competition)}
    said["inputs"] = kind_of(options.inputs)
    defaults = {name: getattr(Options, name) for name in said} | {"inputs": ""}
    given = replace(before, **{name: value for name, value in said.items() if value != defaults[name]})
    if options.split == "folders" and not given.images:
        parts = parts_of(Path(options.data)) if os.path.isdir(options.data) else {}
        if not {"train", "valid"} <= parts.keys():
            what = f"{options.data} has no two folders called train and valid"
            raise UserError("--split folders", what, "name the two with --images")
        given = replace(given, images=(str(parts["train"]), str(parts["valid"])))
    return given if options.check else told_by_sample(given)


def kind_of(inputs: str | Sequence[str]) -> str:
    """What --inputs says that a row shows; empty where it says nothing.

    Raises:
        UserError: an unknown word; two kinds at once, which no model takes.
    """
    words = [inputs] if isinstance(inputs, str) else inputs
    kinds = {chosen("inputs", word, INPUTS) for word in words if word}
    if len(kinds) > 1:
        what = f"no model takes {' and '.join(sorted(kinds, reverse=True))} of a row together"
        raise UserError("--inputs", what, f"choose one: {' or '.join(f'--inputs {kind}' for kind in sorted(kinds))}")
    return "".join(kinds)


def read_tables(options: Options, competition: Competition) -> tuple[Table, Table | None]:
    """The train table and the test table, if there is one, with every photo decoded once."""
    if competition.sample:
        read_columns(Path(competition.sample))
    table, test = read_train_table(options.data, competition), None
    if table.inputs == "features":  # a test table without labels may have too few columns to tell
        competition = replace(competition, inputs=table.inputs)
    for name in ("images", "test_images", "image_suffixes") if not table.kind.of_any_size else ():
        if getattr(options, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(flag, f"is for photos, but {table.source} has {table.inputs}", "leave it out")
    if options.group_table:
        for name in options.group:
            inside = name == NEAR_DUPLICATES or name in table.columns
            table = table if inside else with_groups(table, Path(options.group_table), name)
    if options.test or options.data == EMBEDDED:
        test = read_test_table(options.test, options.data, options.sample, competition)
    if test and test.inputs == table.inputs:
        table, test = table.kind.checked([table, test], cpu_count(), options.as_written)
    else:
        [table] = table.kind.checked([table], cpu_count(), options.as_written)
    return table, test


def spellings(labels: Iterable[str], groups: Iterable[str]) -> list[str]:
    """Labels, and groups, that somebody may have meant as one: a line each; labels may differ in case."""
    for finding in set(look_alikes(labels, "label", any_case=True)) - set(look_alikes(labels, "label")):
        warn(finding)
    return look_alikes(labels, "label") + look_alikes(groups, "group", any_case=True)


def check_options(options: Options) -> None:
    """Refuse flags that contradict each other or would have no effect."""
    path, used = "", [field.name for field in fields(Options)]
    if options.check:
        path, used = "--check", ["data", "test", "work", "folds", "check", *SAID]
    elif options.split == "column":
        path = "--split column"
        used = ["data", "test", "work", "folds", "split", "fold_column", "group", "group_table", "force", *SAID]
    elif options.split == "folders":
        path, used = "--split folders", ["data", "test", "work", "folds", "split", "force", *SAID]
    elif options.split == "time":
        path, used = "--split time", ["data", "test", "work", "folds", "split", "k", "force", *SAID]
    if options.targets:
        path = path or f"--targets {options.targets}"
        used = [name for name in used if name not in OF_TABLES]
    for field in fields(Options):
        if field.name not in used and getattr(options, field.name) != field.default:
            raise UserError(f"--{field.name.replace('_', '-')}", f"has no effect with {path}", "leave it out")
    if options.separator and not task_of(options).is_of_sets:
        raise UserError("--separator", "has no effect without --task multilabel", "leave it out")
    if options.k < 2:
        raise UserError("--k", f"{options.k} is too few", "use 2 or more")
    grouped = options.split in ("group", "stratified-group")
    if grouped and not options.group:
        raise UserError("--group", f"is needed by --split {options.split}", "name the column")
    if options.group and not grouped and options.split not in ("column", "stratified"):
        remedy = "use --split group or --split stratified-group"
        raise UserError("--group", f"has no effect with --split {options.split}", remedy)
    if options.image_suffixes and not 2 <= len(options.image_suffixes) <= MOST_CHANNELS:
        what = f"{len(options.image_suffixes)} files cannot be the channels of an image"
        raise UserError("--image-suffixes", what, f"name 2 to {MOST_CHANNELS}, such as _red _green _blue _yellow")
    if options.group_table and not options.group:
        raise UserError("--group-table", "has no effect without --group", "name its column with the groups")
    if (options.split == "time") != bool(options.time_column) and not options.check:
        raise UserError("--time-column", "goes with --split time", "give both or neither")
    if options.gap < 0 or (options.gap and options.split != "time" and not options.check):
        raise UserError("--gap", "is a time from 0, between the blocks of --split time", "correct it or leave it out")
    if (options.split == "column") != bool(options.fold_column):
        raise UserError("--fold-column", "goes with --split column", "give both or neither")


def write_once(path: Path, folds: Folds, force: bool) -> None:
    """Write the folds file unless it stands there already; a different one is replaced only by ``force``."""
    if path.is_dir():
        raise UserError("--folds", f"{path} is a folder", "name a file, such as folds.csv")
    if path.is_file() and not force:
        is_other = path.read_text(encoding="utf-8", errors="replace") != folds_text(folds)
        if is_other or (folds.times.size and read_competition(beside(str(path))).gap != folds.gap):
            what = "holds different folds, and scores on different folds files cannot be compared"
            remedy = "use it as it is, give another competition its own folder with --work, or replace it with --force"
            raise UserError(str(path), what, remedy)
        print(f"{path} already exists with these folds")
    else:
        write_folds(path, folds)
        print(f"{path} written")


def summary(table: Table, folds: Folds, options: Options, competition: Competition, test: Table | None) -> str:
    """What was dealt, in a few lines, each with the flag that changes it."""
    copies = len(folds.ids) - len(set(by_pixels(folds, table).row_shas))
    sizes = [int(np.sum(folds.fold == number)) for number in range(folds.count)]
    lines = [
        f"data         {table.source}: {len(folds.ids):,} rows, {folds.says_outputs}, {copies:,} exact copies",
        *table.taken,
        *([f"test         {test.source}: {len(test.ids):,} rows (--test)"] if test else []),
        *([f"sample       {asked_for(folds, competition, test)}"] if competition.sample and test else []),
        f"metric       {competition.metric or folds.task.metrics[0]} (--metric)",
        f"split        {split_of(options)} (--split)",
        *([f"groups       {tied_by(options.group)}: {len(set(folds.groups)):,} (--group)"] if options.group else []),
        *([f"time         {time_line(folds, competition)}"] if folds.times.size else []),
        f"folds        {folds.count}, of {', '.join(f'{size:,}' for size in sizes)} rows (--k)",
        f"fingerprint  {folds.fingerprint[:16]}",
    ]
    if always := int(np.sum(folds.fold < 0)):
        lines.insert(-1, f"no fold      {always:,} rows that are only trained on")
    return "\n".join(lines)


def tied_by(group: Sequence[str]) -> str:
    """What ties rows of one group, in words."""
    columns = [f"column {name}" for name in group if name != NEAR_DUPLICATES]
    return " and ".join([*columns, *(["near-duplicate pictures"] if NEAR_DUPLICATES in group else [])])


def time_line(folds: Folds, competition: Competition) -> str:
    """The blocks of time, and what their gap costs."""
    ends = [folds.times[np.argsort(folds.moments, kind="stable")[rows]] for rows in (0, -1)]
    left_out = [len(folds.ids) - sum(map(len, split_rows(folds, str(k), 1.0, 0))) for k in range(folds.count)]
    return (
        f"column {competition.time_column} (--time-column), blocks from {ends[0]} to {ends[1]}; "
        f"a gap of {folds.gap:g} (--gap) keeps {min(left_out):,} to {max(left_out):,} rows out of a fold's training"
    )


def asked_for(folds: Folds, competition: Competition, test: Table) -> str:
    """What the sample submission asks for; where it cannot be told a warning says why: it stops predictions alone."""
    wishes = Wishes(positive=competition.positive, metric=competition.metric, separator=competition.separator)
    try:
        sheet = read_form(competition.sample, test.ids, folds.output_names, folds.task, wishes)
    except UserError as error:
        warn(str(error))
        return f"{competition.sample}: does not fit, as warned; train_fold.py needs none, infer.py does (--sample)"
    return f"{competition.sample}: {form_line(sheet) or FORMS[sheet.form].words + ' (--sample)'}"


def audit(path: Path, table: Table, test: Table | None, as_written: bool) -> list[str]:
    """Print and return every finding, or say what was checked."""
    folds = read_folds(path)
    findings = changed_rows(folds, table) + leaks(by_pixels(folds, table), test)
    names = {name for label in folds.labels for name in folds.task.names_in(label)}
    findings += [] if as_written else spellings(names, folds.groups)
    for finding in findings:
        print(f"{path}: {finding}")
    if findings:
        return findings
    print(f"{path} fits {table.source}:")
    print(f"- {len(folds.ids):,} rows have the ids, labels and images the folds were made from, in any order")
    print("- no exact copies lie in different folds or have different labels")
    if folds.groups.size:
        print(f"- none of {len(set(folds.groups)):,} groups lies in two folds")
    print(f"- each of {folds.says_outputs} has rows to train on in each of {folds.count} folds")
    print(
        f"- none of {len(test.ids):,} test rows is an exact copy of one of them"
        if test
        else "- (no --test: not compared with a test set)"
    )
    return findings


if __name__ == "__main__":
    run_script(main)
