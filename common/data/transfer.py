"""From the host's memory to the device's without a wait, and batches that are ready before they are asked for.

A copy from ordinary memory, and so every tensor made of Python's numbers, holds the host until the device has done all
that is queued; one from page-locked (pinned) memory is queued like any other work. Source: CUDA C++ Programming Guide,
"Asynchronous Concurrent Execution"; torch's tutorial "pin_memory and non_blocking".
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
HOST = torch.device("cpu")


@cache
def constant(values: tuple, device: torch.device) -> Tensor:
    """Numbers (tuples of tuples) as float32 on the device, copied there once for the whole process."""
    with torch.inference_mode(False):  # the first to ask may be a prediction, the next a training
        return torch.tensor(values, dtype=torch.float32, device=device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's memory on ``device``; nobody waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses; 0 where torch cannot tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each of which a thread makes while the one before it is used."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(next, items, end)
        while (item := made.result()) is not end:
            made = pool.submit(next, items, end)
            yield item


def copied_ahead(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Batches of the host's memory on ``device``, each made and copied while the one before it is used.

    On a GPU they should be pinned; a stream of its own lets the copy run beside the step's kernels.
    """
    if device.type != "cuda":
        yield from ahead(batch.to(device) for batch in batches)
        return
    beside = torch.cuda.Stream(device)

    def copied(batch: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(beside):
            return batch.to(device, non_blocking=True), beside.record_event()

    for batch, is_there in ahead(map(copied, batches)):
        step = torch.cuda.current_stream(device)
        step.wait_event(is_there)
        batch.record_stream(step)  # its memory belongs to the other stream, which must not use it again too early
        yield batch
