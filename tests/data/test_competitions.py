"""Competitions in miniature: what is said once is enough for every script, and the form is the one asked for."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, write_photo, write_table
from PIL import Image

import ensemble
import folds
import infer
import train_fold
from benchmarks import competitions
from benchmarks.competitions import Row
from benchmarks.competitions import main as run_competitions
from common.base.errors import UserError
from common.data.competition import Competition
from common.data.decoding import Decoder, Preparation
from common.data.labels import refuse_numbers
from common.data.reading import read_test_table, read_train_table
from common.report.page import pictures
from common.runs.config import Config
from common.train.build import with_images_of

ROWS = 24


@pytest.fixture
def pets(tmp_path) -> Path:
    """The class in the file's name, a probability in the sample: train/cat.0.jpg ..., test/1.jpg ..."""
    source = tmp_path / "pets" / "input"
    for number in range(ROWS):
        write_photo(source / "train" / f"{('cat', 'dog')[number % 2]}.{number}.png", number, bright=number % 2 == 1)
        write_photo(source / "test" / f"{number + 1}.png", 100 + number, bright=number % 2 == 1)
    write_table(source / "sample.csv", ["id", "label"], *[[number + 1, 0.5] for number in range(ROWS)])
    return source


@pytest.fixture
def tables(tmp_path, monkeypatch) -> Path:
    """A table with two columns that may be the label, its photos, and the drivers in a table of their own."""
    monkeypatch.chdir(tmp_path)
    rows = [[f"{number}", f"{number % 2}", f"species {number % 3}"] for number in range(ROWS)]
    for number in range(ROWS):
        write_photo(tmp_path / "train" / f"{number}.png", number, bright=number % 2 == 1)
    write_table(tmp_path / "train.csv", ["id", "class", "species"], *rows)
    drivers = [[f"d{number % 6}", f"{number}.png"] for number in reversed(range(ROWS))]
    write_table(tmp_path / "drivers.csv", ["driver", "img"], *drivers, ["d9", "unknown.png"])
    return tmp_path


MAKER = """
import shutil, sys
from pathlib import Path

def main(arguments):
    shutil.copytree({source!r}, Path(arguments[0]) / "pets" / "input")

def score_file(folder, path):
    return "rows " + str(len(path.read_text().splitlines()) - 1)
"""


def test_from_the_files_to_a_probability_and_the_table(pets, tmp_path, monkeypatch, capsys):
    """Two runs, a blend and a report need nothing but --work; the submission holds probabilities of the dog.

    The table is written at the end, and where it was stopped before, what was done is not done again.
    """
    flags = "--label-from-name ^(cat|dog) --positive dog"
    monkeypatch.setattr(
        competitions, "COMPETITIONS", {"pets": Row("--data train --test test --sample sample.csv", flags)}
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maker.py").write_text(MAKER.format(source=str(pets)), encoding="utf-8")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "empty"]):
        subprocess.run(["git", *author, *words], check=True)
    run_competitions("maker.py", "pets")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"| pets | `{flags}` | accuracy | ".replace("|dog", "\\|dog"))
    assert line.endswith(f" | {ROWS}.000, {ROWS}.000, {ROWS}.000 | id,label ⏎ 1,{line.rpartition(',')[2]}")
    place = tmp_path / "work" / "competitions" / "pets"
    submissions = [place / "work" / "runs" / run / "submission.csv" for run in ("first", "second", "ensemble")]
    for path in submissions:
        header, *cells = list(csv.reader(path.open(encoding="utf-8")))
        assert header == ["id", "label"] and [row[0] for row in cells] == [str(number + 1) for number in range(ROWS)]
        shares = np.array([float(row[1]) for row in cells])
        assert ((shares > 0) & (shares < 1)).all()
    assert not list((place / "input").rglob("folds.csv"))
    told = json.loads((place / "work" / "competition.json").read_text(encoding="utf-8"))
    assert told["label_from_name"] == "^(cat|dog)" and told["positive"] == "dog"
    made = submissions[0].stat().st_mtime_ns
    run_competitions("maker.py")
    assert line in Path("docs/competitions.md").read_text(encoding="utf-8").splitlines()
    assert submissions[0].stat().st_mtime_ns == made
    # A notebook's run(...) is told by the same folder: probabilities of the dog, as the sample has them.
    monkeypatch.chdir(place / "input")
    before = submissions[-1].read_bytes()
    ensemble.run(ensemble.Options(work=str(place / "work"), noise=0))
    assert submissions[-1].read_bytes() == before


