"""One page on what runs are worth, which is better, how sure that is, and which labels look wrong.

    python report.py                                        # all that lies below runs/
    python report.py --data train.csv.gz --runs digits_fast convnext_atto ensemble --csv

Writes report.html, a single file that needs no network, and beside it report_labels.csv, the rows whose labels
deserve a second look; with --csv also every other table of the page, into report_tables/.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.audit import CONFIDENT, label_audit, likely_errors
from common.cells import FIND_FILE, LAW_FILE, SWEEP_FILE, read_cells, read_sweep
from common.cli import parse
from common.errors import UserError, run_script, warn
from common.evaluation import (
    Evaluation,
    calibration,
    changed_settings,
    class_scores,
    confident_errors,
    confusion,
    confusions,
    flips,
    fold_scores,
    read_blend,
    read_run,
    scores,
    seed_twins,
    settings_between,
)
from common.figures import drawn, error_curves, intervals, loss_curves, rate_curve, reliability_curves, sweep_panels
from common.files import check_folder, read_json, write_file
from common.law import Law
from common.metrics import check_metric, describe
from common.page import (
    Html,
    Section,
    element,
    figures,
    findings,
    join,
    matrix,
    page,
    pictures,
    points,
    sheet,
    slug,
    table,
    text_table,
)
from common.predictions import side_by_side
from common.runs import WEIGHTS_FILE
from common.significance import LEVEL, Comparison, compare, holm, noise_floor, verdict
from common.splits import Folds, match_folds, read_folds
from common.tables import Table, read_train_table

PICTURES = 24  # of each kind
WIDEST_MATRIX = 40  # classes; beyond, the worst of them say more
MOST_PAIRS = 12  # sentences on pairs; beyond, each with the best only


@dataclass(frozen=True)
class Options:
    """Write report.html on runs, blends and sweeps: python report.py --data train.csv.gz"""

    runs: tuple[str, ...] = ()  # names below runs_dir (default: every finished run, blend and sweep)
    data: str = "digits"  # train table whose images are shown
    folds: str = "folds.csv"  # the folds file that the runs were trained with
    runs_dir: str = "runs"  # folder that holds every run
    metric: str = "accuracy"  # what the table of runs is sorted by
    out: str = "report.html"  # the page
    csv: bool = False  # write the page's tables as csv too


@dataclass(frozen=True)
class Evidence:
    """All that the page speaks of."""

    folds: Folds
    images: Table
    runs: list[Evaluation]
    blends: list[Evaluation]
    sweeps: list[Path]
    runs_dir: Path
    metric: str

    @cached_property
    def entrants(self) -> list[Evaluation]:
        """Runs and blends, that with the fewest errors first."""
        by_name = {each.name: each for each in self.runs + self.blends}
        return [by_name[name] for name in scores(list(by_name.values())).run] if by_name else []

    @cached_property
    def units(self) -> np.ndarray:
        """Equal numbers for held-out rows that are not independent: of one group, or else copies of one image."""
        alike = self.folds.groups if self.folds.groups.size else self.folds.row_shas
        return np.unique(alike[self.folds.fold >= 0].astype(str), return_inverse=True)[1]

    @cached_property
    def pairs(self) -> list[tuple[Evaluation, Evaluation, Comparison, float]]:
        """(better, other, comparison, Holm's p) of every two entrants; the pairs of the best come first."""
        two = list(combinations(self.entrants, 2))
        found = [self.compare(other, better) for better, other in two]
        p_of_all = holm([each.p for each in found])
        return [(*names, each, p) for names, each, p in zip(two, found, p_of_all, strict=True)]

    @cached_property
    def twins(self) -> list[list[Evaluation]]:
        """Groups of runs that differ in their seed alone."""
        return seed_twins(self.runs)

    @cached_property
    def floor(self) -> int:
        """How many errors a seed alone may make; 0 where no setting was trained twice."""
        return noise_floor([self.compare(*pair) for group in self.twins for pair in combinations(group, 2)])

    def compare(self, a: Evaluation, b: Evaluation) -> Comparison:
        """B against A."""
        return compare(a.right, b.right, self.units)

    def images_of(self, ids: Sequence[str]) -> list[np.ndarray | Path]:
        """The images of some ids."""
        position = {name: at for at, name in enumerate(self.images.ids)}
        return [self.images.images[position[name]] for name in ids]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv)
    out = Path(options.out)
    check_folder(out.parent)
    if out.suffix != ".html":
        raise UserError("--out", f"{out} is no html file", "give it a name that ends with .html")
    evidence = gather(options)
    chapters = [section for sections in SECTIONS for section in sections(evidence)]
    in_short = [sentence for section in chapters for sentence in section.findings]
    write_file(out, page("Fivefold report", about(evidence), [Section("In short", findings(in_short)), *chapters]))

    tables = {name: frame for section in chapters for name, frame in section.tables.items()}
    files = {out.with_name(f"{out.stem}_labels.csv"): tables["labels"]} if "labels" in tables else {}
    if options.csv:
        files |= {out.with_name(f"{out.stem}_tables") / f"{name}.csv": frame for name, frame in tables.items()}
    for path, frame in files.items():
        write_file(path, frame.to_csv(index=False))
    if "runs" in tables:
        print(text_table(tables["runs"]))
    print("\n".join(in_short))
    print(f"wrote {out}" + (f" and {len(files)} csv files beside it" if len(files) > 1 else ""))


