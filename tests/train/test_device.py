"""What a GPU, its driver and other systems ask of the code, tried without them: fakes are monkeypatched functions."""

import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, train
from torch import nn

from common.base import files, system
from common.base.errors import UserError
from common.base.system import gpus
from common.data import inputs as inputs_module
from common.data.batches import Examples, TrainBatches
from common.data.decoding import Decoder, Preparation
from common.data.geometry import affine, written_out
from common.data.inputs import Photos, Pixels, open_inputs
from common.data.kinds import PIXELS
from common.data.scales import Normalise
from common.data.transfer import HOST, ahead
from common.data.views import TTA
from common.jobs import runner
from common.runs.config import Config
from common.train import hardware, loop, session
from common.train.build import unused_at_first
from common.train.fold_models import logits_of
from common.train.loop import Predictor
from common.train.memory import is_out_of_memory

NONE = Normalise((0.0,), (1.0,))

WHOLE = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)\n"
CUT = "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bb)\n"
SLICES = "  MIG 3g.20gb     Device  0: (UUID: MIG-b1)\n  MIG 3g.20gb     Device  1: (UUID: MIG-b2)\n"


# ---- which GPUs there are


@pytest.mark.parametrize(
    ("visible", "listed", "expected"),
    [
        (None, "", []),
        (None, WHOLE + CUT, ["0", "1"]),
        (None, WHOLE + CUT + SLICES, ["0", "MIG-b1", "MIG-b2"]),
        ("", WHOLE, []),
        ("-1", WHOLE, []),
        ("NoDevFiles", WHOLE, []),
        ("1,-1,0", WHOLE + CUT, ["1"]),
        ("2,5", WHOLE, ["2", "5"]),
    ],
)
def test_each_gpu_and_each_slice_of_one_is_named(visible, listed, expected, monkeypatch):
    """CUDA_VISIBLE_DEVICES decides, in CUDA's sense; else every card, and each slice of one that is cut."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(system.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=listed))
    assert gpus() == expected


# ---- mixed precision


def test_autocast_does_not_round_where_pixels_are():
    """A turned image is the same inside autocast: in bf16, coordinates would be off by up to a pixel."""
    pixels = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = affine(pixels, 6.0, 1.05, 0.1, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(affine(pixels, 6.0, 1.05, 0.1, 0.0), expected)


# ---- batches ahead


def test_the_next_batch_is_made_while_one_is_used():
    """The second item is begun before the first is done with, and none beyond it."""
    begun = [threading.Event() for _ in range(4)]

    def items():
        for number in range(4):
            begun[number].set()
            yield number

    given = ahead(items())
    assert next(given) == 0 and begun[1].wait(10)
    assert not begun[2].wait(0.05)
    assert [*given] == [1, 2, 3]


def test_an_error_ahead_is_met_where_its_batch_is_asked_for():
    """What came before it is whole, and nothing hangs."""

    def items():
        yield 1
        raise UserError("a.jpg", "is broken", "restore it")

    given = ahead(items())
    assert next(given) == 1
    with pytest.raises(UserError, match="is broken"):
        next(given)


def test_large_batches_are_gathered_ahead_and_equal(monkeypatch):
    """By a thread or not, a batch holds the same pixels; the second is looked up before the first is done with."""
    pixels = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    rows = [torch.tensor([3, 1, 3]), torch.tensor([19, 0, 7]), torch.tensor([5])]
    second, gather = threading.Event(), inputs_module._gathered

    def watched(images, some, pinned):
        if some is rows[1]:
            second.set()
        return gather(images, some, pinned)

    monkeypatch.setattr(inputs_module, "_gathered", watched)
    at_once = list(Pixels(pixels).batches(rows, HOST))
    assert not second.is_set()
    monkeypatch.setattr(inputs_module, "WORTH_A_THREAD", 1)
    found = Pixels(pixels).batches(iter(rows), HOST)
    first = next(found)
    assert second.wait(10)
    assert all(torch.equal(one, other) for one, other in zip(at_once, [first, *found], strict=True))


def test_the_mean_is_taken_of_few_images_at_a_time():
    """Of photos decoded each time, the batches whose levels are counted stay small, and the mean is that of all."""

    class Counted(Decoder):
        largest = 0

        def batches(self, row_batches):
            for rows in row_batches:
                self.largest = max(self.largest, len(rows))
                yield np.stack([np.full((3, 2, 2), row % 256, np.uint8) for row in rows])

    photos = Counted(SimpleNamespace(ids=range(1000)), None)
    rows = torch.arange(1000)
    measured = Examples(Photos(photos), torch.zeros(1000, dtype=torch.int64), rows, ("a", "b")).normalise
    assert photos.largest <= 256
    assert measured.mean == pytest.approx([(rows % 256).float().mean().item() / 255] * 3)


def test_grey_shown_as_colour_takes_no_memory_on_the_device():
    """The three channels of all images are one in memory; only a batch is written out."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    table = SimpleNamespace(images=np.zeros((5, 8, 8), np.uint8), kind=PIXELS)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert open_inputs(table, Preparation(3, 8, 8), torch.device("cuda")).values.stride(1) == 0


