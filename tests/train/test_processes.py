"""One, two and three processes: every row predicted once, the same steps, the same weights."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SMALL, WITHOUT_BATCHNORM, train
from disturbed import Server, start_together

from common.base.errors import UserError
from common.data.views import TTA
from common.runs.folder import check_shared
from common.runs.predictions import read_predictions
from common.runs.tensors import load_tensors

# Adam would blow rounding up: it divides a gradient by its own size, and some of a ViT's are zero but for rounding.

# Rate, length and kept weights then hang on the scores, on which all processes must agree.
FOLLOWS_SCORES = ["--epochs", "6", "--select", "best", "--select-args", "patience=2"]
FOLLOWS_SCORES += ["--schedule", "plateau", "--schedule-args", "patience=0", "factor=0.5"]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_row_is_predicted_exactly_once(processes, server, tmp_path, figures):
    """165 combinations of set size and batch size, most of which do not divide, at each process count.

    One process with a loss scaler and one without would average scaled with plain gradients: the weakest decides.
    """
    figures("oof", total=165)
    run_together(server, processes, "launched", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["processes"] == processes
    assert len(report["results"]) == 165 and all(result["right"] for result in report["results"])
    figures("oof", done=165)
    assert set(report["buffers"]) == {0.0}, "the buffers that score must be the main process's"
    assert report["precisions"] == (["bf16"] if processes == 1 else ["no"] * processes)


def run_together(server: Server, processes: int, *do: object) -> str:
    """Processes as a launcher would start them, which all exit 0; what the first has said."""
    children = start_together(server, processes, *do)
    assert [child.wait() for child in children] == [0] * processes, children[0].said()
    return children[0].said()


@pytest.fixture(scope="module")
def trained(tiny, server, tmp_path_factory) -> dict[str, dict]:
    """The same global batch of 12 as 1 x 12, 2 x 6, 3 x 4 and 1 x 6 x 2 accumulated; one run with BatchNorm."""
    runs_dir = tmp_path_factory.mktemp("processes")
    results = {}
    for name, processes, arguments in (
        ("one", 1, [*WITHOUT_BATCHNORM, "--fold", "0"]),
        ("two", 2, [*WITHOUT_BATCHNORM, "--fold", "0"]),
        ("three", 3, [*WITHOUT_BATCHNORM, "--fold", "0"]),
        ("accumulated", 1, [*WITHOUT_BATCHNORM, "--fold", "0", "--accumulate", "2"]),
        ("batchnorm", 2, ["--fold", "all", "--ema-decay", "0.9", *FOLLOWS_SCORES]),
    ):
        said, options = "", ["--run", name, "--epochs", "2", *arguments]
        if processes == 1:
            train(tiny, runs_dir, *options)
        else:
            places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", runs_dir]
            said = run_together(server, processes, "train_fold", *places, *SMALL, *options)
        folder = runs_dir / name / "fold0"
        results[name] = {
            "metrics": json.loads((folder / "metrics.json").read_text()),
            "log": pd.read_csv(folder / "log.csv"),
            "weights": load_tensors(folder / "model.safetensors")[0],
            "oof": read_predictions(folder / "oof.npz"),
            "said": said,
            "folder": folder,
        }
    return results


def test_a_run_says_its_process_count(trained):
    """metrics.json and the first line say how many processes there were, and their share of the batch."""
    counts = {name: trained[name]["metrics"]["processes"] for name in trained}
    assert counts == {"one": 1, "two": 2, "three": 3, "accumulated": 1, "batchnorm": 2}
    assert "batch size 12 = 2 processes x 1 accumulation step x 6 images" in trained["two"]["said"]


def test_learning_rate_and_steps_do_not_depend_on_processes(trained):
    """The schedule counts optimiser steps: its log is the same however the batch is shared."""
    for name in ("two", "three", "accumulated"):
        assert trained[name]["log"].lr.tolist() == trained["one"]["log"].lr.tolist()
        assert trained[name]["metrics"]["steps"] == trained["one"]["metrics"]["steps"]


def test_weights_do_not_depend_on_processes(trained):
    """Without BatchNorm, several processes or accumulated halves train the weights of one process."""
    for name in ("two", "three", "accumulated"):
        for tensor, value in trained["one"]["weights"].items():
            torch.testing.assert_close(trained[name]["weights"][tensor], value, atol=1e-5, rtol=0)
        np.testing.assert_allclose(trained[name]["oof"].logits, trained["one"]["oof"].logits, atol=1e-4)


def test_two_machines_train_the_bits_of_one_with_two_processes(trained, tiny, tmp_path):
    """Two launchers, each with one process, as on two machines: model and OOF are those of two on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = ["--multi_gpu", "--num_machines=2", "--num_processes=2", "--main_process_ip=127.0.0.1"]
    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path, "--run", "two"]
    training = ["train_fold.py", *places, *SMALL, "--epochs", "2", *WITHOUT_BATCHNORM, "--fold", "0"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *machines, f"--main_process_port={port}"]
    launchers = [
        subprocess.Popen(
            [*launcher, f"--machine_rank={rank}", *map(str, training)],
            cwd=ROOT,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300) for process in launchers]
    assert [process.returncode for process in launchers] == [0, 0], said
    assert "epoch   2/2" in said[0][0] and "epoch   2/2" not in said[1][0]
    for name in ("model.safetensors", "oof.npz"):
        assert (tmp_path / "two" / "fold0" / name).read_bytes() == (trained["two"]["folder"] / name).read_bytes()


