"""The Redis transport: kombu's keys, one multiplexed connection."""

from greenconn.transport.redis.channel import Channel
from greenconn.transport.redis.sentinel import SentinelTransport
from greenconn.transport.redis.transport import Transport

__all__ = ["Channel", "SentinelTransport", "Transport"]
