"""Edited copies of one picture: found by cheap descriptors, decided by the detail of the aligned pictures.

A competition falls over them: the same lesion, leaf or frame of a video stands in train and test, or on both sides of a
fold. A 64-bit hash misses crops, mirrors and bars, or pairs strangers; a net's cosine calls two pianos copies. So:
candidates are nearest neighbours of two descriptors; the two pictures are then aligned affinely (Gauss-Newton steps
from coarse to fine, S. Baker and I. Matthews 2004, IJCV 56), and they are a pair where their shared detail correlates.

Small pictures such as drawn digits look alike without being copies: they are compared as they are, pixel by pixel.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from common.trust.alignment import EVERYTHING, affine_of, checked, halved, pyramid, sampled
from common.trust.borders import content_boxes

SMALLEST = 48  # px of a picture's shorter side, below which nothing is aligned
SAME_DRAWING = 0.99  # correlation of small pictures
NEIGHBOURS = 4  # of each picture, under each descriptor
CLOSE = 0.45  # cosine of descriptors below which no neighbour is a candidate
BLOCK = 4_000_000  # numbers of a matrix of similarities that are held at a time
SHARE = 2048  # candidates that a thread takes
PARTS = ((0, -0.125, 1, 0.875), (0, 0.125, 1, 0.875))  # of a picture that a bar over it may leave, tried as candidates
ZOOMS = (1.0, 0.88)  # shares of a picture that a copy may be cut to, tried as candidates


@dataclass(frozen=True)
class Pairs:
    """m pairs of pictures, by their numbers, the first one smaller."""

    first: np.ndarray  # int64 (m)
    second: np.ndarray  # int64 (m)
    likeness: np.ndarray  # correlation of the shared detail, or of small pictures as they are, (m)

    def __len__(self) -> int:
        return len(self.first)


NO_PAIRS = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


def pairs_of(pictures: np.ndarray, aligned: bool, workers: int = 1) -> Pairs:
    """The near-duplicates among grey pictures, uint8 (n, SIDE, SIDE), or (n, height, width) where not ``aligned``."""
    if len(pictures) < 2:
        return NO_PAIRS
    return aligned_pairs(pictures, workers) if aligned else same_drawings(pictures)


# ---- small pictures


def same_drawings(pictures: np.ndarray, least: float = SAME_DRAWING) -> Pairs:
    """Every pair whose pixels correlate with at least ``least``.

    Pictures of zero mean and length one that correlate so are at most sqrt(2 - 2 least) apart, and so are their
    projections: the first principal axis cuts most pairs off, some more axes nearly all others, and none is lost.
    """
    units, kept = _standardised(pictures.reshape(len(pictures), -1))
    if len(units) < 2:
        return NO_PAIRS
    sample = units[:: max(1, len(units) // 2000)]
    if len(sample) < sample.shape[1]:  # few large pictures: the other product is the smaller one
        axes = np.linalg.svd(sample, full_matrices=False)[2][:32].T
    else:
        axes = np.linalg.eigh(sample.T @ sample)[1][:, ::-1][:, :32].astype(np.float32)
    near = units @ axes
    order = np.argsort(near[:, 0], kind="stable")
    near, limit = near[order], np.float32(2 - 2 * least + 1e-5)
    half = (near**2).sum(1) / 2
    ends = np.searchsorted(near[:, 0], near[:, 0] + np.sqrt(limit), side="right")
    found = []
    step = max(1, min(512, BLOCK // len(near)))
    for start in range(0, len(near), step):
        rows, last = slice(start, start + step), ends[min(start + step, len(near)) - 1]
        close = near[rows] @ near[start:last].T - half[rows, None] - half[start:last] >= -limit / 2
        one, two = np.nonzero(close)
        later = two > one
        found.append(np.stack([order[start + one[later]], order[start + two[later]]], axis=1))
    both = np.sort(np.concatenate(found), axis=1)
    likeness = np.concatenate([(units[part[:, 0]] * units[part[:, 1]]).sum(1) for part in _parts(both)] or [[]])
    both, likeness = both[likeness >= least], likeness[likeness >= least]
    return _pairs(kept[both[:, 0]], kept[both[:, 1]], likeness)


def _standardised(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of zero mean and length one, float32, and their numbers; rows of one colour are left out."""
    values = flat.astype(np.float32)
    values -= values.mean(1, keepdims=True)
    length = np.sqrt((values**2).sum(1))
    kept = np.flatnonzero(length > 1)
    return values[kept] / length[kept, None], kept


def _pairs(first: np.ndarray, second: np.ndarray, likeness: np.ndarray) -> Pairs:
    order = np.lexsort((second, first))
    return Pairs(first[order].astype(np.int64), second[order].astype(np.int64), likeness[order].astype(float))


def _parts(rows: np.ndarray, size: int = 10_000) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


# ---- candidates


@dataclass(frozen=True)
class Windows:
    """v parts of pictures that are looked at: all of one, what a border of one colour frames, its middle."""

    picture: np.ndarray  # int64 (v)
    box: np.ndarray  # float32 (v, 4): centre and half size, x and y, where the picture reaches from -1 to 1
    descriptors: tuple[np.ndarray, np.ndarray]  # float32 (v, numbers) each, of length one


