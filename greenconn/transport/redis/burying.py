"""Dead letters: messages that were rejected, or delivered too often.

A queue's ``x-dead-letter-exchange`` and ``x-dead-letter-routing-key`` say where they go, else the
transport option ``dead_letter_queue``; without either they are dropped.  Headers are RabbitMQ's
(``x-death``...).  The move is the script's: a message that is not held any more is not buried.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from greenconn.exceptions import NotFound
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.redis.returning import TAIL, Move, list_of
from greenconn.transport.redis.routing import Routes
from greenconn.transport.virtual.burying import is_cycle, letter_of
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["Grave", "burial", "grave_of"]

logger = logging.getLogger("greenconn.transport.redis")


class Grave(NamedTuple):
    """Where the dead letters of a queue go.

    Attributes:
        routing_key: None keeps the message's own.
    """

    exchange: str
    routing_key: str | None


def grave_of(link: RedisLink, queue: str) -> Grave | None:
    """Where the dead letters of *queue* go; None drops them.  May switch."""
    policy = link.directory.look(queue).policy
    if policy.dead_letter_exchange is not None:
        return Grave(policy.dead_letter_exchange, policy.dead_letter_routing_key)
    last = link.options.dead_letter_queue
    return None if last is None or last == queue else Grave("", last)


def burial(
    link: RedisLink, number: int, field: str, queue: str, raw: bytes, reason: str
) -> Move | None:
    """The move that takes a held message to its grave; None where it has none.  May switch.

    Arguments:
        reason: ``rejected``, ``delivery_limit`` or ``expired``.
    """
    grave = grave_of(link, queue)
    if grave is None:
        return None
    try:
        envelope = loads(raw)
        info = envelope["properties"]["delivery_info"]
        key = info["routing_key"] if grave.routing_key is None else grave.routing_key
        letter = letter_of(envelope, queue, grave.exchange, grave.routing_key, reason)
        text = dumps(letter).encode()
    except Exception:  # there is nothing that an envelope of a stranger cannot be
        letter, key, text = None, grave.routing_key or queue, raw  # it cannot be read: as it is
    queues = [key]
    if grave.exchange:
        headers = {} if letter is None else letter["headers"]
        try:
            routes = link.routing.routes(grave.exchange, key, headers)
        except NotFound:
            logger.error(
                "%s: dead letters of queue %r are dropped: there is no exchange %r",
                link.where,
                queue,
                grave.exchange,
            )
            routes = Routes()
        queues = list(routes.queues)
        for exchange, routing_key in routes.topics:
            link.pipeline.post(pack(b"PUBLISH", link.keys.topic(exchange, routing_key), text))
    if letter is not None and reason != "rejected":
        deaths = letter["headers"]["x-death"]
        queues = [each for each in queues if not is_cycle(each, deaths)]
    copies = [
        (list_of(link.keys, each, letter), text)
        for each in queues
        if not link.keys.is_reserved(each)
    ]
    return Move(number, field, "", TAIL, copies)
