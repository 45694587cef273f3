"""A channel of an AMQP connection, for any number of greenlets at once.

Built on ``amqp.Channel``: its declarations, binds, purges, qos and transactions are used as they are.
Replaced are the parts that read, wait or keep one pending reply for each method: ``send_method``,
``wait``, ``dispatch_method``, ``open``, ``close``, ``collect``, ``_on_close``, ``basic_consume``,
``basic_cancel``, ``basic_get``, ``basic_ack``, ``basic_reject``, ``basic_recover``, ``basic_qos`` and
the returns; publishing is in :mod:`~greenconn.transport.amqp.publisher`.

Every switch (the gate of the writer) comes before the first byte.  Writing a method and putting its
call into the line is one step without a switch, so replies reach their callers in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import amqp
from amqp import spec
from amqp.exceptions import error_for_code
from amqp.serialization import dumps, loads

from greenconn.exceptions import (
    ChannelError,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from greenconn.identity import uuid
from greenconn.message import Message
from greenconn.transport.amqp.consumer import ChannelConsumer, cancelled_error
from greenconn.transport.amqp.message import Delivery
from greenconn.transport.amqp.publisher import Publisher
from greenconn.transport.amqp.rpc import Call, CallLine, Reply, Undo, expected_of, ids_of
from greenconn.transport.base import StdChannel
from greenconn.wire.acks import AckLedger
from greenconn.wire.amqp import BASIC_DELIVER, BASIC_RETURN, method_frame

if TYPE_CHECKING:
    from greenconn.abc import Sink
    from greenconn.transport.amqp.connection import AmqpLink

__all__ = ["Channel"]

_tag_and_flags = Struct(">QB")
_delivery_tag = Struct(">Q")

_CLOSE: Final = ids_of(spec.Channel.Close)
_CLOSE_OK: Final = ids_of(spec.Channel.CloseOk)
_GET_OK: Final = ids_of(spec.Basic.GetOk)
_FLOW: Final = ids_of(spec.Channel.Flow)
_CANCEL: Final = ids_of(spec.Basic.Cancel)
_CANCEL_OK: Final = ids_of(spec.Basic.CancelOk)
_ACK: Final = ids_of(spec.Basic.Ack)
_NACK: Final = ids_of(spec.Basic.Nack)


class Channel(Publisher, amqp.Channel, StdChannel):
    """One channel.

    Any greenlet of the connection's hub may call any method at any time.

    Attributes:
        events: ``events['basic_return']`` is a set of ``function(exc, exchange, routing_key, message)``
            called from ``drain_events`` for returned messages that nobody waits for.
        no_ack_consumers: tags of consumers whose messages need no answer.
    """

    Message = Message

    def __init__(self, link: AmqpLink) -> None:
        self._calls = CallLine()
        self._ledger = AckLedger()
        self._consumers: dict[bytes, ChannelConsumer] = {}
        #: Why the channel can no longer be used; None while it can.
        self._gone: BaseException | None = None
        self._closing = False
        self._prefetch = 0
        self._qos: tuple[int, int, bool] | None = None
        super().__init__(link, auto_decode=False)
        self._init_publisher(link)
        self._replies: dict[int, Callable[[Reply], None]] = {
            _CLOSE: self._on_channel_close,
            _CLOSE_OK: self._on_channel_close_ok,
            _FLOW: self._on_channel_flow,
            _CANCEL: self._on_consumer_cancel,
            _CANCEL_OK: self._on_consumer_cancel_ok,
            BASIC_RETURN: self._on_return,
            _ACK: self._on_ack,
            _NACK: self._on_nack,
        }

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Channel {self.channel_id} ({state}) of {self.connection!r}>"

    def _setup_listeners(self) -> None:
        """Nothing: methods are dispatched by ``on_method``."""

    # Calls

    def check_open(self) -> None:
        """Raise unless the channel can be used.

        Raises:
            RecoverableChannelError: it was closed; says why.
            RecoverableConnectionError: its connection is gone.
        """
        gone = self._gone
        if gone is None:
            return
        if self.connection.lost is not None:
            raise RecoverableConnectionError(
                f"this channel belonged to a connection that is gone: {gone}"
            ) from gone
        raise RecoverableChannelError(f"channel {self.channel_id} is closed: {gone}") from gone

    def send_method(
        self,
        sig: tuple[int, int],
        format: str | None = None,
        args: Any = None,
        content: Any = None,
        wait: Any = None,
        callback: Callable[[], Any] | None = None,
        returns_tuple: bool = False,
        *,
        undo: Undo | None = None,
    ) -> Any:
        """Write a method and, with *wait*, return its reply.  May switch.

        Arguments:
            undo: what to do with the reply when the caller was killed before it came.
        """
        self.check_open()
        arguments = dumps(format, args) if format else b""
        writer = self._writer
        if writer.gate:
            self.connection.pass_gate(Deadline(None))
            self.check_open()
        if self._ledger.pending:
            self.flush_acks()
        writer.write(method_frame(self.channel_id, sig, arguments))
        self._last_request = ids_of(sig)
        if wait:
            return self.wait(wait, returns_tuple=returns_tuple, undo=undo)
        return None

    def wait(
        self,
        method: Any,
        callback: Any = None,
        timeout: float | None = None,
        returns_tuple: bool = False,
        *,
        undo: Undo | None = None,
    ) -> Any:
        """Wait for the reply to the method that was written just now.  May switch.

        Nothing may switch between the writing and this.
        """
        if self._gone is not None:
            self.check_open()  # the connection ended in that very write
        call = Call(self._last_request, expected_of(method), undo)
        self._calls.append(call)
        ids, payload, header, body = self.connection.wait_reply(call.slot, self, timeout)
        args = self._decode(ids, payload)
        if header is not None:
            args.append((payload, header, body))
        return args if returns_tuple else (args and args[0])

    def _decode(self, ids: int, payload: bytes) -> list[Any]:
        known = self._METHODS[(ids >> 16, ids & 0xFFFF)]
        return list(loads(known.args, payload, 4)[0]) if known.args else []

    def open(self) -> None:
        """Open the channel at the broker.  May switch."""
        if self.is_open:
            return
        self.send_method(
            spec.Channel.Open, "s", ("",), wait=spec.Channel.OpenOk, undo=self._undo_open
        )
        self.is_open = True

    def _undo_open(self, reply: Reply) -> None:
        self._close_late("its opening was given up")

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Close the channel.  May switch.  Again, or after it was lost: does nothing.

        Deliveries that were not answered go back to their queues.
        """
        if self._gone is not None or self._closing:
            return
        if self.is_open and self._writer.gate:
            self.connection.pass_gate(Deadline(None))
            if self._gone is not None or self._closing:
                return
        call = self._write_close(RecoverableChannelError("it was closed by this program"))
        if self.connection.lost is None:
            try:
                self.connection.wait_reply(call.slot, self, None)
            except RecoverableConnectionError:
                if self.connection.lost is None:
                    raise

    def _close_late(self, reason: str) -> None:
        """In the reader: close a channel that nobody uses."""
        if self._gone is None:
            self._write_close(RecoverableChannelError(reason)).abandon()

    def _write_close(self, reason: RecoverableChannelError) -> Call:
        if self._ledger.pending:
            self.flush_acks()
        self._closing = True
        self._end(reason, closed=True)
        self._writer.write(
            method_frame(self.channel_id, spec.Channel.Close, dumps("BsBB", (0, "", 0, 0)))
        )
        call = Call(_CLOSE, frozenset((_CLOSE_OK,)))
        self._calls.append(call)
        return call

    def collect(self) -> None:
        """Drop the channel because its connection is gone.  Never switches."""
        self._end(self.connection.lost or RecoverableConnectionError("connection was dropped"))

    def _end(
        self, cause: BaseException, *, closed: bool = False, blamed: int | None = None
    ) -> bool:
        """Mark the channel as gone and tell everybody.  Never switches.

        Returns:
            Whether one caller got the broker's error as its own.
        """
        if self._gone is not None:
            # Closed by us, and now the connection went before its close-ok.
            self._calls.fail(cause)
            return True
        self._gone = cause
        self.is_open = False
        self._ledger.pending.clear()
        owned = self._calls.fail(cause, blamed)
        owned = self._fail_publishes(cause, blamed) or owned
        consumers, self._consumers = self._consumers, {}
        if not closed:
            for consumer in consumers.values():
                consumer.gone(cause)
            if self.connection.lost is None and any(c.sink is None for c in consumers.values()):
                # Whoever drains must learn that nothing will come from here any more.
                self.connection.events.put((_raise, self._lost_consumers(cause)))
        self.no_ack_consumers.clear()
        return owned

    def _lost_consumers(self, cause: BaseException) -> RecoverableChannelError:
        error = RecoverableChannelError(
            f"channel {self.channel_id} was closed by the broker and its consumers with it: {cause}"
        )
        error.__cause__ = cause
        return error

    def take_over(self, old: Channel) -> None:
        """Become what *old*, a channel of a former life, was: its qos and confirm mode.  May switch."""
        if old._qos is not None:
            self.basic_qos(*old._qos)
        if old._confirms is not None and self._confirms is None:
            self.confirm_select()
        for name, handlers in old.events.items():
            self.events[name] |= handlers

    # Consuming

    def basic_qos(
        self,
        prefetch_size: int = 0,
        prefetch_count: int = 0,
        apply_global: bool = False,
        argsig: str = "lBb",
    ) -> None:
        """Limit the unanswered deliveries.  May switch.

        Arguments:
            prefetch_count: messages; 0 is no limit.
            apply_global: the whole channel, else each consumer that is started from now on
                (RabbitMQ's meaning, which differs from the specification's).
        """
        super().basic_qos(prefetch_size, prefetch_count, apply_global, argsig)
        self._qos = (prefetch_size, prefetch_count, apply_global)
        self._prefetch = prefetch_count

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

        Arguments:
            callback: called with each message by whoever calls ``drain_events``.
            sink: takes the messages instead.

        Returns:
            The consumer tag.

        Raises:
            ValueError: the tag is in use on this channel, or nowait without a tag.
        """
        if nowait and not consumer_tag:
            raise ValueError("nowait needs a consumer_tag: the broker would choose one unheard")
        tag = consumer_tag or f"greenconn-{uuid()}"
        key = tag.encode("utf-8", "surrogatepass")
        known = self._consumers.get(key)
        if known is not None and not known.is_abandoned:
            raise ValueError(f"consumer tag {tag!r} is in use on this channel")
        consumer = ChannelConsumer(
            self.connection,
            tag,
            no_ack=no_ack,
            unbounded=no_ack or not self._prefetch,
            callback=callback,
            on_cancel=on_cancel,
            sink=sink,
        )
        if self._writer.gate:
            self.connection.pass_gate(Deadline(None))
        self.check_open()
        self._consumers[key] = consumer
        if no_ack:
            self.no_ack_consumers.add(tag)
        try:
            self.send_method(
                spec.Basic.Consume,
                argsig,
                (0, queue, tag, no_local, no_ack, exclusive, nowait, arguments),
                wait=None if nowait else spec.Basic.ConsumeOk,
                undo=lambda reply: self._cancel_late(consumer),
            )
        except BaseException:
            consumer.is_abandoned = True
            raise
        return tag

    def _cancel_late(self, consumer: ChannelConsumer) -> None:
        """In the reader: cancel a consumer whose caller was killed before the broker confirmed it."""
        if self._gone is None:
            self._writer.write(
                method_frame(self.channel_id, spec.Basic.Cancel, dumps("sb", (consumer.tag, False)))
            )
            call = Call(_CANCEL, frozenset((_CANCEL_OK,)))
            call.abandon()
            self._calls.append(call)

    def basic_cancel(self, consumer_tag: str, nowait: bool = False, argsig: str = "sb") -> None:
        """End a consumer.  May switch.  An unknown tag: does nothing.

        Deliveries that came before the broker's reply are handed over as any other.
        """
        key = consumer_tag.encode("utf-8", "surrogatepass")
        if key not in self._consumers:
            return
        self.send_method(
            spec.Basic.Cancel,
            argsig,
            (consumer_tag, nowait),
            wait=None if nowait else spec.Basic.CancelOk,
        )
        if nowait and key in self._consumers:
            self._consumers[key].is_abandoned = True

    def basic_get(self, queue: str = "", no_ack: bool = False, argsig: str = "Bsb") -> Any:
        """Take one message from a queue; None if it is empty.  May switch."""
        reply = self.send_method(
            spec.Basic.Get,
            argsig,
            (0, queue, no_ack),
            wait=[spec.Basic.GetOk, spec.Basic.GetEmpty],
            returns_tuple=True,
            undo=None if no_ack else self._undo_get,
        )
        if len(reply) < 2:
            return None
        payload, header, body = reply[-1]
        tag = reply[0]
        if not no_ack:
            self._ledger.delivered(tag)
        return Delivery(self, tag, payload[4:], header, body, None)

    def _undo_get(self, reply: Reply) -> None:
        if reply[0] == _GET_OK:
            self._write_reject(_delivery_tag.unpack_from(reply[1], 4)[0], True)

    # Answers

    def basic_ack(self, delivery_tag: int, multiple: bool = False, argsig: str = "Lb") -> None:
        """Acknowledge a delivery.  Never switches.

        The acks of a turn of the hub leave together at its end, merged where that is right.  For a
        delivery of a connection that is gone it does nothing: the broker delivers it again.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        if self._gone is not None:
            self._check_answerable()
            return
        ledger = self._ledger
        if not (ledger.ack_up_to(delivery_tag) if multiple else ledger.ack(delivery_tag)):
            raise self._unknown_tag(delivery_tag)
        # The first of the turn asks for the flush at its end.
        if len(ledger.pending) == 1 or multiple:
            self.connection.ack_later(self)

    def basic_reject(self, delivery_tag: int, requeue: bool, argsig: str = "Lb") -> None:
        """Refuse a delivery.  May switch.

        Arguments:
            requeue: put it back, else it is dropped or goes to the dead-letter exchange.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        if self._writer.gate:
            self.connection.pass_gate(Deadline(None))
        if self._gone is not None:
            self._check_answerable()
            return
        if not self._ledger.settle(delivery_tag):
            raise self._unknown_tag(delivery_tag)
        self._write_reject(delivery_tag, requeue)

    def basic_recover(self, requeue: bool = False) -> None:
        """Have all unanswered deliveries of this channel delivered again.  May switch."""
        self.send_method(
            spec.Basic.Recover, "b", (requeue,), wait=spec.Basic.RecoverOk, undo=self._undo_recover
        )
        self._ledger.settle_all()

    def _undo_recover(self, reply: Reply) -> None:
        self._ledger.settle_all()

    def flush_acks(self) -> None:
        """Write the acks that are pending.  Never switches; in the hub at the end of a turn."""
        if self._gone is not None:
            return
        for tag, multiple in self._ledger.take():
            self._writer.write(
                method_frame(self.channel_id, spec.Basic.Ack, _tag_and_flags.pack(tag, multiple))
            )

    def _write_reject(self, tag: int, requeue: bool) -> None:
        if self._ledger.pending:
            self.flush_acks()
        self._writer.write(
            method_frame(self.channel_id, spec.Basic.Reject, _tag_and_flags.pack(tag, requeue))
        )

    def _check_answerable(self) -> None:
        if self.connection.lost is None:
            self.check_open()

    def _unknown_tag(self, tag: int) -> PreconditionFailed:
        return PreconditionFailed(
            f"unknown delivery tag {tag!r}: it was answered before, or is not of this channel",
            spec.Basic.Ack,
            reply_code=406,
        )

    # In the reader: nothing here may switch or run user code.

    def on_method(self, ids: int, payload: bytes, header: bytes | None, body: bytes | None) -> None:
        """Take a method of the broker over.  Called by the reader."""
        if ids == BASIC_DELIVER:
            self._on_deliver(payload, header, body)
            return
        if self._closing and ids not in (_CLOSE, _CLOSE_OK):
            return
        reply = (ids, payload, header, body)
        handler = self._replies.get(ids)
        if handler is not None:
            handler(reply)
        elif not self._calls.settle(reply):
            self.connection.unexpected_method(self.channel_id, ids)

    def _on_deliver(self, payload: bytes, header: bytes | None, body: bytes | None) -> None:
        end = 5 + payload[4]
        consumer = self._consumers.get(payload[5:end])
        if consumer is None or consumer.is_abandoned:
            self._on_unwanted(consumer, payload, end)
            return
        tag = _delivery_tag.unpack_from(payload, end)[0]
        if not consumer.no_ack:
            self._ledger.outstanding[tag] = None
        assert header is not None
        assert body is not None
        consumer.deliver(Delivery(self, tag, payload[end:], header, body, consumer.tag))

    def _on_unwanted(self, consumer: ChannelConsumer | None, payload: bytes, end: int) -> None:
        # Cancelled without waiting, or its caller was killed: back into the queue.
        if self._gone is None and consumer is not None and not consumer.no_ack:
            self._write_reject(_delivery_tag.unpack_from(payload, end)[0], True)

    def _on_channel_close(self, reply: Reply) -> None:
        code, text, class_id, method_id = self._decode(reply[0], reply[1])
        cause = error_for_code(code, text, (class_id, method_id), ChannelError)
        self._writer.write(method_frame(self.channel_id, spec.Channel.CloseOk, b""))
        if self._closing:
            return  # both sides close at once: the id is free when our close is answered
        self._end(cause, blamed=class_id << 16 | method_id)
        self.connection.channel_closed(self)

    def _on_channel_close_ok(self, reply: Reply) -> None:
        self._calls.settle(reply)
        self.connection.channel_closed(self)

    def _on_channel_flow(self, reply: Reply) -> None:
        self.active = bool(self._decode(reply[0], reply[1])[0])
        self._writer.write(
            method_frame(self.channel_id, spec.Channel.FlowOk, bytes((self.active,)))
        )

    def _on_consumer_cancel(self, reply: Reply) -> None:
        tag = self._decode(reply[0], reply[1])[0]
        consumer = self._consumers.pop(tag.encode("utf-8", "surrogatepass"), None)
        self.no_ack_consumers.discard(tag)
        if consumer is not None:
            consumer.gone(cancelled_error(tag), cancelled=True)

    def _on_consumer_cancel_ok(self, reply: Reply) -> None:
        tag = self._decode(reply[0], reply[1])[0]
        self._consumers.pop(tag.encode("utf-8", "surrogatepass"), None)
        self.no_ack_consumers.discard(tag)
        self._calls.settle(reply)

    # Messages

    def message_to_python(self, raw: Any) -> Any:
        """Messages of this channel are ready: returns *raw*."""
        return raw


def _raise(exc: BaseException) -> None:
    raise exc
