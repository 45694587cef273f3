"""Idempotent handlers: a message that comes a second time is not handled a second time.

::

    from greenconn.contrib.idempotency import handled_once
    from greenconn.contrib.idempotency.redis import RedisIds

    @app.consumer("payments", concurrency=10)
    @handled_once(RedisIds("redis://localhost"))
    def pay(body, message):
        ...

The handler's name and the message's id are *claimed* in a store before the handler is called, and
marked when it has returned; a claim of a handler that failed is released, so that a retry is handled.
A claim lasts for a lease, which is renewed while the handler runs: when the process dies the message
is redelivered, and handled when the lease has ended.  A second copy that comes while the first one is
being handled waits for its end.

Claims, marks and releases are made in greenlets of their own, so that a timeout or a kill of the handler
interrupts none: a claim whose handler does not begin is released, and a handler that has returned is
marked.  A message whose id could not be claimed before ``handler_timeout`` is put back.

A process that dies after the handler has returned and before the mark leaves a message that is handled
twice.  No store outside of the handler's own transaction can close that gap.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from functools import wraps
from hashlib import sha256
from typing import Any, Final, Protocol, TypeVar

from gevent import Timeout

from greenconn.checks import Seconds, in_seconds, is_number
from greenconn.clocks import CLOCK
from greenconn.exceptions import error_text
from greenconn.green.deadline import NEVER
from greenconn.green.hub import weakly
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.identity import uuid
from greenconn.message import Message

__all__ = ["Claim", "IdStore", "MemoryIds", "handled_once", "message_id"]

logger = logging.getLogger("greenconn.idempotency")

H = TypeVar("H", bound=Callable[..., Any])


class Claim(Enum):
    """The outcome of a claim."""

    NEW = "new"
    """It is the caller's."""

    BUSY = "busy"
    """It is another one's, whose lease has not ended."""

    HANDLED = "handled"
    """It was finished, less than its time to live ago."""


class IdStore(Protocol):
    """A store of ids.  All its methods may switch, and raise what the store raises."""

    def claim(self, id: str, owner: str, lease: float) -> Claim:
        """Claim *id* for *owner*, for *lease* seconds, unless it is known."""

    def renew(self, id: str, owner: str, lease: float) -> bool:
        """Have a claim last for *lease* seconds from now; return False if it is not *owner*'s."""

    def finish(self, id: str, owner: str, ttl: float) -> None:
        """Keep *id* as handled for *ttl* seconds."""

    def release(self, id: str, owner: str) -> None:
        """Forget a claim, if it is *owner*'s."""


class MemoryIds(IdStore):
    """Ids that are forgotten with the process.  None of its methods switches.

    Arguments:
        most: ids that are kept; beyond that, those that were handled first are forgotten first.
        clock: monotonic, in seconds.  None is the clock of the process, or of a test.

    Raises:
        ValueError: *most* is not a positive integer.
    """

    def __init__(self, most: int = 1_000_000, *, clock: Callable[[], float] | None = None) -> None:
        if not isinstance(most, int) or most < 1:
            raise ValueError(f"most must be a positive integer, got {most!r}")
        self._most = most
        self._clock = clock or (lambda: CLOCK.monotonic())
        #: Id -> its owner and the end of its lease.
        self._claims: dict[str, tuple[str, float]] = {}
        #: Id -> the end of its time, in the order in which they were finished.
        self._handled: dict[str, float] = {}

    def claim(self, id: str, owner: str, lease: float) -> Claim:
        """Claim an id."""
        now = self._clock()
        if self._handled.get(id, now) > now:
            return Claim.HANDLED
        if id in self._claims and self._claims[id][1] > now:
            return Claim.BUSY
        self._claims[id] = owner, now + lease
        return Claim.NEW

    def renew(self, id: str, owner: str, lease: float) -> bool:
        """Have a claim last longer."""
        if self._claims.get(id, ("",))[0] != owner:
            return False
        self._claims[id] = owner, self._clock() + lease
        return True

    def finish(self, id: str, owner: str, ttl: float) -> None:
        """Keep an id as handled."""
        now = self._clock()
        self.release(id, owner)
        self._handled.pop(id, None)
        self._handled[id] = now + ttl
        # All of one handler have the same time to live, so those that are over are in front.
        while self._handled:
            first = next(iter(self._handled))
            if len(self._handled) <= self._most and self._handled[first] > now:
                break
            del self._handled[first]

    def release(self, id: str, owner: str) -> None:
        """Forget a claim."""
        if self._claims.get(id, ("",))[0] == owner:
            del self._claims[id]


