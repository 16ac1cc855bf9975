"""Images that are several grey files, one a channel, such as x_red.png, x_green.png, x_blue.png and x_yellow.png."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.base.errors import UserError
from common.base.strict_csv import file_bytes

MOST_CHANNELS = 16
_MARK = b"several files, one image\n"


@dataclass(frozen=True)
class Stack(os.PathLike):
    """The files of one image, in the order of its channels; in messages and as a path it is the first."""

    files: tuple[Path, ...]

    def __fspath__(self) -> str:
        return str(self.files[0])

    def __str__(self) -> str:
        return str(self.files[0])

    @property
    def name(self) -> str:
        return self.files[0].name

    @property
    def parent(self) -> Path:
        return self.files[0].parent


def content_of(image: Path | Stack, error_of: type[UserError] = UserError) -> bytes:
    """An image file's content; of a stack all files' with their lengths, as :func:`contents_in` reads them."""
    if isinstance(image, Path):
        return file_bytes(image, error_of=error_of)
    contents = [file_bytes(file, error_of=error_of) for file in image.files]
    return _MARK + b"".join(part for content in contents for part in (len(content).to_bytes(8), content))


def contents_in(content: bytes) -> Sequence[bytes]:
    """The files' contents in that of a stack; none where it is a single file's."""
    if not content.startswith(_MARK):
        return ()
    at, found = len(_MARK), []
    while at < len(content):
        end = at + 8 + int.from_bytes(content[at : at + 8])
        found.append(content[at + 8 : end])
        at = end
    return found
