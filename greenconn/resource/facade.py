"""A facade: it is what is below it, until it is given back.

The class is kept by ``__class__``, so ``isinstance`` holds; equality, hash and text are those of what is
below, also later.  Methods that Python looks up on the class (``len(x)``, ``x[0]``) are forwarded by a
class made for each class below, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from greenconn.abc import Lender
from greenconn.exceptions import OperationalError

__all__ = ["expire", "facade_over", "is_facade"]

#: Special methods that are forwarded where the class below has them.
FORWARDED: Final = (
    *("__len__", "__iter__", "__next__", "__reversed__", "__contains__", "__call__", "__bool__"),
    *("__getitem__", "__setitem__", "__delitem__", "__lt__", "__le__", "__gt__", "__ge__"),
)

_classes: WeakKeyDictionary[type, type[Facade]] = WeakKeyDictionary()


class Facade:
    """See :func:`facade_over`."""

    __slots__ = ("__core", "__pool", "__reason", "__weakref__")

    def __init__(self, core: object, pool: Lender) -> None:
        object.__setattr__(self, "_Facade__core", core)
        object.__setattr__(self, "_Facade__pool", pool)
        object.__setattr__(self, "_Facade__reason", None)

    def release(self) -> None:
        """Give back.  Again: does nothing."""
        self.__pool.release(self)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, exc_type: object, *_: object) -> None:
        # In what state an error left it nobody knows.
        if exc_type is None:
            self.__pool.release(self)
        else:
            self.__pool.replace(self)

    @property
    def __class__(self) -> type:
        return type(self.__core)

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("the class of what a pool lent cannot be changed")

    def __getattr__(self, name: str) -> Any:
        return getattr(_live(self), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(_live(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_live(self), name)

    def __eq__(self, other: object) -> bool:
        if other is self:
            return True
        if is_facade(other):
            other = object.__getattribute__(other, "_Facade__core")
        return bool(self.__core == other)

    def __hash__(self) -> int:
        return hash(self.__core)

    def __repr__(self) -> str:
        return repr(self.__core)

    def __str__(self) -> str:
        return str(self.__core)

    def __dir__(self) -> list[str]:
        return dir(self.__core)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _live(self).__reduce_ex__(protocol)


def facade_over(core: Any, pool: Lender) -> Any:
    """Lend *core*: a facade that forwards everything, and whose ``release`` gives it back to *pool*.

    The end of a ``with`` block gives it back too; after an error it is replaced.
    """
    kind = type(core)
    made = _classes.get(kind)
    if made is None:
        # Not hasattr(), which finds the metaclass's __call__ in every class.
        found = {name for cls in kind.__mro__ for name in vars(cls)}
        members: dict[str, Any] = {name: _forwarder(name) for name in FORWARDED if name in found}
        made = _classes[kind] = type(kind.__name__, (Facade,), {"__slots__": (), **members})
    return made(core, pool)


def expire(facade: Any, reason: str) -> None:
    """From now on *facade* raises, naming the *reason*, whatever is asked of it."""
    object.__setattr__(facade, "_Facade__reason", reason)


def is_facade(borrowed: Any) -> bool:
    """Whether it is one of these: ``isinstance`` is told the class below."""
    return issubclass(type(borrowed), Facade)


def _live(facade: Facade) -> Any:
    core = object.__getattribute__(facade, "_Facade__core")
    reason = object.__getattribute__(facade, "_Facade__reason")
    if reason is not None:
        raise OperationalError(f"{core!r} cannot be used any more: {reason}")
    return core


def _forwarder(name: str) -> Callable[..., Any]:
    def forward(self: Facade, *args: Any) -> Any:
        return getattr(_live(self), name)(*args)

    forward.__name__ = name
    return forward
