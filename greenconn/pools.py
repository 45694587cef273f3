"""Pools shared by the whole program: for each broker one of connections and one of producers.

``pools.connections[connection]`` is the pool of all connections equal to *connection*, and
``pools.producers[connection]`` the pool of producers on top of it.  Each hub (each thread) has pools of
its own.  Keys hold no password.
"""

from __future__ import annotations

import hashlib
import logging
import os
import weakref
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from greenconn.caching import HashedSeq, eqhash, lazy
from greenconn.checks import Seconds
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.hub import PerHub
from greenconn.green.supervisor import spawn
from greenconn.messaging import Producer as _Producer
from greenconn.resource import RelendingPool, Resource
from greenconn.session.broker import ParameterKey

if TYPE_CHECKING:
    from greenconn.connection import Connection
    from greenconn.green.pool import Entry

__all__ = [
    "Connections",
    "PoolGroup",
    "ProducerPool",
    "Producers",
    "connections",
    "get_limit",
    "producers",
    "register_group",
    "reset",
    "set_limit",
    "use_global_limit",
]

logger = logging.getLogger("greenconn.pools")

#: The limit of a group whose pools have that of :func:`set_limit`.
use_global_limit: Final = object()


class ProducerPool(RelendingPool):
    """A pool of producers on the connections of another pool.

    An acquired producer counts in this pool and holds a connection of the other; its release releases
    both.  The producer and its connection are new objects if anything refers to the former ones, so that
    their use after the release does not affect the next holder.

    The resources of this pool are connections.  An idle one stays here until the pool of connections
    needs it (see :mod:`greenconn.green.pool`), so that acquiring a producer costs the work of one pool,
    not of two.

    Arguments:
        connections: a pool of connections.
        Producer: the class to make.
        limit, preload, close_after_fork: see :class:`~greenconn.resource.Resource`.
    """

    Producer: ClassVar[type[_Producer]] = _Producer
    close_after_fork = True

    def __init__(self, connections: Any, *args: Any, **kwargs: Any) -> None:
        self.connections = connections
        made: type[_Producer] | None = kwargs.pop("Producer", None)
        if made is not None:
            self.Producer = made  # type: ignore[misc]  # kombu's: an instance may have its own
        #: To which a producer's connection is released.
        self.connection_lender = _Lender(self)
        has_check = type(self).is_alive is not Resource.is_alive
        self._checks_itself = connections._checks_itself and not has_check
        super().__init__(*args, **kwargs)

    def new(self) -> Any:
        """Return the promise of a producer, which :meth:`prepare` makes."""
        return lazy(self.create_producer)

    def prepare(self, resource: Any) -> Any:
        """Return a producer with a connection, for a producer or the promise of one.  May switch."""
        producer = resource() if callable(resource) else resource
        if producer._channel is None:
            connection = self._acquire_connection()
            try:
                producer.revive(connection)
            except BaseException:
                connection.release()
                raise
        return producer

    def create_producer(self) -> _Producer:
        """Return a new producer that keeps a connection of the pool.  May switch."""
        connection = self._acquire_connection()
        try:
            return self.Producer(connection)
        except BaseException:
            connection.release()
            raise

    def _acquire_connection(self) -> Any:
        return self.connections.acquire(block=True)

    def _deadline(self, block: bool, timeout: Seconds | Deadline | None) -> Deadline | None:
        # Also for a connection.
        return super()._deadline(block, timeout) if block else Deadline(0.0)

    def _lend(self, entry: Entry[Any], block: bool, deadline: Deadline | None) -> Any:
        """Lend a new producer on the connection that was just acquired.  May switch."""
        try:
            entry = self._living(entry, block, deadline)
            connection = self.connections.facade(entry.item, self.connection_lender)
            producer: Any = self.Producer(connection)
            if self._has_prepare_hook:
                producer = self.prepare(producer)
            self._note_loan(producer, entry)
            producer._pool = self
        except BaseException:
            self._pool.put_back(entry)
            raise
        return producer

    def collect_resource(self, resource: Any) -> None:
        """Release the connection to its own pool, which closes it."""
        self.connections.take_back(resource)

    # Within

    def _parent(self) -> Any:
        return self.connections._pool

    def _note_hooks(self) -> None:
        super()._note_hooks()
        if self.Producer is not _Producer:
            self._checkouts.keep_none()

    def _can_lend_again(self, borrowed: Any) -> bool:
        # Not of another class, which may prepare for its use when it is made.
        return type(borrowed) is _Producer and hasattr(type(borrowed.__connection__), "lend_again")

    def _make(self, deadline: Deadline) -> Any:
        return self.connections.lend_to_pool(self, not deadline.has_ended, deadline)

    def _has_own(self, hook: str) -> bool:
        return self._is_replaced(hook, ProducerPool)

    def _preloaded(self) -> Any:
        return self._make(NEVER)

    def _promise(self) -> Any:
        return self.new()

    def _add(self, resource: Any) -> None:
        if not isinstance(resource, lazy):  # the promise of a producer, which acquire makes
            super()._add(resource)

    def _describe(self) -> str:
        return f"producers of {self.connections!r}"

    def _is_core_alive(self, core: Any) -> bool:
        alive: bool = self.connections.is_alive(core)
        return alive

    def _producer_on(self, connection: Connection) -> Any:
        """Return the producer in use on *connection*; None if there is none."""
        producers = self._checkouts.facades()
        return next((each for each in producers if each.__connection__ is connection), None)

    def expire(self, borrowed: Any, reason: str) -> None:
        """Make each later use of a producer and its connection raise an error.  Never switches."""
        borrowed._pool = borrowed.channel = None
        self.connections.expire(borrowed.__connection__, reason)

    def _release_unlent(self, resource: Any) -> None:
        # From create_producer(), with a connection of its own, whose second release does nothing.
        connection = getattr(resource, "__connection__", None)
        if connection is not None:
            connection.release()
        if resource is not None:
            resource.channel = None

    def returned(self, borrowed: Any) -> None:
        """Unbind a producer that was released.  Never switches."""
        borrowed._pool = borrowed.channel = None
        self.connections.returned(borrowed.__connection__)