def test_without_a_maker_one_line_says_so(capsys):
    """make competitions in a clone without the script that makes them."""
    run_competitions("nowhere/make.py")
    assert capsys.readouterr().out.splitlines() == [
        "competitions: there is no nowhere/make.py; name the script that makes them: MAKER=PATH"
    ]


def test_the_sample_tells_the_label_column(tables, capsys):
    """Where two columns may be the label, that of the sample is; without one the usual name is, and it is said."""
    write_table(tables / "sample.csv", ["id", "species"], ["900", "species 0"])
    folds.main(["--data", "train.csv", "--sample", "sample.csv", "--k", "3"])
    said = capsys.readouterr().out
    assert "labels       column species (--label-column)" in said and "3 classes" in said
    folds.main(["--data", "train.csv", "--k", "3", "--work", "other"])
    said = capsys.readouterr().out
    assert "labels       column class (--label-column)" in said
    assert said.splitlines()[-1] == "next: python train_fold.py --work other"
    rows = [[f"{number}", f"p{number % 3}", f"species {number % 3}"] for number in range(ROWS)]
    write_table(tables / "train.csv", ["id", "site", "kind"], *rows)
    write_table(tables / "sample.csv", ["id", "p_species 0", "p_species 1", "p_species 2"], ["900", "0", "0", "1"])
    folds.main(["--data", "train.csv", "--sample", "sample.csv", "--k", "3", "--work", "third"])
    assert "labels       column kind (--label-column)" in capsys.readouterr().out


def test_groups_of_another_table(tables, capsys):
    """They are joined by name, whatever the order; a row without a group is refused."""
    flags = ["--data", "train.csv", "--k", "3", "--split", "stratified-group", "--group", "driver"]
    folds.main([*flags, "--group-table", "drivers.csv"])
    assert "joined by its column img" in capsys.readouterr().out
    rows = list(csv.DictReader((tables / "folds.csv").open(encoding="utf-8")))
    assert {row["id"]: row["group"] for row in rows} == {f"{number}": f"d{number % 6}" for number in range(ROWS)}
    folds_of = {}
    for row in rows:
        folds_of.setdefault(row["group"], set()).add(row["fold"])
    assert all(len(found) == 1 for found in folds_of.values())
    lines = (tables / "drivers.csv").read_text(encoding="utf-8").splitlines()
    (tables / "drivers.csv").write_text(
        "\n".join(line for line in lines if not line.endswith(",7.png")) + "\n", "utf-8"
    )
    with pytest.raises(UserError, match=r"drivers.csv: names 1 row \(7\) of train.csv in none"):
        folds.main([*flags, "--group-table", "drivers.csv", "--force"])


def test_a_row_without_a_group_is_tied_to_nobody(tables, capsys):
    """Half of the patients are not known: each such row is a group, and the others' rows stay together."""
    rows = [[f"{number}", f"{number % 2}", f"p{number % 4}" if number < 12 else ""] for number in range(ROWS)]
    write_table(tables / "train.csv", ["id", "class", "patient"], *rows)
    folds.main(["--data", "train.csv", "--k", "3", "--group", "patient"])
    said = capsys.readouterr()
    assert "column patient is empty in 12 rows: by it they belong to no group" in said.err
    assert "groups       column patient: 16 (--group)" in said.out
    dealt = {row["id"]: row["fold"] for row in csv.DictReader((tables / "folds.csv").open(encoding="utf-8"))}
    assert all(len({dealt[f"{number}"] for number in range(first, 12, 4)}) == 1 for first in range(4))
    assert len({dealt[f"{number}"] for number in range(12, ROWS)}) == 3


