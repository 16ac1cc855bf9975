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

from common.cache import DEFAULT_GB, Cache
from common.cli import parse
from common.config import Config, check_config
from common.deadline import Deadline
from common.errors import UserError, run_script, warn
from common.files import check_folder, write_file
from common.fold_jobs import late, train_side_by_side
from common.jobs import STARTED_BY_US, SideBySide, slots_for
from common.metrics import accuracy, score, show, targets_of
from common.predictions import check_store
from common.run_folder import (
    check_place,
    check_shared,
    finished_line,
    run_facts,
    save_fold,
    say_result,
    start_or_go_on,
    start_over,
)
from common.runs import CHECKPOINT_FILE, DECODED_FOLDER, LOG_FILE, TRACE_FILE, fold_folder, is_finished, unfinished
from common.screen import BAR_WANTED
from common.splits import Folds, leaks, match_folds, read_folds
from common.system import cpu_count, die_of_ctrl_c, end_with_parent, is_launched, keep_freed_memory, locked
from common.tables import Table, read_train_table


@dataclass(frozen=True)
class Train(SideBySide, Config):
    """Train one fold of a timm model, or all folds: accelerate launch train_fold.py --fold 0"""

    show_batch: str = ""  # draw the first training batch, augmented and with its labels, into this png and stop
    log_with: tuple[str, ...] = ()  # trackers that follow the epochs: tensorboard, wandb, mlflow ...
    cache_gb: float = DEFAULT_GB  # decoded photos kept in one file below runs_dir (0, or too many: decoded every epoch)
    profile: bool = False  # print the time of each part of a fold; on a GPU, waiting for each part slows them all
    trace: bool = False  # write torch's trace of the first epoch into the fold's folder, for ui.perfetto.dev
    store: str = "float32"  # form of oof.npz: float32, float16 (half as large), top64 (64 likeliest classes of a row)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if STARTED_BY_US in os.environ:
        end_with_parent(int(os.environ[STARTED_BY_US]))
    elif is_launched():
        end_with_parent()  # a launcher that dies must not leave us behind
    cfg = parse(Train, arguments)
    deadline = Deadline(cfg.hours)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        die_of_ctrl_c()
    check_config(cfg, processes)
    check_store(cfg.store)
    table = read_train_table(cfg.data)
    folds = match_folds(read_folds(Path(cfg.folds)), table)
    wanted = wanted_folds(cfg.fold, folds)
    for finding in leaks(folds) if STARTED_BY_US not in os.environ else ():
        warn(f"{cfg.folds}: {finding}")
    if cfg.show_batch:
        from common.preview import draw_batch

        draw_batch(Path(cfg.show_batch), cfg, table, folds, rows_of(folds, wanted[0], cfg)[0])
        return
    run_folder = Path(cfg.runs_dir) / cfg.run_name
    check_place(run_folder, wanted)
    todo = wanted if cfg.restart else unfinished(run_folder, wanted)
    # All that are wanted, not what is left: a run that goes on has the threads it began with.
    slots, threads = slots_for(cfg, cfg.threads, len(wanted), is_short(cfg, table))
    if todo and (len(slots) > 1 or slots[0].elsewhere):
        check_everything(cfg, table, folds)
        train_side_by_side(run_folder, todo, cfg.epochs, arguments, slots, threads, deadline)
    else:
        train_in_turn(cfg, table, folds, wanted, deadline)
    if cfg.fold == "all" and not cfg.limit and os.environ.get("RANK", "0") == "0":
        say_result(run_folder, folds, cfg.metric)


def wanted_folds(asked: str, folds: Folds) -> list[str]:
    """The folds that ``--fold`` names: one number, all of them, or "full"."""
    numbers = [str(number) for number in range(folds.count)]
    if asked == "all":
        return numbers
    if asked not in [*numbers, "full"]:
        raise UserError("--fold", f"there is no fold {asked}", f"use 0 to {folds.count - 1}, all, or full")
    return [asked]


def is_short(cfg: Config, table: Table) -> bool:
    """Whether a fold's training takes a few seconds at most, told by the pixels it goes through; photos never do."""
    if table.of_photos:
        return False
    rows = min(cfg.limit or len(table.ids), cfg.train_fraction * len(table.ids))
    return cfg.epochs * rows * table.images[0].size < 10e6


