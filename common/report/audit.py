"""Rows whose label deserves a second look, by what models that have not seen the row say of it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from common.runs.predictions import Predictions
from common.score.logits import Outputs

CONFIDENT = 0.9  # of the mean probability of another label


def label_audit(rows: Predictions, logits: Sequence[np.ndarray]) -> pd.DataFrame:
    """Every row that the runs together contradict, the likeliest label error first.

    Rows are ranked by the runs' mean margin against the label: log p(best other class) - log p(label). A wrong label
    is contradicted by every run with confidence; a hard row divides them, or leaves them unsure. Ranking held-out rows
    by their margin is Northcutt 2021's (arXiv 1911.00068, "prune by noise rate").

    Args:
        rows: ids, labels and columns of the n rows.
        logits: calibrated, out of fold, (n, columns) of each run.

    Returns:
        id, label, suggested, probability (of the suggested label, mean over the runs), label_probability,
        runs_against (how many of the runs predict another label), runs, margin.
    """
    each, places = np.arange(len(rows.ids)), rows.places
    probabilities, margin, against = np.zeros(logits[0].shape), np.zeros(len(each)), np.zeros_like(each)
    for run in logits:
        log_probabilities = Outputs(run, rows.others).log_softmax()
        of_label = log_probabilities[each, places]
        probabilities += np.exp(log_probabilities) / len(logits)
        log_probabilities[each, places] = -np.inf
        of_other = log_probabilities.max(axis=1)
        margin += (of_other - of_label) / len(logits)
        against += of_other > of_label
    of_label = probabilities[each, places]
    probabilities[each, places] = -1
    table = pd.DataFrame(
        {
            "id": rows.ids,
            "label": rows.labels,
            "suggested": replace(rows, logits=probabilities).predicted,
            "probability": probabilities.max(axis=1),
            "label_probability": of_label,
            "runs_against": against,
            "runs": len(logits),
            "margin": margin,
        }
    )
    return table[margin > 0].sort_values("margin", ascending=False, kind="stable", ignore_index=True)


def set_audit(rows: Predictions, logits: Sequence[np.ndarray]) -> pd.DataFrame:
    """As :func:`label_audit`, of every single label that a row of label sets has or lacks.

    ``suggested`` is the row's set with that one label added or left out, ``probability`` that of the other answer.
    """
    targets = rows.targets
    for_label = np.stack([np.where(targets, run, -np.asarray(run, dtype=np.float64)) for run in logits])
    margin, of_label = -for_label.mean(axis=0), (1 / (1 + np.exp(-for_label))).mean(axis=0)
    at, label = np.nonzero(margin > 0)
    changed = targets[at] ^ (np.arange(targets.shape[1]) == label[:, None])
    table = pd.DataFrame(
        {
            "id": np.asarray(rows.ids)[at],
            "label": np.asarray(rows.labels)[at],
            "suggested": rows.task.decode(changed, rows.output_names),
            "probability": 1 - of_label[at, label],
            "label_probability": of_label[at, label],
            "runs_against": (for_label[:, at, label] < 0).sum(axis=0),
            "runs": len(logits),
            "margin": margin[at, label],
        }
    )
    return table.sort_values("margin", ascending=False, kind="stable", ignore_index=True)


AUDITS = {"labels": label_audit, "labels-of-sets": set_audit}  # by the section that a task names


def likely_errors(audit: pd.DataFrame) -> pd.DataFrame:
    """The rows of an audit that every run contradicts, with confidence."""
    return audit[(audit.runs_against == audit.runs) & (audit.probability >= CONFIDENT)]
