"""Requests to the store of limits before a message is published, and before it is handled.

A consumer with a limit or a rate asks for a place and a token before each call of its handler.  A
message that gets none goes back to the broker, which redelivers it when a token is promised, or after a
pause.  The number of its deliveries is in a header, which any publisher can write: it decides nothing
but the pause and the order.

A message that was published with a unique key, or debounced, has a header as well, for which any
consumer looks.  It names the key, and what no other publisher knows: the holder in the store.  A forged
one gives back nothing of others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from greenconn.checks import Seconds, is_number
from greenconn.clocks import CLOCK
from greenconn.delays import LONGEST
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import (
    AlreadyQueued,
    OperationalError,
    PublishNacked,
    PublishRefused,
    Unroutable,
    error_text,
)
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.identity import uuid
from greenconn.limits import CLAIM, WAITED, waited_of
from greenconn.limits.store import (
    STORE_TIMEOUT,
    Give,
    LimitStore,
    MemoryFacts,
    Note,
    Operation,
    Read,
    Renew,
    Seen,
    Take,
    Taken,
    find_store,
    key_of,
    store_for,
    text_of,
)

if TYPE_CHECKING:
    from greenconn.connection import Connection
    from greenconn.message import Message
    from greenconn.options import Limit, Rate
    from greenconn.publishing.publisher import OutgoingMessage, Target

logger = logging.getLogger("greenconn.limits")

#: When a unique key is free again.
Until: TypeAlias = "Literal['handled', 'started'] | Seconds"
#: A key, or with ``publish_many`` a function that returns that of a body.
Key: TypeAlias = "str | Callable[[Any], str]"

_CLAIM: Final = re.compile(r"(?:([hs])([0-9a-f]{16})|(d)([0-9a-f]{32})):(.{1,200})", re.DOTALL)
#: Seconds of the first pause of a message that gets no place, and of the longest.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
#: Seconds for which a key is unique, from the publish (and its delay) or the last delivery on; and for
#: which the latest message of a debounced key is known, behind its delay.
CLAIM_LEASE: Final = 3600.0
#: Characters of a key of a message.
LONGEST_NAME: Final = 255

#: After these errors the broker does not have the message.
_NOT_PUBLISHED: Final = (PublishNacked, PublishRefused, Unroutable)


class Claim(NamedTuple):
    """The key of a message, by its header.

    Attributes:
        kind: ``h``: unique until it is handled; ``s``: until it is started; ``d``: debounced.
        key: in the store.
        holder: in the store; of a debounced message, its token.
    """

    kind: str
    queue: str
    key: str
    holder: str

    @property
    def give(self) -> Give:
        """The operation that gives the key back."""
        return Give(self.queue, self.key, self.holder)

    def renew(self, delay: float = 0.0) -> Renew:
        """Return what has the key held, at least for *delay* seconds more than a lease."""
        return Renew(self.queue, self.key, self.holder, CLAIM_LEASE + delay, False)


def claim_of(message: Message, queue: str) -> Claim | None:
    """Return what the header of a message says; None: nothing that can be."""
    value = message.headers.get(CLAIM)
    if not isinstance(value, str) or not (found := _CLAIM.fullmatch(value)):
        return None
    kind, nonce, debounced, token, text = found.groups()
    if not text.isprintable():
        return None
    if debounced:
        return Claim("d", queue, key_of("d", queue, text), token)
    message_id = message.properties.get("message_id")
    if not _is_id(message_id):
        return None
    return Claim(kind, queue, key_of("u", queue, text), f"{nonce}:{message_id}")


def _is_id(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable()


# -- consuming


class Verdict(Enum):
    """The decision about a message before its handler is called."""

    #: It is handled now.
    BEGIN = "begin"
    #: It is acknowledged, and not handled: a later one of its burst is there.
    SKIP = "skip"
    #: It has place and token, and waits in this process until that may be used.
    WAIT = "wait"
    #: It goes back to the broker for some time.
    LATER = "later"


class _Entry:
    """The places and the key of one message.

    Attributes:
        places: with the store and the lease of each.
        claim: its unique key, renewed while it is handled; None: it has none, or that went on with it.
        waits: it waits here for its time.
        is_put_off: it has no place then, and asks again.
    """

    __slots__ = ("claim", "is_put_off", "places", "waits")

    def __init__(self) -> None:
        self.places: list[tuple[LimitStore, Renew]] = []
        self.claim: Claim | None = None
        self.waits = self.is_put_off = False


class Admission:
    """The limit, the rate and the unique keys of one consumer.

    Arguments:
        connection: the consumer's.

    Raises:
        ValueError: the limit or the rate needs a store, and there is none.
    """

    def __init__(self, limit: Limit | None, rate: Rate | None, connection: Connection) -> None:
        self._connection = connection
        own: LimitStore | None = None
        self._limits: list[tuple[LimitStore, Limit | None, Rate | None]] = []
        for option in (limit, rate):
            if option is None:
                continue
            if option.scope == "process":
                own = own or LimitStore(MemoryFacts().run, "this process")
                store = own
            else:
                store = store_for(connection, f"{option!r}")
            if self._limits and self._limits[0][0] is store:
                self._limits[0] = store, limit, rate  # both at once
            else:
                is_limit = option is limit
                self._limits.append((store, limit, None) if is_limit else (store, None, rate))
        self._entries: dict[Message, _Entry] = {}
        self._is_failing = self._is_without_store = False

    def __len__(self) -> int:
        return len(self._entries)

    def enter(self, message: Message, queue: str, body: Any = None) -> tuple[Verdict, float]:
        """Return what becomes of a message, and the seconds that it waits.  May switch.

        With BEGIN or WAIT, :meth:`leave` must follow.

        Arguments:
            body: decoded, for the functions that return keys.

        Raises:
            Exception: what a function raised that returns a key.
        """
        entry = self._entries.pop(message, None)
        if entry is not None and not entry.is_put_off:
            entry.waits = False  # it has what it needs
            self._entries[message] = entry
            return Verdict.BEGIN, 0.0
        waited = waited_of(message)
        takes = [
            (store, self._take(store, limit, rate, queue, body, message, waited))
            for store, limit, rate in self._limits
        ]
        claim = claim_of(message, queue) if CLAIM in message.headers else None
        store = None if claim is None else self._claims_of(message)
        if store is None:
            claim = None
        entry, wait = _Entry(), 0.0
        try:
            asked = self._requests_for(claim, store, takes)
            for limiter, operations in asked:
                seen, taken = self._ask(limiter, operations, entry)
                if seen is not None and claim is not None and (seen.token or "") > claim.holder:
                    self._give(entry)
                    return Verdict.SKIP, 0.0
                if taken is None:
                    continue
                if not taken.is_taken:
                    self._give(entry)
                    self._is_failing = False
                    return Verdict.LATER, taken.wait or pause_of(waited)
                wait = max(wait, taken.wait)
        except Exception as exc:
            self._give(entry)
            self._note_failure(exc, queue)
            return Verdict.LATER, pause_of(waited)
        except BaseException:
            self._give(entry)
            raise
        if asked or claim is not None:
            self._is_failing = False
        if claim is not None and store is not None:
            if claim.kind == "h":
                entry.claim = claim
                store.hold(claim.renew())
                if all(limiter is not store for limiter, _ in asked):
                    store.post([claim.renew()])
            elif claim.kind == "s":
                store.give(claim.give, CLAIM_LEASE)
        self._entries[message] = entry
        entry.waits = wait > 0.0
        return (Verdict.WAIT if entry.waits else Verdict.BEGIN), wait

    @staticmethod
    def _requests_for(
        claim: Claim | None, store: LimitStore | None, takes: list[tuple[LimitStore, Take]]
    ) -> list[tuple[LimitStore, list[Operation]]]:
        """Return the requests for a message, to be sent one after the other.

        What concerns its key is asked together with its place.  A token of a rate cannot be given back,
        so a debounced message asks first whether it is the latest.

        Arguments:
            store: that of the key.
        """
        requests: list[tuple[LimitStore, list[Operation]]] = [
            (each, [take]) for each, take in takes
        ]
        if claim is None or store is None or claim.kind == "s":
            return requests
        about = Read(claim.queue, claim.key) if claim.kind == "d" else claim.renew()
        for position, (limiter, take) in enumerate(takes):
            if limiter is store and not (claim.kind == "d" and take.rate):
                requests[position] = limiter, [about, take]
                return requests
        return [(store, [about]), *requests] if claim.kind == "d" else requests

    def _ask(
        self, store: LimitStore, operations: list[Operation], entry: _Entry
    ) -> tuple[Seen | None, Taken | None]:
        """Return the replies about the latest of a burst, and about a place and a token.  May switch."""
        seen: Seen | None = None
        taken: Taken | None = None
        for operation, reply in zip(operations, store.ask(operations), strict=True):
            if isinstance(operation, Read):
                seen = reply
            elif isinstance(operation, Take):
                taken = reply
                if taken.is_taken and operation.place:
                    renew = Renew(
                        operation.queue, operation.place, operation.holder, operation.lease, True
                    )
                    entry.places.append((store, renew))
                    store.hold(renew)
        return seen, taken

    def _take(
        self,
        store: LimitStore,
        limit: Limit | None,
        rate: Rate | None,
        queue: str,
        body: Any,
        message: Message,
        waited: int,
    ) -> Take:
        place = token = ""
        if limit is not None:
            place = key_of("p", queue, _key_text(limit.key, body, message))
        if rate is not None:
            token = key_of("r", queue, _key_text(rate.key, body, message))
        return Take(
            queue,
            store.new_holder(),
            place,
            0 if limit is None else limit.limit,
            0.0 if limit is None else limit.lease,
            token,
            0.0 if rate is None else rate.per / rate.limit,
            1 if rate is None else rate.burst,
            waited > 0,
        )

    def put_off(self, message: Message) -> None:
        """Note that a message waits here until it asks again.  Never switches."""
        message.headers[WAITED] = waited_of(message) + 1
        entry = self._entries[message] = _Entry()
        entry.waits = entry.is_put_off = True

    def waits(self, message: Message) -> bool:
        """Return whether a message waits here for its time, and no handler has begun with it."""
        entry = self._entries.get(message)
        return entry is not None and entry.waits

    def leave(self, message: Message, *, is_done: bool) -> None:
        """Give back what a message has taken, once.  Never switches.

        Arguments:
            is_done: it was acked or rejected, and so is not redelivered.
        """
        entry = self._entries.pop(message, None)
        if entry is None:
            return
        self._give(entry)
        claim = entry.claim
        store = None if claim is None else self._claims_of(message)
        if claim is not None and store is not None:
            if is_done:
                store.give(claim.give, CLAIM_LEASE)
            else:
                store.release(claim.key, claim.holder)

    def end(self, message: Message, queue: str) -> None:
        """Give back the unique key of a message that is never handled.  Never switches."""
        claim, store = claim_of(message, queue), self._claims_of(message)
        if claim is not None and store is not None and claim.kind != "d":
            store.give(claim.give, CLAIM_LEASE)

    def carry(self, message: Message, queue: str, delay: float) -> None:
        """Note that a copy of a message comes in *delay* seconds, which has its key.  Never switches."""
        entry = self._entries.get(message)
        if entry is not None:
            entry.claim = None
        if CLAIM not in message.headers:
            return
        claim, store = claim_of(message, queue), self._claims_of(message)
        if claim is not None and store is not None and claim.kind != "d":
            store.release(claim.key, claim.holder)
            store.post([claim.renew(delay)])

    def flush(self, deadline: Deadline) -> None:
        """Wait until what was given back is free, or the store has failed.  May switch."""
        stores = {store for store, _, _ in self._limits}
        if (store := find_store(self._connection)) is not None:
            stores.add(store)
        for store in stores:
            store.flush(deadline)

    def _give(self, entry: _Entry) -> None:
        for store, renew in entry.places:
            store.give(Give(renew.queue, renew.place, renew.holder), renew.lease)
        entry.places = []

    def _claims_of(self, message: Message) -> LimitStore | None:
        """Return the store of unique keys; None, which is logged once: there is none."""
        store = find_store(self._connection)
        if store is None and not self._is_without_store and CLAIM in message.headers:
            self._is_without_store = True
            logger.warning(
                "a message that was published with unique or debounce is handled without: its consumer "
                "has no store of limits; pass limits= to greenconn.configure() or App() (logged once)"
            )
        return store

    def _note_failure(self, exc: Exception, queue: str) -> None:
        if not self._is_failing:
            self._is_failing = True
            logger.warning(
                "messages of queue %r are put back, as the store of their limits cannot be asked "
                "(logged once until it can): %s",
                queue,
                error_text(exc),
                extra={"queue": queue},
            )


def _key_text(key: Callable[[Any, Any], object] | None, body: Any, message: Message) -> str:
    return "" if key is None else text_of(key(body, message))


def pause_of(waited: int) -> float:
    """Return the seconds after which a message asks again for a place."""
    pause = min(FIRST_PAUSE * 2.0 ** min(waited, 10), LONGEST_PAUSE)
    return pause * (1.0 - CLOCK.jitter() / 2.0)


# -- publishing


class PublishClaims:
    """The unique or debounced keys of one call of ``publish`` or ``publish_many``.

    Arguments:
        connection: the program's.
        target: of the messages.
        delay: seconds.
        transaction: the option.
        is_many: keys are functions.

    Raises:
        TypeError, ValueError: an option is wrong, or they exclude each other.
    """

    def __init__(
        self,
        connection: Connection,
        target: Target,
        unique: Key | None,
        until: Until | None,
        debounce: Key | None,
        delay: float | None,
        transaction: object,
        *,
        is_many: bool,
    ) -> None:
        name = "debounce" if unique is None else "unique"
        key = debounce if unique is None else unique
        if key is None:
            raise ValueError(f"until must be None without unique, got {until!r}")
        if unique is not None and debounce is not None:
            raise ValueError(f"debounce must be None with unique, got {debounce!r}")
        if transaction is not None:
            raise ValueError(
                f"{name} must be None with transaction, whose end the store of keys does not see"
            )
        if isinstance(target, Exchange):
            raise ValueError(
                f"{name} must be None for an exchange, which may have many queues or none: publish to a "
                f"queue"
            )
        if is_many != callable(key):
            what = "a function of a body" if is_many else "text"
            raise TypeError(f"{name} must be {what}, got {key!r}")
        if debounce is not None and until is not None:
            raise ValueError(f"until must be None with debounce, got {until!r}")
        if debounce is not None and not delay:
            raise ValueError("delay must be given with debounce: so long a burst may last")
        self.queue = target.name if isinstance(target, Queue) else target
        self._store = store_for(connection, f"{name}=")
        self._key = key
        self._is_unique = unique is not None
        self._kind, self._lease = _kind_of("handled" if until is None else until, delay or 0.0)
        #: The claim of each message, by its identity, and the key as the program gave it.
        self._claims: dict[OutgoingMessage, Claim] = {}

    def begin(
        self, messages: Sequence[OutgoingMessage], keys: Sequence[str], deadline: Deadline
    ) -> dict[int, Exception]:
        """Take the keys of messages, all in one round trip.  May switch.

        Arguments:
            keys: as :meth:`key_of` returns them.

        Returns:
            The errors of those that must not be published, by position.

        Raises:
            OperationalError: the store cannot be reached, or refuses.
            ValueError: an id is wrong.
        """
        if not self._is_unique:
            self._number(messages, keys, deadline)
            return {}
        takes: list[Take] = []
        for message, key in zip(messages, keys, strict=True):
            claim = self._claim(message, key)
            self._claims[message] = claim
            takes.append(Take(self.queue, claim.holder, claim.key, 1, self._lease))
        try:
            replies = self._ask(takes, deadline)
        except BaseException:
            self._claims.clear()  # which were given back
            raise
        failed: dict[int, Exception] = {}
        for position, reply in enumerate(replies):
            if not reply.is_taken:
                del self._claims[messages[position]]
                message_id = (reply.holder or "").partition(":")[2]
                failed[position] = AlreadyQueued(
                    f"message {message_id!r} with key {keys[position]!r} is in queue {self.queue!r} "
                    f"already",
                    key=keys[position],
                    message_id=message_id,
                )
        return failed

    def key_of(self, body: Any) -> str:
        """Return the key of a message.

        Raises:
            TypeError, ValueError: it is no text of its length.
            Exception: what the program's function raised.
        """
        key = self._key(body) if callable(self._key) else self._key
        name = "unique" if self._is_unique else "debounce"
        if not isinstance(key, str):
            raise TypeError(f"{name} must be text, got {key!r:.100}")
        if not 0 < len(key) <= LONGEST_NAME:
            raise ValueError(
                f"{name} must be text of 1 to {LONGEST_NAME} characters, got {key!r:.100}"
            )
        return key

    def _claim(self, message: OutgoingMessage, key: str) -> Claim:
        """Give *message* its header, and an id if it has none."""
        text, nonce = text_of(key), uuid().replace("-", "")[:16]
        message_id = message.options.properties.get("message_id")
        if message_id is None:
            message_id = uuid()
            message.own = {**(message.own or {}), "message_id": message_id}
        elif not _is_id(message_id):
            raise ValueError(f"message_id must be printable with unique, got {message_id!r}")
        if self._kind:
            message.headers = {**(message.headers or {}), CLAIM: f"{self._kind}{nonce}:{text}"}
        key = key_of("u", self.queue, text)
        return Claim(self._kind, self.queue, key, f"{nonce}:{message_id}")

    def _number(
        self, messages: Sequence[OutgoingMessage], keys: Sequence[str], deadline: Deadline
    ) -> None:
        """Give messages their tokens, each later than all that are noted."""
        texts = [text_of(key) for key in keys]
        names = [key_of("d", self.queue, text) for text in texts]
        last = 0
        for message, text, name, seen in zip(
            messages,
            texts,
            names,
            self._ask([Read(self.queue, name) for name in names], deadline),
            strict=True,
        ):
            latest = 0 if seen.token is None else int(seen.token[:16], 16)
            last = max(seen.now, latest + 1, last + 1)
            token = f"{last:016x}{uuid().replace('-', '')[:16]}"
            message.headers = {**(message.headers or {}), CLAIM: f"d{token}:{text}"}
            self._claims[message] = Claim("d", self.queue, name, token)

    def _ask(self, operations: Sequence[Operation], deadline: Deadline) -> list[Any]:
        try:
            return self._store.ask(operations, deadline)
        except Exception as exc:
            if is_thrown(exc):
                raise
            raise OperationalError(
                f"nothing was published to queue {self.queue!r}, as the store of its keys cannot be "
                f"asked: {error_text(exc)}"
            ) from exc

    def end(self, ended: Sequence[tuple[OutgoingMessage, BaseException | None]]) -> None:
        """Note what became of messages, those that were published and those that failed.  May switch.

        A key that is not in the queue is free again.  One that may be there stays taken.
        """
        notes: list[Note] = []
        has_given = False
        for message, error in ended:
            claim = self._claims.pop(message, None)
            if claim is None:
                continue
            if claim.kind == "d":
                if error is None:
                    notes.append(Note(claim.queue, claim.key, claim.holder, self._lease))
            elif error is not None and (
                isinstance(error, _NOT_PUBLISHED) or not message.maybe_delivered
            ):
                self._store.give(claim.give, self._lease)
                has_given |= isinstance(error, Exception)
        if has_given:
            self._store.flush(Deadline(STORE_TIMEOUT))  # the program may end with this error
        if notes:
            try:
                self._store.ask(notes)
            except Exception as exc:
                if is_thrown(exc):
                    raise
                logger.warning(
                    "%d messages of queue %r were published, and could not be noted as the latest of "
                    "their bursts, of which earlier ones are handled, too: %s",
                    len(notes),
                    self.queue,
                    error_text(exc),
                    extra={"queue": self.queue},
                )


def _kind_of(until: Until, delay: float) -> tuple[str, float]:
    """Return the first letter of the header, '' for none, and the seconds for which a key is taken."""
    if until == "handled":
        return "h", CLAIM_LEASE + delay
    if until == "started":
        return "s", CLAIM_LEASE + delay
    seconds = until.total_seconds() if isinstance(until, timedelta) else until
    if not is_number(seconds) or not 0 < seconds <= LONGEST:
        raise ValueError(
            f"until must be 'handled', 'started', or a number of seconds above 0, got {until!r}"
        )
    return "", float(seconds)
