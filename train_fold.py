"""Train one fold, or all of them, and predict the rows that each fold held out.

    accelerate launch train_fold.py --fold 0                      # one fold over every GPU present
    python train_fold.py --fold all                               # folds side by side, one per GPU or CPU core
    python train_fold.py --data train.csv.gz --config recipes/digits_fast.yaml

The same command again goes on where it was stopped. A fold's folder, runs/<run>/fold<k>/, ends up with
config.json, log.csv, model.safetensors, oof.npz and, last, metrics.json.
"""

import common  # noqa: F401  # isort: skip

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from common.base.cli import can_parse, flags_of, parse
from common.base.errors import UserError, run_script, warn
from common.base.files import read_json, write_file
from common.base.locks import locked
from common.base.profiling import part, parts_timed, traced
from common.base.result import Result
from common.base.system import die_of_ctrl_c, end_with_starter, is_job, processes, rank, torch_loaded
from common.data.cache import DEFAULT_GB, photo_cache
from common.data.competition import beside, competition_flags, next_command, read_competition, settings_flags, told
from common.data.folds import Folds, leaks, read_data, read_folds, split_rows
from common.data.table import Table
from common.jobs.deadline import Deadline
from common.jobs.process import Slot
from common.jobs.runner import SideBySide, loaded_once, slots_for, spread
from common.runs.config import Config, check_config
from common.runs.fitting import check_sources, filled_rows, fitting
from common.runs.folder import (
    as_recorded,
    check_place,
    check_settings,
    finished_line,
    say_result,
    start_over,
    sweep_up,
)
from common.runs.layout import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    LOG_FILE,
    TRACE_FILE,
    fold_folder,
    is_finished,
    read_metrics,
    unfinished,
)
from common.runs.oof import alike_in, oof_predictions
from common.runs.predictions import check_store
from common.runs.teachers import read_unlabelled, with_unlabelled
from common.score.metrics import show
from common.score.task import TASKS
from common.train.fold_jobs import late, train_side_by_side

if TYPE_CHECKING:
    from common.train.session import Session


@dataclass(frozen=True)
class Train(SideBySide, Config):
    """Train one fold of a timm model, or all folds: accelerate launch train_fold.py --fold 0"""

    COMMON = ("data", "work", "fold", "run", "config", "model", "pretrained", "epochs", "batch_size", "lr")
    # looking on
    show_batch: str = ""  # draw the first training batch, augmented and with its labels, into this png and stop
    log_with: tuple[str, ...] = ()  # trackers that log the epochs: tensorboard, wandb, mlflow ...
    # photos' cache, speed, files
    cache_gb: float = DEFAULT_GB  # GB of decoded photos that are kept in files (0, or too many: decoded every epoch)
    cache_dir: str = ""  # folder for these files (default: the user's cache folder)
    profile: bool = False  # print the time of each part of a fold; on a GPU, waiting for each part slows them all
    trace: bool = False  # write torch's trace of the first epoch into the fold's folder, for ui.perfetto.dev
    tf32: bool = False  # on NVIDIA's GPUs, faster float32 products with factors of 10 bits
    deterministic: bool = False  # on a GPU the same bits each time, by kernels that are slower
    store: str = "float32"  # format of oof.npz: float32, float16 (half as large), top64 (64 likeliest classes per row)


def main(argv: Sequence[str] | None = None) -> None:
    end_with_starter()
    if processes() > 1:
        die_of_ctrl_c()
    cfg = parse(Train, argv, competition_flags)
    result = run(cfg)
    if rank() == 0 and not is_job() and not cfg.show_batch:
        print(next_step(cfg, result.folder))