def test_three_files_are_one_image(tmp_path, monkeypatch):
    """Their channels are its colours, in the train table and in a test folder; without the flag it is proposed."""
    monkeypatch.chdir(tmp_path)
    for number in range(ROWS):
        write_photo(tmp_path / "whole" / f"photo{number}.png", number, bright=number % 2 == 1)
        with Image.open(tmp_path / "whole" / f"photo{number}.png") as photo:
            for folder, name in (("train", f"{number}"), ("test", f"t{number}")):
                for colour, channel in zip(("red", "green", "blue"), photo.split(), strict=True):
                    (tmp_path / folder).mkdir(exist_ok=True)
                    channel.save(tmp_path / folder / f"{name}_{colour}.png")
    write_table(tmp_path / "train.csv", ["id", "label"], *[[number, number % 2] for number in range(ROWS)])
    write_table(tmp_path / "sample.csv", ["id", "label"], *[[f"t{number}", 0] for number in reversed(range(ROWS))])
    with pytest.raises(UserError, match="name its channels with --image-suffixes _blue _green _red"):
        folds.main(["--data", "train.csv", "--k", "3"])
    suffixes = ("_red", "_green", "_blue")
    said = Competition(image_suffixes=suffixes)
    folds.main(["--data", "train.csv", "--k", "3", "--image-suffixes", *suffixes])
    prepare = Preparation(channels=3, side=12, stored=12)
    train, test = read_train_table("train.csv", said), read_test_table("test", "train.csv", "sample.csv", said)
    assert test.ids.tolist() == [f"t{number}" for number in reversed(range(ROWS))]
    for number in range(ROWS):
        whole = prepare((tmp_path / "whole" / f"photo{number}.png").read_bytes())
        assert (Decoder(train, prepare, train.row_shas())(number) == whole).all()
        assert (Decoder(test, prepare)(ROWS - 1 - number) == whole).all()
    assert "data:image/jpeg" in str(pictures([(train.images[0], ["as the report shows it"])]))


