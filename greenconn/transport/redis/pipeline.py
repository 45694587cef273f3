"""One socket to a Redis server, shared by all greenlets: commands are sent together.

Theory
------
- A command is written and its callback appended to the queue of callbacks in one step.  So the n-th
  reply belongs to the n-th callback, even if the greenlet that waits for it has been killed.
- Commands of all greenlets in one turn of the hub are sent together (``green.writer``).
- A callback takes the reply, or an exception instead of it.  It runs in the reader and never switches.
  ``call`` passes the ``offer`` of a slot, and waits.
- Single replies have no timers, which would cost too much.  As replies keep their order, it is enough
  to watch whether the server answers at all: a tick checks whether it has been silent for too long
  while a reply is due, and sends a PING when none is.
- The loss of the link is passed to every callback, once; nothing is written afterwards.
"""

from __future__ import annotations

from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from greenconn.green.deadline import Deadline
from greenconn.green.hub import weakly
from greenconn.green.slot import Slot
from greenconn.green.ticker import Ticker
from greenconn.green.writer import Writer
from greenconn.transport.redis.errors import LinkLost, NotRedis, ReplyLate, as_error
from greenconn.transport.virtual.pipeline import PipelineLife
from greenconn.wire.resp import ErrorReply, ProtocolError, Push, RespParser, pack

if TYPE_CHECKING:
    from greenconn.wire.tls import TlsSession

#: Called with a reply, or with an exception instead of it.
ReplyCallback = Callable[[Any], Any]

ENDLESS: Final = Deadline()
_PING: Final = pack("PING")
#: Checks of the tick within the shortest time that it watches.
CHECKS: Final = 4


class CommandWriter(Protocol):
    """The sending side for commands."""

    @property
    def must_wait(self) -> bool:
        """Whether :meth:`CommandCalls.wait_writable` is to be called before a command."""

    def before_flush(self, callback: Callable[[], None]) -> None:
        """Call *callback* in the hub when this turn ends, before the flush.  Never switches."""


class CommandCalls(ABC):
    """The calls that wait for their replies, over commands that are posted.

    Attributes:
        writer: the sending side.
    """

    writer: CommandWriter

    @abstractmethod
    def post(self, command: bytes, callback: ReplyCallback | None = None) -> None:
        """Send one command; *callback* gets its reply.  Never switches."""

    @abstractmethod
    def wait_writable(self, deadline: Deadline) -> None:
        """Let other greenlets run, or wait for a slow server, where that is due.  May switch."""

    @abstractmethod
    def error(self, reply: BaseException, what: str = "") -> BaseException:
        """Return the exception to raise for a reply that is one; what ends the link ends it."""

    def call(self, command: bytes, deadline: Deadline = ENDLESS, what: str = "") -> Any:
        """Write one command and return its reply.  May switch.

        Arguments:
            what: the operation, for messages.

        Raises:
            redis.exceptions.ResponseError: the server's error.
            TimeoutError: no reply before the deadline; the command may have been carried out.
            LinkLost: the connection, or the way to the node, was lost before the reply came.
        """
        if self.writer.must_wait:
            self.wait_writable(deadline)
        slot: Slot[Any] = Slot()
        self.post(command, slot.offer)
        reply = slot.wait(deadline)
        if isinstance(reply, Exception):
            raise self.error(reply, what)
        return reply

    def call_all(
        self, commands: Sequence[bytes], deadline: Deadline = ENDLESS, what: str = ""
    ) -> list[Any]:
        """Write several commands at once and return their replies.  May switch.

        Raises:
            Exception: as :meth:`call`, for the first of them that failed.
        """
        if not commands:
            return []
        if self.writer.must_wait:
            self.wait_writable(deadline)
        slot: Slot[Any] = Slot()
        replies: list[Any] = []
        for command in commands[:-1]:
            self.post(command, replies.append)
        self.post(commands[-1], slot.offer)
        replies.append(slot.wait(deadline))
        for reply in replies:
            if isinstance(reply, Exception):
                raise self.error(reply, what)
        return replies


