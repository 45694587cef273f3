"""The transports, and the lookup of a transport by name (kombu's path)."""

from greenconn.transport.registry import (
    TRANSPORT_ALIASES,
    get_transport_cls,
    resolve_transport,
    supports_librabbitmq,
)

__all__ = ["TRANSPORT_ALIASES", "get_transport_cls", "resolve_transport", "supports_librabbitmq"]
