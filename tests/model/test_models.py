"""Models are built for the size they get, and a size that cannot work is refused with settings that can."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from common.base.cli import keyword_arguments
from common.base.errors import UserError
from common.data.inputs import Pixels
from common.data.scales import Normalise
from common.model.networks import (
    build,
    create_model,
    current_name,
    last_layers,
    photo_preparation,
    photo_size,
    working_settings,
)
from common.train.loop import Predictor

DIGIT = 28  # px
SMALL_FAMILIES = [
    "digit_cnn",
    "tf_efficientnet_b0.ns_jft_in1k",
    "convnext_atto.d2_in1k",
    "edgenext_xx_small",
    "tiny_vit_5m_224",
    "vit_tiny_patch16_224",
    "eva02_tiny_patch14_224",
    "resnet18",
    "seresnext50_32x4d",
    "xception41",
    "mobilenetv2_100",
]
# Too big to train here at every run: torch's meta device computes their shapes. benchmarks/zoo.md has them for real.
BIG_FAMILIES = [
    "efficientnet_b1",
    "efficientnet_b4",
    "efficientnet_b7",
    "convnext_small",
    "edgenext_base",
    "vit_base_patch16_224",
    "resnet34",
    "resnet50",
    "seresnext101_32x4d",
]
BIG_FAMILIES += ["senet154", "legacy_xception", "inception_resnet_v2"]


def proposals(name: str) -> list[tuple[int, dict]]:
    """(img_size, model_args) of each setting that the start-up check proposes for digits, read from its message."""
    try:
        create_model(name, {}, 10, 1, DIGIT)
        return [(DIGIT, {})]
    except UserError as refused:
        message = str(refused)
    sizes = [(int(size), {}) for size in re.findall(r"--img-size (\d+)", message)]
    arguments = [
        (DIGIT, keyword_arguments("", tuple(pairs.split()))) for pairs in re.findall(r"--model-args ([^,]+)", message)
    ]
    assert sizes or arguments, message
    return sizes + arguments


@pytest.mark.parametrize("name", SMALL_FAMILIES)
def test_every_family_trains_and_predicts_from_digits_as_the_check_proposes(name):
    """Built with each proposed setting, a step lowers the loss of its own batch and predict gives finite logits."""
    for img_size, model_args in proposals(name):
        torch.manual_seed(0)
        model = create_model(name, model_args, num_classes=10, channels=1, img_size=img_size).train()
        images = torch.randint(256, (4, 1, img_size, img_size), dtype=torch.uint8)
        pixels, targets = images.float() / 255, torch.arange(4)
        before = F.cross_entropy(model(pixels), targets)
        before.backward()
        assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)
        torch.optim.SGD(model.get_classifier().parameters(), lr=0.01).step()
        torch.manual_seed(0)
        assert F.cross_entropy(model(pixels), targets) < before
        inputs, plain = Pixels(images), Normalise((0.0,), (1.0,))
        predict = Predictor(Accelerator(cpu=True), inputs, plain, "no", batch_size=4, side=img_size)
        logits = predict(model, np.arange(4))
        assert logits.shape == (1, 4, 10) and (abs(logits) < 1e6).all()


@pytest.mark.parametrize("name", BIG_FAMILIES)
def test_every_big_family_has_a_setting_whose_shapes_fit(name):
    """The digits as they are, or else what the check would propose, give logits and a gradient."""
    tried = [(DIGIT, {})]
    try:
        trains_on_meta(name, *tried[0])
    except (RuntimeError, AssertionError):  # too small
        tried = working_settings(name, {}, 10, 1, DIGIT)
        assert tried
        for setting in tried:
            trains_on_meta(name, *setting)


def trains_on_meta(name: str, img_size: int, model_args: dict) -> None:
    with torch.device("meta"):
        model = build(name, model_args, 10, 1, img_size).train()
        F.cross_entropy(model(torch.rand(2, 1, img_size, img_size)), torch.tensor([0, 1])).backward()
    assert all(weight.grad is not None for weight in model.get_classifier().parameters())


@pytest.mark.parametrize(
    ("name", "img_size", "model_args"),
    [("efficientnet_b0", 64, {}), ("convnext_atto", 64, {}), ("test_vit", 28, {"patch_size": 4})],
)
def test_drop_rates_and_pooling_reach_the_model(name, img_size, model_args):
    """--model-args drop_rate drop_path_rate global_pool change what the model is made of."""
    model = create_model(name, {**model_args, "drop_rate": 0.25, "drop_path_rate": 0.5}, 10, 1, img_size)
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} | {
        getattr(model, "drop_rate", 0)
    }
    paths = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert 0.25 in rates and max(paths) > 0.2
    pools = ["avg", "max", "avgmax"] + ["catavgmax"] * (name == "efficientnet_b0")
    torch.manual_seed(0)
    images, seen = torch.rand(2, 1, img_size, img_size), []
    for pool in pools:
        torch.manual_seed(0)
        model = create_model(name, {**model_args, "global_pool": pool}, 10, 1, img_size).eval()
        seen.append(model.forward_head(model.forward_features(images), pre_logits=True))
    assert all(not torch.equal(seen[0], other) for other in seen[1:])
    if "catavgmax" in pools:
        assert seen[-1].shape[1] == 2 * seen[0].shape[1]  # average and maximum side by side


def test_a_stage_of_digit_cnn_has_its_width_its_depth_and_one_pooling():
    """Two stages of one and of three convolutions end at a quarter of the side; only the first kernel is given."""
    model = create_model("digit_cnn", {"widths": (4, 6), "depths": (1, 3), "first_kernel": 7}, 10, 1, 28)
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [(each.in_channels, each.out_channels) for each in convolutions] == [(1, 4), (4, 6), (6, 6), (6, 6)]
    assert [each.kernel_size[0] for each in convolutions] == [7, 3, 3, 3]
    assert model.features(torch.rand(1, 1, 28, 28)).shape == (1, 6, 7, 7)


def test_without_padding_digit_cnn_sees_nothing_beyond_the_image():
    """A valid 5 x 5 convolution makes 24 pixels of 28; of an even grey every place then says the same."""
    even = torch.full((1, 1, 28, 28), 0.5)
    for padding, side, alike in (("valid", 24, True), ("same", 28, False)):
        model = create_model("digit_cnn", {"first_padding": padding}, 10, 1, 28).eval()
        seen = model.features[0](even)
        assert seen.shape[-1] == side
        assert torch.allclose(seen, seen[..., :1, :1], atol=1e-6) == alike
        assert model(even).shape == (1, 10)


def test_with_a_global_pool_digit_cnn_finds_a_thing_wherever_it_lies():
    """A patch moved by a whole number of the net's strides gives the same logits; without the pool it does not."""
    images = torch.zeros(2, 1, 64, 64)
    images[0, 0, 16:24, 16:24] = images[1, 0, 40:48, 32:40] = torch.rand(8, 8)
    for pool, same in (("max", True), ("avg", True), ("", False)):
        model = create_model("digit_cnn", {"depths": (1, 1, 1), "global_pool": pool}, 10, 1, 64).eval()
        torch.nn.init.normal_(model.get_classifier().weight)
        first, second = model(images)
        assert torch.allclose(first, second, atol=1e-5) == same


