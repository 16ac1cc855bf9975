"""Training losses: functions of (logits, targets), a row each in LOSSES (common/runs/choices.py), and the head that
margin losses need.

``logits`` are float (n, C), ``targets`` float (n, C). Of classes a row sums to 1, one-hot, smoothed, mixed or
distilled; of label sets each number is by itself. Of numbers both are in deviations of the training rows' targets from
their mean, float (n, columns), or for bounded-bce logits and shares of their range (common/model/units.py).
A loss returns one number per image (n), or a single one for the whole batch. Under accumulation or several processes
a batch is the micro-batch that a process sees: the losses that look at other images (ohem, lovasz-softmax) then see
fewer of them, all others do not change.
"""

import math
from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.base.cli import Range
from common.base.errors import UserError
from common.runs.choices import LOSSES

Loss = Callable[..., Tensor]  # logits, targets and, where rows do not count alike, a weight each

SCALE = 16.0  # of a margin loss's cosines; its head has the same

Share = Annotated[float, Range(0, 1, above=True)]
Scale = Annotated[float, Range(0, above=True)]
Size = Annotated[float, Range(0)]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum t log p; smoothing is in the targets (--label-smoothing)."""
    return F.cross_entropy(logits, targets, reduction="none")


def focal(logits: Tensor, targets: Tensor, gamma: Size = 2.0) -> Tensor:
    """-sum t (1 - p)^gamma log p: what is already right counts little (Lin et al., arXiv 1708.02002)."""
    log_p = F.log_softmax(logits, dim=1)
    return -(targets * (1 - log_p.exp()).clamp_min(1e-7) ** gamma * log_p).sum(1)


def ohem(logits: Tensor, targets: Tensor, share: Share = 0.5) -> Tensor:
    """Cross-entropy of the ``share`` of the batch with the largest loss (top-k loss; Shrivastava et al., 1604.03540).

    The others count 0 and the chosen n / k, so that the mean over the batch is the mean of the chosen.
    """
    losses = cross_entropy(logits, targets)
    count = max(1, round(share * len(losses)))
    hardest = torch.zeros_like(losses).index_fill_(0, losses.detach().topk(count).indices, len(losses) / count)
    return losses * hardest


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """One yes-or-no question per class, summed over classes (Wightman et al., arXiv 2110.00476).

    Scored like all others by the softmax of its logits: good for ranking, too sure or too timid as a probability.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)


def generalised_cross_entropy(logits: Tensor, targets: Tensor, q: Share = 0.7) -> Tensor:
    """sum t (1 - p^q) / q, for noisy labels: cross-entropy at q -> 0, 1 - p at q = 1 (Zhang & Sabuncu, 1805.07836)."""
    return (targets * (1 - (q * F.log_softmax(logits, dim=1)).exp())).sum(1) / q


def arcface(logits: Tensor, targets: Tensor, scale: Scale = SCALE, margin: Size = 0.3) -> Tensor:
    """Cross-entropy after the angle to the target's class is made wider by ``margin`` (Deng et al., arXiv 1801.07698).

    ``logits`` are ``scale`` x cosines (:class:`CosineHead`), ``margin`` is in radians; a soft target gets its share of
    it. The scale must grow with the number of classes C: probability P is out of reach below
    (C - 1) / C x ln((C - 1) P / (1 - P)), 8 for 10 classes and P = 0.999 (CosFace, arXiv 1801.09414).
    """
    cosine = (logits / scale).clamp(-1.0, 1.0)
    sine = (1 - cosine**2).clamp_min(1e-6).sqrt()
    angle = margin * targets
    wider = cosine * torch.cos(angle) - sine * torch.sin(angle)  # cos(theta + angle)
    # Past pi the cosine would rise again; there the paper's code goes on with a straight line.
    straight = cosine - angle * torch.sin(angle)
    return cross_entropy(scale * torch.where(cosine > -torch.cos(angle), wider, straight), targets)


