"""Submissions: the sample's form, exactly the test's ids, and nothing written that is not valid."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from scores import softmax

from common.base.errors import UserError
from common.base.strict_csv import text_array
from common.runs.forms import Sheet
from common.runs.predictions import Predictions, read_predictions, write_predictions
from common.runs.submission import (
    Wishes,
    check_submission,
    form_line,
    read_form,
    share_differences,
    sheet_of,
    write_submission,
)

REAL_SAMPLE = SHARED / "data" / "digits" / "sample_submission.csv"
TEST = Predictions(
    ids=text_array(["c", "001", 'b,"', "NA"]),
    logits=np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3], [2, 1, 0]], dtype=np.float32),
    output_names=["cat", "dog", "猫"],
    id_name="image",
    label_name="label",
)


def written(tmp_path: Path, predictions: Predictions = TEST, sample: str = "", **asked: str) -> str:
    write_submission(tmp_path / "submission.csv", predictions, sheet_of(predictions, sample, Wishes(**asked)))
    return (tmp_path / "submission.csv").read_text(encoding="utf-8")


def test_another_submission_is_kept(tmp_path, capsys):
    """Under the next free number; the same one again leaves nothing behind."""
    mine = tmp_path / "submission.csv"
    mine.write_text("by hand\n")
    for _ in range(2):
        text = written(tmp_path)
    assert f"{mine}: another one was there, kept as submission.1.csv\n" == capsys.readouterr().out
    mine.write_text("another\n")
    assert written(tmp_path) == text
    kept = {path.name: path.read_text() for path in tmp_path.iterdir() if path != mine}
    assert kept == {"submission.1.csv": "by hand\n", "submission.2.csv": "another\n"}


def test_the_columns_of_a_sample_may_have_a_word_in_front_of_the_class(tmp_path):
    """Each class's probability stands in its own column, in the sample's order."""
    rows = "".join(f"{name},0.3,0.3,0.4\n" for name in ("NA", '"b,"""', "c", "001"))
    sample = sample_file(tmp_path, f"Id,is_猫,is_cat,is_dog\n{rows}")
    header, *lines = csv.reader(io.StringIO(written(tmp_path, sample=sample)))
    assert header == ["Id", "is_猫", "is_cat", "is_dog"] and [line[0] for line in lines] == ["NA", 'b,"', "c", "001"]
    shares = np.array([[float(cell) for cell in line[1:]] for line in lines])[[2, 3, 1, 0]]
    assert shares.argmax(axis=1).tolist() == [(column + 1) % 3 for column in TEST.logits.argmax(axis=1)]


def sample_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "sample.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_without_a_sample_rows_stay_in_test_order(tmp_path):
    """The test's own column names and order; an id with a comma and quotes survives."""
    assert written(tmp_path) == 'image,label\nc,cat\n001,dog\n"b,""",猫\nNA,cat\n'


def test_sample_decides_columns_and_order(tmp_path):
    """Columns and row order are the sample's, each id keeps its own prediction; which class it predicts is ignored."""
    sample = sample_file(tmp_path, '\ufeffId,Category\r\nNA,dog\r\n"b,""",dog\r\nc,\r\n001,cat\r\n')
    assert written(tmp_path, sample=sample) == 'Id,Category\nNA,cat\n"b,""",猫\nc,cat\n001,dog\n'


@pytest.mark.parametrize("cell", ["0", "Cat", "0.5", "cats dogs", "cat ", "0 1 2"])
def test_a_sample_without_a_class_is_refused(tmp_path, cell):
    """Codes, other case, several names, a probability of three classes: said with the classes, unless it is meant."""
    sample = sample_file(tmp_path, f'Id,Category\nNA,{cell}\n"b,""",{cell}\nc,{cell}\n001,{cell}\n')
    with pytest.raises(
        UserError, match=f"has {cell} in column Category, and none .*the classes are cat, dog, 猫; .*--submit"
    ):
        written(tmp_path, sample=sample)
    assert written(tmp_path, sample=sample, form="label").startswith("Id,Category\nNA,cat\n")
    with pytest.raises(UserError, match="there is no form votes"):
        written(tmp_path, sample=sample, form="votes")


