"""Probes: what is not the picture itself, such as a row's place or its file's size, and tells the label or the set.

Each probe is one number a row. What it tells of the label is their mutual information, in bins of equal size, beside
what it tells of shuffled labels: one threshold holds for all probes. Train and test are compared by Kolmogorov and
Smirnov's test of each probe that a random split leaves alike.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath

import numpy as np

from common.data.tables import Table

BINS = 20
SHUFFLES = 200
MORE_SHUFFLES, MORE_WORK = 10_000, 2_000_000  # that none may reach what seems certain: at most, and times rows
MOST_ROWS = 20_000  # that are looked at; of more, a random part
CERTAIN = 4.0  # standard deviations beyond shuffled labels: the one threshold
MUCH = 1 / 3  # of all there is to know about the label
DIFFERENT = 0.01  # p over all probes of train against test
FEWEST = 20  # rows of either side


@dataclass(frozen=True)
class Kind:
    """What a probe is, in words."""

    words: str  # subject of "... tells 74 % of what there is to know about the label"
    family: str  # of several that say the same, one is named
    is_seen: bool  # whether the picture that a model is given may hold it
    advice: str = ""
    is_drawn: bool = True  # whether a random split leaves it alike in train and test
    unit: str = ""


_SEEN = "a model sees it as far as its pixels show it"
_SIZE = "a model sees it only as far as it survives the resizing"
KINDS = {
    "row": Kind(
        "the order of the rows", "order", False, "the table was sorted; your models cannot see it, a rival can", False
    ),
    "number": Kind(
        "the number in the file name",
        "name",
        False,
        "rows were numbered by class; your models cannot see it, a rival can",
        False,
    ),
    "id_number": Kind(
        "the number in the id",
        "name",
        False,
        "rows were numbered by their answer; your models cannot see it, a rival can",
        False,
    ),
    "name_letters": Kind(
        "which letters stand in the file name",
        "name",
        False,
        "files are called by their class, in the test too; your models cannot see it, a rival can",
        False,
    ),
    "id_letters": Kind(
        "which letters stand in the id", "name", False, "your models cannot see them, a rival can", False
    ),
    "width": Kind("the width", "size", True, _SIZE, unit=" px"),
    "height": Kind("the height", "size", True, _SIZE, unit=" px"),
    "aspect": Kind("the ratio of width and height", "size", True, _SIZE),
    "bytes": Kind("the size of the file", "size", True, _SIZE, unit=" bytes"),
    "bytes_per_pixel": Kind(
        "the bytes per pixel", "size", True, "a model sees it only as far as it sees how busy it is"
    ),
    "after_the_end": Kind(
        "what stands in the file after the image's end",
        "appended",
        False,
        "it is no part of the picture; your models cannot see it, a rival can",
        unit=" bytes",
    ),
    "jpeg_table": Kind(
        "the JPEG table (its sum: larger is coarser)",
        "jpeg",
        True,
        "a model may see it in the noise of the compression",
    ),
    "frames": Kind("the length", "size", True, "a model sees it unless it is trained on parts", unit=" frames"),
    "mean": Kind("the mean brightness", "pixels", True, _SEEN, unit=" of 255"),
    "spread": Kind("the contrast", "pixels", True, _SEEN, unit=" of 255"),
    "colour": Kind("how colourful the picture is", "pixels", True, _SEEN),
}


def kind_of(probe: str) -> Kind:
    """What a probe is; a column of features is called by its own name."""
    return KINDS.get(probe) or Kind(probe, "columns", True, _SEEN)


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
        return self.is_certain and (self.share >= MUCH or not KINDS[self.probe].is_seen)


def probes_of(table: Table) -> dict[str, np.ndarray]:
    """Each probe's number for the n rows of a table, float64 (n)."""
    if table.kind.in_time:
        return {}
    n, number = len(table.ids), "number" if table.kind.in_files else "id_number"
    found = {"row": np.arange(n, dtype=float), number: numbers_in(table.ids)}
    letters = "name_letters" if table.kind.in_files else "id_letters"
    found[letters] = np.unique(letters_in(table), return_inverse=True)[1]
    found |= {name: np.asarray(values, float) for name, values in table.facts.items() if name in KINDS}
    found |= table.kind.probes(table.images)
    if table.kind.of_images and not table.kind.in_files:
        flat = table.images.reshape(n, -1)
        parts = range(0, n, 4096)  # so that no float copy of all images is made
        found["mean"] = np.concatenate([flat[at : at + 4096].mean(1) for at in parts])
        found["spread"] = np.concatenate([flat[at : at + 4096].std(1) for at in parts])
    if np.array_equal(np.argsort(found[number], kind="stable"), found["row"]):
        del found[number]  # the rows stand in the order of their names
    return found


