"""Every schedule: its shape against torch's, its warm-up, its clamp, and that nothing but the step moves it."""

import math

import pytest
import torch
from torch.optim import lr_scheduler

from common.base.cli import keyword_arguments
from common.base.errors import UserError
from common.model.schedules import Length, create_schedule, cycle_ends, plateau
from common.runs.choices import SCHEDULES
from common.runs.config import Config, check_config, check_signatures

EPOCHS, STEPS = 12, 10
WHOLE, WARM = Length(EPOCHS * STEPS, 0, STEPS), Length(EPOCHS * STEPS, 2 * STEPS, STEPS)


def shares(name: str, length: Length, *pairs: str, until: int = 0) -> list[float]:
    schedule = create_schedule(name, length, **keyword_arguments("schedule-args", pairs))
    return [schedule(step, ()) for step in range(until or length.total)]


def torchs(scheduler, **arguments) -> list[float]:
    """What a scheduler of torch's gives over a training, stepped once per optimiser step, peak 1."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs, found = scheduler(optimiser, **arguments), []
    for _ in range(WHOLE.total):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()
    return found


@pytest.mark.parametrize(
    ("name", "pairs", "length", "theirs"),
    [
        ("cosine", ["min_lr_ratio=0.1"], WHOLE, (lr_scheduler.CosineAnnealingLR, {"T_max": 120, "eta_min": 0.1})),
        (
            "restarts",
            ["cycles=2", "t_mult=2", "min_lr_ratio=0.1"],
            WHOLE,
            (lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 40, "T_mult": 2, "eta_min": 0.1}),
        ),
        ("step", ["every=3", "factor=0.5"], WHOLE, (lr_scheduler.StepLR, {"step_size": 30, "gamma": 0.5})),
        ("multistep", ["milestones=(3, 9)"], WHOLE, (lr_scheduler.MultiStepLR, {"milestones": [30, 90]})),
        (
            "onecycle",
            [],
            Length(120, 30, 10),
            (lr_scheduler.OneCycleLR, {"max_lr": 1.0, "total_steps": 120, "pct_start": 30 / 120}),
        ),
        ("constant", [], WHOLE, (lr_scheduler.ConstantLR, {"factor": 1.0})),
    ],
)
def test_a_schedule_equals_torchs(name, pairs, length, theirs):
    """Step by step over the whole training."""
    scheduler, arguments = theirs
    assert shares(name, length, *pairs) == pytest.approx(torchs(scheduler, **arguments), abs=1e-9)


def test_onecycle_starts_peaks_and_ends_where_it_says():
    """From 1/25 of the peak to the peak at the last warm-up step, then to 1/25/10,000 at the very last step."""
    found = shares("onecycle", WARM)
    assert (found[0], found[19], found[-1]) == pytest.approx((0.04, 1.0, 4e-6))
    assert max(found) == found[19]


def test_wsd_is_flat_and_then_falls_like_one_minus_the_root():
    """The last fifth by default, or the asked epochs: half of the decay's steps lead to 1 - sqrt(1/2)."""
    found = shares("wsd", WHOLE)
    assert found[:97] == [1.0] * 97 and found[108] == pytest.approx(1 - math.sqrt(0.5))
    assert shares("wsd", WHOLE, "decay=4", "min_lr_ratio=0.2")[100] == pytest.approx(0.2 + 0.8 * (1 - math.sqrt(0.5)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_clamped(name):
    """Far past the end it keeps its last value, between 0 and 1; nothing climbs back to the peak."""
    found = shares(name, WARM, until=3 * WARM.total)
    assert all(0 <= share <= 1 for share in found)
    assert len(set(found[WARM.total :])) == 1 and found[WARM.total] <= found[WARM.total - 1]


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "onecycle"])
def test_every_schedule_warms_up_in_a_line(name):
    """1/20, 2/20, ... of what it is without warm-up, of which nothing has been lost yet."""
    ramp = [(step + 1) / 20 for step in range(20)]
    body = shares("cosine", WHOLE)[:20] if name == "cosine" else [1.0] * 20
    assert shares(name, WARM)[:20] == pytest.approx([a * b for a, b in zip(ramp, body, strict=True)])
    assert shares(name, WARM)[20] >= 0.9


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_has_no_memory(name):
    """Asked twice, backwards, or by another process: the same answer, so neither a restart nor a GPU bends it."""
    one, other = (create_schedule(name, WARM) for _ in range(2))
    forwards = [one(step, (0.5, 0.6)) for step in range(WARM.total)]
    assert [other(step, (0.5, 0.6)) for step in reversed(range(WARM.total))] == forwards[::-1]


