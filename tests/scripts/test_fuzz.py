"""Thousands of damaged files: each is refused with one line that names it, or says exactly what it said before.

FIVEFOLD_FAULTS=full reads ten times as many. The seed of every mutant is printed with its failure.
"""

import csv
import io
import json
import os
import random
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from common.base.errors import UserError
from common.base.files import read_json, write_json
from common.base.strict_csv import INDEX, text_array
from common.data.cache import Cache
from common.data.dealing import make_folds
from common.data.decoding import Preparation
from common.data.folds import read_folds, write_folds
from common.data.inputs import Reading, open_inputs
from common.data.reading import read_train_table
from common.data.table import Table
from common.runs.predictions import Predictions, read_predictions, write_predictions
from common.runs.tensors import load_any, load_tensors, save_tensors

TIMES = 10 if os.environ.get("FIVEFOLD_FAULTS") == "full" else 1
# What editors, spreadsheets and broken downloads put into a text.
TOKENS = ["", ",", ";", '"', '""', "\n", "\r\n", "\r", "\0", "\ufeff", "\u2028", "-1", "256", "1e3", "0x1", " 7", "007"]
TOKENS += ["NaN", "NA", "null", "inf", "\u0663", "\u22121"]
TOKENS += ["{", "}", "[", "]", ":", "true", "9" * 400, "[" * 200]


def mutant(content: bytes, draw: random.Random) -> bytes:
    """A copy with one to three damages: a flipped bit, a cut, a lost or doubled part, two parts swapped, a token."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if not changed:
            break
        at, length = draw.randrange(len(changed)), draw.choice((1, 2, 8, 64))
        part = changed[at : at + length]
        how = draw.randrange(7)
        if how == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            changed[at] = draw.randrange(256)
        elif how == 2:
            del changed[at : at + (length if draw.random() < 0.8 else len(changed))]
        elif how == 3:
            changed[at:at] = part
        elif how == 4:
            changed[at:at] = draw.choice(TOKENS).encode()
        elif how == 5:
            other = draw.randrange(len(changed))
            changed[at : at + length], changed[other : other + length] = changed[other : other + length], part
        else:
            changed += draw.randbytes(length)
    return bytes(changed)


def fuzz(path: Path, count: int, figures, accepted: Callable[[], None], mutate=mutant) -> None:
    """Read ``count`` mutants of ``path``; ``accepted`` reads one and asserts that it is the same or may be so."""
    content, refused = path.read_bytes(), 0
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(count * TIMES):
        path.write_bytes(mutate(content, random.Random(seed)))
        started = time.process_time()
        try:
            accepted()
        except UserError as error:
            assert str(path) in str(error) and "; " in str(error), f"seed {seed}: {error}"
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed} of {path.name}: {type(error).__name__} {error}") from error
        assert time.process_time() - started < 5, f"seed {seed} takes too long"
    path.write_bytes(content)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
    assert grown < 500, f"{grown:.0f} MB more memory"
    assert 0.1 * count * TIMES < refused < count * TIMES, "some are refused, some are not"
    print(f"{path.name}: {count * TIMES:,} mutants (seeds 0 to {count * TIMES - 1:,}), {refused:,} refused")
    figures("fuzz", count * TIMES)


def cells_read_simply(path: Path) -> list[list[str]]:
    """Header and rows as Python's own csv reader gives them."""
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n") + "\n"
    return list(csv.reader(io.StringIO(text, newline="\n"), strict=True))


