"""Train one fold, or all of them, and predict the rows that each fold held out.

    accelerate launch train_fold.py --fold 0                      # one fold over every GPU present
    python train_fold.py --fold all                               # folds side by side, one per GPU or CPU core
    python train_fold.py --data train.csv.gz --config recipes/digits_fast.yaml

The same command again goes on where it was stopped. A fold's folder, runs/<run>/fold<k>/, ends up with
config.json, log.csv, model.safetensors, oof.npz and, last, metrics.json.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.base.cli import parse
from common.base.errors import UserError, run_script, warn
from common.base.files import check_folder, write_file
from common.base.locks import locked
from common.base.system import (
    cpu_count,
    die_of_ctrl_c,
    end_with_starter,
    is_job,
    keep_freed_memory,
    local_processes,
    processes,
    rank,
)
from common.base.words import in_shares
from common.data.cache import DEFAULT_GB, Cache
from common.data.decoding import Preparation
from common.data.folds import Folds, leaks, match_folds, read_folds, split_rows
from common.data.tables import Table, read_train_table
from common.jobs.deadline import Deadline
from common.jobs.runner import SideBySide, slots_for
from common.jobs.screen import BAR_WANTED
from common.runs.config import Config, check_config, check_file, of_fold
from common.runs.folder import (
    check_place,
    check_shared,
    finished_line,
    say_result,
    start_or_go_on,
    start_over,
)
from common.runs.layout import (
    CHECKPOINT_FILE,
    DECODED_FOLDER,
    LOG_FILE,
    TRACE_FILE,
    fold_folder,
    is_finished,
    unfinished,
)
from common.runs.oof import oof_predictions
from common.runs.predictions import check_store
from common.score.logits import Outputs
from common.score.metrics import METRICS, score, show
from common.score.task import TASKS
from common.train.fold_jobs import late, train_side_by_side


@dataclass(frozen=True)
class Train(SideBySide, Config):
    """Train one fold of a timm model, or all folds: accelerate launch train_fold.py --fold 0"""

    show_batch: str = ""  # draw the first training batch, augmented and with its labels, into this png and stop
    log_with: tuple[str, ...] = ()  # trackers that log the epochs: tensorboard, wandb, mlflow ...
    cache_gb: float = DEFAULT_GB  # GB of decoded photos in a file below runs_dir (0, or too many: decoded every epoch)
    profile: bool = False  # print the time of each part of a fold; on a GPU, waiting for each part slows them all
    trace: bool = False  # write torch's trace of the first epoch into the fold's folder, for ui.perfetto.dev
    store: str = "float32"  # format of oof.npz: float32, float16 (half as large), top64 (64 likeliest classes per row)


@dataclass(frozen=True)
class Call:
    """What the folds that one call trains have in common."""

    cfg: Train
    folds: Folds
    images: Any  # of every row (common/data/images.py)
    image_shape: tuple[int, int]  # of the table's own images
    preparation: Preparation
    deadline: Deadline

    def folder_of(self, fold: str) -> Path:
        """Where the fold's files lie."""
        return fold_folder(Path(self.cfg.runs_dir) / self.cfg.run_name, fold)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    end_with_starter()
    cfg = parse(Train, arguments)
    deadline = Deadline(cfg.hours)
    if processes() > 1:
        die_of_ctrl_c()
    check_config(cfg, processes())
    check_store(cfg.store)
    table = read_train_table(cfg.data)
    folds = match_folds(read_folds(Path(cfg.folds), TASKS[cfg.task]), table)
    wanted = wanted_folds(cfg.fold, folds)
    for finding in leaks(folds) if not is_job() else ():
        warn(f"{cfg.folds}: {finding}")
    if cfg.show_batch:
        from common.train.preview import draw_batch

        draw_batch(Path(cfg.show_batch), cfg, table, folds, filled_rows(folds, wanted[0], cfg))
        return
    run_folder = Path(cfg.runs_dir) / cfg.run_name
    check_place(run_folder, wanted)
    todo = wanted if cfg.restart else unfinished(run_folder, wanted)
    for fold in todo if cfg.weights else ():
        check_file("--weights", of_fold(cfg, fold).weights)
    # All that are wanted, not what is left: a run that goes on has the threads it began with.
    slots, threads = slots_for(cfg, cfg.threads, len(wanted), is_short(cfg, table))
    if todo and (len(slots) > 1 or slots[0].elsewhere):
        from common.train.build import with_images_of

        check_all_choices(with_images_of(cfg, table), table, folds, todo, cfg.batch_size // cfg.accumulate)
        if cfg.restart:
            start_over(run_folder)
        train_side_by_side(run_folder, todo, cfg.epochs, (__file__, *arguments), slots, threads, deadline)
    else:
        train_in_turn(cfg, table, folds, wanted, todo or wanted[:1], deadline)
    if cfg.fold == "all" and not cfg.limit and rank() == 0:
        say_result(run_folder, folds, cfg.metric)


def wanted_folds(asked: str, folds: Folds) -> list[str]:
    """The folds that ``--fold`` names: one number, all of them, or "full"."""
    numbers = [str(number) for number in range(folds.count)]
    if asked == "all":
        return numbers
    if asked not in [*numbers, "full"]:
        raise UserError("--fold", f"there is no fold {asked}", f"use 0 to {folds.count - 1}, all, or full")
    return [asked]


def filled_rows(folds: Folds, fold: str, cfg: Config) -> np.ndarray:
    """The rows that a fold trains on; raises UserError where they do not fill one batch."""
    rows, _ = split_rows(folds, fold, cfg.train_fraction, cfg.limit)
    if len(rows) < cfg.batch_size:
        what = f"batch size {cfg.batch_size} exceeds the {len(rows)} training rows"
        raise UserError("--batch-size", what, f"use at most {len(rows)}")
    return rows


def is_short(cfg: Config, table: Table) -> bool:
    """Whether a fold's training takes a few seconds at most, told by the pixels it goes through; photos never do."""
    if table.of_photos:
        return False
    rows = min(cfg.limit or len(table.ids), cfg.train_fraction * len(table.ids))
    return cfg.epochs * rows * table.images[0].size < 10e6


def check_all_choices(cfg: Train, table: Table, folds: Folds, todo: list[str], micro_batch: int) -> list[str]:
    """Refuse what the training of the folds ``todo`` would, before a folder is touched; what was loaded, in words.

    ``cfg`` knows the images' channels and size (:func:`common.train.build.with_images_of`).
    """
    from common.model.weights import check_unseen
    from common.train.build import check_choices
    from common.train.trackers import check_trackers

    check_trackers(cfg.log_with)
    of_each = {start.weights: start for start in (of_fold(cfg, fold) for fold in todo)}  # one, unless {fold} is in it
    loaded = [check_choices(start, folds.classes, micro_batch, not table.of_photos) for start in of_each.values()]
    if cfg.weights:
        known = [check_unseen(Path(of_fold(cfg, fold).weights), fold, folds) for fold in todo]
        if not all(known) and not is_job():
            what = "was trained with different folds: if on the same images, the out-of-fold score is flattered"
            warn(f"{cfg.weights} {what}")
    return list(filter(None, loaded))


def train_in_turn(
    cfg: Train, table: Table, folds: Folds, wanted: list[str], todo: list[str], deadline: Deadline
) -> None:
    """Train the folds one after another in this process (and in those the launcher put beside it).

    ``todo`` are those of the ``wanted`` folds that are not finished.
    """
    kept = ", freed memory kept for the next step" if keep_freed_memory() else ""
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs

    from common.data.images import conversion, image_shape, read_images
    from common.train.build import preparation_of, unused_at_first, with_images_of
    from common.train.hardware import asked_precision, usable_precision
    from common.train.loop import agreed
    from common.train.trackers import tracking

    threads = cfg.threads or max(1, cpu_count() // local_processes())
    torch.set_num_threads(threads)
    precision = usable_precision(asked_precision(cfg.mixed_precision))
    cfg = dataclasses.replace(with_images_of(cfg, table), threads=threads, mixed_precision=precision)
    create_accelerator = partial(
        Accelerator,
        cpu=not torch.accelerator.is_available(),
        mixed_precision=cfg.mixed_precision,
        gradient_accumulation_steps=cfg.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_at_first(cfg))],
    )
    accelerator = create_accelerator()
    share = cfg.batch_size // (accelerator.num_processes * cfg.accumulate)
    accelerator.print(
        f"{cfg.run_name}: batch size {cfg.batch_size} = {in_shares(accelerator.num_processes, cfg.accumulate, share)}; "
        f"{threads} thread{'s' * (threads > 1)}, {accelerator.device.type}, mixed precision {cfg.mixed_precision}{kept}"
    )
    if torch.cuda.device_count() > accelerator.num_processes:
        warn(
            f"{torch.cuda.device_count()} GPUs are available but only {accelerator.num_processes} is used: "
            "accelerate launch --num_processes N, or --fold all, uses them"
        )
    for loaded in check_all_choices(cfg, table, folds, todo, share):
        accelerator.print(f"weights: {loaded}")
    for fold in wanted:
        filled_rows(folds, fold, cfg)
    prepare = preparation_of(cfg, table)
    if cfg.cache_gb != DEFAULT_GB and not table.of_photos:
        warn("--cache-gb has no effect: the images are not photos")
    run_folder = Path(cfg.runs_dir) / cfg.run_name
    if cfg.restart and accelerator.is_main_process:
        start_over(run_folder)
    accelerator.wait_for_everyone()
    if converted := conversion(table, prepare):
        accelerator.print(f"images: {converted}")
    cache = Cache(0 if cfg.limit else cfg.cache_gb, str(Path(cfg.runs_dir) / DECODED_FOLDER))
    images = read_images(table, prepare, accelerator.device, cache, folds.row_shas, threads, accelerator.print)
    call = Call(cfg, folds, images, image_shape(table), prepare, deadline)
    for position, fold in enumerate(wanted):
        if deadline.is_set and agreed(accelerator, late(deadline, run_folder, fold, cfg.epochs)):
            continue
        later = len(unfinished(run_folder, wanted[position + 1 :]))
        # One each: what an accelerator has prepared, and its loss scaler, must not outlive the fold.
        train_fold(call, create_accelerator(**tracking(cfg.log_with, call.folder_of(fold))), fold, later)
    accelerator.end_training()  # a process that leaves while the group's threads live on may abort


