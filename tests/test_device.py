"""What a GPU, its driver and other systems ask of the code, tried without them: fakes are monkeypatched functions."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

from common.base import files, system
from common.base.errors import UserError
from common.base.system import gpus
from common.data import images as images_module
from common.data.batches import Examples
from common.data.geometry import affine
from common.data.images import pixels_of
from common.data.transfer import HOST, ahead

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
    second, gather = threading.Event(), images_module._gathered

    def watched(images, some, pinned):
        if some is rows[1]:
            second.set()
        return gather(images, some, pinned)

    monkeypatch.setattr(images_module, "_gathered", watched)
    at_once = list(pixels_of(pixels, rows, HOST))
    assert not second.is_set()
    monkeypatch.setattr(images_module, "WORTH_A_THREAD", 1)
    found = pixels_of(pixels, iter(rows), HOST)
    first = next(found)
    assert second.wait(10)
    assert all(torch.equal(one, other) for one, other in zip(at_once, [first, *found], strict=True))


def test_the_mean_is_taken_of_few_images_at_a_time():
    """Of photos decoded each time, the batches whose levels are counted stay small, and the mean is that of all."""
    from common.data.decoding import Decoder

    class Counted(Decoder):
        largest = 0

        def batches(self, row_batches):
            for rows in row_batches:
                self.largest = max(self.largest, len(rows))
                yield np.stack([np.full((3, 2, 2), row % 256, np.uint8) for row in rows])

    photos = Counted(SimpleNamespace(ids=range(1000)), None)
    rows = torch.arange(1000)
    measured = Examples(photos, torch.zeros(1000, dtype=torch.int64), rows, ("a", "b")).normalise
    assert photos.largest <= 256
    assert measured.mean == pytest.approx([(rows % 256).float().mean().item() / 255] * 3)


def test_grey_shown_as_colour_takes_no_memory_on_the_device():
    """The three channels of all images are one in memory; only a batch is written out."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from common.data.images import load_images

    table = SimpleNamespace(images=np.zeros((5, 8, 8), np.uint8))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert load_images(table, 3, 8, torch.device("cuda")).stride(1) == 0


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
