"""Sweeps: the plan follows the losses, every cell is trained exactly once, and what has ended is never lost."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SMALL
from sweeps import complete

import sweep
from benchmarks.law_coverage import Truth
from common.base.cli import parse
from common.base.errors import UserError
from common.base.files import write_file, write_json
from common.data.folds import read_folds
from common.data.reading import read_train_table
from common.runs.config import Config
from common.sweep.cells import CELL_FILE, SWEEP_FILE, TABLE_FILE, claim_sweep, read_cells, read_sweep
from common.sweep.grid import FIRST, Cell, Grid, cells_of, missing, on_edge, wanted
from common.sweep.law import fit_law
from common.sweep.search import SEARCH_FILE

SIZES = (16, 64, 256)


# The plan


def test_the_first_stage_is_five_rates_four_times_apart():
    """Before anything has ended, each batch size gets five learning rates x4 apart around the square-root guess."""
    grid = Grid(SIZES, lr=1e-3, batch_size=64)
    planned = wanted(grid, Truth("", 0.5, 0.0).run([], np.random.default_rng(0)))
    assert len(planned) == len(set(planned)) == 15
    rates = sorted(cell.lr for cell in planned if cell.batch_size == 256)
    assert rates == pytest.approx([2e-3 * 4.0**step for step in range(-2, 3)], rel=1e-2)


@pytest.mark.parametrize("off", [-7, 0, 7])
def test_the_grid_follows_a_best_cell_that_lies_on_its_edge(off):
    """However wrong the guess, in the end no best cell is the last one tried, and x2 neighbours surround it."""
    truth = Truth("", 0.5, 0.01, curvature=0.1)
    cells = complete(Grid(SIZES, lr=2 ** (truth.optimum(64) + off), batch_size=64), truth)
    assert on_edge(cells) == []
    law = fit_law(cells)
    for best, batch_size in zip(law.optima, law.batch_sizes, strict=True):
        assert abs(np.log2(best.value) - truth.optimum(batch_size)) < 0.3
        rates = cells.lr[cells.batch_size == batch_size]
        assert (np.abs(np.log2(rates / best.value)) < 1.6).sum() >= 3
    assert cells.groupby(["batch_size", "lr"]).size().max() == 4  # the centre's seeds


def test_the_plan_does_not_depend_on_the_order_in_which_cells_end():
    """One cell at a time or all at once, interrupted or not: the same cells."""
    grid, exact = Grid(SIZES, lr=1e-3, batch_size=64), Truth("", 0.5, 0.0)
    everything = set(cells_of(complete(grid, exact)))
    assert set(cells_of(complete(grid, exact, together=1))) == everything
    assert set(cells_of(complete(grid, exact, together=4))) == everything


def test_a_grid_by_hand_is_just_that():
    """Learning rates that were named are run for every batch size, and nothing else is."""
    cells = complete(Grid(SIZES, lrs=(1e-3, 5e-4), repeats=2), Truth("", 0.5, 0.05))
    assert set(cells_of(cells)) == {Cell(b, lr, seed) for b in SIZES for lr in (1e-3, 5e-4) for seed in (0, 1)}


def test_batch_sizes_with_too_few_steps_are_not_pursued():
    """Cells of under 60 steps stay at their first five: they will not be fitted."""
    grid, truth, random = Grid(SIZES, lr=1e-6, batch_size=64), Truth("", 0.5, 0.02), np.random.default_rng(0)
    cells = truth.run([], random)
    while todo := missing(wanted(grid, cells), cells):
        ended = truth.run(todo, random)
        ended.loc[ended.batch_size == 256, "steps"] = 40
        cells = pd.concat([cells, ended], ignore_index=True) if len(cells) else ended
    assert (cells.batch_size == 256).sum() == len(FIRST) < (cells.batch_size == 64).sum()


def test_all_cells_share_the_shape_of_the_schedule(tmp_path):
    """Warm-up is one share of the steps, taken from the recipe, whatever --epochs; --budget steps gives equal steps."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 8\nwarmup-epochs: 2\nlr: 4e-3\n", encoding="utf-8")
    arguments = ["--config", str(recipe), "--epochs", "2", "--batch-sizes", "8", "32", "--budget", "steps"]
    asked = sweep.sweep_of(parse(sweep.Run, arguments))
    small, large = (asked.config_of(Cell(size, 1e-3, 1)) for size in (8, 32))
    assert (small.epochs, large.epochs) == (2, 8)
    assert small.warmup_epochs / small.epochs == large.warmup_epochs / large.epochs == 0.25
    assert (asked.grid.lr, small.lr, small.seed) == (4e-3, 1e-3, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--lrs", "fast"],
        ["run", "--lrs", "auto", "0.1"],
        ["run", "--batch-sizes", "0"],
        ["run", "--fold", "all"],
        ["run", "--restart"],
        ["fit", "--sweep", "nowhere"],
        ["race"],
    ],
)
def test_a_mistake_is_named_before_anything_is_trained(arguments, tmp_path, monkeypatch):
    """Bad numbers, folds and commands are one line each, and leave no folder behind."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        sweep.main(arguments)
    assert not list(tmp_path.iterdir())


# A finished sweep, made of synthetic losses


def test_fit_says_the_law_and_writes_it(synthetic, capsys):
    """fit names the law that fits, predicts a batch size it has not seen, and the held-out row agrees."""
    sweep.main(["fit", "--predict", "24", "--verify", "48"])
    said = capsys.readouterr().out
    assert "square root fits, no relation and linear are ruled out" in said and "they agree" in said
    law = json.loads((synthetic / "law.json").read_text())
    assert law["slope_ci"][0] < 0.5 < law["slope_ci"][1]
    assert law["optimiser"] == "adamw" and law["n_runs"] == len(read_cells(synthetic)) >= 35
    assert law["minutes"] == pytest.approx(law["n_runs"] / 3)
    assert law["verification"]["agrees"] and law["predictions"][0]["batch_size"] == 24
    sweep.main(["fit"])  # of the same runs: what was checked stays so
    assert json.loads((synthetic / "law.json").read_text())["verification"] == law["verification"]
    next(synthetic.glob(f"b8_*/{CELL_FILE}")).unlink()
    sweep.main(["fit", "--runs-dir", str(synthetic.parent)])
    assert "verification" not in json.loads((synthetic / "law.json").read_text())


def test_a_part_of_the_batch_sizes_can_be_fitted_alone(synthetic, capsys):
    """fit --only says the law of those batch sizes and leaves law.json, which is that of all, alone."""
    sweep.main(["fit", "--only", "8", "16", "32", "64"])
    said = capsys.readouterr().out
    assert "batch size    64" in said and "batch size   128" not in said
    assert not (synthetic / "law.json").exists()
    with pytest.raises(UserError, match="--only"):
        sweep.main(["fit", "--only", "8", "16", "--verify", "48"])


def test_a_batch_size_that_is_too_large_to_verify_is_refused_by_that_flag(synthetic):
    """The check of a sweep's own batch sizes, before anything is trained; the user never said --batch-sizes here."""
    with pytest.raises(UserError, match="--verify: batch size 1024 exceeds the 40 training rows"):
        sweep.main(["fit", "--verify", "1024"])
    assert not list((synthetic / "verify").glob("b1024*"))


