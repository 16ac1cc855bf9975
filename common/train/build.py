"""From the settings to what they name: images, model, optimiser, batches, and one Training of them all."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from common.base.errors import UserError, warn
from common.base.system import processes
from common.data.augment import Augmentation, create_augmentation
from common.data.batches import Normalise, TrainBatches, seed_of
from common.data.decoding import Preparation
from common.data.images import Images, image_shape, pixels_of
from common.data.tables import Table
from common.model.averages import State
from common.model.finetune import Frozen, frozen_parts, scale_learning_rates
from common.model.losses import with_head_for
from common.model.networks import CROPS, SYNC_BN, create_model, photo_preparation, photo_size, works_at
from common.model.objectives import create_objective
from common.model.optim import create_optimiser
from common.model.schedules import Length, create_schedule
from common.model.selection import create_selection
from common.model.weights import Loaded, hub_file, load_weights
from common.runs.config import Config, check_signatures
from common.score.metrics import check_metric
from common.score.task import TASKS
from common.train.hardware import check_compile, memory_format
from common.train.training import Training

MEASURED_AT_ONCE = 4096  # images, when their mean is taken


def augmentation_of(cfg: Config, grey: bool = False) -> Augmentation:
    """The training augmentation that ``cfg`` names; raises UserError where it does not exist or would do nothing.

    ``grey``: the images have no colours, in however many channels.
    """
    return create_augmentation(cfg.augment, cfg.args("augment"), grey or cfg.channels == 1)


def with_images_of(cfg: Config, table: Table) -> Config:
    """The settings with channels and size where 0 asks for the images' own, or for photos the pretrained model's."""
    channels, size = image_shape(table)
    if table.of_photos:
        size = photo_size(cfg.model) or size
    return replace(cfg, channels=cfg.channels or channels, img_size=cfg.img_size or size)


def preparation_of(cfg: Config, table: Table) -> Preparation:
    """How the table's images are prepared; of ``cfg`` with its channels and size known (:func:`with_images_of`).

    Raises:
        UserError: a crop that does not exist, or one of images that are no photos.
    """
    model_args = cfg.args("model")
    if table.of_photos:
        return photo_preparation(cfg.model, model_args, cfg.channels, cfg.img_size)
    for argument in CROPS.keys() & model_args.keys():
        raise UserError("--model-args", f"{argument} is for photos and has no effect here", "leave it out")
    return Preparation(cfg.channels, cfg.img_size, cfg.img_size)


def create_untrained(cfg: Config, num_classes: int) -> nn.Module:
    """The model without its weights, with the last layer that its loss trains."""
    model = create_model(cfg.model, cfg.args("model"), num_classes, cfg.channels, cfg.img_size)
    return with_head_for(model, cfg.loss, **cfg.args("loss"))


def create_model_and_optimiser(
    cfg: Config, classes: Sequence[str], device: torch.device
) -> tuple[nn.Module, Optimizer, Frozen, Loaded]:
    """A model on ``device`` with the weights it starts from, the optimiser of its parameters, and what holds still.

    Raises:
        UserError: one of them cannot be built as ``cfg`` names it.
    """
    model = create_untrained(cfg, len(classes))
    loaded = Loaded("", None)
    if cfg.pretrained or cfg.weights:
        path = Path(cfg.weights) if cfg.weights else hub_file(cfg.model)
        loaded = load_weights(model, cfg.model, path, classes, cfg.channels)
    model = model.to(device)
    frozen = frozen_parts(cfg, model)
    frozen.apply(model, epoch=cfg.epochs)  # what is frozen for good is no business of the optimiser's
    optimiser = create_optimiser(model, cfg.opt, cfg.lr, cfg.weight_decay, **cfg.args("opt"))
    scale_learning_rates(optimiser, model, cfg.layer_decay, cfg.backbone_lr_scale)
    return model, optimiser, frozen, loaded


def length_of(cfg: Config, steps: int, nets: int = 1) -> Length:
    """The training's length, or that of each of several ``nets``; ``steps`` optimiser steps to an epoch."""
    return Length(cfg.epochs // nets * steps, round(cfg.warmup_epochs * steps), steps)


def check_choices(cfg: Config, classes: Sequence[str], micro_batch: int, grey: bool) -> str:
    """Build once what ``cfg`` names, before a run's folder is touched; what was loaded from where is returned in words.

    Raises:
        UserError: a model, size, weights file, optimiser, schedule, loss, metric, selection, augmentation or argument
            that does not exist or does not work; a micro-batch of one image for a model with BatchNorm, which then has
            nothing to average; a warm-up longer than each of several nets trains.
    """
    check_signatures(cfg)
    augmentation = augmentation_of(cfg, grey)
    selection = create_selection(cfg, length_of(cfg, steps=100))
    if cfg.warmup_epochs > (share := cfg.epochs // selection.nets):
        what = f"{cfg.warmup_epochs} exceeds the {share} epochs that each of the {selection.nets} nets trains"
        raise UserError("--warmup-epochs", what, f"use 0 to {share}")
    create_schedule(cfg.schedule, length_of(cfg, 100, selection.nets), **cfg.args("schedule"))
    create_objective(cfg, torch.arange(len(classes)), len(classes))
    check_metric(cfg.metric, classes, TASKS[cfg.task].metrics)
    if cfg.compile:
        check_compile()
    if cfg.args("model").get(SYNC_BN) and (processes() == 1 or not torch.cuda.is_available()):
        what = "sync_bn=True averages over the GPUs of one training, but only one device is in use"
        raise UserError("--model-args", what, "leave it out, or use accelerate launch on several GPUs")
    model, _, _, loaded = create_model_and_optimiser(cfg, classes, torch.device("cpu"))
    if cfg.freeze and not loaded.report:
        warn("--freeze without --weights or --pretrained: frozen layers keep their random initial weights")
    if micro_batch == 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        what = f"one image at a time leaves {cfg.model}'s BatchNorm nothing to average"
        raise UserError("--batch-size", what, "raise it, or lower --accumulate")
    for size in augmentation.sizes:
        if not works_at(model, len(classes), cfg.channels, size):
            what = f"{cfg.model}, built for {cfg.img_size} px, does not work at {size} px"
            raise UserError("--augment-args", what, "leave sizes out, or use a model that accepts any size")
    return loaded.report


def unused_at_first(cfg: Config) -> bool:
    """Whether parameters that train later have no gradient at first, which DDP must be told of."""
    return "backbone" in cfg.args("freeze")


def create_batches(
    cfg: Config,
    images: Images,
    targets: np.ndarray,
    rows: np.ndarray,
    num_classes: int,
    normalise: Normalise,
    device: torch.device,
    grey: bool = False,
) -> TrainBatches:
    """The batches that a single process trains one net on, on ``device``; see :func:`prepare_training`."""
    return TrainBatches(
        images=images,
        targets=torch.from_numpy(targets).to(device),
        rows=torch.from_numpy(rows).to(device),
        num_classes=num_classes,
        batch_size=cfg.batch_size,
        micro_batches=cfg.accumulate,
        process=0,
        processes=1,
        seed=cfg.seed,
        augment=augmentation_of(cfg, grey),
        normalise=normalise,
        label_smoothing=cfg.label_smoothing,
        epochs=cfg.epochs,
        sampling=cfg.sampling,
        side=cfg.img_size,
        task=TASKS[cfg.task],
    )


def prepare_training(
    cfg: Config, accelerator: Accelerator, images: Images, targets: np.ndarray, rows: np.ndarray, classes: Sequence[str]
) -> Training:
    """Build model, optimiser, average and batches for the training ``rows``, int64 (m), of a table's n rows.

    ``images`` are those of every row (common/data/images.py), ``targets`` their class numbers, int64 (n).
    The initial weights follow torch's random seed.
    """
    seed = torch.initial_seed()
    model, optimiser, frozen, loaded = create_model_and_optimiser(cfg, classes, accelerator.device)
    normalise = loaded.normalise or Normalise.of_batches(
        pixels_of(images, torch.from_numpy(rows).split(MEASURED_AT_ONCE), accelerator.device)
    )
    selection = create_selection(cfg, length_of(cfg, len(rows) // cfg.batch_size))
    batches = replace(
        create_batches(cfg, images, targets, rows, len(classes), normalise, accelerator.device),
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        epochs=cfg.epochs // selection.nets,
    )
    run_folder = Path(cfg.runs_dir) / cfg.run_name
    example = next(batches.epoch(0))
    layout = memory_format(cfg.channels_last, run_folder, accelerator, model, example.inputs)
    model = model.to(memory_format=getattr(torch, layout))
    if cfg.args("model").get(SYNC_BN):
        model = convert_sync_batchnorm(model)  # not before the measurement, which the main process makes alone
    ema = ModelEmaV3(model, decay=cfg.ema_decay, use_warmup=True) if cfg.ema_decay > 0 else None
    wrapped, optimiser = accelerator.prepare(model, optimiser)
    if cfg.compile:
        model.compile()  # in place, so that no name in the weights file changes
    length = length_of(cfg, batches.steps, selection.nets)

    def start_weights(net: int) -> State:
        torch.manual_seed(seed_of("member", seed, net))
        return create_model_and_optimiser(cfg, classes, accelerator.device)[0].state_dict()

    return Training(
        model=model,
        wrapped=wrapped,
        optimiser=optimiser,
        scaler=accelerator.scaler,
        ema=ema,
        frozen=frozen,
        batches=batches,
        objective=create_objective(cfg, batches.targets[batches.rows], len(classes)),
        peak_lr=cfg.lr,
        schedule=create_schedule(cfg.schedule, length, **cfg.args("schedule")),
        selection=selection,
        metric=cfg.metric,
        memory_format=layout,
        start_weights=start_weights,
        start_of_optimiser=copy.deepcopy(optimiser.state_dict()),
    )
