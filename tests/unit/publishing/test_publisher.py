"""Publishing to a broker that does what the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic

import gevent
import pytest
from amqp import spec

from greenconn.connection import Connection
from greenconn.defaults import publishing_connection
from greenconn.entity import Exchange
from greenconn.exceptions import (
    BatchPublishError,
    ConnectionBlocked,
    OperationalError,
    PublishRefused,
    PublishTimeout,
)
from greenconn.publishing import publish, publish_many
from tests.fix_amqp import AmqpPeer, BrokerEnd, Got

#: The default exchange: nothing has to be looked up.
DEFAULT = Exchange("")
SOON = 1.0
WAIT = 30.0

PUBLISH = spec.Basic.Publish


def answering(end: BrokerEnd) -> None:
    """Have *end* answer what a publisher asks for before it publishes."""
    end.answers[spec.Confirm.Select] = (spec.Confirm.SelectOk,)


@pytest.fixture
def broker(amqp_peer: AmqpPeer) -> AmqpPeer:
    """A broker that takes messages and confirms nothing by itself."""
    amqp_peer.prepare = answering
    return amqp_peer


@pytest.fixture
def connection(broker: AmqpPeer) -> Iterator[Connection]:
    """A connection to it."""
    with Connection(broker.url) as connection:
        yield connection


Spawn = Callable[..., "gevent.Greenlet[..., None]"]


@pytest.fixture
def spawn(connection: Connection) -> Iterator[Spawn]:
    """Starts ``publish(DEFAULT, body)`` in a greenlet."""
    started: list[gevent.Greenlet[..., None]] = []

    def start(body: str, timeout: float | None = WAIT) -> gevent.Greenlet[..., None]:
        greenlet = gevent.spawn(
            publish, DEFAULT, body, routing_key="q", connection=connection, timeout=timeout
        )
        started.append(greenlet)
        return greenlet

    yield start
    gevent.killall(started)


def ack(end: BrokerEnd, got: Got, tag: int, *, multiple: bool = False) -> None:
    """Confirm a message."""
    end.method(got[0], spec.Basic.Ack, "Lb", tag, multiple)


def close_channel(end: BrokerEnd, channel: int) -> None:
    """Close a channel because of a publish."""
    end.method(channel, spec.Channel.Close, "BsBB", 406, "PRECONDITION_FAILED - no", *PUBLISH)


def block(end: BrokerEnd, connection: Connection) -> None:
    """Block publishing, and wait until the client knows."""
    link = publishing_connection(connection).session.life.link
    end.method(0, spec.Connection.Blocked, "s", "low on memory")
    with gevent.Timeout(WAIT):
        while link.flow_control.blocked is None:
            gevent.sleep(0.01)


def next_end(broker: AmqpPeer, known: int) -> BrokerEnd:
    """The server's end of the connection after *known* others."""
    with gevent.Timeout(WAIT):
        while len(broker.ends) <= known:
            broker.peer.has_accepted.clear()
            broker.peer.has_accepted.wait()
            gevent.sleep(0)
    return broker.ends[known]


def test_it_returns_when_the_broker_has_confirmed(spawn: Spawn, broker: AmqpPeer) -> None:
    publisher = spawn("one")
    got = next_end(broker, 0).expect(PUBLISH)
    assert got[3] == b"one"
    assert not publisher.ready()
    ack(broker.end, got, 1)
    publisher.get(timeout=WAIT)


def test_without_a_confirm_it_may_be_delivered(connection: Connection) -> None:
    connection.connect()
    began = monotonic()
    with pytest.raises(PublishTimeout, match=r"did not confirm.*1 s") as caught:
        publish(DEFAULT, "x", routing_key="q", connection=connection, timeout=SOON)
    assert caught.value.maybe_delivered
    assert SOON <= monotonic() - began < WAIT


def test_a_broker_that_blocks_after_a_message_is_named_as_the_reason(
    spawn: Spawn, broker: AmqpPeer, connection: Connection
) -> None:
    publisher = spawn("x", timeout=SOON)
    end = next_end(broker, 0)
    end.expect(PUBLISH)
    block(end, connection)
    with pytest.raises(PublishTimeout, match=r"as it blocks publishing \(low on memory\): it may"):
        publisher.get(timeout=WAIT)


