"""Sequences and frames: what is read, what a batch is, and that nobody sees who shares it."""

import csv
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import SMALL
from torch import nn

import ensemble
import folds
import infer
import report
import train_fold
from common.base.errors import UserError
from common.data.augment import Augmentation
from common.data.batches import TrainBatches
from common.data.folds import match_folds, read_folds, split_rows
from common.data.frames import FrameScale, Runs, Sequences, Windows, cropped_frames
from common.data.kinds import SEQUENCES
from common.data.reading import read_train_table
from common.data.sequences import read_sequences
from common.model.networks import create_model
from common.model.pooling import PartsPooling, StatisticsPooling
from common.runs.predictions import read_predictions
from common.train.fold_models import FoldModels, read_models

D = 5
LENGTHS = (1, 2, 9, 30, 3, 17, 8, 2)
CHOICES = {
    "sequence_cnn": (
        *({}, {"halvings": 0}, {"halvings": 3, "kernel": 3}, {"widths": (8, 16), "halvings": 2}, {"parts": 4}),
        {"widths": (), "halvings": 0, "parts": 8},
    ),
    "sequence_transformer": ({}, {"halvings": 0}, {"width": 16, "heads": 2, "depth": 1}, {"parts": 3}),
}


@pytest.fixture
def saved(tmp_path):
    """Writes sequences as 0.npy, 1.npy ... and reads them as the rows of a table."""

    def write(*arrays, lengths=()):
        for number, array in enumerate(arrays):
            np.save(tmp_path / f"{number}.npy", array)
        return read_sequences("t.csv", tmp_path, [f"{number}.npy" for number in range(len(arrays))], lengths)

    return write


def drawn(*lengths, kind=np.float32):
    random = np.random.default_rng(0)
    return [random.normal(size=(length, D)).astype(kind) for length in lengths]


def with_padding(arrays):
    sequences = [torch.from_numpy(array) for array in arrays]
    return nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=torch.nan)


def test_every_net_of_sequences_is_looked_at():
    assert set(CHOICES) == set(SEQUENCES.models)


@pytest.mark.parametrize(("name", "arguments"), [(name, each) for name, all_ in CHOICES.items() for each in all_])
def test_predictions_do_not_depend_on_who_shares_the_batch(name, arguments):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, in_chans=0, img_size=D, **arguments).eval()
    arrays = drawn(*LENGTHS)
    by_length = sorted(range(len(arrays)), key=lambda row: len(arrays[row]))
    with torch.inference_mode():
        alone = torch.cat([model(with_padding([array])) for array in arrays]).softmax(1)
        together = model(with_padding(arrays)).softmax(1)
        in_threes = [model(with_padding([arrays[row] for row in by_length[at : at + 3]])) for at in range(0, 8, 3)]
    assert alone.std(0).min() > 1e-3  # else agreement would mean nothing
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(torch.cat(in_threes).softmax(1), alone[by_length], atol=1e-5)


def test_parts_are_means_over_equal_shares_of_the_time():
    """A frame on an edge is shared, and one frame is every part; what stands behind the last is not looked at."""
    pool, frames = PartsPooling(2), torch.tensor([1.0, 3.0, 8.0, 100.0]).view(1, 4, 1)
    means = {4: [2.0, 54.0], 3: [(1 + 1.5) / 1.5, (1.5 + 8) / 1.5], 2: [1.0, 3.0], 1: [1.0, 1.0]}
    for length, expected in means.items():
        assert pool(frames, torch.arange(4)[None] < length)[0].tolist() == pytest.approx(expected)


def test_parts_know_the_order_of_the_frames():
    torch.manual_seed(0)
    [array] = drawn(9)
    with torch.inference_mode():
        for parts, knows in ((0, False), (3, True)):
            made = {"widths": (), "halvings": 0, "parts": parts}
            model = timm.create_model("sequence_cnn", num_classes=4, in_chans=0, img_size=D, **made).eval()
            there, back = (model(with_padding([each.copy()])) for each in (array, array[::-1]))
            assert torch.allclose(there, back, atol=1e-5) is not knows


