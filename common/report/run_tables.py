"""The tables of the page: of runs together, and of one run."""

from typing import Any

import numpy as np
import pandas as pd

from common.report.evaluation import Evaluation
from common.runs.config import Config, training_settings
from common.score.areas import auc_of_columns, precision_of_columns
from common.score.calibration import calibration_error
from common.score.label_sets import thresholds_in
from common.score.metrics import METRICS, goodness

# Settings that name what 0 and auto turned out to be: facts of a run, not choices.
RESOLVED = ("channels", "img_size", "mixed_precision", "channels_last")


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
    """A row per fold: its errors, and what choosing an epoch does to the metric that the run was trained by.

    ``best`` is the fold's own best epoch: chosen on the rows it is scored on. ``other_half`` is the score of each half
    of the fold's rows at the epoch that the other half chose; ``others_choice`` that of the whole fold at the epoch
    that is best on the mean of the other folds (NaN for one fold alone): choices that have not seen the rows.
    """
    metric, task = run.metric, run.oof.task
    usual = task.metrics[0]
    shortest = min(map(len, run.logs))  # early stopping ends folds at different epochs
    common = np.array([log[metric][:shortest] for log in run.logs])
    rows = []
    for number, log in enumerate(run.logs):
        own = run.oof.fold == number
        answers = run.answers.rows(np.flatnonzero(own))
        last, top = log[metric].iloc[-1], best(metric, log[metric].to_numpy())
        row = [
            number,
            len(answers.costs),
            *(METRICS[name].of(answers) for name in (task.counted, usual, task.loss_metric)),
        ]
        row += [last, log[metric][top], top + 1, log[metric][top] - last]
        names = [f"{half}_{metric}" for half in ("even", "odd")]
        halves = [log[name].to_numpy() for name in names if name in log]  # absent with a single row
        crossed = [scored[best(metric, chosen)] for chosen, scored in (halves, halves[::-1])] if halves else [np.nan]
        row += [np.mean(crossed)]
        if len(common) > 1:
            epoch = best(metric, np.delete(common, number, axis=0).mean(axis=0))
            row += [common[number, epoch], epoch + 1]
        else:
            row += [np.nan, 0]
        rows.append(row)
    columns = ["fold", "n", task.counted, usual, task.loss_metric, "last", "best", "best_epoch", "best_minus_last"]
    return pd.DataFrame(rows, columns=[*columns, "other_half", "others_choice", "their_epoch"])


def best(metric: str, of_epochs: np.ndarray) -> int:
    """Index of the first epoch with the best value of a metric."""
    return int(goodness(metric, of_epochs).argmax())


def confusion(run: Evaluation) -> np.ndarray:
    """Counts of (label, prediction), int (classes, classes): for a matrix that a person can read."""
    width = len(run.oof.output_names)
    cells = run.answers.targets * width + run.answers.predicted
    return np.bincount(cells, minlength=width * width).reshape(width, width)


def class_scores(run: Evaluation) -> pd.DataFrame:
    """A row per class: n, missed (its rows predicted as others), false alarms (others' rows predicted as it)."""
    of_label, hits, predicted = run.answers.counts()
    with np.errstate(invalid="ignore"):  # a class that is never predicted has no precision
        precision, recall = hits / predicted, hits / of_label
    return pd.DataFrame(
        {
            "class": run.oof.output_names,
            "n": of_label,
            "missed": of_label - hits,
            "false_alarms": predicted - hits,
            "recall": recall,
            "precision": precision,
        }
    )


def length_scores(run: Evaluation, lengths: np.ndarray) -> pd.DataFrame:
    """A row for each fifth of the rows, by their ``lengths`` (n) in frames: n, errors, accuracy."""
    edges = np.unique(np.quantile(lengths, [0.2, 0.4, 0.6, 0.8], method="inverted_cdf"))
    part = np.searchsorted(edges, lengths)
    found = pd.DataFrame({"part": part, "length": lengths, "error": run.answers.costs}).groupby("part")
    scores = found.agg(
        shortest=("length", "min"), longest=("length", "max"), n=("error", "size"), errors=("error", "sum")
    )
    return scores.assign(accuracy=1 - scores.errors / scores.n).reset_index(drop=True)


def utterance_scores(run: Evaluation, utterances: np.ndarray) -> pd.DataFrame:
    """A row for each utterance: frames, errors, accuracy; ``utterances`` (n) says whose the rows are."""
    found = pd.DataFrame({"utterance": utterances, "error": run.answers.costs}).groupby("utterance")
    scores = found.agg(frames=("error", "size"), errors=("error", "sum")).reset_index()
    scores = scores.assign(accuracy=1 - scores.errors / scores.frames)
    return scores.sort_values("accuracy", kind="stable", ignore_index=True)