def numbers_in(ids: Sequence[str]) -> np.ndarray:
    """The last number in each file name, or 0 for all where not nearly every name has one, float64 (n)."""
    found = [re.findall("[0-9]+", PurePath(name).stem) for name in ids]
    if sum(map(bool, found)) < 0.9 * len(found):
        return np.zeros(len(found))
    return np.array([float(numbers[-1][:15]) if numbers else -1.0 for numbers in found])


def letters_in(table: Table) -> list[str]:
    """Each id without its digits; of a file only the name counts, without folder and suffix."""
    names = [PurePath(name).stem for name in table.ids] if table.kind.in_files else table.ids
    return [re.sub("[0-9]", "", name) for name in names]


# ---- against the label


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
        if not KINDS[name].is_seen:
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
    kind = KINDS[told.probe]
    what = f"{kind.words} tells {told.share:.0%} of what there is to know about the label (z {told.z:.0f})"
    if told.neighbours > 0:
        what += f"; neighbours share a label in {told.neighbours:.0%}, by chance in {told.by_chance:.0%}"
    also = ", ".join(KINDS[each.probe].words for each in others)
    what += f"; so do {also}" if also else ""
    what += "; the test rows are alike in it" if is_alike else ""
    return what + (f": {kind.advice}" if kind.advice else "")


def strongest(found: Sequence[Told]) -> list[tuple[Told, list[Told]]]:
    """Of each family the probe that tells most, with the others that are certain."""
    families: dict[str, list[Told]] = {}
    for told in sorted(found, key=lambda each: -each.share):
        if told.is_certain:
            families.setdefault(KINDS[told.probe].family, []).append(told)
    return [(first, others) for first, *others in families.values()]


# ---- train against test


@dataclass(frozen=True)
class Shift:
    """A probe that differs between train and test."""

    probe: str
    distance: float  # Kolmogorov and Smirnov's: the largest difference of the two distribution functions
    train_median: float
    test_median: float

    def __str__(self) -> str:
        kind = kind_of(self.probe)
        one, two = (
            f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" for value in (self.train_median, self.test_median)
        )
        medians = f"{one} against {two}{kind.unit}" if one != two else f"{one}{kind.unit} in both, but spread otherwise"
        return f"{kind.words.removeprefix('the ')} {medians}"


def shifts(train: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> list[Shift]:
    """The probes that tell train from test rows, the largest difference first; numbers of rows and files never do."""
    names = [name for name in train | test if kind_of(name).is_drawn and name in train and name in test]
    found = []
    for name in names:
        one, two = (side[name][~np.isnan(side[name])] for side in (train, test))
        if min(len(one), len(two)) < FEWEST:
            continue
        distance, p = kolmogorov_smirnov(one, two)
        if p < DIFFERENT / len(names):
            found.append(Shift(name, distance, float(np.median(one)), float(np.median(two))))
    return sorted(found, key=lambda shift: -shift.distance)


def drawn_alike(train: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> set[str]:
    """The probes that a random split leaves alike and this one does not tell apart."""
    drawn = {name for name in train if name in test and kind_of(name).is_drawn}
    return drawn - {shift.probe for shift in shifts(train, test)}


def kolmogorov_smirnov(one: np.ndarray, two: np.ndarray) -> tuple[float, float]:
    """The largest difference of two samples' distribution functions, and its p by Kolmogorov's limit.

    ``scipy.stats.ks_2samp`` without the import of scipy.stats, which would take most of the time of folds.py.
    """
    from scipy.special import kolmogorov

    values = np.concatenate([one, two])
    shares = [np.searchsorted(np.sort(side), values, side="right") / len(side) for side in (one, two)]
    distance = float(abs(shares[0] - shares[1]).max())
    return distance, float(kolmogorov(distance * (len(one) * len(two) / len(values)) ** 0.5))


def separation(train: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> tuple[float, float]:
    """How well a forest tells test rows from train rows out of fold: the AUC, and half of its 95 % interval about 0.5.

    The factor 1.35 is measured: out of fold the null's deviation is that much above Mann and Whitney's.
    """
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict

    names = [name for name in train if kind_of(name).is_drawn and name in test]
    random, most = np.random.default_rng(0), 2000
    parts = [np.nan_to_num(np.column_stack([side[name] for name in names]), nan=-1e9) for side in (train, test)]
    parts = [part[random.permutation(len(part))[:most]] for part in parts]
    is_test = np.repeat([0, 1], [len(part) for part in parts])
    forest = ExtraTreesClassifier(100, min_samples_leaf=5, random_state=0)
    said = cross_val_predict(forest, np.concatenate(parts), is_test, cv=5, method="predict_proba")[:, 1]
    n1, n2 = map(len, parts)
    return float(roc_auc_score(is_test, said)), 1.96 * 1.35 * ((n1 + n2 + 1) / (12 * n1 * n2)) ** 0.5
