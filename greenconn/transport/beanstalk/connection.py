"""Connections to a beanstalkd: commands leave together, replies come in their order.

- A command is written and its callback appended to the queue of callbacks in one step, so the n-th reply
  belongs to the n-th callback.  A callback takes the reply, or an exception instead; it runs in the
  reader and never switches.
- Commands are grouped with what they depend on (the tube in use, the tube that is watched) in one
  write, so that greenlets may share the socket.
- No single reply has a timer: a tick checks whether the server was silent for too long while a reply
  is due.  A command that waits in the server says for how long (``extra_timeout``).

All greenlets of a link share the command connection.  It stores, peeks, counts, reserves ready jobs,
and settles the jobs that it reserved.
"""

from __future__ import annotations

from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from greenconn.exceptions import (
    FrameError,
    PublishNacked,
    PublishRefused,
    RecoverableChannelError,
    RecoverableConnectionError,
    ResourceError,
)
from greenconn.green.deadline import NEVER, Deadline, is_thrown
from greenconn.green.hub import forget_at_fork
from greenconn.green.slot import Slot
from greenconn.green.stream import PipelineLife
from greenconn.green.supervisor import Ticker
from greenconn.wire.beanstalk import (
    LONGEST_BODY,
    BeanstalkParser,
    ProtocolError,
    Reply,
    line,
    statistics,
)

if TYPE_CHECKING:
    from greenconn.wire.tls import TlsSession


class LinkLost(RecoverableConnectionError):  # type: ignore[misc]
    """The connection to the server is gone."""


class NotBeanstalk(FrameError):  # type: ignore[misc]
    """The server does not speak beanstalk's protocol."""


class JobTooBig(PublishRefused):
    """The message is larger than the server's limit for a job."""


class DeclarationRefused(RecoverableChannelError):  # type: ignore[misc]
    """The server stores no declarations of queues now; see :class:`ServerRefuses`."""


class ServerRefuses(PublishNacked):
    """The server takes no messages now: it has no memory left, or is being drained."""


#: Replies that mean bytes changed on their way, or a very old server.
_OUT_OF_STEP: Final = frozenset({b"BAD_FORMAT", b"UNKNOWN_COMMAND", b"EXPECTED_CRLF"})

_REMEDIES: Final[dict[bytes, str]] = {
    b"DRAINING": "the server is in drain mode (SIGUSR1) and accepts no new messages: restart it",
    b"OUT_OF_MEMORY": "the server is out of memory: consume, or give it more",
    b"BURIED": "the server is out of memory: consume, or give it more",
    b"INTERNAL_ERROR": "look at the server's log",
}


def refusal(reply: Reply, where: str, what: str) -> Exception:
    """Return the error for a reply that was not expected.

    Arguments:
        what: the operation, for the message.
    """
    word = reply.word.decode()
    if reply.word in _OUT_OF_STEP:
        return LinkLost(
            f"{where}: {what}: {word} (the command was damaged on its way, or the server is older "
            f"than beanstalkd 1.10)"
        )
    remedy = _REMEDIES.get(reply.word)
    if remedy is None:
        return NotBeanstalk(f"{where}: {what}: unexpected reply {word}")
    kind: type[Exception] = ResourceError if word == "INTERNAL_ERROR" else ServerRefuses
    return kind(f"{where}: {what}: {word} ({remedy})")


#: Takes a reply, or the exception that came instead.
ReplyCallback = Callable[[Reply | BaseException], object]

#: Looks of the tick within the time that it watches.
LOOKS: Final = 4


