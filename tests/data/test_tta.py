"""Views: what they do to an image, and that only those stay which help on rows no model has seen."""

import json
import re
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import train, write_pixel_csv
from scores import count_errors, log_mean_probability

import infer
import train_fold
from common.base.errors import UserError
from common.data.dealing import make_folds
from common.data.folds import match_folds, read_folds, write_folds
from common.data.geometry import cropped
from common.data.reading import read_train_table
from common.data.views import TTA
from common.runs.layout import INFERENCE_FILE, TEST_FILE, TTA_OOF_FILE, finished_folds
from common.runs.oof import join_oof
from common.runs.predictions import read_predictions
from common.score.logits import Outputs
from common.score.task import MULTICLASS
from common.score.view_choice import choose_views, choose_weights, score_views
from common.train import fold_models
from common.train.fold_models import FoldModels, read_models

PHOTO_PRESETS = {"flips", "hflip", "d4", "six", "brief_002", "five_crop", "scales"}  # not for digits

# ---- the views


@pytest.mark.parametrize("preset", sorted(set(TTA) - {"scales"}))
def test_views_of_a_preset_are_weighted_to_one(preset):
    """Weights sum to 1, the identity leads, every name stands for a view of its own, and none changes the shape."""
    views = TTA[preset]
    assert sum(view.weight for view in views) == pytest.approx(1)
    assert views[0].name == "identity" and views[0].weight >= 0.5
    assert len({view.name for view in views}) == len(views)
    images = torch.rand(2, 3, 32, 32)
    seen = [view.look(cropped(images, 28, *view.place)) for view in views]
    assert all(look.shape == (2, 3, 28, 28) for look in seen)
    assert all((one - other).abs().sum() > 1 for one, other in combinations(seen, 2))


def test_d4_is_every_symmetry_of_a_square_and_six_a_part_of_it():
    """Eight different views that are permutations of the pixels, six of them without quarter turns."""
    image = torch.arange(9.0).view(1, 1, 3, 3)
    seen = {view.name: tuple(view.look(image).flatten().tolist()) for view in TTA["d4"]}
    assert len(set(seen.values())) == len(seen) == 8
    assert all(sorted(pixels) == list(range(9)) for pixels in seen.values())
    transposed = image.transpose(-1, -2)
    transpositions = [transposed, transposed.flip([-2, -1])]
    assert {seen["transposed"], seen["transposed, half turn"]} == {tuple(t.flatten().tolist()) for t in transpositions}
    six = {view.name: tuple(view.look(image).flatten().tolist()) for view in TTA["six"]}
    assert len(six) == 6 and six.items() <= seen.items()
    assert TTA["brief_002"] == TTA["six"]  # its name in older runs


def test_scales_are_the_image_with_other_numbers_of_pixels():
    """Multi-scale inference: 7/8 and 8/7 of the side, of the same brightness, half the weight on the image itself."""
    views = TTA["scales"]
    seen = [view.look(torch.full((1, 1, 28, 28), 0.5)) for view in views]
    assert [look.shape[-1] for look in seen] == [28, 24, 32] and [view.weight for view in views] == [0.5, 0.25, 0.25]
    assert all(look.mean().item() == pytest.approx(0.5) for look in seen)


@pytest.mark.parametrize("preset", sorted(set(TTA) - PHOTO_PRESETS))
def test_views_for_digits_never_mirror(preset):
    """No view of an asymmetric image is nearer to its mirror image than to itself; flips are."""
    image = torch.zeros(1, 1, 28, 28)
    image[..., 6:22, 6:10] = 1
    image[..., 18:22, 6:20] = 1  # an L
    for view in TTA[preset]:
        seen = view.look(image)
        assert (seen - image).abs().sum() < (seen - image.flip(-1)).abs().sum()
        assert (seen - image).abs().sum() < (seen - image.flip(-2)).abs().sum()
    mirrored, upside_down = (view.look(image) for view in TTA["flips"][1:])
    assert torch.equal(mirrored, image.flip(-1)) and torch.equal(upside_down, image.flip(-2))


