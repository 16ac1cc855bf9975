"""The report's sections on runs: how they compare, what a seed does, each by itself, and labels that look wrong.

Each ``..._sections`` takes the evidence and gives what it has to say, which may be nothing.
"""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd

from common.report.audit import CONFIDENT, label_audit, likely_errors
from common.report.evaluation import (
    Evaluation,
    Evidence,
    calibration,
    changed_settings,
    class_scores,
    confident_errors,
    confusion,
    confusions,
    flips,
    fold_scores,
    scores,
    settings_between,
)
from common.report.figures import drawn, error_curves, intervals, loss_curves, rate_curve, reliability_curves
from common.report.page import (
    Html,
    Section,
    element,
    figures,
    findings,
    join,
    matrix,
    note,
    pictures,
    points,
    slug,
    table,
)
from common.runs.predictions import side_by_side
from common.score.metrics import describe
from common.score.significance import LEVEL, noise_floor, verdict

PICTURES = 24  # of each kind
WIDEST_MATRIX = 40  # classes; beyond, the worst of them say more
MOST_PAIRS = 12  # sentences on pairs; beyond, each with the best only


def comparison_sections(evidence: Evidence) -> list[Section]:
    """Every entrant's score, and for each two whether one is better."""
    entrants = evidence.entrants
    if not entrants:
        return []
    ranking = scores(entrants, evidence.metric)
    best = dict(ranking.iloc[0])
    best |= {"n": len(evidence.units)}
    says = [f"{'Best is ' if len(entrants) > 1 else ''}{best['run']}: {describe(best, evidence.metric)}."]
    if len(entrants) == 1:
        return [Section("Score", table(ranking), says, {"runs": ranking})]
    pairs, differing = pairs_table(evidence), settings_between(evidence.runs)
    verdicts = [
        f"{verdict(better.name, other.name, found, p, len(pairs), evidence.floor)}."
        for better, other, found, p in evidence.pairs
    ]
    with_best = len(entrants) - 1
    behind = pairs.iloc[:with_best]
    by_how_much = behind[["fewer_errors", "from", "to"]].to_numpy()
    accuracies = 100 * ranking[["accuracy", "low", "high"]].to_numpy()
    size = (4.6, 0.3 * len(entrants) + 0.5)
    more = f"More errors than {entrants[0].name}" + (" (band: what a seed alone does)" if evidence.floor else "")
    body = [
        table(ranking),
        figures(
            ("Accuracy, %", drawn(intervals, ranking.run, accuracies, False, 0, size=size, name="accuracy")),
            (more, drawn(intervals, behind.than, by_how_much, True, evidence.floor, size=size, name="behind")),
        ),
        element("h3", "Is the difference real?"),
        findings(verdicts if len(verdicts) <= MOST_PAIRS else verdicts[:with_best]),
        note(
            "Both models of a pair predict the same rows, so only the rows that one alone has right can tell them "
            "apart. p is exact McNemar’s: how often a fair coin would divide those rows at least as unevenly. The "
            "interval is a paired bootstrap’s. A difference is shown where p, by Holm’s method for all pairs together, "
            f"is below {LEVEL:g}. Gained and lost are the rows that the better and the "
            "other one alone has right. The test is about the two trained models; the noise floor tells what another "
            "seed alone changes."
        ),
        table(pairs.drop(columns=["p_of_all", "noise_floor", "shown"])),
    ]
    if len(differing):
        body += [element("h3", "Settings that differ between the runs"), table(differing)]
    tables = {"runs": ranking, "pairs": pairs, "settings": differing}
    return [Section("Runs compared", join(body), says + verdicts[:with_best], tables)]


