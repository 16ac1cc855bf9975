"""What training changes, as one object: built once, saved after every epoch, restored as it was."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from common.base.errors import UserError, warn
from common.data.batches import TrainBatches
from common.model.averages import Members, measure_batchnorm
from common.model.finetune import Frozen
from common.model.objectives import Objective
from common.model.optim import lay_out_state
from common.model.selection import Selection
from common.runs.config import differences
from common.runs.layout import LOG_FILE, OLD_NAMES, todays_names
from common.runs.saved_model import SavedModel
from common.runs.tensors import (
    join_tensors,
    load_tensors,
    remedy_for,
    save_tensors,
    separate_tensors,
    with_prefix,
    without_prefix,
)
from common.score.metrics import goodness


@dataclass
class Training:
    """The model of one fold with everything that its next epoch depends on.

    ``log`` has one row per finished epoch; ``selection`` holds the weights that ``--select`` keeps. Where a fold trains
    several nets, one after another, each is a training of its own, and log and selection go from one to the next.
    """

    model: nn.Module
    wrapped: nn.Module  # the model as accelerate runs it: with DDP over several processes
    optimiser: Optimizer
    scaler: GradScaler | None  # of fp16's loss
    ema: ModelEmaV3 | None
    frozen: Frozen
    batches: TrainBatches
    objective: Objective
    schedule: Callable[[int, Sequence[float]], float]  # the share of --lr at a step
    selection: Selection
    metric: str  # what the schedule plateau, the best epoch and an early stop look at
    log: list[dict[str, Any]] = field(default_factory=list)
    members: Members | None = None  # at the end, where several states were kept

    @property
    def scored(self) -> nn.Module:
        """The module whose predictions count: the members, the average of the weights, or the model."""
        return self.members or (self.model if self.ema is None else self.ema.module)

    @property
    def epoch(self) -> int:
        """How many epochs are finished, which is the number of the next one; the log has those of earlier nets too."""
        return len(self.log) - self.batches.first_epoch

    @property
    def scores(self) -> list[float]:
        """The metric after each epoch, its sign turned where lower is better; empty without validation rows."""
        return scores_in(self.log[self.batches.first_epoch :], self.metric)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or an early stop has ended them."""
        return self.epoch == self.batches.epochs or self.selection.stops(self.scores)

    @property
    def bytes_of_checkpoint(self) -> int:
        """About what :meth:`save` writes: weights, averages of them, two numbers each in the optimiser (Adam)."""
        weights = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        return weights * (3 + (self.ema is not None) + self.selection.keeps)

    def learning_rate(self, step: int) -> float:
        """The learning rate of an optimiser step (from 0): what --lr gave the optimiser times the schedule's share."""
        return self.optimiser.defaults["lr"] * self.schedule(step, self.scores)

    def start_epoch(self) -> None:
        """Training mode, except for what ``--freeze`` holds still in this epoch."""
        self.wrapped.train()
        self.frozen.apply(self.model, self.epoch)
        self.objective.start_epoch(self.epoch)

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Add an epoch's row to the log and let the selection look at its weights."""
        self.log.append(row)
        self.selection.end_epoch(self.scored.state_dict(), self.epoch, self.scores)

    def use_selected(self) -> bool:
        """Put the weights that ``--select`` kept into the scored module, training being over; False: they are there."""
        kept = self.selection.kept
        self.optimiser.state.clear()  # which makes room for the members
        if len(kept) > 1:
            self.members = Members(self.scored, len(kept))
            for member, state in zip(self.members.members, kept, strict=True):
                member.load_state_dict(state)
        elif kept:
            self.scored.load_state_dict(kept[0])
        if self.selection.averages and not self.frozen.batchnorm:
            batches = self.batches
            how = (batches.normalise, batches.micro_batch_size, batches.side)
            measure_batchnorm(self.scored, batches.inputs, batches.rows, *how)
        return bool(kept)

    def save(self, path: Path, saved: SavedModel) -> None:
        """Write everything to one file, with what the weights file will say of itself."""
        tensors = with_prefix("model", self.model.state_dict())
        optimiser = separate_tensors(self.optimiser.state_dict(), "optimiser", tensors)
        if self.ema is not None:
            tensors |= with_prefix("ema", self.ema.module.state_dict())
        for number, state in enumerate(self.selection.kept):
            tensors |= with_prefix(f"kept{number}", state)
        scaler = self.scaler.state_dict() if self.scaler else {}
        state = {"optimiser": optimiser, "scaler": scaler, "log": self.log, "kept": len(self.selection.kept)}
        save_tensors(path, tensors, saved.to_metadata() | state)

    def restore(self, checkpoint: "Checkpoint") -> None:
        """Go back to where :meth:`save` was called, or, where another net had just ended, begin with what it left."""
        tensors, state = checkpoint.tensors, checkpoint.state
        self.selection.kept = [without_prefix(f"kept{number}", tensors) for number in range(state["kept"])]
        self.log = checkpoint.log
        if self.epoch == 0:
            return
        self.model.load_state_dict(without_prefix("model", tensors))
        if self.ema is not None:
            self.ema.module.load_state_dict(without_prefix("ema", tensors))
        self.optimiser.load_state_dict(join_tensors(state["optimiser"], tensors))
        lay_out_state(self.optimiser)
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])


def scores_in(log: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """The metric in each row of a log that has it, its sign turned where lower is better."""
    return [goodness(metric, row[metric]) for row in log if metric in row]


@dataclass(frozen=True)
class Checkpoint:
    """What :meth:`Training.save` wrote."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    log: list[dict[str, Any]]  # a row for each finished epoch of the fold


def load_checkpoint(path: Path, saved: SavedModel) -> Checkpoint:
    """The checkpoint at ``path`` of a training whose weights file will say ``saved``; warns where bits may differ.

    Raises:
        UserError: a damaged file, or one of another fold, other folds or other settings.
    """
    tensors, metadata = load_tensors(path)
    before = SavedModel.from_metadata(metadata, path, remedy_for(path))
    if changed := differences(before.shared | {"fold": before.fold}, saved.shared | {"fold": saved.fold}):
        raise UserError(str(path), f"belongs to another training run ({', '.join(changed)})", remedy_for(path))
    for name in ("processes", "threads", "device", "computed_in", "memory_format", "versions"):
        old, new = getattr(before, name), getattr(saved, name)
        if old and old != new:  # an older version did not say its device
            warn(f"{path}: {name} changed from {old} to {new}: expect equivalent, not bit-identical, results")
    return Checkpoint(tensors, metadata, todays_names(metadata["log"], OLD_NAMES[LOG_FILE]))
