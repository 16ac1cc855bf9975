"""Inputs that people have: read as they are meant, or refused in a line that says which flag tells the rest."""

import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, PngImagePlugin

import folds
from common.base.errors import UserError, run_script
from common.base.strict_csv import text_array
from common.data.competition import Competition, beside, read_competition
from common.data.decoding import read_photo
from common.data.folds import read_folds
from common.data.photo_check import check_photos
from common.data.reading import read_test_table, read_train_table
from common.data.spelling import look_alikes
from common.data.table import Table


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def photo(path: Path, shade: int = 0) -> Path:
    """A photo of one colour of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower(), path.suffix[1:].upper())
    Image.new("RGB", (8, 6), (shade, 255 - shade, 5)).save(path, kind)
    return path


def photos(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        photo(folder / name, number)


def found(folder: Path, table) -> list[str]:
    """Where the photos of a table lie, relative to ``folder``."""
    return [os.path.relpath(image, folder) for image in table.images]


def pixel_table(header: str, rows: list[str], pixels: int = 4) -> str:
    names = ",".join(f"pixel{number}" for number in range(pixels))
    lines = [f"{row},{','.join([str(number)] * pixels)}" for number, row in enumerate(rows)]
    return "\n".join([f"{header},{names}", *lines]) + "\n"


# ---- ids of a pixel table


@pytest.mark.parametrize("name", ["Id", "ID", "ImageID", "image id", "index", "row_id", "sample_number", "Unnamed: 0"])
def test_a_pixel_table_keeps_its_own_ids(tmp_path, name, capsys):
    """Whatever their column is called: numbers in their place would put answers on other rows."""
    path = write(tmp_path / "test.csv", pixel_table(name, ["30", "10", "20"]))
    table = read_test_table(path, "train.csv")
    assert (table.ids.tolist(), table.id_name) == (["30", "10", "20"], name)


def test_the_sample_says_which_column_holds_the_ids(tmp_path):
    """Of two columns whose cells all differ it is the sample's; without a sample the user is asked."""
    path = write(tmp_path / "test.csv", pixel_table("scan,serial", ["7,b", "8,a"]))
    sample = write(tmp_path / "sample.csv", "serial,label\na,0\nb,1\n")
    assert read_test_table(path, "", sample).ids.tolist() == ["b", "a"]
    assert read_test_table(path, "", "", Competition(image_column="scan")).ids.tolist() == ["7", "8"]
    with pytest.raises(UserError, match="may be the ids: scan, serial; .*--image-column"):
        read_test_table(path, "")


def test_rows_are_numbered_where_no_column_can_name_them(tmp_path):
    """A column with equal cells, such as a writer, is a group and no id."""
    path = write(tmp_path / "test.csv", pixel_table("writer", ["a", "a", "b"]))
    assert read_test_table(path, "").ids.tolist() == ["1", "2", "3"]


@pytest.mark.parametrize("name", ["PassengerId", "guid", "case", "rowKey"])
@pytest.mark.parametrize("names", ["pixel0,pixel1,pixel2,pixel3", "width,height,depth,mass"])
def test_a_train_table_keeps_its_own_ids(tmp_path, name, names):
    """Of pixels and of features: a column that names rows is no feature, whatever it is called."""
    cells = ["e1-x,1,2,1,1,a", "c2-y,1,2,2,0,b", "d3-z,2,1,1,0,a", "a4-w,2,1,2,1,b"]
    path = write(tmp_path / "train.csv", f"{name},{names},label\n" + "".join(f"{cell}\n" for cell in cells))
    table = read_train_table(path)
    assert (table.ids.tolist(), table.id_name) == (["e1-x", "c2-y", "d3-z", "a4-w"], name)
    assert name not in table.feature_names


def test_numbers_counted_up_are_ids_and_measured_ones_are_features(tmp_path):
    """The sample submission's first column is the ids' whatever its numbers are."""
    rows = [f"{100 + row},{row % 3},{row % 2},{row * row},{'ab'[row % 2]}\n" for row in range(6)]
    path = write(tmp_path / "train.csv", "case,one,two,area,label\n" + "".join(rows))
    assert read_train_table(path).id_name == "case"
    assert read_train_table(path).feature_names == ("one", "two", "area")
    sample = write(tmp_path / "sample.csv", "area,label\n1,a\n")
    assert read_train_table(path, Competition(sample=sample, drop=("case",))).id_name == "area"


@pytest.mark.parametrize("name", ["x{}", "f{}", "feature_{}", "V{}"])
def test_columns_that_may_be_pixels_or_features_are_asked_for(tmp_path, name):
    """A square number of columns with a common name, all of them integers up to 255; one fraction, and they are not."""
    names = [name.format(number) for number in range(16)]
    rows = [",".join([*(str((row * number) % 256) for number in range(16)), "ab"[row % 2]]) for row in (0, 2, 3, 2)]
    path = write(tmp_path / "t.csv", "\n".join([",".join([*names, "label"]), *rows]) + "\n")
    with pytest.raises(UserError, match="say which with --inputs images or --inputs features"):
        read_train_table(path)
    assert read_train_table(path, Competition(inputs="images")).images.shape == (4, 4, 4)
    assert read_train_table(path, Competition(inputs="features")).feature_names == tuple(names)
    path = write(tmp_path / "t.csv", "\n".join([",".join([*names, "label"]), *rows]).replace(",30,", ",0.5,") + "\n")
    assert read_train_table(path).feature_names


