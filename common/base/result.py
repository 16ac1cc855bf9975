"""What the ``run`` of a script returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """The score that a script came to and the folder that holds its files."""

    score: dict[str, Any] | None  # metrics by name, or those of each run by the run's name; None: nothing to score
    folder: Path
