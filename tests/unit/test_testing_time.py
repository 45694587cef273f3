"""The clock of a test: what waits for it, in what order it runs, and when a test is idle."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

import greenconn
from greenconn import AlreadyQueued, App, Broadcast, DeadLetter, Exchange, Limit, Queue, in_order
from greenconn.clocks import CLOCK
from greenconn.contrib.idempotency import MemoryIds, handled_once
from greenconn.identity import process_place
from greenconn.options import Rate, Retry
from greenconn.testing import Delivery, MemoryBroker
from greenconn.worker.handling import HandlerTimeout

pytestmark = pytest.mark.halved

HOUR = 3600.0
DAY = 24 * HOUR
SOON = 30.0


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker() as broker:
        yield broker


def steady(**options: Any) -> Retry:
    """Return a policy whose delays are exact."""
    return Retry(backoff=1, jitter=False, **options)


def payloads(deliveries: list[Delivery]) -> list[Any]:
    return [each.payload for each in deliveries]


# -- retries


@pytest.mark.parametrize(
    "retry",
    [
        steady(tries=3, delay=HOUR, max_delay=HOUR, hold="broker"),
        steady(tries=3, delay=60, hold="process"),
        steady(tries=3, delay=0.2),
        Retry(tries=3, delay=30, max_delay=60),
    ],
    ids=["broker", "process", "short", "jitter"],
)
def test_a_handler_that_fails(app: App, retry: Retry) -> None:
    @app.consumer("mail", retry=retry)
    def send(body: Any, message: Any) -> None:
        body["to"] = "changed"
        raise TimeoutError(f"attempt at {test.clock.now():g}")

    with app.testing() as test:
        app.publish("mail", {"to": "ada"}, headers={"id": 7})
        begin = test.clock.now()
        test.run_until_idle()
        assert test.handled("mail") == []
        assert payloads(test.dead_letters("mail")) == [{"to": "ada"}]
        assert test.dead_letters("mail")[0].headers["id"] == 7
        failures = test.failures("mail")
        assert [type(each.error) for each in failures] == [TimeoutError] * 3
        assert [each.attempts for each in failures] == [1, 2, 3]
        assert [each.queue for each in failures] == ["mail"] * 3
        assert payloads(failures) == [{"to": "ada"}] * 3
        assert test.bodies("mail.dead") == [{"to": "ada"}]
        least = retry.delay * (1.0 if not retry.jitter else 0.5)
        assert test.clock.now() - begin >= 2 * least


def test_a_handler_that_succeeds_at_last(app: App) -> None:
    failing = [OSError("disk"), gevent.Timeout(), None]

    @app.consumer(Queue("mail"), retry={"tries": 5})
    def send(body: Any, message: Any) -> None:
        if (error := failing.pop(0)) is not None:
            raise error

    with app.testing(raise_errors=True) as test:
        app.publish(Queue("mail"), 1)
        test.run_until_idle()
        assert [each.attempts for each in test.handled(Queue("mail"))] == [3]
        assert len(test.failures("mail")) == 2
        assert test.dead_letters("mail") == []
        assert "handled in attempt 3" in repr(test.handled("mail")[0])
        assert "failed with OSError('disk') in attempt 1" in repr(test.failures("mail")[0])


def test_errors_are_raised_on_demand(app: App) -> None:
    @app.consumer("mail", retry={"tries": 2})
    def send(body: Any, message: Any) -> None:
        if body:
            raise ValueError(f"no {body}")

    with app.testing(raise_errors=True) as test:
        app.publish_many("mail", [1, 0, 2])
        with pytest.raises(ValueError, match="no 1"):
            test.run_until_idle()
        assert payloads(test.handled("mail")) == [0]
        assert payloads(test.dead_letters("mail")) == [1, 2]
        test.run_until_idle()  # each is raised once at most
        app.publish("mail", 3, delay=DAY)
        with pytest.raises(ValueError, match="no 3"):
            test.advance(timedelta(days=2))


@pytest.mark.parametrize("on_error", ["reject", "discard"])
def test_messages_that_are_given_up_otherwise(app: App, on_error: Any) -> None:
    app.consumer("mail", on_error=on_error)(lambda body, message: 1 // body)
    with app.testing() as test:
        app.publish_many("mail", [0, 1])
        test.run_until_idle()
        assert payloads(test.dead_letters("mail")) == [0]
        assert payloads(test.handled("mail")) == [1]


def test_a_body_that_cannot_be_decoded(app: App) -> None:
    app.consumer("mail")(lambda body, message: None)
    with app.testing() as test:
        app.publish("mail", b"{", content_type="application/json", content_encoding="utf-8")
        test.run_until_idle()
        assert len(test.failures("mail")) == len(test.dead_letters("mail")) == 1


def test_batches(app: App) -> None:
    batches: list[tuple[float, list[Any]]] = []

    @app.consumer("rows", batch_size=3, batch_interval=HOUR, retry=steady(tries=2, delay=10))
    def store(bodies: list[Any], messages: list[Any]) -> None:
        batches.append((test.clock.now(), bodies))
        if len(batches) == 1:
            raise OSError("full")

    with app.testing() as test:
        begin = test.clock.now()
        app.publish_many("rows", range(4))
        test.run_until_idle()
        assert batches == [
            (begin, [0, 1, 2]),
            (begin + 10, [0, 1, 2]),
            (begin + HOUR, [3]),
        ]
        assert [each.attempts for each in test.handled("rows")] == [2, 2, 2, 1]


# -- time limits, and what handlers wait for


def test_a_time_limit(app: App) -> None:
    @app.consumer("mail", handler_timeout=30, retry=steady(tries=2, delay=1))
    def send(body: Any, message: Any) -> None:
        if body == "long":
            gevent.sleep(HOUR)
        gevent.sleep(29)

    with app.testing() as test:
        app.publish_many("mail", ["long", "short"])
        begin = test.clock.now()
        test.run_until_idle()
        assert [type(each.error) for each in test.failures("mail")] == [HandlerTimeout] * 2
        assert payloads(test.handled("mail")) == ["short"]
        assert test.clock.now() == begin + 30 + 29 + 30


def test_what_a_handler_waits_for_itself(app: App) -> None:
    ended: list[str] = []

    def child(name: str, seconds: float) -> None:
        gevent.sleep(seconds)
        ended.append(name)

    @app.consumer("mail", concurrency=5)
    def send(body: Any, message: Any) -> None:
        if body == "timeout":
            with suppress(gevent.Timeout), gevent.Timeout(5):
                gevent.sleep(HOUR)
        elif body == "event":
            assert not Event().wait(7)
        elif body == "children":
            gevent.joinall([gevent.spawn(child, "b", 9), gevent.spawn(child, "a", 6)])
        else:
            gevent.sleep(body)
        ended.append(str(body))

    with app.testing() as test:
        app.publish_many("mail", ["children", "event", 8, "timeout"])
        test.run_until_idle()
    assert ended == ["timeout", "a", "event", "8", "b", "children"]


def test_real_waits_do_not_move_the_clock(app: App) -> None:
    ours, theirs = socket.socketpair()

    def answer() -> None:
        gevent.get_hub().threadpool.apply(threading.Event().wait, (0.05,))
        ours.sendall(b"pong")

    @app.consumer("mail", handler_timeout=1, concurrency=2)
    def send(body: Any, message: Any) -> None:
        if body == "socket":
            theirs.settimeout(2)
            assert theirs.recv(4) == b"pong"
        else:
            gevent.get_hub().threadpool.apply(threading.Event().wait, (0.1,))

    with ours, theirs, app.testing() as test:
        begin = test.clock.now()
        app.publish_many("mail", ["socket", "thread"])
        answering = gevent.spawn(answer)
        test.run_until_idle()
        answering.get()
        assert sorted(payloads(test.handled("mail"))) == ["socket", "thread"]
        assert test.clock.now() == begin


def test_time_passes_while_the_test_waits_itself(broker: MemoryBroker) -> None:
    called: list[str] = []
    ended = Event()

    def handle(body: Any, message: Any) -> None:
        called.append(body)
        gevent.sleep(0.01)
        if len(called) == 1:
            raise OSError
        ended.set()

    greenconn.spawn_consumer("mail", handle, retry=steady(tries=2, delay=0.01))
    greenconn.publish("mail", "ada", delay=0.01)
    assert ended.wait(SOON)
    assert called == ["ada", "ada"]


def test_a_call_of_a_server_that_sleeps(app: App) -> None:
    @app.rpc("add")
    def add(numbers: list[int]) -> int:
        gevent.sleep(0.01)
        return sum(numbers)

    @app.consumer("sums")
    def handle(body: Any, message: Any) -> None:
        assert app.call("add", body, timeout=SOON) == 3

    with app.testing() as test:
        assert app.call("add", [1, 2], timeout=SOON) == 3
        app.publish("sums", [1, 2])
        test.run_until_idle()
        assert len(test.handled("sums")) == 1


# -- delays, expiry, schedules


def test_all_is_run_in_the_order_of_its_time(app: App) -> None:
    seen: list[tuple[float, str]] = []

    def note(name: str) -> None:
        seen.append((test.clock.now() - begin, name))

    @app.consumer("mail", retry=steady(tries=2, delay=50))
    def send(body: str, message: Any) -> None:
        note(body)
        if body == "fails":
            raise OSError

    app.consumer("late")(lambda body, message: note("late"))
    app.every(40, name="tick")(lambda: note("tick"))
    with app.testing() as test:
        begin = test.clock.now()
        app.publish("late", 1, delay=100)
        app.publish("mail", "delayed", delay=45)
        app.publish("mail", "fails")
        test.run_until_idle()
        assert seen == [
            (0, "fails"),
            (40, "tick"),
            (45, "delayed"),
            (50, "fails"),
            (80, "tick"),
            (100, "late"),
        ]
        assert test.clock.now() == begin + 100
        test.advance(100)
        assert seen[6:] == [(120, "tick"), (160, "tick"), (200, "tick")]


def test_an_advance_stops_in_between(app: App) -> None:
    app.consumer("mail")(lambda body, message: None)
    with app.testing() as test:
        app.publish_many("mail", [1], delay=DAY)
        test.advance(DAY - 1)
        assert test.handled("mail") == []
        test.advance(1)
        assert payloads(test.handled("mail")) == [1]
        with pytest.raises(ValueError, match="seconds must be at least 0, got -1"):
            test.advance(-1)


def test_messages_expire(app: App) -> None:
    pattern = Queue(
        "wait",
        queue_arguments={
            "x-message-ttl": int(HOUR * 1000),
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "work",
        },
    )
    app.consumer(Queue("work"))(lambda body, message: None)
    with app.testing() as test:
        app.publish("nobody", 1, expiration=60)
        app.publish(pattern, 2)
        test.advance(59)
        assert test.bodies("nobody") == [1]
        test.run_until_idle()
        assert test.bodies("nobody") == []
        assert payloads(test.handled("work")) == [2]


def test_cron(app: App) -> None:
    pytest.importorskip("cronsim")
    called: list[float] = []

    @app.cron("0 3 * * *", name="nightly")
    def nightly() -> None:
        called.append(test.clock.now())

    with app.testing() as test:
        test.advance(3 * DAY)
    assert called == [3 * HOUR, DAY + 3 * HOUR, 2 * DAY + 3 * HOUR]


# -- decorators, exchanges, types


def test_order_by_key(app: App) -> None:
    seen: list[str] = []

    @app.consumer("orders", concurrency=10)
    @in_order(lambda body, message: body[0])
    def handle(body: str, message: Any) -> None:
        gevent.sleep(10 if body == "a1" else 1)
        seen.append(body)

    with app.testing() as test:
        app.publish_many("orders", ["a1", "a2", "b1", "b2"])
        test.run_until_idle()
        assert seen == ["b1", "b2", "a1", "a2"]


def test_limits_of_rate(app: App) -> None:
    @app.consumer("calls", concurrency=5, rate=Rate(1, per=HOUR))
    def handle(body: Any, message: Any) -> None:
        seen.append(test.clock.now() - begin)

    for _ in range(2):  # the limit of one test is not the next one's
        seen: list[float] = []
        with app.testing() as test:
            begin = test.clock.now()
            app.publish_many("calls", range(4))
            test.run_until_idle()
            assert seen == pytest.approx([0, HOUR, 2 * HOUR, 3 * HOUR], abs=60)


def test_limits_by_key(app: App) -> None:
    """Leases go by the clock of the test: a handler that takes hours keeps its place."""
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()

    @app.consumer("calls", concurrency=10, limit=Limit(2, key=lambda body, message: body[0]))
    def handle(body: str, message: Any) -> None:
        running[body[0]] += 1
        most[body[0]] = max(most[body[0]], running[body[0]])
        gevent.sleep(HOUR)
        running[body[0]] -= 1

    ends = []
    for _ in range(2):
        with app.testing() as test:
            app.publish_many("calls", [f"{key}{number}" for number in range(4) for key in "ab"])
            test.advance(HOUR - 1)
            assert test.handled("calls") == []
            assert running == {"a": 2, "b": 2}
            test.run_until_idle()
            assert len(test.handled("calls")) == 8
            ends.append(test.clock.now())
    assert most == {"a": 2, "b": 2}
    assert ends[0] == ends[1]


def test_limits_of_one_process(app: App) -> None:
    seen: list[float] = []

    @app.consumer(
        "calls",
        concurrency=5,
        limit=Limit(1, scope="process"),
        rate=Rate(1, per=60, scope="process"),
    )
    def handle(body: Any, message: Any) -> None:
        seen.append(test.clock.now() - begin)

    with app.testing() as test:
        begin = test.clock.now()
        app.publish_many("calls", range(3))
        test.advance(60)
        assert seen == [0, 60]
        test.run_until_idle()
        assert seen == [0, 60, 120]


def test_unique_messages(app: App) -> None:
    @app.consumer("sync", retry=steady(tries=2, delay=HOUR, max_delay=HOUR, hold="broker"))
    def handle(body: Any, message: Any) -> None:
        gevent.sleep(3 * HOUR)
        if body == "fails":
            raise LookupError

    def is_queued(body: str, **options: Any) -> bool:
        try:
            app.publish("sync", body, unique="key", **options)
        except AlreadyQueued:
            return True
        return False

    with app.testing() as test:
        assert not is_queued("fails", delay=5 * HOUR)
        for _ in range(6):
            test.advance(2 * HOUR - 1)  # while it waits, is handled, and waits for its retry
            assert is_queued("second")
        test.run_until_idle()
        assert len(test.dead_letters("sync")) == 1
        assert not is_queued("third", until=60)
        test.advance(59)
        assert is_queued("fourth")
        test.advance(1)
        assert not is_queued("fifth", until="started")
        test.advance(3 * HOUR)
        assert not is_queued("sixth")
        test.run_until_idle()
        assert payloads(test.handled("sync")) == ["third", "fifth", "sixth"]


def test_debounced_messages(app: App) -> None:
    app.consumer("index", limit=Limit(1))(lambda body, message: None)
    with app.testing() as test:
        for number in range(3):
            app.publish("index", number, debounce="doc", delay=HOUR)
            test.advance(HOUR - 1)
        assert test.handled("index") == []
        test.advance(1)
        assert payloads(test.handled("index")) == [2]
        assert app.consumers[0].stats()["skipped"] == 2


def test_broadcasts(app: App) -> None:
    heard: list[str] = []

    @app.consumer(Broadcast("news"), retry=steady(tries=2, delay=60))
    def hear(body: str, message: Any) -> None:
        heard.append(body)
        if body == "bad":
            raise LookupError

    app.consumer(Broadcast("news"))(lambda body, message: heard.append(body))
    app.consumer(Queue("log", Exchange("news", type="fanout")))(lambda body, message: None)
    with app.testing() as test:
        app.publish(Broadcast("news"), "now")
        app.publish(Broadcast("news"), "later", delay=HOUR)
        app.publish(Broadcast("news"), "bad", delay=2 * HOUR)
        app.publish(Broadcast("other"), "lost")
        test.advance(HOUR - 1)
        assert heard == ["now"] * 2
        test.advance(1)
        assert heard == ["now", "now", "later", "later"]
        test.run_until_idle()
        assert heard.count("bad") == 3
        handled = payloads(test.handled(Broadcast("news")))
        assert sorted(handled) == ["bad", "later", "later", "now", "now"]
        assert payloads(test.failures(Broadcast("news"))) == ["bad"] * 2
        assert payloads(test.dead_letters(Broadcast("news"))) == ["bad"]
        assert test.handled(Broadcast("other")) == []
        assert payloads(test.handled("log")) == ["now", "later", "bad"]
        test.restart()
        app.publish(Broadcast("news"), "again")
        test.run_until_idle()
        assert heard.count("again") == 2


def test_broadcasts_that_are_kept(app: App) -> None:
    app.consumer(Broadcast("news", "news.{slot}", keep=HOUR))(lambda body, message: None)
    with app.testing() as test:
        app.publish(Broadcast("news"), "now")
        test.run_until_idle()
        assert payloads(test.handled("news.0")) == ["now"]
    assert "{slot}" not in process_place()


def test_sharded_queues(app: App) -> None:
    ledger = Queue.sharded("ledger", shards=4, key=lambda body: body["key"])
    tries: Counter[tuple[str, int]] = Counter()

    @app.consumer(ledger, concurrency=20, retry=steady(tries=3, delay=60))
    def book(body: Any, message: Any) -> None:
        tries[body["key"], body["n"]] += 1
        if body["n"] == 1 and tries[body["key"], 1] < 3:
            raise LookupError
        if body["n"] == 3:
            raise DeadLetter("no such account")

    with app.testing() as test:
        app.publish_many(ledger, [{"key": key, "n": n} for n in range(4) for key in "abcde"])
        test.run_until_idle()
        assert len(test.failures(ledger)) == 15
        assert len(test.dead_letters(ledger)) == 5
        for key in "abcde":
            handled = [body["n"] for body in payloads(test.handled(ledger)) if body["key"] == key]
            assert handled == [0, 1, 2]
        name = ledger.queue_of("a").name
        assert {body["key"] for body in payloads(test.handled(name))} >= {"a"}
        assert test.clock.now() == 1000 + 2 * 60


def test_once(app: App) -> None:
    seen: list[Any] = []

    @app.consumer("mail", concurrency=2)
    @handled_once(MemoryIds(), key=lambda message: message.payload, ttl=DAY, lease=60)
    def handle(body: Any, message: Any) -> None:
        gevent.sleep(600)
        seen.append(body)

    with app.testing() as test:
        app.publish_many("mail", ["a", "a"])
        test.run_until_idle()
        assert seen == ["a"]
        app.publish("mail", "a", delay=DAY + 660)
        test.run_until_idle()
        assert seen == ["a", "a"]


@dataclass
class Mail:
    to: str


def test_typed_handlers_and_exchanges(app: App) -> None:
    pytest.importorskip("msgspec")
    events = Exchange("events", type="topic")
    seen: list[Mail] = []

    @app.consumer(Queue("mail", exchange=events, routing_key="mail.#"), retry={"tries": 2})
    def send(body: Mail, message: Any) -> None:
        seen.append(body)
        if len(seen) == 1:
            raise OSError

    with app.testing() as test:
        greenconn.publish(events, {"to": "ada"}, routing_key="mail.new")
        test.run_until_idle()
        assert seen == [Mail("ada"), Mail("ada")]
        assert payloads(test.handled("mail")) == [{"to": "ada"}]


# -- idle


def test_what_greenlets_of_the_test_and_handlers_publish(app: App) -> None:
    app.consumer("a")(lambda body, message: app.publish("b", body))
    app.consumer("b", no_ack=True)(lambda body, message: app.publish_many("a", [body - 1][:body]))
    with app.testing() as test:
        gevent.spawn(app.publish, "a", 3)
        test.run_until_idle()
        assert payloads(test.handled("b")) == [3, 2, 1, 0]


def test_a_restart_of_the_broker(app: App) -> None:
    app.consumer("mail")(lambda body, message: None)
    with app.testing() as test:
        app.publish("mail", 1, delay=DAY)
        test.restart()
        app.publish("mail", 2)
        test.run_until_idle()
        assert payloads(test.handled("mail")) == [2, 1]


def test_a_paused_consumer_holds_up_nothing(broker: MemoryBroker) -> None:
    consumer = greenconn.spawn_consumer("mail", lambda body, message: None)
    broker.run_until_idle()
    assert consumer.pause(SOON)
    greenconn.publish("mail", 1)
    broker.run_until_idle()
    assert broker.handled("mail") == []
    consumer.resume()
    broker.run_until_idle()
    assert payloads(broker.handled("mail")) == [1]


@pytest.mark.parametrize(
    ("options", "handler", "bounds", "text"),
    [
        (
            {},
            lambda body, message: greenconn.publish("mail", body),
            {"max_deliveries": 100},
            "not idle after max_deliveries=100 messages: consumer mail: . waiting, . in handlers",
        ),
        (
            {"retry": steady(tries=1000, delay=60)},
            lambda body, message: 1 // 0,
            {"max_seconds": HOUR},
            r"not idle after max_seconds by the clock: .*queue mail: 1 delayed; "
            r"handler of mail failed 61 times, at last with ZeroDivisionError",
        ),
        (
            {"on_error": "requeue"},
            lambda body, message: 1 // 0,
            {"max_deliveries": 50},
            "mail: . waiting, . in handlers; handler of mail failed 5[01] times",
        ),
        (
            {},
            lambda body, message: Event().wait(),
            {"timeout": 0.05},
            r"not idle within timeout=0.05 real seconds: consumer mail: 0 waiting, 1 in handlers$",
        ),
        (
            {},
            lambda body, message: greenconn.publish("mail", body),
            {"timeout": 0.05, "max_deliveries": 10_000_000},
            "not idle within timeout=0.05 real seconds: consumer mail",
        ),
        (
            {},
            lambda body, message: greenconn.publish("mail", body, delay=60),
            {"max_seconds": HOUR},
            "not idle after max_seconds by the clock: queue mail: 1 delayed$",
        ),
    ],
    ids=["publishes", "retries", "requeues", "waits", "busy", "delays"],
)
def test_bounds(broker: MemoryBroker, options: Any, handler: Any, bounds: Any, text: str) -> None:
    consumer = greenconn.spawn_consumer("mail", handler, **options)
    greenconn.publish("mail", 1)
    with pytest.raises(TimeoutError, match=text):
        broker.run_until_idle(**bounds)
    consumer.kill()


def test_it_is_the_test_that_runs(app: App) -> None:
    running: list[MemoryBroker] = []
    app.consumer("mail")(lambda body, message: running[0].run_until_idle())
    with app.testing() as test:
        running.append(test)
        app.publish("mail", 1)
        test.run_until_idle()
        assert "call it from the test" in str(test.failures("mail")[0].error)


def test_handlers_that_sleep_at_the_end(app: App) -> None:
    ended: list[int] = []

    @app.consumer("mail")
    def send(body: Any, message: Any) -> None:
        gevent.sleep(HOUR)
        ended.append(body)

    with app.testing() as test:
        app.publish("mail", 1)
        test.advance(60)
    assert ended == [1]


# -- the same order each time


def history() -> list[tuple[float, str, Any, int]]:
    """Return what handlers of a program have done that draws at random, from the same seed."""
    app, drawn = App(), random.Random(7)
    seen: list[tuple[float, str, Any, int]] = []

    def handle(body: Any, message: Any) -> None:
        seen.append((test.clock.now(), message.delivery_info["routing_key"], body, len(seen)))
        if drawn.random() < 0.3:
            gevent.sleep(drawn.random() * 100)
        if drawn.random() < 0.3:
            raise OSError
        if drawn.random() < 0.4:
            app.publish(drawn.choice("abc"), body + 1, delay=drawn.choice([0, 1, 50.5]))

    for name in "abc":
        app.consumer(name, concurrency=3, retry={"tries": 4}, handler_timeout=60)(handle)
    with app.testing() as test:
        for number in range(50):
            app.publish(drawn.choice("abc"), number * 1000, delay=drawn.choice([0, 1, 7]))
        test.run_until_idle()
        for name in "abc":
            test.dead_letters(name)
    return seen


def test_the_same_program_has_the_same_order() -> None:
    first = history()
    assert len(first) > 60
    assert all(history() == first for _ in range(3))


# -- what it leaves


def test_the_clock_is_the_systems_again() -> None:
    def current() -> tuple[Any, ...]:
        loop = gevent.get_hub().loop
        return loop, CLOCK.monotonic, CLOCK.timer, CLOCK.timeout, CLOCK.context, CLOCK.pace

    before = current()
    with MemoryBroker() as outer:
        with MemoryBroker() as inner:
            inner.advance(HOUR)
            assert CLOCK.monotonic() == inner.clock.now()
            elsewhere = gevent.get_hub().threadpool.apply(lambda: CLOCK.monotonic())
            assert elsewhere != inner.clock.now()
        assert CLOCK.monotonic() == outer.clock.now() == inner.clock.now() - HOUR
    outer.close()
    assert current() == before


UNITTEST = """
import sys
if sys.argv.pop() == "patched":
    from gevent import monkey; monkey.patch_all()
import unittest
import greenconn

app = greenconn.App()

@app.consumer("mail", retry={"tries": 2})
def send(body, message):
    raise OSError("the disk is full")

class Tests(unittest.TestCase):
    def setUp(self):
        self.test = self.enterContext(app.testing())

    def test_expected(self):
        app.publish("mail", 1)
        self.test.run_until_idle()
        self.assertEqual(len(self.test.dead_letters("mail")), 1)

    def test_unexpected(self):
        app.publish("mail", 1)
        self.test.run_until_idle()

unittest.main()
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="enterContext is new in Python 3.11")
@pytest.mark.parametrize(("name", "is_printed"), [("expected", False), ("unexpected", True)])
def test_only_failures_that_are_not_expected_are_printed(
    name: str, is_printed: bool, patched: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNITTEST, f"Tests.test_{name}", "patched" if patched else "plain"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ("OSError: the disk is full" in done.stderr) is is_printed
