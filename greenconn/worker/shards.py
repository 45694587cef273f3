"""The shards of a queue, divided among the processes that consume it.

Each shard is a queue with a single active consumer, so only one process handles it.  All processes
subscribe to all shards: when one ends, the broker activates the next one at once.  The broker does not
divide the shards, though: the first process is active on all of them.  So a process that is active on
more than its share gives one up after the other.  It lets the handlers of that shard end, closes its
channel, by which the broker gets the other messages back in their order, and subscribes again, behind
the others.

A shard from which no message has come is not counted: it costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from random import choice
from typing import TYPE_CHECKING, Any, Final

from gevent import sleep

from greenconn.exceptions import error_text
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import OnDemand, Ticker
from greenconn.worker.subscriptions import Subscription

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.message import Message
    from greenconn.worker.lifecycle import ConsumerLifecycle

logger = logging.getLogger("greenconn.worker")

#: Seconds between two looks at the shares.
BALANCE_INTERVAL: Final = 3.0
#: Seconds between two looks whether the handlers of a shard have ended.
LOOK_INTERVAL: Final = 0.02
#: Seconds for an answer of the broker.
TIMEOUT: Final = 10.0
_SINGLE_ACTIVE: Final = "x-single-active-consumer"


class ShardSubscription(Subscription):
    """A subscription to one shard.

    Attributes:
        is_active: a message has come since it began: no other process is served.
        is_leaving: it takes no more, as another process is to be served.
    """

    __slots__ = ("is_active", "is_leaving")

    is_active: bool
    is_leaving: bool

    def start(self) -> None:
        """Consume from the shard, behind the other processes; see :meth:`Subscription.start`."""
        self.is_active = self.is_leaving = False
        super().start()

    def _consume(self, channel: Channel) -> None:
        supported = getattr(channel, "supported_arguments", None)
        if supported is not None and _SINGLE_ACTIVE not in supported.queue:
            raise ValueError(
                f"a broker of shards must have a single active consumer for each queue, which this "
                f"transport lacks: consume {self.name!r} with RabbitMQ, Redis, PostgreSQL or SQLite"
            )
        super()._consume(channel)

    def _receiver(self) -> Callable[[Any], None]:
        return self._take

    def _take(self, message: Message) -> None:
        # In the connection's reader.
        self.is_active = True
        if not self.is_leaving:  # else it goes back with the channel
            self._consumer.dispatcher.put(message)


class ShardBalance:
    """The share of one consumer in the shards of its queue.

    Arguments:
        consumer: its life.
        subscriptions: one for each shard.
    """

    def __init__(
        self, consumer: ConsumerLifecycle, subscriptions: Sequence[ShardSubscription]
    ) -> None:
        self._consumer = consumer
        self._subscriptions = subscriptions
        self._task = OnDemand("balance-shards", self._balance)
        self._ticker = Ticker(BALANCE_INTERVAL, self._on_tick, f"shards of {consumer.options.name}")

    def start(self) -> None:
        """Look at the shares from now on.  Never switches."""
        self._ticker.start()

    def stop(self) -> None:
        """Give nothing more up.  Never switches."""
        self._ticker.stop()
        if self._task.greenlet is not None:
            self._task.greenlet.kill(block=False)

    def _on_tick(self, lag: float) -> None:
        # In the hub.
        if not self._consumer.is_ending and len(self._active()) > 1:
            self._task.start()

    def _active(self) -> list[ShardSubscription]:
        return [each for each in self._subscriptions if each.is_confirmed and each.is_active]

    def _balance(self) -> None:
        try:
            active = self._active()
            share = -(-len(self._subscriptions) // self._processes(active[0].name))
            if len(active) > share:
                self._hand_over(choice(active))
        except Exception as exc:
            logger.debug(
                "shards of %s are not balanced now: %s",
                self._consumer.options.name,
                error_text(exc),
                extra=self._consumer.fields(),
            )

    def _processes(self, queue: str) -> int:
        """Return how many processes consume the shards: each of them has a consumer of *queue*."""
        found = self._consumer.session.utility.run(
            lambda channel: channel.queue_declare(queue, passive=True), Deadline(TIMEOUT)
        )
        return max(1, int(found.consumer_count))

    def _hand_over(self, shard: ShardSubscription) -> None:
        """Have another process served, when no handler of this shard runs here.  May switch."""
        consumer, channel = self._consumer, shard.channel
        logger.info(
            "shard %s is given up to another process", shard.name, extra=consumer.fields(shard.name)
        )
        assert channel is not None
        shard.is_leaving = True
        try:
            while True:
                # A handler that fails meanwhile is not called again here.
                for message, _ in consumer.dispatcher.drop(channel):
                    consumer.handling.drop(message)
                if not consumer.dispatcher.runs_of(channel):
                    break
                sleep(LOOK_INTERVAL)
            consumer.flush_settlements(Deadline(TIMEOUT))
            shard.close()
        finally:
            consumer.note_change()  # it subscribes again
