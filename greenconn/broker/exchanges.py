"""Exchanges and bindings, and the routes of messages by them.

Each type of exchange has a router, which finds the bindings that match a message.  An exchange that
finds no binding hands the message to its alternate exchange.

Routes are cached per exchange by routing key, at most :data:`CACHE_SIZE` of them, and dropped when
any binding changes (a change may lie behind an exchange-to-exchange binding).

Where no other process shares them, all connections of this one to a broker know what one of them has
declared.  Where others do, the broker keeps records (:class:`TopologyStore`): the rows of an exchange
are asked for at each publish, and taken over into the same tables when they have changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NamedTuple, TypeAlias, TypeVar

from greenconn.broker.errors import (
    Method,
    no_exchange,
)
from greenconn.broker.settlements import carbon_copies
from greenconn.caching import LRUCache

if TYPE_CHECKING:
    from greenconn.broker.link import BrokerLink

T = TypeVar("T")

#: Values of a binding's ``x-match``.
X_MATCH = frozenset({"all", "any", "all-with-x", "any-with-x"})


def words_of(key: str) -> list[str]:
    """Split a routing key or a pattern into its words; an empty one has none."""
    return key.split(".") if key else []


class _Node(Generic[T]):
    """A place in the trie, and what is bound to the pattern that ends here."""

    __slots__ = ("children", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.values: dict[T, None] = {}


class Trie(Generic[T]):
    """Topic patterns and the values bound to them.  Values are hashable."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, pattern: str, value: T) -> None:
        """Bind *value* to *pattern*."""
        node = self._root
        for word in words_of(pattern):
            child = node.children.get(word)
            if child is None:
                child = node.children[word] = _Node()
            node = child
        node.values[value] = None

    def discard(self, pattern: str, value: T) -> None:
        """Take *value* off *pattern*, and remove the nodes that nothing hangs on any more."""
        path = [(self._root, "")]
        for word in words_of(pattern):
            child = path[-1][0].children.get(word)
            if child is None:
                return
            path.append((child, word))
        path[-1][0].values.pop(value, None)
        while len(path) > 1:
            node, word = path.pop()
            if node.values or node.children:
                return
            del path[-1][0].children[word]

    def match(self, key: str) -> Collection[T]:
        """Return the values of all patterns that match *key*, each once."""
        alive: dict[_Node[T], bool] = {}
        _enter(self._root, False, alive)
        for word in words_of(key):
            reached: dict[_Node[T], bool] = {}
            for node, is_hash in alive.items():
                if is_hash:
                    _enter(node, True, reached)
                child = node.children.get(word)
                if child is not None:
                    _enter(child, word == "#", reached)
                child = node.children.get("*")
                if child is not None:
                    _enter(child, False, reached)
            alive = reached
        found: dict[T, None] = {}
        for node in alive:
            found.update(node.values)
        return found


def _enter(node: _Node[T], is_hash: bool, alive: dict[_Node[T], bool]) -> None:
    """Note that the walk is at *node*, and at its ``#`` child too, which needs no word."""
    while node not in alive:
        alive[node] = is_hash
        child = node.children.get("#")
        if child is None:
            return
        node, is_hash = child, True


def topic_matches(pattern: str, key: str) -> bool:
    """Tell whether one topic pattern matches *key*: for tables that are kept elsewhere.

    >>> topic_matches("z.#", "z")
    True
    """
    try:
        trie = _tries[pattern]
    except KeyError:
        # A regular expression would need exponential time for a pattern of many "#".
        trie = _tries[pattern] = Trie()
        trie.add(pattern, True)
    return bool(trie.match(key))


#: Pattern -> what matches keys with it.
_tries: LRUCache[str, Trie[bool]] = LRUCache(limit=1024)


