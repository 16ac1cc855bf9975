"""Tasks: every row of TASKS from a label's text to the submission and back, by the same steps."""

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.base.errors import UserError
from common.base.strict_csv import text_array
from common.runs.choices import LOSSES
from common.runs.forms import FORMS
from common.runs.predictions import Predictions, check_store, read_predictions, write_predictions
from common.runs.submission import Wishes, sheet_of, write_submission
from common.score.blending import BLENDS, OofOutputs, unusable
from common.score.bootstrap import interval_of
from common.score.logits import Outputs
from common.score.metrics import METRICS
from common.score.task import TASKS, Task


@dataclass(frozen=True)
class Example:
    """Labels of a task, and what a net says that knows them."""

    labels: list[str]
    knows: Callable[[np.ndarray], np.ndarray]  # soft targets -> outputs


EXAMPLES = {
    "multiclass": Example(["dog", "猫", "cat", "dog", "cat", "猫", "dog", "cat"] * 25, lambda soft: 9 * soft),
    "regression": Example([f"{row % 40 - 20}.5;{7 * row % 90}.0" for row in range(200)], lambda soft: soft),
    "multilabel": Example(["cat|dog", "", "猫", "cat", "dog", "cat|dog|猫", ""] * 25, lambda soft: 9 * soft - 4.5),
}


@dataclass(frozen=True)
class Case:
    """An example encoded, and the outputs of two nets: one that knows the labels through noise, one that guesses."""

    task: Task
    labels: np.ndarray
    names: list[str]
    targets: np.ndarray
    known: Outputs
    guessed: Outputs

    @property
    def both(self) -> Outputs:
        return Outputs(np.stack([self.known.values, self.guessed.values]))


@pytest.fixture(params=TASKS)
def case(request) -> Case:
    task, example = TASKS[request.param], EXAMPLES[request.param]
    names = task.outputs(example.labels)
    targets = task.encode(example.labels, names)
    said = example.knows(np.asarray(task.soft(targets, np.arange(len(names)), 0.0)))
    random = np.random.default_rng(0)
    guessed = random.permutation(said) + random.normal(size=said.shape)
    known = said + random.normal(size=said.shape)
    return Case(task, text_array(example.labels), names, targets, *(Outputs(np.float32(v)) for v in (known, guessed)))


def test_labels_survive_their_targets(case):
    """Encoding and decoding gives the text back; a label that no output stands for is refused."""
    assert case.task.decode(case.targets, case.names).tolist() == case.labels.tolist()
    assert not any(map(case.task.flaw, case.labels))
    assert len(case.task.stratum(case.labels)) == len(case.labels)
    with pytest.raises(UserError):
        case.task.encode(["none of them"], case.names)


def test_soft_targets_are_the_same_in_numpy_and_torch(case):
    """Where the training runs, and here; smoothing takes certainty away and adds nothing."""
    numbers = np.arange(len(case.names))
    hard, smooth = (case.task.soft(case.targets, numbers, smoothing) for smoothing in (0.0, 0.1))
    targets = case.targets.astype(np.float32) if case.task.is_number else case.targets  # as a training has them
    tensors = case.task.soft(torch.from_numpy(targets), torch.from_numpy(numbers), 0.1)
    assert tensors.dtype == torch.float32 and tensors.shape == (len(case.labels), len(case.names))
    np.testing.assert_allclose(tensors.numpy(), smooth, rtol=1e-6)
    assert np.ptp(smooth) <= np.ptp(hard)


def test_who_knows_more_has_the_lower_loss_and_cost(case):
    """A loss and a cost per row, both lower for the net that knows; decisions without a cost are the targets."""
    task = case.task
    for of in (task.loss, task.cost):
        known, guessed = (of(outputs, case.targets) for outputs in (case.known, case.guessed))
        assert known.shape == guessed.shape == (len(case.labels),) and known.mean() < guessed.mean()
    right = task.cost(case.known, case.targets) == 0
    assert (right.any() or task.is_number) and (task.decide(case.known)[right] == case.targets[right]).all()


def test_an_average_lies_between_and_its_weights_count(case):
    """All weight on one net is that net; equal weights are what is taken without any."""
    task, targets = case.task, case.targets
    alone, known = (task.loss(each, targets) for each in (task.average(case.both, [1, 0]), case.known))
    np.testing.assert_allclose(alone, known, rtol=1e-4, atol=1e-6)
    assert (task.average(case.both).values == task.average(case.both, [2, 2]).values).all()
    mean = task.loss(task.average(case.both), targets).mean()
    assert known.mean() < mean < task.loss(case.guessed, targets).mean()


