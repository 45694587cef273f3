"""The workers that all consumers of a connection share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from time import monotonic
from types import SimpleNamespace
from typing import Any, ClassVar

import gevent
import pytest
from gevent.event import Event

from greenconn.green.hub import yield_to_hub
from greenconn.worker.dispatch import BatchDispatcher, Dispatcher, MessageBatch, Worker, WorkerPool
from tests.fix_interrupts import SignalAt, signals
from tests.fix_wires import until

#: Dispatchers that get a message in one turn of the hub.
MANY = 100


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """The workers that were made."""
    made: list[Worker] = []
    begin = Worker.__init__

    def init(worker: Worker, pool: WorkerPool) -> None:
        begin(worker, pool)
        made.append(worker)

    monkeypatch.setattr(Worker, "__init__", init)
    return made


def consumer_of(pool: WorkerPool, run: Any, **options: Any) -> Any:
    """A consumer of which *run* handles what comes, once at a time."""
    return SimpleNamespace(
        group=SimpleNamespace(pool=pool),
        handling=SimpleNamespace(run=run, is_unsettled=lambda message: False),
        options=SimpleNamespace(concurrency=1, **options),
        is_ending=False,
    )


def dispatchers(pool: WorkerPool, run: Any, number: int = MANY) -> list[Dispatcher]:
    return [Dispatcher(consumer_of(pool, run)) for _ in range(number)]


def end(pool: WorkerPool) -> None:
    """Leave no greenlet behind."""
    pool.resize(0)
    yield_to_hub()


def test_an_interrupted_worker_touches_no_other_dispatcher(made: list[Worker]) -> None:
    pool, gate = WorkerPool(), Event()
    log: list[str] = []

    def run(name: str) -> None:
        try:
            gate.wait()
            log.append(name)
        except gevent.GreenletExit:
            log.append(f"{name} interrupted")
            raise

    first, second = dispatchers(pool, run, 2)
    first.put("first")
    yield_to_hub()
    # The gate lets the handler end before the interruption reaches it.
    gate.set()
    first.is_held = True
    first.interrupt()
    second.put("second")
    until(lambda: len(log) == 2)
    assert log[1] == "second"
    until(lambda: first.is_idle and second.is_idle)
    assert made[0].greenlet.dead
    end(pool)


def test_what_is_due_again_after_a_drop_is_handled_by_the_worker_that_runs() -> None:
    pool, gate = WorkerPool(), Event()
    handled: list[list[Any]] = []
    channel = object()

    class Came:
        delivery_info: ClassVar[dict[str, Any]] = {}

        def __init__(self, number: int, on: object = None) -> None:
            self.number, self.channel = number, on

    def run(batch: MessageBatch) -> None:
        handled.append([each.number for each in batch.messages])
        gate.wait()

    dispatcher = BatchDispatcher(consumer_of(pool, run, batch_size=2, batch_interval=60.0))
    for number in range(2):
        dispatcher.put(Came(number))
    until(lambda: handled)
    for on in (channel, None):
        dispatcher.retry_later(MessageBatch([Came(2, on), Came(3)]), 0.0)
    dispatcher.retry_later(MessageBatch([Came(4, channel)]), 0.0)
    until(lambda: len(dispatcher._ready) == 3)
    dropped = dispatcher.drop(channel)  # type: ignore[arg-type]
    assert [(each.number, has_begun) for each, has_begun in dropped] == [(2, True), (4, True)]
    gate.set()
    until(lambda: dispatcher.is_idle)
    assert handled == [[0, 1], [3], [2, 3]]
    end(pool)


@pytest.mark.parametrize("is_held", [False, True])
def test_a_load_that_is_ready_waits_while_the_dispatcher_is_held(is_held: bool) -> None:
    pool = WorkerPool()
    done: list[int] = []

    def run(number: int) -> None:
        done.append(number)
        dispatcher.is_held = is_held

    (dispatcher,) = dispatchers(pool, run, 1)
    dispatcher.put(0)
    dispatcher.put(1)
    until(lambda: dispatcher.is_idle)
    assert done == ([0] if is_held else [0, 1])
    assert list(dispatcher.inbox) == ([1] if is_held else [])
    end(pool)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_worker_that_is_killed_on_its_way_is_replaced(made: list[Worker], is_new: bool) -> None:
    pool = WorkerPool()
    done: list[int] = []
    first, second = dispatchers(pool, done.append, 2)
    if not is_new:
        first.put(0)
        yield_to_hub()
    first.put(1)
    made[-1].greenlet.kill(block=False)
    if is_new:
        yield_to_hub()
    second.put(2)
    until(lambda: done[-2:] == [1, 2])
    end(pool)


def test_a_handler_that_ends_its_worker_does_not_hold_up_other_dispatchers() -> None:
    pool = WorkerPool()
    done: list[int] = []

    def run(number: int) -> None:
        if number % 3 == 0:
            raise gevent.GreenletExit
        done.append(number)

    for number, dispatcher in enumerate(dispatchers(pool, run)):
        dispatcher.put(number)
    until(lambda: len(done) == MANY - (MANY + 2) // 3)
    end(pool)


def test_dispatchers_of_one_message_each_leave_the_hub_a_turn() -> None:
    pool = WorkerPool()
    turns: list[int] = []
    done = 0

    def count() -> None:
        while done < 20 * MANY:
            turns.append(done)
            yield_to_hub()

    def run(_: int) -> None:
        nonlocal done
        done += 1
        began = monotonic()
        while monotonic() < began + 0.0005:
            pass

    counting = gevent.spawn(count)
    for _ in range(20):
        for dispatcher in dispatchers(pool, run):
            dispatcher.put(0)
    counting.join(timeout=30)
    assert len(turns) > 20
    end(pool)


def dispatcher_of(is_batch: bool, pool: WorkerPool, handle: Callable[[int], object]) -> Dispatcher:
    """A dispatcher of one message, or of batches of one."""
    if not is_batch:
        return Dispatcher(consumer_of(pool, handle))

    def handle_batch(batch: MessageBatch) -> None:
        for each in batch.messages:
            handle(each)

    return BatchDispatcher(consumer_of(pool, handle_batch, batch_size=1, batch_interval=60.0))


@pytest.mark.parametrize("is_batch", [False, True])
def test_a_signal_amid_a_put_holds_up_no_later_message(is_batch: bool) -> None:
    pool, done = WorkerPool(), list[int]()
    dispatcher = dispatcher_of(is_batch, pool, done.append)
    numbers = count()
    for _ in signals(lambda: dispatcher.put(next(numbers)), between_calls=False):
        behind = next(numbers)
        dispatcher.put(behind)
        until(partial(done.__contains__, behind))
    assert len(done) == len(set(done))
    end(pool)


@pytest.mark.parametrize("is_batch", [False, True])
def test_a_signal_amid_a_worker_holds_up_no_message(
    is_batch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *args: None)
    pool, done = WorkerPool(), list[int]()
    struck = SignalAt(1)

    def handle(number: int) -> None:
        done.append(number)
        if number == 0:
            struck.begin()

    place, has_struck = 1, True
    while has_struck:
        struck = SignalAt(place, between_calls=False)
        dispatcher = dispatcher_of(is_batch, pool, handle)
        # What no handler has seen is unsettled.
        handling: Any = dispatcher._consumer.handling
        handling.is_unsettled = lambda number: number not in done
        for number in range(3):
            dispatcher.put(number)
        until(lambda: len(done) == 3)
        struck.end()
        has_struck, place = struck.left <= 0, place + 1
        for number in range(3, 6):
            dispatcher.put(number)
        until(lambda: len(done) == 6)
        assert sorted(done) == [0, 1, 2, 3, 4, 5]
        until(partial(getattr, dispatcher, "is_idle"))
        done.clear()
    end(pool)
