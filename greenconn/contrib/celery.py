"""Transports of greenconn for kombu, and therefore for Celery.

Importing this module registers the URL schemes ``greenconn-amqp://``, ``greenconn-amqps://``,
``greenconn-redis://`` and ``greenconn-rediss://`` in kombu.  Alternatively, configure the transport
class::

    app = Celery("tasks", broker="greenconn-amqp://guest:guest@localhost//")

    app.conf.broker_transport = "greenconn.contrib.celery:AmqpTransport"

The transports are intended for ``-P gevent`` workers and for clients in gevent programs, where all
greenlets may share a connection.  A connection of kombu's pools that is used by several threads (Flower,
gunicorn's gthread workers, Django's runserver) opens a separate link in each thread.  Messages are
instances of kombu's own class, so kombu's serializers, accept lists and exceptions apply.  The
transports do not recover a lost connection: kombu or Celery reconnects.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from functools import partial, wraps
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, cast

from gevent import get_hub
from kombu.connection import Connection
from kombu.message import Message
from kombu.transport import TRANSPORT_ALIASES

from greenconn.green.hub import call_in_hub
from greenconn.green.supervisor import spawn
from greenconn.jsoncodec import loads
from greenconn.transport import amqp, redis
from greenconn.transport.amqp import channel
from greenconn.transport.amqp.link import AmqpLink as Link
from greenconn.transport.amqp.message import BodilessDelivery
from greenconn.transport.redis.link import RedisLink

if TYPE_CHECKING:
    from greenconn.abc import Channel

__all__ = ["AmqpTransport", "AmqpsTransport", "RedisTransport", "RedissTransport"]

#: The transport classes by URL scheme, as registered in kombu.
SCHEMES: Final = {
    "greenconn-amqp": f"{__name__}:AmqpTransport",
    "greenconn-amqps": f"{__name__}:AmqpsTransport",
    "greenconn-redis": f"{__name__}:RedisTransport",
    "greenconn-rediss": f"{__name__}:RedissTransport",
}

#: What a transport that is named by its class is in kombu's URLs: what reads them (Flower's page of the
#: broker) knows protocols, not classes.
ALIASES: Final = {
    f"{__name__}:AmqpTransport": "amqp",
    f"{__name__}:AmqpsTransport": "amqps",
    f"{__name__}:RedisTransport": "redis",
    f"{__name__}:RedissTransport": "rediss",
}

M = TypeVar("M", bound=Callable[..., Any])


def _on_current_channel(method: M) -> M:
    """Make *method* of a channel whose connection was lost work on the one that has replaced it.

    kombu repeats a declaration that failed on the channel that it began with, also when it has
    connected anew meanwhile.
    """

    @wraps(method)
    def declare(channel: Any, /, *args: Any, **kwargs: Any) -> Any:
        if channel.connection.lost is not None:
            host = channel.connection.client
            if host.connected and host.connection is not channel.connection:
                return getattr(host.default_channel, method.__name__)(*args, **kwargs)
        return method(channel, *args, **kwargs)

    return cast(M, declare)


def _sent_at_once(method: M) -> M:
    """Have an ack or reject on its way when *method* returns.

    In another thread the one that the link belongs to sends it: those of a prefork worker's pool
    settle what the worker's own thread consumes.
    """

    @wraps(method)
    def settle(each: channel.Channel | redis.Channel, /, *args: Any, **kwargs: Any) -> None:
        if _is_here(each.connection):
            method(each, *args, **kwargs)
            each.flush_acks()
        else:
            _elsewhere(each.connection, partial(settle, each, *args, **kwargs))

    return cast(M, settle)


def _in_its_thread(method: M, link_of: Callable[[Any], Any] = lambda link: link) -> M:
    """Make *method* close its object, or have the thread that the object belongs to close it."""

    @wraps(method)
    def close(each: Any, /, *args: Any, **kwargs: Any) -> None:
        link = link_of(each)
        if _is_here(link):
            method(each, *args, **kwargs)
        else:
            _elsewhere(link, partial(method, each))

    return cast(M, close)


_link_of_channel: Final = attrgetter("connection")


class AmqpChannel(channel.Channel):
    """An AMQP channel that delivers messages of kombu's class.

    As in kombu, a publish or an ack has been sent when the call returns.  A task that is acknowledged
    early is therefore not redelivered if its process dies or blocks the hub, and a program that is not
    monkey-patched may immediately wait for something else, such as a result in Redis.
    """

    def basic_publish(self, *args: Any, **kwargs: Any) -> None:
        """Publish a message; see :meth:`greenconn.transport.amqp.channel.Channel.basic_publish`."""
        super().basic_publish(*args, **kwargs)
        self.connection.drain_writer(None)

    basic_ack = _sent_at_once(channel.Channel.basic_ack)
    basic_reject = _sent_at_once(channel.Channel.basic_reject)
    close = _in_its_thread(channel.Channel.close, _link_of_channel)
    exchange_declare = _on_current_channel(channel.Channel.exchange_declare)
    exchange_bind = _on_current_channel(channel.Channel.exchange_bind)
    queue_declare = _on_current_channel(channel.Channel.queue_declare)
    queue_bind = _on_current_channel(channel.Channel.queue_bind)

    def message_to_python(self, raw_message: Any) -> Any:
        """Return the kombu message for a delivery, with the body undecoded."""
        if isinstance(raw_message, Message):
            return raw_message
        message = _kombu_message(raw_message, raw_message.raw, self)
        if isinstance(raw_message, BodilessDelivery):
            message.errors += raw_message.errors
        return message


class AmqpLink(Link):
    """An AMQP link whose channels deliver messages of kombu's class."""

    channel_cls: ClassVar[type[channel.Channel]] = AmqpChannel
    warns_when_dropped: ClassVar[bool] = False

    close = _in_its_thread(Link.close)
    collect = _in_its_thread(Link.collect)


