"""Train against test: the probes that differ, and how well all of them tell the rows apart."""

from dataclasses import dataclass

import numpy as np

from common.trust.probes import FEWEST, probe_called

DIFFERENT = 0.01  # p over all probes of train against test


@dataclass(frozen=True)
class Shift:
    """A probe that differs between train and test."""

    probe: str
    distance: float  # Kolmogorov and Smirnov's: the largest difference of the two distribution functions
    train_median: float
    test_median: float

    def __str__(self) -> str:
        probe = probe_called(self.probe)
        one, two = (
            f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" for value in (self.train_median, self.test_median)
        )
        medians = (
            f"{one} against {two}{probe.unit}" if one != two else f"{one}{probe.unit} in both, but spread otherwise"
        )
        return f"{probe.words.removeprefix('the ')} {medians}"


def shifts(train: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> list[Shift]:
    """The probes that tell train from test rows, the largest difference first; numbers of rows and files never do."""
    names = [name for name in train | test if probe_called(name).is_drawn and name in train and name in test]
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
    drawn = {name for name in train if name in test and probe_called(name).is_drawn}
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

    names = [name for name in train if probe_called(name).is_drawn and name in test]
    random, most = np.random.default_rng(0), 2000
    parts = [np.nan_to_num(np.column_stack([side[name] for name in names]), nan=-1e9) for side in (train, test)]
    parts = [part[random.permutation(len(part))[:most]] for part in parts]
    is_test = np.repeat([0, 1], [len(part) for part in parts])
    forest = ExtraTreesClassifier(100, min_samples_leaf=5, random_state=0)
    said = cross_val_predict(forest, np.concatenate(parts), is_test, cv=5, method="predict_proba")[:, 1]
    n1, n2 = map(len, parts)
    return float(roc_auc_score(is_test, said)), 1.96 * 1.35 * ((n1 + n2 + 1) / (12 * n1 * n2)) ** 0.5
