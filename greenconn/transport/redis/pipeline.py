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

The commands of a partition
---------------------------
Replies are checked: one of another form would be taken for what it is not, in some greenlet that did
nothing wrong (bytes were spoiled, or what answers is no Redis).  So it ends the connection.  Only the
commands whose replies are looked at are named here.
"""

from __future__ import annotations

from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from redis.exceptions import NoScriptError

from greenconn.green.deadline import Deadline
from greenconn.green.hub import weakly
from greenconn.green.slot import Slot
from greenconn.green.stream import PipelineLife
from greenconn.green.supervisor import Ticker
from greenconn.green.writer import Writer
from greenconn.transport.redis.errors import LinkLost, NotRedis, ReplyLate, as_error
from greenconn.transport.redis.options import Keys, RedisOptions
from greenconn.transport.redis.scripts import (
    ADVANCE,
    DROP,
    EXPIRE,
    JOIN,
    MOVE,
    PROMOTE,
    Script,
    Scripts,
)
from greenconn.wire.resp import Argument, ErrorReply, ProtocolError, Push, RespParser, pack

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
        """Whether :meth:`CommandPipeline.wait_writable` is to be called before a command."""

    def before_flush(self, callback: Callable[[], None]) -> None:
        """Call *callback* in the hub when this turn ends, before the flush.  Never switches."""


class CommandPipeline(ABC):
    """The way of commands to a server: one socket, or those to the nodes of a cluster.

    Attributes:
        is_repeated: the command whose callback runs may have been carried out before, when a socket
            was lost before its reply.
        lost: why nothing more can be sent; None while it can.
        where: the URL, password masked, for messages.
        writer: the sending side.
    """

    is_repeated: bool
    lost: BaseException | None
    where: str
    writer: CommandWriter

    @abstractmethod
    def post(self, command: bytes, callback: ReplyCallback | None = None) -> None:
        """Send one command; *callback* gets its reply.  Never switches."""

    def post_all(self, commands: Sequence[bytes], callback: ReplyCallback) -> list[Any]:
        """Send several commands; *callback* gets the last reply.  Never switches.

        Returns:
            what the other replies are put into.
        """
        replies: list[Any] = []
        for command in commands[:-1]:
            self.post(command, replies.append)
        self.post(commands[-1], callback)
        return replies

    @abstractmethod
    def wait_writable(self, deadline: Deadline) -> None:
        """Let other greenlets run, or wait for a slow server, where that is due.  May switch."""

    @abstractmethod
    def drain(self, deadline: Deadline = ENDLESS) -> None:
        """Wait until what was written has left.  May switch."""

    @abstractmethod
    def error(self, reply: BaseException, what: str = "") -> BaseException:
        """Return the exception to raise for a reply that is one; what ends the link ends it."""

    @abstractmethod
    def interrupted(self, exc: BaseException) -> None:
        """Fail, as an exception came between two steps that belong together.  Never switches."""

    @abstractmethod
    def end(self, exc: BaseException) -> None:
        """End it because it is of no use any more, and tell its owner.  Never switches."""

    @abstractmethod
    def close(self) -> None:
        """Close it; who still waits gets an error.  Never switches."""

    @abstractmethod
    def forget(self) -> None:
        """Forget it in the child of a fork: the parent owns it."""

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
            deadline = deadline.renewed()
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
            deadline = deadline.renewed()
        slot: Slot[Any] = Slot()
        replies = self.post_all(commands, slot.offer)
        replies.append(slot.wait(deadline))
        for reply in replies:
            if isinstance(reply, Exception):
                raise self.error(reply, what)
        return replies


class Pipeline(PipelineLife, CommandPipeline):
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
    is_repeated = False

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
            self._interruption = exc
            self.interrupted(exc)
            raise

    def post_all(self, commands: Sequence[bytes], callback: ReplyCallback) -> list[Any]:
        if self.lost is not None:
            return super().post_all(commands, callback)
        replies: list[Any] = []
        callbacks = self._callbacks
        if not callbacks:
            self._waits_since = monotonic()
        try:
            callbacks.extend([*[replies.append] * (len(commands) - 1), callback])
            self.writer.write(b"".join(commands))
        except BaseException as exc:
            self._interruption = exc
            self.interrupted(exc)
            raise
        return replies

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
        replies = self.post_all(commands, slot.offer)
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
        if self._interruption is not None:
            self._end_interrupted(self._interruption)
            return
        callbacks, callback = self._callbacks, None
        try:
            error = None
            try:
                replies = self._parser.feed(data)
            except ProtocolError as exc:
                replies, error = self._parser.before_error, exc
            for reply in replies:
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
            if error is not None:
                raise error
        except ProtocolError as exc:
            raise NotRedis(f"{self.where} does not speak Redis' protocol: {exc}") from exc
        except (TypeError, ValueError, LookupError, AttributeError) as exc:
            # Who got it has taken it for what the command's reply must be.
            raise NotRedis(f"{self.where}: unexpected reply: {exc}") from exc
        except BaseException:
            if callback is not None:  # from a signal: the end of the link fails it, too
                callbacks.appendleft(callback)
            raise

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


def _is_count(reply: Any) -> bool:
    return type(reply) is int


def _is_text(reply: Any) -> bool:
    return reply is None or isinstance(reply, bytes)


def _are_texts(reply: Any) -> bool:
    return isinstance(reply, list) and all(map(_is_text, reply))


def _are_members(reply: Any) -> bool:
    return isinstance(reply, (list, set)) and all(isinstance(each, bytes) for each in reply)


def _is_page(reply: Any) -> bool:
    """Return whether the reply is a cursor with a page of results."""
    return (
        isinstance(reply, list)
        and len(reply) == 2
        and isinstance(reply[0], bytes)
        and _are_members(reply[1])
    )


def _is_promotion(reply: Any) -> bool:
    """Return whether it is a time, or keys."""
    return _is_count(reply) or (bool(reply) and _are_members(reply))


def _is_advance(reply: Any) -> bool:
    """Return whether the time was advanced, and the time."""
    return (
        isinstance(reply, list)
        and len(reply) == 2
        and _is_count(reply[0])
        and isinstance(reply[1], bytes)
        and _is_number(reply[1] or b"0")
    )


def _is_end(reply: Any) -> bool:
    """Return a number of messages, and names."""
    return (
        isinstance(reply, list) and bool(reply) and _is_count(reply[0]) and _are_members(reply[1:])
    )


def _is_score(reply: Any) -> bool:
    return reply is None or _is_number(reply)


def _is_number(value: Any) -> bool:
    if isinstance(value, bytes):
        try:
            value = float(value)
        except ValueError:
            return False
    return isinstance(value, (int, float))


def _are_pairs(reply: Any) -> bool:
    """Return whether it is names with their values, in the form of either protocol."""
    if isinstance(reply, dict):
        return all(isinstance(each, bytes) for pair in reply.items() for each in pair)
    return isinstance(reply, list) and len(reply) % 2 == 0 and _are_members(reply)


def _are_scored(reply: Any) -> bool:
    """Members with their scores, in the form of either protocol."""
    if not isinstance(reply, list):
        return False
    is_nested = bool(reply) and isinstance(reply[0], list)
    pairs = reply if is_nested else [reply[at : at + 2] for at in range(0, len(reply), 2)]
    return all(
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], bytes)
        and _is_number(pair[1])
        for pair in pairs
    )


_FORMS: Final[dict[bytes, Callable[[Any], bool]]] = {
    b"DEL": _is_count,
    b"EXISTS": _is_count,
    b"GET": _is_text,
    b"HDEL": _is_count,
    b"HGETALL": _are_pairs,
    b"HMGET": _are_texts,
    b"LINDEX": _is_text,
    b"LLEN": _is_count,
    b"SCAN": _is_page,
    b"SISMEMBER": _is_count,
    b"SMEMBERS": _are_members,
    b"SSCAN": _is_page,
    b"ZCOUNT": _is_count,
    b"ZRANGEBYSCORE": _are_scored,
    b"ZREM": _is_count,
    b"ZSCAN": _is_page,
    b"ZSCORE": _is_score,
}


_OF_SCRIPTS: Final[dict[Script, Callable[[Any], bool]]] = {
    ADVANCE: _is_advance,
    DROP: _is_end,
    EXPIRE: _are_texts,
    JOIN: _is_count,
    MOVE: _is_count,
    PROMOTE: _is_promotion,
}
#: By text and by digest.
_SCRIPTS: Final[dict[bytes, Callable[[Any], bool]]] = {
    name: has_form
    for script, has_form in _OF_SCRIPTS.items()
    for name in (script.text, script.digest)
}


def check_reply(command: bytes, reply: Any, where: str) -> None:
    """See that *reply* has the form of a reply to *command* (packed).

    Raises:
        NotRedis: it has not.
    """
    count, _, name, *behind = command.split(b"\r\n", 5)
    is_script = name in (b"EVAL", b"EVALSHA")
    has_form = _SCRIPTS.get(behind[1]) if is_script else _FORMS.get(name)
    is_right = has_form is None or has_form(reply)
    if is_right and name == b"HMGET":  # a value for each field: all but the command and its key
        is_right = len(reply) == int(count[1:]) - 2
    if not is_right:
        raise NotRedis(f"{where}: the reply to {name.decode()} is not as expected: {reply!r:.60}")


PING: Final = pack("PING")
_TRACK: Final = pack("CLIENT", "TRACKING", "ON")


def as_pairs(reply: Any) -> dict[bytes, bytes]:
    """Return a reply that has names with their values, in the form of either protocol."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


