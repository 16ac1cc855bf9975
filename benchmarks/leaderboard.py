"""Do the intervals of expected test scores hold, with what averaging the fold models gains? On real rows, many times.

    python -m benchmarks.leaderboard --data train.csv.gz

Each draw takes other rows of the table: some to train five fold models on, whose held-out rows give the OOF score, and
others as a test set, which the models' mean predicts. Models are ridge regressions on random features, each fold's of
its own, so that averaging gains as it does with nets; they train in a blink, and coverage wants hundreds of draws. How
the gain of a blend is told from its runs' own, and how far such estimates are off, was chosen on draws of other seeds.
"""

from dataclasses import dataclass, replace

import numpy as np

from common.base.cli import parse
from common.base.errors import run_script
from common.data.reading import read_train_table
from common.score.leaderboard import BLEND_ERROR, GAIN_ERROR, SURPRISE, averaging_gain, expected, of_a_blend, with_gain
from common.score.logits import Outputs

FEATURES = {"one": 300, "other": 150}  # random ones of either run
SHARP = 10.0  # scores of one-hot targets become logits
ESTIMATED_ON = 2000  # test rows, as infer.py has it


@dataclass(frozen=True)
class Options:
    """Measure the coverage of expected test scores: python -m benchmarks.leaderboard --data train.csv.gz"""

    data: str = "digits"  # train table of images
    train: int = 2000  # rows that folds are made of, in each draw
    test: int = 4000  # rows of the test set
    draws: int = 400
    folds: int = 5
    seed: int = 2  # of the draws


@dataclass(frozen=True)
class Drawn:
    """A run's, or a blend's, scores in one draw."""

    oof: float
    test: float
    gain: float  # as estimated without labels; of a blend by the rule of common/score/leaderboard.py


def main() -> None:
    measure(parse(Options))


def measure(options: Options) -> None:
    """Print the coverage of each run's and each blend's intervals."""
    table = read_train_table(options.data)
    n = len(table.ids)
    options = replace(options, train=min(options.train, n // 3), test=min(options.test, n - n // 3))
    images = table.images[:, ::2, ::2].reshape(len(table.ids), -1).astype(np.float32) / 255
    labels, random = np.unique(table.labels.astype(str), return_inverse=True)[1], np.random.default_rng(options.seed)
    drawn = [one_draw(images, labels, random, options) for _ in range(options.draws)]
    for name in drawn[0]:
        print_coverage(name, [draw[name] for draw in drawn], options)


def one_draw(images: np.ndarray, labels: np.ndarray, random: np.random.Generator, options: Options) -> dict[str, Drawn]:
    """Two runs and their mean, trained and scored on rows of their own."""
    rows = random.permutation(len(labels))[: options.train + options.test]
    train, test = rows[: options.train], rows[options.train :]
    fold = np.arange(options.train) % options.folds
    oof, tests, found = {}, {}, {}
    for name, count in FEATURES.items():
        oof[name] = np.empty((options.train, labels.max() + 1))
        tests[name] = np.empty((options.folds, options.test, labels.max() + 1))
        for k in range(options.folds):
            held = fold == k
            predict = fitted(images[train[~held]], labels[train[~held]], labels.max() + 1, count, random)
            oof[name][held], tests[name][k] = predict(images[train[held]]), predict(images[test])
        found[name] = scored(oof[name], tests[name].mean(0), labels[train], labels[test])
        gain = averaging_gain(Outputs(np.log(tests[name][:, :ESTIMATED_ON])), found[name][0])
        found[name] = Drawn(*found[name], gain)
    blend = scored(sum(oof.values()), sum(each.mean(0) for each in tests.values()), labels[train], labels[test])
    gains = [found[name].gain for name in FEATURES]
    known = sum(each[:, :ESTIMATED_ON] for each in tests.values()) / len(tests)
    rules = {"nothing": 0.0, "the smallest of its runs'": min(gains), "half of that": of_a_blend(gains)}
    rules["its own models'"] = averaging_gain(Outputs(np.log(known)), blend[0])
    return found | {f"their mean, gain {rule}": Drawn(*blend, gain) for rule, gain in rules.items()}


def fitted(images: np.ndarray, labels: np.ndarray, classes: int, count: int, random: np.random.Generator):
    """A ridge regression of one-hot targets on ``count`` random features; what predicts probabilities (n, classes)."""
    weights = random.normal(size=(images.shape[1], count)).astype(np.float32) / images.shape[1] ** 0.5
    shift = random.normal(size=count).astype(np.float32) / 2

    def features(some: np.ndarray) -> np.ndarray:
        return np.maximum(4 * some @ weights + shift, 0)

    own, targets = features(images), np.eye(classes, dtype=np.float32)[labels]
    solved = np.linalg.solve(own.T @ own + 3 * np.eye(count, dtype=np.float32), own.T @ targets)

    def probabilities(some: np.ndarray) -> np.ndarray:
        scores = np.exp(SHARP * np.clip(features(some) @ solved, -1, 2))
        return scores / scores.sum(1, keepdims=True)

    return probabilities


def scored(oof: np.ndarray, test: np.ndarray, train_labels: np.ndarray, test_labels: np.ndarray) -> tuple[float, float]:
    """Accuracy out of fold, and on the test set."""
    return float((oof.argmax(1) == train_labels).mean()), float((test.argmax(1) == test_labels).mean())


def print_coverage(name: str, drawn: list[Drawn], options: Options) -> None:
    """How often the test score lies in its interval, and how often it is called a surprise; the gain and its error."""
    held = surprises = 0
    for draw in drawn:
        _, deviation = with_gain(1.0 - draw.oof, draw.gain)
        share = BLEND_ERROR if name.startswith("their mean") else GAIN_ERROR
        found = expected(draw.oof, deviation, options.train, options.test, draw.gain, share)
        held += found.low <= draw.test <= found.high
        surprises += abs(draw.test - found.score) > SURPRISE * (found.high - found.score) / 1.96
    gains = np.array([(draw.test - draw.oof, draw.gain) for draw in drawn])
    print(
        f"{name}: {held / len(drawn):.1%} of {len(drawn)} test scores in their interval, {surprises / len(drawn):.1%} "
        f"surprises; gain {gains[:, 0].mean():+.2%}, estimated {gains[:, 1].mean():+.2%}"
    )


if __name__ == "__main__":
    run_script(main)
