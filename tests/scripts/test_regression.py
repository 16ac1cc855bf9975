"""Numbers: their metrics, the unit that a net is given, and the whole chain from a table to the submission."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from scipy import optimize, stats
from sklearn import metrics as sklearn_metrics

import ensemble
import folds
import infer
import report
import train_fold
from common.base.errors import UserError
from common.data.competition import Competition
from common.data.folds import match_folds, read_folds
from common.data.reading import read_train_table
from common.model.networks import create_model
from common.model.units import Units, in_units, scale_of
from common.runs.config import Config, check_transform
from common.runs.predictions import read_predictions
from common.score.blending import OofOutputs, convex, softmax_weights
from common.score.bootstrap import compare_by, interval_of
from common.score.logits import Outputs
from common.score.metrics import METRICS
from common.score.task import TASKS
from common.sweep.range_test import range_test

REGRESSION = TASKS["regression"]
RANDOM = np.random.default_rng(0)
CASES = {
    "random": (RANDOM.normal(size=(50, 2)), RANDOM.normal(size=(50, 2)) * [1, 100]),
    "ties": (RANDOM.integers(0, 4, (40, 1)) * 1.0, RANDOM.integers(0, 3, (40, 1)) * 1.0),
    "constant predictions": (np.ones((9, 1)), np.arange(9.0)[:, None]),
    "one row": (np.array([[2.0]]), np.array([[5.0]])),
    "all right": (np.arange(4.0)[:, None], np.arange(4.0)[:, None]),
    "constant target": (np.arange(4.0)[:, None], np.ones((4, 1))),
}
THEIRS = {
    "rmse": sklearn_metrics.root_mean_squared_error,
    "mse": sklearn_metrics.mean_squared_error,
    "mae": sklearn_metrics.mean_absolute_error,
    "rmsle": lambda true, said: sklearn_metrics.root_mean_squared_log_error(np.abs(true), np.abs(said)),
    "r2": sklearn_metrics.r2_score,
    "spearman": lambda true, said: np.nanmean(
        [stats.spearmanr(*pair).statistic for pair in zip(true.T, said.T, strict=True)]
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.filterwarnings("ignore")
def test_metrics_equal_scikit_learns_and_scipys(name, case):
    """On random numbers of two columns, ties, constants on either side and a single row."""
    said, true = CASES[case]
    said, true = (np.abs(said), np.abs(true)) if name == "rmsle" else (said, true)
    ours = METRICS[name].of(REGRESSION.answers(Outputs(said), true, ["a", "b"][: true.shape[1]]))
    if name == "r2" and len(true) == 1:
        assert ours == 0  # theirs is undefined
    else:
        assert ours == pytest.approx(THEIRS[name](true, said), rel=1e-9, abs=1e-12, nan_ok=True)


def test_no_rmsle_of_targets_below_minus_one_and_answers_below_zero_are_zero():
    """Where a logarithm has no value there is none."""
    answers = REGRESSION.answers(Outputs(np.array([[-3.0], [1.0]])), np.array([[0.0], [1.0]]), ["a"])
    assert METRICS["rmsle"].of(answers) == 0
    assert np.isnan(METRICS["rmsle"].of(REGRESSION.answers(Outputs(np.zeros((1, 1))), np.array([[-2.0]]), ["a"])))
    with pytest.raises(UserError, match="log1p takes numbers above -1 only, and a target is -2"):
        check_transform(np.array([[-2.0], [5.0]]))


def test_better_is_lower_and_groups_make_it_less_sure():
    """The paired bootstrap sees that B is better, and drawing whole groups widens the interval."""
    true = RANDOM.normal(size=(400, 1))
    of_group = np.repeat(RANDOM.normal(size=(20, 1)), 20, axis=0)
    a, b = (REGRESSION.answers(Outputs(true + scale * of_group), true, ["a"]) for scale in (1.0, 0.8))
    alone, grouped = np.arange(400), np.repeat(np.arange(20), 20)
    found = compare_by("rmse", a, b, alone)
    assert found.better > 0 and found.low > 0 and found.p < 0.05
    narrow, wide = (interval_of("rmse", a, units) for units in (alone, grouped))
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


def blended(models: int) -> OofOutputs:
    true = RANDOM.normal(size=(300, 2)) * 50 + 1000
    said = np.stack([true + RANDOM.normal(size=true.shape) * (5 + 5 * k) + 3 * k for k in range(models)])
    return OofOutputs(
        Outputs(said.astype(np.float32)),
        true,
        np.arange(300) % 3,
        np.arange(models),
        np.empty(0),
        REGRESSION,
        ["a", "b"],
    )


def test_exact_weights_are_the_learned_ones_and_nothing_is_better():
    """Nonnegative least squares, softmax weights and scipy's minimiser agree; a bad run gets no weight below 0."""
    data = blended(4)

    def loss(weights):
        return REGRESSION.loss(REGRESSION.average(data.outputs, np.abs(weights) + 1e-12), data.targets).mean()

    exact, learned = convex(data).weights, softmax_weights(data).weights
    np.testing.assert_allclose(exact, learned, atol=2e-3)
    assert (exact >= 0).all() and exact.sum() == pytest.approx(1)
    best = optimize.minimize(loss, np.full(4, 0.25), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    assert loss(exact) == pytest.approx(best.fun, rel=1e-5)


def test_equal_runs_share_alike():
    """Two copies of one run: no weights are better, and none is preferred."""
    data = blended(1)
    both = OofOutputs(data.outputs[[0, 0]], data.targets, data.fold, np.arange(2), np.empty(0), REGRESSION, ["a", "b"])
    np.testing.assert_allclose(convex(both).weights, [0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize(("transform", "is_bounded"), [("none", False), ("log1p", False), ("none", True)])
def test_a_net_learns_deviations_and_answers_in_the_unit(transform, is_bounded):
    """What it is compared with in training, put through its evaluation, is the target again."""
    targets = RANDOM.uniform(1, 1e5, size=(64, 2))
    scale = scale_of(targets, transform, is_bounded)
    learned = torch.from_numpy(scale.learned(targets))
    if is_bounded:
        assert learned.min() == 0 and learned.max() == 1
        learned = learned.clamp(1e-6, 1 - 1e-6).logit()
    else:
        torch.testing.assert_close(learned.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    model = in_units(torch.nn.Identity(), Units(2, 0, transform, is_bounded, False))
    model.units.set(scale, None)
    assert torch.equal(model.train()(learned), learned)
    np.testing.assert_allclose(model.eval()(learned).numpy(), targets, rtol=1e-3, atol=0.2)


def test_an_offset_is_added_again():
    """Of inputs that were scaled themselves, to the net's own numbers."""
    inputs = torch.tensor([[100.0, 3.0], [140.0, 5.0]])
    model = in_units(create_model("mlp", {"widths": ()}, 1, 0, 2), Units(1, 2, "none", False, True))

    class Scaled:
        mean, std = (120.0, 4.0), (20.0, 1.0)

    model.units.set(scale_of(np.array([[1.0], [3.0]]), "none", False, offset=0), Scaled)
    said = model.eval()((inputs - torch.tensor(Scaled.mean)) / torch.tensor(Scaled.std))  # the net itself says 0
    torch.testing.assert_close(said, torch.tensor([[102.0], [142.0]]))


# ---- the chain


def write_rows(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture(scope="module")
def prices(tmp_path_factory) -> Path:
    """300 rows whose price, in thousands, hangs on four numbers and a place; two runs, a blend, a report."""
    folder, random = tmp_path_factory.mktemp("prices"), np.random.default_rng(0)
    numbers = random.normal(size=(300, 4))
    price = 50_000 + 8_000 * numbers[:, 0] + 4_000 * np.abs(numbers[:, 1]) + 300 * random.normal(size=300)
    places = np.array(["north", "south"])[(numbers[:, 2] > 0).astype(int)]
    price = price + 2_000 * (places == "south")
    columns = ["id", "a", "b", "c", "before", "place", "price"]
    before = price - 1_000 * numbers[:, 3]
    rows = [
        [f"r{row}", *(f"{x:.4f}" for x in numbers[row, :3]), f"{before[row]:.2f}", places[row], f"{price[row]:.2f}"]
        for row in range(300)
    ]
    write_rows(folder / "train.csv", columns, rows[:240])
    write_rows(folder / "test.csv", columns[:-1], [row[:-1] for row in rows[240:]])
    write_rows(folder / "truth.csv", ["id", "price"], [[row[0], row[-1]] for row in rows[240:]])
    write_rows(folder / "sample.csv", ["id", "price"], [[row[0], "0.0"] for row in reversed(rows[240:])])
    said = [f"--test={folder / 'test.csv'}", f"--sample={folder / 'sample.csv'}", f"--folds={folder / 'folds.csv'}"]
    folds.main([f"--data={folder / 'train.csv'}", "--task=regression", "--k=3", *said])
    for run, flags in (("plain", ["--ema-decay=0.9"]), ("second", ["--seed=1", "--loss=huber"])):
        train_fold.main([*flags_of(folder, run), *flags, "--jobs=1"])
    infer.main([*places_of(folder), "--threads=1", "--clip"])
    ensemble.main([*places_of(folder), "--clip"])
    report.main([*places_of(folder), f"--out={folder / 'report.html'}", "--csv"])
    return folder


def test_infer_says_the_score_to_expect(prices, tmp_path, capsys):
    """In the competition's metric, with an interval about what the folds say."""
    infer.main([*places_of(prices), "--threads=1", "--clip", f"--out-dir={tmp_path}", "--runs", "plain"])
    said = re.search(
        r"test set rmse ([0-9.e+]+), 95 % interval ([0-9.e+]+) - ([0-9.e+]+): that of 240 rows", capsys.readouterr().out
    )
    score, low, high = map(float, said.groups())
    assert 0 < low < score < high


def places_of(folder: Path) -> list[str]:
    return [f"--folds={folder / 'folds.csv'}", f"--runs-dir={folder / 'runs'}"]


def flags_of(folder: Path, run: str, lr: float = 0.02) -> list[str]:
    return [*places_of(folder), *SMALL, "--epochs=12", f"--lr={lr}", f"--run={run}"]


def test_numbers_go_through_the_whole_chain(prices):
    """The label column is told by the sample; what is handed in is near the truth, in the sample's order, and reads
    back as the numbers that are kept."""
    truth = {row["id"]: float(row["price"]) for row in csv.DictReader((prices / "truth.csv").open())}
    for name in ("plain", "second", "ensemble"):
        header, *rows = csv.reader((prices / "runs" / name / "submission.csv").open())
        assert header == ["id", "price"] and [row[0] for row in rows] == [f"r{row}" for row in range(299, 239, -1)]
        off = np.array([float(cell) - truth[row_id] for row_id, cell in rows])
        assert (off**2).mean() ** 0.5 < 1500
        kept = read_predictions(prices / "runs" / name / "test.npz")
        decided = dict(zip(kept.ids, kept.predicted_targets[:, 0], strict=True))
        assert all(np.float32(cell) == decided[row_id] for row_id, cell in rows)


@pytest.mark.parametrize("more", [[], ["--offset=before"], ["--loss=bounded-bce"]])
def test_a_student_learns_a_teachers_numbers(prices, more):
    """From them alone, of rows with labels and without, in the unit of the target."""
    run = f"taught{''.join(more)}"
    flags = ["--teacher=plain", "--teacher-weight=1", f"--unlabelled={prices / 'test.csv'}", "--fold=0", *more]
    train_fold.main([*flags_of(prices, run), *flags])
    ours, theirs = (read_predictions(prices / "runs" / each / "fold0" / "oof.npz").logits for each in (run, "plain"))
    assert ((ours - theirs) ** 2).mean() ** 0.5 < 1500
    for refused in (["--pseudo=plain"], ["--consistency=1", "--ema-decay=0.9"], ["--teacher-temperature=3"]):
        with pytest.raises(UserError, match="looks at probabilities, which regression has not"):
            train_fold.main([*flags_of(prices, "refused"), *flags[:3], *refused])


def test_every_row_is_predicted_out_of_fold_once_in_its_unit(prices):
    """The folds are even by quantiles, and the OOF numbers are prices, not deviations."""
    dealt = read_folds(prices / "folds.csv")
    assert dealt.output_names == ["price"]
    means = [dealt.targets[dealt.fold == k].mean() for k in range(3)]
    assert np.ptp(means) < 1000
    parts = [read_predictions(prices / "runs" / "plain" / f"fold{k}" / "oof.npz") for k in range(3)]
    assert sorted(np.concatenate([part.ids for part in parts])) == sorted(dealt.ids)
    for part in parts:
        assert abs(part.logits.mean() - part.targets.mean()) < 1000


def test_clipping_keeps_to_the_training_range(prices):
    """Asked for, the decision is the training range; the stored outputs stay as they were."""
    test = read_predictions(prices / "runs" / "plain" / "test.npz")
    dealt = read_folds(prices / "folds.csv")
    assert test.decision == (dealt.targets.min(), dealt.targets.max())
    low, high = np.float32(test.decision)
    assert (test.predicted_targets >= low).all() and (test.predicted_targets <= high).all()


def test_the_report_shows_residuals(prices):
    """By tenths of the predictions, whose rows are all there, and the worst rows first."""
    tables = prices / "report_tables"
    rows = list(csv.DictReader((tables / "plain_residuals.csv").open()))
    assert len(rows) == 10 and sum(int(row["n"]) for row in rows) == 240
    errors = [float(row["error"]) for row in csv.DictReader((tables / "plain_worst_rows.csv").open())]
    assert errors == sorted(errors, reverse=True) and len(errors) == 240
    page = (prices / "report.html").read_text()
    assert "predicted against true" in page and "nats" not in page


def test_a_unit_changes_nothing_but_the_unit(prices, tmp_path):
    """A price in another currency gives the same predictions in that currency: the scale is the training rows' own."""
    rows = list(csv.reader((prices / "train.csv").open()))
    dear = [[*row[:-1], repr(float(row[-1]) * 1000 - 7e6)] for row in rows[1:]]
    write_rows(tmp_path / "train.csv", rows[0], dear)
    folds.main(
        [f"--data={tmp_path / 'train.csv'}", "--task=regression", "--label-column=price", "--k=3"]
        + [f"--folds={tmp_path / 'folds.csv'}"]
    )
    train_fold.main([*flags_of(tmp_path, "plain"), "--fold=0", "--ema-decay=0.9"])
    before, after = (read_predictions(folder / "runs" / "plain" / "fold0" / "oof.npz") for folder in (prices, tmp_path))
    assert (before.ids == after.ids).all()
    np.testing.assert_allclose(after.logits, before.logits.astype(float) * 1000 - 7e6, rtol=1e-4)


def test_an_offset_starts_where_the_column_is(prices):
    """After a single step the predictions are nearly the offset column; the loss is that of the difference."""
    flags = [*places_of(prices), *SMALL, "--epochs=1", "--lr=1e-6", "--run=offset", "--fold=0", "--offset=before"]
    train_fold.main([*flags, "--drop", "a", "b"])
    part = read_predictions(prices / "runs" / "offset" / "fold0" / "oof.npz")
    column = {row["id"]: float(row["before"]) for row in csv.DictReader((prices / "train.csv").open())}
    gaps = part.logits[:, 0] - [column[name] for name in part.ids]
    assert np.ptp(gaps) < 1 and abs(gaps.mean()) < 500


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--offset=place"], "cannot be column place: it holds texts"),
        (["--offset=nothing"], "there is no column of features nothing"),
        (["--offset=before", "--drop=before"], "there is no column of features before"),
        (["--offset=before", "--target-transform=log1p"], "learns a difference"),
        (["--drop", "a", "b", "c", "before", "place"], "leaves no column"),
        (["--label-smoothing=0.05"], "is about classes and labels"),
        (["--metric=accuracy_of_all"], "there is no metric"),
        (["--loss=bce"], "there is no loss bce"),
        (["--select=members"], "needs rows of exactly one class"),
        (["--store=float16"], "float16 does not fit regression"),
    ],
)
def test_what_does_not_fit_numbers_is_refused(prices, flags, says):
    """In one line."""
    with pytest.raises(UserError, match=says):
        train_fold.main([*flags_of(prices, "refused"), "--fold=0", *flags])
    assert not (prices / "runs" / "refused").exists()


def test_two_columns_are_two_outputs(tmp_path):
    """Each has its own scale, its own column in the submission, in whatever order the sample has them."""
    random = np.random.default_rng(1)
    x = random.normal(size=(90, 3))
    rows = [[f"r{k}", *(f"{v:.4f}" for v in x[k]), f"{x[k, 0] * 0.01:.6f}", f"{x[k, 1] * 1e4:.2f}"] for k in range(90)]
    write_rows(tmp_path / "train.csv", ["id", "a", "b", "c", "small", "large"], rows[:75])
    write_rows(tmp_path / "test.csv", ["id", "a", "b", "c"], [row[:4] for row in rows[75:]])
    write_rows(tmp_path / "sample.csv", ["id", "large", "small"], [[row[0], "0", "0"] for row in rows[75:]])
    at = [f"--folds={tmp_path / 'folds.csv'}"]
    said = [
        f"--data={tmp_path / 'train.csv'}",
        f"--test={tmp_path / 'test.csv'}",
        f"--sample={tmp_path / 'sample.csv'}",
    ]
    folds.main([*said, *at, "--task=regression", "--k=3", "--metric=mae"])
    train_fold.main([*flags_of(tmp_path, "two", lr=0.1), "--jobs=1", "--model-args", "widths=()"])
    infer.main([*places_of(tmp_path), "--threads=1"])
    found = {row["id"]: row for row in csv.DictReader((tmp_path / "runs" / "two" / "submission.csv").open())}
    for row in rows[75:]:
        assert float(found[row[0]]["small"]) == pytest.approx(float(row[4]), abs=0.004)
        assert float(found[row[0]]["large"]) == pytest.approx(float(row[5]), abs=4000)


def test_images_are_left_as_they_are_unless_a_user_says_so(tiny, tmp_path):
    """A number may change where its image is turned: no augmentation and no smoothing by default."""
    random = np.random.default_rng(0)
    rows = list(csv.reader((tiny / "train.csv").open()))
    brightness = [f"{np.mean(list(map(float, row[1:]))) + random.normal():.3f}" for row in rows[1:]]
    write_rows(
        tmp_path / "train.csv",
        ["light", *rows[0][1:]],
        [[b, *row[1:]] for b, row in zip(brightness, rows[1:], strict=True)],
    )
    folds.main(
        [f"--data={tmp_path / 'train.csv'}", "--task=regression", "--label-column=light", "--k=3"]
        + [f"--folds={tmp_path / 'folds.csv'}"]
    )
    train_fold.main([*flags_of(tmp_path, "plain"), "--jobs=1"])
    config = json.loads((tmp_path / "runs" / "plain" / "fold0" / "config.json").read_text())
    assert (config["augment"], config["label_smoothing"], config["loss"], config["metric"]) == (
        "none",
        0.0,
        "mse",
        "rmse",
    )
    train_fold.main([*flags_of(tmp_path, "mixed"), "--fold=0", "--augment-args", "mixup=0.2"])
    mixed = read_predictions(tmp_path / "runs" / "mixed" / "fold0" / "oof.npz")
    assert np.corrcoef(mixed.logits[:, 0], mixed.targets[:, 0])[0, 1] > 0.5
    infer.main([*places_of(tmp_path), "--threads=1", "--runs=plain", f"--test={tiny / 'test.csv'}", "--tta=shifts"])
    header, *found = csv.reader((tmp_path / "runs" / "plain" / "submission.csv").open())
    light = {row[0]: float(row[1]) for row in found}
    true = {
        str(k): np.mean(list(map(float, row)))
        for k, row in enumerate(list(csv.reader((tiny / "test.csv").open()))[1:], 1)
    }
    assert header == ["ImageId", "light"] and np.corrcoef([light[k] for k in true], list(true.values()))[0, 1] > 0.5


def test_a_range_test_sees_the_loss_of_a_training(prices):
    """In squared deviations of the target, which begin near 1, whatever the unit."""
    dealt, said = read_folds(prices / "folds.csv"), Competition(task="regression", label_column="price")
    table = read_train_table(str(prices / "train.csv"), said)
    cfg = Config(
        task="regression", model="mlp", fold="0", batch_size=8, threads=1, channels_last="no", mixed_precision="no"
    )
    found = range_test(cfg.of_task, table, match_folds(dealt, table))
    assert 0.3 < found.losses[0] < 3 and 1e-6 < found.lr < 10
