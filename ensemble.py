"""Blend runs of one folds file, compare every way of doing it honestly, and write the one that holds up.

    python ensemble.py                                              # every finished run below runs/
    python ensemble.py --runs tf_efficientnet_b0 convnext_atto --shares 0.7 0.3

Writes runs/ensemble/: weights.json, oof.npz and, where every run has its test.npz, test.npz and submission.csv.
"""

import common  # noqa: F401  # isort: skip

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.base.cli import parse
from common.base.errors import UserError, run_script, warn
from common.base.files import check_folder, write_json
from common.base.locks import locked
from common.base.result import Result
from common.data.competition import competition_flags, next_command, told
from common.data.folds import Folds, read_folds
from common.runs.added import add_run
from common.runs.decision import check_clip, clipped, learned_decision
from common.runs.forms import Sheet
from common.runs.layout import (
    OOF_FILE,
    SUBMISSION_FILE,
    TEST_FILE,
    WEIGHTS_FILE,
    finished_folds,
    finished_runs,
    run_names,
)
from common.runs.members import Member, alike_members, in_one_form, metric_of, read_member, read_members
from common.runs.oof import units_of
from common.runs.predictions import Predictions, side_by_side, write_predictions
from common.runs.submission import Submitting, keep_earlier, write_submission
from common.score.blend_study import (
    Study,
    blend_table,
    interval_metric,
    noise_control,
    noise_text,
    study_blends,
    table_text,
    weights_text,
    worth,
    worth_text,
)
from common.score.blending import BLENDS, OofOutputs, TemperedMean, unusable
from common.score.leaderboard import BLEND_ERROR, BY_ERRORS, metric_in_words, of_a_blend, worth_in_words
from common.score.logits import Outputs
from common.score.metrics import check_metric, describe, what_lacks
from common.score.nesting import noise_members, smallest_set
from common.score.task import posed


@dataclass(frozen=True)
class Options(Submitting):
    """Blend runs by what their OOF predictions say: python ensemble.py --runs A B"""

    COMMON = (
        "runs",
        "work",
        "method",
        "shares",
        "sample",
        "metric",
        "submit",
        "submission",
        "out_dir",
        "add",
    )
    # runs and places
    OLD_FLAGS = {"--weights": "--shares"}
    runs: tuple[str, ...] = ()  # names of the runs to blend (default: all that have finished every fold)
    work: str = "."  # folder of one competition, short for --folds DIR/folds.csv --runs-dir DIR/runs
    folds: str = "folds.csv"  # the folds file they were trained with
    runs_dir: str = "runs"  # folder that holds every run
    run: str = "ensemble"  # name of the blend: its folder below runs_dir
    # the blend
    method: str = "auto"  # which blend to write (auto: the mean, unless another beats it in the nested comparison)
    shares: tuple[float, ...] = ()  # weights by hand, one per run in the order of --runs, scaled to sum to 1
    noise: int = 10  # control: add this many members of pure noise and report what they change (0: off)
    metric: str = ""  # what runs and blends are judged by (default: what the runs were trained by)
    add: tuple[str, ...] = ()  # NAME OOF.csv TEST.csv: make a run of predictions made elsewhere, and blend nothing
    out_dir: str = ""  # folder for the blend's own folder (default: runs_dir; set it where that is read-only)

    @property
    def folder(self) -> Path:
        """Where the blend is written."""
        return Path(self.out_dir or self.runs_dir) / self.run

    def member(self, run: str) -> Member:
        """A run; infer.py has written its predictions below --out-dir, or else beside it."""
        folder, elsewhere = Path(self.runs_dir) / run, Path(self.out_dir or self.runs_dir) / run
        return read_member(folder, elsewhere if (elsewhere / TEST_FILE).is_file() else folder)


@dataclass(frozen=True)
class Inputs:
    """All that is read, checked."""

    members: list[Member]
    folds_fingerprint: str
    data: OofOutputs
    oof: Predictions  # the first run's, on the columns of ``data``
    tests: list[Predictions]  # in one row order; empty where a run has none
    tta: dict[str, str]  # test-time augmentation of the runs that have any: all of ``data`` is predicted under it
    sheet: Sheet | None  # what the submission must look like; None without ``tests``

    @property
    def runs(self) -> list[str]:
        """The names of the runs."""
        return [each.name for each in self.members]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, competition_flags)
    run(options)
    print(next_command("report.py", options))


