"""The first sections of the page: can the scores be trusted, and what will they be worth on the test set?"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.base.files import read_json
from common.data.folds import leaks
from common.report.evaluation import Evaluation, Evidence
from common.report.page import Html, Section, element, findings, is_share, join, note, pictures, table
from common.runs.layout import INFERENCE_FILE, TEST_FILE, WEIGHTS_FILE
from common.runs.predictions import read_predictions
from common.score.leaderboard import (
    BLEND_ERROR,
    GAIN_ERROR,
    SURPRISE,
    Entry,
    expected,
    meaningless,
    pooled,
    private,
    row_deviation,
    surprise,
    two_to_choose,
    with_gain,
)
from common.score.metrics import METRICS, goodness
from common.trust.near_duplicates import PAIRS_FILE
from common.trust.verdict import Verdict, beside_folds, read_verdict

SHOWN_PAIRS = 8


def trust_sections(evidence: Evidence, folds_file: Path, public: dict[str, float], share: float) -> list[Section]:
    """What folds.py found in the data, and what each run's score will be worth."""
    verdict = read_verdict(folds_file)
    return [trust_section(evidence, folds_file, verdict), *worth_section(evidence, verdict, public, share)]


def trust_section(evidence: Evidence, folds_file: Path, verdict: Verdict | None) -> Section:
    """The verdict on the data."""
    title = "Can this score be trusted?"
    if verdict is None:
        return Section(title, note("The data was not looked at: python folds.py --check does, and says what it finds."))
    divided = leaks(evidence.folds)
    if verdict.alarms:
        state = "An alarm stands: the scores below are not what they seem."
    elif divided:
        state = "No alarm stands, but the folds file has rows that deserve a look."
    else:
        state = "No alarm stands: nothing was found that makes the scores below untrue by much."
    ordered = sorted(verdict.findings, key=lambda finding: not finding.alarm)
    said = divided + [line for finding in ordered for line in (str(finding), *finding.details)]
    body = [element("p", state), findings(said) if said else "", note(f"Looked at {'; '.join(verdict.looked_at)}.")]
    return Section(title, join([*body, pairs_shown(evidence, beside_folds(folds_file, PAIRS_FILE))]))


def pairs_shown(evidence: Evidence, path: Path) -> Html:
    """The first near-duplicate pairs within train as pictures."""
    if not path.is_file():
        return Html("")
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    known = set(evidence.images.ids)
    rows = rows[(rows.other_in == "train") & rows.id.isin(known) & rows.other.isin(known)][:SHOWN_PAIRS]
    if rows.empty:
        return Html("")
    captioned = []
    for row in rows.itertuples():
        images = evidence.images_of([row.id, row.other])
        for name, label, fold, image in zip(
            (row.id, row.other), (row.label, row.other_label), (row.fold, row.other_fold), images, strict=True
        ):
            captioned.append((image, [f"{label}, fold {fold}", name]))
    return join([note("Near-duplicates, two by two, the likest first."), pictures(captioned)])


def worth_section(evidence: Evidence, verdict: Verdict | None, public: dict[str, float], share: float) -> list[Section]:
    """What each run's score will be worth on the test set, and what the public scores say."""
    metric, entrants = evidence.metric, evidence.entrants
    if not entrants or metric == "errors":
        return []
    n_oof, n_test = len(entrants[0].oof.ids), test_rows(evidence)
    gains = {each.name: gain_of(evidence, each.name) for each in entrants}
    entries = [entry_of(each, metric, public, gains[each.name][0]) for each in entrants]
    n_public, deviations, rows = max(1, round(share * n_test)), {}, []
    for each in entries:
        gain, of_gain = gains[each.name]
        found = expected(each.oof, each.row_deviation, n_oof, n_test, gain, of_gain)
        row = {"run": each.name, "oof": each.oof, "by averaging": gain, "expected": found.score}
        row |= {"test from": found.low, "test to": found.high}
        if public:
            deviations[each.name] = surprise(each, n_oof, n_public, gain, of_gain)
            row |= {"public": each.public, "deviations": deviations[each.name]}
            by_both = private(each, n_oof, n_public, max(1, n_test - n_public), gain, of_gain)
            row |= {"private, from both": by_both.score, "private from": by_both.low, "private to": by_both.high}
        rows.append(row)
    gained = {name: gain for name, (gain, _) in gains.items()}
    sentences = public_sentences(evidence, entries, deviations, gained, n_public, verdict) if public else []
    lines = [
        f"Interval of the score on a test set of {n_test:,} rows, 95 %, by {n_oof:,} rows out of fold.",
        "Out of fold one model answers a row, a submission is the mean of all: what that gains in accuracy infer.py "
        "estimates without labels; where it is 0 it is not known, and the submission is usually better than this says.",
    ]
    frame = pd.DataFrame(rows)
    if is_share(metric):
        ends = [name for name in ("test to", "private to") if name in frame]
        frame[ends] = frame[ends].clip(upper=1.0)
    form = "{:.3%}".format if is_share(metric) else "{:.5f}".format
    shown = frame.assign(
        **{
            name: ["" if np.isnan(value) else form(value) for value in frame[name]]
            for name in frame
            if name not in ("run", "deviations")
        }
    )
    body = [*map(note, lines), table(shown), findings(sentences) if sentences else ""]
    return [Section("What it will be worth", join(body), sentences, {"worth": frame})]


