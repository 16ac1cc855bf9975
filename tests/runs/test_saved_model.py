"""What a weights file says of itself: nothing is lost, old files are read, and a damaged one is one line."""

import json
import shutil

import numpy as np
import pytest

import infer
from common.base.errors import UserError
from common.data.decoding import Preparation
from common.runs.config import differences
from common.runs.layout import MODEL_FILE
from common.runs.saved_model import SavedModel
from common.runs.tensors import load_model, load_tensors, save_tensors

NEWER = ("averaged", "members", "sha256")  # keys that files of older versions may lack


@pytest.fixture(scope="module")
def metadata(chain) -> dict:
    return load_tensors(chain / "one" / "fold1" / MODEL_FILE)[1]


def read(metadata: dict) -> SavedModel:
    return SavedModel.from_metadata(json.loads(json.dumps(metadata)), "model.safetensors", "restore it")


def test_what_is_written_is_read(chain, metadata, tmp_path):
    """Written again from what was read, the file is the same to the byte."""
    model = load_model(chain / "one" / "fold1" / MODEL_FILE)
    assert (model.saved.run, model.saved.fold, model.saved.micro_batch) == ("one", "1", 8)
    assert model.saved.preparation == Preparation(1, 8, 8) and model.saved.cfg.model == "digit_cnn"
    save_tensors(tmp_path / MODEL_FILE, model.tensors, model.saved.to_metadata())
    assert (tmp_path / MODEL_FILE).read_bytes() == (chain / "one" / "fold1" / MODEL_FILE).read_bytes()


def test_files_of_older_versions_are_read(metadata):
    """Without the later keys it is one network of one class a row; without a preparation its images are no photos."""
    old = read({name: value for name, value in metadata.items() if name not in (*NEWER, "preparation")})
    assert (old.task, old.averaged, old.members) == ("multiclass", (), 1)
    assert old.preparation == read(metadata).preparation and old.shared == read(metadata).shared
    settings = {name: value for name, value in metadata["settings"].items() if name != "task"}
    assert not differences(read(metadata | {"settings": settings}).shared, read(metadata).shared)


@pytest.mark.parametrize(
    "name", ["settings", "fold", "classes", "image_shape", "normalise", "processes", "memory_format"]
)
@pytest.mark.parametrize("value", [None, 1.5])
def test_what_is_missing_or_of_the_wrong_kind_is_named(metadata, name, value):
    """A reader learns of it in one line, not where it is first used."""
    damaged = metadata | {name: value} if value else {key: value for key, value in metadata.items() if key != name}
    with pytest.raises(UserError, match=f"model.safetensors: has no valid {name}; restore it"):
        read(damaged)


def test_a_task_of_a_newer_version_is_named(metadata):
    """Its outputs would mean something else."""
    with pytest.raises(UserError, match="model.safetensors: is of the task ranking, which this code does not know"):
        read(metadata | {"settings": metadata["settings"] | {"task": "ranking"}})


@pytest.mark.parametrize("files", [0, 2])
def test_the_full_model_alone_is_enough(chain, tiny, tmp_path, capsys, files):
    """--fold full predicts where there are no folds, and says with how many folds' OOF it compared class shares."""
    run = tmp_path / "one"
    shutil.copytree(chain / "one" / "fold0", run / "full")
    model = load_model(run / "full" / MODEL_FILE)
    save_tensors(run / "full" / MODEL_FILE, model.tensors, model.saved.to_metadata() | {"fold": "full"})
    for k in range(files):
        (run / f"fold{k}").mkdir()
        shutil.copy(chain / "one" / f"fold{k}" / "oof.npz", run / f"fold{k}")
    arguments = ["--runs-dir", str(tmp_path), "--fold", "full", "--test", str(tiny / "test.csv"), "--threads", "1"]
    infer.main(arguments)
    said = capsys.readouterr()
    expected = f"compared with the OOF predictions of {files} of 3 folds" if files else "its score is not known"
    assert expected in said.out and "warning" not in said.err
    assert said.out.splitlines()[-1].startswith(f"next: python {'report' if files else 'train_fold'}.py")
    assert len(np.loadtxt(run / "submission.csv", dtype=str, delimiter=",", skiprows=1)) == 24
