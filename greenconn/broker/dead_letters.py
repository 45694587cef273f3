"""Dead letters: messages that were rejected, too old, too many, or delivered too often.

A queue's ``x-dead-letter-exchange`` and ``x-dead-letter-routing-key`` say where they go, else the
transport option ``dead_letter_queue``; without either they are dropped.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greenconn.broker.port import Answer, Claimed, Settlement
from greenconn.exceptions import NotFound
from greenconn.transport.virtual.burying import is_cycle, letter_of

if TYPE_CHECKING:
    from greenconn.broker.link import StoreLink

__all__ = ["buried"]

logger = logging.getLogger("greenconn.broker")


def buried(link: StoreLink, claimed: Claimed, reason: str) -> Answer:
    """The answer that takes a claimed message to its grave.  May switch.

    Arguments:
        reason: ``rejected``, ``expired``, ``maxlen`` or ``delivery_limit``.
    """
    refused = Answer(claimed.handle, Settlement.REFUSED)
    policy = link.directory.look(claimed.queue).policy
    exchange, key = policy.dead_letter_exchange, policy.dead_letter_routing_key
    if exchange is None:
        last = link.options.dead_letter_queue
        if last is None or last == claimed.queue:
            return refused
        exchange, key = "", last
    if claimed.envelope is None:
        return refused  # it cannot be read, and nobody could say what it was
    try:
        letter = letter_of(claimed.envelope, claimed.queue, exchange, key, reason)
    except Exception:  # there is nothing that an envelope of a stranger cannot be
        return refused
    try:
        queues = link.routing.routes(
            exchange, letter["properties"]["delivery_info"]["routing_key"], letter["headers"]
        )
    except NotFound:
        logger.error(
            "%s: dead letters of queue %r are dropped: there is no exchange %r",
            link.where,
            claimed.queue,
            exchange,
        )
        return refused
    deaths = letter["headers"]["x-death"]
    if reason != "rejected":
        queues = [each for each in queues if not is_cycle(each, deaths)]
    if not queues:
        return refused
    entries = link.entries(letter, queues)
    return Answer(claimed.handle, Settlement.DONE, entries=entries)
