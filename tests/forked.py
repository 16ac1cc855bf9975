"""Started by tests, not collected: a process that has imported everything and forks a child for each thing to do.

A start costs a hundredth of what importing torch costs, so that faults can be tried by the hundred. It is sent one JSON
object at a time, and answers with one:

    {"do": ["train_fold", "--fold", "0"], "environment": {}, "said": "log"}    -> {"pid": 17}: a script's main
    {"do": ["write", "checkpoint", "folder", "2"], "said": "log"}              -> one of WRITERS, as its second version
    {"wait": 17}                                                               -> {"exit": 0}, or minus the signal
"""

import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import train_fold
from common.base import system  # noqa: F401
from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import write_file, write_json
from common.data import batches  # noqa: F401
from common.data.folds import Folds, write_folds
from common.runs.forms import Sheet
from common.runs.predictions import Predictions, write_predictions
from common.runs.submission import sheet_of, submission_text
from common.runs.tensors import save_tensors
from common.train import hardware, loop, trackers, training  # noqa: F401

IDS = np.array([str(number) for number in range(2000)], dtype=object)
LABELS = np.array(["cat", "dog"], dtype=object)[np.arange(2000) % 2]


def asked(version: int) -> tuple[Predictions, Sheet]:
    return predictions(version), sheet_of(predictions(version))


def predictions(version: int) -> Predictions:
    """Two thousand rows whose numbers tell the version."""
    logits = np.stack([np.arange(2000) % 7, np.full(2000, version)], axis=1).astype(np.float32)
    return Predictions(IDS, logits, ["cat", "dog"], LABELS, np.arange(2000) % 3)


def write_checkpoint(path: Path, version: int) -> None:
    save_tensors(path, {"weight": torch.full((300_000,), float(version))}, {"log": [{"epoch": version}]})


def write_folds_file(path: Path, version: int) -> None:
    shas = np.array([f"{number:016x}" for number in range(2000)], dtype=object)
    write_folds(path, Folds(IDS, LABELS, (np.arange(2000) + version) % 3, shas, np.empty(0, dtype=object)))


def write_table(path: Path, version: int) -> None:
    write_file(path, pd.DataFrame({"epoch": range(2000), "lr": float(version)}).to_csv(index=False))


WRITERS = {
    "checkpoint.safetensors": write_checkpoint,
    "oof.npz": lambda path, version: write_predictions(path, predictions(version)),
    "folds.csv": write_folds_file,
    "submission.csv": lambda path, version: write_file(
        path, submission_text(path, predictions(version), sheet_of(predictions(version)))
    ),
    "weights.json": lambda path, version: write_json(path, {"weights": {"a": version}, "rest": list(range(2000))}),
    "sweep.csv": write_table,
    "log.csv": write_table,
    "report.html": lambda path, version: write_file(path, f"<html>{version}</html>" * 20_000),
}


def child(order: dict) -> None:
    """Do what is ordered, as a process of its own would: its output to a file, its exit code that of a script."""
    said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for descriptor in (1, 2):
        os.dup2(said, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order.get("environment", {}))
    for limit, value in order.get("limits", {}).items():
        resource.setrlimit(getattr(resource, limit), (value, value))
    system.end_with_parent.__defaults__ = (os.getppid(),)  # as if it had been imported here
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    verb, *arguments = order["do"]
    if verb == "write":
        name, folder, version = arguments
        run_script(lambda: WRITERS[name](Path(folder) / name, int(version)))
    else:
        main = importlib.import_module(verb).main
        run_script(lambda: main(arguments))


def serve() -> None:
    """Answer orders until the input ends."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: strace may watch us
    torch.set_num_threads(1)
    parse(train_fold.Train, [])  # what tyro imports as it parses
    with tempfile.TemporaryDirectory() as folder:  # once before anything is counted: the first call imports on its way
        for name, write in WRITERS.items():
            write(Path(folder) / name, 0)
    # A socket: what goes over it is none of the system calls at which a fault is tried.
    link = socket.socket(fileno=int(sys.argv[1]))

    def answer(**words: int) -> None:
        link.send(json.dumps(words).encode())

    answer(pid=os.getpid())
    while line := link.recv(1 << 16):
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            answer(exit=os.waitstatus_to_exitcode(status))
            continue
        pid = os.fork()
        if pid == 0:
            try:
                child(order)
            except SystemExit as end:
                os._exit(end.code or 0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        answer(pid=pid)


if __name__ == "__main__":
    serve()
