"""The queue types and delivery limits that a connection knows from declarations.

Quorum queues and streams support no prefetch for a whole channel, streams no reject, no get and no
consumer without acks.  The broker ends the whole connection over such a request, so it is not sent for
a queue whose type is known.  A queue is known by its declaration on the same connection, a stream also
by the offset that its consumer names.

A quorum queue drops a message that was delivered more often than its ``x-delivery-limit`` (RabbitMQ 4:
20, if it sets none) and was not acknowledged.  With a dead-letter exchange the message goes there;
without one it is gone, so the log warns before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from greenconn.green.supervisor import spawn

if TYPE_CHECKING:
    from greenconn.message import Message

logger = logging.getLogger("greenconn.transport.amqp")

#: RabbitMQ 4's limit of a quorum queue that sets none.
DEFAULT_LIMIT: Final = 20
#: Queues of which one connection remembers the kind, and as many of which it remembers the limit.
_KEPT: Final = 10_000


class KnownQueues:
    """Queues as one connection knows them by their declarations.  Nothing here switches.

    Arguments:
        where: the broker's URL with the password masked, for messages.
        version: of the RabbitMQ; None for another broker.

    Attributes:
        kinds: ``x-queue-type`` of each queue that is not classic.
    """

    def __init__(self, where: str, version: tuple[int, int] | None) -> None:
        self.kinds: dict[str, str] = {}
        self._where = where
        self._default = DEFAULT_LIMIT if version is not None and version >= (4, 0) else None
        #: By queue, where it is not the default; None: nothing is dropped silently, or it was said.
        self._limits: dict[str, int | None] = {}

    def declared(self, queue: str, arguments: Mapping[str, Any]) -> None:
        """Note that *queue* was declared."""
        kind = arguments.get("x-queue-type")
        if kind in ("quorum", "stream"):
            if len(self.kinds) >= _KEPT:
                del self.kinds[next(iter(self.kinds))]  # the one known longest
            self.kinds[queue] = kind
        else:
            self.kinds.pop(queue, None)
        limit = arguments.get("x-delivery-limit", self._default)
        is_silent = kind == "quorum" and "x-dead-letter-exchange" not in arguments
        self._note(queue, limit if is_silent and isinstance(limit, int) and limit >= 0 else None)

    def deleted(self, queue: str) -> None:
        """Note that *queue* was deleted."""
        self.kinds.pop(queue, None)
        self._limits.pop(queue, None)

    def check_delivery_count(self, queue: str, message: Message) -> None:
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
            "%s: a message of queue %r was delivered %d times before; without a dead-letter "
            "exchange a quorum queue drops a message that was delivered more than %d times "
            "without an ack: set x-dead-letter-exchange, or raise x-delivery-limit (logged once)",
            self._where,
            queue,
            count,
            limit,
            extra={"connection": self._where, "queue": queue},
        )

    def _note(self, queue: str, limit: int | None) -> None:
        if len(self._limits) >= _KEPT and queue not in self._limits:
            del self._limits[next(iter(self._limits))]  # the one known longest
        self._limits[queue] = limit
