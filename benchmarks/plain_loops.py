"""Loops over photos as other scripts have them, for benchmarks to stand beside ours."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from common.data.tables import Table
from common.train.hardware import own_device

BATCH_SIZE = 32
Epoch = Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]  # batches of images and targets, on the device


class Photos(torch.utils.data.Dataset):
    """Photos as a plain script reads them: decoded, resized and mirrored by workers, one by one."""

    def __init__(self, table: Table, side: int):
        self.files, self.side = table.images, side
        self.targets = np.unique(table.labels.astype(str), return_inverse=True)[1]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        pixels = np.asarray(Image.open(self.files[row]).convert("RGB").resize((self.side, self.side)))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        return image.flip(2) if row % 2 else image, int(self.targets[row])


class Decoded(Photos):
    """Photos as timm's loader takes them: it sets the transform, which ends in uint8; its prefetcher does the rest."""

    transform = None

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.transform(Image.open(self.files[row]).convert("RGB")), int(self.targets[row])


def over_a_data_loader(table: Table, side: int, workers: int) -> Epoch:
    """As most scripts have it."""
    device = own_device()
    loader = torch.utils.data.DataLoader(
        Photos(table, side),
        BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )

    def epoch() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pixels, targets in loader:
            yield pixels.to(device, non_blocking=True).float().div_(255), targets.to(device, non_blocking=True)

    return epoch


def over_timms_loader(table: Table, side: int, workers: int) -> Epoch:
    """With its prefetcher, as in timm's train.py (which is not in its wheel)."""
    loader = timm.data.create_loader(
        Decoded(table, side),
        (3, side, side),
        BATCH_SIZE,
        is_training=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        device=own_device(),
    )
    return lambda: iter(loader)


LOOPS = {"a plain DataLoader loop": over_a_data_loader, "timm's loader and prefetcher": over_timms_loader}


def images_a_second(epoch: Epoch, model_name: str, table: Table) -> float:
    """Of the second epoch of training a model; the first starts workers and kernels."""
    device = own_device()
    model = timm.create_model(model_name, num_classes=len(set(table.labels))).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(2):
        started, seen = time.perf_counter(), 0
        for images, targets in epoch():
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = F.cross_entropy(model(images), targets)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            seen += len(images)
        loss.item()
    return seen / (time.perf_counter() - started)
