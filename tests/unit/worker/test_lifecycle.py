"""The states of consumers; stopping, pausing and killing them loses nothing that needs an ack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.entity.declaration import is_expected
from greenconn.exceptions import PreconditionFailed
from greenconn.green.hub import yield_to_hub
from greenconn.transport import memory
from greenconn.worker import ConsumerGreenlet, ConsumerState, spawn_consumer, stop_consumers
from greenconn.worker.subscriptions import Subscription
from tests.fix_interrupts import interruptions
from tests.fix_leaks import live_greenlets
from tests.fix_logs import waiting_log
from tests.fix_wires import until
from tests.unit.worker.conftest import CAME, Broker, Recorder, Spawn


@pytest.fixture
def begin(spawn: Spawn, broker: Broker, seen: Recorder) -> Spawn:
    """Spawn a consumer of six messages: one that its handler has begun, and five in its inbox."""

    def begin(**options: Any) -> ConsumerGreenlet:
        broker.fill("q", *range(6))
        seen.gate.clear()
        consumer = spawn("q", seen, **options)
        seen.wait(1)
        until(lambda: consumer.stats()["received"] == 6)
        return consumer

    return begin


def test_stop_requeues_and_lets_handlers_finish(
    begin: Spawn, broker: Broker, seen: Recorder
) -> None:
    consumer = begin()
    stopping = gevent.spawn(consumer.stop)
    until(lambda: broker.ready("q") == 5)  # at once, while the handler runs
    assert broker.consumers("q") == 0
    assert consumer.state is ConsumerState.STOPPING
    assert not stopping.ready()
    seen.gate.set()
    assert stopping.get(timeout=CAME) is True
    assert seen.done == [0]
    assert broker.ready("q") == 5
    numbers = consumer.get(block=False)
    assert numbers["state"] == "stopped"
    assert (numbers["handled"], numbers["requeued"], numbers["in_flight"]) == (1, 5, 0)


def test_what_was_requeued_keeps_its_order(begin: Spawn, broker: Broker, seen: Recorder) -> None:
    consumer = begin()
    seen.gate.set()
    assert consumer.stop(CAME)
    left = [broker.get("q") for _ in range(broker.ready("q"))]
    assert seen.done + left == list(range(6))


def test_stop_interrupts_what_takes_too_long(begin: Spawn, broker: Broker, seen: Recorder) -> None:
    consumer = begin(concurrency=2)
    assert consumer.stop(0.02) is False
    assert consumer.ready()
    assert consumer.get(block=False)["state"] == "stopped"
    assert consumer.get(block=False)["requeued"] == 6
    assert broker.ready("q") == 6
    assert seen.running == 0


def test_stopping_twice_and_what_is_stopped(begin: Spawn, broker: Broker, seen: Recorder) -> None:
    consumer = begin()
    first, second = gevent.spawn(consumer.stop), gevent.spawn(consumer.stop, CAME)
    gevent.sleep(0.01)
    seen.gate.set()
    assert first.get(timeout=CAME) is True
    assert second.get(timeout=CAME) is True
    assert consumer.stop() is True
    assert consumer.wait_ready() is False
    assert consumer.pause() is False
    consumer.resume()
    assert consumer.state is ConsumerState.STOPPED


def test_a_handler_may_stop_its_own_consumer(spawn: Spawn, broker: Broker) -> None:
    answers: list[bool] = []

    def handler(body: Any, message: Any) -> None:
        answers.append(consumer.stop())
        gevent.sleep(0.01)

    broker.fill("q", *range(3))
    consumer = spawn("q", handler)
    assert consumer.get(timeout=CAME)["handled"] == 1
    assert answers == [True]
    assert broker.ready("q") == 2


def test_a_handler_may_stop_all_consumers(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    answers: list[bool] = []

    def handler(body: Any, message: Any) -> None:
        answers.append(stop_consumers(CAME))

    other = spawn("other", seen)
    broker.fill("q", 1)
    consumer = spawn("q", handler)
    assert consumer.get(timeout=CAME)["handled"] == 1
    assert answers == [True]
    assert other.ready()


def test_a_handler_may_kill_its_own_consumer(spawn: Spawn, broker: Broker) -> None:
    def handler(body: Any, message: Any) -> None:
        consumer.kill()

    broker.fill("q", *range(3))
    consumer = spawn("q", handler)
    consumer.join(CAME)
    assert consumer.state is ConsumerState.KILLED
    assert broker.ready("q") == 3


def test_a_handler_may_pause_its_own_consumer(spawn: Spawn, broker: Broker) -> None:
    answers: list[bool] = []

    def handler(body: Any, message: Any) -> None:
        answers.append(consumer.pause())

    broker.fill("q", *range(3))
    consumer = spawn("q", handler)
    until(lambda: answers == [True])
    assert broker.ready("q") == 2
    assert consumer.stop(CAME)


def test_pause_and_resume_at_once(begin: Spawn, broker: Broker, seen: Recorder) -> None:
    consumer = begin()
    for _ in range(5):
        pausing = gevent.spawn(consumer.pause)
        gevent.sleep(0)
        consumer.resume()
        pausing.join(CAME)
    seen.gate.set()
    assert consumer.wait_ready(CAME)
    until(lambda: sorted(seen.done) == list(range(6)))


def test_a_pause_that_is_over_before_it_began(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    consumer = spawn("q", seen)
    assert consumer.wait_ready(CAME)
    assert consumer.pause(0) is False
    consumer.resume()
    until(lambda: consumer.state is ConsumerState.RUNNING)
    broker.publish("q", 1)
    seen.wait(1)


def test_who_was_killed_twice_declares_nothing_any_more(
    connection: Connection,
    broker: Broker,
    seen: Recorder,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Publishers must not wait for it when the connection is lost while it is still cancelled."""
    consumer = spawn_consumer(Queue("q"), seen, connection=connection)
    assert consumer.wait_ready(CAME)
    is_asked, may_reply = Event(), Event()
    cancel = Subscription.cancel

    def cancel_slowly(self: Subscription, *args: Any, **options: Any) -> None:
        is_asked.set()
        may_reply.wait()
        cancel(self, *args, **options)

    monkeypatch.setattr(Subscription, "cancel", cancel_slowly)
    consumer.kill(block=False)
    assert is_asked.wait(CAME)
    consumer.kill(timeout=CAME)
    assert consumer.ready()
    subscription = consumer.lifecycle._queues[0]
    memory.restart(unique)
    until(lambda: not subscription.is_confirmed)
    assert not is_expected(connection.session, "q")
    may_reply.set()


