"""Speeds of contestants that took turns, and the ratios of ours to theirs within each round."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.machine import hardware
from common.base.files import write_file


def write_speeds(
    report: Path, title: str, about: str, rounds: Sequence[Mapping[str, Any]], names: Sequence[str], unit: str
) -> None:
    """Write the markdown page of a benchmark, and print it.

    Each of ``rounds`` holds its ``setting`` and the speed of every contestant; the second of their ``names`` is ours.
    A line per setting: median speeds, and median, least and greatest ratio. Machines drift, so a ratio is taken within
    a round.
    """
    rows, (_, ours, *_) = pd.DataFrame(rounds), names
    others = [name for name in names if name != ours]
    head = ["setting", *(f"{name}, {unit}" for name in names), *(f"{ours} / {name}" for name in others)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for setting, group in rows.groupby("setting", sort=False):
        cells = [setting, *(f"{group[name].median():,.0f}" for name in names)]
        for name in others:
            ratios = group[ours] / group[name]
            cells.append(f"{ratios.median():.2f} [{ratios.min():.2f}, {ratios.max():.2f}]")
        lines.append(f"| {' | '.join(cells)} |")
    turns = rows.groupby("setting").size().max()
    method = f"{about}; medians of {turns} rounds, ratios within a round with the least and the greatest in brackets."
    text = f"# {title}\n\n`python -m benchmarks.{report.stem}`: {hardware()}.\n{method}\n\n"
    text += "\n".join(lines) + "\n"
    write_file(report, text)
    print(text)
