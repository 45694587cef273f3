"""A message to be published: serialised, and with where it goes."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

from greenconn.compression import compress
from greenconn.entity import Exchange, Queue, maybe_delivery_mode
from greenconn.green.deadline import Deadline
from greenconn.serialization import dumps

__all__ = ["PROPERTIES", "Letter", "Stationery", "Target"]

#: Message properties that a caller may set, beside the options with names of their own.
PROPERTIES: Final = frozenset(
    {
        "app_id",
        "cluster_id",
        "correlation_id",
        "message_id",
        "reply_to",
        "timestamp",
        "type",
        "user_id",
    }
)

Target = str | Queue | Exchange


class Letter:
    """One message, serialised, and where it goes.

    Attributes:
        maybe_delivered: whether it was sent and never answered, so that the broker may have it.
    """

    __slots__ = (
        "body",
        "content_encoding",
        "content_type",
        "headers",
        "is_alone",
        "maybe_delivered",
        "stationery",
    )

    def __init__(
        self,
        stationery: Stationery,
        body: Any,
        content_type: str,
        content_encoding: str,
        headers: dict[str, Any],
    ) -> None:
        self.stationery = stationery
        self.body = body
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.headers = headers
        self.maybe_delivered = False
        #: It was outstanding when its channel was closed by an error: it goes apart from others.
        self.is_alone = False

    def prepared(self, channel: Any) -> Any:
        """The message as *channel* sends it."""
        common = self.stationery
        return channel.prepare_message(
            self.body,
            common.priority,
            self.content_type,
            self.content_encoding,
            self.headers,
            dict(common.properties),
        )

    def send(self, channel: Any, deadline: Deadline) -> None:
        """Publish on *channel* and wait for the confirm.  May switch."""
        common = self.stationery
        message = self.prepared(channel)
        self.maybe_delivered = self.maybe_delivered or channel.is_open
        channel.basic_publish_confirm(
            message,
            common.exchange,
            common.routing_key,
            common.mandatory,
            False,
            deadline.left(),
        )


class Stationery:
    """What the messages of one call have in common: the target and the options, checked once."""

    def __init__(self, target: Target, options: Mapping[str, Any]) -> None:
        rest = dict(options)
        self.target = target
        self.exchange, self.routing_key = _address(target, rest.pop("routing_key", None))
        self.mandatory = bool(rest.pop("mandatory", True))
        self.serializer = rest.pop("serializer", None)
        self.compression = rest.pop("compression", None)
        self.content_type = rest.pop("content_type", None)
        self.content_encoding = rest.pop("content_encoding", None)
        self.headers: Mapping[str, Any] = rest.pop("headers", None) or {}
        self.priority: int | None = rest.pop("priority", None)
        mode = rest.pop("delivery_mode", None)
        expiration = rest.pop("expiration", None)
        _refuse_unknown(rest)
        if isinstance(rest.get("reply_to"), Queue):
            rest["reply_to"] = rest["reply_to"].name
        self.properties: dict[str, Any] = rest
        self.properties["delivery_mode"] = maybe_delivery_mode(mode)
        if expiration is not None:
            self.properties["expiration"] = str(int(expiration * 1000))

    def letter(self, body: Any) -> Letter:
        """Serialise *body*.

        Raises:
            EncodeError: it cannot be.
        """
        headers = dict(self.headers)
        if self.content_type:
            content_type, encoding = self.content_type, self.content_encoding
            if isinstance(body, str):
                encoding = encoding or "utf-8"
                body = body.encode(encoding)
            encoding = encoding or "binary"
        else:
            content_type, encoding, body = dumps(body, self.serializer)
        if self.compression:
            body, headers["compression"] = compress(body, self.compression)
        return Letter(self, body, content_type, encoding, headers)

    def __str__(self) -> str:
        if isinstance(self.target, Exchange):
            return f"exchange {self.exchange!r} with routing key {self.routing_key!r}"
        return f"queue {self.routing_key!r}"


def _address(target: Target, routing_key: str | None) -> tuple[str, str]:
    if isinstance(target, Exchange):
        return target.name, routing_key or ""
    name = target.name if isinstance(target, Queue) else target
    if not isinstance(name, str) or not name:
        raise ValueError(f"target={target!r}: a queue needs a name, or give an Exchange")
    if routing_key is not None:
        raise ValueError(
            f"routing_key={routing_key!r}: a message to queue {name!r} has its name as routing key; "
            f"give the Exchange as target instead"
        )
    return "", name


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    for name in options.keys() - PROPERTIES:
        known = sorted(PROPERTIES | _OPTIONS)
        near = get_close_matches(name, known, 1)
        hint = f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
        raise TypeError(f"publish() has no option {name!r}{hint}")


_OPTIONS: Final = frozenset(
    {
        "compression",
        "content_encoding",
        "content_type",
        "delivery_mode",
        "expiration",
        "headers",
        "mandatory",
        "priority",
        "routing_key",
        "serializer",
    }
)
