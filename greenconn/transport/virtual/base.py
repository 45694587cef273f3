"""Kombu's path for what :mod:`greenconn.transport.virtual` exports."""

from greenconn.transport.virtual import (
    AbstractChannel,
    Base64,
    BrokerState,
    Channel,
    Empty,
    Management,
    Message,
    NotEquivalentError,
    QoS,
    Transport,
    UndeliverableWarning,
    binding_key_t,
    queue_binding_t,
)

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
