"""Every way to blend tried on the same runs, their table, what each run is worth to the blend, and all as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.score.blending import BLENDS, Blend, OofOutputs, usable
from common.score.bootstrap import interval_of
from common.score.calibration import cross_fitted
from common.score.logits import Outputs, paired_difference
from common.score.metrics import METRICS, counted, in_table, score_of
from common.score.nesting import Choice, Tried, choose_nested, leave_one_out, overlap, try_method
from common.score.task import MULTICLASS, Task

LEARNED = ("best", "softmax", "convex", "tempered", "greedy", "stack")


@dataclass(frozen=True)
class Study:
    """What every usable method makes of the runs, by its name, and the blend that is taken."""

    blends: dict[str, Blend]  # fitted on all rows
    in_sample: dict[str, Outputs]  # (rows, columns): what they say of the rows that they were fitted on
    tried: dict[str, Tried]  # nested; empty with a single fold, where no other is left to fit on
    choice: Choice
    method: str  # of the blend that is taken
    outputs: Outputs  # (rows, columns): what it says, nested where there is more than one fold
    tempered: Outputs  # (rows, columns): the same after a temperature
    temperature: float  # of the blend on rows yet to come


def study_blends(data: OofOutputs, asked: str) -> Study:
    """Fit each method on all rows, and on some folds to be scored on another; take the one that is ``asked`` for.

    With ``auto`` the method is chosen nested, and with a single fold it is the mean.
    """
    blends = {name: BLENDS[name](data) for name in usable(data)}
    in_sample = {name: blend(data.outputs) for name, blend in blends.items()}
    if len(np.unique(data.fold)) == 1:
        method = "mean" if asked == "auto" else asked
        taken, scale = in_sample[method], data.task.calibrate(in_sample[method], data.targets)
        return Study(blends, in_sample, {}, Choice(method, [], taken, taken), method, taken, taken / scale, scale)
    # Nested predictions are OOF like every run's own: made by something that has not seen the row.
    tried = {name: try_method(BLENDS[name], data) for name in blends}
    choice = choose_nested(tried, data)
    method, taken = (choice.name, choice) if asked == "auto" else (asked, tried[asked])
    scale = tried[method].temperature
    return Study(blends, in_sample, tried, choice, method, taken.outputs, taken.tempered, scale)


# ---- the table


def blend_table(runs: Sequence[str], data: OofOutputs, study: Study) -> list[dict[str, Any]]:
    """One row for each blend, for the choice between them (auto), and for each run by itself; ``runs`` are names.

    With a single fold there is nothing nested in it.
    """
    if study.tried:
        sources = {name: (study.in_sample[name], each.outputs, each.tempered) for name, each in study.tried.items()}
        sources["auto"] = (study.in_sample[study.choice.name], study.choice.outputs, study.choice.tempered)
        # Nothing is fitted on a run by itself but its temperature.
        sources |= {
            f"run {run}": (own, own, cross_fitted(own, data.targets, data.fold, data.task))
            for run, own in zip(runs, data.outputs, strict=True)
        }
    else:
        alone = {f"run {run}": own for run, own in zip(runs, data.outputs, strict=True)}
        sources = {name: (found, None, None) for name, found in (study.in_sample | alone).items()}
    rows = []
    for name, (fitted, held_out, tempered) in sources.items():
        scale = data.task.calibrate(fitted, data.targets)
        row = {"name": name, "in_sample": _scored(fitted, fitted / scale, data, is_shown=held_out is None)}
        if held_out is not None:
            row["nested"] = _scored(held_out, tempered, data, is_shown=True)
            row["optimism"] = row["nested"][data.task.counted] - row["in_sample"][data.task.counted]
            own_losses = data.task.loss(tempered, data.targets)
            against = paired_difference(own_losses, study.tried["mean"].losses, data.units)
            row["against_mean"] = dict(zip(("difference", "standard_error"), against, strict=True))
        rows.append(row)
    return rows


def _scored(outputs: Outputs, tempered: Outputs, data: OofOutputs, is_shown: bool) -> dict[str, Any]:
    """The score, the metric's 95 % interval if it ``is_shown``, and the loss after the temperature."""
    answers, metric = data.answers(outputs), interval_metric(data.judged_by, data.task)
    found = score_of(answers, data.task.metrics, data.judged_by)
    if is_shown or METRICS[metric].interval:
        found["interval"] = list(interval_of(metric, answers, data.units if len(data.units) else None))
    return found | {data.task.compared: float(data.task.loss(tempered, data.targets).mean())}


