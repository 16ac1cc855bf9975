"""What the bootstrap's interval of an AUC covers, and how often two equally good runs are told apart.

    OMP_NUM_THREADS=1 python -m benchmarks.bootstrap --trials 200

Scores are drawn from two normal distributions, so that the true AUC is known. Two runs of a pair see the same rows and
agree in part, as two nets do.
"""

import time
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from common.base.cli import parse
from common.score.answers import Answers
from common.score.bootstrap import compare_by, interval_of
from common.score.logits import Outputs
from common.score.task import MULTICLASS

POSITIVES = (25, 100, 1000)
AUCS = (0.85,)
SHARED = 0.7  # correlation of the two runs' scores within a class


@dataclass(frozen=True)
class Options:
    """Measure coverage and false alarms: python -m benchmarks.bootstrap"""

    positives: tuple[int, ...] = POSITIVES  # a row of the table each
    trials: int = 200  # draws of a data set for each row of the table
    negatives: int = 9  # for each positive


def answers_of(scores: np.ndarray, targets: np.ndarray) -> Answers:
    return MULTICLASS.answers(Outputs(np.stack([np.zeros(len(scores)), scores], 1)), targets, ["no", "yes"])


def main(options: Options) -> None:
    print("| positives | AUC | interval covers | mean width | false alarms at 5 % | s for one pair |")
    print("|---|---|---|---|---|---|")
    for positives in options.positives:
        for auc in AUCS:
            random = np.random.default_rng(positives)
            targets = np.repeat([1, 0], [positives, positives * options.negatives])
            units, shift = np.arange(len(targets)), 2**0.5 * NormalDist().inv_cdf(auc)
            covered, widths, alarms, seconds = [], [], [], []
            for _ in range(options.trials):
                shared = random.normal(size=len(targets)) * SHARED**0.5
                one, two = (
                    answers_of(
                        shift * targets + shared + random.normal(size=len(targets)) * (1 - SHARED) ** 0.5, targets
                    )
                    for _ in range(2)
                )
                low, high = interval_of("auc", one)
                covered.append(low <= auc <= high)
                widths.append(high - low)
                started = time.perf_counter()
                alarms.append(compare_by("auc", one, two, units).p < 0.05)
                seconds.append(time.perf_counter() - started)
            print(
                f"| {positives:,} | {auc:g} | {np.mean(covered):.1%} | {np.mean(widths):.3f} | {np.mean(alarms):.1%} "
                f"| {np.mean(seconds):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(parse(Options))
