"""The Redis transport: kombu's keys, one multiplexed connection."""

from greenconn.transport.redis.cluster.transport import ClusterTransport
from greenconn.transport.redis.sentinel import SentinelTransport
from greenconn.transport.redis.transport import Channel, Transport

__all__ = ["Channel", "ClusterTransport", "SentinelTransport", "Transport"]
