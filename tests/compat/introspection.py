"""What a module offers, and in what another one that stands in for it differs.

A call that the original takes must be taken: positional arguments have the same names, order and
defaults; further optional ones may follow.  Special methods are called by position, so their names
do not count.  Classes are kinds of classes of the same names as the original's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from inspect import Parameter
from types import ModuleType
from typing import Any, Final

_POSITIONAL: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_CALLED_BY_PYTHON: Final = frozenset(
    {
        *("__init__", "__call__", "__enter__", "__exit__", "__copy__", "__reduce__", "__eqhash__"),
        *("__len__", "__bool__", "__iter__", "__getitem__", "__missing__"),
    }
)

Found = tuple[str, str]


def differences(theirs: ModuleType, ours: ModuleType) -> dict[str, str]:
    """What *ours* lacks or has otherwise than *theirs*: dotted name -> what it is."""
    exported = getattr(theirs, "__all__", ())
    found: dict[str, str] = {}
    for name, value in sorted(vars(theirs).items()):
        if not _is_offered(theirs, name, value, exported):
            continue
        if hasattr(ours, name):
            found.update(_compared(name, value, getattr(ours, name)))
        else:
            found[name] = "missing"
    return found


def _is_offered(module: ModuleType, name: str, value: Any, exported: Any) -> bool:
    """Whether the module defines *name*, rather than using something from elsewhere."""
    if name in exported:
        return True
    if name.startswith("_") or name == "TYPE_CHECKING" or isinstance(value, ModuleType):
        return False
    return getattr(value, "__module__", None) in (None, module.__name__)


def _compared(name: str, theirs: Any, ours: Any) -> Iterator[Found]:
    if isinstance(theirs, type):
        if isinstance(ours, type):
            yield from _classes(name, theirs, ours)
        else:
            yield name, "not a class"
    elif callable(theirs):
        problem = _calls(theirs, ours)
        if problem:
            yield name, problem
    elif not _is_alike(theirs, ours):
        yield name, f"{ours!r}, not {theirs!r}"


def _classes(name: str, theirs: type, ours: type) -> Iterator[Found]:
    if theirs is ours:
        return
    kinds = [cls.__name__ for cls in ours.__mro__]
    missing = [cls.__name__ for cls in theirs.__mro__ if cls.__name__ not in kinds]
    if missing:
        yield name, f"is no kind of {missing}"
    for attribute, raw in sorted(_members(theirs).items()):
        path = f"{name}.{attribute}"
        if not hasattr(ours, attribute):
            yield path, "missing"
            continue
        problem = _members_differ(attribute, raw, getattr(theirs, attribute), ours)
        if problem:
            yield path, problem


def _members_differ(attribute: str, raw: Any, theirs: Any, ours: type) -> str:
    mine = getattr(ours, attribute)
    if inspect.isfunction(raw) or isinstance(raw, (classmethod, staticmethod)):
        by_python = attribute.startswith("__") and attribute != "__init__"
        return _calls(theirs, mine, by_python=by_python)
    if isinstance(raw, property):
        own = inspect.getattr_static(ours, attribute)
        is_fixed = isinstance(own, property) and own.fset is None
        return "cannot be set" if raw.fset is not None and is_fixed else ""
    if _is_slot(raw) or type(raw).__name__ == "cached_property" or _is_alike(theirs, mine):
        return ""
    return f"{mine!r}, not {theirs!r}"


def _members(cls: type) -> dict[str, Any]:
    """What a class defines, or inherits from a class that is not built in."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base.__module__ == "builtins":
            break
        for name, raw in vars(base).items():
            if not name.startswith("_") or name in _CALLED_BY_PYTHON:
                found.setdefault(name, raw)
    return found


def _is_slot(raw: Any) -> bool:
    return type(raw).__name__ in ("member_descriptor", "getset_descriptor", "_tuplegetter")


def _is_alike(theirs: Any, ours: Any) -> bool:
    return bool(_plain(theirs) == _plain(ours))


def _plain(value: Any) -> Any:
    """*value* with the names of the libraries' own classes, functions and objects in their places."""
    if value is None or isinstance(value, (str, bytes, int, float, set, frozenset, list)):
        return value
    if isinstance(value, tuple):
        return tuple(dict.fromkeys(_plain(each) for each in value))  # OSError has three names
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, type):
        return value.__name__
    return "function" if inspect.isroutine(value) else f"a {type(value).__name__}"


def _calls(theirs: Callable[..., Any], ours: Any, *, by_python: bool = False) -> str:
    """What goes wrong when *ours* is called as *theirs* is; nothing if all goes well."""
    if not callable(ours):
        return "cannot be called"
    try:
        original = list(inspect.signature(theirs).parameters.values())
        mine = list(inspect.signature(ours).parameters.values())
    except (TypeError, ValueError):
        return ""  # built in: it says nothing
    if _takes_keywords(ours) and not any(each.kind is Parameter.VAR_KEYWORD for each in mine):
        mine.append(Parameter("kwargs", Parameter.VAR_KEYWORD))  # each of which it shows by name
    return ", ".join(_problems(original, mine, by_python=by_python))


def _takes_keywords(function: Any) -> bool:
    """Return whether the code of a function, or of a class, has ``**kwargs``."""
    called = getattr(function, "__init__") if isinstance(function, type) else function  # noqa: B009
    code = getattr(called, "__code__", None)
    return code is not None and bool(code.co_flags & inspect.CO_VARKEYWORDS)


def _problems(
    original: list[Parameter], mine: list[Parameter], *, by_python: bool
) -> Iterator[str]:
    places = [each for each in mine if each.kind in _POSITIONAL]
    takes_more = any(each.kind is Parameter.VAR_POSITIONAL for each in mine)
    takes_keywords = any(each.kind is Parameter.VAR_KEYWORD for each in mine)
    keywords = {each.name for each in mine}
    used = set()
    for number, wanted in enumerate(original):
        if wanted.kind in _POSITIONAL:
            if number >= len(places):
                if not takes_more:
                    yield f"no {wanted.name}"
                continue
            used.add(places[number].name)
            if not by_python:
                yield from _place(wanted, places[number])
        elif wanted.kind is Parameter.KEYWORD_ONLY:
            used.add(wanted.name)
            if wanted.name not in keywords and not takes_keywords:
                yield f"no {wanted.name}"
        elif wanted.kind is Parameter.VAR_POSITIONAL:
            if not takes_more:
                yield "no *args"
        elif not takes_keywords:
            yield "no **kwargs"
    for each in mine:
        is_free = each.default is not Parameter.empty or each.kind not in (
            *_POSITIONAL,
            Parameter.KEYWORD_ONLY,
        )
        if each.name not in used and not is_free:
            yield f"needs {each.name}"


def _place(wanted: Parameter, place: Parameter) -> Iterator[str]:
    if wanted.name != place.name:
        yield f"{place.name} where {wanted.name} was"
    if wanted.default is not Parameter.empty and not _is_alike(wanted.default, place.default):
        yield f"{place.name}={place.default!r}, not {wanted.default!r}"
