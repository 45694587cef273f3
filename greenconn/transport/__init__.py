"""The transports (kombu's path): which there are, and how to find one by name."""

from greenconn.transport.registry import (
    TRANSPORT_ALIASES,
    get_transport_cls,
    resolve_transport,
    supports_librabbitmq,
)

__all__ = ["TRANSPORT_ALIASES", "get_transport_cls", "resolve_transport", "supports_librabbitmq"]
