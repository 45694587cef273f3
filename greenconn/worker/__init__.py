"""``greenconn.spawn_consumer``: a handler, called with each message of a queue."""

from greenconn.worker.consumer import (
    ConsumerGreenlet,
    ConsumerStats,
    spawn_consumer,
    stop_consumers,
)
from greenconn.worker.dispatch import Interrupted, in_order
from greenconn.worker.failures import DeadLetter, Discard, RetryLater, dead_letters
from greenconn.worker.lifecycle import ConsumerState

__all__ = [
    "ConsumerGreenlet",
    "ConsumerState",
    "ConsumerStats",
    "DeadLetter",
    "Discard",
    "Interrupted",
    "RetryLater",
    "dead_letters",
    "in_order",
    "spawn_consumer",
    "stop_consumers",
]
