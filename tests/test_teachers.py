"""Teachers: what they say reaches the student, and no label of a held-out row does."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import train

from common.base.errors import UserError
from common.data.cache import Cache
from common.data.folds import match_folds, read_folds
from common.data.tables import read_train_table
from common.runs.layout import MODEL_FILE
from common.runs.tensors import load_tensors, save_tensors

DISTIL = ["--teacher", "teacher"]
WAYS = {"distillation": DISTIL}


def with_other_labels(tiny, folder):
    """The tiny data with other labels in the rows that fold 0 holds out, and nothing else changed."""
    folder.mkdir()
    for name in ("test.csv", "sample.csv"):
        shutil.copy(tiny / name, folder / name)
    with (tiny / "folds.csv").open() as file:
        rows = list(csv.DictReader(file))
    turned = {"class 0": "class 1", "class 1": "class 2", "class 2": "class 0"}
    lines = (tiny / "train.csv").read_text().splitlines()
    for number, row in enumerate(rows, start=1):
        if row["fold"] == "0":
            row["label"] = turned[row["label"]]
            lines[number] = ",".join([row["label"], *lines[number].split(",")[1:]])
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    with (folder / "folds.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "competition.json").write_text(json.dumps({"test": str(tiny / "test.csv")}))
    return folder


@pytest.fixture(scope="module")
def taught(tiny, tmp_path_factory):
    """The tiny data and a run of it that teaches, trained on all three folds, which differ."""
    folder = tmp_path_factory.mktemp("taught") / "data"
    shutil.copytree(tiny, folder)
    (folder / "competition.json").write_text(json.dumps({"test": str(tiny / "test.csv")}))
    train(folder, folder / "runs", "--run", "teacher", "--fold", "all")
    return folder


def weights(folder, run, fold="fold0"):
    return load_tensors(folder / "runs" / run / fold / MODEL_FILE)[0]


def equal(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("way", WAYS)
def test_no_label_of_a_held_out_row_reaches_the_student(way, taught, tiny, tmp_path):
    """Teacher and student of fold 0 end at the same bits whatever fold 0's labels are; a mean of all folds' models,
    or the teacher's out-of-fold predictions, would carry them over."""
    other = with_other_labels(tiny, tmp_path / "other")
    train(other, other / "runs", "--run", "teacher", "--fold", "all")
    assert not equal(weights(taught, "teacher", "fold1"), weights(other, "teacher", "fold1"))
    for folder in (taught, other):
        train(folder, folder / "runs", "--run", way, "--fold", "0", *WAYS[way])
    assert equal(weights(taught, way), weights(other, way))
    train(taught, taught / "runs", "--run", f"{way} plain", "--fold", "0")
    assert not equal(weights(taught, way), weights(taught, f"{way} plain"))


def test_interrupted_and_resumed_is_uninterrupted(taught, tmp_path, monkeypatch):
    """The lessons are the same when a training goes on; a teacher that was trained again in between is refused."""
    import common.train.loop as loop

    runs, train_epoch = tmp_path / "runs", loop.train_epoch
    shutil.copytree(taught / "runs" / "teacher", runs / "teacher")
    train(taught, runs, "--run", "whole", "--fold", "0", *DISTIL)

    def interrupted(accelerator, training, *others):
        if training.epoch == 1:
            raise KeyboardInterrupt
        return train_epoch(accelerator, training, *others)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_epoch", interrupted)
        train(taught, runs, "--run", "halves", "--fold", "0", *DISTIL)
    config = runs / "halves" / "fold0" / "config.json"
    assert list(json.loads(config.read_text())["taught_by"]) == ["teacher/fold0"]
    shutil.rmtree(runs / "teacher")
    train(taught, runs, "--run", "teacher", "--fold", "0", "--seed", "7")
    with pytest.raises(UserError, match="another model of the teacher teacher/fold0"):
        train(taught, runs, "--run", "halves", "--fold", "0", *DISTIL)
    shutil.rmtree(runs / "teacher")
    shutil.copytree(taught / "runs" / "teacher", runs / "teacher")
    train(taught, runs, "--run", "halves", "--fold", "0", *DISTIL)
    whole, halves = (load_tensors(runs / run / "fold0" / MODEL_FILE)[0] for run in ("whole", "halves"))
    assert equal(whole, halves)


def test_a_model_of_all_rows_learns_from_a_model_of_all_rows(taught):
    """And is refused where the teacher has none: each fold's model has not seen all that it would be asked about."""
    full = ["--fold", "full", "--epochs", 1]
    with pytest.raises(UserError, match=r"teacher.full: is not finished"):
        train(taught, taught / "runs", "--run", "taught", *full, *DISTIL)
    train(taught, taught / "runs", "--run", "all rows", *full)
    train(taught, taught / "runs", "--run", "taught", *full, "--teacher", taught / "runs" / "all rows")
    assert not equal(weights(taught, "all rows", "full"), weights(taught, "taught", "full"))


def test_a_teachers_classes_are_brought_into_the_folds_order(taught, tmp_path):
    """By name: a model that lists its classes in another order says the same of each."""
    from common.train.teachers import outputs_of

    table = read_train_table(str(taught / "train.csv"))
    folds = match_folds(read_folds(taught / "folds.csv"), table)
    path = taught / "runs" / "teacher" / "fold0" / MODEL_FILE
    rows, order = np.arange(12), [2, 0, 1]
    before = outputs_of([path], table, rows, folds, Cache(0))
    tensors, metadata = load_tensors(path)
    metadata["classes"] = [folds.classes[at] for at in order]
    save_tensors(tmp_path / MODEL_FILE, tensors, metadata)
    assert np.array_equal(outputs_of([tmp_path / MODEL_FILE], table, rows, folds, Cache(0))[:, order], before)
    metadata["classes"] = ["class 0", "class 1", "class 3"]
    save_tensors(tmp_path / MODEL_FILE, tensors, metadata)
    with pytest.raises(UserError, match="knows class 0, class 1, class 3"):
        outputs_of([tmp_path / MODEL_FILE], table, rows, folds, Cache(0))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--teacher", "nobody"], "--teacher: there is no run nobody"),
        (["--teacher", "student"], "student is the run to be trained"),
        (["--teacher-weight", 0.3], "--teacher-weight: has no effect without --teacher"),
        ([*DISTIL, "--teacher-temperature", 0], "--teacher-temperature: 0.0 is out of range"),
        ([*DISTIL, "--folds", "other.csv"], "was trained with different folds"),
    ],
)
def test_what_cannot_teach_is_refused_in_one_line(flags, said, taught):
    """Before anything is trained."""
    if "other.csv" in flags:
        flags = [*flags[:-1], taught / "other.csv"]
        text = (taught / "folds.csv").read_text().splitlines()
        rows = [line.split(",") for line in text]
        swapped = [",".join([*row[:2], {"0": "1", "1": "0"}.get(row[2], row[2]), *row[3:]]) for row in rows]
        (taught / "other.csv").write_text("\n".join(swapped) + "\n")
    (taught / "runs" / "student").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        train(taught, taught / "runs", "--run", "student", "--fold", "0", *flags)
    assert not list((taught / "runs" / "student").iterdir())
