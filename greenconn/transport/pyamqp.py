"""The AMQP transport under kombu's path."""

from greenconn.transport.amqp import SSLTransport, Transport
from greenconn.transport.amqp.channel import Channel
from greenconn.transport.amqp.link import AmqpLink as Connection
from greenconn.transport.amqp.message import Delivery as Message

DEFAULT_PORT = Transport.default_port
DEFAULT_SSL_PORT = Transport.default_ssl_port

__all__ = [
    "DEFAULT_PORT",
    "DEFAULT_SSL_PORT",
    "Channel",
    "Connection",
    "Message",
    "SSLTransport",
    "Transport",
]
