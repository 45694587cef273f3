"""The Redis transport: kombu's keys, one multiplexed connection.

Sentinel
--------
At each connect the sentinels are asked in turn, and the server that they name must say itself that it is
a master.  An old master may go on taking messages after a failover, which are lost: so a link keeps one
connection to a sentinel and listens to ``+switch-master``, and ends when another master is named.

Sentinels learn of a failover one after another, and the old master calls itself one until then.
So one that names a master which another has called replaced is believed only if all the others do, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Final, NoReturn

import redis
from gevent import Greenlet
from redis import exceptions

from greenconn.broker.channel import StoreChannel
from greenconn.broker.consuming import Consumer, Prefetch, PrefetchView
from greenconn.broker.deliveries import Handover
from greenconn.broker.entities import Management, SharedEntities, SupportedArguments
from greenconn.broker.errors import Method
from greenconn.broker.exchanges import PREDECLARED, Binding, BrokerState
from greenconn.caching import cached_property
from greenconn.credentials import supplied
from greenconn.delays import DELAY
from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    InconsistencyError,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.supervisor import spawn
from greenconn.identity import program_name
from greenconn.importing import symbol_by_name
from greenconn.options import known_options, query_types, typed_query
from greenconn.transport import base
from greenconn.transport.redis.client import LinkedRedis
from greenconn.transport.redis.cluster import ClusterPlacement
from greenconn.transport.redis.errors import LinkLost, ServerNotReady
from greenconn.transport.redis.fanout import router_of
from greenconn.transport.redis.link import Placement, RedisLink, SinglePlacement
from greenconn.transport.redis.maintenance import FormerOwners
from greenconn.transport.redis.options import Keys, RedisOptions, is_client_name
from greenconn.transport.redis.pipeline import PING, Commands, Pipeline, as_pairs, ignore
from greenconn.transport.redis.publishing import UnreportedPublishes
from greenconn.transport.redis.server import (
    Address,
    Credentials,
    ExtraSocket,
    Login,
    Server,
    Welcome,
    open_pipeline,
)
from greenconn.url import BrokerURL
from greenconn.wire.resp import ErrorReply, pack

__all__ = ["Channel", "ClusterTransport", "SentinelTransport", "Transport"]

logger = logging.getLogger("greenconn.transport.redis")

_SWITCH: Final = b"+switch-master"
#: Where a sentinel's own view says that a master cannot be used.
_DOWN: Final = frozenset({"s_down", "o_down", "disconnected"})
DEFAULT_PORT: Final = 26379
#: For a sentinel that tells of other masters, as long as the link lives.
FINDING: Final = RetryPolicy(first=0.1, longest=5.0)


class RedisPrefetchView(PrefetchView):
    """The ``qos`` of a channel to Redis, as kombu's programs use it."""

    def __init__(self, prefetch: Prefetch, sweep: Callable[[], int]) -> None:
        super().__init__(prefetch)
        self._sweep = sweep

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Requeue what dead consumers held; sweepers do so anyway.  May switch."""
        self._sweep()


class RedisEntities(SharedEntities):
    """Exchanges, queues and bindings of a channel to a Redis."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._redis = channel.connection

    def _bind(self, binding: Binding, method: Method) -> None:
        super()._bind(binding, method)
        if self._is_subscribed(binding):
            self._redis.fanout.bound(binding.destination)

    def _unbind(self, binding: Binding) -> None:
        if self._is_subscribed(binding):
            fanout = self._redis.fanout
            fanout.unbound(binding.destination, binding.source, binding.routing_key)
        super()._unbind(binding)

    def _is_subscribed(self, binding: Binding) -> bool:
        """Return whether the destination listens for what the source gets."""
        return not binding.to_exchange and self._redis.is_broadcast(binding.source)