#: Between two looks at a claim of another handler.
WAITING: Final = RetryPolicy(first=0.02, longest=1.0)

#: Characters of an id that is stored as it is.
LONGEST_ID: Final = 255

#: A claim is renewed so many times in its lease.
RENEWALS: Final = 3


def message_id(message: Message) -> str | None:
    """Return the ``message_id`` that a message was published with; None if it has none."""
    found = message.properties.get("message_id")
    return None if found is None else str(found)


def handled_once(
    store: IdStore,
    *,
    name: str | None = None,
    key: Callable[[Message], str | None] = message_id,
    ttl: Seconds = 86400.0,
    lease: Seconds = 60.0,
) -> Callable[[H], H]:
    """Return a decorator of handlers that calls them once for each message id.

    A message without an id is handled whenever it comes.  One that was handled already is acked.

    Arguments:
        store: the ids: :class:`~greenconn.contrib.idempotency.MemoryIds`, ``redis.RedisIds`` or
            ``sqlalchemy.SqlIds``.
        name: of the handler in the store, since several handlers may get one message; None: its module
            and qualified name.
        key: returns the id of a message; None: it has none.
        ttl: seconds for which an id is known, longer than copies may come late.
        lease: seconds after which the message of a process that died may be handled elsewhere.

    Raises:
        ValueError: a value is out of its range.
    """
    ttl, lease = in_seconds(ttl), in_seconds(lease)
    for option, value in (("ttl", ttl), ("lease", lease)):
        if not (is_number(value) and value > 0):
            raise ValueError(
                f"handled_once.{option} must be a number of seconds above 0, got {value!r}"
            )

    def decorate(handler: H) -> H:
        own_name = name or f"{handler.__module__}.{handler.__qualname__}"

        @wraps(handler)
        def handle(body: Any, message: Message) -> Any:
            if isinstance(message, list):
                raise TypeError(
                    "handled_once must not be used with batch_size: a batch is settled as one"
                )
            found = key(message)
            if found is None:
                return handler(body, message)
            claimed = _Claimed(store, _storable(f"{own_name}:{found}"), lease)
            try:
                is_new = claimed.wait()
            except Timeout:
                # The handler has not begun, and has not failed.
                if not _put_back(message):
                    raise
                logger.warning(
                    "message %.100r is put back: it could not be claimed for %s before a timeout",
                    found,
                    own_name,
                    extra={"message_id": found},
                )
                return None
            if not is_new:
                logger.info(
                    "message %.100r was handled by %s already",
                    found,
                    own_name,
                    extra={"message_id": found},
                )
                return None
            with claimed:
                result = handler(body, message)
                # One that it has put back is not handled.
                if message._state != "REQUEUED":
                    claimed.finish(ttl)
                return result

        return handle  # type: ignore[return-value]

    return decorate


def _storable(id: str) -> str:
    """Return an id that each store can keep: that of a message may be any text, of any length."""
    raw = id.encode("utf-8", "surrogatepass")
    if len(id) <= LONGEST_ID and "\0" not in id and raw.decode("utf-8", "replace") == id:
        return id
    return sha256(raw).hexdigest()


