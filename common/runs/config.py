"""The settings of a training run: one flat table that is flag, json key and column alike."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal

import numpy as np

from common.base.cli import Range, allowed_by, check_arguments, check_value, chosen, keyword_arguments
from common.base.errors import UserError, refuse
from common.base.words import in_shares
from common.data.augment_options import AUGMENTS, options_of
from common.runs.choices import LOSSES, SCHEDULES, SELECTIONS, check_optimiser
from common.runs.layout import fold_folder
from common.score.metrics import check_metric_name
from common.score.task import MULTICLASS, TASKS

Count = Annotated[int, Range(1, whole=True)]
Whole = Annotated[int, Range(0, whole=True)]
Number = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]

LONGEST_NAME = 200  # bytes of a run's name: most file systems take 255, and a sweep adds to it


@dataclass(frozen=True)
class Config:
    """Train one fold of a timm model, or all folds: accelerate launch train_fold.py --fold 0"""

    # data and places
    data: str = "digits"  # train table (.csv, .csv.gz), folder of class folders, or digits (embedded)
    work: str = "."  # folder of one competition, short for --folds DIR/folds.csv --runs-dir DIR/runs
    folds: str = "folds.csv"  # folds file, written once by folds.py
    runs_dir: str = "runs"  # folder that holds every run
    run: str = ""  # name of this run (default: the model's name)
    fold: str = "all"  # a fold's number, all, or full (every row, no validation)
    config: str = ""  # recipe (yaml); flags on the command line override it
    restart: bool = False  # list what this run's folder holds, then delete it
    task: Literal[tuple(TASKS)] = MULTICLASS.name  # an answer: a class, a label set, numbers
    drop: tuple[str, ...] = ()  # columns of features that this run leaves out
    offset: str = ""  # column of features: the run learns the target less that column, and adds it again
    target_transform: Literal["none", "log1p"] = "none"  # log1p: learns log(1 + target), for long tails
    # model
    model: str = "digit_cnn"  # any timm model, or digit_cnn
    model_args: tuple[str, ...] = ()  # for the model: drop_rate=0.2; also sync_bn, grad_checkpointing, photos' crop_pct
    pretrained: bool = False  # start from timm's weights for this model, from the Hugging Face hub
    weights: str = ""  # start from this .safetensors file (our names or timm's); {fold} in it: fold0 ...
    freeze: tuple[str, ...] = ()  # backbone=N (of N --epochs: last layer only), stages=N (and stem), batchnorm=True
    img_size: Whole = 0  # side of the model's input in pixels (0: the images' own; for photos the pretrained model's)
    channels: Whole = 0  # 1 grey, 3 colour, or as many as an image has files (0: the images' own)
    # optimisation
    epochs: Count = 10  # passes over the training folds
    steps: Whole = 0  # optimiser steps of the whole training instead of passes, in --epochs equal parts (0: passes)
    batch_size: Count = 64  # images per optimiser step, over all processes and accumulation steps
    accumulate: Count = 1  # forward passes per optimiser step
    opt: str = "adamw"  # timm's name or lookahead_NAME; ralamb, ranger (lookahead_radam), over9000 (lookahead_ralamb)
    opt_args: tuple[str, ...] = ()  # name=value pairs for the optimiser
    lr: Number = 3e-3  # peak learning rate, used as given
    schedule: str = "warmup-cosine"  # warmup-cosine, cosine, restarts, step, multistep, onecycle, wsd, plateau ...
    schedule_args: tuple[str, ...] = ()  # name=value pairs for the schedule, such as min_lr_ratio=0.01
    warmup_epochs: Number = 1.0  # epochs of linear warm-up, fractions allowed
    weight_decay: Number = 0.05  # decoupled where the optimiser does so; biases and norms have none
    layer_decay: PositiveShare = 1.0  # learning rate of each layer as a share of the next one's
    backbone_lr_scale: PositiveShare = 1.0  # learning rate of all but the last layer as a share of lr
    # loss and regularisation
    loss: str = "cross-entropy"  # cross-entropy, focal, ohem, bce, arcface, lovasz-softmax ...; numbers: mse, mae
    loss_args: tuple[str, ...] = ()  # name=value pairs for the loss; per-image losses take class_weights=balanced
    sampling: Literal["uniform", "balanced"] = "uniform"  # balanced: each class equally often in an epoch
    label_smoothing: Share = 0.1  # share of each label spread over all classes, in training only
    clip_grad: Number = 0.0  # largest gradient norm (0: no clipping)
    ema_decay: Share = 0.0  # decay of an average of the weights, scored and saved instead of them (0: off)
    # speed
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"  # auto: the launcher's
    channels_last: Literal["auto", "yes", "no"] = "auto"  # memory format (auto: the faster one, measured once per run)
    compile: bool = False  # torch.compile: minutes of startup, then faster steps
    threads: Whole = 0  # CPU threads per process (0: cores / processes on this machine)
    crop_frames: Whole = 0  # longest part of a sequence that training sees, drawn anew each time (0: all of it)
    window: Whole = 0  # frames on either side that a model of single frames sees
    # augmentation
    augment: str = "auto"  # preset: none, digits, photos_light, photos, leaves_course (auto: photos or digits)
    augment_args: tuple[str, ...] = ()  # changes to the preset: rotation=10 elastic=0.02 mixup=0.2 sizes=(24,28,32)
    # what is kept, and by which metric
    metric: str = "accuracy"  # the competition's, which --select best and plateau watch: nll, auc, f1, map@5 ...
    positive: str = ""  # class that f1 and average_precision look for (default: the second of two)
    select: str = "last"  # weights kept: last or best epoch, swa (mean of the last), snapshots (of restarts), members
    select_args: tuple[str, ...] = ()  # name=value: patience=5 (best: early stop), last=5 (swa, snapshots), count=3
    # teachers and unlabelled rows
    teacher: tuple[str, ...] = ()  # distillation: runs whose models of the same fold say what they see in each row
    teacher_weight: Share = 0.5  # of what the teachers say in the loss; the labels have the rest
    teacher_temperature: Positive = 2.0  # softens what teachers and student say before they are compared
    pseudo: tuple[str, ...] = ()  # pseudo-labels: runs whose models of the same fold label rows that have no label
    pseudo_threshold: Share = 0.9  # least probability of a label, calibrated by the teachers' out-of-fold predictions
    pseudo_weight: Share = 1.0  # of a pseudo-label in the loss; a label has 1
    pseudo_labels: Literal["hard", "soft"] = "hard"  # the likeliest answer, or the calibrated probabilities
    consistency: Number = 0.0  # mean teacher: weight of agreeing with the average of the net, of --ema-decay (0: off)
    consistency_ramp: Number = 1.0  # epochs over which this weight rises
    unlabelled: str = ""  # rows without labels that join the training: table or folder (default: the test table)
    labelled_share: Share = 0.25  # of each batch, at least, where unlabelled rows are many (0: as many as come)
    # rows and seed
    seed: Whole = 0  # of weights, order and augmentation
    train_fraction: Share = 1.0  # share of the training rows used, per class
    limit: Whole = 0  # rows used of each part, for a smoke run (0: all)

    @property
    def of_task(self) -> "Config":
        """The settings with what the task usually has, where a default does not fit it."""
        task, usual = TASKS[self.task], {}
        for name, known in (("loss", task.losses), ("metric", task.metrics)):
            if getattr(Config, name) not in known:
                usual[name] = known[0]
        if task.is_number:
            usual |= {"label_smoothing": 0.0, "augment": "none"}
        unsaid = {name: own for name, own in usual.items() if getattr(self, name) == getattr(Config, name)}
        return dataclasses.replace(self, **unsaid)

    @property
    def run_name(self) -> str:
        """The run's folder below ``runs_dir``."""
        return self.run or self.model

    @property
    def joins_rows(self) -> bool:
        """Whether rows without labels join the training."""
        return bool(self.unlabelled or self.pseudo or self.consistency)

    def args(self, of: str) -> Mapping[str, Any]:
        """The pairs of ``--<of>-args``, or of ``--freeze``, as keyword arguments; a text is read once."""
        flag = of if of == "freeze" else f"{of}-args"
        return keyword_arguments(flag, getattr(self, flag.replace("-", "_")))