# ---- Windows


def test_windows_has_no_sigkill():
    """The module that reports failed folds is usable without signal.SIGKILL."""
    code = "import signal; del signal.SIGKILL; import common.train.fold_jobs as jobs; assert jobs.SIGKILL == 9"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_open_file_is_removed_where_that_is_refused(tmp_path, monkeypatch):
    """An error inside a writer is the one that is raised, and nothing stays behind; strays go as well."""
    unlink = Path.unlink

    def refuses_open_files(self, missing_ok=False):
        for descriptor in Path("/proc/self/fd").iterdir():
            if os.path.exists(descriptor) and os.path.realpath(descriptor) == str(self):
                raise PermissionError(13, "in use", str(self))
        unlink(self, missing_ok)

    def breaks(file):
        raise UserError("a.jpg", "is broken", "restore it")

    monkeypatch.setattr(files, "MOVES_OPEN_FILES", False)
    monkeypatch.setattr(Path, "unlink", refuses_open_files)
    (tmp_path / ".old.npy.0123abcd.tmp").write_bytes(b"half")
    with pytest.raises(UserError, match="is broken"):
        files.write_file(tmp_path / "new.npy", breaks)
    assert not [*tmp_path.iterdir()]
    files.write_file(tmp_path / "new.npy", b"whole")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]


# ---- torch, its driver and its launcher


@pytest.fixture
def gpu_listed(monkeypatch):
    """nvidia-smi lists a card, and torch has none."""
    for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hardware, "gpus", lambda: ["0"])
    monkeypatch.setattr(hardware, "listed_gpus", lambda: ["0"])
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def test_an_idle_gpu_is_not_passed_over(gpu_listed, monkeypatch):
    """A torch without CUDA is named with its version; who asks for the CPU gets it."""
    with pytest.raises(UserError, match=r"nvidia-smi lists 1 .*torch .* finds none.*CUDA_VISIBLE_DEVICES=") as caught:
        hardware.check_devices()
    assert caught.value.exit_code == 3
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    hardware.check_devices()


def test_more_processes_than_gpus_are_refused(gpu_listed, monkeypatch):
    """NCCL would say 'Duplicate GPU detected' in a traceback of every process."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(hardware, "local_processes", lambda: 2)
    hardware.check_devices()
    monkeypatch.setattr(hardware, "local_processes", lambda: 3)
    with pytest.raises(UserError, match="3 processes on this machine, but torch finds 2 GPUs"):
        hardware.check_devices()


def test_a_card_that_torch_is_not_built_for_is_named(monkeypatch):
    """With what torch is built for and where to find another; a card that is only busy is not called so."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    for said, expected in (
        (
            "CUDA error: no kernel image is available for execution on the device",
            "sm_75, sm_80, and not .*sm_60; .*12.6",
        ),
        ("CUDA error: device busy", r"cannot compute on it \(CUDA error: device busy\); free it"),
    ):

        def convolve(name, device, said=said):
            raise RuntimeError(said)

        monkeypatch.setattr(hardware, "_convolve", convolve)
        with pytest.raises(UserError, match=expected):
            hardware.usable_precision("no")


