"""What training changes, as one object: built once, saved after every epoch, restored as it was."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import timm
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from common.augment import AUGMENTS
from common.averaging import Last, Members, create_selection, measure_batchnorm
from common.checkpoint import (
    join_tensors,
    load_tensors,
    save_tensors,
    separate_tensors,
    with_prefix,
    without_prefix,
)
from common.cli import keyword_arguments
from common.config import Config, saved_config
from common.data import Normalise, TrainBatches
from common.errors import UserError, warn
from common.hardware import memory_format
from common.losses import Loss, create_loss, with_head_for
from common.metrics import check_metric, goodness
from common.models import create_model
from common.optim import create_optimiser
from common.schedules import Length, create_schedule


@dataclass
class Training:
    """The model of one fold with everything that its next epoch depends on.

    ``log`` has one row per finished epoch; ``selection`` holds the weights that ``--select`` keeps.
    """

    model: nn.Module
    wrapped: nn.Module  # the model as accelerate runs it: with DDP over several processes
    optimiser: Optimizer
    scaler: GradScaler | None  # of fp16's loss
    ema: ModelEmaV3 | None
    batches: TrainBatches
    loss: Loss
    peak_lr: float
    schedule: Callable[[int, Sequence[float]], float]
    selection: Last
    metric: str  # what the schedule plateau, the best epoch and an early stop look at
    memory_format: str  # torch's name of it
    log: list[dict[str, Any]] = field(default_factory=list)
    members: Members | None = None  # at the end, where several states were kept

    @property
    def scored(self) -> nn.Module:
        """The module whose predictions count: the members, the average of the weights, or the model."""
        return self.members or (self.model if self.ema is None else self.ema.module)

    @property
    def scores(self) -> list[float]:
        """The metric after each epoch, its sign turned where lower is better; empty without validation rows."""
        return [goodness(self.metric, row[self.metric]) for row in self.log if self.metric in row]

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or an early stop has ended them."""
        return len(self.log) == self.selection.epochs or self.selection.stops(self.scores)

    def learning_rate(self, step: int) -> float:
        """The learning rate of an optimiser step, counted from the start of training."""
        return self.peak_lr * self.schedule(step, self.scores)

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Add an epoch's row to the log, and let the selection look at its weights."""
        self.log.append(row)
        self.selection.end_epoch(self.scored.state_dict(), len(self.log), self.scores)

    def use_selected(self) -> None:
        """Put the weights that ``--select`` kept into the scored module; training is over."""
        kept = self.selection.kept
        if len(kept) > 1:
            self.members = Members(self.scored, len(kept))
            for member, state in zip(self.members.members, kept, strict=True):
                member.load_state_dict(state)
        elif kept:
            self.scored.load_state_dict(kept[0])
        if self.selection.averages:
            batches = self.batches
            size = batches.batch_size // (batches.processes * batches.micro_batches)
            measure_batchnorm(self.scored, batches.images, batches.rows, batches.normalise, size)

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Write everything to one file; ``facts`` (settings, processes ...) go into its metadata."""
        tensors = with_prefix("model", self.model.state_dict())
        optimiser = separate_tensors(self.optimiser.state_dict(), "optimiser", tensors)
        if self.ema is not None:
            tensors |= with_prefix("ema", self.ema.module.state_dict())
        for number, state in enumerate(self.selection.kept):
            tensors |= with_prefix(f"kept{number}", state)
        scaler = self.scaler.state_dict() if self.scaler else {}
        state = {"optimiser": optimiser, "scaler": scaler, "log": self.log, "kept": len(self.selection.kept)}
        save_tensors(path, tensors, {**facts, **state})

    def restore(self, path: Path, facts: dict[str, Any]) -> None:
        """Go back to where :meth:`save` was called; warns where bit-identity is lost."""
        tensors, metadata = load_tensors(path)
        for name in ("processes", "threads", "memory_format", "versions"):
            if metadata[name] != facts[name]:
                warn(
                    f"{path}: {name} were {metadata[name]} and are {facts[name]} now: "
                    "the result will be as good, but not the same to the bit"
                )
        self.model.load_state_dict(without_prefix("model", tensors))
        if self.ema is not None:
            self.ema.module.load_state_dict(without_prefix("ema", tensors))
        self.optimiser.load_state_dict(join_tensors(metadata["optimiser"], tensors))
        if self.scaler:
            self.scaler.load_state_dict(metadata["scaler"])
        device = next(self.model.parameters()).device
        tensors = {name: tensor.to(device) for name, tensor in tensors.items() if name.startswith("kept")}
        self.selection.kept = [without_prefix(f"kept{number}", tensors) for number in range(metadata["kept"])]
        self.log = metadata["log"]


def create_augmentation(cfg: Config) -> partial:
    """The training augmentation with its arguments; raises UserError where one is unknown."""
    if cfg.augment not in AUGMENTS:
        raise UserError("--augment", f"{cfg.augment} is unknown", f"use one of: {', '.join(AUGMENTS)}")
    augment = AUGMENTS[cfg.augment]
    return partial(augment, **keyword_arguments("augment-args", cfg.augment_args, augment))


def create_untrained(cfg: Config, num_classes: int) -> nn.Module:
    """The model without its weights, with the last layer that its loss trains."""
    model_args = keyword_arguments("model-args", cfg.model_args)
    model = create_model(cfg.model, model_args, num_classes, cfg.channels, cfg.img_size)
    return with_head_for(model, cfg.loss, cfg.loss_args)


def create_saved(facts: Mapping[str, Any]) -> nn.Module:
    """The module that takes the tensors of a fold's weights file; ``facts`` are what the file says of itself."""
    model = create_untrained(saved_config(facts["settings"]), len(facts["classes"]))
    return model if facts.get("members", 1) == 1 else Members(model, facts["members"])


