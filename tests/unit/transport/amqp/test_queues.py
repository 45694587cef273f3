"""What a connection remembers of queues: a bounded number of them, and nothing that is no longer so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from greenconn.exceptions import AMQPNotImplementedError
from greenconn.transport.amqp import consuming, topology
from greenconn.transport.amqp.consuming import Consumers
from greenconn.transport.amqp.topology import KnownQueues

QUORUM, STREAM = {"x-queue-type": "quorum"}, {"x-queue-type": "stream"}


class Calls:
    """Calls that are only noted, each answered at once."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def pack(self, sig: Any, form: str, args: Any) -> Any:
        return args

    def wait_writable(self) -> None:
        pass

    def begin(self, sig: Any, args: Any, wait: Any, *, on_reply: Any, **options: Any) -> None:
        self.asked.append(args)
        on_reply(None)


@pytest.fixture
def known() -> KnownQueues:
    return KnownQueues("here", None)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def consumers(known: KnownQueues, calls: Calls) -> Consumers:
    channel: Any = SimpleNamespace(channel_id=1)
    link: Any = SimpleNamespace(queues=known, qos_is_for_channel=bool)
    acks: Any = SimpleNamespace(ledger=SimpleNamespace(outstanding={}))
    sent: Any = calls
    return Consumers(channel, link, sent, acks)


def test_kinds_follow_the_declarations(known: KnownQueues) -> None:
    known.declared("a", QUORUM)
    known.declared("b", STREAM)
    known.deleted("c")
    known.declared("d", {"x-queue-type": "classic"})
    assert known.kinds == {"a": "quorum", "b": "stream"}
    known.declared("a", {})
    assert known.kinds == {"b": "stream"}
    known.deleted("b")
    assert known.kinds == {}


def test_the_memory_of_queues_is_bounded(
    known: KnownQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "_KEPT", 3)
    for number in range(10):
        known.declared(str(number), QUORUM)
    assert list(known.kinds) == ["7", "8", "9"]


def test_the_memory_of_readers_is_bounded(
    consumers: Consumers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consuming, "_STREAMS_KEPT", 3)
    streams = consumers.streams
    running: Any = SimpleNamespace(tag="0")
    consumers.by_tag[b"0"] = running
    for number in range(10):
        consumers.prepare("q", str(number), False, {"x-stream-offset": "first"})
        assert len(streams) <= 4
    assert "0" in streams
    assert "9" in streams
    assert consumers.streams is streams  # the channel hands out this very set


def test_a_tag_may_be_used_for_another_queue(consumers: Consumers) -> None:
    consumers.prepare("s", "tag", False, {"x-stream-offset": "first"})
    assert consumers.streams == {"tag"}
    consumers.prepare("q", "tag", False, None)
    assert consumers.streams == set()


def test_a_limit_is_changed_only_where_it_must_be(
    consumers: Consumers, known: KnownQueues, calls: Calls
) -> None:
    consumers.limit(0, 7, True)
    consumers.prepare("classic", "tag", False, None)
    assert calls.asked == [(0, 7, True)]
    known.declared("quorum", QUORUM)
    consumers.prepare("quorum", "tag", False, None)
    assert calls.asked[1:] == [(0, 0, True), (0, 7, False)]
    consumers.prepare("quorum", "tag", False, None)
    assert len(calls.asked) == 3


def test_what_a_stream_cannot_do(consumers: Consumers, known: KnownQueues) -> None:
    known.declared("s", STREAM)
    with pytest.raises(AMQPNotImplementedError, match="no_ack must be False"):
        consumers.prepare("s", "tag", True, None)
    with pytest.raises(AMQPNotImplementedError, match="can only be consumed"):
        consumers.get("s", False)
