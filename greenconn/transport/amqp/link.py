"""One life of a connection to an AMQP 0-9-1 broker, shared by any number of greenlets.

Bytes go through a :class:`~greenconn.green.stream.Stream`.  The amqp package gives the names of the
methods, the codec of their arguments, the login mechanisms and the exceptions.

The reader greenlet runs ``on_data``: it parses, and hands replies to their callers, deliveries
to inboxes, errors to everybody.  User code never runs on it, and it never waits.

Flow control goes both ways.  Publishers wait before their first byte: for their turn, for a slow peer,
for a broker that blocks the connection.  Reading pauses while too many bytes of consumers without a
bound wait in this process.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import ref

from amqp import spec
from amqp.serialization import dumps
from gevent import get_hub

from greenconn._version import __version__
from greenconn.exceptions import (
    AMQPError,
    ChannelError,
    ConnectionBlocked,
    ConnectionError,
    ConnectionForced,
    ContentTooLarge,
    FrameError,
    RecoverableConnectionError,
    ResourceError,
    error_reason,
    error_text,
)
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.green.hub import flush_at_exit, forget_at_fork
from greenconn.green.inbox import Inbox
from greenconn.green.slot import Slot
from greenconn.green.stream import Stream, avoid, connect_tcp
from greenconn.green.supervisor import Ticker, log_blocked, spawn
from greenconn.green.writer import Writer
from greenconn.identity import program_name
from greenconn.listeners import LISTENERS, BlockedEvent, UnblockedEvent, notify
from greenconn.options import AmqpOptions
from greenconn.transport.amqp.channel import Channel, withdraw
from greenconn.transport.amqp.handshake import (
    Handshake,
    Secret,
    closing_error,
    login_mechanisms,
    opening_error,
    rabbitmq_version,
)
from greenconn.transport.amqp.message import Delivery
from greenconn.transport.amqp.publishing import find_unsent
from greenconn.transport.amqp.topology import KnownQueues
from greenconn.transport.base import Link
from greenconn.wire.amqp import (
    BASIC_DELIVER,
    PROTOCOL_HEADER,
    UNREADABLE,
    UPDATE_SECRET_OK,
    FrameParser,
    Heartbeat,
    HeartbeatAction,
    Method,
    Reply,
    heartbeat_frame,
    ids_of,
    method_frame,
    read_arguments,
    unreadable,
)

if TYPE_CHECKING:
    from gevent import Greenlet

    from greenconn.transport.native_delayed_delivery import DelayLevels
    from greenconn.wire.tls import TlsSession


logger = logging.getLogger("greenconn.transport.amqp")

#: Seconds in which the first LOGGED changes are logged as they come, and at their end how many more
#: there were.
LOG_INTERVAL: Final = 10.0
LOGGED: Final = 4
#: The most calls of hooks that wait for a greenlet that drains events.
EVENTS: Final = 100

#: Bytes of bodies in inboxes above which the connection stops receiving, and below which it goes on.
PAUSE_ABOVE: Final = 64 * 1024 * 1024
RESUME_BELOW: Final = 32 * 1024 * 1024
#: Bytes at which the connection is closed, since it goes on reading while a greenlet waits for a reply.
HARD_LIMIT: Final = 256 * 1024 * 1024


class FlowControl:
    """The flow control of publishing on one connection.

    The fast path asks ``writer.must_wait or flow_control.blocked is not None`` and comes here only then.

    Arguments:
        where: the broker's URL with the password masked, for messages.
        options: ``blocked_timeout`` is for calls without a deadline of their own,
            ``write_timeout`` within it for a peer that does not read; the hooks ``on_blocked`` and
            ``on_unblocked`` are called by the greenlet that drains *events*.
        events: of the connection.
    """

    def __init__(
        self, where: str, options: AmqpOptions, events: Inbox[tuple[Callable[[Any], Any], Any]]
    ) -> None:
        #: Why the broker blocks publishing, or None.
        self.blocked: str | None = None
        #: Since when, on the monotonic clock.
        self.blocked_at = 0.0
        self.writer: Writer | None = None
        self._where = where
        self._options = options
        #: What is blocked (a channel, or 0 for the connection) and why.
        self._reasons: dict[int, str] = {}
        self._events = events
        self._waiters: deque[Slot[None]] = deque()
        #: Changes in this interval of the log, and its end; None: none has begun.
        self._changes = 0
        self._timer: Any = None
        #: Calls of hooks among the events, and whether the latest change is not among them.
        self._queued_events = 0
        self._is_block_unreported = False

    def wait(self, deadline: Deadline | None = None, *, publishing: bool = False) -> None:
        """Let others run, and wait while the peer does not read.  May switch.

        Arguments:
            publishing: also wait while the broker blocks publishing.

        Raises:
            ConnectionBlocked: it waited in vain; nothing was sent.
        """
        if deadline is None or deadline.timeout is None:
            deadline = Deadline(self._options.blocked_timeout)
        assert self.writer is not None
        limit = deadline.within(self._options.write_timeout)
        try:
            self.writer.wait_writable(limit)
            while publishing and self.blocked is not None:
                limit = deadline
                slot: Slot[None] = Slot(on_left=self._leave)
                self._waiters.append(slot)
                slot.wait(limit)
                limit = deadline.within(self._options.write_timeout)
                if self.writer.must_wait:  # those before us may have filled it
                    self.writer.wait_writable(limit)
        except TimeoutError as exc:
            if is_thrown(exc):
                raise
            why = (
                "does not read"
                if self.blocked is None
                else f"blocked this connection ({self.blocked})"
            )
            raise ConnectionBlocked(
                f"{self._where} {why}; waited {limit.timeout:g} s, nothing was sent: "
                f"look at the broker's memory and disk alarms"
            ) from None

    def block(self, reason: str, channel: int = 0) -> None:
        """Stop publishing: the broker accepts no messages for now.  Never switches.

        Arguments:
            channel: the one that it stopped by ``channel.flow``; all publishing of the connection waits
                then.  0: it blocked the connection (``connection.blocked``).
        """
        if channel in self._reasons:
            return
        self._reasons[channel] = reason = reason or "no reason given"
        if self.blocked is None:
            self.blocked, self.blocked_at = reason, monotonic()
            if (calls := LISTENERS.blocked) is not None:
                spawn("listener", notify, calls, BlockedEvent(self._where, reason))
        self._log_change()
        if not channel and self._options.on_blocked is not None:
            self._is_block_unreported = self._queued_events >= EVENTS
            if not self._is_block_unreported:
                self._queued_events += 1
                self._events.put((self._call_on_blocked, reason))

    def unblock(self, channel: int = 0) -> None:
        """Resume: the broker accepts messages of *channel* (0: all) again.  Never switches."""
        if self._reasons.pop(channel, None) is None:
            return
        self.blocked = next(iter(self._reasons.values()), None)
        if self.blocked is None:
            self._wake_waiters()
            self._log_change()
            self._notify_end()
        if not channel and self._options.on_unblocked is not None and not self._is_block_unreported:
            self._queued_events += 1
            self._events.put((self._call_on_unblocked, None))

    def end(self) -> None:
        """Wake all, in their order: the connection has ended.  Never switches."""
        if self.blocked is not None:
            self._notify_end()
        self.blocked = None
        self._reasons.clear()
        self._wake_waiters()
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _notify_end(self) -> None:
        if (calls := LISTENERS.unblocked) is not None:
            event = UnblockedEvent(self._where, monotonic() - self.blocked_at)
            spawn("listener", notify, calls, event)

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, deque()
        for slot in waiters:
            slot.offer(None)

    # A broker may block and unblock often: the log has a few lines in each interval.

    def _log_change(self) -> None:
        self._changes += 1
        if self._changes <= LOGGED:
            spawn("log", self._log, self.blocked, 0)
        if self._timer is None:
            self._timer = get_hub().loop.timer(LOG_INTERVAL, ref=False)
            self._timer.start(self._end_interval)

    def _end_interval(self) -> None:
        # In the hub.
        timer, self._timer = self._timer, None
        timer.close()
        unlogged, self._changes = self._changes - LOGGED, 0
        if unlogged > 0:
            spawn("log", self._log, self.blocked, unlogged)

    def _log(self, blocked: str | None, unlogged: int) -> None:
        more = f" ({unlogged} more changes in {LOG_INTERVAL:g} s)" if unlogged else ""
        if blocked is None:
            logger.info(
                "%s unblocked publishing%s", self._where, more, extra={"connection": self._where}
            )
        else:
            logger.warning(
                "%s blocked publishing: %s%s",
                self._where,
                blocked,
                more,
                extra={"connection": self._where},
            )

    # In the greenlet that drains.

    def _call_on_blocked(self, reason: str) -> None:
        self._queued_events -= 1
        assert self._options.on_blocked is not None
        self._options.on_blocked(reason)

    def _call_on_unblocked(self, nothing: None) -> None:
        self._queued_events -= 1
        assert self._options.on_unblocked is not None
        self._options.on_unblocked()

    def _leave(self, slot: Slot[Any]) -> None:
        self._waiters.remove(slot)


class InboxBudget:
    """The bytes held by consumers that neither acks nor prefetch bound, of one connection.

    Reading pauses above 64 MiB (so that TCP makes the broker wait), but never while a greenlet waits
    for a reply or a confirm on this connection, which may be behind the messages.

    Arguments:
        pause, resume: stop and start receiving; they must not switch.
    """

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        #: Bytes in inboxes.
        self.held = 0
        #: Greenlets that wait for a reply or a confirm on this connection.
        self.waiting = 0
        self.is_paused = False
        self._pause = pause
        self._resume = resume
        #: Filled when the last waiter has left.
        self._on_idle: list[Slot[None]] = []

    def hold(self, size: int) -> None:
        """Count a body that went into an inbox."""
        self.held += size
        if self.held > PAUSE_ABOVE and not self.waiting and not self.is_paused:
            self.is_paused = True
            self._pause()

    def release(self, size: int) -> None:
        """Count a body that was taken out."""
        self.held -= size
        if self.is_paused and self.held < RESUME_BELOW:
            self._resume_reading()

    def begin_wait(self) -> None:
        """Note that one more greenlet waits for a reply or confirm."""
        self.waiting += 1
        if self.is_paused:
            self._resume_reading()

    def end_wait(self) -> None:
        """Note that one greenlet has its reply or confirm."""
        self.waiting -= 1
        if self._on_idle and not self.waiting:
            for slot in self._on_idle:
                slot.offer(None)

    def wait_idle(self, deadline: Deadline) -> None:
        """Wait until no greenlet waits for a reply or confirm on this connection.  May switch.

        Raises:
            TimeoutError: one still did at the deadline.
        """
        while self.waiting:
            slot: Slot[None] = Slot()
            self._on_idle.append(slot)
            try:
                slot.wait(deadline)
            finally:
                self._on_idle.remove(slot)

    def end(self) -> None:
        """Pause and resume no more: the connection has ended.  A second call does nothing."""
        self._pause = self._resume = _nothing

    def _resume_reading(self) -> None:
        self.is_paused = False
        self._resume()


def _nothing() -> None:
    pass


#: Seconds that ``close`` waits for the broker's answer.
CLOSE_TIMEOUT: Final = 2.0

_CLOSE: Final = ids_of(spec.Connection.Close)
_CLOSE_ARGUMENTS: Final = dumps("BsBB", (0, "", 0, 0))  # no reply code, no text, no method
_CLOSE_OK: Final = ids_of(spec.Connection.CloseOk)
_BLOCKED: Final = ids_of(spec.Connection.Blocked)
_UNBLOCKED: Final = ids_of(spec.Connection.Unblocked)


class AmqpLink(Link):
    """A connection from its opening to its end.

    Arguments:
        client: the ``Connection`` that asked for it.
        host, port: of the broker.
        userid, password, virtual_host: the login; with ``login_method='EXTERNAL'`` no password is sent.
        tls: a TLS session that has not begun, or None.
        heartbeat: seconds; ``BROKER_HEARTBEAT`` takes the broker's value, 0 is off.
        options: see :class:`~greenconn.options.AmqpOptions`.
        where: the broker's URL with the password masked, for messages.

    Attributes:
        channel_max: channels that may be open at once.
        frame_max: bytes of a frame; 0 is no limit.
        heartbeat: seconds; 0 is off.
        host: of the broker, with the port.
    """

    #: Client properties, beside those of the option ``client_properties``.
    library_properties: ClassVar[Mapping[str, Any]] = {
        "product": "greenconn",
        "product_version": __version__,
        "platform": "Python",
        "information": "gevent messaging client",
    }
    #: Extensions of the protocol, and whether they are used with a broker that has them.
    negotiate_capabilities: ClassVar[Mapping[str, bool]] = {
        "consumer_cancel_notify": True,
        "connection.blocked": True,
        "authentication_failure_close": True,
    }

    #: The class of its channels.
    channel_cls: ClassVar[type[Channel]] = Channel

    def __init__(
        self,
        client: Any,
        host: str,
        port: int,
        *,
        userid: str | None,
        password: str | None,
        virtual_host: str,
        login_method: str,
        tls: TlsSession | None,
        heartbeat: float,
        options: AmqpOptions,
        where: str,
    ) -> None:
        mechanisms = login_mechanisms(
            login_method,
            userid,
            password,
            response=options.login_response,
            given=options.authentication,
        )
        super().__init__(client)
        self.host = f"{host}:{port}"
        self.virtual_host = virtual_host
        self.options = options
        self.confirm_publish = options.confirm_publish
        self.handshake = Handshake(
            mechanisms=mechanisms,
            virtual_host=virtual_host,
            properties={
                **self.library_properties,
                "connection_name": options.connection_name or program_name(),
                **(options.client_properties or {}),
            },
            capabilities=self.negotiate_capabilities,
            locale=options.locale,
            channel_max=options.channel_max,
            frame_max=options.frame_max,
            heartbeat=heartbeat,
        )
        self.channel_max = self.handshake.channel_max
        self.frame_max = self.handshake.frame_max
        self.heartbeat = self.handshake.heartbeat
        #: By number; 0 is this object.
        self.channels: dict[int, Any] = {0: self}
        self.records_topology = options.topology_recovery
        self.where = where
        self.budget = InboxBudget(self._pause, self._resume)
        self.flow_control = FlowControl(where, options, self.events)
        self._address = (host, port)
        self._tls = tls
        self.parser = FrameParser(options.frame_max or 131072, options.max_message_size)
        self._stream: Stream | None = None
        self._intake = _Intake(self)
        self._numbers = _ChannelNumbers()
        self._closing: Slot[None] | None = None
        self._at_exit = _ExitRoundTrip(self)
        self._heartbeat: Heartbeat | None = None
        self._heartbeat_ticker: Ticker | None = None
        self._secret: Secret | None = None
        #: Of a RabbitMQ; None for another broker, and before the handshake.
        self.server_version: tuple[int, int] | None = None
        #: What came between two steps of a channel that belong together, until the channel has ended.
        self.interruption: BaseException | None = None
        self.queues = KnownQueues(where, None)
        self._has_warned_of_qos = False

    def __repr__(self) -> str:
        state = "open" if self.connected else "closed"
        return f"<AMQP connection {self.where} ({state})>"

    # Opening

    def open(self, deadline: Deadline) -> None:
        """Connect, and log in.  May switch.  After an error nothing stays open.

        Raises:
            TimeoutError: names the step that took too long.
            OSError: nothing listens there, the name is unknown, TLS failed.
            AccessRefused, NotAllowed: the broker refused the login or the virtual host.
            FrameError: the peer does not speak AMQP 0-9-1.
        """
        step, sock = "connecting", None
        try:
            sock = connect_tcp(*self._address, deadline, self.options.socket_settings)
            intake = self._intake
            self._stream = Stream(sock, intake.take, intake.lost, self.where, self._tls, intake)
            self.flow_control.writer = self._stream.writer
            step = "the TLS handshake"
            self._stream.handshake(deadline)
            step = "the AMQP handshake"
            self.writer.write(PROTOCOL_HEADER)
            self.handshake.run(self, deadline.renewed())
            self._begin()
            if self.options.on_open is not None:
                self.options.on_open(self)
        except BaseException as exc:
            error = opening_error(exc, self.where, step, deadline, self.handshake.hint())
            if sock is not None and isinstance(exc, TimeoutError):
                avoid(sock)
            self.collect()
            if error is exc:
                raise
            raise error from exc

    def _begin(self) -> None:
        """Begin to work with the limits that both sides agreed on."""
        assert self._stream is not None
        if self.lost is not None:
            raise self.lost  # it ended right behind that
        agreed = self.handshake
        self.channel_max, self.frame_max = agreed.channel_max, agreed.frame_max
        self.heartbeat = agreed.heartbeat
        self.server_version = rabbitmq_version(self.server_properties)
        self.queues = KnownQueues(self.where, self.server_version)
        self.parser.frame_max = self.frame_max
        self.parser.channels = self.channels
        if self.heartbeat:
            self._heartbeat = Heartbeat(float(self.heartbeat), monotonic())
            self._heartbeat_ticker = Ticker(
                self._heartbeat.tick_interval, self._beat, f"heartbeat:{self.where}"
            )
            self._heartbeat_ticker.start()
        forget_at_fork(self)
        flush_at_exit(self._at_exit)

    def write_method(self, sig: tuple[int, int], arguments: bytes = b"") -> None:
        """Write a method of channel 0 whose arguments are packed.  Never switches."""
        self.writer.write(method_frame(0, sig, arguments))

    # Using

    @property
    def writer(self) -> Writer:
        """The sending side of the stream."""
        if self._stream is None:
            raise RecoverableConnectionError("connection was never opened")
        return self._stream.writer

    @property
    def server_properties(self) -> dict[str, Any]:
        """The server properties that the broker sent."""
        return self.handshake.server_properties

    @property
    def server_capabilities(self) -> dict[str, Any]:
        """The extensions of the protocol that the broker has."""
        return self.server_properties.get("capabilities") or {}

    @property
    def secret(self) -> Secret:
        """The secret of the login, for one that expires or is updated."""
        if self._secret is None:
            self._secret = Secret(self)
            if self.lost is not None:
                self._secret.stop(self.lost)
        return self._secret

    @property
    def client_properties(self) -> dict[str, Any]:
        """The client properties that were sent to the broker."""
        return self.handshake.client_properties

    @cached_property
    def delays(self) -> DelayLevels:
        """Delay levels of this connection, through which delayed messages pass."""
        # Loaded when a message is delayed.
        from greenconn.transport.native_delayed_delivery import DelayLevels

        return DelayLevels()

    @property
    def stream(self) -> Stream | None:
        """The byte stream, for statistics."""
        return self._stream

    @property
    def connected(self) -> bool:
        """Whether channels may be opened and used."""
        return self.lost is None and self.handshake.is_done

    def channel(self, channel_id: int | None = None, callback: Any = None) -> Channel:
        """Open a channel.  May switch.

        Raises:
            ResourceError: the broker allows no more channels; says how many.
        """
        self._wait_writable()
        # From the choice of its id to the writing nothing switches.  If its caller is killed
        # afterwards it is closed when its open-ok comes.
        channel = self.channel_cls(self)
        channel.open()
        return channel

    def begin_channel(self) -> Channel:
        """Return a channel whose requests may follow at once; see ``Channel.begin_open``.

        May switch, before the first byte only.

        Raises:
            ResourceError: the broker allows no more channels; says how many.
        """
        if type(self).channel is not AmqpLink.channel:
            return self.channel()  # a subclass decides on each channel
        self._wait_writable()
        channel = self.channel_cls(self)
        channel.begin_open()
        return channel

    def _wait_writable(self) -> None:
        """Wait for the turn to write.  May switch."""
        self.hub_affinity.check(self)
        self.check_open()
        if self.writer.must_wait:
            self.flow_control.wait()
            self.check_open()

    def take_number(self) -> int:
        """Return a number for a channel.

        Raises:
            ResourceError: the broker allows no more channels; says how many.
        """
        number = self._numbers.take(self.channel_max)
        if number is None:
            raise ResourceError(
                f"{self.where}: all {self.channel_max} channels that the broker allows are open",
                spec.Channel.Open,
            )
        return number

    def consumer_ended(self, queue: str) -> None:
        """Note that a consumer has ended: its queue goes with the last one if it is auto-delete.

        It is forgotten also if a consumer of another connection keeps it.
        """
        if self.topology is None or not self.topology.is_auto_delete(queue):
            return
        for channel in self.channels.values():
            if channel is not self and channel.consumes(queue):
                return
        self.topology.queue_deleted(queue)

    def channel_closed(self, channel: Channel) -> None:
        """Note that the close of *channel* is complete on both sides: its id may be used again."""
        if self.channels.get(channel.channel_id) is channel:
            del self.channels[channel.channel_id]
            self.flow_control.unblock(channel.channel_id)
            self._numbers.release(channel.channel_id)

    def wait_reply(self, slot: Slot[Reply], channel_id: int, timeout: float | None) -> Reply:
        """Wait for a reply of the broker.  May switch.

        Arguments:
            timeout: seconds; None is the connection's ``reply_timeout``.
        """
        seconds = self.options.reply_timeout if timeout is None else timeout
        self.budget.begin_wait()
        try:
            return slot.wait(Deadline(seconds))
        except TimeoutError:
            if not slot.has_expired:
                raise
            raise TimeoutError(
                f"{self.where} did not reply within {seconds:g} s on channel {channel_id}"
            ) from None
        finally:
            self.budget.end_wait()

    def settle(self, deadline: Deadline) -> None:
        """Wait until no greenlet waits for a reply or a confirm.  May switch.

        Raises:
            TimeoutError: one still did at the deadline.
        """
        self.budget.wait_idle(deadline)

    def drain(self, timeout: float | Deadline | None) -> None:
        """Run the next event in the calling greenlet; see :meth:`Link.drain`.  May switch."""
        if get_hub() is not self.hub_affinity.hub:
            self.hub_affinity.check(self)
        if self.lost is not None:
            self.check_open()
        function, argument = self.events.get(timeout)
        function(argument)

    def check_size(self, size: int) -> None:
        """Refuse a body that the broker would refuse, before a byte of it is sent.

        Raises:
            ContentTooLarge: the body is above ``max_message_size``.
        """
        limit = self.options.max_message_size
        if limit is not None and size > limit:
            raise ContentTooLarge(f"body of {size} bytes is above max_message_size ({limit} bytes)")

    def qos_is_for_channel(self, prefetch_count: int) -> bool:
        """Return whether the broker knows a prefetch for a whole channel; warn once if it does not.

        RabbitMQ 4.3 takes one, and holds each consumer that is started later to it.  May switch.
        """
        version = self.server_version
        if version is None or version < (4, 3):
            return True
        if not self._has_warned_of_qos:
            self._has_warned_of_qos = True
            logger.warning(
                "%s: RabbitMQ %d.%d does not support a prefetch for a whole channel "
                "(apply_global=True): prefetch_count=%d holds for each consumer started from now "
                "on (logged once)",
                self.where,
                *version,
                prefetch_count,
                extra={"connection": self.where},
            )
        return False

    def flush(self, deadline: Deadline) -> None:
        """Return when all that was written has been given to the socket.  May switch.

        Raises:
            TimeoutError: the broker took too little before the deadline.
            RecoverableConnectionError: the connection is lost.
        """
        self.hub_affinity.check(self)
        self.check_open()
        self.drain_writer(deadline)
        self.check_open()

    def flush_settlements(self, deadline: Deadline) -> None:
        """Wait until the socket has taken all acks and requeues.  May switch."""
        if self.lost is None:
            self.drain_writer(deadline)

    def drain_writer(self, timeout: float | Deadline | None) -> None:
        """Wait until the socket has taken what was written.  May switch.

        Arguments:
            timeout: seconds, or a deadline that runs already; None is ``blocked_timeout``.

        Raises:
            TimeoutError: it took too little in time.
        """
        writer = self.writer
        if writer.flush():
            return
        deadline = Deadline.of(timeout)
        if deadline.timeout is None:
            deadline = Deadline(self.options.blocked_timeout)
        try:
            writer.drain(deadline)
        except TimeoutError as exc:
            if is_thrown(exc):
                raise
            raise TimeoutError(
                f"{self.where} did not read fast enough for {deadline.timeout:g} s: "
                f"{writer.pending} bytes are waiting"
            ) from None

    # Ending

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Close gracefully, within 2 s.  May switch.  A second call does nothing.

        Consumers are cancelled first, and deliveries that no handler has seen are requeued.
        """
        if self.lost is not None or self._closing is not None:
            return
        self.hub_affinity.check(self)
        if self.handshake.is_done:
            self._closing, deadline = Slot(), Deadline(CLOSE_TIMEOUT)
            try:
                self._withdraw(deadline)
                self.writer.flush()
                self.write_method(spec.Connection.Close, _CLOSE_ARGUMENTS)
                self._closing.wait(deadline)
            except TimeoutError as exc:
                if is_thrown(exc):
                    raise
                logger.warning(
                    "%s did not confirm within %g s that this connection is closed: messages "
                    "published without confirms just before may be lost",
                    self.where,
                    CLOSE_TIMEOUT,
                    extra={"connection": self.where},
                )
            except ConnectionError:
                pass  # it is closed all the same
            finally:
                self.end(RecoverableConnectionError("connection was closed"), closed=True)
        else:
            self.collect()

    def _withdraw(self, deadline: Deadline) -> None:
        try:
            withdraw(self, [each for each in self.channels.values() if each is not self], deadline)
        except TimeoutError as exc:
            if is_thrown(exc):
                raise
        except ChannelError:
            pass  # a broker that does not reply requeues them by itself

    def end_with_thread(self) -> None:
        """Close in good order, blocking at most 2 s.  Never switches.

        A broker whose client is gone before it has answered may forget what it was sent last.
        """
        if self.lost is None and self._closing is None and self.handshake.is_done:
            assert self._stream is not None
            closing: Slot[None] = Slot()
            self._closing = closing
            self.write_method(spec.Connection.Close, _CLOSE_ARGUMENTS)
            self._stream.exchange_blocking(lambda: closing.is_filled, Deadline(CLOSE_TIMEOUT))
        self.collect()

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life and raise the error in all waiters.  Never switches."""
        if self.lost is not None:
            return
        super().end(exc, closed=closed)
        self.interruption = None
        self._stop_heartbeat()
        if self._secret is not None:
            self._secret.stop(exc)
        self.handshake.fail(exc)
        if self._stream is not None:
            self._stream.close()
        channels = [channel for channel in self.channels.values() if channel is not self]
        unsent = find_unsent(*self.writer.take_unsent()) if channels else {}
        for channel in channels:
            channel.collect(unsent.get(channel.channel_id, ()), closed)
        self.channels = self.parser.channels = {}
        self.flow_control.end()
        if self._closing is not None:
            self._closing.fail(exc)
        self.budget.end()  # it refers to this object, whose memory would wait for the collector

    def forget(self) -> None:
        """After a fork, in the child: drop this connection, which is the parent's."""
        if self.lost is None:
            self.lost = RecoverableConnectionError("the connection was opened before a fork")
            self._stop_heartbeat()
            if self._secret is not None:
                self._secret.forget()
            for channel in self.channels.values():
                if channel is not self:
                    channel.forget(self.lost)

    def revive(self) -> None:
        """Let the reader reach this object again, as the collector has cleared weak references to it."""
        self._intake.link = ref(self)

    # In the reader (or the hub): nothing here may switch or run user code.

    def dispatch(self, methods: list[Method]) -> None:
        """Hand methods that the parser has read to their channels."""
        if self.interruption is not None:
            # The stack was full there, and these may be for other calls.
            why = error_text(self.interruption, repr)
            self.end(RecoverableConnectionError(f"{self.where}: a call was interrupted by {why}"))
            return
        ids = 0
        try:
            for channel_id, ids, payload, header, body in methods:
                # Channel 0 is this object.  When the connection ends there are no channels any more.
                channel = self.channels.get(channel_id)
                if channel is None:
                    continue
                if ids == BASIC_DELIVER:
                    deliver = channel.on_deliver
                    deliver(payload, header, body, Delivery)
                else:
                    channel.on_method(ids, payload, header, body)
        except UNREADABLE as exc:
            raise unreadable(ids, exc) from exc
        if self.budget.held > HARD_LIMIT:
            self.end(
                RecoverableConnectionError(
                    f"more than {HARD_LIMIT >> 20} MiB of deliveries are waiting for consumers "
                    f"without acks or prefetch: set prefetch_count"
                )
            )

    def on_method(self, ids: int, payload: bytes, header: bytes | None, body: bytes | None) -> None:
        """Take a method of channel 0 over."""
        if not self.handshake.is_done:
            self.handshake.put(ids, payload)
        elif ids == _CLOSE:
            self.write_method(spec.Connection.CloseOk)
            self.writer.flush()
            self.end(closing_error(payload), closed=self._closing is not None)
        elif ids == _CLOSE_OK:
            if self._closing is not None:
                self._closing.offer(None)
        elif ids == _BLOCKED:
            self.flow_control.block(read_arguments(ids, "s", payload)[0])
            if self._stream is not None:
                self._stream.lift_user_timeout()
        elif ids == _UNBLOCKED:
            self.flow_control.unblock()
        elif ids == UPDATE_SECRET_OK and self._secret is not None:
            self._secret.on_ok()
        else:
            self.unexpected_method(0, ids)

    def on_deliver(self, payload: bytes, header: bytes, body: bytes, kind: type[Delivery]) -> None:
        """Fail, as channel 0 has no consumers."""
        self.unexpected_method(0, BASIC_DELIVER)

    def unexpected_method(self, channel_id: int, ids: int) -> None:
        """Fail on a method that was not requested: the two sides no longer agree."""
        raise FrameError(
            f"method {ids >> 16},{ids & 0xFFFF} on channel {channel_id} was not expected"
        )

    def on_stream_lost(self, exc: BaseException) -> None:
        """End, since the socket is gone, or what came cannot be understood."""
        if isinstance(exc, AMQPError) or not self.handshake.is_done:
            self.end(exc)
            return
        error = RecoverableConnectionError(f"{self.where}: connection lost: {error_reason(exc)}")
        error.__cause__ = exc
        self.end(error)

    def _pause(self) -> None:
        if self._stream is not None:
            self._stream.pause()
        if self._heartbeat is not None:
            self._heartbeat.pause()

    def _resume(self) -> None:
        if self._stream is not None:
            self._stream.resume()
        if self._heartbeat is not None:
            self._heartbeat.resume(monotonic())

    def _stop_heartbeat(self) -> None:
        if self._heartbeat_ticker is not None:
            self._heartbeat_ticker.stop()

    def _beat(self, lag: float) -> None:
        # In the hub.
        heartbeat, stream = self._heartbeat, self._stream
        if heartbeat is None or stream is None or not stream.is_open:
            return
        now = monotonic()
        heartbeat.note_sent(stream.writer.sent_at)
        if stream.received_at > heartbeat.received_at:
            heartbeat.note_received(stream.received_at)
        action = heartbeat.tick(now, lag)
        if lag > heartbeat.interval:
            log_blocked(logger, self.where, lag, heartbeat.tick_interval)
        if action & HeartbeatAction.SEND and not stream.writer.is_stalled:
            stream.writer.write(heartbeat_frame())
        if action & HeartbeatAction.DEAD:
            self.end(
                ConnectionForced(
                    f"{self.where}: nothing was received for {heartbeat.silence(now):.1f} s, "
                    f"the heartbeat is {heartbeat.interval:g} s"
                )
            )

    def heartbeat_tick(self, rate: int = 2) -> None:
        """Raise an error if the peer is dead; heartbeats are sent in the background."""
        self.check_open()


