"""--profile and --trace: they name every part of a training and change nothing of it."""

import json

import numpy as np
from conftest import train


def test_profile_accounts_for_the_time_of_a_fold(tiny, tmp_path, capsys):
    """Each part has a line, the shares add up to all, and the predictions are those of a run without it."""
    train(tiny, tmp_path, "--fold", 0, "--run", "plain", "--ema-decay", 0.9)
    capsys.readouterr()
    train(tiny, tmp_path, "--fold", 0, "--run", "timed", "--ema-decay", 0.9, "--profile")
    lines = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    shares = {line[0]: float(line[2].rstrip("%")) for line in lines if line[-1].endswith("%") and line[1][0].isdigit()}
    parts = ["data", "augmentation", "forward", "backward", "optimiser", "average", "evaluation", "saving", "the rest"]
    assert sorted(shares) == sorted([*parts, "all"])
    assert abs(sum(shares[part] for part in parts) - 100) < 1
    plain, timed = (np.load(tmp_path / run / "fold0" / "oof.npz") for run in ("plain", "timed"))
    assert np.array_equal(plain["logits"], timed["logits"])


def test_trace_names_the_parts(tiny, tmp_path):
    """The fold's folder holds a trace of one epoch, with a block for each part of each step."""
    train(tiny, tmp_path, "--fold", 0, "--trace")
    events = json.loads((tmp_path / "digit_cnn" / "fold0" / "trace.json").read_text())["traceEvents"]
    named = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    steps = 40 // 8  # of one epoch
    assert {part: named.count(part) for part in ("data", "augmentation", "forward", "backward")} == dict.fromkeys(
        ("data", "augmentation", "forward", "backward"), steps
    )