class Pipeline(PipelineLife):
    """One socket.

    Arguments:
        sock: connected and non-blocking; owned from now on.
        where: the server's URL, for messages.
        on_lost: called once, without switching, with the error when the socket is lost.
        tls: a TLS session that has not begun, or None.

    Attributes:
        lost: why nothing more can be sent; None while it can.
        parser: what reads the replies.
        extra_timeout: seconds that the server may be silent beyond the usual, since a command waits.
    """

    lost_error = LinkLost

    def __init__(
        self,
        sock: RawSocket,
        where: str,
        on_lost: Callable[[LinkLost], None],
        tls: TlsSession | None = None,
    ) -> None:
        super().__init__(sock, where, on_lost, tls)
        self.parser = BeanstalkParser()
        self.extra_timeout = 0.0
        self._reply_timeout = 0.0
        forget_at_fork(self)

    def watch(self, reply_timeout: float | None) -> None:
        """End it, from now on, when the server is silent for so many seconds; None: never."""
        if reply_timeout and self.lost is None:
            self._reply_timeout = reply_timeout
            self._ticker = Ticker(reply_timeout / LOOKS, self._tick, "beanstalk-silence")
            self._ticker.start()

    # Commands

    def post(self, command: bytes, *callbacks: ReplyCallback) -> None:
        """Write commands, one for each of *callbacks*.  Never switches."""
        if self.lost is not None:
            for callback in callbacks:
                callback(self.lost)
            return
        if not self._callbacks:
            self._waits_since = monotonic()
        try:
            self._callbacks.extend(callbacks)
            self.writer.write(command)
        except BaseException as exc:
            self._interruption = exc
            self.interrupted(exc)
            raise

    def ask(self, commands: Sequence[bytes], deadline: Deadline = NEVER) -> list[Reply]:
        """Write *commands* at once and return their replies, refusals among them.  May switch.

        ``writer.must_wait`` is not asked: waiting would switch, and what depends on the order of
        commands is written by others meanwhile.  See :meth:`wait_writable`.

        Raises:
            LinkLost: the connection went before the last reply came.
            TimeoutError: it did not come before the deadline.
        """
        if not commands:
            return []
        outcomes: list[Reply | BaseException] = []
        slot: Slot[Reply | BaseException] = Slot()
        keep: ReplyCallback = outcomes.append
        self.post(b"".join(commands), *([keep] * (len(commands) - 1)), slot.offer)
        outcomes.append(slot.wait(deadline))
        replies: list[Reply] = []
        for reply in outcomes:
            if isinstance(reply, BaseException):
                raise self._own(reply)
            replies.append(reply)
        return replies

    def wait_writable(self) -> None:
        """Let others run, or wait for a slow server, where that is due.  May switch.

        Raises:
            LinkLost: it is lost, or the server read nothing for too long.
        """
        if self.writer.must_wait:
            try:
                self.writer.wait_writable(Deadline(self._reply_timeout or None))
            except TimeoutError as exc:
                if is_thrown(exc):
                    raise
                self.end(LinkLost(f"{self.where} read nothing for {self._reply_timeout:g} s"))
        self.check()

    def refused(self, reply: Reply, what: str) -> Exception:
        """Return the exception for a reply that was not expected; what ends the link ends it."""
        error = refusal(reply, self.where, what)
        if isinstance(error, NotBeanstalk):
            lost = LinkLost(str(error))
            lost.__cause__ = error
            error = lost
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
            for reply in self.parser.feed(data):
                if not callbacks:
                    raise NotBeanstalk(f"{self.where}: unexpected reply: {reply!r:.60}")
                callback = callbacks.popleft()
                callback(reply)
                if self.lost is not None:
                    return
        except ProtocolError as exc:
            raise NotBeanstalk(f"{self.where} does not speak beanstalk's protocol: {exc}") from exc
        except BaseException as exc:
            if callback is not None and not isinstance(exc, Exception):
                callbacks.appendleft(callback)  # from a signal: the end of the link fails it, too
            raise

    def _tick(self, lag: float) -> None:
        if not self._callbacks or lag:
            return
        now = monotonic()
        silent = min(now - self.stream.received_at, now - self._waits_since)
        if silent > self._reply_timeout + self.extra_timeout:
            self.end(LinkLost(f"{self.where} did not reply within {self._reply_timeout:g} s"))


def ignore_reply(reply: object) -> None:
    """Take a reply that changes nothing.  Never switches."""


#: Tube that a new connection uses and watches.
DEFAULT: Final = b"default"
#: Jobs that are taken at once to be deleted.
PAGE: Final = 100
#: More than a tube can have.
ALL: Final = 2**31
_TAKE: Final = line(b"reserve-with-timeout", 0)


@dataclass(eq=False, slots=True)
class Job:
    """A job that one of our connections has reserved: only that one may settle it.

    Attributes:
        post: writes commands to that connection.
        is_dead: it is too old to be of use.
        priority: beanstalk's; 0 is the most urgent.
        time_to_run: seconds that its reservation lasts.
    """

    number: int
    post: Callable[..., None]
    priority: int
    time_to_run: int
    is_dead: bool = False


class ReservedJob(NamedTuple):
    """A job that was just reserved, with its statistics."""

    job: Job
    body: bytes
    tube: bytes
    reserves: int


def whole_seconds(seconds: float) -> int:
    """Round up to whole seconds, as beanstalk has no others."""
    return min(ceil(seconds), 2**32 - 1) if seconds > 0 else 0


