"""Blends: the right weights, honest scores, one folds file, rows joined by id."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scipy.optimize import minimize
from scores import count_errors, log_mean_probability, log_softmax, nll, row_losses, softmax

from common.base.errors import UserError
from common.base.files import write_json
from common.base.strict_csv import text_array
from common.data.folds import Folds, write_folds
from common.runs.added import read_answers
from common.runs.layout import (
    CONFIG_FILE,
    INFERENCE_FILE,
    METRICS_FILE,
    MODEL_FILE,
    OOF_FILE,
    TEST_FILE,
    TTA_OOF_FILE,
    fold_folder,
    model_sha256,
    was_added,
)
from common.runs.predictions import Predictions, read_predictions, rows_in_order, write_predictions
from common.runs.tensors import save_tensors
from common.score.blend_study import blend_table, study_blends, table_text
from common.score.blending import BLENDS, OofOutputs, by_hand, unusable, usable
from common.score.logits import Outputs, paired_difference
from common.score.metrics import METRICS
from common.score.nesting import (
    choose,
    choose_nested,
    evidence,
    leave_one_out,
    nested,
    noise_members,
    overlap,
    smallest_set,
    try_method,
)
from common.score.task import MULTICLASS, TASKS
from common.score.temperature import temperature
from ensemble import main

CLASSES = ["a", "b", "c"]


def noisy_logits(targets: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """A model that sees the target through noise; at strength 0 it knows nothing."""
    noise = np.random.default_rng(seed).normal(size=(len(targets), len(CLASSES)))
    return (strength * np.eye(len(CLASSES))[targets] + noise).astype(np.float32)


def some_models(n: int, strengths: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    targets = np.random.default_rng(seed).integers(0, len(CLASSES), n)
    models = [noisy_logits(targets, strength, 100 * seed + k) for k, strength in enumerate(strengths, start=1)]
    return np.stack(models), targets


def oof_of(logits: np.ndarray, targets: np.ndarray, fold=None, groups=(), hand_weights=()) -> OofOutputs:
    """Predictions of different models, in five folds, unless said otherwise."""
    fold = np.arange(len(targets)) % 5 if fold is None else fold
    return OofOutputs(Outputs(logits), targets, fold, np.array(groups or range(len(logits))), np.array(hand_weights))


def fitted(name: str, logits: np.ndarray, targets: np.ndarray, **known):
    return BLENDS[name](oof_of(logits, targets, **known))


def blended(blend, logits: np.ndarray) -> np.ndarray:
    return blend(Outputs(logits)).values


def convex_weights(probabilities: np.ndarray) -> np.ndarray:
    """The weights (m) of lowest log loss by a solver for convex problems, scipy's SLSQP; ``probabilities`` (n, m)."""
    count = probabilities.shape[1]

    def loss_and_slope(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixture = probabilities @ weights
        return -np.log(mixture).mean(), -(probabilities / mixture[:, None]).mean(axis=0)

    found = minimize(
        loss_and_slope,
        np.full(count, 1 / count),
        jac=True,
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    weights = np.clip(found.x, 0, 1)
    return weights / weights.sum()


# ---- the methods


def weights_of_the_courses_module(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The blender of the course notebook, layer by layer, trained by Adam until it stands still."""
    import torch

    class Blender(torch.nn.Module):
        def __init__(self, n_models):
            super().__init__()
            self.weights = torch.nn.Parameter(torch.randn(n_models, dtype=torch.float64))
            self.softmax = torch.nn.Softmax(dim=-1)

        def forward(self, x):
            x = x.permute(0, 2, 1)  # (batch, models, classes) -> (batch, classes, models)
            return (x * self.softmax(self.weights)).sum(dim=2, keepdim=True).flatten(1)

    torch.manual_seed(3)
    model, x, y = Blender(probabilities.shape[1]), torch.from_numpy(probabilities), torch.from_numpy(targets)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.3)
    for _ in range(400):
        optimiser.zero_grad()
        torch.nn.functional.nll_loss(model(x).log(), y).backward()
        optimiser.step()
    return torch.softmax(model.weights.detach(), -1).numpy()


@pytest.mark.parametrize("strengths", [[2, 2, 2], [3, 1], [3, 0, 2.5, 0.1], [4, 0, 0]])
def test_softmax_weights_are_the_optimum(strengths):
    """Trained weights and those of a solver for convex problems agree to 1e-4, at the simplex's border too."""
    logits, targets = some_models(600, strengths)
    found = fitted("softmax", logits, targets).weights
    np.testing.assert_allclose(found, convex_weights(MULTICLASS.parts(Outputs(logits), targets)), atol=1e-4)


def test_softmax_weights_are_those_of_the_courses_module():
    """The course's own module, trained from a random start until it stands still, ends at the same weights to 1e-4."""
    logits, targets = some_models(600, [2, 2, 2])
    theirs = weights_of_the_courses_module(softmax(logits).transpose(1, 0, 2), targets)
    np.testing.assert_allclose(fitted("softmax", logits, targets).weights, theirs, atol=1e-4)
    assert min(theirs) > 0.05


def test_weights_start_equal_and_are_learned_the_same_each_time():
    """The module starts at equal weights, and training it twice gives the same bits."""
    import torch

    from common.score.softmax_ensemble import SoftmaxEnsemble

    assert SoftmaxEnsemble(2)(torch.tensor([[0.2, 0.6]], dtype=torch.float64)).item() == pytest.approx(0.4)
    logits, targets = some_models(300, [2, 1, 3])
    first, second = (fitted("softmax", logits, targets).weights for _ in range(2))
    assert (first == second).all() and first.sum() == pytest.approx(1)


def test_the_mixture_is_the_weighted_sum_of_probabilities():
    """A mixture gives each model's probabilities times its weight, summed; geometric multiplies them instead."""
    logits, targets = some_models(20, [2, 1, 3])
    expected = np.tensordot(np.array([1, 2, 5]) / 8, softmax(logits), 1)
    by_hand = fitted("hand", logits, targets, hand_weights=[1, 2, 5])
    np.testing.assert_allclose(np.exp(blended(by_hand, logits)), expected, rtol=1e-5)
    product = np.prod(softmax(logits), axis=0) ** (1 / 3)
    found = np.exp(blended(fitted("geometric", logits, targets), logits))
    np.testing.assert_allclose(found, product / product.sum(axis=1, keepdims=True), rtol=1e-5)


def test_a_run_that_doubts_itself_keeps_its_weight_when_tempered():
    """Of two runs that know the same, softmax drops the one that label smoothing made unsure; tempered shares equally.

    Its predictions are those of both runs as they were before one of them was made unsure.
    """
    logits, targets = some_models(3000, [4, 4])
    unsure = logits * np.array([1, 0.6], dtype=np.float32)[:, None, None]
    assert fitted("softmax", unsure, targets).weights[1] < 0.1
    found = fitted("tempered", unsure, targets)
    np.testing.assert_allclose(found.weights, 0.5, atol=0.1)
    np.testing.assert_allclose(found.temperatures / found.temperatures[0], [1, 0.6], rtol=0.1)
    as_they_were = blended(fitted("tempered", logits, targets), logits)
    np.testing.assert_allclose(blended(found, unsure), as_they_were, atol=1e-3)


def test_identical_runs_get_equal_weights():
    """Of the same predictions three times, softmax makes the mean, not a winner."""
    logits, targets = some_models(300, [2])
    same = np.concatenate([logits, logits, logits])
    np.testing.assert_allclose(fitted("softmax", same, targets).weights, 1 / 3, atol=1e-9)


def test_greedy_selection_comes_near_the_optimum():
    """Picking runs again and again reaches the convex optimum's log loss to a thousandth, in steps of 1/50."""
    logits, targets = some_models(600, [3, 0, 2.5, 2])
    picked, best = fitted("greedy", logits, targets), fitted("softmax", logits, targets)
    least, found = (nll(blended(blend, logits), targets) for blend in (best, picked))
    assert least <= found < least + 1e-3
    assert picked.weights[1] == 0


def test_votes_count_heads_and_the_mean_breaks_ties():
    """Two hesitant votes beat a sure one; one against one is decided by the mean; groups vote as one."""
    sure, hesitant = [9.0, 0.0, 0.0], [0.0, 0.5, 0.0]
    logits = np.array([[sure], [hesitant], [hesitant]], dtype=np.float32)
    targets = np.array([0])
    assert blended(fitted("mean", logits, targets), logits).argmax() == 0
    assert blended(fitted("vote", logits, targets), logits).argmax() == 1
    assert blended(fitted("vote", logits[:2], targets), logits[:2]).argmax() == 0
    of_two = fitted("group-vote", logits, targets, groups=[0, 1, 1])
    assert blended(of_two, logits).argmax() == 0
    np.testing.assert_allclose(of_two.weights, [0.5, 0.25, 0.25])


def test_a_stack_learns_which_run_knows_which_class():
    """Where one run knows only class a and another only b, the stack makes fewer errors than their mean."""
    targets = np.random.default_rng(0).integers(0, 3, 3000)
    logits, _ = some_models(3000, [0, 0])
    for member in (0, 1):
        logits[member, :, member] += 6 * (targets == member) - 3
        logits[member, :, 1 - member] = 2 * logits[member, :, 1 - member]  # and is loud about what it does not know
    stacked, averaged = (nested(BLENDS[name], oof_of(logits, targets)).values for name in ("stack", "mean"))
    assert count_errors(stacked, targets) < 0.9 * count_errors(averaged, targets)


def test_a_class_that_no_fitted_row_has_is_possible_still():
    """A rare class that only the scored fold holds gets a small probability, not an error."""
    logits, targets = some_models(200, [2, 2])
    blend = fitted("stack", logits[:, targets < 2], targets[targets < 2])
    said = blended(blend, logits)
    assert np.isfinite(said).all() and (said.argmax(axis=1) < 2).all()


def test_extreme_models_are_blended():
    """A run that is certain of wrong classes loses its weight and makes no NaN."""
    logits, targets = some_models(200, [2])
    certain = np.stack([logits[0], 3000 * np.eye(3, dtype=np.float32)[(targets + 1) % 3]])
    blend = fitted("softmax", certain, targets)
    assert blend.weights[0] > 0.999
    for name in set(BLENDS) - {"hand", "group-vote"}:
        assert np.isfinite(blended(fitted(name, certain, targets), certain)).all(), name


@pytest.mark.parametrize("name", BLENDS)
def test_every_method_blends_probabilities(name):
    """Each method's blend is a distribution over the classes on rows it was not fitted on."""
    logits, targets = some_models(200, [2, 1, 3])
    blend = fitted(name, logits[:, :150], targets[:150], groups=[0, 0, 1], hand_weights=[1, 1, 2])
    said = blended(blend, logits[:, 150:])
    assert said.shape == (50, 3)
    np.testing.assert_allclose(np.exp(said).sum(axis=1), 1, atol=1e-5)


def test_best_is_the_run_with_the_fewest_errors():
    """Best single answers with one run's own predictions."""
    logits, targets = some_models(300, [1, 4, 2])
    assert fitted("best", logits, targets).weights.tolist() == [0, 1, 0]


def test_methods_that_make_no_sense_are_left_out():
    """No weights, no hand; no model twice, no vote of averages; more coefficients than rows, no stack; no numbers, no
    convex weights on squared errors."""
    assert set(unusable(np.arange(3), (), 60, 3)) == {"hand", "group-vote", "convex"}
    assert set(unusable(np.array([0, 0, 1]), (1, 1, 1), 1000, 30)) == {"stack", "convex"}


# ---- the scores


def test_in_sample_flatters_and_nested_does_not():
    """Ten models that know nothing lower the in-sample loss of learned weights, but not the nested one."""
    in_sample, held_out, mean_loss = [], [], []
    for seed in range(3):
        logits, targets = some_models(150, [0.0] * 10, seed)
        data = oof_of(logits, targets, np.random.default_rng(seed).integers(0, 5, 150))
        in_sample.append(nll(blended(fitted("softmax", logits, targets), logits), targets))
        held_out.append(nll(nested(BLENDS["softmax"], data).values, targets))
        mean_loss.append(nll(nested(BLENDS["mean"], data).values, targets))
    assert (np.array(in_sample) <= np.array(mean_loss) + 1e-6).all()
    assert (np.array(in_sample) < np.array(held_out)).all()
    assert np.mean(in_sample) < np.mean(mean_loss) < np.mean(held_out)


def test_nested_never_fits_on_the_rows_it_scores():
    """Changing one fold's labels changes the blend and temperature of every other fold's rows, never of its own."""
    logits, targets = some_models(200, [2, 1])
    fold = np.arange(200) % 4
    other = np.where(fold == 2, (targets + 1) % 3, targets)
    before, after = (try_method(BLENDS["softmax"], oof_of(logits, labels, fold)) for labels in (targets, other))
    for earlier, later in [(before.outputs, after.outputs), (before.tempered, after.tempered)]:
        first, second = earlier.values, later.values
        assert (first[fold == 2] == second[fold == 2]).all()
        assert (first[fold != 2] != second[fold != 2]).any(axis=1).all()
    assert (before.outputs.values == nested(BLENDS["softmax"], oof_of(logits, targets, fold)).values).all()


def test_the_choice_for_a_fold_never_looks_at_it():
    """What a fold's method is chosen by does not change with that fold's labels, nor with its predictions."""
    logits, targets = some_models(400, [2, 1, 0])
    fold = np.arange(400) % 4
    spoiled = logits.copy()
    spoiled[:, fold == 2] = -spoiled[:, fold == 2]
    other = np.where(fold == 2, (targets + 1) % 3, targets)
    before = try_method(BLENDS["greedy"], oof_of(logits, targets, fold))
    after = try_method(BLENDS["greedy"], oof_of(spoiled, other, fold))
    assert (before.evidence_without[2] == after.evidence_without[2]).all()
    assert before.costs_without[2] == after.costs_without[2]
    assert before.evidence_without[1].mean() != after.evidence_without[1].mean()


def test_the_competitions_metric_chooses():
    """A blend that ranks better is taken for the AUC, though its loss is worse; for the log loss it is not."""
    random, targets = np.random.default_rng(0), np.arange(600) % 2
    scores = {"mean": targets + 2 * random.normal(size=600)}
    scores["other"] = 8 * targets + 8 * random.normal(size=600)  # ranks better, and is far too sure
    outputs = {name: Outputs(np.stack([0 * own, own], axis=1).astype(np.float32)) for name, own in scores.items()}
    for metric, taken in (("auc", "other"), ("nll", "mean")):
        data = replace(oof_of(np.zeros((1, 600, 2), np.float32), targets, np.arange(600) % 5), metric=metric)
        data = replace(data, names=["no", "yes"])
        compared = {name: evidence(data, own, own) for name, own in outputs.items()}
        assert choose(compared, {name: data.cost(own, targets) for name, own in outputs.items()}) == taken


@pytest.mark.parametrize(("metric", "shown"), [("nll", "nll"), ("errors", "accuracy"), ("macro_f1", "macro_f1")])
def test_the_interval_in_the_table_is_that_of_the_number_before_it(metric, shown):
    """Also where the competition scores by the log loss."""
    logits, targets = some_models(200, [2, 1])
    data = replace(oof_of(logits, targets), metric=metric, names=["a", "b", "c"])
    rows = blend_table(["one", "two"], data, study_blends(data, "mean"))
    header, mean = table_text(rows, 200, metric).splitlines()[1:3]
    assert header.split("errors")[2].split()[0] == shown
    value, low, high = map(float, mean.replace(" %", "").replace(" - ", " ").split()[5:8])
    assert low < value < high


def test_two_folds_can_be_nested():
    """With two folds a blend of one scores the other, and a choice is made all the same."""
    logits, targets = some_models(200, [2, 1])
    data = oof_of(logits, targets, np.arange(200) % 2)
    tried = {name: try_method(BLENDS[name], data) for name in ("mean", "softmax")}
    assert np.isfinite(choose_nested(tried, data).tempered.values).all()


def test_the_mean_wins_unless_it_is_beaten():
    """Another method needs one paired standard error of log loss and no more errors; else the mean is taken."""
    mean_loss = np.random.default_rng(0).exponential(size=1000)
    luck = np.random.default_rng(1).normal(size=1000)
    luck -= luck.mean()  # standard deviation about 1: a standard error of about 0.032
    rivals = {"mean": mean_loss, "slightly": mean_loss + luck - 0.02, "clearly": mean_loss + luck - 0.05}
    wrong = {"mean": 10, "slightly": 10, "clearly": 10}
    assert choose({name: rivals[name] for name in ("mean", "slightly")}, wrong) == "mean"
    assert choose(rivals, wrong) == "clearly"
    assert choose(rivals, wrong | {"clearly": 11}) == "mean"
    rivals["also"] = mean_loss + luck - 0.06
    assert choose(rivals, wrong | {"also": 10}) == "also"
    assert choose(rivals, wrong | {"also": 10, "clearly": 9}) == "clearly", "the metric ranks those that beat the mean"
    patients = np.repeat(np.arange(500), 2)
    in_pairs = {"mean": mean_loss, "clearly": mean_loss + np.repeat(luck[:500] - luck[:500].mean(), 2) - 0.035}
    assert choose(in_pairs, wrong) == "clearly"
    assert choose(in_pairs, wrong, patients) == "mean", "two rows of one patient are no two witnesses"


def test_rows_of_one_group_count_once_in_a_standard_error():
    """Each row three times over tells no more than once, and groups of one row are rows."""
    first, second = np.random.default_rng(0).normal(size=(2, 200))
    _, once = paired_difference(first, second)
    _, thrice = paired_difference(np.repeat(first, 3), np.repeat(second, 3), np.repeat(np.arange(200), 3))
    assert thrice == pytest.approx(once)
    assert paired_difference(first, second, np.arange(200)[::-1]) == paired_difference(first, second)


def test_a_lead_that_few_folds_see_is_not_written(monkeypatch):
    """What is written is what most folds chose, or the mean, and the summary says why."""
    logits, targets = some_models(200, [2, 1, 1])
    data = oof_of(logits, targets, np.arange(200) % 5)
    tried = {name: try_method(BLENDS[name], data) for name in ("mean", "softmax")}
    for picks, name, why in (
        (["mean", "mean", "mean", "softmax", "softmax", "softmax"], "mean", "; on all rows softmax, which fewer than"),
        (["mean", "mean", "softmax", "softmax", "softmax", "softmax"], "softmax", ""),
        (["softmax", "softmax", "softmax", "mean", "mean", "mean"], "mean", "; on all rows mean is not beaten"),
    ):
        order = iter(picks)
        monkeypatch.setattr("common.score.nesting.choose", lambda losses, costs, units, order=order: next(order))
        found = choose_nested(tried, data)
        assert found.name == name and why in found.summary and (why != "") == (";" in found.summary)


def test_the_metric_judges_blends():
    """By the AUC the best run is the one that ranks best, whatever its errors; votes lose ranks and are not tried."""
    random = np.random.default_rng(0)
    targets = (random.random(400) < 0.2).astype(int)
    ranks_well = 2.0 * targets + random.normal(size=400) + 3  # answers yes nearly always
    errs_less = 0.2 * targets + random.normal(size=400) - 4  # answers no nearly always
    logits = np.stack([np.stack([0 * odds, odds], axis=1) for odds in (ranks_well, errs_less)]).astype(np.float32)
    by_errors = replace(oof_of(logits, targets, np.arange(400) % 4), names=["no", "yes"])
    by_auc = replace(by_errors, metric="auc")
    assert BLENDS["best"](by_errors).weights.tolist() == [0, 1] and BLENDS["best"](by_auc).weights.tolist() == [1, 0]
    assert {"vote"} == set(usable(by_errors)) - set(usable(by_auc))
    assert auto(by_auc).name != "vote"


def confident_models(n: int, strengths: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Models that share hard rows, as real ones do, and answer most rows rightly."""
    targets = np.random.default_rng(5).integers(0, 3, n)
    hard = np.random.default_rng(6).normal(size=(n, 3))
    return np.stack([noisy_logits(targets, strength, k) + hard for k, strength in enumerate(strengths)]), targets


def auto(data: OofOutputs):
    return choose_nested({name: try_method(BLENDS[name], data) for name in usable(data)}, data)


def test_ten_noise_models_change_nothing():
    """With ten members that know nothing, and are sure of it, the reported score gets no better and hardly worse."""
    logits, targets = confident_models(1500, [6, 5])
    data = oof_of(logits, targets, np.random.default_rng(0).integers(0, 5, 1500))
    noisy = data.with_noise(noise_members(logits, 10, np.empty((0, 0), int), 3))
    assert count_errors(log_mean_probability(noisy.outputs.values), targets) > 3 * count_errors(
        log_mean_probability(logits), targets
    )
    without, crowded = auto(data), auto(noisy)
    difference = row_losses(crowded.tempered.values, targets) - row_losses(without.tempered.values, targets)
    standard_error = difference.std() / len(difference) ** 0.5
    assert -2 * standard_error < difference.mean() < 0.01
    assert abs(count_errors(crowded.outputs.values, targets) - count_errors(without.outputs.values, targets)) <= 8


def test_without_the_only_run_with_a_weight_the_rest_count_alike():
    """Weights by hand of 1 and 0: what the blend loses without the first is a number."""
    logits = np.stack([noisy_logits(TARGETS, 2.0, seed) for seed in range(2)])
    data = OofOutputs(Outputs(logits), TARGETS, np.arange(60) % 3, np.arange(2), np.array([1.0, 0.0]))
    assert all(np.isfinite(list(found.values())).all() for found in leave_one_out(by_hand, data))


def test_what_a_member_is_worth():
    """Leaving out the best costs, leaving out noise does not, and noise is not in the smallest set."""
    logits, targets = confident_models(1500, [6, 5, 4])
    logits = np.concatenate([logits, noise_members(logits, 1, np.empty((0, 0), int), 3)])
    data = oof_of(logits, targets, np.random.default_rng(0).integers(0, 5, 1500))
    found = leave_one_out(BLENDS["softmax"], data)
    assert found[0]["difference"] > 2 * found[0]["standard_error"] and found[0]["errors"] > 0
    assert abs(found[3]["difference"]) < found[0]["difference"] / 20
    smallest = smallest_set(data, try_method(BLENDS["softmax"], data).tempered)
    assert 0 in smallest and 3 not in smallest
    shared = overlap(logits.argmax(axis=-1) != targets)
    assert (np.diag(shared) == 1).all() and shared[0, 1] > shared[0, 3] and (shared == shared.T).all()


def test_a_temperature_is_fitted_after_averaging():
    """Averaging makes certain models hesitate: the blend's temperature sharpens, though each model's own softens."""
    logits, targets = confident_models(1500, [6, 6, 6, 6])
    logits = logits * 3
    tried = try_method(BLENDS["mean"], oof_of(logits, targets))
    assert tried.temperature < min(temperature(Outputs(member), targets) for member in logits)
    assert nll(tried.tempered.values, targets) < nll(tried.outputs.values, targets)
    assert (tried.tempered.values.argmax(axis=1) == tried.outputs.values.argmax(axis=1)).all()


# ---- the script on runs


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A work folder with folds.csv (60 rows, 4 folds) and three finished runs with test predictions."""
    monkeypatch.chdir(tmp_path)
    make_place(Folds(IDS, LABELS, np.arange(60) % 4, text_array(f"{row:016x}" for row in range(60)), text_array([])))
    return tmp_path


IDS = text_array(f"row{number}" for number in range(60))
TARGETS = np.random.default_rng(1).integers(0, 3, 60)
LABELS = text_array(CLASSES[target] for target in TARGETS)
TEST_TARGETS = np.random.default_rng(2).integers(0, 3, 40)
RUNS = {"good": 3.0, "fair": 2.0, "poor": 0.5}


def make_place(folds: Folds, tests: bool = True) -> None:
    write_folds(Path("folds.csv"), folds)
    for seed, (run, strength) in enumerate(RUNS.items()):
        logits = noisy_logits(TARGETS, strength, seed)
        for k in range(folds.count):
            rows = np.random.default_rng(seed).permutation(np.flatnonzero(folds.fold == k))
            part = Predictions(IDS[rows], logits[rows], CLASSES, LABELS[rows], folds.fold[rows])
            write_predictions(fold_folder(Path("runs") / run, k) / OOF_FILE, part)
            folder = fold_folder(Path("runs") / run, k)
            write_json(folder / METRICS_FILE, {"folds_fingerprint": folds.fingerprint, "fold_count": folds.count})
            train_again(folder, 10 * seed + k)
        if tests:
            order = np.random.default_rng(seed).permutation(40)
            ids = text_array(f"test{number}" for number in range(40))
            labels = text_array(CLASSES[target] for target in TEST_TARGETS)
            logits = noisy_logits(TEST_TARGETS, strength, 50 + seed)
            test = Predictions(ids[order], logits[order], CLASSES, labels[order], id_name="Id", label_name="Class")
            test = replace(test, source=source_of(run, folds.count, {"identity": 1.0}, "none"))
            write_predictions(Path("runs") / run / TEST_FILE, test)


def train_again(folder: Path, weight: float) -> None:
    """A model file with other weights, as another training leaves it."""
    import torch

    save_tensors(folder / MODEL_FILE, {"weight": torch.tensor([float(weight)])}, {})


def source_of(run: str, count: int, views: dict[str, float], tta: str) -> dict:
    names = [f"fold{k}" for k in range(count)]
    models = {name: model_sha256(Path("runs") / run / name) for name in names}
    return {"fold": "all", "tta": tta, "views": views, "models": models}


def with_tta(run: str, shift: float) -> Predictions:
    """Store the run's OOF and test predictions under two views; returns the OOF's."""
    source = source_of(run, 4, {"identity": 0.5, "left": 0.5}, "auto")
    parts = [read_predictions(fold_folder(Path("runs") / run, k) / OOF_FILE) for k in range(4)]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "labels", "fold")}
    noise = np.random.default_rng(7).normal(size=(60, 3)).astype(np.float32)
    logits = np.concatenate([part.logits for part in parts]) + shift * noise
    oof = Predictions(logits=logits, output_names=CLASSES, source=source, **joined)
    write_predictions(Path("runs") / run / TTA_OOF_FILE, oof)
    path = Path("runs") / run / TEST_FILE
    write_predictions(path, replace(read_predictions(path), source=source))
    return oof


def test_blend_of_all_finished_runs(place, capsys):
    """Without arguments: every finished run, four files, the table, the nested choice, the test's accuracy."""
    main([])
    out = capsys.readouterr().out
    weights = json.loads(Path("runs/ensemble/weights.json").read_text())
    assert list(weights["weights"]) == ["fair", "good", "poor"] and weights["asked"] == "auto"
    assert len(weights["chosen_in_folds"]) == 4 and weights["method"] in BLENDS
    assert sum(weights["weights"].values()) == pytest.approx(1)
    names = [row["name"] for row in weights["table"]]
    usable = [name for name in BLENDS if name not in ("hand", "group-vote", "convex")]
    assert names == [*usable, "auto", "run fair", "run good", "run poor"]
    for name in names:
        assert f"\n{name} " in out
    assert f"written: {weights['method']}), nested: " in out and "test accuracy of " in out and "errors of 40" in out
    oof = read_predictions(Path("runs/ensemble/oof.npz"))
    row = next(row for row in weights["table"] if row["name"] == "auto")
    assert row["nested"]["errors"] == (oof.predicted != oof.labels).sum()
    usual = {name for name in MULTICLASS.metrics if not METRICS[name].on_request}
    assert row["nested"].keys() >= usual - {"quadratic_kappa", "f1"}  # its classes are no grades, and three
    assert row["nested"]["nll_calibrated"] == pytest.approx(nll(oof.logits, oof.targets), rel=1e-5)
    assert row["optimism"] == row["nested"]["errors"] - row["in_sample"]["errors"]
    submission = Path("runs/ensemble/submission.csv").read_text().splitlines()
    assert submission[0] == "Id,Class" and len(submission) == 41


def test_what_the_blend_will_score_is_said(place, capsys):
    """By its nested errors and half of the smallest gain that infer.py estimated; 0 where one is not known."""
    for run, gain in zip(RUNS, (0.04, 0.02, 0.06), strict=True):
        write_json(Path("runs") / run / INFERENCE_FILE, {"averaging_gain": gain, "seconds_per_1000_rows": 1.0})
    main(["--noise", "0"])
    out = capsys.readouterr().out
    assert "expected on the test set " in out and "and +1.00% by averaging 12 models" in out
    assert out.index("expected on the test set") > out.index("test accuracy of")
    (Path("runs/good") / INFERENCE_FILE).unlink()
    main(["--noise", "0"])
    assert "what averaging adds is not known" in capsys.readouterr().out


def test_the_written_blend_is_the_one_asked_for(place):
    """Each method's test predictions are its blend of the test rows, fitted on all OOF rows, at its temperature."""
    first = {}
    for name in ("mean", "softmax", "vote", "stack"):
        main(["--method", name])
        weights = json.loads(Path("runs/ensemble/weights.json").read_text())
        test = read_predictions(Path("runs/ensemble/test.npz"))
        assert weights["method"] == weights["asked"] == name
        first[name] = log_softmax(test.logits) * 1.0
        if name != "stack":
            expected = [weights["weights"][run] for run in ("fair", "good", "poor")]
            assert sum(expected) == pytest.approx(1)
    assert all(not np.allclose(first["mean"], first[name]) for name in ("softmax", "vote", "stack"))


def test_a_tempered_blend_can_be_made_by_hand(place):
    """weights.json has what the mixture of runs at their own temperatures is made of: weights and temperatures."""
    main(["--method", "tempered"])
    written = json.loads(Path("runs/ensemble/weights.json").read_text())
    tests = {run: read_predictions(Path("runs") / run / TEST_FILE) for run in written["weights"]}
    blended = read_predictions(Path("runs/ensemble/test.npz"))
    expected = np.zeros((40, 3))
    for run, share in written["weights"].items():
        order = [list(tests[run].ids).index(row_id) for row_id in blended.ids]
        expected += share * softmax(tests[run].logits[order] / written["run_temperatures"][run])
    np.testing.assert_allclose(softmax(blended.logits), softmax(np.log(expected) / written["temperature"]), atol=1e-6)


def test_test_rows_are_joined_by_id(place):
    """Runs whose test rows lie in different orders give each id the mixture of its own rows, at one temperature."""
    main(["--shares", "1", "2", "1", "--method", "hand", "--runs", "good", "fair", "poor"])
    scale = json.loads(Path("runs/ensemble/weights.json").read_text())["temperature"]
    blended = read_predictions(Path("runs/ensemble/test.npz"))
    position = {row_id: row for row, row_id in enumerate(blended.ids)}
    expected = np.zeros((40, 3))
    for share, run in [(0.25, "good"), (0.5, "fair"), (0.25, "poor")]:
        test = read_predictions(Path("runs") / run / TEST_FILE)
        expected[[position[row_id] for row_id in test.ids]] += share * softmax(test.logits)
    np.testing.assert_allclose(softmax(blended.logits), softmax(np.log(expected) / scale), atol=1e-6)


def test_same_inputs_give_the_same_files(place):
    """The blend is a function of its inputs: twice the same bytes."""
    files = ("weights.json", "oof.npz", "test.npz", "submission.csv")
    contents = []
    for _ in range(2):
        main([])
        contents.append([(Path("runs/ensemble") / name).read_bytes() for name in files])
    assert contents[0] == contents[1]


def test_weights_by_hand_are_scaled_and_compared(place, capsys):
    """Hand weights get their own row; a sum other than 1 is scaled and said."""
    main(["--runs", "good", "poor", "--shares", "3", "1"])
    out = capsys.readouterr().out
    assert "--shares sum to 4: scaled to sum to 1" in out and "\nhand " in out
    main(["--runs", "good", "poor", "--shares", "0.75", "0.25", "--method", "hand"])
    assert "scaled" not in capsys.readouterr().out
    weights = json.loads(Path("runs/ensemble/weights.json").read_text())
    assert weights["weights"] == {"good": 0.75, "poor": 0.25}
    main(["--runs", "good", "poor", "--weights", "3", "1", "--method", "hand"])  # as the flag was called before
    assert json.loads(Path("runs/ensemble/weights.json").read_text()) == weights


def test_trainings_of_one_model_vote_as_one(place, capsys):
    """Runs whose settings name the same model are a group; seconds at inference are shown where they were measured."""
    for run, model in [("good", "net"), ("fair", "net"), ("poor", "other")]:
        write_json(Path("runs") / run / "fold0" / CONFIG_FILE, {"model": model, "model_args": [], "seed": len(run)})
    write_json(Path("runs/good") / INFERENCE_FILE, {"seconds_per_1000_rows": 1.25})
    main(["--method", "group-vote"])
    weights = json.loads(Path("runs/ensemble/weights.json").read_text())
    assert weights["weights"] == {"fair": 0.25, "good": 0.25, "poor": 0.5}
    assert [row["seconds_per_1000_rows"] for row in weights["runs"]] == [0, 1.25, 0]
    assert " 1.25 " in capsys.readouterr().out


def test_the_noise_control_is_said(place, capsys):
    """Every blend is tried with ten members of shuffled rows beside it, and says what they change."""
    main([])
    assert "Control: with 10 members of noise " in capsys.readouterr().out
    found = json.loads(Path("runs/ensemble/weights.json").read_text())["noise"]
    assert found["members"] == 10 and found["difference"] > -2 * found["standard_error"]


def test_a_blend_sees_what_the_test_sees(place):
    """Where test predictions come from several views, the OOF predictions under the same views are blended."""
    main(["--method", "mean"])
    plain = json.loads(Path("runs/ensemble/weights.json").read_text())
    oof = with_tta("fair", 2.0)
    main(["--method", "mean"])
    viewed = json.loads(Path("runs/ensemble/weights.json").read_text())
    before, after = (
        next(row for row in found["table"] if row["name"] == "run fair")["nested"]["errors"]
        for found in (plain, viewed)
    )
    assert after == count_errors(oof.logits, oof.targets) != before
    assert (plain["tta"], viewed["tta"]) == ({}, {"fair": "auto"})


def test_a_run_without_test_predictions(place, capsys):
    """OOF side and weights are written, the missing run is named with its command, a stale submission has a number."""
    for run in ("good", "poor"):
        with_tta(run, 1.0)
    main([])
    stale = Path("runs/ensemble/submission.csv").read_bytes()
    (Path("runs/fair") / TEST_FILE).unlink()
    main([])
    said = capsys.readouterr()
    assert "run: python infer.py --runs fair --tta auto, with --data and --folds\n" in said.err
    assert "runs/ensemble/submission.csv: another one was there, kept as submission.1.csv" in said.out
    left = {path.name for path in Path("runs/ensemble").iterdir() if not path.name.startswith(".")}
    assert left == {"weights.json", "oof.npz", "submission.1.csv"}
    assert Path("runs/ensemble/submission.1.csv").read_bytes() == stale


def test_holdout_has_no_nested_score(tmp_path, monkeypatch, capsys):
    """With one fixed validation part only in-sample scores exist, that is said, and the mean is written."""
    monkeypatch.chdir(tmp_path)
    fold = np.where(np.arange(60) < 30, 0, -1)
    make_place(Folds(IDS, LABELS, fold, text_array(["0" * 16] * 60), text_array([])), tests=False)
    main([])
    out = capsys.readouterr().out
    assert "No nested score" in out and "nested:" not in out
    weights = json.loads(Path("runs/ensemble/weights.json").read_text())
    assert weights["oof"] == "in-sample" and all("nested" not in row for row in weights["table"])
    assert weights["method"] == "mean"
    assert len(read_predictions(Path("runs/ensemble/oof.npz")).ids) == 30


def other_fingerprint() -> None:
    write_json(fold_folder(Path("runs/fair"), 2) / METRICS_FILE, {"folds_fingerprint": "5ca1ab1e"})


def unfinish() -> None:
    (fold_folder(Path("runs/fair"), 2) / METRICS_FILE).unlink()


def other_test_classes() -> None:
    path = Path("runs/fair") / TEST_FILE
    write_predictions(path, replace(read_predictions(path), output_names=["b", "a", "c"]))


def other_test_rows() -> None:
    path = Path("runs/fair") / TEST_FILE
    test = read_predictions(path)
    write_predictions(path, replace(test, ids=text_array(f"x{row_id}" for row_id in test.ids)))


def trained_since() -> None:
    train_again(fold_folder(Path("runs/fair"), 1), 99)


def unmarked() -> None:
    path = Path("runs/fair") / TEST_FILE
    write_predictions(path, replace(read_predictions(path), source={}))


def lost_views() -> None:
    with_tta("fair", 0.1)
    (Path("runs/fair") / TTA_OOF_FILE).unlink()


def other_views() -> None:
    oof = with_tta("fair", 0.1)
    write_predictions(Path("runs/fair") / TTA_OOF_FILE, replace(oof, source=oof.source | {"views": {"identity": 1.0}}))


def other_views_models() -> None:
    oof = with_tta("fair", 0.1)
    models = oof.source["models"] | {"fold3": "0" * 64}
    write_predictions(Path("runs/fair") / TTA_OOF_FILE, replace(oof, source=oof.source | {"models": models}))


def wrong_sample() -> None:
    Path("sample.csv").write_text("Id,Class\ntest1,a\n")


@pytest.mark.parametrize(
    ("spoil", "arguments", "what"),
    [
        (other_fingerprint, "", r"runs/fair/fold2: .* \(fingerprint 5ca1ab1e, here [0-9a-f]{16}\)"),
        (unfinish, "--runs good fair", "runs/fair: has not finished fold"),
        (unfinish, "--runs good good", "good is named twice"),
        (unfinish, "--runs good", r"needs two finished runs, found 1 run \(good\)"),
        (other_test_classes, "", r"runs/fair/test\.npz|runs/good/test\.npz: has the classes"),
        (other_test_rows, "", r"test\.npz: lacks 40 rows .* and has extra 40 rows"),
        (wrong_sample, "--sample sample.csv", r"sample\.csv: lacks 39 rows .* of the test"),
        (wrong_sample, "--sample nowhere.csv", r"nowhere\.csv: cannot be read"),
        (wrong_sample, "--runs good fair --shares 1", "1 shares for 2 runs; give one for each of good, fair"),
        (wrong_sample, "--runs good fair --shares 0.9 -0.1", "each must be 0 or more"),
        (wrong_sample, "--runs good fair --shares 0 0", "one above 0"),
        (wrong_sample, "--runs good fair --shares nan 1", "each must be 0 or more"),
        (wrong_sample, "--method hand", "no weights were given; add --shares"),
        (wrong_sample, "--method group-vote", "needs two or more models, one of them trained more than once"),
        (wrong_sample, "--method sofmax", "--method: sofmax is unknown; use one of: auto, mean"),
        (trained_since, "", r"fair/test\.npz: was predicted before fold1 was trained again; run: .* --runs fair"),
        (unmarked, "", r"fair/test\.npz: does not say which models and views predicted it"),
        (lost_views, "", r"fair/oof_tta\.npz: is missing, though .*; run: .* --tta auto --runs fair"),
        (other_views, "", r"fair/oof_tta\.npz: has different views from fair's test predictions; run: .* --tta auto"),
        (other_views_models, "", r"fair/oof_tta\.npz: was predicted before fold3 was trained again"),
        (wrong_sample, "--run good --runs good fair", "--run: good is a training run"),
        (wrong_sample, "--folds nowhere.csv", r"nowhere\.csv"),
    ],
)
def test_mistakes_are_named_and_change_nothing(place, spoil, arguments, what):
    """One line with file and remedy, before anything is written."""
    spoil()
    before = {path: path.read_bytes() for path in Path(".").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=what):
        main(arguments.split())
    assert {path: path.read_bytes() for path in Path(".").rglob("*") if path.is_file()} == before


def test_mistakes_are_said_before_torch_is_imported(place):
    """A wrong input costs a fraction of a second: torch is not even loaded."""
    script = ROOT / "ensemble.py"
    found = subprocess.run(
        [sys.executable, "-X", "importtime", str(script), "--sample", "nowhere.csv"],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in found.stderr.splitlines() if not line.startswith("import time")]
    assert found.returncode == 2 and lines == [
        "error: nowhere.csv: cannot be read (No such file or directory); check the path"
    ]
    assert "| torch\n" not in found.stderr.replace("|  ", "| ").replace("  ", " ")


@pytest.mark.parametrize(
    ("task", "labels", "given", "wrong", "what"),
    [
        ("multilabel", ["a", "a|b", "b"], [[0.9, 0.1], [0.7, 0.6], [0.2, 0.8]], "1.5", "probabilities"),
        ("regression", ["1.5", "-2", "40"], [[1.25], [-3.0], [38.5]], "nan", "numbers"),
    ],
)
def test_sets_and_numbers_made_elsewhere_are_read(task, labels, given, wrong, what, tmp_path):
    """Each label's probability and each target's number come back as they were written; others are refused."""
    rows = len(labels)
    ids = text_array([f"r{row}" for row in range(rows)])
    folds = Folds(ids, text_array(labels), np.arange(rows), ids, text_array([]), TASKS[task])
    lines = [",".join([row_id, *map(str, row)]) for row_id, row in zip(ids, given, strict=True)]
    text = "\n".join([",".join(["id", *folds.output_names]), *lines])
    (tmp_path / "good.csv").write_text(text + "\n")
    found = read_answers(tmp_path / "good.csv", folds)
    values = found.logits if task == "regression" else TASKS[task].probabilities(found.outputs)
    assert np.allclose(values, given, atol=1e-6)
    (tmp_path / "bad.csv").write_text(text.replace(str(given[1][0]), wrong) + "\n")
    with pytest.raises(UserError, match=f"bad.csv, row 2: .* are not {what}"):
        read_answers(tmp_path / "bad.csv", folds)


def test_predictions_made_elsewhere_become_a_run(place, capsys):
    """Two csv files are blended and scored like any run; a mistake in them is one line and writes nothing."""
    parts = [read_predictions(fold_folder(Path("runs/good"), k) / OOF_FILE) for k in range(4)]
    test = read_predictions(Path("runs/good") / TEST_FILE)

    def csv_of(path: str, predictions: list[Predictions], rows: slice = slice(None)) -> None:
        lines = [
            ",".join([str(row_id), *map(str, shares[::-1])])
            for each in predictions
            for row_id, shares in zip(each.ids, softmax(each.logits), strict=True)
        ]
        Path(path).write_text("\n".join([",".join(["Id", *CLASSES[::-1]]), *lines[rows]]) + "\n", encoding="utf-8")

    csv_of("oof.csv", parts[::-1])
    csv_of("short.csv", parts, slice(1, None))
    csv_of("test.csv", [test])
    for files, what in (
        (("short.csv", "test.csv"), "short.csv: lacks 1 row"),
        (("folds.csv", "test.csv"), "has the columns"),
    ):
        with pytest.raises(UserError, match=what):
            main(["--add", "notebook", *files])
        assert not Path("runs/notebook").exists()
    main(["--add", "notebook", "oof.csv", "test.csv"])
    assert was_added(Path("runs/notebook")) and not was_added(Path("runs/good"))
    with pytest.raises(UserError, match="exists already"):
        main(["--add", "notebook", "oof.csv", "test.csv"])
    main(["--runs", "good", "notebook", "--method", "mean"])
    assert "notebook was added: which folds it was made with is not known" in capsys.readouterr().out
    weights = json.loads(Path("runs/ensemble/weights.json").read_text())
    rows = {row["name"]: row["nested"] for row in weights["table"]}
    assert rows["run notebook"]["nll"] == pytest.approx(rows["run good"]["nll"], rel=1e-5)
    blend = read_predictions(Path("runs/ensemble/test.npz"))
    assert (blend.predicted == rows_in_order(test, blend.ids, "test").predicted).all()
