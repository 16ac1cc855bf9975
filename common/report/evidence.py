"""All that a report speaks of: the runs, blends and sweeps of one competition, and how they compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from common.data.folds import Folds
from common.data.tables import Table
from common.report.evaluation import Evaluation, scores, seed_twins
from common.score.significance import Comparison, compare, holm, noise_floor


@dataclass(frozen=True)
class Evidence:
    """What was read of the runs to report on, and what follows from all of them together."""

    folds: Folds
    images: Table
    runs: list[Evaluation]
    blends: list[Evaluation]
    sweeps: list[Path]
    runs_dir: Path
    metric: str

    @cached_property
    def entrants(self) -> list[Evaluation]:
        """Runs and blends, that with the fewest errors first."""
        by_name = {each.name: each for each in self.runs + self.blends}
        return [by_name[name] for name in scores(list(by_name.values())).run] if by_name else []

    @cached_property
    def units(self) -> np.ndarray:
        """Equal numbers for held-out rows that are not independent: of one group, or else copies of one image."""
        alike = self.folds.groups if self.folds.groups.size else self.folds.row_shas
        return np.unique(alike[self.folds.fold >= 0].astype(str), return_inverse=True)[1]

    @cached_property
    def pairs(self) -> list[tuple[Evaluation, Evaluation, Comparison, float]]:
        """(better, other, comparison, Holm's p) of every two entrants; the pairs of the best come first."""
        two = list(combinations(self.entrants, 2))
        found = [self.compare(other, better) for better, other in two]
        p_of_all = holm([each.p for each in found])
        return [(*names, each, p) for names, each, p in zip(two, found, p_of_all, strict=True)]

    @cached_property
    def twins(self) -> list[list[Evaluation]]:
        """Groups of runs that differ in their seed alone."""
        return seed_twins(self.runs)

    @cached_property
    def floor(self) -> int:
        """How many errors a seed alone may make; 0 where no setting was trained twice."""
        return noise_floor([self.compare(*pair) for group in self.twins for pair in combinations(group, 2)])

    def compare(self, a: Evaluation, b: Evaluation) -> Comparison:
        """B against A."""
        return compare(a.right, b.right, self.units)

    def images_of(self, ids: Sequence[str]) -> list[np.ndarray | Path]:
        """The images of some ids."""
        position = {name: at for at, name in enumerate(self.images.ids)}
        return [self.images.images[position[name]] for name in ids]
