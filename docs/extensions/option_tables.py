"""Tables of options, made from the classes that define them.

``.. options:: greenconn.transport.redis.options.RedisOptions`` lists its fields: type, default and
meaning.  The fields of a base class come after its own.
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from docutils.statemachine import StringList
from sphinx.ext.autodoc.importer import import_object
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docutils import nodes
    from sphinx.application import Sphinx


class Options(SphinxDirective):
    """The table of one class."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        module, _, name = self.arguments[0].rpartition(".")
        cls = import_object(module, [name])[-1]
        lines = [
            ".. list-table::",
            "   :header-rows: 1",
            "   :widths: 26 14 60",
            "   :class: options",
            "",
            *row(["Option"], ["Default"], ["Meaning"]),
        ]
        for option, hint, default, meaning in fields_of(cls):
            lines += row([f"``{option}``", "", f":sub:`{hint}`"], [f"``{default}``"], meaning)
        return self.parse_text_to_nodes("\n".join(StringList(lines, self.arguments[0])))


def row(*cells: list[str]) -> Iterator[str]:
    """Return the lines of a row of cells, each given by its lines."""
    for number, (first, *others) in enumerate(cells):
        yield f"   {'-' if number else '* -':>3} {first}"
        for line in others:
            yield f"       {line}" if line else ""


def fields_of(cls: type[Any]) -> Iterator[tuple[str, str, str, list[str]]]:
    """Return name, type, default and meaning of each field that has a meaning, in order."""
    seen: set[str] = set()
    for base in inspect.getmro(cls):
        if not base.__module__.startswith("greenconn"):
            continue
        hints = inspect.get_annotations(base)
        found = ModuleAnalyzer.for_module(base.__module__).find_attr_docs()
        for name, hint in hints.items():
            meaning = found.get((base.__name__, name))
            if meaning is None or name in seen or "ClassVar" in str(hint):
                continue
            seen.add(name)
            yield name, str(hint), default_of(cls, name), [each for each in meaning if each]


def default_of(cls: type[Any], name: str) -> str:
    """Return the text of a field's default."""
    if not is_dataclass(cls):
        return repr(getattr(cls, name))
    (field,) = (each for each in fields(cls) if each.name == name)
    return "required" if field.default is MISSING else repr(field.default)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("options", Options)
    return {"parallel_read_safe": True}
