"""Jobs that are forked from a process which has loaded the libraries: as if they had been started afresh."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from common.jobs.process import LAUNCHERS, Job
from common.jobs.runner import LocalSlot, loaded_once, run_jobs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux")

SEEN = """
import sys; loaded = {"torch", "common", "tqdm"} & sys.modules.keys()
import atexit, json, os, random, signal, threading
import numpy, torch, tqdm
states = vars(sys.modules.get("accelerate.state", sys)).values()
assert __name__ == "__main__" and sys.modules["__main__"].__file__ == __file__
found = dict(
    arguments=sys.argv, all_arguments=sys.orig_argv, file=__file__, folder=os.getcwd(), path=sys.path[0],
    environment={name: value for name, value in os.environ.items() if name != "FIVEFOLD_JOB"},
    width=tqdm.tqdm(file=open(os.devnull, "w")).ncols,
    child=os.environ["FIVEFOLD_JOB"] == str(os.getppid()), threads=[torch.get_num_threads(), threading.active_count()],
    signals=[str(signal.getsignal(each)) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)],
    made=torch.cuda.is_initialized() or any(getattr(each, "_shared_state", None) for each in states),
    blocked=[*signal.pthread_sigmask(signal.SIG_BLOCK, [])], stdin=os.readlink("/proc/self/fd/0"),
    streams=[[it.encoding, it.errors, it.line_buffering, it.write_through] for it in (sys.stdout, sys.stderr)],
)
sys.stdout.reconfigure(line_buffering=True)
torch.rand(500, 500) @ torch.rand(500, 500)
drawn = [torch.rand(1).item(), numpy.random.rand(), random.random()]
print("to stderr", file=sys.stderr)
atexit.register(print, json.dumps([found, sorted(loaded), drawn]))
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def loaded():
    """Two slots with a server."""
    with loaded_once([LocalSlot()] * 2, 2) as slots:
        yield slots


def test_a_forked_job_is_like_one_started_afresh(loaded, tmp_path, monkeypatch, capfd):
    """Arguments, folder, environment, signals, streams, exit code, what runs at the exit; random states differ.

    It finds no device in use, and none of accelerate's states.
    """
    for name in LAUNCHERS:
        monkeypatch.setenv(name, "1")
    (tmp_path / "job.py").write_text(SEEN)
    places = {"environment": {"TQDM_NCOLS": "33", "OWN": "ä"}, "folder": str(tmp_path)}
    jobs = [Job(code, (str(tmp_path / "job.py"), code), log=log, **places) for code, log in (("0", "log"), ("1", ""))]
    said = []
    for slots in ([LocalSlot()] * 2, loaded):
        assert run_jobs(jobs, slots) == {"0": 0, "1": 1}
        said += [*(tmp_path / "log").read_text().splitlines(), *capfd.readouterr().out.splitlines()]
        (tmp_path / "log").write_text("kept\n")
    afresh, its, kept, forked, its_too = [line.removeprefix("[1] ") for line in said if "to stderr" not in line]
    assert kept == "kept" and sum("to stderr" in line for line in said) == 4
    seen, loaded, drawn = zip(*map(json.loads, (afresh, its, forked, its_too)), strict=True)
    assert [*loaded] == [[], [], ["torch"], ["torch"]]
    assert seen[2:] == seen[:2] and seen[0]["width"] == 33 and seen[0]["child"]
    assert all(len({*each}) == 4 for each in zip(*drawn, strict=True))


def test_the_servers_openmp_waits_as_a_jobs():
    """It is told so before torch, the first of the libraries, is loaded."""
    code = "from common.jobs import fork_server; fork_server.LIBRARIES = ('torch',); fork_server.load()"
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment["OMP_DISPLAY_ENV"] = "VERBOSE"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    assert "GOMP_SPINCOUNT = '1000'" in done.stderr


def test_nothing_is_loaded_for_one_job_or_a_gpu():
    """What runs alone, or on a device, is started as ever."""
    for slots, jobs in (([LocalSlot()] * 2, 1), ([LocalSlot({"CUDA_VISIBLE_DEVICES": "0"})], 5)):
        with loaded_once(slots, jobs) as found:
            assert found == slots


@pytest.mark.parametrize(
    ("sent", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
@pytest.mark.parametrize("loaded", [True, False], ids=["jobs run", "it still loads"])
def test_nothing_outlives_the_starter(sent, expected, loaded, tmp_path):
    """Ctrl-C at the terminal, SIGTERM or SIGKILL to the starter alone: jobs and server end, and none has a word."""
    (tmp_path / "job.py").write_text(
        "import sys, time\n"
        "try:\n"
        "    open(sys.argv[1], 'w').close(); time.sleep(600)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)"
    )
    runner = (
        "import signal, sys; from common.base.errors import run_script;"
        "from common.jobs.runner import Job, LocalSlot, loaded_once, run_jobs;"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "def main():\n"
        "    with loaded_once([LocalSlot()] * 2, 2) as slots:\n"
        "        run_jobs([Job(name, ('job.py', name), folder=sys.argv[1]) for name in 'ab'], slots)\n"
        "run_script(main)"
    )
    command = [sys.executable, "-c", runner, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: len(session(process.pid)) > 1)
    if loaded:
        wait_until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
        assert len(session(process.pid)) == 4
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)
    else:
        process.send_signal(sent)
    assert process.wait(timeout=20) == expected
    wait_until(lambda: not session(process.pid))
    assert not process.stderr.read()


def session(leader: int) -> list[int]:
    """Processes of a session that have not ended."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(leader)], capture_output=True, text=True).stdout
    return [int(pid) for pid, state in map(str.split, listed.splitlines()) if state[0] != "Z"]


def wait_until(holds, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_jobs_go_on_without_the_server(loaded, tmp_path, capfd):
    """It is killed, and its jobs with it: they are started once more, afresh, and what comes after them too."""
    (tmp_path / "job.py").write_text(
        "import os, signal, sys, time\n"
        "if 'torch' in sys.modules:\n"
        "    os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)\n"
        "print('afresh')"
    )
    jobs = [Job(name, ("job.py", name), folder=str(tmp_path)) for name in "ab"]
    assert run_jobs(jobs, loaded) == {"a": 0, "b": 0}
    said = capfd.readouterr().out
    assert "[a] afresh" in said and "[b] afresh" in said and "starting it once more" in said
