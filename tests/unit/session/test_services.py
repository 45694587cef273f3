"""What a session keeps for the rooms above it and for its transports."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.connection import Connection
from greenconn.defaults import publishing_connection
from greenconn.publishing import publish
from greenconn.service.rpc import call, spawn_server
from greenconn.transport.base import Transport, TransportState
from greenconn.worker import spawn_consumer
from tests.fix_wires import until


class Kept:
    """What a transport keeps."""

    def __init__(self, name: str = "") -> None:
        self.name = name


def test_a_session_begins_with_none() -> None:
    services = Connection("memory://").session.services
    assert services.consumers is None
    assert services.publisher is None
    assert services.publishing_connection is None
    assert services.rpc_client is None


def test_each_service_is_made_once_and_outlives_a_close() -> None:
    connection = Connection("memory://services")
    with connection:
        services = connection.session.services
        consumer = spawn_consumer("q", lambda body, message: None, connection=connection)
        server = spawn_server("double", lambda body: 2 * body, connection=connection)
        assert consumer.wait_ready(10)
        assert server.wait_ready(10)
        assert call("double", 2, connection=connection) == 4
        publish("q", "x", connection=connection)
        first = (services.consumers, services.publisher, services.rpc_client)
        assert None not in first
        assert publishing_connection(connection) is connection
        until(lambda: consumer.stats()["handled"] == 1)
        assert services.consumers is not None
        assert len(services.consumers) == 2
    assert services.publishing_connection is None
    with connection:
        publish("q", "x", connection=connection)
        assert (services.consumers, services.publisher, services.rpc_client) == first


def test_after_a_fork_the_child_begins_with_none() -> None:
    session = Connection("memory://").session
    services = session.services
    session.forget()
    assert session.services is not services


def test_a_transport_finds_one_object_of_each_kind_and_place() -> None:
    state = TransportState()
    kept = state.get(Kept, "here", "a name")
    assert state.get(Kept, "here", "another name") is kept
    assert kept.name == "a name"
    assert state.get(Kept, "there") is not kept
    assert state.get(dict, "here") == {}


@pytest.mark.parametrize("has_session", [True, False], ids=["session", "no session"])
def test_a_transport_keeps_its_state(has_session: bool) -> None:
    client = Connection("memory://") if has_session else object()
    transport: Transport[Any] = Transport(client)
    kept = transport.kept_state.get(Kept, "here")
    assert transport.kept_state.get(Kept, "here") is kept
    if has_session:  # a walk over a failover list makes transports anew
        again: Transport[Any] = Transport(client)
        assert again.kept_state.get(Kept, "here") is kept
