"""The MongoClient that all connections of one hub to the same servers share.

pymongo's client is made to be shared: it has a pool of sockets, and one or two helpers for each
server, which are threads, or greenlets in a patched process.  It is closed when it has no more users.

In the child of a fork it is forgotten.  pymongo itself drops the sockets there; nothing is sent over
them, and no client is used across a fork.

pymongo's errors are raised as greenconn's, which are of pymongo's classes, too.

Also messages as documents, with kombu's fields and greenconn's.  A message that waits is what kombu
makes of it: ``payload`` (the envelope as JSON), ``queue`` and ``priority``, of which the lowest comes
first.  A message that is claimed has no ``queue``, so that no program of kombu's, which looks for that,
can take it: the name is in ``claimed`` meanwhile. ``claim`` says by which claim, and ``lease_until``
when it is redelivered unless that is renewed.  A delayed message looks the same, without a claim, until
``due_at``.  Renaming is one update of one document, which is atomic: a message is in one of the two
states, even if a process dies. ``deliveries`` counts the claims; one that was taken back before a
handler began is not counted, and leaves ``redelivered``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import gevent
import pymongo
from bson import ObjectId
from msgspec import Struct
from pymongo import ReadPreference, WriteConcern, errors, uri_parser

from greenconn.broker.envelope import mark_redelivered, read_envelope
from greenconn.broker.port import Claimed, Entry
from greenconn.credentials import supplied
from greenconn.exceptions import AccessRefused, AMQPError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.green.hub import PerHub, close_at_thread_end, forget_at_fork
from greenconn.green.supervisor import spawn
from greenconn.green.threadpool import CallPool, are_sockets_green
from greenconn.options import split_url
from greenconn.url import mask_secrets

if TYPE_CHECKING:
    from gevent import Greenlet

    from greenconn.transport.mongodb import MongoOptions
    from greenconn.transport.mongodb.changes import Broadcast
    from greenconn.transport.mongodb.queues import KnownExchange


Document = dict[str, Any]

#: The highest priority (kombu's).
HIGHEST: Final = 9
#: When a message need not be delivered any more: for the server (kombu's), and for consumers of ours.
EXPIRE_AT: Final = "expire_at"
DEAD_AT: Final = "dead_at"
#: Where the former is while the message is claimed: the server must not remove it then.
HELD_EXPIRE_AT: Final = "held_expire_at"
#: A message has it that was delivered without being counted.
REDELIVERED: Final = "redelivered"

#: Requeues a claimed message.
REQUEUE: Final[Document] = {
    "$rename": {"claimed": "queue", HELD_EXPIRE_AT: EXPIRE_AT},
    "$unset": {"claim": "", "lease_until": "", "due_at": ""},
}


class Handle(Struct, frozen=True):
    """A claimed message: its key, and the claim."""

    id: Any
    claim: Any


def claim_update(claim: Any, lease_until: datetime) -> Document:
    """Return the update that claims a waiting message."""
    return {
        "$rename": {"queue": "claimed", EXPIRE_AT: HELD_EXPIRE_AT},
        "$set": {"claim": claim, "lease_until": lease_until},
        "$inc": {"deliveries": 1},
    }


def message_of(entry: Entry, payload: str, now: Callable[[], datetime], *, ttl: bool) -> Document:
    """Return the document of a message on its way into a queue.

    Arguments:
        now: tells what time it is on the server.
        ttl: the server removes what has expired.
    """
    priority = HIGHEST - min(max(entry.priority, 0), HIGHEST)
    document: Document = {"_id": ObjectId(), "payload": payload, "priority": priority}
    if entry.delay > 0:
        document["claimed"] = entry.queue
        document["due_at"] = now() + timedelta(seconds=entry.delay)
    else:
        document["queue"] = entry.queue
    if entry.lifetime is not None:
        end = now() + timedelta(seconds=entry.delay + entry.lifetime)
        name = DEAD_AT
        if ttl:
            name = HELD_EXPIRE_AT if entry.delay > 0 else EXPIRE_AT
        document[name] = end
    return document


def claimed_of(
    document: Document, claim: Any, queue: str, dead: str | None = None, *, counted: int = 0
) -> Claimed:
    """Return a message that was claimed.

    Arguments:
        claim: the claim.
        queue: where it was.
        dead: why it is not delivered.
        counted: 1 where *document* is as this claim has left it.
    """
    handle = Handle(document["_id"], claim)
    payload: Any = document.get("payload")
    known = document.get("deliveries")
    deliveries = max(known - counted, 0) if isinstance(known, int) else 0
    try:
        envelope = read_envelope(payload)
        if isinstance(envelope, dict):
            if REDELIVERED in document:
                with suppress(Exception):  # a stranger's may be of any form
                    mark_redelivered(envelope)
            return Claimed(queue, envelope, handle, deliveries, dead=dead)
    except (TypeError, ValueError):
        pass  # not written by any of us
    raw = payload if isinstance(payload, bytes) else str(payload).encode()
    return Claimed(queue, None, handle, deliveries, raw, dead)


#: The server's numbers for: you may not, and: who are you; what Atlas says for the latter.
_NOT_LOGGED_IN: Final = 18
_ACCESS_DENIED: Final = (13, _NOT_LOGGED_IN, 8000)


class LinkLost(RecoverableConnectionError, errors.AutoReconnect):  # type: ignore[misc]
    """The servers cannot be reached, or none of them takes writes."""

    def __init__(self, text: str = "") -> None:
        errors.AutoReconnect.__init__(self, text)
        AMQPError.__init__(self, text)
        self.args = (text,)  # what copies are made of

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.args[0]!r})"


class ReplyLate(LinkLost, TimeoutError):
    """The server did not respond in time."""


class LoginRefused(AccessRefused, errors.OperationFailure):  # type: ignore[misc]
    """The server does not take the user name or the password, or does not let this user do that."""

    def __init__(self, text: str = "") -> None:
        errors.OperationFailure.__init__(self, text, _NOT_LOGGED_IN)
        AMQPError.__init__(self, text)
        self.args = (text,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.args[0]!r})"


def translated_error(exc: errors.PyMongoError, where: str) -> Exception | None:
    """Return the error to raise instead of one of pymongo's; None: that itself.

    Arguments:
        where: the server's URL, password masked.
    """
    if isinstance(exc, (errors.NetworkTimeout, errors.ExecutionTimeout)):
        return ReplyLate(f"{where}: no reply in time ({_text(exc)})")
    if isinstance(exc, errors.ConnectionFailure):
        cause = exc.__cause__
        if isinstance(cause, errors.OperationFailure):
            return _refused(where, cause)
        return LinkLost(f"{where}: {_text(exc)}")
    if isinstance(exc, errors.OperationFailure) and exc.code in _ACCESS_DENIED:
        return _refused(where, exc)
    return None


def refusals_in(exc: errors.BulkWriteError) -> dict[int, Exception]:
    """Return, by their place, why some of many writes were refused.

    Raises:
        BulkWriteError: none was, but they are not stored as safely as was asked for.
    """
    details: Mapping[str, Any] = exc.details or {}
    refused: list[Mapping[str, Any]] = list(details.get("writeErrors", ()))
    if not refused:
        raise exc
    return {
        each["index"]: errors.OperationFailure(each.get("errmsg", "refused"), each.get("code"))
        for each in refused
    }


def _refused(where: str, exc: errors.OperationFailure) -> Exception:
    remedy = "check user name, password, authSource and the user's roles"
    return LoginRefused(f"{where}: {_text(exc)} ({remedy})")


def _text(exc: BaseException) -> str:
    # What is said of each server, without the state of the whole topology behind it.
    return mask_secrets(str(exc).partition(", Timeout:")[0].partition(", full error:")[0])


def _problem(exc: Exception) -> str:
    # A password without a host behind it is taken as a port, which pymongo quotes before 4.9.
    return re.sub(r"(^Port must be [^:]*):.*", r"\1", mask_secrets(str(exc)), flags=re.DOTALL)


def _problem_of_options(uri: str) -> str | None:
    """Return what is wrong with an option, of which pymongo would only warn.  It goes on without it."""
    for option in filter(None, uri.partition("?")[2].split("&")):
        name = option.partition("=")[0]
        try:
            uri_parser.split_options(option, validate=True, warn=False)
        except (
            errors.InvalidURI,
            errors.ConfigurationError,
            OSError,
            TypeError,
            ValueError,
        ) as exc:
            # Of what is masked, pymongo may quote a part.
            is_secret = option not in mask_secrets(f"mongodb://host/?{option}")
            text = "pymongo does not take its value" if is_secret else _problem(exc)
            return f"option {name!r}: {text}"
    return None


#: Sockets that all greenlets of one process may use at once.
_LARGEST_POOL = 100
#: What says that any certificate will do; the first is ssl.CERT_NONE.
_NO_CERTIFICATES = (0, "none", "CERT_NONE")


class Address(NamedTuple):
    """The arguments of ``MongoClient``, and the database.  Holds secrets: never shown."""

    host: str
    options: tuple[tuple[str, Any], ...]
    database: str

    def __repr__(self) -> str:
        return "<Address>"


def address_of(client: Any, options: MongoOptions) -> Address:
    """Return the address that a ``Connection`` names.

    Raises:
        ValueError: the address is malformed; says how, with the password masked.
    """
    uri = _uri(split_url(client.hostname or "", type(options))[0], options)
    port = client.port or options.default_port
    problem, parsed = None, {}
    try:
        if _is_plain(uri):
            parsed = uri_parser.parse_uri(uri, port, validate=False, warn=True)
    except (errors.InvalidURI, errors.ConfigurationError, ValueError) as exc:
        problem = _problem(exc)
    problem = problem or _problem_of_options(uri)
    if problem is not None:  # not with that error as its context, which may have the password
        raise ValueError(f"{mask_secrets(uri)!r}: {problem}")
    database = parsed.get("database") or _database_in(uri) or _virtual_host(client)
    given = {name.lower() for name, _ in parse_qsl(uri.partition("?")[2], keep_blank_values=True)}
    settings = _settings(client, options, port)
    kept = {name: value for name, value in settings.items() if name.lower() not in given}
    if "tls" in given or "ssl" in given:
        kept.pop("tls", None)
    return Address(uri, tuple(sorted(kept.items())), database or options.default_database)


def _is_plain(uri: str) -> bool:
    """Return whether it can be parsed without asking a name server."""
    return uri.startswith("mongodb://")


def _uri(host: str, options: MongoOptions) -> str:
    if host.startswith("srv://"):  # the session takes the name before the "+" off
        return f"mongodb+{host}"
    if not host.startswith(("mongodb://", "mongodb+srv://")):
        host = f"mongodb://{host}"
    scheme, _, rest = host.partition("://")
    return f"{scheme}://{options.default_hostname}{rest}" if rest[:1] in ("", "/", "?") else host


def _database_in(uri: str) -> str:
    """Return the database of an address that was not parsed."""
    path = uri.partition("://")[2].partition("?")[0]
    return path.rpartition("@")[2].partition("/")[2]


def _virtual_host(client: Any) -> str:
    return (client.virtual_host or "").strip("/")


def _settings(client: Any, options: MongoOptions, port: int) -> dict[str, Any]:
    connect = options.connect_timeout or client.connect_timeout
    settings: dict[str, Any] = {
        "port": port,
        "appname": "greenconn",
        "maxPoolSize": _LARGEST_POOL,
        # A look each ten seconds instead of a stream: half the threads, and none waits on a socket
        # when the process forks.  That a server is gone shows by the call that fails.
        "serverMonitoringMode": "poll",
    }
    if connect:
        settings["connectTimeoutMS"] = settings["serverSelectionTimeoutMS"] = int(connect * 1000)
    if options.reply_timeout:
        settings["socketTimeoutMS"] = int(options.reply_timeout * 1000)
    password = client.password
    if client.userid:
        settings["username"] = client.userid
        settings["password"] = supplied(password) if callable(password) else password
    if client.login_method:
        settings["authMechanism"] = client.login_method
    settings.update(_tls(client.ssl if options.ssl is None else options.ssl))
    return settings


def _tls(given: Any) -> dict[str, Any]:
    """pymongo's options for what ``ssl=`` says everywhere else."""
    if not given:
        return {}
    settings: dict[str, Any] = {"tls": True}
    if isinstance(given, Mapping):
        names = {"ca_certs": "tlsCAFile", "ssl_ca_certs": "tlsCAFile"}
        for name, theirs in names.items():
            if given.get(name):
                settings[theirs] = str(given[name])
        certificate = given.get("certfile") or given.get("ssl_certfile")
        key = given.get("keyfile") or given.get("ssl_keyfile")
        if key and key != certificate:
            raise ValueError(
                "MongoDB's driver needs certificate and key in one file: pass it as certfile"
            )
        if certificate:
            settings["tlsCertificateKeyFile"] = str(certificate)
        if given.get("cert_reqs", given.get("ssl_cert_reqs")) in _NO_CERTIFICATES:
            settings["tlsAllowInvalidCertificates"] = True
        if given.get("check_hostname", given.get("ssl_check_hostname", True)) is False:
            settings["tlsAllowInvalidHostnames"] = True
    return settings


