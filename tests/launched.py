"""Run by tests/forked.py in several processes: predicts many set sizes and says how each came out, as JSON."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from common.data.inputs import Pixels
from common.data.scales import Normalise
from common.train.hardware import agreed_precision
from common.train.loop import Predictor, share_buffers


def main(arguments: list[str]) -> None:
    """Write the report to the path that is the only argument."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    results = []
    model = nn.Flatten()  # the logits of a row are its own pixels, so every misplaced row shows
    for count in range(1, 34):
        images = torch.arange(count * 4).view(count, 1, 2, 2).remainder(256).to(torch.uint8)
        for batch_size in (1, 2, 4, 7, 8):
            rows = torch.randperm(count, generator=torch.Generator().manual_seed(count))
            predict = Predictor(accelerator, Pixels(images), Normalise((0.0,), (1.0,)), "no", batch_size, side=2)
            logits = predict(model, rows.numpy())
            right = torch.equal(torch.from_numpy(logits[0]), images[rows].flatten(1).float().div_(255))
            results.append({"count": count, "batch_size": batch_size, "right": right})

    norm = nn.BatchNorm2d(1)
    norm.running_mean.fill_(accelerator.process_index)
    share_buffers(accelerator, norm)
    report = {
        "processes": accelerator.num_processes,
        "results": results,
        "buffers": accelerator.gather(norm.running_mean).tolist(),
        "precisions": gather_object(
            [agreed_precision("no" if accelerator.process_index == 1 else "bf16", accelerator.device)]
        ),
    }
    if accelerator.is_main_process:
        Path(arguments[0]).write_text(json.dumps(report), encoding="utf-8")
    accelerator.end_training()
