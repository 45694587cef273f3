"""Full signatures: one for each function, with each keyword argument by its name."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import stringify_signature

if TYPE_CHECKING:
    from sphinx.application import Sphinx

#: Of ``**options``: the keyword arguments are the keys of a ``TypedDict``.
_UNPACKED: Final = re.compile(r"Unpack\[(\w+)\]")


class LeftOut:
    """The default of an argument that is only passed on."""

    def __repr__(self) -> str:
        return "..."


LEFT_OUT: Final = LeftOut()
_analyze = ModuleAnalyzer.analyze


def analyze_implementations(analyzer: ModuleAnalyzer) -> None:
    """Leave overloads to type checkers: the implementation has all arguments, with their defaults."""
    _analyze(analyzer)
    analyzer.overloads = {}


def name_arguments(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Put the keys of a ``TypedDict`` where a signature has ``**options: Unpack[...]``."""
    try:
        found = inspect.signature(obj)
    except (TypeError, ValueError):
        return None
    *parameters, last = found.parameters.values() or [None]
    unpacked = last and _UNPACKED.fullmatch(str(last.annotation))
    if not unpacked:
        return None
    known = {each.name for each in parameters}
    for key, hint in sorted(keys_of(unpacked[1]).items()):
        if key not in known:
            parameters.append(
                inspect.Parameter(
                    key, inspect.Parameter.KEYWORD_ONLY, default=LEFT_OUT, annotation=hint
                )
            )
    if what == "method":
        parameters = parameters[1:]
    whole = found.replace(parameters=parameters)
    return stringify_signature(whole, show_return_annotation=False), returns


@cache
def typed_dicts() -> dict[str, ast.ClassDef]:
    """Return the classes of the package that may be a ``TypedDict``, by name, from the source.

    Some are defined for type checkers only, so they cannot be imported.
    """
    found = {}
    for path in (Path(__file__).parents[2] / "greenconn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.bases:
                found[node.name] = node
    return found


def keys_of(name: str) -> dict[str, str]:
    """Return the keys of a ``TypedDict`` with their types, those of its bases first."""
    keys: dict[str, str] = {}
    cls = typed_dicts().get(name)
    if cls is not None:
        for base in cls.bases:
            keys |= keys_of(ast.unparse(base))
        for line in cls.body:
            if isinstance(line, ast.AnnAssign):
                hint = ast.unparse(line.annotation)
                keys[ast.unparse(line.target)] = re.sub(r"^NotRequired\[(.*)\]$", r"\1", hint)
    return keys


def skip_aliases(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out attributes of classes that are classes described elsewhere, as kombu has them."""
    is_alias = what == "class" and inspect.isclass(obj) and "." not in obj.__qualname__
    return True if is_alias else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    ModuleAnalyzer.analyze = analyze_implementations  # type: ignore[method-assign]
    app.connect("autodoc-process-signature", name_arguments)
    app.connect("autodoc-skip-member", skip_aliases)
    return {"parallel_read_safe": True}
