"""The names that kombu_api.md lists, read from it.

A line belongs to the module or class of the last heading, or to the module that it begins with in
bold.  Names stand in backticks: ``name(arguments)``, ``name=default``, ``Class``, or in a list of
properties.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

TEXT: Final = Path(__file__).with_name("kombu_api.md")

#: A default that is not a plain value.
UNKNOWN: Final = object()

_MODULE = re.compile(r"## (kombu[\w.]*)")
_CLASS = re.compile(r"### (kombu[\w.]*)\.(\w+)\(")
_BELOW = re.compile(r"- \*\*(kombu[\w.]*)\*\*: ")
_SPAN = re.compile(r"`([^`]+)`")
_CALL = re.compile(r"(?:class )?(\w+)\((.*)\)", re.DOTALL)
_VALUE = re.compile(r"(\w+)\s*=")


@dataclass(frozen=True)
class Argument:
    """One argument of a call."""

    name: str
    #: Its default: ``...`` if it has none, UNKNOWN if it cannot be read.
    default: Any = ...


@dataclass(frozen=True)
class Documented:
    """A name of kombu's: what it belongs to, and its arguments if it can be called."""

    module: str
    name: str
    arguments: tuple[Argument, ...] | None = None

    def __str__(self) -> str:
        return f"{self.module.removeprefix('kombu').lstrip('.')}.{self.name}".lstrip(".")


def documented() -> list[Documented]:
    """All names, each once."""
    found: dict[str, Documented] = {}
    for each in _read():
        found.setdefault(str(each), each)
    return list(found.values())


def _read() -> Iterator[Documented]:
    module: str | None = None
    prefix = ""
    for line in TEXT.read_text().splitlines():
        if line.startswith("#"):
            heading, kind = _MODULE.match(line), _CLASS.match(line)
            if kind:
                module, prefix = kind[1], f"{kind[2]}."
                yield Documented(module, kind[2])
            else:
                module, prefix = (heading[1] if heading else None), ""
        elif below := _BELOW.match(line):
            yield from _named_in(line[below.end() :], below[1], "")
        elif module is not None:
            yield from _named_in(line, module, prefix)


def _named_in(line: str, module: str, prefix: str) -> Iterator[Documented]:
    if line.startswith("`__all__`:"):
        names = line.partition(":")[2].split(",")
        yield from (Documented(module, name.strip()) for name in names)
    elif line.startswith("- properties:"):
        names = line.partition(":")[2].replace("(rw)", "").split(",")
        yield from (Documented(module, prefix + name.strip()) for name in names)
    elif line.startswith("constants:"):
        for span in _SPAN.findall(line):
            yield from _named(span, module, "")
    elif line.startswith(("`", "- `", "- class")):
        for span in _SPAN.findall(line):
            yield from _named(span, module, prefix)


def _named(span: str, module: str, prefix: str) -> Iterator[Documented]:
    call, value = _CALL.fullmatch(span), _VALUE.match(span)
    if call:
        yield Documented(module, prefix + call[1], tuple(_arguments(call[2])))
    elif value:
        yield Documented(module, prefix + value[1])
    elif span.isidentifier():
        yield Documented(module, prefix + span)


def _arguments(text: str) -> Iterator[Argument]:
    for part in _parts(text):
        name, has_default, default = part.partition("=")
        name = name.strip()
        if name.startswith("*") or name in ("", "self", "cls", "/") or not name.isidentifier():
            continue
        if not has_default:
            yield Argument(name)
            continue
        try:
            yield Argument(name, ast.literal_eval(default.strip()))
        except (ValueError, SyntaxError):
            yield Argument(name, UNKNOWN)


def _parts(text: str) -> Iterator[str]:
    """Split at the commas that are in no bracket."""
    depth, begin = 0, 0
    for index, char in enumerate(text):
        if char in "([{<":
            depth += 1
        elif char in ")]}>":
            depth -= 1
        elif char == "," and depth == 0:
            yield text[begin:index]
            begin = index + 1
    yield text[begin:]
