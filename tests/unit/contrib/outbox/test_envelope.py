"""Messages as rows."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from greenconn import Exchange, Queue, binding
from greenconn.compression import decompress
from greenconn.contrib.outbox import PARTITIONS, publish_arguments, row_of
from greenconn.exceptions import EncodeError
from greenconn.publishing.publisher import PublishOptions
from greenconn.serialization import loads

pytestmark = pytest.mark.pure


def test_a_message_comes_back_as_it_was() -> None:
    at = datetime(2026, 11, 22, tzinfo=timezone.utc)
    options: dict[str, Any] = {
        "headers": {"trace": "4bf9", "at": at, "raw": b"\xff"},
        "priority": 7,
        "expires": 60,
        "delay": 2.5,
        "timestamp": at,
        "type": "order",
        "delivery_mode": "transient",
    }
    row = row_of("orders", {"number": 7}, "ada", options)
    arguments = publish_arguments(row.envelope)
    assert arguments.pop("target") == row.target == "orders"
    assert arguments["message_id"] == row.message_id
    message = PublishOptions("orders", arguments).message(row.body)
    expected = PublishOptions("orders", {**options, "message_id": row.message_id})
    assert message.options.properties == expected.properties
    assert (message.options.priority, message.options.delay) == (7, 2.5)
    assert message.headers == options["headers"]
    assert loads(message.body, message.content_type, message.content_encoding) == {"number": 7}


def test_times_that_are_no_numbers() -> None:
    at = datetime(2096, 11, 22, tzinfo=timezone.utc)
    row = row_of("orders", 7, None, {"at": at, "expires": timedelta(seconds=60)})
    assert publish_arguments(row.envelope).items() >= {("at", at), ("expires", 60.0)}
    row = row_of("orders", 7, None, {"delay": timedelta(seconds=2)})
    assert publish_arguments(row.envelope)["delay"] == 2.0


def test_a_compressed_body_is_not_compressed_again() -> None:
    row = row_of("orders", "x" * 1000, None, {"compression": "zlib", "serializer": "raw"})
    assert len(row.body) < 100
    message = PublishOptions("orders", _options(row.envelope)).message(row.body)
    assert message.headers is not None
    assert decompress(message.body, message.headers["compression"]) == b"x" * 1000
    assert message.content_type == "application/data"


def _options(envelope: str) -> dict[str, Any]:
    return {name: value for name, value in publish_arguments(envelope).items() if name != "target"}


@pytest.mark.parametrize(
    "target",
    [
        Exchange("events", type="topic", durable=False, delivery_mode=1),
        Queue("orders", queue_arguments={"x-queue-type": "quorum"}, dead_letter=True),
        Queue("orders", exchange=Exchange("events", type="topic"), routing_key="order.*"),
        Queue("all", bindings=[binding(Exchange("one"), "a"), binding(Exchange("two"), "b")]),
    ],
    ids=["exchange", "queue", "bound", "bindings"],
)
def test_targets_with_their_arguments(target: Queue | Exchange) -> None:
    options = {"routing_key": "order.new"} if isinstance(target, Exchange) else {}
    row = row_of(target, 1, None, options)
    arguments = publish_arguments(row.envelope)
    found = arguments["target"]
    assert type(found) is type(target)
    assert described(found) == described(target)
    assert row.target == target.name
    assert arguments.get("routing_key") == options.get("routing_key")


def described(entity: Queue | Exchange) -> dict[str, Any]:
    result = entity.as_dict(recurse=True)
    if "bindings" in result:  # a set of the queue
        result["bindings"].sort(key=lambda each: each["routing_key"])
    return result


def test_messages_of_one_key_have_one_partition() -> None:
    partitions = {row_of("a", n, "ada", {}).partition for n in range(10)}
    assert len(partitions) == 1
    spread = {row_of("a", n, None, {}).partition for n in range(500)}
    assert spread == set(range(PARTITIONS))


def test_a_message_id_of_the_program_is_kept() -> None:
    row = row_of("a", 1, None, {"message_id": "order-7"})
    assert row.message_id == "order-7"


def test_what_cannot_be_published_is_an_error_of_the_transaction() -> None:
    with pytest.raises(EncodeError):
        row_of("a", object(), None, {})
    with pytest.raises(TypeError, match="no option 'rooting_key'; did you mean 'routing_key'"):
        row_of(Exchange("a"), 1, None, {"rooting_key": "x"})
    with pytest.raises(TypeError, match="timeout must be given to the relay"):
        row_of("a", 1, None, {"timeout": 3})
    with pytest.raises(ValueError, match="key must be text of 1 to 255 characters, or None, got 7"):
        row_of("a", 1, 7, {})  # type: ignore[arg-type]
