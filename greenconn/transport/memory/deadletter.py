"""A message that a queue gives up, as its dead-letter exchange gets it (RabbitMQ's rules)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from greenconn.transport.memory.store import Entry
from greenconn.transport.virtual.publishing import Envelope

__all__ = ["carbon_copies", "is_cycle", "obituary"]


def carbon_copies(headers: Mapping[str, Any], *names: str) -> list[str]:
    """The routing keys that the headers *names* (of ``CC`` and ``BCC``) add to a message's own."""
    return [key for name in names for key in headers.get(name) or ()]


def obituary(entry: Entry, reason: str, now: datetime) -> Envelope:
    """Return the message of *entry* with this death noted in its headers.

    ``x-death`` lists where a message died and why, the latest first, one entry for each queue and
    reason.  The expiration is taken off, so that the message does not die of it again.

    Arguments:
        reason: ``rejected``, ``expired`` or ``maxlen``.
    """
    envelope = entry.envelope
    queue = entry.queue
    headers = dict(envelope["headers"])
    properties = dict(envelope["properties"])
    expiration = properties.pop("expiration", None)
    death: dict[str, Any] = {
        "count": 1,
        "reason": reason,
        "queue": queue.name,
        "time": now,
        "exchange": entry.exchange,
        "routing-keys": [entry.routing_key, *carbon_copies(headers, "CC")],
    }
    if expiration is not None:
        death["original-expiration"] = expiration
    earlier = []
    for each in headers.get("x-death") or ():
        if (each["queue"], each["reason"]) == (queue.name, reason):
            death = {**each, "count": each["count"] + 1}
        else:
            earlier.append(each)
    headers["x-death"] = [death, *earlier]
    headers.setdefault("x-first-death-reason", reason)
    headers.setdefault("x-first-death-queue", queue.name)
    headers.setdefault("x-first-death-exchange", entry.exchange)
    if queue.policy.dead_letter_routing_key is not None:
        headers.pop("CC", None)
    return {**envelope, "headers": headers, "properties": properties}


def is_cycle(queue: str, deaths: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether a message came back to *queue* without anybody having rejected it on the way."""
    for death in deaths:
        if death["reason"] == "rejected":
            return False
        if death["queue"] == queue:
            return True
    return False
