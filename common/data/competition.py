"""A competition, described once: what its files are, and what their columns mean.

folds.py writes it as competition.json beside the folds file; what is not said is empty, and told from the files.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common.base.cli import flag_of, value_of
from common.base.errors import UserError
from common.base.files import read_json, write_json
from common.jobs.process import STARTED_BY_US
from common.score.task import TASKS

COMPETITION_FILE = "competition.json"


@dataclass(frozen=True)
class Competition:
    """What a user says of a competition's files; flags of the same names say it."""

    data: str = ""  # train table, or folder of class folders
    images: tuple[str, ...] = ()  # folders that hold the train table's photos
    image_column: str = ""  # the column that names the images, or a pixel table's rows
    label_column: str = ""
    label_columns: tuple[str, ...] = ()  # one-hot columns: the class is the one that is 1
    label_from_name: str = ""  # regular expression whose one group is the label in an image's name
    test: str = ""  # test table, or folder of images
    test_images: tuple[str, ...] = ()  # folders that hold the test table's photos
    sample: str = ""  # sample submission
    positive: str = ""  # class whose probability is asked for
    task: str = ""  # what an answer is, of TASKS (common/score/task.py); empty: multiclass
    separator: str = ""  # between the names of a label set


NOTHING_SAID = Competition()


def beside(folds: str) -> Path:
    """Where the competition that a folds file belongs to is described: of other.csv in other.competition.json."""
    path = Path(folds)
    return path.with_name(COMPETITION_FILE if path.stem == "folds" else f"{path.stem}.{COMPETITION_FILE}")


def competition_flags(options: type, arguments: Sequence[str]) -> list[str]:
    """What competition.json says as flags, as far as a script has them; ``arguments`` name the folds file."""
    known = {field.name: field for field in fields(options)}
    if "folds" not in known:
        return []
    path = beside(value_of("--folds", arguments) or known["folds"].default)
    said = asdict(read_competition(path))
    typed = {argument.partition("=")[0].removeprefix("--").replace("-", "_") for argument in arguments}
    names = [name for name, value in said.items() if value and name in known and name not in typed]
    if "--score-tta" in arguments:  # predicts no test row
        names = [name for name in names if name not in ("test", "sample")]
    flags = [flag_of(name, said[name]) for name in names]
    if flags and STARTED_BY_US not in os.environ and os.environ.get("RANK", "0") == "0":
        print(f"{path} says: {' '.join(word for words in flags for word in words)}")
    return [word for words in flags for word in words]


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
        kind = list if kinds.get(name) is tuple else kinds.get(name)
        if kind is None or not isinstance(value, kind):
            raise UserError(str(path), f"has no valid {name}", "make it again with folds.py")
    if said.get("task", "") not in ("", *TASKS):
        raise UserError(
            str(path), f"is of the task {said['task']}, which this version does not know", "use a newer one"
        )
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    return Competition(**values)
