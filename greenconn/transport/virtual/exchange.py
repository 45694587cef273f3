"""Exchange types: which bindings of an exchange a message takes.

An :class:`ExchangeType` belongs to a channel and has kombu's interface (``lookup`` in a table of
``(routing key, pattern, queue)`` rows, ``prepare_bind``, ``deliver``), for transports that keep the
table of bindings elsewhere.  Where bindings are kept in this process, each exchange has a
:class:`Router` of its own, which finds them without walking through the table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from greenconn.caching import LRUCache

if TYPE_CHECKING:
    from greenconn.transport.virtual.state import Binding, Exchange

__all__ = [
    "ROUTERS",
    "STANDARD_EXCHANGE_TYPES",
    "X_MATCH",
    "DirectExchange",
    "DirectRouter",
    "ExchangeType",
    "FanoutExchange",
    "FanoutRouter",
    "HeadersExchange",
    "HeadersRouter",
    "Router",
    "TopicExchange",
    "TopicRouter",
    "Trie",
    "headers_match",
    "topic_matches",
    "words_of",
]


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
Row = tuple[str, Any, str]


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
        self, table: Collection[Row], exchange: str, routing_key: str, default: str | None
    ) -> Collection[str]:
        """Return the queues of *table* that a message with *routing_key* goes to, each once.

        Arguments:
            default: for subclasses that have a queue of last resort; not looked at here.
        """
        raise NotImplementedError(f"{type(self).__name__} has no lookup")

    def prepare_bind(
        self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None
    ) -> Row:
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
        self, table: Collection[Row], exchange: str, routing_key: str, default: str | None
    ) -> Collection[str]:
        return {queue for key, _, queue in table if key == routing_key}


class TopicExchange(ExchangeType):
    """Routes by patterns of words; see :mod:`greenconn.transport.virtual.exchange`."""

    type = "topic"

    #: What kombu stores for a wildcard.
    wildcards: ClassVar[dict[str, str]] = {"*": r"[^\.]+", "#": r".*?"}
    #: The patterns that were used last (kombu's name).
    _compiled: ClassVar[LRUCache[str, Trie[bool]]] = _tries

    def lookup(
        self, table: Collection[Row], exchange: str, routing_key: str, default: str | None
    ) -> Collection[str]:
        # By the binding key: the stored pattern is kombu's, which takes "z.#" not to match "z".
        return {queue for key, _, queue in table if topic_matches(key or "", routing_key)}

    def prepare_bind(
        self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None
    ) -> Row:
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
        self, table: Collection[Row], exchange: str, routing_key: str, default: str | None
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
        self, table: Collection[Row], exchange: str, routing_key: str, default: str | None
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