class _Lender:
    """The lender of a producer's connection: a release of the connection is one of the producer."""

    def __init__(self, pool: ProducerPool) -> None:
        self._pool = weakref.ref(pool)

    @property
    def limit(self) -> int | None:
        """The limit of the pool."""
        pool = self._pool()
        return None if pool is None else pool.limit

    def release(self, connection: Connection) -> None:
        """Release the producer in use on *connection*.  Never switches."""
        if (pool := self._pool()) is not None:
            pool.release(pool._producer_on(connection))

    def replace(self, connection: Connection) -> None:
        """Release the producer in use on *connection*, which is defective.  Never switches."""
        if (pool := self._pool()) is not None:
            pool.replace(pool._producer_on(connection))


P = TypeVar("P", bound=Resource)

_SECRET: Final = os.urandom(16)


def _key(connection: object) -> Any:
    """Return the key of all connections equal to *connection*; it contains no password."""
    found = eqhash(connection)
    if isinstance(found, ParameterKey):
        return found  # nearly all, and found out at less cost than the others
    if isinstance(found, (list, tuple)):
        # kombu's own connections: all of their parameters, the password included.
        text = repr(HashedSeq(*found)).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16, key=_SECRET).hexdigest()
    return found


class _Pools(dict[Any, Any]):
    """The pools of one group in one hub, and the global limit when they were made."""

    __slots__ = ("limit",)

    def __init__(self) -> None:
        super().__init__()
        self.limit = 0


