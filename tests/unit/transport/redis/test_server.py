"""Sockets beside that for commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from greenconn.green.deadline import Deadline
from greenconn.green.stream import connect_tcp
from greenconn.transport.redis.errors import LinkLost
from greenconn.transport.redis.options import Keys, RedisOptions
from greenconn.transport.redis.pipeline import PING, Commands, Pipeline
from greenconn.transport.redis.server import ExtraSocket, Welcome
from tests.fix_peer import Peer, PeerFactory
from tests.unit.transport.redis.test_pipeline import SOON, answering


class Place:
    """Where sockets are opened.

    Attributes:
        opened: the sockets.
        may_open: a socket is opened when it is set.
        asked: set when somebody wants one.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.opened: list[Pipeline] = []
        self.asked = Event()
        self.may_open = Event()
        self.may_open.set()

    def connect(self) -> tuple[Pipeline, Welcome]:
        self.asked.set()
        assert self.may_open.wait(SOON)
        sock = connect_tcp(self._peer.host, self._peer.port, Deadline(SOON))
        ignore: Callable[[Any], None] = lambda what: None  # noqa: E731
        self.opened.append(Pipeline(sock, "redis://peer", ignore, ignore))
        return self.opened[-1], Welcome(protocol=3)


@pytest.fixture
def place(peer: PeerFactory) -> Iterator[Place]:
    handler: Callable[[socket.socket], Any] = answering(lambda command: b"+PONG\r\n")
    found = Place(peer(handler))
    yield found
    for each in found.opened:
        each.close()


@pytest.fixture
def commands() -> Commands:
    options = RedisOptions()
    return Commands("redis://peer", Keys(options), options, lambda: None)


@pytest.fixture
def extra(commands: Commands) -> Iterator[ExtraSocket]:
    made = ExtraSocket(commands, "extra")
    yield made
    made.stop()


def test_it_is_opened_once_for_all_who_ask_meanwhile(extra: ExtraSocket, place: Place) -> None:
    place.may_open.clear()
    asking = [gevent.spawn(extra.open, place.connect) for _ in range(3)]
    assert place.asked.wait(SOON)
    place.may_open.set()
    found = [each.get(timeout=SOON) for each in asking]
    assert found == place.opened * 3
    assert extra.is_open
    assert found[0].call(PING) == b"PONG"


def test_one_that_cannot_be_prepared_is_closed(extra: ExtraSocket, place: Place) -> None:
    def begin(pipeline: Pipeline, welcome: Welcome) -> None:
        raise ValueError("refused by the test")

    with pytest.raises(ValueError, match="refused by the test"):
        extra.open(place.connect, begin)
    assert not extra.is_open
    assert place.opened[0].lost is not None


def test_one_that_is_opened_as_the_link_ends_is_closed(
    extra: ExtraSocket, place: Place, commands: Commands
) -> None:
    place.may_open.clear()
    asking = gevent.spawn(extra.open, place.connect)
    assert place.asked.wait(SOON)
    commands.lost = ConnectionError("cut by the test")
    extra.stop()
    place.may_open.set()
    with pytest.raises(LinkLost, match="cut by the test"):
        asking.get(timeout=SOON)
    assert extra.pipeline is None
    assert place.opened[0].lost is not None


def test_who_is_killed_leaves_it_to_the_others(extra: ExtraSocket, place: Place) -> None:
    place.may_open.clear()
    killed, other = (gevent.spawn(extra.open, place.connect) for _ in range(2))
    assert place.asked.wait(SOON)
    killed.kill(timeout=SOON)
    place.may_open.set()
    assert other.get(timeout=SOON) is extra.pipeline
