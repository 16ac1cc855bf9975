"""Draw every learning-rate schedule at its defaults: python -m benchmarks.schedules

The training is 30 epochs of 100 steps with 3 epochs of warm-up. plateau, which follows the scores, is drawn for scores
that stand still from epoch 8 on and rise once more at epoch 20. Writes docs/schedules.png.
"""

import io
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from common.base.cli import keyword_arguments
from common.base.errors import run_script
from common.base.files import write_file
from common.model.schedules import Length, create_schedule
from common.runs.choices import SCHEDULES
from common.sweep.picture import GREY, INK

FIGURE = Path(__file__).parents[1] / "docs" / "schedules.png"
LENGTH = Length(total=3000, warmup=300, epoch=100)
SCORES = [min(epoch, 8) / 10 + (epoch >= 20) / 10 for epoch in range(1, 31)]
ARGUMENTS = {"restarts": ("cycles=3", "t_mult=2")}  # where the default is less telling
SHARED = ("warmup-cosine", "cosine")  # in one panel: they differ in where the cosine begins


def main() -> None:
    figure = Figure(figsize=(12, 7), layout="constrained")
    groups = [SHARED, *((name,) for name in SCHEDULES if name not in SHARED)]
    panels = figure.subplots(2, 4, sharex=True, sharey=True).flat
    colours = colormaps["viridis"]([0.15, 0.6])
    steps = range(LENGTH.total + 300)
    for panel, names in zip(panels, groups, strict=True):
        for name, colour in zip(names, colours, strict=False):
            share = create_schedule(name, LENGTH, **keyword_arguments("schedule-args", ARGUMENTS.get(name, ())))
            shares = [share(step, SCORES[: step // LENGTH.epoch]) for step in steps]
            panel.plot([step / LENGTH.epoch for step in steps], shares, color=colour, label=name)
        panel.axvline(LENGTH.warmup / LENGTH.epoch, color=GREY, linewidth=0.6, linestyle=":")
        panel.axvspan(LENGTH.total / LENGTH.epoch, steps[-1] / LENGTH.epoch, color=GREY, alpha=0.15, linewidth=0)
        panel.set_title(" ".join([*names, *ARGUMENTS.get(names[0], ())]) if len(names) == 1 else "", color=INK)
        if len(names) > 1:
            panel.legend(frameon=False)
    figure.supxlabel("epoch (dotted: the warm-up ends; grey: past the end of training)", color=INK)
    figure.supylabel("share of --lr", color=INK)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90, metadata={"Software": None})
    write_file(FIGURE, content.getvalue())
    print(f"{FIGURE} written")


if __name__ == "__main__":
    run_script(main)
