"""What a session keeps for the rooms above it and for its transports."""

from __future__ import annotations

from greenconn.connection import Connection
from greenconn.transport.base import TransportState


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
