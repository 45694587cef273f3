"""Transports by name."""

from __future__ import annotations

import sys
from textwrap import dedent
from typing import Any

import kombu.transport
import pytest

from greenconn.transport import (
    FOREIGN,
    TRANSPORT_ALIASES,
    amqp,
    couchdb,
    get_transport_cls,
    librabbitmq,
    memory,
    pyamqp,
    pyamqplib,
    redis,
    resolve_transport,
    supports_librabbitmq,
)
from greenconn.transport.amqp import Transport as AmqpTransport
from tests.integration.processes import run


@pytest.mark.parametrize(
    "name",
    [
        None,
        "amqp",
        "pyamqp",
        "amqplib",
        "pika",
        "librabbitmq",
        "qpid",
        "kombu.transport.pyamqp:Transport",
        "kombu.transport.pyamqp.Transport",
        "kombu.transport.pyamqplib.Transport",
        "kombu.transport.librabbitmq:Transport",
        "kombu.transport.qpid:Transport",
        "carrot.backends.pyamqplib.Backend",
        "greenconn.transport.pyamqp:Transport",
        "greenconn.transport.pyamqplib.Transport",
        AmqpTransport,
    ],
)
def test_names_of_amqp(name: Any) -> None:
    assert resolve_transport(name) is AmqpTransport
    assert get_transport_cls(name) is AmqpTransport
    assert get_transport_cls(name) is AmqpTransport


def test_paths_of_kombu_import() -> None:
    for module in (pyamqp, pyamqplib, librabbitmq):
        assert module.Transport is AmqpTransport
    assert amqp is not None
    assert not supports_librabbitmq()


def test_unknown_alias_names_the_nearest() -> None:
    with pytest.raises(KeyError, match="Did you mean memory"):
        resolve_transport("memroy")
    with pytest.raises(KeyError, match="amqp, amqplib"):
        resolve_transport("carrierpigeon")


def test_an_alias_of_kombu_alone_is_kombus_class() -> None:
    cls = get_transport_cls("filesystem")
    assert cls.hosted_cls.__module__ == "kombu.transport.filesystem"
    assert cls is get_transport_cls(FOREIGN["filesystem"])
    assert get_transport_cls("consul").hosted_cls.__module__ == "kombu.transport.consul"


def test_a_transport_of_kombus_whose_library_is_missing_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "azure", None)
    monkeypatch.delitem(sys.modules, "kombu.transport.azureservicebus", raising=False)
    with pytest.raises(ImportError, match=r"'azureservicebus' is kombu's own.*install the library"):
        resolve_transport("azureservicebus")


def test_an_alias_of_kombu_alone_without_kombu() -> None:
    program = """
        import sys
        sys.modules["kombu"] = None
        from greenconn.transport import resolve_transport
        try:
            resolve_transport("filesystem")
        except KeyError as exc:
            print(exc)
    """
    outcome = run("-c", dedent(program))
    assert "kombu is not installed: pip install kombu" in outcome.output, outcome.errors


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("syncpika", AmqpTransport),
        ("in-memory", memory.Transport),
        ("pyredis", redis.Transport),
        ("kombu.transport.pyredis:Transport", redis.Transport),
        ("kombu.transport.pyredis.Transport", redis.Transport),
        ("pycouchdb", couchdb.Transport),
        ("kombu.transport.pycouchdb.Transport", couchdb.Transport),
    ],
)
def test_names_of_earlier_kombus(name: str, cls: Any) -> None:
    assert resolve_transport(name) is cls


def test_every_alias_of_kombu_is_known() -> None:
    assert set(kombu.transport.TRANSPORT_ALIASES) <= set(TRANSPORT_ALIASES) | set(FOREIGN)


def test_class_path_that_is_wrong() -> None:
    with pytest.raises(ImportError):
        resolve_transport("no.such.module:Transport")
    with pytest.raises(AttributeError):
        resolve_transport("greenconn.transport.memory:Nothing")


def test_aliases_may_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSPORT_ALIASES, "mine", "greenconn.transport.memory:Transport")
    assert get_transport_cls("mine") is memory.Transport
    monkeypatch.setitem(TRANSPORT_ALIASES, "mine", "amqp.basic_message:Message")
    assert get_transport_cls("mine").__name__ == "Message"
    monkeypatch.setitem(TRANSPORT_ALIASES, "mine", lambda: "kombu.transport.memory:Transport")
    assert get_transport_cls("mine") is memory.Transport
