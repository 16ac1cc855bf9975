"""Small faults to inject into a folder, by name: faults.csv strings them together, `cut oof.npz 9 && remove a.json`."""

import gzip
import hashlib
import io
import json
import os
import shlex
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def inject(folder: Path, text: str) -> None:
    """Do in ``folder`` what ``text`` says; every injection names its file first, relative to the folder."""
    for part in filter(None, (part.strip() for part in text.split("&&"))):
        name, file, *arguments = shlex.split(part)
        INJECTIONS[name](folder / _plain(file), *map(_plain, arguments))


def _plain(text: str) -> str:
    """A text with its escapes resolved: \\n, \\x00, \\u2212."""
    if "\\" not in text:
        return text
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape")


# ---- any file


def write(path: Path, text: str = "", times: str = "1") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() * int(times))


def write_bytes(path: Path, text: str) -> None:
    path.write_bytes(text.encode("latin-1"))


def append(path: Path, text: str) -> None:
    path.write_bytes(path.read_bytes() + text.encode())


def prepend(path: Path, text: str) -> None:
    path.write_bytes(text.encode() + path.read_bytes())


def cut(path: Path, count: str) -> None:
    """Drop the last ``count`` bytes."""
    path.write_bytes(path.read_bytes()[: -int(count)])


def keep(path: Path, count: str) -> None:
    path.write_bytes(path.read_bytes()[: int(count)])


def flip(path: Path, position: str) -> None:
    """Flip one bit of the byte at ``position``; a share such as 0.5 counts from the file's length."""
    content = bytearray(path.read_bytes())
    content[int(float(position) * len(content)) if "." in position else int(position)] ^= 4
    path.write_bytes(content)


def noise(path: Path, count: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(0).bytes(int(count)))


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def copy(path: Path, target: str) -> None:
    target = Path(os.path.normpath(_root(path) / target))
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if path.is_dir() else shutil.copy)(path, target)


def swap(path: Path, other: str) -> None:
    other, between = _root(path) / other, path.with_name("between")
    path.rename(between)
    other.rename(path)
    between.rename(other)


def folder(path: Path) -> None:
    if path.is_file():
        path.unlink()
    path.mkdir(parents=True)


def link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _root(path: Path) -> Path:
    """The folder that injections count from: the one that holds photos and runs."""
    return next(parent for parent in path.parents if (parent / "photos").is_dir())


# ---- text


def replace(path: Path, old: str, new: str, count: str = "0") -> None:
    """Replace ``old``, the first ``count`` times (0: everywhere); it must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new, int(count) or -1), encoding="utf-8", newline="")


def line(path: Path, number: str, text: str) -> None:
    """Put ``text`` in place of a line, counted from 0, the header; {} stands for what was there."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[int(number)] = text.replace("{}", lines[int(number)])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def every_line(path: Path, text: str, first: str = "1") -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[int(first) :] = [text.replace("{}", old) for old in lines[int(first) :]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def drop_lines(path: Path, first: str, last: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    del lines[int(first) : int(last) + 1]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def repeat_line(path: Path, number: str) -> None:
    """Say a line again at the end."""
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines, lines[int(number)]]) + "\n", encoding="utf-8")


def cell(path: Path, number: str, column: str, text: str) -> None:
    """Write ``text`` into a column, counted from 0, of a line; the file has no quotes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    cells = lines[int(number)].split(",")
    cells[int(column)] = text
    lines[int(number)] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def column(path: Path, number: str, text: str) -> None:
    """Write ``text`` into a column of every row; {} stands for what was there, # for the row's number."""
    lines = [old.split(",") for old in path.read_text(encoding="utf-8").splitlines()]
    for row, cells in enumerate(lines[1:], start=1):
        cells[int(number)] = text.replace("{}", cells[int(number)]).replace("#", str(row))
    path.write_text("\n".join(map(",".join, lines)) + "\n", encoding="utf-8")


def drop_column(path: Path, number: str) -> None:
    lines = [old.split(",") for old in path.read_text(encoding="utf-8").splitlines()]
    path.write_text(
        "\n".join(",".join(cells[: int(number)] + cells[int(number) + 1 :]) for cells in lines) + "\n",
        encoding="utf-8",
    )


def swap_columns(path: Path, one: str, other: str) -> None:
    lines = [old.split(",") for old in path.read_text(encoding="utf-8").splitlines()]
    for cells in lines:
        cells[int(one)], cells[int(other)] = cells[int(other)], cells[int(one)]
    path.write_text("\n".join(map(",".join, lines)) + "\n", encoding="utf-8")


