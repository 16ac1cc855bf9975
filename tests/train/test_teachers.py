"""Teachers: what they say reaches the student, and no label of a held-out row does."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SMALL, WITHOUT_BATCHNORM, train
from disturbed import Server, start_together

from common.base.errors import UserError
from common.base.files import read_json, write_json
from common.data.augment import Augmentation
from common.data.batches import TrainBatches
from common.data.cache import Cache
from common.data.folds import match_folds, read_folds
from common.data.frames import Sequences
from common.data.inputs import Joined, Pixels
from common.data.lessons import Lessons, known_in_a_batch
from common.data.reading import read_train_table
from common.data.scales import Normalise
from common.data.transfer import HOST
from common.model.losses import create_loss, of_known_labels
from common.runs.layout import MODEL_FILE, OOF_FILE
from common.runs.predictions import read_predictions, write_predictions
from common.runs.tensors import load_tensors, save_tensors
from common.score.logits import Outputs
from common.score.pseudo_labels import pseudo_labels
from common.score.task import TASKS

DISTIL = ["--teacher", "teacher"]
MEAN_TEACHER = ["--consistency", 10, "--ema-decay", 0.9]
WAYS = {
    "distillation": [*DISTIL, "--unlabelled", "{test}"],
    "pseudo-labels": ["--pseudo", "teacher", "--pseudo-threshold", 0],
    "mean teacher": MEAN_TEACHER,
}


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


@pytest.fixture(scope="module")
def other(tiny, tmp_path_factory):
    """The same with other labels in fold 0 alone: its model of fold 0 is the same, the others are not."""
    folder = with_other_labels(tiny, tmp_path_factory.mktemp("other") / "data")
    train(folder, folder / "runs", "--run", "teacher", "--fold", "all")
    return folder


@pytest.fixture(scope="module")
def plain(taught):
    """A fold that learns from its labels alone."""
    train(taught, taught / "runs", "--run", "plain", "--fold", "0", "--ema-decay", 0.9)
    return weights(taught, "plain")


@pytest.mark.parametrize("way", WAYS)
def test_no_label_of_a_held_out_row_reaches_the_student(way, taught, other, plain, tiny):
    """Teacher and student of fold 0 end at the same bits whatever fold 0's labels are; a mean of all folds' models,
    or the teacher's out-of-fold predictions, would carry them over."""
    assert not equal(weights(taught, "teacher", "fold1"), weights(other, "teacher", "fold1"))
    flags = [str(flag).format(test=tiny / "test.csv") for flag in WAYS[way]]
    for folder in (taught, other):
        train(folder, folder / "runs", "--run", way, "--fold", "0", *flags)
    assert equal(weights(taught, way), weights(other, way))
    assert not equal(weights(taught, way), plain)


def test_how_sure_a_teacher_is_does_not_hang_on_the_rows_held_out(taught, tmp_path):
    """The temperature of fold 0's pseudo-labels leaves out fold 0's out-of-fold predictions."""
    from common.train.teachers import oof_temperature

    folds = match_folds(read_folds(taught / "folds.csv"), read_train_table(str(taught / "train.csv")))
    kept, run = taught / "runs" / "teacher", tmp_path / "teacher"
    shutil.copytree(kept, run)

    def temperatures(*scales: float) -> list[float]:
        for k, scale in enumerate(scales):
            oof, metrics = read_predictions(kept / f"fold{k}" / "oof.npz"), read_json(run / f"fold{k}" / "metrics.json")
            file = run / f"fold{k}" / "oof.npz"
            metrics["sha256_of"][file.name] = write_predictions(file, replace(oof, logits=oof.logits * scale))
            write_json(run / f"fold{k}" / "metrics.json", metrics)
        return [oof_temperature(run, run / f"fold{k}", folds) for k in range(3)]

    before, after = temperatures(20, 20, 20), temperatures(60, 20, 20)
    assert before[0] == after[0] and before[1] != after[1] and before[2] != after[2]


@pytest.mark.parametrize("way", ["pseudo-labels", "mean teacher"])
def test_interrupted_and_resumed_is_uninterrupted(way, taught, monkeypatch):
    """What a fold learns is the same when its training goes on, to the bit."""
    import common.train.loop as loop

    train_epoch, flags = loop.train_epoch, WAYS[way]
    train(taught, taught / "runs", "--run", f"whole {way}", "--fold", "1", *flags)

    def interrupted(accelerator, training, *others):
        if training.epoch == 1:
            raise KeyboardInterrupt
        return train_epoch(accelerator, training, *others)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_epoch", interrupted)
        train(taught, taught / "runs", "--run", f"halves {way}", "--fold", "1", *flags)
    train(taught, taught / "runs", "--run", f"halves {way}", "--fold", "1", *flags)
    assert equal(weights(taught, f"whole {way}", "fold1"), weights(taught, f"halves {way}", "fold1"))


