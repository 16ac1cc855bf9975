"""--log-with: a tracker gets every epoch's row, and one that is not there is an error instead of silence."""

import pandas as pd
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from conftest import train

from common.base.errors import UserError
from common.train.trackers import check_trackers


def test_tensorboard_holds_the_epochs_of_the_log(tiny, tmp_path):
    """Read back from its event file: every column of log.csv, epoch by epoch, of each fold in its own folder."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tiny, tmp_path, "--fold", "all", "--epochs", 2, "--log-with", "tensorboard")
    for fold in range(3):
        folder = tmp_path / "digit_cnn" / f"fold{fold}"
        events = event_accumulator.EventAccumulator(str(folder / "digit_cnn"))
        events.Reload()
        log = pd.read_csv(folder / "log.csv")
        assert set(events.Tags()["scalars"]) == set(log.columns)
        for column in log.columns:
            scalars = events.Scalars(column)
            assert [scalar.step for scalar in scalars] == log.epoch.tolist()
            assert [scalar.value for scalar in scalars] == pytest.approx(log[column].tolist(), rel=1e-5)


def test_a_tracker_that_is_not_there_is_an_error():
    """Accelerate would leave it out without a word."""
    with pytest.raises(UserError, match="there is no tracker tensorbord; use .*tensorboard"):
        check_trackers(["tensorbord"])
    absent = [name for name in LOGGER_TYPE_TO_CLASS if name not in map(str, get_available_trackers())]
    with pytest.raises(UserError, match=f"{absent[0]} is not installed; pip install {absent[0]}") as refused:
        check_trackers([absent[0]])
    assert refused.value.exit_code == 3
