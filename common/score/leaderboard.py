"""What a score out of fold will be worth on the test set: intervals, surprises, and which two submissions to choose.

OOF scores one model a row, a submission is the mean of K: it is better by what averaging gains, which can be estimated
without labels. A public score is a second sample of the same quantity, on few rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from common.score.answers import Answers
from common.score.bootstrap import drawn_rows, prepared
from common.score.logits import Outputs
from common.score.metrics import METRICS, goodness, show

Z = 1.96  # of a 95 % interval
SURPRISE = 2.6  # deviations: 1 % of honest cases
# Of the gain of averaging, how far its estimate is off, in a run and in a blend: chosen on other draws of
# benchmarks/leaderboard.py than those that docs/trust.md tells of.
GAIN_ERROR, BLEND_ERROR = 0.25, 0.4
BY_ERRORS = ("accuracy", "errors")  # metrics of which the gain of averaging is estimated


@dataclass(frozen=True)
class Expected:
    """A score to expect on n rows, with its 95 % interval."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Entry:
    """A submission: its score out of fold and, where it was handed in, on the public part."""

    name: str
    oof: float
    row_deviation: float  # of one row's score
    public: float = float("nan")


def row_deviation(metric: str, answers: Answers, other: Answers | None = None) -> float:
    """The standard deviation of one row's part in a metric, or in how far ``other`` on the same rows is from it.

    That of n rows' score is sqrt(n) smaller. By what a row costs where the metric is a mean over rows, else by the
    bootstrap's draws.
    """
    both = [each for each in (answers, other) if each is not None]
    if costs := METRICS[metric].costs:
        values = [costs(each).astype(float) for each in both]
        return float(np.std(values[0] - values[1] if other is not None else values[0]))
    ready, of = [prepared(metric, each) for each in both], METRICS[metric].of
    draws = drawn_rows(metric, ready[0])
    scores = np.array([[of(each.rows(rows)) for each in ready] for rows in draws])
    scores[:, 0] -= scores[:, 1:].sum(axis=1)
    return float(np.nanstd(scores[:, 0]) * len(answers.costs) ** 0.5)


def expected(
    oof: float, deviation: float, n_oof: int, n_test: int, gain: float = 0.0, gain_error: float = GAIN_ERROR
) -> Expected:
    """The score on ``n_test`` new rows by what ``n_oof`` rows out of fold say, and by what averaging gains."""
    half = Z * _deviation(deviation, n_oof, n_test, gain_error * gain)
    return Expected(oof + gain, oof + gain - half, oof + gain + half)


def _deviation(of_row: float, n_oof: int, n_test: int, of_gain: float) -> float:
    """Of a test score from what is expected: both samples are drawn, and the gain is estimated."""
    return (of_row**2 * (1 / n_oof + 1 / n_test) + of_gain**2) ** 0.5


def worth_in_words(right: np.ndarray, n_test: int, models: int, gain: float, gain_error: float = GAIN_ERROR) -> str:
    """What the mean of K models will score on ``n_test`` rows, by what is right (n, 0 or 1) out of fold, in a line."""
    error, deviation = with_gain(1.0 - float(right.mean()), gain)
    gain = 1.0 - error - float(right.mean())
    found = expected(float(right.mean()), deviation, len(right), n_test, gain, gain_error)
    low, high = max(found.low, 0.0), min(found.high, 1.0)
    averaged = f"and {gain:+.2%} by averaging {models} models"
    return (
        f"expected on the test set {found.score:.2%} accuracy, 95 % interval {low:.2%} - {high:.2%}: "
        f"{right.mean():.2%} out of fold, {averaged if gain else 'what averaging adds is not known'}"
    )


def metric_in_words(metric: str, answers: Answers, n_test: int) -> str:
    """What a metric of which no gain of averaging is known will be on ``n_test`` rows, by answers out of fold."""
    score = METRICS[metric].of(prepared(metric, answers))
    found = expected(score, row_deviation(metric, answers), len(answers.costs), n_test)
    # None is better than 1, or than an error of 0.
    ends = (max(found.low, 0.0), found.high) if METRICS[metric].lower_is_better else (found.low, min(found.high, 1.0))
    low, high = (show(metric, end) for end in ends)
    return (
        f"expected on the test set {metric} {show(metric, score)}, 95 % interval {low} - {high}: that of "
        f"{len(answers.costs):,} rows out of fold; averaging models usually does better"
    )


