"""Prediction files: whole or refused, joined by id, and never a way to run code."""

import io
import os
import random
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.base.errors import UserError
from common.base.files import write_json
from common.base.strict_csv import text_array
from common.data.folds import Folds
from common.runs.layout import METRICS_FILE, OOF_FILE, finished_runs, fold_folder
from common.runs.oof import join_oof
from common.runs.predictions import Predictions, read_predictions, rows_in_order, write_predictions

IDS = text_array(["001", "1e5", "猫", "NA", "x y", "7"])
FOLDS = Folds(
    ids=IDS,
    labels=text_array(["a", "b", "a", "b", "a", "b"]),
    fold=np.array([0, 1, 1, 0, -1, 1]),
    row_shas=text_array(["0" * 16] * 6),
    groups=text_array([]),
)
LOGITS = np.arange(12, dtype=np.float32).reshape(6, 2)


def oof_part(fold: int) -> Predictions:
    """What a model of this fold would store: rows in another order than the folds file's."""
    rows = np.flatnonzero(FOLDS.fold == fold)[::-1]
    return Predictions(IDS[rows], LOGITS[rows], ["a", "b"], FOLDS.labels[rows], np.full(len(rows), fold))


def make_run(runs_dir: Path, name: str = "net", fingerprint: str = FOLDS.fingerprint) -> Path:
    for fold in (0, 1):
        folder = fold_folder(runs_dir / name, fold)
        write_predictions(folder / OOF_FILE, oof_part(fold))
        write_json(folder / METRICS_FILE, {"folds_fingerprint": fingerprint, "fold_count": 2})
    return runs_dir / name


def test_what_is_written_is_read(tmp_path):
    """Ids, labels and classes stay the text they were, numbers stay bit for bit."""
    written = Predictions(IDS, LOGITS, ["a", "b"], FOLDS.labels, FOLDS.fold, "Bild", "Klasse")
    write_predictions(tmp_path / "a.npz", written)
    read = read_predictions(tmp_path / "a.npz")
    assert read.ids.tolist() == IDS.tolist() and read.labels.tolist() == FOLDS.labels.tolist()
    assert read.logits.dtype == np.float32 and (read.logits == LOGITS).all() and (read.fold == FOLDS.fold).all()
    assert (read.output_names, read.id_name, read.label_name) == (["a", "b"], "Bild", "Klasse")
    assert read.predicted.tolist() == ["b"] * 6 and read.targets.tolist() == [0, 1, 0, 1, 0, 1]


def test_same_content_gives_same_bytes(tmp_path):
    """A run repeated later is the same file: no time of day is stored in it."""
    write_predictions(tmp_path / "a.npz", oof_part(1))
    time.sleep(2.1)  # zip times count in steps of two seconds
    write_predictions(tmp_path / "b.npz", oof_part(1))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


