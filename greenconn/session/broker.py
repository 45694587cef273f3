"""The broker that a connection means: its parameters, its transport and its failover list."""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import cycle
from operator import itemgetter
from types import MappingProxyType, MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from greenconn.checks import Record, check_seconds, is_kombu
from greenconn.credentials import SharedLogin
from greenconn.exceptions import (
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    error_text,
    is_unavailable,
)
from greenconn.green.deadline import NEVER, Deadline, is_thrown
from greenconn.options import (
    BROKER_HEARTBEAT,
    CONNECTION_QUERY,
    AmqpOptions,
    ConnectOptions,
    MemoryOptions,
    query_types,
    typed_query,
)
from greenconn.transport import FOREIGN, TRANSPORT_ALIASES, get_transport_cls, is_name
from greenconn.transport.base import drop
from greenconn.url import (
    BrokerURL,
    as_url,
    check_host,
    mask_secrets,
    maybe_sanitize_url,
    parse_url,
    safequote,
    split_urls,
)

if TYPE_CHECKING:
    from greenconn.connection import Connection, ConnectionArguments


logger = logging.getLogger("greenconn.session")

URI_FIELDS: Final = itemgetter("port", "userid", "password", "virtual_host", "transport")

#: Parameters whose blanks the transport's defaults fill, so that clones equal their source.
_FILLED: Final = (
    "hostname",
    "userid",
    "password",
    "virtual_host",
    "port",
    "login_method",
    "transport",
)

Strategy = Callable[[list[str]], Iterator[str]]


def shufflecycle(it: Iterable[str]) -> Iterator[str]:
    """Yield the members of *it* for ever, in a new random order in each round."""
    import random  # for this strategy only

    members = list(it)
    while members:
        random.shuffle(members)
        yield from members


#: Strategies by name.
STRATEGIES: Final[Mapping[str, Strategy]] = {"round-robin": cycle, "shuffle": shufflecycle}


class Failover:
    """The brokers of a connection, and the order in which they are tried.

    Arguments:
        addresses: URLs or host names, the one that is tried first at the front; fewer than two
            means that there is nothing to fail over to.
        strategy: a name in *strategies*, a function that takes the list and gives an iterator, or
            an iterator of addresses.
        strategies: names and functions.

    Raises:
        ValueError: the strategy's name is not known.
    """

    def __init__(
        self, addresses: list[str], strategy: Any = None, strategies: Mapping[str, Any] = STRATEGIES
    ) -> None:
        self.addresses = addresses
        #: As it was given, for ``info`` and clones.
        self.given = strategy or "round-robin"
        #: What it stands for.
        # (A class may have strategies of its own that lack kombu's.)
        named = {**STRATEGIES, **strategies}
        self.strategy: Any = named.get(self.given) if isinstance(self.given, str) else None
        if self.strategy is None:
            if isinstance(self.given, str):
                raise ValueError(
                    f"failover_strategy must be one of {', '.join(sorted(named))}, a function of a "
                    f"list, or an iterator, got {self.given!r}"
                )
            self.strategy = self.given
        #: Gives the next address; None where there is only one.
        self.cycle: Iterator[str] | None = None
        if addresses:
            self.cycle = self._begin()
            next(self.cycle, None)  # the first is where the connection is already

    @property
    def hosts(self) -> int:
        """The number of brokers in a round."""
        return len(self.addresses) or 1

    def next(self) -> str | None:
        """Return the address to try next; None where there is nothing to fail over to."""
        if self.cycle is None:
            return None
        address = next(self.cycle, None)
        if address is None:
            # A strategy that ended begins again.
            self.cycle = self._begin()
            address = next(self.cycle, None)
        return address

    def skip_to(self, address: str) -> None:
        """Go on behind *address* if it comes within a round."""
        if self.addresses and address != self.addresses[0]:
            for _ in range(self.hosts - 1):
                if self.next() == address:
                    return

    def completes_cycle(self, retries: int) -> bool:
        """Return whether a round is over after the first try and *retries* more."""
        return (retries + 1) % self.hosts == 0

    def _begin(self) -> Iterator[str]:
        made = self.strategy(list(self.addresses)) if callable(self.strategy) else self.strategy
        return iter(made)

    def __repr__(self) -> str:
        return f"<Failover {mask_secrets(';'.join(self.addresses))}: {self.given!r}>"


