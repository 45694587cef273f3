"""Ids in Redis, Valkey and their clusters, which forget them by themselves."""

from __future__ import annotations

from typing import Any, Final

from greenconn.connection import Connection
from greenconn.contrib.idempotency import Claim, IdStore
from greenconn.green.hub import PerHub

__all__ = ["RedisIds"]

#: The value of an id that was handled; owners are UUIDs.
HANDLED: Final = b"handled"

_CLAIM: Final = """
local found = redis.call('get', KEYS[1])
if not found then redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2]) end
return found
"""
_RENEW: Final = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('pexpire', KEYS[1], ARGV[2])
"""
_RELEASE: Final = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('del', KEYS[1])
"""


class RedisIds(IdStore):
    """Ids as keys of Redis that expire.

    A failover to a replica may forget the latest ids.  The server must not evict them
    (``maxmemory-policy noeviction``, or one for volatile keys with enough memory).

    Arguments:
        server: a URL, or a :class:`greenconn.Connection` with a redis transport, over whose green
            sockets the commands are sent; or a client of redis-py, which blocks the other greenlets
            unless the process is patched, and refuses more than its ``max_connections`` calls at once.
        prefix: of the keys.
    """

    def __init__(self, server: Any, *, prefix: str = "greenconn-id:") -> None:
        self._server = server
        self._prefix = prefix
        self._connections: PerHub[Connection] | None = None
        if isinstance(server, str):
            Connection(server)  # made to be checked; it never opens
            self._connections = PerHub(lambda: Connection(server))

    def claim(self, id: str, owner: str, lease: float) -> Claim:
        """Claim an id."""
        found = self._run(_CLAIM, id, owner, _ms(lease))
        if found is None:
            return Claim.NEW
        return Claim.HANDLED if found in (HANDLED, HANDLED.decode()) else Claim.BUSY

    def renew(self, id: str, owner: str, lease: float) -> bool:
        """Have a claim last longer."""
        return bool(self._run(_RENEW, id, owner, _ms(lease)))

    def finish(self, id: str, owner: str, ttl: float) -> None:
        """Keep an id as handled."""
        self._client().set(f"{self._prefix}{id}", HANDLED, px=_ms(ttl))

    def release(self, id: str, owner: str) -> None:
        """Forget a claim."""
        self._run(_RELEASE, id, owner)

    def close(self) -> None:
        """Close the connection of this thread that was made of a URL."""
        connection = None if self._connections is None else self._connections.pop()
        if connection is not None:
            connection.close()

    def _run(self, script: str, id: str, *arguments: Any) -> Any:
        return self._client().eval(script, 1, f"{self._prefix}{id}", *arguments)

    def _client(self) -> Any:
        connection = self._server if self._connections is None else self._connections.get()
        # Asked for each time: a reconnect brings another one.
        is_ours = isinstance(connection, Connection)
        return connection.default_channel.client if is_ours else connection


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
