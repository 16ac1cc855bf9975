"""Label sets from the table to the submission: reading, dealing, learning, deciding."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL

import ensemble
import folds
import infer
import report
import train_fold
from common.base.errors import UserError
from common.data.competition import Competition
from common.data.folds import read_folds
from common.data.reading import read_train_table
from common.runs.predictions import Predictions, read_predictions
from common.runs.submission import Wishes, sheet_of, write_submission
from common.score.decisions import study_decisions
from common.score.logits import Outputs
from common.score.task import TASKS

MULTILABEL = TASKS["multilabel"]


@pytest.fixture(scope="module")
def bars(tmp_path_factory) -> Path:
    """120 pictures of 8 x 8 with none to three bars, each at a place of its own; a test table of 40, and a sample."""
    folder, random = tmp_path_factory.mktemp("bars"), np.random.default_rng(0)
    has = random.random((160, 3)) < [0.5, 0.4, 0.2]
    images = random.integers(0, 60, (160, 8, 8))
    for number, rows in enumerate((slice(0, 2), slice(3, 5), slice(6, 8))):
        images[has[:, number], rows] += 150
    names = np.array(["top", "middle", "low"])
    header = ["id", "labels", *(f"pixel{at}" for at in range(64))]
    lines = [[f"r{row}", " ".join(names[has[row]]), *images[row].ravel()] for row in range(160)]
    for name, own, columns in (("train", lines[:120], slice(None)), ("test", lines[120:], [0, *range(2, 66)])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows(np.array([header, *own], dtype=object)[:, columns])
    rows = "".join(f"r{row},low top\n" for row in range(120, 160))
    (folder / "sample.csv").write_text(f"id,labels\n{rows}")
    (folder / "truth.json").write_text(json.dumps([line[1].split() for line in lines[120:]]))
    return folder


@pytest.fixture(scope="module")
def learned(bars) -> Path:
    """Folds, two runs, their test predictions and blend."""
    at = [f"--folds={bars / 'folds.csv'}"]
    said = ["--task", "multilabel", "--label-column", "labels", "--k", "3"]
    folds.main(
        [f"--data={bars / 'train.csv'}", f"--test={bars / 'test.csv'}", f"--sample={bars / 'sample.csv'}"] + at + said
    )
    runs = [*at, "--runs-dir", str(bars / "runs")]
    small = [*SMALL, "--epochs", "8", "--augment", "none", "--jobs", "1", "--metric", "sample_f2", "--lr", "0.01"]
    for seed in ("0", "1"):
        train_fold.main([*runs, *small, "--run", f"seed{seed}", "--seed", seed])
    infer.main([*runs, "--threads", "1"])
    ensemble.main(runs)
    return bars


def test_from_the_table_to_the_submission(learned):
    """All that a user types is said once; the sets that are handed in are nearly all right, in the sample's form."""
    truth = json.loads((learned / "truth.json").read_text())
    for name in ("seed0", "seed1", "ensemble"):
        header, *rows = csv.reader((learned / "runs" / name / "submission.csv").open())
        assert header == ["id", "labels"] and [row[0] for row in rows] == [f"r{row}" for row in range(120, 160)]
        right = [sorted(row[1].split()) == sorted(labels) for row, labels in zip(rows, truth, strict=True)]
        assert np.mean(right) > 0.8


def test_what_was_learned_decides_the_test_set(learned):
    """The thresholds travel with the predictions, of a run and of a blend: the submission is what they make of them."""
    for name in ("seed0", "ensemble"):
        test = read_predictions(learned / "runs" / name / "test.npz")
        assert len(test.decision) in (2, 4) and test.decision[0] == 0
        _, *rows = csv.reader((learned / "runs" / name / "submission.csv").open())
        decided = MULTILABEL.decide(test.outputs, test.decision)
        assert [row[1].split() for row in rows] == [label.split("|") if label else [] for label in test.predicted]
        assert (MULTILABEL.decode(decided, test.output_names) == test.predicted).all()


def test_every_row_is_predicted_out_of_fold_once(learned):
    """With the labels as the folds file has them."""
    known = read_folds(learned / "folds.csv")
    parts = [read_predictions(learned / "runs" / "seed0" / f"fold{k}" / "oof.npz") for k in range(3)]
    ids = np.concatenate([part.ids for part in parts])
    assert sorted(ids) == sorted(known.ids)
    label_of = dict(zip(known.ids, known.labels, strict=True))
    for part in parts:
        assert part.task is MULTILABEL and part.labels.tolist() == [label_of[name] for name in part.ids]


def test_each_labels_mean_probability_is_its_rate(learned):
    """What a wrong inverse spoils and no metric of ranks shows."""
    known = read_folds(learned / "folds.csv")
    parts = [read_predictions(learned / "runs" / "seed0" / f"fold{k}" / "oof.npz") for k in range(3)]
    mean = np.concatenate([MULTILABEL.probabilities(part.outputs) for part in parts]).mean(axis=0)
    np.testing.assert_allclose(mean, known.targets.mean(axis=0), atol=0.1)