class _ExitRoundTrip:
    """Waits at the end of the interpreter until the broker has handled what was published.

    RabbitMQ drops what its channel process has not handled yet when the client is gone.  That process
    works in order, so its reply to a later method shows that it has.  The method changes nothing, and
    the connection stays as it is for what else runs at the end.

    Arguments:
        link: whose channels it asks.
    """

    def __init__(self, link: AmqpLink) -> None:
        self._link = ref(link)
        self._calls: list[Greenlet[..., Any]] = []

    @property
    def pending(self) -> int:
        """Number of channels that the broker has not replied on."""
        return sum(not call.ready() for call in self._calls)

    def flush(self) -> None:
        """Ask on each channel that has published.  Never switches."""
        link = self._link()
        if link is None or link.lost is not None or link.flow_control.blocked is not None:
            return  # a broker that blocks the connection does not read
        self._calls = [
            spawn(f"exit:{link.where}", self._ask, channel)
            for channel in link.channels.values()
            if channel is not link and channel.is_open and channel.publisher.has_published
        ]

    @staticmethod
    def _ask(channel: Channel) -> None:
        try:
            channel.flow(True)
        except (AMQPError, OSError):
            logger.debug(
                "no reply at the end of the interpreter",
                exc_info=True,
                extra={"connection": channel.connection.where},
            )


