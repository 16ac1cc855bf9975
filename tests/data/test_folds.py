"""Folds: dealt once, the same for everybody, without leaks, and audited."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHARED

import folds as script
from common.base.errors import UserError
from common.base.strict_csv import text_array
from common.data.dealing import make_folds, stratified
from common.data.folds import Folds, leaks, match_folds, read_folds, write_folds
from common.data.groups import joined_groups
from common.data.reading import read_train_table
from common.data.table import Table

DATA = SHARED / "data"


def table_of(labels: list[str], images: list[int] | None = None, **columns: list[str]) -> Table:
    """A table of one-pixel images; equal numbers in ``images`` are exact copies."""
    pixels = np.array(range(len(labels)) if images is None else images, dtype=">u4")
    return Table(
        "table",
        text_array(f"r{at}" for at in range(len(labels))),
        text_array(labels),
        pixels.view(np.uint8).reshape(len(labels), 2, 2),
        "id",
        "label",
        {name: text_array(cells) for name, cells in columns.items()},
    )


@pytest.fixture
def folds_script(forks):
    """Runs folds.py with these arguments in a folder."""
    return lambda folder, *arguments: forks.run(["folds.py", *arguments], folder)


# ---- dealing


def test_stratified_folds_are_those_of_scikit_learn():
    """Row by row, for few and many classes, even and rare ones, in any order."""
    from sklearn.model_selection import StratifiedKFold

    random = np.random.default_rng(0)
    for case in range(100):
        k, classes = random.integers(2, 8), random.integers(2, 30)
        counts = random.integers(k, 40, classes)
        strata = text_array(random.permutation(np.repeat(random.permutation(1000)[:classes], counts)).astype(str))
        parts = StratifiedKFold(k, shuffle=True, random_state=case).split(strata, strata)
        expected = np.empty(len(strata), dtype=int)
        for number, (_, part) in enumerate(parts):
            expected[part] = number
        assert (stratified(strata, k, case) == expected).all()


def test_stratified_folds_hold_each_class_evenly():
    """Every row is in exactly one fold and a class's share differs by at most one row between folds."""
    table = table_of(["a"] * 53 + ["b"] * 31 + ["c"] * 16)
    folds = make_folds(table, k=5)
    assert folds.count == 5
    for name in folds.output_names:
        sizes = np.bincount(folds.fold[folds.labels == name], minlength=5)
        assert sizes.max() - sizes.min() <= 1
    assert leaks(folds) == []


@pytest.mark.parametrize("split", ["stratified", "kfold", "group", "stratified-group", "holdout"])
def test_the_seed_alone_decides(split):
    """The same seed deals the same folds, another seed other ones."""
    writers = [str(at % 23) for at in range(120)]
    table = table_of(["a", "b", "c"] * 40, writer=writers)
    first, again, other = (
        make_folds(table, split=split, group="writer" * ("group" in split), seed=s) for s in (0, 0, 1)
    )
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("split", ["stratified", "kfold", "holdout"])
def test_exact_copies_share_a_fold(split):
    """Ten copies of each of 30 images never face each other across folds, and the folds stay even."""
    table = table_of(["a", "b"] * 150, images=[at % 30 for at in range(300)])
    folds = make_folds(table, split=split)
    for row_sha in set(folds.row_shas):
        assert len(set(folds.fold[folds.row_shas == row_sha])) == 1
    assert np.sum(folds.fold == 0) == 60


def test_several_groups_tie_rows_one_to_the_next():
    """Rows that share a patient or a site, directly or by a third row, are one group; an empty cell ties nobody."""
    table = table_of(list("010101"), patient=list("aabbcd"), site=["x", "y", "y", "z", "", ""])
    joined, name = joined_groups(table, ["patient", "site"])
    assert list(joined.columns[name]) == ["r0", "r0", "r0", "r0", "r4", "r5"]


