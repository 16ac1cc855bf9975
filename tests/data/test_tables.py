"""Reading tables: exact, strict, and naming the cell that is wrong."""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from common.base.errors import UserError
from common.base.strict_csv import read_columns
from common.data import pixels
from common.data.reading import read_test_table, read_train_table

DATA = SHARED / "data"
HEADER = "label,pixel0,pixel1,pixel2,pixel3"


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def photos(folder: Path, names: list[str]) -> None:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), shade).save(folder / name)


# ---- pixel tables


def test_pixels_equal_an_independent_reader(tmp_path):
    """Every value from 0 to 255 and every label arrives as written, in several thousand rows, plain or zipped."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (3000, 9))
    labels = [f"klass ü{number}" if number % 2 else "NA" for number in rng.integers(0, 9, 3000)]
    rows = [[label, *row] for label, row in zip(labels, values.tolist(), strict=True)]
    text = io.StringIO()
    csv.writer(text).writerows([["label", *(f"pixel{number}" for number in range(9))], *rows])
    plain = read_train_table(write(tmp_path / "a.csv", text.getvalue()))
    zipped = read_train_table(write(tmp_path / "a.csv.gz", gzip.compress(text.getvalue().encode())))
    for table in (plain, zipped):
        assert table.images.dtype == np.uint8
        assert table.images.reshape(3000, 9).tolist() == values.tolist()
        assert table.labels.tolist() == labels
    assert plain.ids[[0, -1]].tolist() == ["1", "3000"]
    assert (plain.id_name, plain.label_name) == ("ImageId", "Label")


@pytest.mark.parametrize(
    "content",
    [
        f"{HEADER}\n7,1,2,3,40\nNA,255,0,10,99\n",
        f"\ufeff{HEADER}\r\n7,1,2,3,40\r\nNA,255,0,10,99\r\n",
        f"{HEADER}\n7,1,2,3,40\nNA,255,0,10,99",
        f"{HEADER}\n7,1,2,3,40\nNA,255,0,10,99\n\n\n",
        "pixel3,pixel1,label,pixel0,pixel2\n40,2,7,1,3\n99,0,NA,255,10\n",
        '"label","pixel0","pixel1","pixel2","pixel3"\n"7",1,2,3,40\n"NA",255,0,10,99\n',
    ],
    ids=["plain", "BOM and CRLF", "no last newline", "blank lines at the end", "columns reordered", "quoted text"],
)
def test_harmless_differences_read_the_same(tmp_path, content):
    """What an editor or R may do to a file changes neither labels, pixels nor row hashes."""
    table = read_train_table(write(tmp_path / "a.csv", content))
    plain = read_train_table(write(tmp_path / "b.csv", f"{HEADER}\n7,1,2,3,40\nNA,255,0,10,99\n"))
    assert table.labels.tolist() == ["7", "NA"]
    assert table.images.tolist() == [[[1, 2], [3, 40]], [[255, 0], [10, 99]]]
    assert table.row_shas().tolist() == plain.row_shas().tolist()


GOOD = f"{HEADER}\n7,1,2,3,4\n8,5,6,7,8\n"
FAULTS = {
    "empty": ("", "a.csv: is empty"),
    "header only": (f"{HEADER}\n", "no row"),
    "semicolons": (GOOD.replace(",", ";"), "semicolon-separated"),
    "tabs": (GOOD.replace(",", "\t"), "tab-separated"),
    "UTF-16": (GOOD.encode("utf-16"), "not UTF-8 at byte 0"),
    "Latin-1": (f"{HEADER}\né,1,2,3,4\n".encode("latin-1"), "not UTF-8 at byte 34"),
    "NUL": (GOOD.replace("7,1", "7,\0"), "NUL at byte 36"),
    "old Mac": (GOOD.replace("\n", "\r"), "carriage return"),
    "gzip without .gz": (gzip.compress(GOOD.encode()), "not UTF-8"),
    "one field more": (f"{HEADER}\n7,1,2,3,4\n8,5,6,7,8,9\n", "row 2: has 6 fields, but the header has 5"),
    "all rows one field more": (f"{HEADER}\n7,1,2,3,4,5\n8,5,6,7,8,9\n", "row 1: has 6 fields"),
    "one field less": (f"{HEADER}\n7,1,2,3\n8,5,6,7,8\n", "row 1: has 4 fields"),
    "compensating rows": (f"{HEADER}\n7,1,2,3\n8,5,6,7,8,9\n", "row 1: has 4 fields"),
    "blank line inside": (f"{HEADER}\n7,1,2,3,4\n\n8,5,6,7,8\n", "row 2: has 1 fields"),
    "late row": (f"{HEADER}\n" + "7,1,2,3,4\n" * 5000 + "7,1,2,3\n", "row 5001: has 4 fields"),
    "column twice": (GOOD.replace("pixel3", "pixel2"), "2 columns named 'pixel2'"),
    "column missing": (GOOD.replace("pixel2", "colour"), "3 pixel columns but no pixel2"),
    "not a square": ("label,pixel0,pixel1\n1,2,3\n", "2 pixel columns, which is not a square number"),
    "no label column": (GOOD.replace("label", "kind"), "no label column"),
    "empty label": (GOOD.replace("8,5", ",5"), "row 2: the label is empty"),
    "late value": (f"{HEADER}\n" + "7,1,2,3,4\n" * 5000 + "7,1,2,3,256\n", "row 5001, column pixel3: '256'"),
}


@pytest.mark.parametrize(("content", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_damaged_table_is_refused(tmp_path, content, message):
    """A damaged pixel table is an error that names the place, never a quietly different table."""
    with pytest.raises(UserError, match=message):
        read_train_table(write(tmp_path / "a.csv", content))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-1",
        "256",
        "300",
        "999",
        "1000",
        "1.5",
        "1.",
        "abc",
        "NaN",
        " 5",
        "5 ",
        "0x1",
        "+5",
        "2:",
        ":2",
        "−1",
        "٣",
        '"5"',
    ],
)
def test_each_pixel_is_an_integer_from_0_to_255(tmp_path, value):
    """Anything else names row, column and value, also in the first and the last cell."""
    for column in range(4):
        cells = ["1", "2", "3", "4"]
        cells[column] = value
        path = write(tmp_path / "a.csv", f"{HEADER}\n7,1,2,3,4\n8,{','.join(cells)}\n")
        with pytest.raises(
            UserError, match=f"row 2, column pixel{column}: '{value.replace('+', '.')}' is not an integer"
        ):
            read_train_table(path)


def test_smallest_table(tmp_path):
    """One image of one pixel is a table."""
    assert read_test_table(write(tmp_path / "a.csv", "pixel0\n5\n"), "").images.tolist() == [[[5]]]


def test_further_columns_are_kept_as_text(tmp_path):
    """A pixel table may bring groups or folds along."""
    table = read_train_table(write(tmp_path / "a.csv", "writer,label,pixel0\n007,1,2\nNA,3,4\n"))
    assert table.columns["writer"].tolist() == ["007", "NA"]


def test_test_table_has_labels_only_where_filled_in(tmp_path):
    """A test table without labels, or with an empty label column, has none; known ones are kept."""
    for content, labels in [("pixel0\n5\n", []), ("label,pixel0\n,5\n", []), ("label,pixel0\n3,5\n", ["3"])]:
        assert read_test_table(write(tmp_path / "a.csv", content), "").labels.tolist() == labels


def test_missing_and_unreadable_files(tmp_path):
    """A path that cannot be a table is one clear error."""
    with pytest.raises(UserError, match="No such file"):
        read_train_table(str(tmp_path / "absent.csv"))
    with pytest.raises(UserError, match="is not a .csv"):
        read_train_table(write(tmp_path / "a.parquet", GOOD))
    with pytest.raises(UserError, match="not a complete gzip file"):
        read_train_table(write(tmp_path / "a.csv.gz", gzip.compress(GOOD.encode())[:-9]))
    with pytest.raises(UserError, match="--test: is missing"):
        read_test_table("", "train.csv")


def test_embedded_digits():
    """1,437 rows to train on and 360 with known answers, over the full grey range, without a common image."""
    train, test = read_train_table("digits"), read_test_table("", "digits")
    assert (train.images.shape, test.images.shape) == ((1437, 8, 8), (360, 8, 8))
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert set(train.labels) == set(test.labels) == set("0123456789")
    assert test.ids[[0, -1]].tolist() == ["1", "360"]
    assert not set(train.row_shas()) & set(test.row_shas())


def test_embedded_digits_are_those_of_scikit_learn():
    """The file in the repository holds its digits, in its order, dealt by its train_test_split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    held_out = train_test_split(np.arange(1797), test_size=360, stratify=digits.target, random_state=0)[1]
    rows = np.sort(held_out)
    test = read_test_table("", "digits")
    assert np.array_equal(test.images, np.rint(digits.images[rows] * (255 / 16)))
    assert test.labels.tolist() == digits.target[rows].astype(str).tolist()
    train = read_train_table("digits")
    others = np.setdiff1d(np.arange(1797), rows)
    assert np.array_equal(train.images, np.rint(digits.images[others] * (255 / 16)))
    assert train.labels.tolist() == digits.target[others].astype(str).tolist()


