"""SQS as a store of leased messages, where a lease is a visibility timeout.

Theory.  A message is received with a visibility timeout.  An ack deletes it; a requeue or a delayed
retry changes its visibility timeout, and so does the renewal of a lease.  The rules:

- Each queue that has room for messages is long-polled by one request, for all its consumers in this
  process.  If there are more such queues than connections for polls, each polls for a second in turn.
- Messages are sent, deleted and requeued ten at a time, which is SQS's limit for a request.  Each of
  the ten has its own result.
- Batches for a FIFO queue are sent one after another, in order.  A message that SQS refuses is not sent
  again, since the messages after it are stored already.

A message has kombu's envelope as JSON for its body, in base64 by default.
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import ceil
from time import time
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeVar
from weakref import ref

from gevent import joinall
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from greenconn.broker.envelope import UNSENDABLE, envelope_json, read_envelope, unsendable
from greenconn.broker.port import Claimed, Entry, NoQueue, Settlement, SettleRequest, Store
from greenconn.broker.queues import Declaration
from greenconn.exceptions import ContentTooLarge
from greenconn.green.deadline import NEVER, Deadline, marking_thrown
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.identity import uuid
from greenconn.transport.SQS.queues import (
    FIFO,
    SQS_MAX_MESSAGES,
    Queues,
    SqsQueue,
    Topics,
    exchange_of,
)
from greenconn.transport.SQS.service import (
    REFUSED,
    AccessDeniedQueueException,
    Accounts,
    DoesNotExistQueueException,
    HttpClients,
    InvalidQueueException,
    LinkLost,
    Service,
    ServiceBusy,
    UndefinedQueueException,
)

if TYPE_CHECKING:
    from gevent import Greenlet

    from greenconn.transport.SQS import SQSOptions

logger = logging.getLogger("greenconn.transport.SQS")

T = TypeVar("T")

#: Bytes of one request: the limit before August 2025, which queues and stand-ins may still have.
MAX_BYTES: Final = 256 * 1024
#: Seconds of a poll while other queues wait for a connection.
SHORT_POLL: Final = 1
#: The attribute with the number of visible messages.
SIZE: Final = "ApproximateNumberOfMessages"
#: The system attribute with the number of times that a message was received.
RECEIVE_COUNT: Final = "ApproximateReceiveCount"
#: Seconds that SQS keeps a message back at most.
MAX_DELAY_SECONDS: Final = 900
#: The property that says when a message is too old, in seconds since 1970: SQS has no such thing.
EXPIRES_AT: Final = "x-expires-at"
#: The members of a message attribute.
ATTRIBUTE: Final[Mapping[str, type | tuple[type, ...]]] = {
    "DataType": str,
    "StringValue": str,
    "BinaryValue": (bytes, str),
}
#: The message group where a message names none (kombu's).
DEFAULT_GROUP: Final = "default"


class Receiver:
    """The requests for messages of one link.

    It refers neither to the store nor to the link.  The hub holds the greenlet of a request that waits
    at SQS, and with it all that the greenlet refers to: a connection that the program has dropped
    could not be collected before the end of its long polls.
    """

    def __init__(self, options: SQSOptions) -> None:
        self._options = options
        self._lease = int(options.lease)
        self._polls = BoundedSemaphore(options.poll_connections)
        #: The number of queues that wait for a connection to poll with.
        self._waiting = 0

    def poll(self, queue: SqsQueue, count: int, wait: float) -> Sequence[Claimed]:
        """Receive messages; wait at SQS for the first one up to *wait* seconds.  May switch."""
        self._waiting += 1
        try:
            self._polls.acquire()
        finally:
            self._waiting -= 1
        try:
            seconds = SHORT_POLL if self._waiting else max(int(wait), 1)
            return self._receive_many(queue, count) or self.receive(queue, count, seconds)
        finally:
            self._polls.release()

    def _receive_many(self, queue: SqsQueue, count: int) -> list[Claimed]:
        """Receive more than ten messages by concurrent requests, if the last one was full."""
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
            parts.append(self.receive(queue, count, 0))
        except (*REFUSED, LinkLost):
            pass  # the next poll reports it; the messages of the other requests are not lost

    def receive(self, queue: SqsQueue, count: int, seconds: int) -> list[Claimed]:
        """Receive messages by one request that waits *seconds* seconds at SQS.  May switch.

        Raises:
            DoesNotExistQueueException: the queue was deleted.
        """
        options = self._options
        more: dict[str, Any] = {}
        if options.message_attributes:
            more["MessageAttributeNames"] = options.message_attributes
        if queue.is_fifo:
            # With this a repeated request returns the same messages.
            more["ReceiveRequestAttemptId"] = uuid()
        response = queue.call(
            "ReceiveMessage",
            waiting=seconds,
            MaxNumberOfMessages=min(count, SQS_MAX_MESSAGES),
            WaitTimeSeconds=seconds,
            VisibilityTimeout=self._lease,
            MessageSystemAttributeNames=options.system_attributes,
            **more,
        )
        taken = [opened(message, queue) for message in response.get("Messages") or ()]
        # Concurrent requests would break the order of a FIFO queue.
        queue.is_full = len(taken) == SQS_MAX_MESSAGES and not queue.is_fifo
        return taken


class SqsStore(Store):
    """The store of one link over SQS.

    Arguments:
        client: the connection, for its TLS options.
        wake: see :class:`~greenconn.broker.port.Store`.
        accounts: the accounts of the transport, which outlive the link.
        options: the options of the transport.
    """

    #: Messages of a claim, which is a few concurrent requests.
    claim_limit: ClassVar[int] = 4 * SQS_MAX_MESSAGES
    put_limit: ClassVar[int] = SQS_MAX_MESSAGES
    #: Concurrent requests that send.  Standard queues have no order; for FIFO queues see the rules.
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
        self.accounts = accounts
        self.options = options
        self._clients = HttpClients(options, client.ssl)
        self._receiver = Receiver(options)
        #: Queues -> the claims that wait for their polls, with their slots.
        self._claims: dict[str, tuple[object, Slot[Sequence[Claimed]]]] = {}
        self._polling: set[Greenlet[..., Any]] = set()
        #: FIFO queues -> the end of the last turn to send to it.
        self._turns: dict[str, Event] = {}
        self.queues: Queues
        self.topics: Topics

    # -- life

    def open(self, deadline: Deadline) -> None:
        """Find credentials and endpoint, and check them with a request.  May switch.

        Raises:
            LoginRefused: SQS refused the credentials.
            LinkLost: SQS did not respond.
        """
        service = self.accounts.main.service("sqs", self._clients, deadline)
        self.queues = Queues(self, service)
        self.topics = Topics(self)
        predefined = self.options.predefined_queues
        try:
            if predefined:
                self.queues.get(next(iter(predefined))).attributes("QueueArn")
            else:
                service.call(
                    "ListQueues",
                    deadline=deadline,
                    QueueNamePrefix=self.options.queue_name_prefix,
                    MaxResults=1,
                )
        except AccessDeniedQueueException:
            pass  # the credentials are valid, only this action is not permitted

    def service(self, name: str, settings: Mapping[str, Any]) -> Service:
        """Return ``sqs`` or ``sns`` for a predefined queue or exchange with *settings*.  May switch."""
        limit = Deadline(self.options.reply_timeout)
        return self.accounts.of(settings).service(name, self._clients, limit)

    def close(self) -> None:
        """Close the HTTP connections.  SQS itself has no connections.  Never switches."""
        self.drop()

    def drop(self) -> None:
        """End the polls and close the HTTP connections.  Never switches."""
        for greenlet in list(self._polling):
            greenlet.kill(block=False)
        self._clients.close()

    # -- queues

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        """Create a queue.  May switch.

        SQS does not store the declaration; this process keeps it.
        """
        self.queues.make(name, declaration)
        return self.queues.declaration(name)

    def find_queue(self, name: str) -> Declaration | None:
        """Return the declaration of a queue or topic; None if there is none.  May switch."""
        if exchange_of(name) is not None:
            return Declaration(durable=True)
        queue = self.queues.find(name)
        return None if queue is None else self.queues.declaration(name)

    def drop_queue(self, name: str) -> int:
        """Delete a queue and return the number of its messages.  May switch.

        Predefined queues are not deleted.
        """
        if self.options.predefined_queues:
            return 0
        queue = self.queues.find(name)
        if queue is None:
            return 0
        self.topics.leave(name)
        try:
            waited = self._size(queue)
            queue.call("DeleteQueue")
        except DoesNotExistQueueException:
            waited = 0
        self.queues.forget(queue)
        return waited

    def size(self, name: str) -> int:
        """Return SQS's estimate of the number of visible messages; 0 if it may not be asked.

        May switch.  A declaration tells the number, and who only publishes needs no right to read it.
        """
        queue = self.queues.get(name)
        if queue.is_uncounted:
            return 0
        try:
            return self._size(queue)
        except AccessDeniedQueueException as exc:
            queue.is_uncounted = True
            logger.info(
                "the number of messages in queue %r is not known, and declarations say 0: %s",
                name,
                exc,
                extra={"queue": name},
            )
            return 0

    def counts(self, names: Collection[str]) -> Mapping[str, tuple[int, int]]:
        """Return the numbers of waiting messages and of others' consumers.  May switch."""
        counts = {}
        for name in names:
            try:
                counts[name] = self.size(name), self.other_consumers(name)
            except (DoesNotExistQueueException, UndefinedQueueException):
                counts[name] = 0, 0  # it has ended
        return counts

    def _size(self, queue: SqsQueue) -> int:
        return int(queue.attributes(SIZE).get(SIZE, 0))

    def purge(self, name: str) -> int:
        """Purge a queue and return the number of its messages.  May switch.

        SQS takes up to a minute to delete them.
        """
        queue = self.queues.get(name)
        waited = self._size(queue)
        try:
            queue.call("PurgeQueue")
        except InvalidQueueException as exc:
            if "PurgeQueueInProgress" not in str(exc):
                raise
            # SQS purges a queue once a minute at most: receive and delete the messages instead.
            self._empty(queue)
        return waited

    def _empty(self, queue: SqsQueue) -> None:
        while taken := self._receive(queue, SQS_MAX_MESSAGES, 0):
            self._delete(queue, [claimed.handle for claimed in taken])

    # -- messages

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        """Send messages; return for each why it was not.  May switch."""
        outcomes: list[Exception | None] = [None] * len(entries)
        numbers: dict[str, list[int]] = {}
        for number, entry in enumerate(entries):
            numbers.setdefault(entry.queue, []).append(number)
        # Places are taken before anything switches: the order of the calls is that of the batches.
        turns = {name: self._take_turn(name) for name in numbers if name.endswith(FIFO)}
        try:
            together(
                partial(self._put_to, name, mine, entries, outcomes, turns.get(name))
                for name, mine in numbers.items()
            )
        finally:
            for _, done in turns.values():
                done.set()
        return outcomes

    def _take_turn(self, name: str) -> tuple[Event | None, Event]:
        """Queue up for a FIFO queue; return the end of the turn ahead, and that of this one."""
        ahead = self._turns.get(name)
        done = self._turns[name] = Event()
        return ahead, done

    def _put_to(
        self,
        name: str,
        numbers: Sequence[int],
        entries: Sequence[Entry],
        outcomes: list[Exception | None],
        turn: tuple[Event | None, Event] | None,
    ) -> None:
        """Send those of one queue."""
        if turn is not None and turn[0] is not None:
            turn[0].wait()
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
            turn[1].set()
        else:
            together(jobs)

    def _packed(self, entry: Entry) -> Packed:
        # Only kombu reads what comes out of a topic, and there it is not in base64.
        as_base64 = self.options.sqs_base64_encoding and exchange_of(entry.queue) is None
        ready = packed(entry, is_fifo=entry.queue.endswith(FIFO), as_base64=as_base64)
        limit = self.options.max_message_size
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
                errors = self.topics.publish(exchange, fields)
            else:
                queue = self.queues.get(name)
                retries = 0 if queue.is_fifo else self.options.retries
                errors = queue.batch("SendMessageBatch", fields, retries=retries)
        except REFUSED as exc:
            if queue is not None and isinstance(exc, DoesNotExistQueueException):
                self._is_gone(queue)
            errors = [exc] * len(fields)
        for (number, _), error in zip(batch, errors, strict=True):
            outcomes[number] = None if error is None else _unsent(error)

    def settle(self, requests: Sequence[SettleRequest]) -> None:
        """Delete messages, or make them visible again.  May switch."""
        by_queue: dict[str, list[SettleRequest]] = {}
        for request in requests:
            by_queue.setdefault(request.handle.queue, []).append(request)
        together(partial(self._settle, name, mine) for name, mine in by_queue.items())

    def _settle(self, name: str, requests: Sequence[SettleRequest]) -> None:
        """Settle messages of one queue."""
        queue = self._settled_queue(name)
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
        self._delete(queue, deleted)
        self._hide(queue, returned)

    def _settled_queue(self, name: str) -> SqsQueue | None:
        """Return the queue of received messages; None if it was deleted."""
        try:
            return self.queues.get(name)
        except REFUSED as exc:
            logger.warning(
                "%s: cannot acknowledge the messages received from it", exc, extra={"queue": name}
            )
            return None

    def _refused(self, request: SettleRequest) -> bool:
        """Publish the copies of a dead letter; return whether SQS refused one, so that it stays."""
        outcomes = self.put(request.entries)
        return self.unless_refused(request, outcomes).settlement is Settlement.REQUEUE

    def _delete(self, queue: SqsQueue, held: Sequence[Held]) -> None:
        """Delete messages.  May switch."""
        self._change(
            queue, "DeleteMessageBatch", [{"ReceiptHandle": each.receipt} for each in held]
        )

    def _hide(
        self, queue: SqsQueue, held: Sequence[tuple[Held, int]]
    ) -> Sequence[Exception | None]:
        fields = [
            {"ReceiptHandle": each.receipt, "VisibilityTimeout": delay} for each, delay in held
        ]
        return self._change(queue, "ChangeMessageVisibilityBatch", fields)

    def _change(
        self, queue: SqsQueue, action: str, fields: Sequence[Mapping[str, Any]]
    ) -> list[Exception | None]:
        """Send *action* for held messages; return the error of each, or None."""
        batches = list(batches_of_ten(fields))
        parts: list[list[Exception | None]] = [[] for _ in batches]

        def send(number: int, batch: list[Mapping[str, Any]]) -> None:
            try:
                parts[number] = queue.batch(action, batch, retries=self.options.retries)
            except REFUSED as exc:
                if isinstance(exc, DoesNotExistQueueException):
                    self._is_gone(queue)
                parts[number] = [exc] * len(batch)

        together(partial(send, number, batch) for number, batch in enumerate(batches))
        errors = [error for part in parts for error in part]
        for error in errors:
            # If the lease has ended, the message was redelivered already: there is nothing to log.
            if error is not None and not isinstance(error, InvalidQueueException):
                logger.warning(
                    "%s: messages are redelivered when their visibility timeout ends",
                    error,
                    extra={"queue": queue.name},
                )
                break
        return errors

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Renew the leases of messages; return those whose lease is lost.  May switch."""
        by_queue: dict[str, list[Held]] = {}
        for held in handles:
            by_queue.setdefault(held.queue, []).append(held)
        lost: list[Held] = []

        def renew(name: str, mine: list[Held]) -> None:
            queue = self._settled_queue(name)
            if queue is None:
                lost.extend(mine)
                return
            errors = self._hide(queue, [(each, self._lease) for each in mine])
            lost.extend(
                each
                for each, error in zip(mine, errors, strict=True)
                if isinstance(error, (InvalidQueueException, DoesNotExistQueueException))
            )

        together(partial(renew, name, mine) for name, mine in by_queue.items())
        return lost

    def redrives(self, name: str) -> bool:
        """Return whether SQS itself moves messages of a queue to a dead-letter queue.  May switch."""
        return self.queues.get(name).redrives()

    def _is_gone(self, queue: SqsQueue) -> None:
        self.queues.forget(queue)
        self.gone(queue.name)

    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        """Receive messages of one queue, with a long poll for the first.  May switch."""
        ((name, count),) = wanted.items()
        try:
            queue = self.queues.get(name)
            if not wait:
                return self._receive(queue, count, self.options.get_wait_time)
            return self._poll(queue, count, wait)
        except (DoesNotExistQueueException, UndefinedQueueException):
            self.gone(name)
        except ServiceBusy as exc:
            logger.warning("%s; receiving is retried", exc, extra={"queue": name})
        return ()

    def _receive(self, queue: SqsQueue, count: int, seconds: int) -> Sequence[Claimed]:
        try:
            return self._receiver.receive(queue, count, seconds)
        except DoesNotExistQueueException:
            self.queues.forget(queue)
            raise

    def _poll(self, queue: SqsQueue, count: int, wait: float) -> Sequence[Claimed]:
        """Long-poll a queue in a greenlet, which continues if the claim is abandoned."""
        slot: Slot[Sequence[Claimed]] = Slot()
        claim = object()
        self._claims[queue.name] = claim, slot
        greenlet = spawn(
            "sqs-poll", _poll_for, ref(self), self._receiver, claim, queue, count, wait
        )
        self._polling.add(greenlet)
        greenlet.rawlink(self._polling.discard)
        try:
            return slot.wait(NEVER)
        except DoesNotExistQueueException:
            self.queues.forget(queue)
            raise
        finally:
            self._end_claim(queue.name, claim)

    def _end_claim(self, queue: str, claim: object) -> Slot[Sequence[Claimed]] | None:
        """End a claim, and return its slot; None if it has ended.  Never switches."""
        known = self._claims.get(queue)
        if known is None or known[0] is not claim:
            return None
        del self._claims[queue]
        return known[1]

    def polled(self, queue: SqsQueue, claim: object, taken: Sequence[Claimed]) -> None:
        """Give the messages of a poll to its claim; requeue them if that has ended.  May switch."""
        slot = self._end_claim(queue.name, claim)
        if slot is None or not slot.offer(taken):
            self._requeue(taken)

    def poll_failed(self, queue: SqsQueue, claim: object, exc: Exception) -> None:
        """Make the claim of a poll raise *exc*.  Never switches."""
        slot = self._end_claim(queue.name, claim)
        if slot is not None:
            slot.fail(exc)

    def _requeue(self, taken: Sequence[Claimed]) -> None:
        """Requeue messages of an abandoned claim, so that they are visible before their lease ends."""
        try:
            self.settle(
                [SettleRequest(claimed, Settlement.REQUEUE, is_unseen=True) for claimed in taken]
            )
        except LinkLost:
            pass  # they are redelivered when their leases end

    def abandon(self, queue: str) -> None:
        """End the claim of a queue without messages.  Never switches.

        Its poll continues, and requeues the messages that it receives.
        """
        claimed = self._claims.pop(queue, None)
        if claimed is not None:
            claimed[1].offer(())


def batches_of_ten(
    things: Sequence[T], size_of: Callable[[T], int] | None = None
) -> Iterator[list[T]]:
    """Cut into what one request may hold, in order; what is too big for any comes alone."""
    batch: list[T] = []
    total = 0
    for thing in things:
        size = 0 if size_of is None else size_of(thing)
        if batch and (len(batch) == SQS_MAX_MESSAGES or total + size > MAX_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(thing)
        total += size
    if batch:
        yield batch


def together(jobs: Iterable[Callable[[], object]]) -> None:
    """Do all at the same time and return when all are done.  May switch.

    Raises:
        BaseException: the first that one of them raised.
    """
    todo = list(jobs)
    if len(todo) < 2:
        for job in todo:
            job()
        return
    errors: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            job()
        except Exception as exc:
            errors.append(exc)

    greenlets = [spawn("sqs", run, job) for job in todo]
    try:
        with marking_thrown():
            joinall(greenlets)
    finally:
        for greenlet in greenlets:
            greenlet.kill(block=False)
    if errors:
        raise errors[0]


def _unsent(exc: Exception) -> Exception:
    """Return the error of a message that was not stored."""
    if isinstance(exc, (DoesNotExistQueueException, UndefinedQueueException)):
        error = NoQueue(str(exc))
        error.__cause__ = exc
        return error
    return exc


def _delay_of(request: SettleRequest, queue: SqsQueue) -> int | None:
    """Return the seconds until the redelivery of a message.  May switch.

    Returns:
        None for no redelivery, -1 for one at the end of the lease.
    """
    if request.settlement is Settlement.ACK:
        return None
    held: Held = request.handle
    if not request.is_unseen and not request.entries:
        delay = queue.retry_delay(held.task, held.deliveries)
        if delay is not None:
            return delay
    if request.settlement is Settlement.REQUEUE:
        return int(request.delay)
    # Rejected for good.  A redrive policy acts only on messages that are redelivered often enough.
    return -1 if not request.entries and queue.redrives() else None


def _poll_for(
    store: ref[SqsStore],
    receiver: Receiver,
    claim: object,
    queue: SqsQueue,
    count: int,
    wait: float,
) -> None:
    """Poll, and give the outcome to the store, unless that was dropped meanwhile.  May switch."""
    try:
        taken = receiver.poll(queue, count, wait)
    except Exception as exc:
        if (living := store()) is not None:
            living.poll_failed(queue, claim, exc)
        return
    if (living := store()) is not None:
        living.polled(queue, claim, taken)


class Packed(NamedTuple):
    """A message as SQS takes it.

    Attributes:
        fields: of an entry of ``SendMessageBatch``, without its ``Id``.
        size: bytes that count against SQS' limits.
    """

    fields: dict[str, Any]
    size: int


class Held:
    """A message that was taken: what SQS wants to see again, and what is to be known to settle it.

    Attributes:
        queue: the name of its queue: who settles it may be another link.
        deliveries: how often it was taken, this time included.
        task: the name of its task, as Celery writes it.
    """

    __slots__ = ("deliveries", "queue", "receipt", "task")

    def __init__(self, queue: str, receipt: str, deliveries: int, task: str | None) -> None:
        self.queue = queue
        self.receipt = receipt
        self.deliveries = deliveries
        self.task = task


def packed(entry: Entry, *, is_fifo: bool, as_base64: bool) -> Packed:
    """Make what is sent.

    Raises:
        ValueError: a header or property is nothing for JSON.
        InvalidQueueException: a delay is longer than SQS has it.
    """
    envelope = entry.envelope
    properties: Mapping[str, Any] = envelope.get("properties") or {}
    headers: Mapping[str, Any] = envelope.get("headers") or {}
    attributes = properties.get("message_attributes")
    delay = _delay_seconds(entry, is_fifo)
    if entry.lifetime is not None:
        properties = {**properties, EXPIRES_AT: time() + delay + entry.lifetime}
        envelope = {**envelope, "properties": properties}
    if attributes is not None or "sqs_message" in (properties.get("delivery_info") or {}):
        envelope = {**envelope, "properties": _without_ours(properties)}
    try:
        text = envelope_json(envelope)
    except UNSENDABLE:
        raise unsendable(headers, properties) from None
    fields: dict[str, Any] = {
        "MessageBody": b64encode(text.encode()).decode() if as_base64 else text
    }
    size = len(fields["MessageBody"])
    if attributes:
        fields["MessageAttributes"] = written = message_attributes(attributes)
        size += sum(
            len(name) + sum(map(len, attribute.values())) for name, attribute in written.items()
        )
    group = _either(properties, headers, "MessageGroupId")
    if group is not None:
        fields["MessageGroupId"] = group
    if is_fifo:
        fields.setdefault("MessageGroupId", DEFAULT_GROUP)
        # Without one of its own each message is another; said again it is the same.
        fields["MessageDeduplicationId"] = (
            _either(properties, headers, "MessageDeduplicationId") or uuid()
        )
    if delay:
        fields["DelaySeconds"] = delay
    return Packed(fields, size)


def _either(properties: Mapping[str, Any], headers: Mapping[str, Any], name: str) -> str | None:
    value = properties.get(name, headers.get(name))
    return None if value is None else str(value)


def _delay_seconds(entry: Entry, is_fifo: bool) -> int:
    """Return the whole seconds for which SQS delays a message."""
    if entry.delay > (0 if is_fifo else MAX_DELAY_SECONDS):
        raise InvalidQueueException(
            f"queue {entry.queue!r}: a delay must be at most {MAX_DELAY_SECONDS} s (limit of SQS), and "
            f"0 for a FIFO queue, got {entry.delay:g} s"
        )
    properties = entry.envelope.get("properties") or {}
    asked = properties.get("delay_seconds", properties.get("DelaySeconds"))
    if asked is None:
        return ceil(entry.delay)
    try:
        seconds = int(asked)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"delay_seconds must be a number of seconds, got {asked!r}") from None
    most = 0 if is_fifo else MAX_DELAY_SECONDS
    if not 0 <= seconds <= most:
        # As kombu has it for these names.
        logger.warning(
            "queue %r: delay_seconds must be from 0 to %d, got %d: the nearest limit is used",
            entry.queue,
            most,
            seconds,
            extra={"queue": entry.queue},
        )
    return max(min(seconds, most), ceil(entry.delay), 0)


def _without_ours(properties: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: each for name, each in properties.items() if name != "message_attributes"}
    info = dict(own.get("delivery_info") or {})
    for name in ("sqs_message", "sqs_queue"):
        info.pop(name, None)
    return {**own, "delivery_info": info}


def message_attributes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as botocore takes them; plain values get their type.

    Raises:
        ValueError: one of those that are dicts cannot be sent.
    """
    return {name: _typed(name, value) for name, value in given.items()}


