"""Kombu's path for what :mod:`greenconn.transport.virtual` exports."""

from greenconn.transport.refusal import NotEquivalentError
from greenconn.transport.virtual.channel import Channel
from greenconn.transport.virtual.envelope import Base64, Message
from greenconn.transport.virtual.hooks import AbstractChannel, Empty
from greenconn.transport.virtual.management import Management
from greenconn.transport.virtual.publishing import UndeliverableWarning
from greenconn.transport.virtual.qos import QoS
from greenconn.transport.virtual.state import BrokerState, binding_key_t, queue_binding_t
from greenconn.transport.virtual.transport import Transport

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
