"""Messages as SQS holds them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from greenconn.broker.port import Entry
from greenconn.transport.SQS.service import InvalidQueueException
from greenconn.transport.SQS.store import opened, packed

QUEUE = SimpleNamespace(name="q", url="https://sqs/1/q")


def envelope(**properties: Any) -> dict[str, Any]:
    return {
        "body": "aGk=",
        "content-type": "text/plain",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {"body_encoding": "base64", "delivery_info": {}, **properties},
    }


def taken(body: str, **attributes: str) -> Any:
    return opened({"Body": body, "ReceiptHandle": "r", "Attributes": attributes}, QUEUE)


@pytest.mark.parametrize("as_base64", [True, False])
def test_round_trip(as_base64: bool) -> None:
    sent = packed(Entry("q", envelope()), is_fifo=False, as_base64=as_base64)
    assert set(sent.fields) == {"MessageBody"}
    claimed = taken(sent.fields["MessageBody"], ApproximateReceiveCount="3")
    assert claimed.envelope["body"] == "aGk="
    assert claimed.deliveries == 2
    assert claimed.handle.receipt == "r"
    assert claimed.envelope["properties"]["delivery_info"]["sqs_queue"] == QUEUE.url


@pytest.mark.parametrize(
    "body", ["", "plain", "abcd", '{"Records": []}', "[1]", "{", "é", "\U0001f600", "{" * 3000]
)
def test_foreign_messages_are_their_text(body: str) -> None:
    claimed = taken(body)
    assert claimed.envelope["body"] == body
    assert claimed.handle.task is None


def test_foreign_base64_is_what_it_stands_for() -> None:
    assert taken("aGVsbG8=").envelope["body"] == "hello"


def test_properties_for_fifo_queues() -> None:
    entry = Entry("q.fifo", envelope(MessageGroupId="g", MessageDeduplicationId="d"))
    fields = packed(entry, is_fifo=True, as_base64=True).fields
    assert (fields["MessageGroupId"], fields["MessageDeduplicationId"]) == ("g", "d")
    bare = packed(Entry("q.fifo", envelope()), is_fifo=True, as_base64=True).fields
    other = packed(Entry("q.fifo", envelope()), is_fifo=True, as_base64=True).fields
    assert bare["MessageGroupId"] == "default"
    assert bare["MessageDeduplicationId"] != other["MessageDeduplicationId"]
    headed = {**envelope(), "headers": {"MessageGroupId": "h"}}
    assert packed(Entry("q", headed), is_fifo=False, as_base64=True).fields["MessageGroupId"] == "h"


@pytest.mark.parametrize(
    ("delay", "properties", "expected"),
    [
        (0.0, {}, None),
        (1.2, {}, 2),
        (900.0, {}, 900),
        (0.0, {"delay_seconds": "7"}, 7),
        (0.0, {"DelaySeconds": 3.9}, 3),
        (0.0, {"delay_seconds": 5000}, 900),
        (0.0, {"delay_seconds": -1}, None),
    ],
)
def test_delays(delay: float, properties: dict[str, Any], expected: int | None) -> None:
    entry = Entry("q", envelope(**properties), delay=delay)
    fields = packed(entry, is_fifo=False, as_base64=True).fields
    assert fields.get("DelaySeconds") == expected


def test_delays_that_cannot_be() -> None:
    with pytest.raises(InvalidQueueException, match="at most 900 s"):
        packed(Entry("q", envelope(), delay=901), is_fifo=False, as_base64=True)
    with pytest.raises(InvalidQueueException, match="0 for a FIFO queue"):
        packed(Entry("q.fifo", envelope(), delay=1), is_fifo=True, as_base64=True)
    with pytest.raises(ValueError, match="number of seconds"):
        packed(Entry("q", envelope(delay_seconds="soon")), is_fifo=False, as_base64=True)


def test_attributes_leave_the_body() -> None:
    given: dict[str, Any] = {
        "plain": "x",
        "number": 1,
        "raw": {"DataType": "String", "StringValue": "y"},
    }
    given["bytes"] = b"\0"
    sent = packed(Entry("q", envelope(message_attributes=given)), is_fifo=False, as_base64=False)
    assert sent.fields["MessageAttributes"] == {
        "plain": {"DataType": "String", "StringValue": "x"},
        "number": {"DataType": "Number", "StringValue": "1"},
        "raw": {"DataType": "String", "StringValue": "y"},
        "bytes": {"DataType": "Binary", "BinaryValue": b"\0"},
    }
    assert "message_attributes" not in json.loads(sent.fields["MessageBody"])["properties"]


@pytest.mark.parametrize(
    "attribute", [{"Type": "String"}, {"DataType": "Number", "StringValue": 1}, {1: "x"}]
)
def test_attributes_that_cannot_be(attribute: dict[Any, Any]) -> None:
    entry = Entry("q", envelope(message_attributes={"a": attribute}))
    with pytest.raises(ValueError, match="message attribute 'a' must have"):
        packed(entry, is_fifo=False, as_base64=True)


def test_what_came_can_be_sent_on() -> None:
    sent = packed(Entry("q", envelope()), is_fifo=False, as_base64=False)
    claimed = taken(sent.fields["MessageBody"])
    again = packed(Entry("q", claimed.envelope), is_fifo=False, as_base64=False)
    assert "sqs_message" not in again.fields["MessageBody"]


def test_old_messages_are_dead() -> None:
    sent = packed(Entry("q", envelope(), lifetime=0), is_fifo=False, as_base64=True)
    assert taken(sent.fields["MessageBody"]).dead == "expired"
    sent = packed(Entry("q", envelope(), lifetime=60), is_fifo=False, as_base64=True)
    assert taken(sent.fields["MessageBody"]).dead is None
