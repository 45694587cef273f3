"""Publishing over one channel: what becomes of a message, and who is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gevent
import pytest

from greenconn.abc import DeadlineLike
from greenconn.broker.link import StoreLink
from greenconn.broker.port import NoQueue, QueueFull
from greenconn.broker.publisher import ChannelPublisher, Completion, CopyOutcomes, StoredResult
from greenconn.exceptions import PublishNacked, PublishTimeout, Unroutable
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
        deadline: DeadlineLike | None,
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

    def _put(
        self, target: str, queue: str, done: Completion, deadline: DeadlineLike | None
    ) -> None:
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
    channel.events["basic_return"].add(lambda *told: returned.append(told))
    publisher.publish(message, "", "key", True, False, None)
    channel.connection.drain(10.0)
    ((exc, exchange, routing_key, back),) = returned
    assert isinstance(exc, Unroutable)
    assert (exchange, routing_key, back.body) == ("", "key", message)


def test_who_asks_for_no_confirm_is_not_told_of_a_full_queue(publisher: Publisher) -> None:
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
