"""A verdict on the data: what was looked at, what was found, and which of it makes a score untrue.

folds.py prints it and writes it beside the folds file as trust.json; the report opens with it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.base.files import read_json, write_json

TRUST_FILE = "trust.json"
MOST_LINES = 8  # for a terminal; the file holds all
DOC = "docs/trust.md"


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    kind: str  # near-duplicates, leak or shift
    alarm: bool  # the score is not what it seems; else a note
    text: str
    details: Sequence[str] = ()  # a line each, where there is room

    def __str__(self) -> str:
        return f"{'alarm' if self.alarm else 'note'}: {self.text}"


@dataclass(frozen=True)
class Verdict:
    """What was looked at and what was found."""

    looked_at: list[str]
    findings: list[Finding]

    @property
    def alarms(self) -> list[Finding]:
        """What makes a score untrue."""
        return [finding for finding in self.findings if finding.alarm]

    def lines(self, is_alone: bool = True) -> list[str]:
        """At most MOST_LINES, for a terminal; not ``is_alone``: what the folds file itself shows was said before."""
        state = f"{len(self.alarms)} alarms" if len(self.alarms) > 1 else "an alarm" if self.alarms else "no alarm"
        state += "" if is_alone else " beside what is said above"
        ordered = sorted(self.findings, key=lambda finding: not finding.alarm)
        said = [(at, 0, str(finding)) for at, finding in enumerate(ordered)]
        for at, finding in enumerate(ordered):
            said += [(at, place, f"  {detail}") for place, detail in enumerate(finding.details, start=1)]
        shown = said if len(said) < MOST_LINES else said[: MOST_LINES - 2]
        lines = [f"trust        {state}; looked at {', '.join(self.looked_at)} ({DOC})"]
        lines += [line for _, _, line in sorted(shown)]
        if len(shown) < len(said):
            lines.append(f"and {len(said) - len(shown)} more in {TRUST_FILE}")
        return lines


def write_verdict(folds_file: Path, verdict: Verdict) -> None:
    """Write trust.json beside the folds file."""
    write_json(beside_folds(folds_file, TRUST_FILE), asdict(verdict))


def read_verdict(folds_file: Path) -> Verdict | None:
    """What folds.py wrote beside its file, or None."""
    path = beside_folds(folds_file, TRUST_FILE)
    if not path.is_file():
        return None
    said = read_json(path, looked_at=list, findings=list)
    return Verdict(said["looked_at"], [Finding(**each) for each in said["findings"]])


def beside_folds(folds_file: Path, name: str) -> Path:
    """Where a file of a folds file lies: of other.csv it is called other.<name>."""
    return folds_file.with_name(name if folds_file.stem == "folds" else f"{folds_file.stem}.{name}")