def test_a_padded_frame_gets_no_gradient_and_gives_none():
    for name in CHOICES:
        model = timm.create_model(name, num_classes=4, in_chans=0, img_size=D, noise=0.5, parts=3).train()
        model(with_padding(drawn(3, 20))).sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_net_that_forgets_the_mask_is_refused(monkeypatch):
    def zeros_are_frames(self, frames, real):
        return torch.cat([frames.mean(1), frames.std(1)], dim=1)

    monkeypatch.setattr(StatisticsPooling, "forward", zeros_are_frames)
    with pytest.raises(UserError, match="padded"):
        create_model("sequence_cnn", {}, 4, 0, D)


def test_batches_hold_each_sequence_and_nan_behind_it(saved):
    arrays = drawn(*LENGTHS)
    inputs = Sequences.of_files(saved(*arrays), torch.device("cpu"))
    rows = torch.tensor([2, 0, 5])
    [batch] = inputs.batches([rows], torch.device("cpu"))
    assert batch.shape == (3, 17, D)
    for row, found in zip(rows.tolist(), batch, strict=True):
        assert np.array_equal(found[: LENGTHS[row]].numpy(), arrays[row])
        assert found[LENGTHS[row] :].isnan().all()


def test_windows_stop_at_the_ends_of_an_utterance(saved):
    arrays = [np.full((3, D), 10, np.float32), np.arange(4, dtype=np.float32)[:, None].repeat(D, 1)]
    inputs = Windows.of_files(saved(*arrays), 2, torch.device("cpu"))
    [batch] = inputs.batches([torch.arange(7)], torch.device("cpu"))
    assert batch.shape == (7, 5 * D)
    seen = batch.view(7, 5, D)[:, :, 0].tolist()
    assert seen[2] == [10] * 5
    assert seen[3:] == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 3, 3]]


def test_a_run_of_frames_gets_the_answers_of_its_windows(saved):
    """Whoever shares the batch, wherever an utterance is cut, at its ends and for one frame of it."""
    files = saved(*drawn(30, 9, 1, 17))
    model = timm.create_model(
        "frame_cnn", num_classes=4, in_chans=0, img_size=D, widths=(8, 8), dilations=(1, 2)
    ).eval()
    runs, windows = (kind.of_files(files, model.reach, torch.device("cpu")) for kind in (Runs, Windows))
    rows = torch.cat([torch.arange(25, 57), torch.arange(3, 8), torch.tensor([40, 5, 5, 0])])
    [together], [alone] = (list(inputs.batches([rows], torch.device("cpu"))) for inputs in (runs, windows))
    assert together.shape[0] == 9 and alone.shape[0] == len(rows)
    with torch.inference_mode():
        found, expected = model(together), model(alone.unflatten(1, (-1, D)))
    assert expected.std(0).min() > 1e-2
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_scale_is_that_of_the_training_rows_frames_summed_in_float64(saved):
    arrays = [array * 1000 + 2000 for array in drawn(*LENGTHS, kind=np.float16)]  # float16 ends at 65,504
    files, rows = saved(*arrays), [3, 0, 5]
    frames = np.concatenate([arrays[row] for row in rows]).astype(np.float64)
    scale = Sequences.of_files(files, torch.device("cpu")).scale_of(torch.tensor(rows), torch.device("cpu"))
    assert np.allclose(scale.mean, frames.mean(0))
    assert np.allclose(scale.std, frames.std(0))
    windows = Windows.of_files(files, 1, torch.device("cpu"))
    of_frames = windows.scale_of(torch.tensor([0, 1, 2]), torch.device("cpu"))
    assert np.allclose(of_frames.mean, np.concatenate(arrays)[:3].astype(np.float64).mean(0))


def test_scaled_windows_are_windows_of_scaled_frames():
    frames = torch.randn(6, D)
    scale = FrameScale(tuple(range(D)), tuple(range(1, D + 1)))
    assert torch.allclose(scale(frames[:4].flatten()[None]), scale(frames)[:4].flatten()[None])