@pytest.mark.parametrize("split", ["group", "stratified-group"])
def test_groups_linked_by_a_copy_share_a_fold(split):
    """A group is never divided, and two groups that share an image count as one."""
    images = list(range(200))
    images[1] = images[0]  # rows 0 and 1 belong to writers 0 and 1
    images[82] = images[1]  # and row 82 to writer 2
    labels = ["ab"[at // 40 % 2] for at in range(200)]
    table = table_of(labels, images=images, writer=[str(at % 40) for at in range(200)])
    folds = make_folds(table, split=split, group="writer")
    assert leaks(folds) == []
    assert folds.count == 5
    assert len(set(folds.fold[np.isin(folds.groups, ["0", "1", "2"])])) == 1


def test_holdout_is_one_part_of_k():
    """One k-th of each class validates; every other row is trained on by the one model."""
    folds = make_folds(table_of(["a"] * 40 + ["b"] * 20), k=4, split="holdout")
    assert folds.count == 1
    assert np.sum((folds.fold == 0) & (folds.labels == "a")) == 10
    assert np.sum((folds.fold == 0) & (folds.labels == "b")) == 5
    assert np.sum(folds.fold == -1) == 45


def test_folds_of_others_are_taken_as_they_are():
    """A fold column is copied; a hole in its numbers or a word is refused."""
    given = ["1", "0", "-1", "2", "0", "1"]
    table = table_of(list("ababab"), made=given, hole=["0", "2"] * 3, word=["0", "x"] * 3)
    folds = make_folds(table, split="column", fold_column="made")
    assert folds.fold.tolist() == [int(cell) for cell in given]
    with pytest.raises(UserError, match="no row in fold 1"):
        make_folds(table, split="column", fold_column="hole")
    with pytest.raises(UserError, match="column word, row 2: fold 'x' is not a whole number"):
        make_folds(table, split="column", fold_column="word")
    with pytest.raises(UserError, match="no column 'absent' for --fold-column; its other columns: made, hole, word"):
        make_folds(table, split="column", fold_column="absent")


def test_a_class_with_too_few_images_is_named():
    """Fewer than k distinct images of a class is an error with its name and count; copies do not help."""
    labels = ["a"] * 20 + ["b"] * 20 + ["rare one"] * 8
    table = table_of(labels, images=[*range(40), *[40, 41, 42, 43] * 2])
    with pytest.raises(UserError, match=r"1 classes have fewer than 5 distinct images: rare one \(4\)"):
        make_folds(table)
    folds = make_folds(table, rare="train")
    assert set(folds.fold[folds.labels == "rare one"]) == {-1}
    assert np.bincount(folds.fold[:40]).tolist() == [8] * 5
    assert folds.output_names == ["a", "b", "rare one"]


def test_a_rare_class_takes_its_group_out_of_validation():
    """Rows pinned to training never leave a sibling of theirs in a validation fold."""
    table = table_of(["a", "b"] * 40 + ["rare"], writer=[str(at % 20) for at in range(80)] + ["7"])
    folds = make_folds(table, split="group", group="writer", rare="train")
    assert set(folds.fold[folds.groups == "7"]) == {-1}
    assert leaks(folds) == []


def test_a_class_in_a_single_group_is_refused():
    """A class that lies wholly in one fold cannot be learnt by that fold's model."""
    table = table_of(["a", "b"] * 20 + ["c"] * 6, writer=[str(at % 10) for at in range(40)] + ["solo"] * 6)
    with pytest.raises(UserError, match="every row of class c fell into fold"):
        make_folds(table, split="group", group="writer")


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (table_of(["a"] * 9), {}, "every label is a"),
        (
            table_of(["a", "b"] * 9, writer=["x", "y", "z"] * 6),
            {"split": "group", "group": "writer"},
            "3 groups cannot",
        ),
        (table_of(["a", "b"] * 9, writer=["x", ""] * 9), {"split": "group", "group": "writer"}, "row 2, column writer"),
    ],
    ids=["one class", "fewer groups than folds", "empty group"],
)
def test_what_cannot_be_dealt_is_refused(table, options, message):
    """No fold is left empty and no row without a group, in silence."""
    with pytest.raises(UserError, match=message):
        make_folds(table, **options)


