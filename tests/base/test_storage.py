"""Folders that are files, read-only, gone, too small or in use; numbers that break down: said before or at once."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, SMALL, train

from common.base import locks
from common.base.errors import UserError
from common.base.files import check_folder, write_file
from common.base.locks import check_unlocked, locked, try_lock
from common.runs.layout import run_names
from common.train import loop
from common.train.loop import check_logits


@pytest.mark.parametrize("typed", ["fast", "fast/", "runs/fast", "runs/fast/", "./runs/fast", "{here}/runs/fast"])
def test_a_path_to_a_run_names_it(typed, tmp_path, monkeypatch):
    """--runs takes a name and, as Tab writes it, a path; one of a run that is not there stays what was typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "fast" / "fold0").mkdir(parents=True)
    for runs_dir in ("runs", tmp_path / "runs"):
        assert run_names(Path(runs_dir), [typed.format(here=tmp_path), "gone", "runs/gone"]) == (
            "fast",
            "gone",
            "runs/gone",
        )
    (tmp_path / "elsewhere" / "slow").mkdir(parents=True)
    with pytest.raises(UserError, match="elsewhere/slow does not lie in runs; name its folder: --runs-dir elsewhere"):
        run_names(Path("runs"), ["elsewhere/slow/"])


@pytest.mark.parametrize("where", ["runs", "runs/it", "runs/it/fold0"])
def test_a_file_where_a_folder_should_be(where, tiny, tmp_path):
    """It is named with exit 3, and left as it is."""
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")
    with pytest.raises(UserError, match=f"{path}: ") as refused:
        train(tiny, tmp_path / "runs", "--run", "it", "--fold", 0)
    assert refused.value.exit_code == 3 and path.read_text() == "precious"


def test_a_full_disk_is_said_before_the_training():
    """What is needed and what is free, in numbers."""
    with pytest.raises(UserError, match=r"about 1,000,000,000,000\.0 MB needed, [\d,.]+ MB available") as refused:
        check_folder(ROOT, needed=10**18)
    assert refused.value.exit_code == 3


def test_a_read_only_folder_is_refused_before_torch_is_loaded(tiny, tmp_path):
    """A file system mounted read-only: one line with exit 3, in the time of a start without torch."""
    (tmp_path / "runs").mkdir()
    code = "import sys, train_fold; from common.base.errors import run_script; sys.excepthook = print\n"
    code += "try: run_script(train_fold.main)\n"
    code += "finally: print('torch' in sys.modules)"
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path / "runs"]
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", tmp_path, sys.executable, "-c", code]
    done = subprocess.run(list(map(str, [*command, *places, *SMALL])), cwd=ROOT, capture_output=True, text=True)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"needs a mount of its own: {done.stderr}")
    assert done.returncode == 3 and done.stdout == "False\n"
    assert done.stderr == f"error: {tmp_path / 'runs'}: is not writable; choose another folder\n"


def test_a_lock_that_was_thrown_away_is_no_lock(tmp_path):
    """Who waits for the lock of a folder that is deleted meanwhile never works beside whoever locks the new one."""
    folder, got, second_works, beside = tmp_path / "run", threading.Event(), threading.Event(), []

    def wait() -> None:
        with locked(folder, wait=True):
            beside.append(second_works.is_set())
            got.set()

    waiting = threading.Thread(target=wait)
    with locked(folder) as check:
        check()
        waiting.start()
        time.sleep(0.3)
        shutil.rmtree(folder)
        with pytest.raises(UserError, match="was deleted or moved meanwhile"):
            check()
        second = locked(folder, wait=True)  # the other may come first, between the two lines
        second.__enter__()
        second_works.set()
    got.wait(0.5)
    second_works.clear()
    second.__exit__(None, None, None)
    assert got.wait(5)
    assert beside == [False], "two processes hold the right to write into one folder"
    waiting.join()


def test_a_lock_that_is_thrown_away_as_it_is_taken_is_taken_anew(tmp_path, monkeypatch):
    """Between opening the file and locking it: the lock is then the new file's, and keeps others out."""
    folder, lock = tmp_path / "run", locks.try_lock

    def too_late(file) -> bool:
        monkeypatch.undo()
        shutil.rmtree(folder)
        return lock(file)

    monkeypatch.setattr(locks, "try_lock", too_late)
    with locked(folder) as check:
        check()
        with pytest.raises(UserError, match="is in use by pid"), locked(folder):
            pass


def test_looking_at_a_lock_leaves_no_trace(tmp_path):
    """A folder that nobody uses is not even made."""
    check_unlocked(tmp_path / "run")
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "run"), pytest.raises(UserError, match="is in use by pid"):
        check_unlocked(tmp_path / "run")


def test_weights_that_overflow_at_the_last_step_end_with_exit_4(tiny, tmp_path):
    """The loss was finite to the end, the predictions are not: said with fold and epoch, and nothing is written."""
    with pytest.raises(UserError, match=r"fold 0, epoch 1: the predictions of 20 of 20 rows are not finite") as refused:
        train(tiny, tmp_path, "--fold", 0, "--batch-size", 40, "--warmup-epochs", 0, "--lr", 1e30)
    assert refused.value.exit_code == 4
    assert {path.name for path in (tmp_path / "digit_cnn" / "fold0").iterdir()} == {".lock"}


def test_a_training_that_fails_leaves_alone_what_others_made_of_its_folder(tiny, tmp_path, monkeypatch):
    """Deleted and begun anew by another process, the folder and the settings in it are that one's."""
    theirs = tmp_path / "digit_cnn" / "fold0" / "config.json"

    def disturbed(*arguments):
        shutil.rmtree(theirs.parent)
        write_file(theirs, "{}")
        raise UserError("data", "is gone", "bring it back")

    monkeypatch.setattr(loop, "train_epoch", disturbed)
    with pytest.raises(UserError, match="data: is gone"):
        train(tiny, tmp_path, "--fold", 0)
    assert theirs.read_text() == "{}"


def test_predictions_that_are_not_finite_are_refused():
    """In any view, and their rows are counted once."""
    logits = np.zeros((2, 5, 3))
    check_logits("model", logits, "train again")
    logits[0, 1, 2], logits[1, 1, 0], logits[1, 4, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(UserError, match="model: the predictions of 2 of 5 rows are not finite numbers; train again"):
        check_logits("model", logits, "train again")


def test_a_lock_leaves_the_place_in_its_file(tmp_path, monkeypatch):
    """Windows locks bytes, taken far behind the text: what is written next still begins where the file does."""
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=0, locking=lambda *_: None))
    with (tmp_path / "file").open("wb") as file:
        with monkeypatch.context() as windows:
            windows.setattr("os.name", "nt")
            assert try_lock(file)
        file.write(b"text")
    assert (tmp_path / "file").read_bytes() == b"text"
