"""Bad inputs, one row of faults.csv each: one line that says where and what is wrong, and nothing is changed.

A row's columns: id (of the catalogue of faults, with a letter); silent: yes where a lenient program would go on to a
plausible wrong score; what is wrong; inject, done to a copy of the undisturbed folder (tests/injections.py); command,
run in it; torch: yes where the fault shows only after torch is imported; code, the exit code; says, a pattern of the
one line on stderr (empty: nothing is said); same: where the fault must do no harm, a file that the command must write
and the undisturbed one that it must equal.
"""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path
from stat import S_ISDIR

import pytest
from conftest import ROOT, words
from injections import inject

with (ROOT / "tests" / "faults.csv").open(encoding="utf-8", newline="") as file:
    CASES = list(csv.DictReader(file, strict=True))
IN_A_PROCESS_OF_ITS_OWN = ("T5a", "F1a", "I1a")  # one of each kind as a user starts it


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file, link and folder below ``folder`` with the time of its last change; a lock's does not count."""
    found = {path.relative_to(folder): path.lstat() for path in sorted(folder.rglob("*")) if path.name != ".lock"}
    return {name: (stat.st_mode, 0 if S_ISDIR(stat.st_mode) else stat.st_mtime_ns) for name, stat in found.items()}


@pytest.fixture(scope="module")
def copy(undisturbed, tmp_path_factory):
    """A copy of the undisturbed folder for all cases: copying it anew for hundreds of them would take minutes."""
    folder = tmp_path_factory.mktemp("faults") / "T"
    shutil.copytree(undisturbed, folder)
    return folder


@pytest.fixture
def folder(copy, undisturbed):
    """The copy, put back as it was after the case."""
    yield copy
    whole, now = files_of(undisturbed), files_of(copy)
    for name in [name for name in now if now[name] != whole.get(name)]:
        path = copy / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # a folder above may be gone already
    for name in [name for name in whole if not (copy / name).exists()]:
        if (undisturbed / name).is_dir():
            (copy / name).mkdir()
        else:
            shutil.copy2(undisturbed / name, copy / name)


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_fault(case, folder, undisturbed, request, figures):
    """One line on stderr with the right file and place, the right exit code, no traceback, all files as they were."""
    names = ("faults", "silent") if case["silent"] else ("faults",)
    for name in names:
        figures(name, total=1)
    inject(folder, case["inject"])
    before = files_of(folder)
    server = request.getfixturevalue("torch_forks" if case["torch"] else "forks")
    answer = server.run(words(case["command"]), folder)
    assert "Traceback" not in answer.err, answer.err
    assert answer.code == int(case["code"]), f"{answer.out}\n{answer.err}"
    lines = answer.err.splitlines()
    kind = "warning" if answer.code in (0, 1) else "error"
    if case["says"]:
        assert re.search(f"^{kind}: {case['says']}", answer.err, re.MULTILINE), answer.err
    if kind == "error":
        assert len([line for line in lines if not line.startswith("warning: ")]) == 1, answer.err
        assert answer.err.count("; ") >= 1, f"no remedy in: {answer.err}"
        after = files_of(folder)
        assert after == before, sorted({*after.items()} ^ {*before.items()})
    elif not case["says"]:
        assert not lines, answer.err
    if case["same"]:
        written, model = case["same"].split("=")
        assert (folder / written).read_bytes() == (undisturbed / model).read_bytes()
    assert answer.torch == bool(case["torch"]), "the fault must be found before torch is imported"
    assert not answer.events, answer.events
    for name in names:
        figures(name, done=1)


def test_the_table_of_faults_is_whole():
    """Enough cases, the silent-wrong ones among them; each id once."""
    assert len(CASES) >= 150 and len({case["id"] for case in CASES}) == len(CASES)
    assert sum(bool(case["silent"]) for case in CASES) >= 30


@pytest.mark.parametrize("name", IN_A_PROCESS_OF_ITS_OWN)
def test_a_process_of_its_own_says_the_same(name, folder):
    """What the forked children say is what a user sees who starts the script."""
    [case] = [case for case in CASES if case["id"] == name]
    inject(folder, case["inject"])
    script, *arguments = words(case["command"])
    command = [sys.executable, str(ROOT / script), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == int(case["code"])
    assert re.fullmatch(f"error: {case['says']}.*\n", done.stderr), done.stderr
