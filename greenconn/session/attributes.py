"""Attributes of a connection that are kept in its session, so that its facades share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from greenconn.session.session import Session

__all__ = ["Parameter", "Shared"]

T = TypeVar("T")


class Shared(Generic[T]):
    """An attribute that is read from the session.  On the class it is its default, as in kombu.

    Arguments:
        default: the value on the class.
        read: takes it out of the session.
    """

    def __init__(self, default: T, read: Callable[[Session], T]) -> None:
        self._default = default
        self._read = read
        self.name = ""

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> T:
        return self._default if instance is None else self._read(instance.session)

    def __set__(self, instance: Any, value: T) -> None:
        raise AttributeError(f"{type(instance).__name__}.{self.name} cannot be set")


class Parameter(Shared[T]):
    """One of the parameters of the broker that is meant now.

    Arguments:
        default: the value on the class, and what None stands for where *fills* is True.
        parameter: its name, if that is not the attribute's.
    """

    def __init__(self, default: T, parameter: str = "", *, fills: bool = False) -> None:
        super().__init__(default, self._read_parameter)
        self._parameter = parameter
        self._fills = fills

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> T:
        # As above, with a call less: opening a connection asks for all of them.
        return self._default if instance is None else self._read_parameter(instance.session)

    def _read_parameter(self, session: Session) -> T:
        value = getattr(session.broker.parameters, self._parameter or self.name)
        return self._default if value is None and self._fills else cast(T, value)

    def __set__(self, instance: Any, value: T) -> None:
        instance.session.broker.change(self._parameter or self.name, value)
