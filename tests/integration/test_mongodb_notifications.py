"""How consumers of a MongoDB hear of messages: change streams, and polling without them."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import greenconn
from greenconn import Connection
from greenconn.transport.mongodb import MongoStore, changes
from tests.fix_wires import until
from tests.integration.contract import SOON, collecting


def store_of(connection: Connection) -> MongoStore:
    """The store below a connection."""
    store = connection.connection.store
    assert isinstance(store, MongoStore)
    return store


def test_member_of_a_set_reports_changes(
    mongodb_set_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "WATCHED", 3600.0)
    got: list[Any] = []
    with Connection(mongodb_set_url) as connection:
        consumer = collecting(connection, "q", got)
        waker = store_of(connection)._notifications
        until(lambda: waker._is_streaming)
        with Connection(mongodb_set_url) as other:
            for number in range(5):
                greenconn.publish("q", number, connection=other)
                until(lambda number=number: len(got) == number + 1)  # type: ignore[misc]
        assert got == list(range(5))
        assert consumer.stop(SOON)


def test_lone_server_is_polled_and_that_is_said_once(
    mongodb_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "greenconn.transport.mongodb")
    got: list[Any] = []
    with Connection(mongodb_url) as one, Connection(mongodb_url) as other:
        consumer = collecting(one, "q", got)
        greenconn.publish("q", 1, connection=other)
        until(lambda: got == [1])
        assert consumer.stop(SOON)
    said = [each.getMessage() for each in caplog.records if "are polled every" in each.getMessage()]
    assert len(said) == 1
