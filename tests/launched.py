"""Started by a launcher, not collected: predicts many set sizes and says how each came out, as JSON."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from common.data.inputs import Pixels
from common.data.scales import Normalise
from common.train.loop import Predictor, share_buffers

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
buffers = accelerator.gather(norm.running_mean).tolist()
if accelerator.is_main_process:
    report = {"processes": accelerator.num_processes, "results": results, "buffers": buffers}
    Path(sys.argv[1]).write_text(json.dumps(report), encoding="utf-8")
accelerator.end_training()