# Settings that have no effect unless one of these is given.
NEEDED_BY = {
    ("teacher_weight", "teacher_temperature"): ("teacher",),
    ("pseudo_threshold", "pseudo_weight", "pseudo_labels"): ("pseudo",),
    ("consistency_ramp",): ("consistency",),
    ("unlabelled",): ("teacher", "pseudo", "consistency"),
    ("labelled_share",): ("unlabelled", "pseudo", "consistency"),
}

# What --freeze takes; the model and the epochs say the rest (common/model/finetune.py).
FREEZABLE = {"backbone": Range(0, whole=True), "stages": Range(0, whole=True), "batchnorm": (False, True)}

SIZE_FLAG = "--batch-size"  # by which a training is told its batch size; a sweep's cells have theirs by another

FOLD = "{fold}"  # in --weights: the name of the fold's folder, so that each starts from its own

# Where things lie and how many threads work on them does not change what is trained.
_PLACES = {"data", "work", "folds", "runs_dir", "run", "fold", "config", "restart", "threads"}


def check_config(cfg: Config, processes: int, size_flag: str = SIZE_FLAG) -> None:
    """Refuse what cannot be meant, before anything is loaded; ``size_flag`` has said the batch size.

    Raises:
        UserError: a setting that is refused by itself (:func:`check_each`), or two that do not go together.
    """
    check_each(cfg)
    if cfg.warmup_epochs > cfg.epochs:
        raise UserError("--warmup-epochs", f"{cfg.warmup_epochs} is out of range", f"use 0 to {cfg.epochs}")
    if cfg.steps % cfg.epochs:
        remedy = f"use a multiple, or --epochs 1 --steps {cfg.steps}"
        raise UserError("--steps", f"{cfg.steps} cannot be cut into --epochs {cfg.epochs} equal parts", remedy)
    if cfg.pretrained and cfg.weights:
        raise UserError("--weights", "cannot be combined with --pretrained", "use one of them")
    if cfg.weights and FOLD not in cfg.weights:
        check_file("--weights", cfg.weights)
    shares = processes * cfg.accumulate
    if cfg.batch_size % shares:
        raise UserError(
            size_flag,
            f"{cfg.batch_size} is not divisible by {in_shares(processes, cfg.accumulate)}",
            f"use a multiple of {shares}",
        )
    if cfg.fold == "full":
        of_scores = {"--select best": cfg.select == "best", "--schedule plateau": cfg.schedule == "plateau"}
        refuse(of_scores, "needs validation rows, but --fold full has none", "choose another")
    if cfg.select == "swa" and cfg.ema_decay > 0:
        raise UserError("--select", "swa averages over epochs and --ema-decay over steps", "use only one of them")
    check_loss(cfg)
    check_lessons(cfg)


