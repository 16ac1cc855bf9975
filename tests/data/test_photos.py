"""Photos: every odd kind of image has its rule, is decoded once, and is prepared as its model expects."""

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image, TiffImagePlugin

import infer
import train_fold
from common.base.errors import UserError
from common.base.files import cache_folder, read_json
from common.data.augment import create_augmentation
from common.data.cache import Cache
from common.data.dealing import make_folds
from common.data.decoding import MAX_PIXELS, Decoder, Preparation, read_photo, share_kept
from common.data.folds import changed_rows, match_folds, read_folds, write_folds
from common.data.inputs import Photos, Reading, open_inputs
from common.data.photo_check import check_photos
from common.data.reading import read_test_table, read_train_table
from common.data.table import Table
from common.model.networks import photo_preparation, photo_size
from common.runs.config import Config
from common.runs.layout import MODEL_FILE, OOF_FILE, TEST_FILE
from common.runs.predictions import read_predictions
from common.runs.tensors import load_tensors
from common.train.build import preparation_of

CPU = torch.device("cpu")
WHOLE = Preparation(channels=3, side=16, stored=16, crop_mode="squash")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def colour_of(content: bytes) -> list[int]:
    """The middle pixel of an image file's bytes, as a model of colour images gets it."""
    return WHOLE(content)[:, 8, 8].tolist()


# ---- decoding


def test_each_kind_of_image_becomes_the_colour_it_shows():
    """Transparency is laid on white, CMYK and palettes are converted, 1-bit is black or white."""
    red, size = (255, 0, 0), (20, 20)
    palette = Image.new("P", size, 1)
    palette.putpalette([0, 0, 0, *red])
    clear_palette = encoded(palette, "PNG", transparency=1)
    assert colour_of(encoded(Image.new("RGB", size, red), "PNG")) == list(red)
    assert colour_of(encoded(palette, "PNG")) == list(red)
    assert colour_of(clear_palette) == [255, 255, 255]
    assert colour_of(encoded(Image.new("RGBA", size, (*red, 0)), "PNG")) == [255, 255, 255]
    assert colour_of(encoded(Image.new("RGBA", size, (*red, 128)), "PNG")) == pytest.approx([255, 127, 127], abs=1)
    assert colour_of(encoded(Image.new("LA", size, (0, 0)), "PNG")) == [255, 255, 255]
    assert colour_of(encoded(Image.new("1", size, 1), "PNG")) == [255, 255, 255]
    assert colour_of(encoded(Image.new("L", size, 90), "JPEG")) == pytest.approx([90, 90, 90], abs=1)
    cmyk = colour_of(encoded(Image.new("CMYK", size, (0, 255, 255, 0)), "JPEG", quality=95))
    assert cmyk == pytest.approx(list(red), abs=3)


def test_sixteen_bits_are_scaled_and_never_clipped():
    """A ramp over all of 16 bits, or over 0..1, is the same ramp over 8; what lies beyond is refused."""
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for content in (
        encoded(Image.fromarray(ramp), "PNG"),
        encoded(Image.fromarray(ramp.astype(np.int32)), "TIFF"),
        encoded(Image.fromarray((ramp / 65535).astype(np.float32)), "TIFF"),
    ):
        assert np.asarray(read_photo(content)).ravel().tolist() == list(range(256))
    for wrong in (ramp.astype(np.int32) * 2, ramp.astype(np.int32) - 1, (ramp / 65534).astype(np.float32)):
        with pytest.raises(ValueError, match="has values from .*, outside 0 to"):
            read_photo(encoded(Image.fromarray(wrong), "TIFF"))


def test_a_photo_stands_upright():
    """The orientation that a camera wrote down is applied: 6 means turned by a quarter."""
    photo = Image.new("RGB", (20, 10), "blue")
    photo.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[TiffImagePlugin.IMAGEWIDTH + 18] = 6  # tag 0x0112
    upright = read_photo(encoded(photo, "JPEG", exif=exif, quality=95, subsampling=0))
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2))[0] > 200 and upright.getpixel((5, 17))[2] > 200


