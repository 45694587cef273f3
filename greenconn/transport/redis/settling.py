"""Settling of held messages: requeueing them, storing dead letters, and dropping them.

Messages that another link holds, or a former life, are requeued by the field under which they are held.
The client reads the entries, marks the messages as redelivered, and moves them by a script that does
nothing for an entry that is no longer there: two who requeue the same message do it once.

Owners and what they hold
-------------------------
Each life of a connection is an *owner*.  With each renewal it tells the server that it lives:
``greenconn.owners`` gets the time at which its lease ends (the time that the sweepers count, see
``maintenance``), and what is held gets a new mark in ``unacked_index``, so that it looks fresh to
kombu's consumers too.

What goes back in one turn goes back in the order in which it was taken, so that the oldest is next
again, whatever the order of the calls was.

What the server refuses (it cannot write to its disk, a right was taken away) stays held, though no
consumer has it any more: the answer is sent again whenever the lease is renewed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from redis.exceptions import ResponseError

from greenconn.broker.envelope import Envelope, level_of, read_envelope
from greenconn.broker.port import Claimed, Done, Entry, HeldMessage, Settlement, SettleRequest
from greenconn.broker.queues import is_name
from greenconn.green.retry import isolated
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.redis.envelope import (
    Broadcast,
    Delivery,
    marked_redelivered,
    number_of,
)
from greenconn.transport.redis.fanout import broadcast_command, topic_of
from greenconn.transport.redis.maintenance import delayed_text
from greenconn.transport.redis.options import HIGHEST, Keys
from greenconn.transport.redis.pipeline import CommandPipeline, Commands
from greenconn.transport.redis.scripts import (
    DEFER,
    MOVE,
    RENEW,
)
from greenconn.wire.resp import pack, pack_all

if TYPE_CHECKING:
    from greenconn.broker.queues import Directory
    from greenconn.transport.redis.claiming import Claims, RedisFeed
    from greenconn.transport.redis.maintenance import Delays, Owners
    from greenconn.transport.redis.queues import RedisQueues

T = TypeVar("T")

logger = logging.getLogger("greenconn.transport.redis")

#: Where a message goes in its list: to be next, or to be last.
HEAD: Final = b"RPUSH"
TAIL: Final = b"LPUSH"
#: Messages, or bytes of them, in one call of the script.
MOVES: Final = 50
#: Acks of one command.
ACKS: Final = 500
_ACK: Final = Settlement.ACK
_handle: Final = attrgetter("message.handle")
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


def move_of(commands: Commands, request: SettleRequest) -> Move:
    """Return the move that settles a message; fan-out is published at once.  Never switches."""
    message = request.message
    field: str = message.handle
    number, queue, raw = number_of(field), message.queue, message.raw
    if request.settlement is not Settlement.REQUEUE:
        return Move(number, field, "", TAIL, _copies(commands, raw, request.entries))
    if request.is_unseen:
        envelope = _read(raw)
    else:
        raw, _, envelope = marked_redelivered(raw, is_counted=not request.is_unhandled)
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
        return move_of(self._commands, SettleRequest(message, Settlement.ACK, entries=entries))

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


class RedisSettler:
    """See :class:`~greenconn.broker.settlements.PipelinedSettler`.

    Arguments:
        commands: of the link.
        owners: the link is one of them.
        claims: that are no feed's.
        queues: the queues in the server.
        requeuer: requeues what former lives held.
        delays: looks after delayed messages.
        feeds: queue -> what serves its consumers of this link.
        renewed: called with each renewal of the link's lease, and whether that had ended.  Never
            switches.
    """

    outlives_link = True

    def __init__(
        self,
        commands: Commands,
        owners: Owners,
        claims: Claims,
        queues: RedisQueues,
        requeuer: Requeuer,
        delays: Delays,
        feeds: Mapping[str, RedisFeed],
        renewed: Callable[[bool], object],
    ) -> None:
        self._commands = commands
        self._owners = owners
        self._claims = claims
        self._queues = queues
        self._requeuer = requeuer
        self._delays = delays
        self._feeds = feeds
        self._note_renewal = renewed

    @property
    def lease(self) -> float:
        """Seconds that a message is held without renewal."""
        return self._commands.options.lease

    @property
    def renewal_interval(self) -> float:
        """Seconds between two renewals."""
        options = self._commands.options
        return min(options.lease / 3, options.visibility_timeout / 4)

    def parts(self, requests: Sequence[SettleRequest]) -> Iterable[Sequence[SettleRequest]]:
        """Cut what one turn has brought into what one call of the script takes.

        Of those that go back the newest come first: each goes to the head, before those that were put
        there already.
        """
        if len(requests) <= ACKS:
            for each in requests:
                if each.settlement is not _ACK or each.entries:
                    break
            else:
                return (requests,) if requests else ()
        acks = [each for each in requests if each.is_ack]
        found = [acks[at : at + ACKS] for at in range(0, len(acks), ACKS)]
        others = [each for each in requests if not each.is_ack]
        ordered = sorted(others, key=_number, reverse=True)
        moved = [each for each in ordered if not _is_delayed(each)]
        delayed = [each for each in ordered if _is_delayed(each)]
        return found + batched(moved, _size) + batched(delayed, _size)

    def settle(self, requests: Sequence[SettleRequest], done: Done) -> None:
        """Put messages where they belong now, and wake those who wait for them.  Never switches."""
        commands = self._commands
        first = requests[0]
        if first.settlement is _ACK and not first.entries:
            pipeline, keys, handles = commands.pipeline, commands.keys, [*map(_handle, requests)]
            count = len(handles)

            def unlisted(reply: Any) -> None:
                # In the reader.  Only now: else a cut between the two would leave an entry.
                if pipeline.lost is None:
                    done(None if removed[0] == count else _outcome(pipeline, removed[0], count))

            removal = pack_all((b"HDEL", keys.unacked, *handles))
            unlisting = pack_all((b"ZREM", keys.unacked_index, *handles))
            removed = pipeline.post_all((removal, unlisting), unlisted)
            return
        if _is_delayed(first):
            self._defer(requests, done)
            return
        moves = [move_of(commands, each) for each in requests]

        def moved(reply: Any) -> None:
            # In the reader.
            if commands.pipeline.lost is None:
                done(_outcome(commands.pipeline, reply, len(moves)))

        keys, *args = move_arguments(commands.keys, moves)
        commands.post_script(MOVE, keys, *args, done=moved)
        # What goes back may come here again, where there is room.
        for queue in {each.message.queue for each in requests if _goes_back(each)}:
            feed = self._feeds.get(queue)
            if feed is not None:
                feed.wake()

    def _defer(self, requests: Sequence[SettleRequest], done: Done) -> None:
        """Store delayed copies in the places of messages.  Never switches."""
        commands = self._commands
        keys = commands.keys
        args: list[Any] = []
        for each in requests:
            (entry,) = each.entries
            queue = entry.queue
            declaration = self._queues.needed_by_delayed(queue)
            raw = dumps(entry.envelope).encode()
            text = delayed_text(list_of(keys, queue, entry.envelope), declaration, raw)
            args += [each.message.handle, round(entry.delay * 1000), text]
        soonest = min(each.entries[0].delay for each in requests)

        def deferred(reply: Any) -> None:
            # In the reader.
            if commands.pipeline.lost is None:
                if not isinstance(reply, Exception):
                    self._delays.expect(soonest)
                done(_outcome(commands.pipeline, reply, len(requests)))

        held = (keys.unacked, keys.unacked_index, keys.delayed)
        commands.post_script(DEFER, held, *args, done=deferred)

    def return_unheld(self, delivery: Delivery) -> None:
        """Requeue a delivery that the server does not hold for us.  Never switches."""
        commands = self._commands
        if isinstance(delivery, Broadcast):
            feed = self._feeds.get(delivery.queue)
            if feed is not None and feed.consumers:
                feed.broadcast_again(delivery)
            return
        if commands.options.ack_emulation:
            return  # its lease has ended, so that it is back
        for key, raw in move_of(commands, SettleRequest(delivery, Settlement.REQUEUE)).copies:
            commands.pipeline.post(pack(b"RPUSH", key, raw))

    def unread(self, message: HeldMessage) -> Envelope:
        """Return an empty envelope: a message that cannot be read is moved as it is."""
        return {}

    def postpone(self, message: HeldMessage) -> None:
        """Leave a message held, until the lease is renewed."""

    def renew(self, handles: Sequence[Any], done: Done) -> None:
        """Begin the leases of these messages anew.  Never switches."""
        commands = self._commands

        def renewed(reply: Any) -> None:
            # In the reader.
            if commands.pipeline.lost is not None:
                return
            if isinstance(reply, Exception):
                done(reply)
                return
            is_known, *lost = reply
            self._note_renewal(not is_known)
            done([handles[each] for each in lost])

        keys, *args = self._owners.renewal(handles)
        commands.post_script(RENEW, keys, *args, done=renewed)
        self._queues.renew()

    def unconfirmed_claims(self) -> Iterable[HeldMessage]:
        """Return what claims may have taken whose answers never came.  Never switches."""
        fields = self._claims.unconfirmed_claims()
        for feed in self._feeds.values():
            fields += feed.under_way()
        prefix = self._commands.prefix  # of others, too, where there are several partitions
        return [Claimed("", None, each) for each in fields if each.startswith(prefix)]

    def reclaim(
        self,
        held: Sequence[HeldMessage],
        unhandled: Sequence[HeldMessage],
        unconfirmed: Sequence[HeldMessage],
    ) -> None:
        """Requeue what former lives held, and what they may have.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server refuses.
        """
        uncounted = {each.handle for each in (*unhandled, *unconfirmed)}
        fields = [each.handle for each in (*held, *unhandled, *unconfirmed)]
        # The newest come first: each goes to the head, before those that were put there already.
        fields.sort(key=number_of, reverse=True)
        count = self._requeuer.requeue(fields, uncounted=uncounted)
        if count:
            logger.info(
                "%s: %d messages that the lost connection held were requeued",
                self._commands.where,
                count,
                extra={"connection": self._commands.where},
            )

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* when all that can run now has run.  Never switches."""
        self._commands.pipeline.writer.before_flush(callback)

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return the exception for a reply that is one; what ends the link ends it.  Never switches."""
        return self._commands.pipeline.error(outcome, what)

    def interrupted(self, exc: BaseException) -> None:
        """End the link, since the outcome of what was sent is unknown.  Never switches."""
        self._commands.pipeline.interrupted(exc)


def _number(request: SettleRequest) -> int:
    return number_of(request.message.handle)


def _size(request: SettleRequest) -> int:
    """Return about how many bytes a request moves."""
    copies = 1 if _goes_back(request) else len(request.entries)
    return len(request.message.raw) * copies


def _is_delayed(request: SettleRequest) -> bool:
    """Return whether a message is replaced by one that is delayed."""
    entries = request.entries
    return bool(entries) and entries[0].delay > 0


def _goes_back(request: SettleRequest) -> bool:
    return request.settlement is Settlement.REQUEUE


def _outcome(pipeline: CommandPipeline, reply: Any, sent: int) -> Any:
    """Return None, how many of the messages were not held any more, or the server's error."""
    if isinstance(reply, Exception):
        return reply
    if reply == sent or pipeline.is_repeated:  # the first time may have settled them
        return None
    return sent - max(int(reply), 0)
