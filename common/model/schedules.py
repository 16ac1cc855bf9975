"""Learning-rate schedules: the share of --lr at an optimiser step, a row each in SCHEDULES (choices.py).

All but plateau are pure functions of the step (0 is the first), so no number of processes, restart or sweep can bend
them. All start with a linear warm-up of length.warmup steps where they do not say otherwise, and all keep their last
value past the end of training: unclamped, a cosine climbs back to its peak.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pkgutil import resolve_name
from typing import Annotated, Any

from common.base.cli import Range
from common.base.errors import UserError
from common.runs.choices import SCHEDULES

Share = Annotated[float, Range(0, 1)]
Epochs = Annotated[float, Range(0)]
Milestones = Annotated[Sequence[float], Range(0)]
Count = Annotated[int, Range(1, whole=True)]
Factor = Annotated[float, Range(0, above=True)]


@dataclass(frozen=True)
class Length:
    """A training counted in optimiser steps: all of it, its warm-up, and one epoch."""

    total: int
    warmup: int
    epoch: int


def ramp(step: int, length: Length) -> float:
    """Linear from 1/warmup to 1 (Goyal et al., arXiv 1706.02677), then 1."""
    return min(1.0, (step + 1) / length.warmup) if length.warmup else 1.0


def half_cosine(done: float, min_lr_ratio: float) -> float:
    """From 1 at ``done`` = 0 to ``min_lr_ratio`` at 1 and past it."""
    return min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def warmup_cosine(step: int, length: Length, min_lr_ratio: Share = 0.0) -> float:
    """A half cosine that begins where the warm-up ends (one cycle of SGDR, arXiv 1608.03983)."""
    if step < length.warmup:
        return ramp(step, length)
    return half_cosine((step - length.warmup) / max(1, length.total - length.warmup), min_lr_ratio)


def cosine(step: int, length: Length, min_lr_ratio: Share = 0.0) -> float:
    """A half cosine over the whole training, torch's CosineAnnealingLR; a warm-up scales its first steps."""
    return ramp(step, length) * half_cosine(step / length.total, min_lr_ratio)


def restarts(step: int, length: Length, cycles: Count = 3, t_mult: Factor = 1.0, min_lr_ratio: Share = 0.0) -> float:
    """``cycles`` half cosines after the warm-up, each ``t_mult`` times as long as the one before (SGDR).

    Cycles end with an epoch, the last one with the training. torch's T_0 is therefore (epochs - warm-up) /
    (1 + t_mult + t_mult^2 + ...): over 30 epochs without warm-up, cycles=2 t_mult=2 are 10 and 20 epochs.
    """
    if step < length.warmup:
        return ramp(step, length)
    start = length.warmup
    for epoch in cycle_ends(length, cycles, t_mult):
        end = epoch * length.epoch
        if step < end:
            return half_cosine((step - start) / (end - start), min_lr_ratio)
        start = end
    return min_lr_ratio


def cycle_ends(length: Length, cycles: int = 3, t_mult: float = 1.0, **others: float) -> list[int]:
    """The epochs (counted from 1) with which the cycles of :func:`restarts` end.

    Raises:
        UserError: the training has fewer epochs than that takes.
    """
    warmup = length.warmup / length.epoch
    try:
        ends = list(accumulate(float(t_mult) ** cycle for cycle in range(min(cycles, length.total + 1))))
        epochs = [round(warmup + (length.total / length.epoch - warmup) * end / ends[-1]) for end in ends]
    except (OverflowError, ValueError):  # of a t_mult beyond all floats
        epochs = []
    starts = [math.floor(warmup), *epochs]
    if not epochs or any(end <= start for start, end in zip(starts, epochs, strict=False)):
        what = f"{cycles} cycles with t_mult {t_mult:g} do not fit into the epochs after the warm-up"
        raise UserError("--schedule-args", what, "use more --epochs or fewer cycles")
    return epochs


