"""What a probe tells of the label: their mutual information, beside what it tells of shuffled labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from common.trust.probes import FEWEST, PROBES

BINS = 20
SHUFFLES = 200
MORE_SHUFFLES, MORE_WORK = 10_000, 2_000_000  # that none may reach what seems certain: at most, and times rows
MOST_ROWS = 20_000  # that are looked at; of more, a random part
CERTAIN = 4.0  # standard deviations beyond shuffled labels: the one threshold
MUCH = 1 / 3  # of all there is to know about the label


@dataclass(frozen=True)
class Told:
    """What a probe tells of the label."""

    probe: str
    z: float  # beyond what it tells of shuffled labels, as a standard normal deviate
    share: float  # of the label's entropy, beyond the same
    neighbours: float  # share of rows whose next one, in the probe's order, has the same label
    by_chance: float  # the same for shuffled labels

    @property
    def is_certain(self) -> bool:
        """Whether it is more than chance over all probes."""
        return self.z > CERTAIN

    @property
    def is_alarm(self) -> bool:
        """Whether it is much, or is told by what no picture holds."""
        return self.is_certain and (self.share >= MUCH or not PROBES[self.probe].is_seen)


def told_by(probes: dict[str, np.ndarray], labels: np.ndarray) -> list[Told]:
    """What each probe tells of the labels (n), the most certain first."""
    random = np.random.default_rng(0)
    rows = np.arange(len(labels))
    if len(rows) > MOST_ROWS:
        rows = np.sort(random.permutation(rows)[:MOST_ROWS])
    codes = label_codes(labels[rows])
    entropy = _entropy(np.bincount(codes))
    if len(rows) < FEWEST or entropy == 0:
        return []
    shuffled = [random.permutation(codes) for _ in range(SHUFFLES)]
    found = []
    for name, values in probes.items():
        values = values[rows]
        if np.ptp(values) == 0:
            continue
        bins = _binned(values)
        real = _information(bins, codes)
        null = np.array([_information(bins, other) for other in shuffled])
        z, neighbours, by_chance = _deviate(real, null), np.nan, np.nan
        if z > CERTAIN and is_reached(partial(_togetherness, bins), codes):
            z = CERTAIN
        if not PROBES[name].is_seen:
            order = np.argsort(values, kind="stable")
            neighbours, by_chance, beyond = _neighbours(codes[order])
            z = max(z, beyond)
        found.append(Told(name, z, float(max(0.0, real - null.mean()) / entropy), neighbours, by_chance))
    return sorted(found, key=lambda told: -told.z)


def is_reached(statistic: Callable[[np.ndarray], float], codes: np.ndarray) -> bool:
    """Whether one of many more shuffles of ``codes`` reaches what the ``statistic`` of them is.

    Of few rows, or few of a class, a statistic has few values; no smooth distribution says how rare the largest are.
    """
    random, real = np.random.default_rng(1), statistic(codes)
    shuffles = min(MORE_SHUFFLES, MORE_WORK // len(codes))
    return any(statistic(random.permutation(codes)) >= real - 1e-9 for _ in range(shuffles))


def _neighbours(codes: np.ndarray) -> tuple[float, float, float]:
    """How often neighbours share a label, how often by chance, and how many deviations beyond that it is."""
    random, real = np.random.default_rng(0), _alike(codes)
    shuffled = np.array([_alike(random.permutation(codes)) for _ in range(SHUFFLES)])
    z = float((real - shuffled.mean()) / (shuffled.std() + 1 / len(codes)))
    if z > CERTAIN and is_reached(_alike, codes):
        z = CERTAIN
    return real, float(shuffled.mean()), z


def label_codes(labels: np.ndarray) -> np.ndarray:
    """Equal numbers for equal labels, or for numbers of the same tenth where labels are many numbers, int64 (n)."""
    texts = labels.astype(str)
    names, codes = np.unique(texts, return_inverse=True)
    if len(names) <= 50:
        return codes
    try:
        values = texts.astype(float)
    except ValueError:
        return codes
    return np.searchsorted(np.quantile(values, np.linspace(0, 1, 11)[1:-1]), values)


def order_in_words(predicted: np.ndarray) -> str:
    """A note where test rows that follow each other are predicted alike far above chance; empty where not."""
    codes = label_codes(predicted)
    if len(codes) < FEWEST:
        return ""
    real, chance, z = _neighbours(codes)
    if z <= CERTAIN:
        return ""
    return (
        f"note: {real:.0%} of the test rows are predicted like the next one, by chance {chance:.0%} (z {z:.0f}): "
        "the test table is sorted, and a rival may use its order"
    )


def _binned(values: np.ndarray) -> np.ndarray:
    """The number of each value's bin, bins being of about equal size."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.searchsorted(edges, values, side="left")


def _entropy(counts: np.ndarray) -> float:
    """In nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _information(bins: np.ndarray, codes: np.ndarray) -> float:
    """Mutual information of two numberings, nats."""
    return _entropy(np.bincount(bins)) + _entropy(np.bincount(codes)) + _togetherness(bins, codes)


def _togetherness(bins: np.ndarray, codes: np.ndarray) -> float:
    """What of their mutual information changes where ``codes`` are shuffled, nats: less the entropy of both."""
    return -_entropy(np.bincount(bins * (codes.max() + 1) + codes))


def _alike(codes: np.ndarray) -> float:
    return float((codes[1:] == codes[:-1]).mean())


def _deviate(real: float, null: np.ndarray) -> float:
    """How far ``real`` lies beyond chance, as a standard normal deviate.

    Of independent variables the information is about a gamma variate, skewed where there are few bins and classes.
    """
    from scipy.special import gammaincc, ndtri  # scipy.stats has more words for them, and takes a second to import

    mean, spread = null.mean(), null.std() + 1e-12
    plain = (real - mean) / spread
    p = float(gammaincc((mean / spread) ** 2, real * mean / spread**2)) if mean > 0 and real > 0 else 1.0
    return -float(ndtri(p)) if 1e-300 < p < 1 else float(plain)


def in_words(told: Told, others: Sequence[Told] = (), is_alike: bool = False) -> str:
    """One sentence: what a probe tells, how sure that is, whether the test is alike in it and a model can see it."""
    probe = PROBES[told.probe]
    what = f"{probe.words} tells {told.share:.0%} of what there is to know about the label (z {told.z:.0f})"
    if told.neighbours > 0:
        what += f"; neighbours share a label in {told.neighbours:.0%}, by chance in {told.by_chance:.0%}"
    also = ", ".join(PROBES[each.probe].words for each in others)
    what += f"; so do {also}" if also else ""
    what += "; the test rows are alike in it" if is_alike else ""
    return what + (f": {probe.advice}" if probe.advice else "")


def strongest(found: Sequence[Told]) -> list[tuple[Told, list[Told]]]:
    """Of each family the probe that tells most, with the others that are certain."""
    families: dict[str, list[Told]] = {}
    for told in sorted(found, key=lambda each: -each.share):
        if told.is_certain:
            families.setdefault(PROBES[told.probe].family, []).append(told)
    return [(first, others) for first, *others in families.values()]
