"""Handlers that fail, messages that cannot be decoded, retries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import pairwise
from time import monotonic
from traceback import extract_tb
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import gevent
import pytest
from gevent.event import Event

from greenconn import serialization
from greenconn.exceptions import ContentDisallowed
from greenconn.options import Retry
from greenconn.worker import ConsumerGreenlet, ConsumerState, Interrupted, handling
from greenconn.worker.handling import Handling
from greenconn.worker.options import ConsumerOptions
from tests.fix_leaks import HubErrors
from tests.fix_wires import until
from tests.unit.worker.conftest import CAME, Broker, Recorder, Spawn

#: What was logged.
Records = list[logging.LogRecord]


class Boom(Exception):
    """What handlers raise here."""


@pytest.fixture(autouse=True)
def queues(broker: Broker) -> None:
    """``q`` with a dead-letter queue ``dead``."""
    broker.declare("dead")
    broker.declare("q", **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})


class KeepingHandler(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.all: Records = []

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(record)


@pytest.fixture
def failures() -> Iterator[Records]:
    """What the library logs of consumers, from warnings up."""
    logger, records = logging.getLogger("greenconn.worker"), KeepingHandler()
    logger.addHandler(records)
    yield records.all
    logger.removeHandler(records)


def of(records: Records, text: str) -> list[str]:
    """The messages of *records* that have *text*."""
    return [each.getMessage() for each in records if text in each.getMessage()]


def count(consumer: ConsumerGreenlet, **expected: int) -> None:
    """Wait until the consumer's numbers are these."""

    def numbers() -> dict[str, Any]:
        stats: dict[str, Any] = {**consumer.stats()}
        return {name: stats[name] for name in expected}

    until(lambda: numbers() == expected)


def test_each_failure_is_logged_once(
    spawn: Spawn, broker: Broker, seen: Recorder, failures: Records
) -> None:
    seen.error = Boom()
    broker.publish("q", *range(5))
    consumer = spawn("q", seen)
    count(consumer, rejected=5)
    assert len(failures) == len([each for each in failures if each.exc_info]) == 5


def test_a_traceback_begins_at_the_handler(spawn: Spawn, broker: Broker, failures: Records) -> None:
    def handler(body: Any, message: Any) -> None:
        raise Boom

    broker.publish("q", "x")
    consumer = spawn("q", handler)
    count(consumer, rejected=1)
    assert failures[0].exc_info is not None
    assert [each.name for each in extract_tb(failures[0].exc_info[2])] == ["handler"]


def test_a_traceback_of_the_library_is_whole(
    spawn: Spawn, broker: Broker, failures: Records
) -> None:
    def handler(body: Any, message: Any) -> Any:
        yield  # is refused when it was called

    broker.publish("q", "x")
    consumer = spawn("q", lambda body, message: handler(body, message))
    count(consumer, rejected=1)
    assert failures[0].exc_info is not None
    assert extract_tb(failures[0].exc_info[2])[-1].name == "check_has_run"


