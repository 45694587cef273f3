"""The form in which brokers that know nothing of AMQP store a message (kombu's envelope).

A dict for JSON: ``body`` as text, ``content-type``, ``content-encoding``, ``headers``, and
``properties``, in which ``body_encoding`` says how the text stands for the bytes, ``delivery_tag``
names the message, and ``delivery_info`` has exchange and routing key.
"""

from __future__ import annotations

import base64
from binascii import a2b_base64
from typing import Any, NamedTuple

from greenconn.formats import decode_error
from greenconn.jsoncodec import loads

__all__ = ["WHAT", "Base64", "Contents", "checked", "contents_in", "contents_of"]

#: In errors: what was done when it went wrong.
WHAT = "out of its envelope"


class Contents(NamedTuple):
    """The fields of an envelope that the library reads, with their types."""

    properties: dict[str, Any]
    headers: dict[str, Any]
    content_type: Any
    content_encoding: Any
    body: Any


def contents_of(raw: bytes) -> Contents:
    """Open an envelope of which the body is text, or bytes in base 64.

    Raises:
        DecodeError: it is not JSON, or is not what an envelope must be.
    """
    try:
        envelope = loads(raw)
    except Exception as exc:
        raise decode_error(exc, WHAT) from exc
    return contents_in(envelope)


def contents_in(envelope: Any) -> Contents:
    """Open an envelope that was read.

    Raises:
        DecodeError: it is not what an envelope must be.
    """
    try:
        contents = checked(envelope)
        body, encoding = contents.body, contents.properties.get("body_encoding")
        if body is None or not encoding or encoding.lower() == "utf-8":
            return contents
        if encoding != "base64":
            raise LookupError("unknown body_encoding")
        return contents._replace(body=a2b_base64(body))
    except Exception as exc:
        raise decode_error(exc, WHAT) from exc


def checked(envelope: Any) -> Contents:
    """Take an envelope apart that anybody may have written."""
    properties = envelope["properties"]
    headers = envelope.get("headers") or {}
    body = envelope.get("body")
    info = properties.get("delivery_info") or {}
    if not (isinstance(headers, dict) and isinstance(properties, dict) and isinstance(info, dict)):
        raise TypeError("properties, headers and delivery_info must be objects")
    if not isinstance(body, (str, bytes, type(None))):
        raise TypeError("a body must be text")
    if not isinstance(properties.get("body_encoding"), (str, type(None))):
        raise TypeError("body_encoding must be text")
    return Contents(
        properties, headers, envelope.get("content-type"), envelope.get("content-encoding"), body
    )


class Base64:
    """Bytes as text."""

    def encode(self, s: str | bytes) -> str:
        """Return the text for *s*."""
        return base64.b64encode(s.encode() if isinstance(s, str) else s).decode()

    def decode(self, s: str | bytes) -> bytes:
        """Return the bytes that the text *s* stands for."""
        return base64.b64decode(s)
