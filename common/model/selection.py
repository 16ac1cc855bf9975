"""Which weights a fold keeps: an entry of SELECTIONS looks at every finished epoch and decides.

A selection keeps whole states of the model (name -> tensor). One of them goes back into the model; several become
:class:`Members`, whose probabilities are averaged by whoever predicts: for OOF, in infer.py, it is one model.
"""

from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Protocol

from torch import Tensor

from common.base.errors import UserError
from common.model.averages import State, copy_of, mean_of
from common.model.schedules import Length, cycle_ends
from common.runs.choices import SELECTIONS
from common.runs.config import Config
from common.score.metrics import best_epoch


class Selection(Protocol):
    """What looks at a fold's finished epochs and keeps the weights that count."""

    epochs: int  # of a net
    keeps: int = 0  # whole states of the model that it holds at most; 0: the model's own are what counts
    nets: int = 1  # trained one after another, each from weights of its own
    averages: bool = False  # whether what it keeps has seen no BatchNorm statistics of its own
    kept: list[State]

    def __init__(self, epochs: int, cycle_ends: Sequence[int]):
        self.epochs, self.cycle_ends, self.kept = epochs, cycle_ends, []

    def end_epoch(self, state: Mapping[str, Tensor], epoch: int, scores: Sequence[float]) -> None:
        """Look at a net's weights after its ``epoch`` (from 1), and at the scores (higher is better) of its epochs."""

    def stops(self, scores: Sequence[float]) -> bool:
        """Whether the training should end here."""
        return False


class Last(Selection):
    """The weights of the last epoch."""


class Best(Selection):
    """The weights of the first epoch with the best --metric; with ``patience``, stop after so many without a better.

    The epoch is chosen on the rows that score it, which flatters the score; an early stop leaves the learning rate
    in the middle of its schedule.
    """

    keeps = 1

    def __init__(self, epochs: int, cycle_ends: Sequence[int], patience: int = 0):
        super().__init__(epochs, cycle_ends)
        self.patience = patience

    def end_epoch(self, state: Mapping[str, Tensor], epoch: int, scores: Sequence[float]) -> None:
        if best_epoch(scores) == len(scores) - 1:
            self.kept = [copy_of(state)]

    def stops(self, scores: Sequence[float]) -> bool:
        return bool(scores) and 0 < self.patience < len(scores) - best_epoch(scores)


class StochasticAverage(Selection):
    """The mean of the weights after each of the ``last`` epochs (SWA; Izmailov et al., arXiv 1803.05407).

    BatchNorm's statistics are measured anew on the training rows. It wants a learning rate that is still high then:
    --schedule constant, or restarts.
    """

    keeps, averages = 1, True

    def __init__(self, epochs: int, cycle_ends: Sequence[int], last: int = 5):
        super().__init__(epochs, cycle_ends)
        if not 1 < last <= epochs:
            raise UserError(
                "--select-args", f"last={last}: swa averages two or more of the {epochs} epochs", f"use 2 to {epochs}"
            )
        self.last = last

    def end_epoch(self, state: Mapping[str, Tensor], epoch: int, scores: Sequence[float]) -> None:
        count = epoch - (self.epochs - self.last)
        if count == 1:
            self.kept = [copy_of(state)]
        elif count > 1:
            self.kept = [mean_of(self.kept[0], state, 1 / count)]


class Snapshots(Selection):
    """The weights at the end of each of the ``last`` cycles of --schedule restarts (0: all), as members.

    Source: Snapshot Ensembles (Huang et al., arXiv 1704.00109).
    """

    def __init__(self, epochs: int, cycle_ends: Sequence[int], last: int = 0):
        super().__init__(epochs, cycle_ends)
        if len(cycle_ends) < 2:
            raise UserError("--select", "snapshots needs at least two learning rate cycles", "use --schedule restarts")
        if not 0 <= last <= len(cycle_ends):
            what = f"last={last} is out of range: there are {len(cycle_ends)} cycles"
            raise UserError("--select-args", what, f"use 0 (all) to {len(cycle_ends)}")
        self.cycle_ends = cycle_ends[-last:]
        self.keeps = len(self.cycle_ends)

    def end_epoch(self, state: Mapping[str, Tensor], epoch: int, scores: Sequence[float]) -> None:
        if epoch in self.cycle_ends:
            self.kept.append(copy_of(state))


class Independent(Selection):
    """The last weights of each of ``count`` nets, as members: trained one after another, each from a fresh start.

    Every net has its own initial weights and order, and epochs / count epochs, over which the schedule runs anew.
    Source: Deep Ensembles (Lakshminarayanan et al., arXiv 1612.01474).
    """

    def __init__(self, epochs: int, cycle_ends: Sequence[int], count: int = 3):
        super().__init__(epochs, cycle_ends)
        if not isinstance(count, int) or count < 2 or epochs % count:
            what = f"{epochs} epochs cannot be divided evenly among count={count} nets"
            raise UserError("--select-args", what, "use 2 nets or more and set --epochs to a multiple of that")
        self.epochs, self.nets, self.keeps = epochs // count, count, count

    def end_epoch(self, state: Mapping[str, Tensor], epoch: int, scores: Sequence[float]) -> None:
        if epoch == self.epochs:
            self.kept.append(copy_of(state))


def create_selection(cfg: Config, length: Length) -> Selection:
    """The selection that ``--select`` names.

    Raises:
        UserError: it does not fit the other settings.
    """
    selection = resolve_name(SELECTIONS[cfg.select])
    ends = cycle_ends(length, **cfg.args("schedule")) if cfg.schedule == "restarts" else []
    return selection(cfg.epochs, ends, **cfg.args("select"))
