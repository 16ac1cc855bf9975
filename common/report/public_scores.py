"""Public scores: typed once, kept in public.csv (run,public,share,metric) beside competition.json."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from common.base.errors import UserError, warn
from common.base.files import write_file
from common.base.strict_csv import read_columns
from common.data.competition import beside, read_competition
from common.report.evaluation import Evidence

PUBLIC_FILE = "public.csv"


def public_scores(
    evidence: Evidence, folds_file: Path, typed: Sequence[str], share: float
) -> tuple[dict[str, float], float]:
    """The public scores of the runs on the page by its metric, and the public part's share of the test rows.

    What was typed is kept, beside the scores of other runs and of other metrics, which are left out here.

    Raises:
        UserError: an entry that is not RUN=SCORE, or of no run on the page; a share that is not given or not between 0
            and 1; a file that holds no scores.
    """
    path = beside(str(folds_file)).with_name(PUBLIC_FILE)
    known: dict[tuple[str, str], float] = {}  # by run and metric
    if path.is_file():
        columns = read_columns(path)
        usual = read_competition(beside(str(folds_file))).metric or evidence.folds.task.metrics[0]
        try:
            metrics = columns.get("metric", [""] * len(columns["run"]))  # an older file does not say it
            keys = zip(columns["run"], (metric or usual for metric in metrics), strict=True)
            known = dict(zip(keys, map(float, columns["public"]), strict=True))
            share = share or next(map(float, columns["share"]), 0.0)
        except (KeyError, ValueError) as cause:
            what = f"holds no scores in columns run, public and share: {cause}"
            raise UserError(str(path), what, "correct it, or remove it and give --public again") from None
    runs = [each.name for each in evidence.entrants]
    for text in typed:
        run, _, score = text.rpartition("=")
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not run or not math.isfinite(value):
            raise UserError("--public", f"{text!r} is not RUN=SCORE", "write --public digits=0.9957")
        if run not in runs:
            remedy = f"name one of: {', '.join(runs)}" if runs else "train a run and predict its folds first"
            raise UserError("--public", f"{run} is not on the page", remedy)
        known[run, evidence.metric] = value
    if known and not 0 < share < 1:
        what = f"is {share:g}" if share else "is missing"
        raise UserError("--public-share", what, "say which share of the test rows the public score uses, such as 0.25")
    if typed:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "public", "share", "metric"])
        writer.writerows((run, score, share, metric) for (run, metric), score in known.items())
        write_file(path, file.getvalue())
    shown = {run: score for (run, metric), score in known.items() if run in runs and metric == evidence.metric}
    if others := [f"{run} ({metric})" for run, metric in known if run in runs and metric != evidence.metric]:
        warn(f"{path}: left out on this page of {evidence.metric}: the public score of {', '.join(others)}")
    return shown, share
