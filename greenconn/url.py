"""Broker URLs: strings in, strings out; nothing here knows what an option means.

The form is ``transport://userid:password@host:port/virtual_host?name=value``.  What follows the
first slash is the virtual host: ``amqp://host//foo`` is ``/foo``, ``amqp://host/foo`` is ``foo``,
``amqp://host//`` is ``/``.  The parser is our own, since urllib's drops blanks and fragments
silently and quotes pieces of passwords in its errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ssl import CERT_NONE, CERT_OPTIONAL, CERT_REQUIRED, VerifyMode
from string import ascii_letters, digits
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn, TypeVar, overload

from greenconn.checks import Record

__all__ = [
    "BrokerURL",
    "UnknownCertReqs",
    "as_url",
    "check_host",
    "mask_secrets",
    "maybe_sanitize_url",
    "parse_ssl_cert_reqs",
    "parse_url",
    "safequote",
    "sanitize_url",
    "split_urls",
    "url_to_parts",
    "urlparts",
]

T = TypeVar("T")

# Sets of characters: compiling a pattern takes longer than all else that is done with a URL.
_LETTERS: Final = frozenset(ascii_letters)
#: What is never percent-encoded.
_UNRESERVED: Final = ascii_letters + digits + "_.-~"
_IN_SCHEME: Final = frozenset(ascii_letters + digits + "_.:-")
# "#" would cut the rest of the URL off; a blank or control character is a slip of the editor.
_STRAY: Final = frozenset((*map(chr, range(0x21)), *"#\x7f\x85\xa0\u2028\u2029"))
_NOT_IN_HOST: Final = frozenset("\\^`{}|<>\"'/?@")
_IN_IPV6: Final = frozenset("0123456789ABCDEFabcdef:.%[]")
# Patterns of errors and of bare host names: compiled by the first one.
# A scheme, and what is left of "://".  One letter may be a drive.
_SLIP: Final = r"([A-Za-z][A-Za-z0-9.+-]+)(?::/|//|:(?![0-9:]))"
_NEXT_URL: Final = r";(?=\s*[A-Za-z][A-Za-z0-9_.:+-]*://)"
_SECRET_OPTION: Final = (
    r"([?&][^=&]*(?:passw|passphrase|pwd|secret|token|response|credential|kwargs|authmech)[^=&]*=)"
    r"[^&;]*"
)

#: What a path may hold as it is; anything else could not be distinguished from the rest of the URL.
_PATH_SAFE: Final = "/!$&'()*+,:=@~"

_HOW_TO_QUOTE: Final = (
    "percent-encode special characters in user name, password and virtual host "
    "(/ %2F, : %3A, @ %40, # %23, ? %3F, ; %3B, % %25, blank %20)"
)

_CERT_REQS: Final[Mapping[str, VerifyMode]] = {
    "CERT_REQUIRED": CERT_REQUIRED,
    "CERT_OPTIONAL": CERT_OPTIONAL,
    "CERT_NONE": CERT_NONE,
    "required": CERT_REQUIRED,
    "optional": CERT_OPTIONAL,
    "none": CERT_NONE,
}


#: The parts of a URL (kombu's name), percent-decoded; None is a part that is not there.
urlparts = NamedTuple(  # noqa: UP014 - the types of a class are texts here, each of which is compiled
    "urlparts",
    [
        ("scheme", str),
        ("hostname", str | None),
        ("port", int | None),
        ("username", str | None),
        ("password", str | None),
        ("path", str | None),
        ("query", dict[str, str]),
    ],
)


# urllib.parse and ipaddress take as long to import as ten modules of this package: they are imported for
# URLs with options, special characters or an IPv6 address.


def safequote(
    string: str | bytes, safe: str = "", encoding: str | None = None, errors: str | None = None
) -> str:
    """Percent-encode *string*, also its slashes unless they are in *safe*."""
    if isinstance(string, str) and not string.rstrip(_UNRESERVED + safe):
        return string
    from urllib.parse import quote

    return quote(string, safe, encoding, errors)  # type: ignore[arg-type]  # of text or of bytes


def _unquoted(text: str, errors: str = "replace") -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote

    return unquote(text, errors=errors)


def _options(query: str, *, keep_blank_values: bool = False) -> dict[str, str]:
    if not query:
        return {}
    from urllib.parse import parse_qsl

    return dict(parse_qsl(query, keep_blank_values=keep_blank_values))


def _is_ipv6(host: str) -> bool:
    from ipaddress import IPv6Address

    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True


def mask_secrets(text: str, mask: str = "**") -> str:
    """Return *text* without the passwords of the URLs in it.  Never raises.

    It takes everything between the first colon and the last ``@`` of each URL for the password, so
    that one which was not percent-encoded is masked too.  Without an ``@`` it takes a port that is no
    number for one, as in ``amqp://user:password/``.
    """
    masked = []
    for piece in re.split(_NEXT_URL, text):
        scheme, separator, rest = piece.partition("://")
        if not separator or "@" in scheme:
            scheme, separator, rest = "", "", piece
        userinfo, at, behind = rest.rpartition("@")
        user, colon, _ = userinfo.partition(":")
        if at and colon:
            rest = f"{user}:{mask}@{behind}"
        elif separator and not at:
            rest = _without_misplaced(rest, mask)
        rest = re.sub(_SECRET_OPTION, lambda match: match[1] + mask, rest, flags=re.I)
        masked.append(scheme + separator + rest)
    return ";".join(masked)


def _without_misplaced(rest: str, mask: str) -> str:
    """Return what follows ``://`` without a password that stands where the port would."""
    before, question, query = rest.partition("?")
    authority = before.partition("/")[0]
    host, colon, port = authority.partition(":")
    is_ipv6 = ":" in port and _IN_IPV6.issuperset(authority)
    if not port or port.isdecimal() or is_ipv6 or authority.startswith("["):
        return rest
    if "," in authority and all(map(_is_address, authority.split(","))):
        return rest  # the members of a replica set
    return f"{host}{colon}{mask}{question}{query}"


