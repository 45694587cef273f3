"""The subscriptions of a consumer: the queues that it consumes from, begun again after each loss.

A reader of a stream also has a stored offset, and with ``single_active`` the right to read, which one
reader of a name has at a time.

The shards of a queue are divided among the processes that consume it.  Each shard is a queue with a
single active consumer, so only one process handles it.  All processes subscribe to all shards: when one
ends, the broker activates the next one at once.  The broker does not divide the shards, though: the
first process is active on all of them.  So a process that is active on more than its share gives one up
after the other.  It lets the handlers of that shard end, closes its channel, by which the broker gets
the other messages back in their order, and subscribes again, behind the others.

A shard from which no message has come is not counted: it costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from enum import Enum
from functools import partial
from random import choice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from gevent import Timeout, sleep

from greenconn.common import Broadcast
from greenconn.entity import Queue
from greenconn.entity.declaration import (
    Expectation,
    ensure_declared,
    ensure_queue_exists,
    expect_queue,
    is_defined_by_consumer,
    note_deleted,
)
from greenconn.exceptions import (
    NEVER_REPEATED,
    AccessRefused,
    AMQPError,
    ChannelError,
    ConsumerCancelled,
    InternalError,
    IrrecoverableConnectionError,
    KombuError,
    NotFound,
    RecoverableChannelError,
    RecoverableConnectionError,
    Unroutable,
    error_summary,
    error_text,
    is_denied_feature,
    is_unavailable,
)
from greenconn.green.deadline import Deadline, TimeLimit
from greenconn.green.retry import Backoff, RetryPolicy
from greenconn.green.supervisor import OnDemand, Ticker, spawn
from greenconn.identity import uuid
from greenconn.publishing import publish
from greenconn.session.connect import is_lockout
from greenconn.streams import OFFSET, StreamPosition
from greenconn.worker.options import ConsumerOptions, QueueLike

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.message import Message
    from greenconn.session.session import Session
    from greenconn.transport.base import Link
    from greenconn.worker.group import SharedChannel
    from greenconn.worker.lifecycle import ConsumerLifecycle


logger = logging.getLogger("greenconn.worker")

#: Messages that an active reader may have: the token, and the one that replaces it.
TOKEN_PREFETCH: Final = 2
#: Seconds after which a reader publishes another token; the consumer timeout is 30 minutes.
TOKEN_RENEWAL_INTERVAL: Final = 300.0
#: Seconds that the broker may take to confirm a token.
TOKEN_TIMEOUT: Final = 30.0

CONSUMING: Final = RetryPolicy(first=0.1, longest=10.0, immediate=1)
#: Seconds of a pause at most for a queue that exists, and whose node is away or has no leader.
LONGEST_AWAY: Final = 1.0
#: A consumer that ran for so many seconds begins its back-off after losses anew.
STABLE_AFTER: Final = 10.0
#: How often the broker may end the whole connection for what we ask before we stop asking, and how
#: often it may not find a queue that we have just declared.
MAX_FAILURES: Final = 3
#: The same for internal errors of the broker (541) that may pass: RabbitMQ 3.10 can have them for
#: seconds after a quorum queue was deleted and declared again.  With the back-off about half a minute.
MAX_INTERNAL_ERRORS: Final = 10
#: Classes of AMQP methods, and methods of the class basic (qos, consume), that a start sends.
_OWN_CLASSES: Final = frozenset({20, 40, 50})
_OWN_METHODS: Final = frozenset({(60, 10), (60, 20)})


class Sink:
    """The receiver of the deliveries of one subscription, during one life of it.

    Attributes:
        deliver: takes a message over; called by the reader.
        taken, keeps_order: see :class:`greenconn.abc.Sink`.
        is_confirmed: the broker has replied.
        lost: why no more will come; None while it may.
    """

    __slots__ = ("_owner", "channel", "deliver", "is_confirmed", "keeps_order", "lost", "taken")

    def __init__(self, owner: Subscription, channel: Channel, put: Callable[[Any], None]) -> None:
        self._owner = owner
        self.channel = channel
        self.deliver = put
        self.taken: Callable[[Any], None] | None = None
        self.keeps_order = owner.keeps_order
        self.is_confirmed = False
        self.lost: BaseException | None = None

    def cancelled(self, exc: BaseException) -> None:
        """Note that the consumer is gone.  Called by the reader."""
        if self.lost is None:
            self.lost = exc
            self._owner.on_lost(self, exc)

    def requeue_unseen(self) -> None:
        """Put back what no handler has begun with, see :class:`greenconn.abc.Sink`.  May switch."""
        self._owner.requeue_unseen(self)


class CountedSink(Sink):
    """A sink that is called when a message is taken out: see :func:`release`."""

    __slots__ = ("_put",)

    def __init__(self, owner: Subscription, channel: Channel, put: Callable[[Any], None]) -> None:
        super().__init__(owner, channel, self._put_counted)
        self._put = put

    def _put_counted(self, message: Message) -> None:
        message.__dict__["sink"] = self
        self._put(message)


class Subscription:
    """A queue that a consumer consumes from, over all lives of its connection.

    Arguments:
        consumer: its life.
        queue: a name, or a ``Queue`` to declare.
        prefetch: messages that may be unacked; 0 is no limit.
        right: says whether it may read; None: it may.

    Attributes:
        tag: consumer tag; it stays the same over reconnects, not after the broker has cancelled it.
        was_confirmed: the broker has confirmed it at least once.
        fails_alone: its request was refused before, so it gets a channel of its own.
    """

    __slots__ = (
        "_consumer",
        "_expectation",
        "_first_tag",
        "_options",
        "_position",
        "_queue",
        "_recorder",
        "_right",
        "_shared",
        "_sink",
        "_tag_number",
        "fails_alone",
        "prefetch",
        "tag",
        "was_confirmed",
    )

    def __init__(
        self,
        consumer: ConsumerLifecycle,
        queue: QueueLike,
        prefetch: int,
        right: ActiveReader | None = None,
        options: ConsumerOptions | None = None,
    ) -> None:
        self._consumer = consumer
        self._options = options = options or consumer.options
        self._queue = queue
        self._right = right
        offset = options.offset_of(queue)
        self._position = None if offset is None else StreamPosition(offset)
        self._recorder: OffsetRecorder | None = None
        if options.offsets is not None and self._position is not None:
            self._recorder = OffsetRecorder(options, self.name, self._position)
        self._sink: Sink | None = None
        self._shared: SharedChannel | None = None
        #: While publishers that know only the queue's name wait for us to declare it.
        self._expectation: Expectation | None = None
        self.prefetch = prefetch
        self.tag = self._first_tag = f"{options.tag_prefix}{uuid()}"
        self._tag_number = 1
        self.was_confirmed = False
        # A consumer in order gives its messages back with its channel.
        self.fails_alone = options.exclusive or options.keeps_order

    def __repr__(self) -> str:
        state = "confirmed" if self.is_confirmed else "not confirmed"
        return f"<Subscription {self.tag!r} to queue {self.name!r}: {state}>"

    @property
    def name(self) -> str:
        """Name of the queue."""
        return self._queue.name if isinstance(self._queue, Queue) else self._queue

    @property
    def outlives_consumer(self) -> bool:
        """Whether the queue, as far as its consumer knows, is there when its consumers are gone."""
        queue = self._queue
        if self._position is not None:
            return False  # a stream, which takes no message back
        return not isinstance(queue, Queue) or not (queue.exclusive or queue.auto_delete)

    @property
    def keeps_order(self) -> bool:
        """Whether its messages are requeued in their order, with the end of its channel."""
        return self._options.keeps_order

    @property
    def is_nameless(self) -> bool:
        """Whether the name of the queue was made up, by the broker or for this consumer."""
        queue = self._queue
        if isinstance(queue, Broadcast):
            return queue.is_made_up
        return isinstance(queue, Queue) and queue._named_on is not None

    @property
    def arguments(self) -> dict[str, Any] | None:
        """Arguments of the queue as its consumer has them; None if that was given a name only."""
        return self._queue.queue_arguments or {} if isinstance(self._queue, Queue) else None

    @property
    def is_stream(self) -> bool:
        """Whether the queue is known to be a stream, which keeps what was read."""
        return self._position is not None

    def is_shown_to_others(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether the queue may hold messages that are not for this consumer.

        Arguments:
            arguments: of the queue, as far as they are known.
        """
        return (
            self.is_stream
            or arguments.get("x-queue-type") == "stream"
            or bool(arguments.get("x-single-active-consumer"))
        )

    @property
    def is_passive(self) -> bool:
        """Whether a queue that does not exist is an error."""
        if isinstance(self._queue, Queue):
            return self._options.passive or bool(self._queue.no_declare)
        return self._options.passive or not self._options.declares_names

    @property
    def is_confirmed(self) -> bool:
        """Whether the broker has confirmed it and nothing has been lost since.

        One that may not read is confirmed while it does not.
        """
        sink = self._sink
        is_reading = sink is not None and sink.is_confirmed and sink.lost is None
        return is_reading if self._right is None else is_reading is self._right.is_held

    @property
    def must_stand_down(self) -> bool:
        """Whether it reads, and another reader of its name may have begun."""
        return self._right is not None and not self._right.is_held and not self.is_confirmed

    def _new_tag(self) -> str:
        # It begins as the first one does, so that messages of a former tag are known as its own.
        self._tag_number += 1
        return f"{self._first_tag}.{self._tag_number}"

    def has_received(self, message: Message) -> bool:
        """Return whether *message* came to it, under its present consumer tag or a former one."""
        tag = message.delivery_info.get("consumer_tag")
        return tag is not None and tag.startswith(self._first_tag)

    # Beginning

    def expect(self) -> None:
        """Have those who publish by the queue's name wait until it is declared.  Never switches."""
        is_named_stream = self._position is not None and isinstance(self._queue, str)
        if self._expectation is None and self.name and not self.is_passive and not is_named_stream:
            self._expectation = expect_queue(self._consumer.session, self._queue)

    def stop_expecting(self) -> None:
        """End the wait for the declaration.  Never switches.  A second call does nothing."""
        expectation, self._expectation = self._expectation, None
        if expectation is not None:
            expectation.settle()

    def must_wait(self) -> bool:
        """Return whether another consumer is about to declare the queue, known only by its name here."""
        session = self._consumer.session
        return isinstance(self._queue, str) and is_defined_by_consumer(session, self._queue)

    def start(self) -> None:
        """Ensure that the queue exists, and consume from it.  May switch.

        Raises:
            Exception: what the broker or the connection did; nothing is left behind.
        """
        session, channels = self._consumer.session, self._consumer.group.channels
        link = session.link()
        self._ensure_queue(session, link)
        self.stop_expecting()
        self._release()
        shared = channels.acquire(link, self.prefetch, is_private=self.fails_alone)
        try:
            with shared.lock:
                channel = shared.open(session.broker.transport)
            self._consume(channel)
        except BaseException:
            channels.release(shared)
            raise
        self._shared = shared

    def _ensure_queue(self, session: Session, link: Link) -> None:
        deadline = Deadline()
        queue = self._queue
        if self._recorder is not None:
            self._recorder.load()
        if self._position is not None:
            self._look_for_stream(session, deadline)
        if isinstance(queue, str):
            ensure_queue_exists(session, queue, deadline, passive=self.is_passive)
        elif self.is_passive:
            ensure_queue_exists(session, queue.name, deadline, passive=True)
        elif queue._named_on is not link:  # what the broker named here cannot be declared again
            ensure_declared(session, queue, deadline)

    def _look_for_stream(self, session: Session, deadline: Deadline) -> None:
        """Check whether a stream that was read is still there.  May switch.

        Raises:
            NotFound: it is not, and was given by its name: what we would declare is no stream.
        """
        assert self._position is not None
        is_named = isinstance(self._queue, str)
        if not is_named and not self._position.has_read:
            return
        try:
            ensure_queue_exists(session, self.name, deadline, passive=True)
        except NotFound as exc:
            if not is_unavailable(exc):
                self._position.begin_anew()
            if is_named:
                raise

    def _consume(self, channel: Channel) -> None:
        """Ask the broker for messages on *channel*.  May switch."""
        options = self._options
        sink = self._sink = self._new_sink(channel)
        arguments = options.consume_arguments()
        if isinstance(self._queue, Queue) and self._queue.consumer_arguments:
            arguments = {**self._queue.consumer_arguments, **arguments}
        if self._position is not None:
            arguments[OFFSET] = self._position.restart()
        try:
            channel.basic_consume(
                queue=self.name,
                consumer_tag=self.tag,
                no_ack=options.no_ack,
                exclusive=options.exclusive,
                arguments=arguments or None,
                sink=sink,
            )
        except BaseException as exc:
            # The channel undoes what the broker does of it after all; not here: RabbitMQ 3.10 ends the
            # connection when it is asked to cancel a consumer that it has not confirmed yet.
            sink.lost = exc
            self._sink = None
            self.tag = self._new_tag()
            raise
        self.was_confirmed = sink.is_confirmed = True
        if self._position is not None:
            self._position.note_begin()
        if sink.lost is not None:
            raise RecoverableChannelError(
                f"consumer {self.tag!r} was lost as soon as it was started: {sink.lost}"
            ) from sink.lost

    def _abandon(self, channel: Channel) -> None:
        """Cancel without a reply, when killed while waiting for it: late messages are requeued."""
        tag = self.tag
        # What is done late about the old tag must not hit the next attempt.
        self.tag = self._new_tag()
        if channel.is_open:
            try:
                channel.basic_cancel(tag, nowait=True)
            except Exception:
                pass  # the channel is gone, and the consumer with it

    def _receiver(self) -> Callable[[Any], None]:
        """Return the function that takes a message over; it is called by the reader."""
        return self._consumer.dispatcher.put

    def _new_sink(self, channel: Channel) -> Sink:
        put = self._receiver()
        if self._position is not None:
            put = self._position.watching(put)
        if self._recorder is not None:
            put = self._recorder.counting(put)
        return (CountedSink if self._options.is_unbounded else Sink)(self, channel, put)

    # Ending

    def on_lost(self, sink: Sink, exc: BaseException) -> None:
        """Note that the consumer of *sink* is gone.  Called by the reader."""
        if sink is not self._sink:
            return
        self._consumer.on_lost(self, sink.channel, exc)
        if isinstance(exc, ConsumerCancelled):
            # The broker may still know the old one, and what comes late must not hit the next life.
            self.tag = self._new_tag()

    def requeue_unseen(self, sink: Sink) -> None:
        """Put back what no handler has begun with.  May switch."""
        if sink is self._sink:
            self._consumer.requeue_of(sink.channel)

    def forget_declaration(self) -> None:
        """Forget that the queue was declared: it was deleted, and is looked up or declared again."""
        queue = self._queue
        note_deleted(self._consumer.session, queue)
        if isinstance(queue, Queue) and queue._named_on is not None:
            queue.name, queue._named_on = "", None

    def cancel(self, *, nowait: bool = False) -> None:
        """Have the broker send no more.  May switch.

        What came before the broker's reply is in the dispatcher when this returns.

        Arguments:
            nowait: do not wait for the reply; late messages are requeued.
        """
        sink = self._sink
        if sink is None or sink.lost is not None:
            self._release()
            return
        try:
            if sink.channel.is_open:
                sink.channel.basic_cancel(self.tag, nowait=nowait)
        except BaseException:
            if not nowait:
                self._abandon(sink.channel)
            raise
        finally:
            sink.lost = ConsumerCancelled(f"consumer {self.tag!r} was cancelled by its program")
            self._release()

    def close(self) -> None:
        """End with its channel: the broker gets all unacked messages back at once.  May switch."""
        sink = self._sink
        try:
            if sink is not None and sink.lost is None:
                sink.lost = ConsumerCancelled(f"consumer {self.tag!r} was cancelled by its program")
                sink.channel.close()
        finally:
            self._release()

    @property
    def channel(self) -> Channel | None:
        """The channel that it was begun on last; None before."""
        return None if self._sink is None else self._sink.channel

    def stand_down(self) -> None:
        """Read no more until it may again.  May switch."""
        if self._recorder is not None:
            self._recorder.stand_down()
        self.cancel()

    def store_offset(self, deadline: Deadline) -> None:
        """Store the last offset of a stream, once nothing is handled any more.  May switch."""
        if self._recorder is not None:
            self._recorder.finish(deadline)

    def forget(self) -> None:
        """Store no more offsets after a fork, in the child.  Never switches."""
        if self._recorder is not None:
            self._recorder.stop()

    def _release(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            self._consumer.group.channels.release(shared)


class OffsetRecorder:
    """The stored offset of one reader of one stream: loaded when it begins, stored while it reads.

    It is stored after so many messages, after so many seconds, and when the reader ends, if it has
    changed.  What is stored is the offset of the first message that is not settled, so after a crash the
    messages since then are handled again, and none is left out.

    One greenlet stores at a time, and nothing kills it, so that an older offset never replaces a newer
    one.

    Arguments:
        options: of the reader, which has a store.
        stream: its name.
        position: the reader's.
    """

    def __init__(self, options: ConsumerOptions, stream: str, position: StreamPosition) -> None:
        assert options.offsets is not None
        self._store = options.offsets
        self._stream = stream
        self._reader = reader = options.name or ""
        self._position = position
        self._every = options.store_every
        self._ticker = Ticker(options.store_interval, self._on_tick, f"offset of {reader}@{stream}")
        #: Messages since it was stored.
        self._count = 0
        self._stored: int | None = None
        self._is_loaded = False
        self._has_failed = False
        self._storing = OnDemand("store-offset", self._store_latest)
        #: Whether it is to be stored, by the greenlet that is storing if there is one.
        self._is_wanted = False

    def load(self) -> None:
        """Begin where the reader has ended, once until it stands down.  May switch.

        Raises:
            Exception: what the store raised.
        """
        if self._is_loaded:
            return
        offset = self._store.load(self._stream, self._reader)
        if offset is not None:
            # Where this one was before it stood down may not have been stored.
            self._position.begin_at(max(offset, self._position.settled_before or 0))
        self._stored = offset
        self._is_loaded = True
        self._ticker.start()

    def counting(self, put: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return *put*, with a count of the messages."""

        def put_and_count(message: Message) -> Any:
            self._count += 1
            if self._count >= self._every:
                self._begin()
            return put(message)

        return put_and_count

    @property
    def _due(self) -> int | None:
        """The offset that is to be stored; None while there is nothing new."""
        offset = self._position.settled_before
        return None if offset == self._stored or not self._is_loaded else offset

    def _on_tick(self, lag: float) -> None:
        # In the hub.
        if self._due is not None:
            self._begin()

    def _begin(self) -> None:
        self._count = 0
        self._is_wanted = True
        self._storing.start()

    def _store_latest(self) -> None:
        try:
            while self._is_wanted:
                self._is_wanted = False
                offset = self._due
                if offset is not None:
                    self._store.store(self._stream, self._reader, offset)
                    self._stored = offset
                    self._has_failed = False
        except Exception as exc:
            level = logging.DEBUG if self._has_failed else logging.WARNING
            self._has_failed = True
            logger.log(
                level,
                "offset of reader %r in stream %r was not stored, trying again: %s",
                self._reader,
                self._stream,
                error_summary(exc),
                extra={"queue": self._stream, "consumer": self._reader},
            )

    def finish(self, deadline: Deadline) -> None:
        """Store the last offset, if that can be done before *deadline*.  May switch.

        After that :meth:`load` begins anew.
        """
        while self._due is not None and not deadline.has_ended:
            is_last = self._storing.greenlet is None
            self._begin()
            assert self._storing.greenlet is not None
            self._storing.greenlet.join(deadline.left())
            if is_last:
                break
        self.stand_down()

    def stand_down(self) -> None:
        """Store nothing until :meth:`load` is called again: another reader may.  Never switches."""
        self._ticker.stop()
        self._is_loaded = False

    def stop(self) -> None:
        """Store no more by itself.  Never switches."""
        self._ticker.stop()


def token_queue(stream: str, reader: str) -> Queue:
    """Return the queue that makes one reader of a name active.  Never switches."""
    return Queue(
        f"active.{reader}@{stream}",
        max_length=1,
        queue_arguments={"x-queue-type": "quorum", "x-single-active-consumer": True},
    )


class ActiveReader(Subscription):
    """The right to read a stream, which one reader of a name has at a time.

    RabbitMQ knows a single active consumer of a stream in its stream protocol only.  Of a queue it knows
    it in AMQP 0-9-1, too, so each reader also consumes from a queue of its name.  There the broker gives
    the *token*, a message without a body, to the consumer that is active, which keeps it unacked.  When
    that consumer, its connection or its program ends, the broker redelivers the token to the next one at
    once.

    Every reader publishes a token when it begins, and again every few minutes.  The active one keeps the
    newest and acks the one before, so that none grows older than the broker's consumer timeout, and none
    is delivered so often that a quorum queue drops it.  More than one does no harm: all go to the active
    one.

    A reader whose connection was lost may still run a handler when the next one begins: for that moment
    a message may be handled twice.

    Arguments:
        consumer: its life; another connection publishes for it.
        stream: the stream.
    """

    __slots__ = ("__weakref__", "_publish", "_ticker", "_token")

    def __init__(self, consumer: ConsumerLifecycle, stream: QueueLike) -> None:
        options = consumer.options
        stream_name = stream.name if isinstance(stream, Queue) else stream
        queue = token_queue(stream_name, options.name or "")
        own = ConsumerOptions(queues=(queue,), handler=options.handler, name=options.name)
        super().__init__(consumer, queue, TOKEN_PREFETCH, options=own)
        self._publish = partial(
            publish, queue, "", connection=consumer.connection, timeout=TOKEN_TIMEOUT
        )
        self._ticker = Ticker(TOKEN_RENEWAL_INTERVAL, self._on_tick, f"token of {queue.name}")
        self._token: Message | None = None

    @property
    def is_held(self) -> bool:
        """Whether this reader is the active one."""
        return self._token is not None and self.is_confirmed

    def start(self) -> None:
        """Publish a token, and wait for one; see :meth:`Subscription.start`.  May switch."""
        self._token = None  # what a former life had the broker has redelivered
        try:
            self._publish()
        except Unroutable:
            self._publish()  # the queue was deleted, and is declared again
        self._ticker.start()
        super().start()

    def _receiver(self) -> Callable[[Any], None]:
        return self._take

    def _take(self, message: Message) -> None:
        # In the connection's reader.
        former, self._token = self._token, message
        if former is None:
            self._consumer.note_change()  # its stream may be read
        else:
            with suppress(Exception):  # its channel is gone
                former.ack(flush=False)

    def _on_tick(self, lag: float) -> None:
        # In the hub.
        spawn("renew-token", self._renew)

    def _renew(self) -> None:
        try:
            self._publish()
        except Exception as exc:
            logger.debug(
                "token of queue %s was not renewed: %s",
                self.name,
                error_text(exc),
                extra={"queue": self.name},
            )

    def release(self, deadline: Deadline) -> None:
        """Let another reader begin.  May switch, until *deadline* at most."""
        self._ticker.stop()
        try:
            # First, or the broker would redeliver the token here.
            with TimeLimit(deadline, "cancelling"):
                self.cancel()
        except Exception as exc:
            logger.debug("cancelling %r: %s", self, error_text(exc), extra={"queue": self.name})
        token, self._token = self._token, None
        if token is not None:
            with suppress(Exception):  # its channel is gone
                token.put_back()

    def forget(self) -> None:
        """Renew nothing after a fork, in the child.  Never switches."""
        super().forget()
        self._ticker.stop()


class RecoveryOutcome(Enum):
    """The end of an attempt in which the broker did not refuse for good."""

    CONFIRMED = "confirmed"
    #: Something failed that may pass.
    FAILED = "failed"
    #: The program has closed the connection.
    CLOSED = "closed"


class SubscriptionRecovery:
    """The start of those subscriptions of one consumer that are not confirmed.

    A broker that is away is waited for.  What may pass is retried with back-off, and so is, with a
    back-off of its own, a consumer that is lost again and again: what a long start has cost is not
    held against the next one.  A refusal for want of rights, a connection that the broker ends, and an
    error of what the program supplies for a login or a declaration end a consumer that never ran; for
    one that did, what worked once may work again.

    Arguments:
        consumer: its life.
        subscriptions: all of the consumer.

    Attributes:
        failure: class and text of the last error; None once all are confirmed.
    """

    __slots__ = (
        "_confirmed_at",
        "_consumer",
        "_disconnections",
        "_failures",
        "_losses",
        "_misses",
        "_not_before",
        "_subscriptions",
        "_warned_of",
        "failure",
    )

    def __init__(self, consumer: ConsumerLifecycle, subscriptions: Sequence[Subscription]) -> None:
        self._consumer = consumer
        self._subscriptions = subscriptions
        # Made when needed: most consumers never fail.
        self._failures: Backoff | None = None
        self._losses: Backoff | None = None
        self._not_before = 0.0
        self._confirmed_at = 0.0
        self._disconnections = 0
        self._misses = 0
        #: Classes of the errors since the last success that were logged as warnings.
        self._warned_of: frozenset[type[BaseException]] = frozenset()
        self.failure: str | None = None

    @property
    def pause(self) -> float:
        """Seconds until the next attempt may begin; 0.0 is now."""
        if not self._not_before:
            return 0.0
        return max(0.0, self._not_before - monotonic())

    @property
    def has_succeeded(self) -> bool:
        """Whether all were confirmed once."""
        return bool(self._confirmed_at)

    def note_loss(self) -> None:
        """Note a loss: the next attempt may begin at once the first time, then ever later.

        Called by the reader.  Never switches.
        """
        if self._losses is None or monotonic() - self._confirmed_at > STABLE_AFTER:
            self._losses = Backoff(CONSUMING)
        self._wait(next(self._losses))

    def _back_off(self, longest: float = CONSUMING.longest) -> None:
        if self._failures is None:
            self._failures = Backoff(CONSUMING)
        self._wait(min(next(self._failures), longest))

    def _wait(self, interval: float) -> None:
        self._not_before = monotonic() + interval if interval else 0.0

    def attempt(self) -> RecoveryOutcome | BaseException:
        """Try once, and return the outcome; an error is final.  May switch.

        Called in a task of the consumer: a ``gevent.Timeout`` is one of the program's functions.
        """
        subscription = None
        try:
            self._consumer.session.link()
            # It may have been another consumer that the broker has closed the connection for: one by one
            # they show who it is.
            with (
                self._consumer.group.channels.lone_start if self._disconnections else nullcontext()
            ):
                for subscription in self._subscriptions:
                    if not subscription.is_confirmed and not subscription.must_wait():
                        subscription.start()
        except (Exception, Timeout) as exc:
            if self._consumer.session.is_closed:
                return RecoveryOutcome.CLOSED
            if self._is_final(exc, subscription):
                return exc
            self._note_failure(exc, subscription)
            return RecoveryOutcome.FAILED
        if not all(each.is_confirmed for each in self._subscriptions):
            self._back_off()
            return RecoveryOutcome.FAILED
        self._confirmed_at = monotonic()
        self._disconnections = 0
        self._misses = 0
        self._warned_of = frozenset()
        self._failures = None
        self.failure = None
        return RecoveryOutcome.CONFIRMED

    def _note_failure(self, exc: BaseException, subscription: Subscription | None) -> None:
        self.failure = error_summary(exc)
        if subscription is not None and isinstance(exc, ChannelError):
            # It may cost the next channel too: from now on one that is its alone.
            subscription.fails_alone = True
        if subscription is None:
            self._not_before = monotonic() + CONSUMING.first  # the session itself backs off
        elif is_unavailable(exc):
            self._back_off(LONGEST_AWAY)
        else:
            self._back_off()
        is_known = isinstance(exc, known_errors(self._consumer.session))
        is_new = not self._warned_of if is_known else type(exc) not in self._warned_of
        if is_new:
            self._warned_of |= {type(exc)}
        names = ", ".join(each.name for each in self._subscriptions if not each.is_confirmed)
        logger.log(
            logging.WARNING if is_new else logging.DEBUG,
            "consumer of queue %r cannot start yet, trying again: %s",
            names,
            error_summary(exc),
            exc_info=None if is_known else exc,
            extra={"connection": self._consumer.session.broker.label, "queue": names},
        )

    def _is_final(self, exc: BaseException, subscription: Subscription | None) -> bool:
        """Return whether trying again would be of no use."""
        if isinstance(exc, NEVER_REPEATED):
            return True
        if not isinstance(exc, known_errors(self._consumer.session)):
            return not self._confirmed_at
        if subscription is None:
            is_locked_out = bool(self._confirmed_at) and is_lockout(exc)
            return self._consumer.session.is_final(exc) and not is_locked_out
        if isinstance(exc, IrrecoverableConnectionError):
            # The broker closed the connection, maybe because of another user of it.
            if _may_be_own(exc):
                self._disconnections += 1
            if self._confirmed_at:
                return False  # what it took once it may take again: a frame was damaged on its way
            may_pass = isinstance(exc, InternalError) and not is_denied_feature(exc)
            return self._disconnections >= (MAX_INTERNAL_ERRORS if may_pass else MAX_FAILURES)
        passing = (RecoverableConnectionError, RecoverableChannelError, *self._transient())
        if isinstance(exc, passing):
            return False
        if is_unavailable(exc):
            return False
        if isinstance(exc, NotFound) and not subscription.is_passive:
            return self._is_lost_for_good(subscription)
        if isinstance(exc, AccessRefused) or not isinstance(exc, ChannelError):
            # Its rights were taken; or it is exclusive, and its former life is not over yet; or the
            # server takes nothing now (Redis: OOM, MISCONF).  What it took once it may take again.
            is_refused = isinstance(exc, self._consumer.session.broker.channel_errors)
            return is_refused and not subscription.was_confirmed
        return True

    def _is_lost_for_good(self, subscription: Subscription) -> bool:
        """Return whether a queue that should be there, and is not, will never be."""
        # Deleted since it was seen last, or its node is away: look again.
        subscription.forget_declaration()
        self._misses += 1
        return not subscription.was_confirmed and self._misses >= MAX_FAILURES

    def _transient(self) -> tuple[type[BaseException], ...]:
        return self._consumer.session.broker.recoverable_channel_errors


def _may_be_own(exc: IrrecoverableConnectionError) -> bool:
    """Return whether the broker may have closed the connection for what a start sends.

    The broker names the method that it could not take, if there is one (AMQP 0-9-1, connection.close).
    """
    class_id, method_id = exc.method_sig or (0, 0)
    return not class_id or class_id in _OWN_CLASSES or (class_id, method_id) in _OWN_METHODS


def known_errors(session: Session) -> tuple[Any, ...]:
    """Return the errors of networks, brokers and limits; any other is an error in a program."""
    broker = session.broker
    errors = (*broker.connection_errors, *broker.channel_errors)
    return (OSError, AMQPError, KombuError, *errors)


#: Seconds between two looks at the shares.
BALANCE_INTERVAL: Final = 3.0
#: Seconds between two looks whether the handlers of a shard have ended.
LOOK_INTERVAL: Final = 0.02
#: Seconds for an answer of the broker.
TIMEOUT: Final = 10.0
_SINGLE_ACTIVE: Final = "x-single-active-consumer"


class ShardSubscription(Subscription):
    """A subscription to one shard.

    Attributes:
        is_active: a message has come since it began: no other process is served.
        is_leaving: it takes no more, as another process is to be served.
    """

    __slots__ = ("is_active", "is_leaving")

    is_active: bool
    is_leaving: bool

    def start(self) -> None:
        """Consume from the shard, behind the other processes; see :meth:`Subscription.start`."""
        self.is_active = self.is_leaving = False
        super().start()

    def _consume(self, channel: Channel) -> None:
        supported = getattr(channel, "supported_arguments", None)
        if supported is not None and _SINGLE_ACTIVE not in supported.queue:
            raise ValueError(
                f"a broker of shards must have a single active consumer for each queue, which this "
                f"transport lacks: consume {self.name!r} with RabbitMQ, Redis, PostgreSQL or SQLite"
            )
        super()._consume(channel)

    def _receiver(self) -> Callable[[Any], None]:
        return self._take

    def _take(self, message: Message) -> None:
        # In the connection's reader.
        self.is_active = True
        if not self.is_leaving:  # else it goes back with the channel
            self._consumer.dispatcher.put(message)


class ShardBalance:
    """The share of one consumer in the shards of its queue.

    Arguments:
        consumer: its life.
        subscriptions: one for each shard.
    """

    def __init__(
        self, consumer: ConsumerLifecycle, subscriptions: Sequence[ShardSubscription]
    ) -> None:
        self._consumer = consumer
        self._subscriptions = subscriptions
        self._task = OnDemand("balance-shards", self._balance)
        self._ticker = Ticker(BALANCE_INTERVAL, self._on_tick, f"shards of {consumer.options.name}")

    def start(self) -> None:
        """Look at the shares from now on.  Never switches."""
        self._ticker.start()

    def stop(self) -> None:
        """Give nothing more up.  Never switches."""
        self._ticker.stop()
        if self._task.greenlet is not None:
            self._task.greenlet.kill(block=False)

    def _on_tick(self, lag: float) -> None:
        # In the hub.
        if not self._consumer.is_ending and len(self._active()) > 1:
            self._task.start()

    def _active(self) -> list[ShardSubscription]:
        return [each for each in self._subscriptions if each.is_confirmed and each.is_active]

    def _balance(self) -> None:
        try:
            active = self._active()
            share = -(-len(self._subscriptions) // self._processes(active[0].name))
            if len(active) > share:
                self._hand_over(choice(active))
        except Exception as exc:
            logger.debug(
                "shards of %s are not balanced now: %s",
                self._consumer.options.name,
                error_text(exc),
                extra=self._consumer.fields(),
            )

    def _processes(self, queue: str) -> int:
        """Return how many processes consume the shards: each of them has a consumer of *queue*."""
        found = self._consumer.session.utility.run(
            lambda channel: channel.queue_declare(queue, passive=True), Deadline(TIMEOUT)
        )
        return max(1, int(found.consumer_count))

    def _hand_over(self, shard: ShardSubscription) -> None:
        """Have another process served, when no handler of this shard runs here.  May switch."""
        consumer, channel = self._consumer, shard.channel
        logger.info(
            "shard %s is given up to another process", shard.name, extra=consumer.fields(shard.name)
        )
        assert channel is not None
        shard.is_leaving = True
        try:
            while True:
                # A handler that fails meanwhile is not called again here.
                for message, _ in consumer.dispatcher.drop(channel):
                    consumer.handling.drop(message)
                if not consumer.dispatcher.runs_of(channel):
                    break
                sleep(LOOK_INTERVAL)
            consumer.flush_settlements(Deadline(TIMEOUT))
            shard.close()
        finally:
            consumer.note_change()  # it subscribes again
