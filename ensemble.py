"""Blend runs of one folds file: learn one weight per run on their OOF predictions and score the blend honestly.

    python ensemble.py                                              # every finished run below runs/
    python ensemble.py --runs tf_efficientnet_b0 convnext_atto --weights 0.7 0.3

Writes runs/ensemble/: weights.json, oof.npz and, where every run has its test.npz, test.npz and submission.csv.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from common.cli import parse
from common.errors import UserError, run_script, warn
from common.files import write_json
from common.metrics import describe, errors, interval, log_mean_probability, log_softmax, nll, score
from common.predictions import Predictions, join_oof, read_predictions, rows_in_order, write_predictions
from common.runs import OOF_FILE, SUBMISSION_FILE, TEST_FILE, WEIGHTS_FILE, finished_folds, finished_runs
from common.splits import Folds, read_folds
from common.submission import read_form, write_submission
from common.system import locked

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Options:
    """Blend runs by weights learned on their OOF predictions: python ensemble.py --runs A B"""

    runs: tuple[str, ...] = ()  # names of the runs to blend (default: all that have finished every fold)
    folds: str = "folds.csv"  # the folds file they were trained with
    runs_dir: str = "runs"  # folder that holds every run
    run: str = "ensemble"  # name of the blend: its folder below runs_dir
    method: Literal["softmax", "mean", "hand", "best"] = "softmax"  # whose blend is written
    weights: tuple[float, ...] = ()  # weights by hand, one per run in the order of --runs, scaled to sum to 1
    sample: str = ""  # the competition's sample submission (csv)


# ---------------------------------------------------------------------------------------------------------------------
# Methods. Each is fitted on the predictions of m runs, logits (m, n, classes), and targets (n), and gives a blend: a
# function of the logits of the same runs on any rows, (m, rows, classes) -> log probabilities (rows, classes).


@dataclass(frozen=True)
class WeightedMean:
    """The log of the weighted mean probability; the weights (m) sum to 1."""

    weights: np.ndarray

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return log_mean_probability(logits, self.weights)


Method = Callable[[np.ndarray, np.ndarray], WeightedMean]


def best_single(logits: np.ndarray, targets: np.ndarray) -> WeightedMean:
    """The run with the fewest errors, at a tie with the lower log loss."""
    order = [(errors(member, targets), nll(member, targets)) for member in logits]
    return WeightedMean(np.eye(len(logits))[order.index(min(order))])


def mean(logits: np.ndarray, targets: np.ndarray) -> WeightedMean:
    """The same weight for every run; nothing is learned."""
    return WeightedMean(np.full(len(logits), 1 / len(logits)))


def softmax_weights(logits: np.ndarray, targets: np.ndarray) -> WeightedMean:
    """The weights that minimise the log loss of the mixture, trained until they stand still.

    The loss is convex in the weights, so the start decides only what identical runs get: equal shares.
    """
    import torch

    rows = np.arange(len(targets))
    of_target = torch.from_numpy(np.stack([log_softmax(member)[rows, targets] for member in logits], axis=1))
    model = ensemble_model(len(logits))
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=1000, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> "torch.Tensor":
        optimizer.zero_grad()
        value = -model(of_target).mean()  # nll of the mixture: only the target's probability enters it
        value.backward()
        return value

    optimizer.step(loss)
    return WeightedMean(torch.softmax(model.weights.detach(), dim=-1).numpy())


def ensemble_model(members: int) -> "torch.nn.Module":
    """The learnable mixture: log probabilities (..., members) -> log of their weighted mean (...), float64.

    It starts at equal weights (a random start gives another blend each time it is stopped early), and stays in logs,
    where no probability is too small.
    """
    import torch

    class EnsembleModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.Parameter(torch.zeros(members, dtype=torch.float64))

        def forward(self, log_probabilities: torch.Tensor) -> torch.Tensor:
            return torch.logsumexp(log_probabilities + torch.log_softmax(self.weights, dim=-1), dim=-1)

    return EnsembleModel()


def by_hand(weights: Sequence[float]) -> Method:
    """The method that always answers with these weights, scaled to sum to 1."""
    shares = np.asarray(weights) / np.sum(weights)
    return lambda logits, targets: WeightedMean(shares)


METHODS: dict[str, Method] = {
    "best": best_single,
    "mean": mean,
    "softmax": softmax_weights,
}


# ---------------------------------------------------------------------------------------------------------------------
# Scores.


def nested(method: Method, logits: np.ndarray, targets: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Log probabilities (n, classes) where each fold's rows come from a blend fitted on the other folds' rows."""
    blended = np.empty(logits.shape[1:], dtype=np.float32)
    for held_out in np.unique(fold):
        others, rows = fold != held_out, fold == held_out
        blended[rows] = method(logits[:, others], targets[others])(logits[:, rows])
    return blended


