"""Options of connections and transports, each with its type, unit and default.

An options class is frozen and validates its values once, when it is created.  :func:`typed_query`
converts the options of a URL to values; :func:`from_transport_options` creates options from a mapping.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)
from urllib.parse import unquote_plus

from greenconn.checks import (
    Record,
    Seconds,
    check_callable,
    check_count,
    check_runs,
    check_seconds,
    check_type,
    did_you_mean,
    invalid,
    is_number,
    resembled,
)

O = TypeVar("O", bound=Record)  # noqa: E741 - an options class

#: Maximum seconds of a delay of ``Retry``, as the message stays unacked for so long.
LONGEST_RETRY_DELAY: Final = 60.0


class _BrokerHeartbeat(int):
    """A 0 that is recognised by its identity, which copies and pickles preserve."""

    __slots__ = ()

    def __reduce__(self) -> str:
        return "BROKER_HEARTBEAT"

    def __copy__(self) -> _BrokerHeartbeat:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _BrokerHeartbeat:
        return self


#: The default heartbeat of a connection, which uses the interval that the broker proposes.
#: It equals 0, kombu's default, so test ``heartbeat is BROKER_HEARTBEAT``; any other 0 means off.
BROKER_HEARTBEAT: Final = _BrokerHeartbeat()


class ConnectOptions(Record):
    """The options for opening a connection and for retrying failed attempts."""

    connect_timeout: float | None = 5.0
    """Maximum seconds for an attempt to connect to one host: name lookup, TCP, TLS, handshake and login
    together.  The default is kombu's.  None waits without limit; 0 fails at once.  In the first round
    over several hosts all but the last have an equal part of it, so that a silent one does not hold up
    the others."""

    max_retries: int | None = None
    """Maximum number of rounds over all hosts after the first.  None retries without limit; 0 tries
    once."""

    interval_start: float = 2.0
    """Seconds between the first and the second round (kombu's default)."""

    interval_step: float = 2.0
    """Seconds by which each interval exceeds the previous one (kombu's default)."""

    interval_max: float = 30.0
    """Maximum seconds between two rounds (kombu's default)."""

    connect_retries_timeout: float | None = None
    """Maximum seconds for all rounds together.  None sets no limit; 0 tries once."""

    errback: Callable[[Exception, float], Any] | None = None
    """Function that is called after each failed attempt with the error and the seconds until the next
    attempt."""

    callback: Callable[[], Any] | None = None
    """Function that is called before each interval, and once a second during it."""

    def __post_init__(self) -> None:
        check_seconds(self, "connect_timeout", "connect_retries_timeout")
        check_seconds(self, "interval_start", "interval_step", "interval_max", optional=False)
        check_count(self, "max_retries")
        check_callable(self, "errback", "callback")


class AmqpOptions(Record):
    """The transport options of AMQP."""

    hidden = frozenset({"login_response", "manager_password"})

    login_method: str | None = None
    """SASL mechanism, for example PLAIN, AMQPLAIN or EXTERNAL.  None uses the best one that both sides
    support."""

    login_response: Any = None
    """Response to the SASL mechanism.  None builds it from the user name and the password."""

    authentication: Any = ()
    """SASL mechanism objects of the amqp package to choose from.  If empty, *login_method* is used."""

    locale: str = "en_US"
    """Locale of the broker's messages.  RabbitMQ supports no other."""

    client_properties: Mapping[str, Any] | None = None
    """Client properties to show in the broker's list of connections, besides the built-in ones."""

    connection_name: str | None = None
    """Name to show in the broker's list of connections.  None is ``program@host:pid``."""

    channel_max: int | None = None
    """Maximum number of channels of a connection, at least 1.  None and 0 use the broker's limit."""

    frame_max: int | None = None
    """Maximum bytes of a frame, at least 4096; the broker may lower it.  None is 128 KiB.  0 uses the
    broker's limit; the broker may have none."""

    heartbeat: float | None = BROKER_HEARTBEAT
    """Seconds between heartbeats.  ``BROKER_HEARTBEAT`` uses the interval that the broker proposes.
    None and any other 0 disable heartbeats."""

    confirm_publish: bool = False
    """Whether ``basic_publish`` waits for the publisher confirm (kombu's default)."""

    read_timeout: float | None = None
    """Seconds; accepted for compatibility with kombu and ignored: heartbeats detect a dead peer."""

    write_timeout: float | None = None
    """Maximum seconds that a writer waits for a slow peer.  None uses *blocked_timeout*."""

    reply_timeout: float | None = 30.0
    """Maximum seconds to wait for the reply to a method if the call has no deadline.  None sets no
    limit."""

    confirm_timeout: float | None = 30.0
    """Maximum seconds to wait for a confirm if the call has no deadline.  None sets no limit."""

    blocked_timeout: float | None = 30.0
    """Maximum seconds that a publish waits while the broker blocks the connection, if the call has no
    deadline.  None sets no limit; 0 raises at once."""

    max_message_size: int = 128 * 1024 * 1024
    """Maximum bytes of the body of a message, sent or received (RabbitMQ's default before 4.0)."""

    manager_hostname: str | None = None
    """Host of the management API.  None uses the host of the connection."""

    manager_port: int | None = None
    """Port of the management API.  None uses 15672, or 15671 over TLS."""

    manager_ssl: bool | None = None
    """Whether to use TLS for the management API.  None uses TLS if the connection does."""

    manager_userid: str | None = None
    """User of the management API.  None uses the user of the connection."""

    manager_password: str | None = None
    """Password of the management API.  None uses the password of the connection."""

    socket_settings: Mapping[Any, Any] | None = None
    """TCP options, such as ``TCP_USER_TIMEOUT``, and their values.  ``TCP_NODELAY`` and keepalive are
    always set."""

    topology_recovery: bool = True
    """Whether to declare exchanges, queues and bindings again after connection recovery."""

    on_open: Callable[..., Any] | None = None
    """Function that is called with the connection after it has been opened."""

    on_blocked: Callable[..., Any] | None = None
    """Function that is called with the reason when the broker blocks the connection."""

    on_unblocked: Callable[[], Any] | None = None
    """Function that is called when the broker unblocks the connection."""

    on_tune_ok: Callable[..., Any] | None = None
    """Function that is called after limits and heartbeat have been negotiated."""

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
    """The transport options of the in-memory broker."""

    confirm_publish: bool = False
    """Whether ``basic_publish`` raises ``PublishNacked`` if a full queue refuses the message, and
    ``Unroutable`` if a mandatory one reaches no queue.  A message is in its queues when it returns
    anyway."""

    confirm_timeout: float | None = None
    """Seconds; accepted as for AMQP and ignored, because a confirm takes no time."""

    max_message_size: int = 128 * 1024 * 1024
    """Maximum bytes of the body of a message, as for AMQP."""

    body_encoding: str | None = "base64"
    """Accepted for compatibility with kombu and ignored, because bodies are stored as bytes."""

    deadletter_queue: str | None = None
    """Queue for messages that match no binding.  None drops them (kombu's default)."""

    polling_interval: float | None = 1.0
    """Seconds; accepted for compatibility with kombu and ignored, because the broker is not polled."""

    def __post_init__(self) -> None:
        check_type(self, bool, "confirm_publish")
        check_count(self, "max_message_size", least=1, optional=False)
        check_type(self, str, "body_encoding", "deadletter_queue", optional=True)
        check_seconds(self, "confirm_timeout", "polling_interval")


class Retry(Record):
    """The retry policy of a consumer: the number of attempts and the backoff between them."""

    tries: int = 3
    """Maximum number of calls of the handler for a message, including the first; at least 1."""

    delay: float = 1.0
    """Seconds between the first and the second call, or a timedelta; at most 60, unless *hold* is
    ``'broker'``."""

    backoff: float = 2.0
    """Factor by which the delay grows from one retry to the next; at least 1."""

    max_delay: float = 60.0
    """Maximum seconds between two calls; at most 60, unless *hold* is ``'broker'``."""

    jitter: bool = True
    """Whether each delay is a random time between half of its length and its full length."""

    hold: Literal["broker", "process"] | None = None
    """Where a message waits for the next call.  ``'broker'``: at the broker, where it does not count
    towards the prefetch limit and survives the end of this process.  ``'process'``: in this process,
    unacknowledged.  None: at the broker for delays of 1 s and more."""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            tries: int = 3,
            delay: Seconds = 1.0,
            backoff: float = 2.0,
            max_delay: Seconds = 60.0,
            jitter: bool = True,
            hold: Literal["broker", "process"] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        check_count(self, "tries", least=1, optional=False)
        check_seconds(self, "delay", "max_delay", optional=False)
        check_type(self, bool, "jitter")
        if self.hold not in (None, "broker", "process"):
            raise invalid(self, "hold", "'broker', 'process' or None")
        if not is_number(self.backoff) or self.backoff < 1:
            raise invalid(self, "backoff", "a number, at least 1")
        for name in ("delay", "max_delay"):
            if self.hold != "broker" and getattr(self, name) > LONGEST_RETRY_DELAY:
                raise invalid(
                    self,
                    name,
                    f"at most {LONGEST_RETRY_DELAY} s, as the message may stay unacked during the "
                    f"delay (for a longer delay say hold='broker')",
                )

    @classmethod
    def of(cls, value: Retry | Mapping[str, Any] | None) -> Retry | None:
        """Return the policy for *value*: a ``Retry``, a mapping of its fields, or None.

        Raises:
            TypeError: *value* is none of these.
            ValueError: the mapping has an unknown name or an invalid value.
        """
        if value is None or isinstance(value, Retry):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(
                f"retry must be a Retry, a dict of its arguments, or None, got {value!r}"
            )
        options, unknown = from_transport_options(cls, value)
        if unknown:
            raise ValueError(
                f"unknown option {unknown[0]!r} of Retry: {did_you_mean(unknown[0], cls.fields)}"
            )
        return options


class Limit(Record):
    """A limit on the handlers of a queue that run at the same time, in all processes together."""

    limit: int
    """Maximum number of handlers that run at the same time, for each key; at least 1."""

    key: Callable[[Any, Any], Any] | None = None
    """Function that takes the decoded body and the message and returns the key: text, bytes, a number, a
    bool, None, or a tuple of them.  None: one limit for the whole queue."""

    scope: Literal["all", "process"] = "all"
    """``'all'``: all processes together, by the store of limits.  ``'process'``: each consumer by
    itself, without a store."""

    lease: float = 30.0
    """Seconds after which the place of a process that has died is free again; at least 1."""

    def __init__(
        self,
        limit: int,
        *,
        key: Callable[[Any, Any], Any] | None = None,
        scope: Literal["all", "process"] = "all",
        lease: Seconds = 30.0,
    ) -> None:
        super().__init__(limit=limit, key=key, scope=scope, lease=lease)

    def __post_init__(self) -> None:
        check_count(self, "limit", least=1, optional=False)
        check_seconds(self, "lease", optional=False)
        if self.lease < 1:
            raise invalid(self, "lease", "at least 1 s")
        _check_limit(self)


class Rate(Record):
    """A rate limit on the handlers of a queue that start, in all processes together.

    It is a token bucket, which holds *burst* tokens and gets *limit* tokens in *per* seconds.  So in any
    period of t seconds at most *burst* + *limit* x t / *per* handlers start.
    """

    limit: float
    """Number of handlers that may start within *per* seconds, for each key."""

    per: float = 1.0
    """The period of the limit, in seconds or as a timedelta."""

    burst: int = 1
    """Number of handlers that may start at once after a pause."""

    key: Callable[[Any, Any], Any] | None = None
    """Function that takes the decoded body and the message and returns the key, as for
    :class:`Limit`.  None: one rate for the whole queue."""

    scope: Literal["all", "process"] = "all"
    """As for :class:`Limit`."""

    def __init__(
        self,
        limit: float,
        *,
        per: Seconds = 1.0,
        burst: int = 1,
        key: Callable[[Any, Any], Any] | None = None,
        scope: Literal["all", "process"] = "all",
    ) -> None:
        super().__init__(limit=limit, per=per, burst=burst, key=key, scope=scope)

    def __post_init__(self) -> None:
        check_seconds(self, "per", above_zero=True, optional=False)
        check_count(self, "burst", least=1, optional=False)
        if not is_number(self.limit) or not self.limit > 0:
            raise invalid(self, "limit", "a number above 0")
        _check_limit(self)


def _check_limit(options: Limit | Rate) -> None:
    if options.scope not in ("all", "process"):
        raise invalid(options, "scope", "'all' or 'process'")
    check_callable(options, "key")
    check_runs(f"{type(options).__name__}.key", options.key)


#: Options classes -> instances with all defaults.  Instances are immutable, so one of each is enough.
_defaults: Final[dict[type[Any], Any]] = {}


def from_transport_options(cls: type[O], mapping: Mapping[str, Any]) -> tuple[O, tuple[str, ...]]:
    """Create options from those entries of *mapping* that are fields of *cls*.

    Returns:
        The options, and the names in *mapping* that are not fields.

    Raises:
        ValueError: a value is invalid for its field.
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
    """Create options as :func:`from_transport_options` does, and log a warning for unknown names.

    The fields of :class:`ConnectOptions` count as known, because the connection reads them.

    Arguments:
        cls: the options class.
        mapping: names and values of options.  None uses all defaults.
        where: name of the broker in the warning.
        logger: logger of the transport.

    Raises:
        ValueError: a value is invalid for its field.
    """
    options, unknown = from_transport_options(cls, mapping or {})
    ignored = sorted(set(unknown).difference(ConnectOptions.fields))
    if ignored:
        warn_of_ignored(ignored, {*cls.fields, *ConnectOptions.fields}, where, logger)
    return options


def warn_of_ignored(
    ignored: Iterable[str], known: Collection[str], where: str, logger: logging.Logger
) -> None:
    """Log the transport options that are none, each with the one that may be meant.  Never switches.

    They are not refused: one dict is often for the brokers of several transports.
    """
    meant = {name: resembled(str(name), frozenset(known)) for name in ignored}
    logger.warning(
        "%s: unknown transport options are ignored: %s",
        where,
        ", ".join(
            f"{name!r} (did you mean {near!r}?)" if near else repr(name)
            for name, near in meant.items()
        ),
        extra={"connection": where},
    )


_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
_NUMBER: Final = r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"

#: Types of the options that a URL of any transport can have, by name.
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


#: What :func:`query_types` has found, which takes it half a millisecond.
_query_types: Final[dict[type[Record], Mapping[str, Any]]] = {}


def query_types(cls: type[Record]) -> Mapping[str, Any]:
    """Return the options of a class that can be given as text in a URL, with their types."""
    found = _query_types.get(cls)
    if found is None:
        hints = get_type_hints(cls)
        found = {name: hints[name] for name in cls.fields if _kinds(hints[name])}
        _query_types[cls] = found
    return found


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself; () if text cannot express it."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    readable = {bool, int, float, str, type(None)}
    return members if readable.issuperset(members) else ()


def typed_query(query: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the options of a URL to values.

    Booleans are written as 1, 0, true, false, yes, no, on or off, numbers in decimal, and None as
    ``none``.

    Arguments:
        query: mapping of names to texts.
        known: mapping of names to types (``bool``, ``int``, ``float``, ``str``, or one of them ``|
            None``).

    Raises:
        ValueError: a name is unknown, or a text is invalid for its type.
    """
    typed = {}
    for name, text in query.items():
        if name not in known:
            # Without its value, which may be a secret.
            raise ValueError(f"unknown option {name!r} in the URL: {did_you_mean(name, known)}")
        typed[name] = _typed(name, text, _kinds(known[name]))
    return typed


def split_url(url: str, cls: type[Record]) -> tuple[str, dict[str, Any]]:
    """Return a URL that a library parses without the options of a class, and these.

    Raises:
        ValueError: one has a value of another type.
    """
    place, _, query = url.partition("?")
    known = query_types(cls)
    pairs = [piece.partition("=") for piece in query.split("&") if piece]
    ours = {name: unquote_plus(text) for name, _, text in pairs if name in known}
    rest = "&".join("".join(pair) for pair in pairs if pair[0] not in known)
    return f"{place}?{rest}" if rest else place, typed_query(ours, known)


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