def run(options: Options) -> Result:
    """Compare the ways to blend, print them, and write the blend asked for.

    The result's score is the blend's on the OOF rows: nested where there is more than one fold.

    Raises:
        UserError: runs, weights, predictions or a sample that do not belong together.
    """
    options = told(options)
    if options.add:
        return add_predictions(options)
    inputs = read_inputs(options)
    runs, data = inputs.runs, inputs.data
    study = study_blends(data, options.method)
    facts: dict[str, Any] = {"table": blend_table(runs, data, study), "chosen_in_folds": study.choice.in_fold}
    print(table_text(facts["table"], len(data.targets), data.judged_by, data.task))
    print(f"\n{weights_text(runs, study.blends)}\n")
    found = data.task.score(study.outputs, data.targets, data.names, data.judged_by)
    if study.tried:
        facts |= worth_of_runs(options, inputs, study)
        how = f"chosen in the folds: {study.choice.summary}; " if options.method == "auto" else ""
        print(f"\n{options.method} ({how}written: {study.method}), nested: {describe(found, data.judged_by)}")

    # What averaging fold models gains in the blend's accuracy, as far as infer.py estimated it of its runs; 0: unknown.
    gain = of_a_blend([each.inference.get("averaging_gain", 0.0) for each in inputs.members])
    test = write_blend(options, inputs, study, facts | {"averaging_gain": gain})
    if not data.task.is_number:
        print(f"temperature {study.temperature:.3f}, fitted on OOF rows; it changes probabilities, no label")
    if test and len(test.labels):
        said = describe(test.score(data.judged_by), data.judged_by)
        print(f"test {data.task.metrics[0]} of {study.method}: {said}")
    if test and data.task.is_one_of:
        right, models = 1.0 - data.answers(study.outputs).costs, len(runs) * len(np.unique(data.fold))
        print(worth_in_words(right, len(test.ids), models, gain, BLEND_ERROR))
    if test and (metric := interval_metric(data.judged_by, data.task)) not in BY_ERRORS:
        print(metric_in_words(metric, data.answers(study.tempered), len(test.ids)))
    written = [OOF_FILE, WEIGHTS_FILE, *((TEST_FILE, SUBMISSION_FILE) if test else ())]
    print(f"wrote {', '.join(str(options.folder / name) for name in written)}")
    return Result(found, options.folder)


def add_predictions(options: Options) -> Result:
    """Make a run of the two csv files that --add names; the result's score is that of its OOF rows."""
    if len(options.add) != 3:
        raise UserError("--add", f"has {len(options.add)} values", "name the run, the OOF rows' csv and the test's")
    name, oof_csv, test_csv = options.add
    folder = Path(options.runs_dir) / name
    oof = add_run(folder, Path(oof_csv), Path(test_csv), folds_of(options))
    found = oof.score(options.metric)
    print(f"{folder}: {describe(found, options.metric)}; that these rows are out of fold is taken on trust")
    return Result(found, folder)


def folds_of(options: Options) -> Folds:
    """The folds, with the class that is looked for where a flag says it."""
    folds = read_folds(Path(options.folds))
    return replace(folds, task=posed(folds.task.name, options.positive)) if options.positive else folds


def worth_of_runs(options: Options, inputs: Inputs, study: Study) -> dict[str, Any]:
    """Print what each run adds to the blend, which few do as well and what noise changes; returns it as facts."""
    runs, data = inputs.runs, inputs.data
    seconds = [each.inference.get("seconds_per_1000_rows", 0.0) for each in inputs.members]
    of_each = worth(study.method, runs, seconds, data)
    print(worth_text(of_each, study.method, data.task))
    smallest = [runs[position] for position in smallest_set(data, study.tempered)]
    if smallest:
        print(f"the smallest set whose mean comes within one standard error of it: {', '.join(smallest)}")
    else:
        print("no smaller set of runs has a mean within one standard error of it")
    facts: dict[str, Any] = {"runs": of_each, "smallest_set": smallest}
    if options.noise:
        noise = noise_members(data.outputs.values, options.noise, inputs.oof.columns, len(inputs.oof.output_names))
        facts["noise"] = noise_control(options.method, data, noise, study.tempered)
        print(noise_text(facts["noise"], data.task))
    return facts


