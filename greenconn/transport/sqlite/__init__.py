"""SQLite: a durable broker in a file, which the processes of one machine share without a server.

Theory
------
Everything is in the file, for all processes: queues, messages, exchanges, bindings, who consumes.  A
process that consumes has a named pipe beside the file.  When a claim finds less than was wanted, its
transaction notes that the link waits to be woken (*armed*).  The link that stores a message afterwards
sees that in its transaction, and wakes the other once it has committed.  So no wake-up is missing, and
busy consumers get none.

Of several that wait for one queue a message wakes one.  It sees in its claim what is stored until then,
too, and wakes the next if it has no room for all.  A link that was woken may be unable to claim: it has
no room any more, is stuck, or dead.  So where others wait on, the one that has woken it looks a moment
later whether the queue still has messages, and wakes one more.  Slow polling covers a process that dies
between the two.

What comes by time alone (delays, leases, expiry) is looked at by a timer of each process, set to the
next time that is known.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from time import monotonic, time
from typing import Any, ClassVar, Final
from weakref import WeakValueDictionary

from gevent import get_hub

from greenconn.broker.channel import StoreChannel
from greenconn.broker.exchanges import Topology
from greenconn.broker.link import StoreLink, StoreOptions, StoreTransport
from greenconn.broker.port import CLAIM_TIME, Claimed, Entry, Settlement, SettleRequest, Store
from greenconn.broker.queues import Declaration, is_lost
from greenconn.green.deadline import Deadline
from greenconn.green.hub import weakly
from greenconn.green.supervisor import Gathered, spawn
from greenconn.transport.sqlite import messages
from greenconn.transport.sqlite.database import (
    CannotOpen,
    Database,
    DiskFull,
    SqliteOptions,
    database_of,
)
from greenconn.transport.sqlite.queues import FileTopology, Pipes, ready_of, wake_all

__all__ = ["Channel", "Transport"]

logger = logging.getLogger("greenconn.transport.sqlite")

#: How to write the address.
_FORM = "write sqlite:///relative.db or sqlite:////absolute/path.db"

#: Seconds between two looks because of the clock, at least.
LEAST_PAUSE: Final = 0.005


class Channel(StoreChannel[StoreLink]):
    """A channel over a SQLite file."""

    supported_arguments = replace(
        StoreChannel.supported_arguments,
        queue=StoreChannel.supported_arguments.queue
        | {
            "x-expires",
            "x-max-length",
            "x-max-length-bytes",
            "x-overflow",
            "x-single-active-consumer",
        },
    )


class Transport(StoreTransport):
    """``sqlite:///path.db``: one file, shared by the processes of one machine, without a server.

    ``transport_options`` are those of :class:`~greenconn.transport.sqlite.database.SqliteOptions`.
    """

    Channel = Channel
    Options: ClassVar[type[StoreOptions]] = SqliteOptions
    driver_type = "sqlite"
    driver_name = "sqlite3"
    default_port = None
    has_host = False

    @property
    def path(self) -> str:
        """The file, as an absolute path.

        Raises:
            ValueError: the address names none.
        """
        client = self.client
        host: str | None = client.hostname
        path: str | None = client.virtual_host
        if host and host != "localhost":
            raise ValueError(f"{client.as_uri()}: a SQLite file has no host {host!r}; {_FORM}")
        if not path or path == "/":
            raise ValueError(f"{client.as_uri()}: a URL must name a SQLite file; {_FORM}")
        if path == ":memory:":
            raise ValueError(
                f"{client.as_uri()}: an in-memory database cannot be shared; use memory:// for a "
                f"broker in this process"
            )
        if "\0" in path:
            raise ValueError(f"{client.as_uri()}: a path must not contain a zero byte; {_FORM}")
        return os.path.abspath(path)

    def place(self) -> str:
        """Return the file."""
        return os.path.realpath(self.path)

    def make_store(self, wake: Callable[[str | None], None]) -> SqliteStore:
        """Return a store that is not open yet."""
        return SqliteStore(self.client, wake, self.path, self.options)

    def driver_version(self) -> str:
        return sqlite3.sqlite_version

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {}


#: The stores of this process that are registered, by their owner.
_open_stores: Final[WeakValueDictionary[str, SqliteStore]] = WeakValueDictionary()


class SqliteStore(Store):
    """A store in a file.

    Arguments:
        path: absolute.
    """

    put_limit = 500
    put_bytes = 4 * 1024 * 1024
    settle_limit = 1000
    claim_limit = 256
    body_encoding = None
    keeps_body_apart: ClassVar[bool] = True
    replaces_at_once: ClassVar[bool] = True
    topology: Topology

    def __init__(
        self,
        client: Any,
        wake: Callable[[str | None], None],
        path: str,
        options: SqliteOptions,
    ) -> None:
        super().__init__(client, wake)
        self.path = path
        #: Where the pipes of all links to the file are, whatever each calls it.
        self._place = os.path.realpath(path)
        self.lease: float = options.lease
        self._options = options
        self._pid = os.getpid()
        self._hub = get_hub()
        self._database = database_of(path, options)
        self.topology = FileTopology(self._database)
        self._claims = count(int.from_bytes(os.urandom(6), "big") << 14)
        self._fifo: WakeupPipe | None = None
        #: Numbers and names of the queues that are consumed here.
        self._consumed: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._timer: Any = None
        self._timer_at: float | None = None
        self._is_maintaining = False
        #: Queues of which others wait than those that this link has woken.
        self._followed: Gathered[int] = Gathered(CLAIM_TIME, self._follow_up, "sqlite-wake")
        #: The link is in the table of owners, unless others have taken it for dead.
        self._is_registered = False
        #: The machine's clock less the steady one, and from when on (steady) a lease that has ended
        #: says that its link is dead: where the clock jumped, or the machine slept, all seem overdue.
        self._offset = time() - monotonic()
        self._trusts_from = monotonic() + self.lease
        #: Links whose pipes no process reads.
        self._silent: set[str] = set()
        self._is_open = self._is_dropped = False

    @property
    def database(self) -> Database:
        """The file, and the thread in which it is used."""
        return self._database

    # -- life

    def open(self, deadline: Deadline) -> None:
        self._database.open()
        self._is_open = True
        self._maintain()

    def close(self) -> None:
        if self._followed.items:
            left = set(self._followed.items)
            self._wake_processes(self._database.write(wake_all, left, self.owner))
        if self._is_registered:
            self._wake_processes(
                self._database.write(messages.leave, self._database.queues, self.owner)
            )
        self.drop()
        self._database.join()

    def drop(self) -> None:
        if self._is_dropped:
            return
        self._is_dropped = True
        self._is_open = False
        _open_stores.pop(self.owner, None)
        self._stop_timer()
        self._followed.stop()
        if os.getpid() != self._pid:
            self._database.forget()
            if self._fifo is not None:
                self._fifo.forget()
            return
        self._database.leave()
        if self._fifo is not None:
            self._fifo.close()

    def _register(self) -> None:
        """Be known to the others.  May switch."""
        if self._is_registered:
            return
        if self._fifo is None:
            try:
                self._fifo = WakeupPipe(self._pipe(self.owner), self._on_words)
            except OSError as exc:
                raise CannotOpen(
                    f"SQLite file {self.path}: no named pipe can be created beside it ({exc}), by "
                    f"which processes wake each other; use another directory"
                ) from exc
        self._database.write(messages.register, self.owner, self.lease)
        self._is_registered = True
        _open_stores[self.owner] = self

    def _pipe(self, owner: str) -> str:
        """Return the path of a link's pipe, not from the file alone, which others may have written."""
        name = owner if owner.isascii() and owner.isalnum() else "unknown"
        return f"{self._place}-{name}.wake"

    # -- waking

    def _on_words(self, words: list[bytes]) -> None:
        # In the hub.
        for word in set(words):
            name = self._consumed.get(int(word)) if word.isdigit() else None
            if name is not None:
                self.wake(name)
            else:
                self._schedule_maintenance(time())

    def _wake_processes(self, pipes: Pipes) -> None:
        for owner, numbers in pipes.items():
            words = [b"%d" % number for number in numbers]
            # Links of this hub, the own one among them, need no pipe.
            near = _open_stores.get(owner)
            if near is not None and near._pid == self._pid and near._hub is self._hub:
                near._on_words(words)
            elif not wake_process(self._pipe(owner), words):
                self._silent.add(owner)
        if self._silent:
            self._schedule_maintenance(time())

    def _follow_up(self, numbers: Collection[int]) -> None:
        try:
            # It seldom has something to do, and then writes nothing.
            if self._is_open and self._database.read(ready_of, numbers):
                woken: tuple[Pipes, Collection[int]] = self._database.write(
                    messages.follow_up, numbers, self.owner
                )
                self._wake_processes(woken[0])
                self._followed.add(woken[1])
        except DiskFull as exc:
            logger.error("%s", exc)
        except Exception as exc:
            if self._is_open:
                self.lost(exc)

    def _schedule_maintenance(self, at: float | None) -> None:
        """Run the maintenance at that time, or earlier.  Never switches."""
        now = time()
        if self._consumed:
            latest = now + self._options.look_interval
            at = latest if at is None else min(at, latest)
        if at is None or not self._is_open or (self._timer_at is not None and self._timer_at <= at):
            return
        self._stop_timer()
        self._timer_at = at
        self._timer = get_hub().loop.timer(max(at - now, LEAST_PAUSE), ref=False)
        self._timer.start(weakly(self._on_time), update=True)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        self._timer_at = None
        if timer is not None:
            timer.stop()
            timer.close()

    def _on_time(self) -> None:
        # In the hub.
        self._stop_timer()
        if self._is_open and not self._is_maintaining:
            self._is_maintaining = True
            spawn("sqlite-maintenance", self._run_maintenance)

    def _run_maintenance(self) -> None:
        try:
            self._maintain()
        except DiskFull as exc:
            logger.error("%s", exc)
            self._schedule_maintenance(None)
        except Exception as exc:
            if self._is_open:
                self.lost(exc)
        finally:
            self._is_maintaining = False

    def _maintain(self) -> None:
        silent, self._silent = self._silent, set()
        seen = self._database.write(
            messages.maintain,
            self._database.queues,
            messages.Claim(next(self._claims), self.lease, self.owner),
            silent,
            self._is_registered,
            self._trusts_clock(),
            on_left=self._seen_in_vain,
        )
        for owner in seen.orphans:
            remove_pipe(self._pipe(owner))
        # A process that does not read its pipe is dead; a living one is woken to renew its lease.
        self._wake_processes({owner: {0} for owner in seen.overdue})
        if seen.has_lost:
            self._look_for_deleted()
        for number in seen.ready:
            if number in self._consumed:
                self.wake(self._consumed[number])
        self._wake_processes(seen.pipes)
        self.died(seen.dead)
        self._schedule_maintenance(seen.next_at)

    def _look_for_deleted(self) -> None:
        """End the consumers of queues that were deleted.  May switch."""
        numbers = list(self._consumed)
        there: set[int] = self._database.read(messages.existing, numbers)
        for number in numbers:
            name = self._consumed.get(number)
            if name is not None and number not in there:
                self._forget(name)
                self.gone(name)

    def _trusts_clock(self) -> bool:
        """Return whether a lease that has ended says that its link is dead.  Never switches."""
        now = monotonic()
        offset = time() - now
        if abs(offset - self._offset) > self.lease / 3:
            self._trusts_from = now + self.lease
        self._offset = offset
        return now >= self._trusts_from

    def _seen_in_vain(self, seen: messages.MaintenanceResult) -> None:
        """Drop the result of a lookup that nothing waits for any more.  Never switches."""
        self._wake_processes(seen.pipes)
        self._requeue(seen.dead)

    # -- queues

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        if declaration.owner is not None:
            self._register()
        made: Declaration = self._database.write(
            self._database.queues.make,
            name,
            declaration,
            self.owner,
            durable=declaration.owner is None,
        )
        if made.policy.expires is not None:
            self._schedule_maintenance(time() + made.policy.expires)
        return made

    def find_queue(self, name: str) -> Declaration | None:
        queues = self._database.queues
        found: Declaration | None = self._database.read(queues.find, name, self.owner)
        return found

    def queue_names(self) -> Collection[str]:
        found: Collection[str] = self._database.read(self._database.queues.names, self.owner)
        return found

    def drop_queue(self, name: str) -> int:
        size, consumers = self._database.write(self._database.queues.drop, name, self.owner)
        self._forget(name)
        self._wake_processes({owner: {0} for owner in consumers})
        return int(size)

    def set_consumers(self, name: str, consumers: int, *, exclusive: bool = False) -> bool:
        if consumers:
            self._register()
        elif not self._is_registered:
            return True
        noted = self._set_consumers(name, consumers, exclusive)
        if noted is None and self._leave_for_lost(name):
            noted = self._set_consumers(name, consumers, exclusive)
        if noted is None:
            return False
        number, pipes, idle_until = noted
        self._forget(name)
        if consumers:
            self._consumed[number] = name
            self._numbers[name] = number
        self._wake_processes(pipes)
        self._schedule_maintenance(idle_until)
        return True

    def _set_consumers(
        self, name: str, consumers: int, exclusive: bool
    ) -> tuple[int, Pipes, float | None] | None:
        noted: tuple[int, Pipes, float | None] | None = self._database.write(
            self._database.queues.set_consumers, name, self.owner, consumers, exclusive
        )
        return noted

    def _leave_for_lost(self, name: str) -> bool:
        """Forget consumers of links that were lost in this process; whether there were any."""
        owners: set[str] = self._database.read(self._database.queues.consumers, name)
        lost = [each for each in owners if is_lost(each)]
        for owner in lost:
            self._wake_processes(self._database.write(messages.leave, self._database.queues, owner))
        return bool(lost)

    def _forget(self, name: str) -> None:
        number = self._numbers.pop(name, None)
        if number is not None:
            self._consumed.pop(number, None)

    def other_consumers(self, name: str) -> int:
        return int(self._database.read(self._database.queues.other_consumers, name, self.owner))

    def purge(self, name: str) -> int:
        return int(self._database.write(self._database.queues.purge, name))

    def size(self, name: str) -> int:
        return int(self._database.read(self._database.queues.size, name))

    def counts(self, names: Collection[str]) -> Mapping[str, tuple[int, int]]:
        found: Mapping[str, tuple[int, int]] = self._database.read(
            self._database.queues.counts, names, self.owner
        )
        return found

    # -- messages

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        stored: messages.PutResult = self._database.write(
            messages.put,
            self._database.queues,
            entries,
            messages.Claim(next(self._claims), self.lease, self.owner),
            on_left=self._stored_in_vain,
            grows=True,
            durable=must_last(entries),
        )
        self._after(stored)
        return stored.outcomes

    def _stored_in_vain(self, stored: messages.PutResult) -> None:
        """Drop the outcome of a publish that nothing waits for any more.  Never switches."""
        self._wake_processes(stored.pipes)
        self._followed.add(stored.others)
        self._requeue(stored.dead)

    def _after(self, stored: messages.PutResult | messages.ClaimResult) -> None:
        if stored.pipes:
            self._wake_processes(stored.pipes)
        if stored.others:
            self._followed.add(stored.others)
        if stored.dead:
            self.died(stored.dead)
        if stored.next_at is not None:
            self._schedule_maintenance(stored.next_at)
        elif self._timer is None:
            # Where no process consumes any more, a publisher finds what killed consumers have left.
            self._schedule_maintenance(time() + self.lease)

    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        database, how = self._database, messages.Claim(next(self._claims), self.lease, self.owner)
        taken: messages.ClaimResult
        numbers: dict[int, int] = {}
        for name, most in wanted.items():
            if name in self._numbers:
                numbers[self._numbers[name]] = most
        if numbers:
            taken = database.write(
                messages.claim, database.queues, numbers, how, on_left=self._taken_in_vain
            )
        elif len(wanted) == 1:  # ``basic_get``
            (name,) = wanted
            taken = database.write(
                messages.get, database.queues, name, how, on_left=self._taken_in_vain
            )
        else:
            return ()  # they were deleted meanwhile
        for number in taken.due:
            if number in self._consumed and number not in numbers:
                self.wake(self._consumed[number])
        self._after(taken)
        return taken.claimed

    def _taken_in_vain(self, taken: messages.ClaimResult) -> None:
        """Requeue claimed messages that nothing waits for any more.  Never switches."""
        self._wake_processes(taken.pipes)
        self._followed.add(taken.others)
        self._requeue([*taken.claimed, *taken.dead])

    def _requeue(self, claimed: Sequence[Claimed]) -> None:
        if claimed:
            self._database.post(
                self._stored_in_vain,
                messages.settle,
                self._database.queues,
                [SettleRequest(each, Settlement.REQUEUE, is_unseen=True) for each in claimed],
                messages.Claim(next(self._claims), self.lease, self.owner),
            )

    def settle(self, requests: Sequence[SettleRequest]) -> int | None:
        settled: messages.PutResult = self._database.write(
            messages.settle,
            self._database.queues,
            requests,
            messages.Claim(next(self._claims), self.lease, self.owner),
            on_left=self._stored_in_vain,
        )
        for queue, error in settled.refused:
            self.log_refusal(queue, error)
        self._after(settled)
        return settled.late

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        if self._is_registered:
            self._database.write(messages.renew_owner, self.owner, self.lease)
        if not handles:
            return ()
        lost: list[messages.Handle] = self._database.write(messages.renew, handles, self.lease)
        return lost


