"""Exchanges, queues and bindings, as they are to be declared."""

from greenconn.entity.declaration import maybe_declare
from greenconn.entity.exchange import (
    DELIVERY_MODES,
    INTERNAL_EXCHANGE_PREFIX,
    PERSISTENT_DELIVERY_MODE,
    TRANSIENT_DELIVERY_MODE,
    Exchange,
    binding,
    maybe_delivery_mode,
    pretty_bindings,
)
from greenconn.entity.queue import Queue, SuperStream

__all__ = [
    "DELIVERY_MODES",
    "INTERNAL_EXCHANGE_PREFIX",
    "PERSISTENT_DELIVERY_MODE",
    "TRANSIENT_DELIVERY_MODE",
    "Exchange",
    "Queue",
    "SuperStream",
    "binding",
    "maybe_declare",
    "maybe_delivery_mode",
    "pretty_bindings",
]
