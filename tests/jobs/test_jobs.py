"""Jobs side by side: each once, each in its slot, none left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, train

from common.base.errors import UserError
from common.base.files import write_json
from common.base.system import cpu_count
from common.jobs import runner
from common.jobs.deadline import Deadline
from common.jobs.process import Job
from common.jobs.runner import LocalSlot, SideBySide, device_slots, run_jobs, slots_for
from common.train.fold_jobs import late


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
        "import os, sys, time; from common.base.system import end_with_parent; end_with_parent();"
        "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    )
    runner = (
        "import signal, sys; from common.base.errors import run_script;"
        "from common.jobs.runner import Job, LocalSlot, run_jobs;"
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


def test_jobs_end_though_nobody_reads_them():
    """`... | head -1`: no traceback, and a job that prints much does not wait for a reader for ever."""
    chatter = "print('x' * 99 + chr(10), end='' , flush=True); " * 2000
    runner = (
        "import sys; from common.base.errors import run_script;"
        "from common.jobs.runner import Job, LocalSlot, run_jobs;"
        "run_script(lambda: run_jobs([Job(str(k), ('-c', sys.argv[1])) for k in range(2)], [LocalSlot()] * 2))"
    )
    command = [sys.executable, "-c", runner, chatter]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    try:
        process.wait(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in process.stderr.read()


def test_folds_side_by_side_equal_folds_in_turn(chain, tiny, tmp_path, torch_forks):
    """--jobs 2 trains two folds at a time, and writes the bytes of one after another at as many threads each."""
    arguments = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path, *SMALL]
    done = torch_forks.run(["train_fold.py", *map(str, arguments), "--run", "one", "--jobs", "2"], tmp_path)
    assert done.code == 0, done.err
    assert "[fold 0] fold 0:" in done.out and "local CV of one" in done.out
    for fold in range(3):
        for name in ("model.safetensors", "oof.npz"):
            path = f"one/fold{fold}/{name}"
            assert (tmp_path / path).read_bytes() == (chain / path).read_bytes()


def test_what_no_fold_can_be_trained_with_is_said_once(tiny, tmp_path, forks):
    """The one line of a job is the command's, whose own process needs no torch for it, and no folder is made.

    A run that --restart names is still there.
    """
    arguments = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path, *SMALL]
    command = ["train_fold.py", *map(str, arguments), "--jobs", "2", "--run", "it", "--model", "test_vitt"]
    expected = r"error: --model: timm has no model test_vitt; did you mean test_vit.*\?\n"
    done = forks.run(command, tmp_path)
    assert re.fullmatch(expected, done.err) and (done.code, done.torch) == (2, False)
    assert "error" not in done.out and not (tmp_path / "it").exists()
    begun = tmp_path / "it" / "fold0" / "config.json"
    write_json(begun, {"lr": 0.5})
    done = forks.run([*command, "--restart"], tmp_path)
    assert re.fullmatch(expected, done.err) and done.code == 2 and begun.exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("end", "starts", "expected"),
    [("os.kill(os.getpid(), 9) if first else None", 2, 0), ("os.kill(os.getpid(), 9)", 2, -9), ("sys.exit(3)", 1, 3)],
    ids=["killed once", "killed every time", "refused"],
)
def test_a_killed_job_is_started_once_more(end, starts, expected, tmp_path, capfd):
    """What the out-of-memory killer does not end twice comes to its end; a job that says no is not asked again."""
    count = "file = open(sys.argv[1], 'a'); first = file.tell() == 0; file.write('x'); file.close()"
    code = f"import os, sys; {count}; {end}"
    assert run_jobs([Job("it", ("-c", code, str(tmp_path / "starts")))], [LocalSlot()]) == {"it": expected}
    assert (tmp_path / "starts").read_text() == "x" * starts
    assert capfd.readouterr().out.count("it was killed by SIGKILL: starting it once more") == starts - 1


@pytest.mark.parametrize(
    ("devices", "options", "threads", "most", "slots", "threads_each", "warned"),
    [
        ("0,1", {}, 1, 5, ["0", "1"], 1, ""),
        ("0,1", {"jobs_per_gpu": 2}, 1, 5, ["0", "1", "0", "1"], 1, ""),
        ("0,1", {"jobs_per_gpu": 2}, 1, 3, ["0", "1", "0"], 1, ""),
        ("0,1", {"jobs": 2}, 1, 5, ["0", "1"], 1, "--jobs has no effect"),
        ("0", {}, 3, 5, ["0"], 3, ""),
        ("", {"jobs": 3}, 2, 5, [None] * 3, 2, ""),
        ("", {"jobs": 3, "jobs_per_gpu": 2}, 2, 5, [None] * 3, 2, "--jobs-per-gpu has no effect"),
        ("", {"jobs": 3}, 1, 1, [None], 1, "--jobs 3: there are only 1"),
        ("", {"jobs": 10_000}, 0, 10_000, [None] * 10_000, 1, ""),
    ],
)
def test_jobs_are_shared_out(devices, options, threads, most, slots, threads_each, warned, monkeypatch, capsys):
    """GPUs in turn and as often as asked for, else CPUs; an option that does nothing here says so."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    found, threads = slots_for(SideBySide(**options), threads, most)
    assert [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in found] == slots and threads == threads_each
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {warned}") if warned else not said


