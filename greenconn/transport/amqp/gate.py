"""Where callers wait before their first byte: for their turn, for a slow peer, for a blocked broker."""

from __future__ import annotations

from collections import deque
from typing import Any

from greenconn.exceptions import ConnectionBlocked
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.green.writer import Writer

__all__ = ["PublishGate"]


class PublishGate:
    """The gate of one connection.

    The fast path asks ``writer.gate or gate.blocked is not None`` and comes here only then.

    Arguments:
        where: the broker's URL with the password masked, for messages.
        blocked_timeout: seconds for calls that bring no deadline of their own; None waits.
        write_timeout: seconds within these that a peer may take nothing; None is no other limit.
    """

    __slots__ = (
        "_blocked_timeout",
        "_waiters",
        "_where",
        "_write_timeout",
        "blocked",
        "writer",
    )

    def __init__(
        self, where: str, blocked_timeout: float | None, write_timeout: float | None = None
    ) -> None:
        #: Why the broker blocks publishing, or None.
        self.blocked: str | None = None
        self.writer: Writer | None = None
        self._where = where
        self._blocked_timeout = blocked_timeout
        self._write_timeout = write_timeout
        self._waiters: deque[Slot[None]] = deque()

    def pass_through(self, deadline: Deadline | None = None, *, publishing: bool = False) -> None:
        """Let others run, and wait while the peer takes nothing.  May switch.

        Arguments:
            publishing: also wait while the broker blocks publishing.

        Raises:
            ConnectionBlocked: it waited in vain; nothing was sent.
        """
        if deadline is None or deadline.timeout is None:
            deadline = Deadline(self._blocked_timeout)
        assert self.writer is not None
        limit = deadline.within(self._write_timeout)
        try:
            self.writer.pass_gate(limit)
            while publishing and self.blocked is not None:
                limit = deadline
                slot: Slot[None] = Slot(on_left=self._leave)
                self._waiters.append(slot)
                slot.wait(limit)
                limit = deadline.within(self._write_timeout)
                if self.writer.gate:  # those before us may have filled it
                    self.writer.pass_gate(limit)
        except TimeoutError:
            why = "takes nothing more" if self.blocked is None else f"blocked us ({self.blocked})"
            raise ConnectionBlocked(
                f"{self._where} {why}; waited {limit.timeout:g} s, nothing was sent: "
                f"look at the broker's memory and disk alarms"
            ) from None

    def shut(self, reason: str) -> None:
        """The broker blocks publishing.  Never switches."""
        self.blocked = reason

    def open(self) -> None:
        """The broker takes messages again, or the connection ended: all go on, in their order."""
        self.blocked = None
        waiters, self._waiters = self._waiters, deque()
        for slot in waiters:
            slot.offer(None)

    def _leave(self, slot: Slot[Any]) -> None:
        self._waiters.remove(slot)
