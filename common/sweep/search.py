"""Search over any settings with Optuna (an optional extra): pip install optuna

runs/<run>_search/
    search.json        what all trials share, and what varies
    journal.log        Optuna's storage: any number of workers, on one machine or a shared disk, may append to it
    trial<n>/          an ordinary run, locked in claim/ by the worker that trains it
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.base.cli import flag_of, flags_of, parse
from common.base.errors import ENVIRONMENT, INPUT, UserError
from common.base.files import read_json
from common.base.locks import locked
from common.base.result import Result
from common.data.folds import read_data
from common.jobs.process import Job, Slot
from common.jobs.runner import INTERRUPTED, device_slots, loaded_once, run_jobs
from common.runs.config import (
    Config,
    check_config,
    check_each,
    check_signatures,
    saved_config,
    training_settings,
)
from common.runs.fitting import fitting
from common.runs.layout import fold_folder
from common.sweep.cell_runner import CLAIM_FOLDER, LOG_FILE, out_of_fold, stop_if_all_fail
from common.sweep.cells import claim_folder
from common.sweep.checks import check_files, check_same_folds

SEARCH_FILE = "search.json"


@dataclass(frozen=True)
class Search:
    """What all trials share, and what varies."""

    folder: Path
    config: Config
    vary: tuple[str, ...]  # as typed: lr=1e-4..3e-2

    @property
    def fixed(self) -> dict[str, Any]:
        """What must not change while the search goes on; a range may."""
        varied = {setting_of(entry): "varied" for entry in self.vary}
        return training_settings(self.config) | {"fold": self.config.fold} | varied


def read_search(folder: Path) -> Search:
    """The search in ``folder``."""
    entries = read_json(folder / SEARCH_FILE, config=dict, vary=list)
    return Search(folder, saved_config(entries["config"]), tuple(entries["vary"]))


def search(cfg: Config, vary: tuple[str, ...], trials: int, script: Path) -> Result:
    """Train trial after trial with ``script`` until ``trials`` have ended, say which was best and return it.

    Start the same command several times to work side by side; started again, it goes on. What a trial could not use is
    refused before the search's folder is made.

    Raises:
        UserError: Optuna is not there; an entry of ``vary`` cannot be read; the folder holds a search with other
            settings; no trial has succeeded.
    """
    check_signatures(cfg)
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UserError("sweep.py search", "Optuna is not installed", "pip install optuna", ENVIRONMENT) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = dict(dimension(entry, cfg) for entry in vary)
    folder = Path(cfg.runs_dir) / f"{cfg.run_name}_search"
    check_first_trial(cfg, space, folder)
    is_new = claim_folder(Search(folder, cfg, vary), SEARCH_FILE, read_search)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(storage=storage, study_name="search", load_if_exists=True)
    if is_new and has_scores(study):
        print(f"{folder}: had no {SEARCH_FILE}, as older versions wrote none; this command's settings are now recorded")
    ended = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    with loaded_once(device_slots()[:1], trials - ended) as slots:
        while True:
            with locked(folder, wait=True):  # so that workers together start no trial too many
                known = study.get_trials(deepcopy=False)
                open_trials = [trial for trial in known if not trial.state.is_finished()]
                if not open_trials and len(known) >= trials:
                    break
                if len(known) < trials:
                    try:
                        new = study.ask(space)
                    except ValueError as error:  # the names among which a setting is chosen are a study's for good
                        what = f"this search was begun with other values ({error})"
                        raise UserError(str(folder), what, "use the same --vary, or another --run") from error
                    number, params = new.number, new.params
                else:  # the last ones are still at work, unless their worker died
                    number, params = open_trials[0].number, open_trials[0].params
            claim = ExitStack()
            try:
                claim.enter_context(locked(folder / f"trial{number}" / CLAIM_FOLDER))
            except UserError:
                time.sleep(1)  # another worker trains it
                continue
            with claim:
                if not study.get_trials(deepcopy=False)[number].state.is_finished():
                    study.tell(number, **result(cfg, study, folder, number, params, script, slots))
    if not has_scores(study):
        raise UserError(str(folder), f"all {len(known)} trials failed", "see their logs, and use another --run")
    best = study.best_trial
    chosen = " ".join(word for name, value in best.params.items() for word in flag_of(name, value))
    print(f"best of {len(known)} trials: {folder.name}/trial{best.number}, nll_calibrated {best.value:.4f}: {chosen}")
    print(f"it was chosen on fold {cfg.fold}, whose score is now optimistic; judge it by the other folds: --fold all")
    return Result({"nll_calibrated": best.value, **best.params}, folder / f"trial{best.number}")


def has_scores(study: Any) -> bool:
    """Whether a trial of an Optuna study has succeeded."""
    return any(trial.value is not None for trial in study.get_trials(deepcopy=False))


def dimension(entry: str, cfg: Config) -> tuple[str, Any]:
    """A setting and the values it may take: lr=1e-4..3e-2 (by ratio where it spans a decade), opt=adamw,sgd.

    Raises:
        UserError: an entry that cannot be read, or a value that the setting cannot have beside the others in ``cfg``.
    """
    import optuna

    name, values = setting_of(entry), entry.partition("=")[2]
    low, dots, high = values.partition("..")

    def checked(text: str) -> Any:
        value = getattr(parse(Config, flag_of(name, text)), name)
        check_each(dataclasses.replace(cfg, **{name: value}))
        return value

    try:
        if not dots:
            values = values.split(",")
            for value in values:
                checked(value)
            return name, optuna.distributions.CategoricalDistribution(values)
        ends = [checked(end) for end in (low, high)]
        kinds = {int: optuna.distributions.IntDistribution, float: optuna.distributions.FloatDistribution}
        return name, kinds[type(ends[0])](*ends, log=ends[0] > 0 and ends[1] >= 10 * ends[0])
    except (KeyError, ValueError) as error:
        what = f"{entry} is not a valid range for a setting ({error})"
        raise UserError("--vary", what, "write lr=1e-4..3e-2 or opt=adamw,sgd") from error


def setting_of(entry: str) -> str:
    """The setting that an entry of --vary names."""
    return entry.partition("=")[0].replace("-", "_")


def check_first_trial(cfg: Config, space: dict[str, Any], folder: Path) -> None:
    """Refuse what a trial of the first value of each setting in ``space`` would be refused for.

    Raises:
        UserError: settings that do not go together, or files that cannot be used; the trials that ``folder`` holds were
            trained with other folds.
    """
    first = {name: values.choices[0] if hasattr(values, "choices") else values.low for name, values in space.items()}
    trial = parse(Config, flags_of_trial(cfg, Path(cfg.runs_dir, "trial"), first))
    check_config(trial, processes=1)
    table, folds = read_data(cfg.data, cfg.folds, cfg.task, cfg.positive)
    check_same_folds(folder, folds)
    check_files(fitting(trial, table, folds), table, folds)


def flags_of_trial(cfg: Config, run: Path, params: dict[str, Any]) -> list[str]:
    """The command line of a trial, whose run's folder is ``run``."""
    cfg = dataclasses.replace(cfg, config="", runs_dir=str(run.parent), run=run.name)
    return [*flags_of(cfg), *(word for name, value in params.items() for word in flag_of(name, value))]


