"""What most notebooks of such competitions do: the way to be beaten.

One row of a DataFrame per item, torchvision's transforms image by image, a DataLoader; at inference the weights of
every fold are loaded again for every batch, and the whole Dataset is walked once per view.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

WORKERS = 2


class Rows(Dataset):
    """Item i: the image of row i of a DataFrame, and its one-hot label.

    ``frame`` has the columns label (a class number) and either pixel0, pixel1, ... or path.
    """

    def __init__(self, frame: pd.DataFrame, num_classes: int, transforms: Sequence[nn.Module]):
        self.frame, self.num_classes = frame, num_classes
        self.transform = v2.Compose([*transforms, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.frame.iloc[index]
        label = torch.eye(self.num_classes)[row["label"]]
        if "path" in row:
            return self.transform(Image.open(row["path"]).convert("RGB")), label
        pixels = row.drop("label").to_numpy(dtype=np.uint8)
        side = int(len(pixels) ** 0.5)
        return self.transform(Image.fromarray(pixels.reshape(side, side))), label


def training_steps(model: nn.Module, rows: Rows, batch_size: int) -> Iterator[int]:
    """Train for one epoch, giving the number of images of each step after it."""
    loader = DataLoader(rows, batch_size, shuffle=True, drop_last=True, num_workers=WORKERS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for images, targets in loader:
        loss = F.cross_entropy(model(images), targets, label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield len(images)


@torch.no_grad()
def predict(model: nn.Module, weights: Sequence[Path], views: Sequence[Rows], batch_size: int) -> Tensor:
    """Mean probabilities (rows, classes) of the models with these ``weights`` over the ``views`` of the same rows."""
    model.eval()
    total = 0.0
    for rows in views:
        found = []
        for images, _ in DataLoader(rows, batch_size, num_workers=WORKERS):
            of_batch = 0.0
            for path in weights:
                model.load_state_dict(load_file(path))
                of_batch = of_batch + model(images).softmax(dim=1)
            found.append(of_batch)
        total = total + torch.cat(found)
    return total / (len(weights) * len(views))