def aligned_pairs(pictures: np.ndarray, workers: int = 1) -> Pairs:
    """The pairs among pictures of SIDE px whose aligned detail correlates with at least ALIKE."""
    frames, sizes = content_boxes(pictures), pyramid(pictures)
    likeness: dict[tuple[int, int], float] = {}
    with ThreadPoolExecutor(workers) as pool:
        for mirrored in (False, True):
            shares = _parts(_all_candidates(pictures, frames, mirrored), SHARE)
            for found in pool.map(partial(checked, sizes, frames, mirrored), shares):
                for one, two, value in found:
                    key = (min(one, two), max(one, two))
                    likeness[key] = max(value, likeness.get(key, 0.0))
    both = np.array(list(likeness)).reshape(-1, 2)
    return _pairs(both[:, 0], both[:, 1], np.array(list(likeness.values())))


def _all_candidates(pictures: np.ndarray, frames: np.ndarray, mirrored: bool) -> np.ndarray:
    """Pictures to compare and where to begin, (m, 6): picture, to be mirrored or not, other picture, its box."""
    whole = EVERYTHING.repeat(len(pictures), axis=0)
    queries = _windows(pictures[:, :, ::-1] if mirrored else pictures, whole)
    windows = [_windows(pictures, zoomed(frames, zoom)) for zoom in ZOOMS]
    framed = np.flatnonzero((frames != whole).any(1))
    asked = [(queries, each) for each in windows]
    if framed.size:
        asked.append((queries, _windows(pictures, whole[framed], framed)))
        own = frames[framed] * np.array([-1 if mirrored else 1, 1, 1, 1], np.float32)
        content = _windows(pictures[framed, :, ::-1] if mirrored else pictures[framed], own)
        content = replace(content, picture=framed)
        parts = np.tile(np.array(PARTS, np.float32), (len(pictures), 1, 1))
        asked += [(content, windows[0])] + [(content, _windows(pictures, parts[:, at])) for at in range(len(PARTS))]
    found = np.concatenate([_candidates(*each) for each in asked])
    # Two pictures as they are need one look, not one from either side.
    is_double = (found[:, 2:] == whole[0]).all(1) & (found[:, 0] > found[:, 1])
    found[is_double, :2] = found[is_double, 1::-1]
    return np.unique(found, axis=0)


def zoomed(boxes: np.ndarray, share: float) -> np.ndarray:
    """The middle of each box."""
    return boxes * np.array([1, 1, share, share], np.float32)


def _windows(pictures: np.ndarray, boxes: np.ndarray, numbers: np.ndarray | None = None) -> Windows:
    numbers = np.arange(len(pictures)) if numbers is None else numbers
    parts = []
    for start in range(0, len(numbers), 2048):
        own, some = numbers[start : start + 2048], boxes[start : start + 2048]
        parts.append(_descriptors(_cut(pictures[own], some)))
    return Windows(numbers, boxes, tuple(np.concatenate(each) for each in zip(*parts, strict=True)))


def _cut(pictures: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Each picture's box at 32 x 32, float32."""
    small = halved(pictures.astype(np.float32))
    if (boxes == EVERYTHING).all():
        return small
    return sampled(small, affine_of(boxes), 32)[0].reshape(-1, 32, 32)


def _descriptors(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pictures (n, 32, 32): the low cosine coefficients, and low Fourier magnitudes, which do not mind a shift."""
    from scipy.fft import dctn, rfft2

    small = small - small.mean((1, 2), keepdims=True)
    cosines = dctn(small, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(small), -1)[:, 1:]
    hann = np.hanning(34)[1:-1].astype(np.float32)
    spectrum = np.abs(rfft2(small * hann[:, None] * hann, axes=(1, 2)))
    magnitudes = np.concatenate([spectrum[:, :6, :7], spectrum[:, -5:, :7]], axis=1).reshape(len(small), -1)
    magnitudes = np.log1p(magnitudes / (magnitudes.mean(1, keepdims=True) + 1e-3))
    magnitudes -= magnitudes.mean(0)
    return _of_length_one(cosines), _of_length_one(magnitudes)


def _of_length_one(values: np.ndarray) -> np.ndarray:
    return (values / (np.linalg.norm(values, axis=1, keepdims=True) + 1e-6)).astype(np.float32)


def _candidates(queries: Windows, windows: Windows) -> np.ndarray:
    """The nearest windows of each query, another picture's: (m, 6) query's picture, picture, box."""
    found = []
    k = min(NEIGHBOURS + 1, len(windows.picture))
    for query, known in zip(queries.descriptors, windows.descriptors, strict=True):
        step = max(1, BLOCK // len(known))
        for start in range(0, len(query), step):
            likeness = query[start : start + step] @ known.T
            nearest = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
            row, place = np.nonzero(np.take_along_axis(likeness, nearest, 1) >= CLOSE)
            found.append(np.stack([queries.picture[start + row], nearest[row, place]], axis=1))
    both = np.unique(np.concatenate(found), axis=0)
    both = both[both[:, 0] != windows.picture[both[:, 1]]]
    own, other = queries.box[np.searchsorted(queries.picture, both[:, 0])], windows.box[both[:, 1]]
    scale = other[:, 2:] / own[:, 2:]  # the whole of the query onto what shows its own box as the other box
    return np.column_stack([both[:, 0], windows.picture[both[:, 1]], other[:, :2] - own[:, :2] * scale, scale])
