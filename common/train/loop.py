"""The two loops that everything uses: train_epoch, and that of a Predictor."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm import tqdm

from common.base.errors import NUMBERS, UserError
from common.base.profiling import part
from common.base.system import is_watched
from common.data.batches import TrainBatches, seed_of
from common.data.folds import Folds
from common.data.inputs import Inputs
from common.data.scales import Scale
from common.data.transfer import to_device
from common.data.views import TTA, View
from common.jobs.screen import BAR_WANTED
from common.model.optim import set_learning_rate
from common.score.logits import Outputs
from common.score.metrics import METRICS
from common.train.hardware import autocast, memory_of_a_step
from common.train.memory import is_out_of_memory, release_memory
from common.train.training import Training

REMEDY = "lower --lr, or set --clip-grad 1; the last finished epoch's checkpoint is kept"
BLOCK = 256e6  # bytes of predictions that wait on the device to be copied
FRAMES_AT_ONCE = 50_000  # of padded sequences that are predicted at a time
LOOK_EVERY = 50  # optimiser steps between two looks at the loss, each of which waits for the device


def train_epoch(accelerator: Accelerator, training: Training, clip_grad: float, bar: tqdm) -> float:
    """Train for the next epoch and return its mean loss over all processes; ``bar`` advances by images.

    Raises:
        UserError: the loss is no longer a finite number (exit 4), on every process at the same step.
    """
    model, optimiser, batches = training.wrapped, training.optimiser, training.batches
    epoch, seed = training.epoch, seed_of("dropout", batches.seed, len(training.log), accelerator.process_index)
    torch.manual_seed(seed)
    training.start_epoch()
    losses = torch.zeros(batches.steps, device=accelerator.device)
    for number, batch in enumerate(batches.epoch(epoch)):
        step = number // batches.micro_batches
        set_learning_rate(optimiser, training.learning_rate(epoch * batches.steps + step))
        with accelerator.accumulate(model):  # steps and clears gradients at the last micro-batch only
            with part("forward"):
                loss = training.objective(model, batch)  # accelerate runs the model in mixed precision
            with part("backward"):
                accelerator.backward(loss)
            with part("optimiser"):
                if accelerator.sync_gradients and clip_grad > 0:
                    accelerator.clip_grad_norm_(model.parameters(), clip_grad)
                optimiser.step()
                optimiser.zero_grad()
        losses[step] += loss.detach().float() / batches.micro_batches
        if not accelerator.sync_gradients:
            continue
        if training.ema is not None and not accelerator.optimizer_step_was_skipped:
            with part("average"):
                training.ema.update(training.model, step=epoch * batches.steps + step)
        bar.update(batches.batch_size)
        if epoch + step == 0 and accelerator.is_main_process and (said := memory_of_a_step(accelerator.device)):
            bar.write(said)  # before hours are spent
        if (step + 1) % LOOK_EVERY == 0 or step + 1 == batches.steps:
            so_far = accelerator.reduce(losses[: step + 1].clone(), "mean")
            _check_finite(so_far, training)
            bar.set_postfix(loss=f"{so_far[-LOOK_EVERY:].mean().item():.4f}")
    return so_far.mean().item()


def _check_finite(losses: Tensor, training: Training) -> None:
    broken = torch.nonzero(~torch.isfinite(losses))
    if len(broken):
        step = broken[0].item()
        lr = training.learning_rate(training.epoch * training.batches.steps + step)
        raise UserError(
            f"epoch {len(training.log) + 1}, step {step + 1}",
            f"the loss is not a finite number (lr {lr:g})",
            REMEDY,
            NUMBERS,
        )


def predict_held_out(accelerator: Accelerator, training: Training, rows: np.ndarray, where: str) -> np.ndarray | None:
    """Logits (rows, outputs) of the rows held out by the weights that count, None without any.

    Only the main process has them; the other ones get an array without rows.

    Raises:
        UserError: they are not finite numbers (exit 4), said of ``where``.
    """
    share_buffers(accelerator, training.model, training.scored)
    if not len(rows):
        return None
    batches, at_once = training.batches, evaluation_batch(training.batches.micro_batch_size)
    precision = accelerator.mixed_precision
    predict = Predictor(accelerator, batches.inputs, batches.normalise, precision, at_once, batches.side)
    with part("evaluation"):
        [logits] = predict(training.scored, rows)
        broken = share_scores(accelerator, {"rows": len(not_finite(logits))})["rows"]
        range_ends = ", or leave fp16, whose range ends at 65,504 (--mixed-precision no)" if precision == "fp16" else ""
        check_finite(where, broken, len(rows), REMEDY + range_ends)
    return logits


def scores_of(
    accelerator: Accelerator, folds: Folds, rows: np.ndarray, logits: np.ndarray | None, metric: str
) -> dict[str, float]:
    """What log.csv says of an epoch's predictions of ``rows``, float32 (m, outputs); nothing without any."""
    if logits is None:
        return {}
    task = folds.task
    halves = {f"{half}_{metric}": first for first, half in enumerate(("even", "odd")) if len(rows) > 1}
    row = dict.fromkeys([task.loss_metric, task.metrics[0], metric, *halves], math.nan)
    if accelerator.is_main_process:
        outputs, targets = Outputs(logits), folds.targets[rows]
        scores = task.score(outputs, targets, folds.output_names, metric)
        row |= {name: found for name, found in scores.items() if name in row}
        for name, first in halves.items():  # an epoch chosen on one half is scored on the other
            row[name] = METRICS[metric].of(task.answers(outputs[first::2], targets[first::2], folds.output_names))
    return share_scores(accelerator, row)


