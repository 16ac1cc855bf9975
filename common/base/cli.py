"""Command lines from dataclasses: one definition gives the flag, its type, its default and its --help.

A field's trailing comment is its help. Parsing is tyro's; the entries of a recipe become flags in front
of the command line's own, so both are checked alike and the last word wins.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from common.base.errors import UserError

Options = TypeVar("Options")


def parse(options: type[Options], argv: Sequence[str] | None = None) -> Options:
    """Build ``options`` (a dataclass) from ``argv`` (default: the process's own).

    Its class attribute OLD_FLAGS, if it has one, maps flags that an earlier version had to today's; they still work.

    Raises:
        UserError: an unknown flag (with the nearest known one), a value of the wrong type, a bad recipe.
    """
    old = getattr(options, "OLD_FLAGS", {})
    parted = [argument.partition("=") for argument in (sys.argv[1:] if argv is None else argv)]
    arguments = ["".join((old.get(flag, flag), *value)) for flag, *value in parted]
    recipe = _value_of("--config", arguments)
    if recipe and any(field.name == "config" for field in dataclasses.fields(options)):
        arguments = recipe_flags(Path(recipe)) + arguments
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, args=arguments)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        what, remedy = _one_line(complaint.getvalue())
        raise UserError("command line", what, remedy) from None


def recipe_flags(path: Path) -> list[str]:
    """The entries of a recipe (flat yaml) as flags; every scalar stays the text that was written."""
    try:
        text = path.read_text(encoding="utf-8")
        tag = next((token for token in yaml.scan(text) if isinstance(token, yaml.TagToken)), None)
        entries = yaml.load(text, Loader=yaml.BaseLoader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(str(path), f"cannot be read ({' '.join(str(error).split())})", "check --config") from error
    if tag:  # the loader leaves it out, whoever wrote it meant more than text
        where = f"{path}, line {tag.start_mark.line + 1}"
        raise UserError(where, f"has the tag {''.join(tag.value)}", "write plain text")
    if not isinstance(entries, dict):
        raise UserError(str(path), "is not a list of `flag: value` lines", "see recipes/ for examples")
    flags = []
    for name, value in entries.items():
        if isinstance(value, dict):
            raise UserError(str(path), f"{name} holds a mapping", f"write {name}: [key=value, key=value]")
        if isinstance(value, list) and not all(isinstance(part, str) for part in value):
            raise UserError(str(path), f"{name} holds nested values", f"write {name}: [key=value, key=value]")
        flags += flag_of(name, value)
    return flags


def flag_of(name: str, value: Any) -> list[str]:
    """A setting as its part of a command line; true and false, also as words, have flags of their own."""
    flag, text = name.replace("_", "-"), str(value)
    if text.lower() in ("true", "false"):
        return [f"--{flag}" if text.lower() == "true" else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value)] if isinstance(value, list | tuple) else [f"--{flag}", text]


def keyword_arguments(flag: str, pairs: Sequence[str], function: Callable[..., Any] | None = None) -> dict[str, Any]:
    """``("rotation=12", "fill=zeros")`` as keyword arguments, values read as Python literals or else text.

    With ``function``, names that its signature lacks are refused.
    """
    arguments = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--{flag}", f"{pair} has no value", "write name=value pairs, separated by spaces")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            if text[:1] in tuple("([{"):
                raise UserError(
                    f"--{flag}", f"{pair} is not a list of values", "check its brackets and quotes"
                ) from error
            arguments[name] = text
    if function is not None:
        known = [p.name for p in inspect.signature(function).parameters.values() if p.default is not p.empty]
        for name in arguments.keys() - set(known):
            raise UserError(f"--{flag}", f"{name} is unknown to {function.__name__}", f"known: {', '.join(known)}")
    return arguments


def chosen(flag: str, name: str, registry: Mapping[str, Any]) -> Any:
    """``registry[name]``; raises UserError, with the nearest or all known names, where there is none."""
    if name not in registry:
        near = difflib.get_close_matches(name, registry, n=3)
        remedy = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(registry)}"
        raise UserError(f"--{flag}", f"there is no {flag} {name}", remedy)
    return registry[name]


def _value_of(flag: str, arguments: Sequence[str]) -> str:
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
