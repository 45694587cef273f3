"""A queue for each consumer, so that all get everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenconn.entity import Exchange, Queue
from greenconn.identity import uuid

__all__ = ["Broadcast"]


class Broadcast(Queue):
    """A queue of its own for each consumer, so that each gets every message of an exchange.

    The queue goes with its last consumer.

    Arguments:
        name: of the fan-out exchange.
        queue: name of the queue; None makes one up.
        unique: make one up that begins with *queue*.
        auto_delete: the queue is deleted when its last consumer goes.
        exchange: an Exchange, instead of the one that *name* means.
        alias: a name for the program's own use; None is *name*.
        kwargs: see :class:`~greenconn.entity.Queue`.
    """

    queue: str | None

    attrs: tuple[tuple[str, Callable[[Any], Any] | None], ...] = (*Queue.attrs, ("queue", None))

    def __init__(
        self,
        name: str | None = None,
        queue: str | None = None,
        unique: bool = False,
        auto_delete: bool = True,
        exchange: Exchange | None = None,
        alias: str | None = None,
        **kwargs: Any,
    ) -> None:
        if unique or not queue:
            queue = f"{queue or 'bcast'}.{uuid()}"
        super().__init__(
            name=queue,
            queue=queue,
            exchange=Exchange(name or "", type="fanout") if exchange is None else exchange,
            auto_delete=auto_delete,
            alias=alias or name,
            **kwargs,
        )