def gather(options: Options) -> Evidence:
    """Read and check all that the options name.

    Raises:
        UserError: a name without a finished run, blend or sweep; runs of other folds; data that is not the folds'.
    """
    folds, runs_dir = read_folds(Path(options.folds)), Path(options.runs_dir)
    check_metric(options.metric, folds.classes)
    found = Evidence(folds, read_train_table(options.data), [], [], [], runs_dir, options.metric)
    match_folds(folds, found.images)
    for name in dict.fromkeys(options.runs or sorted(path.name for path in runs_dir.glob("[!.]*/"))):
        folder = runs_dir / name
        try:
            if (folder / SWEEP_FILE).is_file():
                found.sweeps.append(folder)
            elif (folder / WEIGHTS_FILE).is_file():
                found.blends.append(read_blend(folder, folds))
            else:
                found.runs.append(read_run(folder, folds))
        except UserError as error:
            if options.runs:
                raise
            warn(f"left out: {error}")
    if not (found.runs or found.blends or found.sweeps):
        raise UserError(str(runs_dir), "holds nothing to report on", "train a run: python train_fold.py --fold all")
    return found


def about(evidence: Evidence) -> str:
    """What lies under every number of the page."""
    folds = evidence.folds
    return (
        f"{Path(evidence.images.source).name}: {len(folds.ids):,} rows, {len(folds.classes)} classes, {folds.count} "
        f"folds (fingerprint {folds.fingerprint[:16]}). Every score is out of fold: each row is predicted by a model "
        "that has not seen it. Intervals are 95 %."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Sections: each takes the evidence and gives what it has to say, which may be nothing.


def comparison_sections(evidence: Evidence) -> list[Section]:
    """Every entrant's score, and for each two whether one is better."""
    entrants = evidence.entrants
    if not entrants:
        return []
    ranking = scores(entrants, evidence.metric)
    best = dict(ranking.iloc[0])
    best |= {"n": len(evidence.units), "nll": best["log_loss"]}
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
    logits, shared = side_by_side([replace(run.oof, logits=run.calibrated) for run in evidence.runs])
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


def blend_sections(evidence: Evidence) -> list[Section]:
    """The table of each blend, its weights, and what each run is worth to it."""
    return [blend_section(evidence.runs_dir / blend.name) for blend in evidence.blends]


def blend_section(folder: Path) -> Section:
    """All of a blend's weights.json."""
    found = read_json(folder / WEIGHTS_FILE, table=list, weights=dict, method=str, oof=str)
    tables = {
        "methods": pd.DataFrame([method_row(row) for row in found["table"]]),
        "runs": pd.DataFrame([worth_row(row, found["weights"]) for row in found.get("runs", [])]),
    }
    if not len(tables["runs"]):  # one fold: nothing is left to tell what a run is worth
        tables["runs"] = pd.DataFrame(list(found["weights"].items()), columns=["run", "weight"])
    says = [f"Written is the blend by {found['method']}; its out-of-fold predictions are {found['oof']}."]
    if chosen := found.get("chosen_in_folds"):
        says.append(f"Each fold’s rows are blended as the other folds chose: {', '.join(chosen)}.")
    if smallest := found.get("smallest_set"):
        says.append(f"The smallest set whose mean comes within one standard error: {', '.join(smallest)}.")
    if noise := found.get("noise"):
        helps = "noise helps, so do not trust this score" if gains(noise) else "noise gains nothing"
        says.append(
            f"Control: with {noise['members']} members of noise {noise['errors_with']:,} errors instead of "
            f"{noise['errors_without']:,}: {helps}."
        )
    body = [
        findings(says),
        table(tables["methods"]),
        note(
            "Nested: each fold’s rows by a blend fitted on the other folds, so nothing is scored on rows that it has "
            "learned from. Optimism is what fitting and scoring on the same rows hides, in errors. After T: log loss "
            "after one temperature; the difference to the mean’s is paired by row and has its standard error."
        ),
        element("h3", "What each run is worth"),
        table(tables["runs"]),
    ]
    name = slug(folder.name)
    return Section(f"Blend: {folder.name}", join(body), [], {f"{name}_{kind}": frame for kind, frame in tables.items()})


def method_row(row: dict[str, Any]) -> dict[str, Any]:
    """One way of blending: its nested score, or with a single fold the one in-sample."""
    score = row.get("nested", row["in_sample"])
    low, high = score["interval"]
    cells = {"method": row["name"], "errors": score["errors"]}
    if "nested" in row:
        cells["optimism"] = score["errors"] - row["in_sample"]["errors"]
    cells |= {"accuracy": score["accuracy"], "low": low, "high": high, "log_loss": score["nll"]}
    if "tempered_nll" in score:
        cells["after_temperature"] = score["tempered_nll"]
    if "against_mean" in row:
        cells |= {"to_the_mean": row["against_mean"]["difference"], "se": row["against_mean"]["standard_error"]}
    return cells


def worth_row(row: dict[str, Any], weights: dict[str, float]) -> dict[str, Any]:
    """What a blend loses without a run, what the run costs, and which other run errs most alike."""
    without = row["without"]
    return {
        "run": row["run"],
        "weight": weights.get(row["run"], np.nan),  # a stack has none
        "errors": row["errors_alone"],
        "errors_without_it": without["errors"],
        "loss_without_it": without["difference"],
        "se": without["standard_error"],
        "seconds_per_1000": row["seconds_per_1000_rows"] or np.nan,
        "most_alike": row["nearest"],
        "shared_errors": row["overlap"],
    }


def gains(noise: dict[str, float]) -> bool:
    """Whether members of noise lower the log loss by more than two standard errors."""
    return noise["difference"] < -2 * noise["standard_error"]


def sweep_sections(evidence: Evidence) -> list[Section]:
    """What each sweep says of learning rate and batch size."""
    return [sweep_section(folder) for folder in evidence.sweeps]


def sweep_section(folder: Path) -> Section:
    """The law in sentences, its figure, and the best learning rate of each batch size."""
    sweep, cells, name = read_sweep(folder), read_cells(folder), slug(folder.name)
    title, about_it = f"Sweep: {folder.name}", f"{sweep.config.model}, {sweep.config.opt}, {sweep.says_budget}"
    try:
        law = Law(cells)
    except UserError as error:
        return Section(title, join([element("p", f"{about_it}; {error}."), table(cells)]), [], {f"{name}_cells": cells})
    sentences = law.sentences()
    optima = [
        (size, best.value, best.low, best.high, loss)
        for size, best, loss in zip(law.batch_sizes.tolist(), law.optima, law.best_losses, strict=True)
    ]
    optima = pd.DataFrame(optima, columns=["batch_size", "best_lr", "from", "to", "log_loss"])
    found = [read_json(path) for path in sorted(folder.glob(FIND_FILE.format("*")))]
    body = [
        element("p", f"{about_it}; {len(cells)} runs, {cells.seconds.sum() / 60:.0f} minutes."),
        findings(sentences + checked(folder)),
        *(sheet(panel) for panel in sweep_panels(cells, law, found, name)),
        element("h3", "The best learning rate of each batch size"),
        table(optima),
    ]
    tables = {f"{name}_optima": optima, f"{name}_cells": cells}
    return Section(title, join(body), [f"{folder.name}: {sentences[0]}."], tables)


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


def note(text: str) -> Html:
    """A paragraph that explains the figures around it."""
    return element("p", text, class_="note")


SECTIONS: tuple[Callable[[Evidence], list[Section]], ...] = (
    comparison_sections,
    noise_sections,
    run_sections,
    label_sections,
    blend_sections,
    sweep_sections,
)


if __name__ == "__main__":
    run_script(main)
