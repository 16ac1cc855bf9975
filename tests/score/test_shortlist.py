"""Thousands of classes: short forms and half precision keep the score, and no step needs the matrix thrice."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scores import log_softmax, softmax

import ensemble
import infer
import report
import train_fold
from benchmarks.scale import GROUPED, make_photos
from common.base.errors import UserError
from common.base.files import write_json
from common.base.strict_csv import text_array
from common.data.dealing import WIDE, make_folds
from common.data.folds import Folds, leaks, missing_classes, read_folds, write_folds
from common.data.table import Table
from common.runs.layout import METRICS_FILE, OOF_FILE, fold_folder
from common.runs.oof import join_oof, oof_score
from common.runs.predictions import Predictions, read_predictions, short_form, side_by_side, write_predictions
from common.runs.submission import sheet_of, write_submission
from common.score.blending import BLENDS, OofOutputs
from common.score.logits import Outputs
from common.score.metrics import describe
from common.score.task import MULTICLASS
from common.score.temperature import temperature

N, CLASSES = 600, 40
LABELS = text_array(f"class {number:04}" for number in np.random.default_rng(0).integers(0, CLASSES, N))
NAMES = sorted(f"class {number:04}" for number in range(CLASSES))
FOLDS = Folds(
    text_array(f"row {number}" for number in range(N)),
    LABELS,
    np.arange(N) % 3,
    text_array(["0" * 16] * N),
    text_array([]),
)


def a_run(seed: int) -> Predictions:
    """What a model that is right on most rows says of all of them, in long form."""
    found = Predictions(FOLDS.ids, np.empty(0), NAMES, LABELS, FOLDS.fold)
    noise = np.random.default_rng(seed).normal(scale=1.5, size=(N, CLASSES))
    return replace(found, logits=(noise + 4 * np.eye(CLASSES)[found.targets]).astype(np.float32))


def write_run(runs_dir: Path, name: str, oof: Predictions, store: str, folds: Folds = FOLDS) -> Path:
    for k in range(folds.count):
        rows, folder = np.flatnonzero(folds.fold == k)[::-1], fold_folder(runs_dir / name, k)
        part = {field: getattr(oof, field)[rows] for field in ("ids", "logits", "labels", "fold")}
        write_predictions(folder / OOF_FILE, replace(oof, **part), store)
        write_json(folder / METRICS_FILE, {"folds_fingerprint": folds.fingerprint, "fold_count": folds.count})
    return runs_dir / name


def long_form(predictions: Predictions) -> Predictions:
    return replace(predictions, logits=predictions.long(slice(None)), columns=np.empty((0, 0), np.int32))


# ---- what is stored


def test_half_precision_keeps_the_score(tmp_path):
    """Every answer stays, even where two classes differ by a ten-thousandth of a large logit; log loss to 1e-3."""
    run = a_run(1)
    close = run.logits + 20
    order = np.argsort(close, axis=1)
    first, second = order[:, -1:], order[:, -2:-1]
    np.put_along_axis(close, second, np.take_along_axis(close, first, axis=1) - 2e-3, axis=1)
    for logits in (run.logits, close):
        write_predictions(tmp_path / "half.npz", replace(run, logits=logits), "float16")
        before, after = replace(run, logits=logits), read_predictions(tmp_path / "half.npz")
        assert (before.predicted == after.predicted).all()
        assert after.score()["accuracy"] == before.score()["accuracy"]
        assert abs(after.score()["nll"] - before.score()["nll"]) < 1e-3
    write_predictions(tmp_path / "whole.npz", run)
    small, large = ((tmp_path / name).stat().st_size for name in ("half.npz", "whole.npz"))
    assert large - small == pytest.approx(2 * N * CLASSES, rel=0.01)


def test_a_short_form_keeps_the_likeliest_and_spreads_the_rest(tmp_path):
    """The kept classes keep their probabilities, all others share what is left, and no answer changes."""
    run = a_run(1)
    write_predictions(tmp_path / "top.npz", run, "top5")
    short = read_predictions(tmp_path / "top.npz")
    assert short.logits.shape == (N, 6) and short.others == CLASSES - 5
    whole, spread = softmax(run.logits), softmax(long_form(short).logits)
    np.testing.assert_allclose(spread.sum(axis=1), 1)
    kept = np.argsort(-whole, axis=1)[:, :5]
    np.testing.assert_allclose(np.take_along_axis(spread, kept, 1), np.take_along_axis(whole, kept, 1), rtol=1e-5)
    assert (np.sort(spread, axis=1)[:, : CLASSES - 5] == spread.min(axis=1, keepdims=True)).all()
    assert (short.predicted == run.predicted).all()
    assert short_form(short, 3).logits == pytest.approx(short_form(run, 3).logits, abs=1e-5)


@pytest.mark.parametrize("name", ["accuracy", "errors", "nll", "balanced_accuracy", "macro_f1", "top5", "mcc"])
def test_scores_of_a_short_form_are_those_of_its_long_one(name):
    """Nobody has to know in which form a run was stored."""
    short = short_form(a_run(1), 6)
    assert short.score()[name] == pytest.approx(long_form(short).score()[name], rel=1e-6)
    assert temperature(short.outputs, short.places) == pytest.approx(
        temperature(long_form(short).outputs, short.targets), rel=1e-6
    )


@pytest.mark.parametrize("name", [name for name in BLENDS if name != "stack"])
def test_blends_of_short_forms_are_those_of_their_long_ones(name):
    """Each row's columns are the classes that a run keeps, the last one all others: every method says the same."""
    short = [short_form(a_run(1), 6), short_form(a_run(2), 4), a_run(3)]
    columns, shared = side_by_side(short)
    long = np.stack([long_form(short_form(each, 4)).logits for each in short])
    whole = OofOutputs(Outputs(long), shared.targets, shared.fold, np.array([0, 0, 1]), np.array([0.5, 0.2, 0.3]))
    cut = replace(whole, outputs=Outputs(np.stack(columns), shared.others), targets=shared.places)
    blend, expected = BLENDS[name](cut), BLENDS[name](whole)
    np.testing.assert_allclose(blend.weights, expected.weights, atol=1e-4)
    found = replace(shared, logits=blend(cut.outputs).values)
    np.testing.assert_allclose(
        log_softmax(long_form(found).logits), log_softmax(expected(whole.outputs).values), atol=2e-4
    )


