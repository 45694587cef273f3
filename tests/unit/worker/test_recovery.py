"""Consumers whose queue, channel or connection is lost."""

from __future__ import annotations

import logging
import os
from time import monotonic
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import get_hub
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import (
    AccessRefused,
    FrameError,
    InternalError,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.listeners import Listener, RetryEvent, add_listener, remove_listener
from greenconn.options import Retry
from greenconn.session.session import SessionState
from greenconn.transport import memory
from greenconn.worker import spawn_consumer, stop_consumers
from greenconn.worker.failures import FailedMessages
from greenconn.worker.group import SharedChannels
from greenconn.worker.subscriptions import (
    LONGEST_AWAY,
    MAX_FAILURES,
    MAX_INTERNAL_ERRORS,
    RecoveryOutcome,
    Subscription,
    SubscriptionRecovery,
)
from tests.fix_wires import until
from tests.unit.worker.conftest import CAME, Broker, Recorder, Spawn


def recovered(connection: Connection, generation: int) -> None:
    """Wait until the connection is whole in that life."""
    until(
        lambda: (
            connection.session.generation == generation
            and connection.session.state is SessionState.OPEN
        )
    )


def test_a_failure_in_a_former_life_is_not_retried(
    connection: Connection, broker: Broker, seen: Recorder, unique: str
) -> None:
    broker.fill("q", "x")
    seen.gate.clear()
    seen.error = ValueError("no")
    consumer = spawn_consumer("q", seen, connection=connection, retry=Retry(delay=0.01))
    seen.wait(1)
    memory.restart(unique)
    recovered(connection, 2)
    seen.error = None
    first = seen.messages[0]
    seen.gate.set()
    until(lambda: seen.done)
    assert not first.acknowledged or first._state == "ACK"
    assert consumer.stop(CAME)
    assert broker.ready("q") == 0


def test_a_retry_that_waits_is_dropped_with_its_life(
    spawn: Spawn, broker: Broker, seen: Recorder, unique: str
) -> None:
    broker.fill("q", "x")
    seen.error = ValueError("no")
    consumer = spawn("q", seen, retry=Retry(delay=30, hold="process"))
    until(lambda: consumer.stats()["retried"] == 1)
    seen.error = None
    memory.restart(unique)
    until(lambda: seen.done == ["x"])
    assert consumer.stats()["in_flight"] == 0
    assert not consumer.lifecycle.handling._backoffs
    assert consumer.stop(CAME)
    assert broker.ready("q") == 0


def exists(broker: Broker, name: str) -> bool:
    """Whether there is a queue of that name."""
    try:
        broker.channel.queue_declare(name, passive=True)
    except NotFound:
        return False
    return True


def test_running_handlers_go_on_when_their_queue_is_deleted(
    spawn: Spawn, broker: Broker, seen: Recorder
) -> None:
    broker.fill("q", "x")
    seen.gate.clear()
    consumer = spawn("q", seen)
    seen.wait(1)
    broker.channel.queue_delete("q")
    assert consumer.wait_ready(CAME)
    seen.gate.set()
    until(lambda: seen.done == ["x"])
    assert seen.messages[0].acknowledged


def test_a_failure_after_the_broker_has_cancelled_its_consumer_is_of_its_queue(
    spawn: Spawn, broker: Broker, seen: Recorder
) -> None:
    """The consumer has another tag by then, and a name that is not the queue's."""
    broker.declare("one")
    broker.fill("two", "x")
    seen.gate.clear()
    seen.error = ValueError("no")
    consumer = spawn(["one", "two"], seen, name="worker", dead_letter=True)
    seen.wait(1)
    for _ in range(2):
        broker.channel.queue_delete("two")
        until(lambda: exists(broker, "two") and broker.consumers("two") == 1)
    assert consumer.wait_ready(CAME)
    seen.gate.set()
    until(lambda: consumer.stats()["rejected"] == 1)
    assert exists(broker, "two.dead")
    assert not exists(broker, "worker.dead")
    assert broker.ready("two.dead") == 1


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}], ids=["message", "batch"])
def test_what_is_lost_while_its_failure_is_told_is_not_retried(
    spawn: Spawn, broker: Broker, seen: Recorder, unique: str, options: dict[str, Any]
) -> None:
    class Gate(Listener):
        told, may_go_on = Event(), Event()

        def on_retry(self, event: RetryEvent) -> None:
            self.told.set()
            self.may_go_on.wait()

    broker.fill("q", "x")
    seen.error = ValueError("no")
    gate = Gate()
    add_listener(gate)
    try:
        retry = Retry(delay=0.01, hold=None if options else "process")
        consumer = spawn("q", seen, retry=retry, concurrency=2, **options)
        assert gate.told.wait(CAME)
        seen.error = None
        memory.restart(unique)
        until(lambda: len(seen.done) == 1)  # the broker has redelivered it
        gate.may_go_on.set()
        until(lambda: not consumer.stats()["in_flight"])
    finally:
        remove_listener(gate)
    assert consumer.stats()["retried"] == 0
    assert len(seen.bodies) == 2
    assert not consumer.lifecycle.handling._backoffs
    assert consumer.stop(CAME)
    assert broker.ready("q") == 0