def test_a_bomb_is_refused_from_its_header():
    """120 million pixels in 100 kB are an error before they are decoded; as many as allowed are not."""
    side = int(MAX_PIXELS**0.5)
    assert read_photo(encoded(Image.new("1", (side, side)), "PNG")).size == (side, side)
    bomb = bytearray(encoded(Image.new("1", (side + 1, side + 1)), "PNG"))
    del bomb[100:]  # were it decoded, the complaint would be another
    with pytest.raises(ValueError, match="more than 50,000,000 pixels"):
        read_photo(bytes(bomb))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damaged_files_are_errors_of_one_kind(kind):
    """Cut or changed anywhere: an image or a ValueError, nothing else; and what was cut is never an image."""
    random = np.random.default_rng(0)
    whole = encoded(Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)), kind)
    for length in random.integers(0, int(0.9 * len(whole)), 20).tolist():
        with pytest.raises(ValueError, match="is empty|is not|cannot be decoded|has"):
            read_photo(whole[:length])
    for _ in range(40):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 8).tolist():
            damaged[at] = random.integers(0, 256)
        with contextlib.suppress(ValueError):
            read_photo(bytes(damaged))


def test_a_large_jpeg_is_decoded_small_and_looks_the_same():
    """The shortcut through 1/4 of the size changes no pixel by more than a few levels."""
    side = np.linspace(0, 6, 1200)
    waves = 127 + 60 * np.sin(side)[:, None] + 60 * np.cos(2 * side)
    content = encoded(Image.fromarray(waves.astype(np.uint8)).convert("RGB"), "JPEG", quality=95)
    assert max(read_photo(content, at_least=64).size) < 600
    small = Preparation(3, 64, 64)(content).astype(int)
    plain = np.asarray(Image.open(io.BytesIO(content)).resize((64, 64), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(small - plain).max() <= 3


# ---- preparing


def test_the_middle_of_what_is_kept_is_what_timm_would_show():
    """What the model sees differs from timm's own validation transform by rounding alone."""
    from timm.data import create_transform, resolve_data_config

    random = np.random.default_rng(0)
    blocks = Image.fromarray(random.integers(0, 256, (12, 20, 3), dtype=np.uint8)).resize((300, 180))
    config = resolve_data_config({"input_size": (3, 64, 64)}, model=torch.nn.Module())
    config |= {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic", "crop_pct": 0.875}
    theirs = create_transform(**config)(blocks).numpy() * 255
    prepare = photo_preparation("tf_efficientnet_lite0", {}, 3, 64)
    assert (prepare.stored, prepare.interpolation, prepare.crop_mode) == (73, "bicubic", "center")
    ours = prepare(encoded(blocks, "PNG"))[:, 4:68, 4:68].astype(float)
    assert np.abs(ours - theirs).mean() < 2


def test_crops_are_asked_for_by_timms_names():
    """crop_pct, crop_mode and interpolation take the place of the model's own; wrong ones are refused."""
    prepare = photo_preparation(
        "resnet18", {"crop_pct": 1.0, "crop_mode": "border", "interpolation": "bilinear"}, 3, 64
    )
    assert (prepare.stored, prepare.crop_mode, prepare.interpolation) == (64, "border", "bilinear")
    assert prepare(encoded(Image.new("RGB", (60, 20), "red"), "PNG"))[:, 0, 0].tolist() == [124, 116, 104]
    for wrong in ({"crop_pct": 1.2}, {"crop_mode": "left"}, {"interpolation": "cubic"}):
        with pytest.raises(UserError, match="--model-args"):
            photo_preparation("resnet18", wrong, 3, 64)
    for name in ("nonexistent", "resnet18.bad_tag"):
        with pytest.raises(UserError, match="timm has no"):
            photo_size(name)
    with pytest.raises(UserError, match="crop_pct is for photos"):
        preparation_of(Config(model_args=("crop_pct=0.9",), channels=1, img_size=8), read_train_table("digits"))


def test_training_crops_come_from_the_whole_photo():
    """Without a crop the model trains on the middle that it is scored on; with one also on what lies outside."""
    photo = torch.zeros(64, 1, 40, 40)
    photo[..., 8:32, 8:32] = 1
    uniform = lambda k: torch.rand(64, k, generator=torch.Generator().manual_seed(0))  # noqa: E731
    plain = create_augmentation("none", {}, grey=True)(photo, uniform, 24)
    turned = create_augmentation("none", {"flip": 0.5}, grey=True)(photo, uniform, 24)
    assert plain.shape == turned.shape == (64, 1, 24, 24)
    assert plain.min() == 1 and turned.min() > 0.49  # the middle alone, up to interpolation at its edge
    crops = create_augmentation("none", {"crop": 0.3}, grey=True)(photo, uniform, 24)
    assert crops.shape == (64, 1, 24, 24) and (crops.amin((1, 2, 3)) < 0.5).float().mean() > 0.5


# ---- the photos of a table


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    """train.csv with 36 photos of two colours in sizes of their own and folds.csv; a folder of 8 test photos."""
    folder = tmp_path_factory.mktemp("album")
    random = np.random.default_rng(0)
    for part, count in (("images", 36), ("test", 8)):
        (folder / part).mkdir()
        for number in range(count):
            height, width = random.integers(30, 60, 2)
            pixels = random.integers(0, 80, (height, width, 3))
            pixels[..., 2 * (number % 2)] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / part / f"{number}.jpg")
    labels = ["rot 红", "blau 蓝"]
    rows = [f"images/{number}.jpg,{labels[number % 2]}\n" for number in range(36)]
    (folder / "train.csv").write_text("image,label\n" + "".join(rows), encoding="utf-8")
    write_folds(folder / "folds.csv", make_folds(read_train_table(str(folder / "train.csv")), k=3))
    return folder


def table_of(album: Path) -> Table:
    return read_train_table(str(album / "train.csv"))


def test_a_broken_photo_is_found_before_any_training(album, tmp_path, forks):
    """The check of folds.py names the first file with its row, the others and their number."""
    folder = tmp_path / "album"
    shutil.copytree(album, folder)
    for number, content in ((3, b""), (4, b"<html></html>"), (7, (folder / "images" / "7.jpg").read_bytes()[:400])):
        (folder / "images" / f"{number}.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"train.csv, row 4: .*3.jpg is empty; 3 images .*row 5 \(4.jpg\), row 8 \(7"):
        check_photos([table_of(folder)], workers=2)
    with pytest.raises(UserError, match="3 images are broken"):
        open_inputs(table_of(folder), WHOLE, CPU, Reading(Cache(1)))
    done = forks.run(["folds.py", "--data", str(folder / "train.csv"), "--folds", "new.csv"], tmp_path)
    assert done.code == 2 and not (tmp_path / "new.csv").exists()
    assert done.err.count("\n") == 1 and "row 4: " in done.err


def test_a_photo_that_changed_is_an_error_when_it_is_decoded(album, tmp_path):
    """Training knows the hash of every photo and refuses another one under the same name."""
    folder = tmp_path / "album"
    shutil.copytree(album, folder)
    shutil.copy(folder / "images" / "2.jpg", folder / "images" / "5.jpg")
    folds = match_folds(read_folds(folder / "folds.csv"), table_of(folder))
    with pytest.raises(UserError, match="row 6: .*5.jpg is not the image that the folds were made from"):
        open_inputs(table_of(folder), WHOLE, CPU, Reading(Cache(1), folds.row_shas))
    assert "1 row (images/5.jpg) with another image" in changed_rows(folds, table_of(folder))


def test_an_animation_is_mentioned(tmp_path, capsys):
    """Of a GIF with two frames the first is used, and folds.py says so."""
    frames = [Image.new("L", (8, 8), shade) for shade in (255, 0)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        frames[0].save(tmp_path / name / "1.gif", save_all=True, append_images=frames[1:])
    table = read_train_table(str(tmp_path))
    check_photos([table], workers=1)
    assert "2 images are animations" in capsys.readouterr().err
    assert open_inputs(table, WHOLE, CPU, Reading(Cache(1))).values.min() == 255


def test_photos_are_decoded_once_and_shared(album, tmp_path):
    """The second to come finds the file and decodes nothing; both get the pixels that are decoded in memory."""
    said, table = [], table_of(album)
    cache = Cache(1, str(tmp_path / "decoded"))
    row_shas = table.row_shas()
    first = open_inputs(table, WHOLE, CPU, Reading(cache, row_shas, 2, said.append)).values
    for image in table.images:
        assert image.exists()
    decoder = Decoder(table, WHOLE, row_shas)
    from common.data.cache import keep

    again = keep(decoder, cache, said.append)
    assert decoder.decoded == 0
    assert torch.equal(first, torch.from_numpy(again)) and first.shape == (36, 3, 16, 16)
    assert torch.equal(first, open_inputs(table, WHOLE, CPU, Reading(Cache(1), row_shas)).values)
    assert "36 decoded in" in said[0] and "0.00 GB kept in" in said[0] and "decoded before" in said[1]
    rows = torch.tensor([5, 0, 35, 5])
    anew = next(Photos(Decoder(table, WHOLE, row_shas)).batches([rows], CPU))
    assert torch.equal(anew, first[rows])


def test_what_is_kept_belongs_to_its_content(album, tmp_path):
    """Other photos or another size take another file; a damaged one is made anew; the oldest makes room."""
    table, folder = table_of(album), tmp_path / "decoded"
    row_shas = table.row_shas()

    def kept(prepare: Preparation, gb: float = 1) -> set[str]:
        open_inputs(table, prepare, CPU, Reading(Cache(gb, str(folder)), row_shas))
        return {path.name for path in folder.glob("*.npy")}

    [name] = kept(WHOLE)
    original = (folder / name).read_bytes()
    (folder / name).write_bytes(original[:-1])
    assert kept(WHOLE) == {name} and (folder / name).read_bytes() == original
    (folder / name).write_bytes(original.replace(b"(36, 3,", b"(36, 1,"))
    assert kept(WHOLE) == {name} and (folder / name).read_bytes() == original
    both = kept(Preparation(1, 16, 16))
    assert len(both) == 2
    third = kept(Preparation(1, 12, 12), gb=40e-6)  # 5 kB beside 9 and 28 kB: the first has to go
    assert len(third) == 2 and name not in third
    assert np.load(folder / next(iter(third - both))).shape == (36, 1, 12, 12)


# ---- the chain


def train_photos(album: Path, runs_dir: Path, *arguments: str) -> Path:
    places = ["--data", str(album / "train.csv"), "--folds", str(album / "folds.csv"), "--runs-dir", str(runs_dir)]
    places += ["--cache-dir", str(runs_dir.parent / "cache")]
    settings = ["--model", "digit_cnn", "--img-size", "16", "--augment", "photos_light", "--model-args", "crop_pct=0.8"]
    train_fold.main([*places, *settings, *SMALL, "--jobs", "1", *arguments])
    return runs_dir / "digit_cnn"


def test_kept_and_decoded_anew_train_the_same_net(album, tmp_path, capsys):
    """--cache-gb decides where pixels come from, never what is learned: log and OOF agree to the bit."""
    outcomes = []
    for gb in ("4", "0"):
        run = train_photos(album, tmp_path / gb, "--fold", "0", "--cache-gb", gb)
        log = (run / "fold0" / "log.csv").read_text().splitlines()
        outcomes.append(
            ([line.split(",")[:4] for line in log], read_predictions(run / "fold0" / OOF_FILE).logits.tolist())
        )
    assert outcomes[0] == outcomes[1]
    said = capsys.readouterr().out
    assert "36 decoded in" in said and "photos: decoded again for each batch" in said


def test_epochs_and_folds_after_the_first_decode_nothing(album, tmp_path):
    """With the photos gone after the first fold, the second still trains, all its epochs."""
    folder = tmp_path / "album"
    shutil.copytree(album, folder)
    run = train_photos(folder, tmp_path / "runs", "--fold", "0")
    for number in range(36):
        (folder / "images" / f"{number}.jpg").write_bytes(b"gone")
    train_photos(folder, tmp_path / "runs", "--fold", "1")
    assert (run / "fold1" / OOF_FILE).exists()


@pytest.mark.parametrize("channels", ["0", "1"])
def test_a_photo_competition_from_folds_to_submission(album, tmp_path, capsys, channels):
    """Labels in any language; a test folder without a table takes the sample's columns, names and order."""
    run = train_photos(album, tmp_path / "runs", "--epochs", "8", "--lr", "1e-2", "--channels", channels)
    said = capsys.readouterr().out
    assert "photos resized once to 20 px" in said and "the model sees 16 px of them" in said
    assert ("grey)" if channels == "1" else "colour)") in said
    _, facts = load_tensors(run / "fold0" / MODEL_FILE)
    assert facts["preparation"]["stored"] == 20 and facts["preparation"]["crop_mode"] == "center"
    sample = tmp_path / "sample.csv"
    sample.write_text("id,predict\n" + "".join(f"pictures/{n},blau 蓝\n" for n in (3, 1, 0, 2, 7, 6, 5, 4)), "utf-8")
    places = ["--runs-dir", str(tmp_path / "runs"), "--test", str(album / "test"), "--threads", "1"]
    infer.main([*places, "--sample", str(sample)])
    lines = (run / "submission.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id,predict" and [line.split(",")[0] for line in lines[1:]][:2] == ["pictures/3", "pictures/1"]
    if channels == "0":
        assert lines[1:3] == ["pictures/3,blau 蓝", "pictures/1,blau 蓝"] and lines[3] == "pictures/0,rot 红"
        train = ["--data", str(album / "train.csv"), "--folds", str(album / "folds.csv")]
        infer.main([*places, *train, "--tta", "five_crop", "--cache-gb", "0"])
        assert len(read_predictions(run / TEST_FILE).ids) == 8
        assert json.loads((run / "inference.json").read_text())["tta"] == "five_crop"


def test_colour_weights_take_grey_images_and_grey_nets_colour_ones(album, tmp_path, capsys):
    """Both ways work, and the first lines say what was done to the weights and to the images."""
    weights = train_photos(album, tmp_path / "runs", "--fold", "0", "--epochs", "1") / "fold0" / MODEL_FILE
    start = ["--weights", str(weights), "--epochs", "1", "--fold", "0", "--freeze", "backbone=1"]
    train_photos(album, tmp_path / "grey", *start, "--channels", "1")
    said = capsys.readouterr().out
    assert "features.0.weight summed over its 3 colour channels" in said and "bicubic, grey)" in said
    digits = [
        *SMALL,
        "--runs-dir",
        str(tmp_path / "digits"),
        "--folds",
        str(tmp_path / "folds.csv"),
        "--img-size",
        "16",
    ]
    write_folds(tmp_path / "folds.csv", make_folds(read_train_table("digits"), k=3))
    train_fold.main([*digits, *start, "--channels", "3", "--limit", "40"])
    said = capsys.readouterr().out
    assert "8 px resized to 16 px, grey repeated as three channels" in said and "summed" not in said


def test_five_crops_need_something_around_the_middle(album, tmp_path):
    """Where the model sees all of a photo, its corners would be the photo itself: refused."""
    train_photos(album, tmp_path / "runs", "--model-args", "crop_pct=1.0", "--epochs", "1")
    places = ["--data", str(album / "train.csv"), "--folds", str(album / "folds.csv"), "--test", str(album / "test")]
    with pytest.raises(UserError, match="leave out the five crops"):
        infer.main([*places, "--runs-dir", str(tmp_path / "runs"), "--tta", "five_crop", "--threads", "1"])


def test_a_sample_names_every_image_of_the_folder(album, tmp_path):
    """A missing or foreign name is an error with its row; exact names are taken as they are."""
    sample = tmp_path / "sample.csv"
    for rows, message in (
        ("0,x\n9,x\n", r"row 2, column image: there is no image '9'"),
        ("0,x\n", "names 1 of the folder's 8 images"),
    ):
        sample.write_text("image,label\n" + rows, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            read_test_table(str(album / "test"), "", str(sample))
    assert read_test_table(str(album / "test"), "").ids[:2].tolist() == ["0.jpg", "1.jpg"]
    assert not (tmp_path / ".decoded").exists()


# ---- what photos get by themselves


def test_photos_get_photos_defaults(album, tmp_path, capsys):
    """Augmentation, the mirrored view, a word on digit_cnn and on the crop; what is typed stays."""
    places = ["--data", str(album / "train.csv"), "--folds", str(album / "folds.csv"), "--runs-dir", str(tmp_path)]
    small = [*SMALL, "--epochs", "1", "--img-size", "16", "--jobs", "1", "--cache-dir", str(tmp_path / "cache")]
    train_fold.main([*places, *small, "--run", "auto"])
    said = capsys.readouterr()
    assert "digit_cnn is a small net for digits, and these are photos" in said.err
    assert "of an average photo" in said.out and str(tmp_path / "cache") in said.out
    train_fold.main([*places, *small, "--run", "typed", "--augment", "none", "--fold", "0"])
    settings = [read_json(tmp_path / run / "fold0" / "config.json")["augment"] for run in ("auto", "typed")]
    assert settings == ["photos", "none"]
    infer.main([*places, "--runs", "auto", "--test", str(album / "test"), "--tta", "auto", "--threads", "1"])
    said = capsys.readouterr().out
    assert "mirrored" in said and "turned left" not in said
    assert not list(tmp_path.glob(".decoded"))


def test_the_cache_is_never_what_kaggle_publishes(tmp_path, monkeypatch):
    """The user's cache folder; the temporary one where that lies in Kaggle's output, or cannot be written into."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "fivefold"
    monkeypatch.setenv("XDG_CACHE_HOME", "/kaggle/working/cache")
    monkeypatch.setenv("HOME", "/kaggle/working")
    assert cache_folder() == Path(tempfile.gettempdir()) / "fivefold"


def test_the_share_that_a_crop_keeps(tmp_path):
    """A photo of 2 x 1 keeps half in its middle square, a quarter less by a smaller view; squashed, all."""
    (tmp_path / "0.png").parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 20)).save(tmp_path / "0.png")
    (tmp_path / "train.csv").write_text("image,label\n0.png,a\n", encoding="utf-8")
    table = read_train_table(str(tmp_path / "train.csv"))
    assert share_kept(table, Preparation(3, 16, 16)) == pytest.approx(0.5)
    assert share_kept(table, Preparation(3, 8, 16)) == pytest.approx(0.125)
    assert share_kept(table, Preparation(3, 16, 16, crop_mode="squash")) == 1
