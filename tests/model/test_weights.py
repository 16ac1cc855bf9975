"""Weights to start from: what is loaded, adapted, replaced and left is right, and is said."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import SHARED, train
from safetensors.torch import load_file, save_file

from common.base.errors import UserError
from common.data.decoding import Preparation
from common.data.folds import read_folds
from common.model.networks import build, create_model
from common.model.weights import check_unseen, hub_file, load_weights
from common.runs.predictions import read_predictions
from common.runs.saved_model import SavedModel
from common.runs.tensors import save_tensors

LITE0 = SHARED / "weights" / "tf_efficientnet_lite0.safetensors"
real = pytest.mark.skipif(not LITE0.exists(), reason="needs the real ImageNet weights, which are not in the repository")
TEN = [str(number) for number in range(10)]
THOUSAND = [str(number) for number in range(1000)]


def digit_cnn(classes: int, channels: int = 1, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return create_model("digit_cnn", {"widths": (4, 6, 8)}, classes, channels, 8).eval()


@pytest.fixture
def ours(tmp_path) -> Path:
    """A small model of ten classes as train_fold.py saves it, its last layer trained a little."""
    model = digit_cnn(10)
    torch.nn.init.normal_(model.get_classifier().weight)
    saved = SavedModel(
        settings={},
        fold="0",
        fold_count=3,
        folds_fingerprint="ab",
        output_names=TEN,
        image_shape=(1, 8),
        preparation=Preparation(1, 8, 8),
        normalise={"mean": [0.1], "std": [0.3]},
        memory_format="contiguous_format",
        processes=1,
    )
    save_tensors(tmp_path / "model.safetensors", model.state_dict(), saved.to_metadata())
    return tmp_path / "model.safetensors"


@real
def test_real_imagenet_weights_load_to_the_last_tensor():
    """With ImageNet's own classes every tensor is the file's; with ten classes all but the last layer's are."""
    for classes in (THOUSAND, TEN):
        model = create_model("tf_efficientnet_lite0", {}, len(classes), 3, 64)
        loaded = load_weights(model, "tf_efficientnet_lite0", LITE0, classes, 3)
        own = model.state_dict()
        for name, tensor in load_file(LITE0).items():
            if classes is THOUSAND or not name.startswith("classifier."):
                assert torch.equal(own[name], tensor), name
        new = "new last layer classifier.weight, classifier.bias (1000 classes in the file, 10 here)"
        assert (new in loaded.report) == (classes is TEN)
        assert f"{247 if classes is THOUSAND else 245} of 247 tensors loaded" in loaded.report
        assert loaded.normalise.mean == model.pretrained_cfg["mean"]


def test_weights_that_have_seen_the_held_out_rows_are_refused(chain, tiny):
    """Another fold's model would be scored on its own training rows; a fold's own, or a stranger's, would not."""
    folds = read_folds(tiny / "folds.csv")
    model = chain / "one" / "fold1" / "model.safetensors"
    assert check_unseen(model, "1", folds) and check_unseen(model, "full", folds)
    with pytest.raises(
        UserError, match="is the model of fold 1 and has seen the rows that fold 0 holds out; start each"
    ):
        check_unseen(model, "0", folds)
    others = dataclasses.replace(folds, fold=(folds.fold + 1) % 3)
    assert not check_unseen(model, "0", others)


def test_each_fold_starts_from_its_own_weights(chain, tiny, tmp_path):
    """{fold} in --weights is the fold's folder: all folds start where the named run's ended; what lacks is named."""
    weights = str(chain / "one" / "{fold}" / "model.safetensors")
    with pytest.raises(UserError, match="--weights: there is no file absent/fold0/model.safetensors"):
        train(tiny, tmp_path, "--weights", "absent/{fold}/model.safetensors")
    still = ["--weights", weights, "--epochs", 1, "--lr", 1e-9, "--freeze", "batchnorm=True"]
    train(tiny, tmp_path, "--run", "again", "--fold", "all", *still)
    for fold in range(3):
        before, after = (
            read_predictions(run / f"fold{fold}" / "oof.npz") for run in (chain / "one", tmp_path / "again")
        )
        np.testing.assert_allclose(before.logits, after.logits, atol=1e-3)


