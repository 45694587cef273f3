"""A database of CouchDB that somebody deletes."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

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
