"""What a fold learns from beside its labels, made when it begins, by the teachers' models of this very fold.

Where a training goes on it is made again, to the same bits: everything is a function of the models, the tables and the
settings, all of which must be what they were.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from common.base.errors import UserError
from common.base.words import names_in_short
from common.data.cache import Cache
from common.data.features import numbers_in
from common.data.folds import Folds
from common.data.lessons import Lessons, known_in_a_batch
from common.data.table import Table
from common.data.views import TTA
from common.model.objectives import ACTIVATIONS
from common.model.units import TargetScale
from common.runs.config import Config
from common.runs.layout import MODEL_FILE
from common.runs.oof import join_oof
from common.runs.teachers import teacher_folder
from common.runs.tensors import load_model
from common.score.logits import Outputs
from common.score.pseudo_labels import pseudo_labels
from common.train.fold_models import FoldModels

SHOWN = 10  # classes whose shares are said


@dataclass(frozen=True)
class Teaching:
    """What the folds of one call have in common."""

    cfg: Config
    folds: Folds
    table: Table
    unlabelled: Table | None
    cache: Cache  # of decoded photos

    def lessons(
        self, folder: Path, rows: np.ndarray, accelerator: Accelerator, scale: TargetScale | None
    ) -> tuple[Lessons, Tensor]:
        """What the fold whose folder this is learns beside the labels of its training ``rows``, int64 (m).

        With the rows that it trains on, in the host's memory; those of the unlabelled table have the numbers behind
        the train table's. ``scale`` is that of targets that are numbers.

        Raises:
            UserError: a teacher of other classes or images, or one that is sure of no row.
        """
        cfg, folds, own = self.cfg, self.folds, torch.from_numpy(rows)
        n, count = len(self.table.ids), len(folds.output_names)
        others = self._others()
        labels = weights = None
        in_each, joined = 0, torch.empty(0, dtype=torch.int64)
        if self.unlabelled:
            labels = torch.zeros(len(self.unlabelled.ids), count)
            counts = torch.zeros(len(labels), dtype=torch.bool)
            if cfg.pseudo:
                labels = self._pseudo_labels(folder, rows, others, accelerator)
                counts = ~labels.isnan().all(dim=1)
                if folds.task.is_one_of:
                    labels = labels.nan_to_num(0.0)
            joined = torch.from_numpy(others)
            if not (cfg.teacher or cfg.consistency):  # from which those without a label would learn nothing
                joined = joined[counts[joined]]
            in_each = known_in_a_batch(len(rows), len(joined), cfg.batch_size, cfg.labelled_share)
            share = in_each / cfg.batch_size if in_each else len(rows) / (len(rows) + len(joined))
            with_label = share + (1 - share) * counts[joined].float().mean().item()
            weights = torch.cat([torch.ones(n), counts * cfg.pseudo_weight]) / with_label
            labels, weights = labels.to(accelerator.device), weights.to(accelerator.device)
        taught = self._taught(folder, rows, joined.numpy(), accelerator, scale)
        return Lessons(taught, labels, weights, in_each), torch.cat([own, joined + n])

    def _others(self) -> np.ndarray:
        """The unlabelled rows that are looked at, int64: all, or of a smoke run some, the same for every fold."""
        count = len(self.unlabelled.ids) if self.unlabelled else 0
        return np.sort(np.random.default_rng(0).permutation(count)[: self.cfg.limit or count])

    def _taught(
        self, folder: Path, rows: np.ndarray, joined: np.ndarray, accelerator: Accelerator, scale: TargetScale | None
    ) -> Tensor | None:
        """What the teachers of ``--teacher`` say, as Lessons have it; None without any."""
        cfg, folds, n = self.cfg, self.folds, len(self.table.ids)
        if not cfg.teacher:
            return None
        accelerator.print(f"{folder.name}: {' and '.join(cfg.teacher)} look at {len(rows) + len(joined):,} rows")
        models = dict.fromkeys((teacher_folder(cfg, run) / folder.name / MODEL_FILE for run in cfg.teacher), 1.0)
        u = len(self.unlabelled.ids) if self.unlabelled else 0
        said = torch.full((n + u, len(folds.output_names)), torch.nan).to(accelerator.device)
        for table, some, first in ((self.table, rows, 0), (self.unlabelled, joined, n)):
            if not len(some):
                continue
            row_shas = folds.row_shas if table is self.table else ()
            outputs = outputs_of(models, table, some, folds, self.cache, row_shas)
            outputs = shared(accelerator, outputs, (len(some), len(folds.output_names)))
            if scale:
                numbers = outputs.cpu().numpy() - offsets_in(table, cfg.offset)[some]
                found = torch.from_numpy(scale.learned(numbers)).to(accelerator.device)
            else:
                found = ACTIVATIONS[folds.task.activation](outputs / cfg.teacher_temperature)
            said[torch.from_numpy(some) + first] = found
        return said

    def _pseudo_labels(self, folder: Path, rows: np.ndarray, others: np.ndarray, accelerator: Accelerator) -> Tensor:
        """Soft targets of the unlabelled table, float (u, outputs), NaN where the teachers are not sure; says which."""
        cfg, folds = self.cfg, self.folds
        models = {
            teacher_folder(cfg, run) / folder.name / MODEL_FILE: oof_temperature(
                teacher_folder(cfg, run), folder, folds
            )
            for run in cfg.pseudo
        }
        outputs = Outputs(outputs_of(models, self.unlabelled, others, folds, self.cache))
        soft, smoothing = cfg.pseudo_labels == "soft", cfg.label_smoothing
        found = pseudo_labels(folds.task, outputs, cfg.pseudo_threshold, soft, smoothing)
        found = shared(accelerator, found, (len(others), len(folds.output_names))).cpu()
        sure = ~found.isnan().all(dim=1)
        kept, at = int(sure.sum()), ", ".join(f"{temperature:.2f}" for temperature in models.values())
        said = f"{kept:,} of {len(others):,} rows of {self.unlabelled.source} join with pseudo-labels"
        accelerator.print(f"{folder.name}: {said}, {cfg.pseudo_threshold:g} sure or more at temperature {at}")
        if not kept:
            what = f"{' and '.join(cfg.pseudo)} are {cfg.pseudo_threshold:g} sure of no row of {self.unlabelled.source}"
            raise UserError("--pseudo-threshold", what, "lower it, or train a better teacher")
        numbers = np.arange(len(folds.output_names))
        known = np.asarray(folds.task.soft(folds.targets[rows], numbers, 0.0), dtype=np.float64).mean(axis=0)
        given = (found > 0.5).double().where(~found.isnan(), torch.nan).nanmean(dim=0).nan_to_num().numpy()
        accelerator.print(f"{folder.name}: {shares_text(folds.output_names, given, known)}")
        labels = torch.full((len(self.unlabelled.ids), len(folds.output_names)), torch.nan)
        labels[torch.from_numpy(others)] = found
        return labels


def offsets_in(table: Table, column: str) -> np.ndarray:
    """What a net's answers start from in each row, float (n, 1): the numbers of a column; 0 without one."""
    if not column:
        return np.zeros((len(table.ids), 1))
    return numbers_in(table.source, table.feature_names, table.images, column)[:, None]


