"""What holds for one class a row holds for every kind of answer and of inputs: killed, shared, told by flags, swept."""

import csv
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import write_pixel_csv, write_sweep
from disturbed import Server, start_together, strace

import folds
import sweep
import train_fold
from common.base.files import read_json
from common.runs.predictions import read_predictions
from common.score.bootstrap import interval_of
from common.score.task import TASKS
from common.sweep.cells import read_sweep

ROWS, K = 48, 2
RESULTS = ("model.safetensors", "oof.npz")
# Adam would blow rounding up, and processes draw dropout each for itself.
FLAGS = ["--run=it", "--batch-size=12", "--epochs=4", "--opt=sgd", "--lr=0.05", "--threads=1", "--channels-last=no"]
FLAGS += ["--warmup-epochs=0.5", "--ema-decay=0.9", "--mixed-precision=no"]


def numbers_of(folder: Path) -> list[str]:
    """A table of four numbers a row, and another that hangs on two of them."""
    rows = np.random.default_rng(0).normal(size=(ROWS, 4))
    with (folder / "train.csv").open("w", newline="") as file:
        lines = [[f"r{at}", *row.round(4).tolist(), round(50 + 9 * row[0] + row[1], 3)] for at, row in enumerate(rows)]
        csv.writer(file).writerows([["id", "a", "b", "c", "d", "label"], *lines])
    return ["--task=regression", "--inputs=features", "--label-column=label"]


def sets_of_pixels(folder: Path) -> list[str]:
    """Pictures whose left, upper and middle parts may be bright, and the set of those that are."""
    random = np.random.default_rng(0)
    has, images = random.random((ROWS, 3)) < 0.5, random.integers(0, 60, (ROWS, 8, 8))
    for number, part in enumerate((np.s_[:, :3], np.s_[:3, :], np.s_[3:6, 3:6])):
        images[has[:, number], *part] += 150
    names = np.array(["left", "upper", "middle"])
    write_pixel_csv(folder / "train.csv", images.astype(np.uint8), [" ".join(names[row]) for row in has])
    return ["--task=multilabel", "--label-column=label"]


