"""The form of messages in SQS: kombu's envelope as JSON, in base64 by default."""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections.abc import Mapping
from math import ceil
from time import time
from typing import Any, Final, NamedTuple

from greenconn.broker.envelope import UNSENDABLE, read_envelope, unsendable
from greenconn.broker.port import Claimed, Entry
from greenconn.identity import uuid
from greenconn.jsoncodec import dumps
from greenconn.transport.SQS.service import InvalidQueueException

logger = logging.getLogger("greenconn.transport.SQS")

#: The system attribute with the number of times that a message was received.
RECEIVE_COUNT: Final = "ApproximateReceiveCount"
#: Seconds that SQS keeps a message back at most.
MAX_DELAY_SECONDS: Final = 900
#: The property that says when a message is too old, in seconds since 1970: SQS has no such thing.
EXPIRES_AT: Final = "x-expires-at"
#: The members of a message attribute.
ATTRIBUTE: Final[Mapping[str, type | tuple[type, ...]]] = {
    "DataType": str,
    "StringValue": str,
    "BinaryValue": (bytes, str),
}
#: The message group where a message names none (kombu's).
DEFAULT_GROUP: Final = "default"


class Packed(NamedTuple):
    """A message as SQS takes it.

    Attributes:
        fields: of an entry of ``SendMessageBatch``, without its ``Id``.
        size: bytes that count against SQS' limits.
    """

    fields: dict[str, Any]
    size: int


class Held:
    """A message that was taken: what SQS wants to see again, and what is to be known to settle it.

    Attributes:
        queue: the name of its queue: who settles it may be another link.
        deliveries: how often it was taken, this time included.
        task: the name of its task, as Celery writes it.
    """

    __slots__ = ("deliveries", "queue", "receipt", "task")

    def __init__(self, queue: str, receipt: str, deliveries: int, task: str | None) -> None:
        self.queue = queue
        self.receipt = receipt
        self.deliveries = deliveries
        self.task = task


def packed(entry: Entry, *, is_fifo: bool, as_base64: bool) -> Packed:
    """Make what is sent.

    Raises:
        ValueError: a header or property is nothing for JSON.
        InvalidQueueException: a delay is longer than SQS has it.
    """
    envelope = entry.envelope
    properties: Mapping[str, Any] = envelope.get("properties") or {}
    headers: Mapping[str, Any] = envelope.get("headers") or {}
    attributes = properties.get("message_attributes")
    if entry.lifetime is not None:
        properties = {**properties, EXPIRES_AT: time() + entry.delay + entry.lifetime}
        envelope = {**envelope, "properties": properties}
    if attributes is not None or "sqs_message" in (properties.get("delivery_info") or {}):
        envelope = {**envelope, "properties": _without_ours(properties)}
    try:
        text = dumps(envelope)
    except UNSENDABLE:
        raise unsendable(headers, properties) from None
    fields: dict[str, Any] = {
        "MessageBody": b64encode(text.encode()).decode() if as_base64 else text
    }
    size = len(fields["MessageBody"])
    if attributes:
        fields["MessageAttributes"] = written = message_attributes(attributes)
        size += sum(
            len(name) + sum(map(len, attribute.values())) for name, attribute in written.items()
        )
    group = _either(properties, headers, "MessageGroupId")
    if group is not None:
        fields["MessageGroupId"] = group
    if is_fifo:
        fields.setdefault("MessageGroupId", DEFAULT_GROUP)
        # Without one of its own each message is another; said again it is the same.
        fields["MessageDeduplicationId"] = (
            _either(properties, headers, "MessageDeduplicationId") or uuid()
        )
    delay = _delay(entry, is_fifo)
    if delay:
        fields["DelaySeconds"] = delay
    return Packed(fields, size)


def _either(properties: Mapping[str, Any], headers: Mapping[str, Any], name: str) -> str | None:
    value = properties.get(name, headers.get(name))
    return None if value is None else str(value)