def train_fold(call: Call, accelerator, fold: str, folds_after: int) -> None:
    """Train one fold, from scratch or from its last finished epoch, and predict its rows, if the time allows.

    Raises:
        UserError: the folder is in use, or belongs to other settings; a batch does not fit into memory (exit 3); the
            loss, weights or predictions are no longer finite numbers (exit 4).
    """
    from common.base.profiling import part, parts_timed
    from common.train.hardware import out_of_memory_named
    from common.train.loop import agreed, share_buffers
    from common.train.outcome import save_training
    from common.train.trackers import finish_trackers, start_trackers

    cfg, folds, is_main = call.cfg, call.folds, accelerator.is_main_process
    folder = call.folder_of(fold)
    with ExitStack() as held:
        held.enter_context(out_of_memory_named(cfg.batch_size, accelerator.num_processes, cfg.accumulate))
        if is_main:
            check_lock = held.enter_context(locked(folder))
            start_or_go_on(folder, cfg, folds)
        accelerator.wait_for_everyone()
        check_shared(folder)
        if agreed(accelerator, is_finished(folder)):
            accelerator.print(finished_line(folder, fold, cfg.metric))
            return
        training, saved, valid_rows = set_up(call, accelerator, fold)

        # Train
        start_trackers(accelerator, cfg.run_name, folder.name, saved.settings)
        held.enter_context(parts_timed(cfg.profile and is_main))
        logits = None
        while not training.is_over:
            pace = training.log[-1]["seconds"] if training.log else 0.0
            if call.deadline.is_set and agreed(accelerator, call.deadline.misses(pace)):
                done = f"fold {fold} stops after epoch {len(training.log)} of {cfg.epochs}"
                accelerator.print(f"{done}: the next would not finish within --hours; run the same command to continue")
                finish_trackers(accelerator)
                return
            row, logits = train_and_score(call, accelerator, training, fold, valid_rows)
            training.end_epoch(row)
            accelerator.log(row, step=row["epoch"])
            if is_main:
                check_lock()
                # The log first: an epoch whose checkpoint was not written is trained, and logged, again.
                with part("saving"):
                    write_file(folder / LOG_FILE, pd.DataFrame(training.log, columns=list(row)).to_csv(index=False))
                    training.save(folder / CHECKPOINT_FILE, saved)
                print(epoch_line(fold, training.log, cfg, folds_after), flush=True)
        finish_trackers(accelerator)

        # Keep the chosen weights and what they say about the rows that they have not seen
        if training.use_selected() or logits is None:  # else they are those that the last epoch was scored with
            share_buffers(accelerator, training.scored)
            where = f"fold {fold}, epoch {len(training.log)}"
            logits = predict_held_out(call, accelerator, training, valid_rows, where)
        if is_main:
            check_lock()
            with part("saving"):
                oof = None if logits is None else oof_predictions(folds, valid_rows, logits)
                save_training(folder, training, saved, oof, cfg.store)