def epoch_bar(accelerator: Accelerator, name: str, batches: TrainBatches) -> tqdm:
    """A live bar of an epoch's images, for a person who watches."""
    disable = not (accelerator.is_main_process and (is_watched() or BAR_WANTED in os.environ))
    return tqdm(total=batches.steps * batches.batch_size, desc=name, unit=" images", leave=False, disable=disable)


def not_finite(logits: np.ndarray) -> np.ndarray:
    """Which of the rows of logits (..., rows, outputs) hold what is no finite number: the largest of NaN is class 0."""
    finite = np.isfinite(logits).all(axis=-1)
    return np.flatnonzero(~finite.all(axis=tuple(range(finite.ndim - 1))))


def check_logits(where: str, logits: np.ndarray, remedy: str) -> None:
    """Raise UserError (exit 4) where predictions (..., rows, outputs) are not all finite."""
    check_finite(where, len(not_finite(logits)), logits.shape[-2], remedy)


def check_finite(where: str, broken: int, count: int, remedy: str) -> None:
    """Raise UserError (exit 4) where the predictions of some of ``count`` rows are ``broken``."""
    if broken:
        what = f"the predictions of {broken:,} of {count:,} rows are not finite numbers"
        raise UserError(where, what, remedy, NUMBERS)


def share_buffers(accelerator: Accelerator, *models: nn.Module) -> None:
    """Give every process the main process's buffers.

    BatchNorm's running statistics differ between processes; what scores a row must be what is saved.
    """
    for model in models:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


def share_scores(accelerator: Accelerator, scores: dict[str, float]) -> dict[str, float]:
    """The main process's scores on every process.

    They decide on learning rates, kept weights and early stops, where no process may differ by a single bit.
    """
    bits = torch.tensor([float(value) for value in scores.values()], dtype=torch.float64).view(torch.int64)
    shared = broadcast(bits.to(accelerator.device)).cpu().view(torch.float64).tolist()
    return {name: type(value)(said) for (name, value), said in zip(scores.items(), shared, strict=True)}


