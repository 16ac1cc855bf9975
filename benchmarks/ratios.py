"""Speeds of contestants that took turns, and the ratios of ours to theirs within each round."""

from collections.abc import Sequence

import pandas as pd


def speed_table(rows: pd.DataFrame, ours: str, others: Sequence[str], unit: str) -> str:
    """A markdown table with a line per ``setting``: median speeds, and median, least and greatest ratio.

    ``rows`` has the columns setting and one per contestant, a row per round. Machines drift, so a ratio is taken
    within a round.
    """
    names = [others[0], ours, *others[1:]]
    head = ["setting", *(f"{name}, {unit}" for name in names), *(f"{ours} / {name}" for name in others)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for setting, group in rows.groupby("setting", sort=False):
        cells = [setting, *(f"{group[name].median():,.0f}" for name in names)]
        for name in others:
            ratios = group[ours] / group[name]
            cells.append(f"{ratios.median():.2f} [{ratios.min():.2f}, {ratios.max():.2f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
