"""The exchanges of a virtual host and their bindings.

Queues are names here: where they are kept is the transport's matter.  Routing follows RabbitMQ:
a message goes through exchange-to-exchange bindings, to each queue once however many paths lead
there; an exchange that finds no binding for it hands it to its alternate exchange.

Routes are cached per exchange by routing key, at most :data:`CACHE_SIZE` of them, and dropped when
any binding changes (a change may lie behind an exchange-to-exchange binding).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from greenconn.transport.virtual.exchange import ROUTERS, Router

#: Routes that one exchange remembers.
CACHE_SIZE = 1024

NO_HEADERS: dict[str, Any] = {}


class binding_key_t(NamedTuple):  # noqa: N801  (kombu's name)
    """The key of a binding in kombu."""

    queue: str
    exchange: str
    routing_key: str


class queue_binding_t(NamedTuple):  # noqa: N801  (kombu's name)
    """A binding as seen from its queue."""

    exchange: str
    routing_key: str
    arguments: Mapping[str, Any] | None


def freeze(value: Any) -> Any:
    """Return a hashable form of *value*, equal for equal tables and lists."""
    if isinstance(value, Mapping):
        return frozenset((name, freeze(each)) for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(freeze(each) for each in value)
    return value


class Binding:
    """From an exchange to a queue or to another exchange.

    Two bindings that differ in nothing but their arguments are two bindings.
    """

    __slots__ = ("arguments", "destination", "key", "routing_key", "source", "to_exchange")

    def __init__(
        self,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        to_exchange: bool = False,
    ) -> None:
        self.source = source
        self.destination = destination
        self.routing_key = routing_key
        self.arguments: Mapping[str, Any] = dict(arguments or {})
        self.to_exchange = to_exchange
        self.key = (source, to_exchange, destination, routing_key, freeze(self.arguments))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Binding) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        kind = "exchange" if self.to_exchange else "queue"
        return f"<Binding: {self.source!r} -{self.routing_key!r}-> {kind} {self.destination!r}>"


class Exchange:
    """One exchange.  Read by kombu's keys too: ``exchange['type']``, ``exchange['table']``..."""

    __slots__ = (
        "arguments",
        "auto_delete",
        "bindings",
        "cache",
        "cached_at",
        "durable",
        "is_guess",
        "name",
        "router",
        "rows",
        "type",
    )

    def __init__(
        self,
        name: str,
        type: str,
        router: Router,
        *,
        durable: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        is_guess: bool = False,
    ) -> None:
        self.name = name
        self.type = type
        self.durable = durable
        self.auto_delete = auto_delete
        self.arguments: Mapping[str, Any] = dict(arguments or {})
        #: Whether it is known only from the bindings of another program, without its declaration.
        self.is_guess = is_guess
        self.router = router
        #: What its bindings are made of, where several processes share them; None: they have changed
        #: here since.
        self.rows: Sequence[Any] | None = None
        #: Those that begin here, in the order in which they were made.
        self.bindings: dict[Binding, None] = {}
        self.cache: dict[str, tuple[str, ...]] = {}
        #: Version of the state that ``cache`` was made from.
        self.cached_at = 0

    @property
    def alternate(self) -> str | None:
        """Name of the exchange that gets what this one cannot route."""
        return self.arguments.get("alternate-exchange")

    @property
    def table(self) -> list[tuple[str, Any, str]]:
        """Kombu's rows of its bindings to queues."""
        return [
            (each.routing_key, None, each.destination)
            for each in self.bindings
            if not each.to_exchange
        ]

    def __getitem__(self, key: str) -> Any:
        if key not in {"type", "durable", "auto_delete", "arguments", "table"}:
            raise KeyError(key)
        return getattr(self, key)

    def __repr__(self) -> str:
        return f"<Exchange: {self.name!r} ({self.type})>"