def agreed(accelerator: Accelerator, decision: bool) -> bool:
    """The main process's decision on every process: each has a clock, and a disk, of its own."""
    return share_scores(accelerator, {"decision": decision})["decision"]


def evaluation_batch(micro_batch: int) -> int:
    """Images to predict at once: without gradients there is room for more than a training step's."""
    return max(64, 4 * micro_batch)


@dataclass(frozen=True)
class Predictor:
    """From row numbers to a model's logits, over all processes."""

    accelerator: Accelerator
    inputs: Inputs
    normalise: Scale
    precision: str  # no, fp16 or bf16
    batch_size: int  # images at a time on each process
    side: int  # px that a view sees of each image

    @torch.inference_mode()
    def __call__(self, model: nn.Module, rows: np.ndarray, views: Sequence[View] = TTA["none"]) -> np.ndarray:
        """Logits of the images of ``rows`` (int64), float32 (views, len(rows), outputs).

        Only the main process has them; the other ones get an array without rows. Each batch carries its places in
        ``rows``; every place is written exactly once (asserted), whatever the number of processes. Outputs stay on the
        device until a block of them is full, so that nothing waits for it between batches.
        """
        model.eval()
        accelerator, size = self.accelerator, self.batch_size
        together = size * accelerator.num_processes
        numbers = torch.from_numpy(rows)
        order = torch.arange(-(-len(rows) // together) * together)
        if self.inputs.lengths is not None:  # rows of a batch that are as long as each other
            order[: len(rows)] = self.inputs.lengths[numbers].argsort(stable=True)
        places_of_all = [some.view(-1, size)[accelerator.process_index] for some in order.split(together)]
        wanted = (numbers[places.clamp_max(len(rows) - 1)] for places in places_of_all)
        found = self.inputs.batches(wanted, accelerator.device)
        logits, written, at_once, held = None, np.zeros(len(rows), dtype=np.int64), size, []
        for number, raw in enumerate(found, 1):
            outputs, at_once = self._outputs(model, raw, views, at_once)
            held.append(outputs)
            if outputs.nbytes * accelerator.num_processes * len(held) < BLOCK and number < len(places_of_all):
                continue
            places = torch.cat(places_of_all[number - len(held) : number])
            places = to_device(torch.where(places < len(rows), places, -1), accelerator.device)
            places, outputs = (part.cpu().numpy() for part in accelerator.gather((places, torch.cat(held))))
            held = []
            if logits is None:
                kept = len(rows) if accelerator.is_main_process else 0
                logits = np.zeros((len(views), kept, outputs.shape[2]), dtype=np.float32)
            real = places >= 0
            written[places[real]] += 1
            if accelerator.is_main_process:
                logits[:, places[real]] = outputs[real].transpose(1, 0, 2)
        assert (written == 1).all(), "a row was predicted never or twice"
        return logits

    def _outputs(self, model: nn.Module, raw: Tensor, views: Sequence[View], at_once: int) -> tuple[Tensor, int]:
        """The model's outputs of a batch, float32 (m, views, outputs), and how many images memory holds at a time.

        Each process halves its batches for itself: what it hands over is as large as before.
        """
        if self.inputs.lengths is not None:
            at_once = max(1, min(at_once, FRAMES_AT_ONCE // raw.shape[1]))
        while True:
            try:
                return torch.cat([self._seen(model, some, views) for some in raw.split(at_once)]), at_once
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or at_once == 1:
                    raise
            at_once = (at_once + 1) // 2  # outside of the handler, which holds what has not fitted
            release_memory()

    def _seen(self, model: nn.Module, raw: Tensor, views: Sequence[View]) -> Tensor:
        seen = {view.place: self.inputs.seen(raw, self.side, view.place) for view in views}
        outputs = []
        for view in views:
            images = self.normalise(view.look(seen[view.place]))  # in float32: where pixels are must not be rounded
            with autocast(images.device, self.precision):
                outputs.append(model(images).float())
        return torch.stack(outputs, dim=1)