@pytest.mark.parametrize("cell", ["bird", "Dog", "3"])
def test_a_sample_of_classes_and_others_is_refused(tmp_path, cell):
    """A single label that is no class may show another numbering, or another competition."""
    sample = sample_file(tmp_path, f'Id,Category\nNA,dog\n"b,""",cat\nc,{cell}\n001,\n')
    with pytest.raises(UserError, match=f"has {cell} in column Category, and that is no class; .*--submit label$"):
        written(tmp_path, sample=sample)
    assert written(tmp_path, sample=sample, form="label").startswith("Id,Category\nNA,cat\n")


@pytest.mark.parametrize("classes", [["cat", "dog"], ["0", "1"]])
@pytest.mark.parametrize("cells", [("0.0", "1.0"), ("0.0", "0.0")])
def test_codes_that_may_be_probabilities_are_asked_for(tmp_path, classes, cells):
    """Nobody can tell whether 0.0 stands for a label or for a probability; one cell of 0.3 tells it."""
    test = Predictions(text_array("ab"), np.array([[3, 0], [0, 3]], dtype=np.float32), classes)
    sample = sample_file(tmp_path, f"id,target\na,{cells[0]}\nb,{cells[1]}\n")
    with pytest.raises(UserError, match="--submit label, or --submit probability where a number is asked for$"):
        written(tmp_path, test, sample)
    shares = "id,target\na,0.0474258732\nb,0.952574127\n"
    assert (
        written(tmp_path, test, sample, form="probability") == written(tmp_path, test, sample, metric="auc") == shares
    )
    assert written(tmp_path, test, sample_file(tmp_path, "id,target\na,1\nb,0.3\n")) == shares


@pytest.mark.parametrize(
    ("classes", "column", "positive", "expected"),
    [
        (["0", "1"], "has_cactus", "", 1),
        (["cat", "dog"], "cat", "", 0),
        (["cat", "dog"], "IsCat", "", 0),
        (["cactus", "no cactus"], "has_cactus", "", 0),
        (["cactus", "no cactus"], "p_no_cactus", "", 1),
        (["1", "2"], "target", "", 1),
        (["no", "yes"], "target", "yes", 1),
    ],
)
def test_a_sample_of_one_half_gets_the_probability_of_the_positive_class(tmp_path, classes, column, positive, expected):
    """The class is told by 0 and 1, by the column's name, or asked for."""
    logits = np.array([[3, 0], [0, 3], [1, 0]], dtype=np.float32)
    test = Predictions(text_array("abc"), logits, classes)
    sample = sample_file(tmp_path, f"id,{column}\nb,0.5\na,0.5\nc,0.5\n")
    lines = written(tmp_path, test, sample, positive=positive).splitlines()
    assert lines[0] == f"id,{column}"
    found = [float(line.split(",")[1]) for line in lines[1:]]
    np.testing.assert_allclose(found, softmax(logits)[[1, 0, 2], expected], rtol=1e-6)
    with pytest.raises(UserError, match="--positive: maybe is no class; the classes are cat, dog"):
        written(tmp_path, replace(test, output_names=["cat", "dog"]), sample, positive="maybe")
    if positive == "yes":
        assert written(tmp_path, test, sample) == written(tmp_path, test, sample, positive="yes")


@pytest.mark.parametrize("cell", ["0", "1", ""])
def test_the_metric_decides_on_a_sample_of_zeros(tmp_path, cell):
    """0 and 1 are labels, unless the metric looks at probabilities; the flag has the last word."""
    test = Predictions(text_array("ab"), np.array([[3, 0], [0, 3]], dtype=np.float32), ["0", "1"])
    sample = sample_file(tmp_path, f"id,target\na,{cell}\nb,{cell}\n")
    labels, shares = "id,target\na,0\nb,1\n", "id,target\na,0.0474258732\nb,0.952574127\n"
    assert written(tmp_path, test, sample) == written(tmp_path, test, sample, metric="accuracy") == labels
    for metric in ("auc", "nll"):
        assert written(tmp_path, test, sample, metric=metric) == shares
        assert written(tmp_path, test, sample, metric=metric, form="label") == labels
    assert form_line(sheet_of(test, sample, Wishes(metric="auc"))).startswith("column target: the probability of 1 ")