def test_a_copy_that_is_lost_with_the_connection_is_not_retried_here(
    spawn: Spawn, broker: Broker, seen: Recorder, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending, may_fail = Event(), Event()

    def delay(self: FailedMessages, *args: object) -> bool:
        sending.set()
        may_fail.wait()
        return False

    monkeypatch.setattr(FailedMessages, "delay", delay)
    broker.fill("q", "x")
    seen.error = ValueError("no")
    retry = Retry(delay=0.01, hold="broker")
    consumer = spawn("q", seen, retry=retry, concurrency=2)
    assert sending.wait(CAME)
    seen.error = None
    memory.restart(unique)
    until(lambda: len(seen.done) == 1)  # the broker has redelivered it
    may_fail.set()
    until(lambda: not consumer.stats()["in_flight"])
    assert consumer.stats()["retried"] == 0
    assert len(seen.bodies) == 2
    assert consumer.stop(CAME)
    assert broker.ready("q") == 0


def test_a_queue_that_was_deleted_since_it_was_seen(
    spawn: Spawn, broker: Broker, seen: Recorder
) -> None:
    for queue in ("plain", Queue("object")):
        name = queue if isinstance(queue, str) else queue.name
        first = spawn(queue, seen)
        assert first.wait_ready(CAME)
        assert first.stop(CAME)
        broker.channel.queue_delete(name)
        second = spawn(queue, seen)
        assert second.wait_ready(CAME)
        assert broker.consumers(name) == 1


def test_an_exchange_that_does_not_exist(spawn: Spawn, seen: Recorder) -> None:
    queue = Queue("q", Exchange("absent", passive=True), "key")
    consumer = spawn(queue, seen)
    with pytest.raises(NotFound):
        consumer.wait_ready(CAME)
    with pytest.raises(NotFound):
        consumer.get(timeout=CAME)


def test_an_ack_on_a_channel_that_was_closed_means_nothing(
    spawn: Spawn, broker: Broker, seen: Recorder
) -> None:
    broker.fill("q", "x")
    seen.gate.clear()
    consumer = spawn("q", seen)
    seen.wait(1)
    seen.messages[0].channel.fail(PreconditionFailed("timed out"))
    seen.wait(2) if consumer.stats()["received"] == 2 else None
    assert consumer.wait_ready(CAME)
    seen.gate.set()
    until(lambda: seen.done == ["x", "x"])
    assert consumer.stats()["failed"] == 0


def test_a_paused_consumer_stays_paused(
    connection: Connection, broker: Broker, seen: Recorder, unique: str
) -> None:
    spawn_consumer("other", seen, connection=connection).wait_ready(CAME)
    consumer = spawn_consumer("q", seen, connection=connection)
    assert consumer.wait_ready(CAME)
    assert consumer.pause(CAME)
    memory.restart(unique)
    recovered(connection, 2)
    assert consumer.state.value == "paused"
    assert broker.consumers("q") == 0
    consumer.resume()
    assert consumer.wait_ready(CAME)


def test_stopping_and_killing_during_a_restart(
    spawn: Spawn, broker: Broker, seen: Recorder, unique: str
) -> None:
    for turns in range(8):
        consumers = [spawn(f"q{each}", seen) for each in range(4)]
        assert all(each.wait_ready(CAME) for each in consumers)
        memory.restart(unique)
        for _ in range(turns):
            gevent.sleep(0)
        assert consumers[0].stop(CAME)
        consumers[1].kill(timeout=CAME)
        assert consumers[1].dead
        assert consumers[2].wait_ready(CAME)
        assert consumers[3].wait_ready(CAME)
        assert [broker.consumers(f"q{each}") for each in range(4)] == [0, 0, 1, 1]
        assert stop_consumers(CAME)


def test_a_connection_that_ends_while_a_queue_is_waited_for_does_not_end_its_consumer(
    spawn: Spawn, broker: Broker, seen: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ 3.10 ends a connection that consumes from a stream which is just being made."""
    consumer = spawn("q", seen)
    assert consumer.wait_ready(CAME)
    answers: list[Exception] = [*(NotFound("no queue 'q'") for _ in range(3)), InternalError("541")]
    start = Subscription.start

    def refused(subscription: Subscription) -> None:
        if answers:
            raise answers.pop(0)
        start(subscription)

    monkeypatch.setattr(Subscription, "start", refused)
    broker.channel.queue_delete("q")
    assert consumer.wait_ready(CAME)
    broker.publish("q", "x")
    seen.wait(1)


def test_a_login_that_is_refused_at_the_reconnect_is_tried_again(
    unique: str, seen: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    refused: list[float] = []
    is_refusing = False

    class Refusing(memory.Transport):
        def establish_connection(self, deadline: Any = None) -> Any:
            if is_refusing:
                refused.append(monotonic())
                raise AccessRefused("ACCESS_REFUSED - the password was changed", (10, 30))
            return super().establish_connection(deadline)

    with Connection(f"memory:///{unique}", transport=Refusing) as connection:
        consumers = [spawn_consumer(f"q{each}", seen, connection=connection) for each in range(3)]
        assert all(each.wait_ready(CAME) for each in consumers)
        is_refusing = True
        memory.restart(unique)
        until(lambda: len(refused) >= 4)
        assert not any(each.ready() for each in consumers)
        is_refusing = False
        assert all(each.wait_ready(CAME) for each in consumers)
        assert stop_consumers(CAME)
    logged = [each for each in caplog.records if "trying again" in each.getMessage()]
    assert sum(each.levelno == logging.WARNING for each in logged) == 3  # once by each consumer
    memory.reset(unique)


def test_the_log_says_little(
    connection: Connection, seen: Recorder, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "greenconn.worker")
    consumers = [spawn_consumer(f"q{each}", seen, connection=connection) for each in range(50)]
    assert all(each.wait_ready(CAME) for each in consumers)
    started = f"{type(seen).__module__}.Recorder, concurrency 1"
    said = [each.getMessage() for each in caplog.records if each.name == "greenconn.worker"]
    assert sorted(said) == sorted(f"consuming q{each}: {started}" for each in range(50))
    caplog.clear()
    memory.restart(unique)
    recovered(connection, 2)
    assert [each for each in caplog.records if each.name == "greenconn.worker"] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_child_of_a_fork_handles_nothing(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    broker.fill("q", *range(3))
    seen.gate.clear()
    consumer = spawn("q", seen, prefetch_count=10)
    until(lambda: consumer.stats()["received"] == 3)
    child = os.fork()
    if not child:
        code = 1
        try:
            get_hub().loop.reinit()
            seen.gate.set()
            gevent.sleep(0.05)
            is_quiet = len(seen.bodies) == 1 and not consumer.lifecycle.dispatcher.inbox
            code = 0 if is_quiet and consumer.ready() else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    seen.gate.set()
    until(lambda: len(seen.done) == 3)


def consumer_on(connection: Connection) -> Any:
    """A consumer whose subscriptions are begun on *connection*."""
    group = SimpleNamespace(channels=SharedChannels())
    return SimpleNamespace(session=connection.session, group=group)


class _Starting:
    """A subscription whose start fails, as long as there is an error.

    Attributes:
        error: of the next start; None: it succeeds.
    """

    name = "orders"
    is_confirmed = is_passive = fails_alone = False
    was_confirmed = True

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def must_wait(self) -> bool:
        """Wait for no other consumer."""
        return False

    def start(self) -> None:
        """Fail, or be confirmed."""
        if self.error is not None:
            raise self.error
        self.is_confirmed = True


def test_a_queue_whose_node_is_away_is_looked_for_soon(connection: Connection) -> None:
    """However long it was away, and the next loss is the first one."""
    subscription: Any = _Starting()
    recovery = SubscriptionRecovery(consumer_on(connection), [subscription])
    subscription.error = NotFound("NOT_FOUND - queue 'orders' process is stopped by supervisor")
    for _ in range(20):
        assert recovery.attempt() is RecoveryOutcome.FAILED
        assert recovery.pause <= LONGEST_AWAY
    subscription.error = RecoverableChannelError("something else")
    assert recovery.attempt() is RecoveryOutcome.FAILED
    assert recovery.pause > LONGEST_AWAY
    subscription.error = None
    assert recovery.attempt() is RecoveryOutcome.CONFIRMED
    pauses = []
    for _ in range(20):  # a consumer that is lost again and again
        recovery.note_loss()
        pauses.append(recovery.pause)
    assert pauses[0] == 0.0
    assert 0.0 < pauses[1] <= 0.1
    assert pauses[-1] > LONGEST_AWAY


@pytest.mark.parametrize(
    ("method", "is_own"),
    [
        ((60, 20), True),  # basic.consume
        ((60, 10), True),  # basic.qos
        ((50, 10), True),  # queue.declare
        ((0, 0), True),  # RabbitMQ names none
        (None, True),
        ((60, 40), False),  # basic.publish
        ((60, 80), False),  # basic.ack
        ((85, 10), False),  # confirm.select
    ],
)
@pytest.mark.parametrize(
    ("error", "text", "limit"),
    [
        (NotAllowed, "NOT_ALLOWED", MAX_FAILURES),
        (InternalError, "INTERNAL_ERROR", MAX_INTERNAL_ERRORS),
        (InternalError, "INTERNAL_ERROR - Cannot declare: cluster_not_formed", MAX_INTERNAL_ERRORS),
        (InternalError, "INTERNAL_ERROR - Feature `one` is deprecated.", MAX_FAILURES),
    ],
)
def test_a_start_gives_up_for_what_its_own_methods_did(
    connection: Connection, method: Any, is_own: bool, error: type[Exception], text: str, limit: int
) -> None:
    """Not because another user of the connection costs it again and again.

    And later for internal errors: a broker can have them while a queue is made anew.  A feature that
    it denies is none of those.
    """
    subscription: Any = _Starting()
    recovery = SubscriptionRecovery(consumer_on(connection), [subscription])
    subscription.error = error(text, method)
    outcomes = [recovery.attempt() for _ in range(limit)]
    assert outcomes[:-1] == [RecoveryOutcome.FAILED] * (limit - 1)
    assert (outcomes[-1] is subscription.error) is is_own


def test_a_consumer_that_ran_outlives_a_connection_that_is_ended_again_and_again(
    connection: Connection,
) -> None:
    """As by frames that were damaged on their way."""
    subscription: Any = _Starting()
    recovery = SubscriptionRecovery(consumer_on(connection), [subscription])
    subscription.error = None
    assert recovery.attempt() is RecoveryOutcome.CONFIRMED
    subscription.error = FrameError("FRAME_ERROR - a frame was damaged")
    subscription.is_confirmed = False
    for _ in range(3 * MAX_FAILURES):
        assert recovery.attempt() is RecoveryOutcome.FAILED
    subscription.error = None
    assert recovery.attempt() is RecoveryOutcome.CONFIRMED


def test_an_error_of_the_program_ends_only_a_consumer_that_never_ran(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """As of ``on_declared``."""
    subscription: Any = _Starting()
    recovery = SubscriptionRecovery(consumer_on(connection), [subscription])
    errors: list[BaseException] = [KeyError("x"), gevent.Timeout(CAME)]
    for error in errors:
        subscription.error = error
        assert recovery.attempt() is error
    subscription.error = None
    assert recovery.attempt() is RecoveryOutcome.CONFIRMED
    subscription.is_confirmed = False
    for error in (*errors, KeyError("x"), ValueError("y")):
        subscription.error = error
        assert recovery.attempt() is RecoveryOutcome.FAILED
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    # The first of each class with its traceback.
    assert [each.exc_info and each.exc_info[0] for each in warnings] == [
        KeyError,
        gevent.Timeout,
        ValueError,
    ]
    subscription.error = None
    assert recovery.attempt() is RecoveryOutcome.CONFIRMED


class _StartingTogether(_Starting):
    """A subscription whose start waits for its reply, while that of another ends the connection.

    Arguments:
        waiting: those that wait now.
        is_culprit: it is this one whose start ends the connection.
    """

    def __init__(self, waiting: set[_StartingTogether], *, is_culprit: bool = False) -> None:
        super().__init__()
        self._waiting = waiting
        self._is_culprit = is_culprit

    def start(self) -> None:
        self.error = None
        self._waiting.add(self)
        gevent.sleep(0.001)
        if self._is_culprit:
            for each in self._waiting:
                each.error = InternalError("INTERNAL_ERROR", (40, 10))
                each.is_confirmed = False
            self._waiting.clear()
        self._waiting.discard(self)
        super().start()


def test_a_consumer_that_costs_the_connection_does_not_end_others(connection: Connection) -> None:
    waiting: set[_StartingTogether] = set()
    consumer = consumer_on(connection)
    starting = [_StartingTogether(waiting, is_culprit=number == 7) for number in range(20)]
    recoveries = [
        SubscriptionRecovery(consumer, [each])  # type: ignore[list-item]
        for each in starting
    ]

    def recover(recovery: SubscriptionRecovery) -> Exception | None:
        while True:
            outcome = recovery.attempt()
            if isinstance(outcome, Exception):
                return outcome
            if outcome is RecoveryOutcome.CONFIRMED:
                return None

    recovering = [gevent.spawn(recover, each) for each in recoveries]
    gevent.joinall(recovering, timeout=CAME, raise_error=True)
    assert [number for number, each in enumerate(recovering) if each.value is not None] == [7]


def test_a_connection_that_is_lost_in_the_first_start_ends_no_consumer(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where its error is one of channels, too."""
    subscription: Any = _Starting()
    subscription.was_confirmed = False
    recovery = SubscriptionRecovery(consumer_on(connection), [subscription])
    lost = RecoverableConnectionError("gone")
    monkeypatch.setattr(
        connection.session.broker.transport, "channel_errors", (type(lost),), raising=False
    )
    subscription.error = lost
    for _ in range(5):
        assert recovery.attempt() is RecoveryOutcome.FAILED
    subscription.error = None
    assert recovery.attempt() is RecoveryOutcome.CONFIRMED
