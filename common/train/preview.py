"""What the model will see: the first training batch of a fold as a picture."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from matplotlib.figure import Figure

from common.base.files import write_figure
from common.data.batches import Examples
from common.data.folds import Folds
from common.data.inputs import Reading, open_inputs
from common.data.scales import Normalise
from common.data.table import Table
from common.runs.config import Config
from common.train.build import augmentation_of, create_batches, preparation_of, with_images_of


def draw_batch(path: Path, cfg: Config, table: Table, folds: Folds, rows: np.ndarray) -> None:
    """Draw the first batch of the training ``rows``, augmented, with its labels, before normalisation and smoothing."""
    cfg = dataclasses.replace(with_images_of(cfg, table), label_smoothing=0.0, accumulate=1)
    reading = Reading(row_shas=folds.row_shas, say=lambda _: None)
    inputs = open_inputs(table, preparation_of(cfg, table), torch.device("cpu"), reading)
    augmentation_of(cfg, table.kind.grey)  # refuses what would do nothing
    examples = Examples(inputs, torch.from_numpy(folds.targets), torch.from_numpy(rows), folds.output_names)
    plain = Normalise((0.0,), (1.0,))
    batch = next(create_batches(cfg, PartialState(cpu=True), examples, plain).epoch(0))
    shares = [
        [f"{folds.output_names[number]} {row[number]:.0%}" for number in row.argsort()[::-1] if row[number] > 0.005]
        for row in batch.targets.numpy()
    ]
    titles = ["\n".join(names).removesuffix(" 100%") for names in shares]
    if folds.task.is_number:
        titles = ["\n".join(f"{number:.5g}" for number in row) for row in batch.targets.numpy()]
    shown = batch.inputs[:, : 1 if cfg.channels < 3 else 3]  # a picture has three colours
    draw_images(path, shown.permute(0, 2, 3, 1).clamp(0, 1).numpy(), titles)
    print(f"{path}: {min(len(titles), 64)} of the {len(titles)} images of a batch, --augment {cfg.augment}")


def draw_images(path: Path, images: np.ndarray, titles: Sequence[str]) -> None:
    """Write up to 64 images, float (n, side, side, channels) in 0..1, with a title each, as png."""
    columns = min(8, len(images))
    rows = -(-min(64, len(images)) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), layout="constrained")
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if number < len(images):
            axes.imshow(images[number].squeeze(), cmap="gray", vmin=0, vmax=1)
            axes.set_title(titles[number], fontsize=8)
    write_figure(path, figure)