class Commands:
    """The way of commands, the names of keys, the scripts and the options of one partition.

    Arguments:
        where: the server's URL, password masked, for messages.
        before_call: runs before each call, so that a call sees the effect of what was sent before.  It
            must not switch.

    Attributes:
        is_begun: there is a pipeline.
        is_tracking: the server pushes when an idle queue gets a message.
        lost: why the link is over; None while it is not.
        owner: the unique name under which this life holds messages.  Known when it is open.
        pipeline: where they are sent.
        prefix: begins the fields under which messages are held.
        protocol: the version of Redis' protocol, 3 or 2.
    """

    def __init__(
        self, where: str, keys: Keys, options: RedisOptions, before_call: Callable[[], None]
    ) -> None:
        self.where = where
        self.keys = keys
        self.options = options
        self.scripts = Scripts()
        self.before_call = before_call
        self.lost: BaseException | None = None
        self.owner = self.prefix = ""
        self.is_begun = self.is_tracking = False
        self.protocol = 3
        self.pipeline: CommandPipeline

    def begin(self, pipeline: CommandPipeline, protocol: int, owner: str) -> None:
        """Send commands on *pipeline* from now on.  Never switches."""
        self.pipeline = pipeline
        self.is_begun = True
        self.protocol = protocol
        self.owner = owner
        tag = self.keys.tag
        self.prefix = f"gc.{owner}.{tag}." if tag else f"gc.{owner}."
        if protocol == 3:
            # Nothing is registered by this alone; reads are, from now on.
            pipeline.post(_TRACK, self._on_tracking)

    def _on_tracking(self, reply: Any) -> None:
        self.is_tracking = reply == b"OK"

    def call(self, command: bytes, deadline: Deadline = ENDLESS, what: str = "") -> Any:
        """Send a command and return its reply; see :meth:`Pipeline.call`.  May switch."""
        self.before_call()
        reply = self.pipeline.call(command, deadline, what)
        self.check_reply(command, reply)
        return reply

    def call_all(
        self, commands: Sequence[bytes], deadline: Deadline = ENDLESS, what: str = ""
    ) -> list[Any]:
        """Send commands and return their replies; see :meth:`Pipeline.call_all`.  May switch."""
        self.before_call()
        replies = self.pipeline.call_all(commands, deadline, what)
        for command, reply in zip(commands, replies, strict=True):
            self.check_reply(command, reply)
        return replies

    def check_reply(self, command: bytes, reply: Any) -> None:
        """End the link unless *reply* has the form of a reply to *command*.

        Raises:
            LinkLost: it has not.
        """
        try:
            check_reply(command, reply, self.where)
        except NotRedis as exc:
            lost = LinkLost(f"{self.where}: connection lost: {exc}")
            self.pipeline.end(lost)
            raise lost from exc

    def run(self, script: Script, keys: tuple[bytes, ...], *args: Argument, what: str) -> Any:
        """Run a script and return its reply.  May switch.

        Raises:
            Exception: as :meth:`call`.
        """
        return self.run_and_read(script, keys, *args, reads=(), what=what)[0]

    def run_and_read(
        self,
        script: Script,
        keys: tuple[bytes, ...],
        *args: Argument,
        reads: Sequence[bytes],
        what: str,
    ) -> list[Any]:
        """Run a script and *reads* behind it in one round trip; return all replies.  May switch.

        Raises:
            Exception: as :meth:`call_all`.
        """
        try:
            return self.call_all([self.scripts.call(script, keys, *args), *reads], what=what)
        except NoScriptError:
            # The server's scripts were flushed: send it with its text.
            self.scripts.forget()
            return self.call_all([self.scripts.call(script, keys, *args), *reads], what=what)

    def post_script(
        self,
        script: Script,
        keys: tuple[bytes, ...],
        *args: Argument,
        done: Callable[[Any], object],
    ) -> None:
        """Post a script; *done* gets its reply, in the reader.  Never switches."""

        def replied(reply: Any) -> None:
            if isinstance(reply, ErrorReply) and reply.code == "NOSCRIPT":
                self.scripts.forget()  # the server's scripts were flushed
                self.post_script(script, keys, *args, done=done)
            else:
                done(reply)

        self.pipeline.post(self.scripts.call(script, keys, *args), replied)

    def watch(self, pipeline: Pipeline) -> None:
        """Watch from now on whether the server answers on *pipeline*.  Never switches."""
        options = self.options
        timeout = options.socket_timeout or options.reply_timeout
        pipeline.watch(timeout, options.health_check_interval)

    def check_open(self) -> None:
        """Raise unless the link is open.

        Raises:
            LinkLost: with the reason as ``__cause__``.
        """
        if self.lost is not None:
            raise LinkLost(f"connection is closed ({self.lost})") from self.lost


def call_together(asked: Sequence[tuple[Commands, bytes]], what: str = "") -> list[Any]:
    """Send commands, each to where its keys are, and return their replies.  May switch.

    Raises:
        Exception: as :meth:`Commands.call`, for the first of them that failed.
    """
    slots: list[Slot[Any]] = []
    for commands, command in asked:
        slot: Slot[Any] = Slot()
        slots.append(slot)
        commands.before_call()
        commands.pipeline.post(command, slot.offer)
    replies = []
    for (commands, command), slot in zip(asked, slots, strict=True):
        reply = slot.wait(ENDLESS)
        if isinstance(reply, Exception):
            raise commands.pipeline.error(reply, what)
        commands.check_reply(command, reply)
        replies.append(reply)
    return replies
