"""The three notebooks, cell by cell: the one source of train.ipynb, blend.ipynb and infer.ipynb.

Each begins with a cell of settings, tagged "parameters", which is all that a competition changes. The commands are
those of the README. ``!`` runs them as a terminal would: a mistake is one line, a bar shows the epoch, and the stop
button is Ctrl-C. What was stopped goes on when the cell is run again. ``run(...)`` in a cell does the same.
"""

from typing import Any

INSTALL = """
import importlib.util
if not importlib.util.find_spec("tyro"):  # the one package that Kaggle's image lacks; no network is needed
    !pip install --quiet --no-index --find-links {FIVEFOLD}/wheels tyro
"""

TRAIN = [
    """# Fivefold: train

Folds once, a run of K models for each entry of `RUNS`, a report. Attach two inputs: the data set made of
`dist/kaggle/fivefold`, and the competition. What this notebook writes is the input of blend.ipynb and infer.ipynb.
Not for a test set that only the submission sees: that is infer.ipynb.""",
    """
import time
FIVEFOLD = "/kaggle/input/fivefold"  # the uploaded data set; Kaggle's right-hand pane copies its path
INPUT = "/kaggle/input/digit-recognizer"  # the competition
WORK = "/kaggle/working/digits"  # folds.csv, competition.json, runs/ and report.html
FILES = f"--data {INPUT}/train.csv --test {INPUT}/test.csv --sample {INPUT}/sample_submission.csv"
RUNS = {
    "fast": f"--config {FIVEFOLD}/recipes/digits_fast.yaml",
    "atto": "--model convnext_atto --img-size 32",
}
TRAIN = "--mixed-precision fp16"  # of every run
LAUNCH = "accelerate launch --quiet"  # each fold over all GPUs; "python": small models, a fold for each GPU
END = time.time() + 8.5 * 3600  # nothing is begun that would not end by then
""",
    INSTALL,
    """
!python {FIVEFOLD}/folds.py --work {WORK} {FILES}
""",
    """
!accelerate config default  # counts the GPUs once; else each launch begins with five lines on what it has chosen
for run, options in RUNS.items():
    hours = (END - time.time()) / 3600
    !{LAUNCH} {FIVEFOLD}/train_fold.py --work {WORK} --run {run} {options} {TRAIN} --fold all --hours {hours}
""",
    """
import html
from IPython.display import HTML
!python {FIVEFOLD}/report.py --work {WORK}
page = open(f"{WORK}/report.html", encoding="utf-8").read()
HTML(f'<iframe srcdoc="{html.escape(page)}" width="100%" height="900"></iframe>')
""",
]

BLEND = [
    """# Fivefold: blend

Weights by hand and learned ones, side by side, by the out-of-fold predictions of train.ipynb's runs: no test row and
no GPU is needed. Attach the data set made of `dist/kaggle/fivefold` and the output of train.ipynb. Believe the column
of nested errors: there each fold is blended by weights that were fitted on the others.""",
    """
FIVEFOLD = "/kaggle/input/fivefold"  # the uploaded data set
TRAINED = "/kaggle/input/train/digits"  # train.ipynb's WORK
RUNS = ("fast", "atto")
SHARES = [(0.5, 0.5), (0.7, 0.3), (0.3, 0.7)]  # weights by hand, one for each run
OUT = "/kaggle/working/blend"
""",
    """
import contextlib, io, json, sys
sys.path.insert(0, FIVEFOLD)
import ensemble
rows = {}
for shares in SHARES:
    with contextlib.redirect_stdout(io.StringIO()) if rows else contextlib.nullcontext():  # the tables differ in a line
        ensemble.run(ensemble.Options(work=TRAINED, out_dir=OUT, runs=RUNS, shares=shares))
    table = json.load(open(f"{OUT}/ensemble/weights.json", encoding="utf-8"))["table"]
    rows |= {f"hand {shares}" if row["name"] == "hand" else row["name"]: row for row in table}
""",
    """
import pandas as pd
parts = {"in-sample": "in_sample", "nested": "nested"}
blends = pd.DataFrame({
    name: {f"{how} {what}": row[part][what] for what in ("errors", "nll_calibrated") for how, part in parts.items()}
    for name, row in rows.items()
}).T.sort_values(["nested errors", "nested nll_calibrated"])
blends
""",
]

INFER = [
    """# Fivefold: infer

Predict the test rows with the K models of each run, blend the runs, write submission.csv. It needs no network and no
training table. Attach the data set made of `dist/kaggle/fivefold`, the output of train.ipynb, and the competition.
The test set may be another one when the competition runs this notebook: nothing here counts its rows.""",
    """
FIVEFOLD = "/kaggle/input/fivefold"  # the uploaded data set
TRAINED = "/kaggle/input/train/digits"  # train.ipynb's WORK
INPUT = "/kaggle/input/digit-recognizer"  # the competition
TEST = f"--test {INPUT}/test.csv"
SAMPLE = f"--sample {INPUT}/sample_submission.csv"
RUNS = "fast atto"
VIEWS = ""  # such as --tta digits; --tta auto wants the training table
OUT = "/kaggle/working"
""",
    INSTALL,
    """
!python {FIVEFOLD}/infer.py --work {TRAINED} --runs {RUNS} {TEST} {SAMPLE} {VIEWS} --out-dir {OUT}/runs
""",
    """
# One run alone: leave this cell out, and add --submission {OUT}/submission.csv to the one above.
blended = f"--out-dir {OUT}/runs --submission {OUT}/submission.csv"
!python {FIVEFOLD}/ensemble.py --work {TRAINED} --runs {RUNS} {SAMPLE} {blended}
""",
    """
import pandas as pd
pd.read_csv(f"{OUT}/submission.csv")
""",
]

NOTEBOOKS = {"train": TRAIN, "blend": BLEND, "infer": INFER}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook(name: str, settings: str = "") -> dict[str, Any]:
    """A notebook of NOTEBOOKS (nbformat 4.5, as JSON); ``settings`` are lines added to its cell of settings."""
    text, parameters, *code = NOTEBOOKS[name]
    sources = [text, parameters.strip() + settings, *(source.strip() for source in code)]
    cells = [{"cell_type": "markdown", "id": f"{name}-0", "metadata": {}, "source": sources[0]}]
    for number, source in enumerate(sources[1:], 1):
        metadata = {"tags": ["parameters"]} if number == 1 else {}
        cell = {"cell_type": "code", "id": f"{name}-{number}", "metadata": metadata, "source": source}
        cells.append({**cell, "execution_count": None, "outputs": []})
    about = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