def run(cfg: Train) -> Result:
    """Train the folds that ``cfg.fold`` names, as far as they are not finished; prints what it does.

    In a notebook: ``train_fold.run(train_fold.Train(work="digits", epochs=2))``.

    Raises:
        UserError: a setting or an input file that cannot be used, or a training that failed.
    """
    deadline = Deadline(cfg.hours)
    cfg = told(cfg).of_task
    check_config(cfg, processes())
    check_store(cfg.store, TASKS[cfg.task])
    competition = read_competition(beside(cfg.folds))
    table, folds = read_data(cfg.data, cfg.folds, cfg.task, cfg.positive)
    cfg = with_unlabelled(fitting(cfg, table, folds), competition)
    unlabelled = read_unlabelled(cfg, table, competition) if cfg.unlabelled else None
    wanted = wanted_folds(cfg.fold, folds)
    if not is_job():
        if table.kind.of_any_size and cfg.model == Config.model:
            what = "is a small net for digits, and these are photos"
            warn(f"{cfg.model} {what}: try a model of timm, such as --model resnet18 --pretrained --lr 1e-3")
        if folds.task.is_number and table.kind.of_images and cfg.augment == "none" and rank() == 0:
            print("augment none: a number may change where its image does (--augment NAME, where yours does not)")
        for finding in leaks(folds, unlabelled):
            warn(f"{cfg.folds}: {finding}")
    if cfg.show_batch:
        from common.train.preview import draw_batch

        draw_batch(Path(cfg.show_batch), cfg, table, folds, filled_rows(folds, wanted[0], cfg))
        return Result(None, Path(cfg.show_batch).parent)
    run_folder = Path(cfg.runs_dir) / cfg.run_name
    check_place(run_folder, wanted)
    if not cfg.restart:
        check_begun(cfg, run_folder, folds, wanted)
    todo = wanted if cfg.restart else unfinished(run_folder, wanted)
    check_sources(cfg, folds, todo)
    # All that are wanted, not what is left: a run that goes on has the threads it began with.
    alike = not table.kind.of_any_size  # a step of photos needs gigabytes: no more of them than there are cores
    slots, threads = slots_for(cfg, cfg.threads, len(wanted), is_short(cfg, table), alike)
    if len(slots) > 1 and todo and not can_parse():
        warn("the package tyro is missing, with which jobs read their settings: the folds are trained in turn")
        slots = slots[:1]
    if not todo and processes() == 1:
        say_finished(cfg, wanted)
    elif todo and (len(slots) > 1 or slots[0].elsewhere):
        train_in_jobs(cfg, table, folds, todo, slots, threads, deadline)
    else:
        train_in_turn(cfg, table, unlabelled, folds, wanted, todo or wanted[:1], deadline)
    return result_of(cfg, folds, wanted)


def next_step(cfg: Train, run_folder: Path) -> str:
    """The command that comes next: the folds that are left, or the test rows' predictions.

    ``run_folder`` is the run's, which may be called by a model that the table has chosen and ``cfg`` does not know.
    """
    of_run = [] if cfg.fold == "full" else [f"{k}" for k in range(read_folds(Path(cfg.folds)).count)]
    if not cfg.limit and unfinished(run_folder, of_run):
        return next_command("train_fold.py", cfg, *settings_flags(cfg))
    return next_command("infer.py", cfg, *(["--fold", "full"] if cfg.fold == "full" else []))


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
    if table.kind.in_files:
        return False
    rows = min(cfg.limit or len(table.ids), cfg.train_fraction * len(table.ids))
    images = cfg.steps * cfg.batch_size or cfg.epochs * rows
    return images * table.images[0].size < 10e6


def check_begun(cfg: Train, run_folder: Path, folds: Folds, wanted: list[str]) -> None:
    """Refuse a run that was begun with other settings; without torch, but for a model of another name."""
    begun = sorted(run_folder.glob(f"*/{CONFIG_FILE}"))
    if not begun:
        return
    recorded = read_json(begun[0])
    if recorded.get("model") != cfg.model:  # an old name of it, or another model
        from common.model.networks import current_name

        cfg = dataclasses.replace(cfg, model=current_name(cfg.model))
    for fold in wanted:
        check_settings(fold_folder(run_folder, fold), as_recorded(cfg, recorded), folds)


def say_finished(cfg: Train, wanted: list[str]) -> None:
    """Say of each fold that it is finished."""
    for fold in wanted:
        folder = fold_folder(Path(cfg.runs_dir) / cfg.run_name, fold)
        with locked(folder):
            sweep_up(folder)
        print(finished_line(folder, fold, cfg.metric))


