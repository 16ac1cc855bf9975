"""What timm's models and optimisers make of wrong arguments without a word: told by their signatures and by a trial.

Checked when a training starts, and no later: a run that an older version trained is read as it was.
"""

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from common.base.cli import LARGEST, Range, check_value
from common.base.errors import UserError
from common.model.networks import CROPS, RECOMPUTE, SYNC_BN, build, current_name

# Names of what is a share or a probability wherever it occurs: rates of dropout, decays of moving averages.
SHARE = re.compile(r"(.*_)?drop(out)?(_path|_block)?(_rate)?|(.*_)?momentum|alpha|dampening|rho|betas?(_.*)?")
# What timm takes for something else, or for nothing, without a word where it is another value.
ALLOWED = {"pad_type": ("same", "valid", "symmetric"), "output_stride": (2, 4, 8, 16, 32)}
ALLOWED |= dict.fromkeys(("eps", "norm_eps", "bn_eps"), Range(0))
ALLOWED |= dict.fromkeys(("channel_multiplier", "depth_multiplier"), Range(0, above=True))
MOST_PARAMETERS = 1e11  # of a model that anybody means


def check_by_signature(flag: str, arguments: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Refuse arguments of another kind than ``function`` has by annotation or default, or beyond what names say.

    A number whose default is not negative is not either. What is said nowhere passes.

    Raises:
        UserError: with what is allowed.
    """
    parameters = inspect.signature(function).parameters
    for name, value in arguments.items():
        parameter = parameters.get(name)
        kinds = _kinds(parameter, function) if parameter else set()
        allowed = ALLOWED.get(name)
        if SHARE.fullmatch(name) and bool not in kinds:
            allowed = Range(0, 1)
        elif kinds == {bool}:
            allowed = (True, False)
        elif kinds and kinds <= {int, float} and not allowed:
            is_positive = isinstance(parameter.default, int | float) and parameter.default >= 0
            allowed = Range(0 if is_positive else -LARGEST, whole=kinds == {int})
        if allowed:
            in_a_list = isinstance(value, tuple | list) and (tuple in kinds or not kinds)
            check_value(flag, name, value, () if in_a_list else None, allowed)


def _kinds(parameter: inspect.Parameter, function: Callable[..., Any]) -> set[type]:
    """The types that a parameter may have, but for None: of its annotation, or else of its default."""
    try:
        takes = function.__init__ if isinstance(function, type) else function
        annotation = typing.get_type_hints(takes).get(parameter.name)
    except (NameError, TypeError, AttributeError):  # a name that only a type checker knows
        annotation = None if isinstance(parameter.annotation, str) else parameter.annotation
    if annotation in (None, inspect.Parameter.empty):
        return set() if parameter.default in (None, inspect.Parameter.empty) else {type(parameter.default)}
    is_choice = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if is_choice else (annotation,)
    return {typing.get_origin(kind) or kind for kind in kinds} - {type(None)}


def check_model_args(name: str, model_args: Mapping[str, Any], num_classes: int, channels: int, img_size: int) -> None:
    """Refuse arguments of a wrong kind, or that change nothing of the model: of timm's texts, any unknown one does not.

    Raises:
        UserError: with what is allowed, or that it has no effect.
    """
    own = {argument: value for argument, value in model_args.items() if argument not in (SYNC_BN, RECOMPUTE, *CROPS)}
    if not own:
        return
    name = current_name(name)
    check_by_signature("model-args", own, lambda **_: None)

    def built(arguments: Mapping[str, Any]) -> nn.Module:
        with torch.device("meta"):
            return build(name, arguments, num_classes, channels, img_size)

    try:
        model = built(own)
    except Exception:  # networks.create_model says what is wrong
        return
    if (count := sum(parameter.numel() for parameter in model.parameters())) > MOST_PARAMETERS:
        values = " ".join(f"{argument}={value}" for argument, value in own.items())
        raise UserError(
            "--model-args", f"{name} would have {count:.1g} parameters with {values}", "use smaller numbers"
        )
    check_by_signature("model-args", own, type(model).__init__)
    defaults = inspect.signature(type(model).__init__).parameters
    for argument, value in own.items():
        others = {each: own[each] for each in own if each != argument}
        try:
            same = _shown(model) == _shown(built(others | {argument: _another(value)}))
            changes = _shown(model) != _shown(built(others))
        except Exception:  # another value is refused, so it is looked at
            continue
        is_default = argument in defaults and defaults[argument].default == value
        if same and not is_default and (isinstance(value, str) or not changes):
            what = f"is for {name} what any other text is" if changes else f"has no effect on {name}"
            raise UserError("--model-args", f"{argument}={value} {what}", "correct it or leave it out")


def _another(value: Any) -> Any:
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple | list):
        return type(value)(_another(each) for each in value)
    return value + 1 if isinstance(value, int) else value / 2 + 0.05 if isinstance(value, float) else "another"


def _shown(model: nn.Module) -> list[Any]:
    """What there is to see of a model: its layers, the shapes of its tensors, plain attributes."""
    attributes = [
        (name, key, getattr(value, "__qualname__", value))
        for name, module in model.named_modules()
        for key, value in sorted(vars(module).items())
        if isinstance(value, bool | int | float | str | tuple | types.FunctionType)
    ]
    return [str(model), [(name, tensor.shape) for name, tensor in model.state_dict().items()], attributes]