def test_a_failure_that_is_logged_ends_it(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    """Whatever a log handler waits for."""
    broker.declare("q")
    with waiting_log("greenconn.worker", "q failed") as log:
        consumer = spawn(Queue("q", max_length=5), seen)
        assert log.has_come.wait(CAME)
        until(lambda: consumer.state is ConsumerState.FAILED)
    with pytest.raises(PreconditionFailed):
        consumer.get(timeout=CAME)


@pytest.mark.parametrize("options", [{}, {"no_ack": True}], ids=["shared", "own"])
def test_a_closed_connection_that_is_closed_again_ends_who_was_about_to_open_it(
    connection: Connection, broker: Broker, seen: Recorder, options: dict[str, Any]
) -> None:
    connection.connect()
    connection.close()
    consumer = spawn_consumer("q", seen, connection=connection, **options)
    connection.close()
    assert consumer.get(timeout=CAME)["state"] == "stopped"
    assert not connection.connected
    assert spawn_consumer("q", seen, connection=connection, **options).wait_ready(CAME)


def test_pausing_before_it_is_there(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    broker.fill("q", 1)
    consumer = spawn("q", seen)
    assert consumer.pause(CAME)
    assert broker.consumers("q") == 0
    consumer.resume()
    seen.wait(1)


def test_a_kill_gives_all_back(begin: Spawn, broker: Broker, seen: Recorder) -> None:
    consumer = begin(concurrency=2)
    consumer.kill(timeout=CAME)
    assert consumer.dead
    assert consumer.successful()
    assert isinstance(consumer.get(), gevent.GreenletExit)
    assert consumer.state is ConsumerState.KILLED
    assert (broker.ready("q"), broker.consumers("q")) == (6, 0)
    assert seen.running == 0
    assert consumer.stats()["requeued"] == 6


def test_what_was_killed_while_it_was_paused_stays_dead(begin: Spawn, broker: Broker) -> None:
    consumer = begin()
    assert consumer.pause(CAME)
    consumer.kill(timeout=CAME)
    consumer.resume()
    assert consumer.pause() is False
    assert consumer.state is ConsumerState.KILLED
    assert broker.ready("q") == 6


def test_a_kill_before_it_began(connection: Connection, broker: Broker, seen: Recorder) -> None:
    consumer = spawn_consumer("q", seen, connection=connection)
    waiting = gevent.spawn(consumer.wait_ready)
    consumer.kill()
    assert waiting.get(timeout=CAME) is False
    assert consumer.state is ConsumerState.KILLED
    until(lambda: not connection.session.on_closed)


def test_killall(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    consumers = [spawn(f"q{each}", seen) for each in range(20)]
    assert all(each.wait_ready(CAME) for each in consumers[:10])
    gevent.killall(consumers, timeout=CAME)
    assert all(each.dead for each in consumers)
    assert broker.consumers("q0") == 0
    assert stop_consumers(0)


@pytest.mark.parametrize("block", [True, False])
def test_killall_gives_all_back(begin: Spawn, broker: Broker, block: bool) -> None:
    consumer = begin()
    gevent.killall([consumer], block=block, timeout=CAME if block else None)
    consumer.join(CAME)
    assert consumer.state is ConsumerState.KILLED
    assert broker.ready("q") == 6


def test_a_with_statement_stops_it(begin: Spawn, broker: Broker, seen: Recorder) -> None:
    def block() -> None:
        with consumer:
            assert consumer.state is ConsumerState.RUNNING
        assert consumer.ready()

    consumer = begin()
    within = gevent.spawn(block)
    until(lambda: broker.ready("q") == 5 and not broker.consumers("q"))
    assert not within.ready()  # a handler runs
    seen.gate.set()
    within.get(timeout=CAME)
    assert seen.done == [0]
    assert broker.ready("q") == 5


def test_a_handler_may_be_within_a_with_statement(spawn: Spawn, broker: Broker) -> None:
    left: list[bool] = []

    def handler(body: Any, message: Any) -> None:
        with consumer:
            pass
        left.append(not consumer.ready())

    consumer = spawn("q", handler)
    assert consumer.wait_ready(CAME)
    broker.publish("q", 1)
    consumer.join(CAME)
    assert consumer.state is ConsumerState.STOPPED
    assert left == [True]
    assert broker.ready("q") == 0


def test_a_with_statement_that_fails_kills_it(begin: Spawn, broker: Broker) -> None:
    consumer = begin()
    with pytest.raises(KeyError, match="mine"), consumer:
        raise KeyError("mine")
    with pytest.raises(KeyError, match="mine"):
        consumer.get()
    assert broker.ready("q") == 6


def test_no_greenlet_waits_while_nothing_changes(spawn: Spawn, seen: Recorder) -> None:
    consumer = spawn("q", seen)
    assert consumer.wait_ready(CAME)
    assert consumer.gr_frame is None
    consumer.kill()


def test_a_kill_while_it_stops(begin: Spawn, broker: Broker) -> None:
    consumer = begin()
    stopping = gevent.spawn(consumer.stop)
    gevent.sleep(0.01)
    consumer.kill(timeout=CAME)
    assert stopping.get(timeout=CAME) is True
    assert broker.ready("q") == 6


def test_a_handler_that_does_not_let_itself_be_killed(
    spawn: Spawn, broker: Broker, seen: Recorder
) -> None:
    def handler(body: Any, message: Any) -> None:
        try:
            seen(body, message)
        except gevent.GreenletExit:
            gevent.sleep(0.05)

    broker.fill("q", *range(3))
    seen.gate.clear()
    consumer = spawn("q", handler)
    seen.wait(1)
    consumer.kill(timeout=CAME)
    assert consumer.dead
    assert consumer.stats()["handled"] == 1
    assert broker.ready("q") == 2


def test_without_ack_stop_handles_what_was_received(
    begin: Spawn, broker: Broker, seen: Recorder
) -> None:
    consumer = begin(no_ack=True)
    stopping = gevent.spawn(consumer.stop)
    gevent.sleep(0.01)
    assert broker.consumers("q") == 0
    seen.gate.set()
    assert stopping.get(timeout=CAME)
    assert seen.done == list(range(6))
    assert consumer.get()["dropped"] == 0


def test_without_ack_pause_keeps_what_was_received(
    begin: Spawn, broker: Broker, seen: Recorder
) -> None:
    consumer = begin(no_ack=True)
    assert consumer.pause(CAME)
    seen.gate.set()
    until(lambda: seen.done == [0])
    broker.publish("q", 6)
    gevent.sleep(0.01)
    assert seen.bodies == [0]
    consumer.resume()
    until(lambda: len(seen.done) == 7)
    assert consumer.pause(CAME)
    assert consumer.stop(CAME)


def test_without_ack_stopping_what_is_paused_handles_it(
    begin: Spawn, broker: Broker, seen: Recorder
) -> None:
    consumer = begin(no_ack=True)
    assert consumer.pause(CAME)
    seen.gate.set()
    assert consumer.stop(CAME)
    assert seen.done == list(range(6))


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_without_ack_what_is_dropped_is_counted(
    begin: Spawn, broker: Broker, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    consumer = begin(no_ack=True)
    if how == "kill":
        consumer.kill(timeout=CAME)
    else:
        assert consumer.stop(0.01) is False
    assert consumer.stats()["dropped"] == 6
    assert "6 messages are lost" in caplog.text


def accounted(broker: Broker, handled: list[Any], total: int) -> None:
    """Every message was handled, or waits in the queue; none is still held by anybody."""
    until(lambda: len(set(handled)) + broker.ready("q") >= total)
    assert broker.consumers("q") == 0
    left = [broker.get("q") for _ in range(broker.ready("q"))]
    assert sorted([*handled, *left]) == list(range(total))


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_kill_at_every_step_of_its_life(
    spawn: Spawn, broker: Broker, turns: int, concurrency: int
) -> None:
    done: list[int] = []

    def handler(body: int, message: Any) -> None:
        yield_to_hub()
        done.append(body)

    broker.fill("q", *range(10))
    consumer = spawn("q", handler, concurrency=concurrency)
    for _ in range(turns):
        gevent.sleep(0)
    consumer.kill(timeout=CAME)
    accounted(broker, done, 10)


def test_whoever_asks_may_be_killed(spawn: Spawn, broker: Broker) -> None:
    """The callers of the methods, interrupted at each of their switches."""
    broker.declare("q")

    def handler(body: Any, message: Any) -> None:
        yield_to_hub()

    asks: list[Callable[[ConsumerGreenlet], object]] = [
        lambda consumer: consumer.wait_ready(CAME),
        lambda consumer: consumer.pause(CAME),
        lambda consumer: consumer.stop(CAME),
        lambda consumer: consumer.kill(),
    ]
    for ask in asks:
        consumers: list[ConsumerGreenlet] = []

        def scene(
            ask: Callable[[ConsumerGreenlet], object] = ask,
            consumers: list[ConsumerGreenlet] = consumers,
        ) -> None:
            consumers.append(spawn("q", handler))
            ask(consumers[-1])

        for _ in interruptions(scene):
            assert consumers.pop().stop(CAME)
        assert broker.consumers("q") == 0


def test_background_tasks_may_be_killed(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    """What asks the broker on behalf of a consumer, killed again and again."""
    consumer = spawn("q", seen)
    killed = 0
    for _ in range(50):
        task = consumer.lifecycle._task
        if task is not None and task.greenlet is not None:
            task.greenlet.kill(block=False)
            killed += 1
            if killed == 3:
                break
        gevent.sleep(0)
    assert consumer.wait_ready(CAME)
    broker.publish("q", 1)
    seen.wait(1)
    assert broker.consumers("q") == 1


def test_an_idle_consumer_is_one_greenlet(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    before = live_greenlets()
    names = [f"q{number}" for number in range(60)]
    consumers = [spawn(each, seen) for each in names]
    assert all(each.wait_ready(CAME) for each in consumers)
    for name in names:
        broker.publish(name, 1)
    until(lambda: len(seen.done) == 60)
    gevent.sleep(0.01)
    # A few idle workers are kept for all of them together.
    assert 60 <= len(live_greenlets().keys() - before.keys()) <= 60 + 16 + 2
    assert stop_consumers(CAME)
    gevent.sleep(0.01)
    assert len(live_greenlets().keys() - before.keys()) <= 2