# ---- the choice


def some_views(n: int, strengths: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of views that see the target through noise of their own, targets, and five parts."""
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, n)
    views = [strength * np.eye(3)[targets] + random.normal(size=(n, 3)) for strength in strengths]
    return np.stack(views).astype(np.float32), targets, np.arange(n) % 5


def test_a_helping_view_stays_and_a_harmful_one_goes():
    """A second look with noise of its own is used, one that knows nothing or the wrong thing is not."""
    logits, targets, part = some_views(1500, [3, 3, 0, -3])
    scores = score_views(Outputs(logits), targets, part, MULTICLASS)
    assert [score.helps for score in scores] == [False, True, False, False]
    weights, averaged = choose_views(Outputs(logits), targets, part, MULTICLASS)
    assert weights[0] > 0.3 and weights[1] > 0.3 and weights[2:].tolist() == [0, 0]
    assert count_errors(averaged.values, targets) < count_errors(logits[0], targets)


def test_without_a_helping_view_nothing_changes():
    """Where no view helps the image itself is all there is, to the bit."""
    logits, targets, part = some_views(600, [3, 0, 0])
    weights, averaged = choose_views(Outputs(logits), targets, part, MULTICLASS)
    assert weights.tolist() == [1, 0, 0] and (averaged.values == logits[0]).all()


def test_views_and_weights_of_a_part_never_see_it():
    """Other labels in one part change how the other parts' rows are averaged, never how its own are."""
    logits, targets, part = some_views(600, [3, 3, 2])
    other = np.where(part == 2, (targets + 1) % 3, targets)
    before, after = (choose_views(Outputs(logits), labels, part, MULTICLASS)[1].values for labels in (targets, other))
    assert (before[part == 2] == after[part == 2]).all()
    assert (before[part != 2] != after[part != 2]).any()


def test_views_that_help_share_alike():
    """The image itself keeps half unless another share clearly wins; the helping views share the rest equally."""
    logits, targets, part = some_views(1500, [3, 1.5, 1.5])
    assert choose_weights(Outputs(logits), targets, part, MULTICLASS).tolist() == [0.5, 0.25, 0.25]
    logits, targets, part = some_views(1500, [0.5, 4, 4])
    weights = choose_weights(Outputs(logits), targets, part, MULTICLASS)
    assert weights[0] < 0.2 and weights[1] == weights[2] and weights.sum() == pytest.approx(1)


# ---- the script


def infer_views(folder, *arguments: str) -> dict:
    """infer.py on the runs below ``folder``; what inference.json of its run says of each view, by name."""
    infer.main(["--runs-dir", str(folder / "runs"), "--folds", str(folder / "folds.csv"), "--threads", "1", *arguments])
    facts = json.loads((folder / "runs" / "digit_cnn" / INFERENCE_FILE).read_text())
    return {view["name"]: view for view in facts["views"]}


def test_flips_lose_on_digits(tmp_path):
    """On a net that was really trained on real digits both flips are refused, by far."""
    places = ["--folds", str(tmp_path / "folds.csv")]
    write_folds(tmp_path / "folds.csv", make_folds(read_train_table("digits"), k=3))
    settings = ["--epochs", "4", "--batch-size", "32", "--threads", "1", "--jobs", "1", "--channels-last", "no"]
    train_fold.main([*places, "--runs-dir", str(tmp_path / "runs"), *settings])
    views = infer_views(tmp_path, "--tta", "auto", "--views", "flips", "turns")
    for name in ("mirrored", "upside down"):
        assert views[name]["weight"] == 0 and not views[name]["helps"]
        assert views[name]["difference"] > 5 * views[name]["standard_error"]
        assert views[name]["errors_alone"] > 5 * views["identity"]["errors_alone"]


def test_flips_stay_where_left_and_right_mean_nothing(tmp_path):
    """On a toy set of symmetric patterns under noise both flips earn a place, and OOF errors fall."""
    random = np.random.default_rng(0)
    across = np.abs(np.arange(8) - 3.5)
    ring = np.maximum(across[:, None], across)  # 0.5 in the middle, 3.5 at the border
    patterns = np.stack([ring < 2, ring > 2, np.minimum(across[:, None], across) < 1])
    targets = random.integers(0, 3, 600)
    images = np.clip(100 + 30 * patterns[targets] + random.normal(0, 55, (600, 8, 8)), 0, 255).astype(np.uint8)
    table = write_pixel_csv(tmp_path / "train.csv", images, [f"class {target}" for target in targets])
    write_pixel_csv(tmp_path / "test.csv", images[:20])
    places = ["--data", str(table), "--folds", str(tmp_path / "folds.csv")]
    write_folds(tmp_path / "folds.csv", make_folds(read_train_table(str(table)), k=3))
    settings = ["--epochs", "4", "--batch-size", "32", "--threads", "1", "--channels-last", "no", "--augment", "none"]
    settings += ["--jobs", "1"]
    train_fold.main([*places, "--runs-dir", str(tmp_path / "runs"), *settings])
    arguments = ["--data", str(table), "--test", str(tmp_path / "test.csv"), "--tta", "auto", "--views", "flips"]
    views = infer_views(tmp_path, *arguments)
    for name in ("mirrored", "upside down"):
        assert views[name]["helps"] and views[name]["weight"] > 0.1
    viewed = read_predictions(tmp_path / "runs" / "digit_cnn" / TTA_OOF_FILE)
    plain = join_oof(tmp_path / "runs" / "digit_cnn", read_folds(tmp_path / "folds.csv"))
    assert count_errors(viewed.logits, viewed.targets) < count_errors(plain.logits, plain.targets)


def test_oof_is_stored_under_the_views_of_the_test(chain, tiny):
    """With --tta each training row is stored once, under the test rows' views, by the model that has not seen it."""
    table = read_train_table(str(tiny / "train.csv"))
    folds = match_folds(read_folds(tiny / "folds.csv"), table)
    stored, test = (read_predictions(chain / "one" / name) for name in (TTA_OOF_FILE, TEST_FILE))
    rows = [np.flatnonzero(folds.fold == k) for k in range(3)]
    predict = FoldModels(read_models(finished_folds(chain / "one")), table, TTA["digits"])
    weights = [view.weight for view in TTA["digits"]]
    for k in range(3):
        logits = predict.of_fold(k, rows[k])
        part = stored.logits[stored.fold == k]
        assert stored.ids[stored.fold == k].tolist() == folds.ids[rows[k]].tolist()
        np.testing.assert_allclose(part, log_mean_probability(logits, weights), atol=1e-5)
    assert len(stored.ids) == 60 and stored.labels.tolist() == folds.labels[np.concatenate(rows)].tolist()
    assert stored.source == test.source and list(test.source["models"]) == ["fold0", "fold1", "fold2"]
    assert test.source["tta"] == "digits" and sum(test.source["views"].values()) == pytest.approx(1)


def test_test_rows_in_blocks_are_those_predicted_at_once(chain, tiny, monkeypatch):
    """With many classes the models take turns on a few rows at a time; the average is the same."""
    models = read_models(finished_folds(chain / "one"))
    predict = FoldModels(models, read_train_table(str(tiny / "train.csv")), TTA["digits"])
    at_once = predict.mean(np.arange(60))
    monkeypatch.setattr(fold_models, "AT_ONCE", 7 * len(models) * len(TTA["digits"]) * 3)  # seven of the sixty rows
    np.testing.assert_allclose(predict.mean(np.arange(60)), at_once, atol=1e-5)


def test_views_of_the_full_model_are_chosen_by_the_fold_models(tiny, tmp_path):
    """--fold full --tta auto needs the folds' models, says so, and stores OOF predictions of theirs."""
    train(tiny, tmp_path / "runs", "--fold", "full", "--epochs", 1)
    arguments = ["--runs-dir", str(tmp_path / "runs"), "--fold", "full", "--tta", "auto", "--threads", "1"]
    arguments += [
        "--data",
        str(tiny / "train.csv"),
        "--folds",
        str(tiny / "folds.csv"),
        "--test",
        str(tiny / "test.csv"),
    ]
    with pytest.raises(UserError, match="has no finished fold"):
        infer.main(arguments)
    train(tiny, tmp_path / "runs", "--epochs", 1)
    infer.main(arguments)
    stored, test = (read_predictions(tmp_path / "runs" / "digit_cnn" / name) for name in (TTA_OOF_FILE, TEST_FILE))
    assert list(test.source["models"]) == ["full"] and list(stored.source["models"]) == ["fold0", "fold1", "fold2"]
    assert test.source["views"] == stored.source["views"]


def test_score_tta_writes_nothing(chain, tiny, capsys):
    """--score-tta prints each view's interval and leaves every file as it was."""
    before = {path: path.stat().st_mtime_ns for path in chain.rglob("*") if path.is_file()}
    places = {"runs_dir": str(chain), "data": str(tiny / "train.csv"), "folds": str(tiny / "folds.csv")}
    result = infer.run(infer.Options(**places, runs=("one",), score_tta=True, views=("shifts", "flips")))
    assert result.score["one"]["n"] == 60 and result.folder == chain
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in ("identity", "left", "mirrored", "upside down"))
    assert {path: path.stat().st_mtime_ns for path in chain.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--tta", "digit"], "--tta: digit is unknown; use one of: none, auto, digits"),
        (["--tta", "auto", "--views", "none"], "--views: none is unknown; use one of: digits"),
        (["--views", "flips"], "--views: has no effect without --tta auto or --score-tta"),
        (["--score-tta", "--tta", "auto"], "--score-tta: predicts the training rows"),
        (["--tta", "auto", "--data", "digits"], "digits: differs from the folds file"),
    ],
)
def test_mistakes_are_named_before_any_work(chain, tiny, arguments, what):
    """An unknown preset, an option without effect, the wrong train table: one line each."""
    places = ["--runs-dir", str(chain), "--folds", str(tiny / "folds.csv")]
    with pytest.raises(UserError, match=what):
        infer.main([*places, *arguments])


