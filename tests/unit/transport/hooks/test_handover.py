"""Messages that a hook has taken out outlive the connection: the next one puts them back."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenconn.broker.port import Claimed, Settlement, SettleRequest
from greenconn.exceptions import RecoverableConnectionError
from greenconn.message import Message
from greenconn.transport.hooks import HookLink
from tests.fix_wires import until
from tests.forked import holds_in_child
from tests.tiny_client import TinyClient
from tests.unit.transport.hooks.test_channel import (
    Backend,
    BackendChannel,
    BackendTransport,
    bodies,
    drain,
    dumped,
    opened,
    send,
)


class BrokenBackend(Backend):
    """A backend that takes nothing while ``put_error`` is set."""

    put_error: Exception | None = None


class BrokenChannel(BackendChannel):
    """A channel whose puts may fail."""

    backend: BrokenBackend

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        if self.backend.put_error is not None:
            raise self.backend.put_error
        super()._put(queue, message, **kwargs)


@pytest.fixture
def backend() -> BrokenBackend:
    """The broker."""
    return BrokenBackend()


@pytest.fixture
def transport(backend: BrokenBackend, dumps: Path) -> BackendTransport:
    """A transport to ``backend``, whose links are lives of one connection."""

    class Channel(BrokenChannel):
        pass

    class Transport(BackendTransport):
        connection_errors = (*BackendTransport.connection_errors, OSError)

    Channel.backend = backend
    Transport.Channel = Channel
    return Transport(TinyClient("backend://"))


@pytest.fixture
def link(transport: BackendTransport, backend: BrokenBackend) -> Iterator[HookLink]:
    """The first life."""
    link = transport.establish_connection()
    yield link
    backend.put_error = None
    link.close()


def came_back(backend: Backend, channel: BackendChannel, *wanted: str) -> None:
    until(lambda: sorted(bodies(backend, channel)) == sorted(wanted))
    assert all(json.loads(each)["redelivered"] for each in backend.queues["q"])


def test_a_message_that_nobody_has_seen_and_that_cannot_be_put_back(
    backend: BrokenBackend, link: HookLink, channel: BackendChannel, dumps: Path
) -> None:
    send(channel, "x")
    raw = json.loads(backend.queues["q"].popleft())
    backend.put_error = OSError("cut")
    link._deliver(raw, "q")  # for a consumer that is gone
    until(lambda: not link.is_open)
    backend.put_error = None
    successor = link.transport.establish_connection()
    came_back(backend, channel, "x")
    successor.close()
    assert list(dumps.iterdir()) == []


@pytest.mark.parametrize("multiple", [False, True])
def test_a_rejected_message_that_cannot_be_put_back(
    backend: BrokenBackend, link: HookLink, channel: BackendChannel, multiple: bool
) -> None:
    got: list[Message] = []
    channel.basic_qos(0, 3, False)
    channel.basic_consume("q", callback=got.append)
    send(channel, *"abc")
    drain(link, got, 3)
    backend.put_error = OSError("cut")
    for message in got[-1:] if multiple else got:
        with pytest.raises(OSError, match="cut"):
            channel.basic_nack(message.delivery_tag, multiple=multiple, requeue=True)
    assert len(channel.deliveries.unacked) == channel.prefetch.in_flight == 3
    link.end(RecoverableConnectionError("lost"))
    backend.put_error = None
    successor = link.transport.establish_connection()
    came_back(backend, channel, "a", "b", "c")
    successor.close()


def test_what_a_lost_connection_held_is_put_back(
    backend: BrokenBackend, link: HookLink, channel: BackendChannel
) -> None:
    got: list[Message] = []
    channel.basic_qos(0, 2, False)
    channel.basic_consume("q", callback=got.append)
    send(channel, *"ab")
    drain(link, got, 2)
    link.end(RecoverableConnectionError("lost"))
    got[0].ack()
    successor = link.transport.establish_connection()
    came_back(backend, channel, "b")
    got[1].ack()  # too late: does nothing
    successor.close()


def test_what_two_connections_cannot_put_back_is_dumped(
    backend: BrokenBackend, link: HookLink, channel: BackendChannel, dumps: Path
) -> None:
    send(channel, "x")
    assert channel.basic_get("q") is not None
    link.end(RecoverableConnectionError("lost"))
    backend.put_error = OSError("no room")
    successor = link.transport.establish_connection()
    until(lambda: list(dumps.iterdir()))
    assert dumped(dumps, channel) == [b"x"]
    assert successor.is_open
    successor.close()


def test_what_no_connection_puts_back_is_dumped_in_the_end(
    backend: BrokenBackend, dumps: Path, transport: BackendTransport
) -> None:
    link = transport.establish_connection()
    channel = opened(link)
    channel.queue_declare("q")
    send(channel, *"xy")
    assert channel.basic_get("q") is not None
    (message,) = [channel.message_of(json.loads(backend.queues["q"].popleft()), "q")]
    link.end(RecoverableConnectionError("lost"))
    link.settlements.requeue_unseen(message.claimed)

    def ends() -> bool:
        transport.kept_state._kept.clear()
        return not list(dumps.iterdir())

    assert holds_in_child(ends)
    transport.kept_state._kept.clear()
    gc.collect()
    assert sorted(dumped(dumps, channel)) == [b"x", b"y"]


def test_what_the_broker_requeues_by_itself_is_left_to_it(
    backend: BrokenBackend, link: HookLink, channel: BackendChannel, dumps: Path
) -> None:
    type(channel).do_restore = False
    send(channel, "x")
    message = channel.basic_get("q")
    assert message is not None
    link.end(RecoverableConnectionError("lost"))
    successor = link.transport.establish_connection()
    successor.store.settle([SettleRequest(Claimed("q", None, message), Settlement.REQUEUE)])
    successor.close()
    assert bodies(backend, channel) == []
    assert list(dumps.iterdir()) == []


def test_a_channel_closes_that_cannot_put_back_what_it_has(
    backend: BrokenBackend, link: HookLink, channel: BackendChannel, dumps: Path
) -> None:
    channel.basic_consume("q", callback=print)
    send(channel, *"ab")
    until(lambda: len(link.events) == 2)
    backend.put_error = ValueError("no")
    channel.close()
    assert sorted(dumped(dumps, channel)) == [b"a", b"b"]
    assert not channel.is_open
