"""Texts that a reader would take for one: classes and groups that spaces, accents or zeros alone tell apart."""

import re
import unicodedata
from collections.abc import Hashable, Iterable
from decimal import Decimal

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}([,_' ])[0-9]{3}(\1[0-9]{3})*(\.[0-9]*)?")
# Letters and marks that are drawn like a Latin one; what Unicode says of each other is in NFKC.
_DRAWN_ALIKE = str.maketrans(
    "АВЕКМНОРСТХаеорсухіјѕ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧο" + "\u2018\u2019\u00b4\u2212\u2010\u2012\u2013\u2014",  # noqa: RUF001
    "ABEKMHOPCTXaeopcyxijs" + "ABEZHIKMNOPTYXo" + "'''-----",
)


SAME_LOOK = "characters that look the same"


def look_alikes(texts: Iterable[str], kind: str, any_case: bool = False) -> list[str]:
    """One line for each two of ``texts`` that mean the same, and one where spaces surround a text.

    ``kind`` is what they are, such as label; with ``any_case`` cat and Cat mean the same.
    """
    distinct, by_meaning, found = sorted(set(texts)), {}, []
    for text in distinct:
        for meaning in _meanings(text.casefold() if any_case else text):
            by_meaning.setdefault(meaning, []).append(text)
    for alike in by_meaning.values():
        if len(alike) > 1 and not _are_hashes(alike):
            difference = _difference(alike)
            shown = map(ascii if difference == SAME_LOOK else repr, alike[:3])
            found.append(f"the {kind}s {' and '.join(shown)} differ only in {difference}")
    if not found and (surrounded := [text for text in distinct if text != text.strip()]):
        found.append(f"the {kind} {surrounded[0]!r} begins or ends with a space")
    return found


def same_but_for_spelling(texts: Iterable[str], others: Iterable[str]) -> tuple[str, str] | None:
    """A text and the other one that means the same, where each of ``texts`` means the same as one of ``others``."""
    by_meaning = {meaning: other for other in others for meaning in _meanings(other)}
    pairs = [(text, next((by_meaning[each] for each in _meanings(text) if each in by_meaning), "")) for text in texts]
    return pairs[0] if pairs and all(other for _, other in pairs) else None


def _meanings(text: str) -> set[Hashable]:
    """What is left of a text without its outer spaces, invisible characters, and ways to write a letter or a number.

    A comma may be a decimal one or stand between thousands.
    """
    text = _plain(text)
    numbers = [text] if _NUMBER.fullmatch(text) else []
    if _DECIMAL_COMMA.fullmatch(text):
        numbers.append(text.replace(",", "."))
    if thousands := _THOUSANDS.fullmatch(text):
        numbers.append(text.replace(thousands[1], ""))
    return {Decimal(number) for number in numbers} or {text}


def _plain(text: str) -> str:
    if text.isascii():
        return " ".join(text.split())
    text = unicodedata.normalize("NFKC", text).translate(_DRAWN_ALIKE)
    text = "".join(
        str(unicodedata.decimal(letter)) if letter.isdecimal() else letter
        for letter in text
        if unicodedata.category(letter) != "Cf"
    )
    return " ".join(text.split())


def _are_hashes(alike: list[str]) -> bool:
    """Whether texts such as 0e12 and 0e34 are numbers by chance alone: hexadecimal ones all have one length."""
    return any("e" in text.casefold() for text in alike) and all(
        re.fullmatch("[0-9a-fA-F]+", text) and len(text) == len(alike[0]) for text in alike
    )


def _difference(alike: list[str]) -> str:
    plain = [_plain(text) for text in alike]
    if len({text.casefold() for text in alike}) == 1:
        return "case"
    if len({"".join(text.split()) for text in alike}) == 1 and len(set(plain)) == 1:
        return "spaces"
    if len(set(plain)) > 1 and any(map(_NUMBER.fullmatch, plain)):
        return "how a number is written"
    return SAME_LOOK
