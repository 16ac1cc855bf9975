"""Folds and cells over a real Ray cluster of two nodes on this machine: each job once, on one node, the same bytes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, SMALL
from disturbed import alive, wait_until

import train_fold
from common.base.errors import UserError
from common.sweep.cells import CELL_FILE

if "CI" not in os.environ:  # a build machine has it
    pytest.importorskip("ray", reason="needs the optional extra cluster")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Ray has clusters on Linux only")


@contextmanager
def nodes(folder: Path, **arguments: list[str]) -> Iterator[list[subprocess.Popen]]:
    """Nodes with these names, of one CPU each, started one after another with ``ray start``."""
    options = ["--num-cpus=1", "--node-ip-address=127.0.0.1", "--object-store-memory=80000000", "--block"]
    processes = []
    try:
        for name, own in arguments.items():
            said = folder / f"{name}.log"
            with said.open("wb") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-name={name}", *own, *options],
                        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        for name in arguments:
            said = folder / f"{name}.log"
            wait_until(lambda said=said: "Ray runtime started" in said.read_text(), f"node {name}")
        yield processes
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def address():
    """Two nodes, called first and second, with one CPU each; the address of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not below pytest's folder: a Unix socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        head = [f"--port={port}", "--head", "--include-dashboard=false", f"--temp-dir={folder}"]
        with nodes(Path(folder), first=head, second=[f"--address=127.0.0.1:{port}"]):
            yield f"127.0.0.1:{port}"