def test_a_published_sweep_gives_the_same_law(synthetic, tmp_path):
    """sweep.json and sweep.csv are enough to fit a sweep again, to the digit, in an earlier version's words as well."""
    table = read_cells(synthetic).to_csv(index=False)
    sweep.main(["fit", "--sweep", synthetic.name])
    for name, text in (("published", table), ("earlier", table.replace("nll_calibrated", "nll", 1))):
        write_file(tmp_path / name / TABLE_FILE, text)
        write_file(tmp_path / name / SWEEP_FILE, (synthetic / SWEEP_FILE).read_bytes())
        sweep.main(["fit", "--runs", str(tmp_path / name)])
        assert (tmp_path / name / "law.json").read_bytes() == (synthetic / "law.json").read_bytes()


def test_plot_draws_the_sweep(synthetic):
    """plot writes a picture, with a range test in it where there is one."""
    sweep.main(["plot"])
    without = (synthetic / "sweep.png").read_bytes()
    write_json(synthetic / "find_b64.json", {"batch_size": 64, "lr": 1e-2, "noise_scale": 90.0})
    sweep.main(["plot"])
    assert without[:4] == b"\x89PNG" and len(without) > 50_000
    assert (synthetic / "sweep.png").read_bytes() != without


def test_a_finished_sweep_starts_again_at_once_and_does_nothing(synthetic, tiny, tmp_path, forks):
    """The same command on a complete sweep loads no torch, which is most of a start, and trains nothing."""
    before = {path: path.stat().st_mtime_ns for path in synthetic.rglob("*.json") if path.name != SWEEP_FILE}
    arguments = ["run", "--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--run", "it"]
    done = forks.run(["sweep.py", *map(str, arguments)], tmp_path)
    assert done.code == 0 and not done.torch, done.err
    assert "complete" in done.out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_no_cell_is_started_that_cannot_end_in_time(synthetic, tiny, capsys):
    """With less time than a cell has taken so far, the missing cells are left and counted."""
    for path in list(synthetic.glob(f"b8_*/{CELL_FILE}"))[:2]:
        path.unlink()
    places = ["--data", str(tiny / "train.csv"), "--folds", str(tiny / "folds.csv")]
    sweep.main(["run", *places, "--run", "it", "--hours", "0.001"])
    assert "2 cells are left" in capsys.readouterr().out
    assert not list(synthetic.glob("b8_*/train.log"))