@pytest.mark.parametrize(
    "names",
    [
        [f"pixel{number}" for number in range(1, 17)],
        [f"pixel{number:04d}" for number in range(16)],
        [f"Pixel_{number}" for number in range(16)],
        [f"px{number}" for number in range(1, 17)],
        [str(number) for number in range(16)],
        [f"{row}x{column}" for row in range(1, 5) for column in range(1, 5)],
    ],
)
def test_pixels_may_be_counted_from_0_or_1_and_called_otherwise(tmp_path, names):
    """The tables of MNIST, Fashion-MNIST, sign language and skin images, in any order of the columns."""
    order = np.random.default_rng(0).permutation(16)
    header, cells = ",".join(names[at] for at in order), ",".join(str(at) for at in order)
    table = read_train_table(write(tmp_path / "t.csv", f"label,{header}\nx,{cells}\n"))
    assert table.images.tolist() == np.arange(16).reshape(1, 4, 4).tolist()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["pixel1", "pixel2", "pixel4", "pixel5"], "no pixel3"),
        (["pixel2", "pixel3", "pixel4", "pixel5"], "no pixel1"),
        (["pixel0", "pixel00", "pixel1", "pixel2"], "pixel0 and pixel00 for one pixel"),
    ],
)
def test_pixel_columns_with_a_gap_are_refused(tmp_path, names, message):
    """A gap or a pixel given twice would shift the picture."""
    with pytest.raises(UserError, match=message):
        read_train_table(write(tmp_path / "t.csv", f"label,{','.join(names)}\nx,1,2,3,4\n"))


# ---- where photos lie


@pytest.mark.parametrize("folder", ["test", "test_images", "Test", "images/test", "testing", "test-images", "test_jpg"])
def test_test_photos_are_never_training_photos_of_the_same_name(tmp_path, folder):
    """The folder called like the csv goes before images/; what it lacks is not taken from there."""
    photos(tmp_path, ["images/0.jpg", "images/1.jpg", f"{folder}/0.jpg", f"{folder}/1.jpg"])
    path = write(tmp_path / "test.csv", "id\n0.jpg\n1.jpg\n")
    assert found(tmp_path, read_test_table(path, "")) == [f"{folder}/0.jpg", f"{folder}/1.jpg"]
    (tmp_path / folder / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"row 2: '1.jpg' is not in .*, where others are, but images/1.jpg is there"):
        read_test_table(path, "")


def test_one_name_for_two_photos_shows_both(tmp_path):
    """Beside the csv and in images/, or in two of the folders that were named."""
    photos(tmp_path, ["0.jpg", "images/0.jpg", "a/1.jpg", "b/1.jpg"])
    path = write(tmp_path / "t.csv", "image,label\n0.jpg,x\n")
    with pytest.raises(UserError, match="'0.jpg' may mean 0.jpg or images/0.jpg"):
        read_train_table(path)
    both = Competition(images=(str(tmp_path / "a"), str(tmp_path / "b")))
    with pytest.raises(UserError, match="'1' may mean .*a/1.jpg or .*b/1.jpg"):
        read_train_table(write(tmp_path / "u.csv", "image,label\n1,x\n"), both)
    assert read_train_table(write(tmp_path / "v.csv", "image,label\nb/1,x\n"), both).images == [tmp_path / "b/1.jpg"]


@pytest.mark.parametrize(
    ("cell", "file"),
    [
        ("a1", "a1.JPG"),
        ("a1.jpg", "a1.JPG"),
        ("a1.JPG", "a1.jpg"),
        ("a1.tif", "a1.TIFF"),
        ("a1.jpeg", "a1.jpg"),
        ("a1", "a1.Tiff"),
        ("scan.v2", "scan.v2.PNG"),
        ("deep/a1", "deep/a1.JPEG"),
    ],
)
def test_suffixes_count_in_any_case(tmp_path, cell, file):
    """A camera writes .JPG, a table .jpg or nothing."""
    photos(tmp_path, [file])
    table = read_train_table(write(tmp_path / "t.csv", f"image,label\n{cell},x\n"))
    assert found(tmp_path, table) == [file]


def test_named_folders_are_searched_at_any_depth_and_through_links(tmp_path):
    """Photos of a read-only input, a corrected table elsewhere: cells with more or fewer folders, absolute ones too."""
    photos(tmp_path, ["input/train/a/0.jpg", "input/train/b/0.jpg", "input/train/b/2.jpg", "far/3.jpg"])
    (tmp_path / "input/train/far").symlink_to(tmp_path / "far")
    absolute = tmp_path / "input/train/b/0.jpg"
    path = write(tmp_path / "working/labels.csv", f"name,kind\ntrain/a/0.jpg,x\n{absolute},y\n2,x\n3.jpg,y\n")
    table = read_train_table(path, Competition(images=(str(tmp_path / "input/train"),)))
    assert [image.parent.name for image in table.images] == ["a", "b", "b", "far"]
    with pytest.raises(UserError, match=r"no image 'train/a/0.jpg' in .*working; .*--images"):
        read_train_table(write(tmp_path / "working/u.csv", "name,kind\ntrain/a/0.jpg,x\n"))


