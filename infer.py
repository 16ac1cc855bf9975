"""Predict the test rows with the K fold models of a run and write the submission; no network is needed.

    python infer.py                                             # every finished run, the embedded digits
    python infer.py --data train.csv.gz --test test.csv.gz --sample sample_submission.csv --tta auto
    python infer.py --data train.csv.gz --score-tta --views digits flips    # what each view would have done on OOF

Each model and each view predicts each row, their probabilities are averaged, and runs/<run>/ gets test.npz,
submission.csv and inference.json. Test-time augmentation (--tta) also predicts the training rows out of fold under the
same views, oof_tta.npz, so that a blend learns from what it will be applied to.
"""

import common  # noqa: F401  # isort: skip

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from common.base.cli import parse
from common.base.errors import UserError, refuse_several_processes, run_script, warn
from common.base.files import check_folder, read_json, write_json
from common.base.result import Result
from common.base.system import torch_loaded
from common.data.cache import DEFAULT_GB, Cache
from common.data.competition import beside, competition_flags, next_command, read_competition, settings_flags, told
from common.data.folds import Folds, read_data, read_folds
from common.data.reading import EMBEDDED, read_test_table
from common.data.table import Table
from common.data.views import TTA, View
from common.runs.config import saved_config
from common.runs.decision import check_clip, clipped, joined, learned_decision, temperature_of
from common.runs.forms import FORMS, Sheet
from common.runs.layout import (
    CONFIG_FILE,
    INFERENCE_FILE,
    OOF_FILE,
    SUBMISSION_FILE,
    TEST_FILE,
    TTA_OOF_FILE,
    WEIGHTS_FILE,
    finished_folds,
    finished_runs,
    fold_folder,
    folds_fingerprint,
    run_names,
    was_added,
)
from common.runs.oof import oof_predictions
from common.runs.predictions import Predictions, check_store, read_predictions, write_predictions
from common.runs.submission import Submitting, write_submission
from common.score.blend_study import interval_metric
from common.score.leaderboard import BY_ERRORS, averaging_gain, metric_in_words, worth_in_words
from common.score.logits import Outputs
from common.score.metrics import check_metric_name, describe
from common.score.task import TASKS, posed
from common.trust.dependence import order_in_words

if TYPE_CHECKING:
    from common.runs.saved_model import SavedModel
    from common.runs.tensors import FoldModel
    from common.train.fold_models import FoldModels


@dataclass(frozen=True)
class Options(Submitting):
    """Predict the test rows with the fold models of a run: python infer.py --test test.csv.gz"""

    COMMON = ("test", "sample", "work", "runs", "tta", "submit", "calibrate", "submission", "out_dir", "fold")
    # what is predicted
    test: str = ""  # test table, or a folder of images (default: the embedded digits' held-out part)
    metric: str = ""  # what the competition scores by (default: the run's own --metric)
    calibrate: bool = False  # submit probabilities after one temperature, fitted on the run's OOF predictions
    # runs and places
    work: str = "."  # folder of one competition, short for --folds DIR/folds.csv --runs-dir DIR/runs
    runs_dir: str = "runs"  # folder that holds every run
    runs: tuple[str, ...] = ()  # names of the runs (default: every finished one that was trained with the folds file)
    out_dir: str = ""  # folder for each run's output (default: runs_dir; set it where that is read-only)
    fold: Literal["all", "full"] = "all"  # all: the mean of the fold models; full: the model trained on every row
    # test-time augmentation
    tta: str = "none"  # test-time augmentation: none, auto (the views that help on OOF), or a preset's fixed weights
    views: tuple[str, ...] = ()  # presets whose views --tta auto and --score-tta try (default: digits; photos: hflip)
    score_tta: bool = False  # print what each of --views would have done on OOF, and write nothing
    # files and speed
    store: str = "float32"  # format of test.npz: float32, float16 (half as large), top64 (64 likeliest classes per row)
    data: str = "digits"  # train table, for --tta and --score-tta
    folds: str = "folds.csv"  # folds file: tells which runs belong together; --tta and --score-tta need it
    threads: int = 0  # CPU threads (0: all cores)
    cache_gb: float = DEFAULT_GB  # GB of memory for decoded photos (0, or too few: decoded again for each model)

    @property
    def chooses_views(self) -> bool:
        """Whether the OOF predictions choose the views, and their weights, among those of ``views``."""
        return self.score_tta or self.tta == "auto"


