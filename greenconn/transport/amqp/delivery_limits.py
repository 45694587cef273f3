"""The delivery limits of quorum queues, and the warning before one drops a message.

A quorum queue drops a message that was delivered more often than its ``x-delivery-limit`` (RabbitMQ 4:
20, if it sets none) and was not acknowledged.  With a dead-letter exchange the message goes there;
without one it is gone, and nobody is told.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from greenconn.green.supervisor import spawn

if TYPE_CHECKING:
    from greenconn.transport.amqp.message import Delivery

__all__ = ["DeliveryLimits"]

logger = logging.getLogger("greenconn.transport.amqp")

#: RabbitMQ 4's limit of a quorum queue that sets none.
DEFAULT_LIMIT: Final = 20
#: Queues that one connection remembers.
_KEPT: Final = 10_000


class DeliveryLimits:
    """What one connection knows of the limits of queues.  Nothing here switches.

    Arguments:
        where: the broker's URL with the password masked, for messages.
        version: of the RabbitMQ; None for another broker.
    """

    __slots__ = ("_default", "_limits", "_where")

    def __init__(self, where: str, version: tuple[int, int] | None) -> None:
        self._where = where
        self._default = DEFAULT_LIMIT if version is not None and version >= (4, 0) else None
        #: By queue, where it is not the default; None: nothing is dropped silently, or it was said.
        self._limits: dict[str, int | None] = {}

    def declared(self, queue: str, arguments: Mapping[str, Any] | None) -> None:
        """*queue* was declared with *arguments*, or deleted (None)."""
        if arguments is None:
            self._limits.pop(queue, None)
            return
        limit = arguments.get("x-delivery-limit", self._default)
        is_quorum = arguments.get("x-queue-type") == "quorum"
        is_silent = is_quorum and "x-dead-letter-exchange" not in arguments
        self._note(queue, limit if is_silent and isinstance(limit, int) and limit >= 0 else None)

    def _note(self, queue: str, limit: int | None) -> None:
        if len(self._limits) >= _KEPT and queue not in self._limits:
            del self._limits[next(iter(self._limits))]  # the one known longest
        self._limits[queue] = limit

    def look(self, queue: str, message: Delivery) -> None:
        """Warn, once for each queue, when *message* was delivered nearly as often as it may be."""
        limit = self._limits.get(queue, self._default)
        if limit is None:
            return
        count = message.headers.get("x-delivery-count")
        if not isinstance(count, int) or count * 4 < limit * 3:
            return
        self._note(queue, None)
        spawn(
            "log",
            logger.warning,
            "%s: a message of queue %r was delivered %d times before; a quorum queue drops a message "
            "that was delivered more than %d times and not acknowledged, unless it has a dead-letter "
            "exchange, and this one was not declared with one here: set x-dead-letter-exchange, or "
            "raise x-delivery-limit (this is said once)",
            self._where,
            queue,
            count,
            limit,
        )
