"""Intervals and comparisons by metrics that are no mean over rows."""

import numpy as np
import pytest
from scipy import stats

from common.score.answers import Answers
from common.score.bootstrap import compare_by, drawn_rows, interval_of, jackknifed, prepared
from common.score.logits import Outputs, paired_difference
from common.score.metrics import METRICS
from common.score.task import MULTICLASS

RANDOM = np.random.default_rng(0)
TRUTH = np.repeat([1, 0], [30, 270])
NOISE = RANDOM.normal(size=300)
ROWS = np.arange(300)


def answers_of(scores: np.ndarray) -> Answers:
    return MULTICLASS.answers(Outputs(np.stack([0 * scores, scores], axis=1)), TRUTH, ["no", "yes"])


def test_every_draw_has_as_many_rows_of_each_class():
    """And, of the class that is rare, as many of its groups; rows of a group stay together."""
    answers = prepared("auc", answers_of(NOISE))
    for rows in list(drawn_rows("auc", answers))[:20]:
        assert (np.bincount(TRUTH[rows]) == np.bincount(TRUTH)).all() and len(set(rows)) < 300
    groups = ROWS // 3
    for rows in list(drawn_rows("auc", answers, groups))[:20]:
        assert TRUTH[rows].sum() == 30 and (rows.reshape(-1, 3) == rows[::3, None] + np.arange(3)).all()


def test_the_interval_is_about_that_of_the_literature():
    """DeLong's standard error (1988) of an AUC; the value lies within; rows that belong together widen it."""
    scores = 1.5 * TRUTH + NOISE
    found = answers_of(scores)
    low, high = interval_of("auc", found)
    above = (scores[TRUTH == 1][:, None] > scores[TRUTH == 0]).astype(float)
    error = (above.mean(axis=1).var(ddof=1) / 30 + above.mean(axis=0).var(ddof=1) / 270) ** 0.5
    assert low < above.mean() < high and high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    copies = answers_of(np.repeat(scores[::6], 6))
    assert np.ptp(interval_of("auc", copies, ROWS // 6)) > 1.5 * np.ptp(interval_of("auc", copies))
    assert interval_of("accuracy", found) == METRICS["accuracy"].interval(found)


def test_a_better_run_is_shown_and_an_equal_one_is_not():
    """By the AUC, though both make the same errors; a run and itself differ in nothing."""
    weak, strong = (answers_of(gain * TRUTH + NOISE - 9) for gain in (0.5, 2.0))  # all are answered no
    assert (weak.costs == strong.costs).all()
    found = compare_by("auc", weak, strong, ROWS)
    gain = METRICS["auc"].of(strong) - METRICS["auc"].of(weak)
    assert found.p < 0.05 and found.low < found.better < found.high and found.better == pytest.approx(gain)
    assert compare_by("auc", strong, weak, ROWS).better == -found.better
    same = compare_by("auc", weak, weak, ROWS)
    assert (same.p, same.better, same.low, same.high) == (1, 0, 0, 0)


def test_a_mean_over_rows_is_compared_in_its_own_unit():
    """The log loss: lower is better, and the difference is one of means."""
    weak, strong = (answers_of(gain * (TRUTH - 0.5) + NOISE) for gain in (0.5, 4.0))
    found = compare_by("nll", weak, strong, ROWS)
    assert found.better == pytest.approx(METRICS["nll"].of(weak) - METRICS["nll"].of(strong)) and found.p < 0.05
    error = stats.sem(weak.losses - strong.losses)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_few_positives_do_not_shorten_the_interval_of_an_auc():
    """It holds the truth in more than 9 of 10 samples of 15 positives; where all are ranked right it has a width."""
    truth, random, shift = np.repeat([1, 0], [15, 135]), np.random.default_rng(2), 2**0.5 * stats.norm.ppf(0.85)
    held = 0
    for _ in range(200):
        scores = shift * truth + random.normal(size=150)
        outputs = Outputs(np.stack([0 * scores, scores], axis=1))
        low, high = interval_of("auc", MULTICLASS.answers(outputs, truth, ["no", "yes"]))
        held += low <= 0.85 <= high
    assert held > 0.9 * 200
    low, high = interval_of("auc", answers_of(9.0 * TRUTH + NOISE / 10))
    assert 0.8 < low < 0.95 and high == 1


def test_leaving_parts_out_says_how_sure_a_difference_of_aucs_is():
    """The jackknife's standard error is about DeLong's of the paired difference, and larger where rows are copies."""
    weak, strong = (1.5 * TRUTH + NOISE + gain * RANDOM.normal(size=300) for gain in (0.8, 0.2))
    ours, theirs = answers_of(strong), answers_of(weak)
    lower, error = paired_difference(jackknifed("auc", theirs), jackknifed("auc", ours))
    assert lower == pytest.approx(METRICS["auc"].of(ours) - METRICS["auc"].of(theirs), abs=0.005)
    above = [(each[TRUTH == 1][:, None] > each[TRUTH == 0]).astype(float) for each in (weak, strong)]
    difference = above[1] - above[0]
    delong = (difference.mean(axis=1).var(ddof=1) / 30 + difference.mean(axis=0).var(ddof=1) / 270) ** 0.5
    assert error == pytest.approx(delong, rel=0.4)
    copies = [answers_of(np.repeat(each[::6], 6)) for each in (weak, strong)]
    alone = paired_difference(*(jackknifed("auc", each) for each in copies))[1]
    assert paired_difference(*(jackknifed("auc", each, ROWS // 6) for each in copies))[1] > 1.5 * alone