def main(argv: Sequence[str] | None = None) -> None:
    refuse_several_processes("infer.py")
    options = parse(Options, argv, competition_flags)
    run(options)
    print(next_step(options))


def run(options: Options) -> Result:
    """Write the test predictions and the submission of each run.

    The result's score holds, by the run's name, the metrics of the test rows whose labels are known.

    Raises:
        UserError: a run, table, preset or option that is wrong; predictions that are not finite numbers.
    """
    options = told(options)
    check_options(options)
    runs_dir, out_dir = Path(options.runs_dir), Path(options.out_dir or options.runs_dir)
    runs = chosen_runs(options)
    if options.score_tta:
        return score_only(runs, options)
    for name in runs:
        finished_folds(runs_dir / name, options.fold)
        check_folder(out_dir / name, remedy="name another folder with --out-dir")
    if options.submission and len(runs) > 1:
        raise UserError("--submission", f"is one file for {len(runs)} runs", f"name one: --runs {runs[0]}")
    options.check_place()
    train = read_train(runs, options) if options.tta != "none" else None
    test = read_test_table(options.test, options.data, options.sample, read_competition(beside(options.folds)))
    scores = {}
    with torch_loaded(options.threads):
        from common.train.fold_models import read_models

        for name in runs:
            models = read_models(finished_folds(runs_dir / name, options.fold))
            if test.source == EMBEDDED and not options.test:
                check_trained_on_digits(name, models[0].saved, test)
            asked = what_is_asked(name, models[0].saved, test, options)  # a wrong sample is said before the work
            views, said_of_views, oof = TTA.get(options.tta, []), [], None
            if train:
                fold_models = models if options.fold == "all" else read_models(finished_folds(runs_dir / name))
                views, said_of_views, oof = score_out_of_fold(name, fold_models, *train, options)
                # Before test.npz: a blend refuses the two where their views differ.
                write_predictions(out_dir / name / TTA_OOF_FILE, oof, options.store)
            predicted = predict_test(name, models, test, views, said_of_views, asked, options, oof)
            metric = options.metric or models[0].saved.cfg.metric
            if len(predicted.labels):
                scores[name] = predicted.score(metric)
                print(f"test {describe(scores[name], metric)}")
            print(f"submission: {options.submission or out_dir / name / SUBMISSION_FILE}")
    return Result(scores or None, out_dir)


def score_only(runs: Sequence[str], options: Options) -> Result:
    """Print what each of ``--views`` would have done on OOF, and write nothing; the result scores each run's OOF."""
    train = read_train(runs, options)
    runs_dir, scores = Path(options.runs_dir), {}
    with torch_loaded(options.threads):
        from common.train.fold_models import read_models

        for name in runs:
            _, _, oof = score_out_of_fold(name, read_models(finished_folds(runs_dir / name)), *train, options)
            scores[name] = oof.score()
    return Result(scores, runs_dir)


def chosen_runs(options: Options) -> Sequence[str]:
    """The runs that were named, or those trained with the folds file; without one, all, if they agree.

    Raises:
        UserError: there is none, or nothing says which of several competitions' runs are meant.
    """
    runs_dir, folds = Path(options.runs_dir), Path(options.folds)
    if options.runs:
        runs = run_names(runs_dir, options.runs)
        refuse_foreign(runs, options)
        return runs
    fingerprint = read_folds(folds).fingerprint if folds.is_file() else ""
    runs = finished_runs(runs_dir, options.fold, fingerprint)
    runs = [name for name in runs if not was_added(runs_dir / name)]  # has no model to predict with
    if fingerprint:
        return runs
    if len({folds_fingerprint(runs_dir / name) for name in runs}) > 1:
        what = f"{', '.join(runs)} were trained with different folds, and there is no {folds}"
        raise UserError("--runs", what, "name those of one competition, or their folds file with --folds")
    return runs


