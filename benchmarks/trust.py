"""Are the verdicts on data and leaderboards right? Alarms on shuffled labels, recall on planted copies, coverage.

    python -m benchmarks.trust --data train.csv --test test.csv --answers answers.json --run runs/digit_cnn

prints what it measures. ``answers`` lists planted pairs: {"pairs": [{"copy": id, "of": id, "edit": words}, ...]}.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.base.cli import parse
from common.base.errors import run_script
from common.data.probes import probes_of, told_by
from common.data.tables import Table, read_test_table, read_train_table
from common.data.trust import find_near_duplicates
from common.runs.layout import OOF_FILE
from common.runs.predictions import read_predictions
from common.score.leaderboard import expected


@dataclass(frozen=True)
class Options:
    """Measure how often verdicts on a data set and its leaderboard are right."""

    data: str = "digits"  # train table
    test: str = ""  # test table
    answers: str = ""  # json with the planted pairs
    run: str = ""  # folder of a run with its folds' OOF predictions, for the coverage
    shuffles: int = 400  # of the labels


def main() -> None:
    options = parse(Options)
    table = checked(read_train_table(options.data))
    test = checked(read_test_table(options.test, options.data)) if options.test else None
    random = np.random.default_rng(0)
    probes = probes_of(table)
    alarms = sum(
        any(told.is_certain for told in told_by(probes, random.permutation(table.labels)))
        for _ in range(options.shuffles)
    )
    print(f"shuffled labels: {alarms} of {options.shuffles} are called a leak")
    if options.answers:
        print_recall(table, test, json.loads(Path(options.answers).read_text(encoding="utf-8"))["pairs"])
    if options.run:
        print_coverage(Path(options.run))


def checked(table: Table) -> Table:
    """The table with its photos' facts."""
    return table.kind.checked([table], 1, as_written=False)[0]


def print_recall(table: Table, test: Table | None, planted: list[dict[str, str]]) -> None:
    """How many planted pairs of each edit are found, and how many pairs are none."""
    ids = [*table.ids, *(test.ids if test else ())]
    pairs = find_near_duplicates(table, test).pairs
    found = {frozenset((ids[a], ids[b])) for a, b in zip(pairs.first, pairs.second, strict=True)}
    true = {frozenset((pair["copy"], pair["of"])): pair["edit"] for pair in planted}
    every, hit = Counter(true.values()), Counter(edit for pair, edit in true.items() if pair in found)
    for edit, count in every.items():
        print(f"{edit}: {hit[edit]} of {count} found")
    print(f"pairs that are none: {len(found - true.keys())}")


def print_coverage(run: Path, draws: int = 2000) -> None:
    """How often the interval by one half of real OOF rows holds the score of the other."""
    costs = np.concatenate([read_predictions(path).answers().costs for path in sorted(run.glob(f"fold*/{OOF_FILE}"))])
    random, held = np.random.default_rng(0), 0
    for _ in range(draws):
        right = 1.0 - random.permutation(costs)
        ours, theirs = right[: len(right) // 2], right[len(right) // 2 :]
        found = expected(ours.mean(), ours.std(), len(ours), len(theirs))
        held += found.low <= theirs.mean() <= found.high
    print(f"intervals: {held / draws:.1%} of {draws} splits of {len(costs):,} real predictions lie within theirs")


if __name__ == "__main__":
    run_script(main)
