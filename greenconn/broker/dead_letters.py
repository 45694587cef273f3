"""Dead letters: messages that were rejected, too old, too many, or delivered too often.

A queue's ``x-dead-letter-exchange`` and ``x-dead-letter-routing-key`` say where they go, else the
transport option ``dead_letter_queue``; without either they are dropped.  Headers are RabbitMQ's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from greenconn.broker.envelope import Envelope
from greenconn.broker.port import Entry, HeldMessage
from greenconn.broker.queues import is_name
from greenconn.encoding import safe_repr
from greenconn.exceptions import NotFound

if TYPE_CHECKING:
    from greenconn.broker.link import LeasedLink


logger = logging.getLogger("greenconn.broker")

#: How often a message was delivered before (RabbitMQ's name).
DELIVERY_COUNT: Final = "x-delivery-count"
#: Deaths for one reason that are counted.
_MOST_DEATHS: Final = 2**53


def carbon_copies(headers: Mapping[str, Any], *names: str) -> list[str]:
    """Return the routing keys that the headers *names* (``CC`` and ``BCC``) add to a message's own.

    Raises:
        ValueError: a header is not a list of routing keys.
    """
    found: list[str] = []
    for name in names:
        keys = headers.get(name)
        if keys:
            if not (isinstance(keys, (list, tuple)) and all(map(is_name, keys))):
                raise ValueError(
                    f"header {name} must be a list of routing keys, got {safe_repr(keys)[:100]}"
                )
            found += keys
    return found


def visible_headers(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the headers that a consumer gets: all but ``BCC``."""
    if "BCC" not in headers:
        return headers
    return {name: each for name, each in headers.items() if name != "BCC"}


def with_death(
    headers: Mapping[str, Any], reason: str, source: tuple[str, str, str], expiration: Any
) -> dict[str, Any]:
    """Return *headers* with a death noted in them.

    ``x-death`` lists where a message died and why, the latest first, one entry for each queue and
    reason.  The expiration is kept there only, so that the message does not die of it again.

    Arguments:
        reason: ``rejected``, ``expired``, ``maxlen`` or ``delivery_limit``.
        source: the queue where it died, the exchange to which it was published, and its routing key.
        expiration: of the message; None: it has none.
    """
    queue, exchange, routing_key = source
    death: dict[str, Any] = {
        "count": 1,
        "reason": reason,
        "queue": queue,
        "time": datetime.now(timezone.utc),
        "exchange": exchange,
        "routing-keys": [routing_key, *carbon_copies(headers, "CC")],
    }
    if expiration is not None:
        death["original-expiration"] = expiration
    earlier: list[Mapping[str, Any]] = []
    for each in _deaths_in(headers):
        if (each["queue"], each["reason"]) == (queue, reason):
            death = {**each, "count": min(max(each["count"], 0), _MOST_DEATHS) + 1}
        else:
            earlier.append(each)
    found = {**headers, "x-death": [death, *earlier]}
    found.setdefault("x-first-death-reason", reason)
    found.setdefault("x-first-death-queue", queue)
    found.setdefault("x-first-death-exchange", exchange)
    return found


def _deaths_in(headers: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Return the deaths that *headers* tell of; what cannot be one is no death, as in RabbitMQ."""
    deaths = headers.get("x-death")
    for each in deaths if isinstance(deaths, list) else ():
        if isinstance(each, dict) and "queue" in each and isinstance(each.get("count"), int):
            yield {"reason": None, **each}


def dead_letter(
    envelope: Envelope, queue: str, exchange: str, routing_key: str | None, reason: str
) -> Envelope:
    """Return a message with this death noted in its headers.

    Arguments:
        envelope: as it was stored.
        queue: where it died.
        exchange: where its letter goes.
        routing_key: with which; None keeps the message's own.
        reason: ``rejected``, ``expired``, ``maxlen`` or ``delivery_limit``.

    A malformed part is taken for absent; the routing key is the name of the queue then.
    """
    properties, given = dict(envelope["properties"]), envelope.get("headers")
    headers = dict(given) if isinstance(given, Mapping) else {}
    info = properties.get("delivery_info")
    known = info if isinstance(info, Mapping) else {}
    given_to, given_key = known.get("exchange"), known.get("routing_key")
    published_to: str = given_to if is_name(given_to) else ""
    own_key: str = given_key if is_name(given_key) else queue
    key = own_key if routing_key is None else routing_key
    for name in ("CC", "BCC"):
        if name in headers:
            copies = headers[name] if isinstance(headers[name], list) else []
            headers[name] = [each for each in copies if is_name(each)]
    expiration = properties.pop("expiration", None)
    source = (queue, published_to, own_key)
    headers = with_death(headers, reason, source, expiration)
    # Its deliveries are counted anew where it goes now.
    for name in (DELIVERY_COUNT, "redelivered"):
        headers.pop(name, None)
    if routing_key is not None:
        headers.pop("CC", None)
    properties["delivery_info"] = {"exchange": exchange, "routing_key": key}
    return {**envelope, "headers": headers, "properties": properties}


def is_cycle(queue: str, deaths: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a message came back to *queue* without a reject on the way."""
    for death in deaths:
        if death["reason"] == "rejected":
            return False
        if death["queue"] == queue:
            return True
    return False


def dead_letter_entries(link: LeasedLink, message: HeldMessage, reason: str) -> Sequence[Entry]:
    """Return the copies of a message that is given up, for the queues that get it.  May switch.

    Arguments:
        reason: ``rejected``, ``expired``, ``maxlen`` or ``delivery_limit``.

    Returns:
        nothing: the message is dropped.
    """
    queue, envelope = message.queue, message.envelope
    policy = link.directory.declaration(queue).policy
    target = policy.dead_letter_target(queue, link.options.dead_letter_queue)
    if target is None:
        return ()
    if envelope is None or not isinstance(envelope.get("properties"), Mapping):
        envelope = link.settler.unread(message)
    letter: Envelope = {}
    key, headers = target.routing_key or queue, {}
    if envelope:
        letter = dead_letter(envelope, queue, *target, reason)
        key, headers = letter["properties"]["delivery_info"]["routing_key"], letter["headers"]
    try:
        queues = link.routing.routes(target.exchange, key, headers)
    except NotFound:
        logger.error(
            "%s: dead letters of queue %r are dropped: exchange %r does not exist",
            link.where,
            queue,
            target.exchange,
            extra={"connection": link.where, "queue": queue},
        )
        return ()
    if letter and reason != "rejected":
        queues = [each for each in queues if not is_cycle(each, headers["x-death"])]
    return link.entries(letter, queues) if queues else ()
