"""The law: right on studies whose answer is known, silent where the runs do not tell."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scores import nll

from benchmarks.law_coverage import BATCH_SIZES, LINES, SURGES, Truth, announced, by_hand, first_stage, measure
from common.base.errors import UserError
from common.score.calibration import calibrated_loss
from common.score.logits import Outputs
from common.score.task import MULTICLASS
from common.score.temperature import temperature
from common.sweep.cells import read_cells
from common.sweep.grid import Grid
from common.sweep.law import LAWS, fit_law
from common.sweep.parabolas import fates
from common.sweep.regression import BOUND
from common.sweep.verdict import law_json, sentences


def whole_grid(truth: Truth, seed: int = 0) -> pd.DataFrame:
    """Seven batch sizes x five learning rates x4 apart around the truth at batch size 64."""
    grid = Grid(BATCH_SIZES, lr=2 ** truth.optimum(64), batch_size=64)
    cells = [cell for batch_size in BATCH_SIZES for cell in grid.cells(batch_size, (-4, -2, 0, 2, 4))]
    return truth.run(cells, np.random.default_rng(seed))


@pytest.mark.parametrize("truth", [truth for truth in LINES if truth.noise == 0.05], ids=lambda truth: truth.name)
def test_the_interval_covers_the_true_slope_and_no_other_law(truth):
    """35 runs at 5 % noise: 95 % intervals cover about 95 % of the time, are short, and hold one law only."""
    figures = measure(truth, first_stage, 150)
    assert 0.90 <= figures.covered <= 0.99  # 150 studies; benchmarks/law_coverage.md has the figures of 1,000
    assert figures.half_width <= 0.15
    assert figures.wrong_ruled_out >= 0.98
    assert figures.predicted_covered >= 0.90


def test_a_surge_is_recognised_and_a_line_is_not_taken_for_one():
    """On a rise and fall the surge curve wins and finds its top; on a square-root line it seldom wins clearly."""
    rise_and_fall = measure(SURGES[0], first_stage, 60)
    assert rise_and_fall.surge_better >= 0.8
    assert rise_and_fall.top_lr_near >= 0.95
    assert measure(LINES[2], first_stage, 60).surge_clear <= 0.1


def test_where_the_optima_follow_a_curve_the_slope_is_called_a_mean():
    """On a rise and fall no law is declared right or wrong; the top of the curve is named instead."""
    verdict, about_the_curve, *_ = sentences(fit_law(whole_grid(SURGES[0])))
    assert "only a mean" in verdict and "fits" not in verdict
    assert "rises and falls" in about_the_curve and "at batch size" in about_the_curve


def test_few_close_learning_rates_cannot_tell():
    """The 4 x 4 grid by hand leaves several laws standing most of the time, and says so."""
    figures = measure(LINES[3], by_hand, 40)
    assert figures.covered >= 0.9
    assert figures.undecided >= 0.8


def test_the_announced_number_of_runs_is_enough():
    """Studies that cannot tell ask for a number of runs with which most of them can."""
    found = announced(30)
    assert found["undecided"] > 0.2 and found["enough"] >= 0.75


def test_without_noise_everything_is_exact():
    """Slope, optima, lowest losses and predictions come out as they were put in."""
    truth = Truth("", 0.75, 1e-9)
    law = fit_law(whole_grid(truth))
    assert law.slope.value == pytest.approx(0.75, abs=1e-6) and law.slope.half_width < 1e-6
    assert [each.value for each in law.optima] == pytest.approx([2 ** truth.optimum(size) for size in BATCH_SIZES])
    assert law.predict(48).value == pytest.approx(2 ** truth.optimum(48), rel=1e-6)
    assert law.parabola(64, np.array([2 ** truth.optimum(64)]))[0] == pytest.approx(0.05)
    assert law.parabolas.curvatures == pytest.approx(truth.curvature)


@pytest.mark.parametrize(("study", "is_settled"), [("crossed/steps64", False), ("adamw", True)])
def test_a_prediction_allows_for_the_curve_that_is_only_doubtful(study, is_settled):
    """Below a difference of AIC of 4 its interval holds both curves'; where the surge wins by 36 it is the surge's."""
    law = fit_law(read_cells(ROOT / "docs/sweeps" / study))
    found, line, curve = law.predict(128), law.line.optimum(128), law.surge.optimum(128)
    assert (found.low, found.high) != (line.low, line.high)
    holds_line = found.low <= line.low and line.high <= found.high
    assert found.low <= curve.low and curve.high <= found.high
    assert holds_line != is_settled


def test_valleys_that_narrow_with_the_batch_size_do_not_mislead():
    """Where large batches forgive eight times less than small ones, each has its own width; intervals are honest."""
    truth = Truth("", 0.5, 0.05, curvature=0.04, drift=0.5)
    law = fit_law(whole_grid(truth))
    assert not law.parabolas.one_width and law.parabolas.curvatures[-1] > 4 * law.parabolas.curvatures[0]
    assert fit_law(whole_grid(Truth("", 0.5, 0.05))).parabolas.one_width
    figures = measure(truth, first_stage, 150)
    assert 0.90 <= figures.covered <= 0.99 and figures.optimum_covered >= 0.92


def test_bad_cells_are_left_out_and_counted():
    """Diverged, failed, short and far cells change nothing, and the report says how many there were."""
    cells = whole_grid(Truth("", 0.5, 0.05))
    bad = pd.DataFrame(
        [
            (64, 1.0, 0, 1000, "diverged", np.nan),
            (64, 2.0, 0, 1000, "failed", np.nan),
            (64, 3e-3, 1, 59, "done", 0.01),
            (64, 0.5, 0, 1000, "done", 1.0),
            (1024, 1e-2, 0, 1000, "done", 0.05),
        ],
        columns=cells.columns,
    )
    law, with_bad = fit_law(cells), fit_law(pd.concat([cells, bad], ignore_index=True))
    assert with_bad.slope == law.slope
    assert sum(with_bad.left_out.values()) == 5 and len(with_bad.left_out) == 5
    assert fates(bad).tolist() != ["fitted"] * 5


def test_without_enough_cells_the_user_is_told_what_is_missing():
    """One batch size has no slope: an error, not a number."""
    cells = whole_grid(Truth("", 0.5, 0.05))
    with pytest.raises(UserError, match="two must have them"):
        fit_law(cells[cells.batch_size == 64])


def test_flat_losses_say_nothing():
    """Where the learning rate does not matter, no law is ruled out and nothing is infinite."""
    for seed in range(6):
        law = fit_law(whole_grid(Truth("", 0.5, 0.05, curvature=0.0), seed))
        assert law.fitting == list(LAWS)
        assert law.slope.low == -BOUND and law.slope.high == BOUND and law.more_runs > 100
        json.dumps(law_json(law), allow_nan=False)


def test_the_report_is_json_and_begins_with_the_slope():
    """law.json is strict JSON with the slope and its interval, the lower end first."""
    report = json.loads(json.dumps(law_json(fit_law(whole_grid(Truth("", 0.5, 0.05), seed=1))), allow_nan=False))
    low, high = report["slope_ci"]
    assert low < report["slope"] < high
    assert report["verdict"][0].startswith("slope 0.") and "square root fits" in report["verdict"][0]
    assert report["p_values"]["linear"] < 0.01 < report["p_values"]["square root"]


def test_confidence_alone_does_not_change_the_loss():
    """Log loss after a cross-fitted temperature is the same for a net that is three times as sure."""
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(400, 5)), random.integers(0, 5, 400)
    logits[np.arange(400), targets] += 2
    calm, sure = (calibrated_loss(Outputs(logits * scale), targets, MULTICLASS) for scale in (1, 3))
    assert calm == pytest.approx(sure, rel=1e-3)
    assert (
        calm > nll(logits / temperature(Outputs(logits), targets), targets) + 1e-5
    )  # no row helps to fit its own temperature