def test_on_error_may_settle_the_message(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    judged: list[Any] = []

    def judge(message: Any, exc: BaseException) -> None:
        judged.append((message.payload, exc))
        message.ack()

    seen.error = Boom()
    broker.publish("q", "x")
    consumer = spawn("q", seen, on_error=judge)
    count(consumer, failed=1, rejected=0)
    until(lambda: judged == [("x", seen.error)])
    assert consumer.stop(CAME)
    assert (broker.ready("q"), broker.ready("dead")) == (0, 0)


@pytest.mark.parametrize("raises", [False, True, "timeout"])
def test_what_a_judge_leaves_is_rejected(
    spawn: Spawn, broker: Broker, seen: Recorder, failures: Records, raises: Any
) -> None:
    def judge(message: Any, exc: BaseException) -> None:
        if raises:
            raise gevent.Timeout(1) if raises == "timeout" else KeyError("judge")

    seen.error = Boom()
    broker.publish("q", "x")
    consumer = spawn("q", seen, on_error=judge)
    count(consumer, failed=1, rejected=1)
    assert broker.ready("dead") == 1
    assert len([each for each in failures if each.exc_info]) == 1 + bool(raises)


@pytest.mark.parametrize("answer", ["ack", "reject", "requeue"])
def test_a_handler_that_settled_is_left_alone(spawn: Spawn, broker: Broker, answer: str) -> None:
    calls: list[Any] = []

    def handler(body: Any, message: Any) -> None:
        calls.append(message)
        getattr(message, answer)()
        if len(calls) == 1:
            raise Boom

    broker.publish("q", "x")
    consumer = spawn("q", handler, retry=Retry(tries=5, delay=0))
    until(lambda: len(calls) >= (2 if answer == "requeue" else 1))
    count(consumer, failed=1, retried=0, rejected=0, requeued=0)
    calls.append(None)
    assert consumer.stop(CAME)
    assert broker.ready("dead") == (answer == "reject")


def test_retries(spawn: Spawn, broker: Broker, failures: Records) -> None:
    calls: list[float] = []

    def handler(body: Any, message: Any) -> None:
        calls.append(monotonic())
        body.append("touched")
        assert body == ["x", "touched"]
        raise Boom

    broker.publish("q", ["x"])
    retry = Retry(tries=4, delay=0.02, backoff=2.0, jitter=False)
    consumer = spawn("q", handler, retry=retry)
    count(consumer, failed=4, retried=3, rejected=1)
    assert len(calls) == 4
    pauses = [later - earlier for earlier, later in pairwise(calls)]
    assert pauses[0] >= 0.019
    assert pauses[1] >= 0.039
    assert pauses[2] >= 0.079
    levels = [each.levelname for each in failures if each.exc_info]
    assert levels == ["WARNING"] * 3 + ["ERROR"]
    assert broker.ready("dead") == 1


class Delivered:
    """A message that notes how it goes back."""

    acknowledged, channel, delivery_tag = False, SimpleNamespace(is_open=True), 1
    _decoded_cache: Any = None

    def __init__(self) -> None:
        self.back: list[str] = []
        self.headers: dict[str, Any] = {}
        self.properties: dict[str, Any] = {}

    def decode(self) -> str:
        return "body"

    def requeue(self, *, flush: bool) -> None:
        self.back.append("counted")

    def put_back(self) -> None:
        self.back.append("not counted")


@pytest.mark.parametrize(("end", "back"), [("requeue", ["counted"]), ("forget", [])])
def test_what_failed_and_waits_for_a_handler_again_counts(end: str, back: list[str]) -> None:
    fails = Mock(side_effect=Boom)
    consumer = Mock(
        options=ConsumerOptions(queues=("q",), handler=fails, retry=Retry(hold="process")),
        is_ending=False,
    )
    handling = Handling(consumer)
    failed, unbegun = Delivered(), Delivered()
    handling.run(failed)
    getattr(handling, end)(failed, has_begun=False)
    getattr(handling, end)(unbegun, has_begun=False)
    assert (failed.back, unbegun.back) == (back, ["not counted"])


@pytest.mark.parametrize("how", ["stop", "pause", "kill"])
def test_a_failure_while_the_consumer_ends_is_requeued_for_another_try(
    spawn: Spawn, broker: Broker, seen: Recorder, how: str
) -> None:
    seen.gate.clear()
    seen.error = Boom()
    broker.publish("q", "x")
    consumer = spawn("q", seen, retry=Retry(delay=0.01))
    seen.wait(1)
    ending = gevent.spawn(getattr(consumer, how))
    gevent.sleep(0.01)
    seen.gate.set()
    ending.join(CAME)
    until(lambda: broker.ready("q") == 1)
    assert consumer.stats()["requeued"] == 1
    assert broker.ready("dead") == 0


def test_the_last_try_while_the_consumer_ends_is_the_last(
    spawn: Spawn, broker: Broker, seen: Recorder
) -> None:
    seen.gate.clear()
    seen.error = Boom()
    broker.publish("q", "x")
    consumer = spawn("q", seen, retry=Retry(tries=1))
    seen.wait(1)
    ending = gevent.spawn(consumer.stop)
    gevent.sleep(0.01)
    seen.gate.set()
    ending.join(CAME)
    assert broker.ready("dead") == 1


def decide(message: Any, exc: BaseException) -> str:
    """Return what shall happen to a message whose handler failed."""
    return "reject"


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ({}, "the message is moved to the dead-letter exchange of the queue"),
        ({"on_error": "reject"}, "the message is rejected: it is lost if the queue has no"),
        ({"on_error": "discard"}, "the message is lost (on_error='discard')"),
        ({"on_error": "requeue", "concurrency": 1}, "the message is requeued"),
        ({"on_error": decide}, "decide decides"),
        ({"on_error": decide}, "not settled delivery 1; the message is moved to the dead-letter"),
        ({"dead_letter": "failed"}, "the message is moved to queue 'failed'"),
        ({"no_ack": True}, "the message is lost (no_ack)"),
        ({"batch_size": 1}, "its messages are moved to the dead-letter exchange of the queue"),
    ],
)
def test_the_log_says_what_becomes_of_a_message(
    spawn: Spawn,
    broker: Broker,
    seen: Recorder,
    failures: Records,
    options: dict[str, Any],
    outcome: str,
) -> None:
    seen.error = Boom()
    consumer = spawn("q", seen, **options)
    broker.publish("q", "x")
    until(lambda: of(failures, outcome))
    seen.error = None
    consumer.stop()