def test_without_a_deadline_the_option_of_the_connection_holds(broker: AmqpPeer) -> None:
    options = {"confirm_timeout": SOON}
    with Connection(broker.url, transport_options=options) as connection:
        with pytest.raises(PublishTimeout) as caught:
            publish(DEFAULT, "x", routing_key="q", connection=connection, timeout=None)
        assert caught.value.maybe_delivered
        with pytest.raises(BatchPublishError) as batch:
            publish_many(DEFAULT, ["x", "y"], routing_key="q", connection=connection, timeout=None)
        assert [exc.maybe_delivered for exc in batch.value.failed.values()] == [True, True]  # type: ignore[attr-defined]


def test_a_broker_that_is_away_has_nothing(broker: AmqpPeer, connection: Connection) -> None:
    broker.peer.stop()
    began = monotonic()
    with pytest.raises(PublishTimeout, match=r"nothing was sent: .*refused") as caught:
        publish(DEFAULT, "x", routing_key="q", connection=connection, timeout=SOON)
    assert not caught.value.maybe_delivered
    assert SOON <= monotonic() - began < WAIT
    assert "secret-word" not in str(caught.value)


def test_a_lookup_without_answer_is_under_the_same_deadline(connection: Connection) -> None:
    connection.connect()
    began = monotonic()
    with pytest.raises(PublishTimeout, match=r"queue 'q' within 1 s, nothing") as caught:
        publish("q", "x", connection=connection, timeout=SOON)
    assert not caught.value.maybe_delivered
    assert monotonic() - began < WAIT


@pytest.mark.parametrize("timeout", [0, -1, 0.0])
def test_without_time_nothing_is_sent(
    spawn: Spawn, connection: Connection, broker: AmqpPeer, timeout: float
) -> None:
    first = spawn("first")
    end = next_end(broker, 0)
    ack(end, end.expect(PUBLISH), 1)
    first.get(timeout=WAIT)
    with pytest.raises(PublishTimeout) as caught:
        publish(DEFAULT, "x", routing_key="q", connection=connection, timeout=timeout)
    assert not caught.value.maybe_delivered
    after = spawn("after")
    got = end.expect(PUBLISH)
    assert got[3] == b"after"
    ack(end, got, 2)
    after.get(timeout=WAIT)


@pytest.mark.parametrize("timeout", ["5", True, object(), float("nan")])
def test_a_timeout_is_a_number(timeout: float) -> None:
    with pytest.raises((TypeError, ValueError), match="timeout must be"):
        publish("q", "x", connection="memory://", timeout=timeout)
    with pytest.raises((TypeError, ValueError), match="timeout must be"):
        publish_many("q", "x", connection="memory://", timeout=timeout)


def test_what_was_sent_before_the_broker_went_may_be_delivered(
    spawn: Spawn, broker: AmqpPeer
) -> None:
    publisher = spawn("x", 1.0)
    next_end(broker, 0).expect(PUBLISH)
    broker.peer.stop()
    with pytest.raises(PublishTimeout, match="the broker may have it") as caught:
        publisher.get(timeout=WAIT)
    assert caught.value.maybe_delivered


def test_after_a_reconnect_messages_are_sent_again_in_their_order(
    spawn: Spawn, broker: AmqpPeer
) -> None:
    publishers = [spawn(str(number)) for number in range(50)]
    first = next_end(broker, 0)
    sent = [first.expect(PUBLISH)[3] for _ in publishers]
    assert sent == [str(number).encode() for number in range(50)]
    broker.peer.drop()
    second = next_end(broker, 1)
    again = [second.expect(PUBLISH) for _ in publishers]
    assert [got[3] for got in again] == sent
    ack(second, again[-1], 50, multiple=True)
    gevent.joinall(publishers, timeout=WAIT, raise_error=True)
    assert all(each.ready() for each in publishers)
    assert second.nothing_more()


