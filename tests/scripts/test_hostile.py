"""No file that we are given can run code, open a socket, or make us read outside its folder.

Twenty and more files that run code in whoever unpickles or evaluates them, through every option and every file of a
run that a script reads. FIVEFOLD_FAULTS=full tries every file everywhere; else each place meets three of them.
"""

import gzip
import io
import json
import lzma
import marshal
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pytest
from conftest import ROOT, words
from injections import inject
from PIL import Image

CANARY = "PWNED"
COMMAND = f"touch {CANARY}"
FULL = os.environ.get("FIVEFOLD_FAULTS") == "full"


class Payload:
    """Runs a command in whoever unpickles it."""

    def __reduce__(self):
        return os.system, (COMMAND,)


class Evaluated:
    """Evaluates an expression in whoever unpickles it."""

    def __reduce__(self):
        return eval, (f"__import__('os').system({COMMAND!r})",)


def zipped(**files: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in files.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), part)
    return content.getvalue()


def torch_legacy(payload: object) -> bytes:
    """What torch.save wrote before version 1.6: magic number, protocol, system, then the object."""
    return b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, payload))


def tarred(**files: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, part in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(part)
            archive.addfile(entry, io.BytesIO(part))
    return content.getvalue()


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def dumped(**options) -> bytes:
    content = io.BytesIO()
    joblib.dump({"state": Payload()}, content, **options)
    return content.getvalue()


def safetensors(metadata: dict[str, str]) -> bytes:
    header = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(header)) + header


OBJECT = np.array([Payload()], dtype=object)
EXPRESSION = f"__import__('os').system({COMMAND!r})"
FILES: dict[str, bytes] = {
    "protocol0.pkl": pickle.dumps(Payload(), 0),
    "protocol4.pkl": pickle.dumps(Payload(), 4),
    "protocol5.bin": pickle.dumps({"state_dict": Evaluated()}, 5),
    "custom_checkpoint_0.pkl": zipped(archive__data_DOT_pkl=pickle.dumps(Payload(), 2), archive__version=b"3\n"),
    "weights.pth": zipped(archive__data_DOT_pkl=pickle.dumps(Evaluated(), 2), archive__byteorder=b"little"),
    "script.pt": zipped(m__code__x_DOT_py=EXPRESSION.encode(), m__constants_DOT_pkl=pickle.dumps(Payload(), 2)),
    "legacy.pth": torch_legacy(Payload()),
    "legacy.pth.tar": tarred(sys_info=pickle.dumps(Payload(), 2), pickle=pickle.dumps(Payload(), 2)),
    "object.npy": npy(OBJECT),
    "objects.npz": npz(ids=OBJECT, logits=np.zeros((1, 2), np.float32), classes=np.array(["a", "b"])),
    "pickles.npz": zipped(ids_DOT_npy=pickle.dumps(Payload()), logits_DOT_npy=pickle.dumps(Payload())),
    "model.joblib": dumped(),
    "model.joblib.z": dumped(compress=("zlib", 3)),
    "zipped.csv.gz": gzip.compress(pickle.dumps(Payload()), mtime=0),
    "packed.xz": lzma.compress(pickle.dumps(Payload())),
    "apply.yaml": f"lr: !!python/object/apply:os.system [{COMMAND!r}]\n".encode(),
    "new.yaml": f"opt: !!python/object/new:os.system [{COMMAND!r}]\n".encode(),
    "name.yaml": b"model: !!python/name:os.system\n",
    "code.pyc": b"\xa7\r\r\n" + bytes(12) + marshal.dumps(compile(EXPRESSION, "x", "eval")),
    "source.py": f"import os\nos.system({COMMAND!r})\n".encode(),
    "expression.csv": f"id,label,fold,row_sha\n{EXPRESSION},x,{EXPRESSION},{EXPRESSION}\n".encode(),
    "objects.json": json.dumps({"py/reduce": [{"py/function": "os.system"}, {"py/tuple": [COMMAND]}]}).encode(),
    "metadata.safetensors": safetensors({"fivefold": EXPRESSION, "__reduce__": EXPRESSION}),
    "settings.safetensors": safetensors({"fivefold": json.dumps({"version": 1, "settings": {"model": EXPRESSION}})}),
}

