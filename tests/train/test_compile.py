"""--compile and sync_bn: faster steps and shared statistics, with the same weights under the same names."""

import pytest
import torch
from conftest import train
from torch import nn

from common.base.errors import UserError
from common.base.result import Result
from common.model.networks import create_model
from common.runs.config import Config
from common.runs.tensors import load_tensors
from common.train import build, hardware
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


def test_each_shape_has_a_graph_of_its_own_and_the_average_is_compiled(tiny, tmp_path, monkeypatch):
    """Training and the larger batches of evaluation: no graph whose batch is a variable, whose kernels are slower."""
    seen, compile_module = [], nn.Module.compile

    def counting(graph, inputs):
        seen.append([size for each in inputs if isinstance(each, torch.Tensor) for size in each.shape])
        seen[-1] += [each for each in inputs if isinstance(each, torch.SymInt)]
        return graph

    monkeypatch.setattr(build, "check_compile", lambda: None)
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compile_module(self, backend=counting, **how))
    train(
        tiny, tmp_path, "--compile", "--fold", 0, "--epochs", 2, "--ema-decay", "0.9", "--model-args", "widths=(2,2,2)"
    )
    assert len(seen) == 2
    assert not any(isinstance(size, torch.SymInt) for sizes in seen for size in sizes)


def test_folds_side_by_side_are_checked_without_a_graph_in_the_parent(tiny, tmp_path, monkeypatch):
    """A process that only starts jobs would hold half a gigabyte of a GPU; where it does not work, a child says so."""
    import train_fold

    def refused():
        raise AssertionError("the parent compiles")

    monkeypatch.setattr(build, "check_compile", refused)
    monkeypatch.setattr(train_fold, "train_side_by_side", lambda *arguments: None)
    monkeypatch.setattr(train_fold, "result_of", lambda *arguments: Result(None, tmp_path))
    asked, apart = [], hardware.check_compile_apart
    monkeypatch.setattr(hardware, "check_compile_apart", lambda: asked.append(True))
    train(tiny, tmp_path, "--compile", "--fold", "all", "--jobs", 2)
    assert asked
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with pytest.raises(UserError, match="--compile: does not work on this machine .*; leave it out") as caught:
        apart()
    assert caught.value.exit_code == 3
