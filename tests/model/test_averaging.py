"""What a fold keeps of its epochs: best, SWA and snapshots, interrupted or not, in OOF as in infer.py."""

import io
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import train
from scores import log_mean_probability
from torch import nn

import infer
from common.base.errors import UserError
from common.data.folds import match_folds, read_folds
from common.data.inputs import Pixels
from common.data.reading import read_train_table
from common.data.scales import Normalise
from common.data.views import TTA
from common.model.averages import Members, measure_batchnorm
from common.model.selection import SELECTIONS, Best, Snapshots, StochasticAverage
from common.runs.layout import finished_folds
from common.runs.predictions import read_predictions
from common.runs.tensors import load_model, load_tensors, without_prefix
from common.train.fold_models import FoldModels, create_saved, read_models

# What each kind of run does beyond the default; every epoch of it depends on more than the weights.
KINDS = {
    "swa": ["--select", "swa", "--select-args", "last=3", "--schedule", "constant"],
    "snapshots": ["--select", "snapshots", "--schedule", "restarts", "--schedule-args", "cycles=2", "--epochs", 5],
    "members": ["--select", "members", "--select-args", "count=2", "--ema-decay", 0.9, "--opt", "muon"],
    "plateau": ["--schedule", "plateau", "--schedule-args", "patience=0", "factor=0.3", "--opt", "lookahead_adamw"],
    "early-stop": ["--select", "best", "--select-args", "patience=1", "--metric", "macro_f1", "--epochs", 9],
    "arcface": ["--loss", "arcface", "--loss-args", "margin=0.1", "class_weights=balanced", "--ema-decay", 0.9],
    "balanced": ["--sampling", "balanced", "--loss", "focal", "--schedule", "onecycle", "--warmup-epochs", 1],
}
EPOCHS = 4


class Interruption(io.StringIO):
    """A standard output that breaks off, like Ctrl-C, once an epoch has been printed and saved."""

    def write(self, text: str) -> int:
        if " epoch " in text and "train loss" in text:
            raise KeyboardInterrupt
        return super().write(text)


def train_kind(tiny, runs_dir, kind: str, fold: object = 0) -> None:
    train(tiny, runs_dir, "--run", kind, "--fold", fold, "--epochs", EPOCHS, "--lr", "1e-3", *KINDS[kind])


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A runs folder with fold 0 of every kind, uninterrupted."""
    runs_dir = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        train_kind(tiny, runs_dir, kind)
    return runs_dir


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_after_every_epoch_equals_uninterrupted(runs, tiny, tmp_path, kind, monkeypatch):
    """Model and OOF to the bit: kept weights, running means, members and the plateau's patience survive."""
    log = pd.read_csv(runs / kind / "fold0" / "log.csv")
    for _ in range(len(log)):
        monkeypatch.setattr(sys, "stdout", Interruption())
        with pytest.raises(KeyboardInterrupt):
            train_kind(tiny, tmp_path, kind)
    assert (tmp_path / kind / "fold0" / "checkpoint.safetensors").exists()
    monkeypatch.undo()
    train_kind(tiny, tmp_path, kind)
    for name in ("model.safetensors", "oof.npz"):
        assert (tmp_path / kind / "fold0" / name).read_bytes() == (runs / kind / "fold0" / name).read_bytes()
    times = ["train_seconds", "seconds"]
    resumed = pd.read_csv(tmp_path / kind / "fold0" / "log.csv")
    pd.testing.assert_frame_equal(resumed.drop(columns=times), log.drop(columns=times))


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_model_says_what_the_oof_says(runs, tiny, kind):
    """infer.py rebuilds heads, averages and members from the file alone and predicts the OOF rows alike."""
    table = read_train_table(str(tiny / "train.csv"))
    folds = match_folds(read_folds(tiny / "folds.csv"), table)
    models = read_models([runs / kind / "fold0"])
    outputs = FoldModels(models, table, TTA["none"]).of_fold(0, np.flatnonzero(folds.fold == 0))
    np.testing.assert_allclose(outputs[0], read_predictions(runs / kind / "fold0/oof.npz").logits, atol=1e-5)