# ---- the file


def test_a_folds_file_comes_back_as_it_was(tmp_path):
    """Awkward ids and labels survive; the fingerprint ignores the order of rows and nothing else."""
    ids = text_array(["001", "1e5", "a,b", 'say "x"', "ü", "NA"])
    labels = text_array(["None", "01", "1", "True", "línea\nzwei", "null"])
    folds = Folds(ids, labels, np.array([0, 1, -1, 1, 0, 0]), text_array(f"{at:016x}" for at in range(6)), ids)
    write_folds(tmp_path / "folds.csv", folds)
    back = read_folds(tmp_path / "folds.csv")
    for name in ("ids", "labels", "fold", "row_shas", "groups"):
        assert getattr(back, name).tolist() == getattr(folds, name).tolist()
    order = [5, 3, 1, 0, 2, 4]
    shuffled = Folds(ids[order], labels[order], folds.fold[order], folds.row_shas[order], ids[order])
    assert back.fingerprint == folds.fingerprint == shuffled.fingerprint
    moved = Folds(ids, labels, np.array([0, 1, -1, 1, 0, 1]), folds.row_shas, ids)
    assert moved.fingerprint != folds.fingerprint


SHA = "0123456789abcdef"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,label,fold\n1,a,0\n", "has no column row_sha"),
        (f"id,label,fold,row_sha\n1,a,0,{SHA}\n1,a,1,{SHA}\n", "row 2: id 1 is also in row 1"),
        (f"id,label,fold,row_sha\n1,a,0,{SHA}\n2,a,2,{SHA}\n", "no row in fold 1"),
        (f"id,label,fold,row_sha\n1,a,-1,{SHA}\n", "no row in fold 0"),
        (f"id,label,fold,row_sha\n1,a,0,{SHA}\n2,a,1.0,{SHA}\n", "row 2: fold '1.0'"),
        (f"id,label,fold,row_sha\n1,a,0,{SHA}\n2,a,-2,{SHA}\n", "row 2: fold '-2'"),
        (f"id,label,fold,row_sha\n1,a,0,{SHA}\n2,,1,{SHA}\n", "row 2: the label is empty"),
        ("id,label,fold,row_sha\n1,a,0,1.23e+15\n", "row 1, column row_sha"),
        (f"id,label,fold,row_sha\n1,a,0,{SHA},x\n", "row 1: has 5 fields, but the header has 4"),
    ],
)
def test_a_damaged_folds_file_is_refused(tmp_path, content, message):
    """What is not a folds file any more names its row."""
    (tmp_path / "folds.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_folds(tmp_path / "folds.csv")


def test_folds_join_their_table_by_id():
    """A shuffled folds file gives the table's order; a changed label, image or row is an error that names it."""
    table = table_of(["a", "b"] * 20)
    folds = make_folds(table)
    order = np.random.default_rng(0).permutation(40)
    shuffled = Folds(folds.ids[order], folds.labels[order], folds.fold[order], folds.row_shas[order], folds.groups)
    joined = match_folds(shuffled, table)
    assert joined.ids.tolist() == table.ids.tolist()
    assert joined.fold.tolist() == folds.fold.tolist()
    relabelled = table_of(["a", "b"] * 19 + ["b", "b"])
    with pytest.raises(UserError, match=r"1 row \(r38\) with another label"):
        match_folds(folds, relabelled)
    with pytest.raises(UserError, match=r"1 row \(r39\) with another image"):
        match_folds(folds, table_of(["a", "b"] * 20, images=[*range(39), 77]))
    with pytest.raises(UserError, match=r"2 rows \(r38, r39\) only in the folds file"):
        match_folds(folds, table_of(["a", "b"] * 19))
    with pytest.raises(UserError, match=r"6 rows \(r40, r41, r42, r43, r44, ...\) only in the table"):
        match_folds(folds, table_of(["a", "b"] * 23))


# ---- the script


def test_a_folds_file_is_written_once(tmp_path, folds_script):
    """The same command twice says so; another one is refused and changes nothing unless forced."""
    first = folds_script(tmp_path)
    assert first.code == 0
    assert "1,437 rows, 10 classes, 0 exact copies" in first.out
    content = (tmp_path / "folds.csv").read_bytes()
    again = folds_script(tmp_path)
    assert again.code == 0
    assert "already exists" in again.out
    refused = folds_script(tmp_path, "--seed", "1")
    assert refused.code == 2
    assert refused.err.startswith("error: folds.csv: holds different folds")
    assert len(refused.err.splitlines()) == 1
    assert (tmp_path / "folds.csv").read_bytes() == content
    assert folds_script(tmp_path, "--seed", "1", "--force").code == 0
    assert (tmp_path / "folds.csv").read_bytes() != content
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".csv"] == ["folds.csv"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--k", "1"], "--k: 1 is too few"),
        (["--split", "group"], "--group: is needed by --split group"),
        (["--group", "writer", "--split", "kfold"], "--group: has no effect with --split kfold"),
        (["--fold-column", "x"], "--fold-column: goes with --split column"),
        (["--split", "column", "--fold-column", "x", "--k", "4"], "--k: has no effect with --split column"),
        (["--check", "--seed", "1"], "--seed: has no effect with --check"),
        (["--check"], "folds.csv: does not exist; make it with: python folds.py"),
        (["--kk", "4"], "command line: "),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, flags, message, folds_script):
    """No flag is ignored in silence, and nothing is written."""
    result = folds_script(tmp_path, *flags)
    assert result.code == 2
    assert result.err.startswith(f"error: {message}")
    assert not any(tmp_path.iterdir())


