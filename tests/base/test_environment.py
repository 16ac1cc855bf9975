"""Paths, locale, time zone, temporary folder, others' settings: none of them changes a byte of what is written.

FIVEFOLD_FAULTS=full tries them one by one; else all at once, which passes only if each does.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, words

FOLDER = "-é 猫 x"  # a leading dash, an accent, another script, spaces
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FOREIGN = "mixed_precision: bf16\nnum_processes: 3\ndistributed_type: MULTI_GPU\n"

# What differs from a plain start; T stands for the folder of the test.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "path": {},
    "locale": PLAIN_C,
    "ascii": {**PLAIN_C, "PYTHONIOENCODING": "ascii"},
    "time zone": {"TZ": "Pacific/Kiritimati"},
    "temporary folder": {"TMPDIR": "/dev/shm"},
    "no temporary folder": {"TMPDIR": "/nope"},
    "accelerate": {"HF_HOME": "T/foreign"},
    "offline": {"HF_HUB_OFFLINE": "1", "HF_HOME": "T/empty"},
}
TOGETHER = {name: value for part in ENVIRONMENTS.values() for name, value in part.items()} | {"HF_HOME": "T/foreign"}
TRIED = ENVIRONMENTS if os.environ.get("FIVEFOLD_FAULTS") == "full" else {"all together": TOGETHER}

COMMANDS = [
    "folds --data={}/train.csv --folds={}/folds.csv",
    "train --run one --data={}/train.csv --folds={}/folds.csv --runs-dir={}/runs",
    "infer --runs one --test={}/test.csv --sample={}/sample.csv --runs-dir={}/runs",
    "blend --runs one two --folds={}/folds.csv --runs-dir={}/runs --sample={}/sample.csv",
]
COMPARED = ["folds.csv", *(f"runs/one/fold{k}/{name}" for k in range(3) for name in ("model.safetensors", "oof.npz"))]
COMPARED += [f"runs/{run}/{name}" for run in ("one", "ensemble") for name in ("test.npz", "submission.csv")]


@pytest.mark.parametrize("name", TRIED)
def test_the_whole_chain_gives_the_same_bytes(name, undisturbed, tmp_path, figures):
    """Folds, models, OOF and test predictions, submissions: sha256 for sha256 those of the undisturbed chain."""
    figures("environments", total=1)
    folder = tmp_path / FOLDER
    folder.mkdir()
    for table in ("train.csv", "test.csv", "sample.csv"):
        shutil.copy(undisturbed / table, folder)
    shutil.copytree(undisturbed / "runs" / "two", folder / "runs" / "two")  # the blend needs a second run
    (tmp_path / "foreign" / "accelerate").mkdir(parents=True)
    (tmp_path / "foreign" / "accelerate" / "default_config.yaml").write_text(FOREIGN)
    changed = {key: value.replace("T/", f"{tmp_path}/") for key, value in TRIED[name].items()}
    commands = [[part.replace("{}", FOLDER) for part in words(command)] for command in COMMANDS]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "pipeline.py"), json.dumps(commands)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", **changed},
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    different = [path for path in COMPARED if (folder / path).read_bytes() != (undisturbed / path).read_bytes()]
    assert not different
    figures("environments", done=1)


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """What a user types."""
    command = command.replace("folds.py", f"{sys.executable} {ROOT / 'folds.py'}")
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env={**os.environ, **environment}, capture_output=True, timeout=100
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, undisturbed, tmp_path):
    """A script whose output is closed does its work all the same, and never writes its words into a file."""
    done = shell(f"folds.py --data {undisturbed}/train.csv --folds new.csv --k 3 {closed}", tmp_path)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert (tmp_path / "new.csv").read_bytes() == (undisturbed / "folds.csv").read_bytes()


def test_a_reader_that_has_enough(undisturbed, tmp_path):
    """`| head -1` ends a script without a traceback."""
    done = shell(f"folds.py --check --data {undisturbed}/train.csv --folds {undisturbed}/folds.csv | head -1", tmp_path)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("name", ["two\nlines.csv", "é 猫.csv", "-dash.csv", "x" * 255])
def test_a_mistake_in_an_odd_path_is_one_line(name, tmp_path):
    """A newline in a file's name does not make two lines of an error; any locale can print it."""
    command = f"folds.py --folds new.csv --data='{name}'"
    for environment in ({}, PLAIN_C):
        done = shell(command, tmp_path, **environment)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr
        assert done.stderr.startswith(b"error: ")


@pytest.mark.parametrize("environment", [{}, PLAIN_C], ids=["as it is", "C"])
def test_photos_with_accents_in_any_locale(environment, undisturbed, tmp_path):
    """An image named in a table is found whatever the locale says of file names."""
    (tmp_path / "é").mkdir()
    lines = ["image,label"]
    for number in range(6):
        shutil.copy(undisturbed / f"photos/images/train{number:02}.png", tmp_path / "é" / f"猫{number}.png")
        lines.append(f"猫{number}.png,{'ab'[number % 2]}")
    (tmp_path / "é" / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = shell("folds.py --data é/train.csv --folds new.csv --k 3", tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert "猫5.png,b" in (tmp_path / "new.csv").read_text(encoding="utf-8")


def test_a_name_that_is_no_text(undisturbed, tmp_path):
    """A file name in another encoding cannot be an id: an error with the folds file's name, and nothing is written."""
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(3):
            source = undisturbed / "photos" / "images" / f"train{number + 3 * (label == 'b'):02}.png"
            shutil.copy(source, os.fsencode(tmp_path / "photos" / label) + b"/\xff%d.png" % number)
    done = shell("folds.py --data photos --folds new.csv --k 3", tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1
    assert not (tmp_path / "new.csv").exists()


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("*.py")))
def test_a_python_without_the_packages_gets_one_line(script):
    """Outside of the environment, which is how a newcomer starts; each script says what to install."""
    bare = [sys.executable, "-S", "-I", "-c", f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r})"]
    bare[-1] += f"; sys.argv = [{script!r}]; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    answer = subprocess.run(bare, capture_output=True, text=True)
    [line] = answer.stderr.splitlines()
    assert answer.returncode == 3 and "lacks numpy, pandas" in line and "pip install numpy pandas" in line


HOW_THREADS_WAIT = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("said", "found"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_waiting_threads_sleep_unless_the_user_says_how_they_wait(said, found):
    """libgomp reads its setting when torch loads it, so it stands before a script begins; the user's own stays."""
    code = (
        "import os; from common.base.errors import run_script as run; run(lambda: print(os.getenv('GOMP_SPINCOUNT')))"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in HOW_THREADS_WAIT}
    done = subprocess.run(
        [sys.executable, "-c", code.format(HOW_THREADS_WAIT[0])],
        cwd=ROOT,
        env=inherited | said,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == found, done.stderr
