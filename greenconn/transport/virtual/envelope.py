"""The form in which brokers that know nothing of AMQP store a message (kombu's envelope).

A dict for JSON: ``body`` as text, ``content-type``, ``content-encoding``, ``headers``, and
``properties``, in which ``body_encoding`` says how the text stands for the bytes, ``delivery_tag``
names the message, and ``delivery_info`` has exchange and routing key.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from greenconn.message import Message as BaseMessage
from greenconn.transport.virtual.publishing import Envelope

__all__ = ["Base64", "Message"]


class Base64:
    """Bytes as text."""

    def encode(self, s: str | bytes) -> str:
        """Return the text for *s*."""
        return base64.b64encode(s.encode() if isinstance(s, str) else s).decode()

    def decode(self, s: str | bytes) -> bytes:
        """Return the bytes that the text *s* stands for."""
        return base64.b64decode(s)


class Message(BaseMessage):
    """A message out of its envelope.

    Arguments:
        payload: the envelope.
        channel: decodes the body.
        queue: where it was taken from, if known: it is given back there.
    """

    __slots__ = ("_raw", "queue")

    def __init__(
        self, payload: Envelope, channel: Any = None, queue: str | None = None, **kwargs: Any
    ) -> None:
        self._raw = payload
        self.queue = queue
        properties: dict[str, Any] = payload["properties"]
        body = payload.get("body")
        if body and channel is not None:
            body = channel.decode_body(body, properties.get("body_encoding"))
        info: Mapping[str, Any] = properties.get("delivery_info") or {}
        super().__init__(
            body=body,
            channel=channel,
            delivery_tag=properties.get("delivery_tag"),
            content_type=payload.get("content-type"),
            content_encoding=payload.get("content-encoding"),
            headers=payload.get("headers"),
            properties=properties,
            delivery_info={**info, "redelivered": bool(payload.get("redelivered"))},
            postencode="utf-8",
            **kwargs,
        )

    def serializable(self) -> Envelope:
        """Return the envelope with which it can be put back."""
        properties = self.properties
        body, _ = self.channel.encode_body(self.body, properties.get("body_encoding"))
        # The body was decompressed on its way in.
        headers = {name: each for name, each in self.headers.items() if name != "compression"}
        return {
            "body": body,
            "properties": properties,
            "content-type": self.content_type,
            "content-encoding": self.content_encoding,
            "headers": headers,
        }