# Where a script reads a file: its command, and the file's place (empty: the file is named by the command itself).
PLACES: list[tuple[str, str]] = [
    ("folds --folds new.csv --data {}", ""),
    ("folds --folds new.csv --test {}", ""),
    ("check --folds {}", ""),
    ("train --run new --data {}", ""),
    ("train --run new --folds {}", ""),
    ("train --run new --weights {}", ""),
    ("train --run new --config {}", ""),
    ("train --run half --fold 0", "runs/half/fold0/checkpoint.safetensors"),
    ("train --run half --fold 0", "runs/half/fold0/config.json"),
    ("infer --runs one --test {}", ""),
    ("infer --runs one --sample {}", ""),
    ("infer --runs one --tta digits --data {}", ""),
    ("infer --runs one --tta digits --folds {}", ""),
    ("infer --runs one", "runs/one/fold1/model.safetensors"),
    ("infer --runs one", "runs/one/fold1/metrics.json"),
    ("photo-infer --runs one", "photos/images/test04.png"),
    ("blend --runs one two --run again --folds {}", ""),
    ("blend --runs one two --run again --sample {}", ""),
    ("blend --runs one two --run again", "runs/one/fold1/oof.npz"),
    ("blend --runs one two --run again", "runs/one/test.npz"),
    ("blend --runs one two --run again", "runs/one/inference.json"),
    ("blend --runs one two --run again", "runs/one/fold1/metrics.json"),
    ("report --runs one ensemble --data {}", ""),
    ("report --runs one ensemble --folds {}", ""),
    ("report --runs one ensemble", "runs/one/fold1/log.csv"),
    ("report --runs one ensemble", "runs/one/fold0/config.json"),
    ("report --runs one ensemble", "runs/ensemble/weights.json"),
    ("soup --data {}", ""),
    ("soup --folds {}", ""),
    ("soup", "runs/two/fold2/model.safetensors"),
    ("fit", "sweep/sweep.json"),
    ("fit", "sweep/sweep.csv"),
]
MET = [
    (name, *PLACES[place])
    for place in range(len(PLACES))
    for at, name in enumerate(FILES)
    if FULL or (at - place * 3) % len(FILES) < 3
]


@pytest.fixture(scope="module")
def folder(undisturbed, tmp_path_factory):
    """A copy of the undisturbed folder that every case puts back as it was."""
    copy = tmp_path_factory.mktemp("hostile") / "T"
    shutil.copytree(undisturbed, copy)
    return copy


def test_each_file_is_met_everywhere_or_at_least_once():
    """The short list leaves out no file and no place."""
    assert len(FILES) >= 20
    assert {name for name, *_ in MET} == set(FILES) and {(command, place) for _, command, place in MET} == set(PLACES)


@pytest.mark.parametrize("command, place", PLACES, ids=[f"{command} {place}".strip() for command, place in PLACES])
def test_hostile_files(command, place, folder, torch_forks, figures):
    """Each is refused with one line; nothing is executed, unpickled, connected to or started."""
    names = [name for name, *where in MET if where == [command, place]]
    figures("hostile", total=len(names))
    for name in names:
        target = folder / (place or name)
        before = target.read_bytes() if target.exists() else None
        target.write_bytes(FILES[name])
        answer = torch_forks.run(words(command.format(name)), folder)
        if before is None:
            target.unlink()
        else:
            target.write_bytes(before)
        assert not (folder / CANARY).exists(), name
        assert not answer.events, (name, answer.events)
        assert answer.code == 2 and "Traceback" not in answer.err, (name, answer.code, answer.err)
        assert len([line for line in answer.err.splitlines() if line.startswith("error: ")]) == 1, (name, answer.err)
        figures("hostile", done=1)


