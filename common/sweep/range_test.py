"""The classic range test: the learning rate rises at every step, and the loss falls fastest where it is good.

Source: L. N. Smith, arXiv 1506.01186; in the form of fastai's lr_find. It sees a hundred steps of one run, without
a schedule, so sweep.py draws it beside what whole runs say.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
from accelerate import Accelerator

from common.base.errors import UserError
from common.data.batches import Examples, seed_of
from common.data.cache import photo_cache
from common.data.folds import Folds, split_rows
from common.data.inputs import Reading, open_inputs
from common.data.table import Table
from common.model.optim import set_learning_rate
from common.model.selection import create_selection
from common.runs.config import Config, of_fold
from common.train.build import learned_targets, length_of, preparation_of, prepare_training, with_images_of
from common.train.hardware import own_device
from common.train.memory import out_of_memory_said
from common.train.session import measured_format
from common.train.training import Training

STEPS = 100
SMOOTH = 0.98  # weight of the past in the running mean of the loss
TOO_LARGE = "its batches or images do not fit into memory", "name a smaller --batch-size"
GIVE_UP = 4.0  # stop where the loss is this many times its lowest
PARTS = 10  # of a training, over each of which gradients are averaged
SKIP = 10, 5  # steps at the start and the end that are no place for a suggestion


@dataclass(frozen=True)
class RangeTest:
    """``lr`` is the suggestion; ``losses`` (nats, smoothed) belong to ``lrs``; noise_scale 0 means not measured."""

    batch_size: int
    lr: float
    noise_scale: float
    lrs: list[float]
    losses: list[float]


@dataclass(frozen=True)
class NoisePart:
    """The gradient's noise scale, in images, over some optimiser steps of a training (from 0; the last included)."""

    first_step: int
    last_step: int
    noise_scale: float


@out_of_memory_said("range test", *TOO_LARGE)
def range_test(cfg: Config, table: Table, folds: Folds) -> RangeTest:
    """Raise the learning rate from 1e-6 to 10 over a hundred batches of the settings in ``cfg``.

    Each batch is taken in two halves, so the gradients of two batch sizes come for free, and with them the
    gradient's noise scale at this early stage (McCandlish 2018, arXiv 1812.06162, appendix A.1).
    """
    accelerator, training = training_in_halves(cfg, table, folds)
    lrs, losses, gradients, mean = np.geomspace(1e-6, 10, STEPS).tolist(), [], [], 0.0
    for step, (loss, *squares) in enumerate(steps_in_halves(accelerator, training, lrs)):
        gradients.append(squares)
        mean = SMOOTH * mean + (1 - SMOOTH) * loss
        losses.append(mean / (1 - SMOOTH ** (step + 1)))
        if not np.isfinite(losses[-1]) or losses[-1] > GIVE_UP * min(losses):
            break
    lrs = lrs[: len(losses)]
    slopes = np.gradient(losses, np.log(lrs))
    best = SKIP[0] + int(np.argmin(slopes[SKIP[0] : len(slopes) - SKIP[1]]))
    scale = 0.0
    if training.batches.micro_batches == 2:
        scale = noise_scale(np.array(gradients[best - SKIP[0] : best]), cfg.batch_size)
    return RangeTest(cfg.batch_size, lrs[best], scale, lrs, losses)


@out_of_memory_said("noise scale", *TOO_LARGE)
def noise_along(cfg: Config, table: Table, folds: Folds) -> list[NoisePart]:
    """The gradient's noise scale in each of ten parts of a whole training of the settings in ``cfg``.

    Raises:
        UserError: a batch of an odd number of images, which has no halves.
    """
    if cfg.batch_size % 2:
        raise UserError("--batch-size", f"{cfg.batch_size} images have no halves", "use an even number")
    accelerator, training = training_in_halves(cfg, table, folds)
    lrs = [training.learning_rate(step) for step in range(training.batches.epochs * training.batches.steps)]
    squares = np.array([of_step for _, *of_step in steps_in_halves(accelerator, training, lrs)])
    parts = np.array_split(np.arange(len(lrs)), min(PARTS, len(lrs)))
    return [NoisePart(int(own[0]), int(own[-1]), noise_scale(squares[own], cfg.batch_size)) for own in parts]


def training_in_halves(cfg: Config, table: Table, folds: Folds) -> tuple[Accelerator, Training]:
    """A training whose batches come in two halves, or whole where their size is odd."""
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(seed_of("weights", cfg.seed, int(cfg.fold) + 1))
    cfg = dataclasses.replace(of_fold(with_images_of(cfg, table), cfg.fold), accumulate=2 - cfg.batch_size % 2)
    accelerator = Accelerator(cpu=own_device().type == "cpu", mixed_precision=cfg.mixed_precision)
    prepare = preparation_of(cfg, table)
    inputs = open_inputs(table, prepare, accelerator.device, Reading(photo_cache(), folds.row_shas, cfg.threads))
    rows, _ = split_rows(folds, cfg.fold, cfg.train_fraction, cfg.limit)
    targets, scale = learned_targets(cfg, table, folds, rows)
    targets = torch.from_numpy(targets).to(accelerator.device)
    examples = Examples(inputs, targets, torch.from_numpy(rows), folds.output_names)
    selection = create_selection(cfg, length_of(cfg, cfg.epochs, len(rows) // cfg.batch_size))
    layout = measured_format(cfg, accelerator, len(folds.output_names))
    training = prepare_training(cfg, accelerator, examples, selection, layout, scale=scale)
    training.start_epoch()
    return accelerator, training


def steps_in_halves(
    accelerator: Accelerator, training: Training, lrs: Sequence[float]
) -> Iterator[tuple[float, float, float]]:
    """A step at each learning rate; yields its loss and the squared norms of gradients: of a half, mean, and of all."""
    model, optimiser, halves = training.wrapped, training.optimiser, training.batches.micro_batches
    parts = (part for epoch in count() for part in training.batches.epoch(epoch))
    for lr in lrs:
        set_learning_rate(optimiser, lr)
        squares, before, loss_sum = [], 0.0, 0.0
        for half in islice(parts, halves):
            with accelerator.autocast():
                loss = training.objective(model, half) / halves
            accelerator.backward(loss)
            gradient = torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])
            squares.append(float(((gradient - before) * halves).square().sum()))
            before, loss_sum = gradient, loss_sum + loss.item()
        optimiser.step()
        optimiser.zero_grad()
        yield loss_sum, float(np.mean(squares)), float(gradient.square().sum())


def noise_scale(squares: np.ndarray, batch_size: int) -> float:
    """The batch size at which the gradient's noise equals its signal; 0 where the signal does not show.

    ``squares`` (n, 2) are the squared norms of gradients over half a batch and over the whole of it.
    """
    half, whole = squares.mean(0)
    signal, noise = 2 * whole - half, (half - whole) * batch_size
    return float(max(noise, 0.0) / signal) if signal > 0 else 0.0
