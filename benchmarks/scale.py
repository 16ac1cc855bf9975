"""How memory and time grow with rows and classes: the whole chain on generated photos, each script in its own process.

    python -m benchmarks.scale --sizes 5000x500 20000x2000      # minutes
    python -m benchmarks.scale --sizes 5000x500 20000x2000 150000x10000
    python -m benchmarks.scale --pieces 150000x10000            # without photos and training, a minute of one core

The photos are made up but their table is like that of a product competition: 32 pixels, class numbers with gaps, a long
tail of classes down to a single photo, groups of one to five photos that must share a fold. A twentieth of an epoch is
trained: nothing here is about scores. Writes scale.csv, scale_pieces.csv and scale.md beside this file.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.machine import hardware, measured
from common.base.cli import parse
from common.base.errors import run_script
from common.base.files import write_file
from common.base.strict_csv import text_array
from common.data.dealing import make_folds
from common.data.table import Table
from common.runs.predictions import Predictions, read_predictions, short_form, write_predictions
from common.score.logits import blocks

TABLE, PIECES, REPORT = (Path(__file__).with_name(f"scale{end}") for end in (".csv", "_pieces.csv", ".md"))
SIDE = 32
GROUPED = ["--split", "stratified-group", "--group", "group", "--rare", "train"]
TRAINING = [
    "--epochs",
    "1",
    "--warmup-epochs",
    "0",
    "--batch-size",
    "128",
    "--img-size",
    str(SIDE),
    "--augment",
    "none",
]
TRAINING += ["--train-fraction", "0.05", "--channels-last", "yes"]


@dataclass(frozen=True)
class Options:
    """Run the chain at growing sizes: python -m benchmarks.scale --sizes 5000x500 20000x2000"""

    sizes: tuple[str, ...] = ("5000x500", "20000x2000")  # rows x classes, growing
    pieces: str = ""  # rows x classes: only deal folds, and write, read, score and cut what one fold predicts
    work: str = "work/scale"  # folder for the photos and runs
    k: int = 5  # folds
    threads: int = 1  # CPU threads of each process


def main() -> None:
    options = parse(Options)
    if options.pieces:
        rows, classes = map(int, options.pieces.split("x"))
        write_file(PIECES, pieces(rows, classes, options.k).to_csv(index=False))
        print(PIECES.read_text(encoding="utf-8"))
        return
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes]
    done = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame()
    for rows, classes in sizes:
        folder = Path(options.work) / f"{rows}x{classes}"
        make_photos(folder, rows, classes)
        for name, command in steps(folder, options):
            if len(done) and ((done.rows == rows) & (done.classes == classes) & (done.step == name)).any():
                continue  # the same command again goes on
            print(f"{rows:,} x {classes:,}: {name}", flush=True)
            found = {"rows": rows, "classes": classes, "step": name, **measured(command, folder / "log.txt")}
            done = pd.concat([done, pd.DataFrame([found])], ignore_index=True)
            write_file(TABLE, done.to_csv(index=False))
    write_file(REPORT, report(done, options))
    print(REPORT.read_text(encoding="utf-8"))


def make_photos(folder: Path, rows: int, classes: int) -> None:
    """train.csv (image,label,group) and test.csv (image) with their photos, the same for the same numbers."""
    if (folder / "test.csv").exists():
        return
    random = np.random.default_rng(0)
    of_class, groups = long_tail(rows, classes)
    order = random.permutation(rows)
    number = 3 * of_class + of_class % 2
    lines = [f"{at // 1000}/{at}.png,{number[row]},g{groups[row]}" for at, row in enumerate(order)]
    save_photos(folder, "", of_class[order], random)
    write_file(folder / "train.csv", "\n".join(["image,label,group", *lines]) + "\n")
    tested = random.choice(of_class, rows // 5)
    save_photos(folder, "test/", tested, random)
    lines = [f"test/{at // 1000}/{at}.png" for at in range(len(tested))]
    write_file(folder / "test.csv", "\n".join(["image", *lines]) + "\n")


def save_photos(folder: Path, below: str, of_class: np.ndarray, random: np.random.Generator) -> None:
    """Four by four coloured squares by class, with noise."""
    squares = np.random.default_rng(1).integers(0, 256, (of_class.max() + 1, 4, 4, 3))
    for at, number in enumerate(of_class):
        path = folder / "images" / below / str(at // 1000) / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = squares[number].repeat(SIDE // 4, 0).repeat(SIDE // 4, 1) + random.normal(0, 30, (SIDE, SIDE, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, compress_level=1)


def steps(folder: Path, options: Options) -> list[tuple[str, list[str]]]:
    """Name and command of each step."""
    data, test, page = (str(folder / name) for name in ("train.csv", "test.csv", "report.html"))
    folds, runs = ["--folds", str(folder / "folds.csv")], ["--runs-dir", str(folder / "runs")]
    threads = ["--threads", str(options.threads)]
    train = ["train_fold.py", "--data", data, *folds, *runs, *TRAINING, *threads]
    infer = ["infer.py", "--data", data, "--test", test, *runs, *threads]
    return [
        ("folds, stratified groups", ["folds.py", "--data", data, *folds, *GROUPED, "--k", str(options.k)]),
        ("train all folds, float16", [*train, "--run", "half", "--store", "float16"]),
        ("train all folds, top64", [*train, "--run", "top", "--seed", "1", "--store", "top64"]),
        ("infer, float16", [*infer, "--runs", "half", "--store", "float16"]),
        ("infer, top64", [*infer, "--runs", "top", "--store", "top64"]),
        ("ensemble", ["ensemble.py", *folds, *runs]),
        ("report", ["report.py", "--data", data, *folds, *runs, "--out", page]),
    ]


def long_tail(rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Class number and group of each row: the first class has 21 times the rows of the last, a group one to five."""
    share = 1 / (np.arange(classes) + classes / 20)
    counts = np.maximum(1, np.floor(share / share.sum() * (rows - classes))).astype(int)
    counts[0] += rows - counts.sum()
    groups = np.cumsum(np.random.default_rng(0).random(rows) < 0.4)  # in the order of the classes: some hold two
    return np.repeat(np.arange(classes), counts), groups