def refuse_foreign(runs: Sequence[str], options: Options) -> None:
    """Raise UserError where a run that was named would predict, and overwrite with, another competition's test rows."""
    folds, said = Path(options.folds), read_competition(beside(options.folds)).test
    if not said or options.test != said or not folds.is_file():
        return
    fingerprint = read_folds(folds).fingerprint
    for name in runs:
        run_folder = Path(options.runs_dir) / name
        finished_folds(run_folder, options.fold)
        if folds_fingerprint(run_folder) != fingerprint:
            what = f"was trained with other folds than {folds}, to whose competition {said} belongs"
            raise UserError(str(run_folder), what, "name its own folds file, or the test table meant with --test")


def next_step(options: Options) -> str:
    """The command that comes next: a blend where there are runs for it."""
    if options.score_tta:
        return next_command("infer.py", options, "--tta", "auto")
    if options.fold == "full" and not list(Path(options.runs_dir).glob(f"*/fold[0-9]*/{OOF_FILE}")):
        # What its folds' models score is what can be known of it.
        run = Path(options.runs[0] if options.runs else finished_runs(Path(options.runs_dir), "full")[0]).name
        settings = saved_config(read_json(Path(options.runs_dir, run, "full", CONFIG_FILE)))
        settings = replace(settings, run=run, folds=options.folds)
        return next_command("train_fold.py", options, *settings_flags(settings))
    predicted = Path(options.out_dir or options.runs_dir).glob(f"*/{TEST_FILE}")
    runs = [path for path in predicted if not path.with_name(WEIGHTS_FILE).exists()]
    return next_command("ensemble.py" if len(runs) > 1 else "report.py", options)


def check_options(options: Options) -> None:
    """Raise UserError where a preset does not exist or options do not go together."""
    check_store(options.store)
    if options.metric:
        check_metric_name(options.metric)
    if options.score_tta and (options.test or options.sample or options.fold == "full" or options.tta != "none"):
        what = "predicts the training rows that each fold model has not seen"
        raise UserError("--score-tta", what, "leave out --test, --sample, --tta and --fold full")
    presets = [name for name in TTA if name != "none"]
    for flag, name, known in [("--tta", options.tta, ["none", "auto", *presets])] + [
        ("--views", name, presets) for name in options.views
    ]:
        if name not in known:
            raise UserError(flag, f"{name} is unknown", f"use one of: {', '.join(known)}")
    if options.views and not options.chooses_views:
        raise UserError("--views", "has no effect without --tta auto or --score-tta", "leave it out")


def read_train(runs: Sequence[str], options: Options) -> tuple[Table, Folds]:
    """The train table and its folds, for views that the runs' fold models score, even where --fold full predicts."""
    table, folds = read_data(options.data, options.folds)
    if not table.kind.of_images:
        flag, has = "--score-tta" if options.score_tta else "--tta", table.kind.name
        raise UserError(flag, f"looks at images in several ways, but {table.source} has {has}", "leave it out")
    for name in runs:
        finished_folds(Path(options.runs_dir) / name)
    return table, folds


def check_trained_on_digits(name: str, saved: "SavedModel", test: Table) -> None:
    """Raise UserError where no test table was named and the run was not trained on the embedded digits."""
    if saved.image_shape != test.kind.shape(test) or saved.output_names != sorted(set(test.labels)):
        what = f"is missing, and {name} was not trained on the embedded digits"
        raise UserError("--test", what, "name the competition's test table, or its folder of test images")


