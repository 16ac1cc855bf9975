"""Scores against definitions and independent implementations."""

import numpy as np
import pytest
from scipy import special, stats
from scores import softmax
from sklearn import metrics as sklearn_metrics

from common.base.errors import UserError
from common.score.answers import Answers, joined_answers
from common.score.logits import Outputs
from common.score.metrics import METRICS, best_epoch, check_metric, describe, goodness, wilson
from common.score.task import MULTICLASS, TASKS, posed, targets_of

MULTILABEL = TASKS["multilabel"]
RANDOM = np.random.default_rng(0)
GRADED = [f"{number}" for number in range(6)]
LOGITS = RANDOM.normal(size=(200, 4), scale=3).astype(np.float32)
TARGETS = RANDOM.integers(0, 4, 200)


def answers_of(logits: np.ndarray, targets: np.ndarray, names: list[str] = GRADED) -> Answers:
    return MULTICLASS.answers(Outputs(logits), targets, names[: logits.shape[1]])


def test_log_loss_and_accuracy_equal_scikit_learns():
    """Our numbers are the ones everybody else computes."""
    found = MULTICLASS.score(Outputs(LOGITS), TARGETS)
    assert found["nll"] == pytest.approx(sklearn_metrics.log_loss(TARGETS, softmax(LOGITS)), rel=1e-12)
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(TARGETS, LOGITS.argmax(1)))
    assert found["errors"] == (LOGITS.argmax(1) != TARGETS).sum() and found["n"] == 200


SIX = RANDOM.normal(size=(300, 6), scale=2)
GRADES = RANDOM.choice([0, 1, 3, 4, 5], 300)  # class 2 is predicted, and never right


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("balanced_accuracy", lambda logits: recall_of_those_that_occur(logits.argmax(1))),
        ("macro_f1", lambda logits: sklearn_metrics.f1_score(GRADES, logits.argmax(1), average="macro")),
        ("top5", lambda logits: sklearn_metrics.top_k_accuracy_score(GRADES, logits, k=5, labels=range(6))),
        (
            "quadratic_kappa",
            lambda logits: sklearn_metrics.cohen_kappa_score(
                GRADES, logits.argmax(1), weights="quadratic", labels=range(6)
            ),
        ),
    ],
)
def test_metrics_equal_scikit_learns(name, theirs):
    """With a class that never occurs, and one that is never predicted."""
    assert METRICS[name].of(answers_of(SIX, GRADES)) == pytest.approx(theirs(SIX), rel=1e-12)
    never_five = np.where(np.arange(6) == 5, -9.0, SIX)
    assert METRICS[name].of(answers_of(never_five, GRADES)) == pytest.approx(theirs(never_five), rel=1e-12)


def recall_of_those_that_occur(predicted: np.ndarray) -> float:
    return sklearn_metrics.recall_score(GRADES, predicted, labels=[0, 1, 3, 4, 5], average="macro")


@pytest.mark.parametrize("name", MULTICLASS.metrics)
def test_a_right_answer_is_better_than_a_wrong_one(name):
    """Whatever the metric's direction: what is better is larger once its sign is turned."""
    sure = 9.0 * np.eye(6)[GRADES]
    right, wrong = (goodness(name, METRICS[name].of(answers_of(logits, GRADES))) for logits in (sure, -sure))
    assert right > wrong
    assert METRICS[name].of(answers_of(sure, GRADES)) == pytest.approx({"errors": 0, "nll": 0}.get(name, 1), abs=1e-2)


SETS = RANDOM.random((300, 5)) < [0.7, 0.4, 0.2, 0.1, 0.0]  # the last label never occurs
ODDS = np.round(np.where(SETS, 1.5, -1.5) + RANDOM.normal(size=SETS.shape, scale=2), 1)  # rounded: with ties


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("exact_match", lambda true, odds: sklearn_metrics.accuracy_score(true, odds >= 0)),
        ("accuracy", lambda true, odds: sklearn_metrics.accuracy_score(true, odds >= 0)),
        ("macro_f1", lambda true, odds: f_beta(true, odds, 1, "macro", np.nan)),
        ("sample_f1", lambda true, odds: f_beta(true, odds, 1, "samples", 1)),
        ("sample_f2", lambda true, odds: f_beta(true, odds, 2, "samples", 1)),
        ("nll", lambda true, odds: np.mean([binary_loss(*column) for column in zip(true.T, odds.T, strict=True)])),
        ("map", lambda true, odds: of_columns(sklearn_metrics.average_precision_score, true, odds)),
        ("mean_auc", lambda true, odds: of_columns(sklearn_metrics.roc_auc_score, true, odds)),
    ],
)
@pytest.mark.parametrize("odds", [ODDS, np.zeros_like(ODDS), -np.abs(ODDS) - 0.1, ODDS[:1]])
def test_metrics_of_label_sets_equal_scikit_learns(name, theirs, odds):
    """A label that never occurs, the same prediction for all rows, none at all, a single row."""
    true = SETS[: len(odds)]
    found = MULTILABEL.score(Outputs(odds), true, list("abcde"))
    expected = theirs(true, odds)
    assert name not in found if np.isnan(expected) else found[name] == pytest.approx(expected, rel=1e-9)


