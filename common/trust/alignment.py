"""Whether two pictures show the same: aligned affinely, then compared where both show something.

Gauss-Newton steps from coarse to fine (S. Baker and I. Matthews 2004, IJCV 56, "Lucas-Kanade 20 years on").
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

SIDE = 64  # px of the grey pictures that are aligned
ALIKE = 0.92  # correlation of the aligned detail: chosen on real photos and planted edits, docs/trust.md
# Side, steps, what is compared after them, how much of it must correlate to go on, and how much more where a strip is
# left out (None: no strip is). Most pairs fall early, where a look costs little. Each gate but the last stands where
# 1 % of the looks at planted copies would fall. Leaving a strip out flatters strangers, so they must be more alike.
LEVELS = (
    (16, 3, "all", 0.45, None),
    (16, 3, "all", 0.6, None),
    (32, 0, "detail", 0.4, None),
    (32, 4, "detail", 0.75, 0.1),
    (SIDE, 6, "detail", ALIKE, 0.02),
)
SHARED = 0.5  # of either picture
STRIP, OF_THE_POINTS = 0.25, 0.4  # the most that a strip may hold: of the rows, and of what is compared
OTHER = 0.6  # correlation below which a strip shows something else, such as a caption
AT_ONCE = 128  # pairs that are aligned at a time
PLAIN = 8.0  # grey levels within which a corner's colour is a background or a fill
EVERYTHING = np.array([[0, 0, 1, 1]], np.float32)  # a frame that leaves nothing out
BUSY = 0.15  # share of the points that must show more than that, or all shared points are compared


def halved(pictures: np.ndarray) -> np.ndarray:
    """Pictures (n, height, width) at half their size, each pixel the mean of four, float32."""
    n, height, width = pictures.shape
    return pictures.reshape(n, height // 2, 2, width // 2, 2).mean(axis=(2, 4), dtype=np.float32)


def pyramid(pictures: np.ndarray) -> dict[int, np.ndarray]:
    """Pictures, uint8 (n, SIDE, SIDE), at each side of LEVELS; a mean of four such numbers fits 16 bits exactly."""
    half = halved(pictures)
    return {SIDE: pictures, SIDE // 2: half.astype(np.float16), SIDE // 4: halved(half)}


def checked(
    sizes: Mapping[int, np.ndarray], frames: np.ndarray, mirrored: bool, candidates: np.ndarray
) -> list[tuple[int, int, float]]:
    """Those candidates that pass every level of the alignment: (picture, picture, correlation of the detail).

    Args:
        sizes: the pictures by their side, as :func:`pyramid` makes them.
        frames: of each, what a border of one colour frames, (n, 4).
        mirrored: whether the first of two is.
        candidates: (m, 6): picture, picture, and the box of the second that shows what the first does.
    """
    one, two = candidates[:, :2].T.astype(int)
    affine, values = affine_of(candidates[:, 2:].astype(np.float32)), np.empty(0)
    for side, steps, what, gate, more in LEVELS:
        values = np.full(len(one), -1.0)
        for start in range(0, len(one), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            fixed, moving = (sizes[side][numbers[some]].astype(np.float32) for numbers in (one, two))
            fixed_frame, moving_frame = frames[one[some]], frames[two[some]]
            if mirrored:
                fixed, fixed_frame = fixed[:, :, ::-1], fixed_frame * np.array([-1, 1, 1, 1], np.float32)
            affine[some] = _align(fixed, moving, affine[some], fixed_frame, moving_frame, steps)
            both = fixed, moving, affine[some], fixed_frame, moving_frame
            values[some] = _detail_likeness(*both, more) if what == "detail" else _likeness(*both)
        kept = values >= gate
        one, two, affine, values = one[kept], two[kept], affine[kept], values[kept]
    return list(zip(one.tolist(), two.tolist(), values.tolist(), strict=True))


def affine_of(boxes: np.ndarray) -> np.ndarray:
    """The maps of a whole picture onto boxes, (b, 2, 3)."""
    affine = np.zeros((len(boxes), 2, 3), np.float32)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = boxes[:, 2], boxes[:, 3], boxes[:, :2]
    return affine


def _points(side: int) -> np.ndarray:
    """The middles of the pixels, (3, side * side): x, y from -1 to 1, and 1."""
    along = ((np.arange(side) + 0.5) * (2 / side) - 1).astype(np.float32)
    y, x = np.meshgrid(along, along, indexing="ij")
    return np.stack([x.ravel(), y.ravel(), np.ones(side * side, np.float32)])


def sampled(
    pictures: np.ndarray, affine: np.ndarray, side: int, frames: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (b, s, s) at the affine images of ``side``² points, bilinear, and which of these lie in the frames."""
    b, size = pictures.shape[:2]
    places = affine @ _points(side)
    inside = _in_frame(_inner(frames, size), places) if frames is not None else _in_frame(EVERYTHING, places)
    places = np.clip((places + 1) * (size / 2) - 0.5, 0, size - 1.001)
    whole = places.astype(np.int32)
    x, y = (places - whole).transpose(1, 0, 2)
    corner = whole[:, 1] * size + whole[:, 0] + (np.arange(b, dtype=np.int32) * (size * size))[:, None]
    flat = pictures.reshape(-1)
    above = flat.take(corner) * (1 - x) + flat.take(corner + 1) * x
    below = flat.take(corner + size) * (1 - x) + flat.take(corner + size + 1) * x
    return above * (1 - y) + below * y, inside


