"""A channel over a store."""

from __future__ import annotations

from typing import ClassVar

from greenconn.broker.delivering import DeliveringMethods
from greenconn.broker.link import LeasedLink
from greenconn.broker.publishing import PublishingToStore
from greenconn.transport.virtual.arguments import SupportedArguments
from greenconn.transport.virtual.shared import SharedEntityMethods
from greenconn.transport.virtual.state import Binding

__all__ = ["LeasedChannel"]


class LeasedChannel(SharedEntityMethods, DeliveringMethods, PublishingToStore):
    """A channel.  Any greenlet of its connection's hub may call any method at any time.

    Arguments:
        connection: the link.
    """

    connection: LeasedLink
    #: What the channels do, whatever the store is.
    supported_arguments: ClassVar[SupportedArguments] = SupportedArguments(
        queue=frozenset(
            {
                "x-dead-letter-exchange",
                "x-dead-letter-routing-key",
                "x-delivery-limit",
                "x-max-priority",
                "x-message-ttl",
            }
        ),
        exchange=frozenset({"alternate-exchange"}),
        consumer=frozenset({"x-priority"}),
        message=frozenset({"priority", "expiration", "x-delay", "CC", "BCC"}),
    )

    def __init__(self, connection: LeasedLink, channel_id: int | None = None) -> None:
        super().__init__(connection, channel_id)
        self._init_answers()

    def _unbind(self, binding: Binding) -> None:
        self.connection.routing.unbind(binding)