class _Intake:
    """The reader's weak reference to its link, so that a dropped link can be collected.

    Arguments:
        link: that link.
    """

    def __init__(self, link: AmqpLink) -> None:
        # Nor the parser, which refers to the channels, and so to the link.
        self.link = ref(link)

    def room(self) -> list[memoryview | bytearray] | None:
        """Return the buffers in which the stream receives a large body; None: none is due."""
        link = self.link()
        return None if link is None else link.parser.room()

    def filled(self, count: int) -> None:
        """Parse what was received there."""
        link = self.link()
        if link is not None:
            link.dispatch(link.parser.filled(count))

    def take(self, data: bytes) -> None:
        """Parse what was received elsewhere."""
        link = self.link()
        if link is not None:
            link.dispatch(link.parser.feed(data))

    def lost(self, exc: BaseException) -> None:
        """End the link, as the stream has ended."""
        link = self.link()
        if link is not None:
            link.on_stream_lost(exc)


class _ChannelNumbers:
    """Numbers for channels, from 1 up; one that was released is used again before a new one.

    A number may be released only when the close of its channel is complete on both sides.
    """

    def __init__(self) -> None:
        self._free: list[int] = []
        self._last = 0

    def take(self, most: int) -> int | None:
        """Return a number that is not in use, *most* at most; None: all are."""
        if self._free:
            return self._free.pop()
        if self._last >= most:
            return None
        self._last += 1
        return self._last

    def release(self, number: int) -> None:
        """Have *number* be used again."""
        self._free.append(number)
