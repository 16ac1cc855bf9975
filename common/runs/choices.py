"""What --loss, --opt, --schedule and --select may name, a row each.

Known before torch is loaded, so that a wrong name is refused at once: functions are named as text, "module:name", and
loaded by pkgutil.resolve_name.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from common.base.errors import UserError


@dataclass(frozen=True)
class Loss:
    """A training loss; the tasks that it fits name it (common/score/task.py)."""

    function: str
    margin: bool = False  # compares cosines: the model's last layer becomes a CosineHead
    hard_labels: bool = False  # takes no smoothed or mixed targets
    is_bounded: bool = False  # numbers as shares of the way from the lowest to the highest, behind a sigmoid
    of_the_batch: bool = False  # one number for all images, so that none can be weighted


LOSSES = {
    "cross-entropy": Loss("common.model.losses:cross_entropy"),
    "focal": Loss("common.model.losses:focal"),
    "ohem": Loss("common.model.losses:ohem"),
    "bce": Loss("common.model.losses:bce"),
    "generalised-cross-entropy": Loss("common.model.losses:generalised_cross_entropy"),
    "arcface": Loss("common.model.losses:arcface", margin=True),
    "cosface": Loss("common.model.losses:cosface", margin=True),
    # The same formula, published a month apart (Wang et al., arXiv 1801.05599).
    "am-softmax": Loss("common.model.losses:cosface", margin=True),
    "lovasz-softmax": Loss("common.model.losses:lovasz_softmax", hard_labels=True, of_the_batch=True),
    "sigmoid-focal": Loss("common.model.losses:sigmoid_focal"),
    "asymmetric": Loss("common.model.losses:asymmetric"),
    "soft-fbeta": Loss("common.model.losses:soft_fbeta", of_the_batch=True),
    "lovasz-hinge": Loss("common.model.losses:lovasz_hinge", hard_labels=True),
    "mse": Loss("common.model.losses:mse"),
    "mae": Loss("common.model.losses:mae"),
    "huber": Loss("common.model.losses:huber"),
    "bounded-bce": Loss("common.model.losses:bce", is_bounded=True),
}

SCHEDULES = {
    "warmup-cosine": "common.model.schedules:warmup_cosine",
    "cosine": "common.model.schedules:cosine",
    "restarts": "common.model.schedules:restarts",
    "step": "common.model.schedules:step",
    "multistep": "common.model.schedules:multistep",
    "onecycle": "common.model.schedules:onecycle",
    "wsd": "common.model.schedules:wsd",
    "constant": "common.model.schedules:constant",
    "plateau": "common.model.schedules:plateau",
}

SELECTIONS = {
    "last": "common.model.selection:Last",
    "best": "common.model.selection:Best",
    "swa": "common.model.selection:StochasticAverage",
    "snapshots": "common.model.selection:Snapshots",
    "members": "common.model.selection:Independent",
}


# What timm lacks: the name of what it is made of, and the settings that make it that.
OPTIMISERS = {
    # github.com/lessw2020/Ranger-Deep-Learning-Optimizer, without its later gradient centralisation
    "ranger": ("lookahead_radam", {"decoupled_weight_decay": True, "betas": (0.95, 0.999), "eps": 1e-5}),
    "nvnovograd": ("novograd", {}),  # timm's class by its own name
    "muon_fp32": ("muon", {}),  # computes in float32 what muon does in bfloat16 (common/model/optim.py)
    # github.com/mgrankin/over9000
    "ralamb": ("ralamb", {}),
    "over9000": ("lookahead_ralamb", {}),
}

# timm.optim.list_optimizers() of a version, and of the ones before it; a later one may have more.
TIMM = "1.0.31"
TIMMS_OPTIMISERS = """
    adabelief adadelta adafactor adafactorbv adafactorbvc adagrad adahessian adam adamax adamc adamp adamuon adamw
    adamwlegacy adan adanw adopt adoptc adoptw bnbadam bnbadam8bit bnbadamw bnbadamw8bit bnbademamix bnbademamix8bit
    bnblion bnblion8bit bnbsgd bnbsgd8bit cadafactor cadafactorbv cadafactorbvc cadamc cadamp cadamw cadan cadanw cadopt
    cadoptc cadoptw clamb clambw claprop clion clionc cmars cnadamc cnadamw crmsproptf csgdc csgdp csgdw fusedadam
    fusedadamw fusedlamb fusednovograd fusedsgd kron kronc kronw lamb lambc lambcd lambcw lambw laprop lapropc larc lars
    lion lionc madgrad madgradw mars momentum muon nadam nadamc nadamlegacy nadamuon nadamw nesterov nesterovw nlarc
    nlars nmuon novograd novogradc novogradw radabelief radam radamlegacy radamw rmsprop rmsproptf rmsproptfc rmsproptfw
    sgd sgdc sgdp sgdw
"""


def check_optimiser(name: str) -> None:
    """Refuse an optimiser that neither we nor timm have; of a timm newer than our list that is left to timm.

    Raises:
        UserError: with the nearest names.
    """
    made_of, _ = OPTIMISERS.get(name, (name, {}))
    timms = TIMMS_OPTIMISERS.split()
    if made_of.removeprefix("lookahead_") not in (*timms, "ralamb") and not _newer(version("timm")):
        raise no_optimiser(name, timms)


def no_optimiser(name: str, timms: Sequence[str]) -> UserError:
    """The error of a name that neither we nor ``timms`` optimisers have."""
    near = difflib.get_close_matches(name, [*OPTIMISERS, *timms], n=3)
    remedy = f"did you mean {', '.join(near)}?" if near else "timm.optim.list_optimizers() lists them all"
    return UserError("--opt", f"there is no optimiser {name}", remedy)


def _newer(timm: str) -> bool:
    parts, listed = ([int(part) for part in re.findall(r"\d+", text)[:3]] for text in (timm, TIMM))
    return parts > listed
