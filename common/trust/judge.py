"""Can a score on these folds be trusted? All that is looked at in the data, and what of it is found."""

import numpy as np

from common.data.folds import Folds
from common.data.groups import groups_of
from common.data.table import Table
from common.score.task import MULTICLASS, Task
from common.trust.column_probes import feature_probes, label_columns
from common.trust.dependence import in_words, strongest, told_by
from common.trust.near_duplicates import NearDuplicates, near_duplicate_findings
from common.trust.probes import letters_in, probes_of
from common.trust.quoted_targets import quoted_targets
from common.trust.shifts import drawn_alike, separation, shifts
from common.trust.verdict import Finding, Verdict

MOST_NAMED = 20  # of the columns that differ


def judge(table: Table, test: Table | None, folds: Folds, found: NearDuplicates | None, later: str = "") -> Verdict:
    """Look at all that there is; ``later``: the command that looks for near-duplicates, where that takes long."""
    looked_at: list[str] = []
    findings: list[Finding] = []
    if found:
        looked_at.append("near-duplicates")
        findings += near_duplicate_findings(table, test, folds, found)
    looked_at.append("the order of the rows and what their files say, against the label")
    if table.plan:
        looked_at.append("columns that hold the label")
    findings += leak_findings(table, test, folds.task)
    findings += [Finding("leak", True, said) for said in quoted_targets(folds, table)]
    if test:
        looked_at.append("train against test")
        findings += shift_findings(table, test, found)
    if later:
        looked_at.append(f"not yet at near-duplicates ({later} does)")
    return Verdict(looked_at, findings)


def leak_findings(table: Table, test: Table | None = None, task: Task = MULTICLASS) -> list[Finding]:
    """What the probes tell of the label, and the columns of a table of features that hold it."""
    probes = probes_of(table)
    if not (test and np.isin(letters_in(test), letters_in(table)).mean() > 0.5):
        probes.pop("name_letters", None)  # train files that are called by their class tell nothing of the test
    alike = drawn_alike(probes, probes_of(test)) if test else set()
    found = strongest(told_by(probes, table.labels))
    findings = [
        Finding("leak", told.is_alarm, in_words(told, others, told.probe in alike))
        for told, others in found
        if told.is_alarm or (told.share >= 0.02 and told.probe not in ("mean", "spread", "colour"))
    ]
    if table.plan and (said := label_columns(table, task)):
        findings.append(Finding("leak", True, said))
    return findings


def shift_findings(table: Table, test: Table, found: NearDuplicates | None) -> list[Finding]:
    """What tells the test rows from the training rows; of near-duplicates one counts, or they would fake a shift."""
    parts = [probes_of(each) for each in (table, test)]
    if table.plan:
        parts = [part | feature_probes(each, table.plan) for part, each in zip(parts, (table, test), strict=True)]
    if found and len(found.pairs):
        groups = groups_of(found.pairs.first, found.pairs.second, len(table.ids) + len(test.ids))
        kept = [np.unique(each, return_index=True)[1] for each in (groups[: found.n], groups[found.n :])]
        parts = [{name: values[rows] for name, values in part.items()} for part, rows in zip(parts, kept, strict=True)]
    differ = shifts(*parts)
    if not differ:
        return []
    auc, half = separation(*parts)
    text = f"train and test differ in {differ[0]} (medians)"
    if len(differ) > 1:
        text += f" and in {len(differ) - 1} more"
    text += f"; a forest tells them apart with an AUC of {auc:.2f} (0.50 ± {half:.2f} by chance): "
    return [Finding("shift", True, text + "OOF scores may not hold", [*map(str, differ[1:MOST_NAMED])])]
