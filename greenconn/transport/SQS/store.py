"""SQS as a store of leased messages: a lease is SQS' visibility timeout.

Rules
-----
- Each queue that has room is polled by one request that waits at SQS, for all its consumers in this
  process; where there are more such queues than connections for polls, they take turns of a second.
- Messages are sent, deleted and requeued ten at a time, as SQS limits a request.  Each of the ten
  has its own outcome.
- Batches for one FIFO queue are sent one after another in the order in which they came.  Messages
  that SQS refuses of such a batch are not sent again, since those behind them are stored already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from gevent.lock import BoundedSemaphore

from greenconn.broker.port import Claimed, Entry, Settlement, SettleRequest, Store
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.identity import uuid
from greenconn.transport.SQS.account import Accounts, HttpClients
from greenconn.transport.SQS.batch import SQS_MAX_MESSAGES, batches_of_ten, together
from greenconn.transport.SQS.envelope import Held, opened
from greenconn.transport.SQS.exceptions import (
    REFUSED,
    AccessDeniedQueueException,
    DoesNotExistQueueException,
    InvalidQueueException,
    LinkLost,
    ServiceBusy,
    UndefinedQueueException,
)
from greenconn.transport.SQS.options import SQSOptions
from greenconn.transport.SQS.publishing import Sender
from greenconn.transport.SQS.queues import Queues, SqsQueue
from greenconn.transport.SQS.service import Service
from greenconn.transport.SQS.topics import Topics, exchange_of
from greenconn.transport.virtual.declaration import Declaration

if TYPE_CHECKING:
    from gevent import Greenlet

__all__ = ["SqsStore"]

logger = logging.getLogger("greenconn.transport.SQS")


class SqsSettler:
    """The settlements of one link.

    Arguments:
        sender: for dead letters.
        queues: those of this link.
        gone: called with a queue that turned out to be deleted.
        unless_refused: that of the store.
    """

    def __init__(
        self,
        options: SQSOptions,
        sender: Sender,
        queues: Queues,
        gone: Callable[[SqsQueue], None],
        unless_refused: Callable[[SettleRequest, Sequence[Exception | None]], SettleRequest],
    ) -> None:
        self._options = options
        self._sender = sender
        self._queues = queues
        self._gone = gone
        self._unless_refused = unless_refused

    def settle(self, requests: Sequence[SettleRequest]) -> None:
        """Delete messages, or give them back.  May switch."""
        by_queue: dict[str, list[SettleRequest]] = {}
        for request in requests:
            by_queue.setdefault(request.handle.queue, []).append(request)
        together(partial(self._settle, name, mine) for name, mine in by_queue.items())

    def _settle(self, name: str, requests: Sequence[SettleRequest]) -> None:
        """Settle those of one queue."""
        queue = self._queue(name)
        if queue is None:
            return
        deleted: list[Held] = []
        returned: list[tuple[Held, int]] = []
        for request in requests:
            if request.entries and self._refused(request):
                continue  # it is redelivered when its lease ends
            delay = _delay_of(request, queue)
            if delay is None:
                deleted.append(request.handle)
            elif delay >= 0:
                returned.append((request.handle, delay))
        self.delete(queue, deleted)
        self._hide(queue, returned)

    def _queue(self, name: str) -> SqsQueue | None:
        """Return a queue that messages were received from; None: it was deleted, with its messages."""
        try:
            return self._queues.get(name)
        except REFUSED as exc:
            logger.warning("%s: messages received from it cannot be acknowledged", exc)
            return None

    def _refused(self, request: SettleRequest) -> bool:
        """Store the copies of a dead letter; return whether it stays where it is without them."""
        outcomes = self._sender.put(request.entries)
        return self._unless_refused(request, outcomes).settlement is Settlement.REQUEUE

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
        batches = list(batches_of_ten(fields))
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


def _delay_of(request: SettleRequest, queue: SqsQueue) -> int | None:
    """Return the seconds until a redelivery; None: never; -1: when the lease ends.  May switch."""
    if request.settlement is Settlement.ACK:
        return None
    held: Held = request.handle
    if not request.is_unseen and not request.entries:
        delay = queue.retry_delay(held.task, held.deliveries)
        if delay is not None:
            return delay
    if request.settlement is Settlement.REQUEUE:
        return int(request.delay)
    # Rejected for good.  A redrive policy wants to see it come back until it has had enough.
    return -1 if not request.entries and queue.redrives() else None


#: Seconds of a poll while other queues wait for their turn.
SHORT_POLL: Final = 1


class SqsStore(Store):
    """SQS, for one link.

    Arguments:
        accounts: the transport's, which outlive the link.
    """

    #: What a few requests at the same time may take.
    claim_limit: ClassVar[int] = 4 * SQS_MAX_MESSAGES
    put_limit: ClassVar[int] = SQS_MAX_MESSAGES
    #: Requests that send at the same time.  Standard queues have no order; see the rules for others.
    put_calls: ClassVar[int] = 8
    settle_limit: ClassVar[int] = 10 * SQS_MAX_MESSAGES
    claims_each_queue: ClassVar[bool] = True

    def __init__(
        self,
        client: Any,
        wake: Callable[[str | None], None],
        accounts: Accounts,
        options: SQSOptions,
    ) -> None:
        super().__init__(client, wake)
        self._lease = int(options.lease)
        self.lease = float(self._lease)
        self.claim_wait = float(options.wait_time_seconds)
        self._accounts = accounts
        self._options = options
        self._clients = HttpClients(options, client.ssl)
        self._polls = BoundedSemaphore(options.poll_connections)
        #: Queues that wait for their turn to be polled.
        self._waiting = 0
        #: Queue -> what the claim that waits for it gets.
        self._claims: dict[str, Slot[Sequence[Claimed]]] = {}
        self._polling: set[Greenlet[..., Any]] = set()
        self.queues: Queues
        self.topics: Topics

    # -- life

    def open(self, deadline: Deadline) -> None:
        """Find credentials and endpoint, and ask whether they are good.  May switch.

        Raises:
            LoginRefused: they are not.
            LinkLost: the service does not request.
        """
        service = self._accounts.main.service("sqs", self._clients, deadline)
        self.queues = Queues(
            service,
            self._options,
            partial(self._service, "sqs"),
            self._accounts.declared,
        )
        self.topics = Topics(self._options, self.queues, partial(self._service, "sns"))
        self._sender = Sender(self._options, self.queues, self.topics, self._is_gone)
        self._settler = SqsSettler(
            self._options, self._sender, self.queues, self._is_gone, self.unless_refused
        )
        predefined = self._options.predefined_queues
        try:
            if predefined:
                self.queues.get(next(iter(predefined))).attributes("QueueArn")
            else:
                service.call(
                    "ListQueues",
                    deadline=deadline,
                    QueueNamePrefix=self._options.queue_name_prefix,
                    MaxResults=1,
                )
        except AccessDeniedQueueException:
            pass  # It knows who we are, and lets us do other things.

    def _service(self, name: str, settings: Mapping[str, Any]) -> Service:
        limit = Deadline(self._options.reply_timeout)
        return self._accounts.of(settings).service(name, self._clients, limit)

    def close(self) -> None:
        """End everything.  Nothing is said to SQS: it knows no connections."""
        self.drop()

    def drop(self) -> None:
        """End everything.  Never switches."""
        for greenlet in list(self._polling):
            greenlet.kill(block=False)
        self._clients.close()

    # -- queues

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        """Make a queue.  May switch.  SQS does not keep how it was declared: the process does."""
        self.queues.make(name, declaration)
        return self.queues.declaration(name)

    def find_queue(self, name: str) -> Declaration | None:
        """Return whether there is a queue (or a topic).  May switch."""
        if exchange_of(name) is not None:
            return Declaration(durable=True)
        queue = self.queues.find(name)
        return None if queue is None else self.queues.declaration(name)

    def drop_queue(self, name: str) -> int:
        """Delete a queue, unless it is a predefined one.  May switch."""
        if self._options.predefined_queues:
            return 0
        queue = self.queues.find(name)
        if queue is None:
            return 0
        waited = self._size(queue)
        self.topics.leave(name)
        try:
            queue.call("DeleteQueue")
        except DoesNotExistQueueException:
            waited = 0
        self.queues.forget(queue)
        return waited

    def size(self, name: str) -> int:
        """About how many messages could be taken now.  May switch."""
        return self._size(self.queues.get(name))

    def _size(self, queue: SqsQueue) -> int:
        return int(queue.attributes(SIZE).get(SIZE, 0))

    def purge(self, name: str) -> int:
        """Delete the messages of a queue.  May switch.  SQS takes up to a minute for it."""
        queue = self.queues.get(name)
        waited = self._size(queue)
        try:
            queue.call("PurgeQueue")
        except InvalidQueueException as exc:
            if "PurgeQueueInProgress" not in str(exc):
                raise
            # Once a minute is what SQS does; the rest is done by hand.
            self._empty(queue)
        return waited

    def _empty(self, queue: SqsQueue) -> None:
        while taken := self._receive(queue, SQS_MAX_MESSAGES, 0):
            self._settler.delete(queue, [each.handle for each in taken])

    # -- messages

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """Send messages.  May switch."""
        return self._sender.put(entries)

    def settle(self, requests: Sequence[SettleRequest]) -> None:
        """Delete messages, or give them back.  May switch."""
        self._settler.settle(requests)

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Hide messages for another lease; return those that are no longer ours.  May switch."""
        return self._settler.renew(handles, self._lease)

    def _is_gone(self, queue: SqsQueue) -> None:
        self.queues.forget(queue)
        self.gone(queue.name)

    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        """Take messages of one queue, waiting at SQS for the first.  May switch."""
        ((name, count),) = wanted.items()
        try:
            queue = self.queues.get(name)
            if not wait:
                return self._receive(queue, count, self._options.get_wait_time)
            return self._poll(queue, count, wait)
        except (DoesNotExistQueueException, UndefinedQueueException):
            self.gone(name)
        except ServiceBusy as exc:
            logger.warning("%s; trying again", exc)
        return ()

    def _poll(self, queue: SqsQueue, count: int, wait: float) -> Sequence[Claimed]:
        """Wait for messages in a greenlet that may be left alone."""
        slot: Slot[Sequence[Claimed]] = Slot()
        self._claims[queue.name] = slot
        greenlet = spawn("sqs-poll", self._poll_into, slot, queue, count, wait)
        self._polling.add(greenlet)
        greenlet.rawlink(self._polling.discard)
        try:
            return slot.wait(NEVER)
        finally:
            if self._claims.get(queue.name) is slot:
                del self._claims[queue.name]

    def _poll_into(
        self, slot: Slot[Sequence[Claimed]], queue: SqsQueue, count: int, wait: float
    ) -> None:
        try:
            self._waiting += 1
            try:
                self._polls.acquire()
            finally:
                self._waiting -= 1
            try:
                seconds = SHORT_POLL if self._waiting else max(int(wait), 1)
                taken = self._receive_many(queue, count) or self._receive(queue, count, seconds)
            finally:
                self._polls.release()
        except Exception as exc:
            slot.fail(exc)
            return
        if not slot.offer(taken):
            self._requeue(taken)

    def _requeue(self, taken: Sequence[Claimed]) -> None:
        """Release messages that nobody waits for, before their leases end."""
        try:
            self._settler.settle(
                [SettleRequest(each.handle, Settlement.REQUEUE, is_unseen=True) for each in taken]
            )
        except LinkLost:
            pass  # then they do

    def abandon(self, queue: str) -> None:
        """Let the claim of a queue return; its poll goes on, and requeues what it brings."""
        slot = self._claims.pop(queue, None)
        if slot is not None:
            slot.offer(())

    def _receive_many(self, queue: SqsQueue, count: int) -> list[Claimed]:
        """Take more than ten from a queue that had ten the last time, without waiting at SQS."""
        if count <= SQS_MAX_MESSAGES or not queue.is_full:
            return []
        parts: list[list[Claimed]] = []
        todo = [min(SQS_MAX_MESSAGES, count - n) for n in range(0, count, SQS_MAX_MESSAGES)]
        together(partial(self._receive_into, parts, queue, each) for each in todo)
        taken = [each for part in parts for each in part]
        queue.is_full = 2 * len(taken) > count
        return taken

    def _receive_into(self, parts: list[list[Claimed]], queue: SqsQueue, count: int) -> None:
        try:
            parts.append(self._receive(queue, count, 0))
        except (*REFUSED, LinkLost):
            pass  # the poll that comes next says so; what others have brought is not lost

    def _receive(self, queue: SqsQueue, count: int, seconds: int) -> list[Claimed]:
        options = self._options
        more: dict[str, Any] = {}
        if options.message_attributes:
            more["MessageAttributeNames"] = options.message_attributes
        if queue.is_fifo:
            # So that the response to a request that is sent again is the same.
            more["ReceiveRequestAttemptId"] = uuid()
        try:
            response = queue.call(
                "ReceiveMessage",
                waiting=seconds,
                MaxNumberOfMessages=min(count, SQS_MAX_MESSAGES),
                WaitTimeSeconds=seconds,
                VisibilityTimeout=self._lease,
                MessageSystemAttributeNames=options.system_attributes,
                **more,
            )
        except DoesNotExistQueueException:
            self.queues.forget(queue)
            raise
        taken = [opened(message, queue) for message in response.get("Messages") or ()]
        # The order of a FIFO queue's groups is that of the requests.
        queue.is_full = len(taken) == SQS_MAX_MESSAGES and not queue.is_fifo
        return taken


#: The attribute that says how many messages could be taken.
SIZE: Final = "ApproximateNumberOfMessages"
