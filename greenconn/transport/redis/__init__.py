"""The Redis transport: kombu's keys, one multiplexed connection."""

from greenconn.transport.redis.cluster import ClusterTransport
from greenconn.transport.redis.transport import Channel, SentinelTransport, Transport

__all__ = ["Channel", "ClusterTransport", "SentinelTransport", "Transport"]