def test_several_names_in_a_cell_get_the_likeliest_classes(tmp_path):
    """As many as the sample's fullest cell has, the likeliest first; the flag and the metric may say how many."""
    sample = sample_file(tmp_path, 'Image,Id\nNA,dog new 猫\n"b,""",new\nc,new1 new2\n001,new\n')
    three = ["cat dog 猫", "猫 cat dog", "cat dog 猫", "dog cat 猫"]
    assert [line.split(",")[-1] for line in written(tmp_path, sample=sample).splitlines()[1:]] == three
    one_each = sample_file(tmp_path, 'Image,Id\nNA,new\n"b,""",new\nc,new\n001,new\n')
    two = ["cat dog", "猫 cat", "cat dog", "dog cat"]
    for asked in ({"form": "top2"}, {"form": "top", "metric": "map@2"}):
        assert [line.split(",")[-1] for line in written(tmp_path, sample=one_each, **asked).splitlines()[1:]] == two
    assert written(tmp_path, form="top").splitlines()[1] == "c,cat dog 猫"
    spaced = replace(TEST, output_names=["cat", "dog 猫", "猫"])
    with pytest.raises(UserError, match="none of them is a class"):
        written(tmp_path, spaced, sample)
    with pytest.raises(UserError, match="--submit: there is no form label2"):
        written(tmp_path, form="label2")


def test_the_form_travels_with_the_predictions(tmp_path):
    """What infer.py was told holds for a blend that is told nothing; a flag changes it; a damaged form is refused."""
    sample = sample_file(tmp_path, '猫,Id,cat,dog\n0,001,0,0\n0,c,0,0\n0,"b,""",0,0\n0,NA,0,0\n')
    told = replace(TEST, form=sheet_of(TEST, sample).as_stored)
    write_predictions(tmp_path / "test.npz", told)
    found = read_predictions(tmp_path / "test.npz")
    assert written(tmp_path, found).splitlines()[0] == "猫,Id,cat,dog"
    assert sorted(written(tmp_path, found).splitlines()) == sorted(written(tmp_path, TEST, sample).splitlines())
    assert written(tmp_path, found, form="label") == written(tmp_path)
    assert written(tmp_path, form="probabilities").startswith("image,cat,dog,猫\n")
    write_predictions(tmp_path / "test.npz", replace(told, form=told.form | {"names": "two"}))
    with pytest.raises(UserError, match="does not state what its submission looks like"):
        read_predictions(tmp_path / "test.npz")


def test_one_column_per_class_gets_probabilities(tmp_path):
    """A sample that has the class list as columns, in any order, gets each class's probability."""
    sample = sample_file(tmp_path, '猫,id,cat,dog\n0,001,0,0\n0,c,0,0\n0,"b,""",0,0\n0,NA,0,0\n')
    lines = written(tmp_path, sample=sample).splitlines()
    assert lines[0] == "猫,id,cat,dog"
    first = lines[1].split(",")
    assert first[1] == "001"
    expected = softmax(TEST.logits)[1]
    np.testing.assert_allclose([float(first[k]) for k in (2, 3, 0)], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('id,label\nc,0\n001,0\nNA,0\nzz,0\n"b,""",0\n', r"names 1 row \(zz\) that the test set lacks"),
        ("id,label\nc,0\n001,0\nNA,0\n", r'lacks 1 row \(b,"\) of the test'),
        ("id,label\nc,0\n001,0\nNA,0\nNA,1\n", r"contains duplicate ids: 1 row \(NA\)"),
        ("id,label\nc,0\n1,0\nNA,0\n", r"lacks 2 rows .* and names 1 row \(1\)"),
        ('id,label\nc,0\n1.0,0\nNA,0\n"b,""",0\n', r"write the test table's '001' as '1\.0', and so all its ids"),
        ('id,label\nd,0\n1.0,0\nNA,0\n"b,""",0\n', "use the sample submission and test table of the same competition"),
        ("id,cat,dog,bird\nc,0,0,0\n", "neither id and label nor .*id and one per class"),
        ("id\nc\n", "neither id and label"),
        ("id,label\nc\n", "row 1: has 1 fields, but the header has 2"),
        ("id,label\n", "no row"),
    ],
)
def test_a_sample_of_another_test_is_refused(tmp_path, text, what):
    """Missing, unknown and doubled ids and other columns are named; nothing is written."""
    with pytest.raises(UserError, match=what):
        written(tmp_path, sample=sample_file(tmp_path, text))
    assert not (tmp_path / "submission.csv").exists()


