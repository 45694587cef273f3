"""Messages that reach their queue later: kombu's layout of delay levels on RabbitMQ.

A delay of N seconds is the binary number N, of 28 digits.  For each digit there is a *level*: a topic
exchange, and a queue in which a message stays for that digit's seconds (2^level) before it is
dead-lettered to the exchange of the next lower level.  The routing key begins with the digits, the
highest first: where the digit is 1 the level's exchange puts the message into the level's queue, where
it is 0 the message goes straight on to the next level.  Behind level 0 is the *delivery exchange*,
which sends a message on by what follows the digits, the routing key that the publisher meant::

    publish --> level 27 --0--> level 26 --> ... --> level 0 --> delivery --#.key--> exchange --> queue
                   |1              ^
                   v               |  dead-lettered after 2^27 s
                 queue of level 27-+

So messages with different delays never wait for one another: within a level all stay equally long.
The names are kombu's (and Celery's), so programs built on either share one layout.  It costs 28
exchanges and 28 queues a virtual host, and a message passes through one queue for each 1 in its delay.
"""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from greenconn.exceptions import ChannelError, ConnectionError

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.connection import Connection

__all__ = [
    "CELERY_DELAYED_DELIVERY_EXCHANGE",
    "MAX_LEVEL",
    "MAX_NUMBER_OF_BITS_TO_USE",
    "bind_queue_to_native_delayed_delivery_exchange",
    "calculate_routing_key",
    "declare_levels",
    "declare_native_delayed_delivery_exchanges_and_queues",
    "delivery_exchange",
    "level_name",
]

logger = logging.getLogger("greenconn.transport.native_delayed_delivery")

MAX_NUMBER_OF_BITS_TO_USE: Final = 28
#: The highest level; 2^27 s are four years, all levels together eight and a half.
MAX_LEVEL: Final = MAX_NUMBER_OF_BITS_TO_USE - 1
CELERY_DELAYED_DELIVERY_EXCHANGE: Final = "celery_delayed_delivery"

#: What :func:`calculate_routing_key` puts in front.
_DIGITS: Final = re.compile(rf"(?:[01]\.){{{MAX_NUMBER_OF_BITS_TO_USE}}}")
#: The longest short string of AMQP, in bytes.
_LONGEST_KEY: Final = 255


def level_name(level: int, prefix: str | None = None) -> str:
    """Return the name of a level's exchange and queue.

    Arguments:
        level: from 0 (one second) up.
        prefix: tells layouts in one virtual host apart; '' and None are none.

    Raises:
        ValueError: a negative level.
    """
    if level < 0:
        raise ValueError(f"level must be at least 0, got {level}")
    return _prefixed(f"celery_delayed_{level}", prefix)


def _prefixed(name: str, prefix: str | None) -> str:
    return f"{prefix}_{name}" if prefix else name


def delivery_exchange(prefix: str | None = None) -> str:
    """Return the name of the exchange behind the lowest level; *prefix* as for :func:`level_name`."""
    return _prefixed(CELERY_DELAYED_DELIVERY_EXCHANGE, prefix)


def declare_native_delayed_delivery_exchanges_and_queues(
    connection: Connection, queue_type: str, prefix: str | None = None
) -> None:
    """Declare all levels and the delivery exchange.  May switch.

    Again: changes nothing.

    Arguments:
        connection: a ``Connection``; a channel of its own is opened and closed.
        queue_type: of the levels' queues: ``quorum`` (delays survive the loss of a node) or
            ``classic``.
        prefix: see :func:`level_name`.

    Raises:
        ValueError: another queue type.
        PreconditionFailed: the levels exist with another queue type.
    """
    if queue_type not in ("classic", "quorum"):
        raise ValueError(f"queue_type must be 'classic' or 'quorum', got {queue_type!r}")
    with connection.channel() as channel:
        declare_levels(channel, queue_type, prefix)


def declare_levels(channel: Channel, queue_type: str, prefix: str | None = None) -> None:
    """Declare the same over *channel*.  May switch.

    A channel that can pipeline waits for the replies after the last request.
    """
    # Of the type: a program's stand-in for a channel has every attribute.
    if not getattr(type(channel), "can_pipeline", False):
        _declare_levels(channel, queue_type, prefix)
        return
    pipelining: Any = channel
    with pipelining.pipeline() as pipeline:
        try:
            _declare_levels(channel, queue_type, prefix, nowait=pipeline)
        except (ChannelError, ConnectionError):
            # The channel may have been closed because of an earlier request: that has the reason.
            pipeline.finish()
            raise
        pipeline.finish()


