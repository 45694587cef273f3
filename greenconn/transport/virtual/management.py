"""The management interface of this layer's transports."""

from __future__ import annotations

from typing import Any

from greenconn.transport import base

__all__ = ["Management"]


class Management(base.Management):
    """The bindings of the virtual host, through a channel of its own."""

    def __init__(self, transport: base.Transport[Any]) -> None:
        super().__init__(transport)
        self.channel = transport.client.channel()

    def get_bindings(self) -> Any:
        """Every binding to a queue: ``destination``, ``source``, ``routing_key``."""
        return self.channel.get_bindings()

    def close(self) -> None:
        """Close the channel.  May switch."""
        self.channel.close()