class CommandConnection(Pipeline):
    """One connection for commands with an immediate reply.

    Attributes:
        longest_job: bytes that the server takes.
    """

    longest_job = LONGEST_BODY
    _used = DEFAULT

    def greet(self, deadline: Deadline) -> None:
        """Ask the server for its limits.  May switch.

        Raises:
            LinkLost, TimeoutError: the server does not reply, or is not a beanstalkd.
        """
        (reply,) = self.ask([line(b"stats")], deadline)
        if reply.word != b"OK":
            raise self.refused(reply, "reading its limits")
        limit = statistics(reply.body).get(b"max-job-size", b"")
        if limit.isdigit():
            self.longest_job = int(limit)
            self.parser.longest_body = max(LONGEST_BODY, self.longest_job)

    def ask_using(self, tube: bytes, commands: Sequence[bytes]) -> list[Reply]:
        """Send commands that work on the tube in use, and return their replies.  May switch."""
        before = self.using(tube)
        return self.ask([*before, *commands])[len(before) :]

    def using(self, tube: bytes) -> list[bytes]:
        """Return the commands that use *tube*; they must be written before any switch."""
        if tube == self._used:
            return []
        self._used = tube
        return [line(b"use", tube)]

    # -- reserving

    def take(self, wanted: Iterable[tuple[bytes, int]]) -> list[list[Reply]]:
        """Reserve what is ready; each tube, and how many from it at most.  May switch.

        Returns:
            for each tube the replies of those that were reserved.
        """
        commands: list[bytes] = []
        ends: list[int] = []
        before = DEFAULT
        for tube, count in wanted:
            commands += [line(b"watch", tube), line(b"ignore", before), *[_TAKE] * count]
            before = tube
            ends.append(len(commands))
        if not commands:
            return []
        # A tube counts as used while a connection watches it, so none stays watched.
        commands += [line(b"watch", DEFAULT), line(b"ignore", before)]
        replies = self.ask(commands)
        found: list[list[Reply]] = []
        start = 0
        for end in ends:
            found.append([reply for reply in replies[start:end] if reply.word == b"RESERVED"])
            start = end
        for reply in replies:
            if reply.word != b"RESERVED" and reply.word not in _NOTHING:
                raise self.refused(reply, "reserving")
        return found

    def describe(self, reserved: Sequence[tuple[Reply, Callable[..., None]]]) -> list[ReservedJob]:
        """Return reserved jobs with their statistics.  May switch.

        Arguments:
            reserved: each reply, with the function that writes to the connection that reserved it.

        Returns:
            those that are still reserved.
        """
        replies = self.ask([line(b"stats-job", reply.number) for reply, _ in reserved])
        found = []
        for (reply, post), stats in zip(reserved, replies, strict=True):
            if stats.word != b"OK":
                if stats.word == b"NOT_FOUND":
                    continue
                raise self.refused(stats, "reading the statistics of a job")
            facts = statistics(stats.body)
            if facts.get(b"state") == b"reserved":
                job = Job(reply.number, post, number_of(facts, b"pri"), number_of(facts, b"ttr"))
                tube = facts.get(b"tube", DEFAULT)
                found.append(ReservedJob(job, reply.body, tube, number_of(facts, b"reserves")))
        return found

    # -- whole tubes

    def counts(self, tube: bytes) -> dict[bytes, bytes]:
        """Return the statistics of a tube; empty: there is no such tube.  May switch."""
        (reply,) = self.ask([line(b"stats-tube", tube)])
        return self.read_counts(reply)

    def read_counts(self, reply: Reply) -> dict[bytes, bytes]:
        """Read the reply to ``stats-tube``."""
        if reply.word not in (b"OK", b"NOT_FOUND"):
            raise self.refused(reply, "counting jobs")
        return statistics(reply.body)

    def empty(self, tube: bytes) -> int:
        """Delete the jobs that are ready and return how many there were.  May switch."""
        count = 0
        while True:
            (found,) = self.take([(tube, PAGE)])
            replies = self.ask([line(b"delete", reply.number) for reply in found])
            count += sum(reply.word == b"DELETED" for reply in replies)
            if len(found) < PAGE:
                return count

    def kick(self, tube: bytes, limit: int = ALL) -> int:
        """Make buried jobs ready, or delayed ones where none is buried.  May switch."""
        (reply,) = self.ask_using(tube, [line(b"kick", limit)])
        if reply.word != b"KICKED":
            raise self.refused(reply, "kicking jobs")
        return reply.number


#: What ``reserve-with-timeout 0`` says when it finds nothing.
_NOTHING: Final = frozenset({b"TIMED_OUT", b"DEADLINE_SOON", b"USING", b"WATCHING", b"NOT_IGNORED"})


def number_of(facts: dict[bytes, bytes], name: bytes) -> int:
    """Return a number of the statistics; 0 where it is none."""
    value = facts.get(name, b"")
    return int(value) if value.isdigit() else 0