def check_each(cfg: Config) -> None:
    """Check each setting by itself: numbers by their Range, names by their tables, name=value pairs as text.

    Raises:
        UserError: with the range, or the nearest names.
    """
    for field in dataclasses.fields(Config):
        value, allowed = getattr(cfg, field.name), allowed_by(field.type)
        if allowed is not None and value not in allowed:
            raise UserError(f"--{field.name.replace('_', '-')}", f"{value} is out of range", f"use {allowed}")
    if any(mark in cfg.model for mark in ":/\\"):  # an address on the hub; timm's own names have none of these
        address = re.split(r"[:/\\]+", cfg.model)
        ours = "timm" in address[:-1] or address[:-1] in (["hf-hub"], ["hf_hub"])
        other = "use timm's name of the model, and --weights FILE for its weights"
        name = address[-1].partition("@")[0].strip()  # without a revision
        remedy = f"did you mean {name}?" if ours and name else other
        raise UserError("--model", f"{cfg.model} is not a name of a model in timm", remedy)
    if cfg.run_name in (".", "..") or {"/", "\\"} & set(cfg.run_name):
        raise UserError(
            "--run", f"{cfg.run_name} is not a valid folder name", "give a plain name; --runs-dir sets the folder"
        )
    if len(cfg.run_name.encode()) > LONGEST_NAME:
        raise UserError("--run", f"{cfg.run_name[:40]}... is too long for a folder", "choose a shorter name")
    task = TASKS[cfg.task]
    check_metric_name(cfg.metric, task.metrics)
    names = {"loss": task.losses}
    names |= {"schedule": SCHEDULES, "select": SELECTIONS, "augment": AUGMENTS}
    for flag, known in names.items():
        chosen(flag, getattr(cfg, flag), dict.fromkeys(known))
    check_optimiser(cfg.opt)
    for of in ("model", "freeze", "opt", "schedule", "loss", "augment", "select"):
        cfg.args(of)
    for name, value in cfg.args("freeze").items():
        if name not in FREEZABLE:
            raise UserError("--freeze", f"{name} is unknown", f"known: {', '.join(FREEZABLE)}")
        if (name, value) == ("backbone", "all"):
            raise UserError("--freeze", "backbone=all is not a number of epochs", f"say backbone={cfg.epochs} for all")
        check_value("freeze", name, value, 0, FREEZABLE[name])
    for name in ("sync_bn", "grad_checkpointing"):
        check_value("model-args", name, cfg.args("model").get(name, False), default=False)
    options_of(cfg.augment, cfg.args("augment"), grey=cfg.channels not in (0, 3))


