"""The MongoClient that all connections of one hub to the same servers share.

pymongo's client is made to be shared: it has a pool of sockets, and one or two helpers for each
server, which are threads, or greenlets in a patched process.  It is closed when nobody uses it.

In the child of a fork it is forgotten.  pymongo itself drops the sockets there; nothing is sent over
them, and no client is used across a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

import gevent
import pymongo
from pymongo import errors

from greenconn.green import fork, thread_end
from greenconn.green.deadline import Deadline
from greenconn.green.perhub import PerHub
from greenconn.green.supervisor import spawn
from greenconn.green.threadpool import CallPool, are_sockets_green
from greenconn.transport.mongodb.address import Address
from greenconn.transport.mongodb.errors import ours_for
from greenconn.url import mask_secrets

if TYPE_CHECKING:
    from gevent import Greenlet

__all__ = ["Client", "lease"]

T = TypeVar("T")

#: Seconds after which the server is asked again what time it is.
CLOCK_LIFETIME: Final = 60.0
#: Seconds that calls have to end before the client is closed under them.
CLOSE_TIMEOUT: Final = 5.0
#: Seconds that a server has to hear that it is closed.
FAREWELL_TIMEOUT: Final = 0.5
#: The part of the time to connect that pymongo has for looking for a server.
GREETING: Final = 0.8

_Key = tuple[Address, str, int]


class Client:
    """Servers, and the database on them.

    Arguments:
        address: where they are.
        where: the same for messages, password masked.
        threads: calls that may be under way at once in an unpatched process.

    Attributes:
        database: pymongo's object for the database.
        is_set: whether the servers are a replica set (or a cluster of such), so that they tell of
            changes.
    """

    def __init__(self, address: Address, where: str, threads: int) -> None:
        self.where = where
        self.is_green = are_sockets_green()
        self.users = 0
        self._process = os.getpid()
        self.is_set = False
        #: What former connections have learnt of this database; see ``directory``.
        self.notes: dict[str, Any] = {}
        self._aside = self.aside(threads)
        self._clock_offset = timedelta()
        self._clock_read_at: float | None = None
        try:
            # May ask a name server for the addresses behind mongodb+srv.
            self._mongo: Any = self._aside.call(_made, address)
        except (errors.InvalidURI, errors.ConfigurationError, ValueError, TypeError) as exc:
            self._aside.close()
            raise ValueError(f"{where}: {mask_secrets(str(exc))}") from None
        except BaseException:
            self._aside.close()
            raise
        self.database: Any = self._mongo[address.database]
        thread_end.register(self)

    def end_with_thread(self) -> None:
        """Close it with the thread that it belongs to.  Never switches; it blocks for a moment."""
        try:
            _close(self._mongo)
        except errors.PyMongoError:
            pass  # the server was not there to hear it

    @property
    def is_parents(self) -> bool:
        """Whether this process is a child of the one that made it, and must not use it."""
        return os.getpid() != self._process

    def aside(self, threads: int) -> CallPool:
        """A place for blocking calls; who makes it closes it."""
        return CallPool(None if self.is_green else threads)

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call something of pymongo's.  May switch.

        Raises:
            LinkLost, LoginRefused: instead of pymongo's own errors for that.
            pymongo.errors.PyMongoError: the server refuses.
        """
        return self.call_in(self._aside, function, *args, **kwargs)

    def call_in(self, aside: CallPool, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """As :meth:`call`, in a place of the caller's.  May switch."""
        try:
            return aside.call(function, *args, **kwargs)
        except errors.PyMongoError as exc:
            ours = ours_for(exc, self.where)
            if ours is None:
                raise
            raise ours from exc

    def greet(self, deadline: Deadline) -> None:
        """Say hello to the server that takes writes.  May switch.

        Raises:
            LinkLost: there is none, or it does not answer in time.
            LoginRefused: the login was refused.
        """
        left = deadline.left()
        # pymongo must be the first to give up: it knows what each server has answered.
        answer = self.call(_hello, self._mongo, None if left is None else left * GREETING)
        self._read_clock(answer)
        self.is_set = "setName" in answer or answer.get("msg") == "isdbgrid"

    def session(self) -> Any:
        """A session of pymongo's, for a cursor that is read by several calls."""
        return self._mongo.start_session()

    # The server's clock: leases and expiry of all programs go by it.

    def now(self) -> datetime:
        """Return the server's time, by the last look; without a zone, as pymongo gives times."""
        return datetime.now(timezone.utc).replace(tzinfo=None) + self._clock_offset

    def set_clock(self) -> None:
        """Look at the server's clock, if that is long ago.  May switch."""
        if self._clock_read_at is None or monotonic() - self._clock_read_at > CLOCK_LIFETIME:
            self._read_clock(self.call(_hello, self._mongo, None))

    def _read_clock(self, answer: Any) -> None:
        now = datetime.now(timezone.utc).replace(tzinfo=None)
        there = answer.get("localTime")
        self._clock_offset = timedelta() if there is None else there - now
        self._clock_read_at = monotonic()

    def close(self) -> None:
        """Close it.  May switch."""
        deadline = Deadline(CLOSE_TIMEOUT)
        while self._aside.is_busy and not deadline.has_ended:
            # Calls that nobody waits for any more: pymongo would let them wait for servers that it
            # does not look for any more when it is closed.
            gevent.sleep(0.005)
        try:
            self._aside.call(_close, self._mongo)
        except errors.PyMongoError:
            pass  # the server was not there to hear it
        finally:
            self._aside.close()


def _made(address: Address) -> Any:
    # It connects with its first call.
    return pymongo.MongoClient(address.host, connect=False, **dict(address.options))


def _hello(mongo: Any, timeout: float | None) -> Any:
    with pymongo.timeout(timeout):
        return mongo.admin.command("hello")


def _close(mongo: Any) -> None:
    # It tells the server which sessions have ended; if that is away, they end by themselves.
    with pymongo.timeout(FAREWELL_TIMEOUT):
        mongo.close()


class _Clients:
    """Those of one hub, by address."""

    def __init__(self) -> None:
        self.open: dict[_Key, Client] = {}
        fork.register(self)

    def forget(self) -> None:
        """See :class:`greenconn.green.fork.Forgetful`."""
        self.open.clear()


_clients: Final[PerHub[_Clients]] = PerHub(_Clients)


class lease:  # noqa: N801 - used as what it gives
    """The use of a client by one connection, until ``end``.  Making it may switch.

    Attributes:
        client: the client.
    """

    def __init__(self, address: Address, where: str, threads: int) -> None:
        self._clients = _clients.get()
        self._key: _Key = (address, where, threads)
        found = self._clients.open.get(self._key)
        if found is None:
            made = Client(address, where, threads)
            # Another greenlet may have been quicker.
            found = self._clients.open.setdefault(self._key, made)
            if found is not made:
                spawn("mongodb close", made.close)
        self.client = found
        found.users += 1
        self._is_over = False

    def end(self) -> Greenlet[..., Any] | None:
        """Nobody uses it here any more; return what closes it, if it was the last one.

        Never switches.  Again: does nothing.
        """
        if self._is_over:
            return None
        self._is_over = True
        client = self.client
        client.users -= 1
        if client.users or self._clients.open.get(self._key) is not client:
            return None
        del self._clients.open[self._key]
        return spawn("mongodb close", client.close)