class Channel(StoreChannel[RedisLink]):
    """A channel.  Any greenlet of its connection's hub may call any method at any time.

    Arguments:
        connection: the link.
    """

    entities_class = RedisEntities
    supported_arguments = SupportedArguments(
        queue=frozenset(
            {
                "x-dead-letter-exchange",
                "x-dead-letter-routing-key",
                "x-delivery-limit",
                "x-expires",
                "x-message-ttl",
                "x-single-active-consumer",
            }
        ),
        exchange=frozenset({"alternate-exchange"}),
        consumer=frozenset({"x-priority"}),
        message=frozenset({"priority", DELAY, "CC", "BCC"}),
    )

    def __init__(self, connection: RedisLink, channel_id: int | None = None) -> None:
        super().__init__(connection, channel_id)
        self.prefetch.is_divided = self.queue_order_strategy == "round_robin"

    @property
    def qos(self) -> RedisPrefetchView:
        """The prefetch and what is unanswered, as kombu's programs read them."""
        return RedisPrefetchView(self.prefetch, self.connection.sweep)

    # What programs that monitor queues read of kombu's channel.

    @property
    def visibility_timeout(self) -> float:
        """Seconds after which what a dead consumer of kombu's held is requeued."""
        return self.connection.options.visibility_timeout

    @property
    def priority_steps(self) -> Sequence[int]:
        """The priorities that have a list of their own in each queue."""
        return self.connection.options.priority_steps

    @property
    def sep(self) -> str:
        """The separator between the name of a queue and the priority of a list."""
        return self.connection.options.sep

    @property
    def queue_order_strategy(self) -> str:
        """The order in which the queues of the consumers are served."""
        return self.connection.options.queue_order_strategy

    @property
    def unacked_key(self) -> str:
        """The hash of the messages that consumers hold, without ``global_keyprefix``."""
        return self.connection.options.unacked_key

    @property
    def unacked_index_key(self) -> str:
        """The sorted set of these messages by their times, without ``global_keyprefix``."""
        return self.connection.options.unacked_index_key

    @property
    def active_queues(self) -> list[str]:
        """The queues that this channel consumes from, without those of fan-out exchanges."""
        queues = dict.fromkeys(map(_queue_of, self.consumers.values()))
        return [each for each in queues if each not in self.connection.fanout.queues]

    @property
    def client(self) -> LinkedRedis:
        """A redis-py client of this connection's server and database.  Never switches.

        Its commands may switch.  Keys get the ``global_keyprefix``.  It ends with the connection.

        Raises:
            RecoverableConnectionError, RecoverableChannelError: the channel is closed.
            WrongHub: called from another thread.
        """
        self.check_open()
        return self.connection.clients.client()

    @contextmanager
    def conn_or_acquire(self, client: LinkedRedis | None = None) -> Iterator[LinkedRedis]:
        """Yield *client*, or :attr:`client` (kombu's name)."""
        yield client or self.client

    def _withdraw(self) -> None:
        self.prefetch.is_flowing = False
        self.connection.wait_claims_of(list(self.consumers.values()))
        super()._withdraw()

    def _in_order(self) -> list[Consumer]:
        order = self.queue_order_strategy
        if order == "round_robin":
            return super()._in_order()
        consumers = list(self.consumers.values())
        if order == "sorted":
            consumers.sort(key=_queue_of)
        return consumers


def _queue_of(consumer: Consumer) -> str:
    return consumer.queue


