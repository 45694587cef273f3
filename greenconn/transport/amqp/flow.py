"""Flow control of a connection, both ways.

Publishers wait before their first byte: for their turn, for a slow peer, for a broker that blocks the
connection.  Reading pauses while too many bytes of consumers without a bound wait in this process.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from gevent import get_hub

from greenconn.exceptions import ConnectionBlocked
from greenconn.green.deadline import Deadline
from greenconn.green.inbox import Inbox
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.green.writer import Writer
from greenconn.listeners import LISTENERS, BlockedEvent, UnblockedEvent, notify
from greenconn.options import AmqpOptions

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
        except TimeoutError:
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
