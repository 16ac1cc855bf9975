"""The figures of a report as svg whose colours and letters are the page's own, by day and by night."""

import io
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.report.evaluation import Evaluation
from common.report.page import Html
from common.score.calibration import reliability
from common.sweep.law import Law
from common.sweep.picture import batch_size_colours, draw_losses, draw_parabolas, draw_ridge, draw_seconds, draw_tried

# Stand-ins: in the svg each becomes the page's variable of that name.
INK, MUTED, RULE, ACCENT, SECOND = "#010101", "#010102", "#010103", "#010104", "#010105"
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent", SECOND: "second"}
LOOK = {
    "svg.fonttype": "none",  # letters stay letters
    "text.parse_math": False,  # a $ in a run's name is a $
    "font.size": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.03,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
SIZE = (4.6, 2.9)  # inches: read at its own size on a phone, two side by side on a desk
MOST_POINTS = 2_000  # rows that are drawn one by one
FEWEST = 20  # rows of a bin that is drawn
LONGEST = 20  # letters of a name beside a figure


def drawn(
    draw: Callable[..., None], *what: Any, size: tuple[float, float] = SIZE, name: str = "", panels: int = 1
) -> Html:
    """The svg of ``draw(axes, *what)``, ``size`` in inches; ``name`` keeps its inner references apart from others'."""
    with matplotlib.rc_context(LOOK | {"svg.hashsalt": f"{draw.__name__} {name}"}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(1, panels), *what)
        return svg(figure)


def svg(figure: Figure) -> Html:
    """A figure as an element of a page; the same figure always gives the same text."""
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # other figures of the page use the same names
    text = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", text))
    text = re.sub(r">\s+<", "><", text)
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return Html(text)


# ---- one run


def fold_curves(
    axes: Axes,
    run: Evaluation,
    values: Callable[[pd.DataFrame], pd.Series],
    colour: str = ACCENT,
    label: str | None = None,
) -> pd.Series:
    """``values`` of each fold's log after each epoch, thin, and their mean, strong; returns those of all folds."""
    for log in run.logs:
        axes.plot(log.epoch, values(log), color=colour, alpha=0.35, linewidth=1)
    logs = pd.concat(run.logs)
    mean = values(logs).groupby(logs.epoch).mean()
    axes.plot(mean.index, mean, color=colour, marker="o", markersize=3.5, label=label)
    epochs_axis(axes, mean.index)
    return values(logs)


def metric_curves(axes: Axes, run: Evaluation, metric: str) -> None:
    """A metric after each epoch."""
    logarithmic(axes, fold_curves(axes, run, lambda log: log[metric]))
    axes.set_ylabel(metric)


def predicted_against_true(axes: Axes, run: Evaluation, column: int) -> None:
    """A point for each of at most 2,000 rows, and the line on which predictions are right."""
    rows = np.random.default_rng(0).permutation(len(run.oof.ids))[:MOST_POINTS]
    true, said = run.answers.targets[rows, column], run.answers.predicted[rows, column]
    ends = [min(true.min(), said.min()), max(true.max(), said.max())]
    axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle="--")
    axes.plot(true, said, "o", color=ACCENT, markersize=2, alpha=0.4, linewidth=0)
    axes.set_xlabel(f"{run.oof.output_names[column]}, true")
    axes.set_ylabel("predicted")


def error_curves(axes: Axes, run: Evaluation) -> None:
    """Share of errors after each epoch."""
    logarithmic(axes, fold_curves(axes, run, lambda log: 100 * (1 - log.accuracy)))
    axes.set_ylabel("% wrong")