def result(log_probabilities: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """The score with the accuracy's 95 % interval."""
    found = score(log_probabilities, targets)
    return found | {"interval": list(interval(found["errors"], found["n"]))}


def compared(
    name: str, in_sample: np.ndarray, targets: np.ndarray, held_out: np.ndarray | None = None
) -> dict[str, Any]:
    """One row of the table; ``held_out`` holds the nested predictions, None where one fold allows none."""
    row = {"name": name, "in_sample": result(in_sample, targets)}
    return row if held_out is None else row | {"nested": result(held_out, targets)}


def table_text(rows: Sequence[dict[str, Any]], n: int) -> str:
    """The comparison as aligned text, one row per method and run."""
    parts = ["in_sample", "nested"] if "nested" in rows[0] else ["in_sample"]
    width = max(len("OOF rows"), *(len(row["name"]) for row in rows))
    titles = {
        "in_sample": f"in-sample: fitted and scored on all {n:,} rows",
        "nested": "nested: each fold by a fit on the others",
    }
    columns = f"{'errors':>8}  {'accuracy':>9}  {'95 % interval':>17}  {'log loss':>8}"
    lines = [
        "   ".join([" " * width, *(f"{titles[part]:^{len(columns)}}" for part in parts)]).rstrip(),
        "   ".join([f"{'OOF rows':<{width}}", *[columns] * len(parts)]),
    ]
    for row in rows:
        cells = []
        for part in parts:
            low, high = row[part]["interval"]
            between = f"{100 * low:.3f} - {100 * high:.3f}"
            accuracy = f"{100 * row[part]['accuracy']:.3f} %"
            cells.append(f"{row[part]['errors']:>8,}  {accuracy:>9}  {between:>17}  {row[part]['nll']:>8.5f}")
        lines.append("   ".join([f"{row['name']:<{width}}", *cells]))
    if "nested" not in parts:
        lines.append("No nested score: the folds file is a holdout, so no other fold is left to fit a blend on.")
        lines.append("In-sample flatters what is learned (softmax, best).")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Inputs: all are read and checked before anything is fitted or written.


def chosen_runs(cfg: Options) -> list[str]:
    """The runs to blend, every one finished; raises UserError where a name or the number is wrong."""
    if any((Path(cfg.runs_dir) / cfg.run).glob("fold*")):
        raise UserError("--run", f"{cfg.run} is a training run", "give the blend another name")
    runs = list(cfg.runs) or finished_runs(Path(cfg.runs_dir))
    for name in runs:
        if runs.count(name) > 1:
            raise UserError("--runs", f"{name} is named twice", "name each run once")
        finished_folds(Path(cfg.runs_dir) / name)
    if len(runs) < 2:
        found = f"{len(runs)} run{'s' * (len(runs) != 1)} ({', '.join(runs) or 'none'})"
        remedy = "train a second one, all folds (train_fold.py --fold all --run NAME)"
        raise UserError(cfg.runs_dir, f"a blend needs two finished runs, there is {found}", remedy)
    return runs


def check_weights(cfg: Options, runs: Sequence[str]) -> None:
    """Raise UserError unless the weights by hand, if there are any, are one number >= 0 for each run."""
    if not cfg.weights:
        if cfg.method == "hand":
            raise UserError(
                "--method hand", "there are no weights", f"add --weights, one for each of {', '.join(runs)}"
            )
        return
    if len(cfg.weights) != len(runs):
        what = f"{len(cfg.weights)} weights for {len(runs)} runs"
        raise UserError("--weights", what, f"give one for each of {', '.join(runs)}, in this order")
    if not np.isfinite(cfg.weights).all() or min(cfg.weights) < 0 or not sum(cfg.weights):
        raise UserError("--weights", f"{' '.join(map(str, cfg.weights))}", "each must be 0 or more, one above 0")


def read_tests(cfg: Options, runs: Sequence[str], folds: Folds) -> list[Predictions]:
    """The runs' test predictions in one row order; empty, with a warning, where a run has none."""
    paths = [Path(cfg.runs_dir) / run / TEST_FILE for run in runs]
    missing = [run for run, path in zip(runs, paths, strict=True) if not path.is_file()]
    if missing:
        unused = " (--sample has no effect)" if cfg.sample else ""
        what = f"no test predictions of {', '.join(missing)}, so no submission{unused}"
        warn(f"{what}; run: python infer.py --runs {' '.join(missing)}")
        return []
    tests = [read_predictions(path) for path in paths]
    for path, test in zip(paths, tests, strict=True):
        if test.classes != folds.classes:
            what = f"has the classes {', '.join(test.classes)}, the folds {', '.join(folds.classes)}"
            raise UserError(str(path), what, "run infer.py again for this run")
    tests = [rows_in_order(test, tests[0].ids, str(path)) for path, test in zip(paths, tests, strict=True)]
    if cfg.sample:  # a wrong one is said before anything is fitted
        read_form(cfg.sample, tests[0].ids, tests[0].classes)
    return tests


# ---------------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    cfg = parse(Options, argv)
    folds = read_folds(Path(cfg.folds))
    runs = chosen_runs(cfg)
    check_weights(cfg, runs)
    members = [join_oof(Path(cfg.runs_dir) / run, folds) for run in runs]
    tests = read_tests(cfg, runs, folds)

    logits = np.stack([member.logits for member in members])
    targets, fold = members[0].targets, members[0].fold
    methods = dict(METHODS)
    if cfg.weights:
        methods["hand"] = by_hand(cfg.weights)
        if not np.isclose(sum(cfg.weights), 1):
            print(f"--weights sum to {sum(cfg.weights):g}: scaled to sum to 1")
    blends = {name: method(logits, targets) for name, method in methods.items()}
    # Nested predictions are OOF like every run's own: made by something that has not seen the row.
    if folds.count > 1:
        held_out = {name: nested(method, logits, targets, fold) for name, method in methods.items()}
    else:
        held_out = {}
    rows = [compared(name, blend(logits), targets, held_out.get(name)) for name, blend in blends.items()]
    # Nothing is fitted on a run by itself, so its nested score is the same number.
    rows += [
        compared(f"run {run}", own, targets, own if held_out else None) for run, own in zip(runs, logits, strict=True)
    ]
    print(table_text(rows, len(targets)))
    print()
    print(weights_text(runs, blends))

    folder = Path(cfg.runs_dir) / cfg.run
    blend = blends[cfg.method]
    with locked(folder):
        # An earlier blend's files would otherwise lie beside weights they were not made with.
        for name in (WEIGHTS_FILE, TEST_FILE, SUBMISSION_FILE):
            (folder / name).unlink(missing_ok=True)
        first = members[0]
        oof_logits = held_out[cfg.method] if held_out else blend(logits)
        oof = Predictions(first.ids, oof_logits, first.classes, first.labels, fold)
        write_predictions(folder / OOF_FILE, oof)
        if tests:
            test = Predictions(
                tests[0].ids,
                blend(np.stack([member.logits for member in tests])),
                tests[0].classes,
                tests[0].labels,
                id_name=tests[0].id_name,
                label_name=tests[0].label_name,
            )
            write_predictions(folder / TEST_FILE, test)
            write_submission(folder / SUBMISSION_FILE, test, cfg.sample, oof.predicted)
        summary = {
            "method": cfg.method,
            "weights": {run: float(weight) for run, weight in zip(runs, blend.weights, strict=True)},
            "folds_fingerprint": folds.fingerprint,
            "oof": "nested" if held_out else "in-sample",
            "table": rows,
        }
        write_json(folder / WEIGHTS_FILE, summary)

    print()
    if tests and len(test.labels):
        print(f"test accuracy of {cfg.method}: {describe(score(test.logits, test.targets))}")
    written = [OOF_FILE, WEIGHTS_FILE] + [TEST_FILE, SUBMISSION_FILE] * bool(tests)
    print(f"wrote {', '.join(str(folder / name) for name in written)}")


def weights_text(runs: Sequence[str], blends: dict[str, WeightedMean]) -> str:
    """The weights of each method as aligned text, one row per run."""
    width = max(len("weights"), *map(len, runs))
    lines = [f"{'weights':<{width}}" + "".join(f"{name:>10}" for name in blends)]
    for position, run in enumerate(runs):
        lines.append(f"{run:<{width}}" + "".join(f"{blend.weights[position]:>10.4f}" for blend in blends.values()))
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
