"""Comparisons: no difference is called shown by luck more often than said, and real ones are found."""

from math import comb

import numpy as np
import pytest
from scores import nll, softmax

from common.report.audit import label_audit, likely_errors
from common.runs.predictions import Predictions
from common.score.calibration import calibration_error, cross_fitted, reliability
from common.score.logits import Outputs
from common.score.significance import LEVEL, compare, holm, least_shown, p_value, says_p, verdict
from common.score.task import MULTICLASS

N = 2_000


def two_models(better: int, changed: int, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Which rows A and B have wrong: of ``changed`` rows that one alone has right, B has ``better`` more."""
    wrong_a, wrong_b = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    wrong_a[: (changed + better) // 2] = True
    wrong_b[(changed + better) // 2 : changed] = True
    return wrong_a, wrong_b


def test_p_is_the_share_of_coin_tosses_at_least_as_uneven():
    """Exact McNemar, counted by hand: 12 changed rows, 10 to 2."""
    found = compare(*two_models(8, 12), np.arange(N))
    assert (found.gained, found.lost, found.better) == (10, 2, 8)
    assert found.p == pytest.approx(2 * sum(comb(12, k) for k in range(3)) / 2**12)


def test_models_that_do_not_differ_are_seldom_told_apart():
    """80 changed rows that fall to either side by chance: shown in at most 5 % of 2,000 tries, and not never."""
    random = np.random.default_rng(0)
    shown = [p_value(wins, 80 - wins) < LEVEL for wins in random.binomial(80, 0.5, size=2000)]
    assert 0.02 <= np.mean(shown) <= 0.05


def test_a_gain_of_a_tenth_of_a_point_is_found():
    """42 of 42,000 rows mended between two seeds of a good net, which differ on 83: shown in at least 95 %."""
    random = np.random.default_rng(0)
    shown = [p_value(wins + 42, 83 - wins) < LEVEL for wins in random.binomial(83, 0.5, size=1000)]
    assert np.mean(shown) >= 0.95


def test_the_interval_covers_the_true_difference():
    """The bootstrap's 95 % interval holds the truth in about 95 of 100 studies of two models."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(300):
        kind = random.choice(3, size=N, p=[0.94, 0.04, 0.02])  # alike, only B right, only A right: 40 errors apart
        found = compare(kind == 1, kind == 2, np.arange(N))
        covered += found.low <= 0.02 * N <= found.high
    assert 0.91 <= covered / 300 <= 0.985


def test_costs_of_any_size_are_compared():
    """Costs that are no zeros and ones: a bootstrap finds a real difference, its interval holds it, and chance is not
    called shown more often than said."""
    random, shown, covered = np.random.default_rng(1), 0, 0
    for _ in range(30):
        hard = random.exponential(size=300)
        found = compare(hard + random.normal(0, 0.3, 300), hard + random.normal(0, 0.3, 300), np.arange(300))
        shown += found.p < LEVEL
        covered += found.low <= 0 <= found.high
    assert shown <= 5 and covered >= 25
    found = compare(hard + 0.2 + random.normal(0, 0.3, 300), hard, np.arange(300))
    assert found.p < 0.001 and found.low < 60 < found.high and found.better > found.least_shown


def test_copies_of_rows_are_no_further_evidence():
    """Every row three times, as copies of one image: the same p, and an interval that is as wide per image."""
    wrong_a, wrong_b = two_models(10, 40)
    once = compare(wrong_a, wrong_b, np.arange(N))
    copies = compare(np.tile(wrong_a, 3), np.tile(wrong_b, 3), np.tile(np.arange(N), 3))
    assert copies.p == once.p and copies.better == 3 * once.better
    assert (copies.low / 3, copies.high / 3) == pytest.approx((once.low, once.high), abs=1)


@pytest.mark.parametrize("changed", [6, 37, 83, 400])
def test_the_noise_floor_is_where_a_difference_becomes_shown(changed):
    """The least difference that is shown is shown, the next smaller one is not."""
    least = least_shown(changed)
    assert p_value((changed + least) // 2, (changed - least) // 2) < LEVEL
    assert p_value((changed + least) // 2 - 1, (changed - least) // 2 + 1) >= LEVEL


def test_holm_raises_each_p_by_the_tests_still_open():
    """The textbook example of Holm's method."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize(
    ("better", "changed", "tests", "sentence"),
    [
        (23, 173, 1, "B is 23 errors of 42,000 better than A, p = 0.094: not shown"),
        (42, 142, 1, "B is 42 errors of 42,000 better than A, p < 0.001: shown"),
        (30, 150, 6, "B is 30 errors of 42,000 better than A, p = 0.018 (p = 0.11 as one of 6 pairs): not shown"),
        (1, 1, 1, "B is 1 error of 42,000 better than A, p = 1: not shown"),
        (0, 0, 1, "B and A make equally many errors of 42,000, p = 1: not shown"),
    ],
)
def test_the_sentence_says_size_chance_and_verdict(better, changed, tests, sentence):
    """One plain sentence, which the correction for many pairs decides."""
    found = compare(*two_models(better, changed, 42_000), np.arange(42_000))
    assert verdict("B", "A", found, min(1.0, tests * found.p), tests) == sentence


def test_a_difference_that_a_seed_makes_is_no_merit_of_the_setting():
    """Shown, but below the noise floor: the sentence says so."""
    found = compare(*two_models(42, 142, 42_000), np.arange(42_000))
    assert verdict("B", "A", found, found.p, 1, floor=50).endswith("of these models, but a seed alone makes up to 50")
    assert verdict("B", "A", found, found.p, 1, floor=30).endswith(": shown")


def test_small_p_values_keep_two_digits():
    """A p value is never rounded to zero, nor to the level itself."""
    assert [says_p(p) for p in (0.0004, 0.0049, 0.0496, 0.08)] == ["p < 0.001", "p = 0.0049", "p = 0.0496", "p = 0.08"]


# The label audit


@pytest.fixture
def digits_with_wrong_labels() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two runs' logits (2, n, 10), targets of which 1 % are flipped, and the flipped rows; 5 % of the rows are hard."""
    random = np.random.default_rng(0)
    truth = random.integers(10, size=N)
    hard = random.random(N) < 0.05
    margin = np.where(hard, random.normal(0, 2, size=N), 8.0)
    logits = np.eye(10)[truth] * margin[:, None] + random.normal(0, 1, size=(2, N, 10))
    flipped = random.choice(N, N // 100, replace=False)
    targets = truth.copy()
    targets[flipped] = (truth[flipped] + random.integers(1, 10, size=len(flipped))) % 10
    return logits, targets, flipped


def test_flipped_labels_come_first(digits_with_wrong_labels):
    """Of the 1 % flipped labels, at least 80 % lie in the audit's first 1 %, before rows that are merely hard."""
    logits, targets, flipped = digits_with_wrong_labels
    ids = np.array([f"row {number}" for number in range(N)], dtype=object)
    classes = [str(number) for number in range(10)]
    audit = label_audit(Predictions(ids, logits[0], classes, np.array(classes, dtype=object)[targets]), logits)
    assert len(set(audit.id.head(len(flipped))) & set(ids[flipped])) >= 0.8 * len(flipped)
    assert set(likely_errors(audit).id) <= set(ids[flipped]) | set(ids[softmax(logits).max(axis=2).min(axis=0) > 0.5])
    first = audit.iloc[0]
    assert first.suggested == str(logits[:, int(first.id.split()[1])].mean(axis=0).argmax()) != first.label


def test_a_row_that_the_runs_dispute_is_no_likely_error():
    """One run sure of the label and one sure of another class: not among the likely errors."""
    disputed, wrong = [[9.0, 0.0], [0.0, 9.0]], [[9.0, 0.0], [9.0, 0.0]]
    logits = np.array([disputed, wrong]).transpose(1, 0, 2)
    ids, labels = (np.array(texts, dtype=object) for texts in (["disputed", "wrong"], ["b", "b"]))
    audit = label_audit(Predictions(ids, logits[0], ["a", "b"], labels), logits)
    assert likely_errors(audit).id.tolist() == ["wrong"]


# Reliability


def test_reliability_finds_over_confidence_and_temperature_mends_it():
    """Logits three times too large: confidence lies above accuracy, and a cross-fitted temperature brings it back."""
    random = np.random.default_rng(0)
    honest = random.normal(0, 2, size=(N, 10))
    targets = np.array([random.choice(10, p=row) for row in softmax(honest)])
    tempered = cross_fitted(Outputs(3 * honest), targets, np.arange(N) % 5, MULTICLASS).values
    gaps = {}
    for name, logits in (("loud", 3 * honest), ("tempered", tempered)):
        confidence, right = softmax(logits).max(axis=1), logits.argmax(axis=1) == targets
        gaps[name] = calibration_error(confidence, right)
        assert reliability(confidence, right).n.sum() == N
    assert gaps["loud"] > 0.2 > 0.05 > gaps["tempered"]
    assert nll(tempered, targets) < nll(3 * honest, targets)