def _in_frame(frames: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Which places, (b or 1, 2, points), lie in the frames, (b or 1, 4)."""
    return (np.abs(places - frames[:, :2, None]) <= frames[:, 2:, None]).all(1)


def _inner(frames: np.ndarray, side: int) -> np.ndarray:
    """Frames without the pixel, of ``side``, in which a border ends that they leave out: it shows some of either."""
    low, high = frames[:, :2] - frames[:, 2:], frames[:, :2] + frames[:, 2:]
    low = np.where(low > -1 + 1 / SIDE, low + 2 / side, low)
    high = np.where(high < 1 - 1 / SIDE, high - 2 / side, high)
    return np.concatenate([(low + high) / 2, (high - low) / 2], axis=1)


def _normal(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Zero mean and unit deviation over the mask, 0 outside of it."""
    count = np.maximum(mask.sum(1, keepdims=True), 1)
    values = (values - (values * mask).sum(1, keepdims=True) / count) * mask
    return values / (np.sqrt((values**2).sum(1, keepdims=True) / count) + 1e-3)


def _align(
    fixed: np.ndarray,
    moving: np.ndarray,
    affine: np.ndarray,
    fixed_frame: np.ndarray,
    moving_frame: np.ndarray,
    steps: int,
) -> np.ndarray:
    """The affine maps (b, 2, 3) from points of ``fixed`` to points of ``moving`` after some Gauss-Newton steps.

    Inverse compositional: the gradients are the fixed picture's, so that they are taken once.
    """
    b, side = fixed.shape[:2]
    x, y, _ = _points(side)
    own, flat = _in_frame(_inner(fixed_frame, side), _points(side)[None, :2]), fixed.reshape(b, -1)
    # Beside a white border a faint picture's slopes would seem small, and its steps be too long.
    scale = flat.std(1, where=own)[:, None, None] + 1e-3
    down, across = np.gradient(fixed / scale, 2 / side, axis=(1, 2))
    down, across = down.reshape(b, -1), across.reshape(b, -1)
    slopes = np.stack([across * x, across * y, across, down * x, down * y, down], axis=1)
    for _ in range(steps):
        values, inside = sampled(moving, affine, side, moving_frame)
        mask = (inside & own).astype(np.float32)
        error = _normal(values, mask) - _normal(flat, mask)
        masked = slopes * mask[:, None]
        hessian = masked @ masked.transpose(0, 2, 1)
        hessian += np.eye(6, dtype=np.float32) * (1e-3 * np.trace(hessian, axis1=1, axis2=2)[:, None, None] + 1e-3)
        move = np.linalg.solve(hessian, masked @ error[:, :, None]).reshape(b, 2, 3)
        move = np.clip(move, -0.3, 0.3)
        affine = _composed(affine, _inverse(move + np.eye(2, 3, dtype=np.float32)))
    return affine


def _inverse(affine: np.ndarray) -> np.ndarray:
    turned = np.linalg.inv(affine[:, :, :2])
    return np.concatenate([turned, -turned @ affine[:, :, 2:]], axis=2)


def _composed(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [outer[:, :, :2] @ inner[:, :, :2], outer[:, :, :2] @ inner[:, :, 2:] + outer[:, :, 2:]], axis=2
    )


def _likeness(fixed, moving, affine, fixed_frame, moving_frame) -> np.ndarray:
    """Correlation of the aligned pictures over what both show; -1 where that is too little, (b)."""
    side = fixed.shape[1]
    values, inside = sampled(moving, affine, side, moving_frame)
    mask = (inside & _in_frame(_inner(fixed_frame, side), _points(side)[None, :2])).astype(np.float32)
    found = (_normal(values, mask) * _normal(fixed.reshape(len(fixed), -1), mask)).sum(1) / np.maximum(mask.sum(1), 1)
    return np.where(_is_shared(mask, affine, fixed_frame, moving_frame), found, -1.0)


def _is_shared(mask, affine, fixed_frame, moving_frame) -> np.ndarray:
    """Whether the common part is half of either picture, and the map no distortion that nobody makes.

    Of a light picture on white the copy may have a frame where the picture has none: then what both show within the
    frames may be less, a quarter, if half of either is shared without frames.
    """
    turn = affine[:, :, :2].astype(float)
    area, stretch = np.linalg.det(turn), np.linalg.svd(turn, compute_uv=False)

    def is_half(part: np.ndarray, fixed_part: np.ndarray, moving_part: np.ndarray) -> np.ndarray:
        return (part >= SHARED * fixed_part) & (part * area >= SHARED * moving_part)

    part, whole = mask.mean(1), _in_frame(EVERYTHING, affine @ _points(SIDE // 4)).mean(1)
    enough = is_half(part, *(_inner_area(each, mask) for each in (fixed_frame, moving_frame)))
    enough |= is_half(whole, 1.0, 1.0) & (part >= SHARED / 2)
    return enough & (stretch[:, 0] < 1.6 * stretch[:, 1])


def _inner_area(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    inner = _inner(frames, round(mask.shape[1] ** 0.5))
    return inner[:, 2] * inner[:, 3]


def _detail_likeness(fixed, moving, affine, fixed_frame, moving_frame, more: float | None) -> np.ndarray:
    """Correlation of the aligned pictures' detail, each measured beside the detail around it, (b).

    Divided by its own strength nearby, so that one black corner does not outweigh the rest of the picture. Without a
    strip of rows it counts ``more`` less.
    """
    b, side = fixed.shape[:2]
    values, inside = sampled(moving, affine, side, moving_frame)
    shared = (inside & _in_frame(_inner(fixed_frame, side), _points(side)[None, :2])).astype(np.float32)
    busy = ~(_filled(fixed, fixed) | _filled(values.reshape(b, side, side), moving)).reshape(b, -1)
    mask = np.where((shared * busy).mean(1, keepdims=True) >= BUSY, shared * busy, shared).reshape(b, side, side)
    details = _details([fixed, values.reshape(b, side, side)], mask)
    mask = _eroded(mask)
    one, two = (each * mask for each in details)
    sums = np.stack([mask, one, two, one * one, two * two, one * two]).sum(3, dtype=float)
    found = _correlation(sums.sum(2))
    if more is not None:
        found = np.maximum(found, _without_a_strip(sums) - more)
    return np.where(_is_shared(shared, affine, fixed_frame, moving_frame), found, -1.0)


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Correlation by the sums of 1, x, y, x², y² and xy, (6, ...)."""
    n, x, y, xx, yy, xy = sums
    n = np.maximum(n, 1)
    return (xy - x * y / n) / np.sqrt(np.maximum((xx - x * x / n) * (yy - y * y / n), 1e-6))


def _without_a_strip(sums: np.ndarray) -> np.ndarray:
    """The largest correlation where one strip of rows that shows something else is left out, (b); -1 where none does.

    Args:
        sums: of each row of b pairs, as :func:`_correlation` takes them, (6, b, side).
    """
    side = sums.shape[2]
    upto = np.concatenate([np.zeros_like(sums[:, :, :1]), sums.cumsum(2)], axis=2)
    whole, best = upto[:, :, -1:], np.full(sums.shape[1], -1.0)
    for rows in range(max(2, side // 16), int(STRIP * side) + 1):
        strip = upto[:, :, rows:] - upto[:, :, :-rows]
        is_other = (_correlation(strip) < OTHER) & (strip[0] < OF_THE_POINTS * whole[0])
        best = np.maximum(best, np.where(is_other, _correlation(whole - strip), -1.0).max(1))
    return best


def _filled(pictures: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Where pictures show the plain colour of a corner of the ``whole`` ones: background, or what a rotation fills."""
    from scipy.ndimage import maximum_filter, minimum_filter

    is_plain = maximum_filter(pictures, (1, 3, 3)) - minimum_filter(pictures, (1, 3, 3)) <= PLAIN
    corners = whole[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    return is_plain & (np.abs(pictures[:, None] - corners[:, :, None, None]) <= PLAIN).any(1)


def _details(both: Sequence[np.ndarray], mask: np.ndarray) -> list[np.ndarray]:
    """Pictures minus their blurred selves, divided by the strength of that nearby, within the mask, (b, s, s) each."""
    over = {width: _blurred(mask, width) + 1e-3 for width in (0.7, 3, 5)}
    area = np.maximum(mask.sum((1, 2), keepdims=True), 1)
    found = []
    for picture in both:
        smooth = _blurred(picture * mask, 0.7) / over[0.7]
        rough = smooth - _blurred(smooth * mask, 3) / over[3]
        power = _blurred(rough**2 * mask, 5) / over[5]
        overall = (power * mask).sum((1, 2), keepdims=True) / area
        found.append(rough / np.sqrt(power + 0.2 * overall + 1))
    return found


def _blurred(pictures: np.ndarray, width: float) -> np.ndarray:
    matrix = _gaussian(pictures.shape[1], width)
    return matrix @ (pictures @ matrix.T)


@cache
def _gaussian(side: int, width: float) -> np.ndarray:
    """Gaussian blur along one axis as a matrix: for so few pixels a product is faster than a filter."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(np.eye(side, dtype=np.float32), width, axis=0)


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The mask without the two pixels at its edge, where the blur mixes in what is not shared."""
    from scipy.ndimage import minimum_filter

    return minimum_filter(mask, size=(1, 5, 5))
