"""Loops over images as other scripts have them, for benchmarks to stand beside ours."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import timm
import timm.optim
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import nn

from common.data.table import Table
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


class Decoded(torch.utils.data.Dataset):
    """A table's images with a transform each; timm's loader sets its own, which ends in uint8."""

    def __init__(self, table: Table, transform: Callable[[Image.Image], Any] | None = None):
        self.images, self.transform = table.images, transform
        self.targets = np.unique(table.labels.astype(str), return_inverse=True)[1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        image = self.images[row]
        opened = Image.fromarray(image.squeeze()) if isinstance(image, np.ndarray) else Image.open(image).convert("RGB")
        return self.transform(opened), int(self.targets[row])


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
        Decoded(table),
        (3, side, side),
        BATCH_SIZE,
        is_training=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        device=own_device(),
    )
    return lambda: iter(loader)


def accelerates_steps(model: nn.Module, images: Decoded, batch_size: int, workers: int) -> Iterator[int]:
    """Train without end in the form of accelerate's own example (examples/cv_example.py); gives each step's images."""
    accelerator = Accelerator(cpu=own_device().type == "cpu")
    loader = torch.utils.data.DataLoader(images, batch_size, shuffle=True, drop_last=True, num_workers=workers)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, epochs=1000, steps_per_epoch=len(loader))
    model, optimiser, loader, schedule = accelerator.prepare(model.train(), optimiser, loader, schedule)
    while True:
        for inputs, targets in loader:
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            yield len(inputs)


def timms_steps(model: nn.Module, images: Decoded, batch_size: int, workers: int, side: int) -> Iterator[int]:
    """Train without end in the form of timm's train.py (not in its wheel) with --channels-last."""
    grey = isinstance(images.images, np.ndarray)
    levels = {"mean": (0.5,), "std": (0.5,)} if grey else {}
    loader = timm.data.create_loader(
        images,
        (1 if grey else 3, side, side),
        batch_size,
        is_training=True,
        scale=(0.8, 1.0),
        hflip=0.0 if grey else 0.5,
        color_jitter=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        device=own_device(),
        **levels,
    )
    model = model.train().to(own_device(), memory_format=torch.channels_last)
    optimiser = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3)
    while True:
        for inputs, targets in loader:
            loss = F.cross_entropy(model(inputs.contiguous(memory_format=torch.channels_last)), targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            yield len(inputs)


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