def loss_curves(axes: Axes, run: Evaluation) -> None:
    """Training and, where it is the same, validation loss after each epoch."""
    held_out = [] if run.oof.task.is_number else [("nll", ACCENT, "held out")]
    for column, colour, label in [("train_loss", SECOND, "training"), *held_out]:
        fold_curves(axes, run, operator.itemgetter(column), colour, label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("loss, nats" if held_out else "loss, in deviations of the target")
    axes.legend(loc="upper right")


def rate_curve(axes: Axes, run: Evaluation) -> None:
    """The learning rate at the end of each epoch."""
    log = run.logs[0]
    axes.plot(log.epoch, log.lr, color=INK, marker="o", markersize=3.5)
    epochs_axis(axes, log.epoch)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")


def reliability_curves(axes: Axes, run: Evaluation) -> None:
    """Accuracy against confidence, drawn by what is missing to 100 %, so that 99 and 99.9 % lie apart."""
    ticks = np.array([0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001])
    axes.plot([0.7, 0.0004], [0.7, 0.0004], color=MUTED, linewidth=1, linestyle="--")
    for calibrated, colour, label in ((False, SECOND, "as trained"), (True, ACCENT, "after temperature")):
        bins = reliability(run.confidence(calibrated), ~run.answers.costs)
        bins = bins[bins.n >= FEWEST]
        missing = np.maximum(1 - bins.accuracy, 0.5 / bins.n)  # a bin without an error has no logarithm
        low, high = np.maximum(missing - (1 - bins.high), 0), np.maximum(1 - bins.low - missing, 0)
        axes.errorbar(1 - bins.confidence, missing, [low, high], color=colour, fmt="o-", ms=3.5, lw=1.2, label=label)
    axes.set(xscale="log", yscale="log", xlim=(0.7, 0.0004), ylim=(0.9, 0.00005))
    names = [f"{100 * (1 - tick):g}" for tick in ticks]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.minorticks_off()
    axes.set_xlabel("said: % sure")
    axes.set_ylabel("% right")
    axes.legend(loc="lower right")


def epochs_axis(axes: Axes, epochs: Sequence[int]) -> None:
    """Whole epochs only."""
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.grid(False, axis="x")
    if len(epochs) == 1:
        axes.set_xlim(0, 2)


def logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic scale whose ticks are plain numbers, for values of which some may be 0."""
    values = np.asarray(values, dtype=float)
    if not (values > 0).all() or values.max() < 2 * values.min():
        return
    axes.set_yscale("log")
    steps = np.array([1, 2, 5]) * 10.0 ** np.arange(-4, 3)[:, None]
    ticks = [tick for tick in steps.ravel() if values.min() / 1.3 <= tick <= values.max() * 1.3]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


# ---- several runs


def intervals(axes: Axes, names: Sequence[str], values: np.ndarray, zero: bool, floor: float) -> None:
    """A line per name: a point with its interval; values are (value, low, high) each.

    ``zero`` draws the line of no difference, and ``floor`` around it what another seed alone does.
    """
    places = -np.arange(len(names))
    if zero:
        axes.axvline(0, color=MUTED, linewidth=1)
    if floor:
        axes.axvspan(-floor, floor, color=SECOND, alpha=0.15, linewidth=0)
    axes.hlines(places, values[:, 1], values[:, 2], color=ACCENT, linewidth=1.6)
    axes.plot(values[:, 0], places, "o", color=ACCENT, markersize=5)
    axes.set_yticks(places, [name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in names], color=INK)
    axes.set_ylim(places[-1] - 0.6, 0.6)
    axes.spines.left.set_visible(False)


# ---- a sweep


def sweep_panels(cells: pd.DataFrame, law: Law, found: Sequence[dict[str, Any]], name: str) -> list[Html]:
    """The panels of the sweep's own picture, one below the other, in its own colours; ``found`` are range tests."""
    colours = batch_size_colours(cells)
    panels = [(draw_ridge, law, found), (draw_tried, cells, law), (draw_parabolas, cells, law, colours)]
    drawings = [drawn(draw, *what, size=(8, 4.6), name=name) for draw, *what in panels]
    return [*drawings, drawn(draw_costs, cells, law, colours, size=(8, 3), name=name, panels=2)]


def draw_costs(axes: Sequence[Axes], cells: pd.DataFrame, law: Law, colours: dict[int, Any]) -> None:
    """What each batch size reaches and what it takes."""
    draw_losses(axes[0], law, colours)
    draw_seconds(axes[1], cells, colours)
