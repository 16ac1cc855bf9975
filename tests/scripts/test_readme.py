"""What the READMEs show works, in the order in which it stands, and the two languages show the same."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT

import average
import ensemble
import folds
import infer
import report
import sweep
import train_fold
from common.base.cli import parse
from common.runs.config import check_config

READMES = ("README.md", "README.zh.md")
CHINESE = sorted(ROOT.glob("*.zh.md")) + sorted((ROOT / "docs").glob("*.zh.md"))
OPTIONS = {
    "train_fold.py": train_fold.Train,
    "folds.py": folds.Options,
    "infer.py": infer.Options,
    "ensemble.py": ensemble.Options,
    "report.py": report.Options,
    "average.py": average.Options,
    **{f"sweep.py {name}": options for name, (options, _) in sweep.COMMANDS.items()},
}


FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def table_rows(readme: str) -> list[str]:
    """The rows of a README's tables."""
    return [line for line in (ROOT / readme).read_text(encoding="utf-8").splitlines() if line.startswith("|")]


def blocks(readme: str) -> list[str]:
    """The bash blocks of a README."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    return re.findall(r"```bash\n(.*?)```", text, re.DOTALL)


PAIRS = [(f"{path.relative_to(ROOT)}"[: -len(".zh.md")] + ".md", f"{path.relative_to(ROOT)}") for path in CHINESE]


@pytest.mark.parametrize("names", PAIRS, ids=lambda names: names[0])
def test_both_languages_show_the_same_commands(names):
    """The commands of a page are equal in English and Chinese, comments aside; so are the flags that a row names."""
    bare = [[re.sub(r"\s*#.*", "", block) for block in blocks(name)] for name in names]
    assert bare[0] == bare[1]
    for lines in (table_rows, lambda name: [(ROOT / name).read_text("utf-8")]):
        named = [[sorted(set(FLAG.findall(line))) for line in lines(name)] for name in names]
        assert named[0] == named[1]


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_each_page_begins_with_what_to_type(path):
    """What to type, what to expect, when not to: in three lines before all else."""
    before_all_else = path.read_text(encoding="utf-8").split("\n## ")[0].split("\n\n- ")[1].split("\n\n")[0]
    english, chinese = ("What to type", "What to expect", "When not to"), ("输入什么", "会怎样", "什么时候不用")
    assert tuple(re.findall(r"^(?:- )?\*\*(.*?)\*\*", before_all_else, re.MULTILINE)) in (english, chinese)


def test_every_file_that_the_readmes_name_exists():
    """Links, pictures and the table of files lead somewhere."""
    for name in READMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{name} names {target}"


@pytest.fixture
def one_core(torch_forks):
    """Others test at the same time: two threads would wait for each other."""
    server, cores = torch_forks.process.pid, os.sched_getaffinity(0)
    for process in (0, server):  # what they start has theirs
        os.sched_setaffinity(process, {min(cores)})
    yield
    for process in (0, server):
        os.sched_setaffinity(process, cores)


def test_the_commands_of_the_readme_run(torch_forks, one_core, tmp_path):
    """Each line that needs nothing but the clone, one after another in one folder; two folds and small nets do."""
    for part in ("common", "recipes"):
        shutil.copytree(ROOT / part, tmp_path / part)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = [block for block in blocks("README.md") if not block.startswith("# needs")]
    for line in "".join(ours).replace("--epochs 2", "--epochs 1").replace("(32,64,128)", "(4,8,16)").splitlines():
        line = re.sub(r"^(python folds\.py)", r"\1 --k 2", line)
        program, *words = shlex.split(line, comments=True)
        if program == "python":
            done = torch_forks.run(words, tmp_path)
            assert done.code == 0, f"{line}\n{done.err}"
        else:
            done = subprocess.run(line, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True)
            assert done.returncode == 0, f"{line}\n{done.stderr.decode()}"
    assert (tmp_path / "runs" / "ensemble" / "submission.csv").exists() and (tmp_path / "report.html").exists()


def test_every_flag_that_the_readme_names_is_one_of_ours():
    """What stands in backticks can be typed: flags exist, their values are taken, of a training they go together."""
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    typed = re.findall(r"`((?:--|[a-z_]+\.py )[^`]*)`", text)
    assert len(typed) > 60
    for code in typed:
        words = shlex.split(code.replace("\\|", "|"))
        script = next((name for name in OPTIONS if code.startswith(name)), None)
        if script is None and words[0].endswith(".py"):
            assert words[0] in OPTIONS, code
        first = next((number for number, word in enumerate(words) if word.startswith("--")), len(words))
        flags = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")} - {"help"}
        takes = [OPTIONS[script]] if script else [one for one in OPTIONS.values() if flags <= _names(one)]
        assert takes and flags <= _names(takes[0]), code
        if len(words) > first + 1:
            options = parse(takes[0], words[first:])
            if takes[0] is train_fold.Train and not {"FILE", "RUN", "NAME"} & {*words}:
                check_config(options.of_task, 1)


def _names(options: type) -> set[str]:
    return {field.name for field in fields(options)}


@pytest.mark.parametrize("name", READMES)
def test_a_table_has_as_many_cells_in_each_row(name):
    """A bar inside of a cell is escaped, else the rest of its row is not shown."""
    for table in re.findall(r"(?:^\|.*\n)+", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table[:80]
