"""The broker that a connection means: its parameters, its transport and its failover list."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import cycle
from operator import itemgetter
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

from greenconn.credentials import SharedLogin
from greenconn.exceptions import (
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    error_text,
    is_unavailable,
)
from greenconn.green.deadline import NEVER, Deadline
from greenconn.session.parameters import DEFAULT_TRANSPORT, ParameterKey, Parameters, combined
from greenconn.session.state import drop
from greenconn.transport import get_transport_cls
from greenconn.url import as_url, mask_secrets, maybe_sanitize_url, safequote

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


if TYPE_CHECKING:
    from greenconn.connection import Connection


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
            if not isinstance(exc, (*self.connection_errors, OSError)):
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
