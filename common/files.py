"""The one writer: a reader finds the old file or the new one, whole, whatever is killed in between."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import ENVIRONMENT, UserError
from common.system import sync_folder


def write_file(path: Path, content: bytes | str | Callable[[BinaryIO], None]) -> None:
    """Replace ``path`` by ``content``, or by what ``content`` writes into the open file, in one step.

    The temporary file lies beside the target (a rename across devices is a copy), both are synced
    to disk, and the mode is what the umask says.

    Raises:
        UserError: the disk is full or the folder is not writable (exit 3); the old file stands.
    """
    if isinstance(content, str):
        content = content.encode()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)  # the rename itself must survive a power cut
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise UserError(str(path), what, "free space or choose another folder", ENVIRONMENT) from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys."""
    write_file(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises :class:`UserError` where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"cannot be read ({error})", "restore it or run the step that writes it") from error


def sha256(content: bytes) -> str:
    """Hexadecimal sha256 of ``content``."""
    return hashlib.sha256(content).hexdigest()
