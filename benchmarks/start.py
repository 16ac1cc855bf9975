"""What every script of the digit competition takes before its work begins, and at its end: seconds and peak memory.

    python -m benchmarks.start --data train.csv.gz --test test.csv.gz

Part one: the stages up to the first training step, each in a process of its own that does the ones before it too.
Part two: the whole chain, five folds of a few steps each, every script in its own process. One thread. Writes
benchmarks/start.md.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.machine import hardware, measured
from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import write_file

REPORT = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class Options:
    """Measure seconds to the first step and peak memory: python -m benchmarks.start --data train.csv.gz"""

    data: str = "train.csv.gz"  # train table of 28 x 28 digits
    test: str = "test.csv.gz"  # its test table
    work: str = "work/start"  # folder for the runs
    rounds: int = 5  # turns of each stage


def main() -> None:
    options = parse(Options)
    work = Path(options.work).absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(work / "cache")}
    log, folds = work / "log.txt", work / "folds.csv"
    measured(["folds.py", "--data", options.data, "--folds", str(folds)], log)
    imports = "import torch, accelerate, timm"
    stages = {
        "Python": "",
        "+ import torch": "import torch",
        "+ accelerate and timm": imports,
        "+ read the table, parsed before": f"{imports}\nfrom common.data.reading import read_train_table\n"
        f"table = read_train_table({options.data!r})",
    }
    stages["+ compare it with the folds"] = (
        f"{stages['+ read the table, parsed before']}\nfrom pathlib import Path\n"
        f"from common.data.folds import match_folds, read_folds\nmatch_folds(read_folds(Path({str(folds)!r})), table)"
    )
    lines, before = ["| stage | s after start | s of its own | peak MB |", "|---|---|---|---|"], 0.0
    train = ["train_fold.py", "--data", options.data, "--folds", str(folds), "--runs-dir", str(work / "runs")]
    train += ["--epochs", "1", "--batch-size", "128", "--threads", "1"]
    commands = {stage: ["-c", code] for stage, code in stages.items()}
    commands["train_fold.py with 1 step and 128 validation rows"] = [*train, "--fold", "0", "--limit", "128"]
    rounds = []
    for _ in range(options.rounds):  # in turn: machines drift
        rounds.append({stage: measured(command, log) for stage, command in commands.items()})
        shutil.rmtree(work / "runs")
    for stage in commands:
        seconds, peak = (median(found[stage][name] for found in rounds) for name in ("seconds", "peak_mb"))
        lines.append(f"| {stage} | {seconds:.2f} | {seconds - before:.2f} | {peak:,.0f} |")
        before = seconds
    shutil.rmtree(work / "cache")
    table = ["-c", stages["+ read the table, parsed before"]]
    first, later = measured(table, log), measured(table, log)
    parsed = f"Parsing the table costs {first['seconds'] - later['seconds']:.1f} s more, once."

    chain = {
        "folds.py": ["folds.py", "--data", options.data, "--folds", str(work / "again.csv")],
        "train_fold.py, five folds": [*train, "--fold", "all", "--train-fraction", "0.02"],
        "train_fold.py, a second run": [*train, "--fold", "all", "--train-fraction", "0.02", "--run", "two"],
        "infer.py, two runs of 5 models": [
            *("infer.py", "--data", options.data, "--test", options.test, "--runs-dir", str(work / "runs")),
            *("--folds", str(folds), "--threads", "1"),
        ],
        "ensemble.py": ["ensemble.py", "--folds", str(folds), "--runs-dir", str(work / "runs")],
        "report.py": [
            *("report.py", "--data", options.data, "--folds", str(folds), "--runs-dir", str(work / "runs")),
            *("--out", str(work / "report.html")),
        ],
    }
    steps = ["| script | peak MB | CPU s |", "|---|---|---|"]
    for name, command in chain.items():
        found = measured(command, log)
        steps.append(f"| {name} | {found['peak_mb']:,.0f} | {found['cpu_seconds']:.1f} |")
    text = (
        f"# Start and memory\n\n`python -m benchmarks.start`, one thread; {hardware()}.\nDigit Recognizer: 42,000 "
        "training rows, 28,000 test rows; as uint8 pixels they are 33 and 22 MB.\n\n## To the first step\n\n"
        f"Medians of {options.rounds} rounds. {parsed}\n\n" + "\n".join(lines) + "\n\n## Peak memory of the chain\n\n"
    )
    text += "\n".join(steps) + "\n"
    write_file(REPORT, text)
    print(text)


if __name__ == "__main__":
    run_script(main)