def cosface(logits: Tensor, targets: Tensor, scale: Scale = SCALE, margin: Size = 0.2) -> Tensor:
    """Cross-entropy after the cosine to the target's class is cut by ``margin`` (Wang et al., arXiv 1801.09414).

    ``logits`` are ``scale`` x cosines (:class:`CosineHead`); a soft target gets its share of the margin.
    """
    return cross_entropy(logits - scale * margin * targets, targets)


def lovasz_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """Lovasz extension of each class's Jaccard loss over the batch (Berman et al., arXiv 1705.08790); one number.

    An image is in a class's set or not, so soft targets have no place here: the targets must be one-hot.
    """
    p = F.softmax(logits, dim=1)
    errors, order = (targets - p).abs().sort(dim=0, descending=True)
    inside = targets.gather(0, order)
    union = inside.sum(0) + (1 - inside).cumsum(0)
    jaccard = 1 - (inside.sum(0) - inside.cumsum(0)) / union.clamp_min(1)
    slopes = torch.diff(jaccard, dim=0, prepend=torch.zeros_like(jaccard[:1]))
    occurs = targets.sum(0) > 0  # classes that the batch lacks say nothing
    return ((errors * slopes).sum(0) * occurs).sum() / occurs.sum()


def sigmoid_focal(logits: Tensor, targets: Tensor, gamma: Size = 2.0) -> Tensor:
    """:func:`focal` of one yes-or-no question per label, summed over labels (Lin et al., arXiv 1708.02002)."""
    p = torch.sigmoid(logits)
    off = targets * (1 - p) + (1 - targets) * p
    questions = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (off.clamp_min(1e-7) ** gamma * questions).sum(1)


def asymmetric(
    logits: Tensor, targets: Tensor, gamma_no: Size = 4.0, gamma_yes: Size = 1.0, margin: Share = 0.05
) -> Tensor:
    """Focal with a larger exponent for labels that a row lacks, which are most; summed over labels.

    A no whose probability is below ``margin`` costs nothing (Ben-Baruch et al., arXiv 2009.14119).
    """
    p = torch.sigmoid(logits)
    lowered = (p - margin).clamp_min(0)
    yes = (1 - p).clamp_min(1e-7) ** gamma_yes * F.logsigmoid(logits)
    no = lowered.clamp_min(1e-7) ** gamma_no * (1 - lowered).clamp_min(1e-7).log()
    return -(targets * yes + (1 - targets) * no).sum(1)


def soft_fbeta(logits: Tensor, targets: Tensor, beta: Scale = 1.0) -> Tensor:
    """1 - the F-beta of probabilities in place of decisions, counted over the batch, mean over labels; one number.

    Labels that neither occur in the batch nor are thought of say nothing.
    """
    p = torch.sigmoid(logits)
    both, sizes = (p * targets).sum(0), beta**2 * targets.sum(0) + p.sum(0)
    return (1 - (1 + beta**2) * both / sizes.clamp_min(1e-7)).mean()


def lovasz_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """Lovasz extension of the Jaccard loss of a row's label set, of hinge losses (Berman et al., arXiv 1705.08790).

    A row has a label or not, so soft targets have no place here.
    """
    hinges, order = (1 - logits * (2 * targets - 1)).sort(dim=1, descending=True)
    inside = targets.gather(1, order)
    union = inside.sum(1, keepdim=True) + (1 - inside).cumsum(1)
    jaccard = 1 - (inside.sum(1, keepdim=True) - inside.cumsum(1)) / union.clamp_min(1)
    slopes = torch.diff(jaccard, dim=1, prepend=torch.zeros_like(jaccard[:, :1]))
    return (F.relu(hinges) * slopes).sum(1)


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, mean over the target columns."""
    return ((outputs - targets) ** 2).mean(1)


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Absolute error, mean over the target columns: it learns the median, and a few large errors count little."""
    return (outputs - targets).abs().mean(1)


