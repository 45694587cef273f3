"""``channel.client``: a redis-py client over green sockets.

Programs of kombu look into their Redis by ``connection.default_channel.client``.  It is redis-py's own
client: commands, pipelines, transactions, scripts, blocking commands and subscriptions are redis-py's.
Only what is below is ours: the way to the server (address, TLS, login, Sentinel), and a socket for which
a greenlet waits without blocking others, also in a process that is not patched.

These sockets are opened when they are needed, apart from that of the link, so that neither a ``BLPOP``
nor a ``WATCH`` is in the way of messages; they are closed with the link.
"""

from __future__ import annotations

import errno
from _socket import MSG_PEEK
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NoReturn
from weakref import WeakSet

import redis
from gevent import monkey
from gevent.event import Event
from gevent.lock import BoundedSemaphore
from redis.connection import AbstractConnection, ConnectionPool

from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.stream import EndOfFile, Stream
from greenconn.transport.redis.pipeline import Commands
from greenconn.transport.redis.server import Address, Login, Server


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Their first argument is the key.
_FIRST: Final = _words(
    """
    APPEND BITCOUNT BITFIELD BITFIELD_RO BITPOS DECR DECRBY DUMP EXPIRE EXPIREAT EXPIRETIME GEOADD
    GEODIST GEOHASH GEOPOS GEOSEARCH GET GETBIT GETDEL GETEX GETRANGE GETSET HDEL HEXISTS HGET
    HGETALL HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET HMSET HRANDFIELD HSCAN HSET HSETNX HSTRLEN HVALS
    INCR INCRBY INCRBYFLOAT LINDEX LINSERT LLEN LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM MOVE
    PERSIST PEXPIRE PEXPIREAT PEXPIRETIME PFADD PSETEX PTTL PUBLISH RESTORE RPOP RPUSH RPUSHX SADD
    SCARD SET SETBIT SETEX SETNX SETRANGE SISMEMBER SMEMBERS SMISMEMBER SORT_RO SPOP SRANDMEMBER
    SREM SSCAN STRLEN SUBSTR TTL TYPE XACK XADD XAUTOCLAIM XCLAIM XDEL XLEN XPENDING XRANGE
    XREVRANGE XTRIM ZADD ZCARD ZCOUNT ZINCRBY ZLEXCOUNT ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGE
    ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE
    ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE
    """
)
#: All their arguments are keys.
_ALL: Final = _words(
    """
    DEL EXISTS MGET PFCOUNT PFMERGE SDIFF SDIFFSTORE SINTER SINTERSTORE SUNION SUNIONSTORE TOUCH
    UNLINK WATCH
    """
)
#: All but the last.
_BUT_LAST: Final = _words(
    """
    BLPOP BRPOP BZPOPMIN BZPOPMAX
    """
)
#: The first two.
_TWO: Final = _words(
    """
    BLMOVE BRPOPLPUSH COPY LMOVE RENAME RENAMENX RPOPLPUSH SMOVE ZRANGESTORE
    """
)
#: Each other one, from the first.
_PAIRS: Final = _words(
    """
    MSET MSETNX
    """
)
#: A number says how many keys follow; it is the argument of this index.
_COUNTED: Final = {
    "EVAL": 1,
    "EVALSHA": 1,
    "EVAL_RO": 1,
    "EVALSHA_RO": 1,
    "FCALL": 1,
    "FCALL_RO": 1,
}
#: A destination, then such a number.
_STORED: Final = _words(
    """
    ZDIFFSTORE ZINTERSTORE ZUNIONSTORE
    """
)
#: They have no keys.
_NONE: Final = _words(
    """
    ACL AUTH BGREWRITEAOF BGSAVE CLIENT CLUSTER COMMAND CONFIG DBSIZE DISCARD ECHO EXEC FLUSHALL
    FLUSHDB FUNCTION HELLO INFO LASTSAVE LATENCY MODULE MULTI PING PUBSUB RANDOMKEY READONLY
    READWRITE ROLE SAVE SCRIPT SELECT SHUTDOWN SLOWLOG SWAPDB TIME UNWATCH WAIT
    """
)


