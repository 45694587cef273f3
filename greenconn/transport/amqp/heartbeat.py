"""The heartbeat of an AMQP connection: a timer on the hub that sends and checks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

from greenconn.exceptions import ConnectionForced
from greenconn.green.stream import Stream
from greenconn.green.supervisor import Ticker, log_blocked
from greenconn.wire.amqp import Heartbeat, HeartbeatAction, heartbeat_frame

logger = logging.getLogger("greenconn.transport.amqp")


class HeartbeatTimer:
    """Timer that sends heartbeats and checks those of the peer.

    Arguments:
        where: the broker's URL with the password masked, for messages.
        on_dead: called in the hub with the error when the peer is dead; it must not switch.
    """

    def __init__(self, where: str, on_dead: Callable[[BaseException], None]) -> None:
        self._where = where
        self._on_dead = on_dead
        self._heartbeat: Heartbeat | None = None
        self._stream: Stream | None = None
        self._ticker: Ticker | None = None

    def start(self, interval: float, stream: Stream) -> None:
        """Start the timer.

        Arguments:
            interval: seconds as negotiated; 0 is off.
        """
        if interval:
            self._stream = stream
            self._heartbeat = Heartbeat(interval, monotonic())
            self._ticker = Ticker(
                self._heartbeat.tick_interval, self._beat, f"heartbeat:{self._where}"
            )
            self._ticker.start()

    def stop(self) -> None:
        """Stop the timer.  Never switches.  A second call does nothing."""
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()
        self._stream = None
        self._on_dead = _is_over

    def pause(self) -> None:
        """Stop checking, as reading is paused on purpose."""
        if self._heartbeat is not None:
            self._heartbeat.pause()

    def resume(self) -> None:
        """Check again, as reading is resumed."""
        if self._heartbeat is not None:
            self._heartbeat.resume(monotonic())

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
            log_blocked(logger, self._where, lag, heartbeat.tick_interval)
        if action & HeartbeatAction.SEND and not stream.writer.is_stalled:
            stream.writer.write(heartbeat_frame())
        if action & HeartbeatAction.DEAD:
            self._on_dead(
                ConnectionForced(
                    f"{self._where}: nothing was received for {heartbeat.silence(now):.1f} s, "
                    f"the heartbeat is {heartbeat.interval:g} s"
                )
            )


def _is_over(exc: BaseException) -> None:
    """Do nothing: the timer was stopped."""
