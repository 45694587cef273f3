"""A nack for a queue whose node may be away, said by a scripted server."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest
from amqp import spec

from greenconn import Connection, Queue, publish
from greenconn.exceptions import PublishNacked, PublishTimeout
from tests.fix_amqp import AmqpPeer, BrokerEnd
from tests.fix_wires import until

CAME = 20.0


@pytest.fixture
def connection(amqp_peer: AmqpPeer) -> Iterator[Connection]:
    """A connection to a server that takes declarations."""

    def prepare(end: BrokerEnd) -> None:
        end.answers = {
            spec.Queue.Declare: (spec.Queue.DeclareOk, "sll", "orders", 0, 0),
            spec.Confirm.Select: (spec.Confirm.SelectOk,),
        }

    amqp_peer.prepare = prepare
    with Connection(amqp_peer.url) as connection:
        yield connection


def publish_nacked(
    peer: AmqpPeer, connection: Connection, timeout: float, *, is_away: bool
) -> gevent.Greenlet[..., None]:
    """Publish a message that the server refuses, and return the greenlet that waits for it.

    Arguments:
        is_away: the server does not answer for the queue from then on.
    """
    publishing = gevent.spawn(publish, Queue("orders"), "x", connection=connection, timeout=timeout)
    until(lambda: peer.ends, CAME, "a connection")
    channel, *_ = peer.end.expect(spec.Basic.Publish)
    if is_away:
        peer.end.ignored.add(spec.Queue.Declare)
    peer.end.method(channel, spec.Basic.Nack, "LB", 1, 0)
    peer.end.expect(spec.Queue.Declare)
    return publishing


def test_a_queue_that_is_there_has_refused_the_message(
    amqp_peer: AmqpPeer, connection: Connection
) -> None:
    publishing = publish_nacked(amqp_peer, connection, CAME, is_away=False)
    with pytest.raises(PublishNacked):
        publishing.get(timeout=CAME)


def test_a_queue_that_is_away_is_waited_for_until_the_deadline(
    amqp_peer: AmqpPeer, connection: Connection
) -> None:
    publishing = publish_nacked(amqp_peer, connection, 2.0, is_away=True)
    with pytest.raises(PublishTimeout, match="orders"):
        publishing.get(timeout=CAME)
