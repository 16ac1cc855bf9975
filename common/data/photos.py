"""The photos that a table's rows name, wherever they lie."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PureWindowsPath

from common.base.errors import UserError
from common.base.strict_csv import row_of
from common.data.image_folders import (
    IMAGE_SUFFIXES,
    IMAGE_WORDS,
    NamedImages,
    entries_of,
    files_below,
    first_found,
    refuse_outside,
    words_of,
)
from common.data.stacks import Stack

MOST_LOOKED_AT = 200_000  # files, in search of the folder that an error proposes


class PhotoSearch:
    """Finds the files that the rows of a csv name.

    ``folders`` are those that the user named: all that lies below them counts, links included. Without any, three
    places are searched, the first that has a photo being its place:

    - the path that a cell spells out, below the csv's folder;
    - folders called like the csv (of train.csv: train, train_images, images/train), to any depth;
    - the csv's folder itself, and images/ in it, but not for some rows of a table whose others lie in the former.
    """

    def __init__(self, path: Path, folders: Sequence[str] = (), suffixes: Sequence[str] = (), flag: str = "--images"):
        """``flag`` is what a user names folders with, for messages."""
        self.path, self.root, self.suffixes, self.flag = path, path.parent, suffixes, flag
        self._listed: dict[str, NamedImages] = {}
        self._below: dict[Path, NamedImages] = {}
        self.named = [Path(folder) for folder in folders]
        if self.named:
            self.known = NamedImages(each for folder in self.named for each in _images_below(folder, trusted=True))
        else:
            self.called_alike = _folders_called_like(path)
            self.plain = [self.root, *(folder for folder in _folders_in(self.root) if _is_for_images(folder))]

    @property
    def searched(self) -> list[Path]:
        """Every folder that was looked into."""
        return self.named or [*self.called_alike, *self.plain]

    def find(self, name: str) -> list[Path]:
        """Every file that a cell may mean: none, one, or several where it cannot be told."""
        return self.known.find(name) if self.named else first_found(self._find, name)

    def _find(self, name: str) -> list[Path]:
        if "/" in name and (found := self._in(self.root, name)):
            return found
        return self._called_alike(name) or _merged(self._in(folder, name) for folder in self.plain)

    def has(self, name: str) -> bool:
        """Whether a cell may name an image."""
        return bool(self.find(_with_suffix(name, self.suffixes[0]) if self.suffixes else name))

    def files(self, names: Sequence[str], column: str) -> list[Path] | list[Stack]:
        """The file of each row, or, where they have ``suffixes``, its files.

        Raises:
            UserError: a cell that points outside of the csv's folder, or that means no image or several.
        """
        if not self.suffixes:
            return self._files(names, column)
        channels = [self._files([_with_suffix(name, suffix) for name in names], column) for suffix in self.suffixes]
        return [Stack(files) for files in zip(*channels, strict=True)]

    def _files(self, names: Sequence[str], column: str) -> list[Path]:
        files = []
        for index, name in enumerate(names):
            where = row_of(self.path, index)
            written = PureWindowsPath(name)  # knows both kinds of slashes and drives
            if not self.named and (".." in written.parts or written.anchor):
                remedy = f"name the images' folder with {self.flag}"
                raise UserError(where, f"{name!r} points outside of {self.root}", remedy)
            found = self.find(name)
            if not found:
                raise UserError(where, f"there is no image {name!r} in {self._places()}", self._proposal(name, column))
            if len(found) > 1:
                what = f"{name!r} may mean {' or '.join(map(self._shown, found[:3]))}"
                raise UserError(where, what, f"add the suffix or folder, or name the right folder with {self.flag}")
            if not self.named:
                refuse_outside(self.root, found[0], where, self.flag)
            files.append(found[0])
        if not self.named:
            self._refuse_a_mixture(names, files)
        return files

    def _in(self, folder: Path, name: str) -> list[Path]:
        """The files in one folder that a cell may mean, whose own folders are taken as they are written."""
        inside, name = os.path.split(os.path.join(folder, name))
        if inside not in self._listed:
            self._listed[inside] = NamedImages(_files_in(Path(inside)))
        return self._listed[inside].find(name)

    def _called_alike(self, name: str) -> list[Path]:
        if found := _merged(self._in(folder, name) for folder in self.called_alike):
            return found
        for folder in self.called_alike:
            if folder not in self._below:
                self._below[folder] = NamedImages(_images_below(folder))
        return _merged(self._below[folder].find(name) for folder in self.called_alike)

    def _refuse_a_mixture(self, names: Sequence[str], files: Sequence[Path]) -> None:
        """A photo that the folder called like the csv lacks is not taken from where others' photos may lie."""
        elsewhere = [
            index
            for index, (name, file) in enumerate(zip(names, files, strict=True))
            if not _has_folder(name) and not any(file.is_relative_to(folder) for folder in self.called_alike)
        ]
        if elsewhere and len(elsewhere) < sum(not _has_folder(name) for name in names):
            first, folders = elsewhere[0], ", ".join(map(self._shown, self.called_alike))
            shown = self._shown(files[first])
            what = f"{names[first]!r} is not in {folders}, where others are, but {shown} is there"
            raise UserError(row_of(self.path, first), what, f"restore it, or name all folders with {self.flag}")

    def _shown(self, path: Path) -> str:
        return str(path if self.named else path.relative_to(self.root))

    def _places(self) -> str:
        folders = [str(folder) for folder in self.searched]
        return " or ".join(filter(None, [", ".join(folders[:-1]), folders[-1]]))

    def _proposal(self, name: str, column: str) -> str:
        """What to do about a missing image: a folder below the csv's that has it, or a name that nearly is its own."""
        remedy = f"name the images' folder with {self.flag}, or another column than {column} with --image-column"
        if self.named:
            return remedy
        try:
            images = list(islice(_images_below(self.root), MOST_LOOKED_AT))
        except UserError:  # a folder that cannot be read, or a link, says nothing of this name
            return remedy
        known, files = NamedImages(images), [file for _, file in images]
        if (found := known.find(name)) and not _has_folder(name):
            folders = list(dict.fromkeys(file.parent for file in found))
            named = " or ".join(map(str, found[:3]))
            right = f" {folders[0]}" if len(folders) == 1 else ""
            return f"it may be {named}: name the right folder with {self.flag}{right}"
        if not self.suffixes:
            ends = sorted({file.stem[len(name) :] for file in files if file.stem.startswith(f"{name}_")})
            if len(ends) > 1:
                return f"several files are one image: name its channels with --image-suffixes {' '.join(ends)}"
        if known.find(name.strip()):
            return f"{name.strip()!r} is there: correct a copy of the table"
        if alike := [file for file in files if name and file.stem.lstrip("0") == _without_zeros(name)]:
            return f"{alike[0]} is there: correct a copy of the table"
        if not files:
            return f"{remedy}; --inputs features where its rows are no photos but numbers and texts"
        return remedy


