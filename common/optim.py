"""The optimiser by timm's name, and the learning rate as a pure function of the optimiser step."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn
from torch.optim import Optimizer

from common.errors import UserError


def create_optimiser(
    model: nn.Module, name: str, lr: float, weight_decay: float, opt_args: Mapping[str, Any]
) -> Optimizer:
    """timm's optimiser over the model's parameters; biases and normalisation weights do not decay.

    Raises:
        UserError: timm has no such optimiser, or it does not know one of ``opt_args``.
    """
    if name not in list_optimizers():
        near = difflib.get_close_matches(name, list_optimizers(), n=3)
        remedy = f"did you mean {', '.join(near)}?" if near else "timm.optim.list_optimizers() names them all"
        raise UserError("--opt", f"timm has no optimiser {name}", remedy)
    try:
        return create_optimizer_v2(model, opt=name, lr=lr, weight_decay=weight_decay, **opt_args)
    except (TypeError, ValueError) as error:
        raise UserError("--opt-args", f"{name} refuses them ({error})", "see the optimiser's class") from error


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, min_ratio: float) -> float:
    """The share of the peak learning rate at optimiser step ``step`` (0 is the first).

    Linear from 1/warmup_steps to 1, then a half cosine to ``min_ratio``, which it keeps past
    ``total_steps``: the unclamped formula climbs back to the peak. Source: the cosine of SGDR
    (Loshchilov & Hutter, arXiv 1608.03983) behind the warm-up of Goyal et al. (arXiv 1706.02677).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * done)) / 2


def set_learning_rate(optimiser: Optimizer, lr: float) -> None:
    """Give every parameter group its learning rate: ``lr`` times the group's own scale, if it has one."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