def check_everything(cfg: Train, table: Table, folds: Folds) -> None:
    """Refuse here, once, what every job would refuse; with --restart, throw the run away."""
    from common.factory import check_choices, with_images_of
    from common.trackers import check_trackers

    check_trackers(cfg.log_with)
    check_choices(with_images_of(cfg, table), folds.classes, cfg.batch_size // cfg.accumulate, not table.of_photos)
    if cfg.restart:
        start_over(Path(cfg.runs_dir) / cfg.run_name)


def train_in_turn(cfg: Train, table: Table, folds: Folds, wanted: list[str], deadline: Deadline) -> None:
    """Train the folds one after another in this process (and in those the launcher put beside it)."""
    kept = ", freed memory kept for the next step" if keep_freed_memory() else ""
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs

    from common.engine import agreed
    from common.factory import check_choices, preparation_of, unused_at_first, with_images_of
    from common.hardware import asked_precision, usable_precision
    from common.images import conversion, read_images
    from common.trackers import check_trackers, tracking

    threads = cfg.threads or max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
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
    check_trackers(cfg.log_with)
    accelerator = create_accelerator()
    share = cfg.batch_size // (accelerator.num_processes * cfg.accumulate)
    accelerator.print(
        f"{cfg.run_name}: batch size {cfg.batch_size} = {accelerator.num_processes} processes x "
        f"{cfg.accumulate} accumulation steps x {share} images; {threads} threads, {accelerator.device.type}, "
        f"mixed precision {cfg.mixed_precision}{kept}"
    )
    if torch.cuda.device_count() > accelerator.num_processes:
        warn(
            f"{torch.cuda.device_count()} GPUs are here but {accelerator.num_processes} is used: "
            "accelerate launch --num_processes N, or --fold all, uses them"
        )
    if loaded := check_choices(cfg, folds.classes, share, not table.of_photos):
        accelerator.print(f"weights: {loaded}")
    for fold in wanted:
        rows_of(folds, fold, cfg)  # refuses a batch that a fold cannot fill
    prepare = preparation_of(cfg, table)
    if cfg.cache_gb != DEFAULT_GB and not table.of_photos:
        warn("--cache-gb has no effect: the images are no photos")
    run_folder = Path(cfg.runs_dir) / cfg.run_name
    if cfg.restart and accelerator.is_main_process:
        start_over(run_folder)
    accelerator.wait_for_everyone()
    if converted := conversion(table, prepare):
        accelerator.print(f"images: {converted}")
    cache = Cache(0 if cfg.limit else cfg.cache_gb, str(Path(cfg.runs_dir) / DECODED_FOLDER))
    images = read_images(table, prepare, accelerator.device, cache, folds.row_shas, threads, accelerator.print)
    facts = run_facts(cfg, accelerator.num_processes, folds, table, prepare)
    for position, fold in enumerate(wanted):
        if deadline.is_set and agreed(accelerator, late(deadline, run_folder, fold, cfg.epochs)):
            continue
        later = len(unfinished(run_folder, wanted[position + 1 :]))
        # One each: what an accelerator has prepared, and its loss scaler, must not outlive the fold.
        tracked = create_accelerator(**tracking(cfg.log_with, fold_folder(run_folder, fold)))
        train_fold(cfg, tracked, images, folds, fold, facts, later, deadline)
    accelerator.end_training()  # a process that leaves while the group's threads live on may abort


def train_fold(
    cfg: Train, accelerator, images, folds: Folds, fold: str, facts: dict[str, Any], later: int, deadline: Deadline
) -> None:
    """Train one fold, from scratch or from its last finished epoch, and predict its rows, if the time allows."""
    import torch

    from common.data import seed_of
    from common.engine import (
        REMEDY,
        agreed,
        check_logits,
        evaluation_batch,
        predict,
        share_buffers,
        share_scores,
        train_epoch,
    )
    from common.factory import prepare_training
    from common.hardware import out_of_memory_named
    from common.profiling import part, parts_timed, traced
    from common.trackers import finish_trackers, start_trackers
    from common.tta import TTA

    folder = fold_folder(Path(cfg.runs_dir) / cfg.run_name, fold)
    with ExitStack() as held:
        held.enter_context(out_of_memory_named(cfg.batch_size, accelerator.num_processes, cfg.accumulate))
        if accelerator.is_main_process:
            check_lock = held.enter_context(locked(folder))
            start_or_go_on(folder, cfg, folds)
        accelerator.wait_for_everyone()
        check_shared(folder)
        if agreed(accelerator, is_finished(folder)):
            accelerator.print(finished_line(folder, fold, cfg.metric))
            return

        # Set up: rows, model and optimiser, then where an interrupted call left them
        train_rows, valid_rows = rows_of(folds, fold, cfg)
        targets = targets_of(folds.labels, folds.classes)
        torch.manual_seed(seed_of("weights", cfg.seed, 0 if fold == "full" else int(fold) + 1))
        training = prepare_training(cfg, accelerator, images, targets, train_rows, folds.classes)
        steps, normalise = training.batches.steps, training.batches.normalise
        at_once = evaluation_batch(cfg.batch_size // (accelerator.num_processes * cfg.accumulate))
        facts = facts | {
            "fold": fold,
            "normalise": dataclasses.asdict(normalise),
            "memory_format": training.memory_format,
        }
        if agreed(accelerator, (folder / CHECKPOINT_FILE).exists()):
            training.restore(folder / CHECKPOINT_FILE, facts)
            accelerator.print(f"fold {fold} goes on after epoch {len(training.log)}")

        if accelerator.is_main_process:  # the new checkpoint lies beside the old one until it is whole
            copies = 1 if (folder / CHECKPOINT_FILE).exists() else 2
            check_folder(folder, copies * training.bytes_of_checkpoint)

        def predict_valid_rows() -> np.ndarray:
            rows = torch.from_numpy(valid_rows).to(accelerator.device)
            how = (normalise, TTA["none"], cfg.mixed_precision, at_once, cfg.img_size)
            logits = predict(accelerator, training.scored, images, rows, *how)[0]
            check_logits(f"fold {fold}, epoch {epoch + 1}", logits, REMEDY)
            return logits

        # Train
        start_trackers(accelerator, cfg.run_name, folder.name, facts["settings"])
        epoch, logits = len(training.log) - 1, None
        held.enter_context(parts_timed(cfg.profile and accelerator.is_main_process))
        while not training.is_over:
            pace = training.log[-1]["seconds"] if training.log else 0.0
            if deadline.is_set and agreed(accelerator, deadline.misses(pace)):
                done = f"fold {fold} stops after epoch {len(training.log)} of {cfg.epochs}"
                accelerator.print(f"{done}: the next would not end within --hours; the same command goes on")
                finish_trackers(accelerator)
                return
            epoch, started = len(training.log), time.perf_counter()
            torch.manual_seed(seed_of("dropout", cfg.seed, epoch, accelerator.process_index))
            trace = folder / TRACE_FILE if cfg.trace and epoch == 0 and accelerator.is_main_process else None
            with traced(trace, steps), epoch_bar(fold, epoch, steps * cfg.batch_size, accelerator) as bar:
                train_loss = train_epoch(accelerator, training, epoch, cfg.clip_grad, bar)
            train_seconds = time.perf_counter() - started
            share_buffers(accelerator, training.model, training.scored)
            row = {"epoch": epoch + 1, "lr": training.learning_rate((epoch + 1) * steps - 1), "train_loss": train_loss}
            if len(valid_rows):
                with part("evaluation"):
                    logits, valid_targets = predict_valid_rows(), targets[valid_rows]
                valid = share_scores(accelerator, score(logits, valid_targets))
                row |= {"valid_loss": valid["nll"], "accuracy": valid["accuracy"], cfg.metric: valid[cfg.metric]}
                if len(valid_rows) > 1:  # an epoch chosen on one half is scored on the other
                    row["even_accuracy"] = accuracy(logits[::2], valid_targets[::2])
                    row["odd_accuracy"] = accuracy(logits[1::2], valid_targets[1::2])
            row |= {"train_seconds": train_seconds, "seconds": time.perf_counter() - started}
            training.end_epoch(row)
            accelerator.log(row, step=epoch + 1)
            if accelerator.is_main_process:
                check_lock()
                # The log first: an epoch whose checkpoint was not written is trained, and logged, again.
                with part("saving"):
                    write_file(folder / LOG_FILE, pd.DataFrame(training.log, columns=list(row)).to_csv(index=False))
                    training.save(folder / CHECKPOINT_FILE, facts)
                print(epoch_line(fold, training.log, cfg, later), flush=True)

        finish_trackers(accelerator)

        # Keep the chosen weights and what they say about the rows that they have not seen
        if training.use_selected() or logits is None:  # else they are those that the last epoch was scored with
            share_buffers(accelerator, training.scored)
            with part("evaluation"):
                logits = predict_valid_rows() if len(valid_rows) else None
        if accelerator.is_main_process:
            check_lock()
            with part("saving"):
                save_fold(folder, training, facts, folds, valid_rows, logits, cfg.store)


def rows_of(folds: Folds, fold: str, cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and to validate on, after --train-fraction (per class) and --limit."""
    held_out = np.zeros(len(folds.fold), dtype=bool) if fold == "full" else folds.fold == int(fold)
    train, valid = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    random = np.random.default_rng(0)  # not --seed: repeats with other seeds must train on the same rows
    if cfg.train_fraction < 1:
        kept, targets = [], targets_of(folds.labels[train], folds.classes)
        of_each_class = np.split(train[np.argsort(targets, kind="stable")], np.cumsum(np.bincount(targets))[:-1])
        for rows in map(random.permutation, of_each_class):
            kept.append(rows[: max(1, round(cfg.train_fraction * len(rows)))])
        train = np.sort(np.concatenate(kept))
    if cfg.limit:
        train, valid = (np.sort(random.permutation(rows)[: cfg.limit]) for rows in (train, valid))
    if len(train) < cfg.batch_size:
        what = f"{cfg.batch_size} images are more than the {len(train)} training rows"
        raise UserError("--batch-size", what, f"use at most {len(train)}")
    return train, valid


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
        line += f"  valid loss {row['valid_loss']:.4f}  accuracy {row['accuracy']:.2%}"
        line += "" if cfg.metric in ("accuracy", "nll") else f"  {cfg.metric} {show(cfg.metric, row[cfg.metric])}"
    seconds_left = (epochs - len(log) + epochs * folds_after) * row["seconds"]
    return f"{line}  {row['seconds']:.1f} s, {seconds_left / 60:.1f} min left"


if __name__ == "__main__":
    run_script(main)