@pytest.mark.parametrize("patience", [0, 2])
def test_plateau_equals_torchs(patience):
    """The epochs at which ReduceLROnPlateau lowers the rate, from the scores alone."""
    scores = [0.1, 0.3, 0.2, 0.3, 0.25, 0.2, 0.4, 0.1, 0.1, 0.1, 0.1, 0.5]
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(optimiser, mode="max", factor=0.5, patience=patience, threshold=0)
    for epoch, score in enumerate(scores):
        theirs.step(score)
        ours = plateau(0, WHOLE, scores[: epoch + 1], factor=0.5, patience=patience)
        assert ours == pytest.approx(optimiser.param_groups[0]["lr"])
    assert plateau(0, WHOLE, scores, factor=0.5, patience=patience, min_lr_ratio=0.4) == max(0.4, ours)


def test_cycles_end_with_epochs_and_the_last_with_the_training():
    """torch's T_0=10, T_mult=2 over 30 epochs; after a warm-up of one epoch, ten epochs are three threes."""
    assert cycle_ends(Length(300, 0, 10), cycles=2, t_mult=2) == [10, 30]
    assert cycle_ends(Length(100, 10, 10), cycles=3) == [4, 7, 10]
    found = shares("restarts", Length(100, 10, 10), "cycles=3")
    assert [step for step in range(11, 100) if found[step] > found[step - 1]] == [40, 70]


@pytest.mark.parametrize(
    ("name", "pairs", "message"),
    [
        ("cosinus", [], "--schedule: there is no schedule cosinus; did you mean cosine"),
        ("cosine", ["every=3"], "--schedule-args: every is unknown to cosine; known: min_lr_ratio"),
        ("constant", ["min_lr_ratio=0.1"], "--schedule-args: min_lr_ratio is unknown to constant"),
        ("multistep", ["milestones=(5, 30)"], r"multistep with milestones=\(5, 30\) is not a valid schedule"),
        (
            "multistep",
            ["milestones=5"],
            r"milestones=5 is not a valid value; use a list such as \(1,2\), each 0 or more",
        ),
        ("multistep", ["milestones=(1,'x')"], "is not a valid value; use a list such as"),
        ("step", ["every=13"], "is not a valid schedule for 12 epochs"),
        ("step", ["every=2", "factor=10"], "factor=10 is not a valid value; use 0 to 1"),
        ("step", ["every=1e-320"], "is not a valid schedule for 12 epochs"),
        ("wsd", ["decay=13"], "is not a valid schedule for 12 epochs"),
        ("cosine", ["min_lr_ratio=x"], "min_lr_ratio=x is not a valid value; use 0 to 1"),
        ("cosine", ["min_lr_ratio=None"], "min_lr_ratio=None is not a valid value; use 0 to 1"),
        ("restarts", ["cycles=13"], "13 cycles with t_mult 1 do not fit"),
        ("restarts", ["cycles=1000000000", "t_mult=1e30"], r"1000000000 cycles with t_mult 1e\+30 do not fit"),
        ("restarts", ["cycles=2.0"], "cycles=2.0 is not a valid value; use 1 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused(name, pairs, message):
    """An argument of another schedule, or a duration without effect, is an error that names it."""
    with pytest.raises(UserError, match=message):
        cfg = Config(schedule=name, schedule_args=tuple(pairs))
        check_config(cfg, processes=1)
        check_signatures(cfg)
        create_schedule(name, WHOLE, **cfg.args("schedule"))