def check_loss(cfg: Config) -> None:
    """Refuse what the loss cannot take of the other settings.

    Raises:
        UserError: smoothed or mixed targets, class weights of images that have no loss of their own, or on top of
            balanced sampling.
    """
    loss, weights = LOSSES[cfg.loss], cfg.args("loss").get("class_weights", "")
    if loss.hard_labels:
        what = f"{cfg.loss} takes hard labels only: an image is in a class's set or not"
        if cfg.label_smoothing > 0:
            raise UserError("--loss", what, "use --label-smoothing 0")
        if "mix" in options_of(cfg.augment, cfg.args("augment"), grey=False):
            raise UserError("--augment-args", what, "leave out mixup and cutmix")
    if not TASKS[cfg.task].is_one_of:
        of_classes = {
            "--loss-args class_weights": weights != "",
            "--sampling balanced": cfg.sampling == "balanced",
            f"--select {cfg.select}": cfg.select in ("snapshots", "members"),
        }
        refuse(of_classes, f"needs rows of exactly one class, which {cfg.task} has not", "leave it out")
    if cfg.label_smoothing and TASKS[cfg.task].is_number:
        raise UserError("--label-smoothing", "is about classes and labels, and the task is of numbers", "leave it out")
    if not TASKS[cfg.task].is_number:
        of_numbers = {"--offset": cfg.offset, "--target-transform": cfg.target_transform != "none"}
        what = f"is for numbers, and the task is {cfg.task}"
        refuse(of_numbers, what, "leave it out, or say --task regression")
    if cfg.offset and (cfg.target_transform != "none" or loss.is_bounded):
        what = "learns a difference, which has neither a logarithm nor bounds"
        raise UserError("--offset", what, "leave it out, or use --target-transform none and another loss")
    if weights != "" and loss.of_the_batch:
        raise UserError("--loss-args", f"{cfg.loss} has no loss per image to weight", "leave out class_weights")
    if weights == "balanced" and cfg.sampling == "balanced":
        raise UserError("--sampling", "balanced and class_weights=balanced both correct for class imbalance", "use one")