def test_what_was_confirmed_is_not_sent_again(spawn: Spawn, broker: AmqpPeer) -> None:
    publishers = [spawn(str(number)) for number in range(4)]
    first = next_end(broker, 0)
    sent = [first.expect(PUBLISH) for _ in publishers]
    ack(first, sent[1], 2, multiple=True)
    gevent.joinall(publishers[:2], timeout=WAIT, raise_error=True)
    broker.peer.drop()
    second = next_end(broker, 1)
    again = [second.expect(PUBLISH) for _ in range(2)]
    assert [got[3] for got in again] == [b"2", b"3"]
    ack(second, again[1], 2, multiple=True)
    gevent.joinall(publishers, timeout=WAIT, raise_error=True)


def test_a_batch_goes_on_in_order_after_a_reconnect(
    broker: AmqpPeer, connection: Connection
) -> None:
    bodies = [str(number) for number in range(20)]
    batch = gevent.spawn(
        publish_many, DEFAULT, bodies, routing_key="q", connection=connection, timeout=WAIT
    )
    first = next_end(broker, 0)
    sent = [first.expect(PUBLISH) for _ in bodies]
    ack(first, sent[9], 10, multiple=True)
    # The ack is read before the end of the connection is.
    broker.peer.drop()
    second = next_end(broker, 1)
    again = [second.expect(PUBLISH) for _ in range(10)]
    assert [got[3] for got in again] == [each.encode() for each in bodies[10:]]
    ack(second, again[-1], 10, multiple=True)
    assert batch.get(timeout=WAIT) == 20


def test_closing_the_connection_ends_the_wait(
    spawn: Spawn, broker: AmqpPeer, connection: Connection
) -> None:
    publishers = [spawn("x"), spawn("y")]
    end = next_end(broker, 0)
    for _ in publishers:
        end.expect(PUBLISH)
    connection.close()
    for publisher in publishers:
        with pytest.raises(OperationalError, match="was closed during the call"):
            publisher.get(timeout=WAIT)
    assert len(broker.ends) == 1


def test_a_blocked_connection_sends_nothing(
    spawn: Spawn, broker: AmqpPeer, connection: Connection
) -> None:
    publisher = spawn("first")
    end = next_end(broker, 0)
    ack(end, end.expect(PUBLISH), 1)
    publisher.get(timeout=WAIT)
    block(end, connection)
    with pytest.raises(ConnectionBlocked, match=r"low on memory.*nothing was sent"):
        spawn("x", SOON).get(timeout=WAIT)
    waiting = spawn("y")
    waiting.join(timeout=0.05)
    assert end.nothing_more()
    end.method(0, spec.Connection.Unblocked)
    got = end.expect(PUBLISH)
    assert got[3] == b"y"
    ack(end, got, 2)
    waiting.get(timeout=WAIT)


def test_a_blocked_batch_fails_as_a_whole(
    spawn: Spawn, broker: AmqpPeer, connection: Connection
) -> None:
    publisher = spawn("first")
    end = next_end(broker, 0)
    ack(end, end.expect(PUBLISH), 1)
    publisher.get(timeout=WAIT)
    block(end, connection)
    began = monotonic()
    with pytest.raises(BatchPublishError) as caught:
        publish_many(
            DEFAULT, map(str, range(5)), routing_key="q", connection=connection, timeout=SOON
        )
    assert monotonic() - began < WAIT
    assert len(caught.value.failed) == caught.value.taken == 5
    assert all(isinstance(exc, ConnectionBlocked) for exc in caught.value.failed.values())


def test_a_killed_publisher_leaves_the_confirms_of_others_right(
    spawn: Spawn, broker: AmqpPeer
) -> None:
    publishers = [spawn(str(number)) for number in range(3)]
    end = next_end(broker, 0)
    sent = [end.expect(PUBLISH) for _ in publishers]
    publishers[0].kill()
    ack(end, sent[0], 1)
    ack(end, sent[2], 3)
    publishers[2].get(timeout=WAIT)
    assert not publishers[1].ready()
    ack(end, sent[1], 2)
    publishers[1].get(timeout=WAIT)


