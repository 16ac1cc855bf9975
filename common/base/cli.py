"""Command lines from dataclasses: one definition gives the flag, its type, its default and its --help.

Parsing is tyro's, which ``run(options)`` in a notebook does not need; what --help prints is common/base/help.py's.
The entries of a recipe become flags in front of the command line's own, so both are checked alike and the last word
wins.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import io
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml

from common.base.errors import ENVIRONMENT, UserError
from common.base.help import help_of

Options = TypeVar("Options")

LARGEST = 1e30  # of a setting: beyond, torch's own numbers overflow
WORDS = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)

# Flags as other programs call them, and as ours do.
CALLED_ELSEWHERE = {
    "learning-rate": "lr",
    "bs": "batch-size",
    "batch": "batch-size",
    "wd": "weight-decay",
    "workers": "threads",
    "num-workers": "threads",
    "image-size": "img-size",
    "size": "img-size",
    "name": "run",
    "train": "data",
    "output": "out-dir",
    "output-dir": "out-dir",
    "optimizer": "opt",
    "optim": "opt",
    "scheduler": "schedule",
    "num-epochs": "epochs",
    "n-splits": "k",
    "n-folds": "k",
    "dropout": "model-args",
    "momentum": "opt-args",
    "patience": "select-args",
    "from": "sweep",
    "amp": "mixed-precision",
    "fp16": "mixed-precision",
    "checkpoint": "weights",
    "criterion": "loss",
    "target": "label-column",
    "output-file": "submission",
}


def parse(
    options: type[Options],
    argv: Sequence[str] | None = None,
    defaults: Callable[[type[Options], Sequence[str]], list[str]] | None = None,
) -> Options:
    """Build ``options`` (a dataclass) from ``argv`` (default: the process's own).

    Its class attribute OLD_FLAGS, if it has one, maps flags that an earlier version had to today's; they still work.
    ``defaults`` may give flags that count where neither the command line nor a recipe says otherwise.

    Raises:
        UserError: an unknown flag (with the nearest known one), a value of the wrong type, a bad recipe, no tyro.
    """
    if {"-h", "--help"} & {*(sys.argv[1:] if argv is None else argv)}:
        print(help_of(options), end="")
        sys.exit(0)
    try:
        import tyro
    except ModuleNotFoundError as error:  # the one package that Kaggle's image lacks
        remedy = f"pip install {error.name} (offline: from the wheels of `make kaggle`), or activate .venv"
        raise UserError(f"package {error.name}", "is missing", remedy, ENVIRONMENT) from error
    old = getattr(options, "OLD_FLAGS", {})
    parted = [argument.partition("=") for argument in (sys.argv[1:] if argv is None else argv)]
    arguments = ["".join((old.get(flag, flag), *value)) for flag, *value in parted]
    recipe, types = value_of("--config", arguments), {each.name: each.type for each in dataclasses.fields(options)}
    if recipe and "config" in types:
        switches = {name for name, kind in types.items() if kind is bool}
        arguments = recipe_flags(Path(recipe), switches) + arguments
    if defaults:
        arguments = defaults(options, arguments) + arguments
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, args=arguments)
    except SystemExit:
        what, remedy = _one_line(complaint.getvalue())
        meant = CALLED_ELSEWHERE.get(next(iter(re.findall(r"--([\w-]+)", what)), ""), "")
        if meant.replace("-", "_") in {field.name for field in dataclasses.fields(options)}:
            remedy = f"did you mean --{meant}?"
        elif what.startswith("Unrecognized options: ") and "--" not in what:
            remedy = f"every value has a flag in front: did you mean {_flag_before(options, what)}?"
        raise UserError("command line", what, remedy) from None


def _flag_before(options: type, what: str) -> str:
    """The flag that values without one are most likely meant for: a table's, or else that of runs."""
    values = what.removeprefix("Unrecognized options: ").split(", ")
    known = [*getattr(options, "COMMON", ()), *(field.name for field in dataclasses.fields(options))]
    are_tables = all(value.endswith((".csv", ".csv.gz")) or Path(value).is_dir() for value in values)
    if are_tables and len(values) == 1:
        name = next((each for each in known if each in ("data", "test")), known[0])
    else:
        name = next((each for each in ("runs", "run", "data") if each in known), known[0])
    return f"--{name.replace('_', '-')} {' '.join(values)}"


def can_parse() -> bool:
    """Whether tyro is there, without which no script of ours can be started as a command."""
    return importlib.util.find_spec("tyro") is not None


def recipe_flags(path: Path, switches: Collection[str] = ()) -> list[str]:
    """The entries of a recipe (flat yaml) as flags; every scalar stays the text that was written.

    ``switches`` are the options that are true or false, for which a recipe may say yes, no, on and off.
    """
    beside_us = Path(__file__).parents[2] / path  # recipes/ is named so from any folder
    try:
        text = (path if path.exists() else beside_us if beside_us.is_file() else path).read_text(encoding="utf-8")
        tag = next((token for token in yaml.scan(text) if isinstance(token, yaml.TagToken)), None)
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        entries = yaml.load(text, Loader=yaml.BaseLoader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(str(path), f"cannot be read ({' '.join(str(error).split())})", "check --config") from error
    if tag:  # the loader leaves it out, whoever wrote it meant more than text
        where = f"{path}, line {tag.start_mark.line + 1}"
        raise UserError(where, f"has the tag {''.join(tag.value)}", "write plain text")
    if not isinstance(entries, dict):
        raise UserError(str(path), "is not a list of `flag: value` lines", "see recipes/ for examples")
    lines = {}
    for key, _ in node.value if entries else ():
        line, name = key.start_mark.line + 1, key.value.replace("-", "_").removeprefix("no_")
        where = f"{path}, line {line}"
        if name in lines:
            raise UserError(where, f"{key.value} is given twice, first in line {lines[name]}", "leave one of them out")
        if name == "config":
            raise UserError(where, "names another recipe", "write the settings of both into one")
        lines[name] = line
    flags = []
    for name, value in entries.items():
        if isinstance(value, dict):
            raise UserError(str(path), f"{name} holds a mapping", f"write {name}: [key=value, key=value]")
        if isinstance(value, list) and not all(isinstance(part, str) for part in value):
            raise UserError(str(path), f"{name} holds nested values", f"write {name}: [key=value, key=value]")
        is_switch = name.replace("-", "_") in switches and isinstance(value, str)
        flags += flag_of(name, WORDS.get(value.lower(), value) if is_switch else value)
    return flags


def flag_of(name: str, value: Any) -> list[str]:
    """A setting as its part of a command line; true and false, also as words, have flags of their own."""
    flag, text = name.replace("_", "-"), str(value)
    if text.lower() in ("true", "false"):
        return [f"--{flag}" if text.lower() == "true" else f"--no-{flag}"]
    if isinstance(value, list | tuple):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}={text}"] if text.startswith("-") else [f"--{flag}", text]  # a path may look like a flag


def flags_of(options: Any) -> list[str]:
    """The command line that gives these options (a dataclass), without those that have their defaults."""
    pairs = ((field, getattr(options, field.name)) for field in dataclasses.fields(options))
    return [flag for field, value in pairs if value != field.default for flag in flag_of(field.name, value)]


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` (or only those ``above`` it) to ``high``; ``whole``: integers alone."""

    low: float = -LARGEST
    high: float = LARGEST
    above: bool = False
    whole: bool = False

    def __contains__(self, number: Any) -> bool:
        kinds = int if self.whole else int | float
        if not isinstance(number, kinds) or isinstance(number, bool):
            return False
        return self.low <= number <= self.high and not (self.above and number == self.low)

    def __str__(self) -> str:
        kind = "whole numbers" if self.whole else "numbers"
        if self.low == -LARGEST:
            return kind
        if self.high == LARGEST:
            return f"{kind} above {self.low:g}" if self.above else f"{self.low:g} or more"
        return f"more than {self.low:g}, up to {self.high:g}" if self.above else f"{self.low:g} to {self.high:g}"


# What a parameter takes that names no Range of its own, by the type of its default.
OF_TYPE = {bool: (False, True), int: Range(whole=True), float: Range(), tuple: Range()}


@cache
def keyword_arguments(flag: str, pairs: tuple[str, ...]) -> Mapping[str, Any]:
    """``("rotation=12", "fill=zeros")`` as keyword arguments: Python literals, words for yes and no, or else text.

    Raises:
        UserError: no value, brackets that do not close, a name twice, two pairs in one.
    """
    arguments = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            missing = "value" if name else "name"
            raise UserError(f"--{flag}", f"{pair} has no {missing}", "write name=value pairs, separated by spaces")
        if name in arguments:
            raise UserError(f"--{flag}", f"{name} is given twice", "give it once")
        try:
            arguments[name] = WORDS[text.lower()] if text.lower() in WORDS else ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            if text[:1] in tuple("([{"):
                raise UserError(
                    f"--{flag}", f"{pair} is not a list of values", "check its brackets and quotes"
                ) from error
            if re.search(r"\s\w+=", text):
                what, remedy = f"'{pair}' is more than one pair", "separate pairs by spaces outside of the quotes"
                raise UserError(f"--{flag}", what, remedy) from error
            arguments[name] = text
    return MappingProxyType(arguments)


def check_arguments(flag: str, arguments: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Refuse keyword arguments that ``function`` does not take; it takes its parameters that have a default.

    Raises:
        UserError: an unknown name; a value unlike the default, or outside the Range that the parameter is annotated by.
    """
    parameters = inspect.signature(function).parameters.values()
    known = {each.name: each for each in parameters if each.default is not each.empty}
    for name, value in arguments.items():
        if name not in known:
            remedy = f"known: {', '.join(known) or 'none'}"
            raise UserError(f"--{flag}", f"{name} is unknown to {function.__name__}", remedy)
        check_value(flag, name, value, known[name].default, allowed_by(known[name].annotation))


def allowed_by(annotation: Any) -> Range | None:
    """The Range in ``Annotated[float, Range(0, 1)]``, if there is one."""
    return next((each for each in getattr(annotation, "__metadata__", ()) if isinstance(each, Range)), None)


def check_value(flag: str, name: str, value: Any, default: Any, allowed: Range | Sequence[Any] | None = None) -> None:
    """Refuse a value unlike the ``default``, or that is not ``allowed``; of a list, each of its entries must be."""
    allowed = allowed or OF_TYPE.get(type(default))
    if isinstance(default, tuple):
        right = isinstance(value, tuple | list) and all(each in allowed for each in value)
        expected = f"a list such as (1,2), each {allowed}"
    elif allowed is None:
        right, expected = isinstance(value, type(default)), f"a value such as {default!r}"
    else:
        right = value in allowed
        expected = str(allowed) if isinstance(allowed, Range) else f"one of {', '.join(map(str, allowed))}"
    if not right:
        raise UserError(f"--{flag}", f"{name}={value} is not a valid value", f"use {expected}")


def chosen(flag: str, name: str, registry: Mapping[str, Any]) -> Any:
    """``registry[name]``; raises UserError, with the nearest or all known names, where there is none."""
    if name not in registry:
        near = difflib.get_close_matches(name, registry, n=3)
        remedy = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(registry)}"
        raise UserError(f"--{flag}", f"there is no {flag} {name}", remedy)
    return registry[name]


def value_of(flag: str, arguments: Sequence[str]) -> str:
    """What the last ``--flag value`` or ``--flag=value`` says; empty where there is none."""
    value = ""
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            value = arguments[position + 1]
        elif argument.startswith(flag + "="):
            value = argument.partition("=")[2]
    return value


def _one_line(box: str) -> tuple[str, str]:
    """What is wrong and the remedy, from tyro's framed message."""
    paragraphs = [[]]
    for line in box.splitlines():
        text = line.strip("│ ").strip()
        if set(text) == {"─"}:
            paragraphs.append([])
        elif not re.match("[╭╰]", text):
            paragraphs[-1].append(text)
    what = " ".join(paragraphs[0])
    nearest = re.search(r"Perhaps you meant: (--[\w-]+)", " ".join(" ".join(lines) for lines in paragraphs))
    return what, f"did you mean {nearest.group(1)}?" if nearest else "see --help"
