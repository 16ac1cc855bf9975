"""The import law: scripts -> common, never the other way, and no torch before the inputs are checked."""

import ast
import subprocess
import sys

from conftest import ROOT

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
MODULES = sorted((ROOT / "common").glob("*/*.py"))
# Rooms from left to right; a room imports from those to its left, jobs and score know nothing of one another.
ROOMS = ["base", "jobs", "score", "data", "trust", "runs", "model", "train", "sweep", "report"]
STRANGERS = [{"jobs", "score"}]
# Where torch may stand at the top of a file.
WITH_TORCH = {"model", "train"}
WITH_TORCH |= {f"data.{name}" for name in ("batches", "inputs", "frames", "lessons", "scales", "geometry", "mixing")}
WITH_TORCH |= {"data.augment", "data.transfer"}
WITH_TORCH |= {"runs.tensors", "score.softmax_ensemble", "sweep.range_test"}


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
    for path in [*ROOT.glob("*.py"), *(ROOT / "common").rglob("*.py")]:
        assert not imports(path) & set(SCRIPTS), path.name


def test_inputs_are_checked_before_torch_is_loaded():
    """Importing every script, and every file of common that is not one of the few with torch at their top, leaves
    torch alone."""
    files = [(path.parent.name, path.stem) for path in MODULES if path.stem != "__init__"]
    names = [f"common.{room}.{name}" for room, name in files if not {room, f"{room}.{name}"} & WITH_TORCH]
    code = f"import sys, {', '.join(SCRIPTS + names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_rooms_import_from_the_rooms_to_their_left():
    """The order of common/'s rooms; nothing lies outside of a room."""
    assert [path.name for path in (ROOT / "common").glob("*.py")] == ["__init__.py"]
    for path in MODULES:
        own = path.parent.name
        for other in {name.split(".")[1] for name in imports(path) if name.startswith("common.")}:
            assert ROOMS.index(other) <= ROOMS.index(own), f"{path} imports {other}"
            assert {own, other} not in STRANGERS, f"{path} imports {other}"


def test_no_files_import_one_another_in_a_circle():
    """Those at the top of a file count, type hints' too."""
    left = {}
    for path in MODULES:
        top = [
            node for node in ast.parse(path.read_text(encoding="utf-8")).body if not isinstance(node, ast.FunctionDef)
        ]
        named = {each.module for node in top for each in ast.walk(node) if isinstance(each, ast.ImportFrom)}
        left[f"common.{path.parent.name}.{path.stem}"] = named
    while free := {name for name, named in left.items() if not named & left.keys()}:
        left = {name: named for name, named in left.items() if name not in free}
    assert not left


def test_no_module_has_a_name_that_says_nothing():
    """No utils, helpers or misc."""
    assert not {"utils", "util", "helpers", "misc"} & {*SCRIPTS, *(path.stem for path in MODULES)}