def test_a_margin_loss_trains_the_head_that_its_file_holds(runs):
    """The saved last layer has directions and no bias; its logits are at most the scale."""
    tensors, _ = load_tensors(runs / "arcface" / "fold0" / "model.safetensors")
    assert "head.2.weight" in tensors and "head.2.bias" not in tensors
    assert 0 < np.abs(read_predictions(runs / "arcface" / "fold0" / "oof.npz").logits).max() <= 16


def test_snapshots_are_members_of_equal_weight(runs, tiny):
    """The file holds the weights at the end of both cycles; its OOF is the log of their mean probability."""
    model = load_model(runs / "snapshots" / "fold0" / "model.safetensors")
    tensors = model.tensors
    assert model.saved.members == 2 and (epochs := len(pd.read_csv(runs / "snapshots/fold0/log.csv"))) == 5
    states = [without_prefix(f"members.{number}", tensors) for number in range(2)]
    assert all(not torch.equal(states[0][name], states[1][name]) for name in states[0] if "weight" in name)
    members = create_saved(model.saved).eval()
    members.load_state_dict(tensors)
    images = torch.randn(7, 1, 8, 8)
    with torch.no_grad():
        each = [member(images).numpy() for member in members.members]
        np.testing.assert_allclose(members(images).numpy(), log_mean_probability(each), atol=1e-5)
    assert epochs == 5 and np.abs(each[0] - each[1]).max() > 1e-3


def test_members_are_nets_of_their_own(runs, tiny, tmp_path):
    """Each has its epochs and the whole schedule; the first is the net of a run half as long, the second another."""
    log = pd.read_csv(runs / "members/fold0/log.csv")
    assert len(log) == EPOCHS and log["lr"][:2].tolist() == log["lr"][2:].tolist()
    half = ["--run", "half", "--fold", 0, "--epochs", 2, "--lr", "1e-3", "--ema-decay", 0.9, "--opt", "muon"]
    train(tiny, tmp_path, *half)
    alone = load_tensors(tmp_path / "half/fold0/model.safetensors")[0]
    model = load_model(runs / "members/fold0/model.safetensors")
    first, second = (without_prefix(f"members.{net}", model.tensors) for net in range(model.saved.members))
    assert first.keys() == alone.keys() and all(torch.equal(first[name], alone[name]) for name in alone)
    weights = [name for name in first if name.endswith("features.0.weight")]
    assert weights and not any(torch.equal(first[name], second[name]) for name in weights)


def test_a_fold_of_several_nets_says_what_each_makes(tiny, tmp_path, capsys):
    """The score is the mean's; beside it stand the nets' own, not the best epoch of any of them."""
    train(tiny, tmp_path, "--run", "two", "--fold", 0, "--epochs", 4, *KINDS["members"])
    log = pd.read_csv(tmp_path / "two/fold0/log.csv")
    assert f"; its nets alone {log['accuracy'][1]:.2%}, {log['accuracy'][3]:.2%}\n" in capsys.readouterr().out


def test_infer_takes_a_run_of_snapshots(tiny, tmp_path):
    """Three folds of two members each: a test prediction for every row, and a submission."""
    train_kind(tiny, tmp_path, "snapshots", "all")
    infer.main(
        [
            "--runs-dir",
            str(tmp_path),
            "--test",
            str(tiny / "test.csv"),
            "--data",
            str(tiny / "train.csv"),
            "--threads",
            "1",
        ]
    )
    assert len(read_predictions(tmp_path / "snapshots/test.npz").ids) == 24
    assert len(finished_folds(tmp_path / "snapshots")) == 3