@real
def test_grey_weights_see_what_colour_weights_see_in_grey():
    """An image of three equal channels gives the colour model what its one channel gives the grey model."""
    models = {}
    for channels in (1, 3):
        models[channels] = create_model("tf_efficientnet_lite0", {}, 1000, channels, 64)
        loaded = load_weights(models[channels], "tf_efficientnet_lite0", LITE0, THOUSAND, channels)
        assert ("conv_stem.weight summed over its 3 colour channels" in loaded.report) == (channels == 1)
        assert len(loaded.normalise.mean) == channels
    grey = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        models[1].eval()(grey), models[3].eval()(grey.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4
    )


@real
def test_dual_pooling_keeps_the_backbone():
    """With catavgmax the last layer is twice as wide, so it is new even for ImageNet's classes; the rest is loaded."""
    model = create_model("tf_efficientnet_lite0", {"global_pool": "catavgmax"}, 1000, 3, 64)
    report = load_weights(model, "tf_efficientnet_lite0", LITE0, THOUSAND, 3).report
    assert "245 of 247 tensors loaded" in report and "classifier.bias (of another shape)" in report
    assert model.get_classifier().weight.shape == (1000, 2560)


def test_our_own_weights_keep_their_last_layer_for_the_same_classes_only(ours):
    """The same class list gives the same logits; as many other classes start from a uniform guess."""
    images = torch.rand(3, 1, 8, 8)
    source = digit_cnn(10)
    source.load_state_dict(load_file(ours))
    same, other = digit_cnn(10, seed=1), digit_cnn(10, seed=1)
    loaded = load_weights(same, "digit_cnn", ours, TEN, 1)
    torch.testing.assert_close(same(images), source(images))
    assert loaded.normalise.mean == (0.1,) and "new" not in loaded.report
    report = load_weights(other, "digit_cnn", ours, [f"class {name}" for name in TEN], 1).report
    assert "new last layer head.2.weight, head.2.bias (other classes)" in report and not other(images).any()
    torch.testing.assert_close(other.features(images), source.features(images))


def test_grey_weights_become_colour_by_an_equal_share(ours):
    """A colour image of equal channels gives what the grey one gave, and its normalisation is repeated."""
    model = digit_cnn(10, channels=3)
    loaded = load_weights(model, "digit_cnn", ours, TEN, 3)
    source = digit_cnn(10)
    source.load_state_dict(load_file(ours))
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model(images.expand(-1, 3, -1, -1)), source(images))
    assert "features.0.weight spread over 3 colour channels" in loaded.report and loaded.normalise.std == (0.3,) * 3


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.backbone."]
PREFIXES += ["module.model.encoder._orig_mod.", "state_dict.my_own_word."]


def test_the_weights_of_two_models_are_refused(ours, tmp_path):
    """A student and its teacher in one file: which of them is meant cannot be told."""
    tensors = load_file(ours)
    both = {f"{who}.{name}": tensor.clone() for who in ("student", "teacher") for name, tensor in tensors.items()}
    save_file(both, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match=r"several models \(student\.\* and teacher\.\*\); save those of one"):
        load_weights(digit_cnn(10), "digit_cnn", tmp_path / "two.safetensors", TEN, 1)


def test_a_backbone_of_a_class_around_it_is_found(ours, tmp_path):
    """Only the backbone's names have the prefix; the class's own last layer is left in the file."""
    tensors = {f"backbone.{name}": each for name, each in load_file(ours).items() if not name.startswith("head")}
    save_file(tensors | {"fc.weight": torch.ones(5, 8)}, tmp_path / "own.safetensors")
    model = digit_cnn(10, seed=1)
    report = load_weights(model, "digit_cnn", tmp_path / "own.safetensors", TEN, 1).report
    assert "new last layer head.2.weight, head.2.bias (none in the file)" in report and "left in the file: fc" in report
    assert torch.equal(model.features[0].weight, load_file(ours)["features.0.weight"])


