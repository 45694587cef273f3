"""A message that its queue gives up, as the dead-letter exchange gets it (RabbitMQ's headers)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, Final

from greenconn.transport.virtual.names import is_name
from greenconn.transport.virtual.publishing import Envelope

__all__ = ["DELIVERY_COUNT", "carbon_copies", "is_cycle", "letter_of"]

#: How often a message was delivered before (RabbitMQ's name).
DELIVERY_COUNT: Final = "x-delivery-count"


def carbon_copies(headers: Mapping[str, Any], *names: str) -> list[str]:
    """The routing keys that the headers *names* (of ``CC`` and ``BCC``) add to a message's own."""
    return [key for name in names for key in headers.get(name) or ()]


def letter_of(
    envelope: Envelope, queue: str, exchange: str, routing_key: str | None, reason: str
) -> Envelope:
    """Return a message with this death noted in its headers.

    Arguments:
        envelope: as it was stored.
        queue: where it died.
        exchange: where its letter goes.
        routing_key: with which; None keeps the message's own.
        reason: ``rejected``, ``expired``, ``maxlen`` or ``delivery_limit``.

    Raises:
        Exception: it is no envelope; a stranger's may be of any form.
    """
    properties = dict(envelope["properties"])
    info = properties["delivery_info"]
    key = info["routing_key"] if routing_key is None else routing_key
    if not is_name(key):
        raise TypeError("a routing key is text")
    headers = dict(envelope.get("headers") or {})
    for name in ("CC", "BCC"):
        if name in headers:
            copies = headers[name] if isinstance(headers[name], list) else []
            headers[name] = [each for each in copies if is_name(each)]
    expiration = properties.pop("expiration", None)
    death: dict[str, Any] = {
        "count": 1,
        "reason": reason,
        "queue": queue,
        "time": datetime.now(timezone.utc),
        "exchange": info.get("exchange", ""),
        "routing-keys": [info["routing_key"], *carbon_copies(headers, "CC")],
    }
    if expiration is not None:
        death["original-expiration"] = expiration
    earlier: list[Mapping[str, Any]] = []
    for each in headers.get("x-death") or ():
        if (each["queue"], each["reason"]) == (queue, reason):
            death = {**each, "count": each["count"] + 1}
        else:
            earlier.append(each)
    headers["x-death"] = [death, *earlier]
    headers.setdefault("x-first-death-reason", reason)
    headers.setdefault("x-first-death-queue", queue)
    headers.setdefault("x-first-death-exchange", info.get("exchange", ""))
    # Its deliveries are counted anew where it goes now.
    for name in (DELIVERY_COUNT, "redelivered"):
        headers.pop(name, None)
    if routing_key is not None:
        headers.pop("CC", None)
    properties["delivery_info"] = {"exchange": exchange, "routing_key": key}
    return {**envelope, "headers": headers, "properties": properties}


def is_cycle(queue: str, deaths: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether a message came back to *queue* without anybody having rejected it on the way."""
    for death in deaths:
        if death["reason"] == "rejected":
            return False
        if death["queue"] == queue:
            return True
    return False