class Broker:
    """The broker that a connection means, now and when that one fails.

    Arguments:
        client: the ``Connection``, which makes the transport.
        keywords: what the URLs leave blank.
        parameters: where to begin.
        failover: the list of brokers; *parameters* are those of its first member.

    Attributes:
        parameters: those of the broker that is meant now, as they were given.
        login: shared with the brokers of all clones of the connection.
    """

    def __init__(
        self, client: Connection, keywords: Parameters, parameters: Parameters, failover: Failover
    ) -> None:
        self.keywords = keywords
        self.failover = failover
        self._client = client
        self.login = SharedLogin()
        self._first = self.parameters = parameters
        self._transport: Any = None
        self._key: ParameterKey | None = None
        self._addresses: frozenset[tuple[Any, ...]] | None = None
        self._label: str | None = None
        self._replaced_errors: dict[str, tuple[type[BaseException], ...]] = {}
        #: That of the attempt to connect that was begun last, while it lasts.
        self._deadline = NEVER

    def change(self, name: str, value: Any) -> None:
        """Change one parameter, until another broker is meant.

        Raises:
            ValueError: the host is a URL, which the transport would take for a name.
        """
        is_url = name == "hostname" and isinstance(value, str) and "://" in value
        if is_url and not (self.parameters.uri_prefix or self.transport_cls.can_parse_url):
            raise ValueError(
                f"hostname must be a name or an address, got the URL {mask_secrets(value)!r}: use "
                f"switch() or clone(hostname=...)"
            )
        if name in ("userid", "password"):
            self.login = SharedLogin()
        self.parameters = self.parameters.replace(**{name: value})
        self._key = self._label = self._addresses = None

    @property
    def password(self) -> Any:
        """The password of now: that of ``update_secret()`` for its user, or as it was given."""
        login, parameters = self.login, self.parameters
        if login.secret is not None and login.userid == self.userid:
            return login.secret
        return parameters.password

    @property
    def userid(self) -> str | None:
        """The user name, or the default of the transport."""
        return self.parameters.userid or self.transport.default_connection_params.get("userid")

    def update_password(self, secret: str) -> None:
        """Log in with *secret* from now on, here and in all clones.  Never switches.

        A password function and a credential provider know better, and are asked as before.
        """
        parameters = self.parameters
        if not callable(parameters.password) and parameters.credential_provider is None:
            self.login.secret, self.login.userid = secret, self.userid

    @property
    def hosts(self) -> int:
        """The number of brokers in the failover list."""
        return self.failover.hosts

    @property
    def connect_timeout(self) -> float | None:
        """Seconds for one host; None waits."""
        return self.parameters.connect_timeout

    @property
    def transport(self) -> Any:
        """The transport for the broker that is meant now."""
        if self._transport is None:
            self._transport = self._client.create_transport()
        return self._transport

    @property
    def transport_cls(self) -> Any:
        """Its class."""
        return get_transport_cls(self.parameters.transport or DEFAULT_TRANSPORT)

    def check_transactions(self, remedy: str) -> None:
        """Refuse a broker whose messages are no rows of a database.

        Arguments:
            remedy: what to do instead.

        Raises:
            ValueError: names the broker and the remedy.
        """
        if not hasattr(getattr(self.transport, "Channel", None), "within"):
            raise ValueError(
                f"transaction= needs a broker in the database of the transaction (postgresql://), got "
                f"{self.label}: {remedy}"
            )

    def check_broadcast(self, *, is_kept: bool = False) -> None:
        """Refuse a broker where a broadcast would not reach all processes, or leave queues behind.

        Arguments:
            is_kept: whether a consumer is to get what is published while it is away.

        Raises:
            ValueError: names the broker and the remedy.
        """
        cls = self.transport_cls
        supported = getattr(getattr(cls, "Channel", None), "supported_arguments", None)
        # (AMQP passes all arguments on.)
        has_expiry = cls.driver_type == "amqp" or (
            supported is not None and "x-expires" in supported.queue
        )
        if not has_expiry:
            raise ValueError(
                f"a Broadcast needs a broker that deletes the queues of processes that are gone "
                f"(RabbitMQ, Redis, SQLite, PostgreSQL, MongoDB, memory), got {self.label}"
            )
        if is_kept and not getattr(self.transport, "stores_fanout", True):
            raise ValueError(
                f"keep of a Broadcast needs fan-out that is stored, which {self.label} has with "
                f"transport_options={{'fanout_lists': True}} in all programs"
            )

    def drop_transport(self) -> None:
        """Make a new transport when one is needed again."""
        self._transport = self._label = None

    def use_address(self, address: str, *, keeps_transport: bool = True) -> None:
        """Use another broker from now on.

        Arguments:
            address: a URL, where the keywords fill what it leaves blank; or a host name, which
                takes the place of the first one.
            keeps_transport: a ``transport`` argument that is a class wins over the URL's scheme.
        """
        keywords = self.keywords if keeps_transport else self.keywords.replace(transport=None)
        if "://" not in address:
            keywords = self._first
        self.parameters = combined(address, keywords)[0]
        self._transport = self._key = self._label = self._addresses = None

    def advance(self) -> None:
        """Use the next broker of the failover list, if there is one."""
        address = self.failover.next()
        if address is not None:
            self.use_address(address)

    def establish(self, deadline: Deadline) -> Any:
        """Open a link to the current broker.  May switch.

        Arguments:
            deadline: for the whole of it; transports written for kombu bound themselves.
        """
        self._fill_blanks()
        # No argument of kombu's methods in between, so that those of a program may call them, too.
        self._deadline = deadline
        try:
            return self._client._connection_factory()
        finally:
            if self._deadline is deadline:
                self._deadline = NEVER

    def open_link(self) -> Any:
        """Have the transport open a link, before the deadline of the attempt.  May switch."""
        establish = self.transport.establish_connection
        return establish(self._deadline) if _takes_deadline(establish) else establish()

    def close(self, link: object) -> None:
        """Close *link* in good order; what the network does then is of no interest.  May switch."""
        try:
            self.transport.close_connection(link)
        except Exception as exc:
            if is_thrown(exc) or not isinstance(exc, (*self.connection_errors, OSError)):
                raise
            logger.debug(
                "closing %s: %s", self.label, error_text(exc), extra={"connection": self.label}
            )
        finally:
            if getattr(link, "is_open", False):
                # Killed on the way: what is left of it goes without a word.
                drop(link)

    def is_transient(self, exc: BaseException) -> bool:
        """Return whether an error of a channel may pass while its link stays."""
        errors = self.recoverable_channel_errors
        if isinstance(exc, (NotFound, PreconditionFailed)):
            return is_unavailable(exc)
        return isinstance(exc, (TimeoutError, RecoverableChannelError, *errors))

    def _fill_blanks(self) -> None:
        """Let the connection say what the transport takes for what was not given, as kombu does."""
        defaults = self.transport.default_connection_params
        blanks = {
            name: defaults[name]
            for name in _FILLED
            if name in defaults and not getattr(self.parameters, name)
        }
        if blanks:
            self.parameters = self.parameters.replace(**blanks)

    @property
    def has_base_contract(self) -> bool:
        """Whether the transport is written to kombu's base contract: its links are any objects."""
        return not _takes_deadline(self.transport.establish_connection)

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """Errors that mean a lost connection."""
        return tuple(self._of_transport("connection_errors", ()))

    @property
    def channel_errors(self) -> tuple[type[BaseException], ...]:
        """Errors that mean a lost channel."""
        return tuple(self._of_transport("channel_errors", ()))

    @property
    def recoverable_connection_errors(self) -> tuple[type[BaseException], ...]:
        """Errors after which a new connection may help."""
        errors = self._of_transport("recoverable_connection_errors", None)
        # A transport that knows no difference: all may be recovered from.
        return self.connection_errors + self.channel_errors if errors is None else tuple(errors)

    @property
    def recoverable_channel_errors(self) -> tuple[type[BaseException], ...]:
        """Errors after which a new channel may help."""
        return tuple(self._of_transport("recoverable_channel_errors", ()))

    @property
    def knows_recoverable_errors(self) -> bool:
        """Whether the transport tells errors after which a new connection may help from others."""
        return hasattr(self.transport, "recoverable_connection_errors")

    def replace_errors(self, name: str, errors: tuple[type[BaseException], ...]) -> None:
        """Take *errors* for those that the transport has under *name*, whatever broker is meant."""
        self._replaced_errors[name] = errors

    def _of_transport(self, name: str, default: Any) -> Any:
        if name in self._replaced_errors:
            return self._replaced_errors[name]
        try:
            transport = self.transport
        except Exception:
            # In an ``except`` clause a transport that cannot be made must not hide the first error.
            errors = getattr(self._client.get_transport_cls(), name, default)
            return errors if isinstance(errors, tuple) else default
        return getattr(transport, name, default)

    def key(self) -> ParameterKey:
        """Return the key that connections to the same brokers share; failing over does not change it."""
        if self._key is None:
            if self.failover.addresses:
                keys = [combined(each, self.keywords)[0].key() for each in self.failover.addresses]
                self._key = ParameterKey((), None, tuple(keys))
            else:
                info, defaults = self.info(), self.transport.default_connection_params
                # That of update_secret() stands for the same login: clones, old and new, keep their key.
                info["password"] = self.parameters.password or defaults.get("password")
                filled = {name: info[name] for name in _FILLED}
                self._key = self.parameters.replace(**filled).key()
        return self._key

    @property
    def addresses(self) -> frozenset[tuple[Any, ...]]:
        """The brokers, as a key that is equal for connections to the same queues with any login."""
        if self._addresses is None:
            addresses = self.failover.addresses
            brokers = [combined(each, self.keywords)[0] for each in addresses] or [self.parameters]
            self._addresses = frozenset(map(self._address_of, brokers))
        return self._addresses

    def _address_of(self, parameters: Parameters) -> tuple[Any, ...]:
        defaults = self.transport.default_connection_params
        return (
            parameters.uri_prefix or parameters.transport or DEFAULT_TRANSPORT,
            parameters.hostname or defaults.get("hostname", "localhost"),
            parameters.port or defaults.get("port"),
            parameters.virtual_host or defaults.get("virtual_host") or "/",
        )

    def info(self, *, resolve: bool = True) -> dict[str, Any]:
        """Return the arguments of ``Connection`` that stand for this broker, in their order.

        Arguments:
            resolve: name the transport by its plain alias.
        """
        parameters, defaults = self.parameters, self.transport.default_connection_params
        transport = parameters.transport or DEFAULT_TRANSPORT
        if resolve and isinstance(transport, str):
            transport = self._client.resolve_aliases.get(transport, transport)
        hostname = parameters.hostname or defaults.get("hostname", "localhost")
        if parameters.uri_prefix:
            hostname = f"{parameters.uri_prefix}+{hostname}"
        return {
            "hostname": hostname,
            "userid": parameters.userid or defaults.get("userid"),
            "password": self.password or defaults.get("password"),
            "virtual_host": parameters.virtual_host or defaults.get("virtual_host") or "/",
            "port": parameters.port or defaults.get("port"),
            "insist": parameters.insist,
            "ssl": parameters.ssl,
            "transport": transport,
            "connect_timeout": parameters.connect_timeout,
            "transport_options": parameters.transport_options,
            "login_method": parameters.login_method or defaults.get("login_method"),
            "uri_prefix": parameters.uri_prefix,
            "heartbeat": parameters.heartbeat,
            "failover_strategy": self.failover.given,
            "alternates": self.failover.addresses,
            "credential_provider": parameters.credential_provider,
        }

    @property
    def label(self) -> str:
        """The URL for messages and logs, password masked.  Never raises."""
        try:
            return self._label or self.as_uri()
        except Exception:
            return "broker"

    def as_uri(
        self,
        include_password: bool = False,
        mask: str = "**",
        getfields: Callable[[dict[str, Any]], Any] = URI_FIELDS,
    ) -> str:
        """Return the URL of the broker that is meant now.

        Arguments:
            include_password: write the password, which is called if it is a function.
            mask: what stands for it otherwise.
            getfields: takes port, user, password, virtual host and transport out of :meth:`info`.
        """
        if include_password or mask != "**" or getfields is not URI_FIELDS:
            return self._uri(include_password, mask, getfields)
        if self._label is None:  # it goes into every log record and error
            self._label = self._uri(include_password, mask, getfields)
        return self._label

    def _uri(
        self, include_password: bool, mask: str, getfields: Callable[[dict[str, Any]], Any]
    ) -> str:
        parameters = self.parameters
        has_host = getattr(self.transport, "has_host", True)
        hostname = parameters.hostname or ("localhost" if has_host else "")
        if self.transport.can_parse_url or parameters.uri_prefix:
            return self._foreign_uri(hostname, include_password, mask)
        port, userid, password, virtual_host, transport = getfields(self.info())
        if not include_password:
            shown = mask if has_host and password else None
            return _masked_url(transport, hostname, port, userid, shown, virtual_host)
        if callable(password):
            password = password()
        return as_url(transport, hostname, port, userid, password, safequote(virtual_host, "/"))

    def _foreign_uri(self, hostname: str, include_password: bool, mask: str) -> str:
        """Return the URL where the transport parses it, or a part of it, itself."""
        parameters = self.parameters
        if self.transport.can_parse_url:
            try:
                return str(self.transport.as_uri(hostname, include_password, mask))
            except NotImplementedError:
                pass
        uri = hostname
        if parameters.uri_prefix:
            uri = f"{parameters.uri_prefix}+{hostname}"
        if include_password:
            return uri
        return maybe_sanitize_url(uri, mask) if "://" in uri else mask_secrets(uri, mask)


