"""The report's sections on each run by itself, and on the labels that the runs together contradict."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from common.data.kinds import Kind
from common.data.utterances import UTTERANCE
from common.report.audit import AUDITS, CONFIDENT, likely_errors
from common.report.evaluation import Evaluation, Evidence
from common.report.figures import (
    drawn,
    error_curves,
    loss_curves,
    metric_curves,
    predicted_against_true,
    rate_curve,
    reliability_curves,
)
from common.report.page import (
    PICTURES,
    Section,
    chapter,
    difference,
    element,
    figures,
    in_full,
    is_share,
    join,
    matrix,
    note,
    pictures,
    slug,
    table,
)
from common.report.run_tables import (
    calibration,
    changed_settings,
    class_scores,
    confident_errors,
    confusion,
    confusions,
    fold_scores,
    label_pairs,
    label_scores,
    length_scores,
    residuals,
    utterance_scores,
    worst_rows,
)
from common.runs.predictions import side_by_side
from common.score.metrics import describe, score_of

MOST_DRAWN = 4  # target columns with a figure each
WIDEST_MATRIX = 40  # classes; beyond, the worst of them say more


def run_sections(evidence: Evidence) -> list[Section]:
    """A chapter for each run, the best first: those of RUN_SECTIONS that fit the task."""
    wanted = (*evidence.folds.task.sections, *evidence.images.kind.sections)
    makers = [make for name, make in RUN_SECTIONS.items() if name in wanted]
    found = []
    for run in evidence.entrants:
        if run.metrics:
            parts = chapter(run.name, [make(evidence, run) for make in makers])
            found.append(
                replace(parts, tables={f"{slug(run.name)}_{kind}": each for kind, each in parts.tables.items()})
            )
    return found


def summary_section(evidence: Evidence, run: Evaluation) -> Section:
    """The score, what the run was as far as it was not chosen, and what was chosen."""
    settings, ranking = changed_settings(run), evidence.ranking
    bounds = ranking.loc[ranking.run == run.name, list(evidence.bounds)].iloc[0].to_dict() if evidence.in_errors else {}
    body = [
        element("p", f"{describe(score_of(run.answers, run.oof.task.metrics) | bounds)}."),
        note(facts(run, evidence.images.kind)),
        element("h3", "Settings that differ from the defaults"),
        table(settings) if len(settings) else element("p", "None."),
    ]
    return Section("", join(body), [], {"settings": settings})


def facts(run: Evaluation, kind: Kind) -> str:
    """What the run was, as far as it was not chosen."""
    first, settings = run.metrics[0], run.settings
    seconds = sum(metrics["seconds"] for metrics in run.metrics)
    speed = np.mean([metrics["images_per_second"] for metrics in run.metrics])
    side, processes, threads = settings["img_size"], first["processes"], first["threads"]
    colours = {1: "grey", 3: "colour"}.get(settings["channels"], f"{settings['channels']} channels")
    shown = f"Images of {side} × {side} pixels, {colours}"
    if not settings["channels"]:
        shown = f"{side} {kind.numbers}"
    return (
        f"{shown}; mixed precision "
        f"{first.get('computed_in', settings['mixed_precision'])}, {first['memory_format']}; "
        f"{processes} process{'es' * (processes > 1)} of "
        f"{threads} thread{'s' * (threads > 1)}; {first['steps']:,} steps a fold at {speed:,.0f} {kind.row}s/s, "
        f"{seconds / 60:.1f} minutes in all; torch {first['versions']['torch']}, timm {first['versions']['timm']}."
    )


def folds_section(evidence: Evidence, run: Evaluation) -> Section:
    """The score of each fold, and what choosing an epoch does to it."""
    per_fold = fold_scores(run)
    formats = dict.fromkeys(("last", "best", "other_half", "others_choice"), in_full(run.metric))
    formats["best_minus_last"] = difference(run.metric)
    shown = per_fold.drop(columns=[] if run.oof.task.is_number else "accuracy")
    body = [table(shown, formats), note(optimism(run, per_fold))]
    return Section("Folds", join(body), [], {"folds": per_fold})


def optimism(run: Evaluation, per_fold: pd.DataFrame) -> str:
    """What choosing an epoch does to the score, and how much the folds differ."""
    mean, says, select = per_fold.mean(numeric_only=True), [], run.settings["select"]
    unit = "points" if is_share(run.metric) else run.metric
    says.append(f"Last, best and the choices between epochs are by {run.metric}, as in training.")

    def apart(value: float) -> str:
        return f"{difference(run.metric)(value)} {unit}"

    if select == "best":
        says.append("Each fold keeps its best epoch (--select best), so the score above is flattered.")
    if select not in ("last", "best"):
        says.append(f"The score is what --select {select} makes of several epochs; last and best are single ones.")
    elif mean.best_minus_last:
        says.append(
            f"Each fold’s own best epoch scores {apart(mean.best_minus_last)} against its last, but it is "
            "chosen on the rows that it is scored on."
        )
        if not np.isnan(mean.other_half):
            says.append(
                f"Chosen on one half of its rows and scored on the other: {apart(mean.other_half - mean['last'])}."
            )
        if not np.isnan(mean.others_choice):
            honest = apart(mean.others_choice - mean["last"])
            says.append(f"Chosen by the mean of the other folds, the epoch scores {honest}: that much is real.")
    else:
        says.append("No fold has a better epoch than its last.")
    if len(per_fold) > 1:
        usual = run.oof.task.metrics[0]
        deviation = difference(usual)(per_fold[usual].std()).removeprefix("+")
        says.append(f"The standard deviation of the folds’ {usual} is {deviation}{' points' * is_share(usual)}.")
    return " ".join(says)


def curves_section(evidence: Evidence, run: Evaluation) -> Section:
    """How the training went."""
    name, metric = slug(run.name), run.oof.task.metrics[0]
    if run.oof.task.is_number:
        scored = (f"{metric} of the held-out rows (thin: each fold)", drawn(metric_curves, run, metric, name=name))
    else:
        scored = ("Held-out rows that are wrong, % (thin: each fold)", drawn(error_curves, run, name=name))
    body = figures(
        scored,
        ("Loss (in training of augmented images)", drawn(loss_curves, run, name=name)),
        ("Learning rate at the end of each epoch", drawn(rate_curve, run, name=name)),
    )
    return Section("Training", body)


def calibration_section(evidence: Evidence, run: Evaluation) -> Section:
    """How sure the run is of its answers, and how often it is right."""
    found = calibration(run)
    drawing = drawn(reliability_curves, run, name=slug(run.name))
    body = [
        figures(("How sure it is, and how often right", drawing)),
        table(found),
        note(
            "After temperature: each fold’s logits are divided by the number that fits the other folds best. The "
            "calibration error is the mean gap between confidence and accuracy over 15 bins of equal width."
        ),
    ]
    return Section("Calibration", join(body), [], {"calibration": found})


def confusions_section(evidence: Evidence, run: Evaluation) -> Section:
    """The matrix, or with too many classes for one the most frequent confusions."""
    found = confusions(run)
    about_it = note("Rows are labels, columns predictions; the darker, the more often mistaken.")
    body = join([about_it, matrix(confusion(run), run.oof.output_names)])
    if len(run.oof.output_names) > WIDEST_MATRIX:
        body = table(found.head(PICTURES))
    return Section("Confusions", body, [], {"confusions": found})


def classes_section(evidence: Evidence, run: Evaluation) -> Section:
    """All classes, or with too many of them those with the most errors."""
    found = class_scores(run)
    title, shown = "Classes", found
    if len(found) > WIDEST_MATRIX:
        title = "The classes most often missed"
        shown = found.sort_values("missed", ascending=False, kind="stable").head(PICTURES)
    return Section(title, table(shown), [], {"classes": found})


def label_table_section(evidence: Evidence, run: Evaluation) -> Section:
    """Each label by itself, and which labels are taken for which."""
    found, pairs = label_scores(run), label_pairs(run)
    body = [
        table(found),
        note("Mean p is to be near the rate. Rows are answered by the thresholds that the other folds say."),
    ]
    if len(pairs):
        body += [element("h4", "Answered in place of another label"), table(pairs.head(PICTURES))]
    return Section("Labels", join(body), [], {"label_table": found, "label_pairs": pairs})


def lengths_section(evidence: Evidence, run: Evaluation) -> Section:
    """Errors by the length of sequences, in five parts of about as many rows each."""
    lengths = evidence.images.images.lengths[evidence.rows_of(run.oof.ids)]
    found = length_scores(run, lengths)
    return Section("Errors by length", table(found), [], {"lengths": found})


def utterances_section(evidence: Evidence, run: Evaluation) -> Section:
    """The utterances, those with most errors first."""
    found = utterance_scores(run, evidence.images.columns[UTTERANCE][evidence.rows_of(run.oof.ids)])
    about_it = note("Every frame counts alike, so that long utterances count for more.")
    return Section("Utterances", join([about_it, table(found.head(PICTURES))]), [], {"utterances": found})


def residuals_section(evidence: Evidence, run: Evaluation) -> Section:
    """Predictions against the truth, what is left of them by the size of the prediction, and the worst rows."""
    by_size, worst, name = residuals(run), worst_rows(run), slug(run.name)
    drawings = [
        (f"{column}: predicted against true", drawn(predicted_against_true, run, at, name=f"{name} {at}"))
        for at, column in enumerate(run.oof.output_names[:MOST_DRAWN])
    ]
    shown = worst.head(PICTURES)
    captions = [
        (f"{label} → {said}", f"off by {error:.4g}", row_id)
        for label, said, error, row_id in zip(shown.label, shown.predicted, shown.error, shown.id, strict=True)
    ]
    body = [
        figures(*drawings),
        table(by_size),
        note("Rows in ten parts by their prediction. A bias that grows or falls from part to part can be learned yet."),
        element("h4", "The rows that are farthest off"),
        pictures(zip(evidence.images_of(shown.id), captions, strict=True)),
    ]
    return Section("Residuals", join(body), [], {"residuals": by_size, "worst_rows": worst})


def mistakes_section(evidence: Evidence, run: Evaluation) -> Section:
    """The most confident errors."""
    found = confident_errors(run)
    worst = found.head(PICTURES)
    body = [
        note("Label → prediction, its calibrated probability, and the id."),
        pictures(zip(evidence.images_of(worst.id), mistakes(worst, "predicted"), strict=True)),
    ]
    return Section("The most confident errors", join(body), [], {"errors": found})


def label_sections(evidence: Evidence) -> list[Section]:
    """Rows whose label the runs together contradict."""
    audits = [audit for name, audit in AUDITS.items() if name in evidence.folds.task.sections]
    if not evidence.runs or not audits:
        return []
    count, first = len(evidence.runs), evidence.runs[0].oof
    logits, shared = side_by_side([replace(run.oof, logits=run.calibrated.values) for run in evidence.runs])
    audit = audits[0](shared, logits)
    shown = audit.head(2 * PICTURES)
    likely, judges = len(likely_errors(audit)), f"all {count} runs" if count > 1 else "the run"
    measure = f"with a mean probability of {100 * CONFIDENT:.0f} % or more for another"
    labels = len(first.ids) * (1 if first.task.is_one_of else len(first.output_names))
    says = f"{likely} of {labels:,} labels are likely wrong: contradicted by {judges}, {measure}."
    if not likely:
        says = f"No label is contradicted by {judges}, {measure}."
    body = [
        element("p", says),
        note(
            f"{len(audit):,} labels are contradicted by the runs’ mean; here are the first {len(shown)}, the surest "
            "above, and the csv beside this page has them all. Label → suggestion, its mean calibrated probability, "
            "and the id. No row is judged by a model that was trained on its label."
            + (" A second run, of another kind, would make the list surer." if count == 1 else "")
        ),
        pictures(zip(evidence.images_of(shown.id), mistakes(shown, "suggested"), strict=True)),
    ]
    return [Section("Labels to look at", join(body), [says], {"labels": audit})]


def mistakes(rows: pd.DataFrame, instead: str) -> list[tuple[str, str, str]]:
    """The lines below pictures: label and what stands in the column ``instead``, its probability, the id."""
    return [
        (f"{label} → {other}", f"{100 * probability:.2f} %", name)
        for label, other, probability, name in zip(rows.label, rows[instead], rows.probability, rows.id, strict=True)
    ]


# What the chapter of a run is made of, in this order; a task names those that fit it (common/score/task.py).
RUN_SECTIONS: dict[str, Callable[[Evidence, Evaluation], Section]] = {
    "summary": summary_section,
    "folds": folds_section,
    "curves": curves_section,
    "calibration": calibration_section,
    "confusions": confusions_section,
    "classes": classes_section,
    "label-table": label_table_section,
    "lengths": lengths_section,
    "utterances": utterances_section,
    "mistakes": mistakes_section,
    "residuals": residuals_section,
}
