"""A nack or return for a queue that is full, away, or between two leaders, said by a scripted server."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import gevent
import pytest
from amqp import spec

from greenconn import Connection, Exchange, Queue, publish, publish_many
from greenconn.exceptions import BatchPublishError, PublishNacked, PublishTimeout, Unroutable
from greenconn.publishing import publisher
from greenconn.publishing.publisher import Target
from tests.fix_amqp import AmqpPeer, BrokerEnd, content, method_frame
from tests.fix_wires import until

pytestmark = pytest.mark.halved

CAME = 20.0


@pytest.fixture
def connection(amqp_peer: AmqpPeer) -> Iterator[Connection]:
    """A connection to a server that takes declarations."""

    def prepare(end: BrokerEnd) -> None:
        hold(end, 5)
        end.answers[spec.Exchange.Declare] = (spec.Exchange.DeclareOk,)
        end.answers[spec.Confirm.Select] = (spec.Confirm.SelectOk,)

    amqp_peer.prepare = prepare
    with Connection(amqp_peer.url) as connection:
        yield connection


def hold(end: BrokerEnd, number: int) -> None:
    """Have the server say from now on that its queue holds a *number* of messages."""
    end.answers[spec.Queue.Declare] = (spec.Queue.DeclareOk, "sll", "orders", number, 0)


def take_away(end: BrokerEnd) -> None:
    """Have the server say from now on that the node of its queue is away."""
    text = "NOT_FOUND - home node 'one' of durable queue 'orders' is down or inaccessible"
    end.answers[spec.Queue.Declare] = (spec.Channel.Close, "BsBB", 404, text, 50, 10)


def begin(
    peer: AmqpPeer, connection: Connection, timeout: float = CAME, target: Target | None = None
) -> gevent.Greenlet[..., None]:
    """Publish a message, and return the greenlet that waits for its confirm.  May switch."""
    entity = target or Queue("orders")
    publishing = gevent.spawn(publish, entity, "x", connection=connection, timeout=timeout)
    until(lambda: peer.ends, CAME, "a connection")
    return publishing


def take(end: BrokerEnd) -> tuple[int, int, bytes]:
    """Return the channel of the next message, its number there, and its body.  May switch."""
    channel, _, _, body = end.expect(spec.Basic.Publish)
    assert body is not None
    end.answered[channel] += 1
    return channel, end.answered[channel], body


def nack(end: BrokerEnd) -> int:
    """Refuse the next message, and return its channel.  May switch."""
    channel, tag, _ = take(end)
    end.method(channel, spec.Basic.Nack, "LB", tag, 0)
    return channel


def nack_all(end: BrokerEnd) -> None:
    """Refuse all messages.  May switch."""
    while True:
        nack(end)


def ack(end: BrokerEnd) -> int:
    """Take the next message, and return its channel.  May switch."""
    channel, tag, _ = take(end)
    end.method(channel, spec.Basic.Ack, "LB", tag, 0)
    return channel


def give_back(end: BrokerEnd) -> None:
    """Return the next message.  May switch."""
    channel, tag, body = take(end)
    returned = method_frame(channel, spec.Basic.Return, "Bsss", 312, "NO_ROUTE", "", "orders")
    end.send(returned + content(channel, body))
    end.method(channel, spec.Basic.Ack, "LB", tag, 0)


def test_a_queue_that_refuses_a_message_twice_is_full(
    amqp_peer: AmqpPeer, connection: Connection
) -> None:
    publishing = begin(amqp_peer, connection)
    nack(amqp_peer.end)
    nack(amqp_peer.end)  # on a channel that no other message uses
    with pytest.raises(PublishNacked):
        publishing.get(timeout=CAME)


def test_a_queue_that_has_a_leader_again_takes_the_message(
    amqp_peer: AmqpPeer, connection: Connection
) -> None:
    publishing = begin(amqp_peer, connection)
    nack(amqp_peer.end)
    ack(amqp_peer.end)
    publishing.get(timeout=CAME)


def test_a_queue_without_a_leader_is_waited_for(
    amqp_peer: AmqpPeer, connection: Connection
) -> None:
    publishing = begin(amqp_peer, connection)
    hold(amqp_peer.end, 0)
    used = [nack(amqp_peer.end) for _ in range(3)]
    used.append(ack(amqp_peer.end))
    publishing.get(timeout=CAME)
    # Numbers of channels that were closed are used again, too.
    assert all(one != next_one for one, next_one in pairwise(used))


@pytest.mark.parametrize("is_known", [False, True], ids=["away", "without leader"])
def test_a_queue_is_waited_for_until_the_deadline(
    amqp_peer: AmqpPeer, connection: Connection, is_known: bool
) -> None:
    publishing = begin(amqp_peer, connection, 2.0)
    end = amqp_peer.end
    end.expect(spec.Queue.Declare)
    channel, *_ = end.expect(spec.Basic.Publish)
    if is_known:
        hold(end, 0)
    else:
        end.ignored.add(spec.Queue.Declare)
    end.method(channel, spec.Basic.Nack, "LB", 1, 0)
    end.expect(spec.Queue.Declare)
    refusing = gevent.spawn(nack_all, end)
    # A nack is the broker's answer: it has not the message.
    with pytest.raises(PublishNacked if is_known else PublishTimeout, match="orders"):
        publishing.get(timeout=CAME)
    refusing.kill()


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_message_that_its_queue_is_too_small_for(
    amqp_url: str, unique: str, queue_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "LEADER_WAIT", 0.2)
    bounds = {"x-max-length-bytes": 100, "x-overflow": "reject-publish"}
    queue = Queue(unique, queue_arguments={**bounds, "x-queue-type": queue_type})
    with Connection(amqp_url) as connection:
        with pytest.raises(PublishNacked):
            for _ in range(2):  # a quorum queue takes one above its bounds
                publish(queue, "x" * 1000, connection=connection)
        queue(connection).delete()


def test_a_message_to_an_exchange_is_not_sent_again(
    amqp_peer: AmqpPeer, connection: Connection
) -> None:
    """Other queues of the exchange may have taken it."""
    publishing = begin(amqp_peer, connection, target=Exchange("events", "fanout"))
    nack(amqp_peer.end)
    with pytest.raises(PublishNacked):
        publishing.get(timeout=CAME)


@pytest.mark.parametrize("is_full", [False, True], ids=["has a leader", "full"])
def test_what_was_refused_of_a_batch_is_sent_again_alone(
    amqp_peer: AmqpPeer, connection: Connection, is_full: bool
) -> None:
    bodies, queue = ["taken", "one", "two", "three"], Queue("orders")
    publishing = gevent.spawn(publish_many, queue, bodies, connection=connection, timeout=CAME)
    until(lambda: amqp_peer.ends, CAME, "a connection")
    end = amqp_peer.end
    ack(end)
    for _ in range(3):
        nack(end)
    if not is_full:
        for _ in range(3):
            ack(end)
        assert publishing.get(timeout=CAME) == 4
        return
    nack(end)  # one is enough to know
    with pytest.raises(BatchPublishError) as caught:
        publishing.get(timeout=CAME)
    assert sorted(caught.value.failed) == [1, 2, 3]
    assert {type(exc) for exc in caught.value.failed.values()} == {PublishNacked}


@pytest.mark.parametrize("fate", ["comes back", "stays away", "is deleted"])
def test_what_was_returned_of_a_batch_waits_for_its_queue(
    amqp_peer: AmqpPeer, connection: Connection, fate: str
) -> None:
    bodies, timeout = ["taken", "one", "two"], 2.0 if fate == "stays away" else CAME
    publishing = gevent.spawn(
        publish_many, Queue("orders"), bodies, connection=connection, timeout=timeout
    )
    until(lambda: amqp_peer.ends, CAME, "a connection")
    end = amqp_peer.end
    ack(end)
    if fate != "is deleted":
        take_away(end)
    for _ in range(2):
        give_back(end)
    if fate == "comes back":
        for _ in range(3):  # to look for it, and to declare it
            end.expect(spec.Queue.Declare)
        hold(end, 0)
        for _ in range(2):
            ack(end)
        assert publishing.get(timeout=CAME) == 3
        return
    with pytest.raises(BatchPublishError, match="orders") as caught:
        publishing.get(timeout=CAME)
    assert sorted(caught.value.failed) == [1, 2]
    kind = Unroutable if fate == "is deleted" else PublishTimeout
    assert {type(exc) for exc in caught.value.failed.values()} == {kind}