def test_a_missing_photo_names_the_folders_and_the_flag(tmp_path):
    """Every folder that was searched, and the one where a photo of this name lies."""
    photos(tmp_path, ["train/0.jpg", "images/7.jpg"])
    path = write(tmp_path / "labels.csv", "id,breed\n0,x\n")
    with pytest.raises(UserError, match=r"'0' in .*images; it may be (.*)train/0.jpg: .*--images \1train$"):
        read_train_table(path)
    with pytest.raises(UserError, match="no image '0' in .*images; .*--images"):
        read_train_table(path, Competition(images=(str(tmp_path / "images"),)))


def test_a_missing_photo_of_a_test_table_shows_every_folder_that_has_it(tmp_path):
    """The first of them may be the training photos'; the flag is the one for a test table."""
    photos(tmp_path, ["first_stage/0.jpg", "second_stage/0.jpg"])
    path = write(tmp_path / "sample_submission.csv", "id,breed\n0,x\n")
    with pytest.raises(UserError, match=r"may be .*first.*/0.jpg or .*second.*/0.jpg: .* folds.py --test-images$"):
        read_test_table(path, "")


@pytest.mark.parametrize(("cell", "file"), [("7", "007.jpg"), ("7.0", "7.jpg"), ("0", "000.jpg"), ("a ", "a.jpg")])
def test_a_name_that_a_spreadsheet_changed_is_shown(tmp_path, cell, file):
    """Lost zeros, a fraction, a space: the file of that name is there, and no folder would help."""
    photos(tmp_path, [f"train/{file}"])
    with pytest.raises(UserError, match=f"no image '{cell}' in .*; .*{file[:-4]}.* is there: correct a copy"):
        read_train_table(write(tmp_path / "train.csv", f"image,label\n{cell},x\n"))


def test_paths_may_come_from_windows(tmp_path):
    """With its slashes, whether a folder is below the csv, named, or a part of the file's own name."""
    photos(tmp_path, ["train/a/0.jpg", "train/b/0.jpg"])
    path = write(tmp_path / "list.csv", "image,label\ntrain\\a\\0.jpg,x\ntrain\\b\\0.jpg,y\n")
    expected = ["train/a/0.jpg", "train/b/0.jpg"]
    assert found(tmp_path, read_train_table(path)) == expected
    assert found(tmp_path, read_train_table(path, Competition(images=(str(tmp_path / "train"),)))) == expected
    photos(tmp_path, ["train\\a\\0.jpg", "train\\b\\0.jpg"])
    assert found(tmp_path, read_train_table(path)) == ["train\\a\\0.jpg", "train\\b\\0.jpg"]


def test_a_link_out_of_the_tables_folder_says_what_to_name(tmp_path):
    """A linked folder of photos is used where the user names it, not where a table leads into it."""
    photos(tmp_path, ["far/0.jpg"])
    path = write(tmp_path / "work/train.csv", "image,label\n0.jpg,x\n")
    (tmp_path / "work/train").symlink_to(tmp_path / "far")
    with pytest.raises(UserError, match=rf"0.jpg is a link that points outside of .*--images {tmp_path}/far"):
        read_train_table(path)
    table = read_train_table(path, Competition(images=(str(tmp_path / "work/train"),)))
    assert table.images == [tmp_path / "work/train/0.jpg"]
    path = write(tmp_path / "work/paths.csv", "image,label\n../far/0.jpg,x\n")
    with pytest.raises(UserError, match="points outside of"):
        read_train_table(path)
    assert read_train_table(path, Competition(images=(str(tmp_path / "far"),))).images == [tmp_path / "far/0.jpg"]


@pytest.mark.parametrize("header", ["id_code,diagnosis", "Image,Id", "isic,age", "file_path,Class", "sex,image_name"])
def test_columns_are_told_by_what_they_hold(tmp_path, header):
    """The column with the photos' names is the images', the one that is left the labels'."""
    photos(tmp_path, ["train/0.jpg", "train/1.jpg"])
    rows = ["m,0.jpg", "f,1.jpg"] if header.startswith("sex") else ["0.jpg,m", "1.jpg,f"]
    table = read_train_table(write(tmp_path / "train.csv", "\n".join([header, *rows]) + "\n"))
    assert (table.ids.tolist(), table.labels.tolist()) == (["0.jpg", "1.jpg"], ["m", "f"])


def test_what_columns_mean_can_be_said(tmp_path):
    """--image-column and --label-column go before every guess; a column that is not there is named."""
    photos(tmp_path, ["0.jpg", "1.jpg"])
    path = write(tmp_path / "t.csv", "id,twin,label,species\n0.jpg,1.jpg,x,cat\n")
    table = read_train_table(path, Competition(image_column="twin", label_column="species"))
    assert (table.ids.tolist(), table.labels.tolist(), list(table.columns)) == (["1.jpg"], ["cat"], ["id", "label"])
    for wrong in (Competition(image_column="foto"), Competition(label_column="foto")):
        with pytest.raises(UserError, match="has no column 'foto'"):
            read_train_table(path, wrong)
    path = write(tmp_path / "u.csv", "id,sex,age\n0.jpg,m,7\n")
    with pytest.raises(UserError, match="has no label column; name it with --label-column: sex, age"):
        read_train_table(path)


# ---- labels


