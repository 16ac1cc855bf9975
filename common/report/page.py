"""One html page that needs nothing beside it: elements, tables, pictures, and the sheet that sets them."""

import base64
import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from common.base.errors import UserError
from common.data.decoding import read_photo
from common.data.stacks import Stack, content_of
from common.score.metrics import METRICS, counted
from common.score.significance import says_p

STYLE = Path(__file__).with_suffix(".css")
EMPTY_ELEMENTS = ("img", "link", "meta")
PICTURES = 24  # of each kind
SHORT = 3  # letters of a class name that stands upright above its column
THUMBNAIL = 160  # longer side of a photo in the page, pixels


class Html(str):
    """Text that is markup already; any other text is escaped when it becomes part of an element."""


def element(name: str, /, *content: Any, **attributes: object) -> Html:
    """``<name attribute="...">content</name>``; ``class_`` becomes class, ``aria_label`` aria-label."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    if name in EMPTY_ELEMENTS:
        return Html(f"<{name}{words}>")
    return Html(f"<{name}{words}>{join(content)}</{name}>")


def join(content: Iterable[Any]) -> Html:
    """Elements and texts one after another."""
    return Html("".join(part if isinstance(part, Html) else html.escape(str(part), quote=False) for part in content))


@dataclass(frozen=True)
class Section:
    """A chapter of the page: what it says in short, what it shows, and its tables by name."""

    title: str
    body: Html
    findings: list[str] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


def chapter(title: str, parts: Sequence[Section]) -> Section:
    """Sections under one title; each that has a title of its own begins with it."""
    body = [part for each in parts for part in ([element("h3", each.title)] if each.title else []) + [each.body]]
    sentences = [sentence for each in parts for sentence in each.findings]
    return Section(title, join(body), sentences, {name: frame for each in parts for name, frame in each.tables.items()})


def page(title: str, about: str, sections: Sequence[Section]) -> str:
    """The whole file; the contents name every section."""
    anchors = [f"{number}-{slug(section.title)}" for number, section in enumerate(sections)]
    contents = [
        element("li", element("a", section.title, href=f"#{anchor}"))
        for anchor, section in zip(anchors, sections, strict=True)
    ]
    chapters = [
        element("section", element("h2", section.title, id=anchor), section.body)
        for anchor, section in zip(anchors, sections, strict=True)
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", Html(STYLE.read_text(encoding="utf-8"))),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("p", about, class_="about")),
        element("nav", element("ol", *contents), aria_label="Contents"),
        element("main", *chapters),
    )
    return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


def slug(text: str) -> str:
    """A name for anchors and files: letters, digits, dots and dashes."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.").lower() or "-"


def findings(sentences: Iterable[str]) -> Html:
    """Sentences as a ruled list."""
    return element("ul", *(element("li", sentence) for sentence in sentences), class_="findings")


def note(text: str) -> Html:
    """A paragraph that explains the figures around it."""
    return element("p", text, class_="note")


# ---- tables


def table(frame: pd.DataFrame, formats: Mapping[str, Callable[[Any], str]] = MappingProxyType({})) -> Html:
    """A data frame as a table: numbers to the right, in the form that their column's name, or ``formats``, asks for."""
    formats = {**FORMATS, **formats}
    numeric = {name: pd.api.types.is_numeric_dtype(frame[name]) for name in frame}
    kinds = {name: "number" if numeric[name] else "text" for name in frame}
    head = element("tr", *(element("th", heading(name), class_=kinds[name]) for name in frame))
    rows = [
        element(
            "tr",
            *(
                element("td", shown(value, formats.get(name)), class_=kinds[name])
                for name, value in zip(frame.columns, row, strict=True)
            ),
        )
        for row in frame.itertuples(index=False, name=None)
    ]
    return element("div", element("table", element("thead", head), element("tbody", *rows)), class_="scroll")


def text_table(frame: pd.DataFrame) -> str:
    """The same as aligned text."""
    cells = [[heading(name) for name in frame]]
    cells += [
        [shown(value, FORMATS.get(name)) for name, value in zip(frame, row, strict=True)]
        for row in frame.to_numpy(object)
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = [not pd.api.types.is_numeric_dtype(frame[name]) for name in frame]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if text else f"{cell:>{width}}"
            for cell, width, text in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in cells
    )


def heading(column: str) -> str:
    """A column's name as a person reads it."""
    return HEADINGS.get(column, column)


def shown(value: Any, form: Callable[[Any], str] | None = None) -> str:
    """A cell as a person reads it."""
    if isinstance(value, float) and np.isnan(value):
        return "–"
    if form:
        return form(value)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(value: float) -> str:
    """A share in percent, to the thousandth: one error of 42,000 is 0.002 points."""
    return f"{100 * value:.3f} %"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.3f}"


def is_share(metric: str) -> bool:
    """Whether a metric is shown in per cent."""
    return METRICS[metric].shown.endswith("%")