def test_each_machine_names_what_it_lacks(server, tmp_path):
    """A file that only the second machine lacks is named there, and a runs folder that is not shared is refused."""
    second = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    child = server.start("train_fold", "--data", tmp_path / "absent.csv", environment=second)
    assert child.wait() == 2 and child.said().startswith(f"error: {tmp_path / 'absent.csv'}: cannot be read")
    with pytest.raises(UserError, match="a disk that all machines share"):
        check_shared(tmp_path / "it" / "fold0", patience=0)


def test_with_batchnorm_the_saved_buffers_are_those_that_scored(trained, tiny):
    """The OOF of two processes can be predicted again by one process from the saved file."""
    from common.data.folds import match_folds, read_folds
    from common.data.reading import read_train_table
    from common.train.fold_models import FoldModels, read_models

    table = read_train_table(str(tiny / "train.csv"))
    folds = match_folds(read_folds(tiny / "folds.csv"), table)
    models = read_models([trained["batchnorm"]["folder"]])
    outputs = FoldModels(models, table, TTA["none"]).of_fold(0, np.flatnonzero(folds.fold == 0))
    np.testing.assert_allclose(outputs[0], trained["batchnorm"]["oof"].logits, atol=1e-5)


def test_two_processes_stop_early_together(trained):
    """Plateau and early stop end every fold at the epoch that its log asks for, at the rate that it asks for."""
    from common.model.schedules import Length, plateau
    from common.score.metrics import best_epoch

    run_folder = trained["batchnorm"]["folder"].parent
    for fold in range(3):
        log = pd.read_csv(run_folder / f"fold{fold}/log.csv")
        scores = log.accuracy.tolist()
        epochs = next((n for n in range(1, 6) if n - best_epoch(scores[:n]) > 2), 6)
        assert len(log) == epochs
        shares = [plateau(99, Length(99, 0, 1), scores[:epoch], 0.5, 0) for epoch in range(1, epochs)]
        assert log.lr[1:].tolist() == pytest.approx([3e-3 * share for share in shares])


def test_a_launcher_with_several_processes_trains_fold_after_fold(trained):
    """--fold all under two processes: each fold over both of them, then the local CV, said once."""
    run_folder = trained["batchnorm"]["folder"].parent
    assert [json.loads((run_folder / f"fold{k}/metrics.json").read_text())["processes"] for k in range(3)] == [2] * 3
    assert trained["batchnorm"]["said"].count("local CV of batchnorm") == 1


def test_the_cards_command_uses_all_cores(tiny, tmp_path):
    """accelerate launch sets OMP_NUM_THREADS=1 on a CPU; training takes every core all the same, and says so."""
    from common.base.system import cpu_count

    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path]
    small = ["--epochs", "1", "--batch-size", "8", "--fold", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", ROOT / "train_fold.py", *places, *small]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "digit_cnn" / "fold0" / "metrics.json").read_text())
    assert metrics["threads"] == cpu_count() and f"{cpu_count()} threads" in done.stdout


@pytest.mark.parametrize("gpus", [0, 1, 4])
@pytest.mark.parametrize("config", ["none", "ours", "ours with --num_processes"])
def test_what_accelerate_launch_decides(gpus, config, monkeypatch, caplog):
    """Plain launch takes every GPU (0: one process); our yaml takes one, or as many as --num_processes says, and is
    silent about the rest."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    # The only stand-in in this suite: no machine at hand has 0, 1 and 4 GPUs at once.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    arguments = {
        "none": [],
        "ours": ["--config_file", str(ROOT / "accelerate_config.yaml")],
        "ours with --num_processes": ["--config_file", str(ROOT / "accelerate_config.yaml"), "--num_processes", "4"],
    }[config]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args([*arguments, "train_fold.py"]))
    expected = {"none": gpus, "ours": 1, "ours with --num_processes": 4}[config]
    assert arguments.num_processes == expected
    assert ("not passed to `accelerate launch`" in caplog.text) == (config == "none")


def test_a_photo_that_one_process_alone_meets_is_said(undisturbed, server, tmp_path):
    """The second of two processes decodes a photo that was replaced: its line is printed, though not the first's."""
    folder = tmp_path / "photos"
    shutil.copytree(undisturbed / "photos", folder, ignore=shutil.ignore_patterns("runs"))
    folds = pd.read_csv(folder / "folds.csv")
    row = np.flatnonzero(folds.fold != 0)[1]  # the first of the second process's share, when the mean is taken
    shutil.copy(folder / "images" / "test00.png", folder / "images" / f"train{row:02}.png")
    places = ["--data", folder / "train.csv", "--folds", folder / "folds.csv", "--runs-dir", tmp_path / "runs"]
    model = ["--model", "test_efficientnet", "--img-size", "32", "--cache-gb", "0", *SMALL, "--epochs", "1"]
    first, second = start_together(server, 2, "train_fold", *places, *model, "--fold", "0")
    assert second.wait() == 2
    assert f"train{row:02}.png is not the image that the folds were made from" in second.said()
    first.signal(signal.SIGKILL)  # as its launcher would
    first.wait()
