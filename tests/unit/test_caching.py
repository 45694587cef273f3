"""Caches and small containers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gevent
import pytest
from gevent.event import Event
from hypothesis import given, settings
from hypothesis import strategies as st

from greenconn.caching import (
    EqualityDict,
    HashedSeq,
    LRUCache,
    cached_property,
    dictfilter,
    eqhash,
    is_list,
    lazy,
    maybe_evaluate,
    maybe_list,
    memoize,
)


def test_cache_forgets_what_was_not_used_for_longest() -> None:
    cache: LRUCache[str, int] = LRUCache(limit=2)
    cache["a"] = 1
    cache["b"] = 2
    assert cache["a"] == 1
    cache["c"] = 3
    assert list(cache) == ["a", "c"]
    assert "b" not in cache
    assert cache.get("b") is None
    cache["a"] = 4
    assert list(cache.items()) == [("c", 3), ("a", 4)]
    with pytest.raises(KeyError):
        cache["b"]


def test_cache_methods() -> None:
    cache: LRUCache[str, Any] = LRUCache(limit=3)
    cache.update({"a": 1, "b": 2}, c=3, d=4)
    assert list(cache.keys()) == list(cache.iterkeys()) == ["b", "c", "d"]
    assert list(cache.values()) == list(cache.itervalues()) == [2, 3, 4]
    assert list(cache.iteritems()) == [("b", 2), ("c", 3), ("d", 4)]
    assert cache.popitem() == ("d", 4)
    assert cache.popitem(last=False) == ("b", 2)
    assert cache.pop("c") == 3
    assert len(cache) == 0
    cache["n"] = "1"
    assert cache.incr("n") == 2
    assert cache.incr("n", delta=5) == 7
    assert cache["n"] == "7"
    cache.clear()
    assert not cache


def test_cache_may_change_while_it_is_iterated() -> None:
    cache: LRUCache[int, int] = LRUCache(limit=3)
    cache.update({1: 1, 2: 2, 3: 3})
    for key, _ in cache.items():
        cache[key + 10] = 0
    assert sorted(cache) == [11, 12, 13]


def test_cache_without_limit_and_its_pickle() -> None:
    cache: LRUCache[int, int] = LRUCache()
    cache.update({n: n for n in range(1000)})
    assert len(cache) == 1000
    for copied in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)):
        assert copied == cache
        assert copied.limit is None


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=40))
@settings(derandomize=True)
def test_cache_against_a_list(limit: int, steps: list[tuple[bool, int]]) -> None:
    cache: LRUCache[int, int] = LRUCache(limit=limit)
    model: list[int] = []
    for is_write, key in steps:
        if is_write:
            cache[key] = key
        elif cache.get(key) is None:
            continue
        model = [each for each in model if each != key] + [key]
        model = model[-limit:]
        assert list(cache) == model


def test_memoize() -> None:
    calls: list[Any] = []

    def double(n: int, **kwargs: Any) -> int:
        """Double it."""
        calls.append(n)
        return n * 2

    memoized: Any = memoize(maxsize=2)(double)
    assert [memoized(1), memoized(1), memoized(1, x=1), memoized(1, x=1)] == [2, 2, 2, 2]
    assert (memoized.hits, memoized.misses) == (2, 2)
    memoized(3)
    memoized(1)
    assert calls == [1, 1, 3, 1]
    memoized.clear()
    assert (memoized.hits, memoized.misses) == (0, 0)
    assert memoized.original_func(4) == 8
    assert memoized.__doc__ == "Double it."


def test_memoize_by_own_key_and_cache() -> None:
    made: list[int | None] = []

    class Cache(dict[Any, Any]):
        def __init__(self, limit: int | None) -> None:
            made.append(limit)

    @memoize(maxsize=7, keyfun=lambda args, kwargs: args[0] % 2, Cache=Cache)
    def same(n: int) -> int:
        return n

    assert [same(1), same(3), same(2)] == [1, 1, 2]
    assert made == [7]


def test_lazy() -> None:
    calls: list[int] = []

    def compute(n: int, *, plus: int = 0) -> int:
        calls.append(n)
        return n + plus

    value = lazy(compute, 1, plus=2)
    assert calls == []
    assert value() == value.evaluate() == 3
    assert str(value) == repr(value) == "3"
    assert value == 3
    assert value != 4
    assert len(calls) == 6
    assert maybe_evaluate(value) == 3
    assert maybe_evaluate(5) == 5
    assert copy.deepcopy(value) is value
    copied = pickle.loads(pickle.dumps(lazy(int, "11", base=2)))
    assert copied() == 3


def test_lists() -> None:
    assert is_list([])
    assert is_list(iter("a"))
    assert not is_list("a")
    assert not is_list({})
    assert is_list({}, scalars=(str,))
    assert is_list("a", scalars=None)
    assert not is_list(1)
    assert maybe_list(None) is None
    assert maybe_list("a") == ["a"]
    assert maybe_list(("a",)) == ("a",)


def test_dictfilter() -> None:
    assert dictfilter({"a": 1, "b": None}) == {"a": 1}
    assert dictfilter({"a": 1}, a=None, c=0) == {"c": 0}
    assert dictfilter(a=None, b=False) == {"b": False}


def test_hashed_seq() -> None:
    seq = HashedSeq("a", 1)
    assert seq == ["a", 1]
    assert hash(seq) == hash(("a", 1))
    assert {seq: 1}[HashedSeq("a", 1)] == 1
    assert pickle.loads(pickle.dumps(seq)) == copy.copy(seq) == seq


class Place:
    def __init__(self, name: str) -> None:
        self.name = name

    def __eqhash__(self) -> HashedSeq:
        return HashedSeq("place", self.name)


class Counting(EqualityDict[int]):
    def __missing__(self, key: Any) -> int:
        value = self[key] = len(self)
        return value


def test_equality_dict() -> None:
    assert eqhash(Place("a")) == HashedSeq("place", "a")
    assert eqhash("x") == hash("x")
    places: EqualityDict[int] = EqualityDict()
    places[Place("a")] = 1
    places["plain"] = 2
    assert places[Place("a")] == 1
    assert places["plain"] == 2
    assert Place("a") in places
    assert Place("b") not in places
    assert places.get(Place("a")) == 1
    assert places.get(Place("b"), 5) == 5
    (key, _) = places
    assert places[key] == 1
    del places[Place("a")]
    assert places.pop(Place("a"), None) is None
    assert places.pop("plain") == 2
    with pytest.raises(KeyError):
        places[Place("a")]


def test_equality_dict_fills_itself() -> None:
    counting = Counting()
    assert [counting[Place("a")], counting[Place("b")], counting[Place("a")]] == [0, 1, 0]
    assert len(counting) == 2


def test_keys_whose_hashes_meet_stay_apart() -> None:
    numbers: EqualityDict[str] = EqualityDict()
    numbers[-1], numbers[-2] = "one", "two"  # hash(-1) == hash(-2)
    assert numbers == {-1: "one", -2: "two"}


class Room:
    def __init__(self) -> None:
        self.log: list[Any] = []

    def _get_size(self) -> int:
        """How large it is."""
        self.log.append("get")
        return 3

    def _set_size(self, value: int) -> int:
        self.log.append(("set", value))
        return value * 10

    def _delete_size(self, value: int) -> None:
        self.log.append(("del", value))

    size = cached_property(_get_size).setter(_set_size).deleter(_delete_size)


def test_cached_property() -> None:
    room = Room()
    assert room.size == room.size == 3
    assert room.log == ["get"]
    room.size = 4
    assert room.size == 40
    del room.size
    del room.size
    assert room.log == ["get", ("set", 4), ("del", 40)]
    assert room.size == 3
    assert Room.size.__doc__ == "How large it is."


def test_greenlets_that_ask_at_once_get_one_result() -> None:
    entered, proceed = [Event(), Event()], Event()

    class Slow:
        @cached_property
        def value(self) -> object:
            next(each for each in entered if not each.is_set()).set()
            assert proceed.wait(30)
            return object()

    slow = Slow()
    greenlets = [gevent.spawn(lambda: slow.value) for _ in entered]
    assert all(each.wait(30) for each in entered)
    proceed.set()
    first, second = (greenlet.get(timeout=30) for greenlet in greenlets)
    assert first is second is slow.value
