"""Redis Sentinel: which server is the master, and when that changes.

At each connect the sentinels are asked in turn, and the server that they name must say itself that it is
a master.  An old master may go on taking messages after a failover, which are lost: so a link keeps one
connection to a sentinel and listens to ``+switch-master``, and ends when another master is named.

Sentinels learn of a failover one after another, and the old master calls itself one until then.
So one that names a master which another has called replaced is believed only if all the others do, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Final

from gevent import Greenlet

from greenconn.green.deadline import Deadline
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.supervisor import spawn
from greenconn.transport.redis.commands import PING, Commands, as_pairs
from greenconn.transport.redis.errors import LinkLost, ServerNotReady
from greenconn.transport.redis.pipeline import Pipeline, ignore
from greenconn.transport.redis.server import (
    Address,
    Credentials,
    ExtraSocket,
    Login,
    Welcome,
    open_pipeline,
)
from greenconn.transport.redis.transport import Transport
from greenconn.url import BrokerURL
from greenconn.wire.resp import ErrorReply, pack

logger = logging.getLogger("greenconn.transport.redis")

_SWITCH: Final = b"+switch-master"
#: Where a sentinel's own view says that a master cannot be used.
_DOWN: Final = frozenset({"s_down", "o_down", "disconnected"})
DEFAULT_PORT: Final = 26379
#: For a sentinel that tells of other masters, as long as the link lives.
FINDING: Final = RetryPolicy(first=0.1, longest=5.0)


class SentinelTransport(Transport):
    """``sentinel://host:26379;sentinel://other:26379``: the master that the sentinels name.

    ``transport_options`` must have ``master_name``.
    """

    default_port: ClassVar[int] = DEFAULT_PORT  # type: ignore[misc]
    inner_schemes = frozenset()
    #: Host and port of the master that was replaced last, as a sentinel said.
    replaced: tuple[str, int] | None = None

    def _resolve(self, deadline: Deadline) -> Address:
        name = self.options.master_name
        if name is None:
            raise ValueError("'master_name' transport option must be specified.")
        errors = []
        replaced: Address | None = None
        sentinels = self.sentinels()
        for sentinel in sentinels:
            # Half of what is left: each comes to the front, and a slow one must be reached there.
            share = deadline.share(1 if sentinel is sentinels[-1] else 2)
            try:
                found = self._ask(sentinel, name, share)
            except (OSError, LinkLost) as exc:
                errors.append(f"{sentinel.where}: {exc}")
                continue
            if not isinstance(found, Address):
                errors.append(f"{sentinel.where}: {found}")
            elif self.is_replaced(found):
                replaced = found
            else:
                return found
        if replaced is not None:
            return replaced  # it is the master again
        raise ServerNotReady(f"no sentinel names a master {name!r} ({'; '.join(errors)})")

    def is_replaced(self, address: Address) -> bool:
        """Return whether a sentinel said that another server took the place of this one."""
        return (address.host, address.port) == self.replaced

    def _place(self) -> str:
        return f"{self.options.master_name}/{self.client.virtual_host}"

    def sentinels(self) -> list[Address]:
        """Return the sentinels, the one that is meant now in front."""
        client = self.client
        urls = [BrokerURL.parse(each) for each in getattr(client, "alt", None) or ()]
        places = [(client.hostname or "127.0.0.1", int(client.port or DEFAULT_PORT))]
        places += [(each.hostname or "127.0.0.1", each.port or DEFAULT_PORT) for each in urls]
        ssl = _tls_of(self.options.sentinel_kwargs or {})
        return [
            Address(
                host=host,
                port=port,
                ssl=ssl,
                where=f"sentinel {host}:{port}",
            )
            for host, port in dict.fromkeys(places)
        ]

    def open_sentinel(
        self, sentinel: Address, deadline: Deadline, on_push: Any, on_lost: Any
    ) -> tuple[Pipeline, Welcome]:
        """Connect to a sentinel.  May switch."""
        login = Login(
            credentials=self._sentinel_credentials,
            database=None,
            client_name=self.client_name,
            must_be_master=False,
        )
        return open_pipeline(sentinel, login, deadline, on_push, on_lost)

    def _sentinel_credentials(self) -> Credentials:
        given = self.options.sentinel_kwargs or {}
        return given.get("username"), given.get("password")

    def _ask(self, sentinel: Address, name: str, deadline: Deadline) -> Address | str:
        """Return the master that one sentinel names, or why it names none.  May switch."""
        pipeline, _ = self.open_sentinel(sentinel, deadline, ignore, ignore)
        replies: list[Any] = []
        try:
            pipeline.post(pack("SENTINEL", "MASTER", name), replies.append)
            pipeline.call(PING, deadline)
        finally:
            pipeline.close()
        (reply,) = replies
        if isinstance(reply, ErrorReply):
            return str(reply)
        try:
            return self._named(as_pairs(reply), name)
        except (ValueError, TypeError, LookupError, AttributeError) as exc:
            return f"not the reply of a sentinel: {exc}"

    def _named(self, pairs: Mapping[bytes, bytes], name: str) -> Address | str:
        """Return the same, out of what a sentinel says of a master."""
        state = {key.decode(): value.decode() for key, value in pairs.items()}
        flags = set(state["flags"].split(","))
        if "master" not in flags or flags & _DOWN:
            return f"it is {state['flags']}"
        others = int(state["num-other-sentinels"])
        if others < self.options.min_other_sentinels:
            return f"this sentinel knows only {others} others"
        host, port = state["ip"], int(state["port"])
        return Address(
            host=host,
            port=port,
            ssl=self.client.ssl,
            where=f"{self.client.as_uri()} (master {name} at {host}:{port})",
            settings=self.options.socket_keepalive_options,
        )

    def watch_master(self, commands: Commands, end: Callable[[BaseException], None]) -> SwitchWatch:
        """Watch for another master, as long as a link lives."""
        return SwitchWatch(self, commands, end)


class SwitchWatch:
    """Ends a link when the sentinels name another master.

    Arguments:
        transport: knows the sentinels.
        commands: of the link.
        end: ends it.  Never switches.
    """

    def __init__(
        self,
        transport: SentinelTransport,
        commands: Commands,
        end: Callable[[BaseException], None],
    ) -> None:
        self._transport = transport
        self._commands = commands
        self._end = end
        self._address = transport.server.address
        self._socket = ExtraSocket(commands, "redis-sentinel-socket")
        self._greenlet: Greenlet[..., Any] | None = spawn("redis-sentinel", self._run)

    def stop(self) -> None:
        """End.  Never switches."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=False)
        self._socket.stop()

    def forget(self) -> None:
        """Forget it in the child of a fork: the parent owns it."""
        self._socket.forget()

    def _run(self) -> None:
        """Find a sentinel that listens with us; one that is lost is replaced."""
        timeout = self._transport.connect_timeout
        for attempt in attempts(FINDING):
            if self._commands.lost is not None:
                return
            sentinels = self._transport.sentinels()
            together = Deadline(timeout)
            for tried, sentinel in enumerate(sentinels):
                # Silent ones must not hold up the others; later each has the time that a slow one needs.
                is_first = attempt.number == 1
                deadline = together.share(len(sentinels) - tried) if is_first else Deadline(timeout)
                try:
                    self._socket.open(
                        partial(self._connect, sentinel, deadline),
                        partial(self._subscribe, deadline),
                    )
                    self._check_master(sentinel)
                    return
                except (OSError, LinkLost) as exc:
                    logger.debug(
                        "%s: %s", sentinel.where, exc, extra={"connection": sentinel.where}
                    )

    def _connect(self, sentinel: Address, deadline: Deadline) -> tuple[Pipeline, Welcome]:
        return self._transport.open_sentinel(sentinel, deadline, self._on_push, self._on_lost)

    def _subscribe(self, deadline: Deadline, pipeline: Pipeline, welcome: Welcome) -> None:
        pipeline.takes_arrays = welcome.protocol == 2
        pipeline.subscribe(pack("SUBSCRIBE", _SWITCH), deadline, "subscribing to a sentinel")

    def _check_master(self, sentinel: Address) -> None:
        """Check whether the master changed between the query and the subscription."""
        name = self._transport.options.master_name or ""
        found = self._transport._ask(sentinel, name, Deadline(self._transport.connect_timeout))
        if isinstance(found, Address) and not self._transport.is_replaced(found):
            self._named(found.host, found.port)

    def _named(self, host: str, port: int) -> None:
        address = self._address
        if (host, port) != (address.host, address.port):
            self._transport.replaced = address.host, address.port
            self._end(
                ServerNotReady(f"{address.where}: the sentinels name {host}:{port} as master now")
            )

    # In the reader: nothing here may switch or run user code.

    def _on_push(self, push: list[Any]) -> None:
        if push[0] != b"message" or push[1] != _SWITCH:
            return
        name, _, _, host, port = push[2].decode().split(" ")
        if name == self._transport.options.master_name:
            self._named(host, int(port))

    def _on_lost(self, exc: LinkLost) -> None:
        if self._commands.lost is None and self._socket.pipeline is not None:
            self._socket.pipeline = None
            self._greenlet = spawn("redis-sentinel", self._run)


def _tls_of(given: Mapping[str, Any]) -> Any:
    """Return the TLS options of redis-py's names in ``sentinel_kwargs``."""
    options = {
        name.removeprefix("ssl_"): value for name, value in given.items() if name.startswith("ssl_")
    }
    return options or bool(given.get("ssl"))