def test_random_parts_of_long_sequences_and_short_ones_whole():
    batch = with_padding([np.arange(n, dtype=np.float32)[:, None].repeat(D, 1) for n in (10, 4, 3)])
    found = cropped_frames(batch, 4, torch.tensor([0.999, 0.999, 0.0]))
    assert found.shape == (3, 4, D)
    assert found[0, :, 0].tolist() == [6, 7, 8, 9]
    assert found[1, :, 0].tolist() == [0, 1, 2, 3]
    assert found[2, :3, 0].tolist() == [0, 1, 2]
    assert found[2, 3].isnan().all()
    firsts = {cropped_frames(batch, 4, torch.full((3,), share))[0, 0, 0].item() for share in np.linspace(0, 0.99, 50)}
    assert firsts == set(range(7))  # every part may be drawn
    assert cropped_frames(batch, 10, torch.zeros(3)) is batch


def batches_of(inputs, rows, **changes):
    settings = {
        "inputs": inputs,
        "targets": torch.zeros(rows, dtype=torch.int64),
        "rows": torch.arange(rows),
        "num_classes": 2,
        "batch_size": 8,
        "micro_batches": 1,
        "process": 0,
        "processes": 1,
        "seed": 0,
        "augment": Augmentation(),
        "normalise": FrameScale((0.0,) * D, (1.0,) * D),
        "label_smoothing": 0.0,
    }
    return TrainBatches(**settings | changes)


def test_batches_of_similar_length_hold_each_row_once_and_follow_seed_and_epoch(saved):
    random = np.random.default_rng(0)
    lengths = random.integers(1, 40, 100)
    inputs = Sequences.of_files(saved(*(np.ones((length, D), np.float32) for length in lengths)), torch.device("cpu"))
    batches = batches_of(inputs, 100)
    orders = [batches.order_of(epoch) for epoch in (0, 1, 0)]
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])
    assert sorted(orders[0].tolist()) == list(range(100))
    assert orders[0][96:].tolist() != orders[1][96:].tolist()  # who waits for another epoch is drawn, not the longest
    padded = sum(batch.inputs.shape[0] * batch.inputs.shape[1] for batch in batches.epoch(0))
    assert padded < 1.2 * lengths[orders[0][:96]].sum()
    shares = [batches_of(inputs, 100, process=process, processes=2) for process in (0, 1)]
    whole = torch.cat([batch.rows for batch in batches.epoch(0)]).view(-1, 8)
    parts = [torch.cat([batch.rows for batch in share.epoch(0)]).view(-1, 4) for share in shares]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_runs_of_frames_hold_each_row_once_and_follow_seed_and_epoch(saved):
    inputs = Runs.of_files(saved(*drawn(300, 450)), 2, torch.device("cpu"))
    orders = [batches_of(inputs, 750).order_of(epoch) for epoch in (0, 1, 0)]
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])
    assert sorted(orders[0].tolist()) == list(range(750))
    assert (orders[0].diff() != 1).sum() < 12  # pieces of 100 frames


@pytest.mark.parametrize("most", [0, 20])
def test_shares_are_parts_of_the_global_batch_padded_to_its_longest(saved, most):
    """Crops are drawn by the row, whatever the process, and all processes compute in one shape."""
    inputs = Sequences.of_files(saved(*drawn(*range(5, 37))), torch.device("cpu"))
    cropped = {"augment": Augmentation(crop_frames=most)}
    whole = list(batches_of(inputs, 32, **cropped).epoch(0))
    shares = [list(batches_of(inputs, 32, process=at, processes=2, **cropped).epoch(0)) for at in (0, 1)]
    for batch, *parts in zip(whole, *shares, strict=True):
        lengths = inputs.lengths[batch.rows]
        assert batch.inputs.shape[1] == min(most or 99, int(lengths.max()))
        torch.testing.assert_close(torch.cat([part.inputs for part in parts]), batch.inputs, equal_nan=True)


# ---- the whole chain


