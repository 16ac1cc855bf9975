"""What the files of finished runs say, as one object each, and the tables drawn from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
from common.data.tables import Table
from common.runs.config import Config, training_settings
from common.runs.layout import CONFIG_FILE, LOG_FILE, METRICS_FILE, OLD_NAMES, OOF_FILE, WEIGHTS_FILE, finished_folds
from common.runs.oof import join_oof
from common.runs.predictions import Predictions, kept_classes, read_predictions, rows_in_order, short_form
from common.score.calibration import PARTS, calibration_error, cross_fitted
from common.score.logits import Outputs
from common.score.metrics import METRICS, goodness, wilson
from common.score.significance import Comparison, compare, holm, noise_floor

COPIES = 4  # of a run's logits that its tables and figures hold at a time, about
HALVES = ("even_accuracy", "odd_accuracy")  # columns of log.csv: the accuracy of every other held-out row
# Settings that name what 0 and auto turned out to be: facts of a run, not choices.
RESOLVED = ("channels", "img_size", "mixed_precision", "channels_last")


@dataclass(frozen=True)
class Evaluation:
    """A run, or a blend of runs, and its predictions of all n rows that a fold holds out."""

    name: str
    oof: Predictions
    settings: dict[str, Any] = field(default_factory=dict)  # a blend has none, and neither metrics nor logs
    metrics: list[dict[str, Any]] = field(default_factory=list)  # of each fold
    logs: list[pd.DataFrame] = field(default_factory=list)  # of each fold, a row per epoch

    @cached_property
    def targets(self) -> np.ndarray:
        """Class number of each label, (n)."""
        return self.oof.targets

    @cached_property
    def predicted(self) -> np.ndarray:
        """Class number of each prediction, (n)."""
        return self.oof.predicted_targets

    @cached_property
    def places(self) -> np.ndarray:
        """Which column of the logits each label stands in, (n)."""
        return self.oof.places

    @property
    def right(self) -> np.ndarray:
        """Whether each row is predicted right, bool (n)."""
        return self.predicted == self.targets

    @cached_property
    def costs(self) -> np.ndarray:
        """What each row costs: whether it is predicted wrong, bool (n)."""
        return self.oof.task.cost(self.oof.outputs, self.places)

    @property
    def errors(self) -> int:
        """Rows predicted wrong."""
        return self.costs.sum().item()

    @cached_property
    def calibrated(self) -> Outputs:
        """Outputs (n, columns), each fold's divided by the temperature that fits the other folds best."""
        part = self.oof.fold
        if len(set(part.tolist())) < 2:  # a holdout
            part = np.random.default_rng(0).permutation(len(self.targets)) % PARTS
        return cross_fitted(self.oof.outputs, self.places, part, self.oof.task)

    def confidence(self, calibrated: bool = True) -> np.ndarray:
        """Probability of each prediction, (n)."""
        return (self.calibrated if calibrated else self.oof.outputs).softmax().max(axis=1)

    def nll(self, calibrated: bool = False) -> float:
        """Mean negative log likelihood, nats per row."""
        outputs = self.calibrated if calibrated else self.oof.outputs
        return float(self.oof.task.loss(outputs, self.places).mean())


def read_run(run_folder: Path, folds: Folds) -> Evaluation:
    """A run with every fold finished; raises UserError where it is not, or was trained with other folds."""
    paths = finished_folds(run_folder)
    oof = join_oof(run_folder, folds, kept_classes(len(folds.ids), len(folds.classes), COPIES))
    settings = read_json(paths[0] / CONFIG_FILE, img_size=int, channels=int, mixed_precision=str, select=str)
    if "averaged" in settings:  # by average.py: it has no epochs of its own
        return Evaluation(run_folder.name, oof, settings)
    metrics = [read_json(path / METRICS_FILE, seconds=(int, float)) for path in paths]
    logs = [read_log(path / LOG_FILE) for path in paths]
    for path, facts, log in zip(paths, metrics, logs, strict=True):
        if len(log) != facts.get("epochs", len(log)):
            warn(f"{path / LOG_FILE}: has {len(log)} rows, but {facts['epochs']} epochs were trained")
    return Evaluation(run_folder.name, oof, settings, metrics, logs)


def read_log(path: Path) -> pd.DataFrame:
    """A fold's log, a row per epoch; raises UserError where it is missing or damaged."""
    return read_records(path, ("epoch", "lr", "train_loss", "accuracy"), old_names=OLD_NAMES[LOG_FILE])


