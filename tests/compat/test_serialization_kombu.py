"""The same bodies and URLs through kombu and through greenconn."""

from __future__ import annotations

import json
import uuid
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenconn import compression, jsoncodec, serialization, url

kombu_serialization = pytest.importorskip("kombu.serialization")
kombu_compression = pytest.importorskip("kombu.compression")
kombu_json = pytest.importorskip("kombu.utils.json")
kombu_url = pytest.importorskip("kombu.utils.url")

SERIALIZERS = ["json", "yaml", "msgpack", "pickle", "raw", None]

BODIES = [
    "",
    "text ä\u2028\U0001f600",
    b"",
    b"bytes",
    b"\xff\x00",
    None,
    True,
    0,
    1.5,
    [],
    {},
    {"a": [1, {"b": None}], "ä": "ö", "1": [[]]},
    {"args": (1, 2), "kwargs": {"x": "y"}},
    {1: 2, None: 3, False: 4, 1.5: 5},
    float("inf"),
    datetime(2024, 5, 17, 12, 30, 1, 5),
    datetime(2024, 5, 17, tzinfo=timezone.utc),
    [datetime(2024, 5, 17, tzinfo=timezone(timedelta(hours=-3))), date(2024, 5, 17)],
    {"t": time(1, 2, 3, 4), "d": Decimal("1.10"), "u": uuid.UUID(int=7), "b": b"x", "r": b"\xff"},
    {"__type__": "bytes"},
    {"__type__": "bytes", "__value__": "x"},
    {"__type__": "bytes", "__value__": "x", "more": 1},
    2**80,
]


def outcome(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What a call returns, or the name of the error that it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as exc:
        return type(exc).__name__


def meant(encoded: Any) -> Any:
    """What was encoded, with the value of JSON in place of its text, which may have other spaces."""
    if isinstance(encoded, tuple) and encoded[0] == "application/json":
        return (*encoded[:2], repr(json.loads(encoded[2])))
    return encoded


def assert_alike(body: Any, serializer: str | None) -> None:
    ours = outcome(serialization.dumps, body, serializer)
    theirs = outcome(kombu_serialization.dumps, body, serializer)
    assert meant(ours) == meant(theirs)
    if isinstance(ours, str):
        return  # both refuse it, by the same error
    assert [type(part) for part in ours] == [type(part) for part in theirs]
    content_type, content_encoding, encoded = ours
    for raw in (encoded, encoded.encode() if isinstance(encoded, str) else encoded):
        arguments = (raw, content_type, content_encoding)
        back = outcome(serialization.loads, *arguments, force=True)
        expected = outcome(kombu_serialization.loads, *arguments, force=True)
        if raw == b"" and content_encoding == "utf-8":
            expected = ""  # kombu leaves empty text as bytes
        assert back == expected
        assert type(back) is type(expected)


@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("body", BODIES, ids=repr)
def test_bodies(body: Any, serializer: str | None) -> None:
    assert_alike(body, serializer)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.binary(max_size=10)
    | st.decimals()
    | st.uuids()
    | st.dates()
    | st.times()
    | st.datetimes()
)
bodies = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(bodies)
@settings(derandomize=True)
def test_json_means_the_same_as_kombus(body: Any) -> None:
    ours = outcome(serialization.dumps, body, "json")
    assert meant(ours) == meant(outcome(kombu_serialization.dumps, body, "json"))


@given(bodies)
@settings(derandomize=True)
def test_text_of_json_utilities_is_kombus(body: Any) -> None:
    assert outcome(jsoncodec.dumps, body) == outcome(kombu_json.dumps, body)