def set_up(call: Call, accelerator, fold: str):
    """What a fold's epochs change, where an interrupted call left it; what its file will say; the rows it holds out."""
    import torch

    from common.data.batches import seed_of
    from common.train.build import prepare_training
    from common.train.loop import agreed
    from common.train.outcome import saved_model_of

    cfg, folds = of_fold(call.cfg, fold), call.folds
    train_rows, valid_rows = split_rows(folds, fold, cfg.train_fraction, cfg.limit)
    torch.manual_seed(seed_of("weights", cfg.seed, 0 if fold == "full" else int(fold) + 1))
    training = prepare_training(cfg, accelerator, call.images, folds.targets, train_rows, folds.classes)
    processes = accelerator.num_processes
    saved = saved_model_of(call.cfg, folds, fold, training, call.image_shape, call.preparation, processes)
    folder = call.folder_of(fold)
    checkpoint = folder / CHECKPOINT_FILE
    if agreed(accelerator, checkpoint.exists()):
        training.restore(checkpoint, saved)
        accelerator.print(f"fold {fold} resumes after epoch {len(training.log)}")
    if accelerator.is_main_process:  # the new checkpoint lies beside the old one until it is whole
        check_folder(folder, (1 if checkpoint.exists() else 2) * training.bytes_of_checkpoint)
    return training, saved, valid_rows