class PoolGroup(MutableMapping[Any, Any]):
    """A mapping of connections to pools; a missing pool is made.

    Arguments:
        limit: of each pool; :data:`use_global_limit`, or None or 0 for unlimited.
        close_after_fork: accepted as kombu does; pools always forget their resources after a fork.
    """

    def __init__(self, limit: Any = None, close_after_fork: bool = True) -> None:
        self.limit = limit
        self.close_after_fork = close_after_fork
        self._by_hub: PerHub[_Pools] = PerHub(_Pools)

    def create(self, resource: Any, limit: int | None) -> Any:
        """Return a new pool for *resource*."""
        raise NotImplementedError(f"{type(self).__name__} does not define create()")

    def __missing__(self, resource: Any) -> Any:
        limit = get_limit() if self.limit is use_global_limit else self.limit
        pool = self._pools()[_key(resource)] = self.create(resource, limit)
        return pool

    def __getitem__(self, resource: Any) -> Any:
        pool = self._pools().get(_key(resource))
        return self.__missing__(resource) if pool is None else pool

    def __setitem__(self, resource: Any, pool: Any) -> None:
        self._pools()[_key(resource)] = pool

    def __delitem__(self, resource: Any) -> None:
        del self._pools()[_key(resource)]

    def __contains__(self, resource: object) -> bool:
        return _key(resource) in self._pools()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._pools())

    def __len__(self) -> int:
        return len(self._pools())

    def get(self, resource: Any, default: Any = None) -> Any:
        """Return the pool for *resource* if there is one, else *default*."""
        return self._pools().get(_key(resource), default)

    def values(self) -> Any:
        """Return the pools of this hub."""
        return self._pools().values()

    def items(self) -> Any:
        """Return the keys and pools of this hub."""
        return self._pools().items()

    def clear(self) -> None:
        """Forget the pools of this hub; nothing is closed."""
        self._pools().clear()

    # Two groups are never equal, even with equal pools, as all empty groups have.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {list(self.values())!r}>"

    def _pools(self) -> _Pools:
        pools = self._by_hub.get()
        if self.limit is use_global_limit and pools.limit != _limit[0]:
            # It was changed, perhaps by another thread, which could not resize the pools of this one.
            for pool in pools.values():
                pool.resize(_limit[0], ignore_errors=True)
            pools.limit = _limit[0]
        return pools


class Connections(PoolGroup):
    """Pools of connections."""

    def create(self, connection: Connection, limit: int | None) -> Any:
        """Return ``connection.Pool(limit)``."""
        return connection.Pool(limit=limit)


class Producers(PoolGroup):
    """Pools of producers, on the pools in :data:`connections`."""

    def create(self, connection: Connection, limit: int | None) -> ProducerPool:
        """Return a pool on top of the pool of connections for *connection*."""
        return ProducerPool(connections[connection], limit=limit)


_limit: Final = [10]
_groups: Final[list[PoolGroup]] = []

G = TypeVar("G", bound=PoolGroup)


def register_group(group: G) -> G:
    """Add *group* to those of :func:`set_limit` and :func:`reset`, and return it."""
    _groups.append(group)
    return group


connections: Final = register_group(Connections(limit=use_global_limit))
producers: Final = register_group(Producers(limit=use_global_limit))


def get_limit() -> int:
    """Return the global limit, for groups without one of their own; 0 is unlimited."""
    return _limit[0]


def set_limit(
    limit: int | None,
    force: bool = False,
    reset_after: bool = False,
    ignore_errors: bool = False,
) -> int:
    """Change the global limit and resize all pools that have it.  May switch if it closes resources.

    Pools of other threads are resized when they are next used.

    Arguments:
        limit: None or 0 is unlimited.
        force: shrink pools in use by closing all of their resources.
        reset_after: close all resources.
        ignore_errors: shrink pools in use as their resources are released.

    Raises:
        RuntimeError: a pool in use cannot shrink; all other pools are resized.
    """
    if isinstance(limit, bool):
        raise TypeError(f"limit must be an int, not bool, got {limit!r}")
    limit = limit or 0
    if limit != get_limit():
        pools = _all_pools()
        _limit[0] = limit
        for group in _groups:
            if isinstance(group, PoolGroup):  # programs register mappings of their own, too
                group._by_hub.get().limit = limit
        error: RuntimeError | None = None
        for pool in pools:
            try:
                pool.resize(limit, force=force, reset=reset_after, ignore_errors=ignore_errors)
            except RuntimeError as exc:
                error = error or exc
        if error is not None:
            raise error
    return limit


def reset(*args: Any, **kwargs: Any) -> None:
    """Close all pools of this hub, with the resources in use, and forget them.  May switch.

    A pool that cannot be closed is logged and does not keep the others from closing.
    """
    for group in reversed(_groups):
        pools = group._by_hub.get() if isinstance(group, PoolGroup) else group
        while pools:
            # In a greenlet of its own, which goes on closing when the caller is interrupted: a pool is
            # forgotten only when it is closed.
            spawn("pool-close", _close, pools.popitem()[1]).join()
        group.clear()  # a program's own group may have more to forget


def _close(pool: Any) -> None:
    try:
        pool.force_close_all()
    except Exception:
        logger.warning("cannot close %r", pool, exc_info=True)


def _all_pools() -> list[Any]:
    return [pool for group in _groups for pool in group.values()]
