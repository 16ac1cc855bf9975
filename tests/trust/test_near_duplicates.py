"""Edited copies of a picture are found, no stranger is called one, and what is alike stays in one fold."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps
from scipy.ndimage import gaussian_filter

import folds
from common.base.errors import UserError
from common.base.strict_csv import text_array
from common.data.dealing import make_folds
from common.data.photo_check import check_photos
from common.data.table import Table
from common.trust.judge import judge
from common.trust.near_duplicates import NEAR_DUPLICATES, find_near_duplicates, grouped_by
from common.trust.picture_pairs import aligned_pairs, same_drawings


def textures(n: int, seed: int = 0) -> list[Image.Image]:
    """Pictures of clouds of several sizes: no two alike."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        layers = [gaussian_filter(random.normal(size=(150, 180, 3)), (s, s, 0)) * s**1.7 for s in (2, 5, 12, 30)]
        values = np.sum(layers, axis=0)
        found.append(Image.fromarray(np.uint8(np.clip(128 + 90 * values / np.abs(values).max(), 0, 255))))
    return found


EDITS = {
    "JPEG": lambda image: Image.open(io.BytesIO(encoded(image, 30))),
    "half": lambda image: image.resize((90, 75)),
    "mirrored": ImageOps.mirror,
    "crop to 92 %": lambda image: image.crop((5, 9, 171, 147)),
    "crop to 85 %": lambda image: image.crop((5, 9, 158, 137)),
    "lighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "grey": lambda image: image.convert("L"),
    "rotated": lambda image: image.rotate(4, Image.Resampling.BILINEAR),
    "captioned": lambda image: captioned(image),
    "captioned in large letters": lambda image: captioned(image, "black", size=17),
    "captioned in its middle": lambda image: captioned(image, "grey", 90, 12),
    "framed and captioned": lambda image: captioned(ImageOps.expand(image, 8, "white")),
    "captioned and framed": lambda image: ImageOps.expand(captioned(image), 8, "white"),
}


def captioned(image: Image.Image, fill: str = "white", top: int = 0, size: int = 10) -> Image.Image:
    """With a bar over its lower eighth, or from ``top`` on, and writing in it, as pictures are passed on."""
    image, top, height = image.copy(), top or image.height * 7 // 8, image.height // 8
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, top, image.width, top + height), fill=fill)
    ink = "white" if fill == "black" else "black"
    draw.text((6, top + height / 2), "when folds agree", ink, ImageFont.load_default(size), anchor="lm")
    return image


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def photo_table(folder, images, labels, prefix="p", tails=()) -> Table:
    """A checked table of photo files; ``tails`` are bytes after the end of each."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{prefix}{at}.jpg" for at in range(len(images))]
    for at, (file, image) in enumerate(zip(files, images, strict=True)):
        file.write_bytes(encoded(image) + b"x" * (tails[at] if len(tails) else 0))
    ids = text_array(file.name for file in files)
    return check_photos([Table("train.csv", ids, text_array(labels), files, "image", "label", {}, "photos")], 1)[0]


def test_every_edit_is_found_and_no_stranger():
    """A copy of each edit is paired with its picture, and with nothing else."""
    originals = textures(len(EDITS) + 3)
    copies = [edit(image) for edit, image in zip(EDITS.values(), originals, strict=False)]
    small = [np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BILINEAR)) for image in originals + copies]
    found = aligned_pairs(np.stack(small))
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == {(at, len(originals) + at) for at in range(len(copies))}


def test_drawings_are_pairs_only_where_they_are_equal_but_for_noise():
    """Other pictures of the same thing are no copies; the search by blocks finds what comparing all pairs finds."""
    random = np.random.default_rng(0)
    shape = gaussian_filter(random.normal(size=(20, 20)), 3)
    drawn = np.stack([shape + 0.3 * gaussian_filter(random.normal(size=(20, 20)), 2) for _ in range(300)])
    drawn = np.uint8(255 * (drawn - drawn.min()) / np.ptp(drawn))
    noisy = np.clip(drawn[7] + random.normal(0, 1.5, (20, 20)), 0, 255).astype(np.uint8)
    both = np.concatenate([drawn, noisy[None]])
    found = same_drawings(both)
    assert (found.first.tolist(), found.second.tolist()) == ([7], [300])
    every = np.triu(np.corrcoef(both.reshape(301, -1)) >= 0.9, 1)
    assert len(same_drawings(both, 0.9)) == every.sum() > 1


def test_groups_of_near_duplicates_stay_together(tmp_path):
    """Frames of a scene, divided by ordinary folds, are an alarm; as a group each lies in one fold."""
    scenes = textures(12, 1)
    frames = [scene.crop((d, d, 160 + d, 130 + d)) for scene in scenes for d in (2, 8, 14)]
    table = photo_table(tmp_path / "a", frames, ["a", "b"] * 18)
    found = find_near_duplicates(table, None)
    said = judge(table, None, make_folds(table, 3), found)
    assert any(finding.kind == "near-duplicates" and finding.alarm for finding in said.findings)
    grouped, name = grouped_by(table, [NEAR_DUPLICATES], found)
    fold = make_folds(grouped, 3, "stratified-group", name).fold.reshape(12, 3)
    assert (fold == fold[:, :1]).all() and len(set(fold[:, 0])) == 3
    assert not judge(grouped, None, make_folds(grouped, 3, "stratified-group", name), found).alarms


def test_near_duplicates_are_not_called_a_column(tmp_path, monkeypatch, capsys):
    """Neither where they are what groups were made of, nor beside a column that does not exist."""
    frames = [scene.crop((d, d, 160 + d, 130 + d)) for scene in textures(6, 1) for d in (2, 8, 14)]
    photo_table(tmp_path, frames, ["a", "b"] * 9)
    rows = "".join(f"p{at}.jpg,{'ab'[at % 2]},c{at // 6}\n" for at in range(18))
    (tmp_path / "train.csv").write_text(f"image,label,camera\n{rows}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    flags = ["--data", "train.csv", "--label-column", "label", "--k", "3", "--group", NEAR_DUPLICATES]
    folds.main(flags)
    assert "\ngroups       near-duplicate pictures: 6 (--group)\n" in capsys.readouterr().out
    folds.main([*flags, "camera", "--force"])
    assert "\ngroups       column camera and near-duplicate pictures: 3 (--group)\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="no column 'lens' for --group; its other columns: camera;"):
        folds.main([*flags, "lens", "--force"])