def test_predictions_that_are_not_finite_are_refused(tmp_path):
    """NaN would silently become the first class."""
    broken = TEST.logits.copy()
    broken[1] = np.nan
    with pytest.raises(UserError, match=r"not finite in 1 row \(001\)"):
        written(tmp_path, replace(TEST, logits=broken))
    assert not (tmp_path / "submission.csv").exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("id,label\na,cat\nb,bird\n", "row 2: label bird is not a class"),
        ("id,label\na,cat\nb,\n", "row 2: label empty is not a class"),
        ("id,label\nb,cat\na,cat\n", "row 1: has id b; expected a"),
        ("id,label\na,cat\n", r"lacks 1 row \(b\)"),
        ("id,label\na,cat\nb,cat\nb,cat\n", "contains duplicate ids"),
        ("Id,label\na,cat\nb,cat\n", "has the columns Id, label"),
    ],
)
def test_the_finished_file_is_checked(content, what):
    """The last look at what would be sent finds a foreign label, another order, count or header."""
    sheet = Sheet(["id", "label"], 0, ["a", "b"], "label")
    with pytest.raises(UserError, match=what):
        check_submission("submission.csv", content, sheet, ["cat", "dog"])


@pytest.mark.parametrize("cells", ["0.5,0.6", "nan,1", "-0.5,1.5", ",1"])
def test_probabilities_are_checked(cells):
    """Probabilities lie between 0 and 1 and sum to 1."""
    sheet = Sheet(["id", "cat", "dog"], 0, ["a"], "probabilities")
    check_submission("submission.csv", "id,cat,dog\na,0.25,0.75\n", sheet, ["cat", "dog"])
    with pytest.raises(UserError, match=r"row 1: .* are not probabilities"):
        check_submission("submission.csv", f"id,cat,dog\na,{cells}\n", sheet, ["cat", "dog"])


def test_wild_class_shares_warn(tmp_path, capsys):
    """A test set predicted as one class is said; chance, drift and small tests are not; the file is written anyway."""
    draw = np.random.default_rng(0)
    names = [f"{digit}" for digit in range(10)]
    even, drift = np.full(10, 0.1), np.linspace(0.07, 0.13, 10)
    for n in (30, 28_000):
        for _ in range(50):
            oof = draw.choice(names, 42_000, p=even)
            assert share_differences(draw.choice(names, n, p=even), oof) == []
            assert share_differences(draw.choice(names, n, p=drift), oof) == []
    seven_is_lost = draw.choice(names, 28_000, p=[1 / 9] * 7 + [0] + [1 / 9] * 2)
    assert share_differences(seven_is_lost, oof) == ["0.0% of the test rows are 7, but 9.9% of the OOF rows"]

    ids = text_array(map(str, range(200)))
    one_class = Predictions(ids, np.tile(np.float32([0, 1, 0]), (200, 1)), TEST.output_names)
    write_submission(tmp_path / "a.csv", one_class, sheet_of(one_class), ["cat", "dog", "猫"] * 100)
    warning = capsys.readouterr().err
    assert "100.0% of the test rows are dog, but 33.3% of the OOF rows" in warning
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").count("dog") == 200


@pytest.mark.skipif(not REAL_SAMPLE.is_file(), reason="the Digit Recognizer data is not there")
def test_the_real_digit_recognizer_form(tmp_path):
    """On the competition's own sample: 28,000 rows, ImageId from 1 in order, then Label."""
    ids = text_array(str(number) for number in range(28_000, 0, -1))
    classes = [str(digit) for digit in range(10)]
    logits = np.random.default_rng(0).normal(size=(28_000, 10)).astype(np.float32)
    predictions = Predictions(ids, logits, classes)
    assert read_form(str(REAL_SAMPLE), ids, classes, predictions.task).ids[:2] == ["1", "2"]
    lines = written(tmp_path, predictions, str(REAL_SAMPLE)).splitlines()
    assert lines[0] == "ImageId,Label" and len(lines) == 28_001
    assert lines[1] == f"1,{logits[-1].argmax()}" and lines[-1] == f"28000,{logits[0].argmax()}"