def write_blend(options: Options, inputs: Inputs, study: Study, facts: dict[str, Any]) -> Predictions | None:
    """Write all files of the blend, ``facts`` into weights.json; returns its test predictions, None without any."""
    folder, blend, test = options.folder, study.blends[study.method], None
    with locked(folder):
        # An earlier blend's files would otherwise lie beside weights they were not made with.
        for name in (WEIGHTS_FILE, TEST_FILE):
            (folder / name).unlink(missing_ok=True)
        if not inputs.tests:
            keep_earlier(folder / SUBMISSION_FILE)
            (folder / SUBMISSION_FILE).unlink(missing_ok=True)
        oof = replace(inputs.oof, logits=study.tempered.values, source={})
        if oof.task.decisions:
            learned = learned_decision([oof], inputs.data.judged_by)
            oof = replace(oof, decision=learned.decision)
            if learned.text:
                print(learned.text)
        write_predictions(folder / OOF_FILE, oof)
        if inputs.tests:
            columns, test = side_by_side(inputs.tests)
            blended = blend(Outputs(np.stack(columns), test.others)) / study.temperature
            test = replace(test, logits=blended.values, source={})
            test = replace(test, form=inputs.sheet.as_stored, decision=oof.decision)
            test = clipped(options.run, test, [oof]) if options.clip else test
            write_predictions(folder / TEST_FILE, test)
            write_submission(folder / SUBMISSION_FILE, test, inputs.sheet, oof.predicted)
            if options.submission:
                write_submission(Path(options.submission), test, inputs.sheet)
        summary = {
            "method": study.method,
            "asked": options.method,
            "metric": inputs.data.judged_by,
            "weights": dict(zip(inputs.runs, blend.weights.tolist(), strict=False)),
            "temperature": study.temperature,
            "folds_fingerprint": inputs.folds_fingerprint,
            "oof": "nested" if study.tried else "in-sample",
            "tta": inputs.tta,
        }
        if isinstance(blend, TemperedMean):
            summary["run_temperatures"] = dict(zip(inputs.runs, blend.temperatures.tolist(), strict=True))
        write_json(folder / WEIGHTS_FILE, summary | facts)
    return test


# ---- inputs


def read_inputs(options: Options) -> Inputs:
    """Read and check everything before anything is fitted or written; raises UserError where something is wrong."""
    check_folder(options.folder, remedy="name another folder with --out-dir")
    options.check_place()
    folds = folds_of(options)
    if options.clip:
        check_clip(folds.task)
    runs = chosen_runs(options, folds)
    check_shares(options, runs)
    members = [options.member(run) for run in runs]
    metric = options.metric or metric_of(members)
    if metric:
        check_metric(metric, folds.output_names, folds.task.metrics)
    for each in members:
        if "added" in each.settings:
            print(f"{each.name} was added: which folds it was made with is not known")
    groups = alike_members(members)
    check_method(options, groups, folds, metric)
    tests, oofs = read_members(members, folds, options.noise)
    tta = {each.name: test.source["tta"] for each, test in zip(members, tests, strict=True) if test}
    tta = {run: preset for run, preset in tta.items() if preset != "none"}
    tests, oofs = in_one_form(members, all_tests(options, members, tests), oofs)
    columns, oof = side_by_side(oofs)
    if oof.is_short:
        check_method(options, groups, folds, metric, oof.others)
        kept = oof.columns.shape[1]
        said = f"of {len(folds.output_names):,} classes each row has {kept}, its runs' likeliest"
        print(f"{said}; the rest is spread evenly")
    outputs = Outputs(np.stack(columns), oof.others)
    names = () if oof.is_short else oof.output_names
    units = units_of(folds)
    data = OofOutputs(outputs, oof.places, oof.fold, groups, np.array(options.shares), folds.task, names, metric, units)
    if lacking := what_lacks(data.judged_by, data.answers(data.outputs[0])):
        raise UserError("--metric", f"{data.judged_by} needs {lacking}", "choose another")
    if tta:
        presets = ", ".join(f"{run} {preset}" for run, preset in tta.items())
        print(f"out-of-fold predictions under the test-time views that the test rows have: {presets}")
    sheet = what_is_asked(options, tests) if tests else None
    return Inputs(members, folds.fingerprint, data, oof, tests, tta, sheet)


