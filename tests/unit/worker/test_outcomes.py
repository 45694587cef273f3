"""The exceptions by which a handler chooses what becomes of its message."""

from __future__ import annotations

import builtins
import copy
import pickle
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest

import greenconn
from greenconn import DeadLetter, Discard, Retry, RetryLater, in_order
from greenconn.contrib.idempotency import MemoryIds, handled_once
from greenconn.exceptions import KombuError, RemoteError
from greenconn.testing import MemoryBroker
from tests.fix_wires import until

SOON = 30.0
YEAR = 365 * 86_400


class Silent(tzinfo):
    """A time zone that does not say which."""

    def utcoffset(self, when: datetime | None) -> None:
        return None

    dst = tzname = utcoffset


class Unprintable:
    def __repr__(self) -> str:
        raise LookupError("broken")


def now() -> datetime:
    return datetime.now(timezone.utc)


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    with MemoryBroker() as made:
        yield made


@pytest.mark.parametrize(
    "delay",
    [
        *(-1, -0.001, float("nan"), float("inf"), 10**400, 10**5000, YEAR + 1, True, 3j),
        *("30", b"30", [], timedelta(seconds=-1), timedelta.max, Unprintable()),
    ],
    ids=lambda each: type(each).__name__,
)
def test_wrong_delay(delay: Any) -> None:
    with pytest.raises(ValueError, match="delay must be at least 0 and at most 31536000 seconds"):
        RetryLater(delay)


def test_wrong_times() -> None:
    for at in (datetime(2030, 1, 1), datetime(2030, 1, 1, tzinfo=Silent())):
        with pytest.raises(ValueError, match=r"at must have a time zone, .*at\.astimezone\(\)"):
            RetryLater(at=at)
    for other in (1.0, "2030-01-01", now().date(), timedelta(1)):
        with pytest.raises(TypeError, match="at must be a datetime with a time zone"):
            RetryLater(at=other)  # type: ignore[arg-type]
    for zone in (timezone.utc, timezone(timedelta(hours=-12)), timezone(timedelta(hours=14))):
        with pytest.raises(ValueError, match="at must be at least 0 and at most"):
            RetryLater(at=datetime.max.replace(tzinfo=zone))
    wrongs: list[Any] = [{}, {"delay": 1, "at": now()}]
    for wrong in wrongs:
        with pytest.raises(TypeError, match="RetryLater must have either delay or at"):
            RetryLater(**wrong)
    with pytest.raises(TypeError, match="counts must be True or False, got 2"):
        RetryLater(1, counts=2)  # type: ignore[arg-type]


def test_seconds_left() -> None:
    assert RetryLater(timedelta(minutes=1)).seconds_left() == 60.0
    assert RetryLater(YEAR).delay == YEAR
    for short in (
        RetryLater(0),
        RetryLater(0.2),
        RetryLater(at=datetime.min.replace(tzinfo=timezone.utc)),
    ):
        assert short.seconds_left() == 1.0  # no message keeps the process busy
    east = timezone(timedelta(hours=9))
    assert 58 < RetryLater(at=now().astimezone(east) + timedelta(minutes=1)).seconds_left() <= 60


@pytest.mark.parametrize(
    "error", [RetryLater(2, counts=True), RetryLater(at=now()), Discard("a"), DeadLetter("b")]
)
def test_copies(error: KombuError) -> None:
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)


