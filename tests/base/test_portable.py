"""The chain where a system is neither Linux nor macOS: every portable fallback is forced, and the bytes stay the same.

Our modules see another system through stand-ins for os and sys; torch and Python themselves see the real one.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, train

import ensemble
import folds
import infer
import report
from common.base import files, locks, system
from common.runs import folder as folder_module
from common.train import hardware


class Windows:
    """A module as Windows has it: some names are others, some are missing."""

    def __init__(self, module, missing=(), **others):
        self.module, self.missing, self.others = module, missing, others

    def __getattr__(self, name):
        if name in self.missing:
            raise AttributeError(name)
        return self.others[name] if name in self.others else getattr(self.module, name)


@pytest.fixture
def windows(monkeypatch):
    """No affinity, no folders to sync, locks of bytes, no file removed while it is open, no prctl, no mallopt."""
    bytes_locked = []

    def lock_bytes(descriptor, mode, count):
        bytes_locked.append(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    there = Windows(os, missing=("sched_getaffinity", "uname"), name="nt")
    for module in (system, locks, folder_module):
        monkeypatch.setattr(module, "os", there)
    monkeypatch.setattr(system, "sys", Windows(sys, platform="win32"))
    monkeypatch.setattr(system, "ctypes", None)
    monkeypatch.setattr(files, "MOVES_OPEN_FILES", False)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=0, locking=lock_bytes))
    return bytes_locked


def test_the_chain_gives_the_same_bytes(windows, chain, tiny, tmp_path):
    """Folds, a run, started over as well, its test predictions, a blend and a report."""
    made = tmp_path / "folds.csv"
    folds.main(["--data", str(tiny / "train.csv"), "--folds", str(made), "--k", "3"])
    assert made.read_bytes() == (tiny / "folds.csv").read_bytes()

    runs = tmp_path / "runs"
    train(tiny, runs, "--run", "one", "--fold", "0")
    train(tiny, runs, "--run", "one", "--fold", "all", "--restart")
    shutil.copytree(chain / "two", runs / "two")
    places = ["--runs-dir", str(runs), "--sample", str(tiny / "sample.csv"), "--folds", str(tiny / "folds.csv")]
    infer.main(["--test", str(tiny / "test.csv"), "--data", str(tiny / "train.csv"), "--tta", "digits", *places])
    ensemble.main(places)
    names = [f"one/fold{fold}/{name}" for fold in range(3) for name in ("model.safetensors", "oof.npz")]
    for name in [*names, "one/submission.csv", "ensemble/submission.csv"]:
        assert (runs / name).read_bytes() == (chain / name).read_bytes(), name
    page = tmp_path / "report.html"
    report.main(["--data", str(tiny / "train.csv"), "--runs-dir", str(runs), *places[-2:], "--out", str(page)])
    assert page.exists() and windows


def test_an_operation_that_apples_gpus_lack_runs_on_the_cpu():
    """torch reads the switch when it is loaded: it is set before, for scripts and for run(...) in a notebook."""
    code = "import sys; sys.platform = 'darwin'; import common, os; print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


def test_a_precision_that_apples_gpus_lack_is_float32(monkeypatch, capsys):
    """It is tried on the device, and what happens instead is said; fp16 wants a loss scaler, which CUDA alone has."""

    def convolve(precision, device):
        if precision == "bf16":
            raise RuntimeError("MPS does not support bfloat16 here")
        return True

    monkeypatch.setattr(hardware, "own_device", lambda: torch.device("mps"))
    monkeypatch.setattr(hardware, "_convolve", convolve)
    for asked in ("bf16", "fp16"):
        assert hardware.usable_precision(asked) == "no"
        said = f"{asked} does not work on this device (mps): continuing with mixed precision no"
        assert said in capsys.readouterr().err
