"""What a law says: in plain sentences, and for law.json."""

import math
from typing import Any

from common.sweep.law import CLEAR, LAWS, Law
from common.sweep.regression import Estimate


def sentences(law: Law) -> list[str]:
    """What was found, in plain words: slope, curve, what a wrong learning rate costs, the runs behind it."""
    lines = [f"slope {law.slope.value:.2f} [{law.slope.low:.2f}, {law.slope.high:.2f}]: {_about_slope(law)}"]
    lines.append(_about_surge(law))
    if law.bend_p_value < 0.05 and not law.surges:
        lines.append(f"the optima leave the line by more than noise (p = {law.bend_p_value:.2g}): the slope is a mean")
    repeats = f" ({law.repeat_noise:.1%} between seeds)" if law.repeat_noise else ""
    costs = [f"{math.expm1(curvature):.1%}" for curvature in law.parabolas.curvatures]
    ends = f"{costs[0]} at batch size {law.batch_sizes[0]} and {costs[-1]} at {law.batch_sizes[-1]}"
    lines.append(
        f"a learning rate x2 off costs {costs[0] if law.parabolas.one_width else ends} of the loss; "
        f"one run scatters by {law.noise:.1%}{repeats}"
    )
    left_out = ", ".join(f"{count} {fate}" for fate, count in law.left_out.items())
    lines.append(f"{len(law.cells)} runs are fitted" + (f", left out: {left_out}" if left_out else ""))
    return lines


def _about_slope(law: Law) -> str:
    ruled_out = _listed([name for name in LAWS if name not in law.fitting])
    if law.surges:
        return "only a mean, the optima follow a curve"
    if law.more_runs:
        what = f"cannot tell {_listed(law.fitting)} apart" if len(law.fitting) > 1 else "too wide to tell"
        most = 10 * len(law.cells)
        return f"{what}; {f'about {law.more_runs}' if law.more_runs <= most else f'over {most}'} more runs would"
    if law.fitting:
        return f"{law.fitting[0]} fits, {ruled_out} are ruled out"
    return f"none of the laws fits: {ruled_out} are ruled out"


def _about_surge(law: Law) -> str:
    lr, size = law.surge_top
    aic = f"AIC {-law.surge_gain:+.1f}"
    if not law.surges:
        worse = "worse" if law.surge_gain <= -CLEAR else "no better"
        return f"the surge curve (rise and fall) fits {worse} than the line ({aic})"
    if law.batch_sizes[0] < size.value < law.batch_sizes[-1]:
        return (
            f"the best learning rate rises and falls: the surge curve beats the line ({aic}); its top is "
            f"{lr.value:.2g} [{lr.low:.2g}, {lr.high:.2g}] at batch size {size.value:.0f} "
            f"[{size.low:.0f}, {size.high:.0f}]"
        )
    side = "above" if size.value > law.batch_sizes[-1] else "below"
    return f"the line bends: the surge curve beats it ({aic}), its top lies {side} the batch sizes tried"


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def lr_text(best: Estimate) -> str:
    """A learning rate with its interval."""
    return f"{best.value:.2e} [{best.low:.2e}, {best.high:.2e}]"


def lr_json(best: Estimate) -> dict[str, Any]:
    """A learning rate with its interval, for law.json."""
    return {"lr": best.value, "lr_ci": [best.low, best.high]}


def law_json(law: Law) -> dict[str, Any]:
    """All that was found, for law.json."""
    own, (lr, size) = law.parabolas, law.surge_top
    optima = zip(law.batch_sizes.tolist(), own.optima, own.losses, own.curvatures.tolist(), strict=True)
    return {
        "slope": law.slope.value,
        "slope_ci": [law.slope.low, law.slope.high],
        "p_values": law.p_values,
        "fitting": law.fitting,
        "more_runs": law.more_runs,
        "optima": [
            {"batch_size": batch_size, "nll_calibrated": loss, "curvature": curvature} | lr_json(best)
            for batch_size, best, loss, curvature in optima
        ],
        "bend_p_value": law.bend_p_value,
        "surge": lr_json(lr)
        | {"aic_gain": law.surge_gain, "batch_size": size.value, "batch_size_ci": [size.low, size.high]},
        "one_curvature": own.one_width,
        "noise": law.noise,
        "repeat_noise": law.repeat_noise,
        "n_fitted": len(law.cells),
        "left_out": law.left_out,
        "verdict": sentences(law),
    }
