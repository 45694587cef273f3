"""Publishing without waiting for each answer (``publish_window``)."""

from __future__ import annotations

import logging
from typing import Any

from greenconn.exceptions import PublishTimeout
from greenconn.green.condition import Condition
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from greenconn.transport.redis.commands import CommandPipeline
from greenconn.transport.redis.envelope import Outgoing
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.publishing import RedisPublisher
from greenconn.wire.resp import ErrorReply

logger = logging.getLogger("greenconn.transport.redis")


class Failures:
    """Publishes of a window that were refused, or were not confirmed before the connection was lost.

    Attributes:
        refused, uncertain: how many of each.
    """

    def __init__(self) -> None:
        self.refused = self.uncertain = 0
        #: What the server said to the first one that it refused, else how the connection was lost.
        self.first: Exception | None = None

    def __bool__(self) -> bool:
        return self.first is not None

    def note(self, reply: Exception) -> None:
        """Count one.  Never switches."""
        if isinstance(reply, ErrorReply):
            self.first = reply if not self.refused else self.first
            self.refused += 1
        else:
            self.first = self.first or reply
            self.uncertain += 1

    def take(self) -> Failures:
        """Return what there is, and forget it.  Never switches."""
        taken = Failures()
        taken.add(self)
        self.refused = self.uncertain = 0
        self.first = None
        return taken

    def add(self, other: Failures) -> None:
        """Count what *other* has, too.  Never switches."""
        if other.refused and not self.refused:
            self.first = other.first
        self.first = self.first or other.first
        self.refused += other.refused
        self.uncertain += other.uncertain

    def text(self, where: str) -> str:
        """Return the outcomes as a text."""
        parts = []
        if self.refused:
            parts.append(
                f"{self.refused} publishes of a publish_window were refused ({self.first})"
            )
        if self.uncertain:
            parts.append(
                f"{self.uncertain} publishes of a publish_window were not confirmed before the "
                f"connection was lost: the server may have them"
            )
        return f"{where}: {'; '.join(parts)}"

    def error(self, pipeline: CommandPipeline) -> BaseException:
        """Return the exception that says so; what ends the link ends it.  Never switches."""
        refused: BaseException | None = None
        if isinstance(self.first, ErrorReply):
            what = f"{self.refused} earlier publishes of a publish_window"
            refused = pipeline.error(self.first, what)
        if self.uncertain or refused is None:
            return PublishTimeout(self.text(pipeline.where), maybe_delivered=True)
        return refused


