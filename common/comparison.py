"""The table of all blends and runs, what each run is worth to the blend, and both as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.blending import BLENDS, Blend, Members, unusable
from common.calibration import cross_fitted, temperature
from common.metrics import errors, interval, losses, nll, paired_difference, score
from common.nesting import Choice, Tried, choose_nested, leave_one_out, overlap, try_method

# ---- the table


def compare(
    runs: Sequence[str],
    logits: np.ndarray,
    in_sample: Mapping[str, np.ndarray],
    tried: Mapping[str, Tried],
    choice: Choice,
    targets: np.ndarray,
    fold: np.ndarray,
    others: int = 1,
) -> list[dict[str, Any]]:
    """One row for each blend, for the choice between them (auto), and for each run by itself.

    ``in_sample`` is fitted and scored on all rows; without ``tried`` (one fold) there is nothing nested. The logits'
    last column stands for ``others`` classes.
    """
    sources = {name: (in_sample[name], found.logits, found.tempered) for name, found in tried.items()}
    if tried:
        sources["auto"] = (in_sample[choice.name], choice.logits, choice.tempered)
        # Nothing is fitted on a run by itself but its temperature.
        sources |= {
            f"run {run}": (own, own, cross_fitted(own, targets, fold, others))
            for run, own in zip(runs, logits, strict=True)
        }
    else:
        alone = {f"run {run}": own for run, own in zip(runs, logits, strict=True)}
        sources = {name: (found, None, None) for name, found in (dict(in_sample) | alone).items()}
    rows = []
    for name, (fitted, held_out, tempered) in sources.items():
        scale = temperature(fitted, targets, others)
        row = {"name": name, "in_sample": _scored(fitted, fitted / scale, targets, others)}
        if held_out is not None:
            row["nested"] = _scored(held_out, tempered, targets, others)
            row["optimism"] = row["nested"]["errors"] - row["in_sample"]["errors"]
            against = paired_difference(losses(tempered, targets, others), tried["mean"].losses)
            row["against_mean"] = dict(zip(("difference", "standard_error"), against, strict=True))
        rows.append(row)
    return rows


def _scored(logits: np.ndarray, tempered: np.ndarray, targets: np.ndarray, others: int) -> dict[str, Any]:
    """The score with the accuracy's 95 % interval and the log loss after the temperature."""
    found = score(logits, targets, others)
    found["interval"] = list(interval(found["errors"], found["n"]))
    return found | {"tempered_nll": nll(tempered, targets, others)}


def table_text(rows: Sequence[dict[str, Any]], n: int) -> str:
    """The table as aligned text."""
    width = max(len(row["name"]) for row in rows)
    title = f"{n:,} OOF rows"
    width = max(width, len(title))
    fitted = f"{'errors':>7} {'log loss':>9} {'after T':>9}"
    held_out = f"{'errors':>7} {'accuracy':>10} {'95 % interval':>17} {'log loss':>9} {'after T':>9}"
    lines = [f"{'':<{width}}  {'in-sample':^{len(fitted)}}", f"{title:<{width}}  {fitted}"]
    if "nested" in rows[0]:
        lines[0] += f"  {'nested: each fold by a fit on the others':^{len(held_out)}}  optimism    log loss after T"
        lines[1] += f"  {held_out}  {'(errors)':>8}  {'against the mean':>18}"
    for row in rows:
        found = row["in_sample"]
        line = f"{row['name']:<{width}}  {found['errors']:>7,} {found['nll']:>9.5f} {found['tempered_nll']:>9.5f}"
        if "nested" in row:
            found, against = row["nested"], row["against_mean"]
            low, high = found["interval"]
            line += f"  {found['errors']:>7,} {100 * found['accuracy']:>8.3f} %"
            line += f" {f'{100 * low:.3f} - {100 * high:.3f}':>17} {found['nll']:>9.5f} {found['tempered_nll']:>9.5f}"
            line += f"  {row['optimism']:>+8,}"
            if row["name"] != "mean":
                line += f"  {against['difference']:>+8.5f} +- {against['standard_error']:.5f}"
        lines.append(line.rstrip())
    lines.append("T: one temperature, fitted after averaging; +- is one standard error, paired by row")
    if "nested" not in rows[0]:
        lines.append("No nested score: the folds file is a holdout, so no other fold is left to fit a blend on.")
        lines.append("In-sample flatters what is learned (best, softmax, tempered, greedy, stack).")
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


