"""The connection beside kombu's: arguments, attributes, ``info`` and URLs."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from greenconn.connection import Connection

Kombu: Any = pytest.importorskip("kombu.connection").Connection

URLS = [
    "amqp://",
    "amqp://u:p@h:99/v",
    "amqp://u:p%2F@h:99//",
    "amqp://u@h",
    "amqp://guest:guest@localhost:5672//",
    "amqp://h//foo",
    "amqp://h/foo",
    "amqp://h/",
    "amqp://h:1",
    "amqp://u:@h",
    "amqp://:p@h",
    "amqp://us%40er:p%3Aw%20@h/v%2Fw",
    "amqps://h",
    "amqps://u:p@h:99/v",
    "amqp://h/%2Ffoo",
    "amqp://a;amqp://b:55/x",
    "localhost",
    "some.host",
    "pyamqp://h",
    "memory://",
    "memory://localhost/",
    "memory://u:p@h:7/v",
    "memory:///v",
    "redis+socket:///tmp/x.sock",
    "sqla+mysql://me:secret@h:3/db",
]


@pytest.mark.parametrize("url", URLS)
def test_attributes_info_and_uri_are_kombus(url: str) -> None:
    ours, theirs = Connection(url), Kombu(url)
    assert ours.info() == theirs.info()
    assert list(ours.info()) == list(theirs.info())
    # Kombu writes the mask where there is no password, too.
    unmasked = theirs.as_uri()
    if not theirs.password and ours.transport.driver_type != "amqp":  # whose default has one
        unmasked = unmasked.replace(":**@", "")
    assert ours.as_uri() == (theirs.as_uri() if "+" in url else unmasked)
    assert ours.as_uri(include_password=True) == theirs.as_uri(include_password=True)
    if "+" not in url:  # there kombu does not look at the mask
        assert ours.as_uri(mask="x") == ours.as_uri().replace("**", "x")
    assert repr(ours).partition(" at ")[0] == f"<Connection: {ours.as_uri()}"
    if theirs.hostname is not None:  # with none kombu's raises
        assert ours.host == theirs.host
    for name in ("hostname", "port", "userid", "password", "virtual_host", "alt", "ssl"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_arguments_of_the_constructor_are_kombus() -> None:
    theirs = inspect.signature(Kombu).parameters
    ours = inspect.signature(Connection).parameters
    assert [(each.name, each.default) for each in ours.values()] == [
        (each.name, each.default) for each in theirs.values() if each.kind is not each.VAR_KEYWORD
    ]
