"""Is the report right? Its tests on models that do not differ and on planted gains, its audit on flipped labels.

    python -m benchmarks.judgement --data train.csv.gz --folds folds.csv --runs-dir runs

takes the finished runs below runs/ and trains one more, on a copy of the data with 1 % of its labels flipped, in
work/judgement/ (the same command again goes on). Writes benchmarks/judgement.md.
"""

import subprocess
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binom

from benchmarks.machine import hardware
from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import write_file
from common.data.folds import Folds, read_folds
from common.report.audit import label_audit, likely_errors
from common.report.evaluation import Evaluation, read_run, seed_twins
from common.report.run_tables import fold_scores
from common.runs.layout import finished_runs
from common.score.metrics import describe
from common.score.significance import LEVEL, compare, least_shown, p_value

REPORT = Path(__file__).with_suffix(".md")
SCRIPTS = Path(__file__).parents[1]
GAIN = 0.001  # planted: a share of all rows
CHANGED = (40, 83, 120, 160, 240, 480, 960)  # two seeds of a net with 99.7 % change sides on 83 of 42,000 rows
FLIPPED = 0.01  # share of all labels
TRAINING = ("--epochs", "2", "--batch-size", "128", "--lr", "4e-3", "--model-args", "widths=(16,32,64)")


@dataclass(frozen=True)
class Options:
    """Measure whether the report's verdicts and its label audit are right."""

    data: str = "train.csv.gz"  # train table of pixels with a label column
    folds: str = "folds.csv"  # the folds file of the runs
    runs_dir: str = "runs"  # folder of finished runs on this table
    work: str = "work/judgement"  # folder for the flipped table and its run
    threads: int = 1  # CPU threads of that run
    times: int = 2000  # pairs of models drawn per line


