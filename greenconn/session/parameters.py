"""The parameters of a connection, combined from its URL and its keyword arguments.

Keywords fill what a URL leaves blank.  Each URL of a failover list stands by itself: what one leaves
blank is filled from the keywords, never from the URL tried before.  A bare host name takes the place
of the host in the keywords.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from greenconn.checks import check_seconds
from greenconn.options import (
    BROKER_HEARTBEAT,
    CONNECTION_QUERY,
    AmqpOptions,
    ConnectOptions,
    MemoryOptions,
    query_types,
    typed_query,
)
from greenconn.records import Record
from greenconn.transport import FOREIGN, TRANSPORT_ALIASES, get_transport_cls, is_name
from greenconn.url import (
    BrokerURL,
    check_host,
    mask_secrets,
    maybe_sanitize_url,
    parse_url,
    split_urls,
)

DEFAULT_TRANSPORT: Final = "amqp"

#: Aliases whose name says TLS.
_TLS_ALIASES: Final = frozenset({"amqps", "rediss", "rediss+cluster"})
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
