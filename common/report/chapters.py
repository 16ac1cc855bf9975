"""The chapters of the page in their order, and the reading of all that it speaks of."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from common.base.errors import UserError, warn
from common.data.competition import beside, read_competition
from common.data.folds import match_folds, read_folds
from common.data.reading import read_train_table
from common.report.blend_sections import blend_sections, sweep_sections
from common.report.comparison_sections import comparison_sections, noise_sections
from common.report.evaluation import Evidence, read_blend, read_run
from common.report.page import Section
from common.report.run_sections import label_sections, run_sections
from common.runs.layout import WEIGHTS_FILE, run_names
from common.score.metrics import check_metric
from common.sweep.cells import SWEEP_FILE

# Each takes the evidence and gives its sections, which may be none.
CHAPTERS: tuple[Callable[[Evidence], list[Section]], ...] = (
    comparison_sections,
    noise_sections,
    run_sections,
    label_sections,
    blend_sections,
    sweep_sections,
)


def gather(runs_dir: Path, runs: Sequence[str], folds_file: Path, data: str, metric: str) -> Evidence:
    """Read and check all that is named; ``runs`` are runs, blends and sweeps: every finished one where none is named.

    Raises:
        UserError: a name without a finished run, blend or sweep; runs of other folds; data that is not the folds'.
    """
    folds = read_folds(folds_file)
    if metric == "accuracy" and metric not in folds.task.metrics:  # nobody asked for it
        metric = folds.task.metrics[0]
    check_metric(metric, folds.output_names, folds.task.metrics)
    table = read_train_table(data, read_competition(beside(str(folds_file))))
    found = Evidence(folds, table, [], [], [], runs_dir, metric)
    match_folds(folds, found.images)
    named = run_names(runs_dir, runs)
    for name in dict.fromkeys(named or sorted(path.name for path in runs_dir.glob("[!.]*/"))):
        folder = runs_dir / name
        try:
            if (folder / SWEEP_FILE).is_file():
                found.sweeps.append(folder)
            elif (folder / WEIGHTS_FILE).is_file():
                found.blends.append(replace(read_blend(folder, folds), judged_by=metric))
            else:
                found.runs.append(replace(read_run(folder, folds), judged_by=metric))
        except UserError as error:
            if named:
                raise
            warn(f"left out: {error}")
    if not (found.runs or found.blends or found.sweeps):
        raise UserError(str(runs_dir), "holds nothing to report on", "train a run: python train_fold.py --fold all")
    return found


def about(evidence: Evidence) -> str:
    """What lies under every number of the page."""
    folds = evidence.folds
    return (
        f"{Path(evidence.images.source).name}: {len(folds.ids):,} rows, {folds.says_outputs}, "
        f"{folds.count} folds (fingerprint {folds.fingerprint[:16]}). Every score is out of fold: each row is "
        "predicted by a model that has not seen it. Intervals are 95 %."
    )
