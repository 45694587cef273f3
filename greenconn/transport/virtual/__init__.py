"""The layer for brokers without AMQP: kombu's path, whose names stand elsewhere.

They are imported when they are first asked for: what they stand on uses other modules of this room.
"""

from __future__ import annotations

from importlib import import_module
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

from greenconn.transport.refusal import NotEquivalentError

if TYPE_CHECKING:
    from greenconn.transport.hooks import Transport
    from greenconn.transport.hooks.channel import AbstractChannel, Channel
    from greenconn.transport.hooks.message import Message, QoS
    from greenconn.transport.virtual.entities import Management
    from greenconn.transport.virtual.envelope import Base64
    from greenconn.transport.virtual.publishing import UndeliverableWarning
    from greenconn.transport.virtual.state import BrokerState, binding_key_t, queue_binding_t

__all__ = [
    "AbstractChannel",
    "Base64",
    "BrokerState",
    "Channel",
    "Empty",
    "Management",
    "Message",
    "NotEquivalentError",
    "QoS",
    "Transport",
    "UndeliverableWarning",
    "binding_key_t",
    "queue_binding_t",
]

#: Name -> the module where it stands, and its name there.
_PLACES: Final = {
    "AbstractChannel": ("greenconn.transport.hooks.channel", "AbstractChannel"),
    "Base64": ("greenconn.transport.virtual.envelope", "Base64"),
    "BrokerState": ("greenconn.transport.virtual.state", "BrokerState"),
    "Channel": ("greenconn.transport.hooks.channel", "Channel"),
    "Management": ("greenconn.transport.virtual.entities", "Management"),
    "Message": ("greenconn.transport.hooks.message", "Message"),
    "QoS": ("greenconn.transport.hooks.message", "QoS"),
    "Transport": ("greenconn.transport.hooks", "Transport"),
    "UndeliverableWarning": ("greenconn.transport.virtual.publishing", "UndeliverableWarning"),
    "binding_key_t": ("greenconn.transport.virtual.state", "binding_key_t"),
    "queue_binding_t": ("greenconn.transport.virtual.state", "queue_binding_t"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        try:
            module, there = _PLACES[name]
        except KeyError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        found = globals()[name] = getattr(import_module(module), there)
        return found
