"""Tables of features from the text of their columns to a submission."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL

import ensemble
import folds
import infer
import report
import train_fold
from common.base.errors import UserError
from common.data.competition import Competition
from common.data.features import FeatureScale, encoded, plan_of, width
from common.data.reading import read_test_table, read_train_table
from common.model.networks import create_model
from common.runs.predictions import read_predictions

NAMES = ["size", "colour", "gap", "same"]
CELLS = np.array(
    [["1.5", "red", "2", "x"], ["-2", "blue", "", "x"], ["3e2", "", "4.5", "x"], ["0", "red", "NA", "x"]], dtype=object
)


def test_each_column_becomes_what_it_is_taken_for():
    """Numbers, numbers and a flag where some are missing, a 0/1 column per text; a constant column is named."""
    plan, said = plan_of("t.csv", NAMES, CELLS)
    found = encoded("t.csv", plan, NAMES, CELLS)
    expected = [[1.5, 0, 1, 2, 0], [-2, 1, 0, np.nan, 1], [300, 0, 0, 4.5, 0], [0, 0, 1, np.nan, 1]]
    np.testing.assert_array_equal(found, np.float32(expected))
    assert width(plan) == 5 and any("always the same: same" in line for line in said)


def test_an_unknown_text_is_none_of_the_known_and_is_said(capsys):
    """At test time, in whatever order the columns are."""
    plan, _ = plan_of("t.csv", NAMES, CELLS)
    found = encoded("test.csv", plan, ["colour", "gap", "size"], np.array([["green", "1", "2"]], dtype=object))
    assert found.tolist() == [[2, 0, 0, 1, 0]]
    assert "column colour has green, unknown in training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([*"12345678", "9", "10", "1,5"], "row 11, column a: '1,5' is not a number"),
        ([*"12345678", "9", "10", "inf"], "row 11, column a: 'inf' is not a number"),
        (["2", "", *("0,5", "1,5") * 3], "row 3, column a: '0,5' has a comma where a number has a point; .*--drop a$"),
        ([f"text {row}" for row in range(60)], "column a has 60 different texts.*--drop a$"),
        (["1"] * 9, "has no column of features"),
    ],
)
def test_what_is_no_feature_is_refused(cells, says):
    """With its row and column."""
    with pytest.raises(UserError, match=says):
        plan_of("t.csv", ["a"], np.array([cells], dtype=object).T)


def test_a_test_table_is_read_as_the_train_table_is(tmp_path):
    """Without the labels' 0/1 columns it may have one column of numbers alone, which would be no table of features."""
    rows = [f"{row},{row / 2},{row % 3 == 0:d},{row % 2:d}" for row in range(24)]
    (tmp_path / "train.csv").write_text("\n".join(["id,x,cat,dog", *rows]) + "\n")
    (tmp_path / "test.csv").write_text("id,x\n100,1.5\n101,70\n")
    (tmp_path / "sample.csv").write_text("id,cat,dog\n100,0.5,0.5\n101,0.5,0.5\n")
    said = [f"--{name}={tmp_path / name}.csv" for name in ("test", "sample")]
    data = f"--data={tmp_path / 'train.csv'}"
    folds.main([data, *said, "--task=multilabel", f"--work={tmp_path}"])
    assert folds.read_competition(tmp_path / "competition.json").inputs == "features"


def test_scale_is_of_the_training_rows_and_constants_do_no_harm():
    """A missing number is the median, a column that is constant among the rows has deviation 1."""
    rows = np.array([[1, 5, np.nan], [3, 5, 2], [8, 5, 4]], dtype=np.float32)
    scale = FeatureScale.of_rows(rows)
    scaled = scale(torch.tensor([[1, 6, np.nan], [8, 5, 4]], dtype=torch.float32))
    assert scaled[0, 1] == 1 and scaled[1, 1] == 0 and scaled[0, 2] == scaled.new_tensor(3 - 3) / 1
    np.testing.assert_allclose(scale(torch.from_numpy(rows)).mean(0), 0, atol=1e-6)


def test_a_linear_net_has_no_hidden_layer():
    """widths=() is a linear map of the features, and a skip is one beside the layers."""
    linear = create_model("mlp", {"widths": ()}, 3, 0, 7)
    assert sum(parameter.numel() for parameter in linear.parameters()) == 7 * 3 + 3
    skipping = create_model("mlp", {"widths": (5,), "skip": True, "batch_norm": False}, 3, 0, 7)
    assert sum(parameter.numel() for parameter in skipping.parameters()) == (7 * 5 + 5) + (5 * 3 + 3) + 7 * 3


