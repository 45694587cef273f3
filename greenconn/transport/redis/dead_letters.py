"""Dead letters: messages that were rejected, or delivered too often.

A queue's ``x-dead-letter-exchange`` and ``x-dead-letter-routing-key`` say where they go, else the
transport option ``dead_letter_queue``; without either they are dropped.  Headers are RabbitMQ's
(``x-death``...).  The move is the script's: what is not held any more is not moved.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greenconn.broker.dead_letters import dead_letter, is_cycle, target_of
from greenconn.exceptions import NotFound
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.redis.returning import TAIL, Move, list_of
from greenconn.transport.redis.routes import Routes, routes_of
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["dead_letter_move"]

logger = logging.getLogger("greenconn.transport.redis")


def dead_letter_move(
    link: RedisLink, number: int, field: str, queue: str, raw: bytes, reason: str
) -> Move | None:
    """Return the move that makes a dead letter of a held message; None drops it.  May switch.

    Arguments:
        reason: ``rejected``, ``delivery_limit`` or ``expired``.
    """
    policy = link.directory.look(queue).policy
    target = target_of(queue, policy, link.options.dead_letter_queue)
    if target is None:
        return None
    try:
        envelope = loads(raw)
        info = envelope["properties"]["delivery_info"]
        key = info["routing_key"] if target.routing_key is None else target.routing_key
        letter = dead_letter(envelope, queue, target.exchange, target.routing_key, reason)
        text = dumps(letter).encode()
    except Exception:  # there is nothing that an envelope of a stranger cannot be
        letter, key, text = None, target.routing_key or queue, raw  # it cannot be read: as it is
    queues = [key]
    if target.exchange:
        headers = {} if letter is None else letter["headers"]
        try:
            routes = routes_of(link, target.exchange, key, headers)
        except NotFound:
            logger.error(
                "%s: dead letters of queue %r are dropped: there is no exchange %r",
                link.where,
                queue,
                target.exchange,
            )
            routes = Routes()
        queues = routes.queues
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
