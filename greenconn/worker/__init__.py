"""``greenconn.spawn_consumer``: a handler, called with each message of a queue."""

from greenconn.worker.consumer import ConsumerGreenlet
from greenconn.worker.line import Interrupted
from greenconn.worker.spawning import spawn_consumer, stop_consumers
from greenconn.worker.state import ConsumerState

__all__ = ["ConsumerGreenlet", "ConsumerState", "Interrupted", "spawn_consumer", "stop_consumers"]
