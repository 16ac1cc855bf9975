"""From a csv to a submission on 60 tiny images: what the files hold, and that they belong together."""

import json
import os
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from conftest import SMALL, train
from scores import log_mean_probability

import ensemble
import infer
import train_fold
from common.base.errors import UserError
from common.data.folds import match_folds, read_folds, split_rows
from common.data.reading import read_test_table, read_train_table
from common.data.views import TTA
from common.runs.layout import finished_folds, finished_runs
from common.runs.oof import join_oof
from common.runs.predictions import read_predictions
from common.runs.tensors import load_tensors
from common.score.logits import Outputs
from common.score.task import MULTICLASS, targets_of
from common.train.fold_models import FoldModels, read_models

FOLD_FILES = {".lock", "config.json", "log.csv", "metrics.json", "model.safetensors", "oof.npz"}


def files_of(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "oof.npz")}


def test_a_finished_fold_holds_its_files_and_no_checkpoint(chain):
    """What ARCHITECTURE's table of files promises is there, and nothing else is left behind."""
    for run in ("one", "two"):
        for fold in range(3):
            assert {path.name for path in (chain / run / f"fold{fold}").iterdir()} == FOLD_FILES


def test_oof_holds_every_row_once_with_its_label(chain, tiny):
    """The joined OOF predictions are the training table: same ids, same labels, one row each."""
    oof = join_oof(chain / "one", read_folds(tiny / "folds.csv"))
    table = read_train_table(str(tiny / "train.csv"))
    assert dict(zip(oof.ids, oof.labels, strict=True)) == dict(zip(table.ids, table.labels, strict=True))


def test_metrics_are_those_of_the_saved_oof(chain):
    """metrics.json can be recomputed from oof.npz, and says which epoch was last and which best."""
    for run in ("one", "two"):
        folder = chain / run / "fold1"
        metrics = json.loads((folder / "metrics.json").read_text())
        oof = read_predictions(folder / "oof.npz")
        recomputed = MULTICLASS.score(Outputs(oof.logits), targets_of(oof.labels, oof.output_names), oof.output_names)
        assert {name: metrics[name] for name in recomputed} == pytest.approx(recomputed)
        log = pd.read_csv(folder / "log.csv")
        assert metrics["last"] == pytest.approx(log.accuracy.iloc[-1])
        assert metrics["best"] == pytest.approx(log.accuracy.max())
        assert log.accuracy[metrics["best_epoch"] - 1] == pytest.approx(log.accuracy.max())
        assert metrics["accuracy"] == pytest.approx(metrics["last" if run == "one" else "best"])
        assert {"processes", "threads", "seconds", "images_per_second", "steps"} <= metrics.keys()


@pytest.mark.parametrize("run", ["one", "two"])
def test_the_saved_model_says_what_the_oof_says(chain, tiny, run):
    """Predicting a fold's rows again from model.safetensors alone gives its oof.npz."""
    table = read_train_table(str(tiny / "train.csv"))
    folds = match_folds(read_folds(tiny / "folds.csv"), table)
    predict = FoldModels(read_models(finished_folds(chain / run)), table, TTA["none"])
    for fold in range(3):
        oof = read_predictions(chain / run / f"fold{fold}" / "oof.npz")
        [logits] = predict.of_fold(fold, np.flatnonzero(folds.fold == fold))
        np.testing.assert_allclose(logits, oof.logits, atol=1e-5)


def test_the_test_predictions_average_models_and_views(chain, tiny):
    """test.npz is the log of the weighted mean probability of every model and view, by the test's ids."""
    table = read_test_table(str(tiny / "test.csv"), str(tiny / "train.csv"))
    predict = FoldModels(read_models(finished_folds(chain / "one")), table, TTA["digits"])
    outputs = [predict.of_fold(fold, np.arange(24)) for fold in range(3)]
    weights = [view.weight for view in TTA["digits"]] * 3
    test = read_predictions(chain / "one" / "test.npz")
    assert test.ids.tolist() == [str(number) for number in range(1, 25)]
    np.testing.assert_allclose(test.logits, log_mean_probability(np.concatenate(outputs), weights), atol=1e-5)


def test_the_submission_follows_the_sample(chain, tiny):
    """Columns, ids and order are the sample's, and every label is the most probable class."""
    for run in ("one", "two", "ensemble"):
        submission = pd.read_csv(chain / run / "submission.csv", dtype=str)
        sample = pd.read_csv(tiny / "sample.csv", dtype=str)
        assert submission.columns.tolist() == sample.columns.tolist()
        assert submission.ImageId.tolist() == sample.ImageId.tolist()
        assert submission.Label.tolist() == read_predictions(chain / run / "test.npz").predicted.tolist()


def test_a_fold_alone_equals_the_same_fold_among_all(chain, tiny, tmp_path):
    """--fold 2 gives the bytes that --fold all gives: no fold leaves anything behind for the next."""
    train(tiny, tmp_path, "--run", "one", "--fold", 2)
    assert files_of(tmp_path / "one" / "fold2") == files_of(chain / "one" / "fold2")