def _is_address(text: str) -> bool:
    """Return whether *text* is a host, with the number of a port or without."""
    host, colon, port = text.partition(":")
    return not host.isdecimal() and (not colon or port.isdecimal())


def _refuse(url: str, problem: str, remedy: str) -> NoReturn:
    raise ValueError(f"broker URL {mask_secrets(url)!r}: {problem}; {remedy}") from None


def _decoded(text: str, url: str) -> str | None:
    """Percent-decode; an empty part is None."""
    # Not by an error, which would have the text.
    decoded = _unquoted(text, "surrogateescape")
    if "%" in text and any("\udc80" <= character <= "\udcff" for character in decoded):
        _refuse(url, "the percent-encoding must be UTF-8", _HOW_TO_QUOTE)
    return decoded or None


def _check_characters(url: str) -> None:
    if not _STRAY.isdisjoint(url):
        stray = next(each for each in url if each in _STRAY)
        _refuse(url, f"stray character {stray!r}", _HOW_TO_QUOTE)


def _split_host(hostport: str, url: str) -> tuple[str | None, int | None]:
    """Split ``host:port``; IPv6 stands in brackets and comes out without them."""
    if hostport.startswith("["):
        host, bracket, behind = hostport[1:].partition("]")
        decoded = _unquoted(host)
        if not bracket or not _is_ipv6(decoded) or (behind and behind[0] != ":"):
            _refuse(url, "invalid IPv6 address", "write it in brackets, as in amqp://[::1]:5672//")
        return decoded, _port(behind[1:], url)
    host, _, port = hostport.partition(":")
    if ":" in port or "[" in hostport or "]" in hostport:
        _refuse(
            url,
            "invalid host or port",
            f"write an IPv6 address in brackets, as in amqp://[::1]:5672//, or {_HOW_TO_QUOTE}",
        )
    for each in host:
        if each in _NOT_IN_HOST or each.isspace():
            _refuse(url, f"stray character {each!r} in the host", _HOW_TO_QUOTE)
    name, percent, encoded = host.partition("%")
    return _decoded(name.lower() + percent + encoded, url), _port(port, url)


def _port(text: str, url: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:6]) <= 65535 and len(text) <= 5):
        problem = "the port must be a number from 0 to 65535"
        _refuse(url, problem, _HOW_TO_QUOTE if "@" in url else "write it as in amqp://host:5672//")
    return int(text)


def _scheme(text: str) -> str:
    """Lower the case of an alias; class paths (with a dot or colon) keep theirs."""
    return text if "." in text or ":" in text else text.lower()


def _is_scheme(text: str) -> bool:
    """Return whether *text* may name a transport: names with plus signs between them."""
    return all(name[:1] in _LETTERS and _IN_SCHEME.issuperset(name) for name in text.split("+"))