def train_and_score(
    call: Call, accelerator, training, fold: str, valid_rows: np.ndarray
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Train for an epoch, score the rows held out: the epoch's row of log.csv, and logits (rows, classes) if any."""
    import torch

    from common.base.profiling import traced
    from common.data.batches import seed_of
    from common.train.loop import share_buffers, share_scores, train_epoch

    cfg, steps = call.cfg, training.batches.steps
    epoch, started = len(training.log), time.perf_counter()
    torch.manual_seed(seed_of("dropout", cfg.seed, epoch, accelerator.process_index))
    trace = call.folder_of(fold) / TRACE_FILE if cfg.trace and epoch == 0 and accelerator.is_main_process else None
    with traced(trace, steps), epoch_bar(fold, epoch, steps * cfg.batch_size, accelerator) as bar:
        train_loss = train_epoch(accelerator, training, epoch, cfg.clip_grad, bar)
    train_seconds = time.perf_counter() - started
    share_buffers(accelerator, training.model, training.scored)
    row = {"epoch": epoch + 1, "lr": training.learning_rate((epoch + 1) * steps - 1), "train_loss": train_loss}
    logits = predict_held_out(call, accelerator, training, valid_rows, f"fold {fold}, epoch {epoch + 1}")
    if logits is not None:
        task, outputs, targets = call.folds.task, Outputs(logits), call.folds.targets[valid_rows]
        valid = share_scores(accelerator, score(task, outputs, targets, call.folds.classes))
        row |= {"nll": valid["nll"], "accuracy": valid["accuracy"], cfg.metric: valid[cfg.metric]}
        if len(valid_rows) > 1:  # an epoch chosen on one half is scored on the other
            for first, half in enumerate(("even", "odd")):
                answers = task.answers(outputs[first::2], targets[first::2], call.folds.classes)
                row[f"{half}_{cfg.metric}"] = METRICS[cfg.metric].of(answers)
    return row | {"train_seconds": train_seconds, "seconds": time.perf_counter() - started}, logits


def predict_held_out(call: Call, accelerator, training, rows: np.ndarray, where: str) -> np.ndarray | None:
    """Logits (rows, classes) of the rows held out, None without any; UserError (exit 4) unless all are finite."""
    from common.base.profiling import part
    from common.train.loop import REMEDY, Predictor, check_logits, evaluation_batch

    if not len(rows):
        return None
    cfg, batches = call.cfg, training.batches
    at_once = evaluation_batch(batches.micro_batch_size)
    predict = Predictor(accelerator, call.images, batches.normalise, cfg.mixed_precision, at_once, cfg.img_size)
    with part("evaluation"):
        [logits] = predict(training.scored, rows)
        check_logits(where, logits, REMEDY)
    return logits


def epoch_bar(fold: str, epoch: int, images: int, accelerator):
    """A live bar of the epoch's images, for a person at a terminal."""
    from tqdm import tqdm

    disable = not (accelerator.is_main_process and (sys.stderr.isatty() or BAR_WANTED in os.environ))
    return tqdm(total=images, desc=f"fold {fold} epoch {epoch + 1}", unit=" images", leave=False, disable=disable)


def epoch_line(fold: str, log: list[dict[str, Any]], cfg: Config, folds_after: int) -> str:
    """One line on the epoch that just ended, with the time that this and the later folds still need."""
    row, epochs = log[-1], cfg.epochs
    line = f"fold {fold} epoch {row['epoch']:>3}/{epochs}  lr {row['lr']:.2e}  train loss {row['train_loss']:.4f}"
    if "accuracy" in row:
        line += f"  nll {row['nll']:.4f}  accuracy {row['accuracy']:.2%}"
        line += "" if cfg.metric in ("accuracy", "nll") else f"  {cfg.metric} {show(cfg.metric, row[cfg.metric])}"
    seconds_left = (epochs - len(log) + epochs * folds_after) * row["seconds"]
    return f"{line}  {row['seconds']:.1f} s, {seconds_left / 60:.1f} min left"


if __name__ == "__main__":
    run_script(main)
