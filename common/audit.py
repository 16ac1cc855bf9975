"""Rows whose label deserves a second look, by what models that have not seen the row say of it."""

import numpy as np
import pandas as pd

from common.metrics import log_softmax

CONFIDENT = 0.9  # of the mean probability of another label


def label_audit(ids: np.ndarray, logits: np.ndarray, targets: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Every row that the runs together contradict, the likeliest label error first.

    Rows are ranked by the runs' mean margin against the label: log p(best other class) - log p(label). A wrong label
    is contradicted by every run with confidence; a hard row divides them, or leaves them unsure. Ranking held-out rows
    by their margin is Northcutt 2021's (arXiv 1911.00068, "prune by noise rate").

    Args:
        ids: (n) text.
        logits: calibrated, out of fold, (runs, n, classes).
        targets: class number of each row's label, (n).
        classes: names.

    Returns:
        id, label, suggested, probability (of the suggested label, mean over the runs), label_probability,
        runs_against (how many of the runs predict another label), runs, margin.
    """
    rows = np.arange(len(targets))
    log_probabilities = log_softmax(logits)
    of_label = log_probabilities[:, rows, targets]
    others = log_probabilities.copy()
    others[:, rows, targets] = -np.inf
    margin = (others.max(axis=2) - of_label).mean(axis=0)
    mean = np.exp(log_probabilities).mean(axis=0)
    suggested = np.where(np.eye(len(classes), dtype=bool)[targets], -1, mean).argmax(axis=1)
    names = np.asarray(classes, dtype=object)
    table = pd.DataFrame(
        {
            "id": ids,
            "label": names[targets],
            "suggested": names[suggested],
            "probability": mean[rows, suggested],
            "label_probability": mean[rows, targets],
            "runs_against": (log_probabilities.argmax(axis=2) != targets).sum(axis=0),
            "runs": len(logits),
            "margin": margin,
        }
    )
    return table[margin > 0].sort_values("margin", ascending=False, kind="stable", ignore_index=True)


def likely_errors(audit: pd.DataFrame) -> pd.DataFrame:
    """The rows of an audit that every run contradicts, with confidence."""
    return audit[(audit.runs_against == audit.runs) & (audit.probability >= CONFIDENT)]
