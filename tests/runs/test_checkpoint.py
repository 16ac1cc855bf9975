"""A checkpoint holds all that the next step depends on, for every optimiser that can be named."""

import json

import pytest
import torch
from timm.optim import list_optimizers

from common.base.errors import UserError
from common.model.optim import create_optimiser, lay_out_state
from common.runs.choices import OPTIMISERS
from common.runs.tensors import join_tensors, load_tensors, save_tensors, separate_tensors

# These need another library, a GPU, or gradients of gradients.
ELSEWHERE = ("bnb", "fused", "apex", "adahessian")
NAMES = [name for name in list_optimizers() if not name.startswith(ELSEWHERE)]
NAMES = sorted({*NAMES, *OPTIMISERS, "lookahead_adamw", "lookahead_muon"})


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    body = torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()
    return torch.nn.Sequential(*body, torch.nn.Linear(16, 3)).to(memory_format=torch.channels_last)


def take_steps(model, optimiser, steps: range) -> None:
    for step in steps:
        images = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        torch.manual_seed(step)  # some optimisers draw numbers
        optimiser.zero_grad()
        model(images).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimiser_goes_on_to_the_bit(name, tmp_path, monkeypatch):
    """Eight steps equal three steps, a file, and five more: tensors, nested lists and numbers of groups alike."""
    monkeypatch.setattr("timm.optim.kron.has_dynamo", False)  # to compile kron's steps takes half a minute
    if name in ("ralamb", "over9000"):
        pytest.importorskip("pytorch_optimizer", reason="they need pytorch-optimizer, an optional extra")
    whole, half, restored = small_model(), small_model(), small_model()
    take_steps(whole, create_optimiser(whole, name, 1e-2, 0.01), range(8))
    optimiser = create_optimiser(half, name, 1e-2, 0.01)
    take_steps(half, optimiser, range(3))
    tensors = dict(half.state_dict())
    state = separate_tensors(optimiser.state_dict(), "optimiser", tensors)
    save_tensors(tmp_path / "checkpoint.safetensors", tensors, {"optimiser": state})

    tensors, metadata = load_tensors(tmp_path / "checkpoint.safetensors")
    restored.load_state_dict({key: tensors[key] for key in restored.state_dict()})
    optimiser = create_optimiser(restored, name, 1e-2, 0.01)
    optimiser.load_state_dict(join_tensors(metadata["optimiser"], tensors))
    lay_out_state(optimiser)
    take_steps(restored, optimiser, range(3, 8))
    for key, value in whole.state_dict().items():
        assert torch.equal(restored.state_dict()[key], value), key


def test_equal_content_gives_equal_bytes_in_any_memory_format(tmp_path):
    """Saved twice, and saved from channels_last: the same file; tied tensors are written one by one."""
    weight = torch.randn(4, 3, 2, 2)
    tensors = {"a": weight, "tied": weight}
    save_tensors(tmp_path / "one", tensors, {"b": 1, "a": [2]})
    last = weight.to(memory_format=torch.channels_last)
    save_tensors(tmp_path / "two", {"a": last, "tied": last}, {"a": [2], "b": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert load_tensors(tmp_path / "one")[1]["a"] == json.loads("[2]")


def test_nan_is_never_written(tmp_path):
    """The tensor is named and the old file stands."""
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": torch.ones(2)}, {})
    before = path.read_bytes()
    with pytest.raises(UserError, match="tensor weight: is not saved: 1 values are NaN") as refused:
        save_tensors(path, {"weight": torch.tensor([1.0, float("nan")])}, {})
    assert refused.value.exit_code == 4 and path.read_bytes() == before