def test_the_same_command_again_changes_nothing(chain, tiny, capsys):
    """A finished fold says so; no byte of its files is touched."""
    before = {path: path.stat().st_mtime_ns for path in (chain / "one" / "fold0").iterdir() if path.name != ".lock"}
    train(tiny, chain, "--run", "one", "--fold", 0)
    assert "finished" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in (chain / "one" / "fold0").iterdir() if path.name != ".lock"}
    assert before == after


def test_a_finished_run_answers_without_torch(chain, tiny, forks, tmp_path):
    """Every fold's score and the local CV come in the time that reading them takes."""
    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", chain, *SMALL, "--jobs", 1]
    done = forks.run(["train_fold.py", *map(str, places), "--run", "one"], tmp_path)
    assert not done.torch and done.out.count("is finished") == 3, done.err
    assert "local CV of one" in done.out


def test_run_returns_the_score_and_the_folder(chain, tiny):
    """What a notebook gets is what metrics.json says of a fold, and the joined score of all of them."""
    options = {"data": str(tiny / "train.csv"), "folds": str(tiny / "folds.csv"), "runs_dir": str(chain), "run": "one"}
    options |= {"epochs": 3, "batch_size": 8, "channels_last": "no", "warmup_epochs": 0.5, "jobs": 1}
    alone = train_fold.run(train_fold.Train(**options, fold="1"))
    metrics = json.loads((chain / "one/fold1/metrics.json").read_text())
    assert alone.score["accuracy"] == metrics["accuracy"] and alone.score["nll"] == metrics["nll"]
    together = train_fold.run(train_fold.Train(**options))
    assert together.folder == chain / "one" and together.score["n"] == 60


def test_other_settings_are_refused_by_name(chain, tiny):
    """A run folder made with other settings names each that differs, finished or not."""
    with pytest.raises(UserError, match=r"lr: 0\.003 -> 0\.001.*weight_decay: 0\.05 -> 0\.1"):
        train(tiny, chain, "--run", "one", "--fold", 0, "--lr", 1e-3, "--weight-decay", 0.1)


@pytest.mark.parametrize(
    "mistake", [["--augment", "bogus"], ["--opt", "adamwow"], ["--model", "convnext_atto"], ["--batch-size", "61"]]
)
def test_a_mistake_leaves_no_trace_and_costs_no_run(tiny, tmp_path, mistake):
    """A wrong choice is refused before a run's folder is made, and before --restart throws one away."""
    with pytest.raises(UserError):
        train(tiny, tmp_path / "new", "--run", "a", "--fold", 0, *mistake)
    assert not list(tmp_path.glob("new/a/*/*"))
    train(tiny, tmp_path / "old", "--run", "a", "--fold", 0, "--epochs", 1)
    before = files_of(tmp_path / "old/a/fold0")
    with pytest.raises(UserError):
        train(tiny, tmp_path / "old", "--run", "a", "--fold", 0, "--restart", *mistake)
    assert files_of(tmp_path / "old/a/fold0") == before


def test_restart_throws_away_nothing_but_a_run(tiny, tmp_path):
    """A folder that no training made is refused, and so is a run's name that leads out of the runs folder."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").touch()
    with pytest.raises(UserError, match="is not a run that --restart may delete"):
        train(tiny, tmp_path, "--run", "precious", "--fold", 0, "--restart")
    with pytest.raises(UserError, match="is not a valid folder name"):
        train(tiny, tmp_path / "runs", "--run", "../precious", "--fold", 0, "--restart")
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_a_smoke_run_is_neither_averaged_nor_blended(tiny, tmp_path, capsys):
    """A --limit run trains to its end, and is left out with a warning by whoever takes every finished run."""
    train(tiny, tmp_path, "--run", "smoke", "--fold", "all", "--epochs", 1, "--limit", 16)
    with pytest.raises(UserError, match="holds no finished run"):
        finished_runs(tmp_path)
    assert "smoke run" in capsys.readouterr().err


def test_restart_says_what_it_throws_away(tiny, tmp_path, capsys):
    """--restart names the folder and its files, and then other settings are welcome."""
    train(tiny, tmp_path, "--fold", 0, "--epochs", 1)
    train(tiny, tmp_path, "--fold", 0, "--epochs", 1, "--lr", 1e-3, "--restart")
    assert "deletes" in (said := capsys.readouterr().out) and "oof.npz" in said
    assert load_tensors(tmp_path / "digit_cnn" / "fold0" / "model.safetensors")[1]["settings"]["lr"] == 1e-3


def test_infer_refuses_a_missing_and_a_foreign_fold(chain, tmp_path):
    """Two of three folds are not averaged, nor is a model in another fold's folder."""
    shutil.copytree(chain / "one", tmp_path / "one")
    shutil.copy(tmp_path / "one/fold1/model.safetensors", tmp_path / "one/fold0/model.safetensors")
    with pytest.raises(UserError, match=r"fold0/model.safetensors: is not the file that metrics\.json"):
        read_models(finished_folds(tmp_path / "one"))
    shutil.copytree(tmp_path / "one/fold1", tmp_path / "one/fold0", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"fold0/model.safetensors: is the model of fold 1"):
        read_models(finished_folds(tmp_path / "one"))
    (tmp_path / "one/fold2/metrics.json").unlink()
    with pytest.raises(UserError, match="has not finished fold2"):
        finished_folds(tmp_path / "one")