def worth(
    method: str,
    runs: Sequence[str],
    seconds: Sequence[float],
    logits: np.ndarray,
    targets: np.ndarray,
    members: Members,
    fold: np.ndarray,
) -> list[dict[str, Any]]:
    """What each run adds to the blend by ``method``; ``seconds`` per 1,000 rows at inference, 0 where not recorded."""
    overlaps = overlap(logits, targets)
    costs = leave_one_out(BLENDS[method], logits, targets, members, fold)
    rows = []
    for member, (run, cost) in enumerate(zip(runs, costs, strict=True)):
        others = [other for other in range(len(runs)) if other != member]
        nearest = max(others, key=lambda other: overlaps[member, other])
        rows.append(
            {"run": run, "errors_alone": errors(logits[member], targets), "without": cost}
            | {"nearest": runs[nearest], "overlap": float(overlaps[member, nearest])}
            | {"seconds_per_1000_rows": seconds[member]}
        )
    return rows


def worth_text(rows: Sequence[dict[str, Any]], method: str) -> str:
    """What each run is worth, as aligned text."""
    width = max(len(row["run"]) for row in rows)
    without = f"without it ({method})"
    lines = [
        f"{'':<{width}}  {'errors':>7}  {without:^30}  {'s / 1,000':>9}  errors it shares with",
        f"{'run':<{width}}  {'alone':>7}  {'errors':>8} {'log loss after T':>21}  {'rows':>9}  the most similar run",
    ]
    for row in rows:
        cost = row["without"]
        loss = f"{cost['difference']:+.5f} +- {cost['standard_error']:.5f}"
        seconds = f"{row['seconds_per_1000_rows']:.2f}" if row["seconds_per_1000_rows"] else "-"
        lines.append(
            f"{row['run']:<{width}}  {row['errors_alone']:>7,}  {cost['errors']:>+8,} {loss:>21}  {seconds:>9}"
            f"  {row['overlap']:.0%} {row['nearest']}"
        )
    idle = [row["run"] for row in rows if row["without"]["difference"] <= row["without"]["standard_error"] + 1e-9]
    if idle:
        lines.append(f"within one standard error the blend loses nothing without: {', '.join(idle)} (each by itself)")
    return "\n".join(lines)


# ---- the control


def noise_control(
    names: Sequence[str],
    asked: str,
    noise: np.ndarray,
    logits: np.ndarray,
    targets: np.ndarray,
    members: Members,
    fold: np.ndarray,
    reported: np.ndarray,
) -> dict[str, float]:
    """The same blend, or choice (``asked`` is auto), with members of ``noise`` against the ``reported`` one.

    ``reported`` are tempered nested log probabilities (n, classes).
    """
    noisy = np.concatenate([logits, noise])
    groups = np.concatenate([members.groups, members.groups.max() + 1 + np.arange(len(noise))])
    by_hand = np.concatenate([members.by_hand, np.zeros(len(noise))]) if len(members.by_hand) else members.by_hand
    crowd = Members(groups, by_hand, members.others)
    usable = [name for name in names if name == asked or name not in unusable(crowd, *logits.shape[1:])]
    tried = {name: try_method(BLENDS[name], noisy, targets, crowd, fold) for name in usable}
    found = choose_nested(tried, targets, fold) if asked == "auto" else tried[asked]
    with_noise, without = (losses(each, targets, members.others) for each in (found.tempered, reported))
    difference, standard_error = paired_difference(with_noise, without)
    return {
        "members": len(noise),
        "errors_without": errors(reported, targets),
        "errors_with": errors(found.tempered, targets),
        "difference": difference,
        "standard_error": standard_error,
    }


def noise_text(found: Mapping[str, float]) -> str:
    """The control in one line."""
    gained = found["difference"] < -2 * found["standard_error"]
    verdict = "NOISE HELPS: do not trust this score" if gained else "noise gains nothing"
    return (
        f"control: with {found['members']} members of noise {found['errors_with']:,} errors instead of "
        f"{found['errors_without']:,}, log loss {found['difference']:+.5f} +- {found['standard_error']:.5f}: {verdict}"
    )