def shuffle_lines(path: Path) -> None:
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    order = np.random.default_rng(0).permutation(len(rows))
    path.write_text("\n".join([header, *(rows[at] for at in order)]) + "\n", encoding="utf-8")


def encode(path: Path, encoding: str) -> None:
    """Save the text in another encoding, with é in place of the first class name's c where it needs one."""
    path.write_bytes(path.read_text(encoding="utf-8").replace("class 0", "clé 0").encode(encoding))


def newlines(path: Path, ending: str) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", ending.encode()))


def zipped(path: Path, target: str) -> None:
    _root(path).joinpath(target).write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def wide(path: Path, columns: str) -> None:
    """A table of many columns and one row."""
    names = ",".join(f"column{number}" for number in range(int(columns)))
    path.write_text(f"label,{names}\nx{',1' * int(columns)}\n", encoding="utf-8")


def twin_names(path: Path, number: str) -> None:
    """Name one row like another one, but for the Unicode form of an accent, and give it a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for at, form in ((int(number), "NFC"), (int(number) + 1, "NFD")):
        name, _, rest = lines[at].partition(",")
        new = unicodedata.normalize(form, "é.png")
        shutil.copy(path.parent / "images" / name, path.parent / "images" / new)
        lines[at] = f"{new},{rest}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---- json, npz and safetensors


def _set(content: dict, key: str, value: str) -> None:
    *outer, last = key.split(".")
    for name in outer:
        content = content[name]
    if value == "absent":
        del content[last]
    else:
        content[last] = json.loads(value)


def set_json(path: Path, key: str, value: str) -> None:
    """Set a key (a.b for nested ones) to a JSON value; `absent` removes it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    _set(content, key, value)
    path.write_text(json.dumps(content), encoding="utf-8")


def arrays(path: Path, name: str, expression: str, resigned: str = "") -> None:
    """Change an array of an npz: ``expression`` is one of ARRAYS; `resigned` also makes its own sha256 right again."""
    with np.load(path, allow_pickle=False) as archive:
        content = {each: archive[each] for each in archive.files}
    changed = ARRAYS[expression](content[name]) if name in content else None
    content = {each: array for each, array in content.items() if each != name}
    if changed is not None:
        content[name] = changed
    if resigned:
        from common.runs.predictions import digest

        content["sha256"] = np.asarray(digest(content))
    file = io.BytesIO()
    np.savez(file, **content)
    path.write_bytes(file.getvalue())


def _first(array: np.ndarray, value) -> np.ndarray:
    array = array.copy()
    array.flat[0] = value
    return array


ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
    "nan": lambda array: _first(array, np.nan),
    "inf": lambda array: _first(array, np.inf),
    "other number": lambda array: array + 1.0,
    "reversed": lambda array: array[::-1],
    "without the last": lambda array: array[:-1],
    "doubled": lambda array: np.concatenate([array, array[:1]]),
    "first twice": lambda array: np.concatenate([array[:1], array[:1], array[2:]]),
    "narrow": lambda array: array[:, :-1],
    "foreign": lambda array: np.array([f"{text}x" for text in array]),
    "numbers": lambda array: np.arange(len(array)),
    "complex": lambda array: array.astype(complex),
    "text": lambda array: array.astype(str),
    "scalar": lambda array: np.asarray("x"),
    "absent": lambda array: None,
}


