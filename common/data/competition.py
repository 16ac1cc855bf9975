"""A competition, described once: what its files are, and what their columns mean.

folds.py writes it as competition.json beside the folds file; what is not said is empty, and told from the files.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from common.base.cli import flag_of, flags_of, value_of
from common.base.errors import UserError
from common.base.files import read_json, write_json
from common.base.strict_csv import names_in_header
from common.base.system import is_job, rank
from common.score.task import MULTICLASS, TASKS, Task

T = TypeVar("T")

COMPETITION_FILE = "competition.json"
PLACES = {"folds": "folds.csv", "runs_dir": "runs", "out": "report.html"}  # what --work is the folder of
# What a script must be told where competition.json does not say it.
NEEDS = {
    "folds.py": ("data", "test", "sample", "folds"),
    "train_fold.py": ("data", "folds", "runs_dir"),
    "infer.py": ("data", "test", "sample", "folds", "runs_dir"),
    "ensemble.py": ("sample", "folds", "runs_dir", "out_dir"),
    "report.py": ("data", "folds", "runs_dir"),
}


@dataclass(frozen=True)
class Competition:
    """What a user says of a competition's files: flags of folds.py, whose --help shows these comments."""

    # where it lies
    data: str = ""  # train table (.csv, .csv.gz), folder of class folders, or digits (embedded)
    test: str = ""  # test table or folder of images whose rows must not be among the training rows
    # what the files hold
    images: tuple[str, ...] = ()  # folders that hold the train table's photos, at any depth (default: beside it)
    image_suffixes: tuple[str, ...] = ()  # several files are one image, a grey one a channel: _red _green _blue _yellow
    image_column: str = ""  # column that names the photos or rows (default: image, id ... or the one with files' names)
    label_column: str = ""  # column with the labels (default: label, predict, target or class, in any case)
    label_columns: tuple[str, ...] = ()  # several in place of it: one-hot, 0/1 of each label, or several numbers a row
    label_from_name: str = ""  # regular expression: its one group is the label in an image's name or path
    test_images: tuple[str, ...] = ()  # folders with the test table's photos
    sample: str = ""  # sample submission: names the images of a test folder, and the ids of a test table
    positive: str = ""  # class whose probability the sample asks for, where it is one of two
    inputs: str = ""  # what a row of the csv shows: images, features or sequences (default: told from it)
    targets: Literal["", "frames"] = ""  # frames: a class for each frame of the sequences in a folder (docs/tasks.md)
    drop: tuple[str, ...] = ()  # columns that are no features of a row
    task: Literal["", *TASKS] = ""  # an answer: a class (default), a set, numbers
    separator: str = ""  # between the names of a label set in one cell (default: told from the cells)
    metric: str = ""  # what the competition scores by: accuracy, nll, auc, macro_f1, quadratic_kappa, map@5, rmse ...
    time_column: str = ""  # column of numbers or dates: with --split time the folds are blocks in its order
    gap: float = 0.0  # of time, in its unit or in days: rows as near to a block train no model that it validates

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The columns that were named as labels."""
        return self.label_columns or tuple(filter(None, [self.label_column]))


NOTHING_SAID = Competition()


def task_of(competition: Competition) -> Task:
    """What an answer is."""
    return TASKS[competition.task or MULTICLASS.name]


def beside(folds: str) -> Path:
    """Where the competition that a folds file belongs to is described: of other.csv in other.competition.json."""
    path = Path(folds)
    return path.with_name(COMPETITION_FILE if path.stem == "folds" else f"{path.stem}.{COMPETITION_FILE}")


def work_flags(options: type, arguments: Sequence[str]) -> list[str]:
    """What --work DIR is short for, as far as a script has it: --folds DIR/folds.csv --runs-dir DIR/runs."""
    work, known = value_of("--work", arguments), [field.name for field in fields(options)]
    flags = [flag_of(name, os.path.join(work, file)) for name, file in PLACES.items() if work and name in known]
    return [word for words in flags for word in words]


def competition_flags(options: type, arguments: Sequence[str]) -> list[str]:
    """What --work and competition.json say as flags, as far as a script has them; ``arguments`` name the folds file."""
    known, places = {field.name: field for field in fields(options)}, work_flags(options, arguments)
    if "folds" not in known:
        return places
    path = beside(value_of("--folds", [*places, *arguments]) or known["folds"].default)
    said = asdict(read_competition(path))
    typed = {argument.partition("=")[0].removeprefix("--").replace("-", "_") for argument in arguments}
    names = [name for name, value in said.items() if value and name in known and name not in typed]
    if "--score-tta" in arguments:  # predicts no test row
        names = [name for name in names if name not in ("test", "sample")]
    flags = [flag_of(name, said[name]) for name in names]
    if flags and not is_job() and rank() == 0:
        print(f"{path} says: {' '.join(word for words in flags for word in words)}")
    return places + [word for words in flags for word in words]


def at_work(options: T) -> T:
    """Options built in a notebook, with the places in their ``work`` folder; those of a command line as they are."""
    places = {name: file for name, file in PLACES.items() if hasattr(options, name)}
    if options.work == "." or any(getattr(options, name) != file for name, file in places.items()):
        return options
    return replace(options, **{name: os.path.join(options.work, file) for name, file in places.items()})


def told(options: T) -> T:
    """Options built in a notebook, with what their ``work`` folder says of the competition where they say nothing.

    A setting that has its default counts as not said. :func:`competition_flags` has told those of a command line.
    """
    placed = at_work(options)
    if placed is options:
        return options
    unsaid = {field.name for field in fields(options) if getattr(options, field.name) == field.default}
    said = asdict(read_competition(beside(placed.folds)))
    said = {name: value for name, value in said.items() if value and name in unsaid}
    if said:
        print(f"{beside(placed.folds)} says: {' '.join(word for item in said.items() for word in flag_of(*item))}")
    return replace(placed, **said)


def told_by_sample(competition: Competition) -> Competition:
    """With the label columns where no flag names them and the train table has those that the sample asks for."""
    said = competition.label_column or competition.label_columns or competition.label_from_name
    if said or not competition.sample or not os.path.isfile(competition.data):
        return competition
    answers = names_in_header(Path(competition.sample))[1:]
    columns = names_in_header(Path(competition.data))
    if not answers or not set(answers) <= set(columns):
        return competition
    if len(answers) == 1:
        return replace(competition, label_column=answers[0])
    return replace(competition, label_columns=tuple(answers))


def next_command(script: str, options: Any, *flags: str) -> str:
    """The command line that comes next, with the files of this one's ``options`` as far as it has to be told them."""
    said = asdict(read_competition(beside(options.folds)))
    usual = {"data": "digits", "test": "", "sample": "", "out_dir": ""}
    usual |= {name: os.path.normpath(os.path.join(options.work, file)) for name, file in PLACES.items()}
    words = [] if options.work == "." else ["--work", options.work]
    for name in NEEDS[script]:
        value = getattr(options, name, usual[name])
        if os.path.normpath(value) != os.path.normpath(usual[name]) and value != said.get(name):
            words += flag_of(name, value)
    data = said["data"] or getattr(options, "data", usual["data"])
    if script == "infer.py" and data != usual["data"] and not (said["test"] or "--test" in words):
        words += ["--test", "TEST"]
    return f"next: {shlex.join(['python', script, *words, *flags])}"