def spoken(random, kind: int, length: int) -> np.ndarray:
    """Frames in which one of three numbers is loud."""
    frames = random.normal(size=(length, D)).astype(np.float32)
    frames[:, kind] += 3
    return frames


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """90 sequences of three speakers; a CNN and a transformer, test predictions, a blend and a report."""
    folder, random = tmp_path_factory.mktemp("speech"), np.random.default_rng(0)
    (folder / "features").mkdir()
    rows = []
    for row in range(90):
        length = int(random.integers(1, 25))
        np.save(folder / "features" / f"s{row}.npy", spoken(random, row % 3, length))
        rows.append([f"s{row}", f"features/s{row}.npy", str(length), f"speaker {row % 3}"])
    for name, own, width in (("train", rows[:60], 4), ("test", rows[60:], 3), ("truth", rows[60:], 4)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            names = ["id", "features", "length", "speaker"]
            csv.writer(file).writerows([names[:width], *(row[:width] for row in own)])
    (folder / "sample.csv").write_text("id,speaker\n" + "".join(f"{row[0]},speaker 0\n" for row in rows[60:]))
    at, files = [f"--work={folder}"], [f"--test={folder / 'test.csv'}", f"--sample={folder / 'sample.csv'}"]
    folds.main([f"--data={folder / 'train.csv'}", "--label-column=speaker", *files, "--k=3", *at])
    for name, flags in RUNS.items():
        train_fold.main([*at, *SMALL, "--epochs=8", "--jobs=1", f"--run={name}", *flags])
    infer.main([*at, "--threads=1"])
    ensemble.main(at)
    report.main(at)
    return folder


RUNS = {
    "cnn": ["--model-args", "widths=(16,16)", "--lr=0.01", "--crop-frames=12"],
    "transformer": ["--model=sequence_transformer", "--model-args", "width=16", "depth=1", "heads=2", "--lr=0.01"],
}


def test_sequences_go_through_the_whole_chain(speech):
    with (speech / "truth.csv").open() as file:
        truth = {row["id"]: row["speaker"] for row in csv.DictReader(file)}
    for name in (*RUNS, "ensemble"):
        with (speech / "runs" / name / "submission.csv").open() as file:
            answers = {row["id"]: row["speaker"] for row in csv.DictReader(file)}
        assert list(answers) == list(truth)
        assert np.mean([answers[row] == truth[row] for row in truth]) > 0.8
    page = (speech / "report.html").read_text()
    assert "Errors by length" in page and "5 numbers a frame" in page


@pytest.mark.parametrize("name", RUNS)
def test_a_trained_net_says_the_same_of_a_row_in_any_batch(speech, name):
    """Alone, thirty-two at a time by length (as in every prediction) and in the table's order."""
    table = read_train_table(str(speech / "train.csv"), folds.Competition(label_column="speaker"))
    models = FoldModels(read_models([speech / "runs" / name / "fold0"]), table, infer.TTA["none"])
    rows = np.arange(len(table.ids))
    [by_length] = models.of_fold(0, rows)
    network, predict = models.ready(0)
    alone = np.concatenate([predict(network, rows[at : at + 1])[0] for at in rows])
    [padded] = predict.inputs.batches([torch.from_numpy(rows)], torch.device("cpu"))
    with torch.inference_mode():
        in_order = torch.cat([network(some) for some in predict.normalise(padded).split(32)])
    for found in (alone, in_order.numpy()):
        np.testing.assert_allclose(softmax(found), softmax(by_length), atol=1e-5)


def softmax(logits) -> np.ndarray:
    return torch.from_numpy(np.asarray(logits)).softmax(1).numpy()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model=resnet18"], "resnet18 looks at images"),
        (["--model=mlp"], "mlp looks at features"),
        (["--augment=digits"], "--augment: is for images"),
        (["--augment-args", "mixup=0.2"], "--augment-args: is for images"),
        (["--channels-last=yes"], "--channels-last: is for images"),
        (["--window=9"], "--window: is for frames"),
    ],
)
def test_what_other_inputs_have_is_refused(speech, tmp_path, flags, says):
    with pytest.raises(UserError, match=says):
        train_fold.main([f"--folds={speech / 'folds.csv'}", f"--runs-dir={tmp_path}", *SMALL, *flags])