class Transport(base.Transport[RedisLink]):
    """``redis://``: kombu's keys, one connection for all.

    ``transport_options`` are those of :class:`~greenconn.transport.redis.options.RedisOptions`.
    """

    Channel = Channel
    #: The class of its connections.
    link_cls: ClassVar[type[RedisLink]] = RedisLink
    Management = Management
    Options: ClassVar[type[RedisOptions]] = RedisOptions
    driver_type = "redis"
    driver_name = "redis"
    default_port = 6379
    inner_schemes: ClassVar[frozenset[str] | None] = frozenset({"socket"})
    #: Seconds between two attempts to connect, at most: a Redis is back soon, and so is the link.
    longest_pause: ClassVar[float] = 1.0
    connection_errors = (
        ConnectionError,
        InconsistencyError,
        OSError,
        exceptions.ConnectionError,
        exceptions.TimeoutError,
    )
    channel_errors = (
        ChannelError,
        exceptions.DataError,
        exceptions.InvalidResponse,
        exceptions.ResponseError,
    )
    recoverable_connection_errors = (
        RecoverableConnectionError,
        OSError,
        exceptions.ConnectionError,
        exceptions.TimeoutError,
    )
    recoverable_channel_errors = (RecoverableChannelError,)
    implements = base.default_transport_capabilities.extend(asynchronous=True)
    server: Server
    keys: Keys

    @cached_property
    def handover(self) -> Handover:
        """The hand-over from former lives of this connection to the same broker."""
        return self.kept_state.get(Handover, self._place())

    @property
    def stores_fanout(self) -> bool:
        """Whether a fan-out exchange stores messages for queues without consumers at that time."""
        return self.options.fanout_lists

    @cached_property
    def former(self) -> FormerOwners:
        """The former lives of this connection at the same place."""
        return self.kept_state.get(FormerOwners, self._place())

    @cached_property
    def state(self) -> BrokerState:
        """The exchanges and bindings as this connection knows them."""
        state = BrokerState()
        for name, kind in PREDECLARED.items():
            router = router_of(self.options, name, kind)
            state.declare(name, kind, durable=True, router=router)
        return state

    @cached_property
    def unreported(self) -> UnreportedPublishes:
        """The outcomes of publishes of this connection that were not waited for, in all its lives."""
        return self.kept_state.get(UnreportedPublishes, "", self.client.as_uri())

    def _place(self) -> str:
        """Return a key that is equal for servers with the same data."""
        client = self.client
        return f"{client.hostname}:{client.port}/{client.virtual_host}"

    def driver_version(self) -> str:
        return str(redis.__version__)

    @cached_property
    def options(self) -> RedisOptions:
        """The transport options, read when they are first needed.

        Raises:
            ValueError: one has a value that cannot be.
        """
        given = dict(self.client.transport_options or {})
        socket_url = self._socket_url()
        if socket_url is not None:
            given.update(typed_query(socket_url.query, query_types(RedisOptions)))
        return known_options(RedisOptions, given, self.client.as_uri(), logger)

    def establish_connection(self, deadline: Deadline | None = None) -> RedisLink:
        """Open a link.  May switch.

        Arguments:
            deadline: of the caller; ``connect_timeout`` bounds it too.

        Raises:
            Exception: see :func:`~greenconn.transport.redis.server.open_pipeline`.
        """
        deadline = (deadline or Deadline()).within(self.connect_timeout)
        address = self._resolve(deadline)
        database = self._database()
        self.keys = Keys(self.options, database)
        login = Login(
            credentials=partial(supplied, self._credentials),
            database=database,
            client_name=self.client_name,
        )
        self.server = Server(address=address, login=login, connect_timeout=self.connect_timeout)
        link = self.link_cls(self)
        link.open(deadline)
        try:
            self.handover.pass_on(link)
            link.settlements.flush()
            self.former.end_leases(lambda tag: link.placement.partition(tag).commands)
        except exceptions.ResponseError as exc:
            # The server refuses to write just now; what is held is requeued when the lease ends.
            logger.error(
                "%s: the messages that the lost connection held could not be requeued: %s",
                link.where,
                exc,
                extra={"connection": link.where},
            )
        except BaseException:
            link.collect()
            raise
        return link

    @property
    def connect_timeout(self) -> float | None:
        """Seconds for one connection; None waits."""
        given: float | None = self.options.socket_connect_timeout or self.client.connect_timeout
        return given

    @property
    def client_name(self) -> str:
        """The name of our connections in the server's list of clients; '': none."""
        given = self.options.client_name
        if given is not None:
            return given
        return "".join(each if is_client_name(each) else "_" for each in program_name())

    def placement(self, link: RedisLink) -> Placement:
        """Return where the keys of a new link are."""
        return SinglePlacement(link, self.server, self.keys)

    def watch_master(
        self, commands: Commands, end: Callable[[BaseException], None]
    ) -> SwitchWatch | None:
        """Return what watches whether the server is still the one that is meant; None: nothing.

        Arguments:
            commands: of the link.
            end: ends it.  Never switches.
        """
        return None

    @property
    def changing_credentials(self) -> bool:
        """Whether the login may be another one when it is asked again."""
        client = self.client
        return bool(
            callable(client.password)
            or getattr(client, "credential_provider", None)
            or self.options.credential_provider
        )

    def _resolve(self, deadline: Deadline) -> Address:
        """Return the current address of the server."""
        client, options = self.client, self.options
        socket_url = self._socket_url()
        return Address(
            host=client.hostname or "localhost",
            port=int(client.port or self.default_port),
            path=None if socket_url is None else socket_url.socket_path,
            ssl=client.ssl,
            where=client.as_uri(),
            settings=options.socket_keepalive_options,
        )

    def _database(self) -> int:
        """Return the number of the database, which is the virtual host.

        Raises:
            ValueError: it is no number.
        """
        socket_url = self._socket_url()
        # As with other URLs, what the URL says wins over the keyword.
        named = None if socket_url is None else socket_url.virtual_host
        text = named or self.client.virtual_host
        if isinstance(text, int):
            return text
        number = (text or "/").removeprefix("/") or "0"
        if not number.isdecimal():
            raise ValueError(
                f"{self.client.as_uri()}: the virtual host must be the number of a database, as in "
                f"redis://host:6379/0, got {text!r}"
            )
        return int(number)

    def _credentials(self) -> Credentials:
        client = self.client
        provider = getattr(client, "credential_provider", None) or self.options.credential_provider
        if isinstance(provider, str):
            provider = symbol_by_name(provider)()
        if provider is not None:
            if not isinstance(provider, redis.CredentialProvider):
                raise ValueError(
                    f"credential_provider must be a redis.CredentialProvider, got a "
                    f"{type(provider).__name__}"
                )
            given = provider.get_credentials()
            return (None, given[0]) if len(given) == 1 else (given[0], given[1])
        socket_url = self._socket_url()
        password = client.password
        if socket_url is not None and password is None and socket_url.password is not None:
            return socket_url.userid, socket_url.password
        return client.userid or None, (password() if callable(password) else password) or None

    def _socket_url(self) -> BrokerURL | None:
        """Return the address of a UNIX socket, such as ``socket:///path?virtual_host=0``."""
        host = self.client.hostname or ""
        return BrokerURL.parse(f"redis+{host}") if "://" in host else None

    def update_secret(
        self, connection: RedisLink, secret: str, reason: str = "", deadline: Deadline | None = None
    ) -> None:
        """Log in anew with another password, on the open link.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server does not take it.
            TimeoutError: there was no reply before the deadline.
        """
        connection.hub_affinity.check(connection)
        user, _ = self._credentials()
        connection.reauthentication.log_in((user, secret), deadline or Deadline())

    def create_channel(self, connection: RedisLink) -> StoreChannel[RedisLink]:
        """Open a channel."""
        return self.Channel(connection)

    def qos_semantics_matches_spec(self, connection: RedisLink) -> bool:
        """``apply_global`` means the channel, as RabbitMQ has it."""
        return False

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {"hostname": "localhost", "port": self.default_port}


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


