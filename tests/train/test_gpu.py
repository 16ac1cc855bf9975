"""What only a GPU shows: `make gpu` runs these with FIVEFOLD_GPU=1; elsewhere, and in the suite, they are skipped."""

import json

import numpy as np
import pytest
import torch
from conftest import run_script, train

import infer
from common.data import inputs
from common.runs.predictions import read_predictions
from common.train.hardware import own_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and FIVEFOLD_GPU=1")


def test_batches_copied_beside_a_step_hold_their_rows(monkeypatch):
    """While the device still computes the last step: a buffer that is used again too early would show other rows."""
    monkeypatch.setattr(inputs, "WORTH_A_THREAD", 1)
    pixels = torch.randint(0, 256, (256, 3, 64, 64), dtype=torch.uint8)
    rows = list(torch.randperm(256).split(16))
    device, found = own_device(), []
    product = torch.randn(2048, 2048, device=device) / 45
    for batch in inputs.Pixels(pixels).batches(iter(rows), device):
        for _ in range(20):
            product = product @ product
        found.append(batch.clone())
    for some, batch in zip(rows, found, strict=True):
        assert batch.device == device and torch.equal(batch.cpu(), pixels[some])


def test_a_model_of_the_gpu_predicts_the_same_on_the_host(tiny, tmp_path):
    """float32: probabilities differ by rounding; a fold leaves at most 64 MB on the card."""
    before = torch.cuda.memory_allocated()
    train(tiny, tmp_path, "--run", "it", "--mixed-precision", "no")
    assert json.loads((tmp_path / "it/fold0/metrics.json").read_text())["device"] != "cpu"
    assert torch.cuda.memory_allocated() - before < 64 << 20
    places = ["--runs-dir", str(tmp_path), "--test", str(tiny / "test.csv")]
    infer.main(places)
    of_the_card = read_predictions(tmp_path / "it" / "test.npz").logits
    done = run_script("infer.py", *places, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(read_predictions(tmp_path / "it" / "test.npz").logits, of_the_card, atol=1e-3)