class AmqpTransport(amqp.Transport):
    """A transport for kombu's ``Connection`` over AMQP 0-9-1."""

    Connection: ClassVar[type[Link]] = AmqpLink
    driver_name = "greenconn"
    #: No event loop drives it.  Kombu's event loop is not used, and heartbeats are sent and checked by
    #: the hub: where Celery cares for them, each turn of its gevent worker's loop takes 0.1 s.
    implements = amqp.Transport.implements.extend(asynchronous=False, heartbeats=False)

    def verify_connection(self, connection: Link) -> bool:
        """Return whether the link can be used in this thread; if not, kombu opens another one."""
        return _is_here(connection) and super().verify_connection(connection)


class AmqpsTransport(amqp.SSLTransport, AmqpTransport):
    """A transport for kombu's ``Connection`` over AMQP 0-9-1 with TLS and certificate verification."""


class RedisChannel(redis.Channel):
    """A Redis channel that delivers messages of kombu's class.

    Acks have been sent when the call returns.
    """

    basic_ack = _sent_at_once(redis.Channel.basic_ack)
    basic_reject = _sent_at_once(redis.Channel.basic_reject)
    close = _in_its_thread(redis.Channel.close, _link_of_channel)
    exchange_declare = _on_current_channel(redis.Channel.exchange_declare)
    exchange_bind = _on_current_channel(redis.Channel.exchange_bind)
    queue_declare = _on_current_channel(redis.Channel.queue_declare)
    queue_bind = _on_current_channel(redis.Channel.queue_bind)

    def message_to_python(self, raw_message: Any) -> Any:
        """Return the kombu message for a delivery."""
        if isinstance(raw_message, Message):
            return raw_message
        body = raw_message.body
        if "compression" in raw_message.headers:
            # As it came: kombu unpacks it again.
            stored = loads(raw_message.raw)
            body = stored["body"]
            if stored["properties"].get("body_encoding") == "base64":
                body = b64decode(body)
        return _kombu_message(raw_message, body, self)


class HostedRedisLink(RedisLink):
    """A Redis link that kombu may drop without closing it."""

    warns_when_dropped: ClassVar[bool] = False


class RedisTransport(redis.Transport):
    """A transport for kombu's ``Connection`` over Redis."""

    Channel = RedisChannel
    link_cls: ClassVar[type[RedisLink]] = HostedRedisLink
    driver_name = "greenconn"
    #: As for AMQP: kombu's event loop would wait for sockets of its own, and drive nothing.
    implements = redis.Transport.implements.extend(asynchronous=False)

    def verify_connection(self, connection: RedisLink) -> bool:
        """Return whether the link can be used in this thread; if not, kombu opens another one."""
        return _is_here(connection) and super().verify_connection(connection)

    def close_connection(self, connection: RedisLink) -> None:
        """Close a link in the thread that it belongs to."""
        if _is_here(connection):
            super().close_connection(connection)
        else:
            _elsewhere(connection, connection.close)


class RedissTransport(RedisTransport):
    """A transport for kombu's ``Connection`` over Redis with TLS and certificate verification."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        if not client.ssl:
            client.ssl = True


def _is_here(link: Link | RedisLink) -> bool:
    """Return whether a link belongs to the caller's thread."""
    return link.hub_affinity.hub is get_hub()


def _elsewhere(link: Link | RedisLink, close: Callable[[], object]) -> None:
    """Have the thread that *link* belongs to call *close*.  Never switches, never fails.

    A thread that runs no greenlet now does so when it uses gevent again.
    """
    call_in_hub(link.hub_affinity.hub, spawn, "close-elsewhere", close)


def _kombu_message(delivery: Any, body: Any, channel: Channel) -> Any:
    return Message(  # type: ignore[no-untyped-call]  # kombu has no types
        body=body,
        delivery_tag=delivery.delivery_tag,
        content_type=delivery.content_type,
        content_encoding=delivery.content_encoding,
        delivery_info=delivery.delivery_info,
        properties=delivery.properties,
        headers=delivery.headers,
        channel=channel,
    )


TRANSPORT_ALIASES.update(SCHEMES)
Connection.resolve_aliases.update(ALIASES)
