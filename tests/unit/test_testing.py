"""What programs test with."""

from __future__ import annotations

from typing import Any

import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, Queue
from greenconn.defaults import default_connection
from greenconn.testing import ManualClock, MemoryBroker, greenconn_broker

__all__ = ["greenconn_broker"]


def test_the_default_connection_is_to_the_broker(greenconn_broker: MemoryBroker) -> None:
    greenconn.publish("mail", {"to": "ada"})
    greenconn.publish("mail", "text", headers={"id": 7})
    assert greenconn_broker.bodies("mail") == [{"to": "ada"}, "text"]
    assert greenconn_broker.messages("mail")[1].headers == {"id": 7}
    assert len(greenconn_broker.messages("mail")) == 2
    with pytest.raises(KeyError, match=r"'male' does not exist; known: \['mail'\]"):
        greenconn_broker.messages("male")


def test_each_broker_is_empty(greenconn_broker: MemoryBroker) -> None:
    greenconn.publish("mail", 1)
    with MemoryBroker() as other:
        assert other.url != greenconn_broker.url
        with pytest.raises(KeyError):
            other.messages("mail")


def test_messages_expire_when_the_test_says_so(greenconn_broker: MemoryBroker) -> None:
    greenconn.publish("mail", "short", expiration=60)
    greenconn.publish("mail", "long")
    greenconn_broker.advance(59.5)
    assert greenconn_broker.bodies("mail") == ["short", "long"]
    greenconn_broker.advance(1)
    assert greenconn_broker.bodies("mail") == ["long"]


def test_consumers_see_a_restart(greenconn_broker: MemoryBroker) -> None:
    got: list[Any] = []
    all_came = Event()

    def handle(body: Any, message: Any) -> None:
        got.append(body)
        if len(got) == 2:
            all_came.set()

    consumer = greenconn.spawn_consumer("mail", handle)
    assert consumer.wait_ready(30)
    greenconn.publish("mail", 1)
    greenconn_broker.restart()
    greenconn.publish("mail", 2)
    assert all_came.wait(30)


def test_closing_stops_consumers() -> None:
    with MemoryBroker():
        consumer = greenconn.spawn_consumer("mail", lambda body, message: None)
    assert consumer.ready()


def test_closing_reports_handlers_that_do_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenconn.testing.STOPPING", 0.01)
    began = Event()

    def stay(body: Any, message: Any) -> None:
        began.set()
        Event().wait()

    with pytest.raises(TimeoutError, match="did not end"), MemoryBroker():
        greenconn.spawn_consumer("mail", stay)
        greenconn.publish("mail", 1)
        assert began.wait(10)


def test_what_comes_after_is_not_its_own(
    greenconn_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENCONN_URL", "memory:///elsewhere")
    greenconn_broker.close()
    assert default_connection("publish").virtual_host == "elsewhere"


def test_connections_of_ones_own(greenconn_broker: MemoryBroker) -> None:
    with greenconn_broker.connection() as connection, Connection(greenconn_broker.url) as other:
        with connection.Producer() as producer:
            producer.publish(1, routing_key="mail", declare=[Queue("mail")])
        with other.SimpleQueue("mail") as queue:
            assert queue.get(timeout=30).payload == 1


def test_a_clock_goes_on_in_order() -> None:
    clock = ManualClock()
    seen: list[tuple[str, float]] = []
    begin = clock.now()

    def note(name: str) -> None:
        seen.append((name, clock.now() - begin))

    clock.call_later(2.0, lambda: note("b"))
    clock.call_later(1.0, lambda: note("a"))
    stop = clock.call_later(1.5, lambda: note("never"))
    stop()
    clock.move(1.5)
    assert seen == [("a", 1.0)]
    clock.move(10)
    assert seen == [("a", 1.0), ("b", 2.0)]
    assert clock.armed == 0
    with pytest.raises(ValueError, match="must be at least 0"):
        clock.move(-1)
