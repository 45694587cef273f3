"""The relay of an outbox: publishes what was committed, and marks it.

On PostgreSQL a relay is notified of commits (``LISTEN``), over a connection of its own: it sends no
statement while there is nothing to publish, but those about leases.  Elsewhere, and behind a pooler, it
looks for new rows at an interval.

It reads rows in the order of their ids, publishes each with a confirm, and marks those that the broker
has.  Rows without a key are published side by side, those of one key one after another, each when the
broker has the one before.  A row that the broker refuses is tried again later, without an end, and the
later rows of its key wait for it.  While the broker is away nothing is tried or counted.

A message is published at least once: a relay that dies between the confirm and the mark leaves a row
that is published again, by itself or by another relay.

Relays share an outbox by its partitions.  Each row belongs to one of 32 partitions by its key.  A relay
publishes the rows of those that it holds a lease of, so that no two relays publish messages of one key
side by side, which would break their order.  Locks of rows would not do: the second row of a key is free
while the first is locked.

The clocks of the machines need not agree.  A relay increments the ``beat`` of its leases; one that has
seen the same owner and beat for the whole length of a lease *by its own clock* may take it, if it is
still unchanged then.  The owner counts from before it asked for the increment, so it stops first.

Each relay has a lease of its own besides, by which the others know that it is there: each is entitled
to an equal part of the partitions, releases what it has beyond that, and takes what is free.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final

import gevent
from gevent import Greenlet, get_hub
from gevent.event import Event

from greenconn.checks import Seconds, check_callable, check_count, check_seconds, in_seconds
from greenconn.contrib.outbox import (
    CHANNEL,
    PARTITIONS,
    Lease,
    OutboxStore,
    PendingMessage,
    now_ms,
    publish_arguments,
)
from greenconn.exceptions import (
    OperationalError,
    PublishNacked,
    PublishRefused,
    Unroutable,
    error_summary,
)
from greenconn.green.deadline import Deadline
from greenconn.green.hub import forget_at_fork
from greenconn.green.retry import Backoff, RetryPolicy
from greenconn.green.supervisor import spawn
from greenconn.green.threadpool import CallPool, are_sockets_green
from greenconn.identity import uuid
from greenconn.publishing import publish
from greenconn.service.app import add_service, remove_service

if TYPE_CHECKING:
    from greenconn.transport.postgresql.connection import Session

__all__ = ["Partitions", "Relay", "RelayOptions", "has_relays", "wake_relays"]

logger = logging.getLogger("greenconn.outbox")

#: While the database or the broker is away.
RETRYING: Final = RetryPolicy(first=0.2, longest=5.0)
#: Where the server refuses a connection for ``LISTEN``, though it has others.
LISTENING: Final = RetryPolicy(first=1.0, longest=60.0)
#: Seconds in which it must be opened.
CONNECTING: Final = 10.0
#: Of a row that the broker refuses: the pauses are 1 s, 2 s, 4 s and so on.
LONGEST_PAUSE: Final = 300.0
#: Characters of an error that are kept.
ERROR_LENGTH: Final = 500
#: Seconds between two deletions of old rows, and rows that are deleted at once.
PRUNE_INTERVAL: Final = 60.0
PRUNED_AT_ONCE: Final = 1000
#: Errors that are about the message, not about the broker.
_OF_MESSAGE: Final = (PublishNacked, PublishRefused, Unroutable)


#: A lease is renewed so many times in its length, and where that failed, tried so many times.
RENEWALS: Final = 3
TRIES: Final = 10
_NAMES: Final = {f"partition-{number:02}": number for number in range(PARTITIONS)}


class Partitions:
    """The partitions that one relay holds.  Not for two greenlets at once, but for :meth:`left`.

    Arguments:
        store: the database.
        length: seconds that a lease lasts.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, store: OutboxStore, length: float, clock: Callable[[], float] = monotonic
    ) -> None:
        #: Of this relay alone: one that is started again is another one.
        self.owner: Final = uuid()
        self.held: frozenset[int] = frozenset()
        self._presence: Final = f"relay-{self.owner}"
        self._store = store
        self._length = length
        self._clock = clock
        self._valid_until = self._renew_at = clock()
        #: By name: each lease, and since when it is seen unchanged.
        self._seen: dict[str, tuple[Lease, float]] = {}

    def left(self, partition: int) -> float:
        """Return for how many seconds a partition is held yet; 0 if it is not.  Never switches."""
        return max(0.0, self._valid_until - self._clock()) if partition in self.held else 0.0

    @property
    def are_valid(self) -> bool:
        """Whether the leases have not ended."""
        return self._clock() < self._valid_until

    @property
    def renewal_due(self) -> float:
        """Seconds until :meth:`renew` is due, at least 0."""
        return max(0.0, self._renew_at - self._clock())

    def renew(self) -> None:
        """Renew the leases, and see which there are.  May switch."""
        begun = self._clock()
        self._renew_at = begun + self._length / TRIES
        self._store.renew_leases(self.owner)
        self._observe()
        self._renew_at = begun + self._length / RENEWALS
        self._valid_until = begun + self._length

    def rebalance(self) -> None:
        """Take what is free and release what is too much.  May switch.

        Nothing of these partitions may be under way.
        """
        self._complete()
        now = self._clock()
        old = {name for name, (_, since) in self._seen.items() if now - since >= self._length}
        relays = [name for name in self._seen if name not in _NAMES]
        gone = [self._seen[name][0] for name in relays if name in old and name != self._presence]
        if gone:
            self._store.delete_leases(gone)
        entitled = -(-PARTITIONS // (len(relays) - len(gone)))
        surplus = sorted(self.held)[entitled:]
        free = [
            lease
            for name, (lease, _) in sorted(self._seen.items())
            if name in _NAMES and lease.owner != self.owner and (not lease.owner or name in old)
        ]
        wanted = free[: max(0, entitled - len(self.held))]
        if surplus:
            self._store.free_leases([_name_of(each) for each in surplus], self.owner)
        if wanted:
            self._store.take_leases(wanted, self.owner)
        if gone or surplus or wanted:
            # What was taken now is valid for longer than the others; nothing is made of that.
            self._observe()

    def release(self) -> None:
        """Release all partitions: another relay may take them at once.  May switch."""
        self._valid_until = self._clock()
        held, self.held = self.held, frozenset()
        if held:
            self._store.free_leases([_name_of(each) for each in held], self.owner)
        presence = self._seen.pop(self._presence, None)
        if presence is not None:
            self._store.delete_leases([presence[0]])

    def _complete(self) -> None:
        """Insert the leases that are missing: at the very first start, and this relay's own."""
        missing = [Lease(name=name, owner="", beat=0) for name in _NAMES if name not in self._seen]
        if self._presence not in self._seen:
            missing.append(Lease(name=self._presence, owner=self.owner, beat=0))
        if missing:
            self._store.add_leases(missing)
            self._observe()

    def _observe(self) -> None:
        now = self._clock()
        seen = {}
        for lease in self._store.leases():
            former = self._seen.get(lease.name)
            seen[lease.name] = former if former and former[0] == lease else (lease, now)
        self._seen = seen
        self.held = frozenset(
            number
            for name, number in _NAMES.items()
            if name in seen and seen[name][0].owner == self.owner
        )


def _name_of(partition: int) -> str:
    return f"partition-{partition:02}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayOptions:
    """The options of a relay."""

    function_name: ClassVar[str] = "relay"

    publish: Callable[..., object] = publish
    """Called as :func:`greenconn.publish`; ``app.publish`` has the connection of an application."""

    timeout: float = 30.0
    """Seconds for the confirm of one message."""

    poll_interval: float = 1.0
    """Seconds after which new rows are looked for where a relay is not notified of commits."""

    batch_size: int = 500
    """Rows that are read, and marked, at once."""

    concurrency: int = 100
    """Messages that are under way at once."""

    lease: float = 15.0
    """Seconds after which other relays take over the work of one that died."""

    keep: float = 86400.0
    """Seconds for which published rows are kept."""

    def __post_init__(self) -> None:
        check_callable(self, "publish")
        check_count(self, "batch_size", least=1, optional=False)
        check_count(self, "concurrency", least=1, optional=False)
        check_seconds(self, "timeout", "poll_interval", "lease", above_zero=True, optional=False)
        check_seconds(self, "keep", optional=False)


class _Batch:
    """Rows that are published together.

    Attributes:
        chains: what is left: rows of one key, or a single one without.
        sent: ids of those that the broker has.
        failed: those that it refused, with the error.
        error: why the broker takes nothing; None while it does.
    """

    def __init__(self, messages: list[PendingMessage]) -> None:
        by_key: dict[object, list[PendingMessage]] = {}
        for message in messages:
            key = message.id if message.ordering_key is None else message.ordering_key
            by_key.setdefault(key, []).append(message)
        self.chains = deque(by_key.values())
        self.sent: list[int] = []
        self.failed: list[tuple[PendingMessage, Exception]] = []
        self.error: Exception | None = None
        #: When the broker took a message last.
        self.sent_at = 0.0


class _Listener:
    """The connection by which PostgreSQL notifies a relay of commits.

    Arguments:
        conninfo: returns libpq's parameters, or None where it is not possible; may switch.
        table: the name of the table of messages.
        timeout: seconds for connecting.
        wake: called at a commit, and at the end of the connection; never switches.
    """

    def __init__(
        self,
        conninfo: Callable[[], dict[str, Any] | None],
        table: str,
        timeout: float,
        wake: Callable[[], object],
    ) -> None:
        self._conninfo = conninfo
        self._table = table
        self._timeout = timeout
        self._wake = wake
        self._session: Session | None = None
        self._is_usable = True
        self._backoff = Backoff(LISTENING)
        self._open_at = 0.0
        forget_at_fork(self)

    @property
    def is_open(self) -> bool:
        """Whether the relay is notified."""
        return self._session is not None and self._session.is_open

    def open(self) -> None:
        """Listen, if that is possible and not done.  May switch.

        Raises:
            Exception: the database cannot be used at all.
        """
        if self.is_open or not self._is_usable or monotonic() < self._open_at:
            return
        self.close()
        conninfo = self._conninfo()
        if conninfo is None:
            self._is_usable = False
            return
        from greenconn.transport.postgresql import KEEPALIVE
        from greenconn.transport.postgresql.connection import Session

        session = Session(
            {**KEEPALIVE, **conninfo}, "the outbox", "", self._on_notify, self._on_lost
        )
        self._session = session
        try:
            session.open(Deadline(self._timeout), self._timeout)
            self._is_usable = session.listen(CHANNEL)
        except Exception as exc:
            session.drop()
            pause = next(self._backoff)
            self._open_at = monotonic() + pause
            if self._backoff.failures == 1:
                logger.warning("outbox relay: cannot listen for commits: %s", error_summary(exc))
        except BaseException:
            session.drop()
            raise
        else:
            self._backoff.reset()
        if not self._is_usable:
            session.drop()

    def close(self) -> None:
        """Close the connection.  Never switches."""
        session, self._session = self._session, None
        if session is not None:
            session.drop()

    def forget(self) -> None:
        """Close it in the child of a fork, which would read what the parent waits for."""
        self.close()

    def _on_notify(self, channel: str, table: str) -> None:
        # In the hub.
        if table == self._table:
            self._wake()

    def _on_lost(self, exc: Exception) -> None:
        # In the hub.
        self._wake()


class Relay:
    """A relay, made by ``relay()`` of an outbox.  All its methods belong to one thread.

    Several relays of one outbox, in any processes, share the work.

    Arguments:
        store: the rows.
        options: see :class:`RelayOptions`.

    Attributes:
        sent: messages that were published since the beginning.
        failed: attempts that the broker refused.
    """

    def __init__(self, store: OutboxStore, options: RelayOptions) -> None:
        self.sent = 0
        self.failed = 0
        self._store = store
        self._options = options
        self._partitions = Partitions(store, options.lease)
        self._greenlet: Greenlet[..., Any] | None = None
        #: The process of the greenlet: a fork inherits none.
        self._pid = 0
        self._loop: Any = None
        self._wakeup = Event()
        #: Rows may have been written since it looked.
        self._is_behind = True
        self._is_stopping = False
        self._prune_at = 0.0
        #: When a row is to be tried again.
        self._retry_at = inf
        #: Ids of rows that the broker has.
        self._unmarked: list[int] = []
        self._calls = CallPool(None)

    def __repr__(self) -> str:
        state = "running" if self.is_running else "stopped"
        return f"<Relay: {state}, {len(self._partitions.held)} partitions, {self.sent} sent>"

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._greenlet is not None and not self._greenlet.dead and self._pid == os.getpid()

    def start(self) -> None:
        """Begin to publish.  Returns at once; nothing is done if it runs already."""
        if self.is_running:
            return
        self._is_stopping = False
        self._pid = os.getpid()
        self._loop = get_hub().loop
        # A driver that lets the hub turn is used as it is; other calls block in a thread of their own.
        self._calls = CallPool(None if are_sockets_green() else 1)
        self._partitions = Partitions(_Threaded(self._store, self._calls), self._options.lease)
        self._greenlet = spawn("outbox-relay", self._run)
        add_service(self)
        _running.add(self)

    def stop(self, timeout: Seconds | None = None) -> bool:
        """End it gracefully: what is under way gets its confirms and marks.  May switch.

        Arguments:
            timeout: seconds; None waits.

        Returns:
            False: the time was up, and what was under way will be published again.
        """
        greenlet = self._greenlet
        if greenlet is None or not self.is_running:
            return True
        self._is_stopping = True
        self._wakeup.set()
        greenlet.join(in_seconds(timeout))
        if greenlet.dead:
            return True
        greenlet.kill()
        return False

    def run(self) -> None:
        """Publish until another greenlet calls :meth:`stop`.  May switch."""
        self.start()
        greenlet = self._greenlet
        assert greenlet is not None
        try:
            greenlet.join()
        finally:
            self.stop()

    def wake(self) -> None:
        """Look for new rows now.  From any thread; never switches."""
        if self.is_running:
            self._loop.run_callback_threadsafe(self._note_rows)

    def _note_rows(self) -> None:
        # In the hub.
        self._is_behind = True
        self._wakeup.set()

    def unsettled(self) -> int:
        """Return 1 while rows may have been written that were not looked at, else 0.  Never switches."""
        return int(self.is_running and self._is_behind)

    def stats(self) -> dict[str, Any]:
        """Return numbers of now and since the beginning.  Asks the database; may switch.

        Returns:
            ``waiting`` and ``failing``: rows that were not published, and those of them that the broker
            has refused; ``oldest``: seconds since the oldest was written, None without any;
            ``sent``, ``failed``; ``partitions``: how many of 32 this relay holds.
        """
        backlog = self._store.backlog()
        oldest = backlog.oldest_ms
        return {
            "waiting": backlog.waiting,
            "failing": backlog.failing,
            "oldest": None if oldest is None else max(0.0, (now_ms() - oldest) / 1000),
            "sent": self.sent,
            "failed": self.failed,
            "partitions": len(self._partitions.held),
        }

    # -- the greenlet

    def _run(self) -> None:
        store = _Threaded(self._store, self._calls)
        backoff = Backoff(RETRYING)
        timeout = min(CONNECTING, self._options.lease / RENEWALS)
        listener = _Listener(store.conninfo, self._store.table(), timeout, self._wakeup.set)
        try:
            while not self._is_stopping:
                self._wakeup.clear()
                try:
                    listener.open()  # first: what is committed from now on is notified
                    is_more = self._publish_some(store)
                except Exception as exc:
                    pause = next(backoff)
                    logger.warning("outbox relay: %s; again in %.1f s", error_summary(exc), pause)
                    self._pause(pause)
                else:
                    backoff.reset()
                    if not is_more:
                        # Without partitions it has not looked.
                        self._is_behind = self._wakeup.is_set() or not self._partitions.held
                        interval = self._options.poll_interval
                        self._wakeup.wait(self._time_left() if listener.is_open else interval)
        finally:
            listener.close()
            _running.discard(self)
            remove_service(self)
            self._finish(store)

    def _time_left(self) -> float:
        """Return the seconds until something is due of which there is no notification."""
        now = monotonic()
        due = min(self._partitions.renewal_due, self._retry_at - now)
        if 0 in self._partitions.held:
            due = min(due, max(self._options.poll_interval, self._prune_at - now))
        return max(0.0, due)

    def _finish(self, store: OutboxStore) -> None:
        try:
            self._partitions.release()
        except Exception as exc:
            logger.warning("outbox relay: its partitions are free later: %s", error_summary(exc))
        finally:
            store.close()
            self._calls.close()

    def _pause(self, seconds: float) -> None:
        """Wait, but for :meth:`stop`.  May switch."""
        deadline = Deadline(seconds)
        while not self._is_stopping and not deadline.has_ended:
            self._wakeup.wait(deadline.left())
            self._wakeup.clear()

    def _publish_some(self, store: OutboxStore) -> bool:
        """Publish a batch of rows; return whether there may be more.  May switch.

        Raises:
            Exception: of the database, or why the broker takes nothing.
        """
        partitions = self._partitions
        # First, while their partitions are this relay's.
        self._mark_sent(store)
        if not partitions.renewal_due:
            partitions.renew()
            partitions.rebalance()
        self._prune(store)
        if not partitions.held or not partitions.are_valid:
            return False
        size = self._options.batch_size
        if self._retry_at <= monotonic():
            self._retry_at = inf
        messages = store.pending(sorted(partitions.held), now_ms(), size)
        if not messages:
            return False
        batch = _Batch(messages)
        self._publish(batch, store)
        if batch.error is not None:
            raise batch.error
        return len(messages) == size

    def _publish(self, batch: _Batch, store: OutboxStore) -> None:
        """Publish a batch, and mark its rows.  May switch."""
        count = min(self._options.concurrency, len(batch.chains))
        workers = [spawn("outbox-publish", self._publish_chains, batch) for _ in range(count)]
        renewing: Exception | None = None
        try:
            while not all(each.dead for each in workers):
                gevent.joinall(workers, timeout=max(0.05, self._partitions.renewal_due))
                if not self._partitions.renewal_due:
                    try:
                        self._partitions.renew()
                    except Exception as exc:
                        renewing = exc  # what is under way ends when the leases do
        finally:
            gevent.killall(workers)
            self._mark(batch, store)
        if renewing is not None:
            raise renewing

    def _mark(self, batch: _Batch, store: OutboxStore) -> None:
        self.sent += len(batch.sent)
        self.failed += len(batch.failed)
        self._unmarked += batch.sent
        self._mark_sent(store)
        now = now_ms()
        for message, exc in batch.failed:
            pause = min(LONGEST_PAUSE, 2.0 ** min(message.attempts, 16))
            text = error_summary(exc)
            logger.warning(
                "outbox message %d was refused, attempt %d, again in %g s: %s",
                message.id,
                message.attempts + 1,
                pause,
                text,
                extra={"attempt": message.attempts + 1},
            )
            store.mark_failed(message.id, text[:ERROR_LENGTH], now + int(pause * 1000))
            self._retry_at = min(self._retry_at, monotonic() + pause)

    def _mark_sent(self, store: OutboxStore) -> None:
        """Mark what the broker has; if that fails it is tried again before anything else."""
        if self._unmarked:
            store.mark_sent(self._unmarked, now_ms())
            self._unmarked = []

    def _publish_chains(self, batch: _Batch) -> None:
        while batch.chains:
            for message in batch.chains.popleft():
                if not self._publish_one(batch, message):
                    break

    def _publish_one(self, batch: _Batch, message: PendingMessage) -> bool:
        """Publish a message; False: the later ones of its key must wait.  May switch."""
        left = self._partitions.left(message.partition)
        if self._is_stopping or batch.error is not None or not left:
            return False
        options, begun = self._options, monotonic()
        try:
            arguments = publish_arguments(message.envelope)
            options.publish(body=message.body, timeout=min(options.timeout, left), **arguments)
        except Exception as exc:
            is_away = isinstance(exc, OperationalError) and not isinstance(exc, _OF_MESSAGE)
            if is_away and batch.sent_at < begun:
                batch.error = exc
            else:
                # Meanwhile the broker took others.
                batch.failed.append((message, exc))
            return False
        batch.sent.append(message.id)
        batch.sent_at = monotonic()
        return True

    def _prune(self, store: OutboxStore) -> None:
        """Delete rows that were published long ago; one of several relays does it."""
        now = monotonic()
        if now < self._prune_at or 0 not in self._partitions.held:
            return
        before = now_ms() - int(self._options.keep * 1000)
        count = store.prune(before, PRUNED_AT_ONCE)
        if count < PRUNED_AT_ONCE:
            self._prune_at = now + PRUNE_INTERVAL


class _Threaded:
    """A store whose calls are made where they do not block the hub; see ``CallPool``."""

    def __init__(self, store: OutboxStore, calls: CallPool) -> None:
        self._store = store
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._store, name)
        return lambda *arguments: self._calls.call(function, *arguments)


#: The relays of this process.
_running: Final[weakref.WeakSet[Relay]] = weakref.WeakSet()


def has_relays() -> bool:
    """Return whether a relay runs in this process.  Never switches."""
    return bool(_running)


def wake_relays() -> None:
    """Have the relays of this process look for new rows now.  From any thread; never switches."""
    for relay in list(_running):
        relay.wake()