@lru_cache(maxsize=64)  # each connection asks for it, for messages
def _masked_url(
    transport: str,
    hostname: str,
    port: Any,
    userid: Any,
    mask: str | None,
    virtual_host: str,
) -> str:
    path = safequote(virtual_host, "/")
    return as_url(transport, hostname, port, userid, mask, path, sanitize=True, mask=mask or "")


def _takes_deadline(establish: Any) -> bool:
    """Return whether it is written for us; kombu's contract has no arguments."""
    function = getattr(establish, "__func__", None)
    return _has_parameters(establish) if function is None else _is_method_with_parameters(function)


@lru_cache(maxsize=64)
def _is_method_with_parameters(function: Any) -> bool:
    return _has_parameters(MethodType(function, object()))


def _has_parameters(function: Any) -> bool:
    try:
        return bool(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False


DEFAULT_TRANSPORT: Final = "amqp"

_REDIS_KINDS: Final = ("", "+cluster", "+sentinel")
#: Aliases whose name says TLS.
_TLS_ALIASES: Final = frozenset(
    {"amqps", *(f"{server}s{kind}" for server in ("redis", "valkey") for kind in _REDIS_KINDS)}
)
_HOST_AND_PORT: Final = r"([\w.-]+|\[[0-9A-Fa-f:.%\w]+\]):(\d{1,5})"
_HOST_WITHOUT_PORT: Final = r"([\w.-]+|\[[0-9A-Fa-f:.%\w]+\]):"
#: So that the digest of a password says nothing outside of this process.
_SALT: Final = os.urandom(16)

#: Options classes of transports that do not name theirs (``Transport.Options``), by ``driver_type``.
_OPTIONS: Final[Mapping[str, type[Any]]] = {
    "amqp": AmqpOptions,
    "memory": MemoryOptions,
}


class Parameters(Record):
    """The address of one broker and the login there; None is what the transport's default fills.

    The names are those of ``Connection``'s arguments; passwords may be functions that return one.
    """

    hidden = frozenset({"password", "ssl", "transport_options", "credential_provider"})

    hostname: str | None = None
    userid: str | None = None
    password: Any = None
    virtual_host: str | None = None
    port: int | None = None
    insist: bool = False
    ssl: Any = False
    transport: Any = None
    connect_timeout: float | None = 5
    transport_options: Mapping[str, Any] = MappingProxyType({})
    login_method: str | None = None
    uri_prefix: str | None = None
    heartbeat: float | None = BROKER_HEARTBEAT
    credential_provider: Any = None

    def __post_init__(self) -> None:
        # Else the network or the broker would be blamed for it, and asked again.
        check_seconds(self, "connect_timeout", "heartbeat")
        if self.port:
            _check_port(self.port)
        if not isinstance(self.transport_options, Mapping):
            raise TypeError(
                f"transport_options must be a dict, got {type(self.transport_options).__name__}"
            )

    def __repr__(self) -> str:
        host = maybe_sanitize_url(self.hostname)  # the whole URL, where the transport parses it
        shown = self if host == self.hostname else self.replace(hostname=host)
        return Record.__repr__(shown)

    def key(self) -> ParameterKey:
        """Return what makes two connections mean the same broker, login and behaviour."""
        parts = (
            self.hostname,
            self.userid,
            self.virtual_host or "/",
            self.port,
            self.transport or DEFAULT_TRANSPORT,
            repr(self.ssl),
            repr(self.transport_options),
            self.login_method,
            self.uri_prefix,
        )
        function = self.password if callable(self.password) else None
        if function is None and self.credential_provider is None:
            return ParameterKey(parts, self.password)
        password = None if function else self.password
        return ParameterKey(parts, password, (function, self.credential_provider))


class ParameterKey(bytes):
    """A hashable value that tells connections apart, and no secret.

    It is the digest, so that finding a pool by it calls nothing of ours.

    Arguments:
        parts: what must be equal; only a digest of it is kept.
        password: the same; None for none.
        objects: what must be equal beside, compared as it is.
    """

    def __new__(
        cls, parts: Any, password: Any = None, objects: tuple[Any, ...] = ()
    ) -> ParameterKey:
        import hashlib  # for pools only; it takes a millisecond

        text = repr((parts, password)).encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(text, digest_size=16, key=_SALT).digest()
        if not objects:
            return super().__new__(cls, digest)
        key = super().__new__(_KeyWithObjects, digest)
        key.objects = objects
        return key

    def __repr__(self) -> str:
        return f"<ParameterKey {self.hex()[:12]}>"


class _KeyWithObjects(ParameterKey):
    """One that is compared by more than its digest."""

    objects: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ParameterKey):
            return NotImplemented
        return bytes.__eq__(self, other) and self.objects == getattr(other, "objects", ())

    def __ne__(self, other: object) -> bool:
        # That of bytes would compare the digests only.
        return not self == other

    __hash__ = bytes.__hash__


