"""The four ways of fine-tuning: what is frozen does not move, what is slowed moves at its own rate."""

import numpy as np
import pytest
import torch
from conftest import SMALL, WITHOUT_BATCHNORM, train
from disturbed import start_together
from safetensors.torch import load_file, save_file
from timm.optim import Lookahead, param_groups_layer_decay

from common.base.errors import UserError
from common.model.finetune import Frozen, frozen_parts, scale_learning_rates
from common.model.networks import create_model
from common.model.optim import set_learning_rate
from common.model.weights import head_names
from common.runs.config import Config
from common.runs.tensors import load_tensors
from common.train.build import check_choices, create_model_and_optimiser

DIGIT_CNN = ["--model-args", "widths=(4,6,8)"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Weights for digit_cnn with running statistics that no batch of ours would give."""
    torch.manual_seed(0)
    tensors = create_model("digit_cnn", {"widths": (4, 6, 8)}, 3, 1, 8).state_dict()
    tensors = {name: 1.5 * tensor - 0.1 if "running" in name else tensor for name, tensor in tensors.items()}
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_file(tensors, path)
    return path


def moved(tiny, folder, start, *arguments) -> set[str]:
    """Names of the tensors that two epochs of training with ``arguments`` change."""
    train(tiny, folder, "--fold", 0, "--epochs", 2, *DIGIT_CNN, "--weights", start, *arguments)
    after = load_tensors(folder / "digit_cnn" / "fold0" / "model.safetensors")[0]
    before = load_file(start)
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def test_head_only_moves_the_head_and_not_one_statistic(tiny, tmp_path, start):
    """--freeze backbone=EPOCHS: weights, running means and counters of the backbone are the file's, to the bit."""
    assert moved(tiny, tmp_path, start, "--freeze", "backbone=2") == {"head.2.weight", "head.2.bias"}


def test_frozen_stages_stay_and_deep_ones_train(tiny, tmp_path, start):
    """--freeze stages=1: the stem and the first stage are the file's, with their statistics; all later weights move."""
    names = moved(tiny, tmp_path, start, "--freeze", "stages=1")
    shallow = {f"features.{number}." for number in range(11)}
    assert not any(name.startswith(tuple(shallow)) for name in names)
    assert {"features.11.weight", "features.12.running_mean", "features.14.weight", "head.2.weight"} <= names


def test_a_backbone_frozen_at_first_trains_later(tiny, tmp_path, start):
    """--freeze backbone=1 of two epochs: everything has moved at the end."""
    names = moved(tiny, tmp_path, start, "--freeze", "backbone=1")
    assert names >= {name for name in load_file(start) if "features" in name and "num_batches" not in name}


@pytest.mark.parametrize("select", [["last"], ["swa", "--select-args", "last=2"]], ids=["last", "swa"])
def test_held_batchnorm_keeps_its_statistics_and_trains_its_weights(tiny, tmp_path, start, select):
    """--freeze batchnorm=True: every running mean is the file's, to the bit; every weight moves, BatchNorm's too."""
    names = moved(tiny, tmp_path, start, "--freeze", "batchnorm=True", "--select", *select)
    assert not [name for name in names if "running" in name or "num_batches" in name]
    assert {"features.1.weight", "features.1.bias", "features.0.weight", "head.2.weight"} <= names
    with pytest.raises(UserError, match="test_vit has no BatchNorm to freeze"):
        cfg = Config(model="test_vit", freeze=("batchnorm=True",))
        frozen_parts(cfg, create_model("test_vit", {}, 3, 1, 32))


def test_frozen_batchnorm_stays_in_evaluation_mode_after_train():
    """model.train() puts it back into training mode; apply freezes it again, and frees it when its time has come."""
    model = create_model("test_resnet", {}, 10, 1, 32)
    cfg = Config(model="test_resnet", epochs=3, freeze=("backbone=1",), weights="x")
    frozen = frozen_parts(cfg, model)
    modes = []
    for epoch in range(2):
        frozen.apply(model.train(), epoch)
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        modes.append({module.training for module in norms})
        trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert trainable == (set(head_names(model)) if epoch == 0 else set(dict(model.named_parameters())))
    assert modes == [{False}, {True}]
    Frozen().apply(model.train(), 0)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("name", "img_size", "frozen", "trained"),
    [
        ("test_resnet", 32, ["conv1", "bn1", "layer1", "layer2"], ["layer3", "layer4", "fc"]),
        ("test_convnext", 32, ["stem", "stages.0", "stages.1"], ["stages.2", "stages.3", "head"]),
        ("test_efficientnet", 28, ["conv_stem", "blocks.0", "blocks.1"], ["blocks.2", "conv_head", "classifier"]),
        ("test_vit", 32, ["patch_embed", "pos_embed", "blocks.0", "blocks.1"], ["blocks.2", "norm", "head"]),
    ],
)
def test_two_stages_are_the_stem_and_two_stages_in_every_family(name, img_size, frozen, trained):
    """As timm numbers them, from the input on."""
    model = create_model(name, {}, 10, 1, img_size)
    cfg = Config(model=name, freeze=("stages=2",), weights="x")
    frozen_parts(cfg, model).apply(model, 0)
    for weight_name, weight in model.named_parameters():
        stage = [part for part in frozen + trained if weight_name == part or weight_name.startswith(part + ".")]
        if stage:
            assert weight.requires_grad == (stage[0] in trained), weight_name