def what_is_asked(run: str, saved: "SavedModel", test: Table, options: Options) -> Sheet:
    """What the run's submission must look like.

    Raises:
        UserError: a sample of no known form, or of other rows.
    """
    check_store(options.store, TASKS[saved.task])
    if options.clip:
        check_clip(TASKS[saved.task])
    none = Predictions(
        ids=test.ids,
        logits=np.zeros((len(test.ids), len(saved.output_names)), np.float32),
        output_names=saved.output_names,
        id_name=saved.id_name or test.id_name,
        label_name=saved.label_name or test.label_name,
        task=posed(saved.task, options.positive or saved.cfg.positive),
    )
    asking = replace(options, positive=options.positive or saved.cfg.positive)
    return asking.sheet_for(none, options.metric or saved.cfg.metric, f"{run}: ")


# ---- the test rows


def predict_test(
    name: str,
    models: "Sequence[FoldModel]",
    table: Table,
    views: Sequence[View],
    said_of_views: Sequence[dict[str, Any]],
    asked: Sheet,
    options: Options,
    oof: Predictions | None,
) -> Predictions:
    """Average models and views over the test rows, then write test.npz and the checked submission of a run."""
    from common.train.fold_models import FoldModels

    started = time.perf_counter()
    fold_models = FoldModels(models, table, views, cache=Cache(options.cache_gb))
    saved, rows = models[0].saved, len(table.ids)
    test = Predictions(
        ids=table.ids,
        logits=fold_models.mean(np.arange(rows)),
        output_names=saved.output_names,
        labels=scored_labels(table, saved),
        id_name=saved.id_name or table.id_name,
        label_name=saved.label_name or table.label_name,
        source=source_of(models, views, options),
        task=posed(saved.task, options.positive or saved.cfg.positive),
        form=asked.as_stored,
    )
    seconds = time.perf_counter() - started
    oofs = [oof] if oof else out_of_fold(Path(options.runs_dir) / name, saved.fold_count)
    test = submit(name, test, oofs, asked, options, options.metric or saved.cfg.metric)
    if options.fold == "full" and not oofs:
        print(f"{name}: a model of all rows has no OOF predictions, so its score is not known")
    elif options.fold == "full" and not test.task.is_number:
        of_folds = f"{len(oofs)} of {saved.fold_count} folds"
        print(f"{name}: the classes' shares are compared with the OOF predictions of {of_folds}")
    facts = {"rows": rows, "models": len(models), "tta": options.tta, "views": said_of_views}
    facts |= {"seconds": seconds, "seconds_per_1000_rows": 1000 * seconds / rows}
    if oofs and options.fold == "all":
        facts |= say_worth(name, test, oofs, fold_models, options.metric or saved.cfg.metric)
    if not table.kind.in_time and (sorted_by_class := order_in_words(test.predicted)):
        print(f"{name}: {sorted_by_class}")
    write_json(Path(options.out_dir or options.runs_dir) / name / INFERENCE_FILE, facts)
    print(
        f"{name}: {rows:,} rows, {len(models)} models x {len(views)} views, "
        f"{seconds:.1f} s, {rows / seconds:,.0f} rows/s"
    )
    return test


def scored_labels(table: Table, saved: "SavedModel") -> np.ndarray:
    """The labels of a test table, empty, with a warning, where one of them is none of the models' classes."""
    task = TASKS[saved.task]
    if unknown := sorted({name for label in table.labels for name in task.names_in(label)} - set(saved.output_names)):
        warn(f"{table.source}: its label column is not scored: {unknown[0]} is not a class of the models")
        return table.labels[:0]
    return table.labels


def submit(
    name: str, test: Predictions, oofs: Sequence[Predictions], asked: Sheet, options: Options, metric: str
) -> Predictions:
    """Decide the test rows' answers by what the OOF rows teach, and write them: test.npz and the submission."""
    out_folder, decided = Path(options.out_dir or options.runs_dir) / name, list(oofs)
    if oofs and test.task.decisions:
        study = learned_decision(oofs, metric)
        test = replace(test, decision=study.decision)
        decided = [replace(each, decision=study.decision) for each in oofs]
        if study.text:
            print(study.text)
    if options.clip:
        test = clipped(name, test, oofs)
    write_predictions(out_folder / TEST_FILE, test, options.store)
    submitted = calibrated(name, test, oofs, asked) if options.calibrate else test
    oof_predicted = np.concatenate([each.predicted for each in decided] or [np.empty(0)])
    for path in filter(None, (out_folder / SUBMISSION_FILE, options.submission)):
        write_submission(Path(path), submitted, asked, oof_predicted)
        oof_predicted = oof_predicted[:0]  # warned of once
    return test


