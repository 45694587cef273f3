"""SQS as a store of leased messages: a lease is SQS' visibility timeout.

Rules
-----
- Every queue that has room is polled by one request that waits at SQS, whoever consumes from it here;
  where there are more such queues than connections for polls, they take turns of a second.
- Messages are sent, deleted and given back ten at a time, which is what SQS takes.  Each of the ten
  has its own outcome.
- Batches for one FIFO queue are sent one after another in the order in which they came; what SQS
  refuses of one is not repeated, since what came behind it is stored already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from gevent.lock import BoundedSemaphore

from greenconn.broker.port import Answer, Claimed, Entry, Settlement, Store
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.identity import uuid
from greenconn.transport.SQS.account import Accounts, HttpClients
from greenconn.transport.SQS.batch import SQS_MAX_MESSAGES, together
from greenconn.transport.SQS.envelope import opened
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
from greenconn.transport.SQS.queues import Queues, SqsQueue
from greenconn.transport.SQS.sending import Sending
from greenconn.transport.SQS.service import Service
from greenconn.transport.SQS.settling import Settling
from greenconn.transport.SQS.topics import Topics, exchange_of
from greenconn.transport.virtual.declaration import Declaration

if TYPE_CHECKING:
    from gevent import Greenlet

__all__ = ["SqsStore"]

logger = logging.getLogger("greenconn.transport.SQS")

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
            LinkLost: nobody answers.
        """
        service = self._accounts.main.service("sqs", self._clients, deadline)
        self.queues = Queues(
            service,
            self._options,
            partial(self._service, "sqs"),
            self._accounts.declared,
        )
        self.topics = Topics(self._options, self.queues, partial(self._service, "sns"))
        self._sending = Sending(self._options, self.queues, self.topics, self._is_gone)
        self._settling = Settling(
            self._options, self._sending, self.queues, self._is_gone, self.unless_refused
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
        """Whether there is a queue (or a topic).  May switch."""
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
            self._settling.delete(queue, [each.handle for each in taken])

    # -- messages

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """Send messages.  May switch."""
        return self._sending.put(entries)

    def settle(self, answers: Sequence[Answer]) -> None:
        """Delete messages, or give them back.  May switch."""
        self._settling.settle(answers)

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Hide messages for another lease; return those that are no longer ours.  May switch."""
        return self._settling.renew(handles, self._lease)

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
            self._give_back(taken)

    def _give_back(self, taken: Sequence[Claimed]) -> None:
        """Nobody wants them any more; so they need not wait for the end of their leases."""
        try:
            self._settling.settle(
                [Answer(each.handle, Settlement.BACK, is_unseen=True) for each in taken]
            )
        except LinkLost:
            pass  # then they do

    def abandon(self, queue: str) -> None:
        """Let the claim of a queue return; its poll goes on, and gives back what it brings."""
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
            # So that the answer to a request that is sent again is the same.
            more["ReceiveRequestAttemptId"] = uuid()
        try:
            answer = queue.call(
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
        taken = [opened(message, queue) for message in answer.get("Messages") or ()]
        # The order of a FIFO queue's groups is that of the requests.
        queue.is_full = len(taken) == SQS_MAX_MESSAGES and not queue.is_fifo
        return taken


#: The attribute that says how many messages could be taken.
SIZE: Final = "ApproximateNumberOfMessages"
