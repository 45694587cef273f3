"""Every name of kombu_api.md exists here under the same path, and takes the same arguments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from fnmatch import fnmatchcase
from inspect import Parameter
from typing import Any, Final

import pytest

from tests.compat.documented import UNKNOWN, Documented, documented
from tests.compat.on_purpose import ON_PURPOSE

NAMES: Final = documented()

#: Beside what ON_PURPOSE excuses -> why.
ALSO: Final[Mapping[str, str]] = {
    "connection.CERT_NONE": "the module ssl has it",
    "matcher.entrypoints": "kombu's own use of something else's name",
    "transport.redis.*": "not in this version",
}


def ours(each: Documented) -> Any:
    """What we have for a name; raises ImportError or AttributeError."""
    value: Any = importlib.import_module("greenconn" + each.module.removeprefix("kombu"))
    *path, last = each.name.split(".")
    for name in path:
        value = getattr(value, name)
    if isinstance(value, type) and last in getattr(value, "__slots__", ()):
        return None
    return getattr(value, last)


def problem(each: Documented) -> str | None:
    """What is wrong with what we have for a name."""
    try:
        value = ours(each)
    except (ImportError, AttributeError) as exc:
        return f"missing ({exc})"
    if each.arguments is None:
        return None
    if not callable(value):
        return "cannot be called"
    if isinstance(value, type) and each.arguments and not each.name.endswith("__init__"):
        value = value.__init__  # type: ignore[misc]  # its signature is looked at
    return _misfit(each, value)


def _misfit(each: Documented, function: Any) -> str | None:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    is_special = each.name.rpartition(".")[2].startswith("__")
    takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())
    places = list(parameters)
    last = -1
    for argument in each.arguments or ():
        if argument.name not in parameters:
            if takes_any or (is_special and not each.name.endswith("__init__")):
                continue
            return f"has no argument {argument.name}"
        default = parameters[argument.name].default
        if argument.default is not ... and default is Parameter.empty:
            return f"{argument.name} has no default"
        if argument.default not in (..., UNKNOWN) and default != argument.default:
            return f"{argument.name}={default!r}, not {argument.default!r}"
        place = places.index(argument.name)
        if place < last and parameters[argument.name].kind is not Parameter.KEYWORD_ONLY:
            return f"{argument.name} is in another place"
        last = place
    return None


def is_excused(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in (*ON_PURPOSE, *ALSO))


@pytest.mark.parametrize("module", sorted({each.module for each in NAMES}))
def test_nothing_is_missing(module: str) -> None:
    found = {str(each): problem(each) for each in NAMES if each.module == module}
    assert {name: what for name, what in found.items() if what and not is_excused(name)} == {}


def test_the_text_was_read() -> None:
    names = {str(each) for each in NAMES}
    assert len(names) > 500
    assert {
        *("connection.Connection.ensure", "pidbox.Mailbox.oid", "messaging.Producer.publish"),
        *("utils.text.fmatch_best", "entity.Queue.durable", "connection.ChannelPool.new"),
    } <= names


def test_the_table_has_no_line_too_many() -> None:
    found = [str(each) for each in NAMES if problem(each)]
    assert [
        pattern for pattern in ALSO if not any(fnmatchcase(each, pattern) for each in found)
    ] == []
