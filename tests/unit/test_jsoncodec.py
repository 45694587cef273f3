"""JSON with typed values."""

from __future__ import annotations

import json
import math
import sys
import types
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenconn import jsoncodec
from greenconn.jsoncodec import (
    JSONEncoder,
    NestedTooDeeply,
    dumps,
    encode,
    encode_body,
    loads,
    object_hook,
    register_type,
)
from tests.unit.test_fields import Size

TYPED = [
    (datetime(2024, 5, 17, 12, 30, 1, 5), "datetime", "2024-05-17T12:30:01.000005"),
    (
        datetime(2024, 5, 17, tzinfo=timezone(timedelta(hours=2))),
        "datetime",
        "2024-05-17T00:00:00+02:00",
    ),
    (date(2024, 5, 17), "date", "2024-05-17"),
    (time(1, 2, 3), "time", "01:02:03"),
    (Decimal("1.10"), "decimal", "1.10"),
    (uuid.UUID(int=5), "uuid", {"hex": "0" * 31 + "5"}),
    (b"text", "bytes", "text"),
    (b"\xff\x00", "base64", "/wA="),
]


@pytest.fixture(autouse=True, params=["msgspec", "standard"], scope="module")
def library(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test runs as it does with plain values, and as with those that msgspec cannot have."""
    if request.param == "msgspec":
        yield
    else:
        with standard_library():
            yield


@contextmanager
def standard_library() -> Iterator[None]:
    """Encode and decode with the standard library alone."""

    def refuse(value: Any) -> Any:
        raise ValueError

    before = jsoncodec._plain_encode, jsoncodec._msgspec_decode
    jsoncodec._plain_encode = jsoncodec._msgspec_decode = refuse  # type: ignore[misc]
    try:
        yield
    finally:
        jsoncodec._plain_encode, jsoncodec._msgspec_decode = before  # type: ignore[misc]


@pytest.fixture
def own_types() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    encoders, decoders = dict(jsoncodec._encoders), dict(jsoncodec._decoders)
    yield
    for registered, before in ((jsoncodec._encoders, encoders), (jsoncodec._decoders, decoders)):
        registered.clear()
        registered.update(before)  # type: ignore[arg-type]  # two kinds of registry


@pytest.mark.parametrize(("value", "marker", "encoded"), TYPED)
def test_typed_values(value: Any, marker: str, encoded: Any) -> None:
    text = dumps({"v": [value]})
    assert json.loads(text) == {"v": [{"__type__": marker, "__value__": encoded}]}
    (back,) = loads(text)["v"]
    assert back == value
    assert type(back) is type(value)


class Pair(NamedTuple):
    one: int
    two: int


@dataclass
class Event:
    day: date
    size: Size


@pytest.mark.parametrize(
    ("value", "text", "decoded"),
    [
        ((1, 2), "[1, 2]", [1, 2]),
        (Pair(1, 2), "[1, 2]", [1, 2]),
        ({1: "a", None: "b", 1.5: "c"}, '{"1": "a", "null": "b", "1.5": "c"}', None),
        ([float("inf"), -float("inf")], "[Infinity, -Infinity]", None),
        (2**70, "1180591620717411303424", 2**70),
        (Size.SMALL, '"s"', "s"),
        (
            Event(date(2024, 5, 17), Size.SMALL),
            '{"day": {"__type__": "date", "__value__": "2024-05-17"}, "size": "s"}',
            {"day": date(2024, 5, 17), "size": "s"},
        ),
    ],
)
def test_what_becomes_something_else(value: Any, text: str, decoded: Any) -> None:
    assert dumps(value) == text
    if decoded is not None:
        assert loads(text) == decoded


def test_nan() -> None:
    assert dumps(float("nan")) == "NaN"
    assert math.isnan(loads("NaN"))


@pytest.mark.parametrize("value", [{1}, timedelta(1), Event, {(1, 2): 3}, {date(2024, 5, 17): 1}])
def test_what_cannot_be_written(value: Any) -> None:
    with pytest.raises(TypeError):
        dumps(value)


def test_text_is_that_of_the_standard_library() -> None:
    value = {"a": [1, 2.5, None, True], "ä": "\u2028", "n": {"x": []}, "nan": float("inf")}
    assert dumps(value) == json.dumps(value)


@pytest.mark.parametrize("wrap", [str.encode, lambda s: bytearray(s, "utf-8"), str])
def test_loads_takes_text_and_buffers(wrap: Any) -> None:
    assert loads(wrap('{"ä": 1}')) == {"ä": 1}
    assert loads(memoryview('["ä"]'.encode())) == ["ä"]


@pytest.mark.parametrize("text", [" [1]", "[1] ", "\n[1]\n"])
def test_blanks_around(text: str) -> None:
    assert loads(text) == [1]


@pytest.mark.parametrize("text", ["", " ", "[1", "[1] x", "{'a': 1}", "\ufeff[1]", "nul"])
def test_no_json(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        loads(text)


def test_no_utf8() -> None:
    with pytest.raises(UnicodeDecodeError):
        loads(b'"\xff"')


def test_marker_with_escaped_letters() -> None:
    assert loads('{"\\u005f_type__": "decimal", "__value__": "1"}') == Decimal(1)
    assert loads('{"a\\n": "\\u00e9"}') == {"a\n": "é"}


def test_objects_that_only_look_typed() -> None:
    for value in ({"__type__": "bytes"}, {"__type__": "bytes", "__value__": "x", "more": 1}):
        assert loads(json.dumps(value)) == value
    assert loads('"__type__"') == "__type__"


def test_unknown_marker() -> None:
    with pytest.raises(ValueError, match="no JSON type 'nope' is registered"):
        loads('{"__type__": "nope", "__value__": 1}')


def test_object_hook_of_the_caller() -> None:
    assert loads('{"a": 1}', object_hook=lambda o: list(o)) == ["a"]
    assert object_hook({"__type__": "bytes", "__value__": "x"}) == b"x"


def test_other_libraries_and_options() -> None:
    assert loads(b"[1]", decode_bytes=False) == [1]
    assert loads("[1]", _loads=lambda s, object_hook: s + "!") == "[1]!"
    assert dumps({"b": b"x", "a": 1}, sort_keys=True).startswith('{"a": 1')
    assert dumps([1, 2], default_kwargs={"separators": (",", ":")}) == "[1,2]"
    assert dumps([1], _dumps=lambda s, cls: cls.__name__) == "JSONEncoder"
    assert json.dumps(b"x", cls=JSONEncoder) == dumps(b"x")


def test_json_method() -> None:
    class Point:
        def __json__(self) -> list[int]:
            return [1, 2]

    assert dumps({"p": Point()}) == '{"p": [1, 2]}'


def test_unknown_type() -> None:
    with pytest.raises(TypeError, match="Object of type object is not JSON serializable"):
        dumps({"x": object()})


def test_circle_ends() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises((RecursionError, ValueError)):
        dumps(circle)
    assert dumps([[]]) == "[[]]"


def test_register_type(own_types: None) -> None:
    register_type(complex, "complex", lambda c: [c.real, c.imag], lambda parts: complex(*parts))
    assert loads(dumps({"z": 1 + 2j})) == {"z": 1 + 2j}
    register_type(frozenset, None, lambda items: sorted(items))
    assert dumps(frozenset({2, 1})) == "[1, 2]"


def test_subclass_of_a_registered_type() -> None:
    class Moment(datetime):
        pass

    assert json.loads(dumps(Moment(2024, 1, 1)))["__type__"] == "datetime"


def test_lazy_translation_of_django(monkeypatch: pytest.MonkeyPatch) -> None:
    class Promise:
        def __str__(self) -> str:
            return "hallo"

    module = types.ModuleType("django.utils.functional")
    module.Promise = Promise  # type: ignore[attr-defined]  # as Django has it
    with pytest.raises(TypeError):
        dumps(Promise())
    monkeypatch.setitem(sys.modules, "django.utils.functional", module)
    assert dumps([Promise()]) == '["hallo"]'


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.dates()
    | st.times()
    | st.datetimes()
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
@settings(derandomize=True)
def test_round_trip(value: Any) -> None:
    assert loads(dumps(value).encode()) == value


@pytest.mark.parametrize("name", ["bytes", "base64", "decimal", "uuid", "datetime", "time", [], 5])
@pytest.mark.parametrize("value", ["x\ud800", [], {"int": -1}, None])
def test_a_typed_value_that_is_none_is_a_value_error(name: Any, value: Any) -> None:
    text = json.dumps({"__type__": name, "__value__": value})
    with pytest.raises(ValueError):
        loads(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"__type__":' * 100_000, b"[" * 100_000])
def test_what_is_nested_too_deeply_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(NestedTooDeeply):
        loads(text)


# The faster libraries


def outcome(work: Callable[[Any], Any], argument: Any) -> tuple[Any, ...]:
    """Return what *work* returned, with its types and NaN as text, or the error that it raised."""
    try:
        return ("returned", repr(work(argument)))
    except Exception as exc:
        return (type(exc), str(exc))


def decoded_body(value: Any) -> Any:
    """Encode a body and decode it again."""
    return loads(encode_body(value))


numbers = st.integers() | st.integers(-(2**66), 2**66) | st.floats()
texts = st.text() | st.text(st.characters(categories=["Cs", "Cc", "Lu"]))
keys = texts | st.sampled_from(["__type__", "__value__"]) | numbers | st.booleans() | st.none()
of_other_types = st.sampled_from(
    [
        *(value for value, _, _ in TYPED),
        *(Size.SMALL, Pair(1, 2), Event(date(2024, 5, 17), Size.SMALL), {1, 2}, frozenset()),
        *(timedelta(1), 1j, object, bytearray(b"x"), memoryview(b"x"), range(2)),
    ]
)
bodies = st.recursive(
    st.none() | st.booleans() | numbers | texts | of_other_types,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)
#: Pieces of JSON and of what is almost JSON.
pieces = st.sampled_from(
    [
        *'[]{}:,"\\ \t\n\r\x00\x1f\ufeffé\ud800-+.eE019',
        *("NaN", "-Infinity", "null", "true", "Null", "1e400", "-0", "1" * 20, "[[", "]]"),
        *('"a"', "\\u00e9", "\\ud83d\\ude00", "\\ud800", "\\u005f", "\\/", "\\x"),
        *('"__type__"', '"__value__"', '"\\u005f_type__"', '"decimal"', '{"a": 1, "a": 2}'),
    ]
)


@pytest.mark.pure
@given(bodies)
def test_bodies_are_the_same_with_msgspec(value: Any) -> None:
    with standard_library():
        expected = outcome(decoded_body, value)
    assert outcome(decoded_body, value) == expected


@pytest.mark.pure
@given(bodies, st.data())
def test_texts_are_decoded_alike_with_msgspec(value: Any, data: st.DataObject) -> None:
    try:
        text = encode(value)
    except (TypeError, ValueError):
        text = "[]"
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(pieces) + text[at + data.draw(st.integers(0, 2)) :]
    with standard_library():
        expected = outcome(loads, text)
    assert outcome(loads, text) == expected


@pytest.mark.pure
@given(st.lists(pieces, max_size=12).map("".join))
def test_what_is_almost_json_is_refused_alike(text: str) -> None:
    with standard_library():
        expected = outcome(loads, text)
    assert outcome(loads, text) == expected


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000, "9" * 5000, "[" + "1," * 9],
    ids=["open", "closed", "objects", "digits", "unfinished"],
)
def test_limits_of_texts_are_the_same(text: str) -> None:
    with standard_library():
        expected = outcome(loads, text)
    assert outcome(loads, text) == expected


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def circular() -> list[Any]:
    value: list[Any] = []
    value.append({"itself": value})
    return value


@pytest.mark.parametrize(
    "value",
    [nested(100), nested(300), nested(100_000), circular(), [10**5000], {"a": None, "b": math.nan}],
    ids=["nested", "nested deeper", "nested too deeply", "circular", "digits", "null"],
)
def test_limits_of_bodies_are_the_same(value: Any) -> None:
    with standard_library():
        expected = outcome(decoded_body, value)
    found = outcome(decoded_body, value)
    assert found[0] == expected[0]
    assert found[0] is RecursionError or found == expected


def test_plain_bodies_are_encoded_by_msgspec(library: None) -> None:
    text = encode_body({"a": [1, "\u00e9"]})
    assert text in ('{"a":[1,"\u00e9"]}', '{"a": [1, "\\u00e9"]}')
    with standard_library():
        assert encode_body({"a": [1, "\u00e9"]}) == '{"a": [1, "\\u00e9"]}'
        assert loads(text) == {"a": [1, "\u00e9"]}
