"""What the files of finished runs say, as one object each, and what follows from all of them together."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.base.errors import UserError, warn
from common.base.files import read_json
from common.base.strict_csv import read_records
from common.data.folds import Folds
from common.data.table import Table
from common.runs.decision import learned_decision
from common.runs.layout import CONFIG_FILE, LOG_FILE, METRICS_FILE, OLD_NAMES, OOF_FILE, WEIGHTS_FILE, finished_folds
from common.runs.oof import join_oof, units_of
from common.runs.predictions import Predictions, kept_classes, read_predictions, rows_in_order, short_form
from common.score.answers import Answers
from common.score.bootstrap import compare_by, interval_of
from common.score.calibration import PARTS, cross_fitted
from common.score.decisions import DecisionStudy
from common.score.logits import Outputs
from common.score.metrics import METRICS, accuracy, errors, goodness, what_lacks
from common.score.significance import Comparison, holm, noise_floor

COPIES = 4  # of a run's logits that its tables and figures hold at a time, about


@dataclass(frozen=True)
class Evaluation:
    """A run, or a blend of runs, and its predictions of all n rows that a fold holds out."""

    name: str
    oof: Predictions
    settings: dict[str, Any] = field(default_factory=dict)  # a blend has none, and neither metrics nor logs
    metrics: list[dict[str, Any]] = field(default_factory=list)  # of each fold
    logs: list[pd.DataFrame] = field(default_factory=list)  # of each fold, a row per epoch
    judged_by: str = ""  # the metric of the page; empty: the task's own

    @cached_property
    def answers(self) -> Answers:
        """The answer to each row, what it costs, and how far off it is.

        Where a decision such as thresholds can be learned for the metric, each fold's rows are decided by what the
        others say, of runs and blends alike: a decision that a blend keeps was learned on these very rows.
        """
        answers, found = replace(self.oof, decision=()).answers(), self.decided
        return answers if found is None or found.predicted is None else answers.with_predicted(found.predicted)

    @cached_property
    def decided(self) -> DecisionStudy | None:
        """The decision that is learned for the metric of the page, if there is one."""
        return learned_decision([replace(self.oof, decision=())], self.judged_by) if self.judged_by else None

    @property
    def metric(self) -> str:
        """What its epochs were judged by."""
        return self.settings.get("metric", "accuracy")

    @cached_property
    def calibrated(self) -> Outputs:
        """Outputs (n, columns), each fold's divided by the temperature that fits the other folds best."""
        part = self.oof.fold
        if len(set(part.tolist())) < 2:  # a holdout
            part = np.random.default_rng(0).permutation(len(self.oof.ids)) % PARTS
        return cross_fitted(self.oof.outputs, self.oof.places, part, self.oof.task)

    def confidence(self, calibrated: bool = True) -> np.ndarray:
        """Probability of each prediction, (n)."""
        return self.oof.task.confidence(self.calibrated if calibrated else self.oof.outputs)

    def nll(self, calibrated: bool = False) -> float:
        """Mean negative log likelihood, nats per row."""
        losses = self.oof.task.loss(self.calibrated, self.oof.places) if calibrated else self.answers.losses
        return float(losses.mean())


def read_run(run_folder: Path, folds: Folds) -> Evaluation:
    """A run with every fold finished; raises UserError where it is not, or was trained with other folds."""
    paths = finished_folds(run_folder)
    oof = join_oof(run_folder, folds, kept_classes(len(folds.ids), len(folds.output_names), COPIES))
    settings = read_json(paths[0] / CONFIG_FILE)
    if "added" in settings:  # made elsewhere (common/runs/added.py): nothing is known of its training
        return Evaluation(run_folder.name, oof, settings)
    settings = read_json(paths[0] / CONFIG_FILE, img_size=int, channels=int, mixed_precision=str, select=str)
    if "averaged" in settings:  # by average.py: it has no epochs of its own
        return Evaluation(run_folder.name, oof, settings)
    metrics = [read_json(path / METRICS_FILE, seconds=(int, float)) for path in paths]
    logs = [read_log(path / LOG_FILE, folds.task.metrics[0]) for path in paths]
    for path, facts, log in zip(paths, metrics, logs, strict=True):
        if len(log) != facts.get("epochs", len(log)):
            warn(f"{path / LOG_FILE}: has {len(log)} rows, but {facts['epochs']} epochs were trained")
    return Evaluation(run_folder.name, oof, settings, metrics, logs)


def read_log(path: Path, metric: str = "accuracy") -> pd.DataFrame:
    """A fold's log, a row per epoch, with a ``metric``; raises UserError where it is missing or damaged."""
    return read_records(path, ("epoch", "lr", "train_loss", metric), old_names=OLD_NAMES[LOG_FILE])


def read_blend(folder: Path, folds: Folds) -> Evaluation:
    """A blend's out-of-fold predictions; raises UserError where it was made with other folds."""
    if read_json(folder / WEIGHTS_FILE).get("folds_fingerprint") != folds.fingerprint:
        remedy = "name the folds file it was made with, or run ensemble.py again"
        raise UserError(str(folder), "was made with different folds", remedy)
    path = folder / OOF_FILE
    oof = rows_in_order(read_predictions(path), folds.ids[folds.fold >= 0], str(path))
    kept = kept_classes(len(folds.ids), len(folds.output_names), COPIES)
    return Evaluation(folder.name, short_form(oof, kept) if kept else oof)


