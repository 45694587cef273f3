"""The consumers of a channel, and its prefetch.

Theory.  A consumer begins with ``basic.consume``, and its life is a table of moves
(:data:`CONSUMER_MOVES`).  Its deliveries go to a sink, or become events that ``drain_events`` runs.  The
rules:

- All that the broker sends is handled by the reader, which only appends, wakes and returns.
- A tag stays known until ``basic.cancel-ok``, or the channel ends, since deliveries come until then.
  Deliveries to a consumer whose owner has left are requeued.
- What came for a consumer with ``no_ack`` before it was cancelled is gone from the broker: its callback
  is called with it.
- A caller that is killed while it waits for ``basic.consume-ok`` leaves a consumer behind that the
  broker starts anyway: it is cancelled when the reply arrives.
- When a channel is closed, the consumers are cancelled first, and the deliveries that no handler has
  seen are requeued with ``basic.nack``.  RabbitMQ requeues what is unacknowledged when the channel is
  closed, but counts that as an attempt: a quorum queue drops or dead-letters a message at its delivery
  limit (20 by default since 4.0), although no handler has ever seen it.
- Without a prefetch, or without acks, only memory limits what the broker sends.  Such deliveries are
  counted in bytes, and the connection stops reading above its budget.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from math import inf
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from amqp import spec
from amqp.serialization import dumps

from greenconn.checks import check_prefetch_count
from greenconn.exceptions import (
    AMQPNotImplementedError,
    ConsumerCancelled,
    FrameError,
    raise_error,
)
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import State, moved
from greenconn.streams import OFFSET, check_offset
from greenconn.transport.amqp.calls import Call
from greenconn.transport.amqp.message import BodilessDelivery, Delivery
from greenconn.wire.amqp import Reply, body_size, ids_of, method_frame, read_arguments

if TYPE_CHECKING:
    from greenconn.abc import Sink
    from greenconn.transport.amqp.acks import Acks
    from greenconn.transport.amqp.calls import Calls
    from greenconn.transport.amqp.channel import Channel
    from greenconn.transport.amqp.link import AmqpLink

_delivery_tag = Struct(">Q")
_tag_and_redelivered = Struct(">QB")
#: Number of deliveries beyond the prefetch that are tolerated.
_SLACK: Final = 1000
#: Most deliveries between two checks of the prefetch.
_CHECK_INTERVAL: Final = 10_000
#: Maximum number of tags of former stream consumers that a channel remembers.
_STREAMS_KEPT: Final = 1024
_GET_OK: Final = ids_of(spec.Basic.GetOk)
_CANCEL: Final = ids_of(spec.Basic.Cancel)
_CANCEL_OK: Final = ids_of(spec.Basic.CancelOk)


class ConsumerState(State):
    """The states of a consumer on a channel."""

    #: ``basic.consume`` was sent; its caller waits, and gets the error if there is one.
    STARTING = "starting"
    #: The broker sent ``basic.consume-ok``.
    RUNNING = "running"
    #: ``basic.cancel`` was sent without a caller that waits; the tag can be used again.
    CANCELLED = "cancelled"
    #: The caller of ``basic.consume`` was killed, or the channel is being closed.  Deliveries are
    #: requeued, and the tag is in use until ``basic.cancel-ok``.
    ABANDONED = "abandoned"


CONSUMER_MOVES: Final[Mapping[ConsumerState, frozenset[ConsumerState]]] = {
    ConsumerState.STARTING: frozenset(
        {ConsumerState.RUNNING, ConsumerState.CANCELLED, ConsumerState.ABANDONED}
    ),
    ConsumerState.RUNNING: frozenset({ConsumerState.CANCELLED, ConsumerState.ABANDONED}),
    # Events of a cancelled consumer are run until its channel is closed.
    ConsumerState.CANCELLED: frozenset({ConsumerState.ABANDONED}),
    ConsumerState.ABANDONED: frozenset(),
}
#: Used for each delivery: looking up a member of an Enum has a cost.
_ABANDONED: Final = ConsumerState.ABANDONED
_new: Final = object.__new__


class ChannelConsumer:
    """A consumer of a channel.

    Arguments:
        link: the connection.
        tag: the consumer tag.
        queue: the name of the queue.
        no_ack: whether the deliveries need no ack.
        unbounded: whether only memory limits what the broker sends, as there is no prefetch or no
            ack.  The connection then counts the bytes of its deliveries.
        callback: called with each message by ``drain_events``, if there is no sink.
        on_cancel: called with the tag by ``drain_events`` if the broker cancels the consumer.
        sink: gets the deliveries in the reader; None makes them events.
    """

    __slots__ = (
        "callback",
        "deliver",
        "is_ending",
        "link",
        "no_ack",
        "on_cancel",
        "queue",
        "sink",
        "state",
        "tag",
        "watchers",
    )

    def __init__(
        self,
        link: AmqpLink,
        tag: str,
        queue: str,
        *,
        no_ack: bool,
        unbounded: bool,
        callback: Callable[[Any], Any] | None,
        on_cancel: Callable[[str], Any] | None,
        sink: Sink | None,
    ) -> None:
        self.link = link
        self.tag = tag
        self.queue = queue
        self.no_ack = no_ack
        self.callback = callback
        self.on_cancel = on_cancel
        self.sink = sink
        self.state: ConsumerState = ConsumerState.STARTING
        #: Whether ``basic.cancel`` was sent.
        self.is_ending = False
        #: Greenlets that wait until it has started or ended.
        self.watchers: list[Slot[None]] = []
        self.deliver: Callable[[Delivery], None]
        if sink is not None:
            is_counted = unbounded and getattr(sink, "keeps_messages", True)
            sink.taken = self._taken if is_counted else None
            self.deliver = self._to_sink_counted if is_counted else sink.deliver
        else:
            self.deliver = self._to_events_counted if unbounded else self._to_events

    def count(self) -> None:
        """Count the bytes of deliveries from now on, as the prefetch was removed.  Never switches.

        Deliveries to a sink are counted only if that was so from the beginning.
        """
        if self.deliver == self._to_events:
            self.deliver = self._to_events_counted

    @property
    def is_event(self) -> bool:
        """Whether its deliveries become events of the connection."""
        return self.sink is None and self.state is ConsumerState.RUNNING

    def leave(self, state: ConsumerState) -> None:
        """Requeue later deliveries, as the owner has left.  Never switches.

        Arguments:
            state: CANCELLED or ABANDONED.
        """
        self._move(state)
        if self.no_ack and state is ConsumerState.CANCELLED and self.sink is None:
            return  # nothing can be requeued: what comes until the reply is for its callback, too
        self.deliver = self._refuse
        self.sink = None  # frees its memory: this object stays until the tag is forgotten
        self.notify_watchers()

    def _move(self, state: ConsumerState) -> None:
        self.state = moved(self.state, state, CONSUMER_MOVES, "a consumer")

    def notify_watchers(self) -> None:
        """Wake the greenlets that wait for a change of state.  Never switches."""
        for slot in self.watchers:
            slot.offer(None)
        self.watchers.clear()

    def requeue_unseen(self) -> None:
        """Make its sink requeue the messages that no handler has seen.  May switch.

        To be called when the broker sends no more.
        """
        if self.sink is not None:
            self.sink.requeue_unseen()

    def requeue_event(self, function: Callable[[Any], Any], message: Delivery) -> None:
        """Requeue a delivery that was an event of the connection.  Never switches.

        Arguments:
            function: the function of the event, which tells whether its bytes were counted.
        """
        if function == self._handle_counted:
            self._taken(message)
        message.put_back()

    # In the reader: these append, wake and return.

    def start(self, reply: object = None) -> None:
        """Note that the broker has started the consumer."""
        if self.state is ConsumerState.STARTING:
            self._move(ConsumerState.RUNNING)
            self.notify_watchers()

    def _refuse(self, message: Delivery) -> None:
        if not self.no_ack:
            message.put_back()

    def _to_events(self, message: Delivery) -> None:
        self.link.events.put((self._handle, message))

    def _to_events_counted(self, message: Delivery) -> None:
        self.link.budget.hold(message.size())
        self.link.events.put((self._handle_counted, message))

    def _to_sink_counted(self, message: Delivery) -> None:
        assert self.sink is not None
        self.link.budget.hold(message.size())
        self.sink.deliver(message)

    def gone(self, exc: BaseException, *, cancelled: bool = False) -> None:
        """Report to the owner that there will be no more deliveries.

        Arguments:
            exc: the reason.
            cancelled: whether the broker cancelled this consumer only, and the channel is open.
        """
        self.notify_watchers()
        if self.state is not ConsumerState.RUNNING:
            return  # the caller of basic_consume gets the error, if it still waits
        if self.sink is not None:
            self.sink.cancelled(exc)
        elif cancelled and self.on_cancel is not None:
            self.link.events.put((self.on_cancel, self.tag))
        elif cancelled:
            self.link.events.put((raise_error, exc))

    # In the greenlet that drains.

    def _handle(self, message: Delivery) -> None:
        if self.state is _ABANDONED:
            self._refuse(message)
        elif (callback := self.callback) is not None:
            callback(message)

    def _taken(self, message: Delivery) -> None:
        self.link.budget.release(message.size())

    def _handle_counted(self, message: Delivery) -> None:
        self.link.budget.release(message.size())
        self._handle(message)


def cancelled_error(tag: str) -> ConsumerCancelled:
    """Return the error for a consumer that the broker cancelled."""
    return ConsumerCancelled(
        f"the broker cancelled consumer {tag!r}: its queue was deleted or is unavailable at the moment, "
        f"or a message of a quorum queue was not acknowledged within its consumer timeout (RabbitMQ 4.3)"
    )


class Consumers:
    """The consumers of one channel, and its prefetch.

    Arguments:
        channel: the channel.
        link: the connection of the channel.
        calls, acks: the calls and the acks of the channel.

    Attributes:
        by_tag: tags -> consumers that the broker may know.
        no_ack: tags of consumers without acks.
        streams: tags of consumers of streams.  Former ones are included, as their messages can still
            be acknowledged.
        qos: the arguments of the last ``basic.qos``, or None.
    """

    __slots__ = (
        "_acks",
        "_calls",
        "_channel",
        "_link",
        "_max_outstanding",
        "_number",
        "_outstanding",
        "_prefetch",
        "_unchecked_tag",
        "by_tag",
        "no_ack",
        "qos",
        "streams",
    )

    def __init__(self, channel: Channel, link: AmqpLink, calls: Calls, acks: Acks) -> None:
        self.by_tag: dict[bytes, ChannelConsumer] = {}
        self.no_ack: set[str] = set()
        self.streams: set[str] = set()
        self.qos: tuple[int, int, bool] | None = None
        self._prefetch = 0
        #: Number of unacknowledged deliveries above which the broker violates the prefetch.
        self._max_outstanding: float = _SLACK
        #: The first delivery tag with which that may be so: the limit is never lowered.
        self._unchecked_tag = _SLACK + 1
        #: The ledger's, which stays the same dict.
        self._outstanding = acks.ledger.outstanding
        self._channel = channel
        self._number = channel.channel_id
        self._link = link
        self._calls = calls
        self._acks = acks

    # The prefetch

    def limit(self, size: int, count: int, is_global: bool, *, leads: bool = False) -> None:
        """Set the prefetch; see ``Channel.basic_qos``.  May switch.

        Arguments:
            leads: do not wait for the reply; see ``Channel.begin_qos``.
        """
        check_prefetch_count(count, 65535)
        if is_global and count:
            is_global = self._link.qos_is_for_channel(count)
        qos = (size, count, is_global)

        def on_reply(reply: Reply) -> None:
            # In the reader, since the broker has accepted it even if the caller was killed.
            self.qos = qos

        arguments = self._calls.pack(spec.Basic.Qos, "lBb", qos)
        self._calls.wait_writable()
        call = self._calls.begin(
            spec.Basic.Qos, arguments, spec.Basic.QosOk, on_reply=on_reply, leads=leads
        )
        self._note_limit(qos)
        if call is not None:
            self._calls.end(call)

    def _note_limit(self, qos: tuple[int, int, bool]) -> None:
        # With the write, since the prefetch applies to what is written behind it.
        self._prefetch = qos[1]
        if not self._prefetch:
            # Running consumers may have no limit any more: by the specification always, with RabbitMQ
            # if the limit was for the channel.
            for consumer in self.by_tag.values():
                if not consumer.no_ack:
                    consumer.count()
                    self._max_outstanding = inf
        elif qos[2]:
            self._max_outstanding += 2 * self._prefetch

    def _limit_each(self, queue: str) -> None:
        """Replace the prefetch of the channel by one for each consumer.  May switch."""
        assert self.qos is not None
        if self.by_tag:
            # The running consumers were started without a limit of their own.
            raise AMQPNotImplementedError(
                f"queue {queue!r} does not support a prefetch for a whole channel, which other "
                f"consumers of this channel use: set it without apply_global, or use another "
                f"channel",
                spec.Basic.Consume,
            )
        wanted = self.qos
        try:
            self.limit(0, 0, True)
            self.limit(wanted[0], wanted[1], False)
        except BaseException:
            self.qos = wanted  # interrupted after the first step: the next call repeats both
            raise

    # Starting and ending

    def prepare(
        self, queue: str, tag: str, no_ack: bool, arguments: Mapping[str, Any] | None
    ) -> None:
        """Prepare the channel for a consumer of *queue*.  May switch.

        Raises:
            AMQPNotImplementedError: the queue does not support *no_ack* or the prefetch of the
                channel; the broker would close the connection.
            ValueError: the offset of a stream is invalid.
        """
        kind = self._link.queues.kinds.get(queue)
        is_stream = kind == "stream" or bool(arguments and OFFSET in arguments)
        if is_stream:
            if no_ack:
                raise AMQPNotImplementedError(
                    f"queue {queue!r} is a stream: no_ack must be False",
                    spec.Basic.Consume,
                )
            if arguments and OFFSET in arguments:
                check_offset(arguments[OFFSET])
            self._note_stream(tag)
        elif tag in self.streams:
            self.streams.discard(tag)
        if (kind or is_stream) and self.qos is not None and self.qos[2]:
            self._limit_each(queue)

    def _note_stream(self, tag: str) -> None:
        if len(self.streams) >= _STREAMS_KEPT and not self._acks.ledger.outstanding:
            self.streams &= {consumer.tag for consumer in self.by_tag.values()}
        self.streams.add(tag)

    def start(
        self,
        tag: str,
        queue: str,
        arguments: bytes,
        *,
        no_ack: bool,
        nowait: bool,
        callback: Callable[[Any], Any] | None,
        on_cancel: Callable[[str], Any] | None,
        sink: Sink | None,
    ) -> None:
        """Send ``basic.consume`` and wait for the reply, unless *nowait*.  May switch.

        Arguments:
            arguments: the packed arguments of the method.
            no_ack, callback, on_cancel, sink: see :class:`ChannelConsumer`.

        Raises:
            ValueError: *tag* is in use on this channel.
        """
        key = tag.encode("utf-8", "surrogatepass")
        self._claim_tag(key, tag)
        consumer = ChannelConsumer(
            self._link,
            tag,
            queue,
            no_ack=no_ack,
            unbounded=no_ack or not self._prefetch,
            callback=callback,
            on_cancel=on_cancel,
            sink=sink,
        )
        self.by_tag[key] = consumer
        if no_ack:
            self.no_ack.add(tag)
        else:
            # Twice the prefetch, since servers count differently.  Never lowered, as a cancelled
            # consumer can have unacknowledged deliveries.
            self._max_outstanding = (
                self._max_outstanding + 2 * self._prefetch if self._prefetch else inf
            )
        if nowait:
            consumer.start()
        try:
            self._calls.call(
                spec.Basic.Consume,
                arguments,
                wait=None if nowait else spec.Basic.ConsumeOk,
                undo=lambda reply: self._cancel_late(consumer),
                on_reply=consumer.start,
                tag=key,
            )
        except BaseException:
            consumer.leave(ConsumerState.ABANDONED)
            raise

    def _claim_tag(self, key: bytes, tag: str) -> None:
        """Wait for the writer, and until *tag* is free.  May switch."""
        while True:
            self._calls.wait_writable()
            known = self.by_tag.get(key)
            if known is None or known.state is ConsumerState.CANCELLED:
                return
            if known.state is not ConsumerState.ABANDONED:
                # The broker would close the whole connection.
                raise ValueError(f"consumer tag {tag!r} is in use on this channel")
            # The caller of that one was killed: it ends when the broker has started it.
            self._watch(known)

    def _cancel_late(self, consumer: ChannelConsumer) -> None:
        """Cancel a consumer that the broker has started after its caller was killed."""
        consumer.leave(ConsumerState.ABANDONED)
        if self._channel.cause is None:
            self._write_cancel(consumer).abandon()

    def _write_cancel(self, consumer: ChannelConsumer) -> Call:
        """Send ``basic.cancel`` for *consumer*.  Never switches.

        Only once, since the broker replies to a second ``basic.cancel`` before the first.
        """
        if self._acks.ledger.pending:
            self._acks.flush()
        consumer.is_ending = True
        frame = method_frame(self._number, spec.Basic.Cancel, dumps("sb", (consumer.tag, False)))
        call = Call(
            _CANCEL,
            frozenset((_CANCEL_OK,)),
            on_reply=lambda reply: self._forget(consumer),
            tag=consumer.tag.encode("utf-8", "surrogatepass"),
        )
        self._calls.write(frame, call)
        return call

    def cancel(self, tag: str, nowait: bool) -> None:
        """Cancel a consumer; see ``Channel.basic_cancel``.  May switch."""
        self._channel.check_hub()
        key = tag.encode("utf-8", "surrogatepass")
        consumer = self.by_tag.get(key)
        if consumer is None:
            return
        if consumer.state is ConsumerState.STARTING:
            self._watch(consumer)
        if self.by_tag.get(key) is consumer:
            self._calls.wait_writable()
        if self.by_tag.get(key) is not consumer or consumer.state is ConsumerState.ABANDONED:
            return  # it has ended, or ends when the broker has started it
        call = None if consumer.is_ending else self._write_cancel(consumer)
        if self._channel.cause is not None:
            self._channel.check_open()  # writing has failed
        if nowait:
            consumer.leave(ConsumerState.CANCELLED)
            if call is not None:
                call.abandon()
        elif call is not None:
            self._link.wait_reply(call.slot, self._number, None)
        else:
            while self.by_tag.get(key) is consumer:
                self._watch(consumer)
        if consumer.sink is None and len(self._link.events):
            if consumer.no_ack:
                self._hand_on(consumer)
            else:
                requeue_events(self._link, lambda of, message: of is consumer)

    def _hand_on(self, consumer: ChannelConsumer) -> None:
        """Run the events of a ``no_ack`` consumer, which cannot be requeued.  May switch.

        py-amqp does the same, as it drains while it waits for the reply.
        """
        waiting = deque(_take_events(self._link, lambda of, message: of is consumer))
        try:
            while waiting:
                function, _, message = waiting.popleft()
                function(message)
        finally:
            for function, _, message in waiting:  # a callback failed: drain_events runs the others
                self._link.events.put((function, message))

    def _watch(self, consumer: ChannelConsumer) -> None:
        """Wait until the state of *consumer* changes.  May switch."""
        slot: Slot[None] = Slot()
        consumer.watchers.append(slot)
        slot.wait(Deadline(self._link.options.reply_timeout))

    def sinks(self) -> list[Sink]:
        """Return the sinks of the consumers that have started and have not ended.  Never switches."""
        return [
            each.sink
            for each in self.by_tag.values()
            if each.sink is not None and each.state is ConsumerState.RUNNING
        ]

    @property
    def keep_order(self) -> bool:
        """Whether what is unacknowledged must be requeued in one step with the end of the channel.

        RabbitMQ activates the next consumer of a queue as soon as the active one is cancelled: it would
        get later messages first.
        """
        single_active = self._link.queues.single_active
        return any(
            each.queue in single_active or getattr(each.sink, "keeps_order", False)
            for each in self.by_tag.values()
        )

    def acking(self) -> list[ChannelConsumer]:
        """Return the consumers with acks.  Never switches."""
        return [each for each in self.by_tag.values() if not each.no_ack]

    def cancel_all(self, consumers: Iterable[ChannelConsumer]) -> Call | None:
        """Send ``basic.cancel`` for *consumers*.  Never switches.

        Returns:
            The last call, whose reply comes last; None if there was none to cancel.
        """
        last = None
        for consumer in consumers:
            # RabbitMQ 3.10 closes the connection if a consumer is cancelled before its consume-ok.
            if consumer.state is ConsumerState.RUNNING and not consumer.is_ending:
                if last is not None:
                    last.abandon()
                last = self._write_cancel(consumer)
        return last

    def abandon_callbacks(self) -> None:
        """Run no more callbacks: deliveries that wait as events are requeued.  Never switches."""
        for consumer in self.by_tag.values():
            if consumer.sink is None:
                consumer.leave(ConsumerState.ABANDONED)

    def end(self, cause: BaseException, *, closed: bool) -> bool:
        """Forget all consumers, as the channel has ended.  Never switches.

        Arguments:
            cause: the reason, which is reported to the owners.
            closed: whether this program closed the channel; nothing is reported then.

        Returns:
            Whether a greenlet that drains must get the reason, since there are no more events.
        """
        consumers, self.by_tag = self.by_tag, {}
        if self._link.lost is None:
            for consumer in consumers.values():
                self._link.consumer_ended(consumer.queue)
        if not closed:
            for consumer in consumers.values():
                consumer.gone(cause)
        self.no_ack.clear()
        return not closed and any(each.is_event for each in consumers.values())

    def consumes(self, queue: str) -> bool:
        """Return whether a consumer of this channel consumes from *queue*.  Never switches."""
        return any(each.queue == queue for each in self.by_tag.values())

    # A single message

    def get(self, queue: str, no_ack: bool) -> Delivery | None:
        """Get one message from a queue; see ``Channel.basic_get``.  May switch."""
        if self._link.queues.kinds.get(queue) == "stream":
            raise AMQPNotImplementedError(
                f"queue {queue!r} is a stream, which can only be consumed", spec.Basic.Get
            )
        reply = self._calls.send(
            spec.Basic.Get,
            "Bsb",
            (0, queue, no_ack),
            wait=[spec.Basic.GetOk, spec.Basic.GetEmpty],
            returns_tuple=True,
            undo=None if no_ack else self._undo_get,
            on_reply=None if no_ack else self._note_get,
        )
        if len(reply) < 2:
            return None
        payload, header, body = reply[-1]
        kind = Delivery if len(body) == body_size(header) else BodilessDelivery
        return kind(self._channel, reply[0], payload, header, body, None)

    def _note_get(self, reply: Reply) -> None:
        # In the reader, so that the ledger gets all tags in order.
        if reply[0] == _GET_OK:
            self._acks.ledger.delivered(_delivery_tag.unpack_from(reply[1], 4)[0])
            self._max_outstanding += 1

    def _undo_get(self, reply: Reply) -> None:
        if reply[0] == _GET_OK:
            self._acks.requeue_unseen(_delivery_tag.unpack_from(reply[1], 4)[0])

    # In the reader: nothing here may switch or run user code.

    def on_deliver(self, payload: bytes, header: bytes, body: bytes, kind: type[Delivery]) -> None:
        """Pass a delivery to its consumer, as an object of class *kind*."""
        end = 5 + payload[4]
        consumer = self.by_tag.get(payload[5:end])
        tag, is_redelivered = _tag_and_redelivered.unpack_from(payload, end)
        if consumer is None:
            # In the ledger first: otherwise a later multiple ack would include it.  If the channel is
            # being closed, the broker requeues it.
            self._outstanding[tag] = None
            self._acks.requeue_unseen(tag)
            return
        if not consumer.no_ack:
            self._outstanding[tag] = None
            if tag >= self._unchecked_tag:
                self._check_prefetch(tag)
        # A call of the class would pass its arguments on from C, which costs more than all they are for.
        message = _new(kind)
        Delivery.__init__(message, self._channel, tag, payload, header, body, consumer.tag)
        if is_redelivered:
            self._link.queues.check_delivery_count(consumer.queue, message)
        # Not as a method: the interpreter finds a function in a slot quickly only as a value.
        deliver = consumer.deliver
        deliver(message)

    def _check_prefetch(self, tag: int) -> None:
        """Check that the broker obeys the prefetch, and note the tag at which to check again.

        Raises:
            FrameError: it does not.
        """
        count = len(self._outstanding)
        if count > self._max_outstanding:
            raise FrameError(
                f"the broker exceeded the prefetch of channel {self._number}: "
                f"{count} deliveries are unacknowledged"
            )
        self._unchecked_tag = tag + 1 + int(min(self._max_outstanding - count, _CHECK_INTERVAL))

    def on_cancel(self, reply: Reply) -> None:
        """Handle ``basic.cancel`` of the broker."""
        tag = read_arguments(reply[0], "s", reply[1])[0]
        consumer = self.by_tag.get(tag.encode("utf-8", "surrogatepass"))
        if consumer is None:
            return
        if self._may_be_overdue(consumer.queue):
            # Its messages were redelivered to another consumer already.
            requeue_events(self._link, lambda of, message: of is consumer)
        elif self._link.topology is not None:
            # The queue was deleted on purpose: recovery must not declare it again.
            self._link.topology.queue_deleted(consumer.queue)
        consumer.gone(cancelled_error(tag), cancelled=True)
        if consumer.is_ending:
            self._forget(consumer)
            return
        # After a consumer timeout RabbitMQ 4.3 keeps the tag until it is cancelled from this side, too.
        # Otherwise it closes the connection when the tag is used again, and delivers to it again after
        # the late acks.  It replies to basic.cancel even if it does not know the tag any more.
        if consumer.state is not ConsumerState.ABANDONED:
            consumer.leave(ConsumerState.CANCELLED)
        self._write_cancel(consumer).abandon()

    def _may_be_overdue(self, queue: str) -> bool:
        """Return whether the broker may have cancelled a consumer of *queue* for a consumer timeout."""
        version = self._link.server_version
        is_quorum = self._link.queues.kinds.get(queue) == "quorum"
        return is_quorum and version is not None and version >= (4, 3)

    def _forget(self, consumer: ChannelConsumer) -> None:
        """Forget a consumer that the broker has ended, unless its tag belongs to a newer one."""
        key = consumer.tag.encode("utf-8", "surrogatepass")
        if self.by_tag.get(key) is consumer:
            del self.by_tag[key]
            self.no_ack.discard(consumer.tag)
        consumer.notify_watchers()
        self._link.consumer_ended(consumer.queue)


def requeue_events(link: AmqpLink, is_meant: Callable[[ChannelConsumer, Delivery], bool]) -> None:
    """Requeue the deliveries among the events for which *is_meant* is true.  Never switches."""
    found = _take_events(
        link, lambda consumer, message: not consumer.no_ack and is_meant(consumer, message)
    )
    for function, consumer, message in found:
        consumer.requeue_event(function, message)


def _take_events(
    link: AmqpLink, is_meant: Callable[[ChannelConsumer, Delivery], bool]
) -> list[tuple[Callable[[Any], Any], ChannelConsumer, Delivery]]:
    """Take out the events of *link* for which *is_meant* is true.  Never switches.

    Returns:
        The function of the event, the consumer and the delivery, for each.
    """
    taken = []
    for event in link.events.clear():
        function, message = event
        consumer = getattr(function, "__self__", None)
        if (
            isinstance(consumer, ChannelConsumer)
            and isinstance(message, Delivery)
            and is_meant(consumer, message)
        ):
            taken.append((function, consumer, message))
        else:
            link.events.put(event)
    return taken
