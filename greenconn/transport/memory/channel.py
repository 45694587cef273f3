"""A channel to the memory broker."""

from __future__ import annotations

from greenconn.broker.channel import StoreChannel
from greenconn.transport.memory.broker import Queues
from greenconn.transport.memory.link import MemoryLink
from greenconn.transport.virtual.arguments import SupportedArguments
from greenconn.transport.virtual.policy import QueuePolicy

__all__ = ["Channel"]


class Channel(StoreChannel[MemoryLink]):
    """A channel.  Its calls take effect at once; only publishing may switch.

    Arguments:
        connection: the link.
    """

    supported_arguments = SupportedArguments(
        queue=QueuePolicy.ARGUMENTS,
        exchange=frozenset({"alternate-exchange"}),
        consumer=frozenset({"x-priority"}),
        message=frozenset({"priority", "expiration", "CC", "BCC"}),
    )

    @property
    def queues(self) -> Queues:
        """The queues of the virtual host by their names; ``clear`` deletes them."""
        return Queues(self.connection.broker)
