"""Optimisers by name: timm's, and those of the field that it lacks."""

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.optim import OptimInfo, create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.optim._optim_factory import default_registry
from torch import nn
from torch.optim import Optimizer

from common.base.errors import ENVIRONMENT, UserError

# What the recipes use and the oldest timm that we take lacks.
SINCE = {"muon": "1.0.21"}

# timm imports a class that is given as text when it is asked for.
default_registry.register(
    OptimInfo(
        name="ralamb",
        opt_class="pytorch_optimizer.Lamb",
        description="RaLamb: LAMB with the rectified step of RAdam, the step of SGD before that is known",
        has_eps=True,
        has_betas=True,
        defaults={"rectify": True, "degenerated_to_sgd": True, "eps": 1e-8},
    )
)


def create_optimiser(
    model: nn.Module, name: str, lr: float, weight_decay: float, opt_args: Mapping[str, Any]
) -> Optimizer:
    """The optimiser of the model's parameters; biases and normalisation weights do not decay.

    ``name`` is timm's, with lookahead_ before it if you like (Zhang et al., arXiv 1907.08610), or one of OPTIMISERS.

    Raises:
        UserError: there is no such optimiser, its package is missing, or it does not know one of ``opt_args``.
    """
    known, own_args = OPTIMISERS.get(name, (name, {}))
    inner = known.removeprefix("lookahead_")
    if inner not in list_optimizers():
        if inner in SINCE:
            what = f"{inner} came with timm {SINCE[inner]}, this is {timm.__version__}"
            raise UserError("--opt", what, f"pip install 'timm>={SINCE[inner]}', or choose another", ENVIRONMENT)
        near = difflib.get_close_matches(name, [*OPTIMISERS, *list_optimizers()], n=3)
        remedy = f"did you mean {', '.join(near)}?" if near else "timm.optim.list_optimizers() lists them all"
        raise UserError("--opt", f"there is no optimiser {name}", remedy)
    info = get_optimizer_info(inner)
    for argument, used in (("eps", info.has_eps), ("betas", info.has_betas)):
        if argument in opt_args and not used:  # timm would drop it without a word
            raise UserError("--opt-args", f"{name} has no {argument}", "leave it out")
    try:
        return create_optimizer_v2(model, opt=known, lr=lr, weight_decay=weight_decay, **{**own_args, **opt_args})
    except (ImportError, AssertionError) as error:
        remedy = "pip install pytorch-optimizer" if inner == "ralamb" else "choose another"
        raise UserError("--opt", f"{name} needs a package that is not installed ({error})", remedy) from error
    except (TypeError, ValueError) as error:
        raise UserError(
            "--opt-args", f"{name} rejected these arguments ({error})", "see the optimiser's class"
        ) from error


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


# What timm lacks: the name of what it is made of, and the settings that make it that.
OPTIMISERS: dict[str, tuple[str, dict[str, Any]]] = {
    # github.com/lessw2020/Ranger-Deep-Learning-Optimizer, without its later gradient centralisation
    "ranger": ("lookahead_radam", {"decoupled_weight_decay": True, "betas": (0.95, 0.999), "eps": 1e-5}),
    "nvnovograd": ("novograd", {}),  # timm's class by its own name
    # github.com/mgrankin/over9000
    "ralamb": ("ralamb", {}),
    "over9000": ("lookahead_ralamb", {}),
}
