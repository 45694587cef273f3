"""The memory transport: a broker inside this process, with RabbitMQ's semantics."""

from greenconn.transport.memory.transport import Channel, Transport, broker_of, reset, restart

__all__ = ["Channel", "Transport", "broker_of", "reset", "restart"]
