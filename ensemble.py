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
from common.base.files import check_folder, read_json, write_json
from common.base.locks import locked
from common.base.result import Result
from common.base.words import names_in_short
from common.data.competition import competition_flags, next_command, told
from common.data.folds import Folds, read_folds
from common.runs.added import add_run
from common.runs.decision import check_clip, clipped, learned_decision
from common.runs.forms import Sheet
from common.runs.layout import (
    CONFIG_FILE,
    INFERENCE_FILE,
    OOF_FILE,
    SUBMISSION_FILE,
    TEST_FILE,
    WEIGHTS_FILE,
    finished_folds,
    finished_runs,
    fold_folder,
    run_names,
)
from common.runs.oof import check_test_source, join_oof_like_test, units_of
from common.runs.predictions import (
    Predictions,
    kept_classes,
    read_predictions,
    rows_in_order,
    short_form,
    side_by_side,
    write_predictions,
)
from common.runs.submission import Wishes, form_line, keep_earlier, sheet_of, write_submission
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
class Options:
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
    # the submission
    sample: str = ""  # the competition's sample submission (csv)
    submit: str = ""  # form of the submission: label, probability, probabilities, top5 (default: the sample's)
    positive: str = ""  # class whose probability is asked for (default: told by the sample, or the second)
    separator: str = ""  # between the names of a label set (default: as the sample or the train table has it)
    clip: bool = False  # numbers: keep answers within the range of the training targets, and say how many were outside
    metric: str = ""  # what runs and blends are judged by (default: what the runs were trained by)
    add: tuple[str, ...] = ()  # NAME OOF.csv TEST.csv: make a run of predictions made elsewhere, and blend nothing
    out_dir: str = ""  # folder for the blend's own folder (default: runs_dir; set it where that is read-only)
    submission: str = ""  # write the submission here as well, such as /kaggle/working/submission.csv

    @property
    def folder(self) -> Path:
        """Where the blend is written."""
        return Path(self.out_dir or self.runs_dir) / self.run

    def inferred(self, run: str) -> Path:
        """Where infer.py has written a run's predictions: below --out-dir, or else beside the run."""
        elsewhere = Path(self.out_dir or self.runs_dir) / run
        return elsewhere if (elsewhere / TEST_FILE).is_file() else Path(self.runs_dir) / run


@dataclass(frozen=True)
class Inputs:
    """All that is read, checked."""

    runs: list[str]
    seconds: list[float]  # of each run at inference, per 1,000 rows; 0 where not recorded
    folds_fingerprint: str
    data: OofOutputs
    oof: Predictions  # the first run's, on the columns of ``data``
    tests: list[Predictions]  # in one row order; empty where a run has none
    tta: dict[str, str]  # test-time augmentation of the runs that have any: all of ``data`` is predicted under it
    sheet: Sheet | None  # what the submission must look like; None without ``tests``


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

    gain = gain_of_averaging(options, runs)
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


def gain_of_averaging(options: Options, runs: Sequence[str]) -> float:
    """What averaging fold models gains in the blend's accuracy, by what infer.py estimated of its runs; 0: unknown."""
    paths = [options.inferred(run) / INFERENCE_FILE for run in runs]
    return of_a_blend([read_json(path).get("averaging_gain", 0.0) if path.is_file() else 0.0 for path in paths])


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
    of_each = worth(study.method, runs, inputs.seconds, data)
    print(worth_text(of_each, study.method, data.task))
    smallest = [runs[position] for position in smallest_set(data, study.tempered)]
    if smallest:
        print(f"the smallest set whose mean comes within one standard error of it: {', '.join(smallest)}")
    else:
        print("no smaller set of runs has a mean within one standard error of it")
    facts: dict[str, Any] = {"runs": of_each, "smallest_set": smallest}
    if options.noise:
        noise = noise_members(data.outputs.values, options.noise, inputs.oof.columns, len(inputs.oof.classes))
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
    if options.submission:
        check_folder(Path(options.submission).parent)
    folds = folds_of(options)
    if options.clip:
        check_clip(folds.task)
    runs = chosen_runs(options, folds)
    check_shares(options, runs)
    metric = metric_of(options, runs)
    if metric:
        check_metric(metric, folds.classes, folds.task.metrics)
    groups = groups_of(options, runs)
    check_method(options, groups, folds, metric)
    tests, oofs, tta = read_runs(options, runs, folds)
    columns, oof = side_by_side(oofs)
    if oof.is_short:
        check_method(options, groups, folds, metric, oof.others)
        kept = oof.columns.shape[1]
        print(f"of {len(folds.classes):,} classes each row has {kept}, its runs' likeliest; the rest is spread evenly")
    outputs = Outputs(np.stack(columns), oof.others)
    names = () if oof.is_short else oof.classes
    units = units_of(folds)
    data = OofOutputs(outputs, oof.places, oof.fold, groups, np.array(options.shares), folds.task, names, metric, units)
    if lacking := what_lacks(data.judged_by, data.answers(data.outputs[0])):
        raise UserError("--metric", f"{data.judged_by} needs {lacking}", "choose another")
    if tta:
        presets = ", ".join(f"{run} {preset}" for run, preset in tta.items())
        print(f"out-of-fold predictions under the test-time views that the test rows have: {presets}")
    sheet = what_is_asked(options, tests) if tests else None
    return Inputs(runs, inference_seconds(options, runs), folds.fingerprint, data, oof, tests, tta, sheet)


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


