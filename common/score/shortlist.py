"""Short forms of logits: of each row the likeliest classes one by one, and one number for all others.

With thousands of classes a row's numbers are mostly about classes that it surely is not. A short form is ``logits``
(n, k + 1) and ``columns`` (n, k), the class numbers of all but the last column, the likeliest first. The last column is
the logit of each of the other classes: the log of the mean of their powers, as if what is left were spread evenly over
them, so that a row still sums to 1 and every log loss, temperature and blend stays defined.
"""

from collections.abc import Sequence

import numpy as np

from common.score.logits import blocks


def shorten(logits: np.ndarray, columns: np.ndarray, classes: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """The short form of the ``kept`` likeliest classes: logits float32 (n, kept + 1) and columns int32 (n, kept).

    Args:
        logits: (n, classes), or (n, k + 1) of a short form with k > kept.
        columns: (n, k) of that short form; (0, 0) for the long form.
        classes: how many there are in all.
        kept: how many stay, fewer than there are columns.
    """
    count, width = logits.shape
    is_short = columns.shape[1] > 0
    short, numbers = np.empty((count, kept + 1), np.float32), np.empty((count, kept), np.int32)
    for rows in blocks(count, width):
        own = logits[rows].astype(np.float64)
        single = own[:, :-1] if is_short else own
        likeliest = np.argpartition(-single, kept - 1, axis=1)[:, :kept]
        likeliest.sort(axis=1)  # of equal logits the first class comes first, as in argmax
        largest = np.take_along_axis(own, likeliest, axis=1)
        order = np.argsort(-largest, axis=1, kind="stable")
        likeliest, largest = (np.take_along_axis(part, order, axis=1) for part in (likeliest, largest))
        powers = np.exp(own - largest[:, :1])
        if is_short:
            powers[:, -1] *= classes - columns.shape[1]
        np.put_along_axis(powers, likeliest, 0.0, axis=1)
        mean = powers.sum(axis=1, keepdims=True) / (classes - kept)
        rest = largest[:, :1] + np.log(np.maximum(mean, np.finfo(np.float64).tiny))
        short[rows] = np.concatenate([largest, np.minimum(rest, largest[:, -1:])], axis=1)
        numbers[rows] = np.take_along_axis(columns[rows], likeliest, axis=1) if is_short else likeliest
    return short, numbers


def lengthen(logits: np.ndarray, columns: np.ndarray, classes: int) -> np.ndarray:
    """Logits of all classes, (n, classes), from a short form."""
    long = np.repeat(logits[:, -1:], classes, axis=1)
    np.put_along_axis(long, columns, logits[:, :-1], axis=1)
    return long


def shared_columns(columns: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Columns, int32 (n, m x k), that hold every class which any of m short forms (n, k) keeps.

    Where they keep the same ones, other classes make every row equally wide; m x k must be fewer than ``classes``.
    """
    count, width = len(columns[0]), sum(each.shape[1] for each in columns)
    # Of what they keep and then 0, 1, 2 ... the first ones that are not there twice.
    wanted = np.concatenate([*columns, np.broadcast_to(np.arange(width, dtype=np.int32), (count, width))], axis=1)
    order = np.argsort(wanted, axis=1, kind="stable")
    in_order = np.take_along_axis(wanted, order, axis=1)
    again = np.zeros(wanted.shape, dtype=bool)
    np.put_along_axis(again, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    first = np.argsort(again, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(wanted, first, axis=1)


def on_columns(logits: np.ndarray, columns: np.ndarray, classes: int, shared: np.ndarray) -> np.ndarray:
    """A short form's logits for the columns ``shared`` (n, w) and a last one for all others: float32 (n, w + 1).

    What it says of classes that are not among them goes to the others.
    """
    found = np.empty((len(logits), shared.shape[1] + 1), np.float32)
    for rows in blocks(len(logits), classes):
        own, is_shared = logits[rows], np.zeros((len(columns[rows]), classes), dtype=bool)
        np.put_along_axis(is_shared, shared[rows], True, axis=1)
        left = ~np.take_along_axis(is_shared, columns[rows], axis=1)
        powers = np.exp(own - own.max(axis=1, keepdims=True), dtype=np.float64)
        even = powers[:, -1] * (classes - shared.shape[1] - left.sum(axis=1))
        mean = ((powers[:, :-1] * left).sum(axis=1) + even) / (classes - shared.shape[1])
        rest = own.max(axis=1) + np.log(np.maximum(mean, np.finfo(np.float64).tiny))
        found[rows, -1] = np.where(left.any(axis=1), rest, own[:, -1])
        found[rows, :-1] = np.take_along_axis(lengthen(own, columns[rows], classes), shared[rows], axis=1)
    return found
