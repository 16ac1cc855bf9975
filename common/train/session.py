"""What the folds of one call share: the machine, the images, and what each fold's files say of the run."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState

from common.base.errors import UserError, warn
from common.base.files import check_folder
from common.base.locks import locked
from common.base.system import cpu_count, is_job, keep_freed_memory, local_processes, spin_briefly
from common.base.words import in_shares
from common.data.batches import Examples, seed_of
from common.data.cache import DEFAULT_GB, Cache
from common.data.folds import Folds, split_rows
from common.data.inputs import Inputs, Joined, Reading, open_inputs
from common.data.table import Table
from common.data.transfer import HOST
from common.model.selection import create_selection
from common.model.weights import check_unseen
from common.runs.config import Config, of_fold, training_settings
from common.runs.folder import check_shared, start_or_go_on, start_over
from common.runs.layout import CHECKPOINT_FILE, CONFIG_FILE, LOG_FILE, fold_folder
from common.runs.saved_model import SavedModel
from common.runs.tensors import versions
from common.train.build import (
    augmentation_of,
    check_choices,
    create_untrained,
    learned_targets,
    length_of,
    preparation_of,
    prepare_training,
    unused_at_first,
    with_images_of,
)
from common.train.hardware import (
    agreed_precision,
    asked_precision,
    check_backend,
    check_devices,
    described,
    device_name,
    faster_precision,
    memory_format,
    own_device,
    usable_precision,
)
from common.train.loop import agreed
from common.train.memory import out_of_memory_in_training, out_of_memory_said
from common.train.teachers import Teaching
from common.train.trackers import check_trackers, tracking
from common.train.training import Training, load_checkpoint


@dataclass(frozen=True)
class Session:
    """What the folds that one call trains have in common."""

    cfg: Config  # with what the machine and the images decide: threads, channels, size
    folds: Folds
    teaching: Teaching
    inputs: Inputs  # of every row
    saved: SavedModel  # what each fold's weights file will say of the run
    accelerator: Accelerator  # for what the processes agree on between two folds
    log_with: tuple[str, ...]

    @property
    def run_folder(self) -> Path:
        """Where the run's files lie."""
        return Path(self.cfg.runs_dir) / self.cfg.run_name

    def folder_of(self, fold: str) -> Path:
        """Where the fold's files lie."""
        return fold_folder(self.run_folder, fold)

    def saved_model(self, fold: str, **normalise: Any) -> SavedModel:
        """What the fold's weights file will say of itself."""
        return dataclasses.replace(self.saved, fold=fold, normalise=normalise)

    def accelerator_of(self, fold: str) -> Accelerator:
        """One for each fold: what an accelerator has prepared, and its loss scaler, must not outlive the fold."""
        return create_accelerator(self.cfg, self.saved.precision, **tracking(self.log_with, self.folder_of(fold)))


