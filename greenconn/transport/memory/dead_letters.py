"""A message that a queue gives up, as its dead-letter exchange gets it (RabbitMQ's rules)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from greenconn.broker.dead_letters import is_cycle, with_death
from greenconn.transport.memory.queue import Queue
from greenconn.transport.memory.store import Entry
from greenconn.transport.virtual.publishing import Envelope

__all__ = ["DeadLetters"]

Post = Callable[[Envelope, str, str, Callable[[Queue], bool]], None]


def dead_letter(entry: Entry, reason: str) -> Envelope:
    """Return the message of *entry* as its dead-letter exchange gets it.

    Arguments:
        reason: ``rejected``, ``expired`` or ``maxlen``.
    """
    envelope, queue = entry.envelope, entry.queue
    properties = dict(envelope["properties"])
    expiration = properties.pop("expiration", None)
    source = (queue.name, entry.exchange, entry.routing_key)
    headers = with_death(envelope["headers"], reason, source, expiration)
    if queue.policy.dead_letter_routing_key is not None:
        headers.pop("CC", None)
    return {**envelope, "headers": headers, "properties": properties}


class DeadLetters:
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
        """Send a message that its queue gives up, if the queue has a dead-letter exchange.

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
                self._send(*self._dead.popleft())
        finally:
            self._is_busy = False

    def _send(self, entry: Entry, reason: str) -> None:
        policy = entry.queue.policy
        letter = dead_letter(entry, reason)
        deaths = letter["headers"]["x-death"]
        key = policy.dead_letter_routing_key
        self._post(
            letter,
            policy.dead_letter_exchange or "",
            entry.routing_key if key is None else key,
            lambda queue: reason == "rejected" or not is_cycle(queue.name, deaths),
        )
