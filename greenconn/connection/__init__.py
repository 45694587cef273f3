"""Connections (kombu 5.7, ``kombu.connection``)."""

from greenconn.abc import is_connection, maybe_channel
from greenconn.connection.client import BrokerConnection, Connection, PooledConnection
from greenconn.exceptions import ChannelLimitExceeded, ConnectionLimitExceeded
from greenconn.resource import ChannelPool, ConnectionPool

#: What ``Connection`` has under these names: adding to one adds to the other.
failover_strategies = Connection.failover_strategies
resolve_aliases = Connection.resolve_aliases

__all__ = [
    "BrokerConnection",
    "ChannelLimitExceeded",
    "ChannelPool",
    "Connection",
    "ConnectionLimitExceeded",
    "ConnectionPool",
    "PooledConnection",
    "failover_strategies",
    "is_connection",
    "maybe_channel",
    "resolve_aliases",
]
