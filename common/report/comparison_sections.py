"""The report's sections on runs side by side: which is better, and what a seed alone does."""

from itertools import combinations

import pandas as pd

from common.report.evaluation import Evaluation, Evidence
from common.report.figures import drawn, intervals
from common.report.page import PICTURES, Section, chapter, element, figures, findings, join, note, pictures, slug, table
from common.report.run_tables import flips, settings_between
from common.score.metrics import describe
from common.score.significance import LEVEL, noise_floor, verdict

MOST_PAIRS = 12  # sentences on pairs; beyond, each with the best only


def comparison_sections(evidence: Evidence) -> list[Section]:
    """Every entrant's score, and for each two whether one is better."""
    if not evidence.entrants:
        return []
    ranking, best = evidence.ranking, evidence.entrants[0]
    score = describe({**ranking.iloc[0], "n": len(best.oof.ids)}, evidence.metric)
    copies = [
        f"{' and '.join(run.name for run in group)} have the same predictions, byte for byte: they say what one says."
        for group in evidence.copies
    ]
    copies += [
        f"{run.name} was made elsewhere: which folds it was made with is not known."
        for run in evidence.runs
        if "added" in run.settings
    ]
    if len(evidence.entrants) == 1:
        return [Section("Score", table(ranking), [f"{best.name}: {score}."], {"runs": ranking})]
    scores = Section("", table(ranking), [f"Best by {evidence.metric} is {best.name}: {score}.", *copies])
    scores.tables["runs"] = ranking
    parts = [scores, intervals_section(evidence), pairs_section(evidence), settings_section(evidence.runs)]
    return [chapter("Runs compared", [part for part in parts if part.body])]


def intervals_section(evidence: Evidence) -> Section:
    """The accuracy, or the metric, of each entrant, and how far each is behind the best."""
    ranking, (best, *others) = evidence.ranking, evidence.entrants
    own, percent = evidence.interval_metric, 100 if evidence.bounds[0] == "low" else 1
    values = percent * ranking[[own, *evidence.bounds]].to_numpy()
    behind = [evidence.compare(other, best) for other in others]
    behind = pd.DataFrame([(each.better, each.low, each.high) for each in behind]).to_numpy()
    more = f"More errors than {best.name}" if evidence.in_errors else f"Behind {best.name}, {own}"
    more += ", left of 0: fewer" if (behind[:, 0] < 0).any() else ""
    more += " (band: what a seed alone does)" if evidence.floor else ""
    size, names = (4.6, 0.3 * len(ranking) + 0.5), [other.name for other in others]
    body = figures(
        (
            f"{own.capitalize()}{', %' if percent == 100 else ''}",
            drawn(intervals, ranking.run, values, False, 0, size=size, name=own),
        ),
        (more, drawn(intervals, names, behind, True, evidence.floor, size=size, name="behind")),
    )
    return Section("", body)


def pairs_section(evidence: Evidence) -> Section:
    """Of each two entrants, which is better and whether that is shown."""
    pairs, with_best = pairs_table(evidence), len(evidence.entrants) - 1
    verdicts = [
        f"{verdict(better.name, other.name, found, p, len(pairs), evidence.floor, evidence.compared_by)}."
        for better, other, found, p in evidence.pairs
    ]
    test = (
        f"The test is by {evidence.metric}, the paired bootstrap’s: both models are scored on the same drawn rows. "
        f"A difference is shown where p, by Holm’s method for all pairs together, is below {LEVEL:g}."
    )
    body = [
        findings(verdicts if len(verdicts) <= MOST_PAIRS else verdicts[:with_best]),
        note(
            test
            if evidence.compared_by
            else "Both models of a pair predict the same rows, so only the rows that one alone has right can tell them "
            "apart. p is exact McNemar’s: how often a fair coin would divide those rows at least as unevenly. The "
            "interval is a paired bootstrap’s. A difference is shown where p, by Holm’s method for all pairs together, "
            f"is below {LEVEL:g}. Gained and lost are the rows that the better and the other one alone has right. The "
            "test is about the errors of the two trained models; the noise floor tells what another seed alone changes."
        ),
        table(pairs.drop(columns=["p_of_all", "noise_floor", "shown"])),
    ]
    return Section("Is the difference real?", join(body), verdicts[:with_best], {"pairs": pairs})


def pairs_table(evidence: Evidence) -> pd.DataFrame:
    """A row per pair of entrants."""
    rows = [
        (a.name, b.name, c.better, c.low, c.high, c.gained, c.lost, c.p, p, evidence.floor, p < LEVEL)
        for a, b, c, p in evidence.pairs
    ]
    columns = ["better", "than", "better_by" if evidence.compared_by else "fewer_errors"]
    columns += ["from", "to", "gained", "lost", "p"]
    return pd.DataFrame(rows, columns=[*columns, "p_of_all", "noise_floor", "shown"])


def settings_section(runs: list[Evaluation]) -> Section:
    """What the runs were trained with, as far as it differs."""
    differing = settings_between(runs)
    as_text = dict.fromkeys(differing, str)  # a run may be called like a metric
    body = table(differing, as_text) if len(differing) else join([])
    return Section("Settings that differ between the runs", body, [], {"settings": differing})


def noise_sections(evidence: Evidence) -> list[Section]:
    """What a seed alone changes."""
    if evidence.twins:
        return [chapter("Noise floor", [twins_section(evidence, group) for group in evidence.twins])]
    if len(evidence.runs) < 2:
        return []
    says = "No two runs differ in their seed alone, so what a seed does is not measured."
    more = "To measure it, train one of them again with another --seed and --run."
    return [Section("Noise floor", join([element("p", says), note(more)]))]


def twins_section(evidence: Evidence, group: list[Evaluation]) -> Section:
    """How far runs that differ in their seed alone lie apart, and the rows that flip between them."""
    found = [evidence.compare(*pair) for pair in combinations(group, 2)]
    changed, apart = max(each.changed for each in found), max(abs(each.better) for each in found)
    names, first = " and ".join(run.name for run in group), group[0].name
    far, floor = f"{apart} error{'s' * (apart != 1)}", f"{noise_floor(found)} errors"
    if evidence.compared_by:
        far, floor = f"{apart:.4f} of {evidence.metric}", f"{noise_floor(found):.4f}"
    says = (
        f"{names} differ in their seed alone: {far} apart, {changed} rows change sides. "
        f"A difference of up to {floor} may be the seed’s."
    )
    if group[0].oof.task.is_number:  # no row is right or wrong
        says = says.replace(f", {changed} rows change sides", "")
        return Section("", element("p", says), [says])
    flipping = flips(group)
    shown = flipping.head(PICTURES)
    predicted = [" ".join(seeds) for seeds in shown.filter(like="predicted_by").to_numpy()]
    captions = [
        (f"{label}: {seeds}", name) for label, seeds, name in zip(shown.label, predicted, shown.id, strict=True)
    ]
    body = [
        element("p", says),
        element("h3", f"Rows that flip between the seeds of {first}"),
        note(f"{len(flipping)} rows, the most confidently wrong first. Label: what each seed says, and the id."),
        pictures(zip(evidence.images_of(shown.id), captions, strict=True)),
    ]
    return Section("", join(body), [says], {f"{slug(first)}_flips": flipping})
