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

The messages that this library delays pass levels under a prefix of its own: programs of Celery in the
same virtual host may have declared theirs with another queue type, and bindings of theirs must not match
our messages.  They are published to the highest level that delays them: each one above would pass them
on, which takes RabbitMQ 3.10 about 0.1 ms.

A message that has passed the levels comes into the *landing queue* of its address, where it expires at
once: its dead letter goes to the exchange and with the routing key that the publisher named, so that any
type of exchange, and a queue by its name, gets it as if it had been published then.  All of these queues
are quorum queues with dead letters at least once: a node that is lost costs no message, and a message
that no queue takes when its delay is over waits in its landing queue until one does.
"""

from __future__ import annotations

import logging
import re
from binascii import crc32
from collections.abc import Mapping
from datetime import datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from greenconn.delays import DelayedRoute
from greenconn.exceptions import ChannelError, ConnectionError
from greenconn.green.slot import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenconn.abc import Channel
    from greenconn.connection import Connection
    from greenconn.transport.amqp.channel import Channel as AmqpChannel


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


#: Seconds.
LONGEST_DELAY: Final = 2**MAX_NUMBER_OF_BITS_TO_USE - 1
#: Of the names of everything that is declared here.
PREFIX: Final = "greenconn"
#: What the names of its queues begin with.
_OWN: Final = (f"{PREFIX}_celery_delayed_", f"{PREFIX}_delayed.")
#: Why a message is dead-lettered, and how often RabbitMQ counts it.
_REASONS: Final = ("rejected", "expired", "maxlen", "delivery_limit")
_MOST_DEATHS: Final = 2**53
#: What a landing queue may show of its address in its name: no wildcards of topics.
_READABLE: Final = re.compile(r"[\w.:/-]{1,120}", re.ASCII)


class DelayLevels:
    """The levels and the landing queues that one link has declared."""

    def __init__(self) -> None:
        #: Addresses whose landing queue is declared, and all levels before.
        self._known: set[tuple[str, str]] = set()
        self._flight = SingleFlight("delay-levels")

    def route(
        self,
        open_channel: Callable[[], AmqpChannel],
        exchange: str,
        routing_key: str,
        delay: float,
        headers: Mapping[str, Any] | None,
        properties: Mapping[str, Any],
    ) -> DelayedRoute:
        """Return how a delayed message is published.  May switch, the first time for its address.

        Arguments:
            open_channel: opens a channel of the link, which must not be kept: it would refer to itself.

        Raises:
            ValueError: it is delayed for too long, or has what a delayed message cannot keep.
            ChannelError: the broker refuses to declare what is needed.
        """
        seconds = ceil(delay)
        if seconds > LONGEST_DELAY:
            raise ValueError(
                f"delay must be at most {LONGEST_DELAY} seconds on RabbitMQ, got {delay:g}"
            )
        if properties.get("expiration") is not None:
            raise ValueError(
                f"expiration must be None with a delay on RabbitMQ, where it would end the delay (set "
                f"message_ttl of the queue instead), got {properties['expiration']!r}"
            )
        for name in ("CC", "BCC"):
            if headers and name in headers:
                raise ValueError(
                    f"header {name} must not be set with a delay on RabbitMQ, which would send these "
                    f"copies at once (publish to each), got {headers[name]!r}"
                )
        address = exchange, routing_key
        if address not in self._known:
            # Its own greenlet: a caller that is killed leaves nothing half declared.
            self._flight.run(address, lambda: self._declare(open_channel, address))
        landing = landing_queue(exchange, routing_key)
        return DelayedRoute(
            level_name(seconds.bit_length() - 1, PREFIX),
            calculate_routing_key(seconds, landing),
            without_former_delays(headers or {}, "" if exchange else routing_key),
        )

    def _declare(self, open_channel: Callable[[], AmqpChannel], address: tuple[str, str]) -> None:
        exchange, routing_key = address
        name = landing_queue(exchange, routing_key)
        with open_channel() as channel:
            # They outlive the connection, whose recovery has nothing to do with them.
            channel.is_recorded = False
            if not self._known:
                declare_levels(channel, "quorum", PREFIX)
            channel.queue_declare(
                name,
                durable=True,
                auto_delete=False,
                arguments={
                    "x-queue-type": "quorum",
                    "x-overflow": "reject-publish",
                    "x-message-ttl": 0,
                    "x-dead-letter-exchange": exchange,
                    "x-dead-letter-routing-key": routing_key,
                    "x-dead-letter-strategy": "at-least-once",
                },
            )
            channel.queue_bind(name, delivery_exchange(PREFIX), f"#.{name}")
        self._known.add(address)


def without_former_delays(headers: Mapping[str, Any], queue: str = "") -> dict[str, Any]:
    """Return *headers* without the traces of an earlier delay, and with no death that cannot be one.

    The broker drops a message that comes through the same queue again, as one that goes in a circle.  An
    entry that it cannot read, which any publisher can write, ends its process that moves the dead
    letters of a queue, again and again: no delayed message reaches its queue then.

    Arguments:
        queue: where the message goes after the delay.
    """
    found = dict(headers)
    deaths = found.pop("x-death", None)
    if isinstance(deaths, list):
        kept = [each for each in deaths if _is_death(each, queue)]
        if kept:
            found["x-death"] = kept
    for which in ("first", "last"):
        names = [f"x-{which}-death-{what}" for what in ("queue", "reason", "exchange")]
        texts = [found.get(name, "") for name in names]
        if not all(isinstance(each, str) for each in texts) or texts[0].startswith(_OWN):
            for name in names:
                found.pop(name, None)
    return found


def _is_death(death: Any, queue: str) -> bool:
    """Return whether an entry of ``x-death`` is one of RabbitMQ's, and of no delay or circle."""
    if not isinstance(death, Mapping):
        return False
    texts = [death.get(name) for name in ("queue", "exchange", "reason")]
    keys, count = death.get("routing-keys"), death.get("count")
    return (
        all(isinstance(each, str) for each in texts)
        and isinstance(keys, list)
        and all(isinstance(each, str) for each in keys)
        and isinstance(count, int)
        and 0 < count < _MOST_DEATHS
        and isinstance(death.get("time"), datetime)
        and texts[2] in _REASONS
        and not str(texts[0]).startswith(_OWN)
        and (texts[0] != queue or texts[2] == "rejected")
    )


def landing_queue(exchange: str, routing_key: str) -> str:
    """Return the name of the queue through which delayed messages reach an address."""
    shown = f"{exchange}/{routing_key}"
    if "/" in exchange or "/" in routing_key or not _READABLE.fullmatch(shown):
        # Two names that are the same here would differ in the arguments of the queue: no message
        # reaches a wrong address, but the second declaration is refused.
        address = f"{exchange}\0{routing_key}".encode()
        shown = f"{crc32(address):08x}{crc32(address[::-1]):08x}"
    return f"{PREFIX}_delayed.{shown}"
