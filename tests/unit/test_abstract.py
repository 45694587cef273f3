"""Objects with a table of attributes, and the channel that bound ones follow."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.abstract import MaybeChannelBound
from greenconn.exceptions import NotBoundError
from tests.unit.fake_channel import FakeClient


class Thing(MaybeChannelBound):
    """Something to bind."""

    attrs = (("name", None), ("size", int), ("part", None))

    name: Any
    size: Any
    part: Any


def test_binding_makes_a_copy(client: FakeClient) -> None:
    thing, channel = Thing(name="n"), client.channel()
    bound = thing(channel)
    assert bound is not thing
    assert bound.is_bound
    assert not thing.is_bound
    assert bound.channel is channel


def test_maybe_bind_binds_once(client: FakeClient) -> None:
    first, second = client.channel(), client.channel()
    thing = Thing()
    assert thing.maybe_bind(None) is thing
    assert not thing.is_bound
    assert thing.maybe_bind(first).maybe_bind(second).channel is first


def test_unbound_one_has_no_channel() -> None:
    with pytest.raises(NotBoundError, match="Thing is not bound"):
        Thing().channel  # noqa: B018


def test_bound_to_a_connection_opens_nothing_before_it_is_needed(client: FakeClient) -> None:
    thing = Thing().bind(client)
    assert thing.is_bound
    assert client.lives == 0
    assert "chan:?" in repr(thing)
    assert thing.channel is client.default_channel
    assert client.lives == 1


def test_bound_to_a_connection_follows_the_default_channel(client: FakeClient) -> None:
    thing = Thing().bind(client)
    thing.channel.close()
    assert thing.channel is client.default_channel
    assert thing.channel.is_open
    assert client.lives == 1
    assert client.link is not None
    client.link.lose()
    assert thing.channel is client.default_channel
    assert client.lives == 2


def test_bound_to_a_channel_takes_its_successor_when_the_link_is_lost(client: FakeClient) -> None:
    old = client.channel()
    first, second = Thing().bind(old), Thing().bind(old)
    old.connection.lose()
    assert first.channel is second.channel
    assert first.channel is not old
    assert first.channel.is_open


def test_revive_changes_the_channel_of_bound_ones_only(client: FakeClient) -> None:
    first, second = client.channel(), client.channel()
    bound, unbound = Thing().bind(first), Thing()
    bound.revive(second)
    unbound.revive(second)
    assert bound.channel is second
    assert not unbound.is_bound
    bound.revive(client)
    assert bound.channel is client.default_channel
