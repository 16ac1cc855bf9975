"""Optimisers by name: timm's, and those of the field that it lacks."""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.optim import (
    Lookahead,
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
    param_groups_weight_decay,
)
from torch import nn
from torch.optim import Optimizer

from common.base.errors import ENVIRONMENT, UserError
from common.base.words import in_a_line
from common.model.arguments import check_by_signature
from common.runs.choices import OPTIMISERS, no_optimiser

# Torch's own, which on a GPU do a step in few kernels and look for a scaled loss's infinities without waiting for it
# (torch.optim, "Algorithms": fused is the fastest; the training script of torchvision offers it, timm's by name).
FUSED = {"adam", "adamw"}

# What the recipes use and the oldest timm that we take lacks.
SINCE = {"muon": "1.0.21"}


def create_optimiser(model: nn.Module, name: str, lr: float, weight_decay: float, /, **opt_args: Any) -> Optimizer:
    """The optimiser of the model's parameters; biases and normalisation weights do not decay.

    ``name`` is timm's, with lookahead_ before it if you like (Zhang et al., arXiv 1907.08610), or one of OPTIMISERS.

    Raises:
        UserError: there is no such optimiser, its package is missing, or it does not take one of ``opt_args``.
    """
    made_of, own_args = OPTIMISERS.get(name, (name, {}))
    if made_of in FUSED and next(model.parameters()).is_cuda and not opt_args.keys() & {"fused", "foreach"}:
        own_args = own_args | {"fused": True}
    inner = made_of.removeprefix("lookahead_")
    if inner != "ralamb":
        _check_timms(name, inner, opt_args)
    try:
        if inner != "ralamb":
            check_by_signature("opt-args", opt_args, get_optimizer_class(inner, bind_defaults=False))
            arguments = own_args | opt_args
            optimiser = create_optimizer_v2(model, opt=made_of, lr=lr, weight_decay=weight_decay, **arguments)
            return in_float32(optimiser) if name == "muon_fp32" else optimiser
        optimiser = ralamb(model, lr, weight_decay, **opt_args)
        return optimiser if made_of == inner else Lookahead(optimiser)
    except UserError:
        raise
    except (ImportError, AssertionError) as error:
        remedy = "pip install pytorch-optimizer" if inner == "ralamb" else "choose another"
        raise UserError("--opt", f"{name} needs a package that is not installed ({error})", remedy) from error
    except Exception as error:  # optimisers raise whatever their arguments run into
        raise UserError(
            "--opt-args", f"{name} rejected these arguments ({in_a_line(error)})", "see the optimiser's class"
        ) from error


def try_a_step(name: str, lr: float, weight_decay: float, /, **opt_args: Any) -> None:
    """Take a step with a layer of its own: many an optimiser looks at its arguments no earlier.

    Raises:
        UserError: the step fails.
    """
    if name.startswith(("bnb", "fused")):  # for GPUs alone
        return
    layer = nn.Linear(2, 2)
    optimiser = create_optimiser(layer, name, lr, weight_decay, **opt_args)
    layer(torch.ones(1, 2)).sum().backward()
    try:
        for _ in range(2):  # the second finds what the first has left
            optimiser.step()
    except Exception as error:  # optimisers raise whatever their arguments run into
        flag = "--opt-args" if opt_args else "--opt"
        raise UserError(flag, f"{name} cannot take a step ({in_a_line(error)})", "see the optimiser's class") from error


def _check_timms(name: str, inner: str, opt_args: Mapping[str, Any]) -> None:
    if inner not in list_optimizers():
        if inner in SINCE:
            what = f"{inner} came with timm {SINCE[inner]}, this is {timm.__version__}"
            raise UserError("--opt", what, f"pip install 'timm>={SINCE[inner]}', or choose another", ENVIRONMENT)
        raise no_optimiser(name, list_optimizers())
    for argument, flag in (("lr", "--lr"), ("weight_decay", "--weight-decay")):
        if argument in opt_args:
            raise UserError("--opt-args", f"{argument} is set by {flag}", "leave it out")
    info = get_optimizer_info(inner)
    if getattr(info, "second_order", False):  # timm 1.0.13 says so of adahessian
        raise UserError("--opt", f"{name} needs second derivatives, which are not supported", "choose another")
    for argument, used in (("eps", info.has_eps), ("betas", info.has_betas)):
        if argument in opt_args and not used:  # timm would drop it without a word
            raise UserError("--opt-args", f"{name} has no {argument}", "leave it out")


def ralamb(model: nn.Module, lr: float, weight_decay: float, /, **opt_args: Any) -> Optimizer:
    """LAMB with the rectified step of RAdam, and the step of SGD before that is known; pytorch-optimizer's."""
    from pytorch_optimizer import Lamb

    exempt = getattr(model, "no_weight_decay", set)()
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=exempt)
    settings = {"rectify": True, "degenerated_to_sgd": True, "eps": 1e-8}
    return Lamb(groups, lr=lr, weight_decay=0.0, **settings | opt_args)


def in_float32(optimiser: Optimizer) -> Optimizer:
    """Let timm's Muon orthogonalise its steps in float32.

    timm fixes bfloat16 for it, which a CPU without bfloat16 multiplies one number at a time.
    """
    module = sys.modules[type(optimiser).__module__]
    step, orthogonalise = optimiser.step, module.zeropower_via_newtonschulz

    def step_in_float32(closure: Any = None) -> Any:
        module.zeropower_via_newtonschulz = partial(orthogonalise, dtype=torch.float32)
        try:
            return step(closure)
        finally:
            module.zeropower_via_newtonschulz = orthogonalise

    optimiser.step = step_in_float32
    return optimiser


def lay_out_state(optimiser: Optimizer) -> None:
    """Give restored moments the memory format of their parameters, as they had it: a norm sums in memory's order."""
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_learning_rate(optimiser: Optimizer, lr: float) -> None:
    """Give every parameter group its learning rate: ``lr`` times the group's own scale, if it has one."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
