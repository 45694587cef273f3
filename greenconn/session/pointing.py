"""The part of a connection that says which broker is meant, and opens nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Final

from greenconn.green.deadline import Deadline
from greenconn.options import BROKER_HEARTBEAT
from greenconn.session.attributes import Parameter, Shared
from greenconn.session.broker import URI_FIELDS, Broker
from greenconn.session.failover import STRATEGIES, Failover
from greenconn.session.parameters import DEFAULT_TRANSPORT, ParameterKey, Parameters, combined
from greenconn.session.session import Session
from greenconn.transport.registry import get_transport_cls
from greenconn.url import split_urls

if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = ["ARGUMENTS", "Pointed"]

logger = logging.getLogger("greenconn.connection")

_NAMES = frozenset(Parameters.fields)


class Pointed:
    """Parameters, failover list, equality, copies and pickles of a connection.

    All state is in one :class:`Session`, which facades over the same connection share.
    """

    #: Aliases of transports -> what ``info`` calls them.
    resolve_aliases: ClassVar[Mapping[str, str]] = {"pyamqp": "amqp", "librabbitmq": "amqp"}
    #: Names for ``failover_strategy``.
    failover_strategies: ClassVar[Mapping[str, Any]] = dict(STRATEGIES)

    hostname = Parameter[str | None](None)
    userid = Parameter[str | None](None)
    password = Parameter[Any](None)
    virtual_host = Parameter[str]("/", fills=True)
    port = Parameter[int | None](None)
    insist = Parameter[bool](False)
    ssl = Parameter[Any](None)
    transport_cls = Parameter[Any](DEFAULT_TRANSPORT, "transport", fills=True)
    connect_timeout = Parameter[float | None](5)
    transport_options = Parameter[dict[str, Any]](None)  # type: ignore[arg-type]  # on the class
    login_method = Parameter[str | None](None)
    uri_prefix = Parameter[str | None](None)
    heartbeat = Parameter[float | None](None)
    credential_provider = Parameter[Any](None)

    #: The URLs of the failover list; empty where there is only one.
    alt = Shared[list[str]]([], lambda session: session.broker.failover.addresses)
    #: Gives the next URL to try; None where there is only one.
    cycle = Shared[Iterator[str] | None](None, lambda session: session.broker.failover.cycle)
    #: What chooses the next broker: a function of the list.
    failover_strategy = Shared[Any]("round-robin", lambda session: session.broker.failover.strategy)
    #: Entities known to exist at the broker; a set for each life of the connection.
    declared_entities = Shared[set[Any]](
        None,  # type: ignore[arg-type]  # on the class
        lambda session: session.life.declared_entities,
    )
    #: For ``maybe_declare``: one declaration of an entity at a time; one for each life.
    declare_flight = Shared[Any](None, lambda session: session.life.declare_flight)

    def __init__(
        self,
        hostname: str | Iterable[str] | None = "localhost",
        userid: str | None = None,
        password: str | Callable[[], str] | None = None,
        virtual_host: str | None = None,
        port: int | None = None,
        insist: bool = False,
        ssl: Any = False,
        transport: str | type[Any] | None = None,
        connect_timeout: float | None = 5,
        transport_options: dict[str, Any] | None = None,
        login_method: str | None = None,
        uri_prefix: str | None = None,
        heartbeat: float | None = BROKER_HEARTBEAT,
        failover_strategy: Any = "round-robin",
        alternates: Iterable[str] | None = None,
        credential_provider: Any = None,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            logger.warning(
                "%s: unknown arguments are ignored: %s",
                type(self).__name__,
                ", ".join(sorted(kwargs)),
            )
        keywords = Parameters(
            userid=userid,
            password=password,
            virtual_host=virtual_host,
            port=port,
            insist=insist,
            ssl=ssl,
            transport=transport,
            connect_timeout=connect_timeout,
            transport_options={} if transport_options is None else transport_options,
            login_method=login_method,
            uri_prefix=uri_prefix,
            heartbeat=_heartbeat(heartbeat),
            credential_provider=credential_provider,
        )
        hosts = _hosts(hostname)
        first, whole = combined(hosts[0] if hosts else None, keywords, is_first=True)
        addresses, current = _addresses(hosts, alternates, first, keywords)
        for address in addresses:
            combined(address, keywords)  # a bad one fails now, not when it is needed
        failover = Failover(
            addresses, whole.get("failover_strategy") or failover_strategy, self.failover_strategies
        )
        if current is not None:
            failover.skip_to(current)
        self._session = Session(Broker(self, keywords, first, failover))

    @property
    def session(self) -> Session:
        """The life of this connection, shared by all its facades."""
        return self._session

    @property
    def _family(self) -> type[Self]:
        """The class of copies."""
        return type(self)

    def create_transport(self) -> Any:
        """Make a transport for the broker that is meant now."""
        return self.get_transport_cls()(client=self)

    def _establish_connection(self, deadline: Deadline | None = None) -> Any:
        # kombu's seam between a connection and its transport, which tests of programs replace.
        return self.session.broker.open_link(deadline or Deadline())

    # kombu's names of what programs look at, and what their tests replace.

    @property
    def _closed(self) -> bool:
        return self.session.is_closed

    @_closed.setter
    def _closed(self, is_closed: bool) -> None:
        if is_closed:
            self.session.close()
        elif self.session.is_closed:
            self.session.restart()

    @property
    def _connection(self) -> Any:
        return self.session.life.link

    @property
    def _default_channel(self) -> Any:
        return self.session.life.default_channel

    @_default_channel.setter
    def _default_channel(self, channel: Any) -> None:
        self.session.life.default_channel = channel

    def get_transport_cls(self) -> Any:
        """The class of the transport.

        Raises:
            KeyError: no transport has that name.
        """
        return get_transport_cls(self.transport_cls)

    @property
    def transport(self) -> Any:
        """The transport, made when it is first needed."""
        return self.session.broker.transport

    def completes_cycle(self, retries: int) -> bool:
        """Whether all brokers of the failover list were tried after *retries* further tries."""
        return self.session.broker.failover.completes_cycle(retries)

    def clone(self, **kwargs: Any) -> Self:
        """Return another connection with the same parameters.  Opens nothing.

        Arguments:
            kwargs: arguments of the constructor that shall differ.
        """
        broker = self.session.broker
        twin = self._family(**{**broker.info(resolve=False), **kwargs})
        if not {"hostname", "alternates"} & kwargs.keys():
            # What the URLs leave blank is filled from the keywords, not from the URL in use.
            changes = {name: value for name, value in kwargs.items() if name in _NAMES}
            twin.session.broker.keywords = broker.keywords.replace(**changes)
        return twin

    def __copy__(self) -> Self:
        return self.clone()

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"keywords": self.session.broker.keywords} if self.alt else None
        return self._family, tuple(self.info().values()), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.session.broker.keywords = state["keywords"]

    def info(self) -> dict[str, Any]:
        """The arguments of the constructor that stand for this connection.

        The password is among them in clear.
        """
        return self.session.broker.info()

    def as_uri(
        self,
        include_password: bool = False,
        mask: str = "**",
        getfields: Callable[[dict[str, Any]], Any] = URI_FIELDS,
    ) -> str:
        """The URL of the broker that is meant now.

        Arguments:
            include_password: write the password; one that is a function is called.
            mask: what stands for it otherwise.
            getfields: takes port, user, password, virtual host and transport out of ``info()``.
        """
        return self.session.broker.as_uri(include_password, mask, getfields)

    @property
    def host(self) -> str:
        """Host name and port, with a colon between them."""
        return f"{self.hostname}:{self.port}"

    def __eqhash__(self) -> ParameterKey:
        """What pools know it by: the same for connections with the same parameters."""
        return self.session.broker.key()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.session.broker.label} at {id(self):#x}>"


def _hosts(hostname: object) -> list[str]:
    if hostname is None or hostname == "":
        return []
    if isinstance(hostname, bytes) or not isinstance(hostname, Iterable):
        raise TypeError(f"hostname must be a URL, a host name, or a list of them, got {hostname!r}")
    return split_urls(hostname)


def _heartbeat(value: Any) -> float | None:
    """Seconds; kombu takes text, too."""
    if not value:
        return value  # type: ignore[no-any-return]  # 0, also the one that means the broker's, or None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"heartbeat must be a number of seconds, got {value!r}") from None


def _addresses(
    hosts: list[str],
    alternates: Iterable[str] | None,
    first: Parameters,
    keywords: Parameters,
) -> tuple[list[str], str | None]:
    """The failover list, and the member of it that *first* is; both empty where there is one host.

    Copies and pickles give the current host apart from the list that it is a member of.
    """
    others = [] if alternates is None else split_urls(alternates)
    if len(hosts) > 1 or not others:
        addresses = list(chain(hosts, others)) if len(hosts) + len(others) > 1 else []
        return addresses, None
    for address in others:
        if address == (hosts or [""])[0] or _is_same_place(combined(address, keywords)[0], first):
            return others, address
    return [hosts[0] if hosts else "localhost", *others], None


#: What a connection may be given.
ARGUMENTS: Final = frozenset(Pointed.__init__.__annotations__) - {"kwargs", "return"}


def _is_same_place(one: Parameters, other: Parameters) -> bool:
    names = ("hostname", "port", "virtual_host", "userid")
    return all(getattr(one, name) == getattr(other, name) for name in names)
