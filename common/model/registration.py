"""Nets of ours under a name in timm's registry, so that ``timm.create_model`` makes them like any of its own."""

from timm.models import register_model
from torch import nn

from common.base.errors import UserError


def register(name: str, net: type[nn.Module]) -> None:
    """Let timm make ``net`` of its arguments under ``name``; pretrained weights are refused, as there are none."""

    def entrypoint(
        pretrained: bool = False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **model_args
    ) -> nn.Module:
        if pretrained:
            raise UserError(f"--model {name}", "has no pretrained weights", "train it from scratch")
        return net(**model_args)

    entrypoint.__name__, entrypoint.__module__ = name, net.__module__
    register_model(entrypoint)
