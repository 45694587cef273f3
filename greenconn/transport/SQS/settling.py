"""Settling: deleting messages that were taken, giving them back, keeping them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from greenconn.broker.port import Answer, Settlement
from greenconn.transport.SQS.batch import in_tens, together
from greenconn.transport.SQS.envelope import Held
from greenconn.transport.SQS.exceptions import (
    REFUSED,
    DoesNotExistQueueException,
    InvalidQueueException,
)
from greenconn.transport.SQS.options import SQSOptions
from greenconn.transport.SQS.queues import Queues, SqsQueue
from greenconn.transport.SQS.sending import Sending

__all__ = ["Settling"]

logger = logging.getLogger("greenconn.transport.SQS")


class Settling:
    """The settlements of one link.

    Arguments:
        sending: for dead letters.
        queues: those of this link.
        gone: called with a queue that turned out to be deleted.
        unless_refused: that of the store.
    """

    def __init__(
        self,
        options: SQSOptions,
        sending: Sending,
        queues: Queues,
        gone: Callable[[SqsQueue], None],
        unless_refused: Callable[[Answer, Sequence[Exception | None]], Answer],
    ) -> None:
        self._options = options
        self._sending = sending
        self._queues = queues
        self._gone = gone
        self._unless_refused = unless_refused

    def settle(self, answers: Sequence[Answer]) -> None:
        """Delete messages, or give them back.  May switch."""
        by_queue: dict[str, list[Answer]] = {}
        for answer in answers:
            by_queue.setdefault(answer.handle.queue, []).append(answer)
        together(partial(self._settle, name, mine) for name, mine in by_queue.items())

    def _settle(self, name: str, answers: Sequence[Answer]) -> None:
        """Settle those of one queue."""
        queue = self._queue(name)
        if queue is None:
            return
        deleted: list[Held] = []
        returned: list[tuple[Held, int]] = []
        for answer in answers:
            if answer.entries and self._refused(answer):
                continue  # it is redelivered when its lease ends
            delay = _delay_of(answer, queue)
            if delay is None:
                deleted.append(answer.handle)
            elif delay >= 0:
                returned.append((answer.handle, delay))
        self.delete(queue, deleted)
        self._hide(queue, returned)

    def _queue(self, name: str) -> SqsQueue | None:
        """A queue that something was taken from; None: it is gone, and that with it."""
        try:
            return self._queues.get(name)
        except REFUSED as exc:
            logger.warning("%s: messages received from it cannot be acknowledged", exc)
            return None

    def _refused(self, answer: Answer) -> bool:
        """Store the copies of a dead letter; return whether it stays where it is without them."""
        outcomes = self._sending.put(answer.entries)
        return self._unless_refused(answer, outcomes).settlement is Settlement.BACK

    def delete(self, queue: SqsQueue, held: Sequence[Held]) -> None:
        """Delete messages.  May switch."""
        self._tell(queue, "DeleteMessageBatch", [{"ReceiptHandle": each.receipt} for each in held])

    def _hide(
        self, queue: SqsQueue, held: Sequence[tuple[Held, int]]
    ) -> Sequence[Exception | None]:
        fields = [
            {"ReceiptHandle": each.receipt, "VisibilityTimeout": delay} for each, delay in held
        ]
        return self._tell(queue, "ChangeMessageVisibilityBatch", fields)

    def _tell(
        self, queue: SqsQueue, action: str, fields: Sequence[Mapping[str, Any]]
    ) -> list[Exception | None]:
        """Say something of held messages; return for each why it was not taken."""
        batches = list(in_tens(fields))
        parts: list[list[Exception | None]] = [[] for _ in batches]

        def tell(number: int, batch: list[Mapping[str, Any]]) -> None:
            try:
                parts[number] = queue.batch(action, batch, retries=self._options.retries)
            except REFUSED as exc:
                if isinstance(exc, DoesNotExistQueueException):
                    self._gone(queue)
                parts[number] = [exc] * len(batch)

        together(partial(tell, number, batch) for number, batch in enumerate(batches))
        errors = [error for part in parts for error in part]
        for error in errors:
            # A lease that has ended is not worth a word: the message is somebody else's by now.
            if error is not None and not isinstance(error, InvalidQueueException):
                logger.warning(
                    "%s: messages are redelivered when their visibility timeout ends", error
                )
                break
        return errors

    def renew(self, handles: Sequence[Held], seconds: int) -> list[Held]:
        """Hide messages for so long from now on; return those that are no longer ours.  May switch."""
        by_queue: dict[str, list[Held]] = {}
        for held in handles:
            by_queue.setdefault(held.queue, []).append(held)
        lost: list[Held] = []

        def renew(name: str, mine: list[Held]) -> None:
            queue = self._queue(name)
            if queue is None:
                lost.extend(mine)
                return
            errors = self._hide(queue, [(each, seconds) for each in mine])
            lost.extend(
                each
                for each, error in zip(mine, errors, strict=True)
                if isinstance(error, (InvalidQueueException, DoesNotExistQueueException))
            )

        together(partial(renew, name, mine) for name, mine in by_queue.items())
        return lost


def _delay_of(answer: Answer, queue: SqsQueue) -> int | None:
    """Return the seconds until a redelivery; None: never; -1: when the lease ends.  May switch."""
    if answer.settlement is Settlement.DONE:
        return None
    held: Held = answer.handle
    if not answer.is_unseen and not answer.entries:
        delay = queue.retry_delay(held.task, held.deliveries)
        if delay is not None:
            return delay
    if answer.settlement is Settlement.BACK:
        return int(answer.delay)
    # Rejected for good.  A redrive policy wants to see it come back until it has had enough.
    return -1 if not answer.entries and queue.redrives() else None
