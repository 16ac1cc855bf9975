"""One definition of every setting: flag, recipe entry, JSON key and help line."""

import dataclasses
import inspect
import re
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated

import pytest
from conftest import ROOT

from common.base.cli import Range, check_arguments, flag_of, flags_of, parse, recipe_flags
from common.base.errors import UserError
from common.base.help import help_of
from common.runs.choices import LOSSES, SCHEDULES, SELECTIONS, TIMM, TIMMS_OPTIMISERS, check_optimiser
from common.runs.config import Config, check_config, differences, saved_config, training_settings
from common.score.task import TASKS

SOURCES = [*ROOT.glob("*.py"), *(ROOT / "common").rglob("*.py")]


def test_every_setting_has_a_help_line_and_is_used():
    """A field without a trailing comment has no --help; one that nothing reads does nothing."""
    definition = inspect.getsource(Config)
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    for field in dataclasses.fields(Config):
        assert re.search(rf"^    {field.name}: .*  # \w+", definition, re.MULTILINE), f"{field.name} has no comment"
        use = rf"\bcfg\.{field.name}\b|\"--{field.name}\"|\.args\(\"{field.name.removesuffix('_args')}\"\)"
        assert re.search(use, code), f"{field.name} is never read"
    assert len(dataclasses.fields(Config)) < 70


@pytest.mark.parametrize("script", ["folds", "train_fold", "infer", "ensemble", "average", "report", "sweep"])
def test_help_is_in_groups_with_each_flag_once(script):
    """The common flags first, a default said once, no sentence that begins with or."""
    options = {"train_fold": "Train", "sweep": "Run"}.get(script, "Options")
    options = resolve_name(f"{script}:{options}")
    text = help_of(options)
    for field in dataclasses.fields(options):
        flag = f"--{'no-' * (field.default is True)}{field.name.replace('_', '-')}"
        [line] = re.findall(rf"^  {flag}(?= |$).*(?:\n {{4,}}.*)*", text, re.MULTILINE)
        said = " ".join(line.split())
        assert said.count("default:") <= 1 and "(default: )" not in said, said
        assert not re.match(r"--\S+ \S+( \.\.\.)? or ", said), said
    assert not {"COMMON", "OLD_FLAGS"} & {*options.__annotations__}  # which tyro 1.0.0 takes for options
    headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    if common := getattr(options, "COMMON", ()):
        flags = re.findall("^  --(?:no-)?([\\w-]+)", text, re.MULTILINE)
        assert flags[: len(common)] == [name.replace("_", "-") for name in common] and len(common) == 10
        assert headings[0] == "the common ones" and len(headings) > 3


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
    assert "train_fold.py" in said and re.search(r"OOF \d\d\.\d+ %|OOF [a-zA-Z0-9 ]+ \d+\.\d+|not yet measured", said)


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
        assert parse(Config, flags_of(cfg)) == cfg
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
    """Names that a function does not take, values unlike its defaults or out of range; 0 and 1 are yes and no too."""

    def function(images, rotation: Annotated[float, Range(0, 90)] = 1.0, still=False, cells=3, sizes=()):
        """Takes four arguments."""

    def check(**arguments):
        check_arguments("augment-args", arguments, function)

    check(rotation=12, still=True, cells=4, sizes=(1, 2))
    check(rotation=0.5, still=1, sizes=[24])
    with pytest.raises(UserError, match="--augment-args: rotate is unknown to function; known: rotation, still, cells"):
        check(rotate=12)
    with pytest.raises(UserError, match="images is unknown"):
        check(images=1)
    wrong = {"rotation": (None, "x", True, -1, 91, (1,)), "still": ("maybe", None, 2), "cells": (2.5, "2", False)}
    for name, values in (wrong | {"sizes": (24, "24", (1, "2"), None)}).items():
        for value in values:
            with pytest.raises(UserError, match=f"--augment-args: {name}=.* is not a valid value; use ") as refused:
                check(**{name: value})
            assert "\n" not in str(refused.value)


@pytest.mark.parametrize("word", ["true", "False", "YES", "no", "On", "off"])
def test_words_for_yes_and_no_are_what_they_say(word):
    """--freeze batchnorm=false once froze it: a text that is not empty is true in Python."""
    assert Config(freeze=(f"batchnorm={word}",)).args("freeze") == {"batchnorm": word.lower() in ("true", "yes", "on")}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["rotation"], "rotation has no value"),
        (["=3"], "=3 has no name"),
        (["a=1", "b=2", "a=3"], "a is given twice; give it once"),
        (["a=1 b=2"], "'a=1 b=2' is more than one pair; separate pairs by spaces outside of the quotes"),
        (["a=(1,2"], r"a=\(1,2 is not a list of values"),
        (["a={[]:1}"], "is not a list of values"),
        (["a=" + "(" * 100_000], "is not a list of values"),
    ],
)
def test_pairs_that_cannot_be_read_are_refused(pairs, message):
    """One line that names the flag."""
    with pytest.raises(UserError, match=f"--augment-args: .*{message}"):
        check_config(Config(augment_args=tuple(pairs)), processes=1)


