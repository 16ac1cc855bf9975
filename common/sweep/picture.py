"""Pictures: of a sweep (what was tried, where the best learning rates lie, how sure that is), and of a batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common.base.files import write_figure
from common.sweep.law import Law
from common.sweep.parabolas import FITTED, MIN_STEPS, WORST, fates
from common.sweep.verdict import sentences

INK, GREY, PALE = "#222222", "#777777", "#bbbbbb"
LINE, SURGE, OTHERS = "#c2410c", "#1d4ed8", "#7e22ce"  # the fitted line, the surge curve, other methods
BOX = 0.42  # half the side of a cell, in doublings: neighbours x2 apart do not touch


def draw_sweep(path: Path, cells: pd.DataFrame, law: Law, title: str, found: Sequence[dict[str, Any]] = ()) -> None:
    """Write the figure as png.

    ``cells`` is the sweep's table, ``law`` its fit, ``found`` the range tests (batch_size, lr, noise_scale).
    """
    figure = Figure(figsize=(15, 10.5), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06, wspace=0.03)
    panels = figure.subplot_mosaic([["tried", "tried", "ridge", "ridge"], ["parabolas", "parabolas", "loss", "time"]])
    verdict, about_curve, *_ = sentences(law)
    below = [f"{title}; {len(cells)} runs, {cells.seconds.sum() / 60:.0f} minutes"]
    if law.surges:
        below.insert(0, about_curve)
    figure.suptitle(f"{verdict[0].upper()}{verdict[1:]}" + "\n" * len(below), fontsize=15, color=INK)
    figure.text(0.5, 0.97, "\n".join(below), ha="center", va="top", fontsize=11, color=GREY)
    colours = batch_size_colours(cells)
    draw_tried(panels["tried"], cells, law)
    draw_ridge(panels["ridge"], law, found)
    draw_parabolas(panels["parabolas"], cells, law, colours)
    draw_losses(panels["loss"], law, colours)
    draw_seconds(panels["time"], cells, colours)
    write_figure(path, figure)


def batch_size_colours(cells: pd.DataFrame) -> dict[int, Any]:
    """A colour for each batch size, from dark to light."""
    sizes = sorted(set(cells.batch_size.tolist()))
    return dict(zip(sizes, colormaps["viridis"](np.linspace(0, 0.92, len(sizes))), strict=True))


def draw_tried(axes: Axes, cells: pd.DataFrame, law: Law) -> None:
    """Every cell as a box with its loss; what was not fitted looks different."""
    axes.set_title("What was tried: log loss of each cell (dark is good)", loc="left")
    best = cells.nll_calibrated.min()
    norm, colours = LogNorm(best, WORST * best, clip=True), colormaps["YlGnBu_r"]
    for (batch_size, lr), same in cells.groupby(["batch_size", "lr"]):
        x, y = np.log2(batch_size), np.log2(lr)
        done = same[same.status == "done"]
        if not len(done):
            look = {"facecolor": "none", "edgecolor": INK, "hatch": "////"}
            words = {"s": same.status.iloc[0], "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}
        else:
            shade, short = norm(done.nll_calibrated.mean()), (done.steps < MIN_STEPS).any()
            look = {"facecolor": "none", "linestyle": ":"} if short else {"facecolor": colours(shade)}
            look["edgecolor"] = PALE
            repeats = f" x{len(done)}" if len(done) > 1 else ""
            words = {
                "s": f"{done.nll_calibrated.mean():.3f}{repeats}",
                "color": "white" if shade < 0.45 and not short else INK,
            }
        axes.add_patch(Rectangle((x - BOX, y - BOX), 2 * BOX, 2 * BOX, **look))
        axes.text(x, y, ha="center", va="center", fontsize=8, **words)
    for batch_size, optimum in zip(law.batch_sizes, law.optima, strict=True):
        for side, marker in ((-1, ">"), (1, "<")):
            axes.plot(np.log2(batch_size) + side * (BOX + 0.02), np.log2(optimum.value), marker, color=LINE)
    axes.plot([], [], ">", color=LINE, label="fitted optimum")
    if (cells.status != "done").any():
        axes.add_patch(Rectangle((0, 0), 0, 0, facecolor="none", edgecolor=INK, hatch="////", label="no result"))
    if (cells.steps < MIN_STEPS).any():
        label = f"under {MIN_STEPS} steps, not fitted"
        axes.add_patch(Rectangle((0, 0), 0, 0, facecolor="none", edgecolor=GREY, linestyle=":", label=label))
    axes.legend(loc="lower right", fontsize=9)
    sizes, lrs = np.log2(sorted(cells.batch_size.unique())), np.log2(cells.lr)
    axes.set_xlim(sizes.min() - 0.7, sizes.max() + 0.7)
    axes.set_ylim(lrs.min() - 0.9, lrs.max() + 0.9)
    axes.set_xticks(sizes, [f"{2**size:.0f}" for size in sizes])
    powers = np.arange(np.ceil(lrs.min() * np.log10(2)), np.floor(lrs.max() * np.log10(2)) + 1)
    axes.set_yticks(powers / np.log10(2), [f"{10.0**power:g}" for power in powers])
    axes.set_xlabel("batch size")
    axes.set_ylabel("learning rate")


def draw_ridge(axes: Axes, law: Law, found: Sequence[dict[str, Any]]) -> None:
    """The optimum of each batch size and the curves through them."""
    axes.set_title("Where the best learning rate lies (bars and band: 95 %)", loc="left")
    sizes = np.geomspace(law.batch_sizes[0] / 1.3, law.batch_sizes[-1] * 1.3, 60)
    line, curve = ([each.optimum(size) for size in sizes] for each in (law.line, law.surge))
    values = np.array([each.value for each in line])
    middle = float(np.exp(np.log(law.batch_sizes).mean()))
    for slope, dashes, name in ((0.5, "-.", "square root (0.5)"), (1.0, "--", "linear (1)")):
        rule = law.line.optimum(middle).value * (sizes / middle) ** slope
        axes.plot(sizes, rule, color=PALE, linewidth=2.5, linestyle=dashes, label=name)
    better, colour = (curve, SURGE) if law.surges else (line, LINE)
    band = [each.low for each in better], [each.high for each in better]
    axes.fill_between(sizes, *band, color=colour, alpha=0.13, lw=0)
    slope = f"{law.slope.value:.2f} [{law.slope.low:.2f}, {law.slope.high:.2f}]"
    strong, weak = {"linewidth": 2, "linestyle": "-"}, {"linewidth": 1.2, "linestyle": ":"}
    looks = (weak, strong) if law.surges else (strong, weak)
    axes.plot(sizes, values, color=LINE, label=f"fitted line, slope {slope}", **looks[0])
    label = f"surge curve (AIC {-law.surge_gain:+.1f} against the line)"
    axes.plot(sizes, [each.value for each in curve], color=SURGE, label=label, **looks[1])
    best, low, high = np.array([(each.value, each.low, each.high) for each in law.optima]).T
    label = "best learning rate of each batch size"
    axes.errorbar(
        law.batch_sizes, best, [best - low, high - best], fmt="o", color=INK, capsize=4, label=label, zorder=5
    )
    for number, each in enumerate(found):
        label = "" if number else "range test (sweep.py find)"
        axes.plot(each["batch_size"], each["lr"], "D", color=OTHERS, label=label)
        if each["noise_scale"] > 0:
            label = f"gradient noise scale {each['noise_scale']:.0f}, measured beside it"
            axes.axvline(each["noise_scale"], color=OTHERS, linewidth=1, linestyle=":", label=label)
    axes.set_ylim(min(best.min(), values.min()) / 6, max(best.max(), values.max()) * 6)
    axes.set_xlim(sizes[0], sizes[-1])
    batch_size_axis(axes, law.batch_sizes)
    rate_axis(axes.yaxis)
    axes.legend(loc="best", fontsize=9)


def draw_parabolas(axes: Axes, cells: pd.DataFrame, law: Law, colours: dict[int, Any]) -> None:
    """The runs of each batch size and the parabola fitted to them."""
    axes.set_title("The parabolas behind it (hollow: not fitted)", loc="left")
    fate = fates(cells)
    for batch_size, colour in colours.items():
        own = (cells.batch_size == batch_size).to_numpy()
        fitted, rest = cells[own & (fate == FITTED)], cells[own & (fate != FITTED)]
        axes.plot(fitted.lr, fitted.nll_calibrated, "o", color=colour, markersize=5, label=str(batch_size))
        axes.plot(rest.lr, rest.nll_calibrated, "o", color=colour, markersize=5, alpha=0.5, markerfacecolor="none")
        if len(fitted):
            lrs = np.geomspace(fitted.lr.min() / 1.5, fitted.lr.max() * 1.5, 80)
            axes.plot(lrs, law.parabola(batch_size, lrs), color=colour, linewidth=1.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = law.cells.nll_calibrated.min(), law.cells.nll_calibrated.max()
    axes.set_ylim(low / 1.15, high * 1.3)
    ticks = np.geomspace(low, high, 6)
    axes.set_yticks(ticks, [f"{tick:.3f}" for tick in ticks])
    axes.yaxis.minorticks_off()
    rate_axis(axes.xaxis)
    axes.set_ylabel("log loss of the held-out fold")
    axes.legend(title="batch size", fontsize=9, ncols=2, loc="upper right")


def draw_losses(axes: Axes, law: Law, colours: dict[int, Any]) -> None:
    """What each batch size reaches with its own best learning rate."""
    axes.set_title("Lowest log loss", loc="left")
    counts = law.cells.batch_size.value_counts()
    tried = law.cells.groupby(["batch_size", "lr"]).nll_calibrated.mean().groupby("batch_size").min()
    axes.plot(tried.index, tried, "_", color=INK, label="best cell")
    axes.plot([], [], "o", color=GREY, label="of the parabola")
    axes.legend(fontsize=9, loc="upper left")
    for batch_size, loss in zip(law.batch_sizes, law.parabolas.losses, strict=True):
        error = 2 * law.noise / np.sqrt(counts[batch_size])
        ends = [[loss * -np.expm1(-error)], [loss * np.expm1(error)]]
        axes.errorbar(batch_size, loss, ends, fmt="o", capsize=4, color=colours[batch_size])
    axes.set_xlim(law.batch_sizes[0] / 1.5, law.batch_sizes[-1] * 1.5)
    batch_size_axis(axes, law.batch_sizes)


def draw_seconds(axes: Axes, cells: pd.DataFrame, colours: dict[int, Any]) -> None:
    """What an epoch costs: the real reason to choose a batch size."""
    axes.set_title("Seconds per epoch", loc="left")
    seconds = cells.groupby("batch_size").seconds_per_epoch.median().dropna()
    axes.bar(range(len(seconds)), seconds, color=[colours[size] for size in seconds.index])
    axes.set_xticks(range(len(seconds)), [str(size) for size in seconds.index])
    axes.set_xlabel("batch size")


def batch_size_axis(axes: Axes, batch_sizes: Sequence[int]) -> None:
    """A logarithmic axis that names the batch sizes."""
    axes.set_xscale("log")
    axes.set_xticks(list(batch_sizes), [str(size) for size in batch_sizes])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("batch size")


def rate_axis(axis: Axis) -> None:
    """A logarithmic axis of learning rates, in plain numbers."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")
    axis.set_label_text("learning rate")
