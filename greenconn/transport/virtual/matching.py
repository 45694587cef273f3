"""Matching of routing keys and headers against bindings.

Topic patterns are words between dots: ``*`` stands for exactly one word, which may be empty, and
``#`` for any number of words, none included.  An empty key has no words at all, so ``*`` does not
match it and ``#`` does (RabbitMQ's reading of AMQP 0-9-1, 3.1.3.3).

The trie below holds all patterns of one exchange.  Matching walks it with the set of nodes that
the words read so far may have led to, so a key of n words costs at most n times the nodes that are
alive at once, however many ``#`` a pattern has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, Generic, TypeVar

__all__ = ["X_MATCH", "Trie", "headers_match", "topic_matches", "words_of"]

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
    return bool(_trie_of(pattern).match(key))


@lru_cache(maxsize=1024)
def _trie_of(pattern: str) -> Trie[bool]:
    # A regular expression would need exponential time for a pattern of many "#".
    trie: Trie[bool] = Trie()
    trie.add(pattern, True)
    return trie


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
