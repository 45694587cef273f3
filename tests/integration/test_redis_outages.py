"""A Redis that goes and comes back while a crowd waits for it."""

from __future__ import annotations

import gevent
import pytest

import greenconn
from greenconn import Connection
from tests.fix_brokers import RedisFactory
from tests.fix_relay import RelayFactory
from tests.fix_wires import until
from tests.integration.contract import SOON

pytestmark = pytest.mark.full

#: Options of a server that has everything again when it is back.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def test_no_storm_when_a_server_is_back(redis_with: RedisFactory, relay_to: RelayFactory) -> None:
    """A thousand greenlets wait for it, and one of them knocks at a time."""
    server = redis_with(*DURABLE)
    relay, to_consumers = relay_to(server.url), relay_to(server.url)
    got: set[int] = set()
    with Connection(relay.url) as connection, Connection(to_consumers.url) as consuming:

        def publish_all(first: int) -> list[gevent.Greenlet[..., None]]:
            return [
                gevent.spawn(
                    greenconn.publish,
                    f"q{each % 10}",
                    each,
                    connection=connection,
                    timeout=SOON * 3,
                    declare=True,
                )
                for each in range(first, first + 1000)
            ]

        consumers = [
            greenconn.spawn_consumer(
                f"q{number}", lambda body, message: got.add(body), connection=consuming
            )
            for number in range(10)
        ]
        assert all(each.wait_ready(SOON) for each in consumers)
        greenconn.publish("q0", -1, connection=connection, declare=True)
        server.kill()
        publishes = publish_all(0)
        gevent.sleep(1.0)
        knocks = relay.accepted, to_consumers.accepted
        assert max(knocks) <= 12
        server.start()
        gevent.joinall(publishes, raise_error=True)
        until(lambda: len(got) == 1001)
        assert relay.accepted <= knocks[0] + 3
        assert to_consumers.accepted <= knocks[1] + 3
        # One connection for each life, however many greenlets notice its end.
        before = relay.accepted
        publishes = publish_all(1000)
        gevent.sleep(0)
        relay.cut()
        gevent.joinall(publishes, raise_error=True)
        until(lambda: len(got) == 2001)
        assert relay.accepted <= before + 2
        assert max(relay.most, to_consumers.most) <= 2
        assert all(each.stop(SOON) for each in consumers)