def _delay(entry: Entry, is_fifo: bool) -> int:
    """Return the whole seconds for which SQS delays a message."""
    if entry.delay > (0 if is_fifo else MAX_DELAY_SECONDS):
        raise InvalidQueueException(
            f"queue {entry.queue!r}: a delay must be at most {MAX_DELAY_SECONDS} s (limit of SQS), and "
            f"0 for a FIFO queue, got {entry.delay:g} s"
        )
    properties = entry.envelope.get("properties") or {}
    asked = properties.get("delay_seconds", properties.get("DelaySeconds"))
    if asked is None:
        return ceil(entry.delay)
    try:
        seconds = int(asked)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"delay_seconds must be a number of seconds, got {asked!r}") from None
    most = 0 if is_fifo else MAX_DELAY_SECONDS
    if not 0 <= seconds <= most:
        # As kombu has it for these names.
        logger.warning(
            "queue %r: delay_seconds must be from 0 to %d, got %d: the nearest limit is used",
            entry.queue,
            most,
            seconds,
            extra={"queue": entry.queue},
        )
    return max(min(seconds, most), ceil(entry.delay), 0)


def _without_ours(properties: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: each for name, each in properties.items() if name != "message_attributes"}
    info = dict(own.get("delivery_info") or {})
    for name in ("sqs_message", "sqs_queue"):
        info.pop(name, None)
    return {**own, "delivery_info": info}


def message_attributes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as botocore takes them; plain values get their type.

    Raises:
        ValueError: one of those that are dicts cannot be sent.
    """
    return {name: _typed(name, value) for name, value in given.items()}


def _typed(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        if any(not isinstance(each, ATTRIBUTE.get(key, ())) for key, each in value.items()):
            raise ValueError(
                f"message attribute {name!r} must have a DataType and a StringValue, all strings, or "
                f"a BinaryValue of bytes, got {list(value)}"
            )
        return dict(value)
    if isinstance(value, bytes):
        return {"DataType": "Binary", "BinaryValue": value}
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {"DataType": "Number" if is_number else "String", "StringValue": str(value)}


def opened(message: Mapping[str, Any], queue: Any) -> Claimed:
    """Read what was taken.

    What is not of kombu's form is a message whose body is its text, as kombu has it; everything else
    that SQS said is in ``delivery_info["sqs_message"]``.

    Arguments:
        queue: where it was, with ``name`` and ``url``.
    """
    body: str = message.get("Body") or ""
    text = body
    if body[:1] != "{":
        try:
            text = b64decode(body, validate=True).decode()
        except ValueError:
            pass  # it is no base64, or of what is no text: a foreign message
    envelope = _envelope(text)
    properties = envelope["properties"]
    info = properties.get("delivery_info")
    if not isinstance(info, dict):
        info = properties["delivery_info"] = {}
    info["sqs_message"] = message
    info["sqs_queue"] = queue.url
    headers = envelope.get("headers")
    task = headers.get("task") if isinstance(headers, dict) else None
    try:
        count = int((message.get("Attributes") or {}).get(RECEIVE_COUNT, 1))
    except (TypeError, ValueError):
        count = 1
    held = Held(
        queue.name, message["ReceiptHandle"], count, task if isinstance(task, str) else None
    )
    end = properties.get(EXPIRES_AT)
    is_old = isinstance(end, (int, float)) and end <= time()
    dead = "expired" if is_old else None
    return Claimed(queue.name, envelope, held, deliveries=max(count - 1, 0), dead=dead)


def _envelope(text: str) -> dict[str, Any]:
    if text[:1] == "{":
        try:
            read = read_envelope(text)
        except (ValueError, RecursionError):
            read = None
        if isinstance(read, dict) and isinstance(read.get("properties"), dict):
            return read
    return {
        "body": text,
        "content-type": None,
        "content-encoding": None,
        "headers": {},
        "properties": {"delivery_info": {}},
    }
