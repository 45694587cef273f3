"""Publishing over one channel: what becomes of a message, and who is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gevent
import pytest

from greenconn.broker.exchanges import Routing
from greenconn.broker.link import StoreLink
from greenconn.broker.port import NoQueue, QueueFull
from greenconn.broker.publishing import (
    ChannelPublisher,
    Completion,
    CopyOutcomes,
    StoredResult,
    StorePublisher,
)
from greenconn.exceptions import (
    AMQPNotImplementedError,
    ContentTooLarge,
    NotFound,
    PublishNacked,
    PublishTimeout,
    RecoverableChannelError,
    RecoverableConnectionError,
    Unroutable,
    WrongHub,
)
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from tests.unit.broker.conftest import Opener
from tests.unit.broker.test_publishing import channel_to


class Publisher(ChannelPublisher[StoreLink, str, str]):
    """Sends a message nowhere, and has the outcome that the test wants."""

    outcome: object = None
    is_answered = True

    def _target(
        self,
        message: str | dict[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline | None,
    ) -> str | None:
        if message == "slow":
            assert isinstance(deadline, Deadline)
            deadline.at = 0.0  # to find out where it goes took all the time
        return None if message == "nowhere" else str(message)

    def _addressed(
        self,
        message: str | dict[str, Any],
        exchange: str,
        routing_key: str,
        queues: Sequence[str],
    ) -> str:
        return f"{message}:{exchange}:{','.join(queues)}"

    def _put(self, target: str, queue: str, done: Completion, deadline: Deadline | None) -> None:
        if self.is_answered:
            done.offer(self.outcome)

    def _shown(self, message: str | dict[str, Any]) -> dict[str, Any]:
        return {
            "body": message,
            "content-type": None,
            "content-encoding": None,
            "headers": {},
            "properties": {},
        }

    def error(self, outcome: Exception, what: str) -> BaseException:
        return ValueError(f"{what}: {outcome}")


@pytest.fixture
def publisher(connect: Opener) -> Publisher:
    channel = channel_to(connect)
    return Publisher(channel, channel.connection)


def begin(
    publisher: Publisher, message: str = "x", exchange: str = "", mandatory: bool = False
) -> Any:
    return publisher.begin(message, exchange, "key", mandatory, False, None)


@pytest.mark.parametrize(
    ("outcome", "mandatory", "expected"),
    [
        (None, True, None),
        (7, True, None),
        (NoQueue(), False, None),
        (NoQueue(), True, Unroutable),
        (QueueFull(), False, PublishNacked),
        (OSError("gone"), False, ValueError),
    ],
)
def test_outcomes(
    publisher: Publisher, outcome: object, mandatory: bool, expected: type[Exception] | None
) -> None:
    publisher.outcome = outcome
    result = begin(publisher, mandatory=mandatory)
    assert isinstance(result, StoredResult)
    if expected is None:
        result.wait()
    else:
        with pytest.raises(expected, match="key"):
            result.wait()


def test_what_goes_nowhere_is_decided_at_once(publisher: Publisher) -> None:
    begin(publisher, "nowhere").wait()
    with pytest.raises(Unroutable):
        begin(publisher, "nowhere", mandatory=True).wait()


def test_deadline_of_who_waits(publisher: Publisher) -> None:
    publisher.is_answered = False
    with pytest.raises(PublishTimeout, match="exchange 'x', routing key 'key'") as caught:
        begin(publisher, exchange="x").wait(Deadline(0.01))
    assert caught.value.maybe_delivered


@pytest.mark.parametrize("timeout", [None, 3600.0])
def test_a_publish_has_one_deadline_for_all_of_it(
    publisher: Publisher, timeout: float | None
) -> None:
    publisher.is_answered = False
    publisher.confirm_timeout = 3600.0
    deadline = None if timeout is None else Deadline(timeout)
    with gevent.Timeout(30), pytest.raises(PublishTimeout):
        publisher.publish("slow", "", "key", False, False, deadline)
    with gevent.Timeout(30), pytest.raises(PublishTimeout):
        publisher.begin("slow", "", "key", False, False, deadline).wait(Deadline())


@pytest.mark.parametrize(("message", "outcome"), [("nowhere", None), ("x", NoQueue())])
def test_mandatory_message_comes_back(publisher: Publisher, message: str, outcome: object) -> None:
    publisher.outcome = outcome
    channel: Any = publisher._channel
    returned: list[Any] = []
    channel.events["basic_return"].add(lambda *notified: returned.append(notified))
    publisher.publish(message, "", "key", True, False, None)
    channel.connection.drain(10.0)
    ((exc, exchange, routing_key, back),) = returned
    assert isinstance(exc, Unroutable)
    assert (exchange, routing_key, back.body) == ("", "key", message)


def test_without_confirms_a_full_queue_is_no_error(publisher: Publisher) -> None:
    publisher.outcome = QueueFull()
    publisher.publish("x", "", "key", False, False, None)


_ABSENT, _FULL, _OTHER = NoQueue(), QueueFull(), ValueError("no")


@pytest.mark.parametrize(
    ("errors", "outcome"),
    [
        ([None], None),
        ([_ABSENT], _ABSENT),
        ([None, _ABSENT], None),
        ([_ABSENT, None], None),
        ([_ABSENT, _ABSENT], _ABSENT),
        ([_ABSENT, _FULL, None], _FULL),
        ([_OTHER, _FULL], _OTHER),
        ([None, _OTHER, _ABSENT], _OTHER),
    ],
)
def test_a_message_is_stored_when_some_queue_has_it_and_none_refuses(
    errors: list[Exception | None], outcome: Exception | None
) -> None:
    slot: Slot[Any] = Slot()
    outcomes = CopyOutcomes(len(errors), slot)
    for each in errors:
        assert not slot.is_filled
        outcomes.note(each)
    assert slot.value is outcome


class Refusing(Publisher):
    """Is refused where it asks for a target, and sends ``routed`` messages as the base class does."""

    refusal: Exception | None = None

    def _target(
        self,
        message: str | dict[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline | None,
    ) -> str | None:
        if self.refusal is not None:
            raise self.refusal
        text = str(message)
        return self._routed(text, len(text), {}, exchange, routing_key, mandatory, deadline)

    def _put(self, target: str, queue: str, done: Completion, deadline: Deadline | None) -> None:
        self.put = target
        super()._put(target, queue, done, deadline)

    def _begin_last_resort(self, queue: str) -> None:
        self.last_resort = queue


def refusing(connect: Opener, **options: Any) -> Refusing:
    channel = channel_to(connect, **options)
    return Refusing(channel, channel.connection)


def test_a_refused_publish_closes_the_channel(connect: Opener) -> None:
    publisher = refusing(connect)
    channel: Any = publisher._channel
    publisher.refusal = ContentTooLarge("nobody was asked")
    with pytest.raises(ContentTooLarge):
        begin(publisher)
    assert channel.is_open
    publisher.refusal = NotFound("no such exchange")
    with pytest.raises(NotFound):
        begin(publisher)
    assert (channel.is_open, channel.cause) == (False, publisher.refusal)


def test_a_channel_that_cannot_publish(publisher: Publisher) -> None:
    with pytest.raises(AMQPNotImplementedError):
        publisher.begin("x", "", "key", False, True, None)
    channel: Any = publisher._channel

    def elsewhere() -> type[BaseException] | None:
        try:
            begin(publisher)
        except WrongHub as exc:
            return type(exc)
        return None

    assert gevent.get_hub().threadpool.apply(elsewhere) is WrongHub
    channel.close()
    with pytest.raises(RecoverableChannelError, match="was closed"):
        begin(publisher)
    channel.connection.end(RecoverableConnectionError("cut"))
    with pytest.raises(RecoverableConnectionError):
        begin(publisher)


def test_a_body_has_a_limit(connect: Opener) -> None:
    publisher = refusing(connect, max_message_size=10)
    begin(publisher, "x" * 10).wait()
    with pytest.raises(ContentTooLarge, match="11 bytes"):
        begin(publisher, "x" * 11)
    assert publisher._channel.cause is None


def test_what_is_routed_goes_to_its_queues(connect: Opener) -> None:
    publisher = refusing(connect)
    channel: Any = publisher._channel
    channel.exchange_declare("e")
    for name in ("p", "q"):
        channel.queue_declare(name)
        channel.queue_bind(name, "e", "key")
    begin(publisher, "m", "e").wait()
    assert publisher.put in ("m:e:p,q", "m:e:q,p")
    begin(publisher, "m").wait()  # by the default exchange, to a queue that nobody has asked for
    assert publisher.put == "m::key"


def test_a_channel_that_closes_while_a_message_is_routed(
    connect: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = refusing(connect)
    channel: Any = publisher._channel

    def routes(*args: Any) -> list[str]:
        channel.close()
        return ["q"]

    monkeypatch.setattr(Routing, "routes", routes)
    with pytest.raises(RecoverableChannelError):
        begin(publisher)
    assert not hasattr(publisher, "put")


def test_a_message_without_a_queue_has_a_last_resort(connect: Opener) -> None:
    publisher = refusing(connect, deadletter_queue="lost")
    channel: Any = publisher._channel
    channel.exchange_declare("e")
    with pytest.raises(Unroutable):
        begin(publisher, "m", "e", mandatory=True).wait()
    assert not hasattr(publisher, "last_resort")
    with pytest.warns(match="lost"):
        begin(publisher, "m", "e").wait()
    assert (publisher.last_resort, publisher.put) == ("lost", "m:e:lost")
    publisher = refusing(connect)
    publisher._channel.exchange_declare("e")
    begin(publisher, "m", "e").wait()
    assert not hasattr(publisher, "put")


def test_a_timeout_of_the_broker_is_its_own(publisher: Publisher) -> None:
    def wait(slot: Slot[Any], deadline: Deadline | None) -> None:
        StoredResult(publisher, slot, "", "key", False, None).wait(deadline)

    for deadline in (None, Deadline(60), Deadline()):
        slot: Slot[Any] = Slot()
        slot.fail(TimeoutError("the broker's own"))
        with pytest.raises(TimeoutError, match="the broker's own") as caught:
            wait(slot, deadline)
        assert type(caught.value) is TimeoutError
    with pytest.raises(PublishTimeout, match=r"within 0 s"):
        wait(Slot(), Deadline(0))


def test_an_outcome_is_the_error_where_nothing_else_is_said(connect: Opener) -> None:
    channel = channel_to(connect)
    publisher = StorePublisher(channel, channel.connection)
    exc = ValueError("no")
    assert publisher.error(exc, "publishing") is exc


def test_no_copy_is_on_its_way_at_first() -> None:
    assert CopyOutcomes(1, Slot()).is_begun is False


def test_the_option_limits_what_has_no_end(publisher: Publisher) -> None:
    assert publisher.limited(None) is None
    publisher.confirm_timeout = 5.0
    for endless in (None, Deadline()):
        limited = publisher.limited(endless)
        assert limited is not None
        assert limited.timeout == 5.0
    deadline = Deadline(7.0)
    assert publisher.limited(deadline) is deadline


def test_flushing_waits_for_the_acks_so_long(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float | None] = []
    monkeypatch.setattr(
        StoreLink, "flush_settlements", lambda link, deadline: waited.append(deadline.timeout)
    )
    for timeout in (5.0, None):
        publisher.flush(timeout)
    assert waited == [5.0, None]
    channel: Any = publisher._channel
    channel.close()
    with pytest.raises(RecoverableChannelError):
        publisher.flush(5.0)