def _with_suffix(name: str, suffix: str) -> str:
    """A name with what tells the files of an image apart, in front of its file extension if it has one."""
    stem, extension = os.path.splitext(name)
    return f"{stem}{suffix}{extension}" if extension.lower() in IMAGE_SUFFIXES else f"{name}{suffix}"


def _has_folder(name: str) -> bool:
    """Whether a cell says more than the file's own name."""
    return "/" in name or "\\" in name


def _without_zeros(name: str) -> str:
    """A number as what counted it wrote it before leading zeros were lost, or a .0 was added; else the name."""
    stem, extension = os.path.splitext(name)
    stem = name if extension.lower() not in (*IMAGE_SUFFIXES, ".0") else stem
    return stem.lstrip("0")


def _merged(found: Iterable[list[Path]]) -> list[Path]:
    return [file for files in found for file in files]


def _images_below(folder: Path, trusted: bool = False) -> Iterator[tuple[str, Path]]:
    return (each for each in files_below(folder, trusted) if each[1].suffix.lower() in IMAGE_SUFFIXES)


def _files_in(folder: Path) -> list[tuple[str, Path]]:
    """The files in one folder; none where there is no such folder."""
    if not os.path.isdir(folder):
        return []
    return [(entry.name, folder / entry.name) for entry in entries_of(folder) if entry.is_file()]


def _folders_in(root: Path) -> list[Path]:
    if not os.path.isdir(root):
        return []
    return [root / entry.name for entry in entries_of(root) if entry.is_dir() and not entry.name.startswith(".")]


def _is_for_images(folder: Path) -> bool:
    """Whether a folder is called images, photos, jpeg or the like."""
    return folder.name.lower() in IMAGE_WORDS


def _folders_called_like(path: Path) -> list[Path]:
    """Folders beside a csv, or in images/ beside it, whose names say the same as the csv's."""
    exact = path.name.partition(".")[0]
    called, names = words_of(exact), (exact, f"{exact}_images")
    beside = _folders_in(path.parent)
    inside = [folder for images in filter(_is_for_images, beside) for folder in _folders_in(images)]
    return [
        folder
        for folder in [*beside, *inside]
        if (called and words_of(folder.name) == called) or (folder.name in names and folder.parent == path.parent)
    ]
