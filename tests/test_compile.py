"""--compile and sync_bn: faster steps and shared statistics, with the same weights under the same names."""

import pytest
import torch
from conftest import train
from torch import nn

from common.base.errors import UserError
from common.model.networks import create_model
from common.runs.config import Config
from common.runs.tensors import load_tensors
from common.train.build import check_choices


def test_a_compiled_model_trains_to_the_same_weights(tiny, tmp_path):
    """Compiled in place: no name in the weights file changes, and the numbers are those of the plain model."""
    small = ["--fold", "full", "--epochs", 1, "--model-args", "widths=(2,2,2)"]  # without rows to predict: one shape
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        train(tiny, tmp_path, *small, "--run", name, *flags)
    plain, compiled = (
        load_tensors(tmp_path / name / "full" / "model.safetensors")[0] for name in ("plain", "compiled")
    )
    assert plain.keys() == compiled.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, atol=1e-3, rtol=1e-3)


def test_sync_bn_on_one_device_is_refused():
    """It would change nothing (on a CPU it would fail); its tensors keep their names, so infer reads it."""
    cfg = Config(channels=1, img_size=8, model_args=("sync_bn=True",))
    with pytest.raises(UserError, match="sync_bn=True averages over the GPUs .* but only one device is in use"):
        check_choices(cfg, ["a", "b"], micro_batch=8, grey=True)
    torch.manual_seed(0)
    model = create_model("digit_cnn", {"sync_bn": True}, 2, 1, 8)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted.state_dict().keys() == create_model("digit_cnn", {}, 2, 1, 8).state_dict().keys()