def test_weights_of_several_heads_keep_all_but_the_last_layers(tmp_path):
    """Another number of classes replaces both heads of a distilled transformer, and nothing else of it."""
    name, settings = "deit_tiny_distilled_patch16_224", {"depth": 1}
    source = create_model(name, settings, 5, 3, 32)
    save_file(source.state_dict(), tmp_path / "deit.safetensors")
    model = create_model(name, settings, 3, 3, 32)
    report = load_weights(model, name, tmp_path / "deit.safetensors", ["a", "b", "c"], 3).report
    assert "new last layer head.weight, head.bias, head_dist.weight, head_dist.bias (5 classes in the file" in report
    assert "channels" not in report
    kept = [each for each in source.state_dict() if not each.startswith("head")]
    assert all(torch.equal(model.state_dict()[each], source.state_dict()[each]) for each in kept)


@pytest.mark.parametrize(
    ("name", "heads"), [("naflexvit_base_patch16_gap", {}), ("gemma4_vit_167m", {"num_kv_heads": 3})]
)
def test_a_linear_stem_becomes_grey_and_colour_again(tmp_path, name, heads):
    """Patches that lie flat, with the colours of a pixel side by side or plane after plane: nothing seen changes."""
    if not timm.is_model(name):
        pytest.skip("this timm has no such model")
    args = {"embed_dim": 24, "depth": 1, "num_heads": 3, **heads}
    colour, grey, again = (build(name, args, 3, channels, 96).eval() for channels in (3, 1, 3))
    torch.nn.init.normal_(colour.get_classifier().weight)
    images = torch.rand(2, 1, 96, 96)
    for model, source, channels in ((grey, colour, 1), (again, grey, 3)):
        tensors = {each: tensor.nan_to_num().contiguous() for each, tensor in source.state_dict().items()}
        save_file(tensors, tmp_path / "w.safetensors")
        report = load_weights(model, name, tmp_path / "w.safetensors", ["a", "b", "c"], channels, args).report
        assert "3 colour channels" in report
    with torch.no_grad():
        seen = [model(images.expand(-1, channels, -1, -1)) for model, channels in ((colour, 3), (grey, 1), (again, 3))]
    assert seen[0].abs().max() > 0.1
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(seen[2], seen[0], rtol=1e-3, atol=1e-4)


def test_colour_weights_are_widened_as_timm_widens_them(tmp_path):
    """Four channels: the three filters and the first again, scaled so that equal channels give what they gave."""
    source, model = (create_model("test_resnet", {}, 3, channels, 64).eval() for channels in (3, 4))
    save_file({name: each.contiguous() for name, each in source.state_dict().items()}, tmp_path / "w.safetensors")
    said = load_weights(model, "test_resnet", tmp_path / "w.safetensors", ["a", "b", "c"], 4).report
    first = model.pretrained_cfg["first_conv"]
    colour, wide = source.get_submodule(first).weight, model.get_submodule(first).weight
    assert f"{first}.weight repeated over 4 channels" in said
    torch.testing.assert_close(wide, torch.cat([colour, colour[:, :1]], dim=1) * 3 / 4)


def test_a_stem_of_pixels_side_by_side_becomes_grey(tmp_path):
    """tresnet's first convolution sees 4 x 4 pixels at once: an image of equal channels gives what grey gave."""
    source = create_model("tresnet_m", {}, 3, 3, 64).eval()
    torch.nn.init.normal_(source.head.fc.weight)
    save_file({name: each.contiguous() for name, each in source.state_dict().items()}, tmp_path / "w.safetensors")
    model = create_model("tresnet_m", {}, 3, 1, 64).eval()
    assert (
        "summed over its 3" in load_weights(model, "tresnet_m", tmp_path / "w.safetensors", ["a", "b", "c"], 1).report
    )
    grey = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(model(grey), source(grey.expand(-1, 3, -1, -1)), atol=1e-3, rtol=1e-3)


