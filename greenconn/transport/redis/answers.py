"""Acks, and messages that go back: kept until the turn of the hub ends, then sent together.

What goes back in one turn goes back in the order in which it was taken, so that the oldest is next
again, whatever the order of the calls was.

What the server refuses (it cannot write to its disk, a right was taken away) is said again whenever
the lease is renewed: until then the messages are held, though nobody has them any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from greenconn.green.supervisor import spawn
from greenconn.transport.redis.dead_letters import dead_letter_move
from greenconn.transport.redis.returning import Move, given_back, unseen
from greenconn.transport.redis.scripts import MOVE
from greenconn.wire.resp import ErrorReply, pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink
    from greenconn.transport.redis.message import Delivery

__all__ = ["Answers"]

#: Fields in one command, and messages or bytes in one call of a script.
ACKS: Final = 500
MOVES: Final = 50
MOVED_BYTES: Final = 256 * 1024


class Answers:
    """What the channels of one link have answered and the server has not been told yet."""

    __slots__ = (
        "_acks",
        "_is_due",
        "_link",
        "_moves",
        "_refused_acks",
        "_refused_moves",
        "_sent_acks",
        "_sent_moves",
    )

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._acks: list[str] = []
        self._moves: list[Move] = []
        self._is_due = False
        #: What was sent and has no reply yet, in this order.
        self._sent_acks: deque[list[str]] = deque()
        self._sent_moves: deque[list[Move]] = deque()
        self._refused_acks: list[str] = []
        self._refused_moves: list[Move] = []

    def unsettled(self) -> tuple[list[str], list[Move]]:
        """What nobody knows to have reached the server: acks, and what goes elsewhere."""
        pages = (*self._sent_acks, self._refused_acks, self._acks)
        parts = (*self._sent_moves, self._refused_moves, self._moves)
        return [field for page in pages for field in page], [
            move for part in parts for move in part
        ]

    # -- see :class:`~greenconn.broker.deliveries.Acknowledger`

    def done(self, delivery: Delivery) -> None:
        """Tell the server that a delivery was handled.  Never switches."""
        self._acks.append(delivery.delivery_tag)
        if not self._is_due:
            self._schedule()

    def done_late(self, tag: str) -> None:
        """Note that a delivery was handled whose link is gone.  Never switches."""
        self._link.transport.handover.ack(tag)

    def give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Put *deliveries* back to the heads of their queues.  Never switches."""
        link = self._link
        for delivery in deliveries:
            if delivery.is_broadcast:
                feed = link.feeds.get(delivery.queue)
                if feed is not None and feed.consumers:
                    feed.broadcast_again(delivery)
                continue
            move, count = given_back(link.keys, delivery)
            if not delivery.is_held:
                for key, raw in move.copies:
                    link.pipeline.post(pack(b"RPUSH", key, raw))
                continue
            limit = link.directory.delivery_limit(delivery.queue)
            if limit is not None and count >= limit:
                # This may be the reader: what has to be routed has a greenlet of its own.
                spawn("redis-bury", self.dead_letter, [delivery], "delivery_limit")
                continue
            self.move(move)

    def return_unseen(self, delivery: Delivery) -> None:
        """Put a delivery back that nobody has seen.  Never switches."""
        if delivery.is_held:
            field, queue = delivery.delivery_tag, delivery.queue
            self.move(unseen(self._link.keys, delivery.number, field, queue, delivery.raw))

    def dead_letter(self, deliveries: Iterable[Delivery], reason: str) -> None:
        """Make dead letters of *deliveries*, or drop them.  May switch."""
        link = self._link
        for delivery in deliveries:
            if not delivery.is_held:
                continue
            field, queue = delivery.delivery_tag, delivery.queue
            move = dead_letter_move(link, delivery.number, field, queue, delivery.raw, reason)
            if link.lost is not None:
                return  # it goes back to its queue, and is given up once more
            if move is None:
                self.done(delivery)
            else:
                self.move(move)

    def forget(self, delivery: Delivery) -> None:
        """Without ``ack_emulation``: nobody holds what was delivered.  Never switches."""
        if delivery.is_held:
            delivery.is_held = False
            self.done(delivery)

    # -- what leaves

    def move(self, move: Move) -> None:
        """A message goes elsewhere.  Never switches."""
        self._moves.append(move)
        if not self._is_due:
            self._schedule()

    def _schedule(self) -> None:
        self._link.pipeline.writer.before_flush(self.flush)
        self._is_due = True

    def before_call(self) -> None:
        """Whoever asks the server something shall see what went back before.  Never switches."""
        if self._moves:
            self.flush()

    def flush(self) -> None:
        """Tell the server.  Never switches; in the hub when a turn ends."""
        self._is_due = False
        try:
            acks, self._acks = self._acks, []
            for start in range(0, len(acks), ACKS):
                self._send_acks(acks[start : start + ACKS])
            moves, self._moves = self._moves, []
            # The newest first: each goes to the head, before those that were put there already.
            moves.sort(key=_number, reverse=True)
            for part in parted(moves):
                self._send_moves(part)
        except BaseException as exc:
            self._link.pipeline.interrupted(exc)
            raise
        # What goes back may come here again, where there is room.
        for queue in {each.queue for each in moves}:
            feed = self._link.feeds.get(queue)
            if feed is not None:
                feed.hint()

    def repeat(self) -> None:
        """Say again what was refused.  Never switches."""
        acks, self._refused_acks = self._refused_acks, []
        for start in range(0, len(acks), ACKS):
            self._send_acks(acks[start : start + ACKS])
        moves, self._refused_moves = self._refused_moves, []
        for move in moves:
            self._send_moves([move])  # by itself: it may be another one's fault

    def _send_acks(self, fields: list[str]) -> None:
        link = self._link
        self._sent_acks.append(fields)
        link.pipeline.post(pack(b"HDEL", link.keys.unacked, *fields), self._acked)
        link.pipeline.post(pack(b"ZREM", link.keys.unacked_index, *fields), self._unlisted)

    def _send_moves(self, moves: list[Move]) -> None:
        self._sent_moves.append(moves)
        keys, *args = move_arguments(self._link, moves)
        self._link.pipeline.post(self._link.scripts.call(MOVE, keys, *args), self._moved)

    # In the reader.  When the link is lost, what has no reply stays: the next life needs it.

    def _acked(self, reply: Any) -> None:
        if self._link.pipeline.lost is None and self._is_refused(reply, len(self._sent_acks[0])):
            self._refused_acks += self._sent_acks[0]

    def _unlisted(self, reply: Any) -> None:
        if self._link.pipeline.lost is None:
            self._sent_acks.popleft()  # only now: else a cut between the two would leave an entry

    def _moved(self, reply: Any) -> None:
        if self._link.pipeline.lost is not None:
            return
        moves = self._sent_moves[0]
        if isinstance(reply, ErrorReply) and reply.code == "NOSCRIPT":
            self._link.scripts.forget()  # somebody has flushed them
            self._send_moves(moves)
        elif self._is_refused(reply, len(moves)):
            self._refused_moves += moves
        if self._link.pipeline.lost is None:
            self._sent_moves.popleft()

    def _is_refused(self, reply: Any, sent: int) -> bool:
        """Whether what was sent must be said again over this link."""
        if reply == sent:
            return False
        self._link.lease.note_answer(reply, sent)
        return isinstance(reply, ErrorReply) and self._link.pipeline.lost is None


def _number(move: Move) -> int:
    return move.number


def parted(moves: list[Move]) -> list[list[Move]]:
    """Cut *moves* into what one call of the script takes."""
    parts: list[list[Move]] = []
    size = 0
    for move in moves:
        if not parts or len(parts[-1]) >= MOVES or size + move.size > MOVED_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(move)
        size += move.size
    return parts


def move_arguments(link: RedisLink, moves: list[Move], dead_owner: str = "") -> tuple[Any, ...]:
    """Keys and arguments for the script that carries out *moves*.

    Arguments:
        dead_owner: nothing is done if this owner lives.
    """
    lists: list[bytes] = []
    places: dict[str, int] = {}
    args: list[Any] = []
    for move in moves:
        place = 0
        if move.queue and link.directory.last(move.queue).auto_delete:
            place = places.setdefault(move.queue, len(places) + 1)
        args += [move.field, place, move.push, len(move.copies)]
        for key, raw in move.copies:
            lists.append(key)
            args.append(raw)
    held = (link.keys.unacked, link.keys.unacked_index, link.keys.owners)
    return (*held, *map(link.keys.queue, places), *lists), dead_owner, len(places), *args