def test_other_settings_are_refused_by_name(synthetic, tiny):
    """A sweep's folder met with another optimiser is refused, and the setting is named; more batch sizes are not."""
    places = ["run", "--data", str(tiny / "train.csv"), "--folds", str(tiny / "folds.csv"), "--run", "it"]
    with pytest.raises(UserError, match="opt: adamw -> sgd"):
        sweep.main([*places, "--opt", "sgd"])
    with pytest.raises(UserError, match="batch size 1024 exceeds the 40 training rows"):
        sweep.main([*places, "--batch-sizes", "8", "1024"])
    assert read_sweep(synthetic).grid.batch_sizes == sweep.Run.batch_sizes
    claim_sweep(sweep.sweep_of(parse(sweep.Run, [*places[1:], "--batch-sizes", "8", "1024"])))
    assert read_sweep(synthetic).grid.batch_sizes == (8, 1024)


def test_a_command_that_adds_to_one_batch_size_does_not_forget_the_others(synthetic, tiny, capsys):
    """What is carried and verified by default is told by all cells, not by what was asked for last."""
    places = ["--data", str(tiny / "train.csv"), "--folds", str(tiny / "folds.csv"), "--run", "it"]
    claim_sweep(sweep.sweep_of(parse(sweep.Run, [*places, "--batch-sizes", "512"])))
    sweep.main(["carry", "--sweep", str(synthetic), "--batch-size", "128"])
    assert "from 64 to 128 images" in capsys.readouterr().out
    with pytest.raises(UserError, match="batch size 64 belongs to the sweep"):
        sweep.main(["fit", "--sweep", str(synthetic), "--verify", "64"])


# A real sweep, interrupted and shared


