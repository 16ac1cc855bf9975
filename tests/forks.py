"""Run our scripts hundreds of times without paying for their imports each time: a server that forks.

Started as a script, this file imports every script of ours (and torch, where asked for) and then, for every line of
JSON it reads, forks a child that runs one script's real main as a user would start it: own arguments, folder,
environment, exit code, stdout and stderr. What the child did that a file must never cause (audit events) comes back
with its answer.
"""

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("folds", "train_fold", "infer", "ensemble", "average", "report", "sweep")
WATCHED = ("pickle.find_class", "socket.connect", "socket.bind", "os.system", "os.exec", "subprocess.Popen")
HARMLESS = ("nvidia-smi", "ldconfig")  # programs that count GPUs and find libraries
LONGEST = 120  # seconds that a child may take


@dataclass(frozen=True)
class Answer:
    """What a script did."""

    code: int
    out: str
    err: str
    seconds: float
    torch: bool  # whether it imported torch
    events: list[str] = field(default_factory=list)  # audit events of WATCHED
    opened: list[str] = field(default_factory=list)  # paths opened, where asked for


class Forks:
    """A server of one kind: ``torch`` says whether its children find torch already imported."""

    def __init__(self, folder: Path, torch: bool):
        self.folder, self.count = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        environment["HF_HOME"] = str(folder / "hub")  # nothing is in it
        command = [sys.executable, __file__, *["torch"] * torch]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, command: list[str], folder: Path, opened: bool = False, **environment: str) -> Answer:
        """Run ``command`` (a script's file name and its arguments) in ``folder``."""
        self.count += 1
        answer = self.folder / str(self.count)
        request = {"command": command, "folder": str(folder), "answer": str(answer), "opened": opened}
        self.process.stdin.write(json.dumps(request | {"environment": environment}) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        said = [Path(f"{answer}.{stream}").read_bytes().decode(errors="replace") for stream in ("out", "err")]
        facts = Path(f"{answer}.json")
        facts = json.loads(facts.read_text()) if facts.exists() else {"torch": False}  # killed: it says nothing
        return Answer(found["code"], *said, found["seconds"], **facts)

    def close(self) -> None:
        """End the server."""
        self.process.kill()
        self.process.wait()


def serve(torch: bool) -> None:
    """Import, then answer each request with the exit code and seconds of a child; a child that hangs is ended."""
    sys.path.insert(0, str(ROOT))
    modules = {name: importlib.import_module(name) for name in SCRIPTS}
    for name in ("typeguard", "sklearn.datasets", "sklearn.model_selection", "scipy.optimize", "scipy.sparse.csgraph"):
        importlib.import_module(name)  # what they or their libraries import when they need it
    importlib.import_module("common.base.cli").parse(modules["folds"].Options, [])  # what tyro imports as it parses
    if torch:
        for name in ("accelerate", "common.train.build", "common.model.weights", "common.report.figures"):
            importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")  # the children's stdout is their own
    for line in sys.stdin:
        request, started = json.loads(line), time.monotonic()
        child = os.fork()
        if not child:
            run_child(modules, request)
        code = None
        while code is None:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - started > LONGEST:
                os.kill(child, 9)
            time.sleep(0.002)
        answers.write(json.dumps({"code": code, "seconds": time.monotonic() - started}) + "\n")
        answers.flush()


def run_child(modules: dict, request: dict) -> None:
    """Become the script that the request names, and leave."""
    for descriptor, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{request['answer']}.{stream}", os.O_WRONLY | os.O_CREAT, 0o666), descriptor)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    sys.argv = request["command"]
    events, opened, code = [], [], 0

    def watch(event: str, arguments: tuple) -> None:
        if event in WATCHED and not (event == "subprocess.Popen" and Path(str(arguments[0])).name in HARMLESS):
            events.append(f"{event} {arguments}")
        elif event == "open" and request["opened"]:
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    try:
        import common.base.errors

        common.base.errors.run_script(modules[Path(sys.argv[0]).stem].main)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    facts = {"torch": "torch" in sys.modules, "events": list(events), "opened": list(opened)}
    Path(f"{request['answer']}.json").write_text(json.dumps(facts))
    os._exit(code)


if __name__ == "__main__":
    serve("torch" in sys.argv[1:])