def result_of(cfg: Train, folds: Folds, wanted: list[str]) -> Result:
    """What the run's folder holds now; of all folds, the scores are printed as well, by one process."""
    run_folder = Path(cfg.runs_dir) / cfg.run_name
    if len(wanted) > 1:
        return Result(None if cfg.limit or rank() else say_result(run_folder, folds, cfg.metric), run_folder)
    metrics = {} if unfinished(run_folder, wanted) else read_metrics(fold_folder(run_folder, wanted[0]))
    return Result(metrics if "n" in metrics else None, run_folder)


def train_in_jobs(
    cfg: Train, table: Table, folds: Folds, todo: list[str], slots: Sequence[Slot], threads: int, deadline: Deadline
) -> None:
    """Train each of the folds ``todo`` in a process of its own, several at a time."""
    print(f"{cfg.run_name}: fold {', '.join(todo)}, {spread(slots, threads)}")
    with loaded_once(slots, len(todo)) as slots:
        run_folder = Path(cfg.runs_dir) / cfg.run_name
        # Each job checks its settings, before it makes a folder. Torch is loaded here too where one would do so too
        # late: after a run was deleted or other folds were trained, or where all would meet it one by one.
        if cfg.restart or cfg.weights or cfg.pretrained or cfg.compile or cfg.log_with:
            check_for_all(cfg, table, folds, todo)
        if cfg.restart:
            start_over(run_folder)
        command = (__file__, *flags_of(dataclasses.replace(cfg, config="")))
        train_side_by_side(run_folder, todo, cfg.epochs, command, slots, threads, deadline)