def test_swa_is_the_plain_mean_of_the_last_epochs():
    """Weights averaged one by one equal the mean of all; BatchNorm's counter is a whole number."""
    states = [{"weight": torch.full((3,), float(n)), "batches": torch.tensor(n)} for n in (9, 1, 2, 6)]
    swa = StochasticAverage(4, [], last=3)
    for epoch, state in enumerate(states, start=1):
        swa.end_epoch(state, epoch, [])
    assert swa.kept[0]["weight"].tolist() == pytest.approx([3.0] * 3) and swa.kept[0]["batches"].item() == 6


def test_swa_measures_batchnorm_on_the_training_rows():
    """Its statistics are those of the un-augmented, normalised training images, whatever they were before."""
    images = torch.randint(0, 256, (50, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalise = Normalise((0.3,), (0.2,))
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.1), nn.Dropout(), nn.BatchNorm2d(1))
    model[0].running_mean.fill_(7.0)
    model[0].num_batches_tracked.fill_(100)  # what it has seen must not weigh
    model[2].weight.requires_grad_(False)  # frozen: what it learned elsewhere stays
    measure_batchnorm(model, Pixels(images), torch.arange(10, 50), normalise, batch_size=8, side=4)
    pixels = normalise(images[10:].float() / 255)
    assert model[0].running_mean.item() == pytest.approx(pixels.mean().item(), abs=1e-4)
    assert model[0].running_var.item() == pytest.approx(pixels.var().item(), rel=2e-2)  # a mean over batches
    assert model[2].running_mean.item() == 0 and model[2].num_batches_tracked == 0
    assert model[0].momentum == 0.1 and not any(module.training for module in model.modules())


def test_batchnorm_is_measured_across_a_sorted_table():
    """Rows that lie class by class give the variance of them all, as each training batch had it."""
    images = torch.cat([torch.full((200, 1, 4, 4), level, dtype=torch.uint8) for level in (0, 255)])
    model = nn.Sequential(nn.BatchNorm2d(1))
    measure_batchnorm(model, Pixels(images), torch.arange(400), Normalise((0.0,), (1.0,)), batch_size=20, side=4)
    assert model[0].running_var.item() == pytest.approx(0.25, rel=0.1)


def test_the_saved_swa_differs_from_its_last_epoch(runs, tiny, tmp_path):
    """Same seed, same schedule, only --select differs: other weights, and BatchNorm measured for them."""
    other = ["--run", "swa", "--fold", 0, "--epochs", EPOCHS, "--lr", "1e-3", "--schedule", "constant"]
    train(tiny, tmp_path, *other)
    swa, last = (load_tensors(path / "swa/fold0/model.safetensors")[0] for path in (runs, tmp_path))
    assert all(not torch.equal(swa[name], last[name]) for name in swa if name.endswith(("weight", "running_mean")))


def test_best_follows_the_metric_and_stops_when_patience_ends():
    """The first of equal epochs counts; patience counts the epochs since."""
    best, state = Best(10, [], patience=2), {"weight": torch.zeros(1)}
    scores = []
    for epoch, score in enumerate([0.1, 0.5, 0.4, 0.5], start=1):
        scores.append(score)
        best.end_epoch({"weight": torch.full((1,), float(epoch))}, epoch, scores)
        assert best.stops(scores) == (epoch == 4)
    assert best.kept[0]["weight"].item() == 2 and state["weight"].item() == 0
    assert not Best(10, []).stops([0.5, 0.1, 0.1, 0.1, 0.1])


def test_an_early_stop_says_what_it_does_to_comparisons(runs, tiny, tmp_path, capsys):
    """A rate of 0 learns nothing: two epochs, the first is kept, and the log says that the rows chose the length."""
    stop = ["--lr", 0, "--select", "best", "--select-args", "patience=1", "--epochs", 6]
    train(tiny, tmp_path, "--run", "a", "--fold", 0, *stop)
    metrics = json.loads((tmp_path / "a/fold0/metrics.json").read_text())
    assert (metrics["epochs"], metrics["best_epoch"], metrics["metric"]) == (2, 1, "accuracy")
    said = capsys.readouterr().out
    assert "fold 0 stopped after 2 of 6 epochs" in said and "its score is flattered" in said


