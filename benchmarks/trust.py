"""Are the verdicts on data and leaderboards right? Alarms on shuffled labels, recall on planted copies, coverage, cost.

    python -m benchmarks.trust --data train.csv --test test.csv --answers answers.json --run runs/digit_cnn --draws 400

prints what it measures; of flags that are left out, nothing. ``answers`` lists planted pairs: {"pairs": [{"copy": id,
"of": id, "edit": words}, ...]}. Where the package imagehash is installed, what its hashes find stands beside ours.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import leaderboard
from common.base.cli import parse
from common.base.errors import UserError, run_script
from common.data.reading import read_test_table, read_train_table
from common.data.table import Table
from common.runs.layout import OOF_FILE
from common.runs.predictions import Predictions, read_predictions
from common.score.leaderboard import expected
from common.trust.dependence import told_by
from common.trust.near_duplicates import NearDuplicates, find_near_duplicates
from common.trust.picture_pairs import NO_PAIRS
from common.trust.probes import probes_of


@dataclass(frozen=True)
class Options:
    """Measure how often verdicts on a data set and its leaderboard are right"""

    data: str = "digits"  # train table
    test: str = ""  # test table
    answers: str = ""  # json with the planted pairs
    run: str = ""  # folder of a run with its folds' OOF predictions, for the coverage
    shuffles: int = 400  # of the labels
    draws: int = 0  # of rows of --rows, for the coverage with what averaging gains (0: none)
    rows: str = "digits"  # table of small images whose rows are drawn


def main() -> None:
    options, started = parse(Options), time.process_time()
    table = checked(read_train_table(options.data))
    test = checked(read_test_table(options.test, options.data)) if options.test else None
    print(f"read and decoded in {time.process_time() - started:.0f} s of processor time")
    random = np.random.default_rng(0)
    probes = probes_of(table)
    alarms = sum(
        any(told.is_certain for told in told_by(probes, random.permutation(table.labels)))
        for _ in range(options.shuffles)
    )
    print(f"shuffled labels: {alarms} of {options.shuffles} are called a leak")
    found = compared(table, test) if options.answers or options.run else None
    if options.answers:
        print_recall(table, test, found, json.loads(Path(options.answers).read_text(encoding="utf-8"))["pairs"])
    if options.run:
        print_coverage(Path(options.run))
        print_without_relatives(Path(options.run), table, found)
    if options.draws:
        leaderboard.measure(leaderboard.Options(options.rows, draws=options.draws))


def checked(table: Table) -> Table:
    """The table with its photos' facts."""
    return table.kind.checked([table], 1, as_written=False)[0]


def compared(table: Table, test: Table | None) -> NearDuplicates | None:
    """The near-duplicates, which are counted; None where pictures are too small to be compared."""
    started = time.process_time()
    if not (found := find_near_duplicates(table, test)):
        print("pictures as small as these are not compared")
        return None
    n, seconds = len(table.ids) + (len(test.ids) if test else 0), time.process_time() - started
    print(f"{n:,} pictures compared in {seconds:.0f} s of processor time: {len(found.pairs):,} pairs")
    return found


def print_recall(table: Table, test: Table | None, alike: NearDuplicates | None, planted: list[dict[str, str]]) -> None:
    """How many planted pairs of each edit are found, and how many pairs are none."""
    ids = [*table.ids, *(test.ids if test else ())]
    pairs = alike.pairs if alike else NO_PAIRS
    found = {"ours": {frozenset((ids[a], ids[b])) for a, b in zip(pairs.first, pairs.second, strict=True)}}
    if find_spec("imagehash"):
        found |= hashed_pairs(ids, [*table.images, *(test.images if test else ())])
    true = {frozenset((pair["copy"], pair["of"])): pair["edit"] for pair in planted}
    every = Counter(true.values())
    for name, pairs in found.items():
        hit = Counter(edit for pair, edit in true.items() if pair in pairs)
        print(f"{name}: {', '.join(f'{edit} {hit[edit]} of {count}' for edit, count in every.items())}")
        print(f"{name}: {len(pairs - true.keys())} pairs that are none")


def hashed_pairs(ids: Sequence[str], files: Sequence[Path]) -> dict[str, set[frozenset[str]]]:
    """The pairs whose 64-bit hashes differ in at most 8 bits, by the name of the hash."""
    import imagehash

    found = {}
    for name in ("phash", "dhash"):
        bits = np.array([getattr(imagehash, name)(Image.open(file)).hash.ravel() for file in files], np.float32)
        apart = bits @ (1 - bits.T) + (1 - bits) @ bits.T
        found[name] = {frozenset((ids[a], ids[b])) for a, b in zip(*np.nonzero(np.triu(apart <= 8, 1)), strict=True)}
    return found


def out_of_fold(run: Path) -> list[Predictions]:
    """What each fold of a run predicted of its held-out rows.

    Raises:
        UserError: the folder holds none.
    """
    paths = sorted(run.glob(f"fold*/{OOF_FILE}"))
    if not paths:
        raise UserError("--run", f"{run} holds no fold with its OOF predictions", "name the folder of a trained run")
    return [read_predictions(path) for path in paths]


def print_without_relatives(run: Path, table: Table, found: NearDuplicates | None) -> None:
    """The accuracy out of fold of all rows, and without those that have a near-duplicate in another fold."""
    parts = out_of_fold(run)
    cost = {name: each for part in parts for name, each in zip(part.ids, part.answers().costs, strict=True)}
    fold = {name: number for number, part in enumerate(parts) for name in part.ids}
    pairs = found.within_train() if found else NO_PAIRS
    both = [(table.ids[a], table.ids[b]) for a, b in zip(pairs.first, pairs.second, strict=True)]
    divided = {name for pair in both if fold[pair[0]] != fold[pair[1]] for name in pair}
    kept = [each for name, each in cost.items() if name not in divided]
    print(
        f"accuracy out of fold {1 - np.mean([*cost.values()]):.3%}; without {len(divided):,} rows that have a "
        f"near-duplicate in another fold {1 - np.mean(kept):.3%}"
    )


def print_coverage(run: Path, draws: int = 2000) -> None:
    """How often the interval by one half of real OOF rows holds the score of the other."""
    costs = np.concatenate([part.answers().costs for part in out_of_fold(run)])
    random, held = np.random.default_rng(0), 0
    for _ in range(draws):
        right = 1.0 - random.permutation(costs)
        ours, theirs = right[: len(right) // 2], right[len(right) // 2 :]
        found = expected(ours.mean(), ours.std(), len(ours), len(theirs))
        held += found.low <= theirs.mean() <= found.high
    print(f"intervals: {held / draws:.1%} of {draws} splits of {len(costs):,} real predictions lie within theirs")


if __name__ == "__main__":
    run_script(main)
