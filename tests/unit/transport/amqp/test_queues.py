"""What a channel remembers of queues: a bounded number of them, and nothing that is no longer so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from greenconn.exceptions import AMQPNotImplementedError
from greenconn.transport.amqp import queues
from greenconn.transport.amqp.queues import DeliveryLimits, QueueKinds

QUORUM, STREAM = {"x-queue-type": "quorum"}, {"x-queue-type": "stream"}


class Channel(QueueKinds):
    """A channel that only counts what it is asked."""

    def __init__(self) -> None:
        self.connection = SimpleNamespace(  # type: ignore[assignment]
            queue_kinds={}, delivery_limits=DeliveryLimits("here", None)
        )
        self._ledger = SimpleNamespace(outstanding={})  # type: ignore[assignment]
        self._consumers = {}
        self._qos = None
        self.asked: list[Any] = []
        self._init_kinds()

    def basic_qos(self, size: int, count: int, is_global: bool) -> None:
        self.asked.append((size, count, is_global))
        self._qos = (size, count, is_global)


@pytest.fixture
def channel() -> Channel:
    return Channel()


def test_kinds_follow_the_declarations(channel: Channel) -> None:
    channel._note_kind("a", QUORUM)
    channel._note_kind("b", STREAM)
    channel._note_kind("c", None)
    channel._note_kind("d", {"x-queue-type": "classic"})
    assert channel.connection.queue_kinds == {"a": "quorum", "b": "stream"}
    channel._note_kind("a", {})
    assert channel.connection.queue_kinds == {"b": "stream"}


def test_the_memory_of_queues_is_bounded(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_KINDS_KEPT", 3)
    for number in range(10):
        channel._note_kind(str(number), QUORUM)
    assert list(channel.connection.queue_kinds) == ["7", "8", "9"]


def test_the_memory_of_readers_is_bounded(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "_STREAMS_KEPT", 3)
    running: Any = SimpleNamespace(tag="0")
    channel._consumers[b"0"] = running
    for number in range(10):
        channel._prepare_consume("q", str(number), False, {"x-stream-offset": "first"})
        assert len(channel.streams) <= 4
    assert "0" in channel.streams
    assert "9" in channel.streams


def test_a_tag_may_be_used_for_another_queue(channel: Channel) -> None:
    channel._prepare_consume("s", "tag", False, {"x-stream-offset": "first"})
    assert channel.streams == {"tag"}
    channel._prepare_consume("q", "tag", False, None)
    assert channel.streams == set()


def test_a_limit_is_changed_only_where_it_must_be(channel: Channel) -> None:
    channel._qos = (0, 7, True)
    channel._prepare_consume("classic", "tag", False, None)
    assert channel.asked == []
    channel._note_kind("quorum", QUORUM)
    channel._prepare_consume("quorum", "tag", False, None)
    assert channel.asked == [(0, 0, True), (0, 7, False)]
    channel._prepare_consume("quorum", "tag", False, None)
    assert len(channel.asked) == 2


def test_what_a_stream_cannot_do(channel: Channel) -> None:
    channel._note_kind("s", STREAM)
    with pytest.raises(AMQPNotImplementedError, match="must acknowledge"):
        channel._prepare_consume("s", "tag", True, None)
    with pytest.raises(AMQPNotImplementedError, match="can only be consumed"):
        channel._check_get("s")
    channel._check_get("another")
