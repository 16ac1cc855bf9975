"""The one writer: a reader finds the old file or the new one, whole, whatever is killed in between."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from common.base.errors import ENVIRONMENT, OwnError, UserError, warn_of_unhashed
from common.base.locks import try_lock
from common.base.system import sync_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")

MOVES_OPEN_FILES = os.name == "posix"  # Windows neither renames nor removes one
SHA256 = "sha256"  # the key of a JSON file that states the rest's
KAGGLE_OUTPUT = "/kaggle/working"
REMEDY = "restore it or run the step that writes it"


def write_file(path: Path, content: bytes | str | Callable[[BinaryIO], None]) -> None:
    """Replace ``path`` by ``content``, or by what ``content`` writes into the open file, in one step.

    The temporary file lies beside the target (a rename across devices is a copy), both are synced
    to disk, and the mode is what the umask says. What killed writers left in the folder is removed.

    Raises:
        UserError: the disk is full or the folder is not writable (exit 3); the old file stands.
    """
    if isinstance(content, str):
        try:
            content = content.encode()
        except UnicodeEncodeError as error:  # half a character, from a file's name that is no UTF-8
            text = error.object[error.start : error.end].encode(errors="backslashreplace").decode()
            raise UserError(str(path), f"cannot hold {text!r} as text", "rename that id or label") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_strays(path.parent)
        with _temporary_beside(path) as file:
            temporary = Path(file.name)
            try:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
                if not MOVES_OPEN_FILES:
                    file.close()
                os.replace(temporary, path)
            finally:
                with suppress(OSError):  # what a full disk did not take is written once more
                    file.close()
                temporary.unlink(missing_ok=True)
        sync_folder(path.parent)  # the rename itself must survive a power cut
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what += "" if callable(content) else f": {size_text(len(content))} needed"
            what += f", {size_text(shutil.disk_usage(path.parent).free)} available"
        raise OwnError(str(path), what, "free up space or choose another folder", ENVIRONMENT) from error


def write_figure(path: Path, figure: "Figure") -> None:
    """Write a figure as png: the same figure always gives the same bytes."""
    write_file(path, lambda file: figure.savefig(file, format="png", dpi=110, metadata={"Software": None}))


def remove_strays(folder: Path) -> None:
    """Remove the temporary files of writers that were killed; a living one has locked its own."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                with path.open("rb") as file:
                    is_stray = try_lock(file)
                    if is_stray and MOVES_OPEN_FILES:  # while it is ours: its writer may be about to lock it
                        path.unlink()
                if is_stray:
                    path.unlink(missing_ok=True)  # Windows refuses where the writer has it open


def _temporary_beside(path: Path) -> BinaryIO:
    """A new file in the folder of ``path``, locked while it is open."""
    while True:
        file = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp").open("xb")
        with suppress(OSError):  # without locks nobody can take it for a stray either
            if not try_lock(file) or os.fstat(file.fileno()).st_nlink == 0:
                file.close()
                continue  # another writer took it for a stray before it was locked
        return file


def check_folder(folder: Path, needed: int = 0, remedy: str = "choose another folder") -> None:
    """Refuse, before hours of work, a folder that nothing could be written into; makes nothing.

    ``needed`` is a guess of the bytes to come; ``remedy`` may name the flag that chooses another folder.

    Raises:
        UserError: it, or what will hold it, is a file, is not writable, or has too little space (exit 3).
    """
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not there.is_dir():
        raise UserError(str(there), "is a file, not a folder", remedy, ENVIRONMENT)
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(str(there), "is not writable", remedy, ENVIRONMENT)
    free = shutil.disk_usage(there).free
    if free < needed:
        what = f"about {size_text(needed)} needed, {size_text(free)} available"
        raise UserError(str(there), what, "free up space or choose another folder", ENVIRONMENT)


def make_room(folder: Path, left: float) -> None:
    """Remove the files of a cache that were not used for longest, until those that stay are at most ``left`` bytes."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        left -= path.stat().st_size
        if left < 0:
            path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where the user keeps what can be made again; the machine's temporary folder where that is no such place.

    Kaggle publishes all that lies below /kaggle/working; a container's user may have no home, or may not write there.
    """
    home = os.path.expanduser("~")
    for place in (os.environ.get("XDG_CACHE_HOME", ""), os.path.join(home, ".cache")):
        there = next((above for above in [Path(place), *Path(place).parents] if above.is_dir()), Path(place))
        if os.path.isabs(place) and not Path(place).is_relative_to(KAGGLE_OUTPUT) and os.access(there, os.W_OK):
            return Path(place) / "fivefold"
    return Path(tempfile.gettempdir()) / "fivefold"


def size_text(count: int) -> str:
    """A number of bytes in MB, as in ``1.3 MB``."""
    return f"{count / 1e6:,.1f} MB"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON with sorted keys and the sha256 of all that it says."""
    value = json.loads(json.dumps(value))  # as a reader will find it: keys are text, tuples lists
    value[SHA256] = sha256_of_json(value)
    write_file(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path, **needed: type | tuple[type, ...]) -> dict[str, Any]:
    """Read a JSON file; ``needed`` are keys that must be there with the type of their value.

    A file without a sha256, written by hand or by an older version, is taken as it is with a warning.

    Raises:
        UserError: missing, damaged, edited, or no object with what is needed.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise UserError(str(path), what, REMEDY) from error
    if not isinstance(value, dict):
        raise UserError(str(path), "does not hold `name: value` pairs", REMEDY)
    if SHA256 not in value:
        warn_of_unhashed(path.name)
    elif value.pop(SHA256) != sha256_of_json(value):
        raise UserError(str(path), "is damaged or was edited: it does not match its sha256", REMEDY)
    for name, kind in needed.items():
        if not isinstance(value.get(name), kind):
            raise UserError(str(path), f"has no {name} of the right type", REMEDY)
    return value


def sha256_of_json(value: Mapping[str, Any], without: str = SHA256) -> str:
    """The sha256 of what a JSON object says, but for the key that states it."""
    said = {name: part for name, part in value.items() if name != without}
    return sha256(json.dumps(said, sort_keys=True).encode())


def sha256(content: bytes) -> str:
    """Hexadecimal sha256 of ``content``."""
    return hashlib.sha256(content).hexdigest()