class BrokerState:
    """Exchanges and bindings.

    Arguments:
        exchanges: a dict to keep the exchanges in.
    """

    def __init__(self, exchanges: dict[str, Exchange] | None = None) -> None:
        self.exchanges: dict[str, Exchange] = {} if exchanges is None else exchanges
        #: (is an exchange, name) -> the bindings that end there.
        self._ending: dict[tuple[bool, str], dict[Binding, None]] = {}
        self._version = 1

    # -- exchanges

    def declare(
        self,
        name: str,
        type: str,
        *,
        durable: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        is_guess: bool = False,
        router: Callable[[], Router] | None = None,
    ) -> Exchange:
        """Make an exchange, which must not exist yet.

        Arguments:
            router: makes its router, where it is not that of its type.

        Raises:
            KeyError: there is no such type.
        """
        factory = ROUTERS[type] if router is None else router
        exchange = self.exchanges[name] = Exchange(
            name,
            type,
            factory(),
            durable=durable,
            auto_delete=auto_delete,
            arguments=arguments,
            is_guess=is_guess,
        )
        self._version += 1  # It may be an alternate exchange.
        return exchange

    def delete(self, name: str) -> None:
        """Delete an exchange with all its bindings; does nothing if there is none."""
        exchange = self.exchanges.pop(name, None)
        if exchange is None:
            return
        self._version += 1
        for binding in list(exchange.bindings):
            self.unbind(binding)
        self._unbind_destination(True, name)

    def route(
        self, name: str, routing_key: str, headers: Mapping[str, Any] | None = None
    ) -> tuple[str, ...]:
        """Return the names of the queues that a message goes to, each once.

        Raises:
            KeyError: there is no such exchange.
        """
        exchange = self.exchanges[name]
        cache = exchange.cache
        if exchange.cached_at != self._version:
            cache.clear()
            exchange.cached_at = self._version
        queues = cache.get(routing_key)
        if queues is None:
            queues, is_cacheable = self._walk(exchange, routing_key, headers or NO_HEADERS)
            if is_cacheable:
                if len(cache) >= CACHE_SIZE:
                    cache.clear()
                cache[routing_key] = queues
        return queues

    def _walk(
        self, start: Exchange, routing_key: str, headers: Mapping[str, Any]
    ) -> tuple[tuple[str, ...], bool]:
        """Return the queues, and whether the routing key alone decided."""
        queues: dict[str, None] = {}
        is_cacheable = True
        seen = {start.name}
        todo = deque([start])
        while todo:
            exchange = todo.popleft()
            if exchange.router.needs_headers:
                is_cacheable = False
            bindings = exchange.router.match(routing_key, headers)
            onward = [each.destination for each in bindings if each.to_exchange]
            queues.update((each.destination, None) for each in bindings if not each.to_exchange)
            if not bindings and exchange.alternate is not None:
                onward.append(exchange.alternate)
            for name in onward:
                if name not in seen and name in self.exchanges:
                    seen.add(name)
                    todo.append(self.exchanges[name])
        return tuple(queues), is_cacheable

    # -- bindings

    def bind(self, binding: Binding) -> bool:
        """Add *binding*; False when it was there.  Its source must exist."""
        exchange = self.exchanges[binding.source]
        if binding in exchange.bindings:
            return False
        self._version += 1
        exchange.bindings[binding] = None
        exchange.rows = None
        exchange.router.add(binding)
        ending = self._ending.setdefault((binding.to_exchange, binding.destination), {})
        ending[binding] = None
        return True

    def unbind(self, binding: Binding) -> bool:
        """Remove *binding*; False when there was none.

        An auto-delete exchange goes with the last binding that begins at it.
        """
        key = (binding.to_exchange, binding.destination)
        ending = self._ending.get(key, {})
        if binding not in ending:
            return False
        self._version += 1
        del ending[binding]
        if not ending:
            del self._ending[key]
        exchange = self.exchanges.get(binding.source)
        if exchange is not None:
            del exchange.bindings[binding]
            exchange.rows = None
            exchange.router.discard(binding)
            if exchange.auto_delete and not exchange.bindings:
                self.delete(exchange.name)
        return True

    def _unbind_destination(self, is_exchange: bool, name: str) -> None:
        for binding in list(self._ending.get((is_exchange, name), ())):
            self.unbind(binding)

    def all_bindings(self) -> Iterator[Binding]:
        """Every binding, by exchange."""
        for exchange in list(self.exchanges.values()):
            yield from list(exchange.bindings)

    # -- kombu's names

    @property
    def bindings(self) -> dict[binding_key_t, Mapping[str, Any]]:
        """Kombu's key of each binding to a queue -> its arguments (a copy)."""
        return {
            binding_key_t(each.destination, each.source, each.routing_key): each.arguments
            for each in self.all_bindings()
            if not each.to_exchange
        }

    @property
    def queue_index(self) -> dict[str, set[binding_key_t]]:
        """Queue -> kombu's keys of its bindings (a copy)."""
        index: dict[str, set[binding_key_t]] = {}
        for key in self.bindings:
            index.setdefault(key.queue, set()).add(key)
        return index

    def clear(self) -> None:
        """Forget all exchanges and bindings."""
        self.exchanges.clear()
        self._ending.clear()
        self._version += 1

    def has_binding(self, queue: str, exchange: str, routing_key: str) -> bool:
        """Return whether *queue* is bound so, with whatever arguments."""
        return (exchange, routing_key) in {
            (each.source, each.routing_key) for each in self._ending.get((False, queue), ())
        }

    def binding_declare(
        self,
        queue: str,
        exchange: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        """Bind *queue* to an exchange, which must exist."""
        self.bind(Binding(exchange, queue, routing_key, arguments))

    def binding_delete(self, queue: str, exchange: str, routing_key: str) -> None:
        """Unbind *queue*, whatever the arguments of the binding are."""
        for each in list(self._ending.get((False, queue), ())):
            if (each.source, each.routing_key) == (exchange, routing_key):
                self.unbind(each)

    def queue_bindings_delete(self, queue: str) -> None:
        """Remove all bindings of *queue*."""
        self._unbind_destination(False, queue)

    def queue_bindings(self, queue: str) -> Iterator[queue_binding_t]:
        """Yield the bindings of *queue*, in the order in which they were made."""
        for each in list(self._ending.get((False, queue), ())):
            yield queue_binding_t(each.source, each.routing_key, each.arguments)