def test_a_handler_that_takes_too_long(
    spawn: Spawn, broker: Broker, seen: Recorder, failures: Records
) -> None:
    seen.gate.clear()
    broker.publish("q", "x")
    consumer = spawn("q", seen, handler_timeout=0.02)
    count(consumer, failed=1, rejected=1)
    assert seen.running == 0
    record = next(each for each in failures if each.exc_info)
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "handler_timeout of 0.02 s passed"
    assert isinstance(record.exc_info[1], gevent.Timeout)


def test_a_timeout_of_the_handlers_own(spawn: Spawn, broker: Broker, failures: Records) -> None:
    def handle(body: Any, message: Any) -> None:
        with gevent.Timeout(0.01):
            gevent.sleep(CAME)

    broker.publish("q", "x")
    consumer = spawn("q", handle, handler_timeout=CAME)
    count(consumer, failed=1, rejected=1)
    record = next(each for each in failures if each.exc_info)
    assert record.exc_info is not None
    assert type(record.exc_info[1]) is gevent.Timeout
    assert str(record.exc_info[1]) == "0.01 seconds"


def send(broker: Broker, *names: str) -> None:
    """Publish messages whose id is their body."""
    for name in names:
        broker.connection.Producer().publish(name, routing_key="q", message_id=name)


def test_one_handler_is_interrupted_by_the_id_of_its_message(
    spawn: Spawn, broker: Broker, seen: Recorder, failures: Records
) -> None:
    seen.gate.clear()
    send(broker, "x", "y", "z")
    consumer = spawn("q", seen, concurrency=2, retry=Retry(tries=3, delay=60.0))
    seen.wait(2)
    assert not consumer.interrupt("z")  # no handler has begun it
    assert not consumer.interrupt("unknown")
    assert consumer.interrupt("y")
    seen.wait(3)
    seen.gate.set()
    count(consumer, handled=2, failed=1, rejected=1, retried=0, requeued=0)
    assert broker.get("dead") == "y"
    assert sorted(seen.done) == ["x", "z"]
    assert of(failures, "the message is moved to the dead-letter exchange of the queue")
    assert not consumer.interrupt("x")  # it has ended


def test_an_interrupted_handler_cannot_take_it_for_an_error(spawn: Spawn, broker: Broker) -> None:
    """And it is not retried, although it was before; the program decides."""
    judged: list[BaseException] = []
    tries: list[Any] = []
    cleaned = Event()

    def handler(body: Any, message: Any) -> None:
        tries.append(body)
        if len(tries) == 1:
            raise Boom
        try:
            Event().wait()
        except Exception:
            raise AssertionError("it is no error") from None
        finally:
            cleaned.set()

    send(broker, "x")
    consumer = spawn(
        "q",
        handler,
        retry=Retry(tries=5, delay=0.001),
        on_error=lambda message, exc: judged.append(exc),
    )
    until(lambda: len(tries) == 2)
    assert consumer.interrupt("x")
    assert cleaned.wait(CAME)
    count(consumer, failed=2, retried=1, rejected=1)
    assert isinstance(judged[0], Interrupted)
    assert "'x'" in str(judged[0])


