"""Limits within one process, and how a store is asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import App, Connection, Limit, Message, Queue, Rate
from greenconn.exceptions import RecoverableConnectionError
from greenconn.limits.store import (
    SWEEP,
    Give,
    LimitStore,
    MemoryFacts,
    Operation,
    Read,
    Take,
    find_store,
    store_for,
)
from greenconn.testing import MemoryBroker
from tests.fix_wires import until

SOON = 60.0
LONG = 1000.0
JOBS = Queue("jobs")


@pytest.fixture
def connection(unique: str) -> Iterator[Connection]:
    with Connection(f"memory://localhost/{unique}") as connection:
        yield connection


def of_body(body: Any, message: Message) -> Any:
    return body["key"]


def test_handlers_begin_no_faster(connection: Connection) -> None:
    begun: dict[str, list[float]] = defaultdict(list)

    def work(body: Any, message: Message) -> None:
        begun[body["key"]].append(monotonic())

    rate = Rate(100, burst=5, key=of_body, scope="process")
    consumer = greenconn.spawn_consumer(
        JOBS, work, connection=connection, concurrency=100, rate=rate
    )
    start = monotonic()
    bodies = [{"key": key} for key in "ab" for _ in range(25)]
    greenconn.publish_many(JOBS, bodies, connection=connection)
    until(lambda: sum(map(len, begun.values())) == 50, SOON)
    for times in begun.values():
        assert all(each - start >= (n - 4) / 100 for n, each in enumerate(sorted(times)))
    assert consumer.stop(SOON)


def test_each_consumer_has_its_own_limit_in_a_process(connection: Connection) -> None:
    running = most = 0
    may_end = Event()

    def work(body: Any, message: Message) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        may_end.wait(SOON)
        running -= 1

    limit = Limit(2, scope="process")
    consumers = [
        greenconn.spawn_consumer(JOBS, work, connection=connection, concurrency=5, limit=limit)
        for _ in range(2)
    ]
    greenconn.publish_many(JOBS, list(range(12)), connection=connection)
    until(lambda: running == 4, SOON)
    may_end.set()
    until(lambda: sum(each.stats()["handled"] for each in consumers) == 12, SOON)
    assert most == 4
    assert all(consumer.stop(SOON) for consumer in consumers)


def test_a_key_function_that_raises_is_a_failure_of_the_handler(connection: Connection) -> None:
    consumer = greenconn.spawn_consumer(
        JOBS,
        lambda body, message: None,
        connection=connection,
        limit=Limit(1, key=of_body),
        on_error="discard",
    )
    for body in ({"other": 1}, {"key": [1]}):  # no key, and one that is none
        greenconn.publish(JOBS, body, connection=connection)
    until(lambda: consumer.stats()["rejected"] == 2, SOON)
    assert consumer.stats()["failed"] == 2
    assert consumer.stop(SOON)


def test_an_application_in_a_test_has_its_limits_in_memory() -> None:
    app = App()
    handled: list[Any] = []

    @app.consumer("jobs", limit=Limit(1, key=of_body), rate=Rate(10, burst=10))
    def work(body: Any, message: Message) -> None:
        handled.append(body["key"])

    with app.testing() as test:
        app.publish("jobs", {"key": "a"}, unique="a")
        test.run_until_idle()
        app.publish("jobs", {"key": "b"}, unique="a")
        test.run_until_idle()
    assert handled == ["a", "b"]


def test_what_is_asked_together_is_sent_together() -> None:
    facts, sent = MemoryFacts(), list[int]()

    def run(operations: Sequence[Operation]) -> list[Any]:
        sent.append(len(operations))
        gevent.sleep(0)
        return facts.run(operations)

    store = LimitStore(run, "a test")
    jobs = [
        gevent.spawn(store.ask, [Take("q", str(n), "p", 5, LONG), Read("q", "d")])
        for n in range(50)
    ]
    gevent.joinall(jobs, timeout=SOON, raise_error=True)
    assert sent == [100]
    assert sum(replies[0].is_taken for job in jobs if (replies := job.value)) == 5


def test_a_lost_answer_leaves_no_place() -> None:
    facts = MemoryFacts()
    is_lost = True

    def run(operations: Sequence[Operation]) -> list[Any]:
        replies = facts.run(operations)
        if is_lost:
            raise RecoverableConnectionError("lost")
        return replies

    store = LimitStore(run, "a test")
    with pytest.raises(RecoverableConnectionError):
        store.ask([Take("q", "ada", "p", 1, LONG)])
    is_lost = False
    (taken,) = store.ask([Take("q", "bob", "p", 1, LONG)])
    assert taken.is_taken
    store.give(Give("q", "p", "bob"), LONG)
    store.forget()


def test_what_does_not_hold_any_more_is_forgotten() -> None:
    now = 0.0
    facts = MemoryFacts(lambda: now)
    for number in range(3 * SWEEP):
        now += 1.0
        facts.run([Take("q", "ada", f"p{number}", 1, 1.0)])
    assert len(facts) <= SWEEP
    for number in range(3 * SWEEP):
        facts.run([Take("q", "ada", f"p{number}", 1, LONG)])
    assert len(facts) >= 3 * SWEEP


def test_the_store_is_the_brokers_own_or_the_one_that_is_named(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, unique: str
) -> None:
    assert store_for(connection, "") is store_for(connection, "")
    with Connection("amqp://localhost//") as away:  # it never opens
        assert find_store(away) is None
        monkeypatch.setenv("GREENCONN_LIMITS", f"memory://localhost/{unique}")
        assert find_store(away) is not None
        away.session.limits = connection
        assert find_store(away) is store_for(connection, "")
        away.session.limits = None
        monkeypatch.setenv("GREENCONN_LIMITS", "amqp://localhost//")
        with pytest.raises(ValueError, match="limits must be the URL or a Connection of Redis"):
            find_store(away)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match=r"Limit\.limit must be a positive integer, got 0"):
        Limit(0)
    with pytest.raises(ValueError, match=r"Limit\.lease must be at least 1 s, got 0.5"):
        Limit(1, lease=0.5)
    with pytest.raises(ValueError, match=r"Limit\.scope must be 'all' or 'process', got 'one'"):
        Limit(1, scope="one")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Limit\.key must be a callable"):
        Limit(1, key="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Rate\.limit must be a number above 0, got 0"):
        Rate(0)
    with pytest.raises(ValueError, match=r"Rate\.per must be a number of seconds above 0, got -1"):
        Rate(1, per=-1)
    with pytest.raises(ValueError, match=r"Rate\.burst must be a positive integer, got 0"):
        Rate(1, burst=0)

    @greenconn.in_order(of_body)
    def ordered(body: Any, message: Message) -> None: ...

    with MemoryBroker():
        with pytest.raises(ValueError, match="limit must be None with in_order"):
            greenconn.spawn_consumer("q", ordered, limit=Limit(1))
        sharded = Queue.sharded("s", shards=2, key=lambda body: body)
        with pytest.raises(ValueError, match="unique and debounce must be None for"):
            greenconn.publish(sharded, "a", unique="a")
        with pytest.raises(ValueError, match="unique and debounce must be None for"):
            greenconn.publish_many(sharded, "a", unique=lambda body: str(body))
