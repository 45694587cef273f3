"""Values that are computed once, and the containers that keep them.

None of this takes a lock: no step here switches greenlets, so between greenlets each is atomic.
What a caller's function does while it computes a value may switch; a cached property then keeps
the first result.
"""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import update_wrapper
from typing import Any, Generic, TypeVar, cast, overload

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

_MISSING: Any = object()
_KEYWORDS = object()


class LRUCache(UserDict[K, V]):
    """A mapping that forgets the key that was not used for longest.

    Arguments:
        limit: keys that it holds at most; None never forgets.
    """

    data: OrderedDict[K, V]

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.data = OrderedDict()

    def __getitem__(self, key: K) -> V:
        value = self.data[key]
        try:
            self.data.move_to_end(key)
        except KeyError:  # another thread has just evicted it
            pass
        return value

    def __setitem__(self, key: K, value: V) -> None:
        self.data[key] = value
        self.data.move_to_end(key)
        self._evict()

    def _evict(self) -> None:
        while self.limit and len(self.data) > self.limit:
            self.data.popitem(last=False)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add the items of mappings or pairs, then forget what is too much."""
        self.data.update(*args, **kwargs)
        self._evict()

    def popitem(self, last: bool = True) -> tuple[K, V]:
        """Remove the item that was used last, or (*last* False) the one unused for longest."""
        return self.data.popitem(last)

    def __iter__(self) -> Iterator[K]:
        # Of a copy, since another greenlet may use the cache between two steps.
        return iter(list(self.data))

    def iterkeys(self) -> Iterator[K]:
        """Iterate over the keys, the one that was used last at the end."""
        return iter(self)

    def itervalues(self) -> Iterator[V]:
        """Iterate over the values; it does not count as use."""
        return iter(list(self.data.values()))

    def iteritems(self) -> Iterator[tuple[K, V]]:
        """Iterate over the items; it does not count as use."""
        return iter(list(self.data.items()))

    # kombu's are iterators as well, not views.
    keys = iterkeys  # type: ignore[assignment]  # kombu's contract
    values = itervalues  # type: ignore[assignment]  # kombu's contract
    items = iteritems  # type: ignore[assignment]  # kombu's contract

    def incr(self, key: K, delta: int = 1) -> int:
        """Add *delta* to a number that is kept as text, as memcached does."""
        number = int(cast(Any, self.data[key])) + delta
        self[key] = cast(Any, str(number))
        return number


def _call_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    return (*args, _KEYWORDS, *sorted(kwargs.items()))


def memoize(
    maxsize: int | None = None,
    keyfun: Callable[[tuple[Any, ...], dict[str, Any]], Hashable] | None = None,
    Cache: Callable[..., Any] = LRUCache,  # noqa: N803 - kombu's name
) -> Callable[[Callable[..., V]], Callable[..., V]]:
    """Decorate a function so that it is called once for the same arguments.

    What is returned has ``hits``, ``misses``, ``clear()`` and ``original_func`` as attributes.

    Arguments:
        maxsize: results that are kept; None keeps all.
        keyfun: makes the key of ``args, kwargs``.
        Cache: makes the mapping, from ``limit=maxsize``.
    """
    make_key = keyfun or _call_key

    def decorate(function: Callable[..., V]) -> Callable[..., V]:
        cache = Cache(limit=maxsize)

        def call(*args: Any, **kwargs: Any) -> V:
            key = make_key(args, kwargs)
            try:
                value = cache[key]
            except KeyError:
                value = function(*args, **kwargs)
                memoized.misses += 1
                cache[key] = value
            else:
                memoized.hits += 1
            return cast(V, value)

        def clear() -> None:
            cache.clear()
            memoized.hits = memoized.misses = 0

        memoized = cast(Any, update_wrapper(call, function))
        memoized.hits = memoized.misses = 0
        memoized.clear = clear
        memoized.original_func = function
        return cast("Callable[..., V]", memoized)

    return decorate


class lazy:  # noqa: N801 - kombu's name
    """A call that is made each time its value is used: by ``()``, ``str()``, ``==``..."""

    def __init__(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._fun = fun
        self._args = args
        self._kwargs = kwargs

    def __call__(self) -> Any:
        return self.evaluate()

    def evaluate(self) -> Any:
        """Make the call."""
        return self._fun(*self._args, **self._kwargs)

    def __str__(self) -> str:
        return str(self())

    def __repr__(self) -> str:
        return repr(self())

    def __eq__(self, rhs: object) -> bool:
        return bool(self() == rhs)

    def __ne__(self, rhs: object) -> bool:
        return bool(self() != rhs)

    __hash__ = None  # type: ignore[assignment]  # its value may change

    def __deepcopy__(self, memo: dict[int, Any]) -> lazy:
        memo[id(self)] = self
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._fun,), {"_args": self._args, "_kwargs": self._kwargs}


def maybe_evaluate(value: Any) -> Any:
    """Return the value of a :class:`lazy`, and anything else as it is."""
    return value.evaluate() if isinstance(value, lazy) else value


def is_list(
    obj: object,
    scalars: tuple[type, ...] | None = (Mapping, str),
    iters: tuple[type, ...] = (Iterable,),
) -> bool:
    """Return whether *obj* is iterable, mappings and text (*scalars*) apart."""
    return isinstance(obj, iters) and not isinstance(obj, scalars or ())


def maybe_list(obj: Any, scalars: tuple[type, ...] | None = (Mapping, str)) -> Any:
    """Return a scalar as a list of one; None and what is iterable as they are."""
    return obj if obj is None or is_list(obj, scalars) else [obj]


def dictfilter(d: Mapping[str, V | None] | None = None, **kw: V | None) -> dict[str, V]:
    """Return the items of *d* and *kw* whose value is not None."""
    items = kw if d is None else {**d, **kw}
    return {key: value for key, value in items.items() if value is not None}


class HashedSeq(list[Any]):
    """A sequence that hashes its members once.  Do not change it."""

    __slots__ = ("hashvalue",)

    def __init__(self, *seq: Any) -> None:
        super().__init__(seq)
        self.hashvalue = hash(seq)

    def __hash__(self) -> int:  # type: ignore[override]  # a list that hashes
        return self.hashvalue

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(self)


def eqhash(o: Any) -> Any:
    """Return ``o.__eqhash__()``, or its hash where it has none."""
    try:
        compute = o.__eqhash__
    except AttributeError:
        return hash(o)
    return compute()


class EqualityDict(dict[Any, V]):
    """A mapping whose keys are the same when their ``__eqhash__`` is.

    Keys without one are kept as they are (kombu keeps their hash, which another key may share).
    """

    def _key(self, key: Any) -> Any:
        return key.__eqhash__() if hasattr(key, "__eqhash__") else key

    def __getitem__(self, key: Any) -> V:
        inner = self._key(key)
        if dict.__contains__(self, inner):
            return dict.__getitem__(self, inner)
        return cast(V, self.__missing__(key))

    def __missing__(self, key: Any) -> Any:
        raise KeyError(key)

    def __setitem__(self, key: Any, value: V) -> None:
        super().__setitem__(self._key(key), value)

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(self._key(key))

    def __contains__(self, key: Any) -> bool:
        return super().__contains__(self._key(key))

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of *key*, or *default*; nothing is added."""
        return super().get(self._key(key), default)

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove *key* and return its value, or *default*."""
        return super().pop(self._key(key), *default)


class cached_property(Generic[T]):  # noqa: N801 - kombu's name
    """A property that is computed once for an object, and may be set and deleted.

    Two greenlets that ask at once may both compute it; both get the result of the first.

    Arguments:
        fget: computes the value.
        fset: called with object and value; what it returns is kept.
        fdel: called with object and value when a kept value is deleted.
    """

    def __init__(
        self,
        fget: Callable[[Any], T],
        fset: Callable[[Any, Any], Any] | None = None,
        fdel: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.func = fget
        self.attrname = fget.__name__
        self.__doc__ = fget.__doc__
        self._fset = fset
        self._fdel = fdel

    def __set_name__(self, owner: type, name: str) -> None:
        self.attrname = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> cached_property[T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    def __get__(self, instance: object | None, owner: type | None = None) -> cached_property[T] | T:
        if instance is None:
            return self
        values = instance.__dict__
        value = values.get(self.attrname, _MISSING)
        if value is _MISSING:
            value = values.setdefault(self.attrname, self.func(instance))
        return cast(T, value)

    def __set__(self, instance: object, value: Any) -> None:
        if self._fset is not None:
            value = self._fset(instance, value)
        instance.__dict__[self.attrname] = value

    def __delete__(self, instance: object) -> None:
        value = instance.__dict__.pop(self.attrname, _MISSING)
        if self._fdel is not None and value is not _MISSING:
            self._fdel(instance, value)

    def setter(self, fset: Callable[[Any, Any], Any]) -> cached_property[T]:
        """Return the same property with *fset*."""
        return type(self)(self.func, fset, self._fdel)

    def deleter(self, fdel: Callable[[Any, Any], Any]) -> cached_property[T]:
        """Return the same property with *fdel*."""
        return type(self)(self.func, self._fset, fdel)