@pytest.mark.parametrize("way", ["pseudo-labels", "mean teacher"])
def test_two_processes_learn_what_one_does(way, taught, server: Server):
    """Each has its share of every batch, with the labels, the rows without and what teachers say of them."""
    flags = [*WAYS[way], *WITHOUT_BATCHNORM, "--fold", "0"]
    train(taught, taught / "runs", "--run", f"one process {way}", *flags)
    places = ["--data", taught / "train.csv", "--folds", taught / "folds.csv", "--runs-dir", taught / "runs"]
    command = [*places, *SMALL, "--run", f"two processes {way}", *flags]
    children = start_together(server, 2, "train_fold", *map(str, command))
    assert [child.wait() for child in children] == [0, 0], children[0].said()
    one, two = (
        read_predictions(taught / "runs" / f"{count} {way}" / "fold0" / OOF_FILE).logits
        for count in ("one process", "two processes")
    )
    np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-3 * one.std())


def test_folds_side_by_side_learn_what_they_learn_in_turn(taught):
    """Each from the teacher's model of its own fold."""
    pseudo = WAYS["pseudo-labels"]
    train(taught, taught / "runs", "--run", "side by side", "--fold", "all", *pseudo, "--jobs", 2)
    for fold in (0, 2):
        train(taught, taught / "runs", "--run", "in turn", "--fold", fold, *pseudo)
        assert equal(weights(taught, "in turn", f"fold{fold}"), weights(taught, "side by side", f"fold{fold}"))


def test_a_training_does_not_go_on_with_another_teacher(taught, plain, tmp_path):
    """A teacher that was trained again, or other unlabelled rows, are refused; config.json says what they were."""
    shutil.copytree(taught / "runs" / "teacher", tmp_path / "teacher")
    rows = tmp_path / "rows.csv"
    shutil.copy(taught / "test.csv", rows)
    flags = ["--run", "student", "--fold", "0", "--pseudo", "teacher", "--pseudo-threshold", 0, "--unlabelled", rows]
    train(taught, tmp_path, *flags)
    folder = tmp_path / "student" / "fold0"
    assert set(read_json(folder / "config.json")["taught_by"]) == {"teacher/fold0", str(rows)}
    train(taught, tmp_path, *flags)  # is finished: whatever became of its teacher
    (folder / "metrics.json").unlink()
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    rows.write_text("\n".join(rows.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match=r"began to learn from .*rows.csv as it was before it changed"):
        train(taught, tmp_path, *flags)
    shutil.copy(taught / "test.csv", rows)
    shutil.copy(taught / "runs" / "plain" / "fold0" / MODEL_FILE, tmp_path / "teacher" / "fold0" / MODEL_FILE)
    with pytest.raises(UserError, match="began to learn from teacher/fold0 as it was"):
        train(taught, tmp_path, *flags)


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
    before = outputs_of({path: 1.0}, table, rows, folds, Cache(0))
    tensors, metadata = load_tensors(path)
    metadata["classes"] = [folds.output_names[at] for at in order]
    save_tensors(tmp_path / MODEL_FILE, tensors, metadata)
    assert np.array_equal(outputs_of({tmp_path / MODEL_FILE: 1.0}, table, rows, folds, Cache(0))[:, order], before)
    metadata["classes"] = ["class 0", "class 1", "class 3"]
    save_tensors(tmp_path / MODEL_FILE, tensors, metadata)
    with pytest.raises(UserError, match="knows class 0, class 1, class 3"):
        outputs_of({tmp_path / MODEL_FILE: 1.0}, table, rows, folds, Cache(0))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--teacher", "nobody"], "--teacher: there is no run nobody"),
        (["--teacher", "student"], "student is the run to be trained"),
        (["--teacher-weight", 0.3], "--teacher-weight: has no effect without --teacher"),
        ([*DISTIL, "--teacher-temperature", 0], "--teacher-temperature: 0.0 is out of range"),
        (["--pseudo", "teacher", "--limit", 20, "--pseudo-threshold", 1], "are 1 sure of no row of"),
        (["--unlabelled", "test.csv"], "--unlabelled: has no effect without --teacher or --pseudo or --consistency"),
        ([*DISTIL, "--pseudo-weight", 0.5], "--pseudo-weight: has no effect without --pseudo"),
        (["--pseudo", "teacher", "--unlabelled", "elsewhere.csv"], "elsewhere.csv"),
        (["--pseudo", "teacher", "--sampling", "balanced"], "draws rows by their labels"),
        (
            ["--pseudo", "teacher", "--loss", "lovasz-softmax", "--label-smoothing", 0],
            "cannot tell rows without labels",
        ),
        (["--consistency", 10], "add --ema-decay"),
        ([*MEAN_TEACHER, *DISTIL], "--consistency: cannot be combined with --teacher"),
        ([*MEAN_TEACHER, "--consistency-ramp", 4], "--consistency-ramp: 4 is out of range"),
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
    left = {path.name for path in (taught / "runs" / "student").glob("*/*")}
    assert left <= {".lock"}, "the corrected command would meet a run with other settings"


# ---- pieces


def test_sure_labels_alone_have_a_say():
    """Of classes by row, of label sets by label; hard ones are smoothed like one's own labels."""
    logits = np.log(np.array([[0.95, 0.03, 0.02], [0.5, 0.3, 0.2]]))
    hard = pseudo_labels(TASKS["multiclass"], Outputs(logits), 0.9, soft=False, smoothing=0.3)
    assert np.allclose(hard[0], [0.8, 0.1, 0.1]) and np.isnan(hard[1]).all()
    soft = pseudo_labels(TASKS["multiclass"], Outputs(logits), 0.5, soft=True, smoothing=0.3)
    assert np.allclose(soft, np.exp(logits))
    odds = Outputs(np.array([[9.0, -9.0, 0.1]]))
    assert np.array_equal(pseudo_labels(TASKS["multilabel"], odds, 0.9, False, 0.0), [[1, 0, np.nan]], equal_nan=True)


def test_an_unsure_label_moves_nothing():
    """NaN among the targets of a label set: no gradient from there, the others' as ever."""
    odds = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)
    bce = create_loss("bce", torch.zeros(1, 3), 3)
    of_known_labels(bce)(odds, torch.tensor([[1.0, torch.nan, 0.0]])).backward()
    slopes = torch.sigmoid(odds.detach()) - torch.tensor([[1.0, 0.0, 0.0]])
    assert torch.allclose(odds.grad, slopes * torch.tensor([1.0, 0.0, 1.0]), atol=1e-6)