@pytest.mark.parametrize(
    ("kind", "backend", "message"),
    [
        ("FSDP", "NO", "FSDP is not supported"),
        ("MULTI_GPU", "INDUCTOR", "dynamo"),
        ("MULTI_GPU", "NO", ""),
        ("NO", "NO", ""),
    ],
)
def test_a_launcher_that_wraps_the_model_is_refused(kind, backend, message):
    """Sharded weights would be saved as if they were whole."""
    from accelerate.utils import DistributedType, DynamoBackend

    plugin = SimpleNamespace(backend=DynamoBackend[backend])
    accelerator = SimpleNamespace(distributed_type=DistributedType[kind], state=SimpleNamespace(dynamo_plugin=plugin))
    with pytest.raises(UserError, match=message) if message else nullcontext():
        hardware.check_backend(accelerator)


def test_a_second_run_in_a_process_may_have_another_precision(tiny, tmp_path):
    """As a notebook has them, one after the other."""
    for precision in ("bf16", "no"):
        train(tiny, tmp_path, "--run", precision, "--fold", 0, "--epochs", 1, "--mixed-precision", precision)
        assert json.loads((tmp_path / precision / "fold0/config.json").read_text())["mixed_precision"] == precision


@pytest.fixture
def kaggle_card(monkeypatch):
    """A card as torch describes it, on which only some precisions compute: `(name, capability, works, arch_list)`."""

    def put(name, capability, works, built_for):
        def convolve(precision, device):
            if not works:
                raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
            return precision in works

        monkeypatch.setattr(hardware, "own_device", lambda: torch.device("cuda", 0))
        monkeypatch.setattr(hardware, "_convolve", convolve)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: "bf16" in works)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)

    return put


def test_kaggles_p100_is_refused_before_a_model_is_made(kaggle_card):
    """What the installed torch was built for, what the card is, and what to choose instead; exit 3."""
    kaggle_card("Tesla P100-PCIE-16GB", (6, 0), (), ["sm_75", "sm_80", "sm_120"])
    with pytest.raises(UserError, match="built for sm_75, sm_80, sm_120, and not .*sm_60; .*Kaggle choose T4") as no:
        hardware.usable_precision("no")
    assert no.value.exit_code == 3


def test_kaggles_t4_computes_in_fp16_and_says_so(kaggle_card, capsys):
    """bf16 is asked for: the card is named with what decides about it, and fp16 goes on."""
    kaggle_card("Tesla T4", (7, 5), ("no", "fp16"), ["sm_75"])
    assert hardware.usable_precision("bf16") == "fp16"
    said = "bf16 does not work on this device (Tesla T4 (sm_75)): continuing with mixed precision fp16"
    assert said in capsys.readouterr().err
    assert hardware.described(torch.device("cuda", 0)) == "Tesla T4 (sm_75)"


def test_on_kaggles_two_t4s_two_folds_train_at_a_time(tiny, tmp_path, monkeypatch, capsys):
    """--fold all gives each card a fold and says so; one process for one fold leaves a card idle and says that."""
    monkeypatch.setattr(runner, "gpus", lambda: ["0", "1"])
    slots, threads = runner.slots_for(runner.SideBySide(), 0, most=5)
    assert [slot.environment for slot in slots] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert runner.spread(slots, threads) == "2 side by side on GPU 0 and GPU 1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    train(tiny, tmp_path, "--run", "alone", "--fold", 0, "--epochs", 1)
    assert "2 GPUs are available but only 1 is used" in capsys.readouterr().err


# ---- memory


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("NCCL error: Cuda failure 'out of memory'", True),
        ("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory", True),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", False),
    ],
)
def test_each_way_to_run_out_of_memory_is_known(said, expected):
    """By the words of torch, cuBLAS, cuDNN and NCCL; what is not supported is no lack of memory."""
    assert is_out_of_memory(RuntimeError(said)) is expected
    assert is_out_of_memory(torch.OutOfMemoryError("")) and is_out_of_memory(MemoryError())


def predictor(images: torch.Tensor, **changes) -> Predictor:
    settings = {"normalise": NONE, "precision": "no", "batch_size": 16, "side": images.shape[-1]}
    return Predictor(accelerator=Accelerator(cpu=True), inputs=Pixels(images), **settings | changes)


