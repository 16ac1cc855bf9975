"""A picture of several sweeps fitted at once: the best learning rate over the batch size, and over the steps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.base.files import write_figure
from common.sweep.joint import Joint, shared_slope
from common.sweep.picture import GREY, INK, PALE, batch_size_axis, rate_axis
from common.sweep.regression import Estimate


def draw_joint(path: Path, joint: Joint) -> None:
    """Write the figure as png."""
    figure = Figure(figsize=(14, 6.5) if joint.is_crossed else (8, 6.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, 2 if joint.is_crossed else 1, sharey=True))
    figure.suptitle(title_of(joint), fontsize=12, color=INK)
    sizes, steps = joint.batch_sizes, joint.steps
    if joint.is_crossed:
        surface = joint.surface()
        about = joint.about_steps
        groups = {f"{count:g} steps": about == count for count in np.unique(about)}
        draw_optima(axes[0], joint, sizes, groups, lambda size, own: surface.optimum(size, steps[own][0]))
        groups = {f"{size} images": sizes == size for size in np.unique(sizes)}
        draw_optima(axes[1], joint, steps, groups, lambda count, own: surface.optimum(sizes[own][0], count))
        axes[1].set_title("... and over the steps, one line a batch size", loc="left")
        batch_size_axis(axes[1], np.unique(about).astype(int).tolist())
        axes[1].set_xlabel("optimiser steps")
        axes[1].set_ylabel("")
    else:
        groups = {name: joint.studies == number for number, name in enumerate(joint.names)}
        draw_optima(axes[0], joint, sizes, groups)
    axes[0].set_title("Best learning rate over the batch size (bars: 95 %; grey: square root)", loc="left")
    draw_square_root(axes[0], joint)
    batch_size_axis(axes[0], np.unique(sizes).tolist())
    write_figure(path, figure)


def title_of(joint: Joint) -> str:
    """What the F tests say of batch size and steps; of studies that do not cross them, the slope."""
    if joint.is_crossed:
        p = joint.p_values()
        causes = {"the steps": p["steps have no part"], "the batch size": p["batch size has no part"]}
        shown = [f"{cause} (p = {value:.2g})" for cause, value in causes.items() if value < 0.05]
        return f"What the best learning rate depends on, by F tests: {' and '.join(shown) or 'nothing that is shown'}"
    about_slope = shared_slope(joint)
    return f"{about_slope[0].upper()}{about_slope[1:]}"


def draw_optima(
    axes: Axes,
    joint: Joint,
    along: np.ndarray,
    groups: dict[str, np.ndarray],
    curve: Callable[[float, np.ndarray], Estimate] | None = None,
) -> None:
    """The optimum of each batch size of each study over ``along``, a colour a group, and a fitted curve through it."""
    best, low, high = np.array([(each.value, each.low, each.high) for each in joint.parabolas.optima]).T
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(groups)))
    for number, ((name, own), colour) in enumerate(zip(groups.items(), colours, strict=True)):
        moved = along[own] * 1.03 ** (number - len(groups) / 2)  # so that the bars lie side by side
        ends = [best[own] - low[own], high[own] - best[own]]
        axes.errorbar(moved, best[own], ends, fmt="o", color=colour, capsize=4, label=name)
        if curve:
            places = np.geomspace(along[own].min(), along[own].max(), 40)
            axes.plot(places, [curve(place, own).value for place in places], color=colour)
        else:
            axes.plot(moved, best[own], color=colour, linewidth=0.8)
    axes.set_ylim(best.min() / 4, best.max() * 4)
    rate_axis(axes.yaxis)
    axes.legend(fontsize=9, labelcolor=GREY)


def draw_square_root(axes: Axes, joint: Joint) -> None:
    """Lines that rise like the square root of the batch size."""
    sizes = np.array([joint.batch_sizes.min(), joint.batch_sizes.max()], dtype=float)
    best = [each.value for each in joint.parabolas.optima]
    for start in np.geomspace(min(best) / 2, max(best) * 2, 5):
        axes.plot(sizes, start * np.sqrt(sizes / sizes[0]), color=PALE, linewidth=0.8, linestyle="--", zorder=0)
