"""benchmarks/gpu.py runs on a CPU, so that it is whole on the day that there is a GPU."""

import folds
from benchmarks.gpu import main


def test_its_parts_run_and_are_kept(tmp_path, capsys):
    """Each part has its line; what is there is not measured again."""
    folds.main(["--data", "digits", "--folds", str(tmp_path / "folds-digits.csv"), "--k", "2"])  # else five
    for parts in (["device", "precision"], ["device", "waits", "busy", "side_by_side", "photos", "plain", "tests"]):
        main(["--work", str(tmp_path), "--limit", "64", "--parts", *parts])
    assert capsys.readouterr().out.count("device: ") == 1
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert [line.split(" | ")[0].lstrip("| ") for line in lines[-8:]] == [
        "device",
        "precision",
        "waits",
        "busy",
        "side_by_side",
        "photos",
        "plain",
        "tests",
    ]
    assert "bf16: accuracy 0." in lines[-7] and "digits: 0 in 2 steps" in lines[-6]
    assert "prefetcher: " in lines[-2] and "2 skipped" in lines[-1]