def label_scores(run: Evaluation) -> pd.DataFrame:
    """A row per label of label sets: how many rows have it, how often it is answered and right, how well it is ranked.

    ``mean_p`` against ``rate`` shows what no measure of ranks does: probabilities that are off as a whole. By the
    ``threshold`` infer.py answers, learned on all rows; here each row is answered by what the other folds say.
    """
    answers = run.answers
    thresholds = thresholds_in(run.decided.decision if run.decided else ())
    of_label, hits, predicted = answers.counts()
    with np.errstate(invalid="ignore"):  # a label that no row has and none gets
        f1 = 2 * hits / (of_label + predicted)
    return pd.DataFrame(
        {
            "label": answers.names,
            "n": of_label,
            "rate": answers.targets.mean(axis=0),
            "mean_p": answers.probabilities(answers.outputs).mean(axis=0),
            "auc": auc_of_columns(answers),
            "average_precision": precision_of_columns(answers),
            "threshold": np.broadcast_to(thresholds, len(answers.names)),
            "answered": predicted,
            "f1": f1,
        }
    )


def label_pairs(run: Evaluation) -> pd.DataFrame:
    """Which label is answered where another one is missing, the most frequent pair first."""
    missed = run.answers.targets & ~run.answers.predicted
    surplus = run.answers.predicted & ~run.answers.targets
    together = missed.T.astype(np.int64) @ surplus.astype(np.int64)
    label, other = np.nonzero(together)
    names = np.asarray(run.oof.output_names, dtype=object)
    found = pd.DataFrame({"label": names[label], "predicted": names[other], "rows": together[label, other]})
    return found.sort_values("rows", ascending=False, kind="stable", ignore_index=True)


def confusions(run: Evaluation) -> pd.DataFrame:
    """Which label is taken for which class, the most frequent first."""
    wrong, width = run.answers.costs, len(run.oof.output_names)
    pairs = run.answers.targets[wrong] * width + run.answers.predicted[wrong]
    cells, counts = np.unique(pairs, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    labels, predicted = np.divmod(cells[order], width)
    names = np.asarray(run.oof.output_names, dtype=object)
    return pd.DataFrame({"label": names[labels], "predicted": names[predicted], "rows": counts[order]})


def calibration(run: Evaluation) -> pd.DataFrame:
    """nll and expected calibration error before and after a cross-fitted temperature."""
    rows = []
    right, fitted = ~run.answers.costs, run.oof.task.calibrate(run.oof.outputs, run.oof.places)
    for name, scale, calibrated in (("as trained", 1.0, False), ("after temperature", fitted, True)):
        confidence = run.confidence(calibrated)
        gap = calibration_error(confidence, right)
        rows.append((name, scale, run.nll(calibrated), confidence.mean(), right.mean(), gap))
    columns = ["probabilities", "temperature", "nll", "mean_confidence", "accuracy", "calibration_error"]
    return pd.DataFrame(rows, columns=columns)


def confident_errors(run: Evaluation) -> pd.DataFrame:
    """Every wrong prediction, that of the highest calibrated probability first."""
    probability = run.confidence()
    rows = np.flatnonzero(run.answers.costs)
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


def residuals(run: Evaluation) -> pd.DataFrame:
    """A row for each target column and tenth of its predictions: how far off they are, and to which side."""
    rows = []
    for column, said, true in zip(run.oof.output_names, run.answers.predicted.T, run.answers.targets.T, strict=True):
        for part in np.array_split(np.argsort(said, kind="stable"), min(10, len(said))):
            off = said[part] - true[part]
            rows.append((column, len(part), said[part].min(), said[part].max(), off.mean(), (off**2).mean() ** 0.5))
    return pd.DataFrame(rows, columns=["target", "n", "predicted_from", "predicted_to", "bias", "rmse"])


def worst_rows(run: Evaluation) -> pd.DataFrame:
    """Every row, that with the largest error first."""
    order = np.argsort(-run.answers.costs, kind="stable")
    parts = {"id": run.oof.ids, "fold": run.oof.fold, "label": run.oof.labels, "predicted": run.oof.predicted}
    return pd.DataFrame({name: part[order] for name, part in parts.items()} | {"error": run.answers.costs[order]})


def flips(twins: list[Evaluation]) -> pd.DataFrame:
    """Rows that some seeds of one setting have right and others wrong, the most confidently wrong first."""
    wrong = np.array([run.answers.costs for run in twins])
    rows = np.flatnonzero(wrong.any(axis=0) & ~wrong.all(axis=0))
    wrong_confidence = np.max([run.confidence() * run.answers.costs for run in twins], axis=0)
    rows = rows[np.argsort(-wrong_confidence[rows], kind="stable")]
    found = {"id": twins[0].oof.ids[rows], "label": twins[0].oof.labels[rows]}
    found |= {f"predicted_by_{run.name}": run.oof.predicted[rows] for run in twins}
    return pd.DataFrame(found | {"wrong": wrong[:, rows].sum(axis=0)})
