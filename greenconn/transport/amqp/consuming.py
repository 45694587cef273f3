"""The consumers of a channel, and its prefetch.

A channel that ends returns what was not answered on it to the queues, and RabbitMQ counts each such
message as delivered: a quorum queue drops it, or dead-letters it, at its delivery limit (20 by default
since 4.0), although no handler has ever seen it.  So the consumers are cancelled first, and what came
until the broker has answered and nobody has begun with is put back, one by one, before the channel
goes.  What a handler has begun with is left to the broker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto
from math import inf
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from amqp import spec
from amqp.serialization import dumps

from greenconn.encoding import plain_text
from greenconn.exceptions import ConsumerCancelled, FrameError
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.identity import uuid
from greenconn.transport.amqp.acks import Answering
from greenconn.transport.amqp.calls import Call
from greenconn.transport.amqp.message import Delivery
from greenconn.transport.amqp.methods import Reply, ids_of, read_arguments
from greenconn.transport.amqp.queues import QueueKinds
from greenconn.wire.amqp import method_frame

if TYPE_CHECKING:
    from greenconn.abc import Sink
    from greenconn.transport.amqp.message import Delivery
    from greenconn.transport.amqp.port import LinkPort

__all__ = ["ChannelConsumer", "ConsumerState", "Consuming", "give_back_events"]

_delivery_tag = Struct(">Q")
#: Unanswered deliveries that any broker may send beyond what it was asked for.
_SLACK: Final = 1000
_GET_OK: Final = ids_of(spec.Basic.GetOk)
_CANCEL: Final = ids_of(spec.Basic.Cancel)
_CANCEL_OK: Final = ids_of(spec.Basic.CancelOk)


class ConsumerState(Enum):
    """The life of a consumer; each state may lead to those after it."""

    #: ``basic.consume`` was written; its caller waits and gets what goes wrong.
    STARTING = auto()
    #: The broker confirmed it.
    RUNNING = auto()
    #: The caller was killed while it waited: what comes goes back to the queue, and the tag stays
    #: taken until the broker has answered the cancel.
    ABANDONED = auto()
    #: ``basic.cancel`` was written and nobody waits for the answer: the tag may be used again.
    CANCELLED = auto()


#: Asked for with each delivery, and members of an Enum are not looked up for nothing.
_ABANDONED: Final = ConsumerState.ABANDONED


class ChannelConsumer:
    """One consumer of one channel.

    Its deliveries go to a sink, or as events to whoever calls ``drain_events``.

    Arguments:
        unbounded: nothing but memory bounds what the broker sends: no acks, or no prefetch.
            The connection then counts the bytes that wait here.
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
        link: LinkPort,
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
        self.state = ConsumerState.STARTING
        #: The broker was told to end it.
        self.is_ending = False
        #: Those who wait until it is no longer starting, or until it has ended.
        self.watchers: list[Slot[None]] = []
        self.deliver: Callable[[Delivery], None]
        if sink is not None:
            sink.taken = self._taken if unbounded else None
            self.deliver = self._to_sink_counted if unbounded else sink.deliver
        else:
            self.deliver = self._to_events_counted if unbounded else self._to_events

    def count(self) -> None:
        """From now on nothing but memory bounds what the broker sends.  Never switches.

        What goes to a sink is not counted: its owner asks for that when it begins to consume.
        """
        if self.deliver == self._to_events:
            self.deliver = self._to_events_counted

    @property
    def is_event(self) -> bool:
        """Whether those who drain wait for its deliveries."""
        return self.sink is None and self.state is ConsumerState.RUNNING

    def leave(self, state: ConsumerState) -> None:
        """Nobody wants it any more: what still comes goes back to the queue.  Never switches."""
        self.state = state
        self.deliver = self._refuse
        self.sink = None  # it may hold much, and this stays as long as the tag is known
        self.tell_watchers()

    def tell_watchers(self) -> None:
        """Something has changed.  Never switches."""
        for slot in self.watchers:
            slot.offer(None)
        self.watchers.clear()

    def give_back(self) -> None:
        """Have its sink put back what nobody has begun with; the broker sends no more.  May switch."""
        if self.sink is not None:
            self.sink.give_back()

    def give_back_event(self, function: Callable[[Any], Any], message: Delivery) -> None:
        """Put back a delivery that waited among the events of the connection.  Never switches.

        Arguments:
            function: the event's, which tells whether the delivery was counted.
        """
        if function == self._handle_counted:
            self._taken(message)
        message.put_back()

    # All of these run in the reader: they append, wake and return.

    def start(self, reply: object = None) -> None:
        """The broker confirmed it."""
        if self.state is ConsumerState.STARTING:
            self.state = ConsumerState.RUNNING
            self.tell_watchers()

    def _refuse(self, message: Delivery) -> None:
        if not self.no_ack:
            message.put_back()

    def _to_events(self, message: Delivery) -> None:
        self.link.events.put((self._handle, message))

    def _to_events_counted(self, message: Delivery) -> None:
        self.link.budget.hold(message.size)
        self.link.events.put((self._handle_counted, message))

    def _to_sink_counted(self, message: Delivery) -> None:
        assert self.sink is not None
        self.link.budget.hold(message.size)
        self.sink.deliver(message)

    def gone(self, exc: BaseException, *, cancelled: bool = False) -> None:
        """Tell the owner that no more will come.

        Arguments:
            cancelled: the broker cancelled this one consumer; the channel lives on.
        """
        self.tell_watchers()
        if self.state is not ConsumerState.RUNNING:
            return  # the caller of ``basic_consume`` is told, or nobody cares
        if self.sink is not None:
            self.sink.cancelled(exc)
        elif cancelled and self.on_cancel is not None:
            self.link.events.put((self.on_cancel, self.tag))
        elif cancelled:
            self.link.events.put((_raise, exc))

    # In the greenlet that drains.

    def _handle(self, message: Delivery) -> None:
        if self.state is _ABANDONED:
            self._refuse(message)
        elif self.callback is not None:
            self.callback(message)

    def _taken(self, message: Delivery) -> None:
        self.link.budget.release(message.size)

    def _handle_counted(self, message: Delivery) -> None:
        self.link.budget.release(message.size)
        self._handle(message)


