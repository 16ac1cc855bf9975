"""The image files in a folder: which there are, which one a name means, and which folder is a class."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from common.base.errors import UserError, warn
from common.base.strict_csv import read_columns, row_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
# Folders that unzipping, a file server or a disk leaves among the others, in lower case.
LITTER = ("__macosx", "_macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "@recently-snapshot")
LITTER += ("system volume information", "found.000", "network trash folder", "temporary items", "lost+found")
LITTER += ("__pycache__", "resource.frk")

# A folder or table called by nothing but these words says nothing of what it holds.
IMAGE_WORDS = frozenset(
    ("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "pics", "jpg", "jpeg", "jpegs", "png")
)
FILLER = IMAGE_WORDS.union(
    ("data", "dataset", "set", "label", "labels", "df", "table", "csv", "meta", "metadata", "list", "ids"),
    ("corrected", "clean", "fixed", "new", "folds"),
)
_PARTS = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst", "unseen"),
    "valid": ("valid", "val", "validation", "dev", "eval", "holdout"),
}
# What else folders are called that hold the rows of a task, pieces of all rows, or the images' masks: no classes.
_ROLES = ("query", "queries", "gallery", "probe", "support", "labeled", "labelled", "unlabeled", "unlabelled")
_ROLES += ("public", "private")
_PIECES = ("fold", "split", "part", "batch", "chunk", "shard", "subset", "partition", "set", *IMAGE_WORDS)
_MASKS = ("mask", "masks", "segmentation", "segmentations", "annotation", "annotations", "groundtruth", "gt", "labels")
_SHORT_SUFFIX = {".jpeg": ".jpg", ".tiff": ".tif"}  # of one format, written longer
PART_OF = {word: part for part, words in _PARTS.items() for word in words}


def words_of(name: str) -> frozenset[str]:
    """What a folder's or table's name says, but for filling words: trainLabels, train_images and training: train."""
    found = re.findall("[a-z]+|[0-9]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())
    return frozenset(PART_OF.get(word, word) for word in found) - FILLER


# ---- one name, one file


class NamedImages:
    """Image files by the names that a table has for them.

    A name may lack the suffix or have it in another case, and have more or fewer folders in front: of two paths that
    are compared, one must end with the other, and the files that share most folders with the name are meant.
    """

    def __init__(self, files: Iterable[tuple[str, Path]]):
        """``files``: the path below the folder that was searched, and the file."""
        self._by_name: dict[str, list[tuple[int, Path]]] = {}
        for name, file in files:
            path = PurePosixPath(name)
            for key in {_folded(path.name), _folded(path.stem if _suffix(name) else path.name)}:
                self._by_name.setdefault(key, []).append((len(path.parts), file))

    def find(self, name: str) -> list[Path]:
        """Every file that ``name`` may mean: none, one, or several where it cannot be told."""
        return first_found(self._find, name)

    def _find(self, name: str) -> list[Path]:
        parts = PurePosixPath(name).parts
        if not parts:
            return []
        shared = []
        for depth, file in self._by_name.get(_folded(parts[-1]), ()):
            same = 1 + _same_at_the_end(parts[:-1], file.parts[:-1])
            if same >= min(len(parts), depth):
                shared.append((same, file.name == parts[-1], file))
        best = max((each[:2] for each in shared), default=None)
        return list(dict.fromkeys(file for *closeness, file in shared if tuple(closeness) == best))


def first_found(find: Callable[[str], list[Path]], name: str) -> list[Path]:
    """What ``find`` finds of a name as it is written, or else with a Windows path's slashes turned."""
    return find(name) or (find(name.replace("\\", "/")) if "\\" in name else [])


def _folded(name: str) -> str:
    """One text for the names that mean the same: the suffix's usual spelling, accents in one Unicode form."""
    name = unicodedata.normalize("NFC", name)
    suffix = _suffix(name)
    return name[: len(name) - len(suffix)] + _SHORT_SUFFIX.get(suffix, suffix)


