"""Each optimiser's name builds what it says, and a step does what the method's formula says."""

import math

import pytest
import torch
from timm.optim import Lookahead
from timm.optim.muon import _COEFFICIENTS, resolve_ns_coefficients, zeropower_via_newtonschulz
from torch import nn

from common.base.errors import UserError
from common.model.optim import create_optimiser, try_a_step
from common.runs.choices import OPTIMISERS

# Name, class, settings that make it what it is; with lookahead_ the class is the inner one's.
BUILT = [
    ("adam", "Adam", {"decoupled_weight_decay": False}),
    ("adamw", "AdamW", {"decoupled_weight_decay": True, "betas": (0.9, 0.999)}),
    ("sgd", "SGD", {"momentum": 0.9, "nesterov": True}),
    ("momentum", "SGD", {"momentum": 0.9, "nesterov": False}),
    ("radam", "RAdam", {"decoupled_weight_decay": False}),
    ("nadamw", "NAdamW", {}),
    ("novograd", "NvNovoGrad", {"betas": (0.95, 0.98), "decoupled_decay": False}),
    ("nvnovograd", "NvNovoGrad", {"betas": (0.95, 0.98), "decoupled_decay": False}),
    ("lamb", "Lamb", {"betas": (0.9, 0.999)}),
    ("lion", "Lion", {"betas": (0.9, 0.99)}),
    ("muon", "Muon", {"nesterov": False}),
    ("muon_fp32", "Muon", {"nesterov": False}),
    ("lookahead_adamw", "AdamW", {"lookahead_alpha": 0.5, "lookahead_k": 6}),
    ("lookahead_radam", "RAdam", {"lookahead_alpha": 0.5, "lookahead_k": 6, "decoupled_weight_decay": False}),
    ("ranger", "RAdam", {"lookahead_alpha": 0.5, "lookahead_k": 6, "betas": (0.95, 0.999), "eps": 1e-5}),
    ("ranger", "RAdam", {"decoupled_weight_decay": True}),
    ("ralamb", "Lamb", {"rectify": True, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decouple": True, "adam": False}),
    ("over9000", "Lamb", {"rectify": True, "lookahead_alpha": 0.5, "lookahead_k": 6}),
]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))


def build(name: str, **opt_args):
    if name in ("ralamb", "over9000"):
        pytest.importorskip("pytorch_optimizer", reason="ralamb and over9000 need pytorch-optimizer, an optional extra")
    return create_optimiser(small_model(), name, 1e-2, 0.05, **opt_args)


@pytest.mark.parametrize(("name", "kind", "settings"), BUILT, ids=[row[0] for row in BUILT])
def test_each_name_builds_what_it_says(name, kind, settings):
    """Class and settings; a lookahead is timm's Lookahead around it; biases do not decay."""
    optimiser = build(name)
    looks_ahead = "lookahead_k" in settings or name == "ranger"
    assert isinstance(optimiser, Lookahead) == looks_ahead
    assert type(optimiser._base_optimizer if looks_ahead else optimiser).__name__ == kind
    assert {setting: optimiser.param_groups[0][setting] for setting in settings} == settings
    assert sorted(group["weight_decay"] for group in optimiser.param_groups) == [0.0, 0.05]
    if kind == "Lamb":
        home = "pytorch_optimizer" if name in OPTIMISERS else "timm"
        inner = optimiser._base_optimizer if looks_ahead else optimiser
        assert type(inner).__module__.startswith(home) and getattr(inner, "degenerated_to_sgd", True)


def test_muon_fp32_takes_muons_step_without_its_rounding():
    """To float32's precision it is the step in float64; muon's is so to bfloat16's, also after one of the other's."""
    gradient = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    steps = {}
    for name in ("muon_fp32", "muon"):
        model = nn.Linear(12, 8, bias=False)
        before = model.weight.detach().clone()
        model.weight.grad = gradient.clone()
        create_optimiser(model, name, 1.0, 0.0).step()
        steps[name] = before - model.weight.detach()
    coefficients = resolve_ns_coefficients("quintic", _COEFFICIENTS)
    exact = zeropower_via_newtonschulz(gradient, 5, coefficients, dtype=torch.float64).float() * 0.2 * 12**0.5
    errors = {name: (step - exact).abs().max().item() for name, step in steps.items()}
    assert errors["muon_fp32"] < 1e-5 < 1e-3 < errors["muon"] < 0.1


