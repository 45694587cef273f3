"""Kombu's hooks as a store: what a broker need not be asked twice, and what is given back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

from greenconn.broker.port import Claimed, Settlement, SettleRequest
from greenconn.transport.hooks import HookLink
from tests.fix_wires import until
from tests.integration.contract import Store
from tests.unit.transport.hooks.test_channel import (
    Backend,
    BackendChannel,
    bodies,
    fail,
    linked,
    send,
)


class GreedyChannel(BackendChannel):
    """Takes all that there is, whatever is wanted."""

    def _get_many(self, queues: Any, timeout: float | None = None) -> None:
        found = False
        for queue in queues:
            while self.backend.queues[queue]:
                found = True
                raw = json.loads(self.backend.queues[queue].popleft())
                self.connection._deliver(raw, queue)
        if not found:
            raise Empty


@pytest.fixture
def link(backend: Backend) -> Iterator[HookLink]:
    """A link to ``backend`` whose channels take more than is wanted."""
    with linked(backend, GreedyChannel) as link:
        yield link


def test_what_is_too_many_waits_for_room(
    backend: Backend, link: HookLink, channel: BackendChannel
) -> None:
    channel.basic_qos(0, 2, False)
    sink = Store()
    send(channel, *"12345")
    channel.basic_consume("q", sink=sink)
    until(lambda: len(sink) == 2)
    assert not backend.queues["q"]
    assert len(channel.qos) == 2
    sink[1].ack(multiple=True)
    until(lambda: len(sink) == 4)
    assert [each.body for each in sink] == [b"1", b"2", b"3", b"4"]


def test_what_comes_for_nobody_goes_back(
    backend: Backend, link: HookLink, channel: BackendChannel
) -> None:
    send(channel, "x")
    raw = json.loads(backend.queues["q"].popleft())
    link._deliver(raw, "q")
    until(lambda: bodies(backend, channel) == ["x"])
    with pytest.raises(KeyError, match="without the name"):
        link._deliver(raw, "")


def test_what_cannot_be_put_back_is_dumped(
    backend: Backend,
    link: HookLink,
    channel: BackendChannel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    message = channel.message_of({"body": "c2VjcmV0", "properties": {}}, "q")
    channel._restore = fail  # type: ignore[method-assign]
    link.store.settle([SettleRequest(Claimed("q", None, message), Settlement.REQUEUE)])
    assert "a message could not be requeued: OSError('gone')" in caplog.text
    assert "secret" not in caplog.text
    assert link.is_open
    (path,) = tmp_path.iterdir()
    assert b"c2VjcmV0" in path.read_bytes() or b"secret" in path.read_bytes()


def test_a_settlement_that_fails_may_be_repeated(
    backend: Backend, link: HookLink, channel: BackendChannel
) -> None:
    send(channel, "x")
    message = channel.basic_get("q")
    assert message is not None
    restore, channel._restore = channel._restore, fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"):
        message.requeue()
    assert not message.acknowledged
    channel._restore = restore  # type: ignore[method-assign]
    message.requeue()
    assert bodies(backend, channel) == ["x"]