def _suffix(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in IMAGE_SUFFIXES else ""


def _same_at_the_end(some: Sequence[str], others: Sequence[str]) -> int:
    count = 0
    for one, other in zip(reversed(some), reversed(others), strict=False):
        if unicodedata.normalize("NFC", one) != unicodedata.normalize("NFC", other):
            break
        count += 1
    return count


def named_as_in(sample: Path, images: dict[str, Path]) -> dict[str, Path]:
    """The images of a folder by the names that a sample submission's first column has for them, in its order.

    Raises:
        UserError: an image without a row, a row without an image, or one that may be several.
    """
    cells = read_columns(sample)
    column, ids = next(iter(cells.items()))
    if set(ids) == images.keys():
        return images
    known, named = NamedImages(images.items()), {}
    for index, name in enumerate(ids):
        found = known.find(name)
        if len(found) != 1:
            what = f"there is no image {name!r}"
            if found:
                what = f"{name!r} matches {len(found)} of the folder's images ({found[0]} and {found[1]})"
            raise UserError(f"{row_of(sample, index)}, column {column}", what, "name each test image once")
        named[name] = found[0]
    if len(set(named.values())) < len(images):
        unnamed = next(file.name for file in images.values() if file not in set(named.values()))
        what = f"names {len(set(named.values()))} of the folder's {len(images)} images, but not {unnamed}"
        raise UserError(str(sample), what, "use the sample submission that belongs to the folder")
    return named


# ---- folders


def images_in(root: Path, trusted: bool = False) -> dict[str, Path]:
    """Every image below ``root`` by its path relative to it, in the order of these paths as text.

    Links must stay below ``root`` unless it is ``trusted``. What a disk or a zip file left behind does not count.

    Raises:
        UserError: there is no image; a folder that cannot be read, a link that leads outside or to nothing.
    """
    images, others = {}, []
    for name, file in files_below(root, trusted):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            images[name] = file
        elif not file.suffix and _was_a_link(file):
            what = "is a file with the path of a folder, as links are unpacked where there are none"
            raise UserError(str(file), what, "put the folder itself, or a link to it, in its place")
        else:
            others.append(file.name)
    if not images:
        raise UserError(str(root), "contains no images", f"name a folder of {', '.join(IMAGE_SUFFIXES)} files")
    if others:
        files = "1 file is no image and is" if len(others) == 1 else f"{len(others)} files are not images and are"
        warn(f"{root}: {files} left out ({min(others)})")
    return dict(sorted(images.items()))


def _was_a_link(file: Path) -> bool:
    """Whether a file holds nothing but the path of a folder, as git and zip write a link where the system has none."""
    target = file.read_bytes()[:1000] if file.stat().st_size < 1000 else b""
    return b"\0" not in target and bool(target.strip()) and os.path.isdir(os.fsencode(file.parent) + b"/" + target)


def files_below(root: Path, trusted: bool = False, above: tuple[Path, ...] = ()) -> Iterator[tuple[str, Path]]:
    """The visible files below ``root`` with their paths relative to it; linked folders are followed.

    ``above`` are the folders that led here: a link back to one of them would never end.
    """
    above = (*above, root)
    for entry in entries_of(root):
        file = root / entry.name
        if entry.name.startswith("."):
            continue
        is_image = file.suffix.lower() in IMAGE_SUFFIXES
        if entry.is_symlink() and not os.path.exists(file):
            if is_image or not file.suffix:
                raise UserError(str(file), "is a link to what cannot be found", "restore that or remove the link")
            warn(f"{file}: is left out: a link to what cannot be found")
            continue
        if entry.is_symlink() and not trusted:
            remedy = f"if it is meant, name {above[0]} with folds.py --images, or --test-images, as well"
            refuse_outside(above[0], file, f"{root}, {entry.name}", remedy=remedy)
        if entry.is_dir():
            if entry.name.lower() in LITTER:
                warn(f"{file}: is left out: no folder of images, but what a program left there")
            elif entry.is_symlink() and any(file.samefile(folder) for folder in above):
                raise UserError(str(file), "is a link to a folder that it lies in", "remove the link")
            else:
                for name, inner in files_below(file, trusted, above):
                    yield f"{entry.name}/{name}", inner
        elif entry.is_file():
            yield entry.name, file
        elif is_image:
            raise UserError(str(file), "is neither a file nor a folder", "remove it")


def entries_of(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder, by name; UserError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise UserError(str(folder), what, "check its permissions or name another folder") from error


def refuse_outside(root: Path, file: Path, where: str, flag: str = "", remedy: str = "") -> None:
    """Raise UserError where ``file`` is a link to what does not lie below ``root``; ``flag`` names another folder."""
    real = Path(os.path.realpath(file))
    if not real.is_relative_to(os.path.realpath(root)):
        what = f"{file.name} is a link that points outside of {root}"
        raise UserError(where, what, remedy or f"name the folder that it points into: {flag} {real.parent}")


def class_folders(root: Path, trusted: bool = False) -> tuple[dict[str, Path], list[str]]:
    """The images in the folders of ``root``, as :func:`images_in` gives them, and the folder of each: its label."""
    images = images_in(root, trusted)
    if stray := [name for name in images if "/" not in name]:
        remedy = "move them, or say what the label is in a file's path with --label-from-name"
        raise UserError(str(root), f"holds {len(stray)} images beside its class folders ({stray[0]})", remedy)
    refuse_parts(root, images, "train")
    labels = [name.partition("/")[0] for name in images]
    folders = {entry.name for entry in entries_of(root) if entry.is_dir() and not entry.name.startswith(".")}
    if empty := sorted(name for name in folders - set(labels) if name.lower() not in LITTER):
        raise UserError(str(root / empty[0]), "is a class folder without images", "fill it or remove it")
    _refuse_an_outer_level(root, images)
    return images, labels


def parts_of(root: Path) -> dict[str, Path]:
    """The folders of ``root`` that are called like a part of a data set: train, valid or test."""
    called = {entry.name: words_of(entry.name) for entry in entries_of(root) if entry.is_dir()}
    return {min(words): root / name for name, words in called.items() if len(words) == 1 and words <= set(_PARTS)}


def refuse_parts(root: Path, images: Mapping[str, Path], wanted: str) -> None:
    """Raise UserError where folders of ``root`` are parts of a data set; of these ``wanted`` (train) is meant."""
    folders = sorted({name.partition("/")[0] for name in images if "/" in name})
    parts = [name for name in folders if len(words := words_of(name)) == 1 and words <= set(_PARTS)]
    known = {*_PARTS, *(_ROLES if wanted == "train" else ())}
    named = {name: words_of(name) & known for name in folders}
    if all(len(of_one) == 1 for of_one in named.values()) and len(set(named.values())) > 1:
        parts = folders  # seg_train and seg_test: each is called after a part, and not all after the same
    if wanted == "train" and len(parts) < 2:
        parts = _no_classes(folders)
    if len(parts) > 1:
        proposed = next((name for name in parts if wanted in words_of(name)), parts[0])
        what = f"its folders {', '.join(parts)} are parts of a data set, not classes"
        remedy = f"name one of them, such as {root / proposed}"
        remedy += ", or say what the label is with --label-from-name" if wanted == "train" else ""
        if wanted == "train" and any("valid" in words_of(name) for name in parts):
            remedy += ", or validate on the rows of one of them with --split folders"
        raise UserError(str(root), what, remedy)


def _no_classes(folders: Sequence[str]) -> list[str]:
    """The folders that are called after something else than a class: query and gallery, fold_0 and fold_1, or masks."""
    names = [name.lower() for name in folders]
    pieces = [re.fullmatch("([a-z]+?)s?[ _.-]*[0-9]+", name) for name in names]
    is_cut = all(match and match[1] in _PIECES for match in pieces)
    of_images = any(name in IMAGE_WORDS or name.endswith("images") for name in names)
    if is_cut or (of_images and any(name in _MASKS for name in names)):
        return list(folders)
    return [name for name in folders if len(words := words_of(name)) == 1 and words <= {*PART_OF.values(), *_ROLES}]


def _refuse_an_outer_level(root: Path, images: Mapping[str, Path]) -> None:
    """Raise UserError where all folders of ``root`` hold folders of the same names: these are the classes."""
    inner = {}
    for name in images:
        outer, *rest = name.split("/")
        inner.setdefault(outer, set()).add(rest[0] if len(rest) > 1 else "")
    shared = set.intersection(*inner.values())
    if any("" in names for names in inner.values()) or len(shared) < 2:
        return
    what = f"its folders {', '.join(sorted(inner)[:5])} hold the same folders ({', '.join(sorted(shared)[:5])})"
    if len(inner) == 1:
        what = f"its only folder, {min(inner)}, holds folders ({', '.join(sorted(shared)[:5])})"
    remedy = f"name one of them, such as {root / min(inner)}, or say what the label is: --label-from-name '^([^/]+)/'"
    raise UserError(str(root), what, remedy)
