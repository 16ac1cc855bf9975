"""Texts that a reader would take for one: classes and groups that spaces, accents or zeros alone tell apart."""

import re
import unicodedata
from collections.abc import Iterable

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")  # no exponent: 0e12 and 0e34 are hashes as well


def look_alikes(texts: Iterable[str], kind: str, any_case: bool = False) -> list[str]:
    """One line for each two of ``texts`` that mean the same, and one where spaces surround a text.

    ``kind`` is what they are, such as label; with ``any_case`` cat and Cat mean the same.
    """
    distinct, by_meaning, found = sorted(set(texts)), {}, []
    for text in distinct:
        meaning = _meaning(text)
        by_meaning.setdefault(meaning.casefold() if any_case else meaning, []).append(text)
    for alike in by_meaning.values():
        if len(alike) > 1:
            found.append(f"the {kind}s {' and '.join(map(repr, alike[:3]))} differ only in {_difference(alike)}")
    if not found and (surrounded := [text for text in distinct if text != text.strip()]):
        found.append(f"the {kind} {surrounded[0]!r} begins or ends with a space")
    return found


def _meaning(text: str) -> str:
    """What is left of a text without its outer spaces, invisible characters, and ways to write a number."""
    text = "".join(letter for letter in unicodedata.normalize("NFKC", text) if unicodedata.category(letter) != "Cf")
    text = " ".join(text.split())
    return repr(float(text)) if _NUMBER.fullmatch(text) and text.isascii() else text


def _difference(alike: list[str]) -> str:
    if len({"".join(text.split()) for text in alike}) == 1:
        return "spaces"
    if all(_NUMBER.fullmatch(text.strip()) for text in alike):
        return "how a number is written"
    return "case" if len({text.casefold() for text in alike}) == 1 else "characters that look the same"