def f_beta(true: np.ndarray, odds: np.ndarray, beta: float, average: str, nothing: float) -> float:
    return sklearn_metrics.fbeta_score(true, odds >= 0, beta=beta, average=average, zero_division=nothing)


def binary_loss(true: np.ndarray, odds: np.ndarray) -> float:
    return sklearn_metrics.log_loss(true, special.expit(odds), labels=[False, True])


def of_columns(metric, true: np.ndarray, odds: np.ndarray) -> float:
    """The mean over the columns with a yes, and for the AUC a no as well."""
    needed = {True, False} if metric is sklearn_metrics.roc_auc_score else {True}
    found = [metric(*column) for column in zip(true.T, odds.T, strict=True) if needed <= set(column[0])]
    return np.mean(found) if found else np.nan


TWO = RANDOM.normal(size=(150, 2), scale=2).round(1)  # rounded: many rows tie
TRUTH = (RANDOM.random(150) < 0.2).astype(int)


@pytest.mark.parametrize("truth", [TRUTH, 1 - TRUTH, np.eye(150, dtype=int)[7]], ids=["few", "many", "one"])
@pytest.mark.parametrize("logits", [TWO, np.zeros((150, 2)), 9 * np.stack([-TWO[:, 0], TWO[:, 0]], 1)])
@pytest.mark.parametrize("positive", ["", "no"])
def test_metrics_of_two_classes_equal_scikit_learns(logits, truth, positive):
    """With ties, constant answers and a single positive row; either class may be the one that is looked for."""
    task, share = posed("multiclass", positive), softmax(logits)[:, 0 if positive else 1]
    is_positive, predicted = truth == (0 if positive else 1), logits.argmax(1)
    theirs = {
        "auc": sklearn_metrics.roc_auc_score(is_positive, share),
        "average_precision": sklearn_metrics.average_precision_score(is_positive, share),
        "f1": sklearn_metrics.f1_score(truth, predicted, pos_label=0 if positive else 1, zero_division=0),
        "mcc": sklearn_metrics.matthews_corrcoef(truth, predicted),
    }
    for name, value in theirs.items():
        found = task.score(Outputs(logits), truth, ["no", "yes"], name)
        assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name


def test_areas_over_several_classes_equal_scikit_learns():
    """One class against the rest; a class that no row has is left out, and nothing is left of one class."""
    shares, names = softmax(SIX), GRADED
    found = [MULTICLASS.score(Outputs(SIX), GRADES, names, name)[name] for name in ("auc", "average_precision")]
    for value, theirs in zip(
        found, (sklearn_metrics.roc_auc_score, sklearn_metrics.average_precision_score), strict=True
    ):
        of_each = [theirs(grade == GRADES, shares[:, grade]) for grade in (0, 1, 3, 4, 5)]
        assert value == pytest.approx(np.mean(of_each), rel=1e-12)
    assert "auc" not in MULTICLASS.score(Outputs(SIX), np.zeros(300, int), names, "auc")
    assert best_epoch([np.nan, 0.3, 0.5, np.nan]) == 2
    parts = [answers_of(SIX[some], GRADES[some]) for some in np.split(np.arange(300), 3)]
    assert METRICS["auc"].of(joined_answers(parts)) == METRICS["auc"].of(answers_of(SIX, GRADES)) == found[0]


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_map_at_k_goes_by_the_names_in_their_order(k):
    """As the competition computes it from the names that a submission lists, ties included."""
    logits = SIX.round(0)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k].tolist()
    theirs = [1 / (1 + said.index(truth)) if truth in said else 0 for said, truth in zip(order, GRADES, strict=True)]
    name = f"map@{k}"
    check_metric(name, GRADED)
    assert METRICS[name].of(answers_of(logits, GRADES)) == pytest.approx(np.mean(theirs), rel=1e-12)
    assert METRICS[name].costs(answers_of(logits, GRADES)).mean() == pytest.approx(1 - np.mean(theirs))
    short = Outputs(-np.sort(-SIX)[:, :3], others=4)  # the target may be any of the others
    assert METRICS["map@5"].of(MULTICLASS.answers(short, np.full(300, 2), ())) == 0


