"""The runs that a blend is made of: what they are, and what they predict of the same rows over the same columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.base.errors import UserError
from common.base.files import read_json
from common.base.words import names_in_short
from common.data.folds import Folds
from common.runs.layout import CONFIG_FILE, INFERENCE_FILE, TEST_FILE, fold_folder
from common.runs.oof import check_test_source, join_oof_like_test
from common.runs.predictions import Predictions, kept_classes, read_predictions, rows_in_order, short_form


@dataclass(frozen=True)
class Member:
    """A finished run."""

    folder: Path  # in which it was trained
    inferred: Path  # into which infer.py has written its predictions
    settings: dict[str, Any]  # what it was trained with; empty where the file is not at hand
    inference: dict[str, Any]  # what infer.py recorded; empty where it did not run

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name


def read_member(folder: Path, inferred: Path) -> Member:
    """A run with what is recorded of it; raises UserError where a file is damaged."""
    config, inference = fold_folder(folder, 0) / CONFIG_FILE, inferred / INFERENCE_FILE
    settings = read_json(config) if config.is_file() else {}
    recorded = read_json(inference, seconds_per_1000_rows=(int, float)) if inference.is_file() else {}
    return Member(folder, inferred, settings, recorded)


def alike_members(members: Sequence[Member]) -> np.ndarray:
    """The same number for runs of the same model with the same arguments, whatever else they were trained with."""
    models = [(each.settings.get("model", each.name), tuple(each.settings.get("model_args", ()))) for each in members]
    return np.array([models.index(model) for model in models])


def metric_of(members: Sequence[Member]) -> str:
    """The metric that all of them were trained by; empty: they differ, or do not say."""
    found = {each.settings.get("metric", "") for each in members} - {""}
    return found.pop() if len(found) == 1 else ""


def read_members(
    members: Sequence[Member], folds: Folds, noise: int
) -> tuple[list[Predictions | None], list[Predictions]]:
    """Each run's test predictions, None where it has none, and its OOF predictions under the same views.

    They are in short form where together with ``noise`` further ones they would not fit into memory.

    Raises:
        UserError: predictions of other models, folds or outputs; see :func:`common.runs.oof.join_oof_like_test`.
    """
    kept = kept_classes(int((folds.fold >= 0).sum()), len(folds.output_names), len(members), noise)
    tests = [read_test(each, folds, kept) for each in members]
    oofs = [
        join_oof_like_test(each.folder, folds, test, kept, each.inferred)
        for each, test in zip(members, tests, strict=True)
    ]
    return tests, oofs


def in_one_form(
    members: Sequence[Member], tests: Sequence[Predictions], oofs: Sequence[Predictions]
) -> tuple[list[Predictions], list[Predictions]]:
    """The test predictions in the first one's row order, and all in one short form where one of them is in it.

    Raises:
        UserError: test predictions of other rows.
    """
    paths = [str(each.inferred / TEST_FILE) for each in members]
    tests = [rows_in_order(test, tests[0].ids, path) for test, path in zip(tests, paths, strict=False)]
    every = [*tests, *oofs]
    shortest = min((each.columns.shape[1] for each in every if each.is_short), default=0)
    if shortest:
        every = [short_form(each, shortest) for each in every]
    return every[: len(tests)], every[len(tests) :]


def read_test(member: Member, folds: Folds, kept: int) -> Predictions | None:
    """A run's test predictions, in the short form of ``kept`` classes (0: as they are); None where it has none.

    Raises:
        UserError: they are not of its models, or of other outputs than the folds.
    """
    path = member.inferred / TEST_FILE
    if not path.is_file():
        return None
    test = read_predictions(path)
    check_test_source(member.folder, path, test)
    if test.output_names != folds.output_names:
        theirs, ours = names_in_short(test.output_names), names_in_short(folds.output_names)
        what = f"has the {folds.task.outputs_are} {theirs}, but the folds have {ours}"
        raise UserError(str(path), what, "run infer.py again for this run")
    return short_form(test, kept) if kept else test