def run(handler: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Handle one message, with all that it asks for, and return the counters."""
    greenconn.publish("q", 1, message_id="m", declare=True)
    consumer = greenconn.spawn_consumer("q", handler, **options)
    until(lambda: consumer.stats()["received"] == 1 and consumer.stats()["in_flight"] == 0, SOON)
    assert consumer.stop(SOON)
    stats: dict[str, Any] = {**consumer.get()}
    return {
        name: stats[name] for name in ("failed", "discarded", "retried", "rejected", "requeued")
    }


def outcome(error: BaseException, decorate: Any = None) -> Any:
    def handle(body: Any, message: Any) -> None:
        raise error

    return handle if decorate is None else decorate(handle)


NONE = {"failed": 0, "discarded": 0, "retried": 0, "rejected": 0, "requeued": 0}


@pytest.mark.parametrize("on_error", ["dead_letter", "requeue", "discard"])
def test_dead_letter_is_kept_whatever_on_error_says(broker: MemoryBroker, on_error: Any) -> None:
    found = run(outcome(DeadLetter("no")), on_error=on_error, retry=Retry(tries=5))
    assert found == {**NONE, "failed": 1, "rejected": 1}
    assert [each.payload for each in broker.messages("q.dead")] == [1]


def test_function_as_on_error_decides(broker: MemoryBroker) -> None:
    given: list[BaseException] = []

    def decide(message: Any, exc: BaseException) -> None:
        given.append(exc)
        message.ack()

    error = DeadLetter("no")
    run(outcome(error), on_error=decide)
    assert given == [error]
    run(outcome(Discard()), on_error=decide)
    run(outcome(RetryLater(5)), on_error=decide)
    assert given == [error]


@pytest.mark.parametrize(
    "decorate",
    [
        None,
        handled_once(MemoryIds(), name="n"),
        in_order(lambda *_: 1, on_failure="skip"),
    ],
    ids=["plain", "once", "order"],
)
def test_decorated_handlers(broker: MemoryBroker, decorate: Any) -> None:
    calls: list[int] = []

    def handle(body: int, message: Any) -> None:
        calls.append(body)
        if len(calls) == 1:
            raise RetryLater(5)
        raise Discard("enough")

    handler = handle if decorate is None else decorate(handle)
    assert run(handler) == {**NONE, "retried": 1}
    assert broker.messages("q") == []
    broker.clock.move(4.9)
    assert broker.messages("q") == []
    broker.clock.move(0.1)
    consumer = greenconn.spawn_consumer("q", handler)
    until(lambda: consumer.stats()["discarded"] == 1, SOON)
    assert consumer.stop(SOON)
    assert calls == [1, 1]
    assert broker.messages("q") == []


def test_stopping_consumer_sends_back_as_well(broker: MemoryBroker) -> None:
    """Else the message would be redelivered at once."""
    consumer: Any = None

    def handle(body: int, message: Any) -> None:
        consumer.lifecycle.shut_down()
        raise RetryLater(60)

    greenconn.publish("q", 1, declare=True)
    consumer = greenconn.spawn_consumer("q", handle)
    consumer.join(SOON)
    assert consumer.get()["retried"] == 1
    assert broker.messages("q") == []
    broker.clock.move(60)
    assert [each.payload for each in broker.messages("q")] == [1]


def test_without_acks(broker: MemoryBroker, caplog: pytest.LogCaptureFixture) -> None:
    assert run(outcome(RetryLater(5)), no_ack=True)["failed"] == 1
    assert "the message is lost (no_ack)" in caplog.text
    assert run(outcome(Discard("stale")), no_ack=True) == {**NONE, "discarded": 1}


def test_message_that_the_broker_cannot_hold_waits_here(broker: MemoryBroker) -> None:
    calls: list[dict[str, Any]] = []

    def handle(body: int, message: Any) -> None:
        calls.append(dict(message.headers))
        if len(calls) == 1:
            raise RetryLater(0)

    greenconn.publish("q", 1, expires=600, declare=True)
    consumer = greenconn.spawn_consumer("q", handle)
    until(lambda: consumer.stats()["handled"] == 1, SOON)
    assert consumer.stop(SOON)
    assert calls == [{}, {}]


def test_error_in_an_outcome_is_a_failure(broker: MemoryBroker) -> None:
    def handle(body: Any, message: Any) -> None:
        raise RetryLater(float("nan"))

    assert run(handle) == {**NONE, "failed": 1, "rejected": 1}
    assert broker.messages("q.dead")[0].headers["x-greenconn-error"] == "builtins.ValueError"


def test_groups_are_failures(broker: MemoryBroker) -> None:
    group: Any = getattr(builtins, "ExceptionGroup", None) or KombuError  # since Python 3.11
    assert run(outcome(group("several", [Discard("a")])))["failed"] == 1


def test_settled_message_stays_settled(broker: MemoryBroker) -> None:
    def handle(body: Any, message: Any) -> None:
        message.ack()
        raise RetryLater(1)

    assert run(handle) == {**NONE, "failed": 1}
    assert broker.messages("q") == []


def test_batch_counts_each_message(broker: MemoryBroker) -> None:
    def handle(bodies: list[Any], messages: list[Any]) -> None:
        raise RetryLater(1, counts=True)

    greenconn.publish("q", "old", headers={"x-greenconn-attempts": 1}, declare=True)
    greenconn.publish("q", "new")
    consumer = greenconn.spawn_consumer("q", handle, batch_size=2, retry=Retry(tries=2))
    until(lambda: consumer.stats()["rejected"] == 1, SOON)
    assert consumer.stop(SOON)
    assert [each.payload for each in broker.messages("q.dead")] == ["old"]
    broker.clock.move(1)
    assert [each.payload for each in broker.messages("q")] == ["new"]
    assert broker.messages("q")[0].headers["x-greenconn-attempts"] == 1


@pytest.mark.parametrize("error", [RetryLater(5), Discard("no"), DeadLetter("no")])
def test_calls_get_a_reply(broker: MemoryBroker, error: Exception) -> None:
    def fail(body: Any) -> None:
        raise error

    server = greenconn.rpc.spawn_server("add", fail)
    with pytest.raises(RemoteError) as caught:
        greenconn.rpc.call("add", 1, timeout=SOON)
    assert caught.value.remote_type.endswith(type(error).__name__)
    assert server.stop(SOON)
    assert broker.messages("add") == []


def test_message_in_order_keeps_its_place(broker: MemoryBroker) -> None:
    calls: list[int] = []

    @in_order(lambda *_: 1)
    def handle(body: int, message: Any) -> None:
        calls.append(body)
        if calls == [1]:
            raise RetryLater(1)

    consumer = greenconn.spawn_consumer("q", handle, concurrency=2)
    greenconn.publish_many("q", [1, 2], declare=True)
    until(lambda: consumer.stats()["handled"] == 2, SOON)
    assert consumer.stop(SOON)
    assert calls == [1, 1, 2]