def read_blend(folder: Path, folds: Folds) -> Evaluation:
    """A blend's out-of-fold predictions; raises UserError where it was made with other folds."""
    if read_json(folder / WEIGHTS_FILE).get("folds_fingerprint") != folds.fingerprint:
        remedy = "name the folds file it was made with, or run ensemble.py again"
        raise UserError(str(folder), "was made with different folds", remedy)
    path = folder / OOF_FILE
    oof = rows_in_order(read_predictions(path), folds.ids[folds.fold >= 0], str(path))
    kept = kept_classes(len(folds.ids), len(folds.classes), COPIES)
    return Evaluation(folder.name, short_form(oof, kept) if kept else oof)


def seed_twins(runs: list[Evaluation]) -> list[list[Evaluation]]:
    """Runs that differ in their seed alone, in groups of two or more."""
    groups: dict[str, list[Evaluation]] = {}
    for run in runs:
        rest = {name: value for name, value in run.settings.items() if name != "seed"}
        groups.setdefault(str(sorted(rest.items())), []).append(run)
    return [group for settings, group in groups.items() if len(group) > 1]


# ---- tables


def scores(runs: list[Evaluation], metric: str = "accuracy") -> pd.DataFrame:
    """A row per run, the best by ``metric`` first; a metric that is no column already gets one."""
    rows = []
    for run in runs:
        n = len(run.targets)
        low, high = wilson(run.errors, n)
        row = {"run": run.name, "errors": run.errors, "accuracy": 1 - run.errors / n, "low": low, "high": high}
        if metric not in (*row, "nll"):
            row[metric] = METRICS[metric].of(run.oof.answers())
        row |= {"nll": run.nll(), "nll_calibrated": run.nll(calibrated=True)}
        row["minutes"] = sum(each["seconds"] for each in run.metrics) / 60 if run.metrics else np.nan
        rows.append(row)
    table = pd.DataFrame(rows)
    best_first = np.lexsort((table.nll_calibrated, -goodness(metric, table[metric])))
    return table.iloc[best_first].reset_index(drop=True)


def changed_settings(run: Evaluation) -> pd.DataFrame:
    """The settings that differ from the defaults: setting, default, here."""
    default = training_settings(Config())
    rows = [
        (name, plain(default.get(name, "")), plain(value))
        for name, value in sorted(run.settings.items())
        if name in default and name not in RESOLVED and plain(value) != plain(default[name])
    ]
    return pd.DataFrame(rows, columns=["setting", "default", "here"])


def settings_between(runs: list[Evaluation]) -> pd.DataFrame:
    """The settings in which runs differ, a row each, a column per run."""
    names = sorted({name for run in runs for name in run.settings} - {"folds_fingerprint"})
    rows = [[name, *(plain(run.settings.get(name, "")) for run in runs)] for name in names]
    return pd.DataFrame(
        [row for row in rows if len(set(row[1:])) > 1], columns=["setting", *(run.name for run in runs)]
    )