def test_infer_refuses_folds_that_were_trained_differently(chain, tmp_path):
    """A fold of another run in this run's folder is named with the settings that differ."""
    shutil.copytree(chain / "one", tmp_path / "one")
    shutil.copytree(chain / "two/fold1", tmp_path / "one/fold1", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"fold1.*trained with different settings.*ema_decay: 0\.0 -> 0\.9"):
        read_models(finished_folds(tmp_path / "one"))


def test_full_trains_on_every_row_and_predicts_the_test(tiny, tmp_path, capsys):
    """--fold full has no validation; infer.py --fold full uses its one model; its folds are what comes next.

    Without the flag infer.py says which flag it is.
    """
    train(tiny, tmp_path, "--fold", "full", "--epochs", 1)
    with pytest.raises(UserError, match=r"no finished run.*infer\.py --fold full"):
        infer.main(["--runs-dir", str(tmp_path), "--test", str(tiny / "test.csv")])
    folder = tmp_path / "digit_cnn" / "full"
    assert not (folder / "oof.npz").exists()
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 60 // 8
    infer.main(["--runs-dir", str(tmp_path), "--fold", "full", "--test", str(tiny / "test.csv")])
    assert len(read_predictions(tmp_path / "digit_cnn" / "test.npz").ids) == 24
    following = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: python "))
    assert following[0] == "train_fold.py" and {"--run", "digit_cnn", "--epochs", "--batch-size"} <= {*following}
    assert not {"--fold", "--config"} & {*following}


def test_a_run_in_use_is_refused_at_once(tiny, tmp_path, forks):
    """A second process in the same fold's folder stops with exit 3 and names the first, before torch is loaded."""
    from common.base.locks import locked

    with locked(tmp_path / "digit_cnn" / "fold0"):
        arguments = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path, *SMALL]
        second = forks.run(["train_fold.py", *map(str, arguments), "--fold", "0"], tmp_path)
    assert second.code == 3 and not second.torch
    assert f"is in use by pid {os.getpid()} on " in second.err and second.err.count("\n") == 1


def test_numbers_that_break_down_end_with_exit_4(tiny, tmp_path, torch_forks):
    """A diverged run names epoch, step and remedy in one line; no NaN is written."""
    arguments = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path, *SMALL]
    diverged = torch_forks.run(["train_fold.py", *map(str, arguments), "--fold", "0", "--lr", "1e30"], tmp_path)
    assert diverged.code == 4
    assert diverged.err.count("\n") == 1 and diverged.err.startswith("error: epoch 1, step")
    assert not (tmp_path / "digit_cnn" / "fold0" / "model.safetensors").exists()


def test_a_damaged_model_is_refused(chain, tmp_path):
    """One flipped byte among the weights is found before anything is predicted."""
    path = tmp_path / "model.safetensors"
    content = bytearray((chain / "one/fold0/model.safetensors").read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="do not match their sha256"):
        load_tensors(path)


def test_the_chain_stays_in_one_process(chain):
    """The session's runs were made by one process, as their files say."""
    assert Accelerator(cpu=not torch.accelerator.is_available()).num_processes == 1
    assert json.loads((chain / "one/fold0/metrics.json").read_text())["processes"] == 1


@pytest.mark.parametrize(("train_fraction", "limit", "expected"), [(0.5, 0, 20), (1.0, 16, 16)])
def test_fewer_rows_are_the_same_rows_each_time(tiny, train_fraction, limit, expected):
    """--train-fraction keeps every class and the whole validation part; --limit cuts both; chance changes neither."""
    folds = read_folds(tiny / "folds.csv")
    first, second = (split_rows(folds, "0", train_fraction, limit) for _ in range(2))
    assert abs(len(first[0]) - expected) <= 2 and not set(first[0]) & set(first[1])
    assert all((one == two).all() for one, two in zip(first, second, strict=True))
    if not limit:
        assert set(folds.labels[first[0]]) == set(folds.output_names) and len(first[1]) == (folds.fold == 0).sum()


def test_read_only_runs_are_blended_elsewhere(chain, tiny, tmp_path):
    """infer.py --out-dir, then ensemble.py --out-dir: the submission is that of runs that can be written to."""
    runs, out = tmp_path / "input", tmp_path / "working"
    shutil.copytree(chain, runs, ignore=shutil.ignore_patterns("ensemble"))
    for run in ("one", "two"):
        (out / run).mkdir(parents=True)
        for name in ("test.npz", "oof_tta.npz", "inference.json"):
            shutil.move(runs / run / name, out / run / name)
    places = ["--runs-dir", runs, "--out-dir", out, "--folds", tiny / "folds.csv", "--sample", tiny / "sample.csv"]
    ensemble.main([str(place) for place in places])
    assert (out / "ensemble" / "submission.csv").read_bytes() == (chain / "ensemble" / "submission.csv").read_bytes()
    assert not (runs / "ensemble").exists()
