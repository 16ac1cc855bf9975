"""What the machine can do: precision that really works, and the memory format that is faster."""

import copy
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend, parse_flag_from_env
from torch import Tensor, nn

from common.base.errors import ENVIRONMENT, OwnError, UserError, as_said, warn
from common.base.files import read_json, write_json
from common.base.locks import locked
from common.base.system import gpus, listed_gpus, local_processes, local_rank
from common.runs.layout import MEMORY_FORMAT_FILE

FORMATS = ("contiguous_format", "channels_last")
CLEARLY = 0.95  # of the other's time: less of a difference is noise, and the choice decides the bits of the run
ALIKE = 0.2  # of a gradient's length, by which the formats' gradients may differ: bf16 rounds, a fault is far larger
BF16 = re.compile(r"\b(avx512_|amx_)?bf16\b")  # among what Linux says of an x86 or ARM processor
PRECISIONS = ("no", "fp16", "bf16")  # from the weakest
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


def own_device() -> torch.device:
    """The device of this process: under a launcher, the one that accelerate will choose for it."""
    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        return torch.device("cpu")
    own = local_rank() % torch.accelerator.device_count()
    return torch.device(torch.accelerator.current_accelerator().type, own)


def check_devices() -> None:
    """Refuse to compute on the CPU beside a GPU that torch cannot use, and a launcher's processes that share a GPU.

    CUDA_VISIBLE_DEVICES= (nothing) and ACCELERATE_USE_CPU=true say that the CPU is meant.

    Raises:
        UserError: with what torch was built for (exit 3), or the numbers (exit 2).
    """
    if parse_flag_from_env("ACCELERATE_USE_CPU") or not gpus():
        return
    if not torch.accelerator.is_available():
        if listed := listed_gpus():
            built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
            what = f"nvidia-smi lists {len(listed)} of them, but torch {torch.__version__}, built {built}, finds none"
            remedy = "install the torch that pytorch.org names for this system and driver"
            remedy += ", or set CUDA_VISIBLE_DEVICES= to use the CPU"
            raise UserError("GPU", what, remedy, ENVIRONMENT)
    elif local_processes() > torch.accelerator.device_count():
        what = f"{local_processes()} processes on this machine, but torch finds {torch.accelerator.device_count()} GPUs"
        raise UserError("accelerate launch", what, "start one process for each: --num_processes")


def check_backend(accelerator: Accelerator) -> None:
    """Raise UserError where accelerate's configuration shards or wraps the model, whose weights could not be saved."""
    kind, dynamo = accelerator.distributed_type, accelerator.state.dynamo_plugin.backend
    if kind != DistributedType.NO and not kind.value.startswith("MULTI_"):
        raise UserError("accelerate launch", f"{kind.value} is not supported", "configure plain multi-GPU training")
    if dynamo != DynamoBackend.NO:
        what = f"the dynamo backend {dynamo.value} is not supported"
        raise UserError("accelerate launch", what, "set it to no, and use --compile")


def set_up_device(tf32: bool, deterministic: bool, one_size: bool) -> None:
    """Set what torch leaves to its user, for this process, as the training scripts of timm and torchvision do.

    cuDNN tries its algorithms once for each shape, where images have ``one_size`` (torch's performance tuning guide).
    TF32 rounds the factors of float32 products to 10 bits, as torch does by itself in convolutions alone (its notes on
    CUDA semantics). ``--deterministic`` takes only kernels that sum in a fixed order (its notes on reproducibility).
    """
    torch.backends.cudnn.benchmark = one_size and not deterministic
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    if tf32 and own_device().type != "cuda":
        warn("--tf32 has no effect: only NVIDIA's GPUs have it")


def faster_precision(device: torch.device, precision: str) -> str:
    """What another precision would gain, where that is known; else empty.

    A card has tensor cores from compute capability 7.0 on. A processor without bf16 computes it one number at a time.
    """
    if precision == "bf16" and device.type == "cpu" and not BF16.search(_processor()):
        return "this processor has no bf16: without it a step is several times as fast (see docs/scaling.md)"
    if precision != "no" or device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 0):
        return ""
    faster = "bf16" if _precision_works("bf16", device) else "fp16"
    return f"this card computes faster with --mixed-precision {faster} (see docs/scaling.md)"


def _processor() -> str:
    """What Linux says that the processor can do; where it does not, bf16 is taken for one of it."""
    found = Path("/proc/cpuinfo")
    return found.read_text() if found.is_file() else "bf16"


def device_name(device: torch.device) -> str:
    """The name of a card, as its driver has it, or the device's kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def described(device: torch.device) -> str:
    """A card with what decides about precisions and kernels, its compute capability; else the device's kind."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor})"


def memory_of_a_step(device: torch.device) -> str:
    """After a step: what it took of a GPU's memory, and how much others leave of it; empty elsewhere."""
    if device.type != "cuda":
        return ""
    free, there = torch.cuda.mem_get_info(device)
    ours = (torch.cuda.max_memory_allocated(device), torch.cuda.memory_reserved(device) + free, there)
    needed, left, there = (f"{size / 1e9:.1f}" for size in ours)
    return f"GPU memory: a step needs {needed} GB with all that stays there; {left} of {there} GB are ours or free"


