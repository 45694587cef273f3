"""Objects by their names."""

from __future__ import annotations

import collections
import json
import json.decoder
from typing import Any

import pytest

from greenconn.importing import symbol_by_name


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("collections:OrderedDict", {}, collections.OrderedDict),
        ("collections.OrderedDict", {}, collections.OrderedDict),
        ("json.decoder:JSONDecoder", {}, json.JSONDecoder),
        ("json", {}, json),
        ("json.decoder", {}, json.decoder),
        (dict, {}, dict),
        (None, {}, None),
        ("short", {"aliases": {"short": "json:loads"}}, json.loads),
        ("json/loads", {"sep": "/"}, json.loads),
        (".decoder", {"package": "json"}, json.decoder),
        (".decoder:JSONDecoder", {"package": "json"}, json.JSONDecoder),
        ("loads", {"package": "json"}, json.loads),
        ("no_such_module_here", {"default": 3}, 3),
        ("json:nope", {"default": 3}, 3),
    ],
)
def test_symbol(name: Any, kwargs: dict[str, Any], expected: object) -> None:
    assert symbol_by_name(name, **kwargs) is expected


def test_own_import_function() -> None:
    calls: list[Any] = []

    def imp(name: str, **kwargs: Any) -> Any:
        calls.append((name, kwargs))
        return collections

    assert symbol_by_name("x:deque", imp=imp, level=1) is collections.deque
    assert calls == [("x", {"package": None, "level": 1})]


def test_absent() -> None:
    with pytest.raises(ImportError):
        symbol_by_name("no_such_module_here:x")
    with pytest.raises(AttributeError):
        symbol_by_name("json:nope")
    with pytest.raises(ValueError, match="cannot import ''"):
        symbol_by_name("")
