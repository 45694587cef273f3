"""A server: its address, logging in (HELLO, AUTH, SELECT, ROLE), and the sockets to it.

All commands of a login leave in one send.  A server that does not know HELLO (Redis before 6, or one
where it was renamed) is asked again in its own way, and then speaks RESP2.  A password that is a
function, and a credential provider, are asked again every ``reauth_check_interval``: tokens expire, and
a server cuts a connection whose token has.

Queues are keys: a server with a ``maxmemory-policy`` other than ``noeviction`` deletes whole queues,
with what consumers hold and how queues were declared, and says nothing.  So that is asked, too.
"""

from __future__ import annotations

import logging
from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from greenconn.green.deadline import Deadline
from greenconn.green.retry import Renewal
from greenconn.green.slot import SingleFlight
from greenconn.green.stream import avoid, connect_tcp, connect_unix, numeric
from greenconn.green.supervisor import spawn
from greenconn.transport.redis.errors import (
    ENDS_THE_LINK,
    LinkLost,
    LoginRefused,
    NoSuchDatabase,
    NotRedis,
    ServerNotReady,
    as_error,
)
from greenconn.transport.redis.pipeline import ENDLESS, Commands, Pipeline
from greenconn.wire.resp import ErrorReply, pack
from greenconn.wire.tls import tls_session

if TYPE_CHECKING:
    from greenconn.wire.tls import TlsSession


logger = logging.getLogger("greenconn.transport.redis")