def test_views_are_refused(speech):
    with pytest.raises(UserError, match="--tta: looks at images in several ways"):
        infer.main([f"--work={speech}", "--runs=cnn", "--tta=hflip"])


# ---- a class a frame


@pytest.fixture(scope="module")
def utterances(tmp_path_factory) -> Path:
    """12 utterances of four speakers, 3 of them to be predicted; a label a frame, told by the frame before it."""
    folder, random = tmp_path_factory.mktemp("utterances"), np.random.default_rng(0)
    (folder / "features").mkdir()
    lines, truth, of_whom = [], [], ["utterance,speaker"]
    names = [f"u{number}" for number in range(12)]
    for number, name in enumerate(names):
        kinds = random.integers(3, size=random.integers(30, 60))
        kinds = np.sort(kinds) if number >= 9 else kinds  # as in speech, where a phone lasts for some frames
        frames = random.normal(size=(len(kinds), D)).astype(np.float16)
        frames[np.arange(len(kinds) - 1), kinds[1:]] += 6  # what the next frame is
        np.save(folder / "features" / f"{name}.npy", frames)
        of_whom.append(f"{name},s{number % 4}")
        if number < 9:
            lines.append(" ".join([name, *map(str, kinds)]))
    order = ["u11", "u9", "u10"]
    for name in order:
        frames = np.load(folder / "features" / f"{name}.npy")
        truth += [None, *frames[:-1, :3].argmax(1).tolist()]
    (folder / "train_labels.txt").write_text("\n".join(lines) + "\n")
    (folder / "train_split.txt").write_text("\n".join(names[:9]) + "\n")
    (folder / "test_split.txt").write_text("\n".join(order) + "\n")
    (folder / "utterances.csv").write_text("\n".join(of_whom) + "\n")
    (folder / "sample.csv").write_text("Id,Class\n" + "".join(f"{row},0\n" for row in range(len(truth))))
    np.save(folder / "truth.npy", np.array([-1 if kind is None else kind for kind in truth]))
    return folder


@pytest.fixture(scope="module")
def phones(utterances, tmp_path_factory) -> Path:
    """A run on them: folds by utterance, a window of three frames."""
    work = tmp_path_factory.mktemp("phones")
    files = [f"--test={utterances / 'test_split.txt'}", f"--sample={utterances / 'sample.csv'}"]
    folds.main([f"--data={utterances}", "--targets=frames", *files, "--k=3", f"--work={work}"])
    train_fold.main([f"--work={work}", *SMALL, "--epochs=12", "--lr=0.02", "--jobs=1", "--run=w1", "--window=1"])
    run = ["--run=whole", "--model=frame_cnn", "--window=2", "--batch-size=60", "--epochs=30", "--lr=0.02", "--jobs=1"]
    train_fold.main([f"--work={work}", *SMALL, *run, "--model-args", "widths=(16,16)", "dilations=(1,1)", "kernel=3"])
    infer.main([f"--work={work}", "--threads=1"])
    report.main([f"--work={work}"])
    return work


def test_no_utterance_lies_in_two_folds(utterances, phones, tmp_path):
    """Nor a speaker, where they are asked for."""
    made = read_folds(phones / "folds.csv")
    assert {name.rpartition("/")[0] for name in made.ids} == {f"u{number}" for number in range(9)}
    assert all(len(set(made.fold[made.groups == name])) == 1 for name in set(made.groups))
    said = [f"--data={utterances}", "--targets=frames", "--k=3", f"--folds={tmp_path / 'folds.csv'}"]
    folds.main([*said, "--group=speaker", f"--group-table={utterances / 'utterances.csv'}"])
    by_speaker = read_folds(tmp_path / "folds.csv")
    assert set(by_speaker.groups) == {"s0", "s1", "s2", "s3"}
    assert all(len(set(by_speaker.fold[by_speaker.groups == name])) == 1 for name in set(by_speaker.groups))