def _check_port(port: Any) -> None:
    try:
        number = int(port)
    except (TypeError, ValueError):
        number = 0
    if not 0 < number < 65536:
        raise ValueError(f"port must be a number from 1 to 65535, got {port!r}")


def combined(
    address: str | None, keywords: Parameters, *, is_first: bool = False
) -> tuple[Parameters, dict[str, Any]]:
    """Return what *address* means where *keywords* fill its blanks.

    Arguments:
        address: a URL, a host name with or without a port, or nothing.
        keywords: as they were given.
        is_first: whether it was given to the constructor, where the ``transport`` keyword wins over
            the scheme; later only a class or class path does.

    Returns:
        The parameters, and options in the URL that are about the connection as a whole
        (``failover_strategy``).

    Raises:
        ValueError: the URL is malformed, or has an option that is not known or not of its type.
        KeyError: no transport has that name.
    """
    if not address or "://" not in address:
        return _with_tls(_of_host(address, keywords)), {}
    scheme, _, rest = address.partition("://")
    if "+" in scheme and not is_name(scheme):
        # The rest is the transport's to parse: sqla+mysql://..., redis+socket:///path
        prefix, _, inner = scheme.partition("+")
        check_scheme(prefix, address)
        name = keywords.transport if _is_class(keywords.transport) else prefix
        _check_inner_scheme(prefix, inner, name, address)
        host = f"{inner}://{rest}"
        place = keywords.replace(
            transport=name,
            hostname=host,
            uri_prefix=keywords.uri_prefix or prefix,
        )
        return _with_tls(place), {}
    transport = keywords.transport
    if not transport or not (is_first or _is_class(transport)):
        transport = check_scheme(scheme, address)
    cls = get_transport_cls(transport)
    if cls.can_parse_url:
        return _with_tls(keywords.replace(transport=transport, hostname=address)), {}
    return _of_url(address, keywords, transport, cls)


