"""``greenconn.spawn_consumer``: a handler, called with each message of a queue."""

from greenconn.worker.consumer import ConsumerGreenlet, spawn_consumer, stop_consumers
from greenconn.worker.dispatch import Interrupted
from greenconn.worker.lifecycle import ConsumerState
from greenconn.worker.replaying import dead_letters

__all__ = [
    "ConsumerGreenlet",
    "ConsumerState",
    "Interrupted",
    "dead_letters",
    "spawn_consumer",
    "stop_consumers",
]