def _put_back(message: Message) -> bool:
    """Requeue *message*; False: it needs no ack.  May switch."""
    no_ack_consumers = message.channel.no_ack_consumers
    if no_ack_consumers and message.delivery_info.get("consumer_tag") in no_ack_consumers:
        return False
    message.put_back()
    return True


class _Claimed:
    """The claim of one id by one call of a handler; released at its end unless it was finished."""

    __slots__ = ("__weakref__", "_id", "_is_finished", "_lease", "_owner", "_store", "_timer")

    def __init__(self, store: IdStore, id: str, lease: float) -> None:
        self._store = store
        self._id = id
        self._lease = lease
        self._owner = uuid()
        self._is_finished = False
        #: Renews the claim; None while nothing is to be renewed.
        self._timer: Any = None

    def wait(self) -> bool:
        """Claim the id, when it is free; False: it was handled.  May switch."""
        for _ in attempts(WAITING, pause=CLOCK.sleep):
            slot: Slot[Claim] = Slot()
            spawn("idempotency-claim", self._claim, slot)
            try:
                claim = slot.wait(NEVER)
            except BaseException:
                if slot.has_value and slot.value is Claim.NEW:
                    spawn("idempotency-release", self._release)  # it came at the same moment
                raise
            if claim is not Claim.BUSY:
                return claim is Claim.NEW
        raise AssertionError("unreachable")

    def _claim(self, slot: Slot[Claim]) -> None:
        try:
            claim = self._store.claim(self._id, self._owner, self._lease)
        except BaseException as exc:
            slot.fail(exc)
            # Its reply may have been lost.
            self._release(logging.DEBUG)
        else:
            if not slot.offer(claim) and claim is Claim.NEW:
                self._release()

    def __enter__(self) -> None:
        self._renew_later()

    def __exit__(self, *exc_info: object) -> None:
        self._stop_renewing()
        if not self._is_finished:
            spawn("idempotency-release", self._release).join()

    def _release(self, level: int = logging.WARNING) -> None:
        try:
            self._store.release(self._id, self._owner)
        except (Exception, Timeout) as exc:
            logger.log(
                level,
                "claim of %.100r ends with its lease only: %s",
                self._id,
                error_text(exc),
                extra={"message_id": self._id},
            )

    def finish(self, ttl: float) -> None:
        """Mark the id as handled.  May switch.

        What fails is logged: the message was handled, and the claim ends with its lease.
        """
        self._stop_renewing()
        self._is_finished = True
        marking = spawn("idempotency-mark", self._mark, ttl)
        try:
            marking.join()
        except Timeout:
            # The handler has returned in time.
            logger.warning(
                "message %.100r was handled, and is not marked yet: the store does not answer",
                self._id,
                extra={"message_id": self._id},
            )

    def _mark(self, ttl: float) -> None:
        try:
            self._store.finish(self._id, self._owner, ttl)
        except (Exception, Timeout) as exc:
            logger.error(
                "message %.100r was handled, but could not be marked: %s",
                self._id,
                error_text(exc),
                extra={"message_id": self._id},
            )

    def _renew_later(self) -> None:
        self._timer = CLOCK.timer(self._lease / RENEWALS, ref=False)
        self._timer.start(weakly(self._renew_soon), update=True)

    def _stop_renewing(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _renew_soon(self) -> None:
        # In the hub.
        self._stop_renewing()
        self._renew_later()
        spawn("idempotency-renewal", self._renew)

    def _renew(self) -> None:
        try:
            if self._timer is not None and not self._store.renew(
                self._id, self._owner, self._lease
            ):
                logger.warning(
                    "claim of %.100r was lost: its lease had ended, and it may be handled twice",
                    self._id,
                    extra={"message_id": self._id},
                )
        except (Exception, Timeout) as exc:
            logger.warning(
                "claim of %.100r could not be renewed: %s",
                self._id,
                error_text(exc),
                extra={"message_id": self._id},
            )
