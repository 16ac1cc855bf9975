"""The import law: scripts -> common, never the other way, and no torch before the inputs are checked."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
MODULES = sorted(path.stem for path in (ROOT / "common").glob("*.py"))
WITHOUT_TORCH = ["calibration", "cells", "cli", "config", "errors", "files", "grid", "jobs", "law", "metrics", "plots"]
WITHOUT_TORCH += ["oof", "predictions", "regression", "runs", "schedules", "search", "splits", "submission", "system"]
WITHOUT_TORCH += ["blending", "blend_study", "nesting", "photos", "pixels", "tables", "text", "tta"]
WITHOUT_TORCH += ["audit", "evaluation", "evidence", "figures", "page", "records", "reliability", "report_blends"]
WITHOUT_TORCH += ["report_runs", "shortlist", "significance"]
WITHOUT_TORCH += ["cache", "decoding", "run_folder", "cluster", "deadline", "fold_jobs", "screen"]


def imports(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_nothing_imports_a_script():
    """Scripts and common import from common; a script is only ever run."""
    for path in [*ROOT.glob("*.py"), *(ROOT / "common").glob("*.py")]:
        assert not imports(path) & set(SCRIPTS), path.name


@pytest.mark.parametrize(
    "names", [SCRIPTS, [f"common.{module}" for module in WITHOUT_TORCH]], ids=["scripts", "common"]
)
def test_inputs_are_checked_before_torch_is_loaded(names):
    """Importing every script, and what folds.py, sweep.py and report.py stand on, leaves torch alone."""
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_module_has_a_name_that_says_nothing():
    """No utils, helpers or misc."""
    assert not {"utils", "util", "helpers", "misc"} & {*SCRIPTS, *MODULES}