def test_ralamb_takes_the_steps_of_its_formula():
    """RAdam's rectified step (SGD's while the variance is unknown) times the layer's trust ratio, twelve times over."""
    pytest.importorskip("pytorch_optimizer", reason="ralamb needs pytorch-optimizer, an optional extra")
    model, lr, decay = nn.Linear(6, 4, bias=False), 0.01, 0.05
    theirs = create_optimiser(model, "ralamb", lr, decay)
    weight = model.weight.detach().clone()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 13):
        gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        model.weight.grad = gradient.clone()
        theirs.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        longest = 2 / (1 - 0.999) - 1
        length = longest - 2 * step * 0.999**step / (1 - 0.999**step)
        size, direction = lr / (1 - 0.9**step), mean
        if length >= 5:
            size *= math.sqrt(
                (1 - 0.999**step) * (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
            )
            direction = mean / (square.sqrt() + 1e-8)
        weight = weight * (1 - lr * decay)
        trust = weight.norm().clamp(max=10) / (weight - size * direction).norm()
        weight = weight - size * trust * direction
        torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-5, atol=1e-6)
    assert length > 5


def test_lookahead_goes_half_way_back_every_sixth_step():
    """After steps 1-5 and 7-11 the weights are the inner optimiser's; after step 12 half way from those of step 6."""
    ahead, plain = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
    plain.load_state_dict(ahead.state_dict())
    optimisers = [
        create_optimiser(ahead, "lookahead_momentum", 0.1, 0.0, momentum=0.0),
        create_optimiser(plain, "momentum", 0.1, 0.0, momentum=0.0),
    ]
    for step in range(1, 13):
        for model, optimiser in zip((ahead, plain), optimisers, strict=True):
            model.weight.grad = torch.full((1, 3), float(step))
            optimiser.step()
        if step == 6:
            slow = ahead.weight.detach().clone()
        if step < 12:
            torch.testing.assert_close(ahead.weight, plain.weight)
    torch.testing.assert_close(ahead.weight, (slow + plain.weight) / 2)


@pytest.mark.parametrize(
    ("name", "opt_args", "message"),
    [
        ("adamwow", {}, "--opt: there is no optimiser adamwow; did you mean adamw"),
        ("lookahead_adamwow", {}, "--opt: there is no optimiser lookahead_adamwow"),
        ("rangers", {}, "did you mean ranger"),
        ("sgd", {"betas": (0.9, 0.99)}, "--opt-args: sgd has no betas"),
        ("adamw", {"beta": 0.9}, "--opt-args: adamw rejected these arguments"),
        ("bnbadam", {}, "--opt: bnbadam needs a package that is not installed"),
    ],
)
def test_what_cannot_be_built_is_refused(name, opt_args, message):
    """Unknown names get their neighbours, arguments without effect and missing packages are named."""
    if name == "bnbadam" and torch.cuda.is_available():
        pytest.skip("asserts what a machine without a GPU says")
    with pytest.raises(UserError, match=message):
        create_optimiser(small_model(), name, 1e-2, 0.05, **opt_args)


def test_settings_of_ones_own_come_before_the_names():
    """--opt ranger --opt-args betas=(0.9,0.99) is heard."""
    assert build("ranger", betas=(0.9, 0.99)).param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize(("name", "opt_args"), [("lamb", {"betas": (0.9,)})])
def test_an_argument_that_fails_at_the_first_step_is_refused(name, opt_args):
    """Many an optimiser takes anything when it is made."""
    create_optimiser(small_model(), name, 1e-2, 0.05, **opt_args)
    with pytest.raises(UserError, match=f"--opt-args: {name} cannot take a step") as refused:
        try_a_step(name, 1e-2, 0.05, **opt_args)
    assert "\n" not in str(refused.value)