def check_for_all(cfg: Train, table: Table, folds: Folds, todo: list[str]) -> None:
    """Refuse, without a graph in this process, what the jobs of the folds ``todo`` would; download weights once."""
    from common.train.build import with_images_of
    from common.train.hardware import check_compile_apart
    from common.train.session import check_all_choices

    uncompiled = dataclasses.replace(with_images_of(cfg, table), compile=False)
    check_all_choices(uncompiled, table, folds, todo, cfg.batch_size // cfg.accumulate, cfg.log_with)
    if cfg.compile:
        check_compile_apart()


@torch_loaded(0)  # the session says how many threads
def train_in_turn(
    cfg: Train,
    table: Table,
    unlabelled: Table | None,
    folds: Folds,
    wanted: list[str],
    todo: list[str],
    deadline: Deadline,
) -> None:
    """Train the folds one after another in this process (and in those the launcher put beside it).

    ``todo`` are those of the ``wanted`` folds that are not finished. Only from here on torch is needed, whose loading
    takes seconds: all that can be checked without it is.
    """
    from common.train.hardware import set_up_device
    from common.train.loop import agreed
    from common.train.memory import release_memory
    from common.train.session import open_session

    set_up_device(cfg.tf32, cfg.deterministic, one_size="sizes" not in cfg.args("augment"))
    session = open_session(cfg, table, unlabelled, folds, todo, photo_cache(cfg.cache_gb, cfg.cache_dir), cfg.log_with)
    for position, fold in enumerate(wanted):
        if deadline.is_set and agreed(session.accelerator, late(deadline, session.run_folder, fold, cfg.epochs)):
            continue
        release_memory()
        later = len(unfinished(session.run_folder, wanted[position + 1 :]))
        train_fold(session, cfg, fold, later, deadline)
    session.accelerator.end_training()  # a process that leaves while the group's threads live on may abort


def train_fold(session: "Session", cfg: Train, fold: str, folds_after: int, deadline: Deadline) -> None:
    """Train one fold, from scratch or from its last finished epoch, and predict its rows, if the time allows.

    Raises:
        UserError: the folder is in use, or belongs to other settings; a batch does not fit into memory (exit 3); the
            loss, weights or predictions are no longer finite numbers (exit 4).
    """
    from common.train.loop import agreed, epoch_bar, predict_held_out, scores_of, train_epoch
    from common.train.outcome import save_training
    from common.train.session import fold_held, trainings_of
    from common.train.trackers import tracked

    accelerator, folder, folds = session.accelerator_of(fold), session.folder_of(fold), session.folds
    is_main, logits = accelerator.is_main_process, None
    _, rows = split_rows(folds, fold, cfg.train_fraction, cfg.limit)
    with ExitStack() as held:
        check_lock = held.enter_context(fold_held(session, accelerator, fold))
        if agreed(accelerator, is_finished(folder)):
            accelerator.print(finished_line(folder, fold, cfg.metric))
            return
        held.enter_context(tracked(accelerator, cfg.run_name, folder.name, session.saved.settings))
        held.enter_context(parts_timed(cfg.profile and is_main))
        for training in trainings_of(session, accelerator, fold):
            steps, normalise = training.batches.steps, dataclasses.asdict(training.batches.normalise)
            saved = session.saved_model(fold, **normalise)
            while not training.is_over:
                epoch, started = len(training.log) + 1, time.perf_counter()
                pace = training.log[-1]["seconds"] if training.log else 0.0
                if deadline.is_set and agreed(accelerator, deadline.misses(pace)):
                    done = f"fold {fold} stops after epoch {epoch - 1} of {cfg.epochs}: the next would not finish"
                    accelerator.print(f"{done} within --hours; run the same command to continue")
                    return
                trace = folder / TRACE_FILE if cfg.trace and epoch == 1 and is_main else None
                bar = epoch_bar(accelerator, f"fold {fold} epoch {epoch}", training.batches)
                with traced(trace, steps), bar:
                    train_loss = train_epoch(accelerator, training, cfg.clip_grad, bar)
                train_seconds = time.perf_counter() - started
                logits = predict_held_out(accelerator, training, rows, f"fold {fold}, epoch {epoch}")
                last_lr = training.learning_rate((training.epoch + 1) * steps - 1)
                row = {"epoch": epoch, "lr": last_lr, "train_loss": train_loss}
                row |= scores_of(accelerator, folds, rows, logits, cfg.metric)
                row |= {"train_seconds": train_seconds, "seconds": time.perf_counter() - started}
                training.end_epoch(row)
                accelerator.log(row, step=epoch)
                if is_main:
                    check_lock()
                    # The log first: an epoch whose checkpoint was not written is trained, and logged, again.
                    with part("saving"):
                        write_file(folder / LOG_FILE, pd.DataFrame(training.log, columns=list(row)).to_csv(index=False))
                        training.save(folder / CHECKPOINT_FILE, saved)
                    print(epoch_line(fold, training.log, cfg, folds_after), flush=True)

        # Keep the chosen weights and what they say about the rows that they have not seen
        if training.use_selected() or logits is None:  # else they are those that the last epoch was scored with
            logits = predict_held_out(accelerator, training, rows, f"fold {fold}, epoch {len(training.log)}")
        if is_main:
            check_lock()
            with part("saving"):
                oof = None if logits is None else oof_predictions(folds, rows, logits)
                save_training(folder, training, saved, oof, cfg.store, alike_in(folds, rows))


def epoch_line(fold: str, log: list[dict[str, Any]], cfg: Config, folds_after: int) -> str:
    """One line on the epoch that just ended, with the time that this and the later folds still need."""
    row, epochs = log[-1], cfg.epochs
    line = f"fold {fold} epoch {row['epoch']:>3}/{epochs}  lr {row['lr']:.2e}  train loss {row['train_loss']:.4f}"
    # The metric first where it is the competition's own; else the task's first stands behind its loss.
    first = [] if cfg.metric == TASKS[cfg.task].metrics[0] else [cfg.metric]
    task = TASKS[cfg.task]
    for name in dict.fromkeys([*first, task.loss_metric, task.metrics[0]]):
        line += f"  {name} {show(name, row[name])}" if name in row else ""
    seconds_left = (epochs - len(log) + epochs * folds_after) * row["seconds"]
    return f"{line}  {row['seconds']:.1f} s, {seconds_left / 60:.1f} min left"


if __name__ == "__main__":
    run_script(main)