def test_cpus_are_shared_out_to_as_many_jobs_as_there_are_cores(monkeypatch):
    """Without an option: one thread each, fewer jobs with more threads; short or launched ones one after another."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cores = cpu_count()
    assert len(slots_for(SideBySide(), 0, 10_000)[0]) == cores
    assert slots_for(SideBySide(), 0, 1) == ([LocalSlot()], cores)
    assert len(slots_for(SideBySide(), cores, 10_000)[0]) == 1
    assert slots_for(SideBySide(), 0, 10_000, short=True) == ([LocalSlot()], cores)
    assert len(slots_for(SideBySide(jobs=2), 0, 10_000, short=True)[0]) == 2
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert slots_for(SideBySide(), 0, 10_000) == ([LocalSlot()], cores)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="accelerate launch: its processes train each fold together"):
        slots_for(SideBySide(jobs=2), 0, 5)


@pytest.mark.parametrize(
    ("jobs", "cores", "together"), [(5, 2, 3), (7, 2, 2), (5, 4, 5), (10, 4, 5), (3, 4, 3), (4, 2, 2)]
)
def test_jobs_that_are_alike_leave_no_core_idle(jobs, cores, together, monkeypatch):
    """Five on two cores run as three and two, not as two, two and one; on as many threads each as before."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(runner, "cpu_count", lambda: cores)
    slots, threads = slots_for(SideBySide(), 0, jobs, alike=True)
    assert (len(slots), threads) == (together, 1)
    assert len(slots_for(SideBySide(), 0, jobs)[0]) == min(jobs, cores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": -1}, "--jobs: -1 is too small"),
        ({"jobs_per_gpu": 0}, "--jobs-per-gpu: 0 is too small"),
        ({"hours": -0.5}, "--hours: -0.5 is too small"),
        ({"address": "host:6379"}, "--address: is for a Ray cluster and has no effect here"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    """Numbers out of range, and a cluster's address without the cluster."""
    with pytest.raises(UserError, match=message):
        slots_for(SideBySide(**options), 0, 5)


@pytest.mark.skipif(os.name != "posix", reason="a terminal of our own")
@pytest.mark.parametrize("notebook", [False, True])
def test_at_a_terminal_each_job_has_a_bar(notebook, monkeypatch):
    """Two jobs at once: their bars stay on the screen while their lines, and nothing else, are led by their names.

    Below a notebook's cell the bars share a line: there a cursor cannot go up, and each move would add a line.
    """
    import pty
    import termios

    job = (
        "import os, sys, time; from tqdm import tqdm; assert 'FIVEFOLD_BAR' in os.environ\n"
        "for _ in tqdm(range(5), 'bar ' + sys.argv[1], mininterval=0, leave=False): time.sleep(0.05)\n"
        "print('line of', sys.argv[1])"
    )
    runner = (
        "import sys; from common.jobs.runner import Job, LocalSlot, run_jobs;"
        "run_jobs([Job(n, ('-c', sys.argv[1], n)) for n in ('a', 'b')], [LocalSlot()] * 2)"
    )
    if notebook:
        monkeypatch.setenv("JPY_PARENT_PID", "1")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with subprocess.Popen([sys.executable, "-c", runner, job], cwd=ROOT, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        try:
            while read := os.read(ours, 1 << 16):
                said += read
        except OSError:  # the other end is closed
            pass
        finally:
            os.close(ours)
    assert process.returncode == 0, said
    for name in "ab":
        assert f"[{name}] line of {name}".encode() in said
        assert f"bar {name}:  40%".encode() in said and f"[{name}] bar".encode() not in said
    assert (b"\x1b[A" in said) != notebook


# ---- --hours


@pytest.mark.parametrize(
    ("logged", "hours", "hours_left", "expected"),
    [
        ({}, 1, 1, False),  # nobody knows how long it takes
        ({}, 1, 0, True),
        ({"fold0": 10}, 1, 0.5, False),  # 10 epochs of 100 s
        ({"fold0": 10}, 1, 0.25, True),
        ({"fold0": 10, "fold1": 8}, 1, 0.1, False),  # it has begun: 2 epochs are missing
        ({"fold0": 10}, 0.25, 0.2, False),  # it never fits: it is begun, and stops after an epoch
        ({"fold0": 10}, 0.25, 0.02, True),  # ... but not for less than an epoch
    ],
)
def test_no_fold_is_begun_that_would_end_too_late(logged, hours, hours_left, expected, tmp_path):
    """The epochs that a fold lacks, at the run's pace so far, must fit into the time left."""
    for name, epochs in logged.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text("epoch,seconds\n" + "".join(f"{n},100.0\n" for n in range(epochs)))
    deadline = Deadline(hours)
    deadline.end = time.time() + 3600 * hours_left
    assert late(deadline, tmp_path, "1", epochs=10) == expected
    assert not late(Deadline(0), tmp_path, "1", epochs=10)


def test_a_run_without_time_stops_after_an_epoch_and_says_so(tiny, tmp_path, capsys):
    """--hours: a fold that would not end in time keeps its checkpoint, the rest is named, and nothing is an error."""
    import common.train.session  # noqa: F401  its import would take seconds of the time

    said, hours = "", 0.001
    # On a busy machine there may be no time to begin at all.
    while not re.search("fold 0 stops after epoch [1-9]", said):
        train(tiny, tmp_path, "--run", "it", "--epochs", 100_000, "--warmup-epochs", 0, "--hours", hours)
        said, hours = capsys.readouterr().out, 4 * hours
    assert "fold 0 stops after epoch" in said and "run the same command to continue" in said
    *_, left, after = said.splitlines()
    assert left == "it: no time left for fold 0, 1, 2; run the same command to continue"
    assert after.startswith("next: python train_fold.py ")
    assert (tmp_path / "it" / "fold0" / "checkpoint.safetensors").exists()
    assert not list(tmp_path.rglob("metrics.json"))
