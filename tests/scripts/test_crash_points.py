"""Killed, or out of disk, at each system call of each writer: a reader finds the old file or the new one, whole."""

import ast
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from disturbed import FULL, Child, calls_of, strace
from forked import WRITERS

FAULTS = {"SIGKILL": "signal=SIGKILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}
# Where an error must be said; elsewhere (closing, looking for strays) the file may be written all the same.
NEEDED = ("write", "fsync", "rename")
NEVER_FAIL = ("lseek", "ioctl")  # on a file in a folder; zipfile would write another form of the same archive


@pytest.fixture(scope="module")
def written(server, tmp_path_factory) -> dict[str, dict]:
    """Of each writer: its file's first and second version, and the system calls that made the second."""
    folder = tmp_path_factory.mktemp("written")
    results = {}
    for name in WRITERS:
        target = folder / name / name
        assert server.start("write", name, target.parent, 1).wait() == 0
        old, log = target.read_bytes(), folder / f"{name}.log"
        with strace(server.pid, "-y", "-e", "trace=%file,%desc", log=log):
            child = server.start("write", name, target.parent, 2)
            assert child.wait() == 0, child.said()
        calls = [call for call in calls_of(log, child.pid) if str(target.parent) in call[2]]
        results[name] = {"path": target, "old": old, "new": target.read_bytes(), "calls": calls}
        assert results[name]["old"] != results[name]["new"]
    return results


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_on_disk_before_its_name_is(written, name):
    """The order that a power cut asks for: sync the temporary file, rename it, sync the folder."""
    folder = str(written[name]["path"].parent)
    lines = [line for call, _, line in written[name]["calls"] if call in ("fsync", "rename")]
    assert [line.split("(")[0].split()[-1] for line in lines] == ["fsync", "rename", "fsync"], lines
    temporary = lines[1].split('"')[1]
    assert temporary.endswith(".tmp") and Path(temporary).parent == Path(folder)
    assert f"<{temporary}>" in lines[0] and f"<{folder}>" in lines[2]
    last_write = max(number for number, call in enumerate(written[name]["calls"]) if call[0] == "write")
    assert last_write < next(number for number, call in enumerate(written[name]["calls"]) if call[0] == "fsync")


@pytest.mark.parametrize("fault", FAULTS)
def test_every_crash_point_leaves_a_whole_file(server, written, figures, fault):
    """Each call that touches the folder, of each writer, is where it is killed or refused; no stray file stays.

    Without `make faults` all calls are refused to one writer, and to the others those that matter.
    """
    points: dict[tuple[str, int], list[str]] = {}
    for name, result in written.items():
        for call, number, _ in result["calls"]:
            refusable = call not in NEVER_FAIL and (FULL or name == "weights.json" or call in NEEDED)
            if fault == "SIGKILL" or refusable:
                points.setdefault((call, number), []).append(name)
    total = sum(map(len, points.values()))
    figures("points", total=total)
    for (call, number), names in points.items():
        with strace(server.pid, "-e", f"trace={call}", "-e", f"inject={call}:{FAULTS[fault]}:when={number}"):
            for name in names:
                written[name]["path"].write_bytes(written[name]["old"])
                child = server.start("write", name, written[name]["path"].parent, 2)
                check(child, written[name], fault, call, number)
    for name, result in written.items():
        assert server.start("write", name, result["path"].parent, 2).wait() == 0
        assert [path.name for path in result["path"].parent.iterdir()] == [name]
    figures("points", done=total)


def check(child: Child, result: dict, fault: str, call: str, number: int) -> None:
    """What a reader finds after a fault, and what was said about it."""
    exit_code, said, where = child.wait(), child.said(), f"{result['path'].name}, {fault} at {call} {number}"
    content = result["path"].read_bytes() if result["path"].exists() else b""
    assert content in (result["old"], result["new"]), f"{where}: {len(content)} bytes, of neither version"
    if fault == "SIGKILL":
        assert exit_code == -9, where
    elif exit_code:
        assert exit_code == 3 and said.count("\n") == 1, f"{where}: {said}"
        assert said.startswith(f"error: {result['path']}: cannot be written ("), where
    else:
        assert call not in NEEDED and content == result["new"], where


def test_a_disk_that_fills_keeps_the_old_file(server, written, tmp_path):
    """Half the bytes fit (a limit on file sizes): one line with exit 3, the old file, no stray beside it."""
    for name, result in written.items():
        path = tmp_path / name / name
        path.parent.mkdir()
        path.write_bytes(result["old"])
        child = server.start("write", name, path.parent, 2, limits={"RLIMIT_FSIZE": len(result["new"]) // 2})
        assert child.wait() == 3 and child.said().count("\n") == 1, child.said()
        assert path.read_bytes() == result["old"] and [each.name for each in path.parent.iterdir()] == [name]


def test_a_living_writers_file_is_no_stray(tmp_path):
    """Another writer removes what was left behind, and lets alone what is being written."""
    from common.base.files import _temporary_beside, write_file

    (tmp_path / ".model.0123abcd.tmp").touch()
    (tmp_path / ".my own.tmp").touch()
    with _temporary_beside(tmp_path / "model") as living:
        write_file(tmp_path / "other", "text")
        assert {path.name for path in tmp_path.iterdir()} == {Path(living.name).name, "other", ".my own.tmp"}


# Calls that write a file, and where they may stand: into a buffer in memory, or into what only grows.
WRITES = {"open", "fdopen", "write_text", "write_bytes", "to_csv", "to_json", "to_parquet", "savefig", "save", "savez"}
WRITES |= {"savez_compressed", "save_file", "dump", "imsave", "copy", "copyfile", "copytree", "move", "tofile"}
ALLOWED = {
    ("files.py", "path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp').open('xb')"),  # the writer itself
    ("files.py", "figure.savefig(file, format='png', dpi=110, metadata={'Software': None})"),  # write_file's own
    ("locks.py", "path.open('a+', encoding='utf-8')"),  # a lock
    ("system.py", "os.open(folder, os.O_RDONLY)"),  # to sync it
    ("errors.py", "os.open(os.devnull, os.O_WRONLY)"),
    ("errors.py", "os.open(os.devnull, os.O_RDWR)"),
    ("errors.py", "os.fdopen(os.open(os.devnull, os.O_RDWR), 'r' if name == 'stdin' else 'w')"),
    ("tensors.py", "safetensors.torch.save(plain, {METADATA_KEY: text})"),  # bytes
    ("predictions.py", "np.savez(file, **arrays)"),  # write_file's own
    ("process.py", "Path(job.folder, job.log).open('ab')"),  # what a job prints, line by line
    ("process.py", "os.fdopen(writing, 'wb')"),  # a pipe's two ends, as are the next ones
    ("process.py", "os.fdopen(reading, encoding='utf-8', errors='replace', newline='')"),
    ("fork_server.py", "os.fdopen(theirs, 'wb')"),
    ("fork_server.py", "os.fdopen(status, encoding='ascii')"),
    ("fork_server.py", "os.open(os.devnull, os.O_WRONLY)"),
    ("train_fold.py", "training.save(folder / CHECKPOINT_FILE, saved)"),  # ours: save_tensors
}


def writing_calls(path: Path) -> set[str]:
    """Calls in a source file that may write a file other than through write_file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        text, values = ast.unparse(node), [*node.args, *(keyword.value for keyword in node.keywords)]
        if name not in WRITES:
            continue
        if name == "open":
            modes = [value.value for value in values if isinstance(value, ast.Constant)]
            reads = not any(isinstance(mode, str) and set(mode) & set("wax+") and len(mode) < 4 for mode in modes)
            if reads and not text.startswith("os.open"):
                continue
        elif name in ("to_csv", "to_json") and not node.args:
            continue  # a text
        elif node.args and ast.unparse(node.args[0]) == "content" or name == "copy" and not text.startswith("shutil"):
            continue  # a buffer in memory; a copy in memory
        found.add(text)
    return found


def test_there_is_one_writer():
    """Every file of the product is written by write_file, whose crash points are all tried above."""
    for path in [*ROOT.glob("*.py"), *(ROOT / "common").rglob("*.py")]:
        surplus = {call for call in writing_calls(path) if (path.name, call) not in ALLOWED}
        assert not surplus, f"{path.name} writes by itself: {surplus}"


def test_the_one_writer_test_can_fail(tmp_path):
    """It finds the usual ways round the writer."""
    ways = [
        "frame.to_csv(path)",
        "open(path, 'w')",
        "path.write_text('')",
        "np.savez(path, a=1)",
        "figure.savefig(path)",
    ]
    for way in ways:
        (tmp_path / "script.py").write_text(way)
        assert writing_calls(tmp_path / "script.py") == {way}
    shutil.rmtree(tmp_path)