@pytest.mark.parametrize("concurrency", [1, 2])
def test_an_interrupt_that_comes_too_late_hits_no_other_message(
    spawn: Spawn, broker: Broker, concurrency: int
) -> None:
    """The handler ends in the turn in which it is to be interrupted; its greenlet goes on at once."""
    done: list[Any] = []
    consumers: list[ConsumerGreenlet] = []

    def handler(body: Any, message: Any) -> None:
        if body == "x":
            assert consumers[0].interrupt("x")  # it takes effect when the hub turns
        else:
            gevent.sleep(0.001)
        done.append(body)

    send(broker, "x", "y", "z")
    consumers.append(spawn("q", handler, concurrency=concurrency))
    count(consumers[0], handled=3, failed=0)
    assert sorted(done) == ["x", "y", "z"]


def test_a_timeout_that_a_handler_left_running_ends_nothing(
    spawn: Spawn, broker: Broker, failures: Records
) -> None:
    def handler(body: Any, message: Any) -> None:
        gevent.Timeout.start_new(0.02)

    broker.publish("q", "x")
    consumer = spawn("q", handler)
    until(lambda: of(failures, "expired after the handler had returned"))
    broker.publish("q", "y")
    count(consumer, handled=2)


def test_an_exit_puts_the_message_back(spawn: Spawn, broker: Broker, failures: Records) -> None:
    calls: list[Any] = []

    def handler(body: Any, message: Any) -> None:
        calls.append(body)
        if len(calls) <= 5:
            raise gevent.GreenletExit

    broker.publish("q", "x")
    consumer = spawn("q", handler, retry=Retry())
    count(consumer, requeued=5, handled=1, failed=0)
    (text,) = of(failures, "was killed by the program (GreenletExit())")
    assert "the message is requeued (logged once)" in text


def test_a_handler_that_is_killed_with_its_consumer_is_not_logged(
    spawn: Spawn, broker: Broker, seen: Recorder, failures: Records
) -> None:
    ends: list[Callable[[ConsumerGreenlet], object]] = [
        lambda each: each.kill(),
        lambda each: each.stop(0.01),
    ]
    for end in ends:
        broker.publish("q", "x")
        seen.gate.clear()
        consumer = spawn("q", seen)
        count(consumer, in_flight=1)
        end(consumer)
        count(consumer, requeued=1)
        broker.channel.queue_purge("q")
    assert of(failures, "was killed") == []


