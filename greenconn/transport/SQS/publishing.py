"""Publishing: messages to queues and topics, ten in a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from greenconn.broker.port import Entry, NoQueue
from greenconn.exceptions import ContentTooLarge
from greenconn.transport.SQS.batch import InOrderLock, InOrderTurn, batches_of_ten, together
from greenconn.transport.SQS.envelope import Packed, packed
from greenconn.transport.SQS.exceptions import (
    REFUSED,
    DoesNotExistQueueException,
    InvalidQueueException,
    UndefinedQueueException,
)
from greenconn.transport.SQS.options import SQSOptions
from greenconn.transport.SQS.queues import FIFO, Queues, SqsQueue
from greenconn.transport.SQS.topics import Topics, exchange_of

__all__ = ["Sender"]


class Sender:
    """The messages that one link sends.

    Arguments:
        gone: called with a queue that turned out to be deleted.
    """

    def __init__(
        self,
        options: SQSOptions,
        queues: Queues,
        topics: Topics,
        gone: Callable[[SqsQueue], None],
    ) -> None:
        self._options = options
        self._queues = queues
        self._topics = topics
        self._gone = gone
        self._lanes: dict[str, InOrderLock] = {}

    def put(self, entries: Sequence[Entry]) -> list[Exception | None]:
        """Send messages; return for each why it was not.  May switch."""
        outcomes: list[Exception | None] = [None] * len(entries)
        numbers: dict[str, list[int]] = {}
        for number, entry in enumerate(entries):
            numbers.setdefault(entry.queue, []).append(number)
        # Places are taken before anything switches: the order of the calls is that of the batches.
        turns = {name: self._lane(name).enter() for name in numbers if name.endswith(FIFO)}
        try:
            together(
                partial(self._put_to, name, mine, entries, outcomes, turns.get(name))
                for name, mine in numbers.items()
            )
        finally:
            for turn in turns.values():
                turn.end()
        return outcomes

    def _lane(self, name: str) -> InOrderLock:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = InOrderLock()
        return lane

    def _put_to(
        self,
        name: str,
        numbers: Sequence[int],
        entries: Sequence[Entry],
        outcomes: list[Exception | None],
        turn: InOrderTurn | None,
    ) -> None:
        """Send those of one queue."""
        if turn is not None:
            turn.wait()
        ready: list[tuple[int, Packed]] = []
        for number in numbers:
            try:
                ready.append((number, self._packed(entries[number])))
            except (ValueError, ContentTooLarge, InvalidQueueException) as exc:
                outcomes[number] = exc
        batches = list(batches_of_ten(ready, lambda each: each[1].size))
        jobs = [partial(self._send, name, batch, outcomes) for batch in batches]
        if turn is not None:
            for job in jobs:
                job()
            turn.end()
        else:
            together(jobs)

    def _packed(self, entry: Entry) -> Packed:
        # Only kombu reads what comes out of a topic, and there it is not in base64.
        as_base64 = self._options.sqs_base64_encoding and exchange_of(entry.queue) is None
        ready = packed(entry, is_fifo=entry.queue.endswith(FIFO), as_base64=as_base64)
        limit = self._options.max_message_size
        if ready.size > limit:
            raise ContentTooLarge(
                f"queue {entry.queue!r}: a message of {ready.size} bytes, as encoded for SQS, is above "
                f"max_message_size ({limit} bytes)"
            )
        return ready

    def _send(
        self, name: str, batch: list[tuple[int, Packed]], outcomes: list[Exception | None]
    ) -> None:
        fields = [ready.fields for _, ready in batch]
        exchange = exchange_of(name)
        queue: SqsQueue | None = None
        errors: Sequence[Exception | None]
        try:
            if exchange is not None:
                errors = self._topics.publish(exchange, fields)
            else:
                queue = self._queues.get(name)
                retries = 0 if queue.is_fifo else self._options.retries
                errors = queue.batch("SendMessageBatch", fields, retries=retries)
        except REFUSED as exc:
            if queue is not None and isinstance(exc, DoesNotExistQueueException):
                self._gone(queue)
            errors = [exc] * len(fields)
        for (number, _), error in zip(batch, errors, strict=True):
            outcomes[number] = None if error is None else _unsent(error)


def _unsent(exc: Exception) -> Exception:
    """Return the error of a message that was not stored."""
    if isinstance(exc, (DoesNotExistQueueException, UndefinedQueueException)):
        error = NoQueue(str(exc))
        error.__cause__ = exc
        return error
    return exc