def test_a_mixture_of_rows_weighs_each_by_its_own_weight():
    """The loss of a mixed row is the weighted sum of what both of its rows would cost."""
    labels, weights = torch.eye(3)[[2]], torch.tensor([1.0, 1.0, 0.25])  # rows 0 and 1 are the table's, 2 joined
    lessons = Lessons(labels=labels, weights=weights)
    rows, partners, targets = torch.tensor([0]), torch.tensor([2]), torch.eye(3)[[0, 1]]
    soft = [lessons.with_joined(some, targets[some.clamp_max(1)]) for some in (rows, partners)]
    own, other = (lessons.columns(some, each) for some, each in zip((rows, partners), soft, strict=True))
    mixed, weight, _ = lessons.parts(0.7 * own + 0.3 * other, 3)
    logits, loss = torch.randn(1, 3), create_loss("cross-entropy", torch.zeros(1, dtype=torch.int64), 3)
    apart = 0.7 * loss(logits, targets[:1]) + 0.3 * 0.25 * loss(logits, labels)
    assert torch.allclose(loss(logits, mixed, weight), apart)
    none, weight, _ = Lessons(labels=labels * 0, weights=weights * 0).parts(own * 0, 3)
    assert loss(logits, none, weight) == 0


def test_rows_with_labels_have_their_share_of_every_batch():
    """And come equally often; where they are many enough anyway, every row comes once."""
    images = torch.zeros(1000, 1, 2, 2, dtype=torch.uint8)
    weights = torch.ones(1000)
    least = known_in_a_batch(known=10, joined=990, batch_size=20, share=0.25)
    lessons = Lessons(labels=torch.zeros(990, 2), weights=weights, in_each_batch=least)
    batches = TrainBatches(
        inputs=Pixels(images),
        targets=torch.zeros(10, dtype=torch.int64),
        rows=torch.arange(1000),
        num_classes=2,
        batch_size=20,
        micro_batches=1,
        process=0,
        processes=1,
        seed=0,
        augment=Augmentation(),
        normalise=Normalise((0.0,), (1.0,)),
        label_smoothing=0.0,
        lessons=lessons,
    )
    order = batches.order_of(0).view(50, 20)
    assert ((order < 10).sum(dim=1) == 5).all()
    assert (torch.bincount(order[order < 10]) == 25).all() and order[order >= 10].unique().numel() == 750
    assert known_in_a_batch(known=300, joined=700, batch_size=20, share=0.25) == 0
    assert sorted(replace(batches, lessons=replace(lessons, in_each_batch=0)).order_of(0).tolist()) == list(range(1000))


def test_inputs_of_two_tables_are_those_of_one_that_holds_both():
    """Batches of either, of both and of none."""
    images = torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2)
    two = Joined(Pixels(images[:6]), 6, Pixels(images[6:]))
    rows = [torch.tensor(some, dtype=torch.int64) for some in ([7, 0, 9, 5], [1, 2], [8, 6, 7], [6])]
    for found, some in zip(two.batches(rows, HOST), rows, strict=True):
        assert torch.equal(found, images[some])
    frames = torch.arange(12.0).view(12, 1)
    starts, lengths = torch.tensor([0, 1]), torch.tensor([1, 5])
    two = Joined(Sequences(frames[:6], starts, lengths), 2, Sequences(frames[6:], starts, lengths))
    [found] = two.batches([torch.tensor([0, 3, 2])], HOST)
    assert found.shape == (3, 5, 1) and found[0, 1:].isnan().all() and torch.equal(found[1, :, 0], frames[7:, 0])
