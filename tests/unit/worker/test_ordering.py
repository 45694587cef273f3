"""The order of the messages of a key, their retries included."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Message, Queue, in_order
from greenconn.testing import MemoryBroker
from tests.fix_wires import until

SOON = 60.0
JOBS = Queue("jobs")


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker() as broker:
        yield broker


def of_body(body: Any, message: Message) -> Any:
    return body["key"]


def publish(key: str, *numbers: int) -> None:
    greenconn.publish_many(JOBS, [{"key": key, "n": number} for number in numbers])


def settled(consumer: greenconn.ConsumerGreenlet, count: int) -> None:
    """Wait until *count* messages were acked."""
    until(lambda: consumer.stats()["handled"] == count, SOON)


def test_messages_of_one_key_run_one_after_another(broker: MemoryBroker) -> None:
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    handled: dict[str, list[int]] = defaultdict(list)

    @in_order(of_body)
    def work(body: Any, message: Message) -> None:
        for key in (body["key"], "all"):
            running[key] += 1
            most[key] = max(most[key], running[key])
        gevent.sleep(0.001 * (body["n"] % 3))
        handled[body["key"]].append(body["n"])
        running.subtract([body["key"], "all"])

    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=50)
    for number in range(30):
        for key in "abcd":
            publish(key, number)
    settled(consumer, 120)
    assert handled == {key: list(range(30)) for key in "abcd"}
    assert [most[key] for key in "abcd"] == [1] * 4
    assert most["all"] > 1


def test_a_slow_key_holds_up_no_other(broker: MemoryBroker) -> None:
    may_end = Event()
    handled: list[tuple[str, int]] = []

    @in_order(of_body)
    def work(body: Any, message: Message) -> None:
        if body["key"] == "slow":
            may_end.wait()
        handled.append((body["key"], body["n"]))

    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=50)
    publish("slow", *range(20))
    publish("quick", *range(5))
    until(lambda: handled == [("quick", number) for number in range(5)], SOON)
    may_end.set()
    settled(consumer, 25)
    assert handled[5:] == [("slow", number) for number in range(20)]


def test_so_many_run_at_once(broker: MemoryBroker) -> None:
    running = most = 0

    @in_order(of_body, running=3)
    def work(body: Any, message: Message) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        gevent.sleep(0.001)
        running -= 1

    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=50)
    for key in "abcdefgh":
        publish(key, *range(5))
    settled(consumer, 40)
    assert most == 3


def test_a_failure_passes_the_turn_on(broker: MemoryBroker) -> None:
    handled: list[int] = []

    @in_order(of_body)
    def work(body: Any, message: Message) -> None:
        gevent.sleep(0)
        if body["n"] % 2:
            raise ValueError("odd")
        handled.append(body["n"])

    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=10, dead_letter=True)
    publish("a", *range(10))
    settled(consumer, 5)
    assert handled == [0, 2, 4, 6, 8]
    until(lambda: broker.count("jobs.dead") == 5, SOON)


def test_one_that_is_interrupted_while_it_waits(broker: MemoryBroker) -> None:
    begun, may_end = Event(), Event()
    handled: list[int] = []

    @in_order(of_body)
    def work(body: Any, message: Message) -> None:
        begun.set()
        may_end.wait()
        handled.append(body["n"])

    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=10, dead_letter=True)
    for number in range(4):
        body = {"key": "a", "n": number}
        greenconn.publish(JOBS, body, message_id=f"m{number}")
    assert begun.wait(SOON)
    until(lambda: consumer.stats()["in_flight"] == 4, SOON)
    assert consumer.interrupt("m1")
    assert consumer.interrupt("m2")
    until(lambda: broker.count("jobs.dead") == 2, SOON)
    may_end.set()
    settled(consumer, 2)
    assert handled == [0, 3]


def test_the_end_of_a_consumer_requeues_what_waits(broker: MemoryBroker) -> None:
    begun = Event()

    @in_order(of_body)
    def work(body: Any, message: Message) -> None:
        begun.set()
        Event().wait()

    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=10)
    publish("a", 1, 2, 3)
    assert begun.wait(SOON)
    consumer.kill()
    assert broker.count("jobs") == 3


def test_the_later_ones_wait_for_a_retry(broker: MemoryBroker) -> None:
    handled: list[tuple[str, int]] = []
    failed: list[int] = []

    @in_order(of_body)
    def work(body: Any, message: Message) -> None:
        gevent.sleep(0)
        if body["key"] == "a" and body["n"] % 3 == 0 and failed.count(body["n"]) < 2:
            failed.append(body["n"])
            raise ValueError("not yet")
        handled.append((body["key"], body["n"]))

    retry = greenconn.Retry(tries=3, delay=0.05, jitter=False)
    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=50, retry=retry)
    publish("a", *range(10))
    publish("b", *range(10))
    settled(consumer, 20)
    assert [n for key, n in handled if key == "a"] == list(range(10))
    assert handled[:10] == [("b", n) for n in range(10)]  # another key goes on meanwhile
    assert failed == [0, 0, 3, 3, 6, 6, 9, 9]


def test_later_ones_may_go_on(broker: MemoryBroker) -> None:
    handled: list[int] = []

    @in_order(of_body, on_failure="skip")
    def work(body: Any, message: Message) -> None:
        if body["n"] == 0 and not handled:
            raise ValueError("not yet")
        handled.append(body["n"])

    retry = greenconn.Retry(delay=0.05, jitter=False)
    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=50, retry=retry)
    publish("a", *range(4))
    settled(consumer, 4)
    assert handled == [1, 2, 3, 0]


def test_a_killed_handler_keeps_its_key(broker: MemoryBroker) -> None:
    handled: list[int] = []
    begun: list[Any] = []
    may_end = Event()

    @in_order(of_body)
    def work(body: Any, message: Message) -> None:
        if not begun:
            begun.append(gevent.getcurrent())
            may_end.wait()
        handled.append(body["n"])

    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=50)
    publish("a", *range(4))
    until(lambda: consumer.stats()["in_flight"] == 4, SOON)
    begun[0].kill()
    settled(consumer, 4)
    assert handled == [0, 1, 2, 3]


def test_who_requeues_its_message_passes_the_turn_on(broker: MemoryBroker) -> None:
    handled: list[int] = []

    @in_order(of_body)
    def work(body: Any, message: Message) -> None:
        if body["n"] == 0 and not message.delivery_info.get("redelivered"):
            message.requeue()
        else:
            handled.append(body["n"])

    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=50)
    publish("a", *range(4))
    settled(consumer, 5)
    assert sorted(handled) == [0, 1, 2, 3]


def test_a_key_that_cannot_be_computed_is_a_failure(broker: MemoryBroker) -> None:
    handled: list[int] = []

    @in_order(of_body)
    def work(body: Any, message: Message) -> None:
        handled.append(body["n"])

    consumer = greenconn.spawn_consumer(JOBS, work, concurrency=5)
    greenconn.publish(JOBS, {"n": 0})
    publish("a", 1)
    settled(consumer, 1)
    until(lambda: broker.count("jobs.dead") == 1, SOON)
    assert handled == [1]


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="key of in_order must be a callable, got 'customer'"):
        in_order("customer")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="on_failure of in_order must be 'wait' or 'skip', got 'stop'"
    ):
        in_order(of_body, on_failure="stop")  # type: ignore[arg-type]
    for running in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="running of in_order must be a positive integer"):
            in_order(of_body, running=running)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must have in_order once"):
        in_order(of_body)(in_order(of_body)(lambda body, message: None))
    ordered = in_order(of_body)(lambda body, message: None)
    with pytest.raises(ValueError, match="batch_size must be None with in_order"):
        greenconn.spawn_consumer(JOBS, ordered, batch_size=3)
    with pytest.raises(ValueError, match="on_error must not be 'requeue' with in_order"):
        greenconn.spawn_consumer(JOBS, ordered, on_error="requeue")


def test_methods_and_objects_may_be_in_order(broker: MemoryBroker) -> None:
    class Worker:
        def __init__(self) -> None:
            self.handled: list[int] = []

        def work(self, body: Any, message: Message) -> None:
            gevent.sleep(0.001 * (3 - body["n"] % 3))
            self.handled.append(body["n"])

        @in_order(of_body)
        def decorated(self, body: Any, message: Message) -> None:
            self.work(body, message)

    for handler in (in_order(of_body)(Worker().work), Worker().decorated):
        consumer = greenconn.spawn_consumer(JOBS, handler, concurrency=10)
        publish("a", *range(6))
        settled(consumer, 6)
        assert handler.__self__.handled == list(range(6)) if hasattr(handler, "__self__") else True
        assert consumer.stop(SOON)
