"""Photos as files: those that a table's rows name, and those that lie in a folder."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from common.base.errors import UserError, warn
from common.base.strict_csv import read_cells, row_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def image_file(path: Path, index: int, name: str) -> Path:
    """The file a row of the csv ``path`` names, with or without its suffix; never one outside the csv's folder.

    It lies in the csv's folder, in images/ below it, or in a folder called like the csv: train.csv's in train/ or
    train_images/.
    """
    root, where = path.parent, row_of(path, index)
    named = PureWindowsPath(name)  # knows both kinds of slashes and drives
    if named.anchor or ".." in named.parts:
        raise UserError(where, f"{name!r} points outside of {root}", "name images by their path below the csv's folder")
    called = path.name.partition(".")[0]
    for folder in ("", "images", called, f"{called}_images"):
        exact = os.path.join(root, folder, name)
        candidates = [exact] if os.path.isfile(exact) else [exact + suffix for suffix in IMAGE_SUFFIXES]
        # unlike Path.is_file, os.path.isfile says no to a name that is too long
        found = [Path(candidate) for candidate in candidates if os.path.isfile(candidate)]
        if len(found) > 1:
            what = f"{name!r} may mean {' or '.join(file.name for file in found)}"
            raise UserError(where, what, "add the suffix, or remove the others")
        if found:
            _refuse_outside(root, found[0], where)
            return found[0]
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
        raise UserError(str(root / empty[0]), "is a class folder without images", "fill it or remove it")
    return images, labels


def images_in(root: Path) -> dict[str, Path]:
    """Every image below ``root`` by its path relative to it, in the order of these paths as text."""
    visible = (name for name in root.rglob("*") if not any(part[0] == "." for part in name.relative_to(root).parts))
    files = [file for file in visible if file.is_file()]
    images = {file.relative_to(root).as_posix(): file for file in files if file.suffix.lower() in IMAGE_SUFFIXES}
    if not images:
        raise UserError(str(root), "contains no images", f"name a folder of {', '.join(IMAGE_SUFFIXES)} files")
    if len(images) < len(files):
        other = next(file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES)
        warn(f"{root}: {len(files) - len(images)} files are not images and are left out ({other.name})")
    for name, file in images.items():
        _refuse_outside(root, file, f"{root}, {name}")
    return dict(sorted(images.items()))


def named_as_in(sample: Path, images: dict[str, Path]) -> dict[str, Path]:
    """The images of a folder by the names that a sample submission's first column has for them, in its order.

    A name may lack the suffix, or have more or fewer folders in front.

    Raises:
        UserError: an image without a row, a row without an image, or one that may be several.
    """
    cells = read_cells(sample)
    column, ids = next(iter(cells.items()))
    if set(ids) == images.keys():
        return images
    known = {}
    for name, file in images.items():
        known.setdefault(PurePosixPath(name).name, []).append(file)
        known.setdefault(PurePosixPath(name).stem, []).append(file)
    named = {}
    for index, name in enumerate(ids):
        found = known.get(PurePosixPath(name).name, [])
        if len(found) != 1:
            what = f"{name!r} matches {len(found)} of the folder's images" if found else f"there is no image {name!r}"
            raise UserError(f"{row_of(sample, index)}, column {column}", what, "name each test image once")
        named[name] = found[0]
    if len(set(named.values())) < len(images):
        unnamed = next(file.name for file in images.values() if file not in set(named.values()))
        what = f"names {len(set(named.values()))} of the folder's {len(images)} images, but not {unnamed}"
        raise UserError(str(sample), what, "use the sample submission that belongs to the folder")
    return named


def _refuse_outside(root: Path, file: Path, where: str) -> None:
    if not file.resolve().is_relative_to(root.resolve()):
        raise UserError(where, f"{file.name} is a link that points outside of {root}", "copy the image into the folder")
