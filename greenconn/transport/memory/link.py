"""One life of a connection to the memory broker."""

from __future__ import annotations

from typing import Any

from greenconn.options import MemoryOptions
from greenconn.transport.memory.broker import Broker
from greenconn.transport.virtual.link import VirtualLink
from greenconn.transport.virtual.state import BrokerState

__all__ = ["MemoryLink"]


class MemoryLink(VirtualLink):
    """A link to *broker*: open until it is closed, or the broker ends it."""

    def __init__(self, client: Any, broker: Broker, options: MemoryOptions | None = None) -> None:
        options = options or MemoryOptions()
        super().__init__(client, is_confirming=options.confirm_publish)
        self.broker = broker
        self.options = options
        broker.links[self] = None

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings of the virtual host."""
        return self.broker.state

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life: what its channels hold goes back, its exclusive queues go.

        Never switches.
        """
        super().end(exc, closed=closed)
        self.broker.left(self)