def pieces(rows: int, classes: int, k: int) -> pd.DataFrame:
    """CPU seconds of each piece, and the peak of the process so far in matrices of one fold's rows x classes."""
    found, in_fold = [], rows // k

    def piece(name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found.append({"piece": name, "cpu_seconds": time.process_time() - started, "peak_mb": peak})
        return result

    of_class, groups = long_tail(rows, classes)
    ids, labels, group = (text_array(map(str, numbers)) for numbers in (range(rows), of_class, groups))
    pixels = np.arange(rows, dtype=">u4").view(np.uint8).reshape(rows, 2, 2)
    table = Table("table", ids, labels, pixels, "id", "label", {"group": group})
    piece("deal folds, stratified", lambda: make_folds(table, k, rare="train"))
    piece("deal folds, stratified groups", lambda: make_folds(table, k, "stratified-group", "group", rare="train"))

    random, names = np.random.default_rng(0), sorted({*labels})
    logits = np.empty((in_fold, classes), np.float32)
    for some in blocks(in_fold, classes):
        logits[some] = random.standard_normal(logits[some].shape, np.float32)
    targets = random.integers(0, classes, in_fold)
    logits[np.arange(in_fold), targets] += 5
    oof = Predictions(ids[:in_fold], logits, names, text_array(names[number] for number in targets))
    del logits
    before = piece(f"score a fold of {in_fold:,} rows", oof.score)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "oof.npz"
        piece("write it, float16", lambda: write_predictions(path, oof, "float16"))
        del oof
        oof = piece("read it", lambda: read_predictions(path))
    after = oof.score()
    assert before["accuracy"] == after["accuracy"] and abs(before["nll"] - after["nll"]) < 1e-3
    piece("cut it to 55 classes", lambda: short_form(oof, 55))
    return pd.DataFrame(found).assign(rows=rows, classes=classes)


def report(done: pd.DataFrame, options: Options) -> str:
    """The page: memory and time of every step at every size, their growth, and what the stored forms cost."""
    sizes = list(done[["rows", "classes"]].drop_duplicates().itertuples(index=False, name=None))
    head = "".join(f" {rows:,} x {classes:,}: MB | CPU s |" for rows, classes in sizes)
    lines = [f"| step |{head} units | growth of MB | of CPU s |", "|---" * (2 * len(sizes) + 4) + "|"]
    for step, of_step in done.groupby("step", sort=False):
        cells = [f"{row.peak_mb:,.0f} | {row.cpu_seconds:,.0f}" for row in of_step.itertuples()]
        cells += ["- | -"] * (len(sizes) - len(cells))
        last = of_step.iloc[-1]
        cells.append(f"{last.peak_mb * 2**20 / (4 * last.rows * last.classes):.1f}")
        cells += [exponent(of_step, column) for column in ("peak_mb", "cpu_seconds")]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return TEXT.format(
        command=f"python -m benchmarks.scale --sizes {' '.join(options.sizes)} --threads {options.threads}",
        machine=hardware(),
        folds=options.k,
        units=", ".join(f"{rows:,} x {classes:,} is {rows * classes * 4 / 2**20:,.0f} MB" for rows, classes in sizes),
        steps="\n".join(lines),
        forms="\n".join(forms_table()),
        pieces="\n".join(pieces_table()),
    )


TEXT = """# Rows x classes: memory and time of every step

`{command}`; {machine}. {folds} folds, one epoch on a twentieth of the rows, five models of each of two runs
at inference.

The unit is rows x classes as float32: {units}. MB is the peak of the process, of which Python, torch and
the model are the most at small sizes. CPU seconds do not count waiting for other processes.

{steps}

Units: the peak at the last size in matrices of rows x classes, Python and torch included. Growth: the power of rows x
classes with which the figure grows between the last two sizes. 1 is linear in the size of the matrix; whatever were
quadratic in rows or in classes would be above 1.

## The largest pieces by themselves

`python -m benchmarks.scale --pieces 150000x10000`, one core: training, the local CV and large blends hold at most one
fold's rows for all classes at a time. Peak is that of the process so far.

{pieces}

## What `--store` does to a score

2,000 made-up rows of 2,000 classes: normal noise of deviation 2, the right class raised by 6 (left) and 9 (right). Log
loss as stored, and after a temperature fitted on the same rows.

{forms}

In short form (top64) what is not kept is spread evenly over the other classes, so a model that knows little loses
more. Where runs would not fit into memory side by side, ensemble.py and report.py work on short forms too, whatever
was stored.
"""


def pieces_table() -> list[str]:
    """A row for each piece, as far as they were measured."""
    measured = pd.read_csv(PIECES) if PIECES.exists() else pd.DataFrame(columns=["piece", "cpu_seconds", "peak_mb"])
    rows = [f"| {row.piece} | {row.cpu_seconds:.1f} | {row.peak_mb:,.0f} |" for row in measured.itertuples()]
    return ["| piece | CPU s | peak MB |", "|---|---|---|", *rows]


def forms_table() -> list[str]:
    """A row for each form, for a model that knows little and one that knows more."""
    lines = ["| form | accuracy | log loss | after T | accuracy | log loss | after T | MB |", "|---" * 8 + "|"]
    stores, n = ["float32", "float16", "top64", "top16"], 2_000
    found, megabytes = {store: [] for store in stores}, {}
    for strength in (6.0, 9.0):
        noise = np.random.default_rng(0).normal(scale=2, size=(n, n)).astype(np.float32)
        names = text_array(f"{number:04}" for number in range(n))
        run = Predictions(names, noise + strength * np.eye(n, dtype=np.float32), list(names), names)
        for store in stores:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "oof.npz"
                write_predictions(path, run, store)
                stored, size = read_predictions(path), path.stat().st_size / 2**20
            scale = stored.task.calibrate(stored.outputs, stored.places)
            tempered = stored.task.loss(stored.outputs / scale, stored.places).mean()
            scores = stored.score()
            found[store] += [f"{scores['accuracy']:.2%}", f"{scores['nll']:.4f}", f"{tempered:.4f}"]
            megabytes[store] = f"{size:.1f}"
    return lines + [f"| {store} | {' | '.join(cells)} | {megabytes[store]} |" for store, cells in found.items()]


def exponent(of_step: pd.DataFrame, column: str) -> str:
    """The slope between the last two sizes on logarithmic scales."""
    if len(of_step) < 2:
        return "-"
    before, after = of_step.iloc[-2], of_step.iloc[-1]
    cells = after.rows * after.classes / (before.rows * before.classes)
    return f"{np.log(after[column] / before[column]) / np.log(cells):.2f}"


if __name__ == "__main__":
    run_script(main)
