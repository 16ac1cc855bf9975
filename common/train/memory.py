"""When memory does not suffice: how that is told, what a user hears of it, and how a fold gives back its own."""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from common.base.errors import ENVIRONMENT, OUT_OF_MEMORY, OwnError
from common.base.words import in_shares

# In lower case, what torch, its allocators, cuBLAS, cuDNN and NCCL say, which raise plain RuntimeErrors.
_SAID = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, the device's or the machine's, was not enough."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID)


@contextmanager
def out_of_memory_said(where: str, what: str, remedy: str) -> Iterator[None]:
    """Say in one line (exit 3) what memory did not hold, and what would help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first, *_ = str(error).splitlines() or [""]
        raise OwnError(where, what + (f": {first[:120]}" if first else ""), remedy, ENVIRONMENT) from error


def out_of_memory_in_training(batch_size: int, processes: int, accumulate: int) -> AbstractContextManager[None]:
    """Of a training: name its batch, and the --accumulate that would leave it as large."""
    share = batch_size // (processes * accumulate)
    smaller = next((n for n in range(accumulate + 1, batch_size + 1) if batch_size % (processes * n) == 0), 0)
    remedy = "free memory and run it again, or --restart with a smaller --batch-size"
    remedy += f", or with --accumulate {smaller} for the same batch" if smaller else ""
    what = f"{OUT_OF_MEMORY} {share} images at a time"
    if share < batch_size:
        what += f" ({batch_size} = {in_shares(processes, accumulate, share)})"
    return out_of_memory_said("--batch-size", what, remedy)


def release_memory() -> None:
    """Give back what a training that is over has held.

    In mixed precision accelerate ties a model to itself, so that only Python's collector frees it, and its optimiser
    and average, which hardly runs by itself.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
