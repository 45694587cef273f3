"""The consuming half of a channel: its prefetch, its consumers, and gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from amqp import spec
from amqp.serialization import dumps

from greenconn.encoding import plain_text
from greenconn.exceptions import FrameError
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.identity import uuid
from greenconn.transport.amqp.answering import Answering
from greenconn.transport.amqp.arguments import read_arguments
from greenconn.transport.amqp.consumer import ChannelConsumer, ConsumerState, cancelled_error
from greenconn.transport.amqp.kinds import QueueKinds
from greenconn.transport.amqp.message import Delivery
from greenconn.transport.amqp.rpc import Call, Reply, ids_of
from greenconn.transport.amqp.withdrawal import give_back_events
from greenconn.wire.amqp import method_frame

if TYPE_CHECKING:
    from greenconn.abc import Sink

__all__ = ["Consuming"]

_delivery_tag = Struct(">Q")

#: Unanswered deliveries that any broker may send beyond what it was asked for.
_SLACK: Final = 1000

_GET_OK: Final = ids_of(spec.Basic.GetOk)
_CANCEL: Final = ids_of(spec.Basic.Cancel)
_CANCEL_OK: Final = ids_of(spec.Basic.CancelOk)


class Consuming(QueueKinds, Answering):
    """What a channel does to consume; mixed into ``Channel``."""

    pack: Callable[..., bytes]
    send_method: Callable[..., Any]
    no_ack_consumers: Any  # set[str]: amqp.Channel makes it
    write_call: Callable[[bytes, Call], None]
    _last_queue: str
    _consumer_ended: Callable[[str], None]

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
        self._consumer_ended(consumer.queue)