@pytest.mark.parametrize("store", ["float16", "top8"])
def test_a_run_is_joined_in_whatever_form_it_was_stored(tmp_path, store):
    """Folds written in reverse row order come back in the order of the folds file, answers and labels alike."""
    run = a_run(1)
    joined = join_oof(write_run(tmp_path, "run", run, store), FOLDS)
    assert (joined.ids == FOLDS.ids).all() and (joined.predicted == run.predicted).all()
    assert joined.score()["nll"] == pytest.approx(run.score()["nll"], abs=0.02)
    (tmp_path / "run" / "fold1" / OOF_FILE).unlink()
    rows = FOLDS.fold == 1
    part = {field: getattr(run, field)[rows] for field in ("ids", "logits", "labels", "fold")}
    write_predictions(tmp_path / "run" / "fold1" / OOF_FILE, replace(run, **part))  # one fold stored otherwise
    assert (join_oof(tmp_path / "run", FOLDS).predicted == run.predicted).all()


def test_a_damaged_short_form_is_refused(tmp_path):
    """A class twice in a row, a class that is none, others likelier than what was kept, no such form."""
    short = short_form(a_run(1), 5)
    doubled, outside, likelier = short.columns.copy(), short.columns.copy(), short.logits.copy()
    doubled[3, 0], outside[3, 0], likelier[3, -1] = doubled[3, 1], CLASSES, 99
    for damaged in (
        replace(short, columns=doubled),
        replace(short, columns=outside),
        replace(short, columns=short.columns[1:]),
        replace(short, logits=likelier),
    ):
        with pytest.raises(UserError, match="a row has a class twice"):
            write_predictions(tmp_path / "top.npz", damaged)
    with pytest.raises(UserError, match="--store: there is no format top1; use float32, float16, or topN"):
        write_predictions(tmp_path / "top.npz", a_run(1), "top1")
    assert not list(tmp_path.iterdir())


