"""Connections (kombu 5.7, ``kombu.connection``).

The pools are imported when they are first used: most programs have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.abc import is_connection, maybe_channel
from greenconn.connection.client import BrokerConnection, Connection, PooledConnection
from greenconn.exceptions import ChannelLimitExceeded, ConnectionLimitExceeded
from greenconn.session.parameters import check_scheme

if TYPE_CHECKING:
    from greenconn.resource import ChannelPool, ConnectionPool, Resource

#: What ``Connection`` has under these names: adding to one adds to the other.
failover_strategies = Connection.failover_strategies
resolve_aliases = Connection.resolve_aliases

#: kombu's name.
_check_url_transport = check_scheme

__all__ = [
    "BrokerConnection",
    "ChannelLimitExceeded",
    "ChannelPool",
    "Connection",
    "ConnectionLimitExceeded",
    "ConnectionPool",
    "PooledConnection",
    "Resource",
    "failover_strategies",
    "is_connection",
    "maybe_channel",
    "resolve_aliases",
]


if not TYPE_CHECKING:  # or a type checker would let any name pass

    def __getattr__(name: str) -> Any:
        if name not in ("ChannelPool", "ConnectionPool", "Resource"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from greenconn import resource

        value = globals()[name] = getattr(resource, name)
        return value