class UnreportedPublishes:
    """The outcomes of publishes whose channel ended before they were asked for; outlives all links.

    Attributes:
        awaited: publishes of such channels that are not answered yet.
        failures: what ``flush()`` raises.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._unlogged = Failures()
        self._will_log = False
        self._are_answered = Condition()
        self.awaited = 0
        self.failures = Failures()

    def add(self, failures: Failures) -> None:
        """Note the *failures* of a channel that ended.  Never switches."""
        if failures:
            self.failures.add(failures)
            self._unlogged.add(failures)
            self._log_soon()

    def offer(self, reply: Any) -> None:
        """Take the answer to a publish of a channel that has ended.  In the reader."""
        self.awaited -= 1
        if isinstance(reply, Exception):
            self.failures.note(reply)
            self._unlogged.note(reply)
            self._log_soon()
        if not self.awaited:
            self._are_answered.wake_all()

    def wait(self, deadline: Deadline) -> None:
        """Wait until all are answered.  May switch.

        Raises:
            TimeoutError: they were not before the deadline.
        """
        while self.awaited:
            self._are_answered.wait(deadline)

    def _log_soon(self) -> None:
        # Those that fail together get their errors together.
        if not self._will_log:
            self._will_log = True
            spawn("log", self.log)

    def hold(self) -> None:
        """Log nothing until ``log`` is called: more may come.  Never switches."""
        self._will_log = True

    def log(self) -> None:
        """Log, by number, what was not logged yet."""
        self._will_log = False
        if self._unlogged:
            logger.error(
                "%s", self._unlogged.take().text(self._where), extra={"connection": self._where}
            )


class Window:
    """The unconfirmed publishes of one channel that no greenlet waits for.

    Arguments:
        size: how many there may be.
        unreported: gets what becomes of them when the channel has ended.

    Attributes:
        failures: those of an open channel, which its next call raises.
    """

    def __init__(self, size: int, unreported: UnreportedPublishes) -> None:
        self._size = size
        self._half = size // 2
        self._unreported = unreported
        self._has_ended = False
        self.unanswered = 0
        self.failures = Failures()
        self._has_room = Condition()

    @property
    def has_left(self) -> bool:
        """False: no publish of a window is dropped."""
        return False

    def offer(self, reply: Any) -> bool:
        """Take the answer to one.  In the reader."""
        self.unanswered -= 1
        if self._has_ended:
            self._unreported.offer(reply)
        elif isinstance(reply, Exception):
            self.failures.note(reply)
        # Half of it at a time, so that a publisher is woken once for many.
        if self.unanswered <= self._half and self._has_room:
            self._has_room.wake_all()
        return True

    def end(self) -> None:
        """End, as the channel has ended.  Never switches."""
        if not self._has_ended:
            self._has_ended = True
            self._unreported.awaited += self.unanswered
            self._unreported.add(self.failures.take())

    def wait(self, deadline: Deadline) -> None:
        """Wait until there is room for one more.  May switch.

        Raises:
            TimeoutError: there was none before the deadline.
        """
        while self.unanswered >= self._size:
            self._has_room.wait(deadline)

    def wait_answered(self, deadline: Deadline) -> None:
        """Wait until all are answered.  May switch.

        Raises:
            TimeoutError: they were not before the deadline.
        """
        while self.unanswered:
            self._has_room.wait(deadline)


class WindowPublisher:
    """The publisher of one channel, some of whose publishes may be unanswered.

    Arguments:
        publisher: sends the messages.
        size: how many may be unanswered.
        unreported: takes the outcomes of those that no caller waits for.
    """

    def __init__(
        self, publisher: RedisPublisher, size: int, unreported: UnreportedPublishes
    ) -> None:
        self._publisher = publisher
        self._pipeline = publisher.link.commands.pipeline
        self._unreported = unreported
        self._window = Window(size, unreported)
        self.prepare = publisher.prepare
        self.begin = publisher.begin
        self.replacement = publisher.replacement

    def publish(
        self,
        message: Outgoing | dict[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> None:
        """Publish *message*, and return when there is room for it in the window.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server refused an earlier one of this channel.
        """
        window = self._window
        window.wait(deadline or ENDLESS)
        if window.failures:
            raise window.failures.take().error(self._pipeline)
        if message.__class__ is not Outgoing:
            message = Outgoing.of(message)
        if exchange or not routing_key or mandatory or not message.is_plain:
            self._publisher.publish(message, exchange, routing_key, mandatory, immediate, deadline)
            return
        self._publisher.send(message, "", routing_key, False, immediate, deadline, window)
        window.unanswered += 1

    def end(self) -> None:
        """Note that the channel has ended.  Never switches."""
        self._window.end()

    def flush(self, timeout: float | None) -> None:
        """Return when acks have left, and publishes are answered.  May switch.

        What became of publishes of earlier channels of this connection, which was not asked for yet, is
        raised, too.

        Raises:
            TimeoutError: the server took or answered too little within *timeout* seconds.
            PublishTimeout: some were not confirmed before the connection was lost; says how many.
            redis.exceptions.ResponseError: the server refused some; says how many.
        """
        deadline = Deadline(timeout)
        self._publisher.link.flush_settlements(deadline)
        window, unreported = self._window, self._unreported
        lost: TimeoutError | None = None
        try:
            # The end of a link answers all that were sent over it.
            window.wait_answered(deadline)
            unreported.wait(deadline)
        except TimeoutError as exc:
            lost = exc
        failures = window.failures.take()
        failures.add(unreported.failures.take())
        if failures:
            raise failures.error(self._pipeline) from lost
        if lost is not None:
            raise lost