def test_a_blend_takes_runs_in_every_form(tmp_path, monkeypatch, capsys):
    """ensemble.py on float32, float16 and top8: its file is the one whose score it prints; stacking is left out."""
    monkeypatch.chdir(tmp_path)
    write_folds(Path("folds.csv"), FOLDS)
    for seed, store in enumerate(["float32", "float16", "top8"]):
        write_run(Path("runs"), store, a_run(seed), store)
    ensemble.main([])
    assert "of 40 classes each row has 24, its runs' likeliest" in capsys.readouterr().out
    weights = json.loads(Path("runs/ensemble/weights.json").read_text())
    found = {row["name"]: row for row in weights["table"]}
    assert "stack" not in found and "softmax" in found
    oof = read_predictions(Path("runs/ensemble/oof.npz"))
    assert oof.is_short and found["auto"]["nested"]["errors"] == (oof.predicted != oof.labels).sum()
    assert found["auto"]["nested"]["nll_calibrated"] == pytest.approx(oof.score()["nll"], rel=1e-5)
    summed = np.log(sum(softmax(a_run(seed).logits) for seed in range(3)))
    whole = MULTICLASS.score(Outputs(summed), oof.targets, oof.output_names)
    assert abs(found["mean"]["in_sample"]["errors"] - whole["errors"]) <= 0.01 * N  # eight of forty classes are few
    assert found["mean"]["in_sample"]["nll"] == pytest.approx(whole["nll"], abs=0.02)
    noise = weights["noise"]
    assert noise["members"] == 10 and noise["difference"] > -2 * noise["standard_error"]


def test_a_submission_of_probabilities_is_written_from_a_short_form(tmp_path):
    """Every class has its column, and a row of it still sums to 1."""
    short = short_form(replace(a_run(1), labels=np.empty(0, object), fold=np.empty(0, np.int64)), 5)
    sample = tmp_path / "sample.csv"
    sample.write_text("\n".join([",".join(["id", *NAMES])] + [f"{name}{',0' * CLASSES}" for name in FOLDS.ids]) + "\n")
    write_submission(tmp_path / "submission.csv", short, sheet_of(short, str(sample)))
    rows = np.genfromtxt(tmp_path / "submission.csv", delimiter=",", skip_header=1)[:, 1:]
    np.testing.assert_allclose(rows, softmax(long_form(short).logits), atol=1e-6)


# ---- memory


def test_no_step_needs_the_matrix_thrice(tmp_path):
    """Writing, joining, scoring and cutting a run of 4,000 rows and 2,000 classes each hold it at most twice."""
    rows, classes = 4_000, 2_000
    unit = rows * classes * 4
    random = np.random.default_rng(0)
    names = [f"{number:05}" for number in range(classes)]
    labels = text_array(names[number] for number in random.integers(0, classes, rows))
    ids = text_array(map(str, range(rows)))
    folds = Folds(ids, labels, np.arange(rows) % 4, text_array(["0" * 16] * rows), text_array([]))
    folds = replace(folds, labels=np.where(np.arange(rows) < classes, text_array(names * 2), labels))
    oof = Predictions(ids, random.standard_normal((rows, classes), np.float32), names, folds.labels, folds.fold)

    def peak(step) -> float:
        """Units that a step holds beyond what was there before."""
        tracemalloc.start()
        step()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found / unit

    slack = 0.6  # blocks of rows and the texts: they do not grow with the matrix
    whole = tmp_path / "whole.npz"
    assert peak(lambda: write_predictions(whole, oof)) < slack
    assert peak(lambda: write_predictions(tmp_path / "half.npz", oof, "float16")) < 0.5 + slack
    assert peak(lambda: write_predictions(tmp_path / "top.npz", oof, "top64")) < slack
    assert peak(lambda: read_predictions(whole)) < 1 + slack
    assert peak(oof.score) < slack
    assert peak(lambda: MULTICLASS.loss(oof.outputs, oof.targets)) < slack
    run = write_run(tmp_path, "run", oof, "float32", folds)
    assert peak(lambda: join_oof(run, folds)) < 2 + slack
    assert peak(lambda: join_oof(run, folds, kept=64)) < 0.5 + slack
    assert peak(lambda: oof_score(run, folds)) < 0.5 + slack