def huber(outputs: Tensor, targets: Tensor, delta: Scale = 1.0) -> Tensor:
    """Squared error up to ``delta`` deviations of the target, absolute error beyond (Huber 1964)."""
    return F.huber_loss(outputs, targets, reduction="none", delta=delta).mean(1)


def class_weights_of(asked: Any, targets: Tensor, num_classes: int) -> Tensor:
    """The weight of each class (C) for training rows with class numbers ``targets`` (n): their mean over rows is 1.

    ``asked`` is "balanced", one over a class's number of rows, or the weights' own ratios in the class list's order.

    Raises:
        UserError: not one positive number per class.
    """
    counts = torch.bincount(targets, minlength=num_classes).float()
    if asked == "balanced":
        weights = torch.where(counts > 0, 1 / counts.clamp_min(1), 0.0)
    else:
        numbers = asked if isinstance(asked, tuple | list) else ()
        if len(numbers) != num_classes or not all(isinstance(w, int | float) and 0 < w < math.inf for w in numbers):
            what = f"class_weights={asked} is not one positive number for each of {num_classes} classes"
            raise UserError("--loss-args", what, "give class_weights=balanced or 'class_weights=(1.2,1.2,0.8)'")
        weights = torch.tensor(numbers, dtype=torch.float32, device=targets.device)
    return weights * len(targets) / (weights * counts).sum()


def create_loss(name: str, targets: Tensor, num_classes: int, /, class_weights: Any = "", **loss_args: Any) -> Loss:
    """The mean loss of a batch, (logits, soft targets, weights) -> one number, for a training on rows of classes
    ``targets``; the weights, one a row, may be left out.

    Any loss per image takes ``class_weights``: an image counts as much as its (soft) class. With one-hot targets and
    cross-entropy that is torch's ``weight``, divided by the mean weight of all training rows instead of the batch's.

    Raises:
        UserError: the class weights are not one for each class.
    """
    loss = partial(resolve_name(LOSSES[name].function), **loss_args)
    of_class = None if class_weights == "" else class_weights_of(class_weights, targets, num_classes)

    def mean(logits: Tensor, soft: Tensor, weights: Tensor | None = None) -> Tensor:
        losses = loss(logits, soft)
        if of_class is not None:
            losses = losses * (soft @ of_class)
        return (losses if weights is None else losses * weights).mean()

    return mean


def of_known_labels(loss: Loss) -> Loss:
    """A loss of label sets to which labels that are not known, NaN in the targets, say nothing.

    Each takes the net's own probability for its target, where the slope of binary cross-entropy is 0.
    """

    def mean(logits: Tensor, soft: Tensor, weights: Tensor | None = None) -> Tensor:
        return loss(logits, torch.where(soft.isnan(), torch.sigmoid(logits.detach()), soft), weights)

    return mean


class CosineHead(nn.Module):
    """A last layer whose outputs are ``scale`` x the cosine between features (n, inputs) and each class's direction."""

    def __init__(self, inputs: int, num_classes: int, scale: float):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, inputs))
        nn.init.xavier_normal_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


def with_head_for(model: nn.Module, loss: str, /, scale: float = SCALE, **others: Any) -> nn.Module:
    """The model with the last layer that ``loss`` needs, in place; margin losses need a :class:`CosineHead`.

    The keyword arguments are the loss's. Whoever builds the model again, for its saved weights, must do the same.

    Raises:
        UserError: the model's last layer is not linear.
    """
    if not LOSSES[loss].margin:
        return model
    last = model.get_classifier()
    name = next((name for name, module in model.named_modules() if module is last), "")
    if not isinstance(last, nn.Linear) or not name:
        what = f"{loss} needs a linear last layer to replace, but this model's is {type(last).__name__}"
        raise UserError("--loss", what, "choose another model or loss")
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, CosineHead(last.in_features, last.out_features, scale))
    return model
