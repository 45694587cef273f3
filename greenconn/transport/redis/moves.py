"""Moves of held messages that are given back or given up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from greenconn.broker.holding import Disposition
from greenconn.broker.port import Entry, Settlement
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.redis.commands import Commands
from greenconn.transport.redis.envelope import marked_redelivered
from greenconn.transport.redis.fanout import topic_of
from greenconn.transport.redis.keys import Keys
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.publishing import Envelope, level_of
from greenconn.wire.resp import pack

__all__ = [
    "HEAD",
    "HIGHEST",
    "TAIL",
    "Move",
    "list_of",
    "move_arguments",
    "move_of",
    "number_of",
    "parted",
    "priority_of",
]

#: Where a message goes in its list: to be next, or to be last.
HEAD: Final = b"RPUSH"
TAIL: Final = b"LPUSH"
#: The highest priority that has a list (kombu's).
HIGHEST: Final = 9
#: Messages, or bytes of them, in one call of the script.
MOVES: Final = 50
MOVED_BYTES: Final = 256 * 1024


class Move(NamedTuple):
    """A held message and the lists it goes to, with what goes into each; none drops it.

    Attributes:
        number: position among all that were taken.
        field: under which it is held.
        queue: its name, where it goes back to it; else nothing.
        push: :data:`HEAD` or :data:`TAIL`.
        copies: pairs of a list's key and a message.
    """

    number: int
    field: str
    queue: str
    push: bytes
    copies: Sequence[tuple[bytes, bytes]]

    @property
    def size(self) -> int:
        """Bytes of all copies."""
        return sum(len(raw) for _, raw in self.copies)


class Sized(Protocol):
    """An object with a size in bytes."""

    @property
    def size(self) -> int: ...


S = TypeVar("S", bound=Sized)


def parted(moves: Iterable[S]) -> list[list[S]]:
    """Cut *moves* into what one call of the script takes."""
    parts: list[list[S]] = []
    size = 0
    for move in moves:
        if not parts or len(parts[-1]) >= MOVES or size + move.size > MOVED_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(move)
        size += move.size
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
    message, settlement, _, entries, is_unseen = disposition
    field: str = message.handle
    number, queue, raw = number_of(field), message.queue, message.raw
    if settlement is not Settlement.BACK:
        return Move(number, field, "", TAIL, _copies(commands, raw, entries))
    if is_unseen:
        envelope = _read(raw)
    else:
        raw, _, envelope = marked_redelivered(raw)
    return Move(number, field, queue, HEAD, [(list_of(commands.keys, queue, envelope), raw)])


def _copies(commands: Commands, raw: bytes, entries: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
    """Return the lists that a dead letter goes to, with its text."""
    keys, text = commands.keys, raw
    copies: list[tuple[bytes, bytes]] = []
    written: Envelope | None = None
    for entry in entries:
        envelope = entry.envelope
        if envelope is not written:
            text, written = _written(envelope) or raw, envelope
        topic = topic_of(entry.queue)
        if topic is not None:
            commands.pipeline.post(pack(b"PUBLISH", keys.topic(*topic), text))
        elif not keys.is_reserved(entry.queue):
            copies.append((list_of(keys, entry.queue, envelope), text))
    return copies


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
        return loads(raw)
    except (ValueError, TypeError, RecursionError):
        return None


class Declared(Protocol):
    """The queues that are known."""

    def last(self, name: str) -> Declaration:
        """Return the declaration of a queue as it was read last.  Never switches."""


def move_arguments(
    keys: Keys, queues: Declared, moves: Sequence[Move], dead_owner: str = ""
) -> tuple[Any, ...]:
    """Keys and arguments for the script that carries out *moves*.

    Arguments:
        queues: as they were declared.
        dead_owner: nothing is done if this owner lives.
    """
    lists: list[bytes] = []
    places: dict[str, int] = {}
    args: list[Any] = []
    for move in moves:
        place = 0
        if move.queue and queues.last(move.queue).auto_delete:
            place = places.setdefault(move.queue, len(places) + 1)
        args += [move.field, place, move.push, len(move.copies)]
        for key, raw in move.copies:
            lists.append(key)
            args.append(raw)
    held = (keys.unacked, keys.unacked_index, keys.owners)
    return (*held, *map(keys.queue, places), *lists), dead_owner, len(places), *args