def check_lessons(cfg: Config) -> None:
    """Refuse what does not go with teachers, or with rows that have no label, or has no effect without them.

    Raises:
        UserError: such a setting.
    """
    for parts, ways in NEEDED_BY.items():
        changed = [part for part in parts if getattr(cfg, part) != getattr(Config, part)]
        if changed and not any(getattr(cfg, way) for way in ways):
            needed = " or ".join(f"--{way}" for way in ways)
            flag = f"--{changed[0].replace('_', '-')}"
            raise UserError(flag, f"has no effect without {needed}", f"leave it out, or add {needed}")
    if TASKS[cfg.task].is_number:
        of_probabilities = {
            "--pseudo": cfg.pseudo,
            "--consistency": cfg.consistency,
            "--teacher-temperature": cfg.teacher_temperature != Config.teacher_temperature,
        }
        remedy = "leave it out; --teacher with --unlabelled learns from rows without labels"
        refuse(of_probabilities, f"looks at probabilities, which {cfg.task} has not", remedy)
    if cfg.consistency and cfg.teacher:
        raise UserError("--consistency", "cannot be combined with --teacher", "use one of them")
    if cfg.consistency and not cfg.ema_decay:
        raise UserError("--consistency", "needs the average of the net as its teacher", "add --ema-decay 0.99")
    if cfg.consistency_ramp > cfg.epochs:
        raise UserError("--consistency-ramp", f"{cfg.consistency_ramp:g} is out of range", f"use 0 to {cfg.epochs}")
    if not cfg.joins_rows:
        return
    loss, task = LOSSES[cfg.loss], TASKS[cfg.task]
    if loss.of_the_batch:
        raise UserError("--loss", f"{cfg.loss} cannot tell rows without labels from others", "choose another loss")
    if cfg.sampling == "balanced":
        what = "balanced draws rows by their labels, and the rows that join have none of their own"
        raise UserError("--sampling", what, "use uniform, or --loss-args class_weights=balanced")
    if not cfg.pseudo:
        return
    if cfg.pseudo_labels == "soft" and loss.hard_labels:
        raise UserError("--pseudo-labels", f"soft ones do not go with --loss {cfg.loss}", "use hard ones")
    if not task.is_one_of:
        if cfg.loss != "bce":
            raise UserError("--loss", f"{cfg.loss} cannot leave out labels that no teacher is sure of", "use bce")
        if "mix" in options_of(cfg.augment, cfg.args("augment"), grey=False):
            what = "mixes labels that no teacher is sure of into others"
            raise UserError("--augment-args", what, "leave out mixup and cutmix")


def check_transform(targets: np.ndarray) -> None:
    """Raise UserError where --target-transform takes no such targets (n, columns)."""
    if (targets <= -1).any():
        what = f"log1p takes numbers above -1 only, and a target is {targets.min():g}"
        raise UserError("--target-transform", what, "leave it out")


def check_signatures(cfg: Config) -> None:
    """Check name=value pairs by the signatures of what they are for; where there are any, torch is loaded.

    Raises:
        UserError: an unknown name, a value of the wrong type or out of range.
    """
    own = {name: value for name, value in cfg.args("loss").items() if name != "class_weights"}
    for of, address, arguments in (
        ("loss", LOSSES[cfg.loss].function, own),
        ("schedule", SCHEDULES[cfg.schedule], cfg.args("schedule")),
        ("select", SELECTIONS[cfg.select], cfg.args("select")),
    ):
        if arguments:
            check_arguments(f"{of}-args", arguments, resolve_name(address))


def check_file(flag: str, path: str) -> None:
    """Raise UserError unless there is a file of this name."""
    if not Path(path).is_file():
        raise UserError(flag, f"there is no file {path}", "check the path")


def of_fold(cfg: Config, fold: str) -> Config:
    """The settings with the weights that this fold starts from."""
    return dataclasses.replace(cfg, weights=cfg.weights.replace(FOLD, fold_folder(Path(), fold).name))


def training_settings(cfg: Config) -> dict[str, Any]:
    """The fields that decide the result; two folds of one run agree in all of them."""
    names = [field.name for field in dataclasses.fields(Config) if field.name not in _PLACES]
    return {name: getattr(cfg, name) for name in names}  # a script's own options are no settings


def saved_config(settings: Mapping[str, Any]) -> Config:
    """Settings as a file holds them; one that an older version had and this one lacks is left out."""
    known = {field.name for field in dataclasses.fields(Config)}
    pairs = {name: value for name, value in settings.items() if name in known}
    return Config(**{name: tuple(value) if isinstance(value, list) else value for name, value in pairs.items()})


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Each setting that differs, as ``lr: 0.003 -> 0.001``; one that an older version lacked had today's default."""
    defaults = dataclasses.asdict(Config())
    old, new = defaults | old, defaults | new
    return [
        f"{name}: {_shown(old.get(name, 'absent'))} -> {_shown(new.get(name, 'absent'))}"
        for name in sorted(old.keys() | new.keys())
        if _plain(old.get(name)) != _plain(new.get(name))
    ]


def _shown(value: Any) -> str:
    """A setting in a message; of a sha256 as much of it as is shown elsewhere."""
    return str(value)[:16] if re.fullmatch("[0-9a-f]{64}", str(value)) else str(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # JSON knows lists only