def run(script: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess:
    """Run one of our scripts in a folder."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_folds_over_two_nodes_equal_folds_in_turn(address, chain, tiny, tmp_path):
    """--engine ray: a fold on each node, relative paths understood, the same bytes; a finished one is left alone."""
    shutil.copytree(chain / "one" / "fold1", tmp_path / "one" / "fold1")
    places = ["--data", "train.csv", "--folds", "folds.csv", "--runs-dir", tmp_path]
    done = run("train_fold.py", *places, *SMALL, "--run", "one", "--engine", "ray", "--address", address, folder=tiny)
    assert done.returncode == 0, done.stderr + done.stdout
    trained = set(re.findall(r"\[fold (\d)\] (\w+): fold \1 epoch   3/3", done.stdout))
    assert sorted(fold for fold, _ in trained) == ["0", "2"]
    assert {node for _, node in trained} == {"first", "second"}
    assert "local CV of one" in done.stdout
    for fold in range(3):
        for name in ("model.safetensors", "oof.npz"):
            path = f"one/fold{fold}/{name}"
            assert (tmp_path / path).read_bytes() == (chain / path).read_bytes()


def test_a_cell_on_a_node(address, tiny, tmp_path):
    """sweep.py run --engine ray trains each cell once, and its log and results lie where they always do."""
    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path]
    grid = ["--run", "it", "--batch-sizes", 8, "--lrs", 1e-3, "--mixed-precision", "no"]
    small = [word for word in SMALL if word not in ("--batch-size", "8")]
    done = run("sweep.py", "run", *places, *small, *grid, "--engine", "ray", "--address", address, folder=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "complete, 1 done" in done.stdout
    [cell] = (tmp_path / "it_sweep").glob(f"b8_*/{CELL_FILE}")
    assert (cell.parent / "train.log").read_text().count("epoch   3/3") == 1


DRIVER = """
import signal, sys
from common.base.errors import run_script
from common.jobs.runner import Job, SideBySide, run_jobs, slots_for
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
slots, threads = slots_for(SideBySide(engine="ray", address=sys.argv[1]), 0, 9)
jobs = [Job("gone", ("job.py",), folder=sys.argv[2] + "/gone")]
jobs += [Job(name, ("job.py", name), folder=sys.argv[2]) for name in ("a", "b")]
ended = lambda job, exit_code: print(f"{job.name} ended with {exit_code}", flush=True)
run_script(lambda: run_jobs(jobs, slots, ended))
"""

SLEEPER = """
import os, pathlib, signal, sys, time
from common.base.system import end_with_parent
end_with_parent(int(os.environ["FIVEFOLD_JOB"]))
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
if len(pathlib.Path(sys.argv[1]).read_text().split()) == 1:
    os.kill(os.getpid() if sys.argv[1] == "a" else os.getppid(), signal.SIGKILL)
time.sleep(60)
"""


def test_a_clusters_jobs_are_repeated_once_and_end_with_us(address, tmp_path):
    """A folder that a node lacks is named; a job that is killed, or whose Ray worker is, is started once more; after
    Ctrl-C nothing is alive."""
    (tmp_path / "job.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{SLEEPER}")
    said = tmp_path / "said"
    with said.open("wb") as output:
        command = [sys.executable, "-c", DRIVER, address, str(tmp_path)]
        driver = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)

    def pids() -> list[int]:
        return [int(pid) for name in ("a", "b") for pid in (tmp_path / name).read_text().split()]

    wait_until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists() and len(pids()) == 4, "four starts")
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=20) == 130, said.read_text()
    wait_until(lambda: not any(map(alive, pids())), "the end of what the nodes have started", seconds=5)
    assert re.search(rf"\[gone\] error: node (first|second): there is no {tmp_path}/gone;", said.read_text())
    assert "gone ended with 3" in said.read_text()
    for name in ("a", "b"):
        assert said.read_text().count(f"{name} was killed by SIGKILL: starting it once more") == 1


LOST_DRIVER = """
import sys
from common.base.errors import run_script
from common.jobs.runner import Job, SideBySide, run_jobs, slots_for
slots, threads = slots_for(SideBySide(engine="ray", address=sys.argv[1]), 0, 9)
run_script(lambda: run_jobs([Job(name, ("job.py", name), folder=sys.argv[2]) for name in "abc"], slots))
"""

WAITER = """
import os, sys, time
from common.base.system import end_with_parent
end_with_parent(int(os.environ["FIVEFOLD_JOB"]))
print("is there", flush=True)
time.sleep(100)
"""


def test_a_node_that_dies_is_one_line(address, tmp_path):
    """Of three nodes the third is killed: its job is lost, which is said in a line of ours, and waits for room."""
    (tmp_path / "job.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{WAITER}")
    said = tmp_path / "said"
    with nodes(tmp_path, third=[f"--address={address}"]) as (third,), said.open("wb") as output:
        command = [sys.executable, "-c", LOST_DRIVER, address, str(tmp_path)]
        driver = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        wait_until(lambda: said.read_text().count("is there") == 3, "three starts")
        there = said.read_text()
        raylet = subprocess.run(["pgrep", "-P", str(third.pid), "raylet"], capture_output=True, text=True).stdout
        os.kill(int(raylet), signal.SIGKILL)
        wait_until(lambda: "once more" in said.read_text(), "the news of the node")
        time.sleep(2)  # for Ray's own lines to come
        driver.terminate()
        assert driver.wait(timeout=20) == 143
    name = re.search(r"\[(\w)\] third: is there", there)[1]
    lost, again = said.read_text().removeprefix(there).splitlines()[:2]
    assert re.fullmatch(rf"\[{name}\] lost: [^.]*\bnode\b[^.]*\.", lost)
    assert again == f"{name} was killed by SIGKILL: starting it once more"
    assert "raylet" not in said.read_text().lower() and len(said.read_text().splitlines()) <= 6


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_a_cluster_that_is_not_there_is_one_line(address, tiny, tmp_path):
    """A wrong address: one line, exit 3, and nothing is written."""
    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path, "--batch-size", 8]
    with pytest.raises(UserError, match=f"--address: there is no Ray cluster at {address} ") as refused:
        train_fold.main([*map(str, places), "--engine", "ray", "--address", address])
    assert refused.value.exit_code == 3 and not list(tmp_path.iterdir())