def seed_twins(runs: list[Evaluation]) -> list[list[Evaluation]]:
    """Runs that differ in their seed alone, in groups of two or more."""
    groups: dict[str, list[Evaluation]] = {}
    for run in runs:
        rest = {name: value for name, value in run.settings.items() if name != "seed"}
        groups.setdefault(str(sorted(rest.items())), []).append(run)
    return [group for settings, group in groups.items() if len(group) > 1]


@dataclass(frozen=True)
class Evidence:
    """What was read of the runs to report on, and what follows from all of them together."""

    folds: Folds
    images: Table
    runs: list[Evaluation]
    blends: list[Evaluation]
    sweeps: list[Path]
    runs_dir: Path
    metric: str

    @cached_property
    def ranking(self) -> pd.DataFrame:
        """A row for each run and blend, the best by the metric first; one that is no column already gets one."""
        rows, task = [], self.folds.task
        count, usual = task.counted, task.metrics[0]
        own, (lowest, highest) = self.interval_metric, self.bounds
        for each in self.runs + self.blends:
            if lacking := what_lacks(self.metric, each.answers):
                what = f"{self.metric} needs {lacking}, which {each.name} does not have (--store)"
                raise UserError("--metric", what, "choose another, or leave the run out")
            values = {name: METRICS[name].of(each.answers) for name in (count, usual, self.metric, task.loss_metric)}
            low, high = interval_of(own, each.answers, self.units)
            first = {} if self.in_errors else {self.metric: values[self.metric], lowest: low, highest: high}
            row = {"run": each.name, **first, count: values[count], usual: values[usual]}
            row |= {lowest: low, highest: high} | values | {task.compared: each.nll(calibrated=True)}
            row["minutes"] = sum(fold["seconds"] for fold in each.metrics) / 60 if each.metrics else np.nan
            rows.append(row)
        found = pd.DataFrame(rows)
        best_first = np.lexsort((found[task.compared], -goodness(self.metric, found[self.metric]))) if rows else []
        return found.iloc[best_first].reset_index(drop=True)

    @property
    def in_errors(self) -> bool:
        """Whether what is compared is errors: the metric counts them, or log losses beside them."""
        return METRICS[self.metric].of in (accuracy, errors)

    @property
    def compared_by(self) -> str:
        """The metric that differences are of; "": they are errors."""
        return "" if self.in_errors else self.metric

    @property
    def interval_metric(self) -> str:
        """Whose interval the first table shows."""
        return "accuracy" if self.in_errors else self.metric

    @property
    def bounds(self) -> tuple[str, str]:
        """The columns of that interval: shares are shown in per cent, other numbers as they are."""
        return ("low", "high") if METRICS[self.interval_metric].shown.endswith("%") else ("from", "to")

    @cached_property
    def entrants(self) -> list[Evaluation]:
        """Runs and blends in the order of the ranking."""
        by_name = {each.name: each for each in self.runs + self.blends}
        return [by_name[name] for name in self.ranking.run] if by_name else []

    @cached_property
    def units(self) -> np.ndarray:
        """Equal numbers for held-out rows that are not independent: of one group, or else copies of one image."""
        return units_of(self.folds)

    @cached_property
    def pairs(self) -> list[tuple[Evaluation, Evaluation, Comparison, float]]:
        """(better, other, comparison, Holm's p) of every two entrants; the pairs of the best come first.

        The test is by the metric that they are sorted by.
        """
        found = [(one, two, self.compare(two, one)) for one, two in combinations(self.entrants, 2)]
        p_of_all = holm([each.p for _, _, each in found])
        return [(*pair, p) for pair, p in zip(found, p_of_all, strict=True)]

    @cached_property
    def copies(self) -> list[list[Evaluation]]:
        """Groups of runs whose predictions are equal, byte for byte."""
        groups: dict[bytes, list[Evaluation]] = {}
        for run in self.runs:
            groups.setdefault(hashlib.sha256(run.oof.logits.tobytes()).digest(), []).append(run)
        return [group for group in groups.values() if len(group) > 1]

    @cached_property
    def twins(self) -> list[list[Evaluation]]:
        """Groups of runs that differ in their seed alone."""
        copied = {run.name for group in self.copies for run in group[1:]}
        return seed_twins([run for run in self.runs if run.name not in copied])

    @cached_property
    def floor(self) -> float:
        """How many errors, or how much of the metric, a seed alone may make; 0 where no setting was trained twice."""
        return noise_floor([self.compare(*pair) for group in self.twins for pair in combinations(group, 2)])

    def compare(self, a: Evaluation, b: Evaluation) -> Comparison:
        """B against A."""
        return compare_by(self.metric, a.answers, b.answers, self.units)

    def images_of(self, ids: Sequence[str]) -> list[np.ndarray | Path | None]:
        """The pictures of some ids, as the kind of inputs has them."""
        rows, picture = self.images.images, self.images.kind.picture
        return [picture(rows, row) for row in self.rows_of(ids)]

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        """Where some ids stand in the table."""
        position = {name: at for at, name in enumerate(self.images.ids)}
        return [position[name] for name in ids]