def _check_inner_scheme(
    prefix: str, inner: str, transport: str | type[Any] | None, address: str
) -> None:
    """Refuse ``redis+tls://`` and the like, whose rest would be taken for the name of a host."""
    if transport in FOREIGN:
        return  # kombu's own, which is imported when it is needed
    known = get_transport_cls(transport).inner_schemes
    if known is None or inner in known:
        return
    if inner in ("ssl", "tls"):
        has_tls_name = f"{prefix}s" in TRANSPORT_ALIASES
        meant = f"{prefix}s://host" if has_tls_name else f"{prefix}://host?ssl=1"
    elif inner in TRANSPORT_ALIASES:
        meant = f"{inner}://host" + ("?ssl=1" if prefix in _TLS_ALIASES else "")
    else:
        meant = " or ".join(
            (f"{prefix}://host", *(f"{prefix}+{each}://" for each in sorted(known)))
        )
    raise ValueError(
        f"broker URL {mask_secrets(address)!r}: there is no scheme {prefix}+{inner}://; did you mean "
        f"{meant}?"
    )


def _of_host(address: str | None, keywords: Parameters) -> Parameters:
    if not address:
        return keywords
    match = re.fullmatch(_HOST_AND_PORT, address, re.ASCII)
    if match is None:
        if re.fullmatch(_HOST_WITHOUT_PORT, address, re.ASCII) and not is_name(address[:-1]):
            host = address[:-1]
            raise ValueError(
                f"broker address {address!r}: the port after the colon is missing; write {host!r}, or "
                f"as in '{host}:5672'"
            )
        check_host(address)
        return keywords.replace(hostname=address)
    return keywords.replace(hostname=match[1].strip("[]"), port=int(match[2]))