def test_rows(evidence: Evidence) -> int:
    """How many rows the test set has, by the first predictions of it; without any, as many as the train table."""
    for each in evidence.entrants:
        path = evidence.runs_dir / each.name / TEST_FILE
        if path.is_file():
            return len(read_predictions(path).ids)
    return len(evidence.images.ids)


def gain_of(evidence: Evidence, run: str) -> tuple[float, float]:
    """What averaging its models gains in accuracy on the test rows, and which share of that its error is.

    infer.py or ensemble.py estimated it; 0: unknown, or another metric.
    """
    of_gain = BLEND_ERROR if run in {each.name for each in evidence.blends} else GAIN_ERROR
    if evidence.metric != "accuracy":
        return 0.0, of_gain
    paths = [evidence.runs_dir / run / name for name in (INFERENCE_FILE, WEIGHTS_FILE)]
    gains = (float(read_json(path).get("averaging_gain", 0.0)) for path in paths if path.is_file())
    return next(gains, 0.0), of_gain


def entry_of(run: Evaluation, metric: str, public: dict[str, float], gain: float) -> Entry:
    """A run or blend as a submission, whose rows vary less in accuracy the more averaging gains."""
    score = float(METRICS[metric].of(run.answers))
    deviation = with_gain(1.0 - score, gain)[1] if gain else row_deviation(metric, run.answers)
    return Entry(run.name, score, deviation, public.get(run.name, math.nan))


def public_sentences(
    evidence: Evidence,
    entries: Sequence[Entry],
    deviations: dict[str, float],
    gains: dict[str, float],
    n_public: int,
    verdict: Verdict | None,
) -> list[str]:
    """Whether the public scores surprise, which two to choose, and which differences mean nothing."""
    sentences, metric, entrants = [], evidence.metric, evidence.entrants
    n_oof = len(entrants[0].oof.ids)
    for name, z in deviations.items():
        if abs(z) > SURPRISE:
            sentences.append(
                f"The public score of {name} is a surprise: {z:+.1f} deviations from what its folds say. "
                "Another distribution, a leak, or folds that flatter."
                + (" What averaging gains is not known, and may be part of it." if z > 0 and not gains[name] else "")
            )
    doubtful = bool(verdict and verdict.alarms) or bool(sentences)
    chosen = two_to_choose(entries, metric, n_oof, n_public, doubtful)
    how = (
        "the best by folds and the best public one, since something casts doubt on the folds"
        if doubtful
        else "by folds and public score, weighted by their rows"
    )
    sentences.append(
        f"Submissions to choose: {' and '.join(chosen)} ({how}).{matters(evidence, entries, chosen, n_public)}"
    )
    answers = {each.name: each.answers for each in entrants}
    for one, two, difference, deviation in meaningless(entries, answers, metric, n_public)[:3]:
        sentences.append(
            f"That {one} and {two} differ by {difference:+.4g} on {n_public:,} public rows means nothing: its own "
            f"deviation is {deviation:.2g}."
        )
    return sentences


def matters(evidence: Evidence, entries: Sequence[Entry], chosen: Sequence[str], n_public: int) -> str:
    """By how much the choice matters: what the best submission that was left out is expected to lose, in a sentence."""
    metric, answers = evidence.metric, {each.name: each.answers for each in evidence.entrants}
    n_oof = len(evidence.entrants[0].oof.ids)
    good = {each.name: float(goodness(metric, pooled(each, n_oof, n_public))) for each in entries}
    if not (others := sorted(good.keys() - set(chosen), key=lambda name: -good[name])):
        return ""
    best = max(chosen, key=lambda name: good[name])
    lost = good[best] - good[others[0]]
    deviation = row_deviation(metric, answers[best], answers[others[0]]) / (n_oof + n_public) ** 0.5
    return (
        f" {others[0]} in place of {best} is expected to lose {lost:.2g}, give or take {deviation:.2g}: "
        f"{'it matters' if lost > 2 * deviation else 'it hardly matters'}."
    )
