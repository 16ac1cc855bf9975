"""From the settings to what they name: images, model, optimiser, batches, and one Training of them all."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from common.base.errors import UserError, warn
from common.base.system import processes
from common.data.augment import Augmentation, create_augmentation
from common.data.batches import Examples, TrainBatches
from common.data.decoding import Preparation
from common.data.features import column_at, numbers_in, width, without
from common.data.folds import Folds
from common.data.scales import Scale
from common.data.table import Table
from common.model.arguments import check_model_args
from common.model.finetune import Frozen, frozen_parts, scale_learning_rates
from common.model.losses import with_head_for
from common.model.networks import (
    CROPS,
    SYNC_BN,
    check_training_mode,
    create_model,
    current_name,
    photo_preparation,
    photo_size,
    works_at,
)
from common.model.objectives import Forward, create_objective
from common.model.optim import create_optimiser, try_a_step
from common.model.schedules import Length, create_schedule
from common.model.selection import Selection, create_selection
from common.model.units import TargetScale, Units, in_units, scale_of
from common.model.weights import Loaded, hub_file, load_weights
from common.runs.choices import LOSSES
from common.runs.config import Config, check_signatures
from common.score.metrics import check_metric, check_positive
from common.score.task import TASKS
from common.train.hardware import autocast, check_compile
from common.train.training import Training


def augmentation_of(cfg: Config, grey: bool = False) -> Augmentation:
    """The training augmentation that ``cfg`` names; raises UserError where it does not exist or would do nothing.

    ``grey``: the images have no colours, in however many channels.
    """
    augmentation = create_augmentation(cfg.augment, cfg.args("augment"), grey or cfg.channels not in (0, 3))
    return replace(augmentation, crop_frames=cfg.crop_frames)


def with_images_of(cfg: Config, table: Table) -> Config:
    """The settings with channels, size and augmentation where 0 or auto asks for the images' own.

    The size of photos is the pretrained model's.

    A model's name from before 2023 becomes today's; the run keeps the name that it has.

    Raises:
        UserError: timm has no such model; a number of channels that these images cannot have.
    """
    channels, size = table.kind.shape(table)
    if cfg.channels not in ((0, 1, 3) if channels in (1, 3) else (0, channels)):
        what = f"{cfg.channels} are not what the images have: {channels}"
        raise UserError("--channels", what, "leave it out, or use 1 or 3" if channels in (1, 3) else "leave it out")
    if table.kind.of_any_size:
        size = photo_size(cfg.model) or size
    if cfg.model not in table.kind.in_runs:
        size *= 2 * cfg.window + 1
    own = {"channels": cfg.channels or channels, "img_size": cfg.img_size or size}
    own["augment"] = table.kind.preset(cfg.augment, own["channels"])
    if table.plan:
        own["img_size"] = width(without(table.plan, cfg.drop))
    return replace(cfg, **own, run=cfg.run_name, model=current_name(cfg.model))


def preparation_of(cfg: Config, table: Table) -> Preparation:
    """How the table's images are prepared; of ``cfg`` with its channels and size known (:func:`with_images_of`).

    Raises:
        UserError: a crop that does not exist, or one of images that are no photos.
    """
    model_args = cfg.args("model")
    if table.kind.of_any_size:
        return photo_preparation(cfg.model, model_args, cfg.channels, cfg.img_size)
    if crops := sorted(CROPS.keys() & model_args.keys()):
        raise UserError("--model-args", f"{crops[0]} is for photos and has no effect here", "leave it out")
    plan = table.plan and without(table.plan, cfg.drop)
    prepare = Preparation(cfg.channels, cfg.img_size, cfg.img_size, features=plan)
    return replace(prepare, window=cfg.window, in_runs=cfg.model in table.kind.in_runs)


def create_untrained(cfg: Config, num_classes: int) -> nn.Module:
    """The model without its weights, with the last layer that its loss trains, in the unit of its targets."""
    model = create_model(cfg.model, cfg.args("model"), num_classes, cfg.channels, cfg.img_size)
    model = with_head_for(model, cfg.loss, **cfg.args("loss"))
    if not TASKS[cfg.task].is_number:
        return model
    is_bounded, has_offset = LOSSES[cfg.loss].is_bounded, bool(cfg.offset)
    return in_units(model, Units(num_classes, cfg.img_size, cfg.target_transform, is_bounded, has_offset))


def create_model_and_optimiser(
    cfg: Config, output_names: Sequence[str], device: torch.device
) -> tuple[nn.Module, Optimizer, Frozen, Loaded]:
    """A model on ``device`` with the weights it starts from, the optimiser of its parameters, and what holds still.

    Raises:
        UserError: one of them cannot be built as ``cfg`` names it.
    """
    model = create_untrained(cfg, len(output_names))
    loaded = Loaded("", None)
    if cfg.pretrained or cfg.weights:
        path = Path(cfg.weights) if cfg.weights else hub_file(cfg.model)
        loaded = load_weights(model, cfg.model, path, output_names, cfg.channels, cfg.args("model"))
    model = model.to(device)
    frozen = frozen_parts(cfg, model)
    frozen.apply(model, epoch=cfg.epochs)  # what is frozen for good is not given to the optimiser
    optimiser = create_optimiser(model, cfg.opt, cfg.lr, cfg.weight_decay, **cfg.args("opt"))
    scale_learning_rates(optimiser, model, cfg.layer_decay, cfg.backbone_lr_scale)
    return model, optimiser, frozen, loaded


def length_of(cfg: Config, epochs: int, steps: int) -> Length:
    """The length of a training of so many ``epochs``, each of ``steps`` optimiser steps where --steps does not say."""
    steps = cfg.steps // cfg.epochs or steps
    return Length(epochs * steps, round(cfg.warmup_epochs * steps), steps)


def check_choices(cfg: Config, output_names: Sequence[str], micro_batch: int, grey: bool) -> str:
    """Build once what ``cfg`` names, before a run's folder is touched; what was loaded from where is returned in words.

    Raises:
        UserError: a model, size, weights file, optimiser, schedule, loss, metric, selection, augmentation or argument
            that does not exist or does not work; a micro-batch of one image for a model with BatchNorm, which then has
            nothing to average; a warm-up longer than each of several nets trains.
    """
    check_signatures(cfg)
    if without := [argument for argument, value in cfg.args("model").items() if value is None]:
        raise UserError("--model-args", f"{without[0]}=None has no effect in timm", "give a value or leave it out")
    check_model_args(cfg.model, cfg.args("model"), len(output_names), cfg.channels, cfg.img_size)
    augmentation = augmentation_of(cfg, grey)
    selection = create_selection(cfg, length_of(cfg, cfg.epochs, steps=100))
    if cfg.warmup_epochs > selection.epochs:
        what = (
            f"{cfg.warmup_epochs} exceeds the {selection.epochs} epochs that each of the {selection.nets} nets trains"
        )
        raise UserError("--warmup-epochs", what, f"use 0 to {selection.epochs}")
    create_schedule(cfg.schedule, length_of(cfg, selection.epochs, steps=100), **cfg.args("schedule"))
    create_objective(cfg, torch.arange(len(output_names)), len(output_names))
    check_metric(cfg.metric, output_names, TASKS[cfg.task].metrics)
    check_positive(cfg.positive, output_names)
    if cfg.compile:
        check_compile()
    if cfg.args("model").get(SYNC_BN) and (processes() == 1 or not torch.cuda.is_available()):
        what = "sync_bn=True averages over the GPUs of one training, but only one device is in use"
        raise UserError("--model-args", what, "leave it out, or use accelerate launch on several GPUs")
    try_a_step(cfg.opt, cfg.lr, cfg.weight_decay, **cfg.args("opt"))
    model, _, _, loaded = create_model_and_optimiser(cfg, output_names, torch.device("cpu"))
    if (reach := getattr(model, "reach", cfg.window)) != cfg.window:
        raise UserError("--window", f"{cfg.model} looks at {reach} frames on either side", f"use --window {reach}")
    if cfg.args("model"):
        check_training_mode(model, cfg.channels, cfg.img_size, cfg.args("model"))
    if cfg.freeze and not loaded.report:
        warn("--freeze without --weights or --pretrained: frozen layers keep their random initial weights")
    if micro_batch == 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        what = f"one image at a time leaves {cfg.model}'s BatchNorm nothing to average"
        raise UserError("--batch-size", what, "raise it, or lower --accumulate")
    for size in augmentation.sizes:
        if not works_at(model, len(output_names), cfg.channels, size):
            what = f"{cfg.model}, built for {cfg.img_size} px, does not work at {size} px"
            raise UserError("--augment-args", what, "leave sizes out, or use a model that accepts any size")
    return loaded.report


def unused_at_first(cfg: Config) -> bool:
    """Whether parameters that train later have no gradient at first, which DDP must be told of."""
    return 0 < cfg.args("freeze").get("backbone", 0) < cfg.epochs


def create_batches(cfg: Config, state: PartialState, examples: Examples, normalise: Scale) -> TrainBatches:
    """The batches that this process trains on."""
    return TrainBatches(
        inputs=examples.inputs,
        targets=examples.targets,
        rows=examples.rows,
        num_classes=len(examples.output_names),
        batch_size=cfg.batch_size,
        micro_batches=cfg.accumulate,
        process=state.process_index,
        processes=state.num_processes,
        seed=cfg.seed,
        augment=augmentation_of(cfg),
        normalise=normalise,
        label_smoothing=cfg.label_smoothing,
        epochs=cfg.epochs,
        steps_an_epoch=cfg.steps // cfg.epochs,
        sampling=cfg.sampling,
        side=cfg.img_size,
        task=TASKS[cfg.task],
        lessons=examples.lessons,
        twice=cfg.consistency > 0,
    )


def said_by(ema: ModelEmaV3 | None, accelerator: Accelerator) -> Forward | None:
    """What the moving average of a net says of inputs, as its predictions are made: no dropout, no gradients."""
    if ema is None:
        return None

    @torch.no_grad()
    def forward(inputs: Tensor) -> Tensor:
        with autocast(accelerator.device, accelerator.mixed_precision):
            return ema.module(inputs).float()

    return forward


def learned_targets(cfg: Config, table: Table, folds: Folds, rows: np.ndarray) -> tuple[np.ndarray, TargetScale | None]:
    """What the net learns of every row's target, (n, ...), and, of numbers, the scale that training ``rows`` give."""
    if not folds.task.is_number:
        return folds.targets, None
    targets, place = folds.targets, -1
    if cfg.offset:
        place = column_at(without(table.plan, cfg.drop), cfg.offset)
        targets = targets - numbers_in(table.source, table.feature_names, table.images, cfg.offset)[:, None]
    scale = scale_of(targets[rows], cfg.target_transform, LOSSES[cfg.loss].is_bounded, place)
    return scale.learned(targets), scale


