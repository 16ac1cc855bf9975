"""Rows whose label deserves a second look, by what models that have not seen the row say of it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from common.metrics import log_softmax

CONFIDENT = 0.9  # of the mean probability of another label


def label_audit(ids: np.ndarray, logits: Sequence[np.ndarray], targets: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Every row that the runs together contradict, the likeliest label error first.

    Rows are ranked by the runs' mean margin against the label: log p(best other class) - log p(label). A wrong label
    is contradicted by every run with confidence; a hard row divides them, or leaves them unsure. Ranking held-out rows
    by their margin is Northcutt 2021's (arXiv 1911.00068, "prune by noise rate").

    Args:
        ids: (n) text.
        logits: calibrated, out of fold, (n, classes) of each run.
        targets: class number of each row's label, (n).
        classes: names.

    Returns:
        id, label, suggested, probability (of the suggested label, mean over the runs), label_probability,
        runs_against (how many of the runs predict another label), runs, margin.
    """
    rows, names = np.arange(len(targets)), np.asarray(classes, dtype=object)
    probabilities, margin, against = np.zeros((len(targets), len(classes))), np.zeros(len(targets)), np.zeros_like(rows)
    for run in logits:
        log_probabilities = log_softmax(run)
        of_label = log_probabilities[rows, targets]
        probabilities += np.exp(log_probabilities) / len(logits)
        log_probabilities[rows, targets] = -np.inf
        of_other = log_probabilities.max(axis=1)
        margin += (of_other - of_label) / len(logits)
        against += of_other > of_label
    of_label = probabilities[rows, targets]
    probabilities[rows, targets] = -1
    suggested = probabilities.argmax(axis=1)
    table = pd.DataFrame(
        {
            "id": ids,
            "label": names[targets],
            "suggested": names[suggested],
            "probability": probabilities[rows, suggested],
            "label_probability": of_label,
            "runs_against": against,
            "runs": len(logits),
            "margin": margin,
        }
    )
    return table[margin > 0].sort_values("margin", ascending=False, kind="stable", ignore_index=True)


def likely_errors(audit: pd.DataFrame) -> pd.DataFrame:
    """The rows of an audit that every run contradicts, with confidence."""
    return audit[(audit.runs_against == audit.runs) & (audit.probability >= CONFIDENT)]