class Pipeline(PipelineLife, CommandCalls):
    """One socket to a Redis server, with the callbacks of the replies that are due.

    Arguments:
        sock: connected and non-blocking; owned from now on.
        where: the server's URL, password masked, for messages.
        on_push: called with each push of the server; runs in the reader.
        on_lost: called once, without switching, with the error when the socket is lost.
        tls: a TLS session that has not begun, or None.

    Attributes:
        lost: the error that ended the link; None while it can be used.
        takes_arrays: messages of subscriptions come as arrays (RESP2).
        writer: the sending side.
    """

    writer: Writer
    lost_error = LinkLost
    #: A command is never sent again: the link ends with the socket.
    is_repeated: Final = False

    def __init__(
        self,
        sock: RawSocket,
        where: str,
        on_push: Callable[[list[Any]], None],
        on_lost: Callable[[LinkLost], None],
        tls: TlsSession | None = None,
    ) -> None:
        super().__init__(sock, where, on_lost, tls)
        self.takes_arrays = False
        self._on_push = weakly(on_push)  # who owns this is not kept by its reader
        self._parser = RespParser()
        self._reply_timeout: float | None = None
        self._health_interval = 0.0

    def watch(self, reply_timeout: float | None, health_interval: float) -> None:
        """Begin to watch whether the server answers.

        Arguments:
            reply_timeout: seconds of silence while a reply is due; None: for ever.
            health_interval: seconds of silence after which a PING asks; 0: never.
        """
        self._reply_timeout = reply_timeout
        self._health_interval = health_interval
        times = [each for each in (reply_timeout, health_interval) if each]
        if times and self.lost is None:
            self._ticker = Ticker(min(times) / CHECKS, self._tick, "redis-health")
            self._ticker.start()

    # Commands

    def post(self, command: bytes, callback: ReplyCallback | None = None) -> None:
        """Write one command; *callback* gets its reply.  Never switches; nothing if it is lost."""
        if self.lost is not None:
            if callback is not None:
                callback(self.lost)
            return
        callbacks = self._callbacks
        if not callbacks:
            self._waits_since = monotonic()
        try:
            callbacks.append(callback)
            self.writer.write(command)
        except BaseException as exc:
            self.interrupted(exc)
            raise

    def post_quiet(self, command: bytes, on_error: Callable[[Exception], Any]) -> None:
        """Write a command that has no reply unless it fails; one with a reply must follow."""

        def callback(reply: Any) -> None:
            if isinstance(reply, Exception):
                on_error(reply)
            elif self._callbacks:
                following = self._callbacks.popleft()  # this one's reply did not come
                if following is not None:
                    following(reply)

        self.post(command, callback)

    def subscribe(self, command: bytes, deadline: Deadline = ENDLESS, what: str = "") -> None:
        """Write a subscription, and return when the server has it.  May switch.

        Raises:
            Exception: as :meth:`call`.
        """
        errors: list[Exception] = []
        self.post_quiet(command, errors.append)
        self.call(_PING, deadline)  # a subscription itself has no reply
        if errors:
            raise self.error(errors[0], what)

    def wait_writable(self, deadline: Deadline) -> None:
        """Let other greenlets run, or wait for a slow server, where that is due.  May switch.

        Raises:
            TimeoutError: the server read nothing until the deadline.
            LinkLost: the link is lost.
        """
        self.writer.wait_writable(deadline.within(self._reply_timeout))
        self.check()

    def drain(self, deadline: Deadline = ENDLESS) -> None:
        """Wait until the socket has taken what was written.  May switch.

        Raises:
            TimeoutError: the server read too little until the deadline.
        """
        self.writer.flush()
        if self.writer.is_stalled:
            self.writer.drain(deadline.within(self._reply_timeout))

    def ask(self, commands: Sequence[bytes], deadline: Deadline = ENDLESS) -> list[Any]:
        """Write several commands in one piece, and return their replies, errors included.

        With a second piece, the failure to send it to a server that has closed the connection would
        hide the reply that says why.  May switch.

        Raises:
            TimeoutError: not all replies came before the deadline.
        """
        slot: Slot[Any] = Slot()
        replies: list[Any] = []
        self._waits_since = monotonic()
        try:
            self._callbacks.extend([replies.append] * (len(commands) - 1))
            self.post(b"".join(commands), slot.offer)
        except BaseException as exc:
            self.interrupted(exc)
            raise
        replies.append(slot.wait(deadline))
        return replies

    def error(self, reply: BaseException, what: str = "") -> BaseException:
        """Return the exception to raise for a reply that is one; what ends the link ends it."""
        if not isinstance(reply, ErrorReply):
            return self._own(reply)
        error = as_error(reply, self.where, what)
        if isinstance(error, LinkLost):
            self.end(error)
        return error

    # In the reader or in the hub: nothing here may switch or run user code.

    def _on_data(self, data: bytes) -> None:
        callbacks = self._callbacks
        try:
            for reply in self._parser.feed(data):
                if reply.__class__ is Push or (self.takes_arrays and _is_message(reply)):
                    self._on_push(reply)
                elif callbacks:
                    callback = callbacks.popleft()
                    if callback is not None:
                        callback(reply)
                else:
                    raise NotRedis(f"{self.where}: unexpected reply: {reply!r:.60}")
                if self.lost is not None:
                    return
        except ProtocolError as exc:
            raise NotRedis(f"{self.where} does not speak Redis' protocol: {exc}") from exc
        except (TypeError, ValueError, LookupError, AttributeError) as exc:
            # Who got it has taken it for what the command's reply must be.
            raise NotRedis(f"{self.where}: unexpected reply: {exc}") from exc

    def overdue(self, now: float) -> float:
        """Return the seconds for which the server has been silent while a reply is due."""
        if not self._callbacks:
            return 0.0
        return now - max(self.stream.received_at, self._waits_since)

    def _tick(self, lag: float) -> None:
        now = monotonic()
        silent = now - self.stream.received_at
        if not self._callbacks:
            if self._health_interval and silent > self._health_interval:
                self.post(_PING)
            return
        timeout = self._reply_timeout
        if timeout and not lag and self.overdue(now) > timeout:
            self.end(ReplyLate(f"{self.where} did not reply within {timeout:g} s"))


#: What a subscriber gets without a command that waits for it.
_UNASKED: Final = frozenset(
    {
        *(b"message", b"subscribe"),
        *(b"pmessage", b"psubscribe", b"punsubscribe"),
        *(b"smessage", b"ssubscribe", b"sunsubscribe"),
    }
)


def _is_message(reply: Any) -> bool:
    return isinstance(reply, list) and bool(reply) and reply[0] in _UNASKED


def ignore(anything: Any) -> None:
    """Take a push, a reply or an error, and do nothing."""
