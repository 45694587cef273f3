"""Utility channels: few, one holder each, and none that an answer is due on is lent again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from amqp import spec
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.entity.existence import ensure_declared, ensure_queue_exists
from greenconn.exceptions import LimitExceeded, NotFound
from greenconn.green.deadline import Deadline
from greenconn.session.utility import LIMIT, UtilityChannels
from greenconn.transport import memory
from tests.fix_amqp import AmqpPeer, BrokerEnd
from tests.fix_wires import until

WAIT = 10.0
DECLARE = spec.Queue.Declare


@pytest.fixture
def connection(unique: str) -> Iterator[Connection]:
    """A connection to the memory broker."""
    with Connection(f"memory:///{unique}") as connection:
        yield connection
    memory.reset(unique)


@pytest.fixture
def utility(connection: Connection) -> UtilityChannels:
    """Its utility channels."""
    return connection.session.utility


def test_each_channel_has_one_holder_and_there_are_few(utility: UtilityChannels) -> None:
    held: set[Any] = set()
    go_on = Event()

    def hold(channel: Any) -> None:
        assert channel not in held
        held.add(channel)
        go_on.wait(WAIT)
        held.discard(channel)

    greenlets = [gevent.spawn(utility.run, hold, Deadline(WAIT)) for _ in range(50)]
    until(lambda: len(held) >= LIMIT)
    gevent.sleep(0.01)
    assert len(held) == LIMIT
    with pytest.raises(LimitExceeded, match="utility channels of memory"):
        utility.run(hold, Deadline(0.01))
    go_on.set()
    gevent.joinall(greenlets, timeout=WAIT, raise_error=True)
    assert not held


def test_a_channel_is_used_again(utility: UtilityChannels) -> None:
    first = utility.run(lambda channel: channel, Deadline(WAIT))
    assert utility.run(lambda channel: channel, Deadline(WAIT)) is first


def test_an_error_costs_the_channel(utility: UtilityChannels) -> None:
    first = utility.run(lambda channel: channel, Deadline(WAIT))
    with pytest.raises(NotFound):
        utility.run(lambda channel: channel.queue_declare("nosuch", passive=True), Deadline(WAIT))
    assert not first.is_open
    assert utility.run(lambda channel: channel, Deadline(WAIT)).is_open


@pytest.fixture
def scripted(amqp_peer: AmqpPeer) -> Iterator[Connection]:
    """A connection to a scripted broker."""
    with Connection(amqp_peer.url) as connection:
        connection.connect()
        yield connection


def test_a_killed_holder_s_answer_does_not_hit_the_next_one(
    scripted: Connection, amqp_peer: AmqpPeer
) -> None:
    end = amqp_peer.end
    killed = gevent.spawn(ensure_declared, scripted.session, Queue("first"), Deadline(WAIT))
    first = end.expect(DECLARE)
    killed.kill()
    end.expect(spec.Channel.Close)
    other = gevent.spawn(ensure_declared, scripted.session, Queue("second"), Deadline(WAIT))
    second = end.expect(DECLARE)
    assert second[0] != first[0] or b"second" in second[2]
    declared(end, second[0], "second")
    other.get(timeout=WAIT)


def declared(end: BrokerEnd, channel: int, queue: str) -> None:
    """Answer a declaration."""
    end.method(channel, spec.Queue.DeclareOk, "sll", queue, 0, 0)


def test_a_lookup_goes_on_when_who_asked_first_is_killed(
    scripted: Connection, amqp_peer: AmqpPeer
) -> None:
    end = amqp_peer.end
    killed, other = (
        gevent.spawn(ensure_queue_exists, scripted.session, "q", Deadline(WAIT)) for _ in range(2)
    )
    got = end.expect(DECLARE)
    killed.kill()
    declared(end, got[0], "q")
    other.get(timeout=WAIT)
    assert end.nothing_more()
    ensure_queue_exists(scripted.session, "q", Deadline(0.0))  # it is known now


def test_a_lookup_has_the_deadline_of_its_caller(scripted: Connection) -> None:
    with pytest.raises(TimeoutError):
        ensure_queue_exists(scripted.session, "q", Deadline(0.05))