def test_the_script_starts_without_torch(tmp_path):
    """Folds are made and checked without the seconds that importing torch takes."""
    code = "import sys, folds; folds.main([]); assert 'torch' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"], cwd=tmp_path, check=True
    )


@pytest.fixture
def audited(tmp_path, folds_script):
    """A clean train table of 40 two-by-two images with writers, its folds.csv, and a test table."""
    rng = np.random.default_rng(0)
    rows = [["ab"[at % 2], f"w{at % 10}", *map(str, rng.integers(0, 256, 4))] for at in range(40)]
    train = "label,writer,pixel0,pixel1,pixel2,pixel3\n" + "".join(",".join(row) + "\n" for row in rows)
    (tmp_path / "train.csv").write_text(train, encoding="utf-8")
    (tmp_path / "test.csv").write_text("pixel0,pixel1,pixel2,pixel3\n0,0,0,1\n", encoding="utf-8")
    flags = ["--split", "stratified-group", "--group", "writer"]
    assert folds_script(tmp_path, "--data", "train.csv", *flags).code == 0
    return tmp_path


@pytest.fixture
def check(folds_script):
    """The exit code of folds.py --check in a folder, and its audit."""

    def checked(folder: Path) -> tuple[int, str]:
        result = folds_script(folder, "--check", "--data", "train.csv", "--test", "test.csv")
        assert result.err == ""
        audit, _, trust = result.out.partition("trust  ")
        # Where a finding stands above, the last lines must not sound as if there were none.
        state = "no alarm" if result.code == 0 else "no alarm beside what is said above"
        assert trust.split(";")[0].strip() == state
        return result.code, audit

    return checked


