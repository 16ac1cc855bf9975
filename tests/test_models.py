"""Models are built for the size they get, and a size that cannot work is refused with one that can."""

import re

import pytest
import torch

from common.errors import UserError
from common.models import create_model


@pytest.mark.parametrize(
    ("name", "img_size", "model_args"),
    [
        ("digit_cnn", 28, {"widths": (8, 16, 24)}),
        ("efficientnet_b0", 28, {}),
        ("resnet10t", 28, {}),
        ("convnext_atto", 32, {}),
        ("test_vit", 28, {"patch_size": 4}),
        ("eva02_tiny_patch14_224", 28, {}),
    ],
)
def test_families_are_built_at_the_size_they_get(name, img_size, model_args):
    """One grey channel, ten classes, at the data's own size: a training step changes the weights."""
    model = create_model(name, model_args, num_classes=10, channels=1, img_size=img_size).train()
    torch.nn.functional.cross_entropy(model(torch.rand(2, 1, img_size, img_size)), torch.tensor([0, 1])).backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@pytest.mark.parametrize("name", ["digit_cnn", "tf_efficientnet_b0"])
def test_training_starts_from_a_uniform_guess(name):
    """Before the first step every class is equally likely, whatever range timm draws the last layer from."""
    logits = create_model(name, {}, 10, 1, 28)(torch.rand(4, 1, 28, 28))
    assert logits.std(dim=1).max() < 0.5 and (logits[0] - logits[1]).abs().max() < 1e-6


def test_a_size_that_is_too_small_is_named_with_one_that_works():
    """The remedy in the message is true: built at that size, the model works."""
    with pytest.raises(UserError, match="convnext_atto needs at least 32 px, the images are 28") as refused:
        create_model("convnext_atto", {}, 10, 1, 28)
    size = int(re.search(r"--img-size (\d+)", str(refused.value))[1])
    assert create_model("convnext_atto", {}, 10, 1, size)(torch.rand(1, 1, size, size)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "model_args", "message"),
    [
        ("efficientnet_bo", {}, "timm has no model efficientnet_bo; did you mean .*efficientnet"),
        ("digit_cnn", {"width": 3}, "--model-args: digit_cnn has no argument width"),
        ("efficientnet_b0", {"patch_size": 3}, "--model-args: efficientnet_b0 has no argument patch_size"),
    ],
)
def test_unknown_models_and_arguments_are_named(name, model_args, message):
    """A misspelt name gets its neighbours, a misspelt argument its own name."""
    with pytest.raises(UserError, match=message):
        create_model(name, model_args, 10, 1, 28)