@pytest.mark.parametrize(
    ("data", "content_type", "encoding", "accept"),
    [
        (b"[1]", "application/json", "utf-8", None),
        (b"[1]", "application/json", None, {"application/json"}),
        (b"[1]", "application/json", "utf-8", {"text/plain"}),
        (b"[1", "application/json", "utf-8", None),
        (b"\xff", "application/json", "utf-8", None),
        (b"", "application/json", "utf-8", None),
        (b"x", "text/plain", "utf-8", set()),
        (b"x", "application/data", "binary", set()),
        (b"x", "application/text", "us-ascii", set()),
        (b"\xe4", "text/plain", "latin-1", None),
        (b"\xff", "text/plain", "utf-8", None),
        (b"\xff", "text/plain", "ascii-8bit", None),
        (b"x", None, None, None),
        (b"\x80\x04N.", "application/x-python-serialize", "binary", None),
        (b"a: 1", "application/x-yaml", "utf-8", None),
        (b"x", "application/unheard-of", "utf-8", None),
        (b'{"__type__": "nope", "__value__": 1}', "application/json", "utf-8", None),
        (b'{"\\u005f_type__": "bytes", "__value__": "x"}', "application/json", "utf-8", None),
        (b" [1] ", "application/json", "utf-8", None),
        (b"\xef\xbb\xbf[1]", "application/json", "utf-8", None),
        (b"[NaN, Infinity]", "application/json", "utf-8", None),
    ],
)
def test_loads(data: bytes, content_type: Any, encoding: Any, accept: Any) -> None:
    arguments = (data, content_type, encoding)
    ours = outcome(serialization.loads, *arguments, accept=accept)
    theirs = outcome(kombu_serialization.loads, *arguments, accept=accept)
    assert repr(ours) == repr(theirs)


def test_registry() -> None:
    ours, theirs = serialization.registry, kombu_serialization.registry
    assert ours.type_to_name == theirs.type_to_name
    assert ours.name_to_type == theirs.name_to_type
    assert ours._disabled_content_types == theirs._disabled_content_types
    for name in (*theirs.name_to_type, "text/plain"):
        assert serialization.prepare_accept_content(
            [name]
        ) == kombu_serialization.prepare_accept_content([name])


@pytest.mark.parametrize(
    "kind", ["gzip", "zlib", "bzip2", "bzip", "lzma", "xz", "application/x-gzip"]
)
def test_compression(kind: str) -> None:
    body = "ä" * 1000
    ours = compression.compress(body, kind)
    assert ours == kombu_compression.compress(body, kind)
    assert compression.decompress(*ours) == kombu_compression.decompress(*ours) == body.encode()


def test_compression_names() -> None:
    assert set(kombu_compression.encoders()) <= set(compression.encoders())
    assert kombu_compression._aliases.items() <= compression._aliases.items()


@pytest.mark.parametrize(
    "text",
    [
        "amqp://",
        "amqp://guest:guest@localhost:5672//",
        "amqp://localhost//foo",
        "amqp://localhost/foo",
        "amqp://localhost/",
        "AMQP://Host.Example:5672/V",
        "amqp://us%40er:p%2F%3A%23w@h:1/%2Fv?heartbeat=10&x=&connect_timeout=3",
        "amqp://[::1]:5672//",
        "amqp://u:p@w@h/",
        "amqp://u:a%@h/",
        "amqp://u:^{p}|w@h/",
        "amqp://h:/x",
        "amqp://h/a@b",
        "memory://",
        "redis://:pw@h/1",
        "redis+socket:///tmp/r.sock",
        "rediss://h?ssl_ca_certs=/x&ssl_cert_reqs=required&ssl_check_hostname=false",
        "sqla+mysql://root:m@localhost/db",
        "sentinel://h:26379",
    ],
)
def test_urls(text: str) -> None:
    assert url.url_to_parts(text) == kombu_url.url_to_parts(text)
    assert url.parse_url(text) == kombu_url.parse_url(text)
    if "[" not in text:  # kombu quotes the colons of an IPv6 address
        assert url.sanitize_url(text) == kombu_url.sanitize_url(text)
        assert url.maybe_sanitize_url(text) == kombu_url.maybe_sanitize_url(text)