def test_weights_for_another_size_name_it(tmp_path):
    """Where timm cannot resample a position table, the size is wrong and not the model."""
    save_file(create_model("cait_xxs24_224", {"depth": 1}, 3, 3, 64).state_dict(), tmp_path / "w.safetensors")
    model = create_model("cait_xxs24_224", {"depth": 1}, 3, 3, 48)
    with pytest.raises(UserError, match="pos_embed is .* made for 64 px; use --img-size 64"):
        load_weights(model, "cait_xxs24_224", tmp_path / "w.safetensors", ["a", "b", "c"], 3, {"depth": 1})


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_prefixes_are_no_obstacle(ours, prefix, tmp_path):
    """Names as DDP or torch.compile would have saved them; a tensor too many is named as left in the file."""
    tensors = {f"{prefix}{name}": tensor for name, tensor in load_file(ours).items()}
    save_file({**tensors, f"{prefix}auxiliary.weight": torch.ones(2)}, tmp_path / "wrapped.safetensors")
    model = digit_cnn(10, seed=1)
    report = load_weights(model, "digit_cnn", tmp_path / "wrapped.safetensors", TEN, 1).report
    assert "left in the file: auxiliary.weight" in report
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in load_file(ours).items())


def test_a_vits_patches_and_positions_are_resampled(tmp_path):
    """Weights for 160 px and patches of 16 px start a model for digits with patches of 4 px; its blocks are equal."""
    torch.manual_seed(0)
    source = create_model("test_vit", {}, 10, 3, 160)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    model = create_model("test_vit", {"patch_size": 4}, 10, 1, 28)
    report = load_weights(model, "test_vit", tmp_path / "vit.safetensors", TEN, 1).report
    assert model.pos_embed.shape != source.pos_embed.shape and "new" not in report
    assert "patch_embed.proj.weight summed" in report
    assert torch.equal(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": torch.ones(2, 3, 3, 3)}, "does not fit digit_cnn: 25 of 27 tensors are missing"),
        ("another width", r"features.0.weight is \(8, 1, 5, 5\) in the file and \(4, 1, 5, 5\) in digit_cnn"),
        ("unfinished", "is the state of an unfinished training run; use a model.safetensors"),
        (b"PK\x03\x04 a pickle", "cannot be read as safetensors"),
        ("nan", "values are NaN or infinite"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(content, message, tmp_path):
    """Another model's, another width's, a running training's, a pickle, NaN: each is named, nothing is loaded."""
    path = tmp_path / "weights.safetensors"
    if content == "another width":
        save_file(create_model("digit_cnn", {"widths": (8, 12, 16)}, 10, 1, 8).state_dict(), path)
    elif content == "unfinished":
        save_tensors(path, {"model.a": torch.ones(2)}, {"optimiser": {}, "log": []})
    elif content == "nan":
        save_file({"a": torch.tensor([torch.nan])}, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(content, path)
    with pytest.raises(UserError, match=message):
        load_weights(digit_cnn(10), "digit_cnn", path, TEN, 1)


def test_pretrained_offline_is_one_line(tiny, tmp_path, torch_forks):
    """Without a network and a cache: exit 3, what could not be had and what to do; nothing is written."""
    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path / "runs"]
    model = ["--model", "convnext_atto.d2_in1k", "--img-size", "32", "--batch-size", "8", "--pretrained"]
    done = torch_forks.run(["train_fold.py", *map(str, places), *model, "--fold", "0"], tmp_path)
    assert done.code == 3, done.err
    assert done.err.startswith("error: --pretrained: timm/convnext_atto.d2_in1k cannot be downloaded")
    assert done.err.count("\n") == 1 and "use --weights FILE" in done.err
    assert not (tmp_path / "runs").exists()


def test_a_model_without_pretrained_weights_is_named():
    """Our own network has none on the hub."""
    with pytest.raises(UserError, match="there are no pretrained weights for digit_cnn; leave it out"):
        hub_file("digit_cnn")