T = TypeVar("T")

#: Seconds after which the server is asked again what time it is.
CLOCK_LIFETIME: Final = 60.0
#: Seconds that calls have to end before the client is closed under them.
CLOSE_TIMEOUT: Final = 5.0
#: Seconds that a server has to hear that it is closed.
DISCONNECT_TIMEOUT: Final = 0.5
#: The part of the time to connect that pymongo has for looking for a server.
GREETING: Final = 0.8

_Key = tuple[Address, str, int]


def confirming(given: WriteConcern) -> WriteConcern:
    """Return the write concern with which a message is stored, and what is declared.

    A write is confirmed when a majority of the servers has it in its journal.  A single server writes
    its journal each 100 ms, and loses the rest when it is killed.  What only a replaced primary has is
    rolled back.

    Arguments:
        given: that of the URL; what it says is kept.
    """
    said = given.document
    return given if said.get("w") == 0 else WriteConcern(**{"w": "majority", "j": True, **said})


class Client:
    """Servers, and the database on them.

    Arguments:
        address: where they are.
        where: the same for messages, password masked.
        threads: calls that may be under way at once in an unpatched process.

    Attributes:
        database: pymongo's object for the database.
        durable: the same, for writes whose confirm counts (see :func:`confirming`).
        is_set: whether the servers are a replica set (or a cluster of such), so that they tell of
            changes.
        exchanges, broadcasts, is_polling_logged: the state that all connections of the hub to the
            database share.
    """

    def __init__(self, address: Address, where: str, threads: int) -> None:
        self.where = where
        self.is_green = are_sockets_green()
        self.references = 0
        self._process = os.getpid()
        self.is_set = False
        #: Names of collections -> exchange -> what is known of it.
        self.exchanges: dict[tuple[str, str], dict[str, KnownExchange]] = {}
        #: Name of a collection -> its reader.
        self.broadcasts: dict[str, Broadcast] = {}
        #: It was logged that the servers do not tell of changes.
        self.is_polling_logged = False
        self._threads = self.call_pool(threads)
        self._clock_offset = timedelta()
        self._clock_read_at: float | None = None
        try:
            # May ask a name server for the addresses behind mongodb+srv.
            self._mongo: Any = self._threads.call(_made, address)
        except (errors.InvalidURI, errors.ConfigurationError, ValueError, TypeError) as exc:
            self._threads.close()
            raise ValueError(f"{where}: {_problem(exc)}") from None
        except BaseException:
            self._threads.close()
            raise
        # Whatever the URL says: a secondary may not know yet of a queue that was declared just now.
        self.database: Any = self._mongo.get_database(
            address.database, read_preference=ReadPreference.PRIMARY
        )
        self.durable: Any = self.database.with_options(
            write_concern=confirming(self._mongo.write_concern)
        )
        close_at_thread_end(self)

    def end_with_thread(self) -> None:
        """Close it with the thread that it belongs to.  Never switches; it blocks for a moment."""
        try:
            _close(self._mongo)
        except errors.PyMongoError:
            pass  # the server was not there to hear it

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a child of the one that made it, and must not use it."""
        return os.getpid() != self._process

    def call_pool(self, threads: int) -> CallPool:
        """Return a pool of threads for blocking calls; the caller closes it."""
        return CallPool(None if self.is_green else threads)

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call something of pymongo's.  May switch.

        Raises:
            LinkLost, LoginRefused: instead of pymongo's own errors for that.
            pymongo.errors.PyMongoError: the server refuses.
        """
        return self.call_in(self._threads, function, *args, **kwargs)

    def upsert(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call something of pymongo's that inserts what it does not find.  May switch.

        Raises:
            LinkLost, LoginRefused, pymongo.errors.PyMongoError: as :meth:`call`.
        """
        try:
            return self.call(function, *args, **kwargs, upsert=True)
        except errors.DuplicateKeyError:
            # Another has inserted it meanwhile.  Servers from 4.2 on find that out by themselves.
            return self.call(function, *args, **kwargs, upsert=True)

    def call_in(self, pool: CallPool, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run :meth:`call` in a pool of the caller's own.  May switch."""
        try:
            return pool.call(function, *args, **kwargs)
        except errors.PyMongoError as exc:
            ours = translated_error(exc, self.where)
            if ours is None:
                raise
            raise ours from exc

    def greet(self, deadline: Deadline) -> None:
        """Say hello to the server that takes writes.  May switch.

        Raises:
            LinkLost: there is none, or it does not reply in time.
            LoginRefused: the login was refused.
        """
        left = deadline.left()
        # pymongo must be the first to give up: it knows what each server has answered.
        reply = self.call(_hello, self._mongo, None if left is None else left * GREETING)
        self._read_clock(reply)
        self.is_set = "setName" in reply or reply.get("msg") == "isdbgrid"

    def session(self) -> Any:
        """Return a session of pymongo's, for a cursor that is read by several calls."""
        return self._mongo.start_session()

    # The server's clock: leases and expiry of all programs go by it.

    def now(self) -> datetime:
        """Return the server's time, by the last look; without a zone, as pymongo gives times."""
        return datetime.now(timezone.utc).replace(tzinfo=None) + self._clock_offset

    def set_clock(self) -> None:
        """Look at the server's clock, if that is long ago.  May switch."""
        if self._clock_read_at is None or monotonic() - self._clock_read_at > CLOCK_LIFETIME:
            self._read_clock(self.call(_hello, self._mongo, None))

    def _read_clock(self, reply: Any) -> None:
        now = datetime.now(timezone.utc).replace(tzinfo=None)
        there = reply.get("localTime")
        self._clock_offset = timedelta() if there is None else there - now
        self._clock_read_at = monotonic()

    def close(self) -> None:
        """Close it.  May switch."""
        deadline = Deadline(CLOSE_TIMEOUT)
        while self._threads.is_busy and not deadline.has_ended:
            # Calls whose callers have gone: pymongo would let them wait for servers that it
            # does not look for any more when it is closed.
            gevent.sleep(0.005)
        try:
            self._threads.call(_close, self._mongo)
        except errors.PyMongoError:
            pass  # the server was not there to hear it
        finally:
            self._threads.close()


def _made(address: Address) -> Any:
    # It connects with its first call.
    return pymongo.MongoClient(address.host, connect=False, **dict(address.options))


def _hello(mongo: Any, timeout: float | None) -> Any:
    with pymongo.timeout(timeout):
        # The name that pymongo begins with: it is that of servers before 4.4, too.
        return mongo.admin.command("ismaster")


def _close(mongo: Any) -> None:
    # It tells the server which sessions have ended; if that is away, they end by themselves.
    with pymongo.timeout(DISCONNECT_TIMEOUT):
        mongo.close()


class _Clients:
    """Those of one hub, by address."""

    def __init__(self) -> None:
        self.open: dict[_Key, Client] = {}
        forget_at_fork(self)

    def forget(self) -> None:
        """See :class:`greenconn.green.hub.ForkAware`."""
        self.open.clear()


_clients: Final[PerHub[_Clients]] = PerHub(_Clients)


class ClientReference:
    """A counted reference to the client of an address.  Making it may switch.

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
        found.references += 1
        self._is_released = False

    def release(self) -> Greenlet[..., Any] | None:
        """Release it; if it was the last one, return the greenlet that closes the client.

        Never switches.  A second call does nothing.
        """
        if self._is_released:
            return None
        self._is_released = True
        client = self.client
        client.references -= 1
        if client.references or self._clients.open.get(self._key) is not client:
            return None
        del self._clients.open[self._key]
        return spawn("mongodb close", client.close)
