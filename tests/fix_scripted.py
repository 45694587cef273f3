"""Fixtures: connections to brokers that do what the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.session.session import Session
from greenconn.transport import TRANSPORT_ALIASES
from tests.scripted import Script, Transport

Connect = Callable[..., Connection]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """What the brokers of ``scripted://`` do in this test."""
    monkeypatch.setitem(TRANSPORT_ALIASES, "scripted", "tests.scripted:Transport")
    Transport.script = Script()
    return Transport.script


@pytest.fixture
def connect(script: Script) -> Iterator[Connect]:
    """Makes connections that are closed after the test."""
    made: list[Connection] = []

    def make(hostname: Any = "scripted://one", **kwargs: Any) -> Connection:
        made.append(Connection(hostname, **kwargs))
        return made[-1]

    yield make
    script.on_close = None
    for connection in made:
        connection.close()
    gevent.sleep(0)


@pytest.fixture
def connection(connect: Connect) -> Connection:
    """A connection to the broker ``one``."""
    return connect()


@pytest.fixture
def session(connection: Connection) -> Session:
    """The session of that connection."""
    return connection.session
