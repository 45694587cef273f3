"""Queues that SQS does not know everywhere yet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import gevent
import pytest

from greenconn.broker.queues import UNDECLARED
from greenconn.green.deadline import Deadline
from greenconn.transport.SQS import SQSOptions
from greenconn.transport.SQS import service as module
from greenconn.transport.SQS.queues import Queues
from greenconn.transport.SQS.service import DoesNotExistQueueException, NewQueues, ServiceBusy


class Service:
    """A service that says of each queue that there is none, *unknown* times after it was made.

    No server that can be had does so.
    """

    where = "here"

    def __init__(self, unknown: int, timeout: float | None = None) -> None:
        self.unknown = unknown
        self.timeout = timeout
        self.made = False
        self.calls: list[str] = []

    def deadline(self, waiting: float = 0) -> Deadline:
        """Return the deadline of a call."""
        return Deadline(self.timeout)

    def call(self, action: str, what: str, **parameters: Any) -> dict[str, Any]:
        self.calls.append(action)
        if action == "CreateQueue":
            self.made = True
        elif not self.made or self.unknown > 0:
            self.unknown -= self.made
            raise DoesNotExistQueueException(f"there is no queue {what}")
        return {"QueueUrl": "http://localhost/queue", "Attributes": {"Some": "1"}}


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLING_PAUSE", 0.001)


def queues_of(service: Service, new: NewQueues) -> Queues:
    """What one link of a transport has."""
    accounts = SimpleNamespace(declared={}, new=new)
    store: Any = SimpleNamespace(options=SQSOptions(), accounts=accounts)
    return Queues(store, cast("Any", service))


def test_a_new_queue_is_used_until_it_is_known_everywhere() -> None:
    service = Service(unknown=3)
    made = queues_of(service, NewQueues()).make("orders", UNDECLARED)
    assert made.attributes("Some") == {"Some": "1"}
    assert service.calls == ["GetQueueUrl", "CreateQueue", *4 * ["GetQueueAttributes"]]


def test_another_link_finds_a_new_queue() -> None:
    service, new = Service(unknown=3), NewQueues()
    queues_of(service, new).make("orders", UNDECLARED)
    assert queues_of(service, new).get("orders").name == "orders"


def test_a_queue_that_was_never_there_is_missing_at_once() -> None:
    service = Service(unknown=10**9)
    with pytest.raises(DoesNotExistQueueException):
        queues_of(service, NewQueues()).get("orders")
    assert service.calls == ["GetQueueUrl"]


def test_a_new_queue_is_awaited_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLING", 600.0)
    service = Service(unknown=10**9, timeout=0.05)
    made = queues_of(service, NewQueues()).make("orders", UNDECLARED)
    with (
        gevent.Timeout(60),
        pytest.raises(ServiceBusy, match=r"'orders' was made .* within 0\.05 s"),
    ):
        made.attributes("Some")