def swapped(a: np.ndarray, b: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two models that do not differ: at each row, a coin decides which of two real ones answers as which."""
    swap = random.random(len(a)) < 0.5
    return np.where(swap, b, a), np.where(swap, a, b)


def with_gain(right: np.ndarray, rows: int, random: np.random.Generator) -> np.ndarray:
    """The same model with ``rows`` of its errors mended."""
    better = right.copy()
    better[random.choice(np.flatnonzero(~right), rows, replace=False)] = True
    return better


def verdicts(a: Evaluation, b: Evaluation, times: int) -> dict[str, object]:
    """How often a difference is shown where there is none, and where B is 0.1 points better."""
    random, rows = np.random.default_rng(0), np.arange(len(a.right))
    gain = round(GAIN * len(rows))
    false, found, covered = 0, 0, 0
    for _ in range(times):
        first, second = swapped(a.right, b.right, random)
        none = compare(~first, ~second, rows)
        false += none.p < LEVEL
        covered += none.low <= 0 <= none.high
        planted = compare(~first, ~with_gain(second, gain, random), rows)
        found += planted.p < LEVEL and planted.better > 0
    changed = compare(a.costs, b.costs, rows).changed
    return {
        "models": f"{a.name}, {b.name}",
        "errors": f"{a.errors:,}, {b.errors:,}",
        "rows that change sides": f"{changed:,}",
        "least difference shown": least_shown(changed),
        "shown without a difference": f"{false / times:.1%}",
        "interval holds 0": f"{covered / times:.1%}",
        f"gain of {gain} shown": f"{found / times:.1%}",
    }


def exact(changed: int, gain: int) -> dict[str, object]:
    """The same for any two models of which ``changed`` rows change sides, without drawing: the binomial's own sums."""
    wins = np.arange(changed + 1)
    chance = binom.pmf(wins, changed, 0.5)
    false = np.array([p_value(won, changed - won) < LEVEL for won in wins])
    found = np.array([p_value(won + gain, changed - won) < LEVEL and 2 * won + gain > changed for won in wins])
    return {
        "rows that change sides": changed,
        "least difference shown": least_shown(changed),
        "shown without a difference": f"{chance @ false:.1%}",
        f"gain of {gain} shown": f"{chance @ found:.1%}",
    }


def flip_labels(source: str, path: Path) -> np.ndarray:
    """Write the table with 1 % of its labels replaced by another class; gives the ids of those rows (row numbers)."""
    table, random = pd.read_csv(source, dtype=str), np.random.default_rng(0)
    rows = random.choice(len(table), round(FLIPPED * len(table)), replace=False)
    classes = np.array(sorted(set(table.label)))
    numbers = np.searchsorted(classes, table.label.to_numpy()[rows].astype(str))
    table.loc[rows, "label"] = classes[(numbers + random.integers(1, len(classes), size=len(rows))) % len(classes)]
    if not path.exists():
        write_file(path, table.to_csv(index=False))
    return np.array([str(row + 1) for row in rows], dtype=object)


def flipped_run(options: Options) -> tuple[np.ndarray, Folds, Evaluation]:
    """Train a small net on flipped labels; gives the flipped ids, the folds and the run."""
    work = Path(options.work)
    data, folds = work / "flipped.csv", work / "folds.csv"
    flipped = flip_labels(options.data, data)
    places = ["--data", str(data), "--folds", str(folds)]
    more = ["--runs-dir", str(work / "runs"), "--run", "flipped", "--threads", str(options.threads), *TRAINING]
    for script, *arguments in (["folds.py", *places], ["train_fold.py", *places, *more]):
        subprocess.run([sys.executable, str(SCRIPTS / script), *arguments], check=True)
    dealt = read_folds(folds)
    return flipped, dealt, read_run(work / "runs" / "flipped", dealt)


def audit_figures(flipped: np.ndarray, run: Evaluation) -> pd.DataFrame:
    """How many of the flipped labels stand in the first 1 % of three rankings, and what "likely wrong" is worth."""
    rows, first = np.arange(len(run.targets)), len(flipped)
    audit = label_audit(run.oof, [run.calibrated])
    of_label = run.calibrated.log_softmax()[rows, run.targets]
    rankings = {
        "margin against the label (the report's)": audit.id.head(first),
        "probability of the label": run.oof.ids[np.argsort(of_label, kind="stable")[:first]],
        "chance": run.oof.ids[np.random.default_rng(1).permutation(len(rows))[:first]],
    }
    lines = [
        (name, f"first {first}", len(set(ids) & set(flipped)), f"{len(set(ids) & set(flipped)) / first:.1%}")
        for name, ids in rankings.items()
    ]
    likely = likely_errors(audit).id
    hits = len(set(likely) & set(flipped))
    lines.append(("called likely wrong", f"{len(likely)}", hits, f"{hits / first:.1%}"))
    return pd.DataFrame(lines, columns=["ranking", "rows looked at", "flipped ones among them", "of all flipped"])


def optimism(run: Evaluation) -> dict[str, object]:
    """What choosing each fold's best epoch adds to a run's score, and what an honest choice adds."""
    per_fold = fold_scores(run)
    mean = per_fold.mean(numeric_only=True)
    return {
        "run": run.name,
        "epochs": len(run.logs[0]),
        "last": f"{mean['last']:.3%}",
        "each fold's best − last, points": f"{100 * mean.best_minus_last:+.3f}",
        "images of all rows": round(float((per_fold.best_minus_last * per_fold.n).sum())),
        "chosen on the other folds − last, points": f"{100 * (mean.others_choice - mean['last']):+.3f}",
    }


def markdown(frame: pd.DataFrame) -> list[str]:
    """A data frame as lines of markdown."""
    rows = [frame.columns, ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return [f"| {' | '.join(map(str, row))} |" for row in rows] + [""]


def main() -> None:
    """Run every part and write the report."""
    options = parse(Options)
    folds = read_folds(Path(options.folds))
    runs = [read_run(Path(options.runs_dir) / name, folds) for name in finished_runs(Path(options.runs_dir))]
    pairs = pd.DataFrame([verdicts(*pair, options.times) for pair in combinations(runs, 2)])
    print("\n".join(markdown(pairs)), flush=True)
    flipped, dealt, run = flipped_run(options)
    audit = audit_figures(flipped, run)
    twins = [" and ".join(run.name for run in group) for group in seed_twins(runs)]
    gain = round(GAIN * len(folds.ids))
    seeds = f" Different seeds of one setting: {'; '.join(twins)}." if twins else ""
    lines = [
        "# Is the report right?",
        "",
        f"`python -m benchmarks.judgement --data {Path(options.data).name} --runs-dir runs`: the finished runs on "
        f"{len(folds.ids):,} rows of real digits, and another. {hardware()}.",
        "",
        "## Is a difference shown where there is none, and found where there is one?",
        "",
        f"{options.times:,} pairs of models per line. No difference: at each row a coin decides which of two real "
        f"runs answers as which. A gain: such a pair in which {gain} errors of one ({100 * GAIN:g} points), drawn at "
        f"random, are mended. Shown is p < {LEVEL:g} by exact McNemar; the interval is the paired bootstrap's, meant "
        f"to be 95 %.{seeds}",
        "",
        *markdown(pairs),
        "What can be shown depends on how many rows change sides, and on nothing else (exact sums; the gain is mended "
        "rows that both models had wrong):",
        "",
        *markdown(pd.DataFrame([exact(changed, gain) for changed in CHANGED])),
        "## Does the audit find wrong labels?",
        "",
        f"{FLIPPED:.0%} of the labels ({len(flipped)}) were replaced by another class at random before folds were "
        f"dealt and a small net was trained on them ({' '.join(TRAINING)}). Against the flipped labels it has "
        f"{describe(run.oof.score())}. The data's own label errors compete for the first places.",
        "",
        *markdown(audit),
        "## What does choosing the best epoch add?",
        "",
        "From each fold's log. The fold's best epoch is chosen on the rows that it is scored on; the choice of the "
        "other folds is not.",
        "",
        *markdown(pd.DataFrame([optimism(each) for each in [*runs, run]])),
    ]
    write_file(REPORT, "\n".join(lines))
    print("\n".join(lines[4:]))


if __name__ == "__main__":
    run_script(main)