def must_last(entries: Sequence[Entry]) -> bool:
    """Return whether any of the messages is more than transient (1)."""
    for entry in entries:
        properties = entry.envelope.get("properties")
        if properties.__class__ is not dict or properties.get("delivery_mode") != 1:
            return True
    return False


#: Bytes that one look takes.
CHUNK: Final = 65536
#: Bytes that are written in one piece on every system (POSIX).
ATOMIC: Final = 512


class WakeupPipe:
    """A named pipe that this process reads, to be woken by others of this machine without polling.

    It has the permissions of a file, needs no port, and fails at once when its reader has gone; Linux
    and macOS both have it.  The words written to it are hints: they are lost when the reader is stuck
    for so long that the pipe is full.

    Arguments:
        path: of the pipe; it is made, and must not be there.
        on_words: called in the hub with the words of a read; never switches.  If it is a method, its
            object is not kept alive.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: str, on_words: Callable[[list[bytes]], object]) -> None:
        self.path = path
        self._on_words = weakly(on_words)
        self._rest = b""
        os.mkfifo(path, 0o600)
        try:
            self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                # While there is a writer, there is no end of file.
                self._writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except BaseException:
                os.close(self._reader)
                raise
        except BaseException:
            os.unlink(path)
            raise
        # As a socket does, it keeps a program alive that waits for nothing else.
        self._watcher: Any = get_hub().loop.io(self._reader, 1)
        self._watcher.start(self._read)

    def close(self) -> None:
        """Remove it.  Never switches.  A second call does nothing."""
        if self._watcher is not None:
            self.forget()
            with suppress(OSError):
                os.unlink(self.path)

    def forget(self) -> None:
        """Drop it without closing the parent's pipe.  Never switches."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            # First: a watcher of a closed descriptor would end the process.
            watcher.close()
            os.close(self._reader)
            os.close(self._writer)

    def _read(self) -> None:
        # In the hub.
        try:
            chunk = os.read(self._reader, CHUNK)
        except BlockingIOError:
            return
        *words, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > ATOMIC:
            self._rest = b""  # not written by this library
        self._on_words(words)


def wake_process(path: str, words: list[bytes]) -> bool:
    """Write *words* to the pipe of another process; False if no process reads it.  Never switches."""
    try:
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        return exc.errno not in (errno.ENXIO, errno.ENOENT)
    try:
        if not stat.S_ISFIFO(os.fstat(writer).st_mode):
            return False  # what is not a pipe is not written to
        piece = b""
        for word in words:
            if len(piece) + len(word) + 1 > ATOMIC:
                os.write(writer, piece)
                piece = b""
            piece += word + b"\n"
        os.write(writer, piece)
    except BlockingIOError:
        pass  # it is full of words that say as much
    except BrokenPipeError:
        return False
    finally:
        os.close(writer)
    return True


def remove_pipe(path: str) -> None:
    """Remove the pipe of a process that has died; what is not a pipe stays.  Never switches."""
    with suppress(OSError):
        if stat.S_ISFIFO(os.lstat(path).st_mode):
            os.unlink(path)