def groups_of(options: Options, runs: Sequence[str]) -> np.ndarray:
    """The same number for runs of the same model with the same arguments, whatever else they were trained with."""
    models: list[tuple] = []
    for run in runs:
        path = fold_folder(Path(options.runs_dir) / run, 0) / CONFIG_FILE
        settings = read_json(path) if path.is_file() else {}
        if "added" in settings:
            print(f"{run} was added: which folds it was made with is not known")
        models.append((settings.get("model", run), tuple(settings.get("model_args", ()))))
    return np.array([models.index(model) for model in models])


def check_method(options: Options, groups: np.ndarray, folds: Folds, metric: str, others: int = 1) -> None:
    """Raise UserError unless the method asked for is auto or one that makes sense for these runs and the metric."""
    rows, classes = int((folds.fold >= 0).sum()), len(folds.classes)
    reasons = unusable(groups, options.shares, rows, classes, others, folds.task, metric)
    if options.method not in ("auto", *BLENDS):
        raise UserError("--method", f"{options.method} is unknown", f"use one of: auto, {', '.join(BLENDS)}")
    if options.method in reasons:
        raise UserError(f"--method {options.method}", *reasons[options.method])


def read_runs(
    options: Options, runs: Sequence[str], folds: Folds
) -> tuple[list[Predictions], list[Predictions], dict[str, str]]:
    """Test predictions in one row order (none where a run has none), OOF predictions of each run, and who has TTA.

    All are brought to one short form where one of them is in it, or where together they would not fit into memory.
    """
    rows, classes = int((folds.fold >= 0).sum()), len(folds.classes)
    kept = kept_classes(rows, classes, len(runs), options.noise)
    tests = read_tests(options, runs, folds, kept)
    oofs = [
        join_oof_like_test(Path(options.runs_dir) / run, folds, test, kept, options.inferred(run))
        for run, test in tests.items()
    ]
    tta = {run: test.source["tta"] for run, test in tests.items() if test and test.source["tta"] != "none"}
    tests = tests_in_one_order(options, tests)
    forms = [each.columns.shape[1] for each in [*tests, *oofs] if each.is_short]
    tests, oofs = ([short_form(each, min(forms, default=classes)) for each in found] for found in (tests, oofs))
    return tests, oofs, tta


def read_tests(options: Options, runs: Sequence[str], folds: Folds, kept: int) -> dict[str, Predictions | None]:
    """Each run's test predictions, None where it has none; raises UserError where they are not of its models.

    With ``kept`` they are in the short form of so many classes.
    """
    tests: dict[str, Predictions | None] = {}
    for run in runs:
        path = options.inferred(run) / TEST_FILE
        tests[run] = read_predictions(path) if path.is_file() else None
        if tests[run] is None:
            continue
        check_test_source(Path(options.runs_dir) / run, path, tests[run])
        if tests[run].classes != folds.classes:
            theirs, ours = names_in_short(tests[run].classes), names_in_short(folds.classes)
            remedy = "run infer.py again for this run"
            raise UserError(str(path), f"has the classes {theirs}, but the folds have {ours}", remedy)
        if kept:
            tests[run] = short_form(tests[run], kept)
    return tests


def tests_in_one_order(options: Options, tests: dict[str, Predictions | None]) -> list[Predictions]:
    """The test predictions in the first one's row order; empty, with a warning, where a run has none."""
    missing = [run for run, test in tests.items() if test is None]
    if missing:
        unused = " (--sample has no effect)" if options.sample else ""
        what = f"no test predictions for {', '.join(missing)}, so no submission{unused}"
        presets = {test.source["tta"] for test in tests.values() if test}
        tta = f" --tta {presets.pop()}, with --data and --folds" if len(presets) == 1 and presets != {"none"} else ""
        warn(f"{what}; run: python infer.py --runs {' '.join(missing)}{tta}")
        return []
    ids = next(iter(tests.values())).ids
    return [rows_in_order(test, ids, str(options.inferred(run) / TEST_FILE)) for run, test in tests.items()]


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
    wishes = Wishes(options.submit, options.positive, options.metric, options.separator)
    sheet = sheet_of(first, options.sample, wishes)
    if line := form_line(sheet):
        print(f"{options.sample or 'submission'}: {line}")
    return sheet


def metric_of(options: Options, runs: Sequence[str]) -> str:
    """The metric to judge by: what is asked for, or the one that all runs were trained by; empty: the task's first."""
    if options.metric:
        return options.metric
    paths = [fold_folder(Path(options.runs_dir) / run, 0) / CONFIG_FILE for run in runs]
    found = {read_json(path).get("metric", "") if path.is_file() else "" for path in paths} - {""}
    return found.pop() if len(found) == 1 else ""


def inference_seconds(options: Options, runs: Sequence[str]) -> list[float]:
    """Seconds that infer.py took for 1,000 rows of each run, 0 where it did not say."""
    paths = [options.inferred(run) / INFERENCE_FILE for run in runs]
    return [
        read_json(path, seconds_per_1000_rows=(int, float))["seconds_per_1000_rows"] if path.is_file() else 0.0
        for path in paths
    ]


if __name__ == "__main__":
    run_script(main)