def test_values_are_literals_or_else_text():
    """What Python would read, it reads; the rest, a name with a slash as well, is text."""
    pairs = ("a=1", "b=2.5", "c=(1,2)", "d=None", "e=max", "f='a b=c'", "g=", "h=bicubic/2")
    read = {"a": 1, "b": 2.5, "c": (1, 2), "d": None, "e": "max", "f": "a b=c", "g": "", "h": "bicubic/2"}
    assert Config(model_args=pairs).args("model") == read


@pytest.mark.parametrize(
    "row", [*SCHEDULES.values(), *SELECTIONS.values(), *(loss.function for loss in LOSSES.values())]
)
def test_what_a_row_names_is_there(row):
    """A function that is named as text can be loaded."""
    assert callable(resolve_name(row))


def test_the_losses_of_a_task_are_rows():
    """Every task has losses to choose from, and each is one that there is."""
    for task in TASKS.values():
        assert task.losses and {*task.losses} <= LOSSES.keys()


def test_timms_optimisers_are_known_before_it_is_loaded():
    """Those of the timm that is installed; a name that a newer timm may have is left to it."""
    from timm.optim import list_optimizers

    if tuple(map(int, version("timm").split(".")[:3])) <= tuple(map(int, TIMM.split("."))):
        assert {*list_optimizers()} <= {*TIMMS_OPTIMISERS.split()}
    for name in ("adamw", "lookahead_adamw", "ranger", "over9000", "lookahead_ralamb", "ralamb"):
        check_optimiser(name)


def test_a_newer_timm_has_the_last_word(monkeypatch):
    """An optimiser that our list lacks may be one of its own."""
    monkeypatch.setattr("common.runs.choices.version", lambda _: "1.0.99")
    check_optimiser("adamwow")
    monkeypatch.setattr("common.runs.choices.version", lambda _: TIMM)
    with pytest.raises(UserError, match="--opt: there is no optimiser adamwow; did you mean adamw"):
        check_optimiser("adamwow")


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: {b: 1}\n", "a: [\n", "\x00"])
def test_a_broken_recipe_is_named(content, tmp_path):
    """Lists, nested mappings and broken yaml are errors that name the file."""
    path = Path(tmp_path / "broken.yaml")
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="broken.yaml"):
        recipe_flags(path)


@pytest.mark.parametrize(
    "content",
    ["lr: 1\nlr: 2\n", "{lr: 1, lr: 2}\n", "batch-size: 1\nbatch_size: 2\n", "no-tf32: true\ntf32: true\n"],
)
def test_a_recipe_says_everything_once(content, tmp_path):
    """Whatever its lines and dashes: of two values nobody knows which one is meant."""
    path = tmp_path / "twice.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"twice.yaml, line [12]: .* is given twice, first in line 1"):
        recipe_flags(path)


def test_a_recipe_of_a_recipe_is_refused(tmp_path):
    """Its settings would not be read."""
    path = tmp_path / "outer.yaml"
    path.write_text("lr: 1\nconfig: inner.yaml\n", encoding="utf-8")
    with pytest.raises(UserError, match="outer.yaml, line 2: names another recipe"):
        recipe_flags(path)


@pytest.mark.parametrize(("word", "expected"), [("on", True), ("Yes", True), ("off", False), ("NO", False)])
def test_a_recipe_may_say_yes_and_no(tmp_path, word, expected):
    """As yaml people write; where a value of that name is asked for, the word stays what it is."""
    path = tmp_path / "words.yaml"
    path.write_text(f"compile: {word}\nchannels-last: no\nmixed-precision: no\n", encoding="utf-8")
    found = parse(Config, ["--config", str(path)])
    assert (found.compile, found.channels_last, found.mixed_precision) == (expected, "no", "no")


@pytest.mark.parametrize("script", ["folds.py", "train_fold.py", "infer.py", "ensemble.py"])
def test_a_users_mistake_is_one_line_and_exit_2(script, forks, tmp_path):
    """Called directly: nothing but `error: ...` on stderr, no traceback, before torch is loaded."""
    done = forks.run([script, "--no-such-flag", "1"], tmp_path)
    assert done.code == 2 and not done.torch
    assert done.err.startswith("error: command line: Unrecognized options") and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--learning-rate", "1e-3"], "did you mean --lr?"),
        (["--bs=8"], "did you mean --batch-size?"),
        (["--epoch", "3"], "did you mean --epochs?"),
        (["train.csv"], "every value has a flag in front: did you mean --data train.csv"),
        (["one", "two"], "did you mean --run one two"),
        (["--optimizer", "adam"], "did you mean --opt"),
    ],
)
def test_flags_of_other_programs_are_understood(arguments, remedy):
    """What a newcomer types first is answered with our word for it."""
    with pytest.raises(UserError, match=re.escape(remedy)):
        parse(Config, arguments)


def test_a_recipe_of_ours_is_found_from_any_folder(tmp_path, monkeypatch):
    """As the README names it."""
    monkeypatch.chdir(tmp_path)
    assert (
        parse(Config, ["--config", "recipes/digits_fast.yaml"]).opt_args
        == parse(Config, ["--config", str(ROOT / "recipes" / "digits_fast.yaml")]).opt_args
    )
    with pytest.raises(UserError, match="recipes/none.yaml: cannot be read"):
        parse(Config, ["--config", "recipes/none.yaml"])