def _typed(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        if any(not isinstance(each, ATTRIBUTE.get(key, ())) for key, each in value.items()):
            raise ValueError(
                f"message attribute {name!r} must have a DataType and a StringValue, all strings, or "
                f"a BinaryValue of bytes, got {list(value)}"
            )
        return dict(value)
    if isinstance(value, bytes):
        return {"DataType": "Binary", "BinaryValue": value}
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {"DataType": "Number" if is_number else "String", "StringValue": str(value)}


def opened(message: Mapping[str, Any], queue: Any) -> Claimed:
    """Read what was taken.

    What is not of kombu's form is a message whose body is its text, as kombu has it; everything else
    that SQS said is in ``delivery_info["sqs_message"]``.

    Arguments:
        queue: where it was, with ``name`` and ``url``.
    """
    body: str = message.get("Body") or ""
    text = body
    if body[:1] != "{":
        try:
            text = b64decode(body, validate=True).decode()
        except ValueError:
            pass  # it is no base64, or of what is no text: a foreign message
    envelope = _envelope(text)
    properties = envelope["properties"]
    info = properties.get("delivery_info")
    if not isinstance(info, dict):
        info = properties["delivery_info"] = {}
    info["sqs_message"] = message
    info["sqs_queue"] = queue.url
    headers = envelope.get("headers")
    task = headers.get("task") if isinstance(headers, dict) else None
    try:
        count = int((message.get("Attributes") or {}).get(RECEIVE_COUNT, 1))
    except (TypeError, ValueError):
        count = 1
    held = Held(
        queue.name, message["ReceiptHandle"], count, task if isinstance(task, str) else None
    )
    end = properties.get(EXPIRES_AT)
    is_old = isinstance(end, (int, float)) and end <= time()
    dead = "expired" if is_old else None
    return Claimed(queue.name, envelope, held, deliveries=max(count - 1, 0), dead=dead)


def _envelope(text: str) -> dict[str, Any]:
    if text[:1] == "{":
        try:
            read = read_envelope(text)
        except (ValueError, RecursionError):
            read = None
        if isinstance(read, dict) and isinstance(read.get("properties"), dict):
            return read
    return {
        "body": text,
        "content-type": None,
        "content-encoding": None,
        "headers": {},
        "properties": {"delivery_info": {}},
    }
