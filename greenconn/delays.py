"""Delays of messages: how a message is addressed that is to reach its queue later."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from math import ceil, nan
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from greenconn.checks import in_seconds, is_number

if TYPE_CHECKING:
    from greenconn.abc import Channel

#: The header of RabbitMQ's plug-in for delayed messages, in milliseconds, which the stores obey.
DELAY: Final = "x-delay"
#: Seconds of the longest delay: a hundred years, which every store's clock can add.
LONGEST: Final = 100 * 365 * 86_400.0


class DelayedRoute(NamedTuple):
    """The address of a message that is delayed.

    Attributes:
        exchange, routing_key: where it is published to.
        headers: that it is published with.
    """

    exchange: str
    routing_key: str
    headers: dict[str, Any]


def checked_delay(seconds: Any, at: Any = None) -> float | None:
    """Return the seconds of the options ``delay`` and ``at``; None: there is no delay.

    Raises:
        TypeError, ValueError: one is none, or both are given.
    """
    if at is not None:
        if seconds is not None:
            raise ValueError(f"at must be None with delay={seconds!r}, got {at!r}")
        left = seconds_until(at)
        if left > LONGEST:
            raise ValueError(f"at must be at most a hundred years from now, got {at!r}")
        return left if left > 0.0 else None
    if seconds is None:
        return None
    seconds = in_seconds(seconds)
    if not is_number(seconds) or not 0 <= seconds <= LONGEST:
        raise ValueError(
            f"delay must be a number of seconds, at least 0 and at most {LONGEST:.0f}, or None, got "
            f"{seconds!r}"
        )
    return float(seconds) or None


def seconds_until(at: Any) -> float:
    """Return the seconds until a datetime; negative if it is in the past.

    Raises:
        TypeError: *at* is no datetime.
        ValueError: it has no time zone.
    """
    if not isinstance(at, datetime):
        raise TypeError(f"at must be a datetime with a time zone, got {at!r}")
    if at.utcoffset() is None:
        raise ValueError(
            f"at must have a time zone, got {at!r} (for local time: at.astimezone(); for UTC: "
            f"at.replace(tzinfo=timezone.utc))"
        )
    return (at - datetime.now(timezone.utc)).total_seconds()


def delayed_route(
    channel: Channel,
    exchange: str,
    routing_key: str,
    delay: float,
    headers: Mapping[str, Any] | None,
    properties: Mapping[str, Any],
) -> DelayedRoute:
    """Return how a message is published over *channel* that reaches its queue in *delay* seconds.

    What the broker needs for that is declared, once in the life of a connection.  May switch.

    Arguments:
        headers, properties: of the message.

    Raises:
        ValueError: the transport has no delays, or cannot keep this one.
    """
    route = getattr(channel, "delayed_route", None)
    if route is None:
        raise refused_delay(channel, delay)
    found: DelayedRoute = route(exchange, routing_key, delay, headers, properties)
    return found


def kept_delay(channel: object, delay: float) -> float:
    """Return the seconds for which the broker holds a message that is delayed by *delay*."""
    return float(ceil(delay)) if getattr(channel, "has_whole_delays", False) else delay


def delay_of(headers: Mapping[str, Any]) -> float:
    """Return a message's delay in seconds, from the header (in ms) of RabbitMQ's plug-in.

    Raises:
        ValueError: it is no number, or above a hundred years.
    """
    given = headers.get(DELAY)
    if given is None:
        return 0.0
    try:
        seconds = float(given) / 1000
    except (TypeError, ValueError, OverflowError):
        seconds = nan
    if not seconds <= LONGEST:
        raise ValueError(
            f"header x-delay must be a number of milliseconds, at most {LONGEST * 1000:.0f}, got "
            f"{given!r:.100}"
        )
    return max(seconds, 0.0)


def header_route(
    exchange: str, routing_key: str, delay: float, headers: Mapping[str, Any] | None
) -> DelayedRoute:
    """Return the address where the broker obeys the header of RabbitMQ's plug-in."""
    return DelayedRoute(exchange, routing_key, {**(headers or {}), DELAY: ceil(delay * 1000)})


def refused_delay(channel: object, delay: float) -> ValueError:
    """Return the error for a channel that cannot delay messages."""
    kind = type(channel)
    return ValueError(
        f"delay must be None on this transport, which cannot delay messages "
        f"({kind.__module__}.{kind.__qualname__}), got {delay:g}"
    )