def _split(url: str) -> tuple[str, str, str, str]:
    """Check *url*, and split it into scheme, authority, path without its slash, and query."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        _refuse(url, "the scheme is missing", "write transport://host, as in amqp://localhost//")
    _check_characters(url)
    if not _is_scheme(scheme):
        _refuse(
            url, "the scheme must be the name of a transport", "write it as in amqp://localhost//"
        )
    before, _, query = rest.partition("?")
    if "://" in before:
        _refuse(
            url,
            "the URL contains another URL",
            f"separate the brokers of a failover list by semicolons, or {_HOW_TO_QUOTE}",
        )
    authority, _, path = before.partition("/")
    return "+".join(map(_scheme, scheme.split("+"))), authority, path, query


def check_host(text: str) -> None:
    """Refuse a host name that was meant to be a URL, as ``amqp:/host`` and ``amqp//host``.

    Raises:
        ValueError: it looks like one.
    """
    slip = re.match(_SLIP, text, re.ASCII)
    if slip is not None:
        problem = "'://' is missing after the scheme"
        _refuse(text, problem, f"write it as in {slip[1].lower()}://localhost//")


def url_to_parts(url: str) -> urlparts:
    """Split a URL into its parts.

    Raises:
        ValueError: it is not a URL; the message names it with the password masked.
    """
    scheme, authority, path, query = _split(url)
    userinfo, _, hostport = authority.rpartition("@")
    user, _, password = userinfo.partition(":")
    host, port = _split_host(hostport, url)
    return urlparts(
        scheme,
        host,
        port,
        _decoded(user, url),
        _decoded(password, url),
        _decoded(path, url),
        _options(query),
    )


def parse_url(url: str) -> dict[str, Any]:
    """Return the arguments of ``Connection`` that a URL stands for (kombu's).

    Query options are added as text, those named ``ssl_...`` as a dictionary under ``ssl``, with the
    types that it wants.

    Raises:
        ValueError: it is not a URL, or an option repeats a part of it.
    """
    parts = url_to_parts(url)
    arguments: dict[str, Any] = {
        "transport": parts.scheme,
        "hostname": parts.hostname,
        "port": parts.port,
        "userid": parts.username,
        "password": parts.password,
        "virtual_host": parts.path,
    }
    for name in parts.query:
        if name in arguments:
            _refuse(
                url, f"option {name!r} is a part of the URL", "write it before the question mark"
            )
    tls = {name: value for name, value in parts.query.items() if name.startswith("ssl_")}
    arguments.update(item for item in parts.query.items() if item[0] not in tls)
    if tls and not _is_off(arguments.get("ssl", "1")):
        arguments["ssl"] = {name: _tls_option(name, value) for name, value in tls.items()}
    return arguments


def _is_off(text: str) -> bool:
    return text.lower() in ("0", "false", "no", "off")


def _tls_option(name: str, value: str) -> Any:
    if name == "ssl_check_hostname":
        return not _is_off(value)
    return parse_ssl_cert_reqs(value) if name == "ssl_cert_reqs" else value


class UnknownCertReqs(ValueError, KeyError):
    """``ssl_cert_reqs`` names no constant; with kombu it is a KeyError."""

    __str__ = ValueError.__str__  # KeyError's would quote the text


def parse_ssl_cert_reqs(query_value: str) -> VerifyMode:
    """Return the constant of :mod:`ssl` that ``ssl_cert_reqs=...`` names.

    Raises:
        UnknownCertReqs: it names none.
    """
    try:
        return _CERT_REQS[query_value]
    except KeyError:
        raise UnknownCertReqs(
            f"ssl_cert_reqs must be one of {', '.join(_CERT_REQS)}, got {query_value!r}"
        ) from None


def as_url(
    scheme: str,
    host: str | None = None,
    port: int | str | None = None,
    user: str | None = None,
    password: str | None = None,
    path: str | None = None,
    query: Mapping[str, str] | None = None,
    sanitize: bool = False,
    mask: str = "**",
) -> str:
    """Put a URL together.

    Arguments:
        path: the virtual host, percent-encoded by the caller where that is needed.
        query: ignored, as in kombu.
        sanitize: write *mask* instead of the password.
    """
    userinfo = ""
    if user or password:
        userinfo = safequote(user) if user else ""
        if password:
            userinfo += ":" + ((mask or "") if sanitize else safequote(password))
        userinfo += "@"
    if host and ":" in host:
        host = f"[{safequote(host, ':')}]"
    else:
        host = safequote(host) if host else ""
    return f"{scheme}://{userinfo}{host}{f':{port}' if port else ''}/{path or ''}"


def sanitize_url(url: str, mask: str = "**") -> str:
    """Return *url* with its password masked, and without its query.

    Raises:
        ValueError: it is not a URL.
    """
    parts = url_to_parts(url)
    path = safequote(parts.path, _PATH_SAFE) if parts.path else None
    return as_url(*parts[:5], path=path, sanitize=True, mask=mask)


@overload
def maybe_sanitize_url(url: str, mask: str = "**") -> str: ...
@overload
def maybe_sanitize_url(url: T, mask: str = "**") -> T: ...
def maybe_sanitize_url(url: Any, mask: str = "**") -> Any:
    """Return *url* with its password masked; what has none stays as it is.  Never raises.

    Of a failover list (``;``) each one is masked.
    """
    if not isinstance(url, str):
        return url
    if "://" not in url:
        return mask_secrets(url, mask)
    try:
        return ";".join(sanitize_url(each, mask) for each in split_urls(url))
    except ValueError:
        return mask_secrets(url, mask)


def split_urls(urls: str | Iterable[str]) -> list[str]:
    """Return the members of a failover list.

    Arguments:
        urls: URLs or host names, in a text separated by ``;``, or in any iterable.

    Raises:
        ValueError: a member looks like the end of a password that holds a semicolon.
    """
    if not isinstance(urls, str):
        return [one for text in urls for one in split_urls(text)]
    members = [member.strip() for member in urls.split(";")]
    for member in members:
        if "@" in member and "://" not in member:
            _refuse(urls, "a member of the failover list has no scheme", _HOW_TO_QUOTE)
    return [member for member in members if member]


class BrokerURL(Record):
    """One broker, as its URL names it: strings only.  ``str()`` and ``repr()`` mask the password.

    Attributes:
        transport: alias or class path of the transport; None for a bare host name.
        inner_scheme: what follows a ``+`` in the scheme (``socket`` in ``redis+socket``).
        socket_path: path of a local socket (``redis+socket:///path?virtual_host=N``).
        query: the options behind the question mark; an option without a value has ``""``.
    """

    hidden = frozenset({"password", "query"})

    transport: str | None = None
    inner_scheme: str | None = None
    hostname: str | None = None
    port: int | None = None
    userid: str | None = None
    password: str | None = None
    virtual_host: str | None = None
    socket_path: str | None = None
    query: Mapping[str, str] = MappingProxyType({})

    @classmethod
    def parse(cls, text: str) -> BrokerURL:
        """Parse a URL, or a host name with or without a port.

        Raises:
            ValueError: it is neither; the message names it with the password masked.
        """
        return _parsed(text)

    @property
    def safe(self) -> str:
        """The URL for logs: password masked, options left out."""
        if self.transport is None:
            shown = as_url("", self.hostname, self.port)
            return shown.removeprefix("://").removesuffix("/")
        scheme = "+".join(filter(None, (self.transport, self.inner_scheme)))
        path = self.socket_path[1:] if self.socket_path else self.virtual_host
        return as_url(
            scheme,
            self.hostname,
            self.port,
            self.userid,
            self.password,
            safequote(path, _PATH_SAFE) if path else None,
            sanitize=True,
        )

    def __str__(self) -> str:
        return self.safe


# A process has few URLs and connects to each of them again and again.
@lru_cache(maxsize=16)
def _parsed(text: str) -> BrokerURL:
    if "://" not in text:
        return _of_host(text)
    parts = url_to_parts(text)
    if parts.hostname and "," in parts.hostname:
        _refuse(
            text,
            f"the host {parts.hostname!r} contains a comma",
            "separate the brokers of a failover list by semicolons, as in amqp://one//;amqp://two//",
        )
    transport, _, inner = parts.scheme.partition("+")
    query = _options(_split(text)[3], keep_blank_values=True) if "?" in text else {}
    is_socket = inner == "socket"
    return BrokerURL(
        transport=transport,
        inner_scheme=inner or None,
        hostname=parts.hostname,
        port=parts.port,
        userid=parts.username,
        password=parts.password,
        virtual_host=query.pop("virtual_host", None) if is_socket else parts.path,
        socket_path=f"/{parts.path or ''}" if is_socket else None,
        query=MappingProxyType(query),  # many have it
    )


def _of_host(text: str) -> BrokerURL:
    _check_characters(text)
    if any(character in text for character in "/@?") or re.match(r"[A-Za-z]\w*:[^0-9]", text):
        _refuse(text, "the scheme is missing", "write transport://host, as in amqp://localhost//")
    host, port = _split_host(text, text)
    return BrokerURL(hostname=host, port=port)