def in_full(metric: str) -> Callable[[Any], str]:
    """How the page shows a metric: with a digit more than other places do."""
    return percent if is_share(metric) else shown if METRICS[metric].shown == "g" else "{:.5f}".format


def difference(metric: str) -> Callable[[Any], str]:
    """How the page shows a difference of two values of a metric."""
    return points if is_share(metric) else "{:+.5f}".format


def matrix(counts: np.ndarray, names: Sequence[str]) -> Html:
    """Counts of (label, prediction) as a table in which more errors are darker."""
    off = counts.astype(float) * (1 - np.eye(len(counts)))
    shares = np.sqrt(off / max(1.0, off.max()))
    head = element("tr", element("th", ""), *(element("th", name, scope="col", title=name) for name in names))
    rows = []
    for at, name in enumerate(names):
        cells = [
            element("td", value or "", class_="hit")
            if other == at
            else element("td", value or "", style=f"--share: {shares[at, other]:.2f}")
            for other, value in enumerate(counts[at].tolist())
        ]
        rows.append(element("tr", element("th", name, scope="row", title=name), *cells))
    kind = "confusion names" if max(map(len, names)) > SHORT else "confusion"
    body = element("table", element("thead", head), element("tbody", *rows), class_=kind)
    return element("div", body, class_="scroll")


# ---- figures and pictures


def figures(*captioned: tuple[str, Html]) -> Html:
    """Figures side by side where there is room: (caption, svg) each."""
    return element(
        "div", *(element("figure", element("figcaption", caption), svg) for caption, svg in captioned), class_="figures"
    )


def sheet(svg: Html) -> Html:
    """A figure that keeps its own colours and size."""
    return element("figure", svg, class_="sheet")


def pictures(captioned: Iterable[tuple[np.ndarray | Path | Stack | None, Sequence[str]]]) -> Html:
    """Images in a grid, each with the lines below it; the first line is the strongest. None is lines alone."""
    shown_pictures, kind = [], "pixels"
    for image, (first, *others) in captioned:
        kind = "pixels" if image is None or isinstance(image, np.ndarray) else "photos"
        text = element("figcaption", element("b", first), *(element("span", line) for line in others))
        picture = [] if image is None else [element("img", src=data_uri(image), alt=first)]
        shown_pictures.append(element("figure", *picture, text))
    return element("div", *shown_pictures, class_=f"pictures {kind}")


def data_uri(image: np.ndarray | Path | Stack) -> str:
    """An image, uint8 (height, width) or a file, as text that a browser shows; photos become thumbnails."""
    content = io.BytesIO()
    if isinstance(image, np.ndarray):
        kind = "png"
        Image.fromarray(image).save(content, format=kind, optimize=True)
    else:
        kind = "jpeg"
        try:
            photo = read_photo(content_of(image), THUMBNAIL).convert("RGB")
        except ValueError as error:
            raise UserError(str(image), str(error), "restore the image") from error
        photo.thumbnail((THUMBNAIL, THUMBNAIL))
        photo.save(content, format=kind, quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


HEADINGS = {  # of the columns; a setting's or a run's own name stays as it is
    "low": "95 % from",
    "high": "to",
    "from": "95 % from",
    "fewer_errors": "fewer errors",
    "better_by": "better by",
    "best_epoch": "epoch",
    "best_minus_last": "best − last",
    "other_half": "other half’s choice",
    "others_choice": "others’ choice",
    "their_epoch": "epoch",
    "mean_confidence": "mean confidence",
    "mean_p": "mean p",
    "average_precision": "average precision",
    "calibration_error": "calibration error",
    "false_alarms": "false alarms",
    "batch_size": "batch size",
    "best_lr": "best lr",
    "to_the_mean": "to the mean",
    "errors_without_it": "more without",
    "nll_calibrated_without_it": "nll_calibrated",
    "seconds_per_1000": "s / 1,000 rows",
    "most_alike": "most alike",
    "shared_errors": "shares errors",
}
FORMATS: dict[str, Callable[[Any], str]] = {
    **{name: in_full(name) for name in METRICS},
    "low": percent,
    "high": percent,
    "recall": percent,
    "rate": percent,
    "mean_p": percent,
    "f1": percent,
    "auc": "{:.4f}".format,
    "average_precision": "{:.4f}".format,
    "precision": percent,
    "mean_confidence": percent,
    "calibration_error": percent,
    "nll_calibrated": "{:.5f}".format,
    "temperature": "{:.3f}".format,
    "weight": "{:.4f}".format,
    "probability": "{:.4f}".format,
    "minutes": "{:.1f}".format,
    "best_lr": "{:.2e}".format,
    "optimism": lambda value: counted(value, "+"),
    "to_the_mean": "{:+.5f}".format,
    "se": "{:.5f}".format,
    "errors_without_it": lambda value: counted(value, "+"),
    "nll_calibrated_without_it": "{:+.5f}".format,
    "shared_errors": "{:.0%}".format,
    "p": lambda p: says_p(p).removeprefix("p ").removeprefix("= "),
}
