"""What a fold's weights file says of itself, so that its readers need nothing else."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

from common.base.errors import UserError
from common.data.decoding import Preparation
from common.data.kinds import FEATURES, KINDS, PHOTOS, PIXELS, Kind
from common.runs.config import Config, saved_config
from common.score.task import MULTICLASS, TASKS

# What metrics.json repeats, for readers that do not load torch.
IN_METRICS = ("folds_fingerprint", "fold_count", "processes", "threads", "device", "computed_in", "memory_format")
IN_METRICS += ("versions",)
IN_THE_FILE = {"output_names": "classes"}  # keys that are older than the field's name


@dataclass(frozen=True)
class SavedModel:
    """A trained model but for its weights. Each field is a key of the file's metadata; later ones may be missing."""

    settings: dict[str, Any]  # of the training (common/runs/config.py)
    fold: str  # the number of the fold that was held out, or full
    fold_count: int
    folds_fingerprint: str
    output_names: list[str]  # of the network; "classes" in the file
    image_shape: tuple[int, int]  # channels and side (px) of the table's images; a photo's side is 0
    preparation: Preparation
    normalise: dict[str, Any]  # the fields of its inputs' scale, such as mean and std of each channel
    memory_format: str  # torch's name of it
    processes: int
    threads: int = 0
    device: str = ""  # name of the card, or cpu
    computed_in: str = ""  # the precision, where the device may lack the one asked for; empty in older files: as asked
    run: str = ""
    versions: dict[str, str] = field(default_factory=dict)  # of what decides the bits
    members: int = 1  # networks in the file
    averaged: tuple[str, ...] = ()  # runs whose weights these are the mean of
    inputs: str = PIXELS.name  # a name in KINDS
    id_name: str = ""  # of the train table: the columns of a submission made without a sample
    label_name: str = ""
    sha256: str = ""  # over the tensors, as the file states it

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], path: Path, remedy: str) -> "SavedModel":
        """What a file at ``path`` says; keys of another version are left out.

        Raises:
            UserError: something is missing or has the wrong type.
        """
        keys = {each.name: IN_THE_FILE.get(each.name, each.name) for each in dataclasses.fields(cls)}
        said = {name: metadata[key] for name, key in keys.items() if key in metadata}
        settings = said.get("settings")
        if isinstance(settings, dict) and "preparation" not in said:  # an old file: its images are no photos
            side = settings.get("img_size")
            said["preparation"] = {"channels": settings.get("channels"), "side": side, "stored": side}
        for each in dataclasses.fields(cls):
            kind = get_origin(each.type) or each.type
            kind = {tuple: list, Preparation: dict}.get(kind, kind)  # as JSON has it
            optional = each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING
            if not (isinstance(said.get(each.name), kind) or optional and each.name not in said):
                raise UserError(str(path), f"has no valid {keys[each.name]}", remedy)
        if (task := said["settings"].get("task", MULTICLASS.name)) not in TASKS:
            raise UserError(str(path), f"is of the task {task}, which this code does not know", "use matching code")
        if "inputs" not in said:  # an old file
            images = PHOTOS if said["image_shape"][0] == 3 else PIXELS
            said["inputs"] = (FEATURES if said["preparation"].get("features") else images).name
        if said["inputs"] not in KINDS:
            what = f"is of inputs {said['inputs']}, which this code does not know"
            raise UserError(str(path), what, "use matching code")
        prepared = said["preparation"] | {"fill": tuple(said["preparation"].get("fill", Preparation.fill))}
        said |= {"image_shape": tuple(said["image_shape"]), "averaged": tuple(said.get("averaged", ()))}
        return cls(**said | {"preparation": Preparation(**prepared)})

    def to_metadata(self) -> dict[str, Any]:
        """What :meth:`from_metadata` reads."""
        return {IN_THE_FILE.get(name, name): value for name, value in dataclasses.asdict(self).items()}

    @property
    def cfg(self) -> Config:
        """The settings of the training, but for its places."""
        return saved_config(self.settings)

    @property
    def task(self) -> str:
        """What an answer is, a name in TASKS."""
        return self.settings.get("task", MULTICLASS.name)

    @property
    def kind(self) -> Kind:
        """What follows from what its inputs are."""
        return KINDS[self.inputs]

    @property
    def scale(self) -> Any:
        """What brings its inputs to zero mean and unit deviation (common/data/scales.py); loads torch."""
        return self.kind.scale_of(self.normalise)

    @property
    def precision(self) -> str:
        """What the training computed in: no, fp16 or bf16."""
        return self.computed_in or self.cfg.mixed_precision

    @property
    def micro_batch(self) -> int:
        """Images that each process of the training took at a time."""
        return self.cfg.batch_size // (self.cfg.accumulate * self.processes)

    @property
    def shared(self) -> dict[str, Any]:
        """What the models of one run's folds have in common, by name."""
        names = ("folds_fingerprint", "fold_count", "output_names")
        return self.settings | {name: getattr(self, name) for name in names}

    @property
    def in_metrics(self) -> dict[str, Any]:
        """What the fold's metrics.json repeats of it."""
        limit = {"limit": self.cfg.limit} if self.cfg.limit else {}  # a smoke run: its OOF is not whole
        averaged = {"averaged": self.averaged} if self.averaged else {}
        return {name: getattr(self, name) for name in IN_METRICS} | limit | averaged