def pairs_table(evidence: Evidence) -> pd.DataFrame:
    """A row per pair of entrants."""
    rows = [
        (a.name, b.name, c.better, c.low, c.high, c.gained, c.lost, c.p, p, evidence.floor, p < LEVEL)
        for a, b, c, p in evidence.pairs
    ]
    columns = ["better", "than", "fewer_errors", "from", "to", "gained", "lost", "p"]
    return pd.DataFrame(rows, columns=[*columns, "p_of_all", "noise_floor", "shown"])


def noise_sections(evidence: Evidence) -> list[Section]:
    """What a seed alone changes."""
    if not evidence.twins:
        says = "No two runs differ in their seed alone, so what a seed does is not measured."
        more = "To measure it, train one of them again with another --seed and --run."
        return [Section("Noise floor", join([element("p", says), note(more)]))] if len(evidence.runs) > 1 else []
    says, body, tables = [], [], {}
    for group in evidence.twins:
        found = [evidence.compare(*pair) for pair in combinations(group, 2)]
        changed, apart = max(each.changed for each in found), max(abs(each.better) for each in found)
        names, first = " and ".join(run.name for run in group), group[0].name
        says.append(
            f"{names} differ in their seed alone: {apart} error{'s' * (apart != 1)} apart, {changed} rows change "
            f"sides. A difference of up to {noise_floor(found)} errors may be the seed’s."
        )
        flipping = flips(group)
        predicted = flipping.filter(like="predicted_by").head(PICTURES).agg(" ".join, axis=1)
        shown = [
            (image, (f"{row.label}: {seeds}", row.id))
            for image, row, seeds in zip(
                evidence.images_of(flipping.id.head(PICTURES)), flipping.itertuples(), predicted, strict=False
            )
        ]
        body += [
            element("p", says[-1]),
            element("h3", f"Rows that flip between the seeds of {first}"),
            note(f"{len(flipping)} rows, the most confidently wrong first. Label: what each seed says, and the id."),
            pictures(shown),
        ]
        tables[f"{slug(first)}_flips"] = flipping
    return [Section("Noise floor", join(body), says, tables)]


def run_sections(evidence: Evidence) -> list[Section]:
    """A section for each run, the best first."""
    return [run_section(evidence, run) for run in evidence.entrants if run.metrics]


def run_section(evidence: Evidence, run: Evaluation) -> Section:
    """One run, from its settings to its worst mistakes."""
    n, name = len(run.targets), slug(run.name)
    tables = {
        "settings": changed_settings(run),
        "folds": fold_scores(run),
        "calibration": calibration(run),
        "confusions": confusions(run),
        "classes": class_scores(run),
        "errors": confident_errors(run),
    }
    worst = tables["errors"].head(PICTURES)
    score = {"accuracy": 1 - run.errors / n, "errors": run.errors, "n": n}
    body = [
        element("p", f"{describe(score)}."),
        note(facts(run)),
        element("h3", "Settings that differ from the defaults"),
        table(tables["settings"]) if len(tables["settings"]) else element("p", "None."),
        element("h3", "Folds"),
        table(tables["folds"].drop(columns="accuracy")),
        note(optimism(run, tables["folds"])),
        element("h3", "Training and calibration"),
        figures(
            ("Held-out rows that are wrong, % (thin: each fold)", drawn(error_curves, run, name=name)),
            ("Loss (in training of augmented images)", drawn(loss_curves, run, name=name)),
            ("Learning rate at the end of each epoch", drawn(rate_curve, run, name=name)),
            ("How sure it is, and how often right", drawn(reliability_curves, run, name=name)),
        ),
        table(tables["calibration"]),
        note(
            "After temperature: each fold’s logits are divided by the number that fits the other folds best. The "
            "calibration error is the mean gap between confidence and accuracy over 15 bins of equal width."
        ),
        element("h3", "Confusions"),
        *confusions_shown(run, tables["confusions"]),
        element("h3", "Classes" if len(run.oof.classes) <= WIDEST_MATRIX else "The classes most often missed"),
        table(most_missed(tables["classes"])),
        element("h3", "The most confident errors"),
        note("Label → prediction, its calibrated probability, and the id."),
        pictures(zip(evidence.images_of(worst.id), mistakes(worst, "predicted"), strict=True)),
    ]
    return Section(run.name, join(body), [], {f"{name}_{kind}": frame for kind, frame in tables.items()})


