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
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from greenconn.delays import DelayedRoute
from greenconn.green.single_flight import SingleFlight
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


__all__ = ["LONGEST_DELAY", "DelayLevels", "landing_queue", "without_former_delays"]

#: Seconds.
LONGEST_DELAY: Final = 2**MAX_NUMBER_OF_BITS_TO_USE - 1
#: Of the names of everything that is declared here.
PREFIX: Final = "greenconn"
#: What the names of its queues begin with.
_OWN: Final = (f"{PREFIX}_celery_delayed_", f"{PREFIX}_delayed.")
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
            without_former_delays(headers or {}),
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


def without_former_delays(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return *headers* without the traces of an earlier delay.

    The broker drops a message that comes through the same queue again, as one that goes in a circle.
    """
    found = dict(headers)
    deaths = found.get("x-death")
    if isinstance(deaths, list):
        kept = [each for each in deaths if not _is_own(each)]
        if len(kept) != len(deaths):
            del found["x-death"]
            if kept:
                found["x-death"] = kept
    for which in ("first", "last"):
        if str(found.get(f"x-{which}-death-queue", "")).startswith(_OWN):
            for what in ("queue", "reason", "exchange"):
                found.pop(f"x-{which}-death-{what}", None)
    return found


def _is_own(death: Any) -> bool:
    return isinstance(death, Mapping) and str(death.get("queue", "")).startswith(_OWN)


def landing_queue(exchange: str, routing_key: str) -> str:
    """Return the name of the queue through which delayed messages reach an address."""
    shown = f"{exchange}/{routing_key}"
    if "/" in exchange or "/" in routing_key or not _READABLE.fullmatch(shown):
        # Two names that are the same here would differ in the arguments of the queue: no message
        # reaches a wrong address, but the second declaration is refused.
        address = f"{exchange}\0{routing_key}".encode()
        shown = f"{crc32(address):08x}{crc32(address[::-1]):08x}"
    return f"{PREFIX}_delayed.{shown}"
