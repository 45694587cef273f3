"""Delayed messages on RabbitMQ: the levels of a link, and the landing queue of each address.

The levels are kombu's (``transport.native_delayed_delivery``) under a prefix of ours: programs of Celery
in the same virtual host may have declared theirs with another queue type, and bindings of theirs must
not match our messages.

A message that has passed the levels comes into the *landing queue* of its address, where it expires at
once: its dead letter goes to the exchange and with the routing key that the publisher named, so that any
type of exchange, and a queue by its name, gets it as if it had been published then.  All of these queues
are quorum queues with dead letters at least once: a node that is lost costs no message, and a message
that no queue takes when its delay is over waits in its landing queue until one does.
"""

from __future__ import annotations

import re
from binascii import crc32
from collections.abc import Mapping
from datetime import datetime
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from greenconn.delays import DelayedRoute
from greenconn.green.slot import SingleFlight
from greenconn.transport.native_delayed_delivery import (
    MAX_LEVEL,
    MAX_NUMBER_OF_BITS_TO_USE,
    calculate_routing_key,
    declare_levels,
    delivery_exchange,
    level_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenconn.transport.amqp.channel import Channel


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
        open_channel: Callable[[], Channel],
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
            level_name(MAX_LEVEL, PREFIX),
            calculate_routing_key(seconds, landing),
            without_former_delays(headers or {}, "" if exchange else routing_key),
        )

    def _declare(self, open_channel: Callable[[], Channel], address: tuple[str, str]) -> None:
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