def edit(path: Path, row: int, change) -> None:
    """Apply ``change`` to the cells of data row ``row`` (from 1)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[row] = ",".join(change(lines[row].split(",")))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_check_passes_clean_and_shuffled_files(audited, check):
    """A clean file exits 0 and says what was checked; the order of its rows is nobody's business."""
    assert check(audited) == (
        0,
        "folds.csv fits train.csv:\n"
        "- 40 rows have the ids, labels and images the folds were made from, in any order\n"
        "- no exact copies lie in different folds or have different labels\n"
        "- none of 10 groups lies in two folds\n"
        "- each of 2 classes has rows to train on in each of 5 folds\n"
        "- none of 1 test rows is an exact copy of one of them\n",
    )
    header, *rows = (audited / "folds.csv").read_text(encoding="utf-8").splitlines()
    (audited / "folds.csv").write_text("\n".join([header, *rows[::-1]]) + "\n", encoding="utf-8")
    assert check(audited)[0] == 0


def test_check_calls_nothing_clean_where_an_alarm_stands(audited, monkeypatch, capsys):
    """The file fits its table, whose order tells the label: what is said of the file says no more than that."""
    header, *rows = (audited / "train.csv").read_text(encoding="utf-8").splitlines()
    (audited / "train.csv").write_text("\n".join([header, *sorted(rows)]) + "\n", encoding="utf-8")
    monkeypatch.chdir(audited)
    script.main(["--data", "train.csv", "--force"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        script.main(["--check"])
    said = capsys.readouterr().out
    assert "folds.csv fits train.csv:" in said and "trust        an alarm; looked at" in said
    assert "clean" not in said


def test_check_knows_the_files_that_the_folds_were_made_of(audited, monkeypatch, capsys):
    """The command that folds.py names, `python folds.py --check`, audits those files, as does a notebook's call."""
    monkeypatch.chdir(audited)
    script.main(["--check"])
    typed = capsys.readouterr().out
    assert "competition.json says: --data train.csv\n" in typed
    assert "folds.csv fits train.csv:\n- 40 rows have" in typed
    assert script.run(script.Options(work=str(audited), check=True)).score["findings"] == 0


def test_check_finds_edited_and_foreign_rows(audited, check):
    """A label or pixel changed after dealing, and rows added or removed, are findings with their ids."""
    edit(audited / "train.csv", 3, lambda cells: ["b" if cells[0] == "a" else "a", *cells[1:]])
    edit(audited / "train.csv", 8, lambda cells: [*cells[:-1], str((int(cells[-1]) + 1) % 256)])
    with (audited / "train.csv").open("a", encoding="utf-8") as file:
        file.write("a,w1,9,9,9,9\n")
    lines = (audited / "folds.csv").read_text(encoding="utf-8").splitlines()
    (audited / "folds.csv").write_text("\n".join([*lines, "99,a,0,0123456789abcdef,w77"]) + "\n", encoding="utf-8")
    code, text = check(audited)
    assert code == 1
    assert text.splitlines() == [
        "folds.csv: 1 row (99) only in the folds file",
        "folds.csv: 1 row (41) only in the table",
        "folds.csv: 1 row (3) with another label",
        "folds.csv: 1 row (8) with another image",
    ]


def test_check_says_when_the_table_was_shuffled(audited, check):
    """Row numbers are ids, so a reordered pixel table is another one; the audit says what happened."""
    header, *rows = (audited / "train.csv").read_text(encoding="utf-8").splitlines()
    (audited / "train.csv").write_text("\n".join([header, *rows[::-1]]) + "\n", encoding="utf-8")
    code, text = check(audited)
    assert code == 1
    assert "the same images in another order" in text


def test_check_finds_leaks(audited, check):
    """Copies across folds, one image with two labels, a divided group and rows of the test set are named."""
    folds = read_folds(audited / "folds.csv")
    other = next(at for at in range(40) if folds.fold[at] != folds.fold[0] and folds.labels[at] != folds.labels[0])
    pixels = (audited / "train.csv").read_text(encoding="utf-8").splitlines()[1].split(",")[2:]
    edit(audited / "train.csv", other + 1, lambda cells: [*cells[:2], *pixels])
    edit(audited / "folds.csv", other + 1, lambda cells: [*cells[:3], folds.row_shas[0], cells[4]])
    (audited / "test.csv").write_text(f"pixel0,pixel1,pixel2,pixel3\n{','.join(pixels)}\n", encoding="utf-8")
    code, text = check(audited)
    assert code == 1
    assert text.splitlines() == [
        f"folds.csv: 2 rows (1, {other + 1}) are exact copies that lie in different folds",
        f"folds.csv: 2 rows (1, {other + 1}) are exact copies with different labels",
        f"folds.csv: 2 rows (1, {other + 1}) are also in the test set",
    ]


def test_check_finds_a_divided_group_and_an_unlearnable_class(audited, check):
    """One row moved to another fold divides its group; a class gathered in one fold has no training rows."""
    clean = (audited / "folds.csv").read_text(encoding="utf-8")
    edit(audited / "folds.csv", 1, lambda cells: [*cells[:2], str((int(cells[2]) + 1) % 5), *cells[3:]])
    code, text = check(audited)
    assert code == 1
    assert text == "folds.csv: 4 rows (1, 11, 21, 31) belong to groups that lie in different folds\n"
    (audited / "folds.csv").write_text(clean, encoding="utf-8")
    for row in range(1, 41):
        edit(audited / "folds.csv", row, lambda c: [*c[:2], "0" if c[1] == "a" else c[2], *c[3:]])
    code, text = check(audited)
    assert code == 1
    assert "20 rows (1, 3, 5, 7, 9, ...) are all there is of class a, in one fold: none left to train on" in text


def test_leaks_are_mentioned_when_folds_are_made(audited, folds_script):
    """Making folds warns about rows that are also in the test set, and counts exact copies."""
    lines = (audited / "train.csv").read_text(encoding="utf-8").splitlines()
    (audited / "train.csv").write_text("\n".join([*lines, lines[1]]) + "\n", encoding="utf-8")
    header, row = (",".join(line.split(",")[2:]) for line in lines[:2])
    (audited / "test.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")
    result = folds_script(audited, "--data", "train.csv", "--test", "test.csv", "--force")
    assert result.code == 0
    assert "1 exact copies" in result.out
    assert result.err == "warning: 2 rows (1, 41) are also in the test set\n"


# ---- real data


@pytest.mark.skipif(not (DATA / "digits").exists(), reason="needs shared/data/digits, the Kaggle tables")
def test_real_digits():
    """42,000 digits fall into five folds of 8,400, each class evenly, without a leak."""
    folds = make_folds(read_train_table(str(DATA / "digits" / "train.csv.gz")))
    assert np.bincount(folds.fold).tolist() == [8400] * 5
    for name in folds.output_names:
        sizes = np.bincount(folds.fold[folds.labels == name])
        assert sizes.max() - sizes.min() <= 1
    assert leaks(folds) == []


@pytest.mark.skipif(not (DATA / "photos").exists(), reason="needs shared/data/photos")
def test_real_photos(tmp_path, folds_script):
    """A part of the photo table is dealt and audited against a part of its test table, by the script."""
    images = str(DATA / "photos")
    flags = ["--images", images, "--test-images", images]
    for flag, name, rows in (("--data", "train", 200), ("--test", "test", 20)):
        lines = (DATA / "photos" / f"{name}.csv").read_text(encoding="utf-8").splitlines()[: rows + 1]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
        flags += [flag, str(tmp_path / f"{name}.csv")]
    dealt = folds_script(tmp_path, "--k", "3", *flags)
    assert dealt.code == 0, dealt.err
    assert "200 rows, 30 classes" in dealt.out
    checked = folds_script(tmp_path, "--check", *flags)
    assert "none of 20 test rows" in checked.out, checked.err