def test_a_handlers_greenlet_may_be_killed(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    greenlets: list[Any] = []

    def handler(body: Any, message: Any) -> None:
        greenlets.append(gevent.getcurrent())
        seen(body, message)

    seen.gate.clear()
    broker.publish("q", "x", "y")
    consumer = spawn("q", handler)
    seen.wait(1)
    greenlets[0].kill()
    seen.gate.set()
    count(consumer, requeued=1, handled=2)
    assert sorted(seen.done) == ["x", "y"]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_the_end_of_the_program_puts_the_message_back_and_goes_on(
    spawn: Spawn, broker: Broker, seen: Recorder, kind: type[BaseException], hub_errors: HubErrors
) -> None:
    seen.error = kind()
    broker.publish("q", "x")
    consumer = spawn("q", seen, on_error="reject")
    with pytest.raises(kind):  # in the main greenlet
        Event().wait(CAME)
    consumer.join(CAME)
    assert consumer.state is ConsumerState.STOPPED
    assert len(seen.bodies) == 1
    assert broker.ready("q") == 1
    hub_errors.clear()


def test_a_body_that_cannot_be_decoded(
    spawn: Spawn, broker: Broker, seen: Recorder, failures: Records
) -> None:
    broker.connection.Producer().publish(
        b"{broken", routing_key="q", content_type="application/json", content_encoding="utf-8"
    )
    consumer = spawn("q", seen, retry=Retry())
    count(consumer, failed=1, rejected=1, retried=0)
    assert not seen.bodies
    assert len([each for each in failures if each.exc_info]) == 1
    assert broker.channel.basic_get("dead", no_ack=True).body in ("{broken", b"{broken")


def test_what_cannot_be_decoded_is_reported_in_a_line(
    spawn: Spawn,
    broker: Broker,
    seen: Recorder,
    failures: Records,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "greenconn.worker")
    broker.connection.Producer().publish(
        b"{broken", routing_key="q", content_type="application/json", content_encoding="utf-8"
    )
    consumer = spawn("q", seen)
    count(consumer, failed=1, rejected=1)
    assert not any(each.exc_info for each in failures)  # else hostile senders fill the log
    (text,) = [each.getMessage() for each in failures if "cannot be decoded" in each.msg]
    assert "'q' ('application/json') cannot be decoded: DecodeError: " in text
    assert "JSONDecodeError at character 1" in text


@pytest.fixture
def hungry() -> Iterator[list[int]]:
    """How often a body of the type ``hungry`` cannot be decoded, as there is no memory."""
    left = [2]

    def decode(data: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise MemoryError
        return "decoded"

    serialization.register("hungry", str, decode, "application/x-hungry", "utf-8")
    yield left
    serialization.unregister("hungry")


@pytest.mark.parametrize(
    "options", [{}, {"no_ack": True}, {"batch_size": 2, "batch_interval": 0.01}]
)
def test_a_body_for_which_there_is_no_memory_is_decoded_again(
    spawn: Spawn,
    broker: Broker,
    seen: Recorder,
    failures: Records,
    hungry: list[int],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handling, "LONGEST_PAUSE", 0.02)
    broker.connection.Producer().publish("x", routing_key="q", serializer="hungry")
    consumer = spawn("q", seen, accept=["hungry"], on_decode_error=Mock(), **options)
    seen.wait(1)
    assert seen.bodies == [["decoded"] if "batch_size" in options else "decoded"]
    count(consumer, failed=2, handled=1, rejected=0)
    assert len(of(failures, "MemoryError; the message is decoded again later")) == 2
    assert broker.ready("q") == broker.ready("dead") == 0


def test_an_error_that_is_its_own_cause_is_one_of_the_body(
    spawn: Spawn, broker: Broker, seen: Recorder
) -> None:
    def decode(data: Any) -> Any:
        error = Boom()
        raise error from error

    serialization.register("circular", str, decode, "application/x-circular", "utf-8")
    try:
        broker.connection.Producer().publish("x", routing_key="q", serializer="circular")
        count(spawn("q", seen, accept=["circular"]), failed=1, rejected=1)
    finally:
        serialization.unregister("circular")


def test_a_type_that_is_not_accepted(spawn: Spawn, broker: Broker, seen: Recorder) -> None:
    notified: list[Any] = []

    def decide(message: Any, exc: Exception) -> None:
        notified.append(exc)
        message.ack()

    producer = broker.connection.Producer()
    producer.publish({"a": 1}, routing_key="q", serializer="json")
    producer.publish("text", routing_key="q", content_type="text/plain", content_encoding="utf-8")
    consumer = spawn("q", seen, accept=["json"], on_decode_error=decide)
    count(consumer, handled=1, failed=1, rejected=0)
    assert isinstance(notified[0], ContentDisallowed)
    assert seen.bodies == [{"a": 1}]


@pytest.mark.parametrize("raises", [False, True])
def test_what_on_decode_error_leaves_is_rejected(
    spawn: Spawn, broker: Broker, seen: Recorder, raises: bool
) -> None:
    def decide(message: Any, exc: Exception) -> None:
        if raises:
            raise Boom

    broker.connection.Producer().publish({"a": 1}, routing_key="q", serializer="pickle")
    consumer = spawn("q", seen, on_decode_error=decide)
    count(consumer, failed=1, rejected=1)
    assert broker.ready("dead") == 1


def test_without_need_of_an_ack_a_failure_is_counted_and_judged(
    spawn: Spawn, broker: Broker, seen: Recorder
) -> None:
    judged: list[Any] = []
    seen.error = Boom()
    broker.publish("q", "x")
    consumer = spawn("q", seen, no_ack=True, on_error=lambda message, exc: judged.append(exc))
    count(consumer, failed=1, rejected=0)
    until(lambda: judged == [seen.error])
    assert broker.ready("dead") == 0
