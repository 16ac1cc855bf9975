"""The worked runs of docs/examples.md, line by line in the order of the page, on a few rows and with small models."""

import re
import shlex
import shutil

import pytest
from conftest import ROOT, write_photo, write_table

ROWS = 24
# What makes a line cheap: words for words, and flags at its end, where they are the last word.
SMALLER = {"resnet26d": "test_resnet", "tf_efficientnet_lite0": "test_efficientnet", "--pretrained": ""}
ADDED = {
    "folds.py": "--k 2",
    "train_fold.py": "--epochs 1 --threads 1 --jobs 1 --channels-last no --warmup-epochs 0.5",
    "infer.py": "--threads 1",
}
OF_DIGITS = " --model-args widths=(4,8,16)"
OF_PHOTOS = " --img-size 32 --batch-size 8"
OF_RECIPE = " --model test_efficientnet --augment-args crop=0.4 --freeze stages=1"  # trains at 160 px, six epochs


def lines(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def cheap(line: str) -> list[str]:
    """The line's script and arguments, made smaller."""
    _, script, *words = shlex.split(line)
    words = [word for word in (SMALLER.get(word, word) for word in words) if word]
    more = ADDED.get(script, "")
    if script == "train_fold.py":
        more += OF_PHOTOS + OF_RECIPE * ("--config" in words) if "--work" in words else OF_DIGITS
    return [script, *words, *more.split()]


@pytest.fixture
def folder(tmp_path):
    """The files that the page's second and third run are told of, beside the recipes."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    photos, jpeg = tmp_path / "photos", tmp_path / "jpeg"
    for number in range(ROWS):
        write_photo(photos / "images" / f"{number}.png", number, bright=number % 2 == 1)
        write_photo(jpeg / "train" / f"ISIC_{number}.png", number, bright=number % 2 == 1)
        write_photo(jpeg / "test" / f"ISIC_{number}.png", number + 100, bright=number % 2 == 1)
    rows = [[f"images/{number}.png", ("cup", "lamp")[number % 2]] for number in range(ROWS)]
    write_table(photos / "train.csv", ["image", "label"], *rows[:16])
    write_table(photos / "test.csv", ["image"], *(row[:1] for row in rows[16:]))
    write_table(photos / "sample_submission.csv", ["image", "label"], *([row[0], "cup"] for row in rows[16:]))
    table = [[f"ISIC_{number}", f"IP_{number // 3}", number % 2] for number in range(ROWS)]
    write_table(tmp_path / "train.csv", ["image_name", "patient_id", "target"], *table)
    write_table(tmp_path / "test.csv", ["image_name", "patient_id"], *(row[:2] for row in table))
    write_table(tmp_path / "sample_submission.csv", ["image_name", "target"], *([row[0], 0] for row in table))
    return tmp_path


def test_each_worked_run_ends_as_the_page_says(folder, torch_forks):
    """Every line exits 0; the files to hand in have a row for each test row, the two of the competition differ."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "examples.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    for line in (line for block in blocks for line in lines(block)):
        answer = torch_forks.run(cheap(line), folder)
        assert answer.code == 0, f"{line}\n{answer.err}"
    for page in ("", "objects", "melanoma"):
        assert (folder / page / "report.html").exists()
    handed_in = {
        "objects/runs/photos_lite0": 8,
        "melanoma/runs/ensemble": ROWS,
        "melanoma/runs/test_efficientnet": ROWS,
        "runs/ensemble": 360,
    }
    texts = {name: (folder / name / "submission.csv").read_text().splitlines() for name in handed_in}
    assert {name: len(text) - 1 for name, text in texts.items()} == handed_in
    assert texts["melanoma/runs/ensemble"] != texts["melanoma/runs/test_efficientnet"]
    assert "hand" in (folder / "runs/ensemble/weights.json").read_text()