def test_a_single_run_submits_calibrated_probabilities(chain, tiny, tmp_path, capsys):
    """--calibrate divides what is submitted by the temperature of the OOF rows; test.npz stays, for a blend;
    --submission writes the file where a notebook wants it."""
    there = tmp_path / "working" / "submission.csv"
    there.parent.mkdir()
    say = ["--runs-dir", str(chain), "--runs", "one", "--out-dir", str(tmp_path), "--test", str(tiny / "test.csv")]
    for more in ([], ["--calibrate", "--submission", str(there)]):
        infer.main([*say, "--submit", "probabilities", *more])
    said = capsys.readouterr().out
    folder = next(path.parent for path in tmp_path.glob("*/test.npz"))
    test = read_predictions(folder / TEST_FILE)
    scale = float(said.split("temperature ")[1].split(",")[0])
    before, after = map(float, re.search(r"nll of OOF rows ([0-9.]+) -> ([0-9.]+)", said).groups())
    shares = np.loadtxt(there, delimiter=",", skiprows=1, usecols=range(1, 1 + len(test.output_names)))
    np.testing.assert_allclose(shares, Outputs(test.logits / scale).softmax(), atol=2e-3)
    assert there.read_bytes() == (folder / "submission.csv").read_bytes() and scale != 1 and after < before + 0.1
    with pytest.raises(UserError, match="--calibrate: changes no label"):
        infer.main([*say, "--submit", "label", "--calibrate"])
