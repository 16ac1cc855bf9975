"""The average of finished runs is a run: the mean of their weights, with BatchNorm and OOF of its own."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import train

import average
import infer
from common.base.errors import UserError
from common.base.result import Result
from common.data.folds import match_folds, read_folds
from common.data.reading import read_train_table
from common.data.views import TTA
from common.runs.layout import finished_folds
from common.runs.predictions import read_predictions
from common.runs.tensors import load_tensors
from common.train.fold_models import FoldModels, read_models


@pytest.fixture
def runs(chain, tiny, tmp_path):
    """A runs folder with copies of two finished runs, and the arguments that name the tiny data."""
    for run in ("one", "two"):
        shutil.copytree(chain / run, tmp_path / run)
    return tmp_path


def make(runs, tiny, *names: str) -> Result:
    places = {"runs_dir": str(runs), "data": str(tiny / "train.csv"), "folds": str(tiny / "folds.csv")}
    return average.run(average.Options(runs=names, run="soup", threads=1, **places))


def test_an_average_is_a_run_like_any_other(runs, tiny):
    """Each fold's weights are the mean, its OOF is what infer.py predicts from its file, and infer.py submits it."""
    result = make(runs, tiny, "one", "two", "one")
    assert result.folder == runs / "soup" and result.score["n"] == 60
    table = read_train_table(str(tiny / "train.csv"))
    folds = match_folds(read_folds(tiny / "folds.csv"), table)
    rows = [np.flatnonzero(folds.fold == fold) for fold in range(3)]
    models = read_models(finished_folds(runs / "soup"))
    predict = FoldModels(models, table, TTA["none"])
    for fold in range(3):
        one, two = (load_tensors(runs / run / f"fold{fold}/model.safetensors")[0] for run in ("one", "two"))
        for name in one:
            if name.endswith((".weight", ".bias")):
                torch.testing.assert_close(models[fold].tensors[name], (2 * one[name] + two[name]) / 3)
            if name.endswith("running_mean"):
                assert not torch.allclose(models[fold].tensors[name], (2 * one[name] + two[name]) / 3)
        oof = read_predictions(runs / "soup" / f"fold{fold}/oof.npz")
        np.testing.assert_allclose(predict.of_fold(fold, rows[fold])[0], oof.logits, atol=1e-5)
        assert json.loads((runs / "soup" / f"fold{fold}/metrics.json").read_text())["averaged"] == ["one", "two", "one"]
    infer.main(["--runs-dir", str(runs), "--runs", "soup", "--test", str(tiny / "test.csv"), "--threads", "1"])
    assert (runs / "soup" / "submission.csv").exists()


def test_what_was_frozen_stays_as_it_was(runs, tiny):
    """A soup of runs whose backbone never trained has the backbone's BatchNorm statistics, not measured ones."""
    start = str(runs / "one" / "{fold}" / "model.safetensors")
    for seed in range(2):
        heads_only = ["--weights", start, "--epochs", 1, "--freeze", "backbone=1", "--seed", seed]
        train(tiny, runs, "--run", f"head{seed}", "--fold", "all", *heads_only)
    make(runs, tiny, "head0", "head1")
    one, soup = (load_tensors(runs / run / "fold0/model.safetensors")[0] for run in ("head0", "soup"))
    statistics = [name for name in one if "running_" in name]
    assert statistics and all(torch.equal(one[name], soup[name]) for name in statistics)


def test_what_does_not_belong_together_is_not_averaged(runs, tiny):
    """One run alone, another model, an existing name: a line that names it, and nothing is written."""
    with pytest.raises(UserError, match="--runs: an average needs at least two runs, got 1"):
        make(runs, tiny, "one")
    train(tiny, runs, "--run", "wide", "--fold", "all", "--epochs", 1, "--model-args", "widths=(8,8,8)")
    with pytest.raises(UserError, match="wide/fold0: differs from .*one/fold0 in model_args"):
        make(runs, tiny, "one", "wide")
    assert not (runs / "soup").exists()
    (runs / "soup").mkdir()
    with pytest.raises(UserError, match="soup: exists already"):
        make(runs, tiny, "one", "two")