def interval_metric(metric: str, task: Task) -> str:
    """The metric whose interval a table shows: of a number of errors that of the share."""
    return task.metrics[0] if metric in ("", "errors") else metric


def table_text(rows: Sequence[dict[str, Any]], n: int, metric: str = "", task: Task = MULTICLASS) -> str:
    """The table as aligned text, with ``metric`` in the place of the task's own."""
    count, loss, compared = task.counted, task.loss_metric, task.compared
    metric = interval_metric(metric, task)
    width, wide = max(len(row["name"]) for row in rows), max(10, len(metric))
    title = f"{n:,} OOF rows"

    def losses(found: Mapping[str, Any]) -> str:
        return f"{found[loss]:>9.5f}" + (f" {found[compared]:>10.5f}" if calibrated else "")

    width = max(width, len(title))
    calibrated = "" if compared == loss else f" {'calibrated':>10}"
    fitted = f"{count:>7} {loss:>9}{calibrated}"
    held_out = f"{count:>7} {metric:>{wide}} {'95 % interval':>17} {loss:>9}{calibrated}"
    lines = [f"{'':<{width}}  {'in-sample':^{len(fitted)}}", f"{title:<{width}}  {fitted}"]
    if "nested" in rows[0]:
        lines[0] += f"  {'nested: each fold by a fit on the others':^{len(held_out)}}  optimism  {compared:>18}"
        lines[1] += f"  {held_out}  {f'({count})':>8}  {'against the mean':>18}"
    for row in rows:
        found = row["in_sample"]
        line = f"{row['name']:<{width}}  {counted(found[count]):>7} {losses(found)}"
        if "nested" in row:
            found, against = row["nested"], row["against_mean"]
            between = " - ".join(in_table(metric, bound) for bound in found["interval"])
            line += f"  {counted(found[count]):>7} {in_table(metric, found[metric], ' %'):>{wide}} {between:>17}"
            line += f" {losses(found)}  {counted(row['optimism'], '+'):>8}"
            if row["name"] != "mean":
                line += f"  {against['difference']:>+8.5f} +- {against['standard_error']:.5f}"
        lines.append(line.rstrip())
    if calibrated:
        lines.append("calibrated (nll_calibrated): after one temperature, fitted after averaging")
    lines.append("+- is one standard error, paired by row")
    if "nested" not in rows[0]:
        lines.append("No nested score: the folds file is a holdout, so no other fold is left to fit a blend on.")
        lines.append(
            f"In-sample flatters what is learned ({', '.join(each for each in LEARNED if each in task.blends)})."
        )
    return "\n".join(lines)


def weights_text(runs: Sequence[str], blends: Mapping[str, Blend]) -> str:
    """The weights of each blend that has them, as aligned text, one row per run."""
    weighted = {name: blend.weights for name, blend in blends.items() if len(blend.weights)}
    width = max(len("weights"), *map(len, runs))
    lines = [f"{'weights':<{width}}" + "".join(f"{name:>11}" for name in weighted)]
    for position, run in enumerate(runs):
        lines.append(f"{run:<{width}}" + "".join(f"{weights[position]:>11.4f}" for weights in weighted.values()))
    return "\n".join(lines)


# ---- the worth of each run