class Hostile:
    """Unpickling this would make a file."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_pickled_arrays_are_refused_unopened(tmp_path):
    """A file with pickled objects is refused and its code does not run."""
    canary, path = tmp_path / "canary", tmp_path / "oof.npz"
    bad = np.array([Hostile(canary)], dtype=object)
    np.savez(path, ids=bad, logits=LOGITS[:1], classes=np.array(["a", "b"]))
    with pytest.raises(UserError, match=r"oof\.npz: is damaged or truncated, or contains pickles"):
        read_predictions(path)
    np.save(tmp_path / "plain.npy", bad, allow_pickle=True)
    with pytest.raises(UserError, match="or contains pickles"):
        read_predictions(tmp_path / "plain.npy")
    assert not canary.exists()


def test_damaged_files_are_refused(tmp_path):
    """Missing, empty, cut or altered: one line that names the file; a changed number is never read."""
    path = tmp_path / "oof.npz"
    with pytest.raises(UserError, match=r"oof\.npz: cannot be read"):
        read_predictions(path)
    whole = Predictions(IDS, LOGITS, ["a", "b"], FOLDS.labels, FOLDS.fold)
    write_predictions(path, whole)
    content = path.read_bytes()
    draw = random.Random(0)
    cuts = [content[: draw.randrange(len(content))] for _ in range(100)]
    flips = []
    for _ in range(400):
        position, flipped = draw.randrange(len(content)), bytearray(content)
        flipped[position] ^= 1 << draw.randrange(8)
        flips.append(bytes(flipped))
    refused = 0
    for damaged in [b"", b"PK", *cuts, *flips]:
        path.write_bytes(damaged)
        try:
            read = read_predictions(path)
        except UserError as error:
            assert "oof.npz" in str(error)
            refused += 1
        else:  # a bit that means nothing, such as a zip date
            assert (read.logits == LOGITS).all() and (read.ids == IDS).all() and read.output_names == ["a", "b"]
    assert refused > 300


def test_wrong_content_is_refused(tmp_path):
    """NaN, an id twice, arrays of other lengths or kinds: refused when read and when written."""
    good = oof_part(1)
    nan = good.logits.copy()
    nan[1, 0] = np.nan
    doubled = good.ids.copy()
    doubled[0] = doubled[1]
    wrong = {
        "not finite in 1 row": replace(good, logits=nan),
        "contains duplicate ids: 1 row": replace(good, ids=doubled),
        r"shape \(3, 2\) for 3 ids and 3 outputs": replace(good, output_names=["a", "b", "c"]),
        "2 labels for 3 ids": replace(good, labels=good.labels[:2]),
    }
    for what, predictions in wrong.items():
        with pytest.raises(UserError, match=what):
            write_predictions(tmp_path / "a.npz", predictions)
        arrays = {name: np.asarray(value) for name, value in vars(predictions).items() if name != "task"}
        arrays["classes"] = arrays.pop("output_names")
        text = {name: array.astype(str) for name, array in arrays.items() if array.dtype == object}
        np.savez(tmp_path / "b.npz", **(arrays | text))
        with pytest.raises(UserError, match=what):
            read_predictions(tmp_path / "b.npz")
    assert not (tmp_path / "a.npz").exists()
    np.savez(tmp_path / "c.npz", ids=np.arange(3), logits=good.logits, classes=np.array(["a", "b"]))
    with pytest.raises(UserError, match="no ids of the right type"):
        read_predictions(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", logits=good.logits)
    with pytest.raises(UserError, match="no ids"):
        read_predictions(tmp_path / "d.npz")


def test_npz_is_readable_without_us(tmp_path):
    """Any numpy opens the file: the array names are the documented ones."""
    write_predictions(tmp_path / "a.npz", oof_part(0))
    names = {Path(entry.filename).stem for entry in zipfile.ZipFile(tmp_path / "a.npz").infolist()}
    assert names >= {"ids", "logits", "classes", "labels", "fold"}
    assert np.load(io.BytesIO((tmp_path / "a.npz").read_bytes()))["logits"].dtype == np.float32


def test_rows_are_joined_by_id():
    """Another row order gives the same prediction for each id; missing and unknown ids are both named."""
    part = oof_part(1)
    order = ["7", "1e5", "猫"]
    found = rows_in_order(part, order, "oof.npz")
    assert found.ids.tolist() == order and (found.logits == LOGITS[[5, 1, 2]]).all()
    assert found.labels.tolist() == ["b", "b", "a"]
    with pytest.raises(UserError, match=r"lacks 1 row \(NA\) and has extra 1 row \(7\)"):
        rows_in_order(part, ["NA", "1e5", "猫"], "oof.npz")
    with pytest.raises(UserError, match=r"oof\.npz: has extra 1 row \(7\)"):
        rows_in_order(part, ["1e5", "猫"], "oof.npz")


def test_finished_means_every_fold(tmp_path):
    """A run counts when all its folds are finished, and a blend's folder is none."""
    make_run(tmp_path, "b")
    make_run(tmp_path, "a")
    half = make_run(tmp_path, "half")
    (half / "fold1" / METRICS_FILE).unlink()
    (tmp_path / "ensemble").mkdir()
    assert finished_runs(tmp_path) == ["a", "b"]
    with pytest.raises(UserError, match="nowhere: holds no finished run"):
        finished_runs(tmp_path / "nowhere")


def test_oof_join_follows_the_folds_file(tmp_path):
    """Every row that is held out appears once, in the order of the folds file, with its own logits."""
    joined = join_oof(make_run(tmp_path), FOLDS)
    held_out = FOLDS.fold >= 0
    assert joined.ids.tolist() == IDS[held_out].tolist() and (joined.logits == LOGITS[held_out]).all()
    assert joined.labels.tolist() == FOLDS.labels[held_out].tolist()
    assert joined.fold.tolist() == FOLDS.fold[held_out].tolist()


def test_oof_of_other_folds_is_refused(tmp_path):
    """Another folds file, labels, classes or rows: never a score, always an error with the file."""
    with pytest.raises(UserError, match=f"fingerprint 5ca1ab1e, here {FOLDS.fingerprint[:16]}"):
        join_oof(make_run(tmp_path, fingerprint="5ca1ab1e"), FOLDS)
    run = make_run(tmp_path)
    part = oof_part(1)
    relabelled = part.labels.copy()
    relabelled[0] = "a"
    wrong = {
        r"different labels from the folds in 1 row \(7\)": replace(part, labels=relabelled),
        "has the classes b, a": replace(part, output_names=["b", "a"]),
        r"fold1/oof\.npz: lacks 3 rows .* has extra 2 rows": oof_part(0),
        "different labels from the folds in 3 rows": replace(part, labels=part.labels[:0]),
    }
    for what, predictions in wrong.items():
        write_predictions(run / "fold1" / OOF_FILE, predictions)
        with pytest.raises(UserError, match=what):
            join_oof(run, FOLDS)
    (run / "fold1" / METRICS_FILE).unlink()
    with pytest.raises(UserError, match=r"fold1/metrics\.json: cannot be read"):
        join_oof(run, FOLDS)