def _of_url(
    address: str, keywords: Parameters, transport: str | type[Any] | None, cls: type[Any]
) -> tuple[Parameters, dict[str, Any]]:
    parts = BrokerURL.parse(address)
    options = _typed_options(parts.query, cls)
    place = keywords.replace(
        transport=transport,
        hostname=parts.hostname or keywords.hostname,
        port=parts.port or keywords.port,
        userid=parts.userid or keywords.userid,
        password=parts.password or keywords.password,
        virtual_host=parts.virtual_host or keywords.virtual_host,
    )
    changes: dict[str, Any] = {
        name: options.pop(name)
        for name in ("heartbeat", "insist", "connect_timeout", "login_method")
        if name in options
    }
    about_tls = {name: options.pop(name) for name in list(options) if name.startswith("ssl")}
    if about_tls:
        changes["ssl"] = _tls(about_tls, parse_url(address).get("ssl"), keywords.ssl)
    whole = {name: options.pop(name) for name in ("failover_strategy",) if name in options}
    if options:
        changes["transport_options"] = {**keywords.transport_options, **options}
    return _with_tls(place.replace(**changes) if changes else place), whole


def _tls(options: Mapping[str, Any], parsed: Any, given: Any) -> Any:
    """Return the ``ssl`` argument that a URL's options and the keyword mean together."""
    if not options.get("ssl", True):
        return False
    if isinstance(parsed, Mapping):
        return {**given, **parsed} if isinstance(given, Mapping) else parsed
    return given or True


