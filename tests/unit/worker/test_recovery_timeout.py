"""Deliveries for whose answer a broker has waited too long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from greenconn.exceptions import NotFound, PreconditionFailed
from greenconn.worker.dispatch import Dispatcher, WorkerPool
from greenconn.worker.lifecycle import CancelledConsumer, find_overdue

TIMED_OUT = PreconditionFailed("delivery acknowledgement on channel 1 timed out")


class Given:
    """A handling that takes note of what is given back."""

    name = "handle"

    def __init__(self, *, is_no_ack: bool = False) -> None:
        self.is_no_ack = is_no_ack
        self.back: list[Any] = []

    def requeue(self, message: Any, *, has_begun: bool = True) -> None:
        """Note it."""
        assert not has_begun
        self.back.append(message)


def channel(version: tuple[int, ...] | None = (4, 3, 0)) -> Any:
    """An open channel of a broker of *version*, which has waited for delivery 1 longest."""
    connection = SimpleNamespace(server_version=version)
    return SimpleNamespace(connection=connection, oldest_unacked=1, is_open=True)


def dispatcher_of(*messages: Any) -> Dispatcher:
    """A dispatcher with *messages* that no handler begins."""
    consumer: Any = SimpleNamespace(
        group=SimpleNamespace(pool=WorkerPool()),
        handling=SimpleNamespace(run=pytest.fail),
        options=SimpleNamespace(concurrency=1),
    )
    dispatcher = Dispatcher(consumer)
    dispatcher.is_held = True
    for message in messages:
        dispatcher.put(message)
    return dispatcher


def message(number: int, used: Any, tag: str = "tag", *, acknowledged: bool = False) -> Any:
    """Delivery *number* of consumer *tag*."""
    return SimpleNamespace(
        channel=used,
        delivery_tag=number,
        delivery_info={"consumer_tag": tag},
        acknowledged=acknowledged,
    )


def test_the_oldest_delivery_is_found() -> None:
    used = channel()
    dispatcher = dispatcher_of(message(1, used), message(2, used))
    found = find_overdue(dispatcher, "handle", "q", "tag", used, TIMED_OUT)
    assert found is not None
    assert found[:4] == ("q", 1, False, "handle")
    assert str(TIMED_OUT) in found.outcome


@pytest.mark.parametrize(
    "exc", [PreconditionFailed("unknown delivery tag 9"), NotFound("no queue"), OSError("gone")]
)
def test_other_errors_are_no_timeout(exc: Exception) -> None:
    used = channel()
    assert find_overdue(dispatcher_of(message(1, used)), "handle", "q", "tag", used, exc) is None


def test_a_cancelled_consumer_puts_back_what_no_handler_has_begun() -> None:
    used, handling = channel(), Given()
    mine, other = message(1, used), message(2, used, "other")
    dispatcher = dispatcher_of(mine, other)
    cancelled = CancelledConsumer(dispatcher, handling, "q", "tag", used)  # type: ignore[arg-type]
    assert list(dispatcher.inbox) == [other]
    cancelled.requeue()
    cancelled.requeue()
    assert handling.back == [mine]


@pytest.mark.parametrize(
    ("version", "is_told"),
    [(None, False), ((4, 2, 9), False), ((4, 3, 0), True), ((5, 0, 0), True)],
)
def test_only_a_broker_with_that_timeout_is_blamed(
    version: tuple[int, ...] | None,
    is_told: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("greenconn.worker.lifecycle.ensure_queue_exists", lambda *a, **k: None)
    used, handling = channel(version), Given()
    answered = message(1, used, acknowledged=True)
    dispatcher = dispatcher_of(answered, message(2, used), message(3, used))
    cancelled = CancelledConsumer(dispatcher, handling, "q", "tag", used)  # type: ignore[arg-type]
    cancelled.resolve(SimpleNamespace())  # type: ignore[arg-type]
    assert len(handling.back) == 3
    assert ("delivery 2 of queue 'q' waited for its handler handle" in caplog.text) is is_told


def test_the_last_copies_of_a_deleted_queue_are_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: Any, **options: Any) -> None:
        raise NotFound("no queue 'q'")

    monkeypatch.setattr("greenconn.worker.lifecycle.ensure_queue_exists", gone)
    used, handling, deleted = channel(), Given(), list[str]()
    mine = message(1, used)
    dispatcher = dispatcher_of(mine)
    cancelled = CancelledConsumer(dispatcher, handling, "q", "tag", used)  # type: ignore[arg-type]
    assert not dispatcher.inbox
    topology = SimpleNamespace(queue_deleted=deleted.append)
    cancelled.resolve(SimpleNamespace(topology=topology))  # type: ignore[arg-type]
    assert list(dispatcher.inbox) == [mine]
    assert dispatcher.received == 1
    assert deleted == ["q"]
    assert handling.back == []