def prepare_training(
    cfg: Config,
    accelerator: Accelerator,
    examples: Examples,
    selection: Selection,
    layout: str = "contiguous_format",
    net: int = 0,
    scale: TargetScale | None = None,
) -> Training:
    """Build model, optimiser, average and batches of the fold's training number ``net``, of ``selection.nets``.

    The initial weights follow torch's random seed. ``layout`` is torch's name of the memory format, ``scale`` that of
    targets that are numbers.
    """
    model, optimiser, frozen, loaded = create_model_and_optimiser(cfg, examples.output_names, accelerator.device)
    batches = create_batches(cfg, accelerator.state, examples, loaded.normalise or examples.normalise)
    batches = replace(batches, epochs=selection.epochs, first_epoch=net * selection.epochs)
    if scale is not None:
        model.units.set(scale, batches.normalise)
    model = model.to(memory_format=getattr(torch, layout))
    if cfg.args("model").get(SYNC_BN):
        model = convert_sync_batchnorm(model)
    ema = ModelEmaV3(model, decay=cfg.ema_decay, use_warmup=True) if cfg.ema_decay > 0 else None
    wrapped, optimiser = accelerator.prepare(model, optimiser)
    if wrapped is not model:  # DDP would hand out BatchNorm's statistics at each step: share_buffers does it once
        wrapped.broadcast_buffers = False
    if cfg.compile:
        for module in [model] if ema is None else [model, ema.module]:  # the average is what is scored
            module.compile(dynamic=False)  # in place: no name in the weights file changes; each shape has its own graph
    length = length_of(cfg, selection.epochs, batches.steps)
    return Training(
        model=model,
        wrapped=wrapped,
        optimiser=optimiser,
        scaler=accelerator.scaler,
        ema=ema,
        frozen=frozen,
        batches=batches,
        objective=create_objective(
            cfg, examples.known, len(examples.output_names), said_by(ema, accelerator), batches.steps * cfg.accumulate
        ),
        schedule=create_schedule(cfg.schedule, length, **cfg.args("schedule")),
        selection=selection,
        metric=cfg.metric,
    )
