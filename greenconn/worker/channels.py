"""The channels of consumers, and the queues that are consumed on them.

At most fifty consumers share a channel, so an error of the broker, which costs a channel, hits few.
Consumer channels carry qos, consume, cancel and acks only.  A channel has one prefetch, which is sent
when it is opened, so that consumers of the same prefetch start with one request each and none waits for
the reply to another.

RabbitMQ starts the consumers of a channel one after the other, and waits for the majority of a quorum
queue with each.  So the consumers that begin together, as after a reconnect, are spread over as many
channels as they need in the end.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from gevent.lock import BoundedSemaphore

from greenconn.entity import Queue
from greenconn.entity.existence import (
    Expectation,
    ensure_declared,
    ensure_queue_exists,
    expect_queue,
    is_defined_by_consumer,
    note_deleted,
)
from greenconn.exceptions import (
    ConsumerCancelled,
    NotFound,
    RecoverableChannelError,
    is_unavailable,
)
from greenconn.green.deadline import Deadline
from greenconn.identity import uuid
from greenconn.session.channels import begin_channel
from greenconn.streams import OFFSET, StreamPosition
from greenconn.worker.offsets import OffsetRecorder
from greenconn.worker.options import ConsumerOptions, QueueLike

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.message import Message
    from greenconn.session.session import Session
    from greenconn.transport.base import Link

#: Consumers of one channel.
CONSUMERS_PER_CHANNEL: Final = 50


class SharedChannel:
    """A channel for up to :data:`CONSUMERS_PER_CHANNEL` consumers, opened by the first of them.

    Attributes:
        prefetch: messages of each consumer that may be unacked; 0 is no limit.
        lock: held over the opening.
        consumers: number of those that are here or about to be.
        is_private: one consumer has it for itself, since its request may fail.
        life: the one of its :class:`SharedChannels` that counts it.
    """

    __slots__ = (
        "_channel",
        "_has_prefetch",
        "_link",
        "consumers",
        "is_private",
        "life",
        "lock",
        "prefetch",
    )

    def __init__(self, link: Link, prefetch: int, life: object) -> None:
        self._link = link
        self._channel: Any = None
        self._has_prefetch = False
        self.prefetch = prefetch
        self.life = life
        self.lock = BoundedSemaphore(1)
        self.consumers = 0
        self.is_private = False

    @property
    def is_usable(self) -> bool:
        """Whether consumers may be started here: not known to be closed."""
        return self._channel is None or bool(self._channel.is_open)

    def reuse(self, prefetch: int) -> None:
        """Prepare it for other consumers, when it has none."""
        if prefetch != self.prefetch:
            self.prefetch, self._has_prefetch = prefetch, False

    def open(self, transport: Any) -> Any:
        """Return the channel, opened now if it was not yet.  The caller holds the lock.  May switch."""
        if self._channel is None:
            self._channel = begin_channel(transport, self._link)
            # What a handler acks itself must not wait for the end of its work.
            self._channel.flushes_acks = True
        if not self._has_prefetch:
            if hasattr(self._channel, "begin_qos"):
                self._channel.begin_qos(self.prefetch)
            else:
                self._channel.basic_qos(0, self.prefetch, False)
            self._has_prefetch = True
        return self._channel


class SharedChannels:
    """The consumer channels of one connection.  Nothing here switches.

    Attributes:
        lone_start: held by a consumer whose start may have made the broker close the connection, while
            it starts again.
    """

    def __init__(self) -> None:
        self.lone_start = BoundedSemaphore(1)
        self._link: Link | None = None
        #: A new one each time that all channels are forgotten.  The link does not tell them apart:
        #: a consumer that was held up may still ask for the former link, between two for the present.
        self._life = object()
        #: By prefetch: subscriptions that need a channel, whether they have it or not.
        self._expected: Counter[int] = Counter()
        #: By prefetch: channels with room for one more consumer, the next to be used first.
        self._with_room: dict[int, deque[SharedChannel]] = {}
        #: By prefetch: the number of channels without room.
        self._full: Counter[int] = Counter()
        #: Channels without consumers.
        self._idle: list[SharedChannel] = []

    def expect(self, prefetch: int) -> None:
        """Note that one more subscription needs a channel, now and after each reconnect."""
        self._expected[prefetch] += 1

    def stop_expecting(self, prefetch: int) -> None:
        """Note that a subscription has ended."""
        self._expected[prefetch] -= 1

    def acquire(self, link: Link, prefetch: int, *, is_private: bool = False) -> SharedChannel:
        """Return a channel on *link* with room for one more consumer, which must :meth:`release` it.

        Arguments:
            prefetch: of the consumer.
            is_private: return one that no other consumer gets.
        """
        if link is not self._link:
            self.clear()
            self._link = link
        if is_private:
            shared = self._unused(prefetch)
            shared.is_private = True
        else:
            with_room = self._with_room.setdefault(prefetch, deque())
            while with_room and not with_room[0].is_usable:
                with_room.popleft()
            if with_room and len(with_room) >= self._needed(prefetch):
                shared = with_room.popleft()
            else:
                shared = self._unused(prefetch)
            if shared.consumers + 1 < CONSUMERS_PER_CHANNEL:
                with_room.append(shared)
            else:
                self._full[prefetch] += 1
        shared.consumers += 1
        return shared

    def _needed(self, prefetch: int) -> int:
        """Return the number of channels for the consumers that are not on full ones."""
        left = self._expected[prefetch] - self._full[prefetch] * CONSUMERS_PER_CHANNEL
        return -(-left // CONSUMERS_PER_CHANNEL)

    def _unused(self, prefetch: int) -> SharedChannel:
        while self._idle:
            shared = self._idle.pop()
            if shared.is_usable:
                shared.reuse(prefetch)
                return shared
        assert self._link is not None
        return SharedChannel(self._link, prefetch, self._life)

    def release(self, shared: SharedChannel) -> None:
        """Remove one consumer from *shared*, which stays open for the next ones."""
        shared.consumers -= 1
        if shared.life is not self._life:
            return
        if shared.is_private:
            shared.is_private = False
            self._idle.append(shared)
            return
        with_room = self._with_room[shared.prefetch]
        if shared.consumers == CONSUMERS_PER_CHANNEL - 1:
            self._full[shared.prefetch] -= 1
            with_room.append(shared)
        if not shared.consumers:
            if shared in with_room:  # else it was found closed
                with_room.remove(shared)
            self._idle.append(shared)

    def clear(self) -> None:
        """Forget all channels since the connection is closed."""
        self._link = None
        self._life = object()
        self._with_room = {}
        self._full = Counter()
        self._idle = []


class Sink:
    """The receiver of the deliveries of one subscription, during one life of it.

    Attributes:
        deliver: takes a message over; called by the reader.
        taken: see :class:`greenconn.abc.Sink`.
        is_confirmed: the broker has replied.
        lost: why no more will come; None while it may.
    """

    __slots__ = ("_owner", "channel", "deliver", "is_confirmed", "lost", "taken")

    def __init__(self, owner: Subscription, channel: Channel, put: Callable[[Any], None]) -> None:
        self._owner = owner
        self.channel = channel
        self.deliver = put
        self.taken: Callable[[Any], None] | None = None
        self.is_confirmed = False
        self.lost: BaseException | None = None

    def cancelled(self, exc: BaseException) -> None:
        """Note that the consumer is gone.  Called by the reader."""
        if self.lost is None:
            self.lost = exc
            self._owner.on_lost(self, exc)

    def requeue_unseen(self) -> None:
        """Put back what no handler has begun with.  Called by who closes the channel.  May switch."""
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


class ReadingRight(Protocol):
    """The right to read a stream."""

    @property
    def is_held(self) -> bool:
        """Whether it may be read now."""
        ...


class Subscription:
    """A queue that a consumer consumes from, over all lives of its connection.

    Arguments:
        options: the consumer's.
        queue: a name, or a ``Queue`` to declare.
        prefetch: messages that may be unacked; 0 is no limit.
        put: takes a message over; called by the reader.
        on_change: called with this, its channel and the reason when it is lost.  Must not switch.
        on_closing: called with its channel, which is about to be closed by this program.  May switch.
        right: says whether it may read; None: it may.

    Attributes:
        tag: consumer tag; it stays the same over reconnects, not after the broker has cancelled it.
        was_confirmed: the broker has confirmed it at least once.
        fails_alone: its request was refused before, so it gets a channel of its own.
    """

    __slots__ = (
        "_expectation",
        "_first_tag",
        "_on_change",
        "_on_closing",
        "_options",
        "_position",
        "_put",
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
        options: ConsumerOptions,
        queue: QueueLike,
        prefetch: int,
        put: Callable[[Any], None],
        on_change: Callable[[Subscription, Any, BaseException], None],
        on_closing: Callable[[Any], None],
        right: ReadingRight | None = None,
    ) -> None:
        self._options = options
        self._queue = queue
        self._put = put
        self._right = right
        self._on_change = on_change
        self._on_closing = on_closing
        offset = options.offset_of(queue)
        self._position = None if offset is None else StreamPosition(offset)
        self._recorder = self._new_recorder()
        self._sink: Sink | None = None
        self._shared: SharedChannel | None = None
        #: While publishers that know only the queue's name wait for us to declare it.
        self._expectation: Expectation | None = None
        self.prefetch = prefetch
        self.tag = self._first_tag = f"{options.tag_prefix}{uuid()}"
        self._tag_number = 1
        self.was_confirmed = False
        self.fails_alone = options.exclusive

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
    def is_nameless(self) -> bool:
        """Whether the broker chose the name of the queue."""
        return isinstance(self._queue, Queue) and self._queue._named_on is not None

    @property
    def arguments(self) -> dict[str, Any] | None:
        """Arguments of the queue as its consumer has them; None if that was given a name only."""
        return self._queue.queue_arguments or {} if isinstance(self._queue, Queue) else None

    def is_shown_to_others(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether the queue may hold messages that are not for this consumer.

        Arguments:
            arguments: of the queue, as far as they are known.
        """
        return (
            self._position is not None
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

    def _new_recorder(self) -> OffsetRecorder | None:
        options = self._options
        if options.offsets is None or self._position is None:
            return None
        return OffsetRecorder(
            options.offsets,
            self.name,
            options.name or "",
            self._position,
            options.store_every,
            options.store_interval,
        )

    def _new_tag(self) -> str:
        # It begins as the first one does, so that messages of a former tag are known as its own.
        self._tag_number += 1
        return f"{self._first_tag}.{self._tag_number}"

    def has_received(self, message: Message) -> bool:
        """Return whether *message* came to it, under its present consumer tag or a former one."""
        tag = message.delivery_info.get("consumer_tag")
        return tag is not None and tag.startswith(self._first_tag)

    # Beginning

    def expect(self, session: Session) -> None:
        """Have those who publish by the queue's name wait until it is declared.  Never switches."""
        is_named_stream = self._position is not None and isinstance(self._queue, str)
        if self._expectation is None and self.name and not self.is_passive and not is_named_stream:
            self._expectation = expect_queue(session, self._queue)

    def stop_expecting(self) -> None:
        """End the wait for the declaration.  Never switches.  A second call does nothing."""
        expectation, self._expectation = self._expectation, None
        if expectation is not None:
            expectation.settle()

    def must_wait(self, session: Session) -> bool:
        """Return whether another consumer is about to declare the queue, known only by its name here."""
        return isinstance(self._queue, str) and is_defined_by_consumer(session, self._queue)

    def start(self, session: Session, channels: SharedChannels) -> None:
        """Ensure that the queue exists, and consume from it.  May switch.

        Raises:
            Exception: what the broker or the connection did; nothing is left behind.
        """
        link = session.link()
        self._ensure_queue(session, link)
        self.stop_expecting()
        self._release(channels)
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

    def _new_sink(self, channel: Channel) -> Sink:
        put = self._put
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
        self._on_change(self, sink.channel, exc)
        if isinstance(exc, ConsumerCancelled):
            # The broker may still know the old one, and what comes late must not hit the next life.
            self.tag = self._new_tag()

    def requeue_unseen(self, sink: Sink) -> None:
        """Put back what no handler has begun with, before its channel is closed.  May switch."""
        if sink is self._sink:
            self._on_closing(sink.channel)

    def forget_declaration(self, session: Session) -> None:
        """Forget that the queue was declared: it was deleted, and is looked up or declared again."""
        queue = self._queue
        note_deleted(session, queue)
        if isinstance(queue, Queue) and queue._named_on is not None:
            queue.name, queue._named_on = "", None

    def cancel(self, channels: SharedChannels, *, nowait: bool = False) -> None:
        """Have the broker send no more.  May switch.

        What came before the broker's reply is in the dispatcher when this returns.

        Arguments:
            nowait: do not wait for the reply; late messages are requeued.
        """
        sink = self._sink
        if sink is None or sink.lost is not None:
            self._release(channels)
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
            self._release(channels)

    @property
    def channel(self) -> Channel | None:
        """The channel that it was begun on last; None before."""
        return None if self._sink is None else self._sink.channel

    def stand_down(self, channels: SharedChannels) -> None:
        """Read no more until it may again.  May switch."""
        if self._recorder is not None:
            self._recorder.stand_down()
        self.cancel(channels)

    def store_offset(self, deadline: Deadline) -> None:
        """Store the last offset of a stream, once nothing is handled any more.  May switch."""
        if self._recorder is not None:
            self._recorder.finish(deadline)

    def forget(self) -> None:
        """Store no more offsets after a fork, in the child.  Never switches."""
        if self._recorder is not None:
            self._recorder.stop()

    def _release(self, channels: SharedChannels) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            channels.release(shared)