def prefixed(prefix: str, command: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return *command* with *prefix* before its keys.

    Raises:
        NotImplementedError: where its keys stand is not known.
    """
    words = str(command[0]).upper().split()
    name, args = words[0], list(command[1:])
    if name in _FIRST:
        places = range(min(1, len(args)))
    elif name in _ALL:
        places = range(len(args))
    elif name in _BUT_LAST:
        places = range(len(args) - 1)
    elif name in _TWO:
        places = range(min(2, len(args)))
    elif name in _PAIRS:
        places = range(0, len(args), 2)
    elif name in _COUNTED:
        at = _COUNTED[name]
        places = range(at + 1, at + 1 + int(args[at]))
    elif name in _STORED:
        args[0] = _with(prefix, args[0])
        places = range(2, 2 + int(args[1]))
    elif name in _NONE:
        places = range(0)
    else:
        raise NotImplementedError(
            f"channel.client does not know which arguments of {name} are keys, and global_keyprefix "
            f"{prefix!r} must go before them: use a redis.Redis of your own"
        )
    for place in places:
        args[place] = _with(prefix, args[place])
    return (command[0], *args)


def _with(prefix: str, key: Any) -> Any:
    if isinstance(key, (bytes, bytearray, memoryview)):
        return prefix.encode() + bytes(key)
    return f"{prefix}{key}"


try:
    from redis.maint_notifications import MaintNotificationsConfig
except ImportError:  # redis-py before 7
    _NO_NOTICES = None
else:
    #: A server's notice that it will move must not make a connection follow it: its link does not.
    _NO_NOTICES = MaintNotificationsConfig(enabled=False)


#: Unread received bytes above which reading from the socket is paused.
_MOST_UNREAD: Final = 1024 * 1024
#: How many sockets one client opens, where ``max_connections`` says nothing.
_MOST_SOCKETS: Final = 10
#: Commands whose replies name the key that had something.
_NAME_THEIR_KEY: Final = frozenset({"BLPOP", "BRPOP", "BZPOPMIN", "BZPOPMAX"})
#: Commands of subscriptions whose arguments are channels.
_CHANNELS: Final = frozenset({"SUBSCRIBE", "UNSUBSCRIBE", "PSUBSCRIBE", "PUNSUBSCRIBE"})


class GreenSocket:
    """The part of a socket that redis-py uses, over a stream.

    Arguments:
        address: of the server.
        deadline: for TCP and TLS.
    """

    def __init__(self, address: Address, deadline: Deadline) -> None:
        sock, tls = address.connect(deadline)
        self._pieces: deque[bytes] = deque()
        self._unread = 0
        self._has_come = Event()
        self._timeout: float | None = None
        #: Why nothing more will come; None while something may.
        self.lost: BaseException | None = None
        self._descriptor = sock.fileno()
        self._stream = Stream(sock, self._take, self._end, address.where, tls)
        try:
            self._stream.handshake(deadline)
        except BaseException:
            self._stream.close()
            raise

    # -- in the reader

    def _take(self, data: bytes) -> None:
        self._pieces.append(data)
        self._unread += len(data)
        if self._unread > _MOST_UNREAD:
            self._stream.pause()
        self._has_come.set()

    def _end(self, exc: BaseException) -> None:
        self.lost = exc
        self._has_come.set()

    # -- a socket's methods

    def settimeout(self, timeout: float | None) -> None:
        """Set the seconds that a call waits; None: for ever."""
        self._timeout = timeout

    def sendall(self, data: bytes | memoryview) -> None:
        """Send *data*.  May switch."""
        self._check()
        writer = self._stream.writer
        if writer.must_wait:
            writer.wait_writable(Deadline(self._timeout))
            self._check()
        writer.write(bytes(data))

    def wait(self, timeout: float | None) -> bool:
        """Wait until there is something to read, or the end; whether there is.  May switch."""
        return bool(self._has_come.wait(timeout))

    def recv_into(self, buffer: bytearray | memoryview, size: int = 0) -> int:
        """Receive into *buffer*; 0 at the end of the stream.  May switch."""
        data = self.recv(size or len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive at most *size* bytes; none at the end of the stream.  May switch.

        Raises:
            BlockingIOError: nothing is there, and the timeout is 0.
            TimeoutError: nothing came in time.
            OSError: the connection is lost.
        """
        peeks = bool(flags & MSG_PEEK)
        if not self._pieces and self.lost is None:
            if self._timeout == 0 or peeks:
                raise BlockingIOError(errno.EAGAIN, "no data to receive")
            if not self._has_come.wait(self._timeout):
                raise TimeoutError("timed out")
        if not self._pieces:
            if isinstance(self.lost, EndOfFile):
                return b""
            raise ConnectionResetError(errno.ECONNRESET, f"connection lost: {self.lost}")
        first = self._pieces[0]
        if peeks:
            return first[:size]
        if len(first) > size:
            self._pieces[0] = first[size:]
        else:
            self._pieces.popleft()
        data = first[:size]
        self._unread -= len(data)
        if not self._unread:
            if self.lost is None:
                self._has_come.clear()
            self._stream.resume()
        return data

    def pending(self) -> int:
        """Return how many bytes were received and not read."""
        return self._unread

    def fileno(self) -> int:
        """Return the descriptor, for those who poll; -1 once it is closed."""
        return self._descriptor if self._stream.is_open else -1

    def getsockname(self) -> Any:
        """Return the local address."""
        return self._stream.peer_address()[0]

    def getpeername(self) -> Any:
        """Return the server's address."""
        return self._stream.peer_address()[1]

    def shutdown(self, how: int) -> None:
        """Nothing to do: :meth:`close` follows."""

    def close(self) -> None:
        """Close it; who waits gets an error.  Never switches."""
        self._stream.close()
        if self.lost is None:
            self._end(ConnectionAbortedError(errno.ECONNABORTED, "it was closed"))

    def _check(self) -> None:
        if self.lost is not None:
            raise ConnectionResetError(errno.ECONNRESET, f"connection lost: {self.lost}")


class LinkConnection(AbstractConnection):
    """redis-py's connection over a :class:`GreenSocket`.

    Arguments:
        clients: has the server, and closes the socket with the link.
    """

    _sock: Any

    def __init__(self, clients: Clients, **options: Any) -> None:
        self._clients = clients
        super().__init__(**options)

    @property
    def host(self) -> str:
        """For redis-py's records."""
        return self._clients.server.address.host

    @host.setter
    def host(self, value: str) -> None:
        """redis-py's way to move to another server; a link stays."""

    @property
    def port(self) -> int:
        """For redis-py's records."""
        return self._clients.server.address.port

    def repr_pieces(self) -> list[tuple[str, Any]]:
        """Return the parts of its ``repr``."""
        return [("server", self._clients.where), ("db", self.db)]

    def _connect(self) -> GreenSocket:
        sock = self._clients.open_socket()
        sock.settimeout(self.socket_timeout)
        return sock

    def _host_error(self) -> str:
        return self._clients.where

    def can_read(self, timeout: float | None = 0) -> bool:
        """Return whether something can be read within *timeout* seconds.  May switch.

        Raises:
            redis.exceptions.ConnectionError: the server has closed the connection.
        """
        if self._sock is None:
            self.connect()  # type: ignore[no-untyped-call]  # redis-py's
        sock: GreenSocket = self._sock
        if self._has_data(sock):
            return True
        if timeout == 0:
            yield_to_hub()  # the reader may have something, or the end
        else:
            sock.wait(timeout)
        return self._has_data(sock)

    def _has_data(self, sock: GreenSocket) -> bool:
        reader = getattr(self._parser, "_reader", None)  # of hiredis
        if sock.pending() or (reader is not None and reader.has_data()):
            return True
        if sock.lost is not None:
            self.disconnect()  # type: ignore[no-untyped-call]  # redis-py's
            raise redis.ConnectionError(f"{self._clients.where}: connection lost: {sock.lost}")
        return False


class LinkPool(ConnectionPool):
    """The connections of one client: as many as its greenlets need at a time, within a limit.

    Arguments:
        clients: has the server.
        limit: connections at most; who needs one more waits.
        timeout: seconds that it waits; None: for ever.
    """

    def __init__(self, clients: Clients, limit: int, timeout: float | None, **options: Any) -> None:
        self._clients = clients
        self._limit = limit
        self._wait_timeout = timeout
        self._room = BoundedSemaphore(limit)
        self._lent: set[int] = set()
        if _NO_NOTICES is not None:
            options["maint_notifications_config"] = _NO_NOTICES
        super().__init__(LinkConnection, clients=clients, **options)

    def get_connection(self, *args: Any, **options: Any) -> Any:
        """Take a connection that is ready.  May switch.

        Raises:
            LinkLost: the link is closed or lost.
            redis.exceptions.ConnectionError: all are in use, and none became free in time.
        """
        self._clients.check()
        if not self._room.acquire(timeout=self._wait_timeout):
            raise redis.exceptions.MaxConnectionsError(
                f"{self._clients.where}: all {self._limit} connections of channel.client were in "
                f"use for {self._wait_timeout:g} s: end blocking commands, or raise "
                f"max_connections"
            )
        connection = None
        try:
            connection = super().get_connection(*args, **options)
            self._lent.add(id(connection))
        finally:
            if connection is None:
                self._room.release()
        return connection

    def release(self, connection: Any) -> None:
        """Take a connection back.  Never switches."""
        super().release(connection)
        if id(connection) in self._lent:
            self._lent.discard(id(connection))
            self._room.release()


class _Credentials(redis.CredentialProvider):
    """Asks for the login at each connect, as links do."""

    def __init__(self, login: Login) -> None:
        self._login = login

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        user, password = self._login.credentials()
        return (password or "",) if user is None else (user, password or "")


class _Prefixing:
    """Puts ``global_keyprefix`` before the keys of commands (kombu's client does it, too)."""

    keyprefix: str

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command.  May switch."""
        if self.keyprefix:
            args = prefixed(self.keyprefix, args)
        return super().execute_command(*args, **options)  # type: ignore[misc]

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """Receive a reply.  May switch."""
        reply = super().parse_response(connection, command_name, **options)  # type: ignore[misc]
        if self.keyprefix and reply and command_name in _NAME_THEIR_KEY:
            key, *rest = reply
            reply = type(reply)((key[len(self.keyprefix.encode()) :], *rest))
        return reply


class LinkedPipeline(_Prefixing, redis.client.Pipeline):
    """redis-py's pipeline, whose keys have the prefix of ours."""


class LinkedPubSub(redis.client.PubSub):
    """redis-py's subscriptions, without threads; channels have the prefix of ours."""

    keyprefix = ""

    def execute_command(self, *args: Any) -> Any:
        """Send a command of a subscription.  May switch."""
        if self.keyprefix and args[0] in _CHANNELS:
            name, *channels = args
            args = (name, *(self.keyprefix + _text(each) for each in channels))
        return super().execute_command(*args)  # type: ignore[no-untyped-call]  # redis-py's

    def parse_response(self, *args: Any, **options: Any) -> Any:
        """Receive the next message.  May switch."""
        response = super().parse_response(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's
        size = len(self.keyprefix.encode())
        if not size or not isinstance(response, list) or len(response) < 3:
            return response
        kind, *channels, content = response
        return [kind, *(each and each[size:] for each in channels), content]

    def run_in_thread(self, *args: Any, **options: Any) -> NoReturn:
        """Refuse: a link belongs to one thread."""
        raise NotImplementedError(
            "run_in_thread() is not supported by channel.client, whose connections belong to one "
            "thread: spawn a greenlet that loops over listen()"
        )


class LinkedRedis(_Prefixing, redis.Redis):
    """redis-py's client over sockets of a link.

    Arguments:
        pool: gives the connections.
        keyprefix: goes before all keys.
    """

    def __init__(self, pool: LinkPool, keyprefix: str) -> None:
        super().__init__(connection_pool=pool)
        self.keyprefix = keyprefix

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> LinkedPipeline:
        """Return a pipeline, or with *transaction* a ``MULTI``/``EXEC`` block."""
        made = LinkedPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        made.keyprefix = self.keyprefix
        return made

    def pubsub(self, **options: Any) -> LinkedPubSub:
        """Return an object that listens to channels."""
        made = LinkedPubSub(self.connection_pool, **options)
        made.keyprefix = self.keyprefix
        return made

    def lock(self, *args: Any, **options: Any) -> Any:
        """Return redis-py's lock, which waits by ``time.sleep``.

        Raises:
            NotImplementedError: the process is not patched, so that this would block all greenlets.
        """
        if not monkey.is_module_patched("time"):
            raise NotImplementedError(
                "lock() of channel.client waits by time.sleep, which blocks all greenlets unless the "
                "process is monkey-patched: use set(name, token, nx=True, px=...) with gevent.sleep"
            )
        return super().lock(*args, **options)


class Clients:
    """The redis-py client of one link, made when it is first asked for.

    Arguments:
        commands: of the link.
        server: where it is.
        check_hub: raises where it is called from another thread.
    """

    def __init__(self, commands: Commands, server: Server, check_hub: Callable[[], None]) -> None:
        self._commands = commands
        self.server = server
        self._check_hub = check_hub
        self._client: LinkedRedis | None = None
        self._sockets: WeakSet[GreenSocket] = WeakSet()

    @property
    def where(self) -> str:
        """The server's URL, password masked."""
        return self._commands.where

    def client(self) -> LinkedRedis:
        """Return the client.  Never switches."""
        if self._client is None:
            self._client = self._make()
        return self._client

    def _make(self) -> LinkedRedis:
        options, login = self._commands.options, self.server.login
        timeout = options.socket_timeout or options.reply_timeout
        settings: dict[str, Any] = {
            "db": login.database or 0,
            "client_name": login.client_name or None,
            "socket_timeout": timeout,
        }
        if any(login.credentials()):
            settings["credential_provider"] = _Credentials(login)
        if self._commands.protocol == 2:
            settings["protocol"] = 2
        limit = options.max_connections or _MOST_SOCKETS
        return LinkedRedis(LinkPool(self, limit, timeout, **settings), options.global_keyprefix)

    def check(self) -> None:
        """Raise unless the link can be used here.  Never switches.

        Raises:
            LinkLost: it is closed or lost.
            WrongHub: called from another thread.
        """
        self._check_hub()
        self._commands.check_open()

    def open_socket(self) -> GreenSocket:
        """Return a new socket, which is closed with the link.  May switch.

        Raises:
            LinkLost: the link is closed or lost.
            OSError: the server cannot be reached.
        """
        self._commands.check_open()
        sock = GreenSocket(self.server.address, Deadline(self.server.connect_timeout))
        self._sockets.add(sock)
        return sock

    def stop(self) -> None:
        """Stop, as the link has ended.  Never switches."""
        for each in list(self._sockets):
            each.close()
        self._client = None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