@pytest.mark.parametrize(
    ("name", "img_size", "layers"),
    [
        ("digit_cnn", 28, ["head.2"]),
        ("tf_efficientnet_b0", 28, ["classifier"]),
        ("dla46_c", 64, ["fc"]),  # a convolution
        ("deit_tiny_distilled_patch16_224", 64, ["head", "head_dist"]),
        ("crossvit_tiny_240", 240, ["head.0", "head.1"]),
        ("levit_128s", 224, ["head.linear", "head_dist.linear"]),  # behind a BatchNorm
        ("caformer_s18", 64, ["head.fc.fc2"]),  # of a head with a hidden layer
    ],
)
def test_training_starts_from_a_uniform_guess(name, img_size, layers):
    """Before the first step every class is equally likely, whatever heads the model has; no other layer is zero."""
    model = create_model(name, {}, 10, 1, img_size)
    assert list(last_layers(model)) == layers
    assert not model.train()(torch.rand(2, 1, img_size, img_size)).any()
    with torch.device("meta"):
        other = build(name, {}, 7, 1, img_size)
    named = [f"{layer}.{parameter}" for layer in layers for parameter in ("weight", "bias")]
    shapes = {parameter: tensor.shape for parameter, tensor in other.named_parameters()}
    assert named == [each for each, tensor in model.named_parameters() if tensor.shape != shapes[each]]