def test_four_files_are_the_four_channels_of_an_image(tmp_path, monkeypatch, capsys):
    """From the files to a submission; two images that differ in the last channel alone are no copies."""
    monkeypatch.chdir(tmp_path)
    random, suffixes = np.random.default_rng(0), ("_red", "_green", "_blue", "_yellow")
    (tmp_path / "train").mkdir()
    for number in range(ROWS):
        for suffix in suffixes:
            pixels = random.integers(0, 120, (12, 12), dtype=np.uint8) + 120 * (suffix == "_yellow") * (number % 2)
            if number == 1 and suffix != "_yellow":
                pixels = np.asarray(Image.open(tmp_path / "train" / f"0{suffix}.png"))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "train" / f"{number}{suffix}.png")
    write_table(tmp_path / "train.csv", ["id", "label"], *[[number, number % 2] for number in range(ROWS)])
    write_table(tmp_path / "sample.csv", ["id", "label"], *[[number, 0] for number in range(ROWS)])
    test = ["--test", "train", "--sample", "sample.csv"]
    folds.main(["--data", "train.csv", "--k", "2", "--image-suffixes", *suffixes, *test])
    assert " 0 exact copies" in capsys.readouterr().out
    table = read_train_table("train.csv", Competition(image_suffixes=suffixes))
    pixels = Decoder(table, Preparation(channels=4, side=12, stored=12), table.row_shas())(3)
    files = [np.asarray(Image.open(tmp_path / "train" / f"3{suffix}.png")) for suffix in suffixes]
    assert (pixels == np.stack(files)).all()
    with pytest.raises(UserError, match="--channels: 3 are not what the images have: 4"):
        with_images_of(Config(channels=3), table)
    small = ["--img-size", "12", "--epochs", "30", "--batch-size", "8", "--threads", "1", "--lr", "0.01"]
    small += ["--model-args", "widths=(8,8)", "depths=(1,1)", "--channels-last", "no", "--augment", "none"]
    for fold in "01":
        train_fold.main([*small, "--fold", fold])
    infer.main(["--threads", "1"])
    with (tmp_path / "runs" / "digit_cnn" / "submission.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["label"] == str(int(row["id"]) % 2) for row in rows)
    assert right > 0.9 * ROWS, "the class shows in the yellow channel alone"


@pytest.mark.parametrize(
    ("labels", "refused"),
    [
        ([str(number * number) for number in range(ROWS)], True),
        ([f"{number % 22}.5" for number in range(5 * 22)], True),
        ([str(3 * (number % 30)) for number in range(210)], True),
        ([str(number % 100 + 1) for number in range(1000)], True),
        ([f"{1000 * number:,}" for number in range(ROWS)], True),
        ([f"{number / 2} kg" for number in range(ROWS)], True),
        ([f"${number * number}" for number in range(ROWS)], True),
        ([str(number % 30) for number in range(210)], False),
        ([f"{number % 30} {'ab'[number % 2]}" for number in range(210)], False),
        ([f"w_{number % 30}" for number in range(210)], False),
        ([str(number % 10) for number in range(ROWS)], False),
    ],
)
def test_numbers_that_look_like_a_quantity(labels, refused):
    """Many different numbers are asked about, whole ones too; grades, and classes counted from 0, are not."""
    try:
        refuse_numbers("train.csv", np.array(labels, dtype=object), k=5)
        assert not refused
    except UserError as error:
        assert refused and "a quantity?" in str(error) and "--task multiclass" in str(error)


def test_a_column_called_class_holds_classes():
    """Whole numbers with gaps pass in it; others, and fractions, are asked about."""
    labels = np.array([str(3 * (number % 30)) for number in range(210)], dtype=object)
    for column in ("class", "category_id", "Species"):
        refuse_numbers("train.csv", labels, k=5, column=column)
    for column, found in (("target", labels), ("class", np.array([f"{each}.5" for each in labels], dtype=object))):
        with pytest.raises(UserError, match="a quantity"):
            refuse_numbers("train.csv", found, k=5, column=column)


def test_folders_called_valid_validate(pets, monkeypatch, capsys):
    """train/ and valid/ of others: one fold, whose rows lie in valid; without being told so it is refused."""
    monkeypatch.chdir(pets)
    (pets / "valid").mkdir()
    for file in sorted((pets / "train").iterdir())[::4]:
        shutil.move(file, pets / "valid" / file.name)
    folds.main(["--data", ".", "--label-from-name", "(cat|dog)", "--split", "folders"])
    rows = list(csv.DictReader((pets / "folds.csv").open(encoding="utf-8")))
    assert len(rows) == ROWS and {row["id"].split("/")[0] + row["fold"] for row in rows} == {"train-1", "valid0"}
    assert "split        folders (--split)" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no two folders called train and valid"):
        folds.main(["--data", "train", "--split", "folders", "--work", "other"])


def test_each_competition_keeps_to_its_own_runs(tiny, tmp_path, monkeypatch, capsys):
    """infer and ensemble take the runs of the folds file and name the others, whose files stay as they are."""
    monkeypatch.chdir(tmp_path)
    for work, seed in (("first", "0"), ("second", "1")):
        files = ["--data", str(tiny / "train.csv"), "--test", str(tiny / "test.csv")]
        folds.main([*files, "--k", "3", "--seed", seed, "--work", work])
    small = [*map(str, SMALL), "--epochs", "1", "--jobs", "1", "--runs-dir", "runs"]
    for work, run in (("first", "a"), ("second", "b"), ("second", "c")):
        train_fold.main(["--work", work, "--run", run, *small])
    test = ["--test", str(tiny / "test.csv"), "--threads", "1", "--runs-dir", "runs"]
    with pytest.raises(UserError, match="--runs: a, b, c were trained with different folds"):
        infer.main(test)
    capsys.readouterr()
    infer.main([*test, "--work", "second"])
    said = capsys.readouterr()
    assert "left out: runs/a: was trained with different folds" in said.err
    assert said.out.splitlines()[-1] == "next: python ensemble.py --work second --runs-dir runs"
    assert not (tmp_path / "runs/a/submission.csv").exists() and (tmp_path / "runs/b/submission.csv").exists()
    ensemble.main(["--work", "second", "--runs-dir", "runs"])
    assert (tmp_path / "runs/ensemble/submission.csv").exists()
    with pytest.raises(UserError, match="runs/a: was trained with other folds than second/folds.csv"):
        infer.main(["--work", "second", "--runs-dir", "runs", "--runs", "a"])
    with pytest.raises(UserError, match="--test: is missing, and b was not trained on the embedded digits"):
        infer.main(["--runs", "b", "--runs-dir", "runs", "--threads", "1"])
