"""Settling of held messages: requeueing them, storing dead letters, and dropping them.

Messages that another link holds, or a former life, are requeued by the field under which they are held.
The client reads the entries, marks the messages as redelivered, and moves them by a script that does
nothing for an entry that is no longer there: two who requeue the same message do it once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from redis.exceptions import ResponseError

from greenconn.broker.directory import Directory
from greenconn.broker.port import Entry, Settlement
from greenconn.broker.settlement_port import Disposition
from greenconn.green.retry import isolated
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.redis.commands import Commands
from greenconn.transport.redis.envelope import Delivery, marked_redelivered
from greenconn.transport.redis.fanout import broadcast_command, topic_of
from greenconn.transport.redis.keys import HIGHEST, Keys
from greenconn.transport.redis.scripts import MOVE
from greenconn.transport.virtual.envelope import read_envelope
from greenconn.transport.virtual.names import is_name
from greenconn.transport.virtual.publishing import Envelope, level_of
from greenconn.wire.resp import pack

T = TypeVar("T")

logger = logging.getLogger("greenconn.transport.redis")

#: Where a message goes in its list: to be next, or to be last.
HEAD: Final = b"RPUSH"
TAIL: Final = b"LPUSH"
#: Messages, or bytes of them, in one call of the script.
MOVES: Final = 50
MOVED_BYTES: Final = 256 * 1024


class Move(NamedTuple):
    """A held message and the lists it goes to, with what goes into each; none drops it.

    Attributes:
        number: position among all that were taken.
        field: under which it is held.
        queue: which it goes with when that has ended; else nothing.
        push: :data:`HEAD` or :data:`TAIL`.
        copies: pairs of a list's key and a message.
    """

    number: int
    field: str
    queue: str
    push: bytes
    copies: Sequence[tuple[bytes, bytes]]

    def size(self) -> int:
        """Return the bytes of all copies."""
        return sum(len(raw) for _, raw in self.copies)


def batched(moves: Iterable[T], size_of: Callable[[T], int]) -> list[list[T]]:
    """Cut *moves* into what one call of the script takes."""
    parts: list[list[T]] = []
    total = 0
    for move in moves:
        size = size_of(move)
        if not parts or len(parts[-1]) >= MOVES or total + size > MOVED_BYTES:
            parts.append([])
            total = 0
        parts[-1].append(move)
        total += size
    return parts


def priority_of(envelope: Any) -> int:
    """Return the priority of a message, from 0 to 9."""
    try:
        return level_of(envelope["properties"]["priority"], HIGHEST)
    except (TypeError, LookupError):
        return 0


def list_of(keys: Keys, queue: str, envelope: Any) -> bytes:
    """Return the list of *queue* that a message belongs to."""
    return keys.list_for(queue, priority_of(envelope))


def number_of(field: str) -> int:
    """Return the position of a field among all that its owner took; 0 where that is not known."""
    _, _, number = field.rpartition(".")
    return int(number) if number.isdecimal() else 0


def move_of(commands: Commands, disposition: Disposition) -> Move:
    """Return the move that settles a message; fan-out is published at once.  Never switches."""
    message, settlement, _, entries, is_unseen, is_unhandled = disposition
    field: str = message.handle
    number, queue, raw = number_of(field), message.queue, message.raw
    if settlement is not Settlement.REQUEUE:
        return Move(number, field, "", TAIL, _copies(commands, raw, entries))
    if is_unseen:
        envelope = _read(raw)
    else:
        raw, _, envelope = marked_redelivered(raw, is_counted=not is_unhandled)
    return Move(number, field, queue, HEAD, [(list_of(commands.keys, queue, envelope), raw)])


def _copies(commands: Commands, raw: bytes, entries: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
    """Return the lists that a dead letter goes to, with its text; fan-out is published at once."""
    copies: list[tuple[bytes, bytes]] = []
    for key, text in _destinations(commands.keys, raw, entries):
        if key is None:
            commands.pipeline.post(text)
        else:
            copies.append((key, text))
    return copies


def copies_of(keys: Keys, raw: bytes, entries: Sequence[Entry]) -> list[bytes]:
    """Return the commands that store a dead letter where it is not held.  Never switches."""
    return [
        text if key is None else pack(b"LPUSH", key, text)
        for key, text in _destinations(keys, raw, entries)
    ]


def _destinations(
    keys: Keys, raw: bytes, entries: Sequence[Entry]
) -> Iterator[tuple[bytes | None, bytes]]:
    """Yield where the copies of a dead letter go: list and text, or None and the command for fan-out."""
    text = raw
    written: Envelope | None = None
    for entry in entries:
        envelope = entry.envelope
        if envelope is not written:
            text, written = _written(envelope) or raw, envelope
        topic = topic_of(entry.queue)
        if topic is not None:
            yield None, broadcast_command(keys, *topic, text)
        elif not keys.is_reserved(entry.queue):
            yield list_of(keys, entry.queue, envelope), text


def _written(envelope: Envelope) -> bytes | None:
    """Return a message as bytes; None: it is unchanged."""
    if not envelope:
        return None
    try:
        return dumps(envelope).encode()
    except Exception:  # there is nothing that an envelope of a stranger cannot be
        return None


def _read(raw: bytes) -> Any:
    try:
        return read_envelope(raw)
    except (ValueError, TypeError, RecursionError):
        return None


def move_arguments(keys: Keys, moves: Sequence[Move], dead_owner: str = "") -> tuple[Any, ...]:
    """Keys and arguments for the script that carries out *moves*.

    Arguments:
        dead_owner: nothing is done if this owner lives.
    """
    lists: list[bytes] = []
    queues: dict[str, int] = {}
    args: list[Any] = []
    for move in moves:
        place = queues.setdefault(move.queue, len(queues) + 1) if move.queue else 0
        args += [move.field, place, move.push, len(move.copies)]
        for key, raw in move.copies:
            lists.append(key)
            args.append(raw)
    held = (keys.unacked, keys.unacked_index, keys.owners, keys.ended)
    return (*held, *map(keys.queue, queues), *lists), dead_owner, len(queues), *queues, *args


#: What stands between a message and its queue in an entry of ours.
_BETWEEN: Final = b', "", '
#: Fields that are read at once.
PAGE: Final = 50


class Held(NamedTuple):
    """An entry of the hash of held messages.

    Attributes:
        field: its name.
        raw: the message.
        exchange, routing_key: where it goes back to; of ours, nothing and the queue.
    """

    field: str
    raw: bytes
    exchange: str
    routing_key: str

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
            message, exchange, routing_key = read_envelope(value)
            raw = dumps(message).encode()
    except (ValueError, TypeError, RecursionError):
        return None
    exchange, routing_key = exchange or "", routing_key or ""
    if not (is_name(exchange) and is_name(routing_key)):
        return None
    return Held(field, raw, exchange, routing_key)


class Requeuer:
    """The requeueing of held messages by one link.

    Arguments:
        commands: of the link.
        directory: the queues.
        bound_queues: returns the queues that an exchange leads to by its table alone, for messages
            that kombu holds.  May switch.
        dead_letters: returns the copies of a dead letter, given why it is one, for the queues that
            get it.  May switch.

    Attributes:
        stuck: fields that stay where they are: they cannot be decoded, or their queue is no list.
    """

    def __init__(
        self,
        commands: Commands,
        directory: Directory,
        bound_queues: Callable[[str, str], Sequence[str]],
        dead_letters: Callable[[Delivery, str], Sequence[Entry]],
    ) -> None:
        self._commands = commands
        self._directory = directory
        self._bound_queues = bound_queues
        self._dead_letters = dead_letters
        self.stuck: set[str] = set()

    def requeue(
        self, fields: Sequence[str], dead_owner: str = "", uncounted: Collection[str] = ()
    ) -> int:
        """Requeue what is held under *fields*, and return the number of messages.  May switch.

        Arguments:
            dead_owner: nothing is done if this owner lives.
            uncounted: fields of what does not count as delivered, as no handler has begun with it.
        """
        commands, keys = self._commands, self._commands.keys
        requeued = 0
        for start in range(0, len(fields), PAGE):
            page = fields[start : start + PAGE]
            # A reply for each: of several large messages one would be above the limit of a reply.
            asked = [pack(b"HMGET", keys.unacked, each) for each in page]
            values = commands.call_all(asked, what="requeueing messages")
            moves: list[Move] = []
            for field, (value,) in zip(page, values, strict=True):
                if value is None:
                    # Another process was faster, or died between two commands.
                    commands.pipeline.post(pack(b"ZREM", keys.unacked_index, field))
                    continue
                held = read_held(field, value)
                if held is None or (not held.exchange and keys.is_reserved(held.routing_key)):
                    self._note_stuck(field, "it cannot be decoded")
                    continue
                moves.append(self._requeue_move(held, is_counted=field not in uncounted))
            moves.sort(key=lambda move: move.number, reverse=True)
            requeued += self.execute(moves, dead_owner)
        return requeued

    def execute(self, moves: list[Move], dead_owner: str = "") -> int:
        """Move messages, and return the number that were still held.  May switch.

        One whose list is something else in the server stays where it is, and holds up no other.
        """
        keys = self._commands.keys

        def move(part: Sequence[Move]) -> int:
            args = move_arguments(keys, part, dead_owner)
            reply: int = self._commands.run(MOVE, *args, what="requeueing messages")
            return max(reply, 0)

        return sum(
            moved
            for part in batched(moves, Move.size)
            for moved in isolated(part, move, self._refused, _is_no_list)
        )

    def _refused(self, move: Move, exc: Exception) -> int:
        self._note_stuck(move.field, str(exc))
        return 0

    def dead_letter_move(self, message: Delivery, reason: str) -> Move:
        """Return the move that makes a dead letter of a message, or drops it.  May switch.

        Arguments:
            reason: ``delivery_limit`` or ``expired``.
        """
        entries = self._dead_letters(message, reason)
        return move_of(self._commands, Disposition(message, Settlement.ACK, entries=entries))

    def _note_stuck(self, field: str, why: str) -> None:
        if field not in self.stuck:
            self.stuck.add(field)
            logger.error(
                "%s: cannot settle %s, which stays where it is: %s",
                self._commands.where,
                field,
                why,
                extra={"connection": self._commands.where},
            )

    def _requeue_move(self, held: Held, *, is_counted: bool) -> Move:
        """Return the move that puts a message that was held back at the head of its queue."""
        if not held.exchange and not held.routing_key:
            return Move(held.number, held.field, "", HEAD, [])  # of one that died while it began
        commands, directory = self._commands, self._directory
        raw, deliveries, envelope = marked_redelivered(held.raw, is_counted=is_counted)
        queues: Sequence[str] = [held.routing_key]
        if not held.exchange:
            directory.declaration(held.routing_key)
            limit = directory.delivery_limit(held.routing_key)
            if limit is not None and deliveries >= limit:
                message = Delivery(None, held.field, held.number, held.raw, held.routing_key)
                move = self.dead_letter_move(message, "delivery_limit")
                return move._replace(queue=held.routing_key)
        else:
            # Of kombu, which keeps where a message was sent instead of where it was taken.
            queues = self._bound_queues(held.exchange, held.routing_key)
            if not queues:
                last = commands.options.deadletter_queue
                queues = [] if last is None else [last]
                logger.error(
                    "%s: cannot requeue an unacked message of exchange %r, which is not bound to "
                    "a queue any more: the message %s",
                    commands.where,
                    held.exchange,
                    "is dropped" if last is None else f"goes to {last!r}",
                    extra={"connection": commands.where},
                )
        copies = [(list_of(commands.keys, each, envelope), raw) for each in queues]
        queue = "" if held.exchange else held.routing_key
        return Move(held.number, held.field, queue, HEAD, copies)


def _is_no_list(exc: Exception) -> bool:
    """Return whether the key of a queue turned out to be something else."""
    return isinstance(exc, ResponseError) and "WRONGTYPE" in str(exc)
