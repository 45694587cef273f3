"""The AMQP transport under the path of kombu's librabbitmq transport."""

from greenconn.transport.amqp import SSLTransport, Transport
from greenconn.transport.amqp.channel import Channel
from greenconn.transport.amqp.link import AmqpLink as Connection
from greenconn.transport.amqp.message import Delivery as Message

__all__ = ["Channel", "Connection", "Message", "SSLTransport", "Transport"]
