"""The notebooks of `make kaggle` run as Kaggle runs them: on read-only input, the last without network.

FIVEFOLD_PACKED=dist/kaggle/fivefold tries the folder that was made to be uploaded, with its wheels.
"""

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

import infer
import train_fold
from notebooks.cells import NOTEBOOKS, notebook
from notebooks.pack import bare, copy_scripts, lacking

# Python runs a file of this name first: nothing leaves the machine, and what is named cannot be imported.
SITE = """
import sys
def watch(event, args):
    where = {"socket.connect": lambda: args[1], "socket.getaddrinfo": lambda: args}.get(event, tuple)()
    if isinstance(where, tuple) and where and where[0] not in ("127.0.0.1", "localhost", None):
        raise OSError(f"no network: {where}")
sys.addaudithook(watch)
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """The folder that is uploaded."""
    if made := os.environ.get("FIVEFOLD_PACKED"):
        return Path(made).resolve()
    copy_scripts(folder := tmp_path_factory.mktemp("input") / "fivefold")
    return folder


def environment(folder: Path, site: str = "") -> dict[str, str]:
    """As in a fresh container: an empty home, one thread; ``site`` is run when a Python starts."""
    (folder / "home").mkdir()
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(site)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"HOME": str(folder / "home"), "PYTHONPATH": str(folder / "site"), "PATH": path, "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, "PYTHONDONTWRITEBYTECODE": "1"}


def executed(name: str, settings: str, folder: Path, site: str = "") -> list[str]:
    """What the code cells of a notebook show, its settings changed; raises CellExecutionError where one fails."""
    book = nbformat.from_dict(notebook(name, settings))
    client = NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment(folder, site))
    shown = [said_by(cell.outputs) for cell in book.cells if cell.cell_type == "code"]
    assert not any("error:" in text or "Traceback" in text for text in shown), "\n".join(shown)
    return shown


def said_by(outputs: list) -> str:
    return "".join(each.get("text", "") or each.get("data", {}).get("text/html", "") for each in outputs)


def files_below(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_train_goes_from_folds_to_a_report_below_the_cell(packed, tmp_path):
    """The embedded digits: folds, a launched training with a bar, the page itself; the uploaded folder is as it was."""
    before = files_below(packed)
    settings = f"""