@pytest.mark.parametrize(("name", "img_size"), [("test_resnet", 32), ("test_convnext", 32), ("test_vit", 32)])
def test_layer_decay_is_timms(name, img_size):
    """Each weight has the learning rate that timm's param_groups_layer_decay would give it."""
    cfg = Config(model=name, img_size=img_size, channels=1, layer_decay=0.7, lr=0.1)
    model, optimiser, _, _ = create_model_and_optimiser(cfg, [str(number) for number in range(10)], torch.device("cpu"))
    set_learning_rate(optimiser, 0.1)
    ours = {id(weight): group["lr"] for group in optimiser.param_groups for weight in group["params"]}
    theirs = {
        id(weight): 0.1 * group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.7)
        for weight in group["params"]
    }
    assert ours.keys() == theirs.keys() and len(set(ours.values())) > 3
    assert all(ours[key] == pytest.approx(theirs[key]) for key in ours)


@pytest.mark.parametrize("wrap", [lambda optimiser: optimiser, Lookahead], ids=["plain", "lookahead"])
def test_the_backbone_learns_at_its_own_rate(wrap):
    """--backbone-lr-scale 0.1: the last layer has lr, everything else a tenth, through a wrapper too."""
    model = create_model("digit_cnn", {}, 3, 1, 8)
    optimiser = wrap(torch.optim.SGD(model.parameters(), lr=0.5))
    scale_learning_rates(optimiser, model, 1.0, 0.1)
    set_learning_rate(optimiser, 0.5)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimiser.step()
    for name, weight in model.named_parameters():
        step = 0.5 if name in head_names(model) else 0.05
        torch.testing.assert_close(before[name] - weight, torch.full_like(weight, step))


def test_rates_at_their_defaults_leave_the_optimiser_alone():
    """1 and 1 are off: the groups are those the optimiser was made with."""
    optimiser = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=1.0)
    scale_learning_rates(optimiser, None, 1.0, 1.0)
    assert len(optimiser.param_groups) == 1 and "lr_scale" not in optimiser.param_groups[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"freeze": ("stages=9",)}, "stages=9 is out of range: digit_cnn has 2; use 1 to 1"),
        ({"freeze": ("backbone=9",), "epochs": 3}, "backbone=9 is out of range: there are 3 epochs; use 1 to 3"),
        ({"freeze": ("backbone=3",), "epochs": 3, "layer_decay": 0.5}, "only the last layer ever trains"),
    ],
)
def test_freezing_without_sense_is_refused(change, message):
    """Stages or epochs that do not exist, and rates of what never trains."""
    cfg = Config(channels=1, img_size=8, weights="x", **change)
    with pytest.raises(UserError, match=message):
        frozen_parts(cfg, create_model("digit_cnn", {}, 3, 1, 8))


def test_freezing_random_weights_is_said(capsys):
    """Without --weights or --pretrained there is nothing worth keeping."""
    check_choices(Config(freeze=("stages=1",), channels=1, img_size=8), ["a", "b"], micro_batch=8, grey=True)
    assert "frozen layers keep their random initial weights" in capsys.readouterr().err


def test_two_processes_thaw_like_one(tiny, server, tmp_path):
    """A backbone freed after the first epoch trains to the same weights over two processes (DDP) as over one."""
    settings = [*WITHOUT_BATCHNORM, "--epochs", "2", "--freeze", "backbone=1", "--fold", "0"]
    train(tiny, tmp_path, *settings, "--run", "one")
    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path]
    children = start_together(server, 2, "train_fold", *places, *SMALL, *settings, "--run", "two")
    assert [child.wait() for child in children] == [0, 0], children[0].said()
    assert "= 2 processes" in children[0].said()
    one, two = (load_tensors(tmp_path / run / "fold0" / "model.safetensors")[0] for run in ("one", "two"))
    for name, tensor in one.items():
        np.testing.assert_allclose(two[name], tensor, atol=1e-5, err_msg=name)