@pytest.mark.skipif(not (DATA / "digits").exists(), reason="needs shared/data/digits, the Kaggle tables")
def test_real_digits_are_read():
    """42,000 rows of 784 pixels, with the competition's class counts."""
    table = read_train_table(str(DATA / "digits" / "train.csv.gz"))
    assert table.images.shape == (42000, 28, 28)
    assert np.unique(table.labels.astype(str), return_counts=True)[1].tolist() == [
        4132, 4684, 4177, 4351, 4072, 3795, 4137, 4401, 4063, 4188,
    ]  # fmt: skip
    assert len(set(table.row_shas())) == 42000


@pytest.fixture
def large_table(tmp_path, monkeypatch) -> str:
    """A table of 10 MB, in a machine whose cache folder is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row = ",".join(["200"] * 784)
    rows = "".join(f"{number},{number % 10},file {number}\n" for number in range(3300)).replace(",file", f",{row},file")
    names = ",".join(f"pixel{number}" for number in range(784))
    return write(tmp_path / "train.csv", f"id,label,{names},file\n{rows}")


def test_a_large_table_is_parsed_once(large_table, monkeypatch, tmp_path):
    """Read again, as csv or gzip, it comes from the cache, the same; a damaged file there is made again."""
    first = read_train_table(large_table)
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "_parse_pixels", None)
        again = read_train_table(write(tmp_path / "again.csv.gz", gzip.compress(Path(large_table).read_bytes())))
    for name in ("ids", "labels", "images"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert getattr(first, name).dtype == getattr(again, name).dtype
    assert again.columns["file"].tolist() == first.columns["file"].tolist() == [f"file {n}" for n in range(3300)]
    (kept,) = (tmp_path / "cache" / "fivefold").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:1_000_000] + b"damaged" + whole[1_000_007:])
    assert np.array_equal(read_train_table(large_table).images, first.images)
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "_parse_pixels", None)
        assert np.array_equal(read_train_table(large_table).images, first.images)


def test_a_large_table_is_read_where_nothing_can_be_kept(large_table, tmp_path, monkeypatch):
    """A cache folder that cannot be written to is no error, nor is a user without a home."""
    (tmp_path / "cache").write_text("a file, not a folder")
    assert len(read_train_table(large_table).ids) == 3300
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it does where there is no home
    monkeypatch.chdir(tmp_path)
    assert len(read_train_table(large_table).ids) == 3300
    assert not (tmp_path / "~").exists()


# ---- photos


@pytest.mark.parametrize("header", ["image,label", "filename,label", "id,predict", "image_id,breed", "label,image"])
def test_photo_table(tmp_path, header):
    """The usual column names are understood; names with and without suffix, beside the csv or in images/."""
    photos(tmp_path, ["a.jpg", "images/b.png", "deep/c.jpeg"])
    image_first = not header.endswith("image")
    rows = [("a", "NA"), ("b.png", "cat"), ("deep/c.jpeg", "01")]
    lines = [",".join(row if image_first else row[::-1]) for row in rows]
    table = read_train_table(write(tmp_path / "t.csv", "\n".join([header, *lines]) + "\n"))
    assert table.ids.tolist() == ["a", "b.png", "deep/c.jpeg"]
    assert table.labels.tolist() == ["NA", "cat", "01"]
    assert [path.relative_to(tmp_path).as_posix() for path in table.images] == ["a.jpg", "images/b.png", "deep/c.jpeg"]
    assert {table.id_name, table.label_name} == set(header.split(","))
    assert len(set(table.row_shas())) == 3


def test_photos_lie_in_a_folder_called_like_their_table(tmp_path):
    """train.csv and test.csv may both name 1: the photos are found in train/ and test/, or test_images/."""
    photos(tmp_path, ["train/1.jpg", "test_images/1.jpg"])
    train = read_train_table(write(tmp_path / "train.csv", "name,class,group\n1.jpg,7,a\n"))
    test = read_test_table(write(tmp_path / "test.csv", "id\n1\n"), "")
    found = [table.images[0].relative_to(tmp_path).as_posix() for table in (train, test)]
    assert found == ["train/1.jpg", "test_images/1.jpg"]
    assert (train.labels.tolist(), list(train.columns)) == (["7"], ["group"])


def test_a_name_that_may_be_two_photos_is_refused(tmp_path):
    """Without its suffix a name must belong to one file."""
    photos(tmp_path, ["a.jpg", "a.png"])
    assert read_train_table(write(tmp_path / "t.csv", "image,label\na.png,x\n")).images[0].name == "a.png"
    with pytest.raises(UserError, match="row 1: 'a' may mean a.jpg or a.png"):
        read_train_table(write(tmp_path / "t.csv", "image,label\na,x\n"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.jpg,x\nz.jpg,y\n", "row 2: there is no image 'z.jpg'"),
        ("a.jpg,x\na.jpg,y\n", "row 2: id 'a.jpg' is also in row 1"),
        ("../secret.jpg,x\n", "row 1: .* points outside of"),
        ("/etc/passwd,x\n", "row 1: .* points outside of"),
        ("C:\\secret.jpg,x\n", "row 1: .* points outside of"),
        ("link.jpg,x\n", "row 1: link.jpg is a link that points outside of"),
        ("a.jpg\n", "row 1: has 1 fields"),
        (f"{'a' * 300},x\n", "row 1: there is no image"),
        ('"a.jpg,x\n', "row 1: is not valid csv"),
        ("a.jpg,\n", "row 1: the label is empty"),
    ],
)
def test_photo_table_faults_name_the_row(tmp_path, rows, message):
    """A missing, doubled or foreign image is an error with its row; nothing outside the csv's folder is used."""
    folder = tmp_path / "inside"
    photos(tmp_path, ["inside/a.jpg", "secret.jpg"])
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match=message):
        read_train_table(write(folder / "t.csv", "image,label\n" + rows))