def test_the_report_has_a_table_of_labels(learned):
    """With each label's rate and the threshold of its submission; its page is written for sets as for classes."""
    page = learned / "report.html"
    report.main([f"--folds={learned / 'folds.csv'}", f"--runs-dir={learned / 'runs'}", f"--out={page}", "--csv"])
    rows = list(csv.DictReader((learned / "report_tables" / "seed0_label_table.csv").open()))
    assert [row["label"] for row in rows] == ["low", "middle", "top"] and all(float(row["auc"]) > 0.9 for row in rows)
    known = read_folds(learned / "folds.csv")
    assert [int(row["n"]) for row in rows] == known.targets.sum(axis=0).tolist()
    _, *thresholds = read_predictions(learned / "runs" / "seed0" / "test.npz").decision
    assert [float(row["threshold"]) for row in rows] == pytest.approx(np.broadcast_to(thresholds, 3))


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["b a", "a", "", "c  b a b", "c", "b"], ""),
        (["b|a", "a", "", "c|b|a|b", "c", "b"], ""),
        (["b; a", "a", "", "c;b;a;b", "c", "b"], ""),
        (["b| a", "a", "", "c| b| a| b", "c", "b"], ""),
        (["b/a", "a", "", "c/b/a/b", "c", "b"], "/"),
    ],
)
def test_sets_are_read_however_they_are_written(cells, separator, tmp_path):
    """Order and doubles do not matter, the empty cell is the empty set, the separator is told."""
    table = table_of(tmp_path, ["labels"], [[cell] for cell in cells])
    found = read_train_table(table, Competition(task="multilabel", label_column="labels", separator=separator))
    assert found.labels.tolist() == ["a|b", "a", "", "a|b|c", "c", "b"]
    assert found.separator == (separator or {"b; a": ";"}.get(cells[0]) or cells[0].strip("ab"))


def test_0_1_columns_are_those_that_the_sample_names(tmp_path):
    """Other 0/1 columns are none of the labels."""
    table = table_of(tmp_path, ["y2", "state", "y10"], [["1", "1", "1"], ["0", "1", "0"], ["1", "0", "0"]])
    (tmp_path / "sample.csv").write_text("id,y10,y2\n9,0.5,0.5\n")
    found = read_train_table(table, Competition(task="multilabel", sample=str(tmp_path / "sample.csv")))
    assert found.labels.tolist() == ["y10|y2", "", "y2"] and list(found.columns) == ["id", "state"]


def test_what_looks_like_sets_is_asked_about(tmp_path):
    """Not so a column whose classes have two words; once said, each text is a class."""
    sets = table_of(tmp_path, ["label"], [["a b"], ["a"], ["b"], ["b a"], ["a c b"]])
    with pytest.raises(UserError, match="column label looks like sets of labels, with a space between"):
        read_train_table(sets)
    assert read_train_table(sets, Competition(task="multiclass")).labels[0] == "a b"
    read_train_table(table_of(tmp_path, ["label"], [["red cat"], ["red dog"], ["blue cat"], ["blue dog"]]))


@pytest.mark.parametrize("lists", [["['a' 'b']", "[]", "['b']"], ["{a b}", "{}", "{b}"]])
def test_lists_as_a_program_prints_them_are_refused(lists, tmp_path):
    """Read as sets, [ and ' would become part of names: ['a' another label than 'a'."""
    table = table_of(tmp_path, ["label"], [[cell] for cell in lists])
    for task in ("", "multilabel"):
        with pytest.raises(UserError, match=r"row 1, column label: .* is a list in brackets"):
            read_train_table(table, Competition(task=task))
    assert read_train_table(table, Competition(task="multiclass")).labels[0] == lists[0]


@pytest.mark.parametrize(("cell", "train"), [("cat, dog", ""), ("cat,dog", ", "), ("cat|dog", ""), ("cat", ", ")])
def test_names_are_separated_as_the_sample_has_them(cell, train, tmp_path):
    """To the space behind the comma, for whoever splits at both; where no cell has two names, as the train table."""
    outputs = np.float32([[2, 3], [-3, 4]])
    predictions = Predictions(np.array(["a", "b"], dtype=object), outputs, ["cat", "dog"], task=MULTILABEL)
    (tmp_path / "sample.csv").write_text(f'id,labels\na,"{cell}"\nb,dog\n')
    write_submission(
        tmp_path / "out.csv", predictions, sheet_of(predictions, str(tmp_path / "sample.csv"), Wishes(separator=train))
    )
    answers = [row["labels"] for row in csv.DictReader((tmp_path / "out.csv").open())]
    assert answers == [cell if cell != "cat" else f"cat{train}dog", "dog"]


