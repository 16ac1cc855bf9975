"""Average the weights of finished runs, fold by fold, into a run of its own: a model soup.

    python average.py --runs tuned tuned_seed1 --run soup
    python average.py --data train.csv.gz --runs a b c --run soup

It suits runs that started from the same weights, such as a pretrained model tuned several times; the mean of
networks that were started apart is no network. BatchNorm is measured again on each fold's training rows and the rows
that the fold held out are predicted, so the OOF score says which it is. infer.py and ensemble.py take the new run
like any other. Source: Wortsman et al., arXiv 2203.05482.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.base.cli import parse
from common.base.errors import UserError, run_script
from common.base.files import check_folder, write_json
from common.base.locks import locked
from common.base.system import cpu_count, keep_freed_memory
from common.data.cache import DEFAULT_GB, Cache
from common.data.folds import Folds, match_folds, read_folds
from common.data.tables import read_train_table
from common.runs.config import saved_config
from common.runs.folder import METRICS_FACTS
from common.runs.layout import (
    CONFIG_FILE,
    DECODED_FOLDER,
    METRICS_FILE,
    MODEL_FILE,
    OOF_FILE,
    finished_folds,
    fold_folder,
    run_names,
)
from common.runs.oof import oof_score
from common.runs.predictions import Predictions, check_store, write_predictions
from common.score.metrics import describe, score

# What must be the same in all of them for their weights to mean the same.
SHARED_SETTINGS = ("model", "model_args", "img_size", "channels", "loss", "loss_args")
SHARED_FACTS = ("fold", "folds_fingerprint", "fold_count", "classes", "normalise", "image_shape")


@dataclass(frozen=True)
class Options:
    """Average the weights of runs, fold by fold: python average.py --runs a b --run soup"""

    runs: tuple[str, ...]  # names of finished runs of one model, two or more
    run: str  # name of the new run that holds their average
    runs_dir: str = "runs"  # folder that holds every run
    data: str = "digits"  # the train table they were trained on
    folds: str = "folds.csv"  # the folds file they were trained with
    store: str = "float32"  # format of oof.npz: float32, float16, top64 (64 likeliest classes per row)
    threads: int = 0  # CPU threads (0: all cores)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv)
    runs_dir = Path(options.runs_dir)
    options = replace(options, runs=run_names(runs_dir, options.runs))
    check_store(options.store)
    if len(options.runs) < 2:
        raise UserError("--runs", f"an average needs at least two runs, got {len(options.runs)}", "name two or more")
    if (runs_dir / options.run).exists():
        raise UserError(str(runs_dir / options.run), "exists already", "give the average another --run")
    check_folder(runs_dir / options.run)
    of_each_run = [finished_folds(runs_dir / run) for run in options.runs]
    table = read_train_table(options.data)
    folds = match_folds(read_folds(Path(options.folds)), table)

    keep_freed_memory()
    import torch
    from accelerate import Accelerator

    from common.data.images import read_images
    from common.train.build import saved_preparation

    torch.set_num_threads(options.threads or cpu_count())
    averages = [average(paths, options, folds) for paths in zip(*of_each_run, strict=True)]
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    prepare, cache = saved_preparation(averages[0][1]), Cache(DEFAULT_GB, str(runs_dir / DECODED_FOLDER))
    images = read_images(table, prepare, accelerator.device, cache, folds.row_shas, torch.get_num_threads())
    for tensors, facts in averages:
        folder = fold_folder(runs_dir / options.run, facts["fold"])
        with locked(folder):
            metrics = save_average(folder, accelerator, images, tensors, facts, folds, options.store)
        print(f"fold {facts['fold']}: {describe(metrics)}")
    for run in (*options.runs, options.run):
        print(f"local CV of {run}: {describe(oof_score(runs_dir / run, folds))}")


def average(paths: Sequence[Path], options: Options, folds: Folds) -> tuple[dict, dict[str, Any]]:
    """The mean of one fold's weights over the runs, and the first run's facts with what was averaged.

    Raises:
        UserError: the weights do not belong together: other model, loss, folds or members.
    """
    from common.model.averages import mean_of
    from common.runs.tensors import load_model

    loaded = [load_model(path / MODEL_FILE) for path in paths]
    first = shared_of(loaded[0][1])
    for path, (_, facts) in zip(paths, loaded, strict=True):
        found = shared_of(facts)
        if facts["folds_fingerprint"] != folds.fingerprint:
            raise UserError(str(path), "was trained with different folds", "name those with --folds and --data")
        if found["members"] > 1:
            raise UserError(str(path), f"holds {found['members']} members, not one model", "blend it with ensemble.py")
        if differing := [name for name in found if found[name] != first[name]]:
            what = f"differs from {paths[0]} in {', '.join(differing)}"
            raise UserError(str(path), what, "average runs of the same model on the same data")
    mean = loaded[0][0]
    for number, (tensors, _) in enumerate(loaded[1:], start=2):
        mean = mean_of(mean, tensors, 1 / number)
    return mean, loaded[0][1] | {"run": options.run, "averaged": list(options.runs)}


def shared_of(facts: dict[str, Any]) -> dict[str, Any]:
    """What two weights files must agree in before their mean means anything."""
    settings = {name: facts["settings"].get(name) for name in SHARED_SETTINGS}
    return settings | {name: facts[name] for name in SHARED_FACTS} | {"members": facts.get("members", 1)}


def save_average(
    folder: Path, accelerator, images, tensors: dict, facts: dict[str, Any], folds: Folds, store: str
) -> dict[str, Any]:
    """Measure BatchNorm, predict the held-out rows, and write the fold's files; returns its metrics."""
    import torch

    from common.model.averages import measure_batchnorm
    from common.model.finetune import frozen_parts
    from common.runs.tensors import save_tensors
    from common.train.build import create_saved, saved_micro_batch, saved_predictor
    from common.train.loop import check_logits

    settings, device = facts["settings"], accelerator.device
    model = create_saved(facts).to(device, memory_format=getattr(torch, facts["memory_format"]))
    model.load_state_dict(tensors)
    held_out = folds.fold == int(facts["fold"])
    predict = saved_predictor(facts, accelerator, images)
    cfg = saved_config(settings)
    frozen = frozen_parts(cfg, model)
    frozen.apply(model, cfg.epochs - 1)  # what was held still to the end keeps its statistics
    if not frozen.batchnorm:
        train_rows = torch.from_numpy(np.flatnonzero(~held_out)).to(device)
        measure_batchnorm(model, images, train_rows, predict.normalise, saved_micro_batch(facts), predict.side)
    [logits] = predict(model, np.flatnonzero(held_out))
    check_logits(str(folder), logits, "average fewer runs, or runs that started from the same weights")
    oof = Predictions(folds.ids[held_out], logits, folds.classes, folds.labels[held_out], folds.fold[held_out])
    metrics = {name: facts[name] for name in METRICS_FACTS} | {"averaged": facts["averaged"]}
    metrics |= score(oof.logits, oof.targets)
    described = settings | {"folds_fingerprint": folds.fingerprint, "averaged": facts["averaged"]}
    write_json(folder / CONFIG_FILE, described)
    metrics["sha256_of"] = {
        MODEL_FILE: save_tensors(folder / MODEL_FILE, model.state_dict(), facts),
        OOF_FILE: write_predictions(folder / OOF_FILE, oof, store),
    }
    write_json(folder / METRICS_FILE, metrics)
    return metrics


if __name__ == "__main__":
    run_script(main)