FIVEFOLD, WORK, FILES = {str(packed)!r}, {str(tmp_path / "work")!r}, "--k 2"
RUNS, TRAIN = {{"one": "--epochs 1 --model-args 'widths=(4,8,16)'"}}, "--threads 1"
"""
    *_, folds, training, report = executed("train", settings, tmp_path)
    assert "fingerprint" in folds
    assert "fold 0 epoch 1" in training and "images/s" in training and "local CV of one" in training
    assert "accelerate launch" not in training  # its lines on what it has chosen
    assert "<iframe srcdoc=" in report and "Fivefold report" in report
    assert files_below(packed) == before


@pytest.fixture
def trained(chain, tiny, tmp_path) -> Path:
    """What train.ipynb leaves: two runs and their folds."""
    folder = tmp_path / "trained"
    for run in ("one", "two"):
        shutil.copytree(chain / run, folder / "runs" / run, ignore=shutil.ignore_patterns("test.npz", "submission.csv"))
    shutil.copy(tiny / "folds.csv", folder)
    return folder


def test_blend_and_submission_without_network_or_home(packed, trained, tiny, tmp_path):
    """Weights by hand beside learned ones; then a hidden test set of another size, handed in from read-only input."""
    (tmp_path / "hidden").mkdir()
    for name in ("test.csv", "sample.csv"):
        lines = (tiny / name).read_text(encoding="utf-8").splitlines()
        (tmp_path / "hidden" / name).write_text("\n".join(lines[:11]) + "\n")
    before = {**files_below(packed), **files_below(trained), **files_below(tmp_path / "hidden")}
    places = f"\nFIVEFOLD, TRAINED, OUT = {str(packed)!r}, {str(trained)!r}, {str(tmp_path / 'working')!r}\n"
    for name in ("blend", "infer"):
        (tmp_path / name).mkdir()
    *_, compared = executed("blend", places + 'RUNS = ("one", "two")', tmp_path / "blend", SITE)
    assert all(f">{row}<" in compared for row in ("hand (0.7, 0.3)", "softmax", "mean")) and "nested errors" in compared

    files = f'TEST, SAMPLE = "--test {tmp_path}/hidden/test.csv", "--sample {tmp_path}/hidden/sample.csv"\n'
    executed("infer", places + files + 'RUNS, VIEWS = "one two", "--threads 1"', tmp_path / "infer", SITE)
    submission = pd.read_csv(tmp_path / "working" / "submission.csv")
    assert submission.columns.tolist() == ["ImageId", "Label"] and submission.ImageId.tolist() == [*range(1, 11)]
    assert {**files_below(packed), **files_below(trained), **files_below(tmp_path / "hidden")} == before


def test_in_a_cell_without_tyro(packed, tmp_path):
    """run(...): a mistake is its one line, a bar shows the epoch, and what the stop button has ended goes on."""
    manager, client = start_new_kernel(
        kernel_name="python3", env=environment(tmp_path, 'import sys; sys.modules["tyro"] = None'), cwd=str(tmp_path)
    )

    def cell(code: str, until: str = "") -> tuple[str, list[str]]:
        """What a cell prints and its traceback; the stop button is pressed when it prints ``until``."""
        said, pressed = [], []

        def hear(message: dict) -> None:
            content = message["content"]
            said.append(content.get("text", ""))
            if until and until in "".join(said) and not pressed:
                pressed.append(True)
                manager.interrupt_kernel()

        options = {"timeout": 600, "output_hook": hear, "stop_on_error": False}  # the next cell is not taken back
        reply = client.execute_interactive(code, **options)["content"]
        return "".join(said), reply.get("traceback", [])

    try:
        places = f"import sys; sys.path.insert(0, {str(packed)!r}); import folds, train_fold"
        said, wrong = cell(f"{places}; folds.run(folds.Options(k=3, work='digits'))")
        assert "fingerprint" in said and not wrong
        _, wrong = cell("train_fold.run(train_fold.Train(work='digits', fold='7'))")
        assert wrong == ["error: --fold: there is no fold 7; use 0 to 2, all, or full"]
        small = "epochs=1000, threads=1, model_args=('widths=(4,8,16)',)"
        training = f"train_fold.run(train_fold.Train(work='digits', fold='0', {small}))"
        said, wrong = cell(training, until="epoch   2/1000")
        assert "KeyboardInterrupt" in "".join(wrong) and "images/s" in said
        said, wrong = cell(training, until="resumes after epoch")
        assert "KeyboardInterrupt" in "".join(wrong) and "epoch   1/1000" not in said
        fold = tmp_path / "digits" / "runs" / "digit_cnn" / "fold0"
        assert (fold / "checkpoint.safetensors").exists() and not (fold / "metrics.json").exists()
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_without_tyro_folds_follow_one_another(tiny, tmp_path, monkeypatch, capsys):
    """Jobs read their settings with tyro: a cell that asks for two at a time still gets all folds, and a word."""
    monkeypatch.setattr(train_fold, "can_parse", lambda: False)
    places = {"data": str(tiny / "train.csv"), "folds": str(tiny / "folds.csv"), "runs_dir": str(tmp_path)}
    small = {"epochs": 1, "batch_size": 8, "threads": 1, "channels_last": "no", "warmup_epochs": 0.5}
    result = train_fold.run(train_fold.Train(**places, **small, jobs=2))
    assert result.score["n"] == 60
    assert "tyro is missing" in capsys.readouterr().err


def test_a_run_in_a_cell_leaves_the_kernels_threads(tiny, tmp_path):
    """What torch computes in the next cell has as many threads as before."""
    before = torch.get_num_threads()
    places = {"folds": str(tiny / "folds.csv"), "runs_dir": str(tmp_path), "threads": 1}
    small = {"epochs": 1, "batch_size": 8, "channels_last": "no", "warmup_epochs": 0.5, "jobs": 1}
    torch.set_num_threads(3)
    try:
        train_fold.run(train_fold.Train(data=str(tiny / "train.csv"), **places, **small))
        assert torch.get_num_threads() == 3
        infer.run(infer.Options(test=str(tiny / "test.csv"), **places))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_notebooks_are_what_their_source_says():
    """Valid notebooks, whose settings a tag names; only tyro is brought to the image."""
    for name in NOTEBOOKS:
        book = notebook(name)
        nbformat.validate(book)
        assert [cell["metadata"].get("tags") for cell in book["cells"]].count(["parameters"]) == 1
    assert [bare(each) for each in lacking()] == ["tyro"]
