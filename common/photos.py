"""Photos as files: those that a table's rows name, and those that lie in a folder."""

import os
from pathlib import Path, PureWindowsPath

from common.errors import UserError, warn
from common.text import row_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def image_file(path: Path, index: int, name: str) -> Path:
    """The file a row names, with or without its suffix; never one outside the csv's folder."""
    root, where = path.parent, row_of(path, index)
    named = PureWindowsPath(name)  # knows both kinds of slashes and drives
    if named.anchor or ".." in named.parts:
        raise UserError(where, f"{name!r} leads out of {root}", "name images by their path below the csv's folder")
    for folder in (root, root / "images"):
        for suffix in ("", *IMAGE_SUFFIXES):
            file = folder / f"{name}{suffix}"
            if os.path.isfile(file):  # unlike Path.is_file, says no to a name that is too long
                _refuse_outside(root, file, where)
                return file
    raise UserError(where, f"there is no image {name!r} below {root}", "put it there or remove the row")


def class_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The images in the folders of ``root``, as :func:`images_in` gives them, and the folder of each: its label."""
    stray = [file.name for file in root.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    if stray:
        raise UserError(str(root), f"holds {len(stray)} images beside its class folders ({stray[0]})", "move them")
    images = images_in(root)
    labels = [name.partition("/")[0] for name in images]
    folders = {folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")}
    if empty := sorted(folders - set(labels)):
        raise UserError(str(root / empty[0]), "is a class folder without an image", "fill it or remove it")
    return images, labels


def images_in(root: Path) -> dict[str, Path]:
    """Every image below ``root`` by its path relative to it, in the order of these paths as text."""
    visible = (name for name in root.rglob("*") if not any(part[0] == "." for part in name.relative_to(root).parts))
    files = [file for file in visible if file.is_file()]
    images = {file.relative_to(root).as_posix(): file for file in files if file.suffix.lower() in IMAGE_SUFFIXES}
    if not images:
        raise UserError(str(root), "holds no image", f"name a folder of {', '.join(IMAGE_SUFFIXES)} files")
    if len(images) < len(files):
        other = next(file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES)
        warn(f"{root}: {len(files) - len(images)} files are not images and are left out ({other.name})")
    for name, file in images.items():
        _refuse_outside(root, file, f"{root}, {name}")
    return dict(sorted(images.items()))


def _refuse_outside(root: Path, file: Path, where: str) -> None:
    if not file.resolve().is_relative_to(root.resolve()):
        raise UserError(where, f"{file.name} is a link that leads out of {root}", "copy the image into the folder")
