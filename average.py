"""Average the weights of finished runs, fold by fold, into a run of its own: a model soup.

    python average.py --runs tuned tuned_seed1 --run soup
    python average.py --data train.csv.gz --runs a b c --run soup

It suits runs that started from the same weights, such as a pretrained model tuned several times; the mean of
networks that were started apart is no network. BatchNorm is measured again on each fold's training rows and the rows
that the fold held out are predicted, so the OOF score says which it is. infer.py and ensemble.py take the new run
like any other. Source: Wortsman et al., arXiv 2203.05482.
"""

import common  # noqa: F401  # isort: skip

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.base.cli import parse
from common.base.errors import UserError, refuse_several_processes, run_script
from common.base.files import check_folder, write_json
from common.base.locks import locked
from common.base.result import Result
from common.base.system import torch_loaded
from common.data.cache import photo_cache
from common.data.competition import competition_flags, told
from common.data.folds import Folds, read_data, split_rows
from common.data.views import TTA
from common.runs.folder import save_fold
from common.runs.layout import (
    CONFIG_FILE,
    MODEL_FILE,
    finished_folds,
    fold_folder,
    run_names,
)
from common.runs.oof import alike_in, oof_predictions, oof_score
from common.runs.predictions import check_store
from common.runs.saved_model import SavedModel
from common.score.metrics import describe

if TYPE_CHECKING:
    from common.runs.tensors import FoldModel
    from common.train.fold_models import FoldModels

# What must be the same in all of them for their weights to mean the same.
SHARED_SETTINGS = (
    "model",
    "model_args",
    "img_size",
    "channels",
    "loss",
    "loss_args",
    "task",
    "drop",
    "offset",
    "target_transform",
)
SHARED = ("fold", "folds_fingerprint", "fold_count", "output_names", "normalise", "image_shape", "members")


@dataclass(frozen=True)
class Options:
    """Average the weights of runs, fold by fold: python average.py --runs a b --run soup"""

    runs: tuple[str, ...]  # names of finished runs of one model, two or more
    run: str  # name of the new run that holds their average
    runs_dir: str = "runs"  # folder that holds every run
    work: str = "."  # folder of one competition, short for --folds DIR/folds.csv --runs-dir DIR/runs
    data: str = "digits"  # the train table they were trained on
    folds: str = "folds.csv"  # the folds file they were trained with
    store: str = "float32"  # format of oof.npz: float32, float16, top64 (64 likeliest classes per row)
    threads: int = 0  # CPU threads (0: all cores)


def main(argv: Sequence[str] | None = None) -> None:
    refuse_several_processes("average.py")
    options = parse(Options, argv, competition_flags)
    result = run(options)
    print(f"local CV of {options.run}: {describe(result.score)}")


def run(options: Options) -> Result:
    """Write a run whose weights are the mean of those of ``options.runs``; its OOF score and its folder.

    Raises:
        UserError: runs that are unfinished or do not belong together; a name that is taken.
    """
    options = told(options)
    runs_dir, run_folder = Path(options.runs_dir), Path(options.runs_dir) / options.run
    options = replace(options, runs=run_names(runs_dir, options.runs))
    check_store(options.store)
    if len(options.runs) < 2:
        raise UserError("--runs", f"an average needs at least two runs, got {len(options.runs)}", "name two or more")
    if run_folder.exists():
        raise UserError(str(run_folder), "exists already", "give the average another --run")
    check_folder(run_folder)
    of_each_run = [finished_folds(runs_dir / name) for name in options.runs]
    table, folds = read_data(options.data, options.folds)
    with torch_loaded(options.threads):
        from common.train.fold_models import FoldModels

        averages = [average(paths, options, folds) for paths in zip(*of_each_run, strict=True)]
        models = FoldModels(averages, table, TTA["none"], folds.row_shas, photo_cache())
        for k, model in enumerate(averages):
            folder = fold_folder(run_folder, model.saved.fold)
            with locked(folder):
                metrics = save_average(folder, models, k, folds, options.store)
            print(f"fold {model.saved.fold}: {describe(metrics)}")
    for name in options.runs:
        print(f"local CV of {name}: {describe(oof_score(runs_dir / name, folds))}")
    return Result(oof_score(run_folder, folds), run_folder)


def average(paths: Sequence[Path], options: Options, folds: Folds) -> "FoldModel":
    """The model of one fold whose weights are the mean over the runs; what it says of itself is the first run's.

    Raises:
        UserError: the weights do not belong together: other model, loss, folds or members.
    """
    from common.model.averages import mean_of
    from common.runs.tensors import FoldModel, load_model

    models = [load_model(path / MODEL_FILE) for path in paths]
    first = shared_of(models[0].saved)
    for path, model in zip(paths, models, strict=True):
        saved, found = model.saved, shared_of(model.saved)
        if saved.folds_fingerprint != folds.fingerprint:
            raise UserError(str(path), "was trained with different folds", "name those with --folds and --data")
        if saved.members > 1:
            raise UserError(str(path), f"holds {saved.members} members, not one model", "blend it with ensemble.py")
        if differing := [name for name in found if found[name] != first[name]]:
            what = f"differs from {paths[0]} in {', '.join(differing)}"
            raise UserError(str(path), what, "average runs of the same model on the same data")
    mean = models[0].tensors
    for number, model in enumerate(models[1:], start=2):
        mean = mean_of(mean, model.tensors, 1 / number)
    return FoldModel(mean, replace(models[0].saved, run=options.run, averaged=options.runs))


def shared_of(saved: SavedModel) -> dict[str, Any]:
    """What two weights files must agree in before their mean means anything."""
    settings = {name: saved.settings.get(name) for name in SHARED_SETTINGS}
    return settings | {name: getattr(saved, name) for name in SHARED}


def save_average(folder: Path, models: "FoldModels", k: int, folds: Folds, store: str) -> dict[str, Any]:
    """Measure BatchNorm, predict the held-out rows, and write the k-th fold's files; returns its metrics."""
    import torch

    from common.model.averages import measure_batchnorm
    from common.model.finetune import frozen_parts
    from common.train.fold_models import logits_of
    from common.train.loop import check_logits

    network, predict = models.ready(k)
    saved = models.models[k].saved
    train_rows, rows = split_rows(folds, saved.fold, saved.cfg.train_fraction, limit=0)
    frozen = frozen_parts(saved.cfg, network)
    frozen.apply(network, saved.cfg.epochs - 1)  # what was held still to the end keeps its statistics
    if not frozen.batchnorm:
        measure_batchnorm(
            network, predict.inputs, torch.from_numpy(train_rows), predict.normalise, saved.micro_batch, predict.side
        )
    [logits] = logits_of(predict, network, rows, models.views)
    check_logits(str(folder), logits, "average fewer runs, or runs that started from the same weights")
    oof, alike = oof_predictions(folds, rows, logits), alike_in(folds, rows)
    described = saved.settings | {"folds_fingerprint": folds.fingerprint, "averaged": saved.averaged}
    write_json(folder / CONFIG_FILE, described)
    return save_fold(folder, saved, network.state_dict(), oof, store, {}, alike)


if __name__ == "__main__":
    run_script(main)
