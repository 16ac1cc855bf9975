"""Fine-tuning: what of a loaded model trains, from which epoch on, and how fast.

The four usual ways: the last layer alone (--freeze backbone=EPOCHS of all epochs); it alone for the first epochs, then
everything (--freeze backbone=2); everything at different speeds (--layer-decay, --backbone-lr-scale); everything but
the shallow stages (--freeze stages=2). Each of the last three can leave BatchNorm's statistics as they were loaded
(--freeze batchnorm=True), which small batches would otherwise replace by noisier ones.
"""

from dataclasses import dataclass

from timm.models import group_parameters
from torch import nn
from torch.optim import Optimizer

from common.base.errors import UserError
from common.model.weights import head_names
from common.runs.config import Config


@dataclass(frozen=True)
class Frozen:
    """The parameters that hold still for good, and those that do for the first epochs only; all by name."""

    always: frozenset[str] = frozenset()
    at_first: frozenset[str] = frozenset()
    epochs: int = 0  # how long ``at_first`` lasts
    batchnorm: bool = False  # whether every BatchNorm keeps its statistics; its weights may train all the same

    def apply(self, model: nn.Module, epoch: int) -> None:
        """Freeze what does not train in ``epoch`` (from 0). To be called after every ``model.train()``.

        A BatchNorm whose weights are frozen stays in evaluation mode: its running statistics would drift with each
        batch, and the frozen layers behind it were trained on the old ones.
        """
        frozen = self.always | self.at_first if epoch < self.epochs else self.always
        for name in self.always | self.at_first:  # and no others: a model may hold some of its own still
            model.get_parameter(name).requires_grad_(name not in frozen)
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            still = self.batchnorm or (own and not any(parameter.requires_grad for parameter in own))
            if still and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def frozen_parts(cfg: Config, model: nn.Module) -> Frozen:
    """What ``--freeze`` names of this model.

    Raises:
        UserError: more stages or epochs than there are, or another setting left without effect.
    """
    if not cfg.freeze:
        return Frozen()
    return freeze(cfg, model, **cfg.args("freeze"))


def freeze(cfg: Config, model: nn.Module, backbone: int = 0, stages: int = 0, batchnorm: bool = False) -> Frozen:
    """The parts that keep still; of ``backbone`` epochs, of so many ``stages`` from the input on."""
    head = head_names(model)
    backbone_names = frozenset(name for name, _ in model.named_parameters() if name not in head)
    layers = layers_of(model, cfg.model, coarse=True) if stages else {}
    deepest = max((layers[name] for name in layers.keys() & backbone_names), default=1)
    if backbone not in range(cfg.epochs + 1):
        raise UserError(
            "--freeze", f"backbone={backbone} is out of range: there are {cfg.epochs} epochs", f"use 1 to {cfg.epochs}"
        )
    if stages not in range(deepest):
        raise UserError(
            "--freeze", f"stages={stages} is out of range: {cfg.model} has {deepest}", f"use 1 to {deepest - 1}"
        )
    layers_with_statistics = [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    if batchnorm and not layers_with_statistics:
        raise UserError("--freeze", f"{cfg.model} has no BatchNorm to freeze", "leave batchnorm out")
    if backbone == cfg.epochs and (stages or (cfg.layer_decay, cfg.backbone_lr_scale) != (1, 1)):
        what = "only the last layer ever trains, so stages, --layer-decay and --backbone-lr-scale have no effect"
        raise UserError("--freeze", what, "leave them out, or unfreeze the backbone after fewer epochs")
    if backbone == cfg.epochs:
        return Frozen(always=backbone_names, batchnorm=batchnorm)
    shallow = frozenset(name for name in layers.keys() & backbone_names if layers[name] <= stages)  # 0 is the stem
    return Frozen(shallow, backbone_names, backbone, batchnorm)


def layers_of(model: nn.Module, name: str, coarse: bool) -> dict[str, int]:
    """The number of each parameter's layer, or of its stage (``coarse``), as timm counts them from the input on."""
    if not hasattr(model, "group_matcher"):
        raise UserError("--model", f"{name} does not define its layer groups", "leave out --layer-decay and stages=")
    return group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)


def scale_learning_rates(optimiser: Optimizer, model: nn.Module, layer_decay: float, backbone_lr_scale: float) -> None:
    """Give parameter groups a ``lr_scale``: ``layer_decay`` once for each layer that lies between them and the logits,
    and ``backbone_lr_scale`` for everything before the last layer.

    Source of the decay: ELECTRA (arXiv 2003.10555) and BEiT, with the layers as timm numbers them. It works on the
    finished optimiser, so that every optimiser can have it.
    """
    if (layer_decay, backbone_lr_scale) == (1, 1):
        return
    head = head_names(model)
    layers = layers_of(model, type(model).__name__, coarse=False) if layer_decay != 1 else {}
    scales = {
        id(parameter): (1.0 if name in head else backbone_lr_scale)
        * layer_decay ** (max(layers.values(), default=0) - layers.get(name, 0))
        for name, parameter in model.named_parameters()
    }
    groups = []
    for group in optimiser.param_groups:
        for scale in sorted({scales[id(parameter)] for parameter in group["params"]}):
            parameters = [parameter for parameter in group["params"] if scales[id(parameter)] == scale]
            groups.append({**group, "params": parameters, "lr_scale": scale})
    optimiser.param_groups[:] = groups  # in place: a wrapper such as Lookahead holds the same list
