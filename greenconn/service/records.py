"""Messages as JSON records, and as a user writes them.

``greenconn consume --json`` prints records, and ``publish --jsonl`` publishes them.  A record has the
address, content type, content encoding, headers, properties and body of a message.  A body of JSON is a
JSON value in it, text is a string.  Bytes, and values of headers and properties for which JSON has no
type, are typed values, as :mod:`greenconn.jsoncodec` writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from greenconn.encoding import charset, safe_repr
from greenconn.jsoncodec import dumps as json_dumps
from greenconn.jsoncodec import encode, loads
from greenconn.message import Message
from greenconn.publishing.publisher import PROPERTIES
from greenconn.serialization import dumps
from greenconn.worker.failures import NOT_COPIED

JSON: Final = "application/json"
#: The properties of a record.
PROPERTY_NAMES: Final = PROPERTIES | {"delivery_mode", "expiration", "priority"}
#: The fields of a record; only the body is required.  ``redelivered`` is ignored when it is published.
FIELDS: Final = frozenset(
    {
        "exchange",
        "routing_key",
        "redelivered",
        "content_type",
        "content_encoding",
        "properties",
        "headers",
        "body",
    }
)
#: Control characters and halves of characters, which JSON may have without an escape.
_controls: Final = re.compile("[\x7f-\x9f\ud800-\udfff]")


def record_of(message: Message) -> dict[str, Any]:
    """Return a received message as a record."""
    info, properties = message.delivery_info, message.properties
    return {
        "exchange": info.get("exchange") or "",
        "routing_key": info.get("routing_key") or "",
        "redelivered": bool(info.get("redelivered")),
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "properties": {
            name: each
            for name, each in properties.items()
            if each is not None and (name == "priority" or name not in NOT_COPIED)
        },
        "headers": {name: each for name, each in message.headers.items() if each is not None},
        "body": body_of(message),
    }


def line_of(message: Message) -> str:
    """Return a received message as a record in one line."""
    return json_line(record_of(message), json_dumps)


def json_line(value: Any, dumps: Callable[..., str]) -> str:
    """Return a value as JSON in one line, without control characters, which a terminal might obey.

    Arguments:
        dumps: as ``json.dumps``.
    """
    try:
        text = dumps(value, ensure_ascii=False)
    except TypeError:
        try:
            text = dumps(_with_text_keys(value), ensure_ascii=False)
        except (TypeError, RecursionError):
            text = dumps(safe_repr(value))
    return _controls.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _with_text_keys(value: Any) -> Any:
    """Return a value with text as the keys of all its tables; those of AMQP may be bytes."""
    if isinstance(value, dict):
        return {
            key.decode("utf-8", "backslashreplace")
            if isinstance(key, bytes)
            else key: _with_text_keys(each)
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_with_text_keys(each) for each in value]
    return value


def body_of(message: Message) -> Any:
    """Return the body of a message as a record has it: a JSON value, text, or bytes."""
    body: Any = message.body
    if not isinstance(body, (str, bytes, bytearray, memoryview)):
        return body  # of an envelope that cannot be read, or nothing
    if not isinstance(body, str):
        body = bytes(body)
    if _is_json(message.content_type):
        with suppress(ValueError):  # it says that it is JSON, and is not
            value = loads(body)
            if not isinstance(value, bytes):  # which would stand for a body that is not JSON
                return value
        return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    if isinstance(body, str):
        return body
    encoding: Any = message.content_encoding or "utf-8"
    known = charset(encoding) if isinstance(encoding, str) else None
    with suppress(UnicodeError, TypeError):
        text = body.decode(known)
        if text.encode(known) == body:
            return text
    return body


def message_of(record: Any) -> Message:
    """Return the message of a record.

    Raises:
        ValueError: it is no record; names the field.
    """
    if not isinstance(record, Mapping) or "body" not in record:
        raise ValueError(
            f'a message must be an object with a "body", got {type(record).__name__} {record!r:.60}'
        )
    if unknown := record.keys() - FIELDS:
        raise ValueError(f"unknown field {min(unknown)!r}: known are {', '.join(sorted(FIELDS))}")
    body, kind = record["body"], record.get("content_type")
    encoding = record.get("content_encoding")
    if isinstance(body, bytes):
        if "content_type" not in record:
            kind, encoding = "application/data", encoding or "binary"
    elif "content_type" not in record:
        kind, encoding, body = dumps(body)
    elif _is_json(kind):
        body = encode(body).encode("utf-8")
    elif not isinstance(body, str):
        raise ValueError(
            f"the body of a message of content_type {kind!r} must be text or bytes, got "
            f"{type(body).__name__}"
        )
    else:
        known = charset(encoding or "utf-8")
        if known is None:
            raise ValueError(f"content_encoding {encoding!r} must be that of text, as the body is")
        body = body.encode(known)
    properties = _table(record, "properties")
    if unknown := properties.keys() - PROPERTY_NAMES:
        raise ValueError(
            f"unknown property {min(unknown)!r}: known are {', '.join(sorted(PROPERTY_NAMES))}"
        )
    address = {name: record.get(name) or "" for name in ("exchange", "routing_key")}
    message = Message(
        body,
        content_type=kind,
        content_encoding=encoding,
        delivery_info=address,
        properties=properties,
    )
    message.headers = _table(record, "headers")  # the body is not compressed, whatever they say
    return message


def _is_json(content_type: Any) -> bool:
    return str(content_type).partition(";")[0] == JSON


def _table(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {type(value).__name__} {value!r:.60}")
    return value