def result(
    cfg: Config, study: Any, folder: Path, number: int, params: dict[str, Any], script: Path, slots: Sequence[Slot]
) -> dict[str, Any]:
    """Train a trial in one of the ``slots`` and score it, as :meth:`optuna.Study.tell` wants it.

    Raises:
        UserError: it is refused for a reason that will meet all.
    """
    from optuna.trial import TrialState

    run = folder / f"trial{number}"
    job = Job(run.name, (str(script), *flags_of_trial(cfg, run, params)), log=str(run / LOG_FILE))
    exit_code = run_jobs([job], slots)[run.name]
    if exit_code in INTERRUPTED:
        sys.exit(INTERRUPTED[exit_code])
    if exit_code:
        first = not has_scores(study)
        if exit_code == INPUT and first:  # nothing to keep: the corrected command begins anew
            (folder / SEARCH_FILE).unlink(missing_ok=True)
        stop_if_all_fail(run / LOG_FILE, exit_code, first, "search")
        print(f"{run.name} failed (exit {exit_code}): {run / LOG_FILE}", flush=True)
        return {"state": TrialState.FAIL}
    loss = out_of_fold(fold_folder(run, cfg.fold))["nll_calibrated"]
    print(f"{run.name}: nll_calibrated {loss:.4f}, {params}", flush=True)
    return {"values": loss}