def _typed_options(query: Mapping[str, str], cls: type[Any]) -> dict[str, Any]:
    """Return the options of a URL with their types; those of a foreign transport stay text."""
    if not query:
        return {}
    known = {**CONNECTION_QUERY, **query_types(ConnectOptions)}
    options = getattr(cls, "Options", None) or _OPTIONS.get(cls.driver_type)
    if options is not None:
        return typed_query(query, {**query_types(options), **known})
    foreign = {name: text for name, text in query.items() if name not in known}
    ours = {name: text for name, text in query.items() if name in known}
    return {**typed_query(ours, known), **foreign}


def _with_tls(parameters: Parameters) -> Parameters:
    if parameters.transport in _TLS_ALIASES and not parameters.ssl:
        return parameters.replace(ssl=True)
    return parameters


def _is_class(transport: str | type[Any] | None) -> bool:
    """Return whether it is a class or the path of one, rather than an alias."""
    return bool(transport) and (
        not isinstance(transport, str) or "." in transport or ":" in transport
    )


def check_scheme(scheme: str, address: str = "") -> str:
    """Return *scheme*, which names an alias: a URL may come from elsewhere, and imports nothing.

    Arguments:
        address: the URL, for the message.

    Raises:
        ValueError: *scheme* is an import path, or empty.
    """
    address = address or f"{scheme}://"
    if "." in scheme or ":" in scheme:
        raise ValueError(
            f"Invalid transport scheme in broker URL {mask_secrets(address)!r}: an import path is "
            f"no scheme; pass it as the transport argument instead"
        )
    if not scheme:
        raise ValueError(
            f"broker URL {mask_secrets(address)!r} must begin with a transport, as in amqp://localhost//"
        )
    return scheme