def table_of(folder: Path, columns: list[str], cells: list[list[str]]) -> str:
    """A pixel table of 2 x 2 pixels, each row another picture."""
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *columns, *(f"pixel{at}" for at in range(4))])
        writer.writerows([row, *own, row % 256, row // 256, 2, 3] for row, own in enumerate(cells))
    return str(folder / "table.csv")


@pytest.mark.parametrize("split", ["stratified", "stratified-group"])
def test_labels_are_dealt_evenly_and_groups_stay_whole(tmp_path, split):
    """Each label's rows differ by two at most where rows are free; folds are as even as the groups allow."""
    random = np.random.default_rng(0)
    has = random.random((300, 6)) < [0.6, 0.3, 0.2, 0.1, 0.06, 0.04]
    labels = [" ".join(np.array(list("abcdef"))[row]) for row in has]
    table = table_of(tmp_path, ["labels", "group"], [[label, str(row // 3)] for row, label in enumerate(labels)])
    folds_file = tmp_path / "folds.csv"
    said = ["--split", split] + (["--group", "group"] if "group" in split else [])
    folds.main(["--data", table, "--task", "multilabel", "--label-column", "labels", "--folds", str(folds_file), *said])
    found = read_folds(folds_file)
    counts = np.array([found.targets[found.fold == k].sum(axis=0) for k in range(5)])
    assert np.ptp(counts[:, 1:], axis=0).max() <= (2 if split == "stratified" else 4)
    assert np.ptp(np.bincount(found.fold)) <= 3
    if "group" in split:
        assert all(len(set(found.fold[found.groups == group])) == 1 for group in set(found.groups))


def test_a_decision_learned_on_noise_is_worth_nothing_nested():
    """Thresholds flatter on the rows they were learned on; the nested figure does not, and 1/2 is taken."""
    random = np.random.default_rng(0)
    targets = random.random((200, 8)) < 0.5
    outputs = Outputs(random.normal(size=targets.shape))
    found = study_decisions(MULTILABEL, outputs, targets, np.arange(200) % 5, list("abcdefgh"), "exact_match")
    assert found.in_sample["one a label"] > found.in_sample["1/2"]
    assert found.nested["one a label"] < found.in_sample["one a label"]


def test_a_threshold_belongs_to_its_metric():
    """F2 wants more labels than F1, and a metric of probabilities nothing."""
    random = np.random.default_rng(0)
    targets = random.random((400, 4)) < [0.4, 0.3, 0.2, 0.1]
    outputs = Outputs(np.where(targets, 0.5, -2) + random.normal(size=targets.shape))
    f1, f2, auc = (
        study_decisions(MULTILABEL, outputs, targets, np.arange(400) % 5, list("abcd"), metric)
        for metric in ("sample_f1", "sample_f2", "mean_auc")
    )
    assert f2.decision[1] < f1.decision[1] and f2.nested[f2.way] > f2.nested["1/2"] and not auc.decision


def test_never_empty_where_no_row_was():
    """A row that passes no threshold gets its likeliest label; where some rows are empty it stays empty."""
    low = Outputs(np.array([[-3.0, -2.0], [1.0, -1.0]]))
    assert MULTILABEL.decide(low, (1.0, 0.5)).tolist() == [[False, True], [True, False]]
    assert MULTILABEL.decide(low, (0.0, 0.5)).tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(("cell", "form"), [("0.5", "label-probabilities"), ("0", "label-columns")])
def test_a_label_that_no_training_row_has_keeps_its_column(cell, form, tmp_path, capsys):
    """The sample's column stays in its place with 0 in every row, and is named."""
    outputs = np.float32([[2, -1], [-3, 4]])
    predictions = Predictions(np.array(["a", "b"], dtype=object), outputs, ["cat", "dog"], task=MULTILABEL)
    (tmp_path / "sample.csv").write_text("id,dog,wolf,cat\n" + "".join(f"{row},{cell},{cell},{cell}\n" for row in "ab"))
    sheet = sheet_of(predictions, str(tmp_path / "sample.csv"))
    assert sheet.form == form and "no training row has wolf: 0 in every row" in capsys.readouterr().err
    write_submission(tmp_path / "out.csv", predictions, sheet)
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["wolf"] for row in rows] == ["0", "0"] and float(rows[0]["cat"]) > 0.5 > float(rows[0]["dog"])


def test_a_word_of_the_sample_that_is_no_label_is_asked_about(tmp_path):
    """Alone or beside a label, whatever the other rows have; --submit labels goes on without it."""
    outputs = np.float32([[2, -1], [-3, 4]])
    predictions = Predictions(np.array(["a", "b"], dtype=object), outputs, ["cat", "dog"], task=MULTILABEL)
    for cells, says in (("wolf", "none of them is a label"), ("cat wolf", "that is no label"), ("cat", "")):
        (tmp_path / "sample.csv").write_text(f"id,labels\na,{cells}\nb,{'dog' if ' ' in cells else cells}\n")
        if says:
            with pytest.raises(UserError, match=f"has wolf in column labels, and {says}; .*--submit labels$"):
                sheet_of(predictions, str(tmp_path / "sample.csv"))
        assert sheet_of(predictions, str(tmp_path / "sample.csv"), Wishes(form="labels")).form == "labels"
