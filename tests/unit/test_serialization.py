"""Serializers: names, content types, and what may be decoded."""

from __future__ import annotations

import gc
import json
import pickle
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenconn import serialization
from greenconn.exceptions import ContentDisallowed, DecodeError, EncodeError, SerializerNotInstalled
from greenconn.jsoncodec import encode_body
from greenconn.serialization import (
    SerializerRegistry,
    disable_insecure_serializers,
    dumps,
    enable_insecure_serializers,
    loads,
    prepare_accept_content,
    raw_encode,
    registry,
)

PICKLE = "application/x-python-serialize"
SECRET = "my-secret"


@pytest.fixture
def safe_again() -> Iterator[None]:
    """The process's registry is as it was afterwards."""
    yield
    disable_insecure_serializers()


@pytest.fixture
def own() -> SerializerRegistry:
    """A registry with one serializer."""
    own = SerializerRegistry()
    own.register("hex", lambda data: data.hex(), bytes.fromhex, "application/x-hex", "us-ascii")
    return own


@pytest.mark.parametrize(
    ("body", "serializer", "expected"),
    [
        ("ä", None, ("text/plain", "utf-8", "ä".encode())),
        (b"\xff", None, ("application/data", "binary", b"\xff")),
        (bytearray(b"x"), None, ("application/data", "binary", b"x")),
        (memoryview(b"x"), None, ("application/data", "binary", b"x")),
        ({"a": 1}, None, ("application/json", "utf-8", encode_body({"a": 1}))),
        ("a", "json", ("application/json", "utf-8", '"a"')),
        ("a", "raw", ("application/data", "utf-8", b"a")),
        (b"a", "raw", ("application/data", "binary", b"a")),
        ([1], "yaml", ("application/x-yaml", "utf-8", "- 1\n")),
        ([1, "a", b"b"], "msgpack", ("application/x-msgpack", "binary", b"\x93\x01\xa1a\xc4\x01b")),
        ([1], "pickle", (PICKLE, "binary", pickle.dumps([1], protocol=4))),
    ],
)
def test_dumps(body: Any, serializer: str | None, expected: tuple[str, str, Any]) -> None:
    assert dumps(body, serializer) == expected
    assert dumps(body, serializer=serializer) == expected


@pytest.mark.parametrize("serializer", ["json", "yaml", "msgpack", "pickle"])
def test_round_trip_by_every_serializer(serializer: str) -> None:
    value = {"a": [1, None, "ä"], "b": {"c": True}}
    content_type, content_encoding, body = dumps(value, serializer)
    accept = prepare_accept_content([serializer])
    assert loads(body, content_type, content_encoding, accept=accept) == value
    buffer = memoryview(body if isinstance(body, bytes) else body.encode())
    assert loads(buffer, content_type, content_encoding, accept=accept) == value
    assert loads(bytearray(buffer), content_type, content_encoding, force=True) == value


@pytest.mark.parametrize("serializer", ["pickle", "yaml", "msgpack"])
def test_insecure_ones_are_refused(serializer: str, safe_again: None) -> None:
    content_type, encoding, body = dumps([1], serializer)
    choices: list[dict[str, Any]] = [{}, {"accept": {"application/json"}}, {"accept": set()}]
    for kwargs in choices:
        with pytest.raises(
            ContentDisallowed, match=rf"content of type {serializer} \(app.*accept="
        ):
            loads(body, content_type, encoding, **kwargs)
    enable_insecure_serializers([serializer, "unknown"])
    assert loads(body, content_type, encoding) == [1]
    disable_insecure_serializers()
    with pytest.raises(ContentDisallowed):
        loads(body, content_type, encoding)


def test_enable_and_disable(safe_again: None) -> None:
    enable_insecure_serializers(None)
    with pytest.raises(ContentDisallowed):
        loads(b"x", PICKLE, "binary")
    enable_insecure_serializers()
    assert loads(pickle.dumps(1), PICKLE, "binary") == 1
    disable_insecure_serializers(allowed=[PICKLE])
    assert loads(pickle.dumps(1), PICKLE, "binary") == 1
    with pytest.raises(ContentDisallowed):
        loads(b"[1]", "application/json", "utf-8")
    disable_insecure_serializers(None)
    with pytest.raises(KeyError):
        disable_insecure_serializers(["unknown"])


@pytest.mark.parametrize(
    ("body", "content_type", "encoding", "expected"),
    [
        (b"\xe4", "text/plain", "latin-1", "ä"),
        ("ä".encode(), "text/plain", None, "ä"),
        (b"", "text/plain", "utf-8", ""),
        (b"", None, None, ""),
        (b"", "application/data", "binary", b""),
        (b"\xff", "application/data", "binary", b"\xff"),
        (b"\xff", "image/png", "BINARY", b"\xff"),
        (b"x", "text/x-own", "utf-8", "x"),
        (memoryview(b"x"), "text/plain", "utf-8", "x"),
        ("text", "text/plain", "utf-8", "text"),
        (None, "text/plain", "utf-8", None),
        (b"", "application/json", "utf-8", b""),
        (b"[1]", b"application/json", "utf-8", [1]),
    ],
)
def test_loads(body: Any, content_type: Any, encoding: str | None, expected: Any) -> None:
    assert loads(body, content_type, encoding) == expected