def test_a_metric_that_says_nothing_is_refused():
    """Top 5 of five classes, kappa of labels that are no numbers, a name that is none."""
    with pytest.raises(UserError, match="top5 is always 1 with 5 classes"):
        check_metric("top5", list("abcde"))
    with pytest.raises(UserError, match="needs grades, labels that are numbers, but the labels are a, b"):
        check_metric("quadratic_kappa", ["a", "b"])
    with pytest.raises(UserError, match="--metric: there is no metric acuracy; did you mean accuracy"):
        check_metric("acuracy", ["a", "b"])
    check_metric("quadratic_kappa", ["1", "10", "2"])
    with pytest.raises(UserError, match="f1 needs two classes, but the labels are a, b, c"):
        check_metric("f1", ["a", "b", "c"])
    with pytest.raises(UserError, match="there is no metric map@; did you mean map@k"):
        check_metric("map@", ["a", "b"])


@pytest.mark.parametrize("name", MULTICLASS.metrics)
def test_metrics_do_not_depend_on_row_order_or_logit_offset(name):
    """Shuffled rows and a constant added to a row's logits change no score."""
    order = RANDOM.permutation(200)
    moved = LOGITS[order] + RANDOM.normal(size=(200, 1))
    before, after = METRICS[name].of(answers_of(LOGITS, TARGETS)), METRICS[name].of(answers_of(moved, TARGETS[order]))
    assert after == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("names", [["0.0", "1.0", "10.0", "2.0"], ["-1", "-10", "0", "7.5"]])
def test_kappa_goes_by_the_grades_values(names):
    """Not by the order of their texts: scikit-learn's on a scale of half grades is the same."""
    halves = np.array([round(2 * float(name)) for name in names])
    labels = range(halves.min(), halves.max() + 1)
    theirs = sklearn_metrics.cohen_kappa_score(
        halves[TARGETS], halves[LOGITS.argmax(1)], weights="quadratic", labels=labels
    )
    found = MULTICLASS.score(Outputs(LOGITS), TARGETS, names)
    assert found["quadratic_kappa"] == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("names", [["a", "b", "c", "d"], ["1", "2", "3", "nan"], ["1_0", "2_0", "3_0", "4_0"]])
def test_no_kappa_of_labels_that_are_no_numbers(names):
    """It is left out, while every other metric is there."""
    found = MULTICLASS.score(Outputs(LOGITS), TARGETS, names)
    usual = {name for name in MULTICLASS.metrics if not METRICS[name].on_request}
    assert found.keys() == {"n", *usual} - {"quadratic_kappa", "f1"}


def averaged(*logits: np.ndarray, weights=()) -> np.ndarray:
    return MULTICLASS.average(Outputs(np.stack(logits)), weights).values


def test_mean_of_probabilities_not_of_logits():
    """Averages are taken over probabilities, with the given shares."""
    other = RANDOM.normal(size=(200, 4)).astype(np.float32)
    expected = 0.25 * softmax(LOGITS) + 0.75 * softmax(other)
    np.testing.assert_allclose(np.exp(averaged(LOGITS, other, weights=[1, 3])), expected, atol=1e-6)
    np.testing.assert_allclose(softmax(averaged(LOGITS, LOGITS)), softmax(LOGITS), atol=1e-6)


def test_extreme_logits_stay_finite():
    """A net that is certain of a wrong class gives a huge loss, never inf or NaN."""
    certain = np.array([[5000.0, 0.0]])
    assert MULTICLASS.loss(Outputs(certain), np.array([1])) == 5000.0
    assert np.isfinite(averaged(certain, certain)).all()
    with np.errstate(all="raise"):
        assert np.isfinite(averaged(LOGITS, LOGITS, weights=[0, 1])).all()


def test_interval_is_wilsons():
    """The interval is scipy's Wilson interval, of the accuracy."""
    for wrong, n in [(105, 42_000), (0, 360), (3, 9), (360, 360)]:
        theirs = stats.binomtest(n - wrong, n).proportion_ci(method="wilson")
        assert wilson(wrong, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    words = describe({"accuracy": 0.9975, "errors": 105, "n": 42_000})
    assert words == "99.750 %, 105 errors of 42,000, 95 % interval 99.697 - 99.793 %"


def test_labels_outside_the_classes_are_refused():
    """A label no model knows is named, not scored as class 0."""
    assert targets_of(["b", "a"], ["a", "b"]).tolist() == [1, 0]
    with pytest.raises(UserError, match="'c' is not one of a, b"):
        targets_of(["a", "c"], ["a", "b"])
    assert MULTICLASS.cost(Outputs(np.array([[0.0, 1.0]])), np.array([0])).all()