def test_levit_has_a_second_head_that_timm_does_not_name():
    """levit_384_s8 is distilled, but timm names the first of its two heads alone."""
    with torch.device("meta"):
        assert list(last_layers(build("levit_384_s8", {}, 10, 3, 224))) == ["head.linear", "head_dist.linear"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tf_efficientnet_b4_ns", "tf_efficientnet_b4.ns_jft_in1k"),
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224.augreg_in21k"),
        ("efficientnet_b2a", "efficientnet_b2"),
        ("efficientnet_b2a.ra_in1k", "efficientnet_b2.ra_in1k"),
        ("resnet18.a1_in1k", "resnet18.a1_in1k"),
    ],
)
def test_old_names_are_the_new_ones(old, new):
    """Size, crop and weights are those of the name that timm gives the model today."""
    assert current_name(old) == new
    size = photo_size(new)
    assert photo_size(old) == size > 0
    assert photo_preparation(old, {}, 3, size) == photo_preparation(new, {}, 3, size)


def test_an_old_name_of_weights_that_are_gone_says_which_there_are():
    """timm itself stops at it with a RuntimeError."""
    with pytest.raises(UserError, match="timm has no weights sam for vit_base_patch32_224; use one of: augreg"):
        photo_size("vit_base_patch32_224_sam")


def test_a_model_for_one_size_alone_is_proposed_at_that_size():
    """crossvit takes images of 240 px, which is not a usual size, whether ours are smaller or larger."""
    for size in (224, 256):
        with pytest.raises(UserError, match=f"the images are {size} px and .* use --img-size 240$"):
            create_model("crossvit_tiny_240", {}, 3, 3, size)


def test_a_model_that_would_look_at_a_part_of_each_image_is_refused():
    """A ViT with patches of 16 px takes digits without a word and sees their upper left quarter alone."""
    with pytest.raises(UserError, match="would see only part of each image; use --model-args patch_size=4, or"):
        create_model("vit_tiny_patch16_224", {}, 10, 1, 28)
    kept = create_model("vit_tiny_patch16_224", {"patch_size": 7, "depth": 1}, 10, 1, 28)
    assert kept.patch_embed.grid_size == (4, 4)


@pytest.mark.parametrize(
    ("name", "model_args", "message"),
    [
        ("efficientnet_bo", {}, "timm has no model efficientnet_bo; did you mean .*efficientnet"),
        ("tiny_vit", {}, "timm has no model tiny_vit; did you mean tiny_vit_5m_224"),
        ("inceptionresnetv2", {}, "did you mean inception_resnet_v2"),
        ("convnext_atto.in22k", {}, "timm has no weights in22k for convnext_atto; use one of: d2_in1k"),
        ("convnext_atto", {"dims": (8, 16, 24, 32)}, r"px and .* --model-args dims=\(8,16,24,32\) output_stride=8"),
        ("digit_cnn", {"width": 3}, "--model-args: digit_cnn has no argument width"),
        ("digit_cnn", {"widths": (8, 16)}, "2 widths and 3 depths: give one of each for every stage"),
        ("efficientnet_b0", {"patch_size": 3}, "--model-args: efficientnet_b0 has no argument patch_size"),
        ("vovnet39a", {}, "use --img-size 32"),  # timm refuses arguments in words of its own
    ],
)
def test_unknown_models_and_arguments_are_named(name, model_args, message):
    """A misspelt name gets its neighbours, a misspelt argument its own name, a proposal the user's own arguments."""
    with pytest.raises(UserError, match=message):
        create_model(name, model_args, 10, 1, 28)
