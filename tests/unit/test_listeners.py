"""Listeners: which of their methods are called, and that none of them hurts a message."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Listener, Queue
from greenconn.exceptions import DecodeError, Unroutable
from greenconn.listeners import (
    LISTENERS,
    ConfirmEvent,
    ConnectEvent,
    DeadLetterEvent,
    DeliverEvent,
    HandledEvent,
    HubBlockedEvent,
    PublishEvent,
    RetryEvent,
    SettleEvent,
)
from greenconn.testing import MemoryBroker
from tests.fix_wires import until

SOON = 30.0


class Recorder(Listener):
    """Keeps all that it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def _hear(self, event: Any) -> None:
        self.heard.append(event)

    on_connect = on_disconnect = on_publish = on_confirm = on_deliver = on_handled = _hear
    on_settle = on_retry = on_dead_letter = on_pool_wait = on_hub_blocked = _hear

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the events of a kind."""
        return [each for each in self.heard if type(each) is kind]

    @property
    def kinds(self) -> list[str]:
        """The kinds of events of messages, in their order."""
        names = [type(each).__name__.removesuffix("Event") for each in self.heard]
        return [each for each in names if each not in ("Connect", "Disconnect", "PoolWait")]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    greenconn.add_listener(recorder)
    yield recorder
    greenconn.remove_listener(recorder)


def test_nothing_is_prepared_for_what_nobody_overrides() -> None:
    class Connects(Listener):
        def on_connect(self, event: ConnectEvent) -> None:
            pass

    listener = Connects()
    greenconn.add_listener(listener)
    try:
        assert LISTENERS.connect is not None
        others = [name for name in vars(LISTENERS) if name not in ("_all", "connect")]
        assert [getattr(LISTENERS, name) for name in others] == [None] * len(others)
    finally:
        greenconn.remove_listener(listener)
    assert LISTENERS.connect is None


def test_a_listener_that_was_added_twice_hears_once(broker: MemoryBroker) -> None:
    recorder = Recorder()
    greenconn.add_listener(recorder)
    greenconn.add_listener(recorder)
    greenconn.publish("mail", {}, declare=True)
    greenconn.remove_listener(recorder)
    greenconn.remove_listener(recorder)
    greenconn.publish("mail", {})
    assert recorder.kinds == ["Publish", "Confirm"]


def test_what_is_no_listener() -> None:
    class Late(Listener):
        async def on_publish(self, event: PublishEvent) -> None:  # type: ignore[override]
            pass

    with pytest.raises(TypeError, match=r"must be an instance of greenconn\.Listener"):
        greenconn.add_listener(print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="on_publish"):
        greenconn.add_listener(Late())
    assert LISTENERS.publishing is None


def test_a_listener_that_raises_is_logged_once(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Recorder):
        def _fail(self, event: Any) -> None:
            super()._hear(event)
            raise LookupError("broken listener")

        on_publish = on_confirm = on_deliver = on_handled = on_settle = _fail

    broken, recorder = Broken(), Recorder()
    handled = []
    greenconn.add_listener(broken)
    greenconn.add_listener(recorder)
    try:
        consumer = greenconn.spawn_consumer("mail", lambda body, message: handled.append(body))
        for number in range(3):
            greenconn.publish("mail", number)
        until(lambda: len(recorder.of(SettleEvent)) == 3, SOON)
        assert consumer.stop(SOON)
    finally:
        greenconn.remove_listener(broken)
        greenconn.remove_listener(recorder)
    assert handled == [0, 1, 2]
    assert recorder.kinds == broken.kinds
    failures = [each for each in caplog.records if each.name == "greenconn.listeners"]
    assert len(failures) == 1  # all are one method
    assert failures[0].levelno == logging.ERROR
    assert "broken listener" in str(failures[0].exc_info)


CURRENT: ContextVar[str] = ContextVar("current", default="none")


def test_headers_and_the_context_of_a_handler(broker: MemoryBroker) -> None:
    class Tracer(Listener):
        tokens: dict[Any, Any] = {}
        left: list[str] = []

        def on_publish(self, event: PublishEvent) -> None:
            event.headers["trace"] = CURRENT.get()

        def on_deliver(self, event: DeliverEvent) -> None:
            self.tokens[event] = CURRENT.set(event.message.headers["trace"])

        def on_handled(self, event: HandledEvent) -> None:
            self.left.append(CURRENT.get())
            CURRENT.reset(self.tokens.pop(event.delivery))

    seen = []

    def handle(body: Any, message: Any) -> None:
        gevent.sleep(0.001 * (3 - body))
        seen.append((body, CURRENT.get()))

    tracer = Tracer()
    greenconn.add_listener(tracer)
    try:
        consumer = greenconn.spawn_consumer("mail", handle, concurrency=3)
        for number in range(3):
            CURRENT.set(f"t{number}")
            greenconn.publish("mail", number)
        CURRENT.set("none")
        until(lambda: len(tracer.left) == 3, SOON)
        assert consumer.stop(SOON)
    finally:
        greenconn.remove_listener(tracer)
    assert sorted(seen) == [(n, f"t{n}") for n in range(3)]
    assert sorted(tracer.left) == ["t0", "t1", "t2"]
    assert not tracer.tokens


def test_retries_and_dead_letters(recorder: Recorder, broker: MemoryBroker) -> None:
    def handle(body: Any, message: Any) -> None:
        raise LookupError("no such order")

    retry = greenconn.Retry(tries=2, delay=0.01)
    consumer = greenconn.spawn_consumer(Queue("orders"), handle, retry=retry, dead_letter=True)
    greenconn.publish("orders", {})
    until(lambda: bool(recorder.of(DeadLetterEvent)), SOON)
    assert consumer.stop(SOON)
    (retried,) = recorder.of(RetryEvent)
    assert (retried.queue, retried.attempts) == ("orders", 1)
    assert str(retried.error) == "no such order"
    assert retried.delay > 0.0
    (dead,) = recorder.of(DeadLetterEvent)
    assert (dead.attempts, dead.target) == (2, "orders.dead")
    assert [type(each.error) for each in recorder.of(HandledEvent)] == [LookupError] * 2
    # The message, and its dead letter.
    assert [each.routing_key for each in recorder.of(PublishEvent)] == ["orders", "orders.dead"]
    assert all(each.error is None for each in recorder.of(ConfirmEvent))


def test_a_body_that_cannot_be_decoded(recorder: Recorder, broker: MemoryBroker) -> None:
    consumer = greenconn.spawn_consumer("mail", lambda body, message: None)
    greenconn.publish("mail", b"{", content_type="application/json")
    until(lambda: bool(recorder.of(DeadLetterEvent)), SOON)
    assert consumer.stop(SOON)
    (handled,) = recorder.of(HandledEvent)
    assert isinstance(handled.error, DecodeError)
    assert recorder.of(DeadLetterEvent)[0].attempts == 0


def test_batches(recorder: Recorder, broker: MemoryBroker) -> None:
    consumer = greenconn.spawn_consumer(
        "mail", lambda bodies, messages: None, batch_size=3, prefetch_count=10
    )
    assert greenconn.publish_many("mail", range(3)) == 3
    until(lambda: len(recorder.of(SettleEvent)) == 3, SOON)
    assert consumer.stop(SOON)
    assert len(recorder.of(PublishEvent)) == len(recorder.of(ConfirmEvent)) == 3
    (delivery,) = recorder.of(DeliverEvent)
    assert [each.decode() for each in delivery.messages] == [0, 1, 2]
    (handled,) = recorder.of(HandledEvent)
    assert handled.delivery is delivery


def test_publishes_that_fail(recorder: Recorder, broker: MemoryBroker) -> None:
    with pytest.raises(Unroutable):
        greenconn.publish("nowhere", {}, timeout=5, declare=False)
    (confirm,) = recorder.of(ConfirmEvent)
    assert isinstance(confirm.error, Unroutable)


def test_calls_and_their_replies(recorder: Recorder, broker: MemoryBroker) -> None:
    server = greenconn.rpc.spawn_server("add", sum)
    assert greenconn.rpc.call("add", [1, 2]) == 3
    assert server.stop(SOON)
    keys = [each.routing_key for each in recorder.of(PublishEvent)]
    assert keys[0] == "add"
    assert len(keys) == 2
    assert len(recorder.of(ConfirmEvent)) == 2
    ids = {each.properties["correlation_id"] for each in recorder.of(PublishEvent)}
    assert len(ids) == 1


def test_a_blocked_hub(recorder: Recorder, broker: MemoryBroker) -> None:
    def block(body: Any, message: Any) -> None:
        end = gevent.get_hub().loop.now() + 0.5
        while gevent.get_hub().loop.now() < end:
            gevent.get_hub().loop.update_now()
        gevent.sleep(0.2)

    consumer = greenconn.spawn_consumer("mail", block)
    greenconn.publish("mail", {}, declare=True)
    until(lambda: bool(recorder.of(HubBlockedEvent)), SOON)
    assert consumer.stop(SOON)
    event = recorder.of(HubBlockedEvent)[0]
    assert event.duration >= 0.1
    assert any(name.endswith("block") for name in event.handlers)
