"""What a score will be worth: intervals that hold, a gain without labels, and honest advice."""

import numpy as np
import pytest

from common.score.leaderboard import (
    Entry,
    averaging_gain,
    expected,
    meaningless,
    metric_in_words,
    private,
    surprise,
    two_to_choose,
)
from common.score.logits import Outputs
from common.score.task import MULTICLASS


def test_the_interval_holds_in_95_of_100_splits():
    """Public scores of rows that nobody has seen lie in the interval about as often as it says; few are surprises."""
    random, held, surprises = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        oof, public = (random.random(n) < 0.92 for n in (4000, 2500))
        found = expected(oof.mean(), oof.std(), len(oof), len(public))
        held += found.low <= public.mean() <= found.high
        surprises += abs(surprise(Entry("a", oof.mean(), oof.std(), public.mean()), len(oof), len(public))) > 2.6
    assert 0.93 <= held / 2000 <= 0.97
    assert surprises / 2000 < 0.02


def test_the_gain_of_averaging_is_told_without_labels():
    """Models with independent noise gain by averaging as much as is estimated, within a point."""
    random, n, classes = np.random.default_rng(0), 6000, 6
    signal = random.normal(0, 2, (n, classes))
    truth = (signal + random.gumbel(size=(n, classes))).argmax(1)
    models = signal + random.normal(0, 1.2, (5, n, classes))
    single = float((models.argmax(-1) == truth).mean())
    gained = float((models.mean(0).argmax(-1) == truth).mean()) - single
    assert gained > 0.02
    assert averaging_gain(Outputs(models), single) == pytest.approx(gained, abs=0.012)
    assert averaging_gain(Outputs(np.repeat(models[:1], 5, axis=0)), single) == pytest.approx(0, abs=1e-3)


def test_an_estimated_gain_makes_the_interval_wider():
    """It may be off by a quarter of itself, which on many rows is more than chance."""
    plain, gained = (expected(0.9, 0.3, 40_000, 40_000, gain) for gain in (0.0, 0.02))
    assert gained.score == pytest.approx(0.92)
    assert gained.high - gained.low > 2 * (plain.high - plain.low)
    assert abs(surprise(Entry("a", 0.9, 0.3, 0.93), 40_000, 40_000, 0.02)) < 2.6


def test_submissions_are_chosen_by_both_scores_and_one_of_each_in_doubt():
    """A lucky public score on few rows does not outweigh many rows; in doubt it gets the second place."""
    entries = [Entry("a", 0.93, 0.25, 0.92), Entry("b", 0.925, 0.25, 0.921), Entry("c", 0.90, 0.3, 0.935)]
    assert two_to_choose(entries, "accuracy", 4000, 250) == ["a", "b"]
    assert two_to_choose(entries, "accuracy", 4000, 250, is_doubtful=True) == ["a", "c"]
    assert two_to_choose(entries, "nll", 4000, 250)[0] == "c"


@pytest.mark.parametrize("metric", ["accuracy", "nll", "macro_f1"])
def test_small_public_differences_mean_nothing(metric):
    """A difference far below its own deviation is named, a large one is not: by rows' costs or by the bootstrap."""
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 1000)
    logits = {name: np.eye(3)[targets] * 3 + random.normal(0, 1.5, (1000, 3)) for name in "ab"}
    answers = {name: MULTICLASS.answers(Outputs(each), targets, ["x", "y", "z"]) for name, each in logits.items()}
    near = [Entry("a", 0.9, 0.3, 0.901), Entry("b", 0.9, 0.3, 0.902)]
    assert [found[:2] for found in meaningless(near, answers, metric, 500)] == [("a", "b")]
    assert not meaningless([near[0], Entry("b", 0.9, 0.3, 1.5)], answers, metric, 500)


@pytest.mark.parametrize(("metric", "best"), [("macro_f1", "100.00%"), ("nll", "0.0000")])
def test_nothing_better_than_perfect_is_expected(metric, best):
    """Few rows, one of them wrong: the interval ends where the metric does."""
    targets, sure = np.arange(12) % 2, np.full((12, 2), -9.0)
    sure[np.arange(12), targets] = 9.0
    answers = MULTICLASS.answers(Outputs(np.concatenate([sure, -sure[:1]])), np.append(targets, 0), ["x", "y"])
    low, high = metric_in_words(metric, answers, 4).partition("interval ")[2].partition(":")[0].split(" - ")
    assert best == (low if metric == "nll" else high)


def test_the_private_score_is_expected_from_both():
    """Between what the folds say with the gain of averaging and the public score; without one, the former."""
    both = private(Entry("a", 0.90, 0.3, 0.96), 3000, 1000, 3000, gain=0.02)
    assert 0.92 < both.score < 0.96 and both.low < both.score < both.high
    assert private(Entry("a", 0.90, 0.3), 3000, 1000, 3000, gain=0.02) == expected(0.90, 0.3, 3000, 3000, 0.02)
