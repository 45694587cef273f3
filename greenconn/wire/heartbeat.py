"""Heartbeats: when to send one, and when the peer is considered dead.

Rules (AMQP 0-9-1, 4.2.7): a peer that hears nothing for two intervals may close.  So a heartbeat is
due when nothing was sent for half an interval, and the peer is dead when nothing was received for
two.  Any byte counts as received.  Two exceptions:

- when this process was blocked, what the peer sent meanwhile may still lie unread: the judgement
  waits for one more tick, in which the reader reads it;
- while reading is paused on purpose, silence says nothing about the peer.
"""

from __future__ import annotations

from typing import Final


class HeartbeatAction:
    """The bits of the action after a tick.  SEND may come together with READ_FIRST."""

    NOTHING: Final = 0
    #: Send a heartbeat.
    SEND: Final = 1
    #: This process was blocked: read what is pending; the next tick judges.
    READ_FIRST: Final = 2
    #: The peer is gone.
    DEAD: Final = 4


class Heartbeat:
    """The heartbeat of one life of a connection.  It reads no clock: each call gets the time.

    Arguments:
        interval: seconds as negotiated; 0 is off: every action is NOTHING.
        now: seconds on the monotonic clock; the peer counts as heard at this time.
    """

    def __init__(self, interval: float, now: float) -> None:
        if interval < 0.0:
            raise ValueError(f"heartbeat interval must be at least 0 s, got {interval!r}")
        self.interval = interval
        self.received_at = now
        self.sent_at = now
        self._is_paused = False
        self._has_grace = False

    @property
    def tick_interval(self) -> float:
        """Seconds between the ticks that this clockwork needs: a quarter of the interval."""
        return self.interval / 4.0

    def note_received(self, now: float) -> None:
        """Something came from the peer."""
        self.received_at = now
        self._has_grace = False

    def note_sent(self, now: float) -> None:
        """Something was handed to the network."""
        self.sent_at = now

    def pause(self) -> None:
        """Reading is paused on purpose."""
        self._is_paused = True

    def resume(self, now: float) -> None:
        """Reading goes on: silence counts from now."""
        if self._is_paused:
            self._is_paused = False
            self.note_received(now)

    def silence(self, now: float) -> float:
        """Return the seconds since anything was received."""
        return now - self.received_at

    def is_dead(self, now: float) -> bool:
        """Return whether nothing was received for two intervals although reading is not paused."""
        return (
            self.interval > 0.0
            and not self._is_paused
            and now - self.received_at >= 2.0 * self.interval
        )

    def tick(self, now: float, lag: float = 0.0) -> int:
        """Judge, and return the bits of a :class:`HeartbeatAction`.

        Arguments:
            now: seconds on the monotonic clock.
            lag: seconds by which this tick came late because the process was blocked, else 0.
        """
        if self.interval <= 0.0:
            return HeartbeatAction.NOTHING
        is_due = now - self.sent_at >= self.interval / 2.0
        action = HeartbeatAction.SEND if is_due else HeartbeatAction.NOTHING
        if not self.is_dead(now):
            return action
        if lag > 0.0 and not self._has_grace:
            self._has_grace = True
            return action | HeartbeatAction.READ_FIRST
        return HeartbeatAction.DEAD