def small_table() -> Table:
    """Twelve rows of 2 x 2 pixels in two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 2, 2)).astype(np.uint8)
    labels = text_array(["cat", "dog, big"] * 6)
    return Table("table", text_array(f"r{at}" for at in range(12)), labels, pixels, "id", "label", {})


def test_pixel_table(tmp_path, figures):
    """Every accepted train.csv says, cell by cell, what an independent reader finds in the same bytes."""
    path = tmp_path / "train.csv"
    rows = [["x", *pixels] for pixels in small_table().images.reshape(12, 4).tolist()]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["label", *(f"pixel{at}" for at in range(4))], *rows])
    path.write_text(text.getvalue())

    def accepted() -> None:
        table = read_train_table(str(path))
        header, *rows = cells_read_simply(path)
        assert len(table.ids) == len(rows)
        label_at = [name.strip().lower() for name in header].index("label")
        assert table.labels.tolist() == [row[label_at] for row in rows]
        side = table.images.shape[1]
        number_of = [re.sub("[^0-9]", "", name) for name in header]  # pixel_2 and px2 are pixel 2 as well
        first = 0 if "0" in number_of else 1  # pixels are counted from either
        columns = [number_of.index(str(at + first)) for at in range(side * side)]
        found = [[row[at] for at in columns] for row in rows]
        assert all(re.fullmatch("[0-9]{1,3}", cell) for row in found for cell in row)
        assert table.images.reshape(len(rows), -1).tolist() == [[int(cell) for cell in row] for row in found]

    fuzz(path, 2000, figures, accepted)


def test_photo_table(tmp_path, figures):
    """Every accepted table of photos names files below its folder, as an independent reader finds them."""
    path = tmp_path / "train.csv"
    for name in "ab":
        Image.new("L", (2, 2)).save(tmp_path / f"{name}.png")
    path.write_text("image,label\na.png,cat\nb.png,dog\n")

    def accepted() -> None:
        table = read_train_table(str(path))
        header, *rows = cells_read_simply(path)
        assert [header[0] or INDEX, header[1]] == [table.id_name, table.label_name]
        assert [[*pair] for pair in zip(table.ids, table.labels, strict=True)] == rows
        assert all(image.resolve().is_relative_to(tmp_path) for image in table.images)

    fuzz(path, 1000, figures, accepted)


def test_folds(tmp_path, figures):
    """Every accepted folds.csv says what an independent reader finds in the same bytes."""
    path = tmp_path / "folds.csv"
    write_folds(path, make_folds(small_table(), k=3))

    def accepted() -> None:
        folds = read_folds(path)
        header, *rows = cells_read_simply(path)
        for name, found in (("id", folds.ids), ("label", folds.labels), ("row_sha", folds.row_shas)):
            assert found.tolist() == [row[header.index(name)] for row in rows]
        assert folds.fold.tolist() == [int(row[header.index("fold")]) for row in rows]
        assert sorted(set(folds.fold.tolist()) | {-1}) == list(range(-1, folds.count))

    fuzz(path, 2000, figures, accepted)


def test_predictions(tmp_path, figures):
    """An oof.npz that is read says what was written: its arrays carry their own sha256."""
    path, table = tmp_path / "oof.npz", small_table()
    logits = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    fold = np.arange(12) % 3
    written = Predictions(table.ids, logits, ["cat", "dog, big"], table.labels, fold, source={})
    write_predictions(path, written)

    def accepted() -> None:
        found = read_predictions(path)
        assert found.ids.tolist() == table.ids.tolist() and found.labels.tolist() == table.labels.tolist()
        assert (
            (found.logits == logits).all() and (found.fold == fold).all() and found.output_names == written.output_names
        )

    fuzz(path, 1500, figures, accepted)


def test_json(tmp_path, figures):
    """A json file that is read says what was written: it carries its own sha256."""
    path = tmp_path / "metrics.json"
    facts = {"fold_count": 3, "folds_fingerprint": "ab" * 8, "nll": 0.1234567890123, "versions": {"é": [1, None, True]}}
    write_json(path, facts)

    def accepted() -> None:
        found = read_json(path, fold_count=int)
        assert found == facts or "sha256" not in json.loads(path.read_text(encoding="utf-8"))  # that is warned of

    fuzz(path, 3000, figures, accepted)


def heavy(content: bytes, draw: random.Random) -> bytes:
    """A mutant whose damage lies in the header half of the time: the weights are most of the file."""
    length = int.from_bytes(content[:8], "little") + 8
    if draw.random() < 0.5:
        return mutant(content[:length], draw) + content[length:]
    return mutant(content, draw)


def test_checkpoint(tmp_path, figures):
    """A weights file that is read holds the tensors and the metadata that were written, to the bit."""
    path = tmp_path / "model.safetensors"
    random_numbers = torch.Generator().manual_seed(0)
    tensors = {"a.weight": torch.randn(4, 3, generator=random_numbers), "b": torch.arange(5), "c": torch.zeros(0, 2)}
    facts = {"settings": {"lr": 0.1, "model_args": ["a=1"]}, "fold": "0", "classes": ["cat", "dog"]}
    save_tensors(path, tensors, facts)

    def accepted() -> None:
        found, metadata = load_tensors(path)
        assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
        assert all(found[name].dtype == tensors[name].dtype for name in tensors)
        assert {name: metadata[name] for name in facts} == facts

    fuzz(path, 10000, figures, accepted, heavy)


def test_weights_of_others(tmp_path, figures):
    """A safetensors file that carries no sha256 is read as finite tensors, or refused."""
    path = tmp_path / "weights.safetensors"
    random_numbers = torch.Generator().manual_seed(0)
    tensors = {"a": torch.randn(4, 3, generator=random_numbers), "b": torch.randn(7, generator=random_numbers).half()}
    path.write_bytes(save(tensors | {"c": torch.arange(5)}, {"format": "pt"}))

    def accepted() -> None:
        for tensor in load_any(path, "restore it")[0].values():
            assert torch.isfinite(tensor.float()).all()

    fuzz(path, 5000, figures, accepted, heavy)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tif"])
def test_images(tmp_path, figures, suffix):
    """A damaged photo is decoded to the size that was asked for or refused with its name; its row hash has changed."""
    path = tmp_path / f"a.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    table = Table(
        str(tmp_path / "train.csv"), text_array(["a"]), text_array(["x"]), [path], "image", "label", {}, "photos"
    )
    content, row_sha = path.read_bytes(), table.row_shas()[0]

    def accepted() -> None:
        assert (table.row_shas()[0] == row_sha) == (path.read_bytes() == content)
        images = open_inputs(table, Preparation(3, 8, 8), torch.device("cpu"), Reading(Cache(1.0), say=str)).values
        assert images.shape == (1, 3, 8, 8) and images.dtype == torch.uint8

    fuzz(path, 300, figures, accepted)