@pytest.fixture(scope="module")
def shared_sweep(tiny, server, tmp_path_factory) -> tuple[Path, list[str], list[str]]:
    """Two batch sizes x three learning rates, one of which diverges: begun, interrupted, gone on with by two at once.

    One of the two is killed while it trains a cell. The folder, what the interrupted command said, and what the two
    said together.
    """
    runs_dir = tmp_path_factory.mktemp("shared")
    small = [word for word in SMALL if word not in ("--batch-size", "8")]
    arguments = ["run", "--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", runs_dir, *small]
    arguments += ["--run", "it", "--batch-sizes", 4, 8, "--lrs", 1e-3, 1e-2, 1e30, "--jobs", 1]
    folder = runs_dir / "it_sweep"
    interrupted = server.start("sweep", *arguments)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("b*/train.log"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    interrupted.signal(signal.SIGINT)
    assert interrupted.wait() == 130, interrupted.said()
    assert len(read_cells(folder)) == 1
    together = [server.start("sweep", *arguments) for _ in range(2)]
    holders = [f"pid {process.pid} on" for process in together]
    while time.monotonic() < deadline + 120:
        claims = [path for path in folder.glob("b*/claim/.lock") if path.read_text().startswith(holders[0])]
        if [path for path in claims if not (path.parents[1] / CELL_FILE).exists()]:
            break
        time.sleep(0.05)
    together[0].signal(signal.SIGKILL)
    assert [process.wait() for process in together] == [-signal.SIGKILL, 0], together[1].said()
    return folder, interrupted.said().splitlines(), [line for each in together for line in each.said().splitlines()]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_every_cell_is_trained_exactly_once(shared_sweep):
    """Interrupted, run twice at once, one of them killed: each of the six cells has ended once and none is missing."""
    folder, before, after = shared_sweep
    names = [f"b{size}_lr{lr}_s0" for size in (4, 8) for lr in ("0.001", "0.01", "1e+30")]
    lines = [line.split()[1] for line in before + after if "/6 " in line]
    assert len(set(lines)) == len(lines) >= 5 and set(lines) <= set(names)  # it may be killed before it can say so
    table = pd.read_csv(folder / TABLE_FILE)
    assert sorted(cell.name for cell in cells_of(table)) == sorted(names)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_run_that_breaks_down_is_recorded_as_diverged(shared_sweep):
    """The absurd learning rate is in the table as diverged, without a loss; the others have theirs."""
    table = read_cells(shared_sweep[0])
    assert (table.status[table.lr > 1] == "diverged").all()
    rest = table[table.lr < 1]
    assert (rest.status == "done").all() and rest.nll_calibrated.between(0.01, 3).all()
    assert (rest.n == 20).all() and (rest.steps == 3 * (40 // rest.batch_size)).all()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_sweep_does_not_go_on_with_other_folds(shared_sweep, tiny, tmp_path):
    """Scores on other folds cannot be compared, whatever the file is called."""
    folder = shared_sweep[0]
    moved = pd.read_csv(tiny / "folds.csv", dtype=str).assign(fold=lambda rows: (rows.fold.astype(int) + 1) % 3)
    moved.to_csv(tmp_path / "folds.csv", index=False)
    small = [word for word in SMALL if word not in ("--batch-size", "8")]
    places = [
        "--data",
        str(tiny / "train.csv"),
        "--folds",
        str(tmp_path / "folds.csv"),
        "--runs-dir",
        str(folder.parent),
    ]
    before = (folder / "sweep.json").read_bytes()
    with pytest.raises(UserError, match="its runs were trained with different folds"):
        sweep.main(["run", *places, *small, "--run", "it", "--batch-sizes", "4", "8", "16", "--jobs", "1"])
    assert (folder / "sweep.json").read_bytes() == before


@pytest.mark.parametrize("options", [["run", "--batch-sizes", "4", "8"], ["search", "--trials", "3"]])
def test_a_command_that_meets_all_cells_alike_ends_the_sweep(options, tiny, tmp_path, torch_forks):
    """A model that does not exist is the command's mistake: one line, exit 2; corrected, the command begins anew."""
    pytest.importorskip("optuna", reason="needs the optional extra optuna")
    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path, "--run", "it"]
    command = ["sweep.py", *options, *places, "--model", "no_such_model", "--batch-size", 8]
    done = torch_forks.run(list(map(str, command)), tmp_path)
    assert done.code == 2 and "timm has no model no_such_model" in done.err
    assert len(done.err.splitlines()) == 1
    assert not [path for name in (SWEEP_FILE, SEARCH_FILE, CELL_FILE) for path in tmp_path.rglob(name)]


def test_a_batch_that_does_not_fit_is_a_failed_cell(tiny, tmp_path, monkeypatch):
    """The sweep goes on after a cell that has run out of memory, and says so in its table."""
    script = tmp_path / "train.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train_fold; from common.base.errors import run_script\n"
        "if sys.argv[sys.argv.index('--batch-size') + 1] == '16':\n"
        "    print('error: --batch-size: out of memory at 16 images at a time; free memory'); sys.exit(3)\n"
        "run_script(train_fold.main)\n"
    )
    monkeypatch.setattr("sweep.TRAIN_SCRIPT", script)
    places = ["--data", tiny / "train.csv", "--folds", tiny / "folds.csv", "--runs-dir", tmp_path, "--run", "it"]
    small = [*SMALL[2:], "--epochs", 1, "--mixed-precision", "no", "--batch-sizes", 16, 8, "--lrs", 1e-3, "--jobs", 1]
    sweep.main(list(map(str, ["run", *places, *small])))
    table = read_cells(tmp_path / "it_sweep").set_index("batch_size")
    assert table.status.to_dict() == {16: "failed", 8: "done"}


def test_the_noise_scale_is_that_of_the_gradients():
    """From gradients whose noise equals their signal at batch size 200, two batch sizes find it."""
    from common.sweep.range_test import noise_scale

    random, signal, spread = np.random.default_rng(0), np.full(1000, 0.1), np.sqrt(200 * 10 / 1000)
    halves = signal + spread / np.sqrt(32) * random.normal(size=(50, 2, 1000))
    squares = [((half**2).sum(1).mean(), (half.mean(0) ** 2).sum()) for half in halves]
    assert noise_scale(np.array(squares), 64) == pytest.approx(200, rel=0.15)


def test_the_noise_scale_along_a_training_covers_each_step_once(tiny):
    """Parts follow one another over all steps that --steps asks for; a batch without halves is refused."""
    from common.sweep.range_test import noise_along

    table = read_train_table(str(tiny / "train.csv"))
    folds = read_folds(tiny / "folds.csv")
    small = {"batch_size": 8, "steps": 23, "epochs": 1, "fold": "0", "threads": 1, "channels_last": "no"}
    cfg = Config(data=table.source, mixed_precision="no", **small)
    parts = noise_along(cfg, table, folds)
    assert [step for part in parts for step in range(part.first_step, part.last_step + 1)] == list(range(23))
    assert len(parts) == 10 and all(0 <= part.noise_scale < np.inf for part in parts)
    with pytest.raises(UserError, match="no halves"):
        noise_along(dataclasses.replace(cfg, batch_size=7), table, folds)


def test_a_search_goes_on_and_says_what_its_score_is_worth(tiny, tmp_path, capfd):
    """Two trials, then one more by the same command; the best is named, and its fold's score called optimistic."""
    pytest.importorskip("optuna", reason="needs the optional extra optuna")
    places = ["--data", str(tiny / "train.csv"), "--folds", str(tiny / "folds.csv"), "--runs-dir", str(tmp_path)]
    arguments = ["search", *places, *SMALL, "--run", "it", "--vary", "lr=1e-3..1e-2", "opt=adamw,sgd"]
    sweep.main([*arguments, "--trials", "1"])
    sweep.main([*arguments, "--trials", "2"])
    said = capfd.readouterr().out
    assert said.count("trial0: nll_calibrated") == said.count("trial1: nll_calibrated") == 1
    assert "best of 2 trials" in said and "optimistic" in said

    # Its base settings must stay; that of a setting which varies is never used.
    recorded = tmp_path / "it_search" / SEARCH_FILE
    before = recorded.read_bytes()
    with pytest.raises(UserError, match=r"search.json: .* \(epochs: 3 -> 2, opt: varied -> adamw\); .*another --run"):
        sweep.main([*arguments, "--trials", "2", "--epochs", "2", "--vary", "lr=1e-3..1e-2"])
    assert recorded.read_bytes() == before
    recorded.unlink()
    for older in (True, False):
        sweep.main([*arguments, "--trials", "2", "--lr", "0.5", "--vary", "lr=1e-3..2e-2", "opt=adamw,sgd"])
        said = capfd.readouterr().out
        assert "best of 2 trials" in said and ("older versions wrote none" in said) == older
        assert recorded.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--loss", "focl"], "--loss: there is no loss focl; did you mean focal"),
        (
            ["run", "--loss", "focal", "--loss-args", "margin=1"],
            "--loss-args: margin is unknown to focal; known: gamma",
        ),
        (["run", "--batch-sizes", "8", "--teacher", "nobody", "--jobs", "2"], "--teacher: there is no run .*nobody"),
        (
            ["run", "--batch-sizes", "8", "--weights", "{fold}.safetensors"],
            "--weights: there is no file fold0.safetensors",
        ),
        (["run", "--batch-sizes", "8", "--fold", "7"], "--fold: there is no fold 7; use 0 to 2"),
        (["run", "--batch-sizes", "8", "--accumulate", "16"], "--batch-sizes: 8 is not divisible by"),
        (["run", "--batch-sizes", "512"], "--batch-sizes: batch size 512 exceeds the 40 training rows"),
        (  # of 14, 13 and 13 rows of the classes 5, 4 and 4: one less than of 40 at once
            ["run", "--batch-sizes", "8", "14", "--train-fraction", "0.34"],
            "--batch-sizes: batch size 14 exceeds the 13 training rows",
        ),
        (["run", "--batch-sizes", "8", "--pseudo", "net", "--unlabelled", "no.csv"], "no.csv: cannot be read"),
        (["search", "--fold", "7"], "--fold: there is no fold 7; use 0 to 2"),
        (["search", "--vary", "batch-size=512,8"], "--batch-size: batch size 512 exceeds the 40 training rows"),
        (["search", "--batch-size", "8", "--vary", "accumulate=3,1"], "--batch-size: 8 is not divisible by"),
        (["search", "--batch-size", "8", "--teacher", "nobody"], "--teacher: there is no run .*nobody"),
        (
            ["search", "--vary", "batch-size=8,512", "--weights", "{fold}.safetensors"],
            "--weights: there is no file fold0.safetensors",
        ),
        (["search", "--augment", "digit"], "--augment: there is no augment digit; did you mean digits"),
        (["search", "--vary", "loss=focal,ohm"], "--loss: there is no loss ohm"),
        (["search", "--vary", "loss-args=gamma", "--loss", "focal"], "--loss-args: gamma has no value"),
    ],
)
def test_a_wrong_setting_of_a_sweep_is_refused_before_its_folder_is_made(arguments, message, tiny, tmp_path):
    """Corrected, the same command would else meet a sweep with other settings."""
    pytest.importorskip("optuna")
    places = ["--data", str(tiny / "train.csv"), "--folds", str(tiny / "folds.csv")]
    with pytest.raises(UserError, match=message):
        sweep.main([*arguments, *places, "--runs-dir", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_batch_sizes_need_not_go_with_the_one_that_places_the_guess():
    """64 is not divisible by 3, but no cell has 64."""
    asked = sweep.sweep_of(parse(sweep.Run, ["--batch-sizes", "6", "12", "--accumulate", "3"]))
    assert asked.grid.batch_sizes == (6, 12) and asked.config.accumulate == 3


def test_a_sweeps_teacher_may_be_named_by_its_run(tmp_path):
    """The cells lie in another folder than the runs, so their teacher is told by its place."""
    (tmp_path / "net").mkdir()
    options = parse(sweep.Run, ["--runs-dir", str(tmp_path), "--run", "student", "--teacher", "net", "--lr", "0.1"])
    cell = sweep.sweep_of(options).config_of(Cell(16, 0.1))
    assert cell.teacher == (str(tmp_path / "net"),) and cell.runs_dir != str(tmp_path)