def test_cells_keep_line_separators_inside_text(tmp_path):
    """Only a newline ends a row: a quoted newline and the separators of Unicode are part of the text."""
    cells = read_columns(Path(write(tmp_path / "a.csv", 'id,note\n1,"two\nlines, ""quoted"""\n2,a\u2028b\x0bc\n')))
    assert cells["note"].tolist() == ['two\nlines, "quoted"', "a\u2028b\x0bc"]


def test_class_folders(tmp_path):
    """Labels are the folders' names, ids the paths below the root; hidden files do not count."""
    photos(tmp_path, ["dog/1.jpg", "cat/1.jpg", "cat/more/2.PNG", ".hidden/1.jpg"])
    table = read_train_table(str(tmp_path))
    assert table.ids.tolist() == ["cat/1.jpg", "cat/more/2.PNG", "dog/1.jpg"]
    assert table.labels.tolist() == ["cat", "cat", "dog"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: is a class folder without images"):
        read_train_table(str(tmp_path))


def test_images_beside_class_folders_are_refused(tmp_path):
    """An image that lies in no class folder would otherwise get its own name as label."""
    photos(tmp_path, ["dog/1.jpg", "stray.jpg"])
    with pytest.raises(UserError, match="1 images beside its class folders"):
        read_train_table(str(tmp_path))


def test_folder_of_test_images(tmp_path, capsys):
    """A folder is a test set without labels; a file that is no image is mentioned."""
    photos(tmp_path, ["b.jpg", "a.jpg"])
    write(tmp_path / "notes.txt", "x")
    table = read_test_table(str(tmp_path), "train.csv")
    assert table.ids.tolist() == ["a.jpg", "b.jpg"]
    assert table.labels.size == 0
    assert "1 file is no image" in capsys.readouterr().err


@pytest.mark.parametrize("first", ["", '""', "Unnamed: 0"])
def test_the_index_of_pandas(tmp_path, first, capsys):
    """A first column without a name holds the ids where its cells differ, and is never a feature."""
    numbers = ["0.5,1,3", "0.25,1,4", "0.5,2,4"]
    features = write(
        tmp_path / "unique.csv", f"{first},a,b,label\n" + "".join(f"{7 * n},{numbers[n]}\n" for n in range(3))
    )
    table = read_train_table(features)
    assert table.ids.tolist() == ["0", "7", "14"] and table.feature_names == ("a", "b")
    assert "column Unnamed: 0 (--image-column)" in table.taken[0]
    doubled = write(tmp_path / "doubled.csv", f"{first},a,b,label\n" + "".join(f"0,{cells}\n" for cells in numbers))
    table = read_train_table(doubled)
    assert table.ids.tolist() == ["1", "2", "3"] and table.feature_names == ("a", "b")
    assert "its column of row numbers (pandas' index) is not used" in capsys.readouterr().err
    photos(tmp_path, ["0.jpg", "1.jpg"])
    named = write(tmp_path / "named.csv", f"{first},image,label\n0,1.jpg,cat\n1,0.jpg,dog\n")
    assert read_train_table(named).ids.tolist() == ["1.jpg", "0.jpg"]
    by_index = write(tmp_path / "by_index.csv", f"{first},label\n1.jpg,cat\n0.jpg,dog\n")
    assert read_train_table(by_index).ids.tolist() == ["1.jpg", "0.jpg"]
