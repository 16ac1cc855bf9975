"""Several sweeps in one fit: what the batch does and what the steps do, on studies whose answer is known."""

import dataclasses
import json
import math
from pathlib import Path

import pandas as pd
import pytest

import sweep
from benchmarks.law_coverage import crossed_studies
from common.base.errors import UserError
from common.sweep.cells import read_sweep
from common.sweep.joint import fit_joint, joint_json, joint_sentences, parts_of_a_fall
from common.sweep.law import fit_law, surge
from common.sweep.regression import Estimate

STEPS, NOISE_SCALE = "the steps", "the noise scale"


def truth(cause: str, batch_size: float, steps: float) -> float:
    """log2 of the best learning rate where few steps, or the gradient's noise scale, hold it down."""
    u, s = math.log2(batch_size / 64), math.log2(steps / 256)
    return 0.5 * u + 0.5 * s if cause == STEPS else float(surge(u, 0.5))


def studies(cause: str, seed: int = 0, noise: float = 0.05) -> dict[str, pd.DataFrame]:
    """Batch sizes 32, 128, 512, crossed with 64, 256 and 1,024 steps."""
    return crossed_studies(lambda size, steps: truth(cause, size, steps), noise, seed)


def test_steps_that_differ_by_a_rounded_batch_are_one_number():
    """Sweeps by their epochs have 130 steps here and 131 there; they are crossed, and said once."""
    tables = {
        name: table.assign(steps=table.steps + (table.batch_size == 512)) for name, table in studies(STEPS).items()
    }
    joint = fit_joint(tables, draws=100)
    assert joint.is_crossed
    said = "\n".join(joint_sentences(joint))
    assert "64 steps: from 32 to 512 images" in said and "65 steps: from" not in said


@pytest.mark.parametrize("cause", [STEPS, NOISE_SCALE])
def test_the_cause_is_told_and_its_part_is_right(cause):
    """Where it was the steps, they explain the fall and the square root holds; where the noise scale, they do not."""
    joint = fit_joint(studies(cause, seed=1), draws=500)
    p = joint.p_values()
    assert (p["steps have no part"] < 0.01) == (cause == STEPS)
    assert (p["square root at equal steps"] < 0.01) == (cause == NOISE_SCALE)
    parts = parts_of_a_fall(joint.surface(), (64, 524), (512, 64))
    of_steps = truth(cause, 512, 64) - truth(cause, 512, 524)
    assert parts["steps"].low < of_steps < parts["steps"].high
    assert parts["in all"].value == pytest.approx(parts["steps"].value + parts["batch size"].value)
    assert joint.surface().optimum(128, 256).value == pytest.approx(2 ** truth(cause, 128, 256), rel=0.2)


def test_one_slope_for_all_is_refuted_where_studies_differ():
    """Two sweeps of the square root share a slope; one of the square root and one of a linear law do not."""
    alike = studies(STEPS)
    assert fit_joint(alike, draws=200).slopes[2] > 0.05
    steep = crossed_studies(lambda size, steps: math.log2(size / 64), 0.05, seed=1)
    assert fit_joint({"root": alike["64"], "linear": steep["64"]}, draws=200).slopes[2] < 0.01


def test_a_study_whose_runs_scatter_more_counts_for_less():
    """Beside a sweep with five times its noise, a sweep is no less sure of its slope, and decides the shared one."""
    quiet, loud = (crossed_studies(lambda size, steps: math.log2(size / 64), noise, 0)["256"] for noise in (0.03, 0.15))
    alone = fit_joint({"quiet": quiet}, draws=500).slopes[0]
    shared, (own, _), _ = fit_joint({"quiet": quiet, "loud": loud}, draws=500).slopes
    assert shared.half_width < 1.2 * alone.half_width and own.half_width < 1.2 * alone.half_width


def test_studies_at_equal_steps_have_slopes_but_no_surface(tmp_path):
    """What cannot be told apart is refused in words; the sentences and joint.json hold what can be told."""
    two = {name: cells for name, cells in studies(STEPS).items() if name != "256"}
    joint = fit_joint(two, draws=200)
    with pytest.raises(UserError, match="3 batch sizes, each with 3 numbers of steps"):
        joint.surface()
    assert "one slope for all fits" in joint_sentences(joint)[-1]
    json.dumps(joint_json(joint), allow_nan=False)


def test_a_ratio_of_the_law_is_what_its_predictions_say():
    """Carried from 128 to 512 images by the law alone, a rate is multiplied as the law's own optima are."""
    law = fit_law(studies(STEPS)["64"], draws=300)
    ratio = law.ratio(128, 512)
    assert ratio.value == pytest.approx(law.predict(512).value / law.predict(128).value)
    assert ratio.low < 2.0 < ratio.high and ratio.high / ratio.low < 2
    assert law.ratio(128, 128) == Estimate(1.0, 1.0, 1.0)


def test_carry_and_joint_from_the_command_line(capsys, tmp_path):
    """The published sweeps: a tuned rate is carried by the law, beside the square root; a joint fit is written down."""
    found = sweep.carry(sweep.Carry("docs/sweeps/adamw", tuned_at=128, lr=6e-3, batch_size=512)).score
    assert found["square_root"] == pytest.approx(0.012) and found["lr_ci"][0] < found["lr"] < found["lr_ci"][1] < 0.006
    both = ("docs/sweeps/adamw", "docs/sweeps/sgd")
    joint = sweep.joint(sweep.JointFit(both, (8, 16, 32, 64), out_dir=str(tmp_path)))
    assert 0.4 < joint.score["slope"][0] < 0.9 and (tmp_path / "joint.png").stat().st_size > 10_000
    assert "slope" in capsys.readouterr().out
    many = sweep.joint(sweep.JointFit(both, min_steps=470)).score
    assert many["slope"] == joint.score["slope"]  # up to 64 images there are 524 steps or more
    with pytest.raises(UserError, match="two sweeps"):
        sweep.joint(sweep.JointFit(("docs/sweeps/adamw",)))
    with pytest.raises(UserError, match="never measured"):
        scale = sweep.Carry("docs/sweeps/adamw", tuned_at=128, batch_size=512, noise_scale=100.0)
        sweep.noise_ratio(scale, dataclasses.replace(read_sweep(Path("docs/sweeps/adamw")), folder=tmp_path))
