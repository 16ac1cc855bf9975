"""The report's sections on what is made of many runs: blends and sweeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.base.errors import UserError
from common.base.files import read_json
from common.report.evaluation import Evidence
from common.report.figures import sweep_panels
from common.report.page import Section, element, findings, join, note, sheet, slug, table
from common.runs.layout import OLD_NAMES, WEIGHTS_FILE, todays_names
from common.score.blend_study import interval_metric, noise_text, noise_verdict
from common.score.metrics import METRICS
from common.score.task import MULTICLASS, Task
from common.sweep.cells import FIND_FILE, LAW_FILE, read_cells, read_sweep
from common.sweep.law import fit_law
from common.sweep.verdict import sentences


def blend_sections(evidence: Evidence) -> list[Section]:
    """The table of each blend, its weights, and what each run is worth to it."""
    return [blend_section(evidence.runs_dir / blend.name, evidence.folds.task) for blend in evidence.blends]


def blend_section(folder: Path, task: Task = MULTICLASS) -> Section:
    """All of a blend's weights.json."""
    found = read_json(folder / WEIGHTS_FILE, table=list, weights=dict, method=str, oof=str)
    found = todays_names(found, OLD_NAMES[WEIGHTS_FILE])
    tables = {
        "methods": pd.DataFrame([method_row(row, found.get("metric", "accuracy"), task) for row in found["table"]]),
        "runs": pd.DataFrame([worth_row(row, found["weights"], task) for row in found.get("runs", [])]),
    }
    if not len(tables["runs"]):  # one fold: nothing is left to tell what a run is worth
        tables["runs"] = pd.DataFrame(list(found["weights"].items()), columns=["run", "weight"])
    says = [f"The blend that was written is {found['method']}; its out-of-fold predictions are {found['oof']}."]
    if chosen := found.get("chosen_in_folds"):
        says.append(f"Each fold’s rows are blended as the other folds chose: {', '.join(chosen)}.")
    if smallest := found.get("smallest_set"):
        says.append(f"The smallest set whose mean comes within one standard error: {', '.join(smallest)}.")
    if noise := found.get("noise"):
        noise = {"verdict": noise_verdict(noise["difference"], noise["standard_error"])} | noise  # old ones have none
        says.append(f"{noise_text(noise, task)}.")
    in_short = []
    if tta := found.get("tta"):
        presets = ", ".join(f"{run} {preset}" for run, preset in tta.items())
        in_short.append(
            f"{folder.name} blends out-of-fold predictions under test-time views ({presets}); "
            "the runs themselves are shown without, so part of its lead is that of the views."
        )
    body = [
        findings(says + in_short),
        table(tables["methods"]),
        note(
            "Nested: each fold’s rows by a blend fitted on the other folds, so nothing is scored on rows that it has "
            f"learned from. Optimism is what fitting and scoring on the same rows hides, in {task.counted}. "
            + ("" if task.is_number else "nll_calibrated is nll after one temperature; ")
            + "the difference to the mean’s is paired by row and has its standard error."
        ),
        element("h3", "What each run is worth"),
        table(tables["runs"]),
    ]
    name = slug(folder.name)
    frames = {f"{name}_{kind}": frame for kind, frame in tables.items()}
    return Section(f"Blend: {folder.name}", join(body), in_short, frames)


def method_row(row: dict[str, Any], metric: str, task: Task) -> dict[str, Any]:
    """One way of blending: its nested score, or with a single fold the one in-sample; the blend's metric first."""
    score = row.get("nested", row["in_sample"])
    shown, (low, high) = interval_metric(metric, task), score["interval"]
    is_own = shown != task.metrics[0]
    ends = ("low", "high") if METRICS[shown].shown.endswith("%") else ("from", "to")
    cells = {"method": row["name"]}
    if is_own:
        cells |= {metric: score[metric], ends[0]: low, ends[1]: high}
    cells[task.counted] = score[task.counted]
    if "optimism" in row:
        cells["optimism"] = row["optimism"]
    usual, loss = task.metrics[0], task.loss_metric
    cells |= {usual: score[usual], ends[0]: low, ends[1]: high, loss: score[loss]}
    if task.compared in score:
        cells[task.compared] = score[task.compared]
    if "against_mean" in row:
        cells |= {"to_the_mean": row["against_mean"]["difference"], "se": row["against_mean"]["standard_error"]}
    return cells


def worth_row(row: dict[str, Any], weights: dict[str, float], task: Task) -> dict[str, Any]:
    """What a blend loses without a run, what the run costs, and which other run errs most alike."""
    without = row["without"]
    return {
        "run": row["run"],
        "weight": weights.get(row["run"], np.nan),  # a stack has none
        task.counted: row["errors_alone"],
        "errors_without_it": without["errors"],
        f"{task.compared}_without_it": without["difference"],
        "se": without["standard_error"],
        "seconds_per_1000": row["seconds_per_1000_rows"] or np.nan,
        "most_alike": row["nearest"],
        "shared_errors": row["overlap"],
    }


def sweep_sections(evidence: Evidence) -> list[Section]:
    """What each sweep says of learning rate and batch size."""
    return [sweep_section(folder) for folder in evidence.sweeps]


def sweep_section(folder: Path) -> Section:
    """The law in sentences, its figure, and the best learning rate of each batch size."""
    sweep, cells, name = read_sweep(folder), read_cells(folder), slug(folder.name)
    title, about_it = f"Sweep: {folder.name}", f"{sweep.config.model}, {sweep.config.opt}, {sweep.says_budget}"
    try:
        law = fit_law(cells)
    except UserError as error:
        return Section(title, join([element("p", f"{about_it}; {error}."), table(cells)]), [], {f"{name}_cells": cells})
    optima = [
        (size, best.value, best.low, best.high, loss)
        for size, best, loss in zip(law.batch_sizes.tolist(), law.optima, law.parabolas.losses, strict=True)
    ]
    optima = pd.DataFrame(optima, columns=["batch_size", "best_lr", "from", "to", "nll_calibrated"])
    says, found = sentences(law), [read_json(path) for path in sorted(folder.glob(FIND_FILE.format("*")))]
    body = [
        element("p", f"{about_it}; {len(cells)} runs, {cells.seconds.sum() / 60:.0f} minutes."),
        findings(says + checked(folder)),
        *(sheet(panel) for panel in sweep_panels(cells, law, found, name)),
        element("h3", "The best learning rate of each batch size"),
        table(optima),
    ]
    tables = {f"{name}_optima": optima, f"{name}_cells": cells}
    return Section(title, join(body), [f"{folder.name}: {says[0]}."], tables)


def checked(folder: Path) -> list[str]:
    """What `sweep.py fit --verify` found on a batch size outside the fit, if it was asked."""
    seen = read_json(folder / LAW_FILE).get("verification") if (folder / LAW_FILE).is_file() else None
    if not seen:
        return []
    predicted, measured = (f"{seen[part]['lr']:.2e}" for part in ("predicted", "measured"))
    says = f"batch size {seen['batch_size']}, outside the fit: predicted lr {predicted}, measured {measured}: "
    says += "they agree" if seen["agrees"] else "they differ by more than chance"
    return [
        says if seen.get("cost") is None else f"{says}; the predicted one's loss is {seen['cost']:.1%} above the best"
    ]
