"""What a CouchDB loses: a database that somebody deletes, and its last writes in a crash."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.queue import Queue

import greenconn
from greenconn import Connection
from tests.fix_wires import until
from tests.integration.couchdb_clients import SOON, raw_to

pytestmark = pytest.mark.full


@pytest.mark.long
def test_database_that_is_deleted_is_made_again(couchdb_new_url: str) -> None:
    options = {"lease": 1.0, "feed_heartbeat": 0.5}
    with Connection(couchdb_new_url, transport_options=options) as connection:
        got: list[Any] = []
        consumer = greenconn.spawn_consumer(
            "q", lambda body, message: got.append(body), connection=connection
        )
        assert consumer.wait_ready(SOON)
        greenconn.publish("q", "before", connection=connection)
        until(lambda: got == ["before"])
        with raw_to(couchdb_new_url) as raw:
            assert raw("DELETE") == {"ok": True}

        def try_again() -> bool:
            greenconn.publish("q", "after", connection=connection, timeout=SOON)
            gevent.sleep(0.2)
            return "after" in got

        until(try_again, 6 * SOON)
        assert consumer.stop(SOON)


def test_what_a_crash_brings_back_is_delivered(own_couchdb: Any, unique: str) -> None:
    options = {"lease": 1.0, "feed_heartbeat": 0.5}
    with Connection(own_couchdb.url, transport_options=options) as connection:

        def is_empty() -> bool:
            try:
                with connection.channel() as channel:
                    return not channel.queue_declare(unique, passive=True).message_count
            except connection.recoverable_connection_errors:
                return False

        got: Queue[int] = Queue()
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: got.put(body), connection=connection
        )
        assert consumer.wait_ready(SOON)
        for number in range(5):
            greenconn.publish(unique, number, connection=connection, timeout=SOON)
            while got.get(timeout=SOON) != number:
                pass  # an earlier one, again
            until(is_empty)
            # CouchDB before 3 may not have written the ack to its disk, nor the claim.
            own_couchdb.kill()
            own_couchdb.start()
            until(is_empty, 6 * SOON)
        assert consumer.stop(SOON)
