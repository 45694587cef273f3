"""The dead letters of a queue: seen, counted, published again, deleted.

They are those that ``spawn_consumer`` has made, and those of the broker, where the
queue's dead-letter exchange leads to the same queue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from greenconn.connection import Connection
from greenconn.defaults import consuming_connection, publishing_connection
from greenconn.entity import Queue
from greenconn.entity.queue import DEAD
from greenconn.exceptions import NotFound
from greenconn.publishing.message import PublishOptions
from greenconn.worker.failures import (
    ATTEMPTS,
    ERROR,
    EXCHANGE,
    FAILURE_HEADERS,
    FIRST_FAILURE,
    OBEYED,
    QUEUE,
    REASON,
    ROUTING_KEY,
    TEXT,
    TRACEBACK,
    attempts_of,
    priority_of,
    resent,
)
from greenconn.worker.moving import count_of, look, move
from greenconn.worker.options import QueueLike

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.message import Message
    from greenconn.publishing.message import OutgoingMessage


logger = logging.getLogger("greenconn.worker")

#: Headers of the broker about dead letters.
_DEATHS: Final = ("x-death", "x-first-death-", "x-last-death-")
_LEFT_OUT: Final = FAILURE_HEADERS.union(OBEYED)


@dataclass(frozen=True)
class DeadLetter:
    """A dead letter, and why it is one."""

    queue: str | None
    """The queue that it was consumed from; None: not known."""

    reason: str | None
    """``failed``, ``undecodable``, or the broker's reason: ``rejected``, ``expired``, ``maxlen``,
    ``delivery_limit``."""

    error: str | None
    """The class of the error."""

    text: str | None
    """The text of the error."""

    traceback: str | None
    """The end of the traceback of the error."""

    attempts: int
    """How often its handler was called; 0: not known."""

    first_failure: str | None
    """When it failed first: UTC, ISO 8601."""

    message: Message
    """The message: ``payload``, ``headers``, ``properties``...  It cannot be acknowledged."""


class DeadLetters:
    """The dead letters of one queue.

    Arguments:
        queue: its name.
        name: of the queue of its dead letters.
        connection: is used for all calls.
    """

    def __init__(self, queue: str, name: str, connection: Connection) -> None:
        self.queue = queue
        self.name = name
        self._connection = connection

    def __repr__(self) -> str:
        return f"<DeadLetters of {self.queue!r} in {self.name!r}>"

    def count(self) -> int:
        """Return how many wait.  May switch."""
        with self._connection.channel() as channel:
            return self._count(channel)

    def look(self, limit: int = 10) -> list[DeadLetter]:
        """Return the oldest ones, which stay where they are.  May switch.

        Arguments:
            limit: how many at most.
        """
        with self._connection.channel() as channel:
            try:
                return [_dead_letter(each) for each in look(channel, self.name, limit)]
            except NotFound:
                return []  # no message has failed yet

    def replay(
        self,
        where: Callable[[DeadLetter], object] | None = None,
        *,
        limit: int | None = None,
        rate: float | None = None,
        target: str | None = None,
    ) -> int:
        """Publish dead letters to their queue again, the oldest first.  May switch.

        Each is acknowledged when the broker has confirmed it there, so none is lost.  Those that become
        dead letters again meanwhile are not taken a second time.  Those of another queue stay, unless
        there is a *target*: any publisher can write the header that names the queue.

        Arguments:
            where: called with each; one for which it returns something false stays.
            limit: how many at most; None: all.
            rate: how many a second; None: as fast as can be.
            target: the name of another queue to publish all of them to; it must exist, as theirs must.

        Returns:
            How many were published.

        Raises:
            ValueError: *limit* or *rate* is out of its range.
            OperationalError: one cannot be published; it stays, as those behind it.
            PublishRefused, TypeError, ValueError: one has a header or a property with which the broker
                does not take it; it stays.  All others were published.
        """
        others: dict[str, int] = {}

        def route(message: Message) -> OutgoingMessage | None:
            letter = _dead_letter(message)
            if where is not None and not where(letter):
                return None
            if target is None and letter.queue is not None and letter.queue != self.queue:
                others[letter.queue] = others.get(letter.queue, 0) + 1
                return None
            options = PublishOptions(target or self.queue, priority_of(message))
            return resent(message, options, _fresh_headers(message))

        publishing = publishing_connection(self._connection)
        with self._connection.channel() as channel:
            try:
                return move(channel, self.name, publishing, route, limit=limit, rate=rate)
            except NotFound:
                return 0  # no message has failed yet
            finally:
                if others:
                    logger.warning(
                        "%d dead letters in queue %r are of other queues (%s) and were not replayed: "
                        "replay them by the name of their queue, or name a target",
                        sum(others.values()),
                        self.name,
                        ", ".join(map(repr, islice(others, 3))),
                        extra={"queue": self.name},
                    )

    def purge(self) -> int:
        """Delete those that wait, and return how many there were.  May switch."""
        with self._connection.channel() as channel:
            if not self._count(channel):
                return 0
            return channel.queue_purge(self.name) or 0

    def _count(self, channel: Channel) -> int:
        try:
            return count_of(channel, self.name)
        except NotFound:
            return 0  # no message has failed yet


def dead_letters(
    queue: QueueLike, *, name: str | None = None, connection: Connection | str | None = None
) -> DeadLetters:
    """Return the dead letters of a queue.  Never switches.

    Arguments:
        queue: its name, or a ``Queue``.
        name: of the queue of its dead letters; None: ``<queue>.dead``, or where the arguments of a
            ``Queue`` lead to.
        connection: a ``Connection``, a URL, or None for the default one.

    Example::

        dead = greenconn.dead_letters("mail")
        for letter in dead.look():
            print(letter.reason, letter.error, letter.text, letter.message.payload)
        dead.replay(lambda letter: letter.error == "builtins.TimeoutError", rate=10)
    """
    text = queue.name if isinstance(queue, Queue) else queue
    if not isinstance(text, str) or not text:
        raise ValueError(f"queue must be the name of a queue or a Queue with one, got {queue!r}")
    if name is None and isinstance(queue, Queue):
        name = queue.dead_letter_queue or (queue.queue_arguments or {}).get(
            "x-dead-letter-routing-key"
        )
    return DeadLetters(text, name or f"{text}{DEAD}", consuming_connection(connection))


def _dead_letter(message: Message) -> DeadLetter:
    headers = message.headers
    death = _first_death(message)

    def text(name: str, default: object = None) -> str | None:
        value = headers.get(name, default)
        return value if isinstance(value, str) else None

    return DeadLetter(
        queue=text(QUEUE, death.get("queue")),
        reason=text(REASON, death.get("reason")),
        error=text(ERROR),
        text=text(TEXT),
        traceback=text(TRACEBACK),
        attempts=attempts_of(message),
        first_failure=text(FIRST_FAILURE),
        message=message,
    )


def _first_death(message: Message) -> dict[str, Any]:
    """Return the latest entry of ``x-death``, which the broker writes; empty where there is none."""
    deaths = message.headers.get("x-death")
    found = deaths[0] if isinstance(deaths, list) and deaths else None
    return found if isinstance(found, dict) else {}


def _fresh_headers(message: Message) -> dict[str, Any]:
    """Return the headers of a dead letter without what they tell of its failure."""
    death = _first_death(message)
    headers = {
        name: value
        for name, value in message.headers.items()
        if name not in _LEFT_OUT and not str(name).startswith(_DEATHS)
    }
    keys = death.get("routing-keys")
    key = keys[0] if isinstance(keys, list) and keys else ""
    for name, known in ((EXCHANGE, death.get("exchange")), (ROUTING_KEY, key)):
        value = message.headers.get(name, known)
        headers[name] = value if isinstance(value, str) else ""  # any publisher can write it
    headers[ATTEMPTS] = 0
    return headers