def usable_precision(asked: str, trained: bool = False) -> str:
    """``asked`` ("no", "fp16" or "bf16") if it survives a real convolution on this device, else what does.

    bf16 falls back to fp16 on a GPU, anything to "no", and a warning says so. A net that is ``trained`` falls back to
    "no" alone: what it computes may lie outside of fp16's range, which ends at 65,504.
    """
    device = own_device()
    try:
        _convolve("no", device)
    except RuntimeError as error:
        raise _cannot_compute(device, error) from error
    candidates = {"no": [], "bf16": ["bf16"] if trained else ["bf16", "fp16"], "fp16": ["fp16"]}.get(asked)
    if candidates is None:
        raise UserError("accelerate launch", f"mixed precision {asked} is not supported", "use no, fp16 or bf16")
    works = next((name for name in candidates if _precision_works(name, device)), "no")
    if works != asked:
        warn(f"{asked} does not work on this device ({described(device)}): continuing with mixed precision {works}")
    return works


def agreed_precision(works: str, device: torch.device) -> str:
    """The weakest of what works on the processes' devices: the gradients that they average must be scaled alike."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return works
    weakest = torch.tensor(PRECISIONS.index(works), device=device)
    torch.distributed.all_reduce(weakest, torch.distributed.ReduceOp.MIN)
    return PRECISIONS[weakest.item()]


def _cannot_compute(device: torch.device, error: RuntimeError) -> OwnError:
    reason, _, _ = str(error).partition("\n")
    what = f"torch {torch.__version__} cannot compute on it ({reason[:120]})"
    remedy = "free it, or hide it from torch"
    if "no kernel image" in reason:
        major, minor = torch.cuda.get_device_capability(device)
        what = f"torch {torch.__version__} is built for {', '.join(torch.cuda.get_arch_list())}"
        what += f", and not for this card's sm_{major}{minor}"
        remedy = "install a torch that is: for a P100, V100 or GTX 10 the builds for CUDA 12.6 of torch before 2.15"
        remedy += "; on Kaggle choose T4 x2"
    return OwnError(f"device {device}", what, remedy, ENVIRONMENT)


def _precision_works(name: str, device: torch.device) -> bool:
    if name == "fp16" and device.type != "cuda":
        return False  # its gradients need a loss scaler, which accelerate has for CUDA alone
    if name == "bf16" and device.type == "cuda":
        with torch.cuda.device(device):  # cards may differ
            if not torch.cuda.is_bf16_supported(including_emulation=False):
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


def check_compile() -> None:
    """Raise UserError (exit 3) where torch.compile does not work, as without a C++ compiler."""
    device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # its compilers have many, none of them public
        what = f"does not work on this machine ({type(error).__name__}: {' '.join(str(error).split()[:12])} ...)"
        raise UserError("--compile", what, "leave it out, or install a C++ compiler", ENVIRONMENT) from error


def check_compile_apart() -> None:
    """:func:`check_compile` in a process of its own, for one that starts jobs: it would hold some of a GPU's memory."""
    code = "from common.base.errors import run_script; from common.train.hardware import check_compile; "
    tried = subprocess.run(
        [sys.executable, "-c", code + "run_script(check_compile)"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        *_, said = ["", *tried.stderr.strip().splitlines()]
        raise as_said(said, ENVIRONMENT)


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
    micro-batch (n, channels, side, side). channels_last is not chosen where its gradients are not the other's.
    """
    if accelerator.device.type == "mps":  # whose gradients were wrong in it (pytorch issues 175189 and 192212)
        if asked == "yes":
            warn("--channels-last yes: on Apple's GPUs older versions of torch compute wrong gradients in it")
        elif asked == "auto":
            return "contiguous_format"
    if asked != "auto":
        return {"yes": "channels_last", "no": "contiguous_format"}[asked]
    record = run_folder / MEMORY_FORMAT_FILE
    if accelerator.is_main_process:
        with locked(run_folder, wait=True):  # folds side by side agree on one measurement
            if not record.exists():
                model, device = create_model().to(accelerator.device), accelerator.device
                images = torch.rand(shape, device=device)
                seconds = _seconds_per_step(accelerator, model, images)
                contiguous, channels_last = (seconds[name] for name in FORMATS)
                is_faster = channels_last < CLEARLY * contiguous
                choice = FORMATS[is_faster and _same_gradients(accelerator, model, images)]
                write_json(record, {"choice": choice, "seconds_per_step": seconds})
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


def _same_gradients(accelerator: Accelerator, model: nn.Module, images: Tensor) -> bool:
    """Whether a step has about the same gradients in both formats; a warning says where it has not.

    Nothing is dropped out, which each format would draw in an order of its own.
    """
    found = []
    for name in FORMATS:
        copied = copy.deepcopy(model).to(memory_format=getattr(torch, name))
        for layer in copied.modules():
            layer.train(isinstance(layer, nn.modules.batchnorm._BatchNorm))
        with accelerator.autocast():
            loss = copied(images).float().square().mean()
        loss.backward()
        found.append(torch.cat([each.grad.float().flatten() for each in copied.parameters() if each.grad is not None]))
    contiguous, channels_last = found
    if (channels_last - contiguous).norm() <= ALIKE * contiguous.norm():
        return True
    warn("channels_last computes other gradients on this device: contiguous_format is used")
    return False