def chosen_runs(options: Options, folds: Folds) -> list[str]:
    """The runs to blend, every one finished; raises UserError where a name or the number is wrong."""
    if any(options.folder.glob("fold*")):
        raise UserError("--run", f"{options.run} is a training run", "give the blend another name")
    runs_dir = Path(options.runs_dir)
    runs = list(run_names(runs_dir, options.runs)) or finished_runs(runs_dir, fingerprint=folds.fingerprint)
    for name in runs:
        if runs.count(name) > 1:
            raise UserError("--runs", f"{name} is named twice", "name each run once")
        finished_folds(Path(options.runs_dir) / name)
    if len(runs) < 2:
        found = f"{len(runs)} run{'s' * (len(runs) != 1)} ({', '.join(runs) or 'none'})"
        remedy = "train a second one, all folds (train_fold.py --fold all --run NAME)"
        raise UserError(options.runs_dir, f"a blend needs two finished runs, found {found}", remedy)
    return runs


def check_shares(options: Options, runs: Sequence[str]) -> None:
    """Raise UserError unless the weights by hand, if there are any, are one number >= 0 for each run."""
    if not options.shares:
        return
    if len(options.shares) != len(runs):
        what = f"{len(options.shares)} shares for {len(runs)} runs"
        raise UserError("--shares", what, f"give one for each of {', '.join(runs)}, in this order")
    if not np.isfinite(options.shares).all() or min(options.shares) < 0 or not sum(options.shares):
        raise UserError(
            "--shares", f"{' '.join(map(str, options.shares))} is not valid", "each must be 0 or more, one above 0"
        )
    if not np.isclose(sum(options.shares), 1):
        print(f"--shares sum to {sum(options.shares):g}: scaled to sum to 1")


def check_method(options: Options, groups: np.ndarray, folds: Folds, metric: str, others: int = 1) -> None:
    """Raise UserError unless the method asked for is auto or one that makes sense for these runs and the metric."""
    rows, classes = int((folds.fold >= 0).sum()), len(folds.output_names)
    reasons = unusable(groups, options.shares, rows, classes, others, folds.task, metric)
    if options.method not in ("auto", *BLENDS):
        raise UserError("--method", f"{options.method} is unknown", f"use one of: auto, {', '.join(BLENDS)}")
    if options.method in reasons:
        raise UserError(f"--method {options.method}", *reasons[options.method])


def all_tests(
    options: Options, members: Sequence[Member], tests: Sequence[Predictions | None]
) -> Sequence[Predictions]:
    """The test predictions; empty, with a warning, where a run has none."""
    missing = [each.name for each, test in zip(members, tests, strict=True) if test is None]
    if not missing:
        return tests
    unused = " (--sample has no effect)" if options.sample else ""
    what = f"no test predictions for {', '.join(missing)}, so no submission{unused}"
    presets = {test.source["tta"] for test in tests if test}
    tta = f" --tta {presets.pop()}, with --data and --folds" if len(presets) == 1 and presets != {"none"} else ""
    warn(f"{what}; run: python infer.py --runs {' '.join(missing)}{tta}")
    return []


def what_is_asked(options: Options, tests: Sequence[Predictions]) -> Sheet:
    """What the submission must look like: by the sample, or else as infer.py was told; said where it may surprise.

    Raises:
        UserError: a sample of no known form or of other rows; without one, runs whose submissions have several forms.
    """
    forms = [test.form for test in tests if test.form]
    if not options.sample and any(form != forms[0] for form in forms):
        what = "the runs' submissions have different forms"
        raise UserError("--sample", f"is missing: {what}", "name the sample submission, or run infer.py with it")
    first = replace(tests[0], form=forms[0] if forms else {})
    return options.sheet_for(first, options.metric)


if __name__ == "__main__":
    run_script(main)
