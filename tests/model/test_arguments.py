"""A wrong argument is one line, before a run's folder is touched, whatever timm or torch would make of it."""

import pytest

from common.base.errors import UserError
from common.runs.config import Config, check_config
from common.train.build import check_choices

WRONG = {
    "test_efficientnet": [
        *("act_layer=foo", "act_layer=3", "norm_layer=foo", "norm_layer=5", "drop_rate=-1", "drop_rate=two"),
        *("drop_rate=[1,2]", "drop_rate=None", "drop_path_rate=2", "drop_path_rate=x", "global_pool=foo"),
        *("global_pool=3", "output_stride=x", "stem_size=-3", "se_layer=foo", "round_chs_fn=foo", "num_features=-5"),
        *("num_classes=3", "in_chans=x", "pretrained_cfg=x", "device=foo", "dtype=foo", "features=3"),
        *("pad_type=foo", "pad_type=3", "output_stride=7", "output_stride=-8", "output_stride=0", "fix_stem=7"),
        *("channel_multiplier=-1", "channel_multiplier=0", "depth_multiplier=-1"),
        *("bn_momentum=7", "bn_eps=-1", "drop_rate=True"),
    ],
    "test_vit": [
        *("patch_size=0", "patch_size=-4", "patch_size=x", "embed_dim=-1", "embed_dim=65", "depth=x", "depth=2.5"),
        *("num_heads=0", "num_heads=7", "mlp_ratio=x", "qkv_bias=[3]", "class_token=maybe", "weight_init=foo"),
        *("pos_drop_rate=9", "attn_drop_rate=-3", "block_fn=foo", "pos_embed=foo"),
    ],
    "test_resnet": [
        *("stem_type=foo", "stem_width=-1", "stem_width=2.5", "bn_momentum=7", "drop_rate=True", "drop_path_rate=-1"),
        *("aa_layer=foo", "cardinality=-2", "zero_init_last=7", "replace_stem_pool=x"),
    ],
    "digit_cnn": [
        *("widths=(-4,8,8)", "widths=5", "widths=(1.5,2,3)", "widths=(99999999,99999999,9)", "depths=(0,0,0)"),
        *("depths=x", "first_kernel=x", "first_kernel=-3", "first_kernel=0", "drop_rate=5", "width=3", "widths=None"),
        *("depths=None", "first_kernel=None"),
    ],
}
OPTIMISERS = [
    *[
        ("adamw", argument)
        for argument in ("betas=5", "betas=(0.9,)", "betas=x", "eps=x", "eps=-1", "eps=None", "foo=1")
    ],
    *[("sgd", argument) for argument in ("momentum=x", "momentum=-1", "betas=(0.9,0.9)", "nesterov")],
    *[("sgd", argument) for argument in ("nesterov=7", "nesterov=x", "maximize=7")],
    *[("muon", argument) for argument in ("ns_steps=x", "ns_steps=-1", "ns_steps=2.5", "nesterov=7")],
    *[("adamw", "amsgrad=x"), ("lamb", "always_adapt=x"), ("lion", "caution=7"), ("lookahead_adan", "no_prox=7")],
    *[
        ("lamb", "max_grad_norm=x"),
        ("lamb", "max_grad_norm=-1"),
        ("lion", "betas=(2,3)"),
        ("adafactor", "decay_rate=x"),
        ("lookahead_adamw", "k=0"),
    ],
    *[("sgd", "momentum=7"), ("adamw", "fused=x"), ("adamw", "foreach=7"), ("rmsprop", "alpha=7")],
    *[("adamw", "betas=(0.9,7)"), ("sgd", "dampening=-1"), ("rmsproptf", "momentum=x"), ("lion", "maximize=3")],
    *[("adahessian", ""), ("lookahead_adahessian", ""), ("lbfgs", ""), ("lookahead_foo", "")],
]


def refused(**settings) -> str:
    """The line with which these settings are refused."""
    cfg = Config(img_size=32, channels=1, epochs=2, augment="none", **settings)
    with pytest.raises(UserError) as refusal:
        check_config(cfg, 1)
        check_choices(cfg, ["a", "b", "c"], micro_batch=8, grey=True)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500
    return str(refusal.value)


@pytest.mark.parametrize(("model", "argument"), [(model, each) for model, every in WRONG.items() for each in every])
def test_a_wrong_argument_of_a_model_is_one_line(model, argument):
    """Wrong types, None, lists, unknown layers, negative and enormous widths: the line names the argument."""
    line = refused(model=model, model_args=(argument,))
    assert line.startswith("--model-args: ") and argument.partition("=")[0] in line


@pytest.mark.parametrize(("optimiser", "argument"), OPTIMISERS)
def test_a_wrong_argument_of_an_optimiser_is_one_line(optimiser, argument):
    """Also what an optimiser looks at in its first step alone, and one that needs more than gradients."""
    line = refused(opt=optimiser, opt_args=tuple(filter(None, [argument])))
    assert line.startswith("--opt-args: " if argument else "--opt: ")


@pytest.mark.parametrize(
    "argument",
    ["backbone=x", "backbone=all", "stages=x", "batchnorm=maybe", "stages=1.5", "backbone=-1", "layers=2", "head=True"],
)
def test_a_wrong_argument_of_freeze_is_one_line(argument):
    """Words and fractions where a number is asked, a word where it is yes or no, an unknown name; before any model."""
    with pytest.raises(UserError, match=f"^--freeze: {argument.partition('=')[0]}.*; ") as refusal:
        check_config(Config(freeze=(argument,)), 1)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("model", "argument"),
    [
        *[("test_resnet", each) for each in ("stem_type=''", "stem_type='deep'", "stem_width=8", "act_layer=relu")],
        *[("test_resnet", each) for each in ("drop_rate=0.0", "drop_path_rate=0.1", "norm_layer=batchnorm2d")],
        *[("test_efficientnet", each) for each in ("bn_momentum=0.05", "bn_eps=1e-3", "pad_type=same")],
        *[("test_vit", each) for each in ("patch_size=8", "qkv_bias=True", "class_token=True", "depth=6")],
        ("digit_cnn", "drop_rate=0.4"),
    ],
)
def test_a_right_argument_is_taken_also_where_it_says_the_default(model, argument):
    """Texts, shares, switches and counts."""
    cfg = Config(img_size=32, channels=1, epochs=2, augment="none", model=model, model_args=(argument,))
    check_choices(cfg, ["a", "b", "c"], micro_batch=8, grey=True)