class ClusterChannel(Channel):
    """A channel to a cluster."""

    @property
    def client(self) -> NoReturn:
        """Not available: kombu has no cluster whose client programs could expect.

        Raises:
            NotImplementedError: always; names the remedy.
        """
        raise NotImplementedError(
            "channel.client is not available on a Redis Cluster: make a redis.cluster.RedisCluster of "
            "your own, and call it in gevent's threadpool unless the process is monkey-patched"
        )


class ClusterTransport(Transport):
    """``redis+cluster://host:6379;redis+cluster://other:6379``: a Redis Cluster.

    Any of its nodes will do; all that are named are asked until one answers.
    """

    Channel = ClusterChannel
    inner_schemes = frozenset()

    def _resolve(self, deadline: Deadline) -> Address:
        return self.seeds()[0]

    def _place(self) -> str:
        places = sorted(f"{each.host}:{each.port}" for each in self.seeds())
        return f"cluster/{','.join(places)}"

    def seeds(self) -> list[Address]:
        """Return the nodes that the URL names, the one that is meant now in front."""
        client = self.client
        urls = [BrokerURL.parse(each) for each in getattr(client, "alt", None) or ()]
        places = [(client.hostname or "localhost", int(client.port or self.default_port))]
        places += [(each.hostname or "localhost", each.port or self.default_port) for each in urls]
        return [
            Address(
                host=host,
                port=port,
                ssl=client.ssl,
                where=client.as_uri(),
                settings=self.options.socket_keepalive_options,
            )
            for host, port in dict.fromkeys(places)
        ]

    def placement(self, link: RedisLink) -> Placement:
        """Return where the keys of a new link are."""
        login = self.server.login
        return ClusterPlacement(link, self.seeds(), login, self.connect_timeout)

    def _database(self) -> int:
        """Return 0: a cluster has one database.

        Raises:
            ValueError: another one is asked for.
        """
        number = super()._database()
        if number:
            raise ValueError(f"{self.client.as_uri()}: a cluster has only database 0, got {number}")
        return number