def test_predictions_are_halved_until_they_fit(monkeypatch):
    """A net that only bears eight images at a time predicts all of them, and is not asked for more again and again."""
    asked = []

    class Narrow(nn.Flatten):
        def forward(self, images):
            asked.append(len(images))
            if len(images) > 8:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    images = torch.arange(50 * 4).view(50, 1, 2, 2).to(torch.uint8)
    monkeypatch.setattr(loop, "BLOCK", 600)  # bytes: two batches each
    logits = predictor(images)(Narrow(), np.arange(50)[::-1].copy())
    assert torch.equal(torch.from_numpy(logits[0]), images.flip(0).flatten(1).float().div_(255))
    assert [count for count in asked if count > 8] == [16]


def test_what_fp16_cannot_hold_is_predicted_in_float32(capsys):
    """Its range ends at 65,504: rows beyond it are predicted again, the others are not, and it is said."""

    class Large(nn.Flatten):
        def forward(self, images):
            seen = super().forward(images)
            return nn.functional.linear(seen, torch.full((2, 4), 5e4))

    images = torch.tensor([0, 255, 1, 254], dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 1, 2, 2)
    predict = predictor(images, precision="fp16", batch_size=2)
    logits = logits_of(predict, Large(), np.arange(4), TTA["none"])[0, :, 0]
    expected = 2e5 * images[:, 0, 0, 0].numpy() / 255
    np.testing.assert_allclose(logits, expected, rtol=1e-2)
    assert "2 of 4 rows are beyond fp16's range" in capsys.readouterr().err


def test_views_are_seen_in_float32():
    """What the net is given of a turned image is the same in bf16: only the net computes in it."""
    seen = {}
    for precision in ("no", "bf16"):

        class Spy(nn.Flatten):
            def forward(self, images, precision=precision):
                seen.setdefault(precision, []).append(images)
                return super().forward(images)

        images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        predictor(images, precision=precision)(Spy(), np.arange(4), TTA["digits"])
    assert all(torch.equal(*pair) for pair in zip(seen["no"], seen["bf16"], strict=True))


def test_a_fold_leaves_nothing_to_the_next(tiny, tmp_path, monkeypatch):
    """In bf16 accelerate ties a model to itself: at each fold's start the models of earlier folds are gone."""
    models, alive, prepare = [], [], session.prepare_training

    def watched(*arguments):
        alive.append(sum(model() is not None for model in models))
        training = prepare(*arguments)
        models.append(weakref.ref(training.model))
        return training

    monkeypatch.setattr(session, "prepare_training", watched)
    gc.disable()  # as good as: it seldom runs by itself
    try:
        train(tiny, tmp_path, "--fold", "all", "--epochs", 1, "--mixed-precision", "bf16")
    finally:
        gc.enable()
    assert alive == [0, 0, 0]


def test_another_card_is_said_when_a_run_goes_on(tiny, tmp_path, monkeypatch, capsys):
    """Its sums, and so the bits, may differ; a file that does not name its card is not asked."""
    monkeypatch.setattr(session, "device_name", lambda device: "Tesla T4")
    unfinished = tmp_path / "it" / "fold0" / "oof.npz"
    unfinished.mkdir(parents=True)  # a folder in a file's place ends the training after its last epoch
    with pytest.raises(UserError):
        train(tiny, tmp_path, "--run", "it", "--fold", 0, "--epochs", 1)
    unfinished.rmdir()
    monkeypatch.undo()
    train(tiny, tmp_path, "--run", "it", "--fold", 0, "--epochs", 1)
    assert "device changed from Tesla T4 to cpu: expect equivalent" in capsys.readouterr().err


def test_a_run_goes_on_where_the_precision_asked_for_is_missing(tiny, tmp_path, monkeypatch, capsys):
    """Begun on a card without bf16, the same command goes on where there is bf16, and says what changed."""
    asked = ["--run", "it", "--fold", 0, "--epochs", 1, "--mixed-precision", "bf16"]
    monkeypatch.setattr(session, "usable_precision", lambda asked: "no")
    unfinished = tmp_path / "it" / "fold0" / "oof.npz"
    unfinished.mkdir(parents=True)  # a folder in a file's place ends the training after its last epoch
    with pytest.raises(UserError):
        train(tiny, tmp_path, *asked)
    unfinished.rmdir()
    monkeypatch.undo()
    train(tiny, tmp_path, *asked)
    assert "computed_in changed from no to bf16: expect equivalent" in capsys.readouterr().err
    said = [json.loads((tmp_path / "it/fold0" / name).read_text()) for name in ("config.json", "metrics.json")]
    assert (said[0]["mixed_precision"], said[1]["computed_in"]) == ("bf16", "bf16")


