"""The text of --help: flags in groups with headings, the common ones first, from the dataclass that defines them.

A field's trailing comment is its help; a comment on a line of its own is the heading of the fields below it.
"""

import argparse
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

_LINE = re.compile(r"    (?:(\w+): .*?  # (.+)|# (.+))")  # a field and its help, or a heading


def help_of(options: type) -> str:
    """What ``--help`` prints of a dataclass; its class attribute COMMON names the fields that come first.

    COMMON has no annotation: until 1.0.5 at least, tyro takes a ClassVar for an option.
    """
    help_texts, headings = _comments(options)
    common = getattr(options, "COMMON", ())
    groups: dict[str, list[dataclasses.Field]] = {"the common ones": []} if common else {}
    known = {field.name: field for field in dataclasses.fields(options)}
    for name in [*common, *(name for name in known if name not in common)]:
        groups.setdefault("the common ones" if name in common else headings[name], []).append(known[name])
    what, _, example = (options.__doc__ or "").partition(": ")
    parser = argparse.ArgumentParser(
        Path(sys.argv[0]).name, "%(prog)s [--flag VALUE ...]", f"{what}.", f"example: {example}", add_help=False
    )
    for heading, fields in groups.items():
        group = parser.add_argument_group(heading)
        for field in fields:
            flag = f"--{'no-' if field.default is True else ''}{field.name.replace('_', '-')}"
            text = help_texts.get(field.name, "") + _default_of(field, help_texts.get(field.name, ""))
            shown = {"action": "store_true"} if isinstance(field.default, bool) else {"metavar": _metavar(field)}
            group.add_argument(flag, help=text.replace("%", "%%"), **shown)
    return parser.format_help()


def _comments(options: type) -> tuple[dict[str, str], dict[str, str]]:
    """The help and the heading of each field, by its name; a class without headings is one group."""
    help_texts, headings = {}, {}
    for each in reversed(options.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        heading = "options" if each is options else _words(each.__name__)
        for line in inspect.getsource(each).splitlines():
            if match := _LINE.fullmatch(line):
                name, text, new_heading = match.groups()
                heading = new_heading or heading
                if name:
                    help_texts[name], headings[name] = text, headings.get(name, heading)
        headings |= {name: headings.get(name, heading) for name in each.__dict__.get("__annotations__", {})}
    return help_texts, headings


def _words(name: str) -> str:
    return re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _default_of(field: dataclasses.Field, text: str) -> str:
    """The default in brackets, where it says something that the help does not."""
    default = field.default
    is_said = any(f"({word}" in text for word in ("default:", f"{default}:", "0:" if default == 0 else "default:"))
    if isinstance(default, bool) or default in ("", (), dataclasses.MISSING) or is_said:
        return ""
    return f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


def _metavar(field: dataclasses.Field) -> str:
    """What stands for a flag's value: the choices, or its kind."""
    kind: Any = get_args(field.type)[0] if hasattr(field.type, "__metadata__") else field.type
    if get_origin(kind) is Literal:
        return "{" + ",".join(str(choice) for choice in get_args(kind) if choice != "") + "}"
    if get_origin(kind) is tuple:
        return f"{_KINDS.get(get_args(kind)[0], 'VALUE')} ..."
    return _KINDS.get(kind, "VALUE")


_KINDS = {int: "N", float: "X", str: "TEXT"}
