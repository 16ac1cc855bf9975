"""Learning-rate schedules: the share of --lr at an optimiser step, one line each in SCHEDULES.

All but plateau are pure functions of the step (0 is the first), so no number of processes, restart or sweep can bend
them. All start with a linear warm-up of length.warmup steps where they do not say otherwise, and all keep their last
value past the end of training: unclamped, a cosine climbs back to its peak.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from common.base.cli import chosen, keyword_arguments
from common.base.errors import UserError


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


def warmup_cosine(step: int, length: Length, min_lr_ratio: float = 0.0) -> float:
    """A half cosine that begins where the warm-up ends (one cycle of SGDR, arXiv 1608.03983)."""
    if step < length.warmup:
        return ramp(step, length)
    return half_cosine((step - length.warmup) / max(1, length.total - length.warmup), min_lr_ratio)


def cosine(step: int, length: Length, min_lr_ratio: float = 0.0) -> float:
    """A half cosine over the whole training, torch's CosineAnnealingLR; a warm-up scales its first steps."""
    return ramp(step, length) * half_cosine(step / length.total, min_lr_ratio)


def restarts(step: int, length: Length, cycles: int = 3, t_mult: float = 1.0, min_lr_ratio: float = 0.0) -> float:
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
    ends = list(accumulate(t_mult**cycle for cycle in range(cycles)))
    warmup = length.warmup / length.epoch
    epochs = [round(warmup + (length.total / length.epoch - warmup) * end / ends[-1]) for end in ends]
    if not ends or any(later <= earlier for earlier, later in zip([math.floor(warmup), *epochs], epochs, strict=False)):
        what = f"{cycles} cycles with t_mult {t_mult:g} do not fit into the epochs after the warm-up"
        raise UserError("--schedule-args", what, "use more --epochs or fewer cycles")
    return epochs


def step(step: int, length: Length, every: float = 0.0, factor: float = 0.1) -> float:
    """Times ``factor`` after ``every`` epochs, again and again (0: a third of the training); torch's StepLR."""
    every = every or length.total / length.epoch / 3
    return ramp(step, length) * factor ** int(min(step, length.total - 1) / (every * length.epoch))


def multistep(step: int, length: Length, milestones: Sequence[float] = (), factor: float = 0.1) -> float:
    """Times ``factor`` at each of the ``milestones``, in epochs; without any, at 1/2 and 3/4 of the training."""
    epochs = length.total / length.epoch
    passed = sum(step >= milestone * length.epoch for milestone in milestones or (epochs / 2, epochs * 3 / 4))
    return ramp(step, length) * factor**passed


def onecycle(step: int, length: Length, start_ratio: float = 0.04, min_lr_ratio: float = 4e-6) -> float:
    """Up by a half cosine from ``start_ratio`` during the warm-up, then down by another to ``min_lr_ratio``.

    torch's OneCycleLR with pct_start = warm-up / epochs, which there is 0.3: give it --warmup-epochs of about a third.
    Momentum is left alone (cycle_momentum=False). Source: L. N. Smith, arXiv 1708.07120, in fast.ai's form.
    """
    top, last = max(0, length.warmup - 1), length.total - 1
    if step < top:
        return half_cosine(1 - step / top, start_ratio)
    return half_cosine((step - top) / max(1, last - top), min_lr_ratio)


def wsd(step: int, length: Length, decay: float = 0.0, min_lr_ratio: float = 0.0) -> float:
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
    factor: float = 0.1,
    patience: int = 4,
    min_lr_ratio: float = 0.0,
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


def create_schedule(name: str, schedule_args: Sequence[str], length: Length) -> Callable[[int, Sequence[float]], float]:
    """The share of the peak as a function of the step and of the finished epochs' scores, which only plateau reads.

    Raises:
        UserError: no such schedule, an argument that it does not know, or one that cannot be meant.
    """
    function = chosen("schedule", name, SCHEDULES)
    arguments = keyword_arguments("schedule-args", schedule_args, function)
    if function is plateau:
        shares = lambda at, scores: plateau(at, length, scores, **arguments)  # noqa: E731
    else:
        shares = lambda at, scores: function(at, length, **arguments)  # noqa: E731
    epochs = length.total / length.epoch
    try:
        curve = [shares(at, ()) for at in range(0, length.total, length.epoch)]
        sensible = all(0 <= share <= 1 for share in curve)
        durations = [*arguments.get("milestones", ()), arguments.get("every", 0), arguments.get("decay", 0)]
        fits = all(0 <= duration <= epochs for duration in durations)
    except (ArithmeticError, TypeError, ValueError):
        sensible = fits = False
    if not (sensible and fits):
        what = f"{name} with {' '.join(schedule_args)} is not a valid schedule for {epochs:g} epochs"
        where = f"{function.__name__} in common/model/schedules.py"
        remedy = f"durations are in epochs, the rest are shares of --lr: see {where}"
        raise UserError("--schedule-args", what, remedy)
    return shares


SCHEDULES: dict[str, Callable[..., float]] = {
    "warmup-cosine": warmup_cosine,
    "cosine": cosine,
    "restarts": restarts,
    "step": step,
    "multistep": multistep,
    "onecycle": onecycle,
    "wsd": wsd,
    "constant": constant,
    "plateau": plateau,
}