def cancelled_error(tag: str) -> ConsumerCancelled:
    """The error for a consumer that the broker cancelled."""
    return ConsumerCancelled(
        f"the broker cancelled consumer {tag!r}: its queue was deleted or is not there at the moment, "
        f"or a message of a quorum queue was not answered within its consumer timeout (RabbitMQ 4.3)"
    )


def _raise(exc: BaseException) -> None:
    raise exc


class Consuming(QueueKinds, Answering):
    """What a channel does to consume; mixed into ``Channel``."""

    pack: Callable[..., bytes]
    send_method: Callable[..., Any]
    no_ack_consumers: Any  # set[str]: amqp.Channel makes it
    write_call: Callable[[bytes, Call], None]
    _last_queue: str

    def _init_consuming(self, has_nack: bool) -> None:
        self._init_answering(has_nack)
        self._consumers: dict[bytes, ChannelConsumer] = {}
        self._prefetch = 0
        #: Unanswered deliveries above which the broker does not keep to the prefetch.
        self._most: float = _SLACK
        self._qos: tuple[int, int, bool] | None = None
        self._init_kinds()

    def basic_qos(
        self,
        prefetch_size: int = 0,
        prefetch_count: int = 0,
        apply_global: bool = False,
        argsig: str = "lBb",
        *,
        a_global: bool | None = None,
    ) -> None:
        """Limit the unanswered deliveries.  May switch.

        Arguments:
            prefetch_count: messages; 0 is no limit.
            apply_global: the whole channel, else each consumer that is started from now on
                (RabbitMQ's meaning, which differs from the specification's).  RabbitMQ 4.3 and later
                know no limit for a channel: it becomes one for each consumer, which is logged once.
            a_global: amqp's name for *apply_global*.
        """
        if a_global is not None:
            apply_global = a_global
        if apply_global and prefetch_count:
            apply_global = self.connection.qos_is_for_channel(prefetch_count)
        qos = (prefetch_size, prefetch_count, apply_global)
        self.send_method(
            spec.Basic.Qos,
            argsig,
            qos,
            wait=spec.Basic.QosOk,
            on_reply=lambda reply: self._note_qos(qos),
        )

    def _note_qos(self, qos: tuple[int, int, bool]) -> None:
        # In the reader: it holds, also if its caller was killed meanwhile.
        self._qos = qos
        self._prefetch = qos[1]
        if not self._prefetch:
            # What runs here already may have no limit any more: the specification says so, and RabbitMQ
            # for the limit of a channel.
            for consumer in self._consumers.values():
                if not consumer.no_ack:
                    consumer.count()
                    self._most = inf
        elif qos[2]:
            self._most += 2 * self._prefetch

    def basic_consume(
        self,
        queue: str = "",
        consumer_tag: str = "",
        no_local: bool = False,
        no_ack: bool = False,
        exclusive: bool = False,
        nowait: bool = False,
        callback: Callable[[Any], Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        on_cancel: Callable[[str], Any] | None = None,
        argsig: str = "BssbbbbF",
        *,
        sink: Sink | None = None,
    ) -> str:
        """Start a consumer.  May switch.

        Its tag is known before the broker answers, since deliveries may come before the reply is read.

        Quorum queues and streams know no limit for the whole channel, and the broker ends the
        connection of who consumes from one under such a limit.  Where we know of the queue (it was
        declared on this connection), the limit becomes one for each consumer.

        Arguments:
            callback: called with each message by whoever calls ``drain_events``.
            sink: takes the messages instead.

        Returns:
            The consumer tag.

        Raises:
            ValueError: the tag is in use on this channel, nowait without a tag, or no offset.
            AMQPNotImplementedError: a limit for the whole channel, as above, under which other
                consumers run here; or a stream without acks.  Nothing was sent.
        """
        if nowait and not consumer_tag:
            raise ValueError("nowait needs a consumer_tag: the broker would choose one unheard")
        queue, tag = plain_text(queue), plain_text(consumer_tag) or f"greenconn-{uuid()}"
        key = tag.encode("utf-8", "surrogatepass")
        self._prepare_consume(queue, tag, no_ack, arguments)
        packed = self.pack(
            spec.Basic.Consume,
            argsig,
            (0, queue, tag, no_local, no_ack, exclusive, nowait, arguments),
        )
        self._claim_tag(key, tag)
        consumer = ChannelConsumer(
            self.connection,
            tag,
            queue or self._last_queue,
            no_ack=no_ack,
            unbounded=no_ack or not self._prefetch,
            callback=callback,
            on_cancel=on_cancel,
            sink=sink,
        )
        self._consumers[key] = consumer
        if no_ack:
            self.no_ack_consumers.add(tag)
        else:
            # Twice, since the servers differ in what they count; never less, as what was cancelled may
            # have deliveries that nobody has answered.
            self._most = self._most + 2 * self._prefetch if self._prefetch else inf
        if nowait:
            consumer.start()
        try:
            self.call(
                spec.Basic.Consume,
                packed,
                wait=None if nowait else spec.Basic.ConsumeOk,
                undo=lambda reply: self._cancel_late(consumer),
                on_reply=consumer.start,
                tag=key,
            )
        except BaseException:
            consumer.leave(ConsumerState.ABANDONED)
            raise
        return tag

    def _claim_tag(self, key: bytes, tag: str) -> None:
        """Pass the gate, and see that no consumer has *tag*.  May switch."""
        while True:
            self.pass_gate()
            known = self._consumers.get(key)
            if known is None or known.state is ConsumerState.CANCELLED:
                return
            if known.state is not ConsumerState.ABANDONED:
                # The broker would close the whole connection.
                raise ValueError(f"consumer tag {tag!r} is in use on this channel")
            # Its caller was killed: it ends as soon as the broker has confirmed it.
            self._watch(known)

    def _cancel_late(self, consumer: ChannelConsumer) -> None:
        """Cancel a consumer whose caller was killed before it heard that the broker has it."""
        consumer.leave(ConsumerState.ABANDONED)
        if self._gone is None:
            self._write_cancel(consumer).abandon()

    def _write_cancel(self, consumer: ChannelConsumer) -> Call:
        """Have the broker end *consumer*, once: it answers a second request before the first one.

        Never switches.
        """
        if self._ledger.pending:
            self.flush_acks()
        consumer.is_ending = True
        frame = method_frame(self.channel_id, spec.Basic.Cancel, dumps("sb", (consumer.tag, False)))
        call = Call(
            _CANCEL,
            frozenset((_CANCEL_OK,)),
            on_reply=lambda reply: self._forget_consumer(consumer),
            tag=consumer.tag.encode("utf-8", "surrogatepass"),
        )
        self.write_call(frame, call)
        return call

    def consumes(self, queue: str) -> bool:
        """Whether a consumer of *queue* runs here.  Never switches."""
        return any(each.queue == queue for each in self._consumers.values())

    def acking_consumers(self) -> list[ChannelConsumer]:
        """The consumers whose deliveries need an answer.  Never switches."""
        return [each for each in self._consumers.values() if not each.no_ack]

    def cancel_all(self, consumers: Iterable[ChannelConsumer]) -> Call | None:
        """Have the broker end *consumers*.  Never switches.

        Returns:
            The last of the calls, whose reply comes last; None if there was nothing to do.
        """
        last = None
        for consumer in consumers:
            # RabbitMQ 3.10 ends the connection over the cancel of one that it has not confirmed.
            if consumer.state is ConsumerState.RUNNING and not consumer.is_ending:
                if last is not None:
                    last.abandon()
                last = self._write_cancel(consumer)
        return last

    def basic_cancel(self, consumer_tag: str, nowait: bool = False, argsig: str = "sb") -> None:
        """End a consumer.  May switch.  An unknown tag: does nothing.

        One that the broker has not confirmed yet is waited for: RabbitMQ 3.10 ends the connection when
        it is told to cancel such a one.  Deliveries that came before the broker's reply are handed
        over to a sink as any other, while a callback gets no more: they go back to the queue, save
        those without acks.  With *nowait* all go back from now on.
        """
        self.check_hub()
        key = consumer_tag.encode("utf-8", "surrogatepass")
        consumer = self._consumers.get(key)
        if consumer is None:
            return
        if consumer.state is ConsumerState.STARTING:
            self._watch(consumer)
        if self._consumers.get(key) is consumer:
            self.pass_gate()
        if self._consumers.get(key) is not consumer or consumer.state is ConsumerState.ABANDONED:
            return  # it has ended, or does as soon as it is confirmed
        call = None if consumer.is_ending else self._write_cancel(consumer)
        if self._gone is not None:
            self.check_open()  # the connection ended in that very write
        if nowait:
            consumer.leave(ConsumerState.CANCELLED)
            if call is not None:
                call.abandon()
        elif call is not None:
            self.connection.wait_reply(call.slot, self.channel_id, None)
        else:
            while self._consumers.get(key) is consumer:
                self._watch(consumer)
        if consumer.sink is None and not consumer.no_ack and len(self.connection.events):
            # Nobody wants what came and was not handed out yet.
            give_back_events(self.connection, lambda of, message: of is consumer)

    def _watch(self, consumer: ChannelConsumer) -> None:
        """Wait for a change of *consumer*'s state.  May switch."""
        slot: Slot[None] = Slot()
        consumer.watchers.append(slot)
        slot.wait(Deadline(self.connection.options.reply_timeout))

    def basic_get(self, queue: str = "", no_ack: bool = False, argsig: str = "Bsb") -> Any:
        """Take one message from a queue; None if it is empty.  May switch.

        Raises:
            AMQPNotImplementedError: the queue was declared here as a stream; nothing was sent.
        """
        self._check_get(queue)
        reply = self.send_method(
            spec.Basic.Get,
            argsig,
            (0, queue, no_ack),
            wait=[spec.Basic.GetOk, spec.Basic.GetEmpty],
            returns_tuple=True,
            undo=None if no_ack else self._undo_get,
            on_reply=None if no_ack else self._note_get,
        )
        if len(reply) < 2:
            return None
        payload, header, body = reply[-1]
        return Delivery(self, reply[0], payload, header, body, None)

    def _note_get(self, reply: Reply) -> None:
        # In the reader, so that the ledger sees all tags in the order of the wire.
        if reply[0] == _GET_OK:
            self._ledger.delivered(_delivery_tag.unpack_from(reply[1], 4)[0])
            self._most += 1

    def _undo_get(self, reply: Reply) -> None:
        if reply[0] == _GET_OK:
            self.put_back(_delivery_tag.unpack_from(reply[1], 4)[0])

    # In the reader: nothing here may switch or run user code.

    def on_deliver(self, payload: bytes, header: bytes, body: bytes) -> None:
        """Take a delivery over.  Called by the reader, for each message."""
        end = 5 + payload[4]
        consumer = self._consumers.get(payload[5:end])
        tag = _delivery_tag.unpack_from(payload, end)[0]
        if consumer is None:
            # Noted all the same: else an ack for all up to a later one would cover it.  While the
            # channel is being closed the broker puts it back.
            self._ledger.outstanding[tag] = None
            self.put_back(tag)
            return
        if not consumer.no_ack:
            outstanding = self._ledger.outstanding
            outstanding[tag] = None
            if len(outstanding) > self._most:
                raise FrameError(
                    f"the broker does not keep to the prefetch of channel {self.channel_id}: "
                    f"{len(outstanding)} deliveries wait for an answer"
                )
        message = Delivery(self, tag, payload, header, body, consumer.tag)
        if payload[end + 8]:
            self.connection.delivery_limits.look(consumer.queue, message)
        consumer.deliver(message)

    def _on_consumer_cancel(self, reply: Reply) -> None:
        tag = read_arguments(reply[0], "s", reply[1])[0]
        consumer = self._consumers.get(tag.encode("utf-8", "surrogatepass"))
        if consumer is None:
            return
        if self._may_be_overdue(consumer.queue):
            # Its messages are another consumer's by now.
            give_back_events(self.connection, lambda of, message: of is consumer)
        elif self.connection.topology is not None:
            # Somebody has deleted it, and does not want it back; a consumer that does declares it.
            self.connection.topology.queue_deleted(consumer.queue)
        consumer.gone(cancelled_error(tag), cancelled=True)
        if consumer.is_ending:
            self._forget_consumer(consumer)
            return
        # After a consumer timeout RabbitMQ 4.3 keeps the tag until it is cancelled from this side,
        # too: it would end the connection of who consumes with it again, and deliver to it again when
        # the late answers come.  Where it does not know the tag any more it answers all the same.
        consumer.leave(ConsumerState.CANCELLED)
        self._write_cancel(consumer).abandon()

    def _may_be_overdue(self, queue: str) -> bool:
        """Whether a consumer of *queue* may be cancelled for a message that was not answered in time."""
        version = self.connection.server_version
        is_quorum = self.connection.queue_kinds.get(queue) == "quorum"
        return is_quorum and version is not None and version >= (4, 3)

    def _forget_consumer(self, consumer: ChannelConsumer) -> None:
        """The broker has ended it; its tag may have been given to another one meanwhile."""
        key = consumer.tag.encode("utf-8", "surrogatepass")
        if self._consumers.get(key) is consumer:
            del self._consumers[key]
            self.no_ack_consumers.discard(consumer.tag)
        consumer.tell_watchers()
        self.connection.consumer_ended(consumer.queue)


def give_back_events(link: LinkPort, is_meant: Callable[[ChannelConsumer, Delivery], bool]) -> None:
    """Put back those deliveries among the events of *link* that are meant.  Never switches."""
    for event in link.events.clear():
        consumer, message = _delivery_of(*event)
        if consumer is None or message is None or not is_meant(consumer, message):
            link.events.put(event)
        else:
            consumer.give_back_event(event[0], message)


def _delivery_of(
    function: Callable[[Any], Any], argument: Any
) -> tuple[ChannelConsumer | None, Delivery | None]:
    consumer = getattr(function, "__self__", None)
    if not isinstance(consumer, ChannelConsumer) or consumer.no_ack:
        return None, None
    return consumer, argument if isinstance(argument, Delivery) else None
