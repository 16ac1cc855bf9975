"""What training changes, as one object: built once, saved after every epoch, restored as it was."""

import platform
from collections.abc import Sequence
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
from common.checkpoint import (
    join_tensors,
    load_tensors,
    save_tensors,
    separate_tensors,
    with_prefix,
    without_prefix,
)
from common.cli import keyword_arguments
from common.config import Config
from common.data import Normalise, TrainBatches
from common.errors import UserError, warn
from common.hardware import memory_format
from common.models import create_model
from common.optim import create_optimiser


def best_epoch(log: Sequence[dict[str, Any]], select: str) -> int:
    """Index of the first epoch with the highest accuracy, or with the lowest loss for "best-loss"."""
    if select == "best-loss":
        return min(range(len(log)), key=lambda epoch: log[epoch]["valid_loss"])
    return max(range(len(log)), key=lambda epoch: log[epoch]["accuracy"])


@dataclass
class Training:
    """The model of one fold with everything that its next epoch depends on.

    ``log`` has one row per finished epoch; ``best`` holds the weights that ``--select`` keeps.
    """

    model: nn.Module
    wrapped: nn.Module  # the model as accelerate runs it: with DDP over several processes
    optimiser: Optimizer
    scaler: GradScaler | None  # of fp16's loss
    ema: ModelEmaV3 | None
    batches: TrainBatches
    select: str
    memory_format: str  # torch's name of it
    log: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def scored(self) -> nn.Module:
        """The module whose predictions count: the average of the weights, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Add an epoch's row to the log, and keep its weights if they are the best so far."""
        self.log.append(row)
        if self.select != "last" and best_epoch(self.log, self.select) == len(self.log) - 1:
            self.best = {name: tensor.detach().clone() for name, tensor in self.scored.state_dict().items()}

    def use_selected(self) -> None:
        """Put the weights that ``--select`` chose into the scored module; training is over."""
        if self.best:
            self.scored.load_state_dict(self.best)

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Write everything to one file; ``facts`` (settings, processes ...) go into its metadata."""
        tensors = with_prefix("model", self.model.state_dict())
        optimiser = separate_tensors(self.optimiser.state_dict(), "optimiser", tensors)
        if self.ema is not None:
            tensors |= with_prefix("ema", self.ema.module.state_dict())
        tensors |= with_prefix("best", self.best)
        scaler = self.scaler.state_dict() if self.scaler else {}
        save_tensors(path, tensors, {**facts, "optimiser": optimiser, "scaler": scaler, "log": self.log})

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
        self.best = without_prefix("best", tensors)
        self.log = metadata["log"]


def create_augmentation(cfg: Config) -> partial:
    """The training augmentation with its arguments; raises UserError where one is unknown."""
    if cfg.augment not in AUGMENTS:
        raise UserError("--augment", f"{cfg.augment} is unknown", f"use one of: {', '.join(AUGMENTS)}")
    augment = AUGMENTS[cfg.augment]
    return partial(augment, **keyword_arguments("augment-args", cfg.augment_args, augment))


def create_model_and_optimiser(cfg: Config, num_classes: int, device: torch.device) -> tuple[nn.Module, Optimizer]:
    """An untrained model on ``device`` and the optimiser of its parameters; raises UserError where one cannot be."""
    model_args = keyword_arguments("model-args", cfg.model_args)
    model = create_model(cfg.model, model_args, num_classes, cfg.channels, cfg.img_size).to(device)
    opt_args = keyword_arguments("opt-args", cfg.opt_args)
    return model, create_optimiser(model, cfg.opt, cfg.lr, cfg.weight_decay, opt_args)


def check_choices(cfg: Config, num_classes: int, micro_batch: int) -> None:
    """Build once what ``cfg`` names, before a run's folder is touched.

    Raises:
        UserError: a model, size, optimiser, augmentation or argument that does not exist or does not work;
            a micro-batch of one image for a model with BatchNorm, which then has nothing to average.
    """
    create_augmentation(cfg)
    model, _ = create_model_and_optimiser(cfg, num_classes, torch.device("cpu"))
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
    )
    model, optimiser = create_model_and_optimiser(cfg, num_classes, accelerator.device)
    run_folder = Path(cfg.runs_dir) / cfg.run_name
    example, _ = next(batches.epoch(0))
    layout = memory_format(cfg.channels_last, run_folder, accelerator, model, example)
    model = model.to(memory_format=getattr(torch, layout))
    ema = ModelEmaV3(model, decay=cfg.ema_decay, use_warmup=True) if cfg.ema_decay > 0 else None
    wrapped, optimiser = accelerator.prepare(model, optimiser)
    return Training(model, wrapped, optimiser, accelerator.scaler, ema, batches, cfg.select, layout)


def versions() -> dict[str, str]:
    """Versions of what decides the bits of a result."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "accelerate": accelerate.__version__,
    }