def headers_match(wanted: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Tell whether a message with *headers* matches a binding with the arguments *wanted*.

    A wanted value of None only asks for the header to be there.  Arguments that begin with ``x-``
    count with ``all-with-x`` and ``any-with-x`` only.
    """
    how = wanted.get("x-match", "all")
    with_x = how.endswith("-with-x")
    is_any = how.startswith("any")
    for name, value in wanted.items():
        if name == "x-match" or (name.startswith("x-") and not with_x):
            continue
        if (name in headers and _is_same(value, headers[name])) is is_any:
            return is_any
    return not is_any


def _is_same(wanted: Any, value: Any) -> bool:
    # True and 1 are different things on the wire.
    return wanted is None or (
        wanted == value and isinstance(wanted, bool) == isinstance(value, bool)
    )


#: A row of a table of bindings: routing key, pattern as kombu stores it, queue.
TableRow = tuple[str, Any, str]


class Router:
    """The bindings of one exchange, kept so that those of a message are found quickly."""

    #: Whether ``match`` looks at headers, so that its result cannot be cached by routing key.
    needs_headers: ClassVar[bool] = False

    def add(self, binding: Binding) -> None:
        """Take *binding* in."""
        raise NotImplementedError

    def discard(self, binding: Binding) -> None:
        """Take *binding* out."""
        raise NotImplementedError

    def match(self, routing_key: str, headers: Mapping[str, Any]) -> Collection[Binding]:
        """Return the bindings that a message takes, each once."""
        raise NotImplementedError


class DirectRouter(Router):
    """The routing key is the binding key."""

    def __init__(self) -> None:
        self._by_key: dict[str, dict[Binding, None]] = {}

    def add(self, binding: Binding) -> None:
        self._by_key.setdefault(binding.routing_key, {})[binding] = None

    def discard(self, binding: Binding) -> None:
        bindings = self._by_key.get(binding.routing_key, {})
        bindings.pop(binding, None)
        if not bindings:
            self._by_key.pop(binding.routing_key, None)

    def match(self, routing_key: str, headers: Mapping[str, Any]) -> Collection[Binding]:
        return self._by_key.get(routing_key, ())


class FanoutRouter(Router):
    """Every binding, whatever the keys."""

    def __init__(self) -> None:
        self._bindings: dict[Binding, None] = {}

    def add(self, binding: Binding) -> None:
        self._bindings[binding] = None

    def discard(self, binding: Binding) -> None:
        self._bindings.pop(binding, None)

    def match(self, routing_key: str, headers: Mapping[str, Any]) -> Collection[Binding]:
        return self._bindings


class TopicRouter(Router):
    """The routing key fits the binding's pattern."""

    def __init__(self) -> None:
        self._trie: Trie[Binding] = Trie()

    def add(self, binding: Binding) -> None:
        self._trie.add(binding.routing_key, binding)

    def discard(self, binding: Binding) -> None:
        self._trie.discard(binding.routing_key, binding)

    def match(self, routing_key: str, headers: Mapping[str, Any]) -> Collection[Binding]:
        return self._trie.match(routing_key)


class HeadersRouter(FanoutRouter):
    """The message's headers fit the binding's arguments."""

    needs_headers = True

    def match(self, routing_key: str, headers: Mapping[str, Any]) -> Collection[Binding]:
        return [each for each in self._bindings if headers_match(each.arguments, headers)]


#: Exchange type -> its router.
ROUTERS: dict[str, type[Router]] = {
    "direct": DirectRouter,
    "fanout": FanoutRouter,
    "headers": HeadersRouter,
    "topic": TopicRouter,
}


class TableRouter(FanoutRouter):
    """Bindings of an exchange type that only has kombu's ``lookup``."""

    def __init__(self, exchange_type: ExchangeType, exchange: str) -> None:
        super().__init__()
        self._type = exchange_type
        self._exchange = exchange

    def match(self, routing_key: str, headers: Mapping[str, Any]) -> Collection[Binding]:
        rows = [
            self._type.prepare_bind(
                each.destination, self._exchange, each.routing_key, each.arguments
            )
            for each in self._bindings
        ]
        queues = self._type.lookup(rows, self._exchange, routing_key, None)
        return [each for each in self._bindings if each.destination in queues]


class ExchangeType:
    """An exchange type (kombu's base class).

    Arguments:
        channel: its ``_lookup``, ``_put`` and, with fan-out, ``_put_fanout`` are used by ``deliver``.
    """

    type: ClassVar[str | None] = None

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    def router(self, exchange: str) -> Router:
        """Return a router for the exchange of that name."""
        factory = ROUTERS.get(self.type or "")
        return TableRouter(self, exchange) if factory is None else factory()

    def lookup(
        self, table: Collection[TableRow], exchange: str, routing_key: str, default: str | None
    ) -> Collection[str]:
        """Return the queues of *table* that a message with *routing_key* goes to, each once.

        Arguments:
            default: for subclasses that have a queue of last resort; not looked at here.
        """
        raise NotImplementedError(f"{type(self).__name__} has no lookup")

    def prepare_bind(
        self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None
    ) -> TableRow:
        """Return the table row of a binding."""
        return routing_key, None, queue

    def equivalent(
        self,
        prev: Exchange | Mapping[str, Any],
        exchange: str,
        type: str,
        durable: bool,
        auto_delete: bool,
        arguments: Mapping[str, Any] | None,
    ) -> bool:
        """Tell whether the exchange *prev* is what another declaration asks for."""
        return (
            type == prev["type"]
            and durable == prev["durable"]
            and auto_delete == prev["auto_delete"]
            and (arguments or {}) == (prev["arguments"] or {})
        )

    def deliver(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> None:
        """Put *message* into every queue it is routed to.  May switch."""
        for queue in self.channel._lookup(exchange, routing_key):
            self.channel._put(queue, message, **kwargs)


class DirectExchange(ExchangeType):
    """Routes to the queues that are bound with the very routing key."""

    type = "direct"

    def lookup(
        self, table: Collection[TableRow], exchange: str, routing_key: str, default: str | None
    ) -> Collection[str]:
        return {queue for key, _, queue in table if key == routing_key}


class TopicExchange(ExchangeType):
    """Routes by patterns of words; see :mod:`greenconn.broker.exchanges`."""

    type = "topic"

    #: What kombu stores for a wildcard.
    wildcards: ClassVar[dict[str, str]] = {"*": r"[^\.]+", "#": r".*?"}
    #: The patterns that were used last (kombu's name).
    _compiled: ClassVar[LRUCache[str, Trie[bool]]] = _tries

    def lookup(
        self, table: Collection[TableRow], exchange: str, routing_key: str, default: str | None
    ) -> Collection[str]:
        # By the binding key: the stored pattern is kombu's, which takes "z.#" not to match "z".
        return {queue for key, _, queue in table if topic_matches(key or "", routing_key)}

    def prepare_bind(
        self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None
    ) -> TableRow:
        return routing_key, self.key_to_pattern(routing_key), queue

    def key_to_pattern(self, rkey: str) -> str:
        """Return the regular expression that kombu stores beside a binding key.

        It is part of the data that both libraries share on one server; we never match with it.
        """
        words = (self.wildcards.get(word) or _escaped(word) for word in rkey.split("."))
        return "^{}$".format(r"\.".join(words))


def _escaped(word: str) -> str:
    # Character by character as kombu escapes, since the result is compared with what it stored.
    return "".join(
        c if c.isalnum() or c in "#*" else "\\000" if c == "\0" else f"\\{c}" for c in word
    )


class FanoutExchange(ExchangeType):
    """Routes to every queue that is bound; keys are ignored."""

    type = "fanout"

    def lookup(
        self, table: Collection[TableRow], exchange: str, routing_key: str, default: str | None
    ) -> Collection[str]:
        return {queue for _, _, queue in table}

    def deliver(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> None:
        """Broadcast by the broker's own means if it has any, else put into each queue."""
        if self.channel.supports_fanout:
            self.channel._put_fanout(exchange, message, routing_key, **kwargs)
        else:
            super().deliver(message, exchange, routing_key, **kwargs)


class HeadersExchange(ExchangeType):
    """Routes by the message's headers, where the bindings are kept in this process."""

    type = "headers"

    def lookup(
        self, table: Collection[TableRow], exchange: str, routing_key: str, default: str | None
    ) -> Collection[str]:
        raise NotImplementedError(
            "a headers exchange needs the arguments of its bindings, which this transport's "
            "table does not hold"
        )

    def deliver(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> None:
        """Put *message* into every queue whose binding its headers fit.  May switch."""
        headers = message.get("headers") or {}
        for queue in self.channel.state.route(exchange, routing_key, headers):
            self.channel._put(queue, message, **kwargs)


#: Exchange type -> class.
STANDARD_EXCHANGE_TYPES: dict[str, type[ExchangeType]] = {
    "direct": DirectExchange,
    "topic": TopicExchange,
    "fanout": FanoutExchange,
    "headers": HeadersExchange,
}

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


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeDeclaration:
    """The declaration of an exchange."""

    type: str = "direct"
    durable: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


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
        "leads_on",
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
        #: Whether other exchanges decide, too, as long as its rows are these.
        self.leads_on = False
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
        exchange.router.add(binding)
        self._version += 1
        exchange.rows = None
        ending = self._ending.setdefault((binding.to_exchange, binding.destination), {})
        ending[binding] = None
        # Last: what a signal has interrupted is not there, and is added again.
        exchange.bindings[binding] = None
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
            exchange.bindings.pop(binding, None)
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


#: How an exchange was declared: ``type``, ``durable``, ``auto_delete`` and ``arguments``.  Any may be
#: missing from what a foreign program has written.  ``is_guess`` is true where no program has said so,
#: and only bindings tell that there is an exchange.
ExchangeRecord: TypeAlias = Mapping[str, Any]


def as_exchange(name: str, record: ExchangeRecord | None) -> Exchange | None:
    """Return an exchange without its bindings; None: there is none, or of no type known here."""
    kind = None if record is None else record.get("type")
    if record is None or not isinstance(kind, str) or kind not in ROUTERS:
        return None
    arguments = record.get("arguments")
    return Exchange(
        name,
        kind,
        ROUTERS[kind](),
        durable=bool(record.get("durable")),
        auto_delete=bool(record.get("auto_delete")),
        arguments=arguments if isinstance(arguments, dict) else {},
        is_guess=bool(record.get("is_guess")),
    )


class Row(NamedTuple):
    """A binding as stores share it: kombu's row, and what kombu's rows have not.

    Attributes:
        pattern: what kombu stores for a topic exchange; empty for others.
        queue: where it leads to.
        to_exchange: *queue* is the name of an exchange.
    """

    routing_key: str
    pattern: str
    queue: str
    arguments: Mapping[str, Any] | None = None
    to_exchange: bool = False


class TopologyStore(ABC):
    """Named records of exchanges, each with its bindings, and the rules of their life.

    A store writes the records.  All methods may switch.  A change is several records: a greenlet that is
    killed between two of them leaves bindings to what is not there any more, which no message takes.
    """

    # -- records

    @abstractmethod
    def get(self, exchange: str) -> ExchangeRecord | None:
        """Return how an exchange was declared; None: there is none."""

    @abstractmethod
    def put(self, exchange: str, record: ExchangeRecord) -> None:
        """Keep how an exchange was declared, unless it is there."""

    @abstractmethod
    def delete(self, exchange: str) -> None:
        """Delete an exchange and the bindings that begin there; one that is not there is no error."""

    @abstractmethod
    def rows(self, exchange: str) -> Sequence[Row] | None:
        """Return the bindings that begin at an exchange; None: neither it nor any binding is there.

        Asked for each publish: the adapter keeps what it may keep, and returns the same object as long
        as nothing has changed.
        """

    def has_rows(self, exchange: str) -> bool:
        """Return whether any binding begins at an exchange."""
        return bool(self.rows(exchange))

    @abstractmethod
    def add(self, exchange: str, row: Row) -> None:
        """Add a binding; again: changes nothing."""

    @abstractmethod
    def remove(self, exchange: str, row: Row) -> bool:
        """Remove a binding; return whether it was there."""

    @abstractmethod
    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        """Remove all bindings that lead to a queue or an exchange; return where they began."""

    # -- rules

    def find(self, name: str) -> Exchange | None:
        """Return an exchange without its bindings; None: there is none, or of no type known here."""
        return as_exchange(name, self.get(name))

    def declare(self, exchange: Exchange) -> None:
        """Keep an exchange, unless there is one of its name."""
        record = {
            "type": exchange.type,
            "durable": exchange.durable,
            "auto_delete": exchange.auto_delete,
            "arguments": dict(exchange.arguments),
        }
        self.put(exchange.name, record)

    def drop(self, name: str) -> None:
        """Delete an exchange, its bindings, and those that lead to it."""
        self.delete(name)
        self.delete_unbound(self.remove_to(name, is_exchange=True))

    def unbind(self, exchange: str, row: Row) -> None:
        """Remove a binding, and an auto-delete exchange with its last one."""
        if self.remove(exchange, row):
            self.delete_unbound([exchange])

    def forget_queue(self, name: str) -> None:
        """Remove the bindings of a queue, and auto-delete exchanges with their last one."""
        self.delete_unbound(self.remove_to(name, is_exchange=False))

    def delete_unbound(self, names: Iterable[str]) -> None:
        """Delete those of some exchanges that go with their last binding, and have none."""
        for name in dict.fromkeys(names):
            record = self.get(name)
            if record is not None and record.get("auto_delete") and not self.has_rows(name):
                self.drop(name)


class Topology(ABC):
    """The records of a broker that has transactions: each change is one.  All methods may switch.

    Each change has a version, which the broker keeps with the records.
    """

    def __init__(self) -> None:
        #: Exchange -> its rows, as of this version.
        self._rows: dict[str, Sequence[Row] | None] = {}
        self._version = 0

    def version_of(self, name: str, rows: Sequence[Row]) -> int:
        """Return the version of which *rows* are those of an exchange; 0: unknown.  Never switches.

        The same object, that is: a greenlet may have taken over what it had read before another one.
        """
        return self._version if self._rows.get(name) is rows else 0

    def share(self, name: str, rows: Sequence[Row], known: Sequence[Row]) -> None:
        """Have *known*, of all links of the process, in the place of equal *rows*.  Never switches."""
        if self._rows.get(name) is rows:
            self._rows[name] = known

    @abstractmethod
    def _read(self, function: Callable[[TopologyStore], T]) -> T:
        """Return ``function(store)``, which changes nothing."""

    @abstractmethod
    def _change(self, function: Callable[[TopologyStore], object]) -> None:
        """Do ``function(store)`` in one transaction."""

    @abstractmethod
    def rows(self, name: str) -> Sequence[Row] | None:
        """See :class:`TopologyStore`, as the other methods."""

    def has_rows(self, name: str) -> bool:
        return self._read(lambda store: store.has_rows(name))

    def find(self, name: str) -> Exchange | None:
        return self._read(lambda store: store.find(name))

    def declare(self, exchange: Exchange) -> None:
        self._change(lambda store: store.declare(exchange))

    def drop(self, name: str) -> None:
        self._change(lambda store: store.drop(name))

    def add(self, exchange: str, row: Row) -> None:
        self._change(lambda store: store.add(exchange, row))

    def unbind(self, exchange: str, row: Row) -> None:
        self._change(lambda store: store.unbind(exchange, row))

    def forget_queue(self, name: str) -> None:
        self._change(lambda store: store.forget_queue(name))


#: For their rows; they need no channel.
_TYPES: Final[dict[str, ExchangeType]] = {
    name: kind(None) for name, kind in STANDARD_EXCHANGE_TYPES.items()
}


class Routing:
    """The routes of one link.

    Arguments:
        checks_queues: a binding may outlive its queue, so a link looks for those that it leads to.
    """

    def __init__(self, link: BrokerLink, *, checks_queues: bool = False) -> None:
        self._link = link
        self._checks_queues = checks_queues
        self._state: BrokerState = link.state

    @property
    def _topology(self) -> TopologyStore | Topology | None:
        return self._link.topology

    # -- exchanges

    def find(self, name: str) -> Exchange | None:
        """Return an exchange as it is declared now; None: there is none.  May switch.

        Its bindings are those that are known here.
        """
        topology = self._topology
        if topology is None or name in PREDECLARED:
            return self._state.exchanges.get(name)
        found: Exchange | None = self._link.ask("routing", topology.find, name)
        known = self._state.exchanges.get(name)
        if known is not None and (
            found is None or (known.type, known.is_guess) != (found.type, found.is_guess)
        ):
            self.forget(name)
        if found is not None and name not in self._state.exchanges:
            self._state.declare(
                name,
                found.type,
                durable=found.durable,
                auto_delete=found.auto_delete,
                arguments=found.arguments,
                is_guess=found.is_guess,
                router=self._link.router_of(name, found.type),
            )
        return self._state.exchanges.get(name)

    def learn(self, name: str) -> Exchange | None:
        """Return an exchange with its bindings as they are now; None: there is none.  May switch."""
        topology = self._topology
        if topology is None:
            return self._state.exchanges.get(name)
        found: Sequence[Row] | None = self._link.ask("routing", topology.rows, name)
        if found is None and name not in PREDECLARED:
            self.forget(name)
            return None
        rows: Sequence[Row] = () if found is None else found
        known = self._state.exchanges.get(name)
        if known is None or known.is_guess or known.rows != rows:
            if self.find(name) is None:
                return None
            self._take_over(name, rows)
        elif isinstance(topology, Topology):
            topology.share(name, rows, known.rows)
        return self._state.exchanges.get(name)

    def forget(self, name: str) -> None:
        """Forget an exchange.  Never switches."""
        self._state.delete(name)

    def _take_over(self, name: str, rows: Sequence[Row]) -> None:
        """Make the bindings of an exchange those of *rows*.  Never switches."""
        wanted = {
            Binding(name, row.queue, row.routing_key, row.arguments, to_exchange=row.to_exchange)
            for row in rows
        }
        for binding in wanted:
            self._state.bind(binding)
        for binding in list(self._state.exchanges[name].bindings):
            if binding not in wanted:
                self._state.unbind(binding)
        known = self._state.exchanges.get(name)
        if known is not None:
            known.rows = rows
            known.leads_on = known.alternate is not None or any(row.to_exchange for row in rows)

    def is_used(self, name: str) -> bool:
        """Return whether something is bound to an exchange, by whatever process.  May switch."""
        if self._topology is not None:
            return self._link.ask("routing", self._topology.has_rows, name)
        known = self._state.exchanges.get(name)
        return known is not None and bool(known.bindings)

    def note(self, exchange: Exchange) -> None:
        """Let other processes know of an exchange.  May switch."""
        if self._topology is not None:
            self._link.ask("declaring an exchange", self._topology.declare, exchange)

    def drop(self, name: str) -> None:
        """Forget a deleted exchange, which is not shared any more.  May switch."""
        if self._topology is not None:
            self._link.ask("deleting an exchange", self._topology.drop, name)

    # -- bindings

    def bind(self, binding: Binding) -> None:
        """Make a binding, here and for others; again: only tells the others.  May switch."""
        if self._topology is not None:
            row = self._row(binding)
            self._link.ask("binding", self._topology.add, binding.source, row)
        if binding.source in self._state.exchanges:
            self._state.bind(binding)

    def unbind(self, binding: Binding) -> None:
        """Remove a binding, here and for others.  May switch."""
        self.find(binding.source)
        if self._topology is not None:
            row = self._row(binding)
            self._link.ask("unbinding", self._topology.unbind, binding.source, row)
        self._state.unbind(binding)

    def forget_queue(self, name: str) -> None:
        """Remove the bindings of a queue that is gone, here and for others.  May switch."""
        self._state.queue_bindings_delete(name)
        if self._topology is not None:
            self._link.ask("unbinding", self._topology.forget_queue, name)

    def own_rows(self, exchange: str) -> list[Row]:
        """Return the bindings of queues to an exchange that are known here.  Never switches."""
        known = self._state.exchanges.get(exchange)
        bindings = () if known is None else known.bindings
        return [self._row(each) for each in bindings if not each.to_exchange]

    def rows_to(self, queue: str) -> list[tuple[str, Row]]:
        """Return the bindings of a queue that are known here, and their exchanges.  Never switches."""
        return [
            (exchange, self._row(Binding(exchange, queue, routing_key, arguments)))
            for exchange, routing_key, arguments in self._state.queue_bindings(queue)
        ]

    def _row(self, binding: Binding) -> Row:
        """Return a binding as it is shared."""
        known = self._state.exchanges.get(binding.source)
        kind = _TYPES.get("direct" if known is None else known.type, _TYPES["direct"])
        key, pattern, queue = kind.prepare_bind(
            binding.destination, binding.source, binding.routing_key, binding.arguments
        )
        return Row(key, pattern or "", queue, binding.arguments or None, binding.to_exchange)

    # -- messages

    def routes(
        self, exchange: str, routing_key: str, headers: Mapping[str, Any], mandatory: bool = False
    ) -> Sequence[str]:
        """Return the queues that a message goes to, each once.  May switch.

        A process that finds a binding without its queue removes it, and then the exchange may have no
        binding for the message any more, but an alternate exchange.

        Arguments:
            mandatory: only queues that exist count.

        Raises:
            NotFound: there is no such exchange.
        """
        link, keys = self._link, (routing_key, *carbon_copies(headers, "CC", "BCC"))
        if not exchange:
            names = list(dict.fromkeys(filter(None, keys)))
            return link.existing(names) if mandatory else names
        gone: set[str] = set()
        while True:
            if self._learn_all(exchange) is None:
                vhost = getattr(link.client, "virtual_host", None) or "/"
                raise no_exchange(exchange, vhost, Method.BASIC_PUBLISH)
            queues: dict[str, None] = {}
            for key in keys:
                queues.update(dict.fromkeys(self._state.route(exchange, key, headers)))
            if not (mandatory or self._checks_queues):
                return list(queues)
            wanted = [each for each in queues if each not in gone]
            there = link.existing(wanted)
            if len(there) == len(wanted):
                return there
            gone.update(each for each in wanted if each not in there)

    def known_routes(
        self, exchange: str, routing_key: str, headers: Mapping[str, Any]
    ) -> tuple[Sequence[str], int]:
        """Return where a message without copies goes by what is known, and of which version that is.

        Never switches.

        Returns:
            The version is 0 where the broker must be asked.
        """
        topology, known = self._topology, self._state.exchanges.get(exchange)
        if known is None or known.rows is None or known.leads_on:
            return (), 0
        if not isinstance(topology, Topology):
            return (), 0
        version = topology.version_of(exchange, known.rows)
        return (self._state.route(exchange, routing_key, headers) if version else ()), version

    def _learn_all(self, name: str) -> Exchange | None:
        """Learn an exchange, and those that it leads to."""
        start = self.learn(name)
        if start is None or self._topology is None:
            return start
        seen, todo = {name}, deque([start])
        while todo:
            exchange = todo.popleft()
            onward = [each.destination for each in exchange.bindings if each.to_exchange]
            if exchange.alternate is not None:
                onward.append(exchange.alternate)
            for each in onward:
                if each not in seen:
                    seen.add(each)
                    known = self.learn(each)
                    if known is not None:
                        todo.append(known)
        return self._state.exchanges.get(name)


#: The exchanges that every virtual host has, by name.
PREDECLARED: Mapping[str, str] = {
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.headers": "headers",
    "amq.match": "headers",
    "amq.topic": "topic",
}