@pytest.mark.parametrize("cells", [("1,0,0", "0,0,1"), ("1.0,0.0,0.0", "0.0,0.0,1.0"), ("True,False,False", "0,0,1")])
def test_one_hot_columns_are_labels(tmp_path, cells):
    """Told where nothing else is there, or named beside other columns; a row with two ones is refused."""
    photos(tmp_path, ["0.jpg", "1.jpg"])
    rows = [f"{number}.jpg,{row}" for number, row in enumerate(cells)]
    path = write(tmp_path / "t.csv", "\n".join(["image_id,cat,dog,bird", *rows]) + "\n")
    assert read_train_table(path).labels.tolist() == ["cat", "bird"]
    path = write(tmp_path / "u.csv", "\n".join(["image_id,cat,dog,bird,age", *(f"{row},30" for row in rows)]) + "\n")
    with pytest.raises(UserError, match="--label-columns cat dog bird"):
        read_train_table(path)
    table = read_train_table(path, Competition(label_columns=("cat", "dog", "bird")))
    assert (table.labels.tolist(), list(table.columns)) == (["cat", "bird"], ["age"])
    with pytest.raises(UserError, match="row 2: has 0 ones in the columns cat, dog"):
        read_train_table(path, Competition(label_columns=("cat", "dog")))


@pytest.mark.parametrize("cells", [("yes", "no"), ("x", ""), (" 1", " 0"), ("1", "-1")])
def test_one_hot_columns_written_otherwise_are_named(tmp_path, cells):
    """The label column that a message alone proposes would train one class against all others."""
    photos(tmp_path, ["0.jpg", "1.jpg"])
    rows = [",".join(cells[at != row] for at in range(2)) for row in range(2)]
    path = write(tmp_path / "t.csv", f"image,cat,dog\n0.jpg,{rows[0]}\n1.jpg,{rows[1]}\n")
    with pytest.raises(UserError, match=rf"cat, dog look like one-hot .* in place of .*{cells[0]!r}"):
        read_train_table(path)


@pytest.mark.parametrize(
    ("names", "expression", "labels"),
    [
        (["cat.12.jpg", "dog.3.jpg"], r"^(\w+)\.", ["cat", "dog"]),
        (["0_31.jpg", "10_2.jpg"], "^([0-9]+)_", ["0", "10"]),
        (["Abyssinian_1.jpg", "great_pyrenees_2.jpg"], r"^(.+)_\d+\.", ["Abyssinian", "great_pyrenees"]),
        (["train/cat/1.jpg", "valid/dog/2.jpg"], "/([^/]+)/", ["cat", "dog"]),
    ],
)
def test_labels_stand_in_the_files_names(tmp_path, names, expression, labels):
    """A regular expression with one group finds them, in a folder and in a table."""
    photos(tmp_path / "data", names)
    table = read_train_table(str(tmp_path / "data"), Competition(label_from_name=expression))
    assert table.labels.tolist() == labels
    path = write(tmp_path / "data" / "t.csv", "id\n" + "".join(f"{name}\n" for name in names))
    assert read_train_table(path, Competition(label_from_name=expression)).labels.tolist() == labels


@pytest.mark.parametrize(
    ("expression", "message"), [("(", "is no regular"), ("x", "has 0 groups"), ("(q)", "no label")]
)
def test_an_expression_that_finds_no_label_is_refused(tmp_path, expression, message):
    """It is no expression, has no group, or does not fit a name."""
    photos(tmp_path, ["cat.1.jpg"])
    with pytest.raises(UserError, match=message):
        read_train_table(str(tmp_path), Competition(label_from_name=expression))


@pytest.mark.parametrize(
    ("texts", "difference"),
    [
        (["cat", "cat "], "spaces"),
        (["a cat", "a  cat"], "spaces"),
        (["cat", "cat\u00a0"], "spaces"),
        (["cat", "ca\u200bt"], "characters that look the same"),
        (["é", "e\u0301"], "characters that look the same"),
        (["3", "3.0"], "how a number is written"),
        (["7", "007"], "how a number is written"),
        (["-1", "-1.00"], "how a number is written"),
        (["-0", "0"], "how a number is written"),
        (["1e0", "1"], "how a number is written"),
        (["3,0", "3.0"], "how a number is written"),
        (["1_000", "1000"], "how a number is written"),
        (["1,000.5", "1000.5"], "how a number is written"),
        (["a", "\u0430"], "'a' and '\\u0430' differ only in characters that look the same"),
        (["\u0663", "3"], "characters that look the same"),
        (["t-shirt", "t\u2013shirt"], "characters that look the same"),
        (["cat", " dog"], "' dog' begins or ends with a space"),
    ],
)
def test_texts_that_mean_the_same(texts, difference):
    """Spaces, invisible letters, forms of an accent, ways to write a number."""
    [line] = look_alikes([*texts, "other"], "label")
    assert difference in line
    assert not look_alikes(texts[:1], "label")


def test_texts_that_do_not_mean_the_same():
    """Hashes with an e, letters in two cases, lists of numbers."""
    assert not look_alikes(["0e12", "0e34", "a", "A", "1 2", "12", "nan", "NaN", "1_0", "10"], "label")
    assert not look_alikes(["12345678901234567890", "12345678901234567891"], "group")
    assert look_alikes(["a", "A"], "group", any_case=True) == ["the groups 'A' and 'a' differ only in case"]


