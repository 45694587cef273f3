"""Options: each setting with its type, unit, default and reason.

Each class is frozen and checks itself once, when it is made.  :func:`typed_query` turns the text of
URL options into values, :func:`from_transport_options` takes what a class knows out of a mapping.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from greenconn.checks import (
    check_callable,
    check_count,
    check_seconds,
    check_type,
    invalid,
    is_number,
)
from greenconn.records import Record

if TYPE_CHECKING:
    pass

__all__ = [
    "BROKER_HEARTBEAT",
    "CONNECTION_QUERY",
    "AmqpOptions",
    "ConnectOptions",
    "MemoryOptions",
    "Retry",
    "from_transport_options",
    "known_options",
    "query_types",
    "typed_query",
]

O = TypeVar("O", bound=Record)  # noqa: E741 - an options class

#: Seconds that a ``Retry`` may wait at most: the message stays unacked all the while.
LONGEST_RETRY_DELAY: Final = 60.0


class _BrokerHeartbeat(int):
    """A 0 that is recognised by identity; copies and pickles are the same object."""

    __slots__ = ()

    def __reduce__(self) -> str:
        return "BROKER_HEARTBEAT"

    def __copy__(self) -> _BrokerHeartbeat:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _BrokerHeartbeat:
        return self


#: The heartbeat of a connection whose caller gave none: take the value that the broker proposes.
#: It equals 0, kombu's default, so ask ``heartbeat is BROKER_HEARTBEAT``; another 0 means off.
BROKER_HEARTBEAT: Final = _BrokerHeartbeat()


class ConnectOptions(Record):
    """The opening of a connection, and its retries."""

    connect_timeout: float | None = 5.0
    """Seconds for one host: name, TCP, TLS, handshake and login together.  5 is kombu's; None
    waits; 0 has ended at once."""

    max_retries: int | None = None
    """Rounds over all hosts after the first one.  None never gives up; 0 tries once."""

    interval_start: float = 2.0
    """Seconds before the second round (kombu's)."""

    interval_step: float = 2.0
    """Seconds by which each interval is longer than the one before (kombu's)."""

    interval_max: float = 30.0
    """Seconds that an interval grows to (kombu's)."""

    connect_retries_timeout: float | None = None
    """Seconds for all rounds together.  None: no end; 0 tries once."""

    errback: Callable[[Exception, float], Any] | None = None
    """Called after a failed try with the error and the seconds until the next one."""

    callback: Callable[[], Any] | None = None
    """Called before each interval, and once a second in it."""

    def __post_init__(self) -> None:
        check_seconds(self, "connect_timeout", "connect_retries_timeout")
        check_seconds(self, "interval_start", "interval_step", "interval_max", optional=False)
        check_count(self, "max_retries")
        check_callable(self, "errback", "callback")


class AmqpOptions(Record):
    """The transport options of AMQP."""

    hidden = frozenset({"login_response", "manager_password"})

    login_method: str | None = None
    """SASL mechanism: PLAIN, AMQPLAIN, EXTERNAL...  None: the best that both sides know."""

    login_response: Any = None
    """What to answer to the mechanism; None: made of user name and password."""

    authentication: Any = ()
    """SASL mechanism objects of the amqp package to choose from; empty: those of *login_method*."""

    locale: str = "en_US"
    """Language of the broker's messages; RabbitMQ has no other."""

    client_properties: Mapping[str, Any] | None = None
    """What the broker's list of connections shows, beside what we say ourselves."""

    connection_name: str | None = None
    """Name in the broker's list of connections; None: no name."""

    channel_max: int | None = None
    """Channels of one connection, from 1 up; None or 0: the broker's limit."""

    frame_max: int | None = None
    """Bytes of a frame, 4096 at least, and never more than the broker's limit.  None: 128 KiB; 0: what
    the broker allows, even if that is no limit."""

    heartbeat: float | None = BROKER_HEARTBEAT
    """Seconds; ``BROKER_HEARTBEAT`` takes the broker's value, any other 0 is off, and so is None."""

    confirm_publish: bool = False
    """Whether ``basic_publish`` waits for the broker's confirm (kombu's default)."""

    read_timeout: float | None = None
    """Seconds; accepted for kombu's sake: nobody but the reader reads, and heartbeats watch it."""

    write_timeout: float | None = None
    """Seconds a writer waits for a slow peer; None: *blocked_timeout*."""

    reply_timeout: float | None = 30.0
    """Seconds for the reply to a method, where the call gives no deadline; None waits."""

    confirm_timeout: float | None = 30.0
    """Seconds for a confirm, where the call gives no deadline; None waits."""

    blocked_timeout: float | None = 30.0
    """Seconds that a publish waits while the broker is blocked, where the call gives no deadline.
    None waits; 0 raises at once."""

    max_message_size: int = 128 * 1024 * 1024
    """Bytes of a body that the broker may announce; RabbitMQ's own default limit."""

    manager_hostname: str | None = None
    """Host of the management API; None: the connection's."""

    manager_port: int | None = None
    """Port of the management API; None: 15672, over TLS 15671."""

    manager_ssl: bool | None = None
    """Whether the management API is asked over TLS; None: if the connection uses it."""

    manager_userid: str | None = None
    """User of the management API; None: the connection's."""

    manager_password: str | None = None
    """Password of the management API; None: the connection's."""

    socket_settings: Mapping[Any, Any] | None = None
    """TCP options (``TCP_NODELAY``...) with their values; None: no delay, keepalive."""

    topology_recovery: bool = True
    """Whether what was declared on a connection is declared again when it comes back."""

    on_open: Callable[..., Any] | None = None
    """Called with the connection when it is open."""

    on_blocked: Callable[..., Any] | None = None
    """Called with the reason when the broker blocks publishing."""

    on_unblocked: Callable[[], Any] | None = None
    """Called when the broker takes messages again."""

    on_tune_ok: Callable[..., Any] | None = None
    """Called when limits and heartbeat are agreed."""

    def __post_init__(self) -> None:
        check_seconds(self, "read_timeout", "write_timeout", "reply_timeout")
        check_seconds(self, "confirm_timeout", "blocked_timeout", "heartbeat")
        check_type(self, str, "locale")
        check_type(self, str, "login_method", "connection_name", optional=True)
        check_type(self, str, "manager_hostname", "manager_userid", optional=True)
        check_type(self, str, "manager_password", optional=True)
        check_type(self, bool, "manager_ssl", optional=True)
        check_count(self, "manager_port", most=65535)
        check_type(self, Mapping, "client_properties", "socket_settings", optional=True)
        check_type(self, bool, "confirm_publish", "topology_recovery")
        check_count(self, "max_message_size", least=1, optional=False)
        check_count(self, "channel_max", most=65535)
        check_count(self, "frame_max")
        if self.frame_max and self.frame_max < 4096:
            raise invalid(self, "frame_max", "at least 4096 bytes, or 0 for the broker's limit")
        check_callable(self, "on_open", "on_blocked", "on_unblocked", "on_tune_ok")


class MemoryOptions(Record):
    """The transport options of the memory broker."""

    confirm_publish: bool = False
    """Accepted as for AMQP; a message is in its queues when ``basic_publish`` returns."""

    confirm_timeout: float | None = None
    """Accepted as for AMQP: nothing is waited for."""

    max_message_size: int = 128 * 1024 * 1024
    """Bytes of a body; as for AMQP."""

    body_encoding: str | None = "base64"
    """Accepted for kombu's sake: bodies stay bytes, since nothing here is JSON."""

    deadletter_queue: str | None = None
    """Queue for messages that no binding matches; None drops them (kombu's)."""

    polling_interval: float | None = 1.0
    """Seconds; accepted for kombu's sake: nobody polls."""

    def __post_init__(self) -> None:
        check_type(self, bool, "confirm_publish")
        check_count(self, "max_message_size", least=1, optional=False)
        check_type(self, str, "body_encoding", "deadletter_queue", optional=True)
        check_seconds(self, "confirm_timeout", "polling_interval")


class Retry(Record):
    """The number and the delays of the retries of something that failed."""

    tries: int = 3
    """Calls, the first included; at least 1."""

    delay: float = 1.0
    """Seconds before the second call; 60 at most."""

    backoff: float = 2.0
    """Factor from one delay to the next; at least 1."""

    max_delay: float = 60.0
    """Seconds that a delay grows to; 60 at most."""

    jitter: bool = True
    """Whether each delay is cut to between half of it and the whole, at random."""

    def __post_init__(self) -> None:
        check_count(self, "tries", least=1, optional=False)
        check_seconds(self, "delay", "max_delay", optional=False)
        check_type(self, bool, "jitter")
        if not is_number(self.backoff) or self.backoff < 1:
            raise invalid(self, "backoff", "a number, at least 1")
        for name in ("delay", "max_delay"):
            if getattr(self, name) > LONGEST_RETRY_DELAY:
                raise invalid(
                    self,
                    name,
                    f"at most {LONGEST_RETRY_DELAY} s, as the message stays unacked meanwhile "
                    f"(for longer delays reject it to a dead-letter queue with a TTL)",
                )

    @classmethod
    def of(cls, value: Retry | Mapping[str, Any] | None) -> Retry | None:
        """Take a Retry, a mapping of the same names, or None.

        Raises:
            TypeError: it is none of them.
            ValueError: the mapping has another name.
        """
        if value is None or isinstance(value, Retry):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(
                f"retry must be a Retry, a dict of its arguments, or None, got {value!r}"
            )
        options, unknown = from_transport_options(cls, value)
        if unknown:
            raise ValueError(_unknown_option(unknown[0], "of Retry", cls.fields))
        return options


#: Options classes -> their defaults, which cannot be changed: one of each is enough.
_defaults: Final[dict[type[Any], Any]] = {}


def from_transport_options(cls: type[O], mapping: Mapping[str, Any]) -> tuple[O, tuple[str, ...]]:
    """Make options of what *mapping* has for them.

    Returns:
        The options, and the names in *mapping* that they do not know.

    Raises:
        ValueError: a value is not what its option wants.
    """
    if not mapping:
        if cls not in _defaults:
            _defaults[cls] = cls()
        return _defaults[cls], ()
    known = {name: mapping[name] for name in cls.fields if name in mapping}
    return cls(**known), tuple(name for name in mapping if name not in known)


def known_options(
    cls: type[O], mapping: Mapping[str, Any] | None, where: str, logger: logging.Logger
) -> O:
    """Make options of what *mapping* has for them, and log the names that nobody knows.

    The names of :class:`ConnectOptions` are known: the connection reads them.

    Arguments:
        where: the broker, for the log.

    Raises:
        ValueError: a value is not what its option wants.
    """
    options, unknown = from_transport_options(cls, mapping or {})
    ignored = sorted(set(unknown).difference(ConnectOptions.fields))
    if ignored:
        logger.warning("%s: unknown transport options are ignored: %s", where, ignored)
    return options


_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
_NUMBER: Final = r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_SECRET: Final = r"passw|secret|token|response"

#: The options that a URL may have for every transport, with their types.
CONNECTION_QUERY: Final[Mapping[str, Any]] = {
    "ssl": bool,
    "ssl_ca_certs": str,
    "ssl_cert_reqs": str,
    "ssl_certfile": str,
    "ssl_check_hostname": bool,
    "ssl_ciphers": str,
    "ssl_keyfile": str,
    "ssl_server_hostname": str,
    "heartbeat": float,
    "insist": bool,
    "connect_timeout": float | None,
    "login_method": str,
    "failover_strategy": str,
}


def query_types(cls: type[Record]) -> dict[str, Any]:
    """Return those options of a class that text can stand for, with their types."""
    hints = get_type_hints(cls)
    return {name: hints[name] for name in cls.fields if _kinds(hints[name])}


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the members of a type, or () when text cannot stand for it."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    readable = {bool, int, float, str, type(None)}
    return members if readable.issuperset(members) else ()


def typed_query(query: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the options of a URL into values.

    Booleans are 1, 0, true, false, yes, no, on, off; numbers are decimal; None is ``none``.

    Arguments:
        query: names and texts.
        known: names and types (``bool``, ``int``, ``float``, ``str``, or one of them ``| None``).

    Raises:
        ValueError: a name is not known, or its text does not stand for its type.
    """
    typed = {}
    for name, text in query.items():
        if name not in known:
            value = "**" if re.search(_SECRET, name, re.I) else text
            raise ValueError(_unknown_option(name, f"({name}={value}) in the URL", known))
        typed[name] = _typed(name, text, _kinds(known[name]))
    return typed


def _unknown_option(name: str, where: str, known: Iterable[str]) -> str:
    import difflib  # for this message only

    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown option {name!r} {where}: {hint}known: {', '.join(sorted(known))}"


def _typed(name: str, text: str, kinds: tuple[Any, ...]) -> Any:
    lowered = text.strip().lower()
    if type(None) in kinds and lowered == "none":
        return None
    if str in kinds:
        return text
    if bool in kinds:
        if lowered in _TRUE or lowered in _FALSE:
            return lowered in _TRUE
        wanted = "one of 1, 0, true, false, yes, no, on, off"
    else:
        wanted = "a number" if float in kinds else "an integer"
        if re.fullmatch(_NUMBER, lowered, re.ASCII):
            value = float(lowered)
            if value.is_integer() and lowered.lstrip("+-").isdigit():
                return int(lowered)
            if float in kinds and math.isfinite(value):
                return value
    raise ValueError(f"URL option {name} must be {wanted}{_or_none(kinds)}, got {text!r}")


def _or_none(kinds: tuple[Any, ...]) -> str:
    return ", or none" if type(None) in kinds else ""