def create_model_and_optimiser(cfg: Config, num_classes: int, device: torch.device) -> tuple[nn.Module, Optimizer]:
    """An untrained model on ``device`` and the optimiser of its parameters; raises UserError where one cannot be."""
    model = create_untrained(cfg, num_classes).to(device)
    opt_args = keyword_arguments("opt-args", cfg.opt_args)
    return model, create_optimiser(model, cfg.opt, cfg.lr, cfg.weight_decay, opt_args)


def length_of(cfg: Config, steps: int) -> Length:
    """The training's length, ``steps`` optimiser steps to an epoch."""
    return Length(cfg.epochs * steps, round(cfg.warmup_epochs * steps), steps)


def check_choices(cfg: Config, classes: Sequence[str], micro_batch: int) -> None:
    """Build once what ``cfg`` names, before a run's folder is touched.

    Raises:
        UserError: a model, size, optimiser, schedule, loss, metric, selection, augmentation or argument that does not
            exist or does not work; a micro-batch of one image for a model with BatchNorm, which then has nothing to
            average.
    """
    create_augmentation(cfg)
    create_schedule(cfg.schedule, cfg.schedule_args, length_of(cfg, steps=100))
    create_selection(cfg, length_of(cfg, steps=100))
    create_loss(cfg.loss, cfg.loss_args, cfg.label_smoothing, torch.arange(len(classes)), len(classes))
    check_metric(cfg.metric, classes)
    model, _ = create_model_and_optimiser(cfg, len(classes), torch.device("cpu"))
    if micro_batch == 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        what = f"one image at a time leaves {cfg.model}'s BatchNorm nothing to average"
        raise UserError("--batch-size", what, "raise it, or lower --accumulate")


def prepare_training(
    cfg: Config, accelerator: Accelerator, images: Tensor, targets: np.ndarray, rows: np.ndarray, num_classes: int
) -> Training:
    """Build model, optimiser, average and batches for the training ``rows``.

    ``images`` is uint8 (n, channels, side, side) on the device, ``targets`` the class number of every row.
    The initial weights follow torch's random seed.
    """
    rows_on_device = torch.from_numpy(rows).to(accelerator.device)
    batches = TrainBatches(
        images=images,
        targets=torch.from_numpy(targets).to(accelerator.device),
        rows=rows_on_device,
        num_classes=num_classes,
        batch_size=cfg.batch_size,
        micro_batches=cfg.accumulate,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        seed=cfg.seed,
        augment=create_augmentation(cfg),
        normalise=Normalise.of(images[rows_on_device]),
        label_smoothing=cfg.label_smoothing,
        sampling=cfg.sampling,
    )
    length = length_of(cfg, batches.steps)
    model, optimiser = create_model_and_optimiser(cfg, num_classes, accelerator.device)
    run_folder = Path(cfg.runs_dir) / cfg.run_name
    example, _ = next(batches.epoch(0))
    layout = memory_format(cfg.channels_last, run_folder, accelerator, model, example)
    model = model.to(memory_format=getattr(torch, layout))
    ema = ModelEmaV3(model, decay=cfg.ema_decay, use_warmup=True) if cfg.ema_decay > 0 else None
    wrapped, optimiser = accelerator.prepare(model, optimiser)
    return Training(
        model=model,
        wrapped=wrapped,
        optimiser=optimiser,
        scaler=accelerator.scaler,
        ema=ema,
        batches=batches,
        loss=create_loss(cfg.loss, cfg.loss_args, cfg.label_smoothing, batches.targets[rows_on_device], num_classes),
        peak_lr=cfg.lr,
        schedule=create_schedule(cfg.schedule, cfg.schedule_args, length),
        selection=create_selection(cfg, length),
        metric=cfg.metric,
        memory_format=layout,
    )


def versions() -> dict[str, str]:
    """Versions of what decides the bits of a result."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "accelerate": accelerate.__version__,
    }