def test_parts_tell_the_loss_of_every_mean(case):
    """What weights are fitted on differs from the task's own loss of the average by a constant alone."""
    task, found = case.task, case.task.parts(case.both, case.targets)
    gaps = [
        task.loss(task.average(case.both, weights), case.targets).mean() - task.mixture_loss(found @ weights).mean()
        for weights in (np.array([0.5, 0.5]), np.array([0.9, 0.1]), np.array([0.2, 0.8]))
    ]
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-5)


def test_calibration_lowers_the_loss_and_changes_no_answer(case):
    """Dividing by what the task calibrates."""
    calibrated = case.guessed / case.task.calibrate(case.guessed, case.targets)
    before, after = (case.task.loss(each, case.targets).mean() for each in (case.guessed, calibrated))
    assert after <= before
    assert (case.task.cost(calibrated, case.targets) == case.task.cost(case.guessed, case.targets)).all()


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_predictions_survive_their_file(case, tmp_path, store):
    """Task, answers and score come back; in half precision the loss is a thousandth off at most, or it is refused."""
    predictions = predictions_of(case)
    if store == "float16" and not case.task.half:
        with pytest.raises(UserError, match="float16 does not fit"):
            write_predictions(tmp_path / "test.npz", predictions, store)
        return
    write_predictions(tmp_path / "test.npz", predictions, store)
    found = read_predictions(tmp_path / "test.npz")
    assert found.task is case.task and (found.predicted == predictions.predicted).all()
    before, after = (each.score()[case.task.loss_metric] for each in (predictions, found))
    assert after == pytest.approx(before, abs=1e-3 if store == "float16" else 0)


def test_every_form_of_submission_is_written_and_read(case, tmp_path):
    """In the default form the cells are the decided labels; each form's sample is told, and what it writes holds."""
    predictions = predictions_of(case)
    written = {}
    for name in case.task.forms:
        if name == "probability":  # of two classes: tests/runs/test_submission.py
            continue
        columns = ["id", "label"] if name in ("label", "labels", "top") else ["id", *case.names]
        sample = tmp_path / f"sample_{name}.csv"
        cells = {"label": case.names[0], "labels": "|".join(case.names), "top": " ".join(case.names)}
        cell = cells.get(name, "0.5" if name == "label-probabilities" else "0")
        lines = [columns, *([row_id, *[cell] * (len(columns) - 1)] for row_id in predictions.ids)]
        sample.write_text("".join(f"{','.join(line)}\n" for line in lines), encoding="utf-8")
        written[name] = rows_written(tmp_path / f"{name}.csv", predictions, str(sample))
    default = rows_written(tmp_path / "default.csv", predictions, separator="|")
    assert default == written[case.task.forms[0]]
    decided = case.task.decode(case.task.decide(case.known), case.names)
    assert [";".join(row[1:]) for row in default[1:]] == decided.tolist()
    assert len({str(rows) for rows in written.values()}) == len(written)


def test_its_names_are_rows_of_the_tables(case):
    """Metrics, losses, forms and blends that a task names exist; others are refused for it in one line."""
    task = case.task
    for names, table in ((task.metrics, METRICS), (task.losses, LOSSES), (task.forms, FORMS), (task.blends, BLENDS)):
        assert names and set(names) <= table.keys()
    found = task.score(case.known, case.targets, case.names)
    assert found["n"] == len(case.labels) and {task.counted, task.loss_metric} <= found.keys()
    low, high = interval_of(task.metrics[0], task.answers(case.known, case.targets, case.names))
    assert low <= found[task.metrics[0]] <= high
    less = replace(task, blends=task.blends[:1], is_shortened=False)
    data = OofOutputs(case.both, case.targets, np.arange(len(case.labels)) % 3, np.arange(2), np.empty(0), less)
    for refused in BLENDS.keys() - set(less.blends):
        assert refused in unusable(data.groups, data.hand_weights, 200, len(case.names), task=less)
    with pytest.raises(UserError, match=f"top8 does not fit {task.name}"):
        check_store("top8", less)


def predictions_of(case: Case) -> Predictions:
    ids = text_array(f"row {number}" for number in range(len(case.labels)))
    return Predictions(ids, case.known.values, case.names, case.labels, task=case.task)


def rows_written(path: Path, predictions: Predictions, sample: str = "", separator: str = "") -> list[list[str]]:
    write_submission(path, predictions, sheet_of(predictions, sample, Wishes(separator=separator)))
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))