def with_gain(error: float, gain: float) -> tuple[float, float]:
    """The error of the mean of K models, and the deviation of a row's, where OOF says ``error``: costs of 0 and 1."""
    mean = min(1.0, max(0.0, error - gain))
    return mean, (mean * (1 - mean)) ** 0.5


def averaging_gain(models: Outputs, accuracy: float) -> float:
    """What the mean of K models gains in accuracy over one of them, estimated without labels.

    The mean of the log probabilities is divided by the temperature under which it gives the single models' own choices,
    on average, the probability ``accuracy`` that they are right; its own choice then is right as often as it says.

    Args:
        models: of the K models on the same test rows, (K, n, classes).
        accuracy: of a single model, out of fold.
    """
    from scipy.optimize import brentq

    mean = Outputs(models.log_softmax().mean(axis=0), models.others)
    choices = models.values.argmax(axis=-1)

    def of_choices(scale: float) -> float:
        said = (mean / scale).softmax()
        return float(np.mean([np.take_along_axis(said, each[:, None], axis=1).mean() for each in choices]))

    low, high = 0.05, 20.0
    if not of_choices(high) < accuracy < of_choices(low):
        return 0.0
    scale = brentq(lambda each: of_choices(each) - accuracy, low, high, xtol=1e-3)
    return float((mean / scale).softmax().max(axis=-1).mean() - accuracy)


def of_a_blend(gains: Sequence[float]) -> float:
    """What averaging its runs' fold models gains in a blend, by what it gains in each run (benchmarks/leaderboard.py).

    Blending has averaged already: half of what the run gains that gains least.
    """
    return min(gains, default=0.0) / 2


def surprise(entry: Entry, n_oof: int, n_public: int, gain: float = 0.0, gain_error: float = GAIN_ERROR) -> float:
    """How many deviations the public score lies above what OOF says."""
    deviation = _deviation(entry.row_deviation, n_oof, n_public, gain_error * gain)
    return (entry.public - entry.oof - gain) / (deviation + 1e-12)


def pooled(entry: Entry, n_oof: int, n_public: int) -> float:
    """OOF and public score, each weighted by its rows; OOF alone where there is no public score."""
    if np.isnan(entry.public):
        return entry.oof
    return (n_oof * entry.oof + n_public * entry.public) / (n_oof + n_public)


def private(
    entry: Entry, n_oof: int, n_public: int, n_private: int, gain: float = 0.0, gain_error: float = GAIN_ERROR
) -> Expected:
    """The score on the private rows by what is known of both, and its interval."""
    known = 0 if np.isnan(entry.public) else n_public
    weight = n_oof / (n_oof + known)
    score = weight * (entry.oof + gain) + (1 - weight) * (entry.public if known else 0.0)
    half = Z * _deviation(entry.row_deviation, n_oof + known, n_private, weight * gain_error * gain)
    return Expected(score, score - half, score + half)


def two_to_choose(
    entries: Sequence[Entry], metric: str, n_oof: int, n_public: int, is_doubtful: bool = False
) -> list[str]:
    """The names of the two submissions to choose: the best by OOF and public score pooled by rows.

    Where something has cast doubt on OOF (``is_doubtful``), the best of these and the best public one.
    """
    good = {each.name: float(goodness(metric, np.array([pooled(each, n_oof, n_public)]))[0]) for each in entries}
    ranked = sorted(good, key=lambda name: -good[name])
    if not is_doubtful or len(ranked) < 2:
        return ranked[:2]
    known = [each for each in entries if not np.isnan(each.public) and each.name != ranked[0]]
    if not known:
        return ranked[:2]
    return [ranked[0], max(known, key=lambda each: float(goodness(metric, np.array([each.public]))[0])).name]


def meaningless(
    entries: Sequence[Entry], answers: Mapping[str, Answers], metric: str, n_public: int
) -> list[tuple[str, str, float, float]]:
    """Neighbours by public score that differ by less than half of that difference's own deviation.

    Such a difference keeps its sign on the private rows in about 55 of 100 cases. ``answers`` are those out of fold, by
    the entry's name. (name, name, difference, deviation) each.
    """
    found = []
    known = sorted((each for each in entries if not np.isnan(each.public)), key=lambda each: each.public)
    for one, two in pairwise(known):
        deviation = row_deviation(metric, answers[one.name], answers[two.name]) / n_public**0.5
        if two.public - one.public < deviation / 2:
            found.append((one.name, two.name, one.public - two.public, deviation))
    return found