def facts(run: Evaluation) -> str:
    """What the run was, as far as it was not chosen."""
    first, settings = run.metrics[0], run.settings
    seconds = sum(metrics["seconds"] for metrics in run.metrics)
    speed = np.mean([metrics["images_per_second"] for metrics in run.metrics])
    side, processes, threads = settings["img_size"], first["processes"], first["threads"]
    return (
        f"Images of {side} × {side} pixels, {'grey' if settings['channels'] == 1 else 'colour'}; mixed precision "
        f"{settings['mixed_precision']}, {first['memory_format']}; {processes} process{'es' * (processes > 1)} of "
        f"{threads} thread{'s' * (threads > 1)}; {first['steps']:,} steps a fold at {speed:,.0f} images/s, "
        f"{seconds / 60:.1f} minutes in all; torch {first['versions']['torch']}, timm {first['versions']['timm']}."
    )


def optimism(run: Evaluation, per_fold: pd.DataFrame) -> str:
    """What choosing an epoch does to the score, and how much the folds differ."""
    mean, says, select = per_fold.mean(numeric_only=True), [], run.settings["select"]
    if select == "best":
        says.append("Kept is each fold’s best epoch (--select best), so the score above is flattered.")
    if select not in ("last", "best"):
        says.append(f"The score is what --select {select} makes of several epochs; last and best are single ones.")
    elif mean.best_minus_last > 0:
        says.append(
            f"Each fold’s own best epoch scores {points(mean.best_minus_last)} points against its last, but it is "
            "chosen on the rows that it is scored on."
        )
        if not np.isnan(mean.other_half):
            says.append(
                f"Chosen on one half of its rows and scored on the other: {points(mean.other_half - mean['last'])}."
            )
        if not np.isnan(mean.others_choice):
            honest = points(mean.others_choice - mean["last"])
            says.append(f"Chosen by the mean of the other folds, the epoch scores {honest} points: that much is real.")
    else:
        says.append("No fold has a better epoch than its last.")
    if len(per_fold) > 1:
        says.append(f"The folds’ standard deviation is {100 * per_fold.accuracy.std():.3f} points.")
    return " ".join(says)


def confusions_shown(run: Evaluation, mistaken: pd.DataFrame) -> list[Html]:
    """The matrix, or with too many classes for one the most frequent confusions."""
    if len(run.oof.classes) > WIDEST_MATRIX:
        return [table(mistaken.head(PICTURES))]
    about_it = note("Rows are labels, columns predictions; the darker, the more often mistaken.")
    return [about_it, matrix(confusion(run), run.oof.classes)]


def most_missed(classes: pd.DataFrame) -> pd.DataFrame:
    """All classes, or with too many of them those with the most errors."""
    if len(classes) <= WIDEST_MATRIX:
        return classes
    return classes.sort_values("missed", ascending=False, kind="stable").head(PICTURES)


def label_sections(evidence: Evidence) -> list[Section]:
    """Rows whose label the runs together contradict."""
    if not evidence.runs:
        return []
    count, first = len(evidence.runs), evidence.runs[0].oof
    logits, shared = side_by_side([replace(run.oof, logits=run.calibrated.values) for run in evidence.runs])
    audit = label_audit(shared, logits)
    shown = audit.head(2 * PICTURES)
    likely, judges = len(likely_errors(audit)), f"all {count} runs" if count > 1 else "the run"
    measure = f"with a mean probability of {100 * CONFIDENT:.0f} % or more for another"
    says = f"{likely} of {len(first.ids):,} labels are likely wrong: contradicted by {judges}, {measure}."
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
