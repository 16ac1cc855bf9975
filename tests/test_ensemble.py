"""Blends: the right weights, honest scores, one folds file, rows joined by id."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from common.errors import UserError
from common.files import write_json
from common.metrics import log_softmax, nll, softmax
from common.predictions import Predictions, read_predictions, write_predictions
from common.runs import METRICS_FILE, OOF_FILE, TEST_FILE, fold_folder
from common.splits import Folds, write_folds
from common.tables import text_array
from ensemble import METHODS, by_hand, ensemble_model, main, nested, softmax_weights

CLASSES = ["a", "b", "c"]


def noisy_logits(targets: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """A model that sees the target through noise; at strength 0 it knows nothing."""
    noise = np.random.default_rng(seed).normal(size=(len(targets), len(CLASSES)))
    return (strength * np.eye(len(CLASSES))[targets] + noise).astype(np.float32)


def some_models(n: int, strengths: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    targets = np.random.default_rng(seed).integers(0, len(CLASSES), n)
    models = [noisy_logits(targets, strength, 100 * seed + k) for k, strength in enumerate(strengths, start=1)]
    return np.stack(models), targets


# ---- the methods


@pytest.mark.parametrize("strengths", [[2, 2, 2], [3, 1], [3, 0, 2.5, 0.1], [4, 0, 0]])
def test_softmax_weights_are_the_optimum(strengths):
    """Trained weights equal those of SLSQP on the convex problem to 1e-4, at the border of the simplex too."""
    logits, targets = some_models(600, strengths)
    of_target = np.stack([softmax(member)[np.arange(600), targets] for member in logits], axis=1)
    count = len(strengths)
    found = minimize(
        lambda weights: -np.log(of_target @ weights).mean(),
        np.full(count, 1 / count),
        jac=lambda weights: -(of_target / (of_target @ weights)[:, None]).mean(axis=0),
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    np.testing.assert_allclose(softmax_weights(logits, targets).weights, found.x, atol=1e-4)


def test_weights_start_equal_and_are_learned_the_same_each_time():
    """The module starts at equal weights, and training it twice gives the same bits."""
    import torch

    probabilities = torch.tensor([[0.2, 0.6]], dtype=torch.float64)
    assert torch.exp(ensemble_model(2)(probabilities.log())).item() == pytest.approx(0.4)
    logits, targets = some_models(300, [2, 1, 3])
    first, second = (softmax_weights(logits, targets).weights for _ in range(2))
    assert (first == second).all() and first.sum() == pytest.approx(1)


def test_the_mixture_is_the_weighted_sum_of_probabilities():
    """The module gives each model's probabilities times its softmax weight, summed."""
    import torch

    logits, _ = some_models(20, [2, 1, 3])
    model = ensemble_model(3)
    with torch.no_grad():
        model.weights.copy_(torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64))
    log_probabilities = np.stack([log_softmax(member) for member in logits], axis=-1)  # (rows, classes, models)
    weights = np.exp([0.3, -1.0, 0.5]) / np.exp([0.3, -1.0, 0.5]).sum()
    found = torch.exp(model(torch.from_numpy(log_probabilities))).detach().numpy()
    np.testing.assert_allclose(found, np.exp(log_probabilities) @ weights, rtol=1e-9)


def test_identical_runs_get_equal_weights():
    """Of the same predictions twice, softmax makes the mean, not a winner."""
    logits, targets = some_models(300, [2])
    twice = np.concatenate([logits, logits, logits])
    np.testing.assert_allclose(softmax_weights(twice, targets).weights, 1 / 3, atol=1e-9)


def test_extreme_models_are_blended():
    """A run that is certain of wrong classes loses its weight and makes no NaN."""
    logits, targets = some_models(200, [2])
    certain = 3000 * np.eye(3, dtype=np.float32)[(targets + 1) % 3]
    blend = softmax_weights(np.stack([logits[0], certain]), targets)
    assert blend.weights[0] > 0.999
    assert np.isfinite(blend(np.stack([logits[0], certain]))).all()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_blends_probabilities(name):
    """Each method's blend is a distribution over the classes on rows it was not fitted on."""
    logits, targets = some_models(200, [2, 1, 3])
    blended = METHODS[name](logits[:, :150], targets[:150])(logits[:, 150:])
    assert blended.shape == (50, 3)
    np.testing.assert_allclose(np.exp(blended).sum(axis=1), 1, atol=1e-5)


def test_best_is_the_run_with_the_fewest_errors():
    """Best single answers with one run's own predictions."""
    logits, targets = some_models(300, [1, 4, 2])
    assert METHODS["best"](logits, targets).weights.tolist() == [0, 1, 0]