def test_what_a_step_needs_is_said_before_the_first_epoch_ends(tiny, tmp_path, monkeypatch, capsys):
    """After one measured step, beside what the device has; other devices than CUDA's say nothing."""
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9e9, 16e9))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2.5e9)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3e9)
    said = hardware.memory_of_a_step(card)
    assert "a step needs 2.5 GB" in said and "12.0 of 16.0 GB" in said
    assert not hardware.memory_of_a_step(HOST)
    monkeypatch.setattr(loop, "memory_of_a_step", lambda device: said)
    train(tiny, tmp_path, "--fold", 0, "--epochs", 2)
    before, after = capsys.readouterr().out.split("epoch   1/2")
    assert said in before and said not in after


def test_a_launcher_of_several_is_refused_where_one_works(monkeypatch):
    """Each process would decode all, write every file and print every line."""
    import average
    import infer

    monkeypatch.setenv("WORLD_SIZE", "2")
    for script in (infer, average):
        with pytest.raises(UserError, match=f"run python {script.__name__}.py, which takes one GPU"):
            script.main([])


def test_the_suite_does_not_use_the_machines_gpus(tiny, tmp_path, monkeypatch):
    """Where nvidia-smi lists two cards, tests train on the CPU all the same: bits are promised there."""
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-a)'; echo 'GPU 1: A (UUID: GPU-b)'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert len(system.listed_gpus()) == 2 and not gpus()
    train(tiny, tmp_path, "--run", "it", "--fold", 0, "--epochs", 1)
    assert json.loads((tmp_path / "it/fold0/metrics.json").read_text())["device"] == "cpu"


def test_a_range_test_that_does_not_fit_is_one_line(monkeypatch):
    """Its batches are the sweep's, and its memory is the device's."""
    from common.sweep import range_test

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(range_test, "with_images_of", full)
    with pytest.raises(UserError, match="range test: .* CUDA out of memory.*--batch-size") as caught:
        range_test.range_test(Config(fold="0", threads=1), None, None)
    assert caught.value.exit_code == 3


def test_noise_for_a_large_batch_is_drawn_a_block_at_a_time(monkeypatch):
    """Each process draws for the whole batch, so that all agree, and keeps its own share, 67 MB at most at once."""
    drawn = []

    def rand(count, k, generator, device):
        drawn.append(count * k)
        return torch.empty(count, k)

    monkeypatch.setattr(torch, "rand", rand)
    batches = SimpleNamespace(batch_size=2048, device=HOST)
    numbers = TrainBatches._uniform(batches, 0, slice(192, 256), HOST)(3 * 224 * 224)
    assert numbers.shape == (64, 3 * 224 * 224) and sum(drawn) == 2048 * 3 * 224 * 224
    assert max(drawn) * 4 <= 67.2e6


def test_apples_gpus_draw_noise_without_ndtri():
    """torch lacks it there; what takes its place gives the same deviates."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.overrides import TorchFunctionMode

    from common.data.augment import _normal

    class Apples(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            if function is torch.special.ndtri:
                raise NotImplementedError("aten::special_ndtri is not implemented for the MPS device")
            return function(*arguments, **(keywords or {}))

    with FakeTensorMode(), Apples():
        assert _normal(torch.empty(3, device="mps")).device.type == "mps"
    draw = torch.linspace(1e-4, 1 - 1e-4, 999, dtype=torch.float64)
    torch.testing.assert_close(2**0.5 * torch.erfinv(2 * draw - 1), _normal(draw))


def test_averages_are_kept_in_the_hosts_memory():
    """Kept states lie beside a training, which fills the device."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from common.model.averages import copy_of, mean_of

    with FakeTensorMode():
        state = {"weight": torch.zeros(2, device="cuda"), "count": torch.zeros((), dtype=torch.int64, device="cuda")}
        kept = copy_of(state)
        mean = mean_of(kept, state, 0.5)
    assert {tensor.device.type for tensor in [*kept.values(), *mean.values()]} == {"cpu"}


