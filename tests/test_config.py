"""One definition of every setting: flag, recipe entry, JSON key and help line."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from conftest import ROOT, run_script

from common.base.cli import flag_of, keyword_arguments, parse, recipe_flags
from common.base.errors import UserError
from common.runs.config import Config, differences, saved_config, training_settings
from common.sweep.cells import flags

SOURCES = [*ROOT.glob("*.py"), *(ROOT / "common").rglob("*.py")]


def test_every_setting_has_a_help_line_and_is_used():
    """A field without a trailing comment has no --help; one that nothing reads does nothing."""
    definition = inspect.getsource(Config)
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    for field in dataclasses.fields(Config):
        assert re.search(rf"^    {field.name}: .*  # \w+", definition, re.MULTILINE), f"{field.name} has no comment"
        assert re.search(rf"\bcfg\.{field.name}\b|\"--{field.name}\"", code), f"{field.name} is never read"
    assert len(dataclasses.fields(Config)) < 46


def test_a_recipe_is_flags_before_the_command_lines_own(tmp_path):
    """Numbers stay what was written, types are checked, the command line has the last word."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lr: 5e-5\nmodel-args: [a=1, b=two]\nepochs: 3\n", encoding="utf-8")
    cfg = parse(Config, ["--config", str(recipe), "--epochs", "7"])
    assert (cfg.lr, cfg.model_args, cfg.epochs) == (5e-5, ("a=1", "b=two"), 7)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_committed_recipe_parses_and_says_its_result(recipe):
    """A recipe opens with its command and its measured score."""
    assert parse(Config, ["--config", str(recipe)]).config == str(recipe)
    said = recipe.read_text(encoding="utf-8").split("\nrun:")[0]
    assert "train_fold.py" in said and re.search(r"OOF \d\d\.\d+ %|not yet measured", said)


def test_settings_survive_the_command_line_and_json(tmp_path):
    """A run's settings written as flags and read back are the same settings."""
    cfg = Config(lr=1e-4, model_args=("widths=(1,2,3)",), mixed_precision="bf16", fold="2")
    flags = []
    for name, value in dataclasses.asdict(cfg).items():
        if isinstance(value, bool):
            continue
        flags += [
            f"--{name.replace('_', '-')}",
            *([str(v) for v in value] if isinstance(value, tuple) else [str(value)]),
        ]
    assert training_settings(parse(Config, flags)) == training_settings(cfg)


def test_a_command_line_gives_its_settings_back():
    """What a sweep or a search passes on to its trainings is what it was asked for: switches and lists too."""
    for cfg in (
        Config(),
        Config(pretrained=True, compile=True, lr=0.1, model_args=("widths=(4,6,8)", "drop_rate=0.1")),
    ):
        assert parse(Config, flags(cfg)) == cfg
    assert [flag_of("compile", value) for value in (False, "True")] == [["--no-compile"], ["--compile"]]


def test_settings_of_an_older_version_are_read():
    """A setting that is gone is left out, one that is new takes its default, lists are tuples again."""
    assert saved_config({"lr": 0.1, "model_args": ["a=1"], "gone": 0.0}) == Config(lr=0.1, model_args=("a=1",))


def test_differences_name_old_and_new():
    """Lists from JSON equal tuples; each change reads `name: old -> new`."""
    old = {"lr": 0.003, "model_args": ["a=1"]}
    assert differences(old, {"lr": 0.003, "model_args": ("a=1",)}) == []
    assert differences(old, {"lr": 0.001, "model_args": ("a=1",)}) == ["lr: 0.003 -> 0.001"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lrr", "1"], r"Unrecognized options: --lrr.*did you mean --lr\?"),
        (["--lr", "abc"], "Error parsing --lr: could not convert string to float: 'abc'"),
        (["--channels-last", "maybe"], "invalid choice 'maybe'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_a_wrong_command_line_is_one_line(flags, message):
    """Misspelt flags get a suggestion, wrong values are named, and the message has no line break."""
    with pytest.raises(UserError, match=message) as refused:
        parse(Config, flags)
    assert "\n" not in str(refused.value)


def test_name_value_pairs_are_checked_against_the_signature():
    """--augment-args and its like refuse names that the function does not take."""

    def function(images, rotation=1.0):
        """Takes one argument."""

    assert keyword_arguments("augment-args", ["rotation=12"], function) == {"rotation": 12}
    with pytest.raises(UserError, match="--augment-args: rotate is unknown to function; known: rotation"):
        keyword_arguments("augment-args", ["rotate=12"], function)
    with pytest.raises(UserError, match="rotation has no value"):
        keyword_arguments("augment-args", ["rotation"])


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: {b: 1}\n", "a: [\n", "\x00"])
def test_a_broken_recipe_is_named(content, tmp_path):
    """Lists, nested mappings and broken yaml are errors that name the file."""
    path = Path(tmp_path / "broken.yaml")
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="broken.yaml"):
        recipe_flags(path)


@pytest.mark.parametrize("script", ["folds.py", "train_fold.py", "infer.py", "ensemble.py"])
def test_a_users_mistake_is_one_line_and_exit_2(script):
    """Called directly: nothing but `error: ...` on stderr, no traceback, before torch is loaded."""
    done = run_script(script, "--no-such-flag", "1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: command line: Unrecognized options") and done.stderr.count("\n") == 1