def test_frames_that_are_like_the_next_one_are_no_sorted_table(phones, tmp_path, capsys):
    """infer.py says nothing of the order of the test rows, which is that of time."""
    infer.main([f"--work={phones}", "--runs=w1", f"--out-dir={tmp_path}", "--threads=1"])
    predicted = read_predictions(tmp_path / "w1" / "test.npz").predicted
    assert (predicted[1:] == predicted[:-1]).mean() > 0.8 and "sorted" not in capsys.readouterr().out


def test_frames_go_through_the_whole_chain(utterances, phones):
    """The submission numbers the frames in the order of the test list; the frame before tells each but the first."""
    truth = np.load(utterances / "truth.npy")
    known = truth >= 0
    for name in ("w1", "whole"):
        with (phones / "runs" / name / "submission.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["Id"] for row in rows] == [str(number) for number in range(len(truth))]
        assert np.mean(np.array([int(row["Class"]) for row in rows])[known] == truth[known]) > 0.8
    table = read_train_table(str(utterances), folds.read_competition(phones / "competition.json"))
    oof = [read_predictions(phones / "runs" / "w1" / f"fold{k}" / "oof.npz") for k in range(3)]
    assert sorted(np.concatenate([part.ids for part in oof])) == sorted(table.ids)
    assert len(match_folds(read_folds(phones / "folds.csv"), table).ids) == len(table.ids)
    page = (phones / "report.html").read_text()
    assert "Utterances" in page and "data:image/png" in page


def test_a_part_of_the_frames_is_drawn_in_pieces(phones):
    """Each by itself would cost a whole window; the part is the same whatever the seed."""
    made = read_folds(phones / "folds.csv")
    whole, valid = split_rows(made, "0", 1.0, 0)
    half, untouched = split_rows(made, "0", 0.5, 0)
    assert len(half) == round(len(whole) / 2) and untouched.tolist() == valid.tolist() and set(half) < set(whole)
    assert (np.diff(half) != 1).sum() < 8
    assert [len(part) for part in split_rows(made, "0", 0.5, 30)] == [30, 30]


def test_the_picture_of_a_frame_is_its_utterance_around_it(utterances):
    table = read_train_table(str(utterances), folds.Competition(targets="frames"))
    length = table.images.sequences.lengths[0]
    for row in (0, 27, int(length) - 1, int(length)):
        found = table.images.around(row)
        assert found.shape == (51, D) and (found[25] == table.images[row]).all()
    assert (table.images.around(0)[:25] == table.images[0]).all()
    assert (table.images.around(int(length))[:25] == table.images[int(length)]).all()


def test_a_net_over_utterances_is_told_how_far_it_looks(phones):
    with pytest.raises(UserError, match="frame_cnn looks at 24 frames on either side; use --window 24"):
        train_fold.main([f"--work={phones}", *SMALL, "--run=other", "--model=frame_cnn", "--window=9", "--fold=0"])


def test_the_interval_is_by_utterance(phones, capsys):
    train_fold.main([f"--work={phones}", *SMALL, "--epochs=12", "--lr=0.02", "--jobs=1", "--run=w1", "--window=1"])
    said = capsys.readouterr().out
    assert "by 9 groups, whose rows are alike" in said and "alone would be right in" in said


def test_labels_may_be_files(utterances, tmp_path):
    """A .npy file of whole numbers an utterance says what a line says."""
    for name in ("features", "test_split.txt"):
        (tmp_path / name).symlink_to(utterances / name)
    (tmp_path / "train_labels").mkdir()
    for line in (utterances / "train_labels.txt").read_text().splitlines():
        name, *labels = line.split()
        np.save(tmp_path / "train_labels" / f"{name}.npy", np.array(labels, dtype=np.int64))
    competition = folds.Competition(targets="frames")
    found, expected = (read_train_table(str(folder), competition) for folder in (tmp_path, utterances))
    assert dict(zip(found.ids, found.labels, strict=True)) == dict(zip(expected.ids, expected.labels, strict=True))