def shares_text(classes: Sequence[str], given: np.ndarray, known: np.ndarray) -> str:
    """The share of each class among pseudo-labels, and among the labels; of many classes those that differ most."""
    chosen = np.sort(np.argsort(-np.abs(given - known), kind="stable")[:SHOWN])
    shares = ", ".join(f"{classes[k]} {given[k]:.1%} ({known[k]:.1%})" for k in chosen)
    which = f"; the {SHOWN} that differ most" if len(classes) > SHOWN else ""
    return f"share of each class among them (among the labelled rows{which}): {shares}"


def oof_temperature(run_folder: Path, fold_folder: Path, folds: Folds) -> float:
    """What to divide a teacher's outputs by, told by its out-of-fold predictions but for the rows of this fold.

    Label smoothing and mixup make a net less sure than it is right; without this they would leave few rows.
    """
    oof = join_oof(run_folder, folds)
    rows = np.array([f"fold{k}" != fold_folder.name for k in oof.fold])
    return folds.task.calibrate(oof.outputs[rows], oof.places[rows])


def outputs_of(
    models: Mapping[Path, float],
    table: Table,
    rows: np.ndarray,
    folds: Folds,
    cache: Cache,
    row_shas: Sequence[str] = (),
) -> np.ndarray:
    """The mean of what models say of ``rows``, int64 (m), of a table: outputs, float32 (m, outputs).

    Each model's outputs are divided by its temperature first. It sees the inputs as its own training did; its classes
    are brought into the order of ``folds`` by name. Only the main process has the outputs; the other ones get an array
    without rows.

    Raises:
        UserError: a model of other classes, or of inputs of another shape.
    """
    of_each = []
    for path, temperature in models.items():
        model = load_model(path)
        if set(model.saved.output_names) != set(folds.output_names):
            theirs, ours = names_in_short(model.saved.output_names), names_in_short(folds.output_names)
            what = f"knows {theirs}, but the folds have {ours}"
            raise UserError(str(path), what, f"name a teacher of the same {folds.task.outputs_are}")
        outputs = FoldModels([model], table, TTA["none"], row_shas, cache).of_fold(0, rows)[0]
        of_each.append(outputs[:, [model.saved.output_names.index(name) for name in folds.output_names]] / temperature)
    return folds.task.average(Outputs(np.stack(of_each))).values


def shared(accelerator: Accelerator, found: np.ndarray, shape: tuple[int, int]) -> Tensor:
    """What only the main process has, float32 ``shape``, on the device of every process."""
    given = torch.from_numpy(found) if accelerator.is_main_process else torch.empty(shape)
    return broadcast(given.to(accelerator.device))
