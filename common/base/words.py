"""Phrases that several messages share."""

from collections.abc import Sequence

LONGEST_REASON = 200  # characters of a library's message that a line of ours repeats


def rows_named(ids: Sequence[str]) -> str:
    """``3 rows (7, 12, 40)``: a count and the first few ids."""
    named = ", ".join(list(ids)[:5]) + (", ..." if len(ids) > 5 else "")
    return f"{len(ids)} row{'s' if len(ids) > 1 else ''} ({named})"


def names_in_short(names: Sequence[str]) -> str:
    """``a, b, c``, or of more than twelve names the first ones and how many there are."""
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])}, ... ({len(names):,})"


def in_shares(processes: int, accumulate: int, rows: int = 0, called: str = "image") -> str:
    """How a batch is shared out: ``2 processes x 1 accumulation step``, and ``x 6 images`` where ``rows`` are given."""
    counts = [(processes, "process", "processes"), (accumulate, "accumulation step", "accumulation steps")]
    if rows:
        counts.append((rows, called, f"{called}s"))
    return " x ".join(f"{count} {one if count == 1 else several}" for count, one, several in counts)


def in_a_line(error: Exception) -> str:
    """An exception of a library in a line: its kind and the beginning of its text."""
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