# ---- the scores


def test_in_sample_flatters_and_nested_does_not():
    """Ten models that know nothing lower the in-sample loss of learned weights, but not the nested one."""
    in_sample, held_out, mean_loss = [], [], []
    for seed in range(5):
        logits, targets = some_models(150, [0.0] * 10, seed)
        fold = np.random.default_rng(seed).integers(0, 5, 150)
        in_sample.append(nll(softmax_weights(logits, targets)(logits), targets))
        held_out.append(nll(nested(softmax_weights, logits, targets, fold), targets))
        mean_loss.append(nll(nested(METHODS["mean"], logits, targets, fold), targets))
    assert (np.array(in_sample) <= np.array(mean_loss) + 1e-6).all()
    assert (np.array(in_sample) < np.array(held_out)).all()
    assert np.mean(in_sample) < np.mean(mean_loss) < np.mean(held_out)


def test_nested_never_fits_on_the_rows_it_scores():
    """Changing one fold's labels changes the blend of every other fold's rows, never of its own."""
    logits, targets = some_models(200, [2, 1])
    fold = np.arange(200) % 4
    other = np.where(fold == 2, (targets + 1) % 3, targets)
    before, after = (nested(softmax_weights, logits, labels, fold) for labels in (targets, other))
    assert (before[fold == 2] == after[fold == 2]).all()
    assert (before[fold != 2] != after[fold != 2]).any(axis=1).all()
    by_given = nested(by_hand([1, 3]), logits, targets, fold)
    assert (by_given == by_hand([1, 3])(logits, targets)(logits)).all()


# ---- the script on runs


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A work folder with folds.csv (60 rows, 4 folds) and three finished runs with test predictions."""
    monkeypatch.chdir(tmp_path)
    make_place(Folds(IDS, LABELS, np.arange(60) % 4, text_array(["0" * 16] * 60), text_array([])))
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
            write_json(
                fold_folder(Path("runs") / run, k) / METRICS_FILE,
                {"folds_fingerprint": folds.fingerprint, "fold_count": folds.count},
            )
        if tests:
            order = np.random.default_rng(seed).permutation(40)
            ids = text_array(f"test{number}" for number in range(40))
            labels = text_array(CLASSES[target] for target in TEST_TARGETS)
            logits = noisy_logits(TEST_TARGETS, strength, 50 + seed)
            test = Predictions(ids[order], logits[order], CLASSES, labels[order], id_name="Id", label_name="Class")
            write_predictions(Path("runs") / run / TEST_FILE, test)


def test_blend_of_all_finished_runs(place, capsys):
    """Without arguments: every finished run, four files, weights that sum to 1, the table, the test's accuracy."""
    main([])
    out = capsys.readouterr().out
    weights = json.loads(Path("runs/ensemble/weights.json").read_text())
    assert list(weights["weights"]) == ["fair", "good", "poor"] and weights["method"] == "softmax"
    assert sum(weights["weights"].values()) == pytest.approx(1)
    names = [row["name"] for row in weights["table"]]
    assert names == ["best", "mean", "softmax", "run fair", "run good", "run poor"]
    for name in names:
        assert f"\n{name} " in out
    assert "test accuracy of softmax: " in out and "errors of 40" in out
    oof = read_predictions(Path("runs/ensemble/oof.npz"))
    found = next(row["nested"] for row in weights["table"] if row["name"] == "softmax")
    assert found["errors"] == (oof.predicted != oof.labels).sum()
    assert found["nll"] == pytest.approx(nll(oof.logits, oof.targets))
    submission = Path("runs/ensemble/submission.csv").read_text().splitlines()
    assert submission[0] == "Id,Class" and len(submission) == 41
    table = [line for line in out.splitlines() if line.startswith((*METHODS, "run "))]
    assert len({len(line) for line in table}) == 1  # columns are aligned


def test_test_rows_are_joined_by_id(place):
    """Runs whose test rows lie in different orders give each id the mixture of its own rows."""
    main(["--weights", "1", "2", "1", "--method", "hand", "--runs", "good", "fair", "poor"])
    blended = read_predictions(Path("runs/ensemble/test.npz"))
    position = {row_id: row for row, row_id in enumerate(blended.ids)}
    expected = np.zeros((40, 3))
    for share, run in [(0.25, "good"), (0.5, "fair"), (0.25, "poor")]:
        test = read_predictions(Path("runs") / run / TEST_FILE)
        expected[[position[row_id] for row_id in test.ids]] += share * softmax(test.logits)
    np.testing.assert_allclose(softmax(blended.logits), expected, atol=1e-6)