#: User name and password; either may be None.
Credentials = tuple[str | None, str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """The address of a server.

    Attributes:
        path: of a UNIX socket; None for TCP.
        ssl: kombu's ``ssl`` argument; False is no TLS.
        where: the URL, password masked, for messages.
        settings: TCP options.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    ssl: Any = False
    where: str = "redis"
    settings: Mapping[Any, Any] | None = None

    def connect(self, deadline: Deadline) -> tuple[RawSocket, TlsSession | None]:
        """Return a connected socket, and a TLS session that has not begun.  May switch."""
        # Before there is a connection: what is wrong with our own files needs none.
        tls = tls_session(self.ssl, self.host) if self.ssl else None
        if self.path is not None:
            return connect_unix(self.path, deadline), tls
        return connect_tcp(numeric(self.host), self.port, deadline, self.settings), tls


@dataclass(frozen=True, kw_only=True, slots=True)
class Login:
    """The credentials and options of a login.

    Attributes:
        credentials: asked at each connect; a password may have changed.
        database: None for a sentinel, which has none.
        must_be_master: refuse a server that is none.
    """

    credentials: Callable[[], Credentials]
    database: int | None = 0
    client_name: str | None = None
    must_be_master: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """The server's reply to the login.

    Attributes:
        protocol: the version of the protocol: 3, or 2 where the server knows no other.
        client_id: the number of this connection among the server's clients; None: it did not tell.
    """

    protocol: int
    client_id: int | None = None


class Opener(Protocol):
    """Opens sockets to a server.

    Attributes:
        connect_timeout: seconds for one connection; None waits.
    """

    @property
    def connect_timeout(self) -> float | None: ...

    def open(
        self,
        deadline: Deadline,
        on_push: Callable[[list[Any]], None],
        on_lost: Callable[[LinkLost], None],
    ) -> tuple[Pipeline, Welcome]:
        """Open a socket; see :func:`open_pipeline`.  May switch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A server that a link is connected to.

    Attributes:
        connect_timeout: seconds for one connection; None waits.
    """

    address: Address
    login: Login
    connect_timeout: float | None

    def open(
        self,
        deadline: Deadline,
        on_push: Callable[[list[Any]], None],
        on_lost: Callable[[LinkLost], None],
    ) -> tuple[Pipeline, Welcome]:
        """Open a socket to it; see :func:`open_pipeline`.  May switch."""
        return open_pipeline(self.address, self.login, deadline, on_push, on_lost)


def open_pipeline(
    address: Address,
    login: Login,
    deadline: Deadline,
    on_push: Callable[[list[Any]], None],
    on_lost: Callable[[LinkLost], None],
) -> tuple[Pipeline, Welcome]:
    """Connect and log in.  May switch.  Whatever goes wrong, nothing stays open.

    Returns:
        the pipeline, and what the server told.

    Raises:
        TimeoutError: names the step that took too long.
        OSError: nothing listens there, the name is unknown, TLS failed.
        LoginRefused, NoSuchDatabase: the server refuses us.
        ServerNotReady: it loads its data, or is no master.
        NotRedis: it does not speak the protocol.
    """
    step = "connecting"
    pipeline = sock = None
    try:
        sock, tls = address.connect(deadline)
        pipeline = Pipeline(sock, address.where, on_push, on_lost, tls)
        step = "the TLS handshake"
        pipeline.stream.handshake(deadline)
        step = "the login"
        return pipeline, _log_in(pipeline, login, deadline.renewed())
    except BaseException as exc:
        if sock is not None and isinstance(exc, TimeoutError):
            avoid(sock)
        if pipeline is not None:
            pipeline.close()
        error = _opening_error(exc, address.where, step, deadline)
        if error is exc:
            raise
        raise error from exc


def _opening_error(exc: BaseException, where: str, step: str, deadline: Deadline) -> BaseException:
    """Return the same kind of error, saying which server and which step it is about."""
    cause = exc.__cause__
    if isinstance(exc, LinkLost) and isinstance(cause, NotRedis):
        return cause
    if isinstance(exc, TimeoutError) and exc.errno is None and step != "connecting":
        return TimeoutError(f"{where}: no reply within {deadline.timeout:g} s ({step})")
    return exc


def _log_in(pipeline: Pipeline, login: Login, deadline: Deadline) -> Welcome:
    """Agree on the protocol, log in and select the database.  May switch.

    RESP3 is asked for first; a server that does not know it, or has HELLO renamed, is asked as in RESP2.
    """
    user, password = login.credentials()
    hello = ["HELLO", "3"]
    if password is not None:
        hello += ["AUTH", user or "default", password]
    if login.client_name:
        hello += ["SETNAME", login.client_name]
    where = pipeline.where
    replies = _ask(pipeline, [pack(*hello), *_choose(login)], deadline)
    welcome = Welcome(protocol=3, client_id=_client_id(replies[0]))
    if isinstance(replies[0], ErrorReply) and _wants_auth(replies[0], password):
        welcome = Welcome(protocol=2)
        old = []
        if password is not None:
            old.append(pack("AUTH", user, password) if user else pack("AUTH", password))
        naming = [] if not login.client_name else [pack("CLIENT", "SETNAME", login.client_name)]
        replies = _ask(pipeline, [*old, *naming, *_choose(login)], deadline)
        # Nothing depends on the name, so a user who may not choose one is no reason to fail.
        del replies[len(old) : len(old) + len(naming)]
    if login.database is None:
        greeting = replies
        chosen = role = None
    else:
        *greeting, role = replies
        chosen = greeting.pop() if login.database else None
        if isinstance(role, ErrorReply) and role.code == "NOAUTH":
            greeting.append(role)
    for reply in greeting:
        if isinstance(reply, ErrorReply):
            raise _login_error(reply, where, password is not None)
    if isinstance(chosen, ErrorReply):
        if chosen.code in ENDS_THE_LINK:
            raise as_error(chosen, where)
        if chosen.code in ("NOAUTH", "NOPERM"):
            raise _login_error(chosen, where, password is not None)
        raise NoSuchDatabase(
            f"{where}: database {login.database}: {chosen} (the server's setting 'databases' is "
            f"their number, from 0)"
        )
    _check_role(role, where, login.must_be_master)
    return welcome


def _client_id(greeting: Any) -> int | None:
    """Return the number of this connection from the reply to HELLO."""
    found = greeting.get(b"id") if isinstance(greeting, dict) else None
    return found if isinstance(found, int) else None


def _choose(login: Login) -> list[bytes]:
    if login.database is None:
        return []
    # A connection begins in database 0, and servers that have no other may know no SELECT.
    chosen = [pack("SELECT", login.database)] if login.database else []
    return [*chosen, pack("ROLE")]


def _ask(pipeline: Pipeline, commands: list[bytes], deadline: Deadline) -> list[Any]:
    """Send *commands* and return their replies, errors among them.  May switch."""
    # A server that loads its data answers much, but no PING.
    *replies, pong = pipeline.ask([*commands, pack("PING")], deadline)
    if isinstance(pong, LinkLost):
        first = replies[0]
        if isinstance(first, ErrorReply) and not _knows_no_hello(first):
            # What a server says before it closes: too many clients, or protected mode.
            raise _login_error(first, pipeline.where, has_password=True) from pong
        raise pong
    if isinstance(pong, ErrorReply) and pong.code in ENDS_THE_LINK:
        raise as_error(pong, pipeline.where)
    return replies


def _wants_auth(reply: ErrorReply, password: str | None) -> bool:
    """Return whether AUTH may succeed where HELLO was answered with *reply*.

    A server that knows no HELLO may ask for a login first, whatever HELLO said.
    """
    return _knows_no_hello(reply) or (reply.code == "NOAUTH" and password is not None)


def _knows_no_hello(reply: ErrorReply) -> bool:
    text = str(reply).lower()
    return reply.code == "NOPROTO" or "unknown command" in text


def _login_error(reply: ErrorReply, where: str, has_password: bool) -> Exception:
    text = str(reply)
    if reply.code == "DENIED":
        return LoginRefused(f"{where}: {text}")
    if reply.code in ("WRONGPASS", "NOAUTH") or "password" in text.lower():
        if "without any password configured" in text or "no password is set" in text:
            remedy = "the server has no password: leave it out of the URL"
        elif has_password:
            remedy = "the user name or the password is wrong"
        else:
            remedy = "the server needs a password: redis://:password@host/0"
        return LoginRefused(f"{where}: {text} ({remedy})")
    if reply.code == "NOPERM":
        return LoginRefused(str(as_error(reply, where, "login")))
    if "max number of clients" in text:
        return ServerNotReady(f"{where}: {text} (raise the server's setting 'maxclients')")
    return as_error(reply, where, "login")


def _check_role(role: Any, where: str, must_be_master: bool) -> None:
    if isinstance(role, ErrorReply):
        if role.code in ENDS_THE_LINK:
            raise as_error(role, where)
        return  # a user who may not ask: the first write will tell
    kind = role[0] if isinstance(role, list) and role else None
    if must_be_master and isinstance(kind, bytes) and kind != b"master":
        raise ServerNotReady(
            f"{where} is a {kind.decode('utf-8', 'replace')} and no master: nothing can be written"
        )


class Reauthentication:
    """The credentials that one link has logged in with.

    Arguments:
        commands: of the link.
        credentials: returns the login as it is now.
        other_pipelines: returns the open sockets beside that for commands.
    """

    def __init__(
        self,
        commands: Commands,
        credentials: Callable[[], Credentials],
        other_pipelines: Callable[[], list[Pipeline]],
    ) -> None:
        self._commands = commands
        self._credentials = credentials
        self._other_pipelines = other_pipelines
        self._current: Credentials | None = None
        self._renewal: Renewal | None = None

    def watch(self) -> None:
        """Ask again every ``reauth_check_interval``, unless that is 0.  Never switches."""
        interval = self._commands.options.reauth_check_interval
        if interval:
            self._renewal = Renewal(self._renew, logger, self._commands.where, interval)
            self._renewal.begin_in(0.0)

    def stop(self) -> None:
        """Stop, as the link has ended.  Never switches."""
        if self._renewal is not None:
            self._renewal.stop()

    def _renew(self) -> object:
        given = self._credentials()
        if self._current is None:
            self._current = given  # that of the opening
        elif given != self._current:
            self.log_in(given, ENDLESS)
        return given[1]

    def log_in(self, credentials: Credentials, deadline: Deadline) -> None:
        """Log in anew on the open sockets.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server does not take it; the former login stays.
        """
        user, password = credentials
        command = pack("AUTH", user or "default", password or "")
        self._commands.call(command, deadline, "logging in again")
        self._current = credentials
        for pipeline in self._other_pipelines():
            if pipeline.takes_arrays:
                # A subscriber of RESP2 cannot: it reconnects with the new login.
                pipeline.end(LinkLost(f"{pipeline.where}: logging in again"))
            else:
                pipeline.post(command)


class ExtraSocket:
    """One such socket, which ends with its link.

    Arguments:
        commands: of the link.
        name: of the greenlet that opens it.

    Attributes:
        pipeline: the socket that was opened last; None: there is none.
    """

    def __init__(self, commands: Commands, name: str) -> None:
        self._commands = commands
        self._flight = SingleFlight(name)
        self.pipeline: Pipeline | None = None

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent on it."""
        return self.pipeline is not None and self.pipeline.lost is None

    def open(
        self,
        connect: Callable[[], tuple[Pipeline, Welcome]],
        begin: Callable[[Pipeline, Welcome], None] | None = None,
    ) -> Pipeline:
        """Open it, once for all who ask meanwhile.  May switch.

        Arguments:
            connect: returns an open socket.  May switch.
            begin: prepares the socket before it is used.  May switch.

        Raises:
            LinkLost: the link has ended meanwhile.
            Exception: of *connect* or *begin*; then nothing stays open.
        """
        return self._flight.run("open", partial(self._open, connect, begin), ENDLESS)

    def _open(
        self,
        connect: Callable[[], tuple[Pipeline, Welcome]],
        begin: Callable[[Pipeline, Welcome], None] | None,
    ) -> Pipeline:
        pipeline, welcome = connect()
        try:
            self._commands.watch(pipeline)
            if begin is not None:
                begin(pipeline, welcome)
            self._commands.check_open()
        except BaseException:
            pipeline.close()
            raise
        self.stop()
        self.pipeline = pipeline
        return pipeline

    def stop(self) -> None:
        """Close it: the link is gone.  Never switches."""
        pipeline, self.pipeline = self.pipeline, None
        if pipeline is not None:
            pipeline.close()

    def forget(self) -> None:
        """Leave it to the parent process, in the child of a fork."""
        if self.pipeline is not None:
            self.pipeline.forget()
            self.pipeline = None


_ASK: Final = pack(b"INFO", b"memory")
_FIELD: Final = b"maxmemory_policy:"
#: What deletes nothing.
_SAFE: Final = frozenset({"", "noeviction"})
#: Servers that this process has warned of, with their policies.
_warned: set[tuple[str, str]] = set()


def check_eviction(pipeline: Pipeline) -> None:
    """Ask the server, and log a warning where it evicts keys.  Never switches.

    A server that does not say so, or not to this user, is taken for one that evicts nothing.
    """
    pipeline.post(_ASK, lambda reply: _warn_of_eviction(pipeline.where, reply))


def _warn_of_eviction(where: str, reply: Any) -> None:
    # In the reader.
    if not isinstance(reply, bytes):
        return
    policy = reply.partition(_FIELD)[2].partition(b"\r\n")[0].decode("utf-8", "replace")
    if policy in _SAFE or (where, policy) in _warned:
        return
    _warned.add((where, policy))
    what = "queues that have x-expires" if policy.startswith("volatile") else "queues"
    spawn(
        "log",
        logger.warning,
        "%s: its maxmemory-policy is %s: when its memory is full it silently deletes %s with "
        "their messages; set maxmemory-policy to noeviction",
        where,
        policy,
        what,
        extra={"connection": where},
    )
