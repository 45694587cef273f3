"""Giving back what is held under a field, whoever held it.

The client reads the entries, marks the messages as redelivered, and moves them by a script that does
nothing for an entry that is no longer there: two who restore the same message do it once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from greenconn.broker.dead_letters import dead_letter_entries
from greenconn.broker.holding import Disposition
from greenconn.broker.port import Settlement
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.redis.envelope import marked_redelivered
from greenconn.transport.redis.message import Delivery
from greenconn.transport.redis.moves import (
    HEAD,
    Move,
    list_of,
    move_arguments,
    move_of,
    number_of,
    parted,
)
from greenconn.transport.redis.routes import bound_queues
from greenconn.transport.redis.scripts import MOVE
from greenconn.transport.virtual.names import is_name
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["Held", "carry_out", "dead_letter_move", "read_held", "restore"]

logger = logging.getLogger("greenconn.transport.redis")

#: What stands between a message and its queue in an entry of ours.
_BETWEEN: Final = b', "", '
#: Fields that are read at once.
PAGE: Final = 50


class Held:
    """An entry of the hash of held messages.

    Attributes:
        field: its name.
        raw: the message.
        exchange, routing_key: where it goes back to; of ours, nothing and the queue.
    """

    __slots__ = ("exchange", "field", "raw", "routing_key")

    def __init__(self, field: str, raw: bytes, exchange: str, routing_key: str) -> None:
        self.field = field
        self.raw = raw
        self.exchange = exchange
        self.routing_key = routing_key

    @property
    def number(self) -> int:
        """Position among all that its owner took; 0 where that is not known."""
        return number_of(self.field)


def read_held(field: str, value: bytes) -> Held | None:
    """Read an entry; None for one that cannot be read."""
    at = value.rfind(_BETWEEN)
    try:
        if at > 0 and value.startswith(b"[") and field.startswith("gc."):
            # As it was put together, so that a message that is no JSON comes back too.
            raw, exchange, routing_key = value[1:at], "", loads(value[at + len(_BETWEEN) : -1])
        else:
            message, exchange, routing_key = loads(value)
            raw = dumps(message).encode()
    except (ValueError, TypeError, RecursionError):
        return None
    exchange, routing_key = exchange or "", routing_key or ""
    if not (is_name(exchange) and is_name(routing_key)):
        return None
    return Held(field, raw, exchange, routing_key)


def restore(link: RedisLink, fields: Sequence[str], dead_owner: str = "") -> int:
    """Give back what is held under *fields*, and return how many that were.  May switch.

    Arguments:
        dead_owner: nothing is done if this owner lives.
    """
    restored = 0
    for start in range(0, len(fields), PAGE):
        page = fields[start : start + PAGE]
        # A reply for each: of several large messages one would be above the limit of a reply.
        held_key = link.keys.unacked
        values = link.call_all([pack(b"HMGET", held_key, each) for each in page], what="restoring")
        moves: list[Move] = []
        found: list[Held] = []
        for field, (value,) in zip(page, values, strict=True):
            if value is None:
                # Somebody was quicker, or died between two commands.
                link.pipeline.post(pack(b"ZREM", link.keys.unacked_index, field))
                continue
            held = read_held(field, value)
            if held is None or (not held.exchange and link.keys.is_reserved(held.routing_key)):
                _note_stuck(link, field, "it cannot be read")
                continue
            found.append(held)
        ended = _ended(link, {each.routing_key for each in found if not each.exchange})
        for held in found:
            if not held.exchange and held.routing_key in ended:
                moves.append(Move(held.number, held.field, "", HEAD, []))  # it goes with its queue
            else:
                moves.append(_way_back(link, held))
        moves.sort(key=lambda move: move.number, reverse=True)
        restored += carry_out(link, moves, dead_owner)
    return restored


def _ended(link: RedisLink, queues: set[str]) -> set[str]:
    """Return those of *queues* that have ended, and were not declared anew.  May switch."""
    keys, names = link.keys, sorted(queues)
    commands = [
        command
        for name in names
        for command in (pack(b"ZSCORE", keys.ended, name), pack(b"EXISTS", keys.queue(name)))
    ]
    replies = iter(link.call_all(commands, what="restoring"))
    return {
        name
        for name, at, is_declared in zip(names, replies, replies, strict=True)
        if at is not None and not is_declared
    }


def carry_out(link: RedisLink, moves: list[Move], dead_owner: str = "") -> int:
    """Move messages, and return how many were still held.  May switch.

    One whose list is something else in the server stays where it is, and holds up no other.
    """
    moved = 0
    for part in parted(moves):
        try:
            reply: Any = link.run(MOVE, *move_arguments(link, part, dead_owner), what="restoring")
        except ResponseError as exc:
            if "WRONGTYPE" not in str(exc):
                raise
            if len(part) > 1:
                moved += sum(carry_out(link, [move], dead_owner) for move in part)
            else:
                _note_stuck(link, part[0].field, str(exc))
        else:
            moved += max(reply, 0)
    return moved


def dead_letter_move(link: RedisLink, message: Delivery, reason: str) -> Move:
    """Return the move that makes a dead letter of a message, or drops it.  May switch.

    Arguments:
        reason: ``delivery_limit`` or ``expired``.
    """
    entries = dead_letter_entries(link, message, reason)
    return move_of(link, Disposition(message, Settlement.DONE, entries=entries))


def _note_stuck(link: RedisLink, field: str, why: str) -> None:
    if field not in link.sweeper.stuck:
        link.sweeper.stuck.add(field)
        logger.error("%s: %s stays where it is: %s", link.where, field, why)


def _way_back(link: RedisLink, held: Held) -> Move:
    if not held.exchange and not held.routing_key:
        return Move(held.number, held.field, "", HEAD, [])  # of one that died while it began
    raw, deliveries, envelope = marked_redelivered(held.raw)
    queues = [held.routing_key]
    if not held.exchange:
        link.directory.look(held.routing_key)
        limit = link.directory.delivery_limit(held.routing_key)
        if limit is not None and deliveries >= limit:
            message = Delivery(None, held.field, held.number, held.raw, held.routing_key)
            return dead_letter_move(link, message, "delivery_limit")
    else:
        # Of kombu, which keeps where a message was sent instead of where it was taken.
        queues = bound_queues(link, held.exchange, held.routing_key)
        if not queues:
            last = link.options.deadletter_queue
            queues = [] if last is None else [last]
            logger.error(
                "%s: a held message of exchange %r has no queue to go back to: it %s",
                link.where,
                held.exchange,
                "is dropped" if last is None else f"goes to {last!r}",
            )
    copies = [(list_of(link.keys, each, envelope), raw) for each in queues]
    queue = queues[0] if queues else ""
    return Move(held.number, held.field, queue, HEAD, copies)