def test_the_product_that_tf32_cannot_round_is_the_product():
    """Written out, points are moved as by a product of matrices."""
    random = torch.Generator().manual_seed(0)
    points, matrix, shift = (torch.rand(*shape, generator=random) for shape in ((3, 8, 8, 2), (3, 2, 2), (3, 1, 2)))
    expected = torch.baddbmm(shift, points.flatten(1, 2), matrix).view(points.shape)
    torch.testing.assert_close(written_out(points, matrix, shift), expected)


def test_what_a_device_should_do_is_set(monkeypatch):
    """A second run sets what the first had changed back."""
    hardware.set_up_device(tf32=False, deterministic=True, one_size=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    hardware.set_up_device(tf32=True, deterministic=False, one_size=False)
    assert torch.get_float32_matmul_precision() == "high" and not torch.backends.cudnn.benchmark
    hardware.set_up_device(tf32=False, deterministic=False, one_size=True)
    assert torch.backends.cudnn.benchmark and torch.get_float32_matmul_precision() == "highest"
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_gpu_takes_the_fused_step():
    """AdamW's few kernels, where parameters are on a GPU; on a CPU, and where asked otherwise, nothing changes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from common.model.optim import create_optimiser

    def fused(device: str, **opt_args) -> bool | None:
        return create_optimiser(nn.Linear(2, 2, device=device), "adamw", 1e-3, 0.05, **opt_args).defaults["fused"]

    with FakeTensorMode():
        assert fused("cuda") is True and fused("cuda", foreach=True) is None
    assert fused("cpu") is None


def test_a_recomputed_net_trains_the_same_weights(tiny, tmp_path):
    """--model-args grad_checkpointing=true: less memory, equal predictions; a net without the switch is refused."""
    model = ["--model", "test_vit", "--fold", 0, "--epochs", 2, "--model-args", "patch_size=4"]
    for run, more in (("kept", []), ("again", ["grad_checkpointing=true"])):
        train(tiny, tmp_path, "--run", run, *model, *more)
    kept, again = (np.load(tmp_path / run / "fold0/oof.npz")["logits"] for run in ("kept", "again"))
    np.testing.assert_allclose(kept, again, atol=1e-6)
    with pytest.raises(UserError, match="digit_cnn has no grad_checkpointing"):
        train(tiny, tmp_path, "--run", "no", "--fold", 0, "--model-args", "grad_checkpointing=true")


def test_a_net_of_bf16_is_not_squeezed_into_fp16(monkeypatch):
    """A card without bf16 trains in fp16, with its loss scaler, but a net of bf16 predicts in float32."""
    monkeypatch.setattr(hardware, "_precision_works", lambda name, device: name == "fp16")
    assert hardware.usable_precision("bf16") == "fp16"
    assert hardware.usable_precision("bf16", trained=True) == "no"


def test_tensor_cores_that_lie_idle_are_mentioned(monkeypatch):
    """A T4 in float32 is told of fp16; a P100 has nothing to gain, nor has who asked for a precision."""
    card = torch.device("cuda", 0)
    monkeypatch.setattr(hardware, "_precision_works", lambda name, device: name == "fp16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "--mixed-precision fp16" in hardware.faster_precision(card, "no")
    assert not hardware.faster_precision(card, "fp16") and not hardware.faster_precision(HOST, "no")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 0))
    assert not hardware.faster_precision(card, "no")


def test_ddp_looks_for_unused_parameters_only_where_some_thaw():
    """What is frozen throughout has no gradient to wait for."""
    assert unused_at_first(Config(epochs=10, freeze=("backbone=2",)))
    assert not unused_at_first(Config(epochs=10, freeze=("backbone=10",)))
    assert not unused_at_first(Config(epochs=10))


@pytest.mark.parametrize(
    ("flags", "is_slow"), [("avx2 fma", True), ("avx512f avx512_bf16", False), ("asimd bf16", False)]
)
def test_bf16_on_a_processor_without_it_is_said_to_be_slow(flags, is_slow, monkeypatch):
    """There it takes five to twelve times as long, without an error; nothing is said where it was not asked for."""
    monkeypatch.setattr(hardware, "_processor", lambda: f"flags\t: fpu {flags} cx16\n")
    assert ("has no bf16" in hardware.faster_precision(HOST, "bf16")) == is_slow
    assert not hardware.faster_precision(HOST, "no")