def say_worth(
    name: str, test: Predictions, oofs: Sequence[Predictions], fold_models: "FoldModels", metric: str
) -> dict[str, float]:
    """Print what score to expect on the test rows; what inference.json says of it."""
    facts, rows = {}, len(test.ids)
    if test.task.is_one_of:
        right = 1.0 - np.concatenate([each.answers().costs for each in oofs])
        gain = averaging_gain(Outputs(fold_models.one_by_one), float(right.mean()))
        print(f"{name}: {worth_in_words(right, rows, len(fold_models.models), gain)}")
        facts["averaging_gain"] = gain
    metric = interval_metric(metric, test.task)
    if metric not in BY_ERRORS and not any(each.is_short for each in oofs):
        whole = replace(joined(oofs), decision=test.decision)
        print(f"{name}: {metric_in_words(metric, whole.answers(), rows)}")
    return facts


def calibrated(run: str, test: Predictions, oofs: Sequence[Predictions], asked: Sheet) -> Predictions:
    """The test predictions after the temperature of the run's OOF predictions; only the submission is: a blend learns
    its own.

    Raises:
        UserError: the submission has no probabilities, or there are no OOF predictions of every class.
    """
    if not FORMS[asked.form].of_probabilities:
        raise UserError("--calibrate", f"changes no {asked.form}, which is what {run} submits", "leave it out")
    if not oofs or any(each.is_short for each in oofs):
        raise UserError("--calibrate", f"{run} has no OOF predictions of every class", "leave it out")
    scale, before, after = temperature_of(oofs)
    print(f"{run}: temperature {scale:.3f}, nll of OOF rows {before:.5f} -> {after:.5f} (each fold by the others')")
    return replace(test, logits=(test.outputs / scale).values.astype(np.float32))


def source_of(models: "Sequence[FoldModel]", views: Sequence[View], options: Options) -> dict[str, Any]:
    """What predictions are made of, as their file says: ensemble.py compares it with what is there."""
    sha256_of = {fold_folder(Path(), model.saved.fold).name: model.saved.sha256 for model in models}
    return {
        "fold": "full" if "full" in sha256_of else "all",
        "tta": options.tta,
        "views": {view.name: view.weight for view in views},
        "models": sha256_of,
    }


def out_of_fold(run_folder: Path, fold_count: int) -> list[Predictions]:
    """The OOF predictions of the run's folds, as far as their files are at hand."""
    paths = [fold_folder(run_folder, k) / OOF_FILE for k in range(fold_count)]
    return [read_predictions(path) for path in paths if path.exists()]


# ---- test-time augmentation


def score_out_of_fold(
    run: str, models: "Sequence[FoldModel]", table: Table, folds: Folds, options: Options
) -> tuple[list[View], list[dict[str, Any]], Predictions]:
    """The views to use with their weights, what inference.json says of each, and the OOF predictions under them."""
    from common.train.view_study import study_views

    fingerprint = models[0].saved.folds_fingerprint
    if fingerprint != folds.fingerprint:
        what = f"{run} was trained with different folds ({fingerprint[:16]}, here {folds.fingerprint[:16]})"
        raise UserError("--folds", what, "name the folds file that it was trained with")
    chosen = options.chooses_views
    presets = (options.views or (table.kind.views,)) if chosen else (options.tta,)
    views = list({view.name: view for preset in presets for view in TTA[preset]}.values())
    found = study_views(models, table, folds, views, chosen, Cache(options.cache_gb))
    print(f"{run}: {len(found.rows):,} rows out of fold, each predicted by the model that has not seen it")
    print(found.text)
    source = source_of(models, found.used, options)
    return found.used, found.said, oof_predictions(folds, found.rows, found.logits, source)


if __name__ == "__main__":
    run_script(main)
