"""The memory transport: a broker inside this process, with RabbitMQ's semantics."""

from greenconn.transport.memory.link import Channel
from greenconn.transport.memory.transport import Transport, broker_of, reset, restart

__all__ = ["Channel", "Transport", "broker_of", "reset", "restart"]