def worth(method: str, runs: Sequence[str], seconds: Sequence[float], data: OofOutputs) -> list[dict[str, Any]]:
    """What each run adds to the blend by ``method``; ``seconds`` per 1,000 rows at inference, 0 where not recorded."""
    costs = data.task.cost(data.outputs, data.targets)
    overlaps = overlap(costs)
    rows = []
    for position, (run, without) in enumerate(zip(runs, leave_one_out(BLENDS[method], data), strict=True)):
        rest = [other for other in range(len(runs)) if other != position]
        nearest = max(rest, key=lambda other: overlaps[position, other])
        rows.append(
            {"run": run, "errors_alone": data.task.count(costs[position]).item(), "without": without}
            | {"nearest": runs[nearest], "overlap": float(overlaps[position, nearest])}
            | {"seconds_per_1000_rows": seconds[position]}
        )
    return rows


def worth_text(rows: Sequence[dict[str, Any]], method: str, task: Task = MULTICLASS) -> str:
    """What each run is worth, as aligned text."""
    width = max(len(row["run"]) for row in rows)
    without = f"without it ({method})"
    lines = [
        f"{'':<{width}}  {task.counted:>7}  {without:^30}  {'s / 1,000':>9}  errors it shares with",
        f"{'run':<{width}}  {'alone':>7}  {task.counted:>8} {task.compared:>21}  {'rows':>9}  the most similar run",
    ]
    for row in rows:
        cost = row["without"]
        loss = f"{cost['difference']:+.5f} +- {cost['standard_error']:.5f}"
        seconds = f"{row['seconds_per_1000_rows']:.2f}" if row["seconds_per_1000_rows"] else "-"
        alone, without = counted(row["errors_alone"]), counted(cost["errors"], "+")
        shared = f"{row['overlap']:.0%} {row['nearest']}"
        lines.append(f"{row['run']:<{width}}  {alone:>7}  {without:>8} {loss:>21}  {seconds:>9}  {shared}")
    idle = [row["run"] for row in rows if row["without"]["difference"] <= row["without"]["standard_error"] + 1e-9]
    if idle:
        which = f"any one of {', '.join(idle)}" if len(idle) > 1 else idle[0]
        lines.append(f"without {which} the blend's {task.compared} stays within one standard error")
    return "\n".join(lines)


# ---- the control


def noise_control(asked: str, data: OofOutputs, noise: np.ndarray, reported: Outputs) -> dict[str, Any]:
    """The same blend, or choice (``asked`` is auto), with members of ``noise`` against the ``reported`` one.

    Args:
        asked: name of a method, or auto.
        noise: (more, rows, columns), as :func:`common.score.nesting.noise_members` makes it.
        reported: nested outputs without the noise, after a temperature, (rows, columns).
    """
    noisy = data.with_noise(noise)
    if asked == "auto":
        names = [name for name in usable(data) if name in usable(noisy)]
        found = choose_nested({name: try_method(BLENDS[name], noisy) for name in names}, noisy)
    else:
        found = try_method(BLENDS[asked], noisy)
    with_noise, without = (data.task.loss(each, data.targets) for each in (found.tempered, reported))
    difference, standard_error = paired_difference(with_noise, without, data.units)
    return {
        "members": len(noise),
        "errors_without": data.task.count(data.task.cost(reported, data.targets)).item(),
        "errors_with": data.task.count(data.task.cost(found.tempered, data.targets)).item(),
        "difference": difference,
        "standard_error": standard_error,
        "verdict": noise_verdict(difference, standard_error),
    }


def noise_verdict(difference: float, standard_error: float) -> str:
    """Whether members of noise lower the nll by more than two standard errors, in words."""
    return "NOISE HELPS: do not trust this score" if difference < -2 * standard_error else "noise gains nothing"


def noise_text(found: Mapping[str, Any], task: Task = MULTICLASS) -> str:
    """The control in one line."""
    return (
        f"Control: with {found['members']} members of noise {counted(found['errors_with'])} {task.counted} instead of "
        f"{counted(found['errors_without'])}, {task.compared} {found['difference']:+.5f} +- "
        f"{found['standard_error']:.5f}: {found['verdict']}"
    )