def step(step: int, length: Length, every: Epochs = 0.0, factor: Share = 0.1) -> float:
    """Times ``factor`` after ``every`` epochs, again and again (0: a third of the training); torch's StepLR."""
    every = every or length.total / length.epoch / 3
    return ramp(step, length) * factor ** int(min(step, length.total - 1) / (every * length.epoch))


def multistep(step: int, length: Length, milestones: Milestones = (), factor: Share = 0.1) -> float:
    """Times ``factor`` at each of the ``milestones``, in epochs; without any, at 1/2 and 3/4 of the training."""
    epochs = length.total / length.epoch
    passed = sum(step >= milestone * length.epoch for milestone in milestones or (epochs / 2, epochs * 3 / 4))
    return ramp(step, length) * factor**passed


def onecycle(step: int, length: Length, start_ratio: Share = 0.04, min_lr_ratio: Share = 4e-6) -> float:
    """Up by a half cosine from ``start_ratio`` during the warm-up, then down by another to ``min_lr_ratio``.

    torch's OneCycleLR with pct_start = warm-up / epochs, which there is 0.3: give it --warmup-epochs of about a third.
    Momentum is left alone (cycle_momentum=False). Source: L. N. Smith, arXiv 1708.07120, in fast.ai's form.
    """
    top, last = max(0, length.warmup - 1), length.total - 1
    if step < top:
        return half_cosine(1 - step / top, start_ratio)
    return half_cosine((step - top) / max(1, last - top), min_lr_ratio)


def wsd(step: int, length: Length, decay: Epochs = 0.0, min_lr_ratio: Share = 0.0) -> float:
    """Warm-up, stable, decay: the peak until ``decay`` epochs before the end (0: a fifth of the training).

    The decay is 1 - sqrt, which beat linear and cosine in Hägele et al., arXiv 2405.18392.
    """
    steps = decay * length.epoch or length.total / 5
    done = min(1.0, max(0.0, (step - (length.total - steps)) / steps))
    return ramp(step, length) * (min_lr_ratio + (1 - min_lr_ratio) * (1 - math.sqrt(done)))


def constant(step: int, length: Length) -> float:
    """The peak to the end."""
    return ramp(step, length)


def plateau(
    step: int,
    length: Length,
    scores: Sequence[float],
    factor: Share = 0.1,
    patience: Annotated[int, Range(0, whole=True)] = 4,
    min_lr_ratio: Share = 0.0,
) -> float:
    """Times ``factor`` when ``patience`` epochs in a row and one more have brought no better score.

    torch's ReduceLROnPlateau with threshold 0. ``scores`` (higher is better) are those of the finished epochs: they
    are all its state, so what is resumed from the log goes on as it would have.
    """
    share, best, bad = 1.0, -math.inf, 0
    for score in scores:
        best, bad = (score, 0) if score > best else (best, bad + 1)
        if bad > patience:
            share, bad = share * factor, 0
    return ramp(step, length) * max(share, min_lr_ratio)


def create_schedule(name: str, length: Length, /, **schedule_args: Any) -> Callable[[int, Sequence[float]], float]:
    """The share of the peak as a function of the step and of the finished epochs' scores, which only plateau reads.

    Raises:
        UserError: a duration does not fit into the training.
    """
    function = resolve_name(SCHEDULES[name])

    def share(at: int, scores: Sequence[float]) -> float:
        seen = {"scores": scores} if function is plateau else {}
        return function(at, length, **seen, **schedule_args)

    epochs = length.total / length.epoch
    durations = [*schedule_args.get("milestones", ()), schedule_args.get("every", 0), schedule_args.get("decay", 0)]
    try:
        curve = [share(at, ()) for at in range(0, length.total, length.epoch)]
    except ArithmeticError:
        curve = []
    if not curve or max(durations) > epochs:
        pairs = " ".join(f"{argument}={value}" for argument, value in schedule_args.items())
        what = f"{name} with {pairs} is not a valid schedule for {epochs:g} epochs"
        where = f"{function.__name__} in common/model/schedules.py"
        raise UserError("--schedule-args", what, f"durations are in epochs: see {where}")
    return share
