"""Folds that are blocks of time: what is dealt, what a training does without, what is said of tables without blocks."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL

import folds
import train_fold
from common.base.errors import UserError
from common.data.folds import moments_of, read_folds, split_rows
from common.runs.predictions import read_predictions


@pytest.fixture(scope="module")
def walks(tmp_path_factory) -> Path:
    """Twelve places over 30 days, shuffled: each row has the place's value and those of the two days before."""
    folder, random = tmp_path_factory.mktemp("walks"), np.random.default_rng(0)
    walk = random.normal(size=(32, 12)).cumsum(axis=0) * 3 + 50
    rows = [
        [f"d{day}p{place}", str(day), *(f"{walk[day - back, place]:.5f}" for back in (2, 1, 0))]
        for day in range(2, 32)
        for place in range(12)
    ]
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["id", "day", "two_before", "before", "value"], *(rows[k] for k in random.permutation(len(rows)))]
        )
    return folder


def deal(folder: Path, *flags: str) -> None:
    said = [f"--data={folder / 'train.csv'}", "--task=regression", "--label-column=value"]
    folds.main([*said, f"--folds={folder / 'folds.csv'}", "--k=5", "--force", *flags])


def test_blocks_follow_one_another_and_rows_within_the_gap_train_no_neighbour(walks):
    """Every row validates once; between a block and what its model trains on lie more than two days on either side."""
    deal(walks, "--split=time", "--time-column=day", "--gap=2")
    dealt = read_folds(walks / "folds.csv")
    days, seen = dealt.moments, []
    for k in range(5):
        train, valid = split_rows(dealt, str(k), 1.0, 0)
        distance = np.abs(days[train][:, None] - np.unique(days[valid])).min()
        assert distance == 3 and np.ptp(days[valid]) == 5
        seen += valid.tolist()
    assert sorted(seen) == list(range(360))
    assert [days[dealt.fold == k].min() for k in range(5)] == [2, 8, 14, 20, 26]
    assert len(split_rows(dealt, "full", 1.0, 0)[0]) == 360


def test_time_and_gap_are_in_the_fingerprint_and_another_gap_is_refused(walks):
    """Scores with another gap cannot be compared; competition.json holds it."""
    deal(walks, "--split=time", "--time-column=day", "--gap=2")
    first = read_folds(walks / "folds.csv").fingerprint
    assert json.loads((walks / "competition.json").read_text())["gap"] == 2
    with pytest.raises(UserError, match="holds different folds"):
        folds.main(
            [f"--data={walks / 'train.csv'}", "--task=regression", "--label-column=value", "--k=5"]
            + [f"--folds={walks / 'folds.csv'}", "--split=time", "--time-column=day", "--gap=1"]
        )
    deal(walks, "--split=time", "--time-column=day", "--gap=1")
    assert read_folds(walks / "folds.csv").fingerprint != first


def test_a_training_keeps_the_gap_and_its_interval_draws_whole_days(walks, capsys):
    """The rows of a fold's training are counted in its steps, and each held-out row is predicted."""
    deal(walks, "--split=time", "--time-column=day", "--gap=2")
    at = [f"--folds={walks / 'folds.csv'}", f"--runs-dir={walks / 'runs'}"]
    train_fold.main([*at, *SMALL, "--epochs=1", "--jobs=1", "--offset=before", "--run=gap"])
    assert "95 % interval of rmse" in (said := capsys.readouterr().out) and "by 30 times, whose rows are alike" in said
    metrics = json.loads((walks / "runs" / "gap" / "fold1" / "metrics.json").read_text())
    assert metrics["steps"] == (360 - 72 - 48) // 8
    part = read_predictions(walks / "runs" / "gap" / "fold1" / "oof.npz")
    assert {int(name[1:].partition("p")[0]) for name in part.ids} == set(range(8, 14))


def test_targets_among_other_rows_features_are_said(walks, capsys):
    """Of random folds nearly all, of blocks with a gap none."""
    deal(walks)
    assert "targets stand in before and two_before of rows that their models train on" in capsys.readouterr().out
    deal(walks, "--split=time", "--time-column=day", "--gap=2")
    assert "targets stand in" not in capsys.readouterr().out


def test_dates_are_days():
    """With and without a time of day; numbers and dates are not mixed."""
    assert np.diff(moments_of(["2024-02-28", "2024-03-01", "2024-03-01T12:00"], "t.csv")).tolist() == [2, 0.5]
    for cells, says in (
        (["1", "2024-02-28"], "row 2: '2024-02-28' is of another kind"),
        (["1", "soon"], "row 2: 'soon' is of another kind"),
        (["soon"], "row 1: 'soon' is no time"),
    ):
        with pytest.raises(UserError, match=says):
            moments_of(cells, "t.csv")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--split=time"], "--time-column: goes with --split time"),
        (["--time-column=day"], "--time-column: goes with --split time"),
        (["--gap=2"], "--gap: is a time from 0"),
        (["--split=time", "--time-column=day", "--gap=-1"], "--gap: is a time from 0"),
        (["--split=time", "--time-column=date"], "has no column 'date' for --time-column"),
        (["--split=time", "--time-column=id"], "column id|has no column"),
        (["--split=time", "--time-column=day", "--seed=1"], "--seed: has no effect with --split time"),
        (["--split=time", "--time-column=day", "--k=40"], "there is no row in fold"),
    ],
)
def test_what_makes_no_blocks_is_refused(walks, flags, says):
    """In one line."""
    with pytest.raises(UserError, match=says):
        deal(walks, *flags)