def plain(value: Any) -> str:
    """A setting as a person writes it."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def fold_scores(run: Evaluation) -> pd.DataFrame:
    """A row per fold: its errors, and what choosing an epoch does to its accuracy.

    ``best`` is the fold's own best epoch: chosen on the rows it is scored on. ``other_half`` is the accuracy of each
    half of the fold's rows at the epoch that the other half chose; ``others_choice`` that of the whole fold at the
    epoch that is best on the mean of the other folds (NaN for one fold alone): choices that have not seen the rows.
    """
    shortest = min(map(len, run.logs))  # early stopping ends folds at different epochs
    common = np.array([log.accuracy[:shortest] for log in run.logs])
    rows = []
    for number, log in enumerate(run.logs):
        own = run.oof.fold == number
        wrong, n = int((~run.right[own]).sum()), int(own.sum())
        last, best = log.accuracy.iloc[-1], log.accuracy.max()
        row = [number, n, wrong, 1 - wrong / n, run.oof.task.loss(run.oof.outputs[own], run.places[own]).mean()]
        row += [last, best, int(log.accuracy.argmax()) + 1, best - last]
        halves = [log[name].to_numpy() for name in HALVES if name in log]  # absent with a single row
        row += [np.mean([scored[chosen.argmax()] for chosen, scored in (halves, halves[::-1])]) if halves else np.nan]
        if len(common) > 1:
            epoch = int(np.delete(common, number, axis=0).mean(axis=0).argmax())
            row += [common[number, epoch], epoch + 1]
        else:
            row += [np.nan, 0]
        rows.append(row)
    columns = ["fold", "n", "errors", "accuracy", "nll", "last", "best", "best_epoch", "best_minus_last"]
    return pd.DataFrame(rows, columns=[*columns, "other_half", "others_choice", "their_epoch"])


def confusion(run: Evaluation) -> np.ndarray:
    """Counts of (label, prediction), int (classes, classes): for a matrix that a person can read."""
    width = len(run.oof.classes)
    return np.bincount(run.targets * width + run.predicted, minlength=width * width).reshape(width, width)


def class_scores(run: Evaluation) -> pd.DataFrame:
    """A row per class: n, missed (its rows predicted as others), false alarms (others' rows predicted as it)."""
    of_each = (run.targets[run.right], run.targets, run.predicted)
    hits, of_label, predicted = (np.bincount(numbers, minlength=len(run.oof.classes)) for numbers in of_each)
    with np.errstate(invalid="ignore"):  # a class that is never predicted has no precision
        precision, recall = hits / predicted, hits / of_label
    return pd.DataFrame(
        {
            "class": run.oof.classes,
            "n": of_label,
            "missed": of_label - hits,
            "false_alarms": predicted - hits,
            "recall": recall,
            "precision": precision,
        }
    )


def confusions(run: Evaluation) -> pd.DataFrame:
    """Which label is taken for which class, the most frequent first."""
    wrong, width = ~run.right, len(run.oof.classes)
    cells, counts = np.unique(run.targets[wrong] * width + run.predicted[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    labels, predicted = np.divmod(cells[order], width)
    names = np.asarray(run.oof.classes, dtype=object)
    return pd.DataFrame({"label": names[labels], "predicted": names[predicted], "rows": counts[order]})


def calibration(run: Evaluation) -> pd.DataFrame:
    """Log loss and expected calibration error before and after a cross-fitted temperature."""
    rows = []
    fitted = run.oof.task.calibrate(run.oof.outputs, run.places)
    for name, scale, calibrated in (("as trained", 1.0, False), ("after temperature", fitted, True)):
        confidence = run.confidence(calibrated)
        gap = calibration_error(confidence, run.right)
        rows.append((name, scale, run.nll(calibrated), confidence.mean(), run.right.mean(), gap))
    columns = ["probabilities", "temperature", "nll", "mean_confidence", "accuracy", "calibration_error"]
    return pd.DataFrame(rows, columns=columns)


def confident_errors(run: Evaluation) -> pd.DataFrame:
    """Every wrong prediction, that of the highest calibrated probability first."""
    probability = run.confidence()
    rows = np.flatnonzero(~run.right)
    rows = rows[np.argsort(-probability[rows], kind="stable")]
    return pd.DataFrame(
        {
            "id": run.oof.ids[rows],
            "fold": run.oof.fold[rows],
            "label": run.oof.labels[rows],
            "predicted": run.oof.predicted[rows],
            "probability": probability[rows],
        }
    )


def flips(twins: list[Evaluation]) -> pd.DataFrame:
    """Rows that some seeds of one setting have right and others wrong, the most confidently wrong first."""
    right = np.array([run.right for run in twins])
    rows = np.flatnonzero(right.any(axis=0) & ~right.all(axis=0))
    wrong_confidence = np.max([run.confidence() * ~run.right for run in twins], axis=0)
    rows = rows[np.argsort(-wrong_confidence[rows], kind="stable")]
    found = {"id": twins[0].oof.ids[rows], "label": twins[0].oof.labels[rows]}
    found |= {f"predicted_by_{run.name}": run.oof.predicted[rows] for run in twins}
    return pd.DataFrame(found | {"wrong": (~right[:, rows]).sum(axis=0)})


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
    def entrants(self) -> list[Evaluation]:
        """Runs and blends, that with the fewest errors first."""
        by_name = {each.name: each for each in self.runs + self.blends}
        return [by_name[name] for name in scores(list(by_name.values())).run] if by_name else []

    @cached_property
    def units(self) -> np.ndarray:
        """Equal numbers for held-out rows that are not independent: of one group, or else copies of one image."""
        alike = self.folds.groups if self.folds.groups.size else self.folds.row_shas
        return np.unique(alike[self.folds.fold >= 0].astype(str), return_inverse=True)[1]

    @cached_property
    def pairs(self) -> list[tuple[Evaluation, Evaluation, Comparison, float]]:
        """(better, other, comparison, Holm's p) of every two entrants; the pairs of the best come first."""
        two = list(combinations(self.entrants, 2))
        found = [self.compare(other, better) for better, other in two]
        p_of_all = holm([each.p for each in found])
        return [(*names, each, p) for names, each, p in zip(two, found, p_of_all, strict=True)]

    @cached_property
    def twins(self) -> list[list[Evaluation]]:
        """Groups of runs that differ in their seed alone."""
        return seed_twins(self.runs)

    @cached_property
    def floor(self) -> int:
        """How many errors a seed alone may make; 0 where no setting was trained twice."""
        return noise_floor([self.compare(*pair) for group in self.twins for pair in combinations(group, 2)])

    def compare(self, a: Evaluation, b: Evaluation) -> Comparison:
        """B against A."""
        return compare(a.costs, b.costs, self.units)

    def images_of(self, ids: Sequence[str]) -> list[np.ndarray | Path]:
        """The images of some ids."""
        position = {name: at for at, name in enumerate(self.images.ids)}
        return [self.images.images[position[name]] for name in ids]
