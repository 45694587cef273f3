"""greenconn's transports inside kombu, and so inside Celery.

Importing this module gives kombu the schemes ``greenconn-amqp://`` and ``greenconn-amqps://``; or name
the class::

    app = Celery("tasks", broker="greenconn-amqp://guest:guest@localhost//")

    app.conf.broker_transport = "greenconn.contrib.celery:AmqpTransport"

Meant for ``-P gevent`` workers and for clients in gevent programs: all greenlets may share a
connection.  Messages are kombu's own class, so kombu's serializers, its accept lists and its exceptions
decide.  A lost connection is the host's to mend: nothing is recovered here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from gevent import monkey
from kombu.message import Message
from kombu.transport import TRANSPORT_ALIASES

from greenconn.transport.amqp import channel, connection, transport

__all__ = ["AmqpTransport", "AmqpsTransport"]

#: Scheme -> class, in kombu's own table.
SCHEMES: Final = {
    "greenconn-amqp": f"{__name__}:AmqpTransport",
    "greenconn-amqps": f"{__name__}:AmqpsTransport",
}


class AmqpChannel(channel.Channel):
    """A channel that hands out kombu's messages.

    What it writes leaves at the end of the hub's turn.  A program that is not monkey-patched may wait
    for something else (a result in Redis) before the hub gets one: there it leaves at once.
    """

    def basic_publish(self, *args: Any, **kwargs: Any) -> None:
        """Publish; see :meth:`greenconn.transport.amqp.channel.Channel.basic_publish`."""
        super().basic_publish(*args, **kwargs)
        self._see_it_leave()

    def basic_ack(self, *args: Any, **kwargs: Any) -> None:
        """Acknowledge a message."""
        super().basic_ack(*args, **kwargs)
        self._see_it_leave()

    def basic_reject(self, *args: Any, **kwargs: Any) -> None:
        """Reject a message, or give it back."""
        super().basic_reject(*args, **kwargs)
        self._see_it_leave()

    def _see_it_leave(self) -> None:
        if not monkey.is_module_patched("socket"):
            self.connection.writer.flush()

    def message_to_python(self, raw_message: Any) -> Any:
        """Return kombu's message for a delivery; its body as it came, for kombu to decode."""
        if isinstance(raw_message, Message):
            return raw_message
        return Message(  # type: ignore[no-untyped-call]  # kombu has no types
            body=raw_message.raw,
            delivery_tag=raw_message.delivery_tag,
            content_type=raw_message.content_type,
            content_encoding=raw_message.content_encoding,
            delivery_info=raw_message.delivery_info,
            properties=raw_message.properties,
            headers=raw_message.headers,
            channel=self,
        )


class AmqpLink(connection.AmqpLink):
    """A link whose channels hand out kombu's messages."""

    channel_cls: ClassVar[type[channel.Channel]] = AmqpChannel


class AmqpTransport(transport.Transport):
    """AMQP 0-9-1 for kombu's ``Connection``."""

    Connection: ClassVar[type[connection.AmqpLink]] = AmqpLink
    driver_name = "greenconn"
    #: Nobody needs to drive it.  Kombu's event loop is not used, and heartbeats are sent and checked by
    #: the hub: where Celery cares for them, each turn of its gevent worker's loop takes 0.1 s.
    implements = transport.Transport.implements.extend(asynchronous=False, heartbeats=False)


class AmqpsTransport(transport.SSLTransport, AmqpTransport):
    """The same over TLS, verified."""


TRANSPORT_ALIASES.update(SCHEMES)