# ---- folds


def test_groups_of_thousands_of_classes_are_spread_evenly():
    """A long tail in 6,000 groups: none is divided, common classes are even, and what cannot be dealt is trained on."""
    counts = np.maximum(1, 3_600 // (np.arange(1_800) + 40))
    of_class = np.repeat(np.arange(len(counts)), counts)
    rows = len(of_class)
    groups = np.cumsum(np.random.default_rng(0).random(rows) < 0.45)
    assert len(set(groups)) * len(counts) > WIDE  # beyond, scikit-learn's own would hold a matrix of both
    texts = [text_array(map(str, numbers)) for numbers in (range(rows), of_class, groups)]
    images = np.arange(rows, dtype=">u4").view(np.uint8).reshape(rows, 2, 2)
    table = Table("table", *texts[:2], images, "id", "label", {"group": texts[2]})
    folds = make_folds(table, split="stratified-group", group="group", rare="train")
    assert not missing_classes(folds) and not leaks(folds)
    dealt = np.array([np.bincount(of_class[folds.fold == k], minlength=len(counts)) for k in range(5)])
    assert np.ptp(dealt[:, :40], axis=0).max() <= 3 and np.ptp(dealt.sum(axis=1)) <= 0.05 * rows / 5
    assert 0 < (folds.fold < 0).mean() < 0.5


# ---- the whole chain


def test_the_chain_on_a_product_like_table(tmp_path, capsys, forks):
    """Groups, a long tail down to single photos, class numbers with gaps, one run in halves and one in short form:
    from folds.py to the report, and every label of the submission is a class."""
    make_photos(tmp_path, 700, 60)
    places = ["--folds", str(tmp_path / "folds.csv")]
    data, runs = ["--data", str(tmp_path / "train.csv")], ["--runs-dir", str(tmp_path / "runs")]
    made = forks.run(["folds.py", *data, *places, *GROUPED, "--k", "2", "--task", "multiclass"], tmp_path)
    assert made.code == 0 and "rows that are only trained on" in made.out, made.err
    training = ["--fold", "all", "--epochs", "1", "--warmup-epochs", "0", "--img-size", "8", "--augment", "none"]
    training += ["--batch-size", "32", "--threads", "1", "--channels-last", "no", "--jobs", "1"]
    for run, seed, store in (("half", "0", "float16"), ("top", "1", "top8")):
        train_fold.main([*data, *places, *runs, *training, "--run", run, "--seed", seed, "--store", store])
        infer.main([*data, *runs, "--test", str(tmp_path / "test.csv"), "--runs", run, "--store", store])
    ensemble.main([*places, *runs])
    folds = read_folds(tmp_path / "folds.csv")
    said = capsys.readouterr().out
    for run in ("half", "top"):
        joined = join_oof(tmp_path / "runs" / run, folds)
        score = describe(joined.score()).partition(", 95 %")[0]  # the interval is by groups
        assert joined.is_short == (run == "top") and f"local CV of {run}: {score}" in said
    test = read_predictions(tmp_path / "runs" / "ensemble" / "test.npz")
    assert test.is_short and set(test.predicted) <= set(folds.output_names) and len(test.ids) == 140
    report.main([*data, *places, *runs, "--out", str(tmp_path / "report.html")])
    assert "The classes most often missed" in (tmp_path / "report.html").read_text(encoding="utf-8")
