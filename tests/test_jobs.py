"""Jobs side by side: each once, each in its slot, none left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, run_script

from common.jobs import Job, LocalSlot, device_slots, run_jobs


def test_every_job_runs_once_in_a_slot_of_its_own(tmp_path):
    """Five jobs over two slots: each writes its slot once, a failing one keeps its exit code and stops no other."""
    code = "import os, sys; open(sys.argv[1], 'a').write(os.environ['SLOT']); sys.exit(int(sys.argv[2]))"
    jobs = [Job(f"job{k}", ("-c", code, str(tmp_path / f"{k}"), str(7 * (k == 2)))) for k in range(5)]
    ended = []
    exit_codes = run_jobs(
        jobs, [LocalSlot({"SLOT": "a"}), LocalSlot({"SLOT": "b"})], lambda job, exit_code: ended.append(job.name)
    )
    assert exit_codes == {"job0": 0, "job1": 0, "job2": 7, "job3": 0, "job4": 0}
    assert sorted(ended) == sorted(exit_codes)
    assert {(tmp_path / str(k)).read_text() for k in range(5)} == {"a", "b"}


def test_slots_are_the_visible_devices(monkeypatch):
    """CUDA_VISIBLE_DEVICES decides; a machine that hides its GPUs has one slot."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in device_slots()] == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_slots() == [LocalSlot()]


@pytest.mark.skipif(os.name != "posix", reason="signals of a process group")
@pytest.mark.parametrize(
    ("sent", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_ending_the_runner_ends_its_jobs(sent, expected, tmp_path):
    """Ctrl-C, SIGTERM or SIGKILL to the runner alone: none of its jobs is alive two seconds later."""
    sleeper = (
        "import os, sys, time; from common.system import end_with_parent; end_with_parent();"
        "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    )
    runner = (
        "import signal, sys; from common.errors import run_script; from common.jobs import Job, LocalSlot, run_jobs;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's background job ignores it
        "run_script(lambda: run_jobs([Job(p, ('-c', sys.argv[1], p)) for p in sys.argv[2:]], [LocalSlot()] * 2))"
    )
    paths = [str(tmp_path / name) for name in ("a", "b")]
    process = subprocess.Popen([sys.executable, "-c", runner, sleeper, *paths], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not all(os.path.exists(p) and os.path.getsize(p) for p in paths):
        time.sleep(0.05)
    pids = [int(Path(path).read_text()) for path in paths]
    process.send_signal(sent)
    assert process.wait(timeout=10) == expected
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and any(os.path.exists(f"/proc/{pid}") for pid in pids):
        time.sleep(0.05)
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_folds_side_by_side_equal_folds_in_turn(chain, tiny, tmp_path):
    """With two devices, --fold all trains two folds at a time, and writes the bytes of one after another."""
    arguments = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path, *SMALL]
    done = run_script("train_fold.py", *arguments, "--run", "one", "--fold", "all", CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 0, done.stderr
    assert "[fold 0] fold 0:" in done.stdout and "local CV of one" in done.stdout
    for fold in range(3):
        for name in ("model.safetensors", "oof.npz"):
            path = f"one/fold{fold}/{name}"
            assert (tmp_path / path).read_bytes() == (chain / path).read_bytes()