def settings_flags(cfg: Any) -> list[str]:
    """The flags that say a training's settings, for all folds; not its places, nor what competition.json says."""
    said = asdict(read_competition(beside(cfg.folds)))
    usual = {field.name: field.default for field in fields(cfg)}
    left_out = {"fold", "config", "restart", "work", "data", *PLACES}
    left_out |= {name for name, value in said.items() if value == getattr(cfg, name, None)}
    return flags_of(replace(cfg, **{name: usual[name] for name in left_out & usual.keys()}))


def write_competition(path: Path, competition: Competition) -> None:
    """Write it as JSON, without what was not said."""
    write_json(path, {name: value for name, value in asdict(competition).items() if value})


def read_competition(path: Path) -> Competition:
    """Read competition.json; nothing is known where there is none.

    Raises:
        UserError: it is damaged, or has an entry of another kind or name.
    """
    if not os.path.isfile(path):
        return NOTHING_SAID
    return _competition_of(path, read_json(path))


def _competition_of(path: Path, said: Mapping[str, Any]) -> Competition:
    kinds = {field.name: type(field.default) for field in fields(Competition)}
    for name, value in said.items():
        kind = {tuple: list, float: (int, float)}.get(kinds.get(name), kinds.get(name))
        if kind is None or not isinstance(value, kind):
            raise UserError(str(path), f"has no valid {name}", "make it again with folds.py")
    if said.get("task", "") not in ("", *TASKS):
        raise UserError(
            str(path), f"is of the task {said['task']}, which this version does not know", "use a newer one"
        )
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    return Competition(**values)
