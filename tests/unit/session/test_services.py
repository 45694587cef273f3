"""What a session keeps for the rooms above it and for its transports."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.connection import Connection
from greenconn.transport.base import Transport, TransportState


class Kept:
    """What a transport keeps."""

    def __init__(self, name: str = "") -> None:
        self.name = name


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