def open_session(
    cfg: Config,
    table: Table,
    unlabelled: Table | None,
    folds: Folds,
    todo: list[str],
    cache: Cache,
    log_with: tuple[str, ...],
) -> Session:
    """Get ready to train the folds ``todo`` in this process and in those that the launcher put beside it.

    Raises:
        UserError: something that ``cfg`` names does not exist or does not work here, or an image is broken.
    """
    kept = ", freed memory kept for the next step" if keep_freed_memory() else ""
    kept += ", waiting threads sleep" if cfg.threads != 1 and spin_briefly() else ""
    asked = cfg.model
    cfg, precision = set_up_machine(cfg, table)
    accelerator = create_accelerator(cfg, precision)
    check_backend(accelerator)
    share = cfg.batch_size // (accelerator.num_processes * cfg.accumulate)
    shares = in_shares(accelerator.num_processes, cfg.accumulate, share, table.kind.row)
    accelerator.print(
        f"{cfg.run_name}: batch size {cfg.batch_size} = {shares}; "
        f"{cfg.threads} thread{'s' * (cfg.threads > 1)}, {described(accelerator.device)}, "
        f"mixed precision {precision}{kept}"
    )
    if faster := faster_precision(accelerator.device, precision):
        accelerator.print(faster)
    if cfg.model != asked:
        accelerator.print(f"model: {asked} is {cfg.model} today")
    if torch.cuda.device_count() > accelerator.num_processes:
        warn(
            f"{torch.cuda.device_count()} GPUs are available but only {accelerator.num_processes} is used: "
            "accelerate launch --num_processes N, or --fold all, uses them"
        )
    for loaded in check_all_choices(cfg, table, folds, todo, share, log_with):
        accelerator.print(f"weights: {loaded}")
    if cfg.restart and accelerator.is_main_process:
        start_over(Path(cfg.runs_dir) / cfg.run_name)
    accelerator.wait_for_everyone()
    if cache.gb != DEFAULT_GB and not table.kind.in_files:
        warn("--cache-gb has no effect: the images are not photos")
    cache = Cache(0 if cfg.limit else cache.gb, cache.folder)
    teaching = Teaching(cfg, folds, table, unlabelled, cache)
    inputs = inputs_of(cfg, table, unlabelled, folds, cache, accelerator)
    saved = SavedModel(
        settings=training_settings(cfg),
        fold="",
        fold_count=folds.count,
        folds_fingerprint=folds.fingerprint,
        output_names=folds.output_names,
        image_shape=table.kind.shape(table),
        inputs=table.inputs,
        preparation=preparation_of(cfg, table),
        normalise={},
        memory_format=measured_format(cfg, accelerator, len(folds.output_names)),
        processes=accelerator.num_processes,
        threads=cfg.threads,
        device=device_name(accelerator.device),
        computed_in=precision,
        run=cfg.run_name,
        versions=versions(),
        id_name=table.id_name,
        label_name=table.label_name,
    )
    return Session(cfg, folds, teaching, inputs, saved, accelerator, log_with)


