"""What the READMEs show works, and the two languages show the same."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def blocks(readme: str) -> list[str]:
    """The bash blocks of a README, without their comments at line ends."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    return re.findall(r"```bash\n(.*?)```", text, re.DOTALL)


def test_both_languages_show_the_same_commands():
    """The commands of README.md and README.zh.md are equal, comments aside."""
    bare = [[re.sub(r"\s*#.*", "", block) for block in blocks(name)] for name in ("README.md", "README.zh.md")]
    assert bare[0] == bare[1] and len(bare[0]) >= 5


def test_every_file_that_the_readmes_name_exists():
    """Links and the table of files lead somewhere."""
    for name in ("README.md", "README.zh.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{name} names {target}"


@pytest.mark.parametrize("block", [block for block in blocks("README.md") if not block.startswith("# needs")])
def test_the_commands_of_the_readme_run(block, tmp_path):
    """Each block without `# needs ...`, line by line, in a fresh copy of the repository."""
    for part in ("common", "recipes"):
        shutil.copytree(ROOT / part, tmp_path / part)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    one_core = {min(os.sched_getaffinity(0))}  # others test at the same time: two threads would wait for each other
    for line in block.strip().splitlines():
        done = subprocess.run(
            line,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            preexec_fn=lambda: os.sched_setaffinity(0, one_core),
        )
        assert done.returncode == 0, f"{line}\n{done.stderr.decode()}"
    assert (tmp_path / "runs" / "ensemble" / "submission.csv").exists()