def album(folder: Path, labels: list[str], groups: list[str] | None = None) -> str:
    """A table of photos, one a label, written to ``folder``/train.csv."""
    photos(folder, [f"train/{number}.png" for number in range(len(labels))])
    columns = [labels, *([groups] if groups else [])]
    rows = [",".join([f"{number}.png", *cells]) for number, cells in enumerate(zip(*columns, strict=True))]
    return write(folder / "train.csv", "\n".join(["image,label" + ",patient" * bool(groups), *rows]) + "\n")


@pytest.mark.parametrize("labels", [["a", "b", "a ", "b"] * 3, ["0", "1", "0.0", "1"] * 3, [" a", " b"] * 6])
def test_labels_that_look_alike_are_asked_for(tmp_path, labels):
    """Refused when folds are made; --as-written keeps them apart."""
    path = album(tmp_path, labels)
    out = tmp_path / "folds.csv"
    with pytest.raises(UserError, match="train.csv: the label.*--as-written"):
        folds.main(["--data", path, "--folds", str(out), "--k", "2"])
    assert not out.exists()
    folds.main(["--data", path, "--folds", str(out), "--k", "2", "--as-written"])
    assert len(read_folds(out).output_names) == len(set(labels))


@pytest.mark.parametrize("twin", ["P0 ", "p0", "P0\u00a0"])
def test_groups_that_look_alike_are_asked_for(tmp_path, twin, capsys):
    """One patient in two folds is a leak, also in a folds file that is there already."""
    path = album(tmp_path, ["a", "b"] * 6, ["P0", twin, "P1", "P2", "P3", "P4"] * 2)
    arguments = ["--data", path, "--folds", str(tmp_path / "folds.csv")]
    dealt = [*arguments, "--k", "2", "--split", "group", "--group", "patient"]
    with pytest.raises(UserError, match="the groups 'P0'.*differ only in"):
        folds.main(dealt)
    folds.main([*dealt, "--as-written"])
    with pytest.raises(SystemExit):
        folds.main([*arguments, "--check"])
    assert "differ only in" in capsys.readouterr().out


def test_labels_that_differ_in_case_are_only_mentioned(tmp_path, capsys):
    """Handwritten a and A are two classes."""
    folds.main(["--data", album(tmp_path, ["a", "A"] * 4), "--folds", str(tmp_path / "folds.csv"), "--k", "2"])
    assert "the labels 'A' and 'a' differ only in case" in capsys.readouterr().err


def test_a_group_larger_than_a_fold_is_mentioned(tmp_path, capsys):
    """The folds are then as uneven as it makes them."""
    path = album(tmp_path, ["a", "b"] * 9, ["big"] * 12 + [f"p{number}" for number in range(6)])
    arguments = ["--folds", str(tmp_path / "folds.csv"), "--k", "2", "--split", "group", "--group", "patient"]
    folds.main(["--data", path, *arguments])
    assert "(big) has 12 of 18 rows, so the folds are uneven: 1" in capsys.readouterr().err


def test_a_column_whose_name_has_a_space_is_mentioned(tmp_path, capsys):
    """It is found all the same."""
    photos(tmp_path, ["0.jpg"])
    table = read_train_table(write(tmp_path / "t.csv", " image, label\n0.jpg,x\n"))
    assert table.labels.tolist() == ["x"] and "column ' image' begins" in capsys.readouterr().err


# ---- folders


