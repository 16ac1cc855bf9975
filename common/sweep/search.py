"""Search over any settings with Optuna (an optional extra): pip install optuna

runs/<run>_search/
    journal.log        Optuna's storage: any number of workers, on one machine or a shared disk, may append to it
    trial<n>/          an ordinary run, locked in claim/ by the worker that trains it
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common.base.cli import flag_of, flags_of, parse
from common.base.errors import ENVIRONMENT, UserError
from common.base.locks import locked
from common.base.result import Result
from common.jobs.process import Job, Slot
from common.jobs.runner import INTERRUPTED, device_slots, loaded_once, run_jobs
from common.runs.config import Config, check_each
from common.runs.layout import fold_folder
from common.sweep.cells import CLAIM_FOLDER, LOG_FILE, out_of_fold, stop_if_all_fail


def search(cfg: Config, vary: tuple[str, ...], trials: int, script: Path, check: Callable[[Config], None]) -> Result:
    """Train trial after trial with ``script`` until ``trials`` have ended, say which was best and return it.

    Start the same command several times to work side by side; started again, it goes on. ``check`` refuses the settings
    of a trial whose files it could not use, before the search's folder is made.

    Raises:
        UserError: Optuna is not there; an entry of ``vary`` cannot be read; no trial has succeeded.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UserError("sweep.py search", "Optuna is not installed", "pip install optuna", ENVIRONMENT) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = dict(dimension(entry, cfg) for entry in vary)
    folder = Path(cfg.runs_dir) / f"{cfg.run_name}_search"
    first = {name: values.choices[0] if hasattr(values, "choices") else values.low for name, values in space.items()}
    check(parse(Config, flags_of_trial(cfg, folder / "trial0", first)))
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(storage=storage, study_name="search", load_if_exists=True)
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
                    first = not any(trial.value is not None for trial in known)
                    study.tell(number, **result(cfg, folder, number, params, script, slots, first))
    if not any(trial.value is not None for trial in known):
        raise UserError(str(folder), f"all {len(known)} trials failed", "see their logs, and use another --run")
    best = study.best_trial
    chosen = " ".join(word for name, value in best.params.items() for word in flag_of(name, value))
    print(f"best of {len(known)} trials: {folder.name}/trial{best.number}, nll_calibrated {best.value:.4f}: {chosen}")
    print(f"it was chosen on fold {cfg.fold}, whose score is now optimistic; judge it by the other folds: --fold all")
    return Result({"nll_calibrated": best.value, **best.params}, folder / f"trial{best.number}")


def dimension(entry: str, cfg: Config) -> tuple[str, Any]:
    """A setting and the values it may take: lr=1e-4..3e-2 (by ratio where it spans a decade), opt=adamw,sgd.

    Raises:
        UserError: an entry that cannot be read, or a value that the setting cannot have beside the others in ``cfg``.
    """
    import optuna

    name, _, values = entry.partition("=")
    name = name.replace("-", "_")
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


def flags_of_trial(cfg: Config, run: Path, params: dict[str, Any]) -> list[str]:
    """The command line of a trial, whose run's folder is ``run``."""
    cfg = dataclasses.replace(cfg, config="", runs_dir=str(run.parent), run=run.name)
    return [*flags_of(cfg), *(word for name, value in params.items() for word in flag_of(name, value))]


def result(
    cfg: Config, folder: Path, number: int, params: dict[str, Any], script: Path, slots: Sequence[Slot], first: bool
) -> dict[str, Any]:
    """Train a trial in one of the ``slots`` and score it, as :meth:`optuna.Study.tell` wants it.

    Raises:
        UserError: it is refused for a reason that will meet all; ``first``: no trial has succeeded before it.
    """
    from optuna.trial import TrialState

    run = folder / f"trial{number}"
    job = Job(run.name, (str(script), *flags_of_trial(cfg, run, params)), log=str(run / LOG_FILE))
    exit_code = run_jobs([job], slots)[run.name]
    if exit_code in INTERRUPTED:
        sys.exit(INTERRUPTED[exit_code])
    if exit_code:
        stop_if_all_fail(run / LOG_FILE, exit_code, first, "search")
        print(f"{run.name} failed (exit {exit_code}): {run / LOG_FILE}", flush=True)
        return {"state": TrialState.FAIL}
    loss = out_of_fold(fold_folder(run, cfg.fold))["nll_calibrated"]
    print(f"{run.name}: nll_calibrated {loss:.4f}, {params}", flush=True)
    return {"values": loss}