def tensors(path: Path, how: str, name: str = "") -> None:
    """Change the tensors of a safetensors file and leave its metadata: one of nan, inf, zero, absent, extra, half."""
    header, body = _parts(path)
    names = [each for each in header if each != "__metadata__" and header[each]["dtype"] == "F32"]
    name = name or names[0]
    begin, end = header[name]["data_offsets"]
    values = np.frombuffer(body[begin:end], np.float32).copy()
    if how == "absent":
        shift = end - begin
        del header[name]
        for entry in header.values():
            if "data_offsets" in entry and entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [at - shift for at in entry["data_offsets"]]
        _write_parts(path, header, body[:begin] + body[end:])
        return
    if how == "extra":
        header["extra"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
        _write_parts(path, header, body + b"\0\0\0\0")
        return
    values[0] = {"nan": np.nan, "inf": np.inf, "zero": 0.0}[how]
    _write_parts(path, header, body[:begin] + values.tobytes() + body[end:])


def facts(path: Path, key: str, value: str, resigned: str = "") -> None:
    """Set a key of a safetensors file's own metadata (a.b for nested ones) to a JSON value; `absent` removes it.

    ``resigned`` makes the sha256 of the metadata right again, as a program would that wrote such a file.
    """
    header, body = _parts(path)
    content = json.loads(header["__metadata__"]["fivefold"])
    _set(content, key, value)
    if resigned:
        from common.base.files import sha256_of_json

        content["metadata_sha256"] = sha256_of_json(content, without="metadata_sha256")
    header["__metadata__"]["fivefold"] = json.dumps(content, sort_keys=True, ensure_ascii=False)
    _write_parts(path, header, body)


def double_key(path: Path) -> None:
    """Say the first tensor twice in the header: safetensors takes the last one."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].decode().rstrip()
    names = [each for each in json.loads(header) if each != "__metadata__"]
    entry = json.dumps(json.loads(header)[names[1]])
    header = f'{header[:-1]},"{names[0]}":{entry}}}'.encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


def _parts(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _write_parts(path: Path, header: dict, body: bytes) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


# ---- images


def image(path: Path, mode: str, width: str = "8", height: str = "8") -> None:
    """A valid image in an unusual mode: I;16, CMYK, P, RGBA ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(int(width) * int(height)).reshape(int(height), int(width))
    if mode == "I;16":
        made = Image.fromarray((pixels * 257 % 65536).astype(np.uint16))
    else:
        made = Image.fromarray((pixels % 256).astype(np.uint8)).convert(mode)
    made.save(path)


def bomb(path: Path, side: str) -> None:
    """A PNG of side x side black pixels in a few kilobytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    size = int(side)
    packer = zlib.compressobj(9)
    row = b"\0" * (size // 8 + 1)  # 1 bit a pixel
    body = b"".join(packer.compress(row * 100) for _ in range(size // 100)) + packer.flush()
    head = struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def speech(path: Path, order: str = "TD") -> None:
    """Twelve sequences of 4 to 15 frames of 3 numbers, of two speakers: features/s0.npy ..., train.csv, folds.csv."""
    (path / "features").mkdir(parents=True)
    lines, dealt = ["id,features,length,label"], ["id,label,fold,row_sha"]
    for row in range(12):
        frames, label = np.random.default_rng(row).normal(size=(4 + row, 3)).astype(np.float32), "ab"[row % 2]
        np.save(path / "features" / f"s{row}.npy", frames if order == "TD" else frames.T)
        lines.append(f"s{row},features/s{row}.npy,{4 + row},{label}")
        dealt.append(f"s{row},{label},{row // 2 % 2},{hashlib.sha256(frames.tobytes()).hexdigest()[:16]}")
    (path / "train.csv").write_text("\n".join(lines) + "\n")
    (path / "folds.csv").write_text("\n".join(dealt) + "\n")


def utterances(path: Path) -> None:
    """Eight utterances of 5 to 12 frames of 3 numbers, two of them to be predicted, as NTU's homework has them."""
    (path / "features").mkdir(parents=True)
    for row in range(8):
        np.save(path / "features" / f"u{row}.npy", np.random.default_rng(row).normal(size=(5 + row, 3)).astype("f4"))
    lines = [" ".join([f"u{row}", *(str(frame % 2) for frame in range(5 + row))]) for row in range(6)]
    (path / "train_labels.txt").write_text("\n".join(lines) + "\n")
    (path / "train_split.txt").write_text("".join(f"u{row}\n" for row in range(6)))
    (path / "test_split.txt").write_text("u7\nu6\n")
    (path / "sample.csv").write_text("Id,Class\n" + "".join(f"{row},0\n" for row in range(23)))


def array(path: Path, shape: str, value: str = "0", kind: str = "float32") -> None:
    """A .npy file of one value, or, of the kind object, of pickles."""
    sizes = [int(size) for size in shape.split("x")]
    np.save(path, np.full(sizes, None if kind == "object" else float(value), dtype=kind), allow_pickle=True)


INJECTIONS: dict[str, Callable[..., None]] = {
    "write": write,
    "write_bytes": write_bytes,
    "append": append,
    "prepend": prepend,
    "cut": cut,
    "keep": keep,
    "flip": flip,
    "noise": noise,
    "remove": remove,
    "copy": copy,
    "swap": swap,
    "folder": folder,
    "link": link,
    "touch": touch,
    "replace": replace,
    "line": line,
    "every_line": every_line,
    "drop_lines": drop_lines,
    "repeat_line": repeat_line,
    "cell": cell,
    "column": column,
    "drop_column": drop_column,
    "swap_columns": swap_columns,
    "shuffle_lines": shuffle_lines,
    "encode": encode,
    "newlines": newlines,
    "zipped": zipped,
    "wide": wide,
    "twin_names": twin_names,
    "set_json": set_json,
    "arrays": arrays,
    "tensors": tensors,
    "facts": facts,
    "double_key": double_key,
    "image": image,
    "bomb": bomb,
    "speech": speech,
    "utterances": utterances,
    "array": array,
}