@pytest.fixture(scope="module")
def flowers(tmp_path_factory) -> Path:
    """150 irises in a csv of numbers and one text column; two runs, test predictions and a blend."""
    from sklearn.datasets import load_iris

    folder, iris = tmp_path_factory.mktemp("flowers"), load_iris()
    order = np.random.default_rng(0).permutation(150)
    names = ["id", *(name.replace(" (cm)", "").replace(" ", "_") for name in iris.feature_names), "place", "label"]
    rows = [
        [f"f{row}", *map(str, iris.data[row]), ["north", "south"][row % 2], iris.target_names[iris.target[row]]]
        for row in order
    ]
    for name, own, columns in (("train", rows[:120], names), ("test", rows[120:], names[:-1])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *(row[: len(columns)] for row in own)])
    (folder / "truth.csv").write_text("".join(f"{row[0]},{row[-1]}\n" for row in rows[120:]))
    (folder / "sample.csv").write_text("id,label\n" + "".join(f"{row[0]},setosa\n" for row in rows[120:]))
    at = [f"--folds={folder / 'folds.csv'}"]
    test, sample = f"--test={folder / 'test.csv'}", f"--sample={folder / 'sample.csv'}"
    folds.main([f"--data={folder / 'train.csv'}", test, sample, "--k=3", *at])
    runs = [*at, f"--runs-dir={folder / 'runs'}"]
    for seed in ("0", "1"):
        train_fold.main([*runs, *SMALL, "--epochs=8", "--lr=0.02", "--jobs=1", f"--run=seed{seed}", f"--seed={seed}"])
    infer.main([*runs, "--threads=1"])
    ensemble.main(runs)
    report.main([*runs, f"--out={folder / 'report.html'}"])
    return folder


def test_features_go_through_the_whole_chain(flowers):
    """From two csv files to submissions that are nearly all right; every row is predicted out of fold once."""
    truth = dict(csv.reader((flowers / "truth.csv").open()))
    for name in ("seed0", "ensemble"):
        answers = dict(list(csv.reader((flowers / "runs" / name / "submission.csv").open()))[1:])
        assert answers.keys() == truth.keys()
        assert np.mean([answers[row] == truth[row] for row in truth]) > 0.9
    parts = [read_predictions(flowers / "runs" / "seed0" / f"fold{k}" / "oof.npz") for k in range(3)]
    assert sorted(np.concatenate([part.ids for part in parts])) == sorted(
        row[0] for row in list(csv.reader((flowers / "train.csv").open()))[1:]
    )
    assert (
        "5 features" not in (flowers / "report.html").read_text()
        and "6 features" in (flowers / "report.html").read_text()
    )


def test_a_finished_run_is_not_what_comes_next(flowers, tmp_path, capsys):
    """A run is called by the net that the table has chosen, which its command line does not say."""
    folder = tmp_path / "runs"
    flags = [f"--folds={flowers / 'folds.csv'}", f"--runs-dir={folder}", *SMALL, "--epochs=1", "--jobs=1"]
    train_fold.main([*flags, "--fold=0"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: python train_fold.py ")
    train_fold.main(flags)
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: python infer.py ")


def test_a_table_that_names_no_photo_is_told_how_its_columns_are_read(tmp_path):
    """One column of numbers is too few to tell it from a table of photos."""
    (tmp_path / "t.csv").write_text("id,x,colour,label\n1,0.5,red,a\n2,1.5,blue,b\n")
    with pytest.raises(UserError, match="no image '1' in .*--inputs features where its rows are no photos"):
        read_train_table(str(tmp_path / "t.csv"))
    assert read_train_table(str(tmp_path / "t.csv"), Competition(inputs="features")).feature_names == ("x", "colour")


def test_columns_in_another_order_give_the_same_answers(flowers, tmp_path):
    """What a column is called counts, not where it stands."""
    rows = list(csv.reader((flowers / "test.csv").open()))
    with (tmp_path / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[row[0], *row[:0:-1]] for row in rows])
    said = [f"--folds={flowers / 'folds.csv'}", f"--runs-dir={flowers / 'runs'}", f"--out-dir={tmp_path}"]
    infer.main([*said, "--runs=seed0", f"--test={tmp_path / 'test.csv'}", "--threads=1"])
    before, after = (read_predictions(folder / "seed0" / "test.npz") for folder in (flowers / "runs", tmp_path))
    np.testing.assert_array_equal(before.logits, after.logits)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model=resnet18"], "--model: resnet18 looks at images"),
        (["--img-size=32"], "--img-size: is for images"),
        (["--augment=digits"], "--augment: is for images"),
    ],
)
def test_what_only_images_have_is_refused(flowers, flags, says):
    """In one line, before torch is needed."""
    with pytest.raises(UserError, match=says):
        train_fold.main([f"--folds={flowers / 'folds.csv'}", f"--runs-dir={flowers / 'other'}", *SMALL, *flags])


def test_dropped_columns_and_ids_are_no_features(flowers):
    """An id never is, and --drop leaves others out."""
    table = read_train_table(str(flowers / "train.csv"), Competition(drop=("place",)))
    assert table.feature_names == ("sepal_length", "sepal_width", "petal_length", "petal_width")
    test = read_test_table(str(flowers / "test.csv"), str(flowers / "train.csv"), "", Competition(drop=("place",)))
    assert test.feature_names == table.feature_names and not test.labels.size
    with pytest.raises(UserError, match="has no column 'plaec' for --drop"):
        read_train_table(str(flowers / "train.csv"), Competition(drop=("plaec",)))
