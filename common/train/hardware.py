"""What the machine can do: precision that really works, and the memory format that is faster."""

import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from common.base.errors import ENVIRONMENT, OUT_OF_MEMORY, OwnError, UserError, warn
from common.base.files import read_json, write_json
from common.base.locks import locked
from common.base.system import local_rank
from common.base.words import in_shares
from common.runs.layout import MEMORY_FORMAT_FILE

FORMATS = ("contiguous_format", "channels_last")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """torch's mixed precision on ``device``; "no" computes in float32."""
    return torch.autocast(device.type, dtype=DTYPES.get(precision), enabled=precision != "no")


def asked_precision(asked: str) -> str:
    """What --mixed-precision means here: "auto" is the launcher's value.

    Raises:
        UserError: the launcher and the command line ask for different ones.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked == "auto":
        return launcher
    if launcher not in ("no", asked):
        what = f"{asked} was asked for, but accelerate launch uses {launcher}"
        raise UserError("--mixed-precision", what, "give only one of them")
    return asked


def usable_precision(asked: str) -> str:
    """``asked`` ("no", "fp16" or "bf16") if it survives a real convolution on this device, else what does.

    bf16 falls back to fp16 on a GPU, anything to "no", and a warning says so.
    """
    device = torch.device("cpu")
    if torch.accelerator.is_available():  # under a launcher, the one that accelerate will choose for this process
        own = local_rank() % torch.accelerator.device_count()
        device = torch.device(torch.accelerator.current_accelerator().type, own)
    try:
        _convolve("no", device)
    except RuntimeError as error:
        reason, _, _ = str(error).partition("\n")
        what = f"torch {torch.__version__} cannot compute on it ({reason[:120]})"
        remedy = "free it, install a torch that is built for it, or hide it from torch"
        raise OwnError(f"device {device}", what, remedy, ENVIRONMENT) from error
    candidates = {"no": [], "bf16": ["bf16", "fp16"], "fp16": ["fp16"]}.get(asked)
    if candidates is None:
        raise UserError("accelerate launch", f"mixed precision {asked} is not supported", "use no, fp16 or bf16")
    works = next((name for name in candidates if _precision_works(name, device)), "no")
    if works != asked:
        warn(f"{asked} does not work on this device ({device}): continuing with mixed precision {works}")
    return works


def _precision_works(name: str, device: torch.device) -> bool:
    if name == "fp16" and device.type != "cuda":
        return False  # its gradients need a loss scaler, which accelerate has for CUDA alone
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return False
    try:
        return _convolve(name, device)
    except RuntimeError:
        return False


def _convolve(precision: str, device: torch.device) -> bool:
    """Whether a small convolution, forward and backward, gives finite numbers."""
    with autocast(device, precision):
        image = torch.ones(1, 1, 4, 4, device=device, requires_grad=True)
        F.conv2d(image, torch.ones(1, 1, 3, 3, device=device)).sum().backward()
    return bool(torch.isfinite(image.grad).all())


@contextmanager
def out_of_memory_named(batch_size: int, processes: int, accumulate: int) -> Iterator[None]:
    """Say in one line (exit 3) which batch the device's or the machine's memory did not hold, and what would fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        share = batch_size // (processes * accumulate)
        smaller = next((n for n in range(accumulate + 1, batch_size + 1) if batch_size % (processes * n) == 0), 0)
        remedy = "free memory and run it again, or --restart with a smaller --batch-size"
        remedy += f", or with --accumulate {smaller} for the same batch" if smaller else ""
        what = f"{OUT_OF_MEMORY} {share} images at a time"
        if share < batch_size:
            what += f" ({batch_size} = {in_shares(processes, accumulate, share)})"
        what += f": {str(error).splitlines()[0][:120]}" if str(error) else ""
        raise OwnError("--batch-size", what, remedy, ENVIRONMENT) from error


def check_compile() -> None:
    """Raise UserError (exit 3) where torch.compile does not work, as without a C++ compiler."""
    device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # its compilers have many, none of them public
        what = f"does not work on this machine ({type(error).__name__}: {' '.join(str(error).split()[:12])} ...)"
        raise UserError("--compile", what, "leave it out, or install a C++ compiler", ENVIRONMENT) from error


def memory_format(
    asked: str,
    run_folder: Path,
    accelerator: Accelerator,
    create_model: Callable[[], nn.Module],
    shape: tuple[int, ...],
) -> str:
    """Name of torch's memory format to train in; with ``asked`` "auto" the faster on a few real steps.

    Measured once per run by the main process, recorded in the run's folder, and read back by its other
    folds and processes; the record keeps a resumed run on the same arithmetic. ``shape`` is that of one
    micro-batch (n, channels, side, side).
    """
    if asked != "auto":
        return {"yes": "channels_last", "no": "contiguous_format"}[asked]
    record = run_folder / MEMORY_FORMAT_FILE
    if accelerator.is_main_process:
        with locked(run_folder, wait=True):  # folds side by side agree on one measurement
            if not record.exists():
                model, device = create_model().to(accelerator.device), accelerator.device
                seconds = _seconds_per_step(accelerator, model, torch.rand(shape, device=device))
                write_json(record, {"choice": min(seconds, key=seconds.get), "seconds_per_step": seconds})
    accelerator.wait_for_everyone()
    choice = read_json(record, choice=str)["choice"]
    if choice not in FORMATS:
        raise UserError(str(record), f"{choice} is not a memory format", "delete it, and it is measured again")
    return choice


def _seconds_per_step(accelerator: Accelerator, model: nn.Module, images: Tensor) -> dict[str, float]:
    """Median seconds of a forward and backward pass in each format, taken in turn on copies of the model."""
    models = {name: copy.deepcopy(model).train().to(memory_format=getattr(torch, name)) for name in FORMATS}
    seconds = {name: [] for name in FORMATS}
    for _ in range(7):
        for name in FORMATS:
            start = time.perf_counter()
            with accelerator.autocast():
                loss = models[name](images).float().square().mean()
            loss.backward()
            loss.item()  # waits for the device
            seconds[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(times[2:]), 6) for name, times in seconds.items()}
