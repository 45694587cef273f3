"""A channel of an AMQP connection, for any number of greenlets at once.

Built on ``amqp.Channel``: its qos is used as it is.  Replaced are the parts that
read, wait, write content or keep one pending reply for each method.  Calls are in
:mod:`~greenconn.transport.amqp.calls`, declarations in :mod:`~greenconn.transport.amqp.topology`,
consuming in :mod:`~greenconn.transport.amqp.consuming`, answering in
:mod:`~greenconn.transport.amqp.acks`, publishing in
:mod:`~greenconn.transport.amqp.publishing`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Final

import amqp
from amqp import spec
from amqp.exceptions import error_for_code
from amqp.serialization import dumps
from gevent import get_hub

from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from greenconn.message import Message
from greenconn.transport.amqp.acks import Transactions
from greenconn.transport.amqp.calls import Call, Calling, CallLine
from greenconn.transport.amqp.consuming import (
    ChannelConsumer,
    ConsumerState,
    Consuming,
    give_back_events,
)
from greenconn.transport.amqp.errors import with_remedy
from greenconn.transport.amqp.methods import Reply, ids_of
from greenconn.transport.amqp.publishing import Publisher
from greenconn.transport.amqp.topology import Topology
from greenconn.transport.amqp.unsent import Found
from greenconn.transport.base import StdChannel
from greenconn.wire.amqp import BASIC_RETURN, method_frame

if TYPE_CHECKING:
    from greenconn.transport.amqp.link import AmqpLink

__all__ = ["Channel"]

#: Seconds that ``close`` waits for the end of the consumers.
WITHDRAW_TIMEOUT: Final = 2.0

_CLOSE: Final = ids_of(spec.Channel.Close)
_CLOSE_OK: Final = ids_of(spec.Channel.CloseOk)
_FLOW: Final = ids_of(spec.Channel.Flow)
_ACK: Final = ids_of(spec.Basic.Ack)
_NACK: Final = ids_of(spec.Basic.Nack)


class Channel(Calling, Topology, Transactions, Consuming, Publisher, amqp.Channel, StdChannel):
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
        #: Why the channel can no longer be used; None while it can.
        self._gone: BaseException | None = None
        self._closing = False
        self._hub = link.home.hub
        capabilities = link.server_properties.get("capabilities") or {}
        self._init_consuming(bool(capabilities.get("basic.nack")))
        super().__init__(link, auto_decode=False)
        self._init_publisher(link)
        self._replies: dict[int, Callable[[Reply], None]] = {
            _CLOSE: self._on_channel_close,
            _CLOSE_OK: self._on_channel_close_ok,
            _FLOW: self._on_channel_flow,
            ids_of(spec.Basic.Cancel): self._on_consumer_cancel,
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

    @property
    def cause(self) -> BaseException | None:
        """Why it can no longer be used (the link's ``lost``, if that is why); None while it can."""
        return self._gone

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
                f"this channel belonged to a connection that is gone: {gone}{self._unsent.hint}"
            ) from gone
        raise RecoverableChannelError(f"channel {self.channel_id} is closed: {gone}") from gone

    def open(self) -> None:
        """Open the channel at the broker, for a caller that has passed the gate.  May switch."""
        if self.is_open:
            return
        self.call(
            spec.Channel.Open, dumps("s", ("",)), wait=spec.Channel.OpenOk, undo=self._undo_open
        )
        # The connection may have been lost behind the answer, before this greenlet had it.
        self.check_open()
        self.is_open = True

    def _undo_open(self, reply: Reply) -> None:
        self._close_late("its opening was given up")

    def flush(self, timeout: float | None = None) -> None:
        """Return when all that was published and answered has been given to the socket.  May switch.

        The operating system sends it then, also if the program blocks or dies.  Whether the broker has
        it only a confirm tells.

        Arguments:
            timeout: seconds; None is the connection's ``blocked_timeout``.

        Raises:
            TimeoutError: the broker took too little in time.
            RecoverableConnectionError, RecoverableChannelError: the channel is gone.
        """
        if get_hub() is not self._hub:
            self.check_hub()
        self.check_open()
        self.flush_acks()
        self.connection.drain_writer(timeout)
        self.check_open()

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Close the channel.  May switch.  Again, or after it was lost: does nothing.

        Deliveries that were not answered go back to their queues: first, after the end of the
        consumers, those that nobody has begun with.
        """
        if get_hub() is not self._hub:
            self.check_hub()
        if self._writer.gate and self._gone is None:
            self.connection.gate.pass_through()
        if self._gone is not None:
            return
        if self._consumers or len(self.connection.events):
            try:
                withdraw(self.connection, (self,), Deadline(WITHDRAW_TIMEOUT))
            except (TimeoutError, ConnectionError, ChannelError):
                pass  # it is closed all the same
            except BaseException:
                self._close_late("its closing was given up")
                raise
            if self.cause is not None:
                return
        for consumer in self._consumers.values():
            if consumer.sink is None:
                # What waits among the events is not handed out after the end of its channel.
                consumer.leave(ConsumerState.ABANDONED)
        call = self._write_close(RecoverableChannelError("it was closed by this program"))
        if self.connection.lost is None:
            try:
                self.connection.wait_reply(call.slot, self.channel_id, None)
            except RecoverableConnectionError:
                if self.connection.lost is None:
                    raise

    def _close_late(self, reason: str) -> None:
        """Close a channel that nobody uses.  Never switches."""
        if self._gone is None:
            self._write_close(RecoverableChannelError(reason)).abandon()

    def _write_close(self, reason: RecoverableChannelError) -> Call:
        if self._ledger.pending:
            self.flush_acks()
        self._closing = True
        self._end(reason, closed=True)
        return self._ask_to_close()

    def _ask_to_close(self) -> Call:
        call = Call(_CLOSE, frozenset((_CLOSE_OK,)))
        self._calls.append(call)
        self._writer.write(
            method_frame(self.channel_id, spec.Channel.Close, dumps("BsBB", (0, "", 0, 0)))
        )
        return call

    def abort(self, cause: BaseException) -> None:
        """Close the channel, since the two sides do not count alike: all who use it are told.

        Never switches.  Again: does nothing.
        """
        if self._gone is None:
            self._closing = True
            self._end(cause)
            self._ask_to_close().abandon()

    def interrupted(self, what: str, exc: BaseException) -> None:
        """An exception came from outside between two steps that belong together.  Never switches.

        Arguments:
            what: was under way.
        """
        self.abort(
            RecoverableChannelError(
                f"channel {self.channel_id} was closed because {what} was interrupted by {exc!r}: "
                f"nobody can tell what the broker has of it"
            )
        )

    def collect(self, unsent: Iterable[Found] = (), closed: bool = False) -> None:
        """Drop the channel because its connection is gone.  Never switches.

        Arguments:
            unsent: what had not left of its messages.
            closed: the connection was closed by us, not lost.
        """
        self._end(self.connection.lost or RecoverableConnectionError("connection was dropped"))
        self._leave_unsent(unsent, closed)

    def forget(self, cause: BaseException) -> None:
        """After a fork, in the child: later calls raise.  Nobody is woken."""
        if self._gone is None:
            self._gone = cause
            self.is_open = False
            self._stop_returning()
            self._unsent.forget()

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
        self._stop_returning()
        self._ledger.pending.clear()
        self._ledger.returning.clear()
        if closed:
            self._calls.release(cause)
            owned = True
        else:
            owned = self._calls.fail(cause, blamed)
        owned = self._fail_publishes(cause, blamed) or owned
        consumers, self._consumers = self._consumers, {}
        if self.connection.lost is None:
            for consumer in consumers.values():
                self.connection.consumer_ended(consumer.queue)
        if not closed:
            for consumer in consumers.values():
                consumer.gone(cause)
            if self.connection.lost is None and any(c.is_event for c in consumers.values()):
                # Whoever drains must learn that nothing will come from here any more.
                self.connection.events.put((_raise, self._lost_consumers(cause)))
        self.no_ack_consumers.clear()
        return owned

    def _lost_consumers(self, cause: BaseException) -> RecoverableChannelError:
        how = "closed" if self._closing else "closed by the broker"
        error = RecoverableChannelError(
            f"channel {self.channel_id} was {how} and its consumers with it: {cause}"
        )
        error.__cause__ = cause
        return error

    def take_over(self, old: Channel) -> None:
        """Become what *old*, a channel of a former life, was: its qos and its mode.  May switch.

        What had not left of its unconfirmed messages is sent, or told of.
        """
        if old._qos is not None:
            self.basic_qos(*old._qos)
        if old._confirms is not None and self._confirms is None:
            self.confirm_select()
        if old.is_transactional:
            self.tx_select()
        for name, handlers in old.events.items():
            self.events[name] |= handlers
        self._publish_for(old)

    # In the reader: nothing here may switch or run user code.

    def on_method(self, ids: int, payload: bytes, header: bytes | None, body: bytes | None) -> None:
        """Take a method of the broker over.  Called by the reader."""
        reply = (ids, payload, header, body)
        if self._closing and ids not in (_CLOSE, _CLOSE_OK):
            self._calls.settle(reply)  # what it has done is noted; the rest is nobody's business
            return
        handler = self._replies.get(ids)
        if handler is not None:
            handler(reply)
        elif not self._calls.settle(reply):
            self.connection.unexpected_method(self.channel_id, ids)

    def _on_channel_close(self, reply: Reply) -> None:
        code, text, class_id, method_id = self._decode(reply[0], reply[1])
        cause = error_for_code(code, with_remedy(text), (class_id, method_id), ChannelError)
        self._writer.write(method_frame(self.channel_id, spec.Channel.CloseOk, b""))
        if self._closing:
            return  # both sides close at once: the id is free when our close is answered
        self._end(cause, blamed=class_id << 16 | method_id)
        self.connection.channel_closed(self)

    def _on_channel_close_ok(self, reply: Reply) -> None:
        self._calls.settle_last(reply)
        self.connection.channel_closed(self)

    def _on_channel_flow(self, reply: Reply) -> None:
        self.active = bool(self._decode(reply[0], reply[1])[0])
        if self.active:
            self.connection.gate.open(self.channel_id)
        else:
            self.connection.gate.shut(f"channel.flow on channel {self.channel_id}", self.channel_id)
        self._writer.write(
            method_frame(self.channel_id, spec.Channel.FlowOk, bytes((self.active,)))
        )

    # Messages

    def message_to_python(self, raw_message: Any) -> Any:
        """Return *raw_message*: messages come ready."""
        return raw_message


def _raise(exc: BaseException) -> None:
    raise exc


def withdraw(link: AmqpLink, channels: Collection[Channel], deadline: Deadline) -> None:
    """Have the broker send no more on *channels*, and put back what nobody has begun with.

    May switch.

    Raises:
        TimeoutError: the broker did not answer before the deadline.
        ConnectionError, ChannelError: the link or a channel ended meanwhile.
    """
    if link.gate.blocked is not None:
        return  # the broker does not read
    consumers: list[ChannelConsumer] = []
    calls: list[tuple[Channel, Call]] = []
    for channel in channels:
        mine = channel.acking_consumers()
        consumers += mine
        call = channel.cancel_all(mine)
        if call is not None:
            calls.append((channel, call))
    for channel, call in calls:
        link.wait_reply(call.slot, channel.channel_id, deadline.left())
    for consumer in consumers:
        consumer.give_back()
    if len(link.events):
        give_back_events(link, lambda consumer, message: message.channel in channels)
    for channel in channels:
        channel.finish_returns()
