"""Watchdog for consumers that receive nothing although their queues hold messages.

Such a consumer looks healthy: its connection is open, and the broker has confirmed the consumer.  But
all its handlers may be stuck, the broker may have forgotten it, or another consumer may receive all
messages of the queue.  The watchdog therefore compares the number of messages in the queues, which it
asks the broker for, with the deliveries that the consumers receive.
"""

from __future__ import annotations

import logging
from time import monotonic, time
from typing import Final

from greenconn.checks import Seconds, in_seconds
from greenconn.exceptions import error_text
from greenconn.green.deadline import Deadline
from greenconn.green.hub import PerHub
from greenconn.green.supervisor import OnDemand
from greenconn.green.ticker import Ticker
from greenconn.worker.consumer import running_consumers
from greenconn.worker.lifecycle import ConsumerLifecycle, ConsumerState, Stall

logger = logging.getLogger("greenconn.worker")

#: Checks of a queue before its consumer is reported as stalled.  One is not enough: a message may have
#: arrived just before it.
LOOKS: Final = 4
#: Seconds that the broker may take to answer.
ANSWER_TIMEOUT: Final = 10.0


class Watchdog:
    """A monitor of the consumers of this thread, which runs until it is stopped.

    A consumer is *stalled* when its queue held messages at each check of the last *after* seconds and no
    message was delivered to it.  The watchdog logs this once, as an error, and ``greenconn.health``
    reports the consumer as not ready until it receives a message or its queue is empty.

    The watchdog ignores streams, which always hold messages, and queues with a single active consumer.

    Arguments:
        after: seconds without a delivery, above 0; choose more than the longest handler takes.
        is_fatal: a stalled consumer also makes ``health.check()`` say that the process should be
            restarted.

    Raises:
        ValueError: *after* is not above 0.
    """

    def __init__(self, after: Seconds = 300.0, *, is_fatal: bool = False) -> None:
        after = in_seconds(after)
        if not after > 0:
            raise ValueError(f"after must be above 0 s, got {after!r}")
        self.after = after
        self.is_fatal = is_fatal
        #: At the last check: the number of deliveries, and since when the queue has held messages.
        self._seen: dict[ConsumerLifecycle, tuple[int, float]] = {}
        self._looking = OnDemand("watchdog", self._look)
        self._ticker = Ticker(after / LOOKS, self._on_tick, "watchdog")
        self._ticker.start()
        _kept.get().add(self)

    def stop(self) -> None:
        """Stop the watchdog, and clear its findings.  A second call does nothing."""
        self._ticker.stop()
        _kept.get().discard(self)
        self._looking.end()
        for consumer in running_consumers():
            consumer.lifecycle.stall = None

    def _on_tick(self, lag: float) -> None:
        # In the hub.
        self._looking.start()

    def _look(self) -> None:
        seen, self._seen = self._seen, {}
        for consumer in running_consumers():
            lifecycle = consumer.lifecycle
            received = lifecycle.dispatcher.received
            self._look_at(lifecycle, *seen.get(lifecycle, (received, monotonic())))

    def _look_at(self, lifecycle: ConsumerLifecycle, number: int, since: float) -> None:
        """Check one consumer, which had received *number* messages at the time *since*.  May switch."""
        received = lifecycle.dispatcher.received
        if (
            number != received
            or lifecycle.state is not ConsumerState.RUNNING
            or not self._is_waited_for(lifecycle)
            or lifecycle.dispatcher.received != received
        ):
            lifecycle.stall = None
            return
        self._seen[lifecycle] = (received, since)
        if monotonic() - since >= self.after and lifecycle.stall is None:
            lifecycle.stall = self._stall_of(lifecycle)
            logger.error(
                "consumer of queue %s is stalled: %s; %s",
                lifecycle.options.name,
                lifecycle.stall.why,
                lifecycle.stall.remedy,
                extra=lifecycle.fields(),
            )

    def _is_waited_for(self, lifecycle: ConsumerLifecycle) -> bool:
        """Return whether the broker says that a queue of the consumer holds messages.  May switch."""
        last_at = lifecycle.dispatcher.last_at
        if last_at is not None and monotonic() - last_at < self.after / LOOKS:
            return False  # the broker need not be asked
        try:
            return lifecycle.has_waiting_messages(Deadline(ANSWER_TIMEOUT))
        except Exception as exc:
            logger.debug("watchdog: %s", error_text(exc), extra=lifecycle.fields())
            return False

    def _stall_of(self, lifecycle: ConsumerLifecycle) -> Stall:
        dispatcher, last_at = lifecycle.dispatcher, lifecycle.dispatcher.last_at
        waited = self.after if last_at is None else monotonic() - last_at
        held, prefetch = dispatcher.unsettled(), lifecycle.options.prefetch
        why = f"nothing was delivered for {waited:.0f} s, and its queue holds messages"
        if held and held >= prefetch:
            why += f"; it has {held} that its handlers do not finish"
            remedy = (
                "see in greenconn.debug.dump() what the handlers wait for, and give them a "
                "handler_timeout"
            )
        else:
            remedy = (
                "look at the consumers of the queue at the broker: another may come first; if this "
                "one is not among them, restart the process"
            )
        return Stall(dispatcher.received, time() - waited, why, remedy, self.is_fatal)


#: The watchdogs that run.  This keeps them alive, as their tickers do not.
_kept: Final[PerHub[set[Watchdog]]] = PerHub(set)
