"""What was published over a pool leaves before its connections are closed by force."""

from __future__ import annotations

from time import monotonic

from amqp import spec

from greenconn.connection import Connection
from tests.fix_amqp import AmqpPeer

#: More than the buffers of a socket hold.
BODY = b"x" * 8 * 2**20


def test_what_was_published_leaves_first(amqp_peer: AmqpPeer) -> None:
    with Connection(amqp_peer.url) as connection:
        pool = connection.Pool(1)
        with pool.acquire(block=True) as pooled:
            pooled.Producer().publish(BODY, routing_key="q")
            link = pooled.session.life.link
        assert link.writer.pending
        pool.force_close_all()
        assert amqp_peer.end.expect(spec.Basic.Publish)[3] == BODY
        amqp_peer.end.expect(spec.Connection.Close)


def test_peers_that_do_not_answer_are_waited_for_together(amqp_peer: AmqpPeer) -> None:
    amqp_peer.prepare = lambda end: end.ignored.add(spec.Connection.Close)
    with Connection(amqp_peer.url) as connection:
        pool = connection.Pool(8)
        borrowed = [pool.acquire(block=True) for _ in range(8)]
        for each in borrowed:
            each.connect()
        for each in borrowed[:4]:
            each.release()
        began = monotonic()
        pool.force_close_all()
        assert monotonic() - began < 15.0  # one after the other would take 16 s
    assert len(amqp_peer.ends) == 8