def set_up_machine(cfg: Config, table: Table) -> tuple[Config, str]:
    """Set the number of threads; the settings with what the machine and the images decide, and the precision in use.

    The settings keep the precision that was asked for: on another card the same command goes on with a run.
    """
    check_devices()
    threads = cfg.threads or max(1, cpu_count() // local_processes())
    torch.set_num_threads(threads)
    asked = asked_precision(cfg.mixed_precision)
    precision = usable_precision(asked)
    precision = agreed_precision(precision, PartialState(cpu=own_device().type == "cpu").device)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # of an earlier run in this process, as a notebook has them
    return dataclasses.replace(with_images_of(cfg, table), threads=threads, mixed_precision=asked), precision


def create_accelerator(cfg: Config, precision: str, **tracking: Any) -> Accelerator:
    """Accelerate's view of this process and of those beside it, on a GPU if there is one."""
    ddp = DistributedDataParallelKwargs(
        find_unused_parameters=unused_at_first(cfg),
        gradient_as_bucket_view=True,  # a gradient is no second copy of what is sent
        static_graph=not cfg.freeze and cfg.accumulate == 1,  # a step that sends nothing is another graph
    )
    return Accelerator(
        cpu=own_device().type == "cpu",
        mixed_precision=precision,
        gradient_accumulation_steps=cfg.accumulate,
        kwargs_handlers=[ddp],
        **tracking,
    )


def check_all_choices(
    cfg: Config, table: Table, folds: Folds, todo: list[str], micro_batch: int, log_with: tuple[str, ...]
) -> list[str]:
    """Refuse what the training of the folds ``todo`` would, before a folder is touched; what was loaded, in words.

    ``cfg`` knows the images' channels and size (:func:`common.train.build.with_images_of`).
    """
    check_trackers(log_with)
    of_each = {start.weights: start for start in (of_fold(cfg, fold) for fold in todo)}  # one, unless {fold} is in it
    loaded = [check_choices(start, folds.output_names, micro_batch, table.kind.grey) for start in of_each.values()]
    if cfg.weights:
        known = [check_unseen(Path(of_fold(cfg, fold).weights), fold, folds) for fold in todo]
        if not all(known) and not is_job():
            what = "was trained with different folds: if on the same images, the out-of-fold score is flattered"
            warn(f"{cfg.weights} {what}")
    return list(filter(None, loaded))


def inputs_of(
    cfg: Config, table: Table, unlabelled: Table | None, folds: Folds, cache: Cache, accelerator: Accelerator
) -> Inputs:
    """The inputs of every row, as the model is given them; says what is done to them and where they are kept."""
    prepare = preparation_of(cfg, table)
    for line in table.kind.described(table, prepare):
        accelerator.print(f"images: {line}")
    device = HOST if augmentation_of(cfg).on_host else accelerator.device
    reading = Reading(cache, folds.row_shas, cfg.threads, accelerator.print)
    with out_of_memory_said("images", "do not fit into memory", "free memory, or lower --cache-gb or --img-size"):
        inputs = open_inputs(table, prepare, device, reading)
        if unlabelled is None:
            return inputs
        second = open_inputs(unlabelled, prepare, device, dataclasses.replace(reading, row_shas=()))
        return Joined(inputs, len(table.ids), second)


def measured_format(cfg: Config, accelerator: Accelerator, num_classes: int) -> str:
    """Torch's name of the memory format that the run trains in (:func:`common.train.hardware.memory_format`)."""
    if not cfg.channels:  # features have no image format
        return "contiguous_format"
    shape = (cfg.batch_size // (accelerator.num_processes * cfg.accumulate), cfg.channels, cfg.img_size, cfg.img_size)
    run_folder = Path(cfg.runs_dir) / cfg.run_name
    return memory_format(cfg.channels_last, run_folder, accelerator, lambda: create_untrained(cfg, num_classes), shape)


@contextmanager
def fold_held(session: Session, accelerator: Accelerator, fold: str) -> Iterator[Callable[[], None]]:
    """Hold a fold's folder; yields what raises UserError, on the main process, where it is no longer ours.

    Raises:
        UserError: the folder is in use, or belongs to other settings; a batch does not fit into memory (exit 3).
    """
    cfg, folder = session.cfg, session.folder_of(fold)
    with out_of_memory_in_training(cfg.batch_size, accelerator.num_processes, cfg.accumulate):
        if not accelerator.is_main_process:
            accelerator.wait_for_everyone()
            check_shared(folder)
            yield lambda: None
            return
        with locked(folder) as check_lock:
            is_new = not (folder / CONFIG_FILE).exists()
            start_or_go_on(folder, cfg, session.folds)
            try:
                accelerator.wait_for_everyone()
                check_shared(folder)
                yield check_lock
            except Exception:
                if is_new and not (folder / LOG_FILE).exists():
                    with suppress(UserError):  # where the folder is no longer ours, nor are the settings in it
                        check_lock()
                        (folder / CONFIG_FILE).unlink()  # nothing is trained yet: other settings may begin here
                raise


def trainings_of(session: Session, accelerator: Accelerator, fold: str) -> Iterator[Training]:
    """The trainings of a fold, each to be ended before the next is asked for: one, or several by --select members.

    They begin where an interrupted call left them, and pass on the log and the weights that are kept.
    """
    cfg, folds, folder = of_fold(session.cfg, fold), session.folds, session.folder_of(fold)
    path, device = folder / CHECKPOINT_FILE, accelerator.device
    rows, _ = split_rows(folds, fold, cfg.train_fraction, cfg.limit)
    targets, scale = learned_targets(cfg, session.teaching.table, folds, rows)
    lessons, rows = session.teaching.lessons(folder, rows, accelerator, scale)
    examples = Examples(session.inputs, torch.from_numpy(targets).to(device), rows, folds.output_names, lessons)
    selection = create_selection(cfg, length_of(cfg, cfg.epochs, len(rows) // cfg.batch_size))
    checkpoint = None
    if agreed(accelerator, path.exists()):
        checkpoint = load_checkpoint(path, session.saved_model(fold))
    log = checkpoint.log if checkpoint else []
    first = min(len(log) // selection.epochs, selection.nets - 1)
    seed = seed_of("weights", cfg.seed, 0 if fold == "full" else int(fold) + 1)
    for net in range(first, selection.nets):
        torch.manual_seed(seed_of("member", seed, net) if net else seed)
        accelerator.free_memory()  # of the net before
        training = prepare_training(cfg, accelerator, examples, selection, session.saved.memory_format, net, scale)
        training.log = log
        if checkpoint and net == first:
            training.restore(checkpoint)
            accelerator.print(f"fold {fold} resumes after epoch {len(log)}")
        if accelerator.is_main_process:  # the new checkpoint lies beside the old one until it is whole
            check_folder(folder, (1 if path.exists() else 2) * training.bytes_of_checkpoint)
        yield training
