"""Does a learning rate carry from study to study? python -m benchmarks.carried

For each pair of the committed sweeps: the law of one moves the other's best learning rate at 32 images to each of its
other batch sizes, as it is and with the turn at the other's own noise scale. A factor is how far that is from what was
fitted there, whichever of the two is larger; batch sizes whose best learning rate is not told to a factor of two are
left out. Below stand the same factors of two cheaper ways to a best learning rate: three runs, and the range test.
The figure asks what the turn goes with, beyond which the best learning rate falls: the noise scale or the images seen.
Writes benchmarks/carried.md and docs/sweeps/turns.png.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import read_json, write_figure, write_file
from common.sweep.cells import FIND_FILE, noise_scale_in, read_cells
from common.sweep.law import Law, fit_law
from common.sweep.picture import INK, PALE
from common.sweep.regression import Estimate

REPORT = Path(__file__).with_suffix(".md")
SWEEPS = Path(__file__).parents[1] / "docs/sweeps"
FIGURE = SWEEPS / "turns.png"
TUNED_AT = 32
TOLD = 1.0  # doublings to either side
STUDIES = ("adamw", "sgd", "length/epochs1", "length/epochs4", "nets/atto", "nets/photos", "nets/b0")


@dataclass(frozen=True)
class Options:
    """Move the best learning rates of committed sweeps by one another's laws"""

    studies: tuple[str, ...] = STUDIES  # folders below docs/sweeps


@dataclass(frozen=True)
class Study:
    """A committed sweep."""

    name: str

    @cached_property
    def law(self) -> Law:
        """Fitted to its table."""
        return fit_law(read_cells(SWEEPS / self.name))

    @cached_property
    def best(self) -> dict[int, float]:
        """The best learning rate of each batch size for which it is told."""
        found = zip(self.law.batch_sizes.tolist(), self.law.optima, strict=True)
        return {size: each.value for size, each in found if each.low > 0 and each.doublings <= TOLD}

    @cached_property
    def range_tests(self) -> list[dict]:
        """What `sweep.py find` said."""
        return [read_json(path) for path in sorted((SWEEPS / self.name).glob(FIND_FILE.format("*")))]

    @property
    def noise_scale(self) -> float:
        """In images, early in a training; NaN where it was not measured."""
        return noise_scale_in(SWEEPS / self.name) or math.nan

    @property
    def images(self) -> float:
        """Images that a run sees."""
        return float((self.law.cells.steps * self.law.cells.batch_size).max())

    @property
    def turn(self) -> Estimate:
        """The batch size beyond which the best learning rate falls."""
        return self.law.surge_top[1]

    def of_three_runs(self) -> float:
        """The lowest point of the parabola through the best run of ``TUNED_AT`` and those with x4 less and more."""
        cells = self.law.cells.query(f"batch_size == {TUNED_AT}").groupby("lr").nll_calibrated.first()
        x, best = np.log2(cells.index.to_numpy()), int(cells.to_numpy().argmin())
        three = [best, *(int(np.abs(x - x[best] - step).argmin()) for step in (-2, 2))]
        if len(set(three)) < 3:
            return math.nan
        square, linear, _ = np.polyfit(x[three], np.log(cells.to_numpy()[three]), 2)
        return 2 ** (-linear / (2 * square))


def factors(source: Study, to: Study, scale: float) -> list[float]:
    """Of each batch size of ``to``: how far its best rate is from the one that the law of ``source`` carries there.

    ``scale`` is the source's noise scale in units of the other's; 0: the square root instead of the law.
    """
    found = []
    for size, best in to.best.items():
        ratio = source.law.ratio(TUNED_AT * scale, size * scale).value if scale else math.sqrt(size / TUNED_AT)
        if size != TUNED_AT:
            found.append(off(to.best[TUNED_AT] * ratio, best))
    return found


def off(told: float, true: float) -> float:
    """How far one is from the other: a factor of 1 or more."""
    return max(told / true, true / told)


def draw_turns(studies: Sequence[Study]) -> None:
    """The turn of each study over its noise scale, and over the images that its runs see.

    Of a study without a turn its largest batch size is drawn, as an arrow; the left panel lacks one whose
    noise scale was not told.
    """
    figure = Figure(figsize=(13, 6), layout="constrained")
    figure.suptitle("The batch size beyond which the best learning rate falls (bars: 95 %)", fontsize=13, color=INK)
    turning = [study for study in studies if study.law.surges]
    one_number = math.exp(np.mean([math.log(study.images / study.turn.value) for study in turning]))
    panels = (
        ("... over the gradient noise scale (line: equal)", "noise_scale", 1.0),
        (f"... over the images of a run (line: {one_number:.0f} steps)", "images", one_number),
    )
    for axes, (title, along, ratio) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for number, study in enumerate(studies):
            turn, colour = study.turn, f"C{number}"  # of matplotlib's own ten
            place = getattr(study, along) * 1.01 ** (number - len(studies) / 2)  # so that the bars lie side by side
            if study in turning:
                ends = [[turn.value - turn.low], [turn.high - turn.value]]
                axes.errorbar(place, turn.value, ends, fmt="o", color=colour, capsize=4, label=study.name)
            else:
                axes.plot(place, study.law.batch_sizes.max(), "^", color=colour, label=f"{study.name}: none up to here")
        places = [getattr(study, along) for study in studies]
        line = np.array([np.nanmin(places) / 1.5, np.nanmax(places) * 1.5])
        axes.plot(line, line / ratio, color=PALE, linestyle="--", zorder=0)
        axes.set(xscale="log", yscale="log", xlabel="images")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:,.0f}")
            axis.set_minor_formatter("")
        axes.set_title(title, loc="left")
    figure.axes[0].legend(fontsize=9, loc="lower right")
    write_figure(FIGURE, figure)


def in_words(found: Sequence[float]) -> str:
    """Median and largest of some factors; nothing where they are not known."""
    words = f"x{np.median(found):.2f}" + (f" (x{max(found):.1f})" if len(found) > 1 else "")
    return "" if np.isnan(found).any() else words


def main() -> None:
    studies = [Study(name) for name in parse(Options).studies]
    told = [study for study in studies if TUNED_AT in study.best and len(study.best) > 1]
    lines = [
        f"| law of | carries from {TUNED_AT} images | as it is | turn at its noise scale | square root |",
        "|---" * 5 + "|",
    ]
    for source, to in product(studies, told):
        if source != to:
            ways = [factors(source, to, scale) for scale in (1.0, source.noise_scale / to.noise_scale, 0.0)]
            lines.append(f"| {source.name} | {to.name} | {' | '.join(map(in_words, ways))} |")
    lines += ["", f"| study | three runs at {TUNED_AT} images | range test |", "|---" * 3 + "|"]
    for study in studies:
        three = off(study.of_three_runs(), study.best.get(TUNED_AT, math.nan))
        tests = [off(found["lr"], study.law.predict(found["batch_size"]).value) for found in study.range_tests]
        lines.append(f"| {study.name} | {' | '.join(map(in_words, ([three], tests or [math.nan])))} |")
    about = "`python -m benchmarks.carried`: how far carried rates are off fitted ones, as a factor: median (largest)."
    text = f"# Does a learning rate carry from study to study?\n\n{about}\n\n" + "\n".join(lines) + "\n"
    write_file(REPORT, text)
    draw_turns(studies)
    print(text)


if __name__ == "__main__":
    run_script(main)