def check_is_url(option: str, url: str | Iterable[str]) -> None:
    """Check that the value of *option* is a URL, as a host name alone does not say which broker.

    Raises:
        ValueError: it has no scheme, or is malformed.
    """
    first = next(iter(split_urls(url)), "")
    if "://" in first:
        return
    combined(first, Parameters())  # a malformed one has a remedy of its own
    place = first or "localhost"
    meant = f"{place}://" if is_name(place) else f"amqp://{place}{'//' * ('/' not in place)}"
    raise ValueError(f"{option} must be a URL such as {meant!r}, got {first!r}")


URL_VARIABLE: Final = "GREENCONN_URL"
#: Where limits are kept.
LIMITS_VARIABLE: Final = "GREENCONN_LIMITS"
DEFAULT_URL: Final = "amqp://guest:guest@localhost:5672//"


class _Unnamed(str):
    """kombu's default host, which is recognised by its identity."""

    __slots__ = ()


#: The default of the argument *hostname*.
UNNAMED: Final = _Unnamed("localhost")
#: The parameters that say where a broker is, and who logs in there.
_PLACE: Final = ("port", "virtual_host", "transport", "uri_prefix", "userid", "password")


class Configuration:
    """The arguments of ``configure``; replaced as a whole.

    Arguments:
        url: None uses the environment.

    Attributes:
        current: the one in use.
    """

    current: ClassVar[Configuration]

    def __init__(
        self,
        url: str | None = None,
        options: ConnectionArguments | None = None,
        declare_by_name: bool | None = None,
        limits: Connection | str | None = None,
    ) -> None:
        self._url = url
        self.options: ConnectionArguments = options or {}
        self.declare_by_name = declare_by_name
        self._limits = limits

    @property
    def limits(self) -> Connection | str | None:
        """The store of limits for brokers that keep none; None: there is none."""
        return self._limits or os.environ.get(LIMITS_VARIABLE) or None

    @property
    def url(self) -> str:
        """URL of the broker; empty if there is none.

        Raises:
            ValueError: that of the environment has no scheme.
        """
        if self._url is None:
            url = os.environ.get(URL_VARIABLE, "")
            if url:
                check_is_url(URL_VARIABLE, url)
            self._url = url
        return self._url


Configuration.current = Configuration()


def configured(keywords: Parameters) -> tuple[str, Mapping[str, Any]]:
    """Return host or URL of a connection that was made without one, and what it has by ``configure``.

    Arguments:
        keywords: the arguments of the connection.  If they name a place or a login, they are for kombu's
            default host, and so are those of programs that import greenconn as kombu.

    Returns:
        The host, and those arguments of ``configure`` that are not given in *keywords*.
    """
    if is_kombu() or any(getattr(keywords, name) for name in _PLACE):
        return str(UNNAMED), {}
    current = Configuration.current
    missing = {
        name: value
        for name, value in current.options.items()
        if _is_default(name, getattr(keywords, name, None))
    }
    return current.url or str(UNNAMED), missing


def _is_default(name: str, value: object) -> bool:
    if name == "heartbeat":
        return value is BROKER_HEARTBEAT  # another 0 turns them off
    return bool(value == getattr(Parameters, name, None))