def test_the_hostile_files_are_hostile(tmp_path, monkeypatch):
    """Those that a careless reader would open do run their command: the canary can be seen."""
    monkeypatch.chdir(tmp_path)
    careless = {
        "protocol0.pkl": pickle.loads,
        "protocol5.bin": pickle.loads,
        "object.npy": lambda content: np.load(io.BytesIO(content), allow_pickle=True),
        "objects.npz": lambda content: np.load(io.BytesIO(content), allow_pickle=True)["ids"],
        "model.joblib": lambda content: joblib.load(io.BytesIO(content)),
        "zipped.csv.gz": lambda content: pickle.loads(gzip.decompress(content)),
    }
    for name, read in careless.items():
        read(FILES[name])
        assert (tmp_path / CANARY).exists(), name
        (tmp_path / CANARY).unlink()


@pytest.mark.parametrize("command", ["infer --runs one --out-dir again", "blend --runs one two --run again"])
def test_predicting_and_blending_need_no_network(command, folder, torch_forks):
    """With good files too: no socket, nothing unpickled, no program started."""
    answer = torch_forks.run(words(command), folder, HF_HUB_OFFLINE="")
    assert answer.code == 0, answer.err
    assert not answer.events


def test_a_model_from_the_hub_is_not_fetched_by_a_file(undisturbed, tmp_path, torch_forks):
    """A weights file that names a model on the hub is refused without asking the network."""
    shutil.copytree(undisturbed, tmp_path / "T")
    for name in ("hf-hub:evil/model", "local-dir:/tmp/evil", "hf_hub:evil/model"):
        for fold in range(3):
            path = f"runs/one/fold{fold}/model.safetensors"
            inject(tmp_path / "T", f"facts {path} settings.model '\"{name}\"' resigned")
        answer = torch_forks.run(words("infer --runs one"), tmp_path / "T", HF_HUB_OFFLINE="")
        assert answer.code == 2 and not answer.events, (answer.err, answer.events)
        assert "Traceback" not in answer.err and name in answer.err


def test_no_image_outside_the_folder_is_opened(undisturbed, tmp_path, torch_forks):
    """A table, a link or a folder that leads to a secret picture: it is never opened, not even to look at it."""
    shutil.copytree(undisturbed, tmp_path / "T")
    secret = tmp_path / "secret.png"
    Image.new("L", (8, 8), 7).save(secret)
    for injected in (
        "cell photos/test.csv 7 0 ../../secret.png",
        f"cell photos/test.csv 7 0 {secret}",
        f"link photos/images/test04.png {secret}",
        f"link photos/images/extra {tmp_path} && cell photos/test.csv 7 0 extra/secret.png",
    ):
        inject(tmp_path / "T", injected)
        for command in (
            "photo-infer --runs one",
            "folds --data photos/train.csv --folds new.csv --test photos/test.csv",
        ):
            answer = torch_forks.run(words(command), tmp_path / "T", opened=True)
            assert answer.code == 2 and "outside of" in answer.err, answer.err
            assert not [path for path in answer.opened if "secret" in path]
        shutil.copy(undisturbed / "photos" / "test.csv", tmp_path / "T" / "photos")
        (tmp_path / "T/photos/images/test04.png").unlink()
        shutil.copy(undisturbed / "photos/images/test04.png", tmp_path / "T/photos/images")


def test_no_call_that_runs_code_stands_in_the_product():
    """The names that would: none of them in a script, in common or in a benchmark."""
    banned = [
        "torch.load(",
        "import pickle",
        "allow_pickle=True",
        "read_pickle",
        "joblib",
        "load_state(",
        "save_state(",
    ]
    banned += [
        " eval(",
        " exec(",
        "yaml.load(",
        "yaml.unsafe_load",
        "full_load",
        "shelve",
        "marshal",
        "dill",
        "hub.load(",
    ]
    allowed = "yaml.load(text, Loader=yaml.BaseLoader)"  # plain text, lists and mappings
    for path in [*ROOT.glob("*.py"), *(ROOT / "common").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        text = path.read_text(encoding="utf-8").replace(allowed, "")
        assert not [call for call in banned if call in text], Path(path).name