def test_plain_content_is_always_accepted() -> None:
    for content_type in ("application/data", "application/text"):
        assert loads(b"x", content_type, "binary", accept=set()) == b"x"
    with pytest.raises(ContentDisallowed, match=r"type text/plain \(text/plain\)"):
        loads(b"x", "text/plain", "utf-8", accept={"application/json"})


@pytest.mark.parametrize(
    ("body", "content_type", "encoding", "said"),
    [
        (b'{"' + SECRET.encode(), "application/json", "utf-8", "JSONDecodeError at character"),
        (SECRET.encode() + b"\xff", "application/json", "utf-8", "UnicodeDecodeError at byte 9"),
        (SECRET.encode() + b"\xff", "text/plain", "utf-8", "as text: UnicodeDecodeError"),
        (SECRET.encode(), "text/plain", "no-such", "as text: LookupError"),
        (b"\xc1" + SECRET.encode(), "application/x-msgpack", "binary", "application/x-msgpack"),
        (b"{" + SECRET.encode(), "application/x-yaml", "utf-8", "application/x-yaml"),
        (SECRET.encode(), PICKLE, "binary", "UnpicklingError"),
        (b"[" * 100_000, "application/json", "utf-8", "NestedTooDeeply"),
        (
            b'{"__type__": "date", "__value__": "' + SECRET.encode() + b'"}',
            "application/json",
            "utf-8",
            "ValueError",
        ),
    ],
)
def test_decode_errors_show_no_body(
    body: bytes, content_type: str, encoding: str, said: str
) -> None:
    with pytest.raises(DecodeError, match=said) as caught:
        loads(body, content_type, encoding, force=True)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_bomb_as_content_encoding() -> None:
    """Codecs that are no character sets would decompress without a limit."""
    with pytest.raises(DecodeError):
        loads(b"x", "text/plain", "zlib")


class Unwilling:
    def __reduce__(self) -> str:
        raise RuntimeError(SECRET)


@pytest.mark.parametrize(
    ("body", "serializer", "said"),
    [
        ({SECRET: {1}}, "json", "as application/json: TypeError: Object of type set"),
        ({(SECRET,): 1}, "json", "TypeError: keys must be"),
        ([object()], "msgpack", "as application/x-msgpack: TypeError$"),
        ([object()], "yaml", "as application/x-yaml: RepresenterError$"),
        (Unwilling(), "pickle", "RuntimeError$"),
        ("\udc00" + SECRET, None, "as text/plain: UnicodeEncodeError$"),
        ("\udc00" + SECRET, "raw", "as application/data: UnicodeEncodeError$"),
    ],
)
def test_encode_errors_show_no_body(body: Any, serializer: str | None, said: str) -> None:
    with pytest.raises(EncodeError, match=said) as caught:
        dumps(body, serializer)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_unknown_serializer() -> None:
    with pytest.raises(SerializerNotInstalled, match=r"unknown serializer 'nope'; known: .*json"):
        dumps("x", "nope")
    with pytest.raises(SerializerNotInstalled, match="nope"):
        serialization.unregister("nope")
    with pytest.raises(SerializerNotInstalled, match="nope"):
        prepare_accept_content(["json", "nope"])


