"""Functions of a program that are told what becomes of a connection."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from greenconn.green.supervisor import spawn

__all__ = ["Listeners"]

logger = logging.getLogger("greenconn.session")


class Listeners(list[Callable[..., Any]]):
    """A list of functions; what one raises keeps nothing from the others."""

    def tell(self, *args: Any) -> None:
        """Call each in a greenlet of its own.  Never switches."""
        for listener in self:
            spawn("listener", self._call, listener, args)

    def call(self, *args: Any) -> None:
        """Call each here, one after the other, to the last.  May switch.

        Raises:
            BaseException: the first thing that was raised, or thrown in, meanwhile.
        """
        first: BaseException | None = None
        for listener in list(self):
            try:
                listener(*args)
            except BaseException as exc:
                first = first or exc
        if first is not None:
            raise first

    def _call(self, listener: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            listener(*args)
        except Exception:
            logger.exception("a listener of a connection failed: %r", listener)
