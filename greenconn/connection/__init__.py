"""Connections (kombu 5.7, ``kombu.connection``)."""

from greenconn.abc import is_connection, maybe_channel
from greenconn.connection.client import BrokerConnection, Connection, PooledConnection
from greenconn.exceptions import ChannelLimitExceeded, ConnectionLimitExceeded
from greenconn.resource import ChannelPool, ConnectionPool

__all__ = [
    "BrokerConnection",
    "ChannelLimitExceeded",
    "ChannelPool",
    "Connection",
    "ConnectionLimitExceeded",
    "ConnectionPool",
    "PooledConnection",
    "is_connection",
    "maybe_channel",
]
