"""Kombu's path of the layer for brokers without AMQP; its names stand in ``broker`` and ``hooks``."""

from queue import Empty

from greenconn.broker.entities import Management
from greenconn.broker.envelope import Base64
from greenconn.broker.errors import NotEquivalentError
from greenconn.broker.exchanges import BrokerState, binding_key_t, queue_binding_t
from greenconn.broker.publishing import UndeliverableWarning
from greenconn.transport.hooks import Transport
from greenconn.transport.hooks.channel import AbstractChannel, Channel, Message, QoS

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