@pytest.mark.parametrize(("metric", "pick"), [("nll", "idxmin"), ("errors", "idxmin"), ("accuracy", "idxmax")])
def test_best_is_the_best_of_the_chosen_metric(tiny, tmp_path, metric, pick):
    """metrics.json names the epoch with the lowest log loss, or the fewest errors, as --metric says."""
    train(tiny, tmp_path, "--run", "a", "--fold", 0, "--epochs", 5, "--select", "best", "--metric", metric)
    log = pd.read_csv(tmp_path / "a/fold0/log.csv")
    metrics = json.loads((tmp_path / "a/fold0/metrics.json").read_text())
    assert metrics["best_epoch"] == getattr(log[metric], pick)() + 1
    assert metrics["best"] == pytest.approx(log[metric][metrics["best_epoch"] - 1])
    assert metrics[metric] == pytest.approx(metrics["best"], abs=1e-6)  # the kept weights scored again
    halves = [log[f"even_{metric}"], log[f"odd_{metric}"]]  # each scores the epoch that the other chooses
    whole = sum(halves) if metric == "errors" else sum(halves) / 2
    assert whole.to_numpy() == pytest.approx(log[metric].to_numpy())


def test_members_average_probabilities():
    """Not logits: a member that is sure of itself does not silence another."""
    torch.manual_seed(0)
    members = Members(nn.Linear(3, 4), 2)
    for member in members.members:
        nn.init.normal_(member.weight, std=3)
    features = torch.randn(5, 3)
    expected = (members.members[0](features).softmax(1) + members.members[1](features).softmax(1)) / 2
    torch.testing.assert_close(members(features).exp(), expected)


def test_snapshots_keep_the_last_cycles():
    """Two of three; 0 keeps all."""
    for last, kept in ((2, [4.0, 6.0]), (0, [2.0, 4.0, 6.0])):
        snapshots = Snapshots(6, [2, 4, 6], last=last)
        for epoch in range(1, 7):
            snapshots.end_epoch({"weight": torch.tensor([float(epoch)])}, epoch, [])
        assert [state["weight"].item() for state in snapshots.kept] == kept


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--select", "beste"], "--select: there is no select beste; did you mean best"),
        (["--select", "last", "--select-args", "patience=3"], "--select-args: patience is unknown to Last"),
        (["--select", "swa", "--select-args", "last=9"], "two or more of the 3 epochs; use 2 to 3"),
        (["--select", "swa", "--select-args", "last=2", "--ema-decay", "0.9"], "use only one of them"),
        (["--select", "members", "--select-args", "count=1.5"], "count=1.5 is not a valid value; use whole numbers"),
        (["--select", "members", "--epochs", 4], "--select-args: 4 epochs cannot be divided evenly among count=3 nets"),
        (
            ["--select", "members", "--warmup-epochs", 1.5],
            "--warmup-epochs: 1.5 exceeds the 1 epochs that each of the 3 nets trains; use 0 to 1",
        ),
        (["--select", "snapshots"], "needs at least two learning rate cycles; use --schedule restarts"),
        (["--select", "best", "--fold", "full"], "--select best: needs validation rows"),
        (["--schedule", "plateau", "--fold", "full"], "--schedule plateau: needs validation rows"),
        (["--sampling", "balanced", "--loss-args", "class_weights=balanced"], "both correct for class imbalance"),
        (["--metric", "top5"], "top5 is always 1 with 3 classes"),
    ],
)
def test_what_does_not_fit_together_is_refused(tiny, tmp_path, flags, message):
    """One line before a run's folder is made."""
    with pytest.raises(UserError, match=message):
        train(tiny, tmp_path, "--run", "a", "--fold", 0, *flags)
    assert not list(tmp_path.iterdir()) and set(SELECTIONS) == {"last", "best", "swa", "snapshots", "members"}
