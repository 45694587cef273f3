"""The default channel, channels that stand for dead ones, and utility channels."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from amqp import spec
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.entity.declaration import ensure_declared, ensure_queue_exists
from greenconn.exceptions import (
    LimitExceeded,
    NotFound,
    OperationalError,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from greenconn.session.session import UTILITY_LIMIT, UtilityChannels
from greenconn.transport import memory
from tests.fix_amqp import AmqpPeer, BrokerEnd
from tests.fix_wires import until
from tests.scripted import Channel, Script

Connect = Callable[..., Connection]

CAME = 30.0
DECLARE = spec.Queue.Declare


def test_all_share_one_default_channel(connection: Connection, script: Script) -> None:
    gate = Event()
    script.on_channel = gate.wait
    waiting = [gevent.spawn(lambda: connection.default_channel) for _ in range(100)]
    until(lambda: script.links)
    gevent.sleep(0.01)
    gate.set()
    channels = {id(greenlet.get(timeout=CAME)) for greenlet in waiting}
    assert channels == {id(connection.default_channel)}
    assert len(script.channels) == len(script.links) == 1


def test_killing_who_opens_the_default_channel_leaves_it_to_the_others(
    connection: Connection, script: Script
) -> None:
    gate = Event()
    script.on_channel = gate.wait
    first, second = (gevent.spawn(lambda: connection.default_channel) for _ in range(2))
    until(lambda: script.links)
    gevent.sleep(0.01)
    first.kill()
    gate.set()
    assert second.get(timeout=CAME) is connection.default_channel
    assert len(script.channels) == 1


def test_a_channel_error_makes_a_fresh_default_channel(
    connection: Connection, script: Script
) -> None:
    old = connection.default_channel
    old.prefetch = 7
    old.error = NotFound("no queue")
    new = connection.default_channel
    assert new is not old
    assert new.use() == "one"
    assert new.prefetch == 7
    assert connection.default_channel is new
    assert len(script.links) == 1


def test_a_new_life_has_a_new_default_channel(connection: Connection, script: Script) -> None:
    old = connection.default_channel
    script.link.lose()
    new = connection.default_channel
    assert new.connection is script.links[1]
    assert connection.session.successor(old) is new


def test_a_link_lost_while_the_channel_opens_is_replaced(
    connection: Connection, script: Script
) -> None:
    def lose_once() -> None:
        if len(script.links) == 1:
            script.link.lose()

    script.on_channel = lose_once
    assert connection.default_channel.connection is script.links[1]


def test_a_link_that_never_bears_a_channel_is_given_up(
    connection: Connection, script: Script
) -> None:
    script.on_channel = lambda: script.link.lose()
    with pytest.raises(RecoverableConnectionError):
        _ = connection.default_channel
    assert len(script.links) == 3


def test_the_default_channel_says_what_kept_it_from_connecting(
    connect: Connect, script: Script
) -> None:
    connection = connect(connect_timeout=0.1)
    script.otherwise["one"] = ConnectionRefusedError(111, "nobody listens")
    with pytest.raises(OperationalError, match="nobody listens") as raised:
        _ = connection.default_channel
    assert isinstance(raised.value.__cause__, ConnectionRefusedError)


def test_transport_options_say_how_often_to_connect_for_the_default_channel(
    connect: Connect, script: Script
) -> None:
    seen: list[tuple[str, float]] = []
    connection = connect(
        transport_options={
            "max_retries": 2,
            "interval_start": 0,
            "interval_step": 0.01,
            "interval_max": 0.01,
            "errback": lambda exc, interval: seen.append((str(exc), interval)),
        }
    )
    script.otherwise["one"] = OSError("no")
    with pytest.raises(OperationalError):
        _ = connection.default_channel
    assert seen == [("no", 0.0), ("no", 0.01)]
    assert len(script.attempts) == 3


def test_an_open_channel_stands_for_itself(connection: Connection) -> None:
    channel = connection.channel()
    assert connection.session.successor(channel) is channel


def test_one_successor_for_all_who_ask(connection: Connection, script: Script) -> None:
    old = connection.channel()
    old.prefetch = 3
    script.link.lose()
    gate = Event()
    script.on_channel = gate.wait
    waiting = [gevent.spawn(connection.session.successor, old) for _ in range(50)]
    until(lambda: len(script.links) == 2)
    gevent.sleep(0.01)
    waiting.pop().kill()
    gate.set()
    successors = {id(greenlet.get(timeout=CAME)) for greenlet in waiting}
    assert len(successors) == 1
    new = connection.session.successor(old)
    assert id(new) in successors
    assert new.prefetch == 3
    assert len(script.channels) == 2


def test_a_line_of_dead_channels_ends_at_one(connection: Connection, script: Script) -> None:
    first = connection.channel()
    script.link.lose()
    second = connection.session.successor(first)
    script.link.lose()
    third = connection.session.successor(second)
    assert connection.session.successor(first) is third
    script.link.lose()
    fourth = connection.session.successor(first)
    assert connection.session.successor(second) is fourth
    assert connection.session.successor(third) is fourth
    assert len(script.channels) == 4


def test_a_channel_closed_by_an_error_has_a_successor_in_the_same_life(
    connection: Connection, script: Script
) -> None:
    old = connection.channel()
    old.error = NotFound("no queue")
    new = connection.session.successor(old)
    assert new is not old
    assert len(script.links) == 1


def test_only_channels_that_somebody_holds_are_remembered(
    connection: Connection, script: Script
) -> None:
    old = connection.channel()
    gone: list[weakref.ref[Channel]] = []
    for _ in range(5):
        script.link.lose()
        gone.append(weakref.ref(connection.session.successor(old)))
        script.channels.clear()
    script.links.clear()
    gc.collect()
    assert [reference() is not None for reference in gone] == [False] * 4 + [True]


def test_who_holds_the_first_channel_keeps_none_of_those_in_between_alive(
    connection: Connection, script: Script
) -> None:
    first = latest = connection.channel()
    gone: list[weakref.ref[Channel]] = []
    for _ in range(5):
        script.link.lose()
        # Somebody else follows, life by life.
        latest = connection.session.successor(latest)
        gone.append(weakref.ref(latest))
        script.channels.clear()
    script.links.clear()
    gc.collect()
    assert [reference() is not None for reference in gone] == [False] * 4 + [True]
    assert connection.session.successor(first) is latest


def test_a_channel_that_cannot_take_over_is_closed(
    connection: Connection, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Channel, old: Channel) -> None:
        raise RecoverableChannelError("no")

    old = connection.channel()
    script.link.lose()
    monkeypatch.setattr(Channel, "take_over", fail)
    with pytest.raises(RecoverableChannelError):
        connection.session.successor(old)
    assert script.channels[1].is_closed


def test_a_closed_session_has_no_successors(connection: Connection, script: Script) -> None:
    old, default = connection.channel(), connection.default_channel
    connection.close()
    for channel in (old, default):
        with pytest.raises(RecoverableConnectionError, match="was closed"):
            connection.session.successor(channel)
    assert len(script.links) == 1


def test_the_deadline_covers_link_and_channel(connection: Connection, script: Script) -> None:
    script.on_channel = lambda: gevent.sleep(0.1)
    with pytest.raises(TimeoutError):
        connection.session.default_channel(Deadline(0.02))
    assert connection.session.default_channel(Deadline(CAME)) is connection.default_channel


# -- utility channels: few, one holder each, and none that an answer is due on is lent again ----------


@pytest.fixture
def utility(unique: str) -> Iterator[UtilityChannels]:
    """The utility channels of a connection to the memory broker."""
    with Connection(f"memory:///{unique}") as connection:
        yield connection.session.utility
    memory.reset(unique)


def test_each_channel_has_one_holder_and_there_are_few(utility: UtilityChannels) -> None:
    held: set[Any] = set()
    go_on = Event()

    def hold(channel: Any) -> None:
        assert channel not in held
        held.add(channel)
        go_on.wait(CAME)
        held.discard(channel)

    greenlets = [gevent.spawn(utility.run, hold, Deadline(CAME)) for _ in range(50)]
    until(lambda: len(held) >= UTILITY_LIMIT)
    gevent.sleep(0.01)
    assert len(held) == UTILITY_LIMIT
    with pytest.raises(LimitExceeded, match="utility channels of memory"):
        utility.run(hold, Deadline(0.01))
    go_on.set()
    gevent.joinall(greenlets, timeout=CAME, raise_error=True)
    assert not held


def test_a_channel_is_used_again(utility: UtilityChannels) -> None:
    first = utility.run(lambda channel: channel, Deadline(CAME))
    assert utility.run(lambda channel: channel, Deadline(CAME)) is first


def test_an_error_costs_the_channel(utility: UtilityChannels) -> None:
    first = utility.run(lambda channel: channel, Deadline(CAME))
    with pytest.raises(NotFound):
        utility.run(lambda channel: channel.queue_declare("nosuch", passive=True), Deadline(CAME))
    assert not first.is_open
    assert utility.run(lambda channel: channel, Deadline(CAME)).is_open


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
    killed = gevent.spawn(ensure_declared, scripted.session, Queue("first"), Deadline(CAME))
    first = end.expect(DECLARE)
    killed.kill()
    end.expect(spec.Channel.Close)
    other = gevent.spawn(ensure_declared, scripted.session, Queue("second"), Deadline(CAME))
    second = end.expect(DECLARE)
    assert second[0] != first[0] or b"second" in second[2]
    declared(end, second[0], "second")
    other.get(timeout=CAME)


def declared(end: BrokerEnd, channel: int, queue: str) -> None:
    """Answer a declaration."""
    end.method(channel, spec.Queue.DeclareOk, "sll", queue, 0, 0)


def test_a_lookup_goes_on_when_who_asked_first_is_killed(
    scripted: Connection, amqp_peer: AmqpPeer
) -> None:
    end = amqp_peer.end
    killed, other = (
        gevent.spawn(ensure_queue_exists, scripted.session, "q", Deadline(CAME)) for _ in range(2)
    )
    got = end.expect(DECLARE)
    killed.kill()
    declared(end, got[0], "q")
    other.get(timeout=CAME)
    assert end.nothing_more()
    ensure_queue_exists(scripted.session, "q", Deadline(0.0))  # it is known now


def test_a_lookup_has_the_deadline_of_its_caller(scripted: Connection) -> None:
    with pytest.raises(TimeoutError):
        ensure_queue_exists(scripted.session, "q", Deadline(0.05))