def _declare_levels(channel: Channel, queue_type: str, prefix: str | None, **how: Any) -> None:
    delivery = delivery_exchange(prefix)
    _declare_exchange(channel, delivery, how)
    # From the lowest up, so that no level ever sends on to one that is not there.
    for level in range(MAX_NUMBER_OF_BITS_TO_USE):
        name = level_name(level, prefix)
        behind = level_name(level - 1, prefix) if level else delivery
        _declare_exchange(channel, name, how)
        channel.queue_declare(
            name,
            durable=True,
            auto_delete=False,
            arguments=_level_arguments(level, queue_type, behind),
            **how,
        )
        digits_before = "*." * (MAX_LEVEL - level)
        channel.queue_bind(name, name, f"{digits_before}1.#", **how)
        channel.exchange_bind(behind, name, f"{digits_before}0.#", **how)


def _declare_exchange(channel: Channel, name: str, how: dict[str, Any]) -> None:
    channel.exchange_declare(name, "topic", durable=True, auto_delete=False, **how)


def _level_arguments(level: int, queue_type: str, behind: str) -> dict[str, Any]:
    """Return the arguments of the queue of *level*, which dead-letters to the exchange *behind*."""
    arguments: dict[str, Any] = {
        "x-queue-type": queue_type,
        "x-overflow": "reject-publish",
        "x-message-ttl": 2**level * 1000,  # milliseconds
        "x-dead-letter-exchange": behind,
    }
    if queue_type == "quorum":
        # A message leaves the level only when the next one has confirmed it.
        arguments["x-dead-letter-strategy"] = "at-least-once"
    return arguments


def bind_queue_to_native_delayed_delivery_exchange(
    connection: Connection, queue: Any, prefix: str | None = None
) -> None:
    """Have delayed messages for *queue* reach it.  May switch.

    Each exchange that the queue is bound to is bound to the delivery exchange, and the queue to it,
    by the same key with ``#.`` in front, since a delayed message keeps the digits of its delay.  A
    direct exchange compares whole keys, so it cannot take part: that is logged, and it is left out.
    (Delayed messages then never arrive: use a topic exchange.)

    Arguments:
        connection: a ``Connection``; a channel of its own is opened and closed.
        queue: a :class:`~greenconn.entity.Queue`, declared before, as are its exchanges.
        prefix: see :func:`level_name`.
    """
    with connection.channel() as channel:
        for exchange, key, arguments in _bindings_of(queue):
            if exchange.type == "direct":
                logger.warning(
                    "exchange %r is a direct exchange: delayed messages for queue %r cannot be "
                    "routed through it: use a topic exchange",
                    exchange.name,
                    queue.name,
                    extra={"queue": queue.name},
                )
                continue
            pattern = key if key.startswith("#") else f"#.{key}"
            channel.exchange_bind(exchange.name, delivery_exchange(prefix), pattern)
            channel.queue_bind(queue.name, exchange.name, pattern, arguments=arguments)


def _bindings_of(queue: Any) -> list[tuple[Any, str, Any]]:
    """Exchange, routing key and arguments of each binding of *queue*."""
    if queue.exchange:
        return [(queue.exchange, queue.routing_key or "", queue.binding_arguments)]
    return [(each.exchange, each.routing_key or "", each.arguments) for each in queue.bindings]


def calculate_routing_key(countdown: int | timedelta, routing_key: str) -> str:
    """Return the routing key with which a message is published to the highest level.

    Arguments:
        countdown: seconds of delay, from 1 up to 2^28 - 1; of a timedelta rounded up.
        routing_key: what the message has at the end.  Digits of an earlier delay, which a
            message that is delayed again may carry, are taken off first.

    Raises:
        ValueError: a countdown or key that cannot be.
    """
    if isinstance(countdown, timedelta):
        countdown = ceil(countdown.total_seconds())
    longest = 2**MAX_NUMBER_OF_BITS_TO_USE - 1
    if not 1 <= countdown <= longest:
        raise ValueError(f"countdown must be from 1 to {longest} seconds, got {countdown}")
    if not routing_key:
        raise ValueError(
            "routing_key must not be empty: a delayed message needs it to find its queue"
        )
    match = _DIGITS.match(routing_key)
    key = routing_key[match.end() :] if match else routing_key
    delayed = f"{'.'.join(f'{countdown:0{MAX_NUMBER_OF_BITS_TO_USE}b}')}.{key}"
    if len(delayed.encode()) > _LONGEST_KEY:
        raise ValueError(
            f"routing_key={key!r}: with the delay as prefix it has more than {_LONGEST_KEY} bytes"
        )
    return delayed
