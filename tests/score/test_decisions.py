"""Decisions between classes: learned for a metric for which the likeliest class is not the best answer."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from common.report.evaluation import Evaluation
from common.runs.predictions import Predictions, read_predictions, write_predictions
from common.score.decisions import study_decisions
from common.score.logits import Outputs
from common.score.task import MULTICLASS, posed

RANDOM = np.random.default_rng(0)
FOLD = np.arange(2000) % 5


def rare_class() -> tuple[np.ndarray, np.ndarray]:
    """Calibrated log-odds of two classes, of which one in twelve rows has the second."""
    random = np.random.default_rng(1)
    odds = random.normal(size=2000, scale=1.5) - 3
    return np.stack([0 * odds, odds], axis=1), (random.random(2000) < 1 / (1 + np.exp(-odds))).astype(int)


@pytest.mark.parametrize("metric", ["f1", "mcc"])
@pytest.mark.parametrize("positive", ["yes", "no"])
def test_a_threshold_is_learned_for_two_classes(metric, positive):
    """It finds more of the rare class than 1/2 does, and what is said nested is what scikit-learn makes of it."""
    logits, targets = rare_class()
    task = posed("multiclass", positive)
    found = study_decisions(task, Outputs(logits), targets, FOLD, ["no", "yes"], metric)
    gains = found.nested["threshold"] - found.nested["likeliest"]
    assert gains > 0.02 if metric == "mcc" or positive == "yes" else gains >= -0.002
    if gains > 0.02:
        assert found.way == "threshold" and 0 < found.decision[0] < 0.5 and "<- taken" in found.text
    answered = task.decide(Outputs(logits), found.decision)
    theirs = {
        "f1": sklearn_metrics.f1_score(targets, answered, pos_label=int(positive == "yes")),
        "mcc": sklearn_metrics.matthews_corrcoef(targets, answered),
    }
    assert found.in_sample[found.way] == pytest.approx(theirs[metric])


def test_cut_points_on_the_expected_grade_raise_kappa():
    """Nested, for grades whose text order is another one, beside the likeliest grade."""
    names = ["0", "1", "10", "2", "3"]
    grades = np.array([float(name) for name in names])
    truth = RANDOM.choice(5, 2000, p=[0.5, 0.1, 0.05, 0.25, 0.1])
    noisy = grades[truth] + RANDOM.normal(size=2000, scale=2.0)
    logits = -((noisy[:, None] - grades) ** 2) / 8
    found = study_decisions(MULTICLASS, Outputs(logits), truth, FOLD, names, "quadratic_kappa")
    assert found.way == "cut points" and found.nested["cut points"] > found.nested["likeliest"] + 0.005
    answered = MULTICLASS.decide(Outputs(logits), found.decision)
    order = np.argsort(grades)
    assert (np.diff(grades[answered[np.argsort(MULTICLASS.probabilities(Outputs(logits)) @ grades)]]) >= 0).all()
    assert set(answered) <= set(order) and list(found.decision[5:]) == sorted(found.decision[5:])


@pytest.mark.parametrize("metric", ["accuracy", "nll", "auc", "map@5"])
def test_nothing_is_learned_where_it_cannot_help(metric):
    """The likeliest class is best for a mean over rows; a metric of probabilities sees no decision."""
    logits, targets = rare_class()
    found = study_decisions(MULTICLASS, Outputs(logits), targets, FOLD, ["no", "yes"], metric)
    assert found.decision == () and found.text == ""


def test_runs_and_blends_are_reported_by_the_same_decision():
    """A blend that keeps a threshold of its own is scored as a run that has none: each fold by what the others say."""
    logits, targets = rare_class()
    labels = np.array(["no", "yes"], dtype=object)[targets]
    fold = np.arange(len(targets)) % 5
    ids = np.array([str(row) for row in range(len(targets))], dtype=object)
    run = Predictions(ids, logits.astype(np.float32), ["no", "yes"], labels, fold, task=posed("multiclass", "yes"))
    blend = replace(run, decision=(0.9,))
    found = [Evaluation("x", each, judged_by="f1").answers.predicted for each in (run, blend)]
    assert (found[0] == found[1]).all()
    assert (found[0] != Evaluation("x", run).answers.predicted).any(), "thresholds are learned for f1"


def test_a_decision_travels_with_the_predictions(tmp_path):
    """From the file to the answers that a submission says."""
    logits, _ = rare_class()
    predictions = Predictions(
        np.array([f"row {row}" for row in range(2000)], dtype=object),
        np.float32(logits),
        ["no", "yes"],
        decision=(0.2,),
    )
    write_predictions(tmp_path / "test.npz", predictions)
    found = read_predictions(tmp_path / "test.npz")
    assert (found.predicted == np.where(1 / (1 + np.exp(-logits[:, 1])) >= 0.2, "yes", "no")).all()