def test_same_inputs_give_the_same_files(place):
    """The blend is a function of its inputs: twice the same bytes."""
    files = ("weights.json", "oof.npz", "test.npz", "submission.csv")
    contents = []
    for _ in range(2):
        main([])
        contents.append([(Path("runs/ensemble") / name).read_bytes() for name in files])
    assert contents[0] == contents[1]


def test_weights_by_hand_are_scaled_and_compared(place, capsys):
    """Hand weights get their own row; a sum other than 1 is scaled and said; the learned blend stays the default."""
    main(["--runs", "good", "poor", "--weights", "3", "1"])
    out = capsys.readouterr().out
    assert "--weights sum to 4: scaled to sum to 1" in out and "\nhand " in out
    weights = json.loads(Path("runs/ensemble/weights.json").read_text())
    assert weights["method"] == "softmax"
    main(["--runs", "good", "poor", "--weights", "0.75", "0.25", "--method", "hand"])
    assert "scaled" not in capsys.readouterr().out
    weights = json.loads(Path("runs/ensemble/weights.json").read_text())
    assert weights["weights"] == {"good": 0.75, "poor": 0.25}
    main(["--runs", "good", "poor", "--weights", "3", "1", "--method", "hand"])
    assert json.loads(Path("runs/ensemble/weights.json").read_text()) == weights


def test_a_run_without_test_predictions(place, capsys):
    """OOF side and weights are written, the missing run is named with its command, no stale submission stays."""
    main([])
    (Path("runs/fair") / TEST_FILE).unlink()
    main([])
    assert "run: python infer.py --runs fair" in capsys.readouterr().err
    left = {path.name for path in Path("runs/ensemble").iterdir() if not path.name.startswith(".")}
    assert left == {"weights.json", "oof.npz"}


def test_holdout_has_no_nested_score(tmp_path, monkeypatch, capsys):
    """With one fixed validation part only in-sample scores exist, and that is said."""
    monkeypatch.chdir(tmp_path)
    fold = np.where(np.arange(60) < 30, 0, -1)
    make_place(Folds(IDS, LABELS, fold, text_array(["0" * 16] * 60), text_array([])), tests=False)
    main([])
    out = capsys.readouterr().out
    assert "No nested score" in out and "nested:" not in out
    weights = json.loads(Path("runs/ensemble/weights.json").read_text())
    assert weights["oof"] == "in-sample" and all("nested" not in row for row in weights["table"])
    assert len(read_predictions(Path("runs/ensemble/oof.npz")).ids) == 30


def other_fingerprint() -> None:
    write_json(fold_folder(Path("runs/fair"), 2) / METRICS_FILE, {"folds_fingerprint": "5ca1ab1e"})


def unfinish() -> None:
    (fold_folder(Path("runs/fair"), 2) / METRICS_FILE).unlink()


def other_test_classes() -> None:
    path = Path("runs/fair") / TEST_FILE
    write_predictions(path, replace(read_predictions(path), classes=["b", "a", "c"]))


def other_test_rows() -> None:
    path = Path("runs/fair") / TEST_FILE
    test = read_predictions(path)
    write_predictions(path, replace(test, ids=text_array(f"x{row_id}" for row_id in test.ids)))


def wrong_sample() -> None:
    Path("sample.csv").write_text("Id,Class\ntest1,a\n")


@pytest.mark.parametrize(
    ("spoil", "arguments", "what"),
    [
        (other_fingerprint, "", r"runs/fair/fold2: .* \(fingerprint 5ca1ab1e, here [0-9a-f]{16}\)"),
        (unfinish, "--runs good fair", "runs/fair: has not finished fold"),
        (unfinish, "--runs good good", "good is named twice"),
        (unfinish, "--runs good", r"needs two finished runs, there is 1 run \(good\)"),
        (other_test_classes, "", r"runs/fair/test\.npz|runs/good/test\.npz: has the classes"),
        (other_test_rows, "", r"test\.npz: lacks 40 rows .* and has unknown 40 rows"),
        (wrong_sample, "--sample sample.csv", r"sample\.csv: lacks 39 rows .* of the test"),
        (wrong_sample, "--sample nowhere.csv", r"nowhere\.csv: cannot be read"),
        (wrong_sample, "--runs good fair --weights 1", "1 weights for 2 runs; give one for each of good, fair"),
        (wrong_sample, "--runs good fair --weights 0.9 -0.1", "each must be 0 or more"),
        (wrong_sample, "--runs good fair --weights 0 0", "one above 0"),
        (wrong_sample, "--runs good fair --weights nan 1", "each must be 0 or more"),
        (wrong_sample, "--method hand", "there are no weights; add --weights"),
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
    script = Path(__file__).parents[1] / "ensemble.py"
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