def test_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, package in (("yaml", "PyYAML"), ("msgpack", "msgpack")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(SerializerNotInstalled, match=f"{module}: pip install {package}"):
            dumps([1], module)
        with pytest.raises(SerializerNotInstalled, match="pip install"):
            loads(b"x", registry.name_to_type[module], None, force=True)


def test_register(own: SerializerRegistry) -> None:
    assert own.dumps(b"\x01", "hex") == ("application/x-hex", "us-ascii", "01")
    assert own.loads("01", "application/x-hex", "us-ascii") == b"\x01"
    own.disable("hex")
    with pytest.raises(ContentDisallowed, match="disabled content of type hex"):
        own.loads("01", "application/x-hex", "us-ascii")
    own.enable("application/x-hex")
    own.unregister("hex")
    assert own.type_to_name == own.name_to_type == {}
    assert own.loads("01", "application/x-hex", "us-ascii") == "01"
    with pytest.raises(SerializerNotInstalled):
        own.dumps(b"\x01", "hex")


def test_register_one_way(own: SerializerRegistry) -> None:
    own.register("out", lambda data: "out", None, "application/x-out")
    own.register("in", None, lambda data: "in", "application/x-in")
    assert own.dumps(1, "out") == ("application/x-out", "utf-8", "out")
    assert own.loads(b"1", "application/x-out", "utf-8") == "1"
    assert own.loads(b"1", "application/x-in", "utf-8") == "in"
    with pytest.raises(SerializerNotInstalled):
        own.dumps(1, "in")


def test_default_serializer(own: SerializerRegistry) -> None:
    with pytest.raises(SerializerNotInstalled, match="no default serializer"):
        own.dumps({})
    with pytest.raises(SerializerNotInstalled):
        own._set_default_serializer("nope")
    own.register("repr", repr, None, "application/x-repr")
    own._set_default_serializer("repr")
    assert own.dumps([1]) == ("application/x-repr", "utf-8", "[1]")


def test_errors_of_ours_pass(own: SerializerRegistry) -> None:
    def fail(data: Any) -> Any:
        raise DecodeError("mine")

    own.register("fails", fail, fail, "application/x-fails")
    with pytest.raises(DecodeError, match=r"^mine$"):
        own.loads(b"x", "application/x-fails", None)
    with pytest.raises(DecodeError, match=r"^mine$"):
        own.dumps(b"x", "fails")


def test_being_killed_passes(own: SerializerRegistry) -> None:
    def interrupted(data: Any) -> Any:
        raise KeyboardInterrupt

    own.register("waits", interrupted, interrupted, "application/x-waits")
    with pytest.raises(KeyboardInterrupt):
        own.loads(b"x", "application/x-waits", None)
    with pytest.raises(KeyboardInterrupt):
        own.dumps(b"x", "waits")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two installed plugins, a broken one, and one that takes json's name; notes each search."""
    searches: list[str] = []
    offered = [
        EntryPoint("upper", "tests.unit.test_serialization:PLUGIN", "kombu.serializers"),
        EntryPoint("broken", "tests.unit.test_serialization:ABSENT", "kombu.serializers"),
        EntryPoint("hex", "tests.unit.test_serialization:ABSENT", "kombu.serializers"),
    ]

    def entry_points(*, group: str) -> list[EntryPoint]:
        searches.append(group)
        return offered

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    return searches


PLUGIN = (str.upper, bytes.lower, "application/x-upper", "utf-8")


def test_plugins_are_looked_for_once_and_late(
    own: SerializerRegistry, plugins: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    own.dumps(b"\x01", "hex")
    own.loads("01", "application/x-hex", None)
    own.loads(b"x", "text/plain", None)
    own.loads(b"x", None, None)
    assert plugins == []
    assert own.dumps("a", "upper") == ("application/x-upper", "utf-8", "A")
    assert own.loads(b"A", "application/x-upper", "utf-8") == b"a"
    own.loads(b"x", "application/x-other", None)
    assert plugins == ["kombu.serializers"]
    assert "cannot load serializer 'broken'" in caplog.text
    assert "'hex'" not in caplog.text


def test_plugin_is_found_by_content_type(own: SerializerRegistry, plugins: list[str]) -> None:
    assert own.loads(b"A", "application/x-upper", None, accept={"application/x-upper"}) == b"a"


def test_prepare_accept_content() -> None:
    assert prepare_accept_content(None) is None
    assert prepare_accept_content([]) == set()
    assert prepare_accept_content(["json", "text/plain"]) == {"application/json", "text/plain"}
    assert prepare_accept_content("pickle") == {PICKLE}
    assert prepare_accept_content(["j"], {"j": "application/j"}) == {"application/j"}


def test_raw_encode() -> None:
    assert raw_encode("ä") == ("application/data", "utf-8", "ä".encode())
    assert raw_encode(b"\xff") == ("application/data", "binary", b"\xff")


def test_pickle_of_text() -> None:
    assert serialization.unpickle(pickle.dumps([1], protocol=4)) == [1]
    assert serialization.pickle_loads(memoryview(pickle.dumps(1))) == 1


def test_errors_leave_no_garbage() -> None:
    """The encoder keeps no state between bodies."""
    shared: list[Any] = [object()]
    for _ in range(3):
        with pytest.raises(EncodeError):
            dumps({"a": shared})
    shared[0] = 1
    gc.collect()
    assert json.loads(dumps({"a": shared, "b": shared})[2]) == {"a": [1], "b": [1]}


@given(st.text(max_size=30) | st.binary(max_size=30))
@settings(derandomize=True)
def test_plain_round_trip(body: str | bytes) -> None:
    if isinstance(body, str) and any("\ud800" <= character <= "\udfff" for character in body):
        return
    content_type, content_encoding, encoded = dumps(body)
    assert loads(encoded, content_type, content_encoding) == body


numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
documents = st.recursive(
    st.none() | st.booleans() | numbers | st.text("abcä\U0001f600 \n", max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=8,
)


@given(documents, st.sampled_from(["json", "msgpack", "yaml", "pickle"]))
@settings(derandomize=True)
def test_document_round_trip(value: Any, serializer: str) -> None:
    content_type, content_encoding, body = dumps(value, serializer)
    assert loads(body, content_type, content_encoding, force=True) == value


def test_unknown_names_say_so_beside_a_serializer_without_one() -> None:
    registry = serialization.SerializerRegistry()
    registry.register(None, str, str, "text/plain")  # type: ignore[arg-type]  # as kombu's programs do
    registry.register("upper", str.upper, str.lower, "text/upper")
    for use in (
        lambda: registry.unregister("nonexisting"),
        lambda: registry.dumps("x", serializer="nonexisting"),
        lambda: registry._set_default_serializer("nonexisting"),
    ):
        with pytest.raises(SerializerNotInstalled, match="'nonexisting'; known: upper"):
            use()