def sequences_of(folder: Path) -> list[str]:
    """Sequences of 3 to 20 frames in which one of three numbers is loud."""
    random, lines = np.random.default_rng(0), ["id,features,label"]
    for row in range(ROWS):
        frames = random.normal(size=(random.integers(3, 21), 4)).astype(np.float32)
        frames[:, row % 3] += 2
        np.save(folder / f"s{row}.npy", frames)
        lines.append(f"s{row},s{row}.npy,kind {row % 3}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return ["--label-column=label"]


def frames_of(folder: Path) -> list[str]:
    """Utterances of 15 to 30 frames, each of which says what it is."""
    random, lines = np.random.default_rng(0), []
    for number in range(12):
        kinds = random.integers(3, size=random.integers(15, 31))
        frames = random.normal(size=(len(kinds), 4)).astype(np.float16)
        frames[np.arange(len(kinds)), kinds] += 2
        np.save(folder / f"u{number}.npy", frames)
        lines.append(" ".join([f"u{number}", *map(str, kinds)]))
    (folder / "train_labels.txt").write_text("\n".join(lines) + "\n")
    return ["--targets=frames"]


@dataclass(frozen=True)
class Case:
    """What is trained on, and how."""

    task: str
    write: Callable[[Path], list[str]]  # into a folder; what folds.py is to be told of it
    flags: tuple[str, ...] = ()  # beside FLAGS
    data: str = "train.csv"


CASES = {
    "sets": Case(
        "multilabel",
        sets_of_pixels,
        ("--model=test_vit", "--model-args", "patch_size=4", "--augment=none", "--augment-args", "mixup=0.3"),
    ),
    "numbers": Case("regression", numbers_of, ("--offset=b", "--drop", "c")),
    "sequences": Case(
        "multiclass",
        sequences_of,
        ("--model-args", "widths=(8,8)", "drop_rate=0.0", "head_drop_rate=0.0", "--crop-frames=15"),
    ),
    "frames": Case(
        "multiclass",
        frames_of,
        ("--model=frame_cnn", "--window=2", "--model-args", "widths=(8,8)", "dilations=(1,1)", "kernel=3")
        + ("drop_rate=0.0", "head_drop_rate=0.0"),
        data="",
    ),
}


@dataclass(frozen=True)
class Trained:
    """A case whose first fold has been trained by one process that nothing disturbed."""

    case: Case
    folder: Path

    def command(self, runs_dir: Path, *more: str) -> list[str]:
        """The training's arguments, for a run in another folder."""
        at = [
            f"--data={self.folder / self.case.data}",
            f"--folds={self.folder / 'folds.csv'}",
            f"--runs-dir={runs_dir}",
        ]
        return [*at, *FLAGS, *self.case.flags, *more]

    def results(self, runs_dir: Path) -> dict[str, bytes]:
        """The bytes of the first fold's model and predictions."""
        return {name: (runs_dir / "it" / "fold0" / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module", params=CASES)
def trained(request, tmp_path_factory) -> Trained:
    """Each of the cases, whose OOF predictions are worth something."""
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    said = case.write(folder)
    folds.main([f"--data={folder / case.data}", *said, f"--k={K}", f"--work={folder}"])
    found = Trained(case, folder)
    train_fold.main([*found.command(folder), "--fold=0"])
    return found


def test_there_is_a_case_of_every_answer():
    assert {case.task for case in CASES.values()} == set(TASKS)


def test_a_folds_interval_is_by_what_its_rows_share(trained):
    """Frames of one utterance are alike: its line and metrics.json have an interval by utterances, others none."""
    metrics = read_json(trained.folder / "it" / "fold0" / "metrics.json")
    assert ("low" in metrics) == (trained.case is CASES["frames"])
    if "low" in metrics:
        oof = read_predictions(trained.folder / "it" / "fold0" / "oof.npz")
        utterances = np.array([name.split("/")[0] for name in oof.ids])
        assert (metrics["low"], metrics["high"]) == interval_of("accuracy", oof.answers(), utterances)


def test_killed_equals_uninterrupted(trained, server: Server, tmp_path):
    """SIGKILL within the save of the third epoch; the same command again, to the same bits."""
    with strace(server.pid, "-e", "trace=rename", "-e", "inject=rename:signal=SIGKILL:when=7"):
        child = server.start("train_fold", *trained.command(tmp_path), "--fold=0")
        assert child.wait() == -signal.SIGKILL, child.said()
    again = server.start("train_fold", *trained.command(tmp_path), "--fold=0")
    assert again.wait() == 0 and "resumes after epoch 2" in again.said(), again.said()
    assert trained.results(tmp_path) == trained.results(trained.folder)


def test_processes_and_accumulation_say_what_one_process_says(trained, server, tmp_path):
    """A global batch of twelve rows, in two halves of each of two processes: but for rounding."""
    children = start_together(server, 2, "train_fold", *trained.command(tmp_path, "--accumulate=2", "--fold=0"))
    assert [child.wait() for child in children] == [0, 0], children[0].said()
    one, several = (read_predictions(at / "it" / "fold0" / "oof.npz") for at in (trained.folder, tmp_path))
    assert several.ids.tolist() == one.ids.tolist() and one.logits.std() > 0.01
    np.testing.assert_allclose(several.logits, one.logits, rtol=1e-4, atol=1e-4 * one.logits.std())


def test_a_sweep_is_run_fitted_and_compared_with_the_range_test(trained, tmp_path):
    """A cell is trained with the task's own loss and scored by it; the law is of whatever loss the cells have.

    It is a process of its own, which is told the settings by flags as a fold beside others is, and learns the same.
    """
    command = [each for each in trained.command(tmp_path) if not each.startswith(("--batch-size", "--lr"))]
    sweep.main(["run", *command, "--batch-sizes", "12", "--lrs", "0.05", "--jobs=1"])
    [cell] = csv.DictReader((tmp_path / "it_sweep" / "sweep.csv").open())
    assert cell["status"] == "done" and float(cell["nll_calibrated"]) > 0
    swept, alone = (tmp_path / "it_sweep").glob("*/fold0/oof.npz"), trained.folder / "it" / "fold0" / "oof.npz"
    np.testing.assert_array_equal(read_predictions(*swept).logits, read_predictions(alone).logits)
    published = tmp_path / "published"
    write_sweep(published, read_sweep(tmp_path / "it_sweep").config)
    for verb in ("fit", "find"):
        sweep.main([verb, f"--sweep={published}"])
    assert "slope" in read_json(published / "law.json")
    assert 1e-6 < read_json(published / "find_b16.json")["lr"] < 10