def test_only_the_culprit_is_refused(spawn: Spawn, broker: AmqpPeer) -> None:
    publishers = [spawn(str(number)) for number in range(5)]
    end = next_end(broker, 0)
    sent = [end.expect(PUBLISH) for _ in publishers]
    close_channel(end, sent[0][0])
    # One at a time: the next one comes when the one before was answered.
    tag = 0
    for number in range(5):
        got = end.expect(PUBLISH)
        tag += 1
        assert got[3] == str(number).encode()
        assert end.nothing_more()
        if number == 2:
            close_channel(end, got[0])
            tag = 0
        else:
            ack(end, got, tag)
    for number, publisher in enumerate(publishers):
        if number == 2:
            with pytest.raises(PublishRefused, match="no") as caught:
                publisher.get(timeout=WAIT)
            assert getattr(caught.value.__cause__, "reply_code", None) == 406
        else:
            publisher.get(timeout=WAIT)


def test_a_killed_suspect_is_not_mistaken_for_the_next_one(spawn: Spawn, broker: AmqpPeer) -> None:
    suspect, next_one = spawn("suspect"), spawn("next")
    end = next_end(broker, 0)
    sent = [end.expect(PUBLISH) for _ in range(2)]
    close_channel(end, sent[0][0])
    end.expect(spec.Channel.Open)
    assert end.expect(PUBLISH)[3] == b"suspect"
    suspect.kill()
    end.expect(spec.Channel.Open)
    got = end.expect(PUBLISH)
    assert got[3] == b"next"
    ack(end, got, 1)
    next_one.get(timeout=WAIT)


def test_new_messages_do_not_wait_for_suspects(spawn: Spawn, broker: AmqpPeer) -> None:
    suspect = spawn("suspect")
    end = next_end(broker, 0)
    shared = end.expect(PUBLISH)[0]
    close_channel(end, shared)
    apart = end.expect(PUBLISH)
    later = spawn("later")
    got = end.expect(PUBLISH)
    assert got[3] == b"later"
    assert got[0] not in (shared, apart[0])
    ack(end, got, 1)
    later.get(timeout=WAIT)
    ack(end, apart, 1)
    suspect.get(timeout=WAIT)


def test_who_makes_the_broker_end_the_connection_is_refused_and_nobody_else(
    spawn: Spawn, broker: AmqpPeer
) -> None:
    publishers = [spawn("good"), spawn("evil"), spawn("good too")]
    end = next_end(broker, 0)
    for _ in publishers:
        end.expect(PUBLISH)
    code = (503, "COMMAND_INVALID - no", *PUBLISH)
    end.method(0, spec.Connection.Close, "BsBB", *code)
    second = next_end(broker, 1)
    good = second.expect(PUBLISH)
    ack(second, good, 1)
    assert second.expect(PUBLISH)[3] == b"evil"
    second.method(0, spec.Connection.Close, "BsBB", *code)
    third = next_end(broker, 2)
    ack(third, third.expect(PUBLISH), 1)
    publishers[0].get(timeout=WAIT)
    publishers[2].get(timeout=WAIT)
    with pytest.raises(PublishRefused, match="COMMAND_INVALID"):
        publishers[1].get(timeout=WAIT)


def test_a_refused_login_is_reported_at_once(amqp_peer: AmqpPeer) -> None:
    def refuse(end: BrokerEnd) -> None:
        end.ignored.add(spec.Connection.StartOk)
        end.answers[spec.Connection.StartOk] = ()

    amqp_peer.prepare = refuse
    with Connection(amqp_peer.url) as connection:
        greenlet = gevent.spawn(
            publish, DEFAULT, "x", routing_key="q", connection=connection, timeout=WAIT
        )
        end = next_end(amqp_peer, 0)
        end.expect(spec.Connection.StartOk)
        end.method(0, spec.Connection.Close, "BsBB", 403, "ACCESS_REFUSED - no", 10, 11)
        began = monotonic()
        with pytest.raises(OperationalError, match="ACCESS_REFUSED"):
            greenlet.get(timeout=WAIT)
        assert monotonic() - began < WAIT / 2
