"""How each script's time and memory grow with the rows of a table of digits.

    python -m benchmarks.growth --data train.csv.gz

Every script runs in its own process, with one thread, on the first rows of the table: folds, one epoch of one fold, the
predictions of two runs, their blend, the report. A line a + b x rows is fitted to the CPU seconds and to the peak
memory, with the largest deviation from it. CPU seconds do not count waiting for other processes. What grows with the
classes is in benchmarks/scale.md. Writes benchmarks/growth.md.
"""

import gzip
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.machine import hardware, measured
from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import write_file

REPORT = Path(__file__).with_suffix(".md")
BEYOND = {"product-10k": 150_000, "ImageNet": 1_281_167}  # rows


@dataclass(frozen=True)
class Options:
    """Measure seconds and memory of each script at growing rows: python -m benchmarks.growth --data train.csv.gz"""

    data: str = "train.csv.gz"  # train table of 28 x 28 digits
    rows: tuple[int, ...] = (5_250, 10_500, 21_000, 42_000)  # of the tables, growing
    work: str = "work/growth"  # folder for tables and runs


def main() -> None:
    options = parse(Options)
    work = Path(options.work).absolute()
    os.environ |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(work / "cache")}
    content = Path(options.data).read_bytes()
    lines = (gzip.decompress(content) if options.data.endswith(".gz") else content).splitlines(keepends=True)
    found = []
    for rows in options.rows:
        shutil.rmtree(work, ignore_errors=True)
        write_file(work / "train.csv", b"".join(lines[: rows + 1]))
        for script, command in steps(work).items():
            found.append({"script": script, "rows": rows, **measured(command, work / "log.txt")})
            print(found[-1], flush=True)
    text = (
        f"# Time and memory against rows\n\n`python -m benchmarks.growth`, one thread; {hardware()}.\nDigits of 28 x "
        "28 pixels, ten classes, digit_cnn. Measured at the rows of the table; the lines fitted through them,\nand "
        "where they lead.\n\n## CPU seconds\n\n"
    )
    text += growth(pd.DataFrame(found), "cpu_seconds", "{:,.1f}", BEYOND)
    text += (
        "\n## Peak memory, MB\n\nMost of it is Python, torch and the images that are worked on at once, so no line is "
    )
    text += "followed beyond the table: there,\nthe images themselves (784 bytes each) take over.\n\n"
    text += growth(pd.DataFrame(found), "peak_mb", "{:,.0f}", {})
    write_file(REPORT, text)
    print(text)


def steps(work: Path) -> dict[str, list[str]]:
    """The chain's commands on ``work``/train.csv; the same table is predicted."""
    data, folds = ["--data", str(work / "train.csv")], ["--folds", str(work / "folds.csv")]
    runs, one_thread = ["--runs-dir", str(work / "runs")], ["--threads", "1"]
    train = ["train_fold.py", *data, *folds, *runs, *one_thread, "--epochs", "1", "--batch-size", "128"]
    few = ["--fold", "all", "--train-fraction", "0.1"]
    return {
        "folds.py": ["folds.py", *data, *folds],
        "train_fold.py, one epoch of one fold": [*train, "--fold", "0", "--run", "epoch"],
        "train_fold.py, five folds of a tenth": [*train, *few, "--run", "one"],
        "the same with another seed": [*train, *few, "--run", "two", "--seed", "1"],
        "infer.py, two runs of five models": [
            *("infer.py", *data, "--test", str(work / "train.csv"), *folds, *runs, *one_thread, "--runs", "one", "two"),
        ],
        "ensemble.py": ["ensemble.py", *folds, *runs, "--runs", "one", "two"],
        "report.py": ["report.py", *data, *folds, *runs, "--runs", "one", "two", "--out", str(work / "page.html")],
    }


def growth(found: pd.DataFrame, column: str, form: str, beyond: Mapping[str, int]) -> str:
    """A markdown table: what was measured, the line through it, its largest deviation, and where it leads."""
    counts = sorted(found.rows.unique())
    head = ["script", *(f"{rows:,} rows" for rows in counts), "start", "per 1,000 rows", "off by at most"]
    head += [f"{name}, {rows:,}" for name, rows in beyond.items()]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for script, group in found.groupby("script", sort=False):
        values = group[column].to_numpy()
        slope, start = np.polyfit(group.rows, values, 1)
        if slope < 0:  # it does not depend on the rows
            slope, start = 0.0, values.mean()
        off = np.abs(np.polyval((slope, start), group.rows) / values - 1).max()
        cells = [*map(form.format, values), form.format(start), f"{1000 * slope:.3f}", f"{off:.0%}"]
        cells += [form.format(start + slope * rows) for rows in beyond.values()]
        lines.append(f"| {script} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_script(main)
