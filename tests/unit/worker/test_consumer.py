"""Consumers over the memory broker: what a handler gets, and what becomes of its messages."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.defaults import configure, default_connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import NotFound
from greenconn.publishing import publish
from greenconn.worker import ConsumerGreenlet, spawn_consumer
from tests.fix_wires import until
from tests.unit.worker.conftest import CAME, Broker, Recorder, Spawn


def test_it_returns_at_once_and_reports_when_it_is_ready(
    connection: Connection, broker: Broker, seen: Recorder
) -> None:
    consumer = spawn_consumer("mail", seen, connection=connection)
    assert not connection.connected
    assert consumer.state.value == "starting"
    assert consumer.wait_ready(CAME) is True
    assert consumer.state.value == "running"
    assert consumer.wait_ready(0) is True
    assert broker.consumers("mail") == 1


def test_it_is_a_greenlet(spawn: Spawn, seen: Recorder) -> None:
    consumer = spawn("mail", seen, name="postman")
    assert isinstance(consumer, gevent.Greenlet)
    assert isinstance(consumer, ConsumerGreenlet)
    assert consumer.name == "greenconn:consumer:postman"
    assert not consumer.ready()
    linked: list[Any] = []
    consumer.link(linked.append)
    assert consumer.stop(CAME)
    assert consumer.ready()
    assert consumer.dead
    assert consumer.successful()
    assert consumer.get()["state"] == "stopped"
    until(lambda: linked == [consumer])


def test_numbers(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    broker.declare("mail")
    consumer = spawn("mail", seen, concurrency=2)
    assert consumer.stats() == {
        "state": "starting",
        "received": 0,
        "handled": 0,
        "failed": 0,
        "retried": 0,
        "rejected": 0,
        "requeued": 0,
        "discarded": 0,
        "dropped": 0,
        "deferred": 0,
        "skipped": 0,
        "in_flight": 0,
        "concurrency": 2,
        "prefetch_count": 10,
        "last_delivery_age": None,
    }
    seen.gate.clear()
    broker.publish("mail", *range(5))
    seen.wait(2)
    numbers = consumer.stats()
    assert (numbers["received"], numbers["handled"], numbers["in_flight"]) == (5, 0, 2)
    age = numbers["last_delivery_age"]
    assert age is not None
    assert 0.0 <= age < CAME
    seen.gate.set()
    until(lambda: consumer.stats()["handled"] == 5)
    assert consumer.stats()["in_flight"] == 0


def test_a_queue_that_exists_is_used_as_it_is(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    broker.declare("odd", **{"x-max-length": 7})
    assert spawn("odd", seen).wait_ready(CAME)


def test_a_queue_object_is_declared_with_its_bindings(
    spawn: Spawn, broker: Broker, seen: Recorder
) -> None:
    queue = Queue("video", Exchange("media", "topic"), "video.#")
    assert spawn(queue, seen).wait_ready(CAME)
    broker.connection.Producer().publish("x", exchange="media", routing_key="video.short")
    seen.wait(1)


def test_an_error_in_a_program_ends_it_with_its_traceback(
    spawn: Spawn, seen: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def on_declared(*declared: object) -> None:
        raise KeyError(50)

    consumer = spawn(Queue("q", on_declared=on_declared), seen)
    with pytest.raises(KeyError):
        consumer.get(timeout=CAME)
    (record,) = [each for each in caplog.records if "q failed" in each.getMessage()]
    assert record.exc_text is not None
    assert "in on_declared" in record.exc_text


def test_a_refusal_is_reported_without_our_own_frames(spawn: Spawn, seen: Recorder) -> None:
    consumer = spawn("missing", seen, passive=True)
    for ask in (consumer.wait_ready, consumer.get):
        with pytest.raises(NotFound, match="no queue 'missing'") as info:
            ask(timeout=CAME)
        places = [str(each.path) for each in info.traceback]
        ours = [place for place in places if "greenconn/" in place and "/tests/" not in place]
        assert all(place.endswith("greenconn/worker/consumer.py") for place in ours)


def test_a_message_that_comes_while_all_workers_leave_is_not_forgotten(
    spawn: Spawn, broker: Broker, seen: Recorder
) -> None:
    spawn("q", seen, concurrency=3).wait_ready(CAME)
    for number in range(300):
        broker.publish("q", number)
        if number % 3 == 0:
            gevent.sleep(0)
    until(lambda: len(seen.done) == 300)


def test_a_handler_may_do_what_it_likes(
    connection: Connection, broker: Broker, seen: Recorder
) -> None:
    broker.fill("more", "waiting")
    done = Event()

    def handler(body: Any, message: Any) -> None:
        publish("next", body, connection=connection, declare=True)
        publish("next", body, connection=connection, declare=True)
        Queue("declared")(connection).declare()
        assert connection.default_channel.basic_get("more", no_ack=True).payload == "waiting"
        assert spawn_consumer("next", seen, connection=connection).wait_ready(CAME)
        done.set()

    spawn_consumer("q", handler, connection=connection, prefetch_count=1)
    publish("q", 1, connection=connection)
    assert done.wait(CAME)
    seen.wait(2)


def test_the_default_connection(url: str, broker: Broker, seen: Recorder) -> None:
    configure(url)
    consumer = spawn_consumer("q", seen)
    assert consumer.wait_ready(CAME)
    assert default_connection("consume").connected
    publish("q", "hello")
    seen.wait(1)
    assert consumer.stop(CAME)
    assert default_connection("consume").connected


def test_a_url(url: str, broker: Broker, seen: Recorder) -> None:
    spawn_consumer("q", seen, connection=url).wait_ready(CAME)
    publish("q", "hello", connection=url)
    seen.wait(1)


def test_what_one_handler_sets_is_not_the_next_ones(spawn: Spawn, broker: Broker) -> None:
    request: ContextVar[Any] = ContextVar("request", default="none")
    found: list[Any] = []

    def handler(body: Any, message: Any) -> None:
        found.append(request.get())
        request.set(body)
        gevent.sleep(0)
        assert request.get() == body

    request.set("of the program")
    spawn("q", handler).wait_ready(CAME)
    broker.publish("q", *range(5))
    until(lambda: len(found) == 5)
    assert found == ["of the program"] * 5


def test_priority_and_arguments_reach_the_broker(
    spawn: Spawn, broker: Broker, seen: Recorder
) -> None:
    low = spawn("q", seen, tag_prefix="low.")
    other = Recorder()
    high = spawn("q", other, priority=9)
    assert low.wait_ready(CAME)
    assert high.wait_ready(CAME)
    broker.publish("q", *range(10))
    until(lambda: len(other.done) == 10)
    assert not seen.done
    high.stop(CAME)
    broker.publish("q", 10)
    seen.wait(1)
    assert seen.messages[0].delivery_info["consumer_tag"].startswith("low.")


def test_a_message_without_need_of_an_ack(
    connection: Connection, broker: Broker, seen: Recorder
) -> None:
    broker.fill("q", *range(1000))
    consumer = spawn_consumer("q", seen, connection=connection, no_ack=True)
    until(lambda: len(seen.done) == 1000)
    assert not seen.messages[0].acknowledged
    assert consumer.stats()["handled"] == 1000
    # A connection of its own: it could stop the reading of the other one.
    assert not connection.connected
    assert consumer.stop(CAME)


def test_no_prefetch_has_a_connection_of_its_own_too(
    connection: Connection, broker: Broker, seen: Recorder
) -> None:
    broker.fill("q", *range(1000))
    consumer = spawn_consumer("q", seen, connection=connection, prefetch_count=0)
    until(lambda: len(seen.done) == 1000)
    assert not connection.connected
    assert consumer.stop(CAME)
    assert broker.ready("q") == 0
    assert not connection.session.on_closed


@pytest.mark.parametrize("options", [{}, {"no_ack": True}, {"prefetch_count": 0}])
def test_closing_the_connection_stops_its_consumers(
    url: str, broker: Broker, seen: Recorder, options: dict[str, Any]
) -> None:
    broker.fill("q", *range(3))
    seen.gate.clear()
    with Connection(url) as connection:
        consumer = spawn_consumer("q", seen, connection=connection, **options)
        paused = spawn_consumer("p", seen, connection=connection, **options)
        assert paused.wait_ready(CAME)
        assert paused.pause(CAME)
        seen.wait(1)
    paused.join(CAME)
    assert paused.get(block=False)["state"] == "stopped"
    gevent.sleep(0.01)
    assert not consumer.ready()  # a handler runs
    seen.gate.set()
    consumer.join(CAME)
    assert consumer.get(block=False)["state"] == "stopped"


def test_closing_at_once(url: str, seen: Recorder) -> None:
    with Connection(url) as connection:
        consumer = spawn_consumer("q", seen, connection=connection)
    assert consumer.wait_ready(CAME) is False
    consumer.join(CAME)
    assert consumer.get(block=False)["state"] == "stopped"
    assert not connection.connected


def test_spawning_on_a_closed_connection_opens_it_again(url: str, seen: Recorder) -> None:
    connection = Connection(url)
    connection.connect()
    connection.close()
    consumer = spawn_consumer("q", seen, connection=connection)
    assert consumer.wait_ready(CAME)
    connection.close()
    consumer.join(CAME)
    assert consumer.get(block=False)["state"] == "stopped"


def test_the_loop_of_a_busy_handler_lets_others_run(spawn: Spawn, broker: Broker) -> None:
    ticks: list[int] = []

    def tick() -> None:
        while True:
            ticks.append(len(handled))
            gevent.sleep(0.001)

    handled: list[int] = []

    def handler(body: int, message: Any) -> None:
        handled.append(body)
        for _ in range(2000):
            pass

    broker.fill("q", *range(2000))
    ticking = gevent.spawn(tick)
    spawn("q", handler, prefetch_count=2000).wait_ready(CAME)
    until(lambda: len(handled) == 2000)
    ticking.kill()
    assert len({each for each in ticks if 0 < each < 2000}) >= 3