@pytest.mark.parametrize(
    "names",
    [
        ["train/cat", "train/dog", "valid/cat", "valid/dog", "test/cat", "test/dog"],
        ["train_images", "test_images"],
        ["Training", "Validation"],
        ["seg_train/cat", "seg_test/cat"],
        ["train-all/cat", "test-a/cat"],
        ["train", "unseen"],
        ["query", "gallery"],
        ["train", "unlabeled"],
        ["fold_0", "fold_1"],
        ["images_001", "images_002"],
        ["images", "masks"],
        ["JPEGImages", "Annotations"],
        ["query", "bounding_box_train", "bounding_box_test"],
        ["2019/cat", "2019/dog", "2020/cat", "2020/dog"],
        ["archive/cat", "archive/dog"],
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path, names):
    """Folders called train and test, and those that hold the same folders: the one below is to be named."""
    photos(tmp_path, [f"{name}/{number}.jpg" for name in names for number in range(2)])
    with pytest.raises(UserError, match=f"name one of them, such as {tmp_path}"):
        read_train_table(str(tmp_path))
    labelled = read_train_table(str(tmp_path), Competition(label_from_name="^([^/]+)/"))
    assert set(labelled.labels) == {name.partition("/")[0] for name in names}


def test_a_test_folder_may_have_pieces(tmp_path):
    """Public and private rows, and batches, are all predicted."""
    photos(tmp_path, [f"{name}/{number}.jpg" for name in ("public", "private", "batch_1") for number in range(2)])
    assert len(read_test_table(str(tmp_path), "train.csv").ids) == 6


@pytest.mark.parametrize("names", [["c0", "c1"], ["photo", "sketch"], ["s1", "s2"], ["with_mask", "without_mask"]])
def test_classes_with_numbers_and_of_images_are_classes(tmp_path, names):
    """Drivers' states, ways to draw, persons."""
    photos(tmp_path, [f"{name}/{number}.jpg" for name in names for number in range(2)])
    assert set(read_train_table(str(tmp_path)).labels) == set(names)


def test_folders_within_classes_are_fine(tmp_path):
    """Classes may be sorted further, and one of them may be called train."""
    photos(tmp_path, ["train/1.jpg", "car/old/1.jpg", "car/new/1.jpg", "bus/old/2.jpg"])
    assert read_train_table(str(tmp_path)).labels.tolist() == ["bus", "car", "car", "train"]


@pytest.mark.parametrize(
    "litter",
    [
        "__MACOSX/cat/._0.jpg",
        "@eaDir/0.jpg",
        "cat/@eaDir/0.jpg",
        ".ipynb_checkpoints/0.jpg",
        "lost+found/x",
        "#recycle/0.jpg",
    ],
)
def test_what_a_zip_file_or_a_disk_leaves_is_left_out(tmp_path, litter):
    """On Kaggle the folder is read-only: nothing can be removed there."""
    photos(tmp_path, ["cat/0.jpg", "dog/0.jpg"])
    write(tmp_path / litter, "x")
    assert read_train_table(str(tmp_path)).ids.tolist() == ["cat/0.jpg", "dog/0.jpg"]


def test_linked_folders_are_followed_or_refused_by_name(tmp_path, capsys):
    """Never left out without a word: within the folder they count, out of it they are refused unless named."""
    photos(tmp_path, ["far/0.jpg", "test/a/1.jpg", "test/b/c/2.jpg"])
    test = tmp_path / "test"
    (test / "again").symlink_to("b")
    assert read_test_table(str(test), "").ids.tolist() == ["a/1.jpg", "again/c/2.jpg", "b/c/2.jpg"]
    (test / "again").unlink()
    (test / "part2").symlink_to(tmp_path / "far")
    with pytest.raises(UserError, match="part2 is a link that points outside"):
        read_test_table(str(test), "")
    named = Competition(test_images=(str(test),))
    assert read_test_table(str(test), "", "", named).ids.tolist() == ["a/1.jpg", "b/c/2.jpg", "part2/0.jpg"]
    (test / "part2").unlink()
    gone = "to what cannot be found"
    links = ("loop", test, "a folder that it lies in"), ("dead.jpg", "gone", gone), ("dead", "../gone", gone)
    for link, target, message in (*links, ("itself", "itself", gone)):
        (test / link).symlink_to(target)
        with pytest.raises(UserError, match=message):
            read_test_table(str(test), "")
        (test / link).unlink()
    write(test / "part3", "../far")
    with pytest.raises(UserError, match="part3: is a file with the path of a folder"):
        read_test_table(str(test), "")
    (test / "part3").unlink()
    (test / "notes.txt").symlink_to("gone")
    assert read_test_table(str(test), "").ids.tolist() == ["a/1.jpg", "b/c/2.jpg"]
    assert "notes.txt: is left out: a link" in capsys.readouterr().err
    os.mkfifo(test / "pipe.jpg")
    with pytest.raises(UserError, match="pipe.jpg: is neither a file nor a folder"):
        read_test_table(str(test), "")


@pytest.mark.parametrize(
    ("cells", "files"),
    [
        (["test/a/0.jpg", "test/b/0.jpg"], ["a/0.jpg", "b/0.jpg"]),
        (["a/0", "b/0"], ["a/0.jpg", "b/0.jpg"]),
        (["x/y/a/0.jpg", "b/0.jpg"], ["a/0.jpg", "b/0.jpg"]),
        (["b/0.JPG", "a/0.jpg"], ["b/0.jpg", "a/0.jpg"]),
    ],
)
def test_a_sample_may_have_more_or_fewer_folders_in_its_names(tmp_path, cells, files):
    """Whole paths are compared from their ends: 0.jpg of two folders is told apart."""
    photos(tmp_path / "test", ["a/0.jpg", "b/0.jpg"])
    sample = write(tmp_path / "sample.csv", "image,label\n" + "".join(f"{cell},x\n" for cell in cells))
    table = read_test_table(str(tmp_path / "test"), "", sample)
    assert (table.ids.tolist(), found(tmp_path / "test", table)) == (cells, files)
    for wrong in ("0.jpg", "private/0.jpg"):
        write(tmp_path / "sample.csv", f"image,label\n{wrong},x\nb/0.jpg,x\n")
        with pytest.raises(UserError, match="matches 2 of|there is no image"):
            read_test_table(str(tmp_path / "test"), "", sample)


# ---- answers that are none


@pytest.mark.parametrize("labels", [["a", "a", "a"], ["a", "b", "a"]])
def test_placeholders_are_not_scored(tmp_path, labels, capsys):
    """A sample submission in place of the test table, also under another name, and cells that are all the same."""
    photos(tmp_path, ["test/0.jpg", "test/1.jpg", "test/2.jpg"])
    text = "image,label\n" + "".join(f"test/{number}.jpg,{label}\n" for number, label in enumerate(labels))
    sample, copy = write(tmp_path / "sample_submission.csv", text), write(tmp_path / "copy.csv", text)
    for path, known in ((sample, ""), (copy, sample), *([(copy, "")] if len(set(labels)) == 1 else [])):
        table = read_test_table(path, "", known)
        assert table.ids.size == 3 and table.labels.size == 0
        assert "its label column is not scored" in capsys.readouterr().err
    answers = write(tmp_path / "test.csv", "image,label\n0.jpg,a\n1.jpg,b\n2.jpg,b\n")
    assert read_test_table(answers, "", sample).labels.tolist() == ["a", "b", "b"]


# ---- decoding


def ramp(size: tuple[int, int] = (12, 9)) -> Image.Image:
    return Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[1], size[0]))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def exif_with(tag: int, kind: int, value: bytes, orientation: int = 1) -> bytes:
    """EXIF with an orientation and one entry of four bytes whose type is as it should not be."""
    entries = struct.pack("<HHI4s", 0x0112, 3, 1, struct.pack("<HH", orientation, 0))
    entries += struct.pack("<HHI4s", tag, kind, 1 if kind != 2 else 4, value)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_pillow(orientation):
    """Each of the eight, beside a tag of another type that Pillow's own function stops at."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = ImageOps.exif_transpose(Image.open(io.BytesIO(saved(ramp(), "PNG", exif=exif))))
    assert np.array_equal(read_photo(saved(ramp(), "PNG", exif=exif)), plain)
    for tag, kind, value in ((0x011A, 2, b"abc\0"), (0x0132, 5, b"\xff\xff\xff\xff"), (0x8769, 4, b"\xff\xff\xff\x7f")):
        odd = exif_with(tag, kind, value, orientation)
        assert read_photo(saved(ramp(), "JPEG", exif=odd)).size == plain.size


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", exif_with(0x0112, 2, b"abc\0", 0)],
    ids=["empty", "nowhere", "garbage", "text"],
)
def test_a_photo_whose_exif_cannot_be_read_is_upright(exif):
    """The pixels are whole."""
    for kind in ("JPEG", "PNG", "WEBP"):
        assert read_photo(saved(ramp().convert("RGB"), kind, exif=exif)).size == (12, 9)


def chunk(kind: bytes, data: bytes, damaged: bool = False) -> bytes:
    crc = zlib.crc32(kind + data) ^ damaged
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


@pytest.mark.parametrize(
    "note",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 5_000_000)),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * 5_000_000)),
        chunk(b"tEXt", b"Comment\0damaged", damaged=True),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x" * 70_000_000)),
        chunk(b"iCCP", b"profile\0\0not compressed"),
        chunk(b"tIME", b"1"),
        chunk(b"eXIf", b"II*\0", damaged=True),
    ],
    ids=["zTXt", "iTXt", "tEXt", "large iCCP", "iCCP", "tIME", "eXIf"],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_notes_in_a_png_do_not_matter(note, place):
    """Text of any length, damaged text, profiles: the pixels are what they are without them."""
    plain = saved(ramp(), "PNG")
    at = plain.index(b"IDAT") - 4 if place == "before" else plain.index(b"IEND") - 4
    noted = plain[:at] + note + plain[at:]
    assert np.array_equal(read_photo(noted), ramp())
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_photo(noted[: noted.index(b"IDAT") + 8])


def test_copies_are_told_by_their_pixels(tmp_path, capsys):
    """Saved again with a note, in another format or as colour: one photo, in one fold; the bytes stay for row_sha."""
    random = np.random.default_rng(0)
    for number in range(12):
        image = Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8))
        (tmp_path / "train").mkdir(exist_ok=True)
        image.save(tmp_path / f"train/{number}a.png")
        note = PngImagePlugin.PngInfo()
        note.add_text("Comment", "again")
        if number % 3 == 0:
            image.save(tmp_path / f"train/{number}b.png", pnginfo=note)
        elif number % 3 == 1:
            image.save(tmp_path / f"train/{number}b.bmp")
        else:
            image.convert("RGB").save(tmp_path / f"train/{number}b.webp", lossless=True)
    rows = "".join(f"{number}{copy},{'xy'[number % 2]}\n" for number in range(12) for copy in "ab")
    path = write(tmp_path / "train.csv", "image,label\n" + rows)
    test = write(tmp_path / "test" / "test.csv", "image\n0c.png\n")
    Image.open(tmp_path / "train/0a.png").save(tmp_path / "test/0c.png", compress_level=1)
    folds.main(["--data", path, "--test", test, "--folds", str(tmp_path / "folds.csv"), "--k", "3"])
    dealt, said = read_folds(tmp_path / "folds.csv"), capsys.readouterr()
    assert dealt.fold[::2].tolist() == dealt.fold[1::2].tolist()
    assert "12 exact copies" in said.out and "are also in the test set" in said.err
    assert dealt.row_shas.tolist() == read_train_table(path).row_shas().tolist()


@pytest.mark.parametrize(("most", "kind"), [(255, "png"), (4095, "png"), (1023, "tiff"), (16383, "png")])
def test_sixteen_bits_that_hold_fewer_are_asked_for(tmp_path, most, kind):
    """They would come down to a few grey levels; files that use their range are fine."""
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            values = np.random.default_rng([number, ord(label)]).integers(0, most + 1, (8, 8)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / f"data/{label}/{number}.{kind}")
    arguments = ["--data", str(tmp_path / "data"), "--folds", str(tmp_path / "folds.csv"), "--k", "2"]
    with pytest.raises(UserError, match="6 images have 16 bits but no value above .* grey levels; .*--as-written"):
        folds.main(arguments)
    folds.main([*arguments, "--as-written"])
    for number, file in enumerate((tmp_path / "data").rglob(f"*.{kind}")):
        bright = np.random.default_rng(number).integers(0, 50000, (8, 8))
        Image.fromarray(bright.astype(np.uint16)).save(file)
    folds.main([*arguments, "--force"])


@pytest.mark.parametrize(
    ("low", "high", "odd"),
    [(0, 4095, 65535), (30000, 31000, 30000), (32768, 36863, 32768), (0.0, 0.01, 0.0), (0, 255, 40000)],
)
def test_deep_images_that_keep_few_grey_levels_are_asked_for(tmp_path, low, high, odd):
    """Whatever their largest value is: one bright pixel, a narrow band, floats near 0. A few dark photos are fine."""
    kind = np.float32 if isinstance(high, float) else np.uint16
    for row in range(24):
        values = np.random.default_rng(row).uniform(low, high, (16, 16))
        values[0, 0] = odd
        file = tmp_path / f"data/{'ab'[row % 2]}/{row}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(kind)).save(file)
    arguments = ["--data", str(tmp_path / "data"), "--folds", str(tmp_path / "folds.csv"), "--k", "2"]
    with pytest.raises(UserError, match="24 of 24 images with more than 8 bits would lose most .*--as-written"):
        folds.main(arguments)
    folds.main([*arguments, "--as-written"])
    for row in range(2, 24):
        values = np.random.default_rng(row).uniform(0, 1 if kind is np.float32 else 65535, (16, 16))
        Image.fromarray(values.astype(kind)).save(tmp_path / f"data/{'ab'[row % 2]}/{row}.tif")
    folds.main([*arguments, "--force"])


# ---- what cannot be used


@pytest.mark.skipif(not shutil.which("setpriv") or os.geteuid() != 0, reason="drops root's rights with setpriv")
@pytest.mark.parametrize("flag", ["data", "test", "sample", "folds", "images"])
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, flag):
    """A folder without rights, at each flag that takes a path."""
    tmp_path.chmod(0o755)
    photos(tmp_path, [f"train/{number}.jpg" for number in range(4)])
    data = write(tmp_path / "train.csv", "image,label\n" + "".join(f"{n}.jpg,{'ab'[n % 2]}\n" for n in range(4)))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    paths = {"data": data, "test": str(tmp_path / "train"), "folds": str(tmp_path / "f.csv"), "images": str(tmp_path)}
    paths |= {flag: str(closed if flag == "images" else closed / "x.csv")}
    arguments = [word for name, path in paths.items() for word in (f"--{name}", path)]
    rights = "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"
    command = ["setpriv", *rights, sys.executable, ROOT / "folds.py", "--k", "2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    closed.chmod(0o755)
    assert done.returncode in (2, 3) and "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1 and "Permission denied" in done.stderr, done.stderr


@pytest.mark.parametrize("flag", ["data", "test", "folds", "images", "sample"])
def test_a_name_that_is_too_long_is_said_in_one_line(tmp_path, flag, capsys):
    """Whichever flag it stands at."""
    data = album(tmp_path, ["a", "b"] * 4)
    paths = {"data": data, "test": str(tmp_path / "train"), "folds": str(tmp_path / "f.csv")}
    paths |= {flag: str(tmp_path / ("x" * 300 + ".csv"))}
    arguments = [word for name, path in paths.items() for word in (f"--{name}", path)]
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda: folds.main([*arguments, "--k", "2"]))
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert stopped.value.code == 2 and len(said) == 1 and "name too long" in said[0]


# ---- said once


def test_what_was_said_of_the_files_is_kept_beside_the_folds(tmp_path):
    """competition.json has the flags, and nothing where nothing was said; another folds file has its own."""
    photos(tmp_path, [f"pictures/{number}.PNG" for number in range(6)])
    rows = "".join(f"{number},{'ab'[number % 2]},{number}\n" for number in range(6))
    path = write(tmp_path / "labels.csv", "code,kind,age\n" + rows)
    said = ["--data", path, "--images", str(tmp_path / "pictures"), "--image-column", "code", "--label-column", "kind"]
    out = str(tmp_path / "folds.csv")
    folds.main([*said, "--folds", out, "--k", "2"])
    expected = Competition(data=path, images=(str(tmp_path / "pictures"),), image_column="code", label_column="kind")
    assert read_competition(beside(out)) == expected
    folds.main(["--folds", out, "--check", "--data", path])
    other = str(tmp_path / "other.csv")
    folds.main(["--folds", other])
    assert not beside(other).exists() and beside(out).name == "competition.json"


def test_copies_of_large_photos_are_told_in_other_formats_and_tables(tmp_path):
    """They are decoded at a reduced size first: what may be a copy is looked at whole, in the test table as well."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        small = Image.fromarray(random.integers(0, 255, (20, 30, 3), dtype=np.uint8))
        small.resize((600, 400)).save(tmp_path / f"{name}.jpg")
    with Image.open(tmp_path / "a.jpg") as photo:
        photo.save(tmp_path / "a.png")
        pixels = np.array(photo)
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(tmp_path / "near.png")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "noted.jpg").write_bytes(content[:2] + b"\xff\xfe\x00\x07hello" + content[2:])

    def table(*names: str) -> Table:
        files = [tmp_path / name for name in names]
        return Table("t", text_array(names), text_array(["x"] * len(names)), files, "image", "label", {}, "photos")

    train, test = check_photos([table("a.jpg", "b.jpg", "near.png"), table("a.png", "noted.jpg")], workers=1)
    assert set(test.pixel_shas) == {train.pixel_shas[0]} and len(set(train.pixel_shas)) == 3
    [alone] = check_photos([table("a.jpg", "noted.jpg")], workers=1)
    assert len(set(alone.pixel_shas)) == 1
