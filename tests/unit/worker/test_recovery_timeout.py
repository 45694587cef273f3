"""Deliveries for whose answer a broker has waited too long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from greenconn.exceptions import NotFound, PreconditionFailed
from greenconn.worker.dispatch import Dispatcher, WorkerPool
from greenconn.worker.lifecycle import CancelledConsumer, OverdueDelivery, find_overdue

TIMED_OUT = PreconditionFailed("delivery acknowledgement on channel 1 timed out")


class Given:
    """A consumer that takes note of what is given back.

    Arguments:
        messages: those that no handler begins.
    """

    def __init__(self, *messages: Any, no_ack: bool = False) -> None:
        self.options = SimpleNamespace(concurrency=1, no_ack=no_ack)
        self.group = SimpleNamespace(pool=WorkerPool())
        self.handling = SimpleNamespace(run=pytest.fail, name="handle", requeue=self.requeue)
        self.deleted: list[str] = []
        self.session = SimpleNamespace(topology=SimpleNamespace(queue_deleted=self.deleted.append))
        self.back: list[Any] = []
        self.dispatcher = Dispatcher(self)  # type: ignore[arg-type]
        self.dispatcher.is_held = True
        for each in messages:
            self.dispatcher.put(each)

    def requeue(self, message: Any, *, has_begun: bool = True) -> None:
        """Note it."""
        assert not has_begun
        self.back.append(message)


SUBSCRIPTION: Any = SimpleNamespace(name="q", tag="tag")


def overdue(consumer: Any, used: Any, exc: BaseException) -> OverdueDelivery | None:
    return find_overdue(consumer, SUBSCRIPTION, used, exc)


def cancelled_of(consumer: Any, used: Any) -> CancelledConsumer:
    return CancelledConsumer(consumer, SUBSCRIPTION, used)


def channel(version: tuple[int, ...] | None = (4, 3, 0)) -> Any:
    """An open channel of a broker of *version*, which has waited for delivery 1 longest."""
    connection = SimpleNamespace(server_version=version)
    return SimpleNamespace(connection=connection, oldest_unacked=1, is_open=True)


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
    found = overdue(Given(message(1, used), message(2, used)), used, TIMED_OUT)
    assert found is not None
    assert found[:4] == ("q", 1, False, "handle")
    assert str(TIMED_OUT) in found.outcome


@pytest.mark.parametrize(
    "exc", [PreconditionFailed("unknown delivery tag 9"), NotFound("no queue"), OSError("gone")]
)
def test_other_errors_are_no_timeout(exc: Exception) -> None:
    used = channel()
    assert overdue(Given(message(1, used)), used, exc) is None


def test_a_cancelled_consumer_puts_back_what_no_handler_has_begun() -> None:
    used = channel()
    mine, other = message(1, used), message(2, used, "other")
    consumer = Given(mine, other)
    cancelled = cancelled_of(consumer, used)
    assert list(consumer.dispatcher.inbox) == [other]
    cancelled.requeue()
    cancelled.requeue()
    assert consumer.back == [mine]


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
    used = channel(version)
    consumer = Given(message(1, used, acknowledged=True), message(2, used), message(3, used))
    cancelled_of(consumer, used).resolve()
    assert len(consumer.back) == 3
    assert ("delivery 2 of queue 'q' waited for its handler handle" in caplog.text) is is_told


def test_the_last_copies_of_a_deleted_queue_are_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: Any, **options: Any) -> None:
        raise NotFound("no queue 'q'")

    monkeypatch.setattr("greenconn.worker.lifecycle.ensure_queue_exists", gone)
    used = channel()
    mine = message(1, used)
    consumer = Given(mine)
    cancelled = cancelled_of(consumer, used)
    assert not consumer.dispatcher.inbox
    cancelled.resolve()
    assert list(consumer.dispatcher.inbox) == [mine]
    assert consumer.dispatcher.received == 1
    assert consumer.deleted == ["q"]
    assert consumer.back == []
