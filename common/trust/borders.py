"""What a border of one colour, or bars along opposite sides, frame in a picture."""

import numpy as np

from common.trust.alignment import EVERYTHING, SHARED, SIDE

CONSTANT = 10.0  # grey levels within which a border is one colour
RIM, WRITTEN, ON_THE_WHOLE = 0.9, 0.25, 0.6  # shares in a bar's colour: of its first row, of any row, of all of it
PICTURE = 0.5  # share in a written bar's colour of the row in which the picture has begun
SMALLEST_BAR, LARGEST_BAR = 4, 16  # rows of SIDE


def content_boxes(pictures: np.ndarray) -> np.ndarray:
    """What each picture, uint8 (n, SIDE, SIDE), shows within a border of one colour on all four sides, float32 (n, 4).

    That is, the centre and half the size of a box, x and y, where the picture reaches from -1 to 1.

    A border that would leave less than half of either side is taken for the picture's own background. Else bars along
    one or two opposite sides are left out, with writing in them or not.
    """
    values = pictures.astype(np.int16)
    rim = np.concatenate([values[:, 0], values[:, -1], values[:, :, 0], values[:, :, -1]], axis=1)
    colour = np.median(rim, axis=1).astype(np.int16)
    off = np.abs(values - colour[:, None, None]) > CONSTANT
    boxes = EVERYTHING.repeat(len(pictures), axis=0)
    for axis in (1, 2):
        busy = off.mean(axis=axis) > 0.05  # a column or row that is not the border's
        first, last = busy.argmax(1), busy.shape[1] - 1 - busy[:, ::-1].argmax(1)
        side = busy.shape[1]
        at = 0 if axis == 1 else 1
        boxes[:, at], boxes[:, at + 2] = (first + last + 1) / side - 1, (last + 1 - first) / side
    whole = (np.abs(boxes[:, :2]) + boxes[:, 2:] > 1 - 1 / SIDE).any(1) | (boxes[:, 2:] < 0.5).any(1)
    boxes[whole] = EVERYTHING
    return _without_bars(values, boxes)


def _without_bars(values: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Boxes without the bars along opposite sides of pictures, int16 (n, SIDE, SIDE), that they may leave in."""
    boxes, is_open, is_framed = boxes.copy(), np.ones(len(boxes), bool), (boxes != EVERYTHING).any(1)
    for axis, sides in ((1, values), (0, values.transpose(0, 2, 1))):
        along = (np.arange(SIDE) + 0.5) * (2 / SIDE) - 1
        within = np.abs(along - boxes[:, [1 - axis]]) <= boxes[:, [3 - axis]]
        bars = np.stack([_bar(each, within, is_framed) for each in (sides, sides[:, ::-1])], axis=1) * (2 / SIDE)
        centre, half = boxes[:, axis], boxes[:, axis + 2]
        edges = np.stack([centre - half, -centre - half], axis=1)
        inner = np.maximum(edges, bars - 1)
        barred = is_open & (inner > edges + 3 / SIDE).any(1) & (-inner.sum(1) > 2 * SHARED)
        boxes[barred, axis] = ((inner[:, 0] - inner[:, 1]) / 2)[barred]
        boxes[barred, axis + 2] = (-inner.sum(1) / 2)[barred]
        is_open &= ~barred
    return boxes


def _bar(pictures: np.ndarray, within: np.ndarray, is_framed: np.ndarray) -> np.ndarray:
    """How many rows at the top of each picture, int16 (n, h, w), a bar of one colour takes, with writing or without.

    Large letters leave little of its colour in the rows that they stand in: then plain rows follow them, and the
    picture, which is not for the most part of that colour, or words beside an object on white would be a bar.
    """
    colour = np.median(pictures[:, 0], axis=1)[:, None, None]
    plain = ((np.abs(pictures - colour) <= CONSTANT) & within[:, None]).sum(2) / within.sum(1)[:, None]
    is_bar = np.minimum.accumulate(plain >= WRITTEN, axis=1)
    rows = is_bar.sum(1)
    share = (plain * is_bar).sum(1) / np.maximum(rows, 1)
    rows = np.where((share >= ON_THE_WHOLE) & (rows <= LARGEST_BAR) & ~is_framed, rows, 0)
    clear = plain[:, : LARGEST_BAR + 1] >= RIM
    first_written, last_clear = clear.argmin(1), LARGEST_BAR - clear[:, ::-1].argmax(1)
    is_written = (first_written > 0) & (first_written < last_clear) & (last_clear < LARGEST_BAR)
    is_written &= plain[np.arange(len(plain)), last_clear + 2] <= PICTURE
    rows = np.maximum(rows, np.where(is_written, last_clear + 1, 0))
    # With the row in which the bar ends, which shows some of either.
    return np.where((plain[:, 0] >= RIM) & (rows >= SMALLEST_BAR), rows + 1, 0)
