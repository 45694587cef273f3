"""A channel of an AMQP connection, for any number of greenlets at once.

It has the methods of ``amqp.Channel``, and is made of parts: ``calls``, ``acks``, ``consumers``,
``publisher`` and ``returns``.  What belongs to more than one of them is here: who may use the channel,
its end, and the way of a message out and of its ack back.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import amqp
from amqp import spec
from amqp.exceptions import error_for_code
from amqp.serialization import dumps
from gevent import get_hub

from greenconn.encoding import plain_text
from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
    Unroutable,
    error_text,
    raise_error,
)
from greenconn.green.deadline import NEVER, Deadline, is_thrown
from greenconn.identity import uuid
from greenconn.message import Message
from greenconn.transport.amqp.acks import Acks
from greenconn.transport.amqp.calls import Call, Calls, Pipeline
from greenconn.transport.amqp.consuming import ChannelConsumer, Consumers, requeue_events
from greenconn.transport.amqp.handshake import with_remedy
from greenconn.transport.amqp.message import BodilessDelivery, Outgoing, prepared
from greenconn.transport.amqp.publishing import (
    AWAITED,
    RESEND,
    PendingConfirm,
    Publisher,
    Returns,
    UnsentMessage,
)
from greenconn.transport.amqp.topology import DeclaringChannel
from greenconn.wire.amqp import (
    BASIC_DELIVER,
    BASIC_RETURN,
    BODY_SKIPPED,
    Reply,
    ids_of,
    method_frame,
    reply_arguments,
)

if TYPE_CHECKING:
    from greenconn.abc import Sink
    from greenconn.delays import DelayedRoute
    from greenconn.transport.amqp.link import AmqpLink

logger = logging.getLogger("greenconn.transport.amqp")

#: Seconds that ``close`` waits for the end of the consumers.
WITHDRAW_TIMEOUT: Final = 2.0

_OPEN_ARGUMENTS: Final = dumps("s", ("",))  # reserved
_CLOSE: Final = ids_of(spec.Channel.Close)
_CLOSE_OK: Final = ids_of(spec.Channel.CloseOk)


class Channel(DeclaringChannel):
    """One channel.

    Any greenlet of the connection's hub may call any method at any time.

    Arguments:
        link: the connection of the channel.

    Attributes:
        acks, calls, consumers, publisher, returns: its parts.
        active: the broker takes messages on it (``channel.flow``).
        connection: the link.
        events: ``events['basic_return']`` is a set of ``function(exc, exchange, routing_key, message)``
            called from ``drain_events`` for returned messages that no publish waits for.
        is_transactional: ``tx_select()`` was called.
        no_ack_consumers: tags of the consumers without acks.
        return_sink: called by the reader, in place of the handlers in ``events``, with what they would
            get for a returned message.  It must not switch.
        streams: tags of consumers that read streams.
    """

    Message = Message
    can_pipeline = True

    def __init__(self, link: AmqpLink) -> None:
        self.channel_id = link.take_number()
        self.connection = link
        self.is_open = False
        self.active = True
        self.is_transactional = False
        self.events: dict[str, set[Any]] = defaultdict(set)
        self.return_sink: Callable[..., object] | None = None
        capabilities = link.server_properties.get("capabilities") or {}
        self.acks = Acks(self, link, bool(capabilities.get("basic.nack")))
        super().__init__(link, Calls(self, link, self.acks))
        self.consumers = Consumers(self, link, self.calls, self.acks)
        self.publisher = Publisher(self, link, self.calls)
        self.returns = Returns(self, link, self.publisher)
        self.flushes_acks = False  # of its own, since it is read with each ack
        self.no_ack_consumers = self.consumers.no_ack
        self.streams = self.consumers.streams
        #: Take a delivery over.  Called by the reader, for each message.
        self.on_deliver = self.consumers.on_deliver
        self._closing = False
        self._hub = link.hub_affinity.hub
        self._writer = link.writer
        self._flow_control = link.flow_control
        assert link.stream is not None
        self._catch_up = link.stream.catch_up
        self._handlers: dict[int, Callable[[Reply], None]] = {
            _CLOSE: self._on_close,
            _CLOSE_OK: self._on_close_ok,
            ids_of(spec.Channel.Flow): self._on_flow,
            ids_of(spec.Basic.Cancel): self.consumers.on_cancel,
            BASIC_RETURN: self.returns.on_return,
            ids_of(spec.Basic.Ack): self.publisher.on_confirm,
            ids_of(spec.Basic.Nack): self.publisher.on_confirm,
        }
        if link.confirm_publish:
            self.basic_publish = (  # type: ignore[method-assign]
                self.basic_publish_confirm  # type: ignore[assignment]
            )
        # Last, as the end of the link ends all that it has: none that a signal left half made.
        link.channels[self.channel_id] = self

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Channel {self.channel_id} ({state}) of {self.connection!r}>"

    def check_open(self) -> None:
        """Raise unless the channel can be used.

        Raises:
            RecoverableChannelError: it was closed; says why.
            RecoverableConnectionError: its connection is gone.
        """
        cause = self.cause
        if cause is None:
            return
        if self.connection.lost is not None:
            hint = self.publisher.unsent.hint
            raise RecoverableConnectionError(
                f"this channel belonged to a connection that was closed: {cause}{hint}"
            ) from cause
        raise RecoverableChannelError(f"channel {self.channel_id} is closed: {cause}") from cause

    def check_hub(self) -> None:
        """Raise if the caller is in another thread than the connection.

        Raises:
            WrongHub: names both threads and the remedy.
        """
        self.connection.hub_affinity.check(self)

    def pipeline(self) -> Pipeline:
        """Return a context for requests that are sent without a wait for each reply.  Never switches."""
        return Pipeline(self, self.calls)

    # Opening and closing

    def open(self) -> None:
        """Open the channel at the broker, for a caller that has waited for the writer.  May switch."""
        if self.is_open:
            return
        self.calls.call(
            spec.Channel.Open, _OPEN_ARGUMENTS, wait=spec.Channel.OpenOk, undo=self._undo_open
        )
        # The connection may have been lost behind the answer, before this greenlet had it.
        self.check_open()
        self.is_open = True

    def begin_open(self) -> None:
        """Open it as :meth:`open`, but have requests follow before the broker replies.  Never switches.

        The broker handles them behind it.  If it refuses the channel, they raise its error.
        """
        self.calls.begin(
            spec.Channel.Open,
            _OPEN_ARGUMENTS,
            wait=spec.Channel.OpenOk,
            undo=self._undo_open,
            leads=True,
        )
        self.is_open = True

    def _undo_open(self, reply: Reply) -> None:
        self._close_late("opening was aborted")

    def flow(self, active: bool) -> Any:
        """Have the broker stop or go on with deliveries.  May switch.

        Raises:
            AMQPNotImplementedError: RabbitMQ refuses to stop.
        """
        return self.calls.send(spec.Channel.Flow, "b", (active,), wait=spec.Channel.FlowOk)

    def flush(self, timeout: float | None = None) -> None:
        """Return when all publishes and acks have been given to the socket.  May switch.

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
        self.acks.flush()
        self.connection.drain_writer(timeout)
        self.check_open()

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Close the channel.  May switch.  Again, or after it was lost: does nothing.

        Outstanding deliveries are requeued: first, after the end of the consumers, those that no
        handler has seen.  Who has the sink of a consumer gets the reason, as after a loss.
        """
        if get_hub() is not self._hub:
            self.check_hub()
        if self._writer.must_wait and self.cause is None:
            self.connection.flow_control.wait()
        if self.cause is not None:
            return
        sinks = self.consumers.sinks()
        try:
            self._close()
        finally:
            self._report_end(sinks)

    def _report_end(self, sinks: Iterable[Sink]) -> None:
        if self.cause is None:
            return  # it is open: a signal came first
        for sink in sinks:
            sink.cancelled(self.cause)

    def _close(self) -> None:
        if self.consumers.by_tag or len(self.connection.events):
            try:
                withdraw(self.connection, (self,), Deadline(WITHDRAW_TIMEOUT))
            except BaseException as exc:
                is_failure = isinstance(exc, (TimeoutError, ConnectionError, ChannelError))
                if is_thrown(exc) or not is_failure:
                    self._close_late("closing was aborted")
                    raise
                # Otherwise it is closed all the same.
            if not self.is_open:
                return  # it was lost meanwhile
        self.consumers.abandon_callbacks()
        call = self._write_close(RecoverableChannelError("it was closed by this program"))
        if self.connection.lost is None:
            try:
                self.connection.wait_reply(call.slot, self.channel_id, None)
            except RecoverableConnectionError:
                if self.connection.lost is None:
                    raise

    def _close_late(self, reason: str) -> None:
        """Close a channel that is not used any more.  Never switches."""
        if self.cause is None:
            self._write_close(RecoverableChannelError(reason)).abandon()

    def _write_close(self, reason: RecoverableChannelError) -> Call:
        if self.acks.ledger.pending:
            self.acks.flush()
        self._closing = True
        self._end(reason, closed=True)
        return self._ask_to_close()

    def _ask_to_close(self) -> Call:
        call = Call(_CLOSE, frozenset((_CLOSE_OK,)))
        self.calls.pending.append(call)
        self._writer.write(
            method_frame(self.channel_id, spec.Channel.Close, dumps("BsBB", (0, "", 0, 0)))
        )
        return call

    def abort(self, cause: BaseException) -> None:
        """Close the channel, since the two sides do not count alike: all its users get the error.

        Never switches.  A second call does nothing.
        """
        if self.cause is None:
            self._closing = True
            self._end(cause)
            self._ask_to_close().abandon()

    def interrupted(self, what: str, exc: BaseException) -> None:
        """Fail, as an exception came between two steps that belong together.  Never switches.

        The caller has noted *exc* as the interruption of the connection: where the stack is full, what
        comes next ends that.

        Arguments:
            what: was under way.
        """
        if isinstance(exc, RecursionError):
            return
        # Amid its opening it is left alone: the broker ends a connection that closes a channel which it
        # does not have.  If it has this one, its reply to the opening, which is undone, will tell.
        if self.is_open:
            self.abort(
                RecoverableChannelError(
                    f"channel {self.channel_id} was closed because {what} was interrupted by "
                    f"{error_text(exc, repr)}: the broker may have executed it or not"
                )
            )
        self.connection.interruption = None

    def collect(self, unsent: Iterable[UnsentMessage] = (), closed: bool = False) -> None:
        """Drop the channel because its connection is gone.  Never switches.

        Arguments:
            unsent: what had not left of its messages.
            closed: the connection was closed by us, not lost.
        """
        self._end(self.connection.lost or RecoverableConnectionError("connection was dropped"))
        self.publisher.leave(unsent, closed)

    def forget(self, cause: BaseException) -> None:
        """Make later calls raise, in the child of a fork, without waking any greenlet."""
        if self.cause is None:
            self.cause = cause
            self.is_open = False
            self.acks.stop()
            self.publisher.unsent.forget()

    def _end(
        self, cause: BaseException, *, closed: bool = False, blamed: int | None = None
    ) -> bool:
        """Mark the channel as gone and tell everybody.  Never switches.

        Returns:
            Whether one caller got the broker's error as its own.
        """
        pending = self.calls.pending
        if self.cause is not None:
            # Closed by us, and now the connection went before its close-ok.
            pending.fail(cause)
            return True
        self.cause = cause
        self.is_open = False
        self.acks.end()
        if closed:
            pending.release(cause)
            owned = True
        else:
            owned = pending.fail(cause, blamed)
        owned = self.publisher.fail(cause, blamed) or owned
        if self.consumers.end(cause, closed=closed) and self.connection.lost is None:
            # A greenlet that drains must get the reason, as there are no more events.
            self.connection.events.put((raise_error, self._lost_consumers(cause)))
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

        What had not left of its unconfirmed messages is sent, or reported.
        """
        if old.consumers.qos is not None:
            self.consumers.limit(*old.consumers.qos)
        if old.publisher.confirms is not None and self.publisher.confirms is None:
            self.confirm_select()
        if old.is_transactional:
            self.tx_select()
        for name, handlers in old.events.items():
            self.events[name] |= handlers
        self._publish_unsent_of(old)

    # Publishing

    prepare_message = staticmethod(prepared)

    def basic_publish(
        self,
        message: Outgoing | amqp.Message,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | Deadline | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Send a message; the broker does not confirm it.  May switch, before the first byte only.

        Arguments:
            timeout: seconds to wait while the broker blocks us or takes nothing, or a deadline; None is
                the connection's ``blocked_timeout``.

        Raises:
            ConnectionBlocked: it waited in vain; nothing was sent.
            RecoverableConnectionError, RecoverableChannelError: the channel is gone.
        """
        if get_hub() is not self._hub:
            self.check_hub()
        writer = self._writer
        if writer.must_wait or self._flow_control.blocked is not None:
            self._flow_control.wait(Deadline.of(timeout), publishing=True)
        if not writer.in_turn:
            # Nothing answers: look whether the broker has ended the connection while no hub ran.
            self._catch_up()
        if self.cause is not None:
            self.check_open()
        if message.__class__ is not Outgoing:
            message = Outgoing.of(message)
        publisher = self.publisher
        pending = None
        if publisher.confirms is not None and (mandatory or immediate):
            # Its return must not be taken for that of a like message that another caller waits for.
            pending = PendingConfirm(
                self.connection,
                exchange,
                routing_key,
                True,
                message.packed,
                message.body,
                is_awaited=False,
            )
        publisher.write(writer, message, exchange, routing_key, mandatory, immediate, pending)
        if self.cause is not None:
            self._failed_write()

    def request(
        self,
        message: Outgoing | amqp.Message,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline,
    ) -> None:
        """Send a message whose sender gets a reply message instead of a confirm.  May switch, as above.

        If the broker returns it, ``return_sink`` gets it; it is not counted among the lost ones.

        Arguments:
            deadline: for the wait while the broker takes nothing.
        """
        Channel.basic_publish(self, message, exchange, routing_key, mandatory, False, deadline)
        if self._writer.pending:  # as for a publish with confirm
            self._writer.mark(AWAITED)

    #: The levels through which a delayed message passes are whole seconds.
    has_whole_delays: Final = True

    def delayed_route(
        self,
        exchange: str,
        routing_key: str,
        delay: float,
        headers: Mapping[str, Any] | None,
        properties: Mapping[str, Any],
    ) -> DelayedRoute:
        """Return how a message is published that is delayed; see ``delays.delayed_route``.

        May switch.
        """
        link = self.connection
        return link.delays.route(
            link.begin_channel, exchange, routing_key, delay, headers, properties
        )

    def keep_publish(self) -> None:
        """Send the message that was published last again if the connection is lost before it left.

        Nothing may have switched since.  What was published with a confirm has left.
        """
        if not self.connection.confirm_publish:
            self._writer.mark(RESEND)

    def _failed_write(self) -> None:
        """Raise, since the connection ended in that very write."""
        self.publisher.unsent.discard_last()
        self.check_open()

    def _publish_unsent_of(self, old: Channel) -> None:
        """Send what *old*, of a lost connection, was to send; tell of what it has lost.  May switch."""
        left = old.publisher.unsent
        try:
            while left.to_resend:
                Channel.basic_publish(self, *left.to_resend[0])
                self.keep_publish()
                left.to_resend.popleft()
        except BaseException:
            # Lost again, or killed: what has not left from here comes first on the next one.
            unsent = self.publisher.unsent
            left.to_resend.extendleft(reversed(unsent.to_resend))
            unsent.forget()
            raise
        error = left.error(self.connection.where)
        if error is not None:
            if left.refusal is None:  # else the log has it since then
                logger.warning("%s", error, extra={"connection": self.connection.where})
            left.forget()
            self._raise_on_next_publish(error)

    def _raise_on_next_publish(self, error: Exception) -> None:
        """Have the next publish without confirm raise; one with retries tries again then."""

        def raise_once(*args: Any, **kwargs: Any) -> None:
            self.__dict__.pop("basic_publish", None)
            raise error

        if not self.connection.confirm_publish:
            self.basic_publish = raise_once  # type: ignore[method-assign]

    def confirm_select(self, nowait: bool = False) -> None:
        """Have the broker confirm each publish from now on (RabbitMQ's extension).

        May switch, not with *nowait*.  A second call does nothing.
        """
        self.calls.wait_writable()
        if self.publisher.confirms is None:
            self.publisher.select_confirms(nowait=nowait)

    def begin_confirms(self) -> None:
        """Have the broker confirm each publish from now on, without a wait for its reply.

        May switch, before the first byte only.  A second call does nothing.  If the broker refuses, the
        publishes behind it raise its error.
        """
        self.calls.wait_writable()
        if self.publisher.confirms is None:
            self.publisher.select_confirms(leads=True)

    @property
    def unconfirmed_count(self) -> int:
        """The number of publishes that the broker has not confirmed yet."""
        confirms = self.publisher.confirms
        return 0 if confirms is None else len(confirms.outstanding)

    @property
    def has_unconfirmed(self) -> bool:
        """Whether the broker has not confirmed all publishes that it is to confirm."""
        return bool(self.unconfirmed_count)

    def basic_publish_confirm(
        self,
        message: Outgoing | amqp.Message,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Send a message and wait until the broker has taken it over.  May switch.

        Only the calling greenlet waits; any number of them may publish on one channel, and each gets
        the confirm of its own message.

        Arguments:
            mandatory: a message that reaches no queue is given to the handlers in
                ``events['basic_return']``, before this returns, and raises if there are none.
            timeout: seconds for all of it.
            confirm_timeout: seconds for the confirm, and for the wait while the broker blocks us, within
                *timeout*.  With neither given it is the connection's ``confirm_timeout``.

        Raises:
            PublishNacked: the broker refused it.
            Unroutable: it was mandatory and reached no queue.
            PublishTimeout: no confirm in time; the broker may have it.
            ConnectionBlocked: the broker takes nothing; nothing was sent.
            ChannelError, ConnectionError: what ended the channel before the confirm came.
        """
        deadline = NEVER if timeout is None else Deadline(timeout)
        if confirm_timeout is not None:
            deadline = deadline.within(confirm_timeout)
        pending = self.begin_publish(message, exchange, routing_key, mandatory, immediate, deadline)
        try:
            pending.wait(deadline)
        except Unroutable as exc:
            if not self.returns.give_back(exc, pending):
                raise

    def begin_publish(
        self,
        message: Outgoing | amqp.Message,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        deadline: Deadline | None = None,
    ) -> PendingConfirm:
        """Send a message whose confirm is waited for later.  May switch, before the first byte only.

        Messages of one greenlet leave in the order of its calls.

        Arguments:
            deadline: for the wait while the broker takes nothing.

        Raises:
            As :meth:`basic_publish_confirm`, save what only the confirm can tell.
        """
        if get_hub() is not self._hub:
            self.check_hub()
        writer = self._writer
        if writer.must_wait or self._flow_control.blocked is not None:
            self._flow_control.wait(deadline, publishing=True)
        if self.cause is not None:
            self.check_open()
        publisher = self.publisher
        if publisher.confirms is None:
            # Nothing switches up to the write: the first publish after it has count 1.
            publisher.select_confirms(nowait=True)
        if message.__class__ is not Outgoing:
            message = Outgoing.of(message)
        pending = PendingConfirm(
            self.connection,
            exchange,
            routing_key,
            mandatory or immediate,
            message.packed,
            message.body,
        )
        publisher.write(writer, message, exchange, routing_key, mandatory, immediate, pending)
        if self.cause is not None:
            self._failed_write()
        if writer.pending:  # else it has left, as nearly all have
            writer.mark(AWAITED)
        return pending

    # Consuming

    def basic_qos(
        self,
        prefetch_size: int = 0,
        prefetch_count: int = 0,
        apply_global: bool = False,
        argsig: str = "lBb",
        *,
        a_global: bool | None = None,
    ) -> None:
        """Limit the outstanding deliveries.  May switch.

        Arguments:
            prefetch_count: messages; 0 is no limit.
            apply_global: the whole channel, else each consumer that is started from now on
                (RabbitMQ's meaning, which differs from the specification's).  RabbitMQ 4.3 and later
                know no limit for a channel: it becomes one for each consumer, which is logged once.
            a_global: amqp's name for *apply_global*.
        """
        self.consumers.limit(
            prefetch_size, prefetch_count, apply_global if a_global is None else a_global
        )

    def begin_qos(self, prefetch_count: int) -> None:
        """Limit each consumer that is started from now on, without a wait for the broker's reply.

        May switch, before the first byte only.  If the broker refuses, the requests behind it raise its
        error.
        """
        self.consumers.limit(0, prefetch_count, False, leads=True)

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
            callback: called with each message by ``drain_events``.
            sink: takes the messages instead.

        Returns:
            The consumer tag.

        Raises:
            ValueError: the tag is in use on this channel, nowait without a tag, or no offset.
            AMQPNotImplementedError: a limit for the whole channel, as above, under which other
                consumers run here; or a stream without acks.  Nothing was sent.
        """
        if nowait and not consumer_tag:
            raise ValueError(
                "nowait needs a consumer_tag, as the broker's choice would not be known"
            )
        queue, tag = plain_text(queue), plain_text(consumer_tag) or f"greenconn-{uuid()}"
        self.consumers.prepare(queue, tag, no_ack, arguments)
        packed = self.calls.pack(
            spec.Basic.Consume,
            argsig,
            (0, queue, tag, no_local, no_ack, exclusive, nowait, arguments),
        )
        self.consumers.start(
            tag,
            queue or self._last_queue,
            packed,
            no_ack=no_ack,
            nowait=nowait,
            callback=callback,
            on_cancel=on_cancel,
            sink=sink,
        )
        return tag

    def basic_cancel(self, consumer_tag: str, nowait: bool = False, argsig: str = "sb") -> None:
        """End a consumer.  May switch.  An unknown tag: does nothing.

        One that the broker has not confirmed yet is waited for: RabbitMQ 3.10 ends the connection when
        it is asked to cancel such a one.  Deliveries that came before the broker's reply are handed
        over to a sink as any other, while a callback gets no more: they go back to the queue, save
        those without acks.  With *nowait* all go back from now on.
        """
        self.consumers.cancel(consumer_tag, nowait)

    def consumes(self, queue: str) -> bool:
        """Return whether a consumer of *queue* runs here.  Never switches."""
        return self.consumers.consumes(queue)

    def basic_get(self, queue: str = "", no_ack: bool = False, argsig: str = "Bsb") -> Any:
        """Take one message from a queue; None if it is empty.  May switch.

        Raises:
            AMQPNotImplementedError: the queue was declared here as a stream; nothing was sent.
        """
        return self.consumers.get(queue, no_ack)

    def message_to_python(self, raw_message: Any) -> Any:
        """Return *raw_message*: messages come ready."""
        return raw_message

    # Acks and rejects

    @property
    def unacked_count(self) -> int:
        """The number of deliveries that are not acknowledged."""
        return len(self.acks.ledger.outstanding)

    @property
    def oldest_unacked(self) -> int | None:
        """The delivery tag that has been outstanding longest; None if none is."""
        return next(iter(self.acks.ledger.outstanding), None)

    def basic_ack(self, delivery_tag: int, multiple: bool = False, argsig: str = "Lb") -> None:
        """Acknowledge a delivery.  Never switches.

        The acks of a turn of the hub leave together at its end, merged where that is right.  For a
        delivery of a connection that is gone it does nothing: the broker delivers it again.

        Raises:
            PreconditionFailed: this channel has no outstanding delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        if get_hub() is not self._hub:
            self.check_hub()
        if self.cause is not None:
            self._check_can_settle()
            return
        acks = self.acks
        ledger = acks.ledger
        # The first of the turn asks for the flush at its end.
        if not ledger.pending:
            self._writer.before_flush(acks.flush)
        try:
            is_known = ledger.ack_up_to(delivery_tag) if multiple else ledger.ack(delivery_tag)
        except BaseException as exc:
            self.connection.interruption = exc
            self.interrupted("an acknowledgement", exc)
            raise
        if not is_known:
            raise _unknown_tag(delivery_tag)

    def basic_reject(self, delivery_tag: int, requeue: bool = False, argsig: str = "Lb") -> None:
        """Refuse a delivery.  May switch.

        Arguments:
            requeue: put it back, else it is dropped or goes to the dead-letter exchange.

        Raises:
            PreconditionFailed: this channel has no outstanding delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        if get_hub() is not self._hub:
            self.check_hub()
        if self._writer.must_wait:
            self.connection.flow_control.wait()
        if self.cause is not None:
            self._check_can_settle()
            return
        if not self.acks.reject(delivery_tag, requeue):
            raise _unknown_tag(delivery_tag)

    def _check_can_settle(self) -> None:
        if self.connection.lost is None:
            self.check_open()

    def requeue_unseen(self, delivery_tag: int) -> None:
        """Requeue a delivery that no handler has seen; see :class:`Acks`.  Never switches."""
        self.acks.requeue_unseen(delivery_tag)

    def give_credit(self, delivery_tag: int) -> None:
        """Ack a delivery of a stream that no handler has seen; see :class:`Acks`.  Never switches."""
        self.acks.give_credit(delivery_tag)

    def basic_recover(self, requeue: bool = False) -> None:
        """Have all outstanding deliveries of this channel delivered again.  May switch.

        Acks and rejects before the broker's reply are dropped, since their messages are redelivered.

        Raises:
            AMQPNotImplementedError: *requeue* is false, and this is a RabbitMQ, which would end the
                connection of all channels.
        """
        self._recover(requeue, abandons=False)

    def basic_recover_async(self, requeue: bool = False) -> None:
        """Recover without a wait for the reply.  May switch, before the first byte only.

        The broker is asked for a reply all the same: it tells which acks are of no use any more.
        """
        self._recover(requeue, abandons=True)

    def _recover(self, requeue: bool, *, abandons: bool) -> None:
        if not requeue and self.connection.server_properties.get("product") == "RabbitMQ":
            from greenconn.broker.errors import no_recover_in_place  # for who asks for it

            raise no_recover_in_place()
        self.calls.wait_writable()
        self.acks.flush()
        self.acks.ledger.begin_recover()
        self.calls.call(
            spec.Basic.Recover,
            dumps("b", (requeue,)),
            wait=spec.Basic.RecoverOk,
            on_reply=lambda reply: self.acks.ledger.end_recover(),
            abandons=abandons,
        )

    def flush_acks(self) -> None:
        """Return when all acks, rejects and requeues have been given to the socket.  May switch.

        Where the connection is gone it does nothing: the broker redelivers what is not settled.

        Raises:
            TimeoutError: the broker took too little within ``blocked_timeout`` seconds.
        """
        if self.cause is None:
            if self.acks.ledger.requeued:
                self.acks.flush()
            # Writes the acks of this turn first, as its end would.
            self.connection.drain_writer(None)

    # Transactions

    def tx_select(self) -> None:
        """Have publishes and acks wait for ``tx_commit()`` or ``tx_rollback()``.  May switch.

        The channel that replaces this one after a loss is transactional, too; the broker has rolled
        back what was not committed by then.
        """
        self._flush_transaction()
        # With the write: what another greenlet settles from now on is part of a transaction.
        self.acks.begin_transactions()
        self.calls.call(spec.Tx.Select, wait=spec.Tx.SelectOk)
        self.is_transactional = True

    def tx_commit(self) -> None:
        """Commit the publishes, acks and rejects since the last commit or rollback.  May switch."""
        self._flush_transaction()
        self.acks.end_transaction()
        self.calls.call(spec.Tx.Commit, wait=spec.Tx.CommitOk)

    def tx_rollback(self) -> None:
        """Roll back the publishes, acks and rejects since the last commit or rollback.  May switch.

        The deliveries that were settled are outstanding again: they can be acknowledged or rejected
        once more.
        """
        self._flush_transaction()
        settled = self.acks.end_transaction()
        self.calls.call(
            spec.Tx.Rollback,
            wait=spec.Tx.RollbackOk,
            # In the reader: it holds, also if its caller was killed meanwhile.
            on_reply=lambda reply: self.acks.roll_back(settled),
        )

    def _flush_transaction(self) -> None:
        """Write the acks of a transaction; the caller writes its end at once."""
        self.check_open()
        self.calls.wait_writable()
        self.acks.flush()

    def is_rolled_back(self, delivery_tag: int) -> bool:
        """Return whether the ack or reject of a delivery was rolled back.  Never switches."""
        return self.is_transactional and delivery_tag in self.acks.ledger.outstanding

    # In the reader: nothing here may switch or run user code.

    def on_method(self, ids: int, payload: bytes, header: bytes | None, body: bytes | None) -> None:
        """Take a method of the broker over.  Called by the reader."""
        if ids & BODY_SKIPPED:
            ids ^= BODY_SKIPPED
            if ids == BASIC_DELIVER:
                assert header is not None
                self.on_deliver(payload, header, b"", BodilessDelivery)
                return
        reply = (ids, payload, header, body)
        pending = self.calls.pending
        if self._closing and ids not in (_CLOSE, _CLOSE_OK):
            pending.settle(reply)  # the effects of the call are noted; its caller has left
            return
        handler = self._handlers.get(ids)
        if handler is not None:
            handler(reply)
        elif not pending.settle(reply):
            self.connection.unexpected_method(self.channel_id, ids)

    def _on_close(self, reply: Reply) -> None:
        code, text, class_id, method_id = reply_arguments(reply[0], reply[1])
        method = (class_id, method_id) if class_id else None  # (0, 0) would be shown as one
        cause = error_for_code(code, with_remedy(text), method, ChannelError)
        self._writer.write(method_frame(self.channel_id, spec.Channel.CloseOk, b""))
        if self._closing:
            return  # both sides close at once: the id is free when our close is answered
        self.connection.note_refusal(cause)  # before those who wait use it again
        blamed = class_id << 16 | method_id
        # What leads is needed by all that wait.
        is_for_all = self.calls.pending.are_led_by(blamed)
        self._end(cause, blamed=None if is_for_all else blamed)
        self.connection.channel_closed(self)

    def _on_close_ok(self, reply: Reply) -> None:
        self.calls.pending.settle_last(reply)
        self.connection.channel_closed(self)

    def _on_flow(self, reply: Reply) -> None:
        self.active = bool(reply_arguments(reply[0], reply[1])[0])
        if self.active:
            self.connection.flow_control.unblock(self.channel_id)
        else:
            self.connection.flow_control.block(
                f"channel.flow on channel {self.channel_id}", self.channel_id
            )
        self._writer.write(
            method_frame(self.channel_id, spec.Channel.FlowOk, bytes((self.active,)))
        )


def withdraw(link: AmqpLink, channels: Collection[Channel], deadline: Deadline) -> None:
    """Cancel the consumers of *channels*, and requeue the deliveries that no handler has seen.

    May switch.

    Raises:
        TimeoutError: the broker did not reply before the deadline.
        ConnectionError, ChannelError: the link or a channel ended meanwhile.
    """
    if link.flow_control.blocked is not None:
        return  # the broker does not read
    consumers: list[ChannelConsumer] = []
    calls: list[tuple[Channel, Call]] = []
    for channel in channels:
        if channel.consumers.keep_order:
            continue  # with its consumers cancelled, the next active one would get later messages first
        mine = channel.consumers.acking()
        consumers += mine
        call = channel.consumers.cancel_all(mine)
        if call is not None:
            calls.append((channel, call))
    for channel, call in calls:
        link.wait_reply(call.slot, channel.channel_id, deadline.left())
    for consumer in consumers:
        consumer.requeue_unseen()
    if len(link.events):
        requeue_events(link, lambda consumer, message: message.channel in channels)
    for channel in channels:
        if channel.consumers.keep_order:
            channel.acks.flush()
        else:
            channel.acks.finish_requeues(rejects_rest=not channel.streams)


def _unknown_tag(tag: int) -> PreconditionFailed:
    return PreconditionFailed(
        f"unknown delivery tag {tag!r}: it was already acknowledged or rejected, or belongs to "
        f"another channel",
        spec.Basic.Ack,
        reply_code=406,
    )
