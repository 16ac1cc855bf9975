"""Write dist/kaggle/: a folder to upload as a data set, and three notebooks that use it.

    make kaggle

fivefold/ holds the scripts, common/, recipes/ and, in wheels/, what Kaggle's image (image.txt) lacks of the packages
that pyproject.toml names. pip brings the wheels; where they are used no network is needed.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from notebooks.cells import NOTEBOOKS, notebook

ROOT = Path(__file__).resolve().parents[1]
IMAGE = Path(__file__).with_name("image.txt")
IMAGE_PYTHON = "3.12"


def main() -> None:
    home = ROOT / "dist" / "kaggle"
    shutil.rmtree(home, ignore_errors=True)
    copy_scripts(home / "fivefold")
    wheels = download_wheels(home / "fivefold" / "wheels")
    for name in NOTEBOOKS:
        text = json.dumps(notebook(name), indent=1, ensure_ascii=False)
        (home / f"{name}.ipynb").write_text(f"{text}\n", encoding="utf-8")
    print(f"{home}: upload fivefold/ as a data set ({', '.join(wheels)}), and import {len(NOTEBOOKS)} notebooks")


def copy_scripts(folder: Path) -> None:
    """What the notebooks run, as it lies in the repository."""
    for part in ("common", "recipes"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), ROOT / "LICENSE"):
        shutil.copy(path, folder)


def download_wheels(folder: Path) -> list[str]:
    """Bring what the image lacks, with what that needs beyond the image, from the registry that pip is told of."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as all_of_them:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--only-binary", ":all:", "--python-version", IMAGE_PYTHON, "--constraint", str(IMAGE)]
        subprocess.run([*command, "--dest", all_of_them, *lacking()], check=True)
        for wheel in Path(all_of_them).glob("*.whl"):
            if bare(wheel.name.split("-")[0]) not in in_image():
                shutil.copy(wheel, folder)
    return sorted(path.name for path in folder.iterdir())


def lacking() -> list[str]:
    """What pyproject.toml requires, such as tyro>=1.0, and the image does not hold."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return [each for each in required if bare(each) not in in_image()]


def in_image() -> set[str]:
    """The packages of the image."""
    lines = IMAGE.read_text(encoding="utf-8").splitlines()
    return {bare(line) for line in lines if not line.startswith("#")}


def bare(requirement: str) -> str:
    """The package that a requirement or a wheel names, as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


if __name__ == "__main__":
    main()
