"""A message that a queue gives up, as its dead-letter exchange gets it (RabbitMQ's rules)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from greenconn.transport.memory.queue import Queue
from greenconn.transport.memory.store import Entry
from greenconn.transport.virtual.burying import carbon_copies, is_cycle
from greenconn.transport.virtual.publishing import Envelope

__all__ = ["Burials", "obituary"]

Post = Callable[[Envelope, str, str, Callable[[Queue], bool]], None]


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


class Burials:
    """Sends dead letters, one after the other: one that makes another queue overflow does not nest.

    Arguments:
        post: puts a letter into queues; given the letter, the exchange, the routing key and whether
            a queue may have it.  Does nothing where there is no such exchange.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._dead: deque[tuple[Entry, str]] = deque()
        self._is_busy = False

    def add(self, entry: Entry, reason: str) -> None:
        """Bury a message that its queue gives up, if the queue has a dead-letter exchange.

        What that causes is done too when this returns, unless it is part of it.
        """
        queue = entry.queue
        if queue.policy.dead_letter_exchange is None or queue.is_deleted:
            return
        self._dead.append((entry, reason))
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._dead:
                self._bury(*self._dead.popleft())
        finally:
            self._is_busy = False

    def _bury(self, entry: Entry, reason: str) -> None:
        policy = entry.queue.policy
        letter = obituary(entry, reason, datetime.now(timezone.utc))
        deaths = letter["headers"]["x-death"]
        key = policy.dead_letter_routing_key
        self._post(
            letter,
            policy.dead_letter_exchange or "",
            entry.routing_key if key is None else key,
            lambda queue: reason == "rejected" or not is_cycle(queue.name, deaths),
        )
