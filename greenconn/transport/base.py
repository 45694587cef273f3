"""The contract of a transport: kombu's, with one life of a connection as an object of its own.

A transport is made for a client (a ``Connection``) and opens *links*: a :class:`Link` is one life of
a connection to one broker.  It is opened once, then closed or lost, and never reopened; channels
belong to one link.  Events (deliveries, returns, cancels, changes of the blocked state) that no
:class:`~greenconn.abc.Sink` takes are kept in ``link.events``, an inbox of ``(function, argument)``
pairs which ``drain_events`` runs one at a time in the greenlet that called it.

Adding to kombu's contract (5.7, ``kombu.transport.base``):

- ``basic_consume(..., sink=...)``: deliveries go straight to a sink, ``drain_events`` never sees them;
- ``Link.on_lost``: called once, in a greenlet of its own, when a link is lost (not when it is closed);
- ``Transport.establish_connection(deadline)``: the caller's deadline for the whole of connecting.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Collection, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar
from weakref import WeakSet

from greenconn.checks import in_seconds
from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    NotFound,
    RecoverableConnectionError,
    is_unavailable,
    missing_entity,
)
from greenconn.green.deadline import Deadline
from greenconn.green.hub import HubAffinity, call_in_hub, close_at_thread_end
from greenconn.green.inbox import Inbox
from greenconn.green.supervisor import spawn
from greenconn.message import Message

if TYPE_CHECKING:
    from typing_extensions import Self

    from greenconn.abc import Channel
    from greenconn.delays import DelayedRoute
    from greenconn.session.session import Session

__all__ = [
    "Factories",
    "Implements",
    "Link",
    "Management",
    "Message",
    "StdChannel",
    "Transport",
    "TransportState",
    "default_transport_capabilities",
    "forget_declared",
    "to_rabbitmq_queue_arguments",
]

logger = logging.getLogger("greenconn.transport")

L = TypeVar("L", bound="Link")
T = TypeVar("T")
Event = tuple[Callable[[Any], Any], Any]

#: Maximum bytes of returned messages that wait to be drained, and the overhead of each.
RETURNS_LIMIT: Final = 64 * 1024 * 1024
RETURN_OVERHEAD: Final = 1024

RABBITMQ_QUEUE_ARGUMENTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "expires": ("x-expires", lambda seconds: int(float(in_seconds(seconds)) * 1000)),
    "message_ttl": ("x-message-ttl", lambda seconds: int(float(in_seconds(seconds)) * 1000)),
    "max_length": ("x-max-length", int),
    "max_length_bytes": ("x-max-length-bytes", int),
    "max_priority": ("x-max-priority", int),
}


def to_rabbitmq_queue_arguments(
    arguments: Mapping[str, Any] | None, **options: Any
) -> dict[str, Any]:
    """Merge a queue's *options* into its declare *arguments* under RabbitMQ's names.

    Arguments:
        arguments: ``x-...`` arguments given as they are; these are kept.
        options: ``expires`` and ``message_ttl`` in seconds, ``max_length`` in messages,
            ``max_length_bytes``, ``max_priority``; None means not given.

    Raises:
        KeyError: an option that is none of these.
    """
    prepared = {
        name: convert(options[option])
        for option, (name, convert) in RABBITMQ_QUEUE_ARGUMENTS.items()
        if options.get(option) is not None
    }
    unknown = options.keys() - RABBITMQ_QUEUE_ARGUMENTS.keys()
    if unknown:
        raise KeyError(
            f"unknown queue option {min(unknown)!r}; known: {', '.join(RABBITMQ_QUEUE_ARGUMENTS)}"
        )
    return {**(arguments or {}), **prepared}


class Implements(dict[str, Any]):
    """The capabilities of a transport, as a dict that is also read by attribute."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def extend(self, **kwargs: Any) -> Implements:
        """Return a copy with *kwargs* changed."""
        return self.__class__(self, **kwargs)


default_transport_capabilities = Implements(
    asynchronous=False,
    batch_publish=False,
    exchange_type=frozenset({"direct", "topic", "fanout", "headers"}),
    heartbeats=False,
)


class Factories:
    """The two upward hooks: ``messaging`` fills them when it is imported (docs/architecture.rst)."""

    Producer: ClassVar[Callable[..., Any] | None] = None
    Consumer: ClassVar[Callable[..., Any] | None] = None


class StdChannel:
    """The methods that every channel has beside AMQP's."""

    #: Tags of consumers that need no acknowledgement; None where a channel does not keep them.
    no_ack_consumers: set[str] | None = None
    #: Whether ``Message.ack`` and the like return when the ack is on its way.
    flushes_acks: bool = False
    #: Whether it has ``pipeline()``, for requests without a wait for each reply.
    can_pipeline: ClassVar[bool] = False

    def Consumer(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        """Return a ``messaging.Consumer`` on this channel (``greenconn.messaging`` must be imported)."""
        assert Factories.Consumer is not None, "import greenconn.messaging first"
        return Factories.Consumer(self, *args, **kwargs)

    def Producer(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        """Return a ``messaging.Producer`` on this channel (``greenconn.messaging`` must be imported)."""
        assert Factories.Producer is not None, "import greenconn.messaging first"
        return Factories.Producer(self, *args, **kwargs)

    def list_queues(self) -> list[str]:
        """Return the names of the queues that exist, where the transport can tell."""
        raise NotImplementedError(f"{type(self).__name__} cannot list queues")

    def count_queues(self, names: Collection[str]) -> Mapping[str, tuple[int, int]]:
        """Return the numbers of waiting messages and of consumers of queues.  May switch.

        By default each is declared passively, which counts as a use of it, and fails if it has ended.
        """
        channel: Any = self  # a whole one declares queues
        found = [channel.queue_declare(name, passive=True) for name in names]
        return {each.queue: (each.message_count, each.consumer_count) for each in found}

    def get_bindings(self) -> Any:
        """Return all bindings, where the transport can tell."""
        raise NotImplementedError(f"{type(self).__name__} cannot list bindings")

    def after_reply_message_received(self, queue: str) -> None:
        """Called when a reply has been received from the reply queue *queue*."""

    def prepare_queue_arguments(
        self, arguments: Mapping[str, Any] | None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the declare arguments of a queue; see :func:`to_rabbitmq_queue_arguments`."""
        return to_rabbitmq_queue_arguments(arguments, **kwargs)

    def delayed_route(
        self,
        exchange: str,
        routing_key: str,
        delay: float,
        headers: Mapping[str, Any] | None,
        properties: Mapping[str, Any],
    ) -> DelayedRoute:
        """Return how a message is published that is delayed; see ``delays.delayed_route``.

        May switch.
        """
        from greenconn.delays import refused_delay  # for who asks for one

        raise refused_delay(self, delay)

    def flush(self, timeout: float | None = None) -> None:
        """Return when all publishes and acks of this channel are on their way.  May switch.

        Nothing waits here: the broker has it when a call returns.

        Arguments:
            timeout: seconds; None is the transport's own limit.

        Raises:
            TimeoutError: the broker took too little in time.
            RecoverableConnectionError, RecoverableChannelError: the channel is gone.
        """

    def flush_acks(self) -> None:
        """Return when all acks and rejects are on their way.  May switch.

        Where the connection is gone it does nothing: the broker delivers again what it has not heard of.

        Raises:
            TimeoutError: the broker took too little within the transport's own limit.
        """

    def close(self) -> None:
        """Close the channel.  May switch."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def forget_declared(declared: set[Any], name: str) -> bool:
    """Forget in *declared* what depends on the queue or exchange *name*.  Never switches.

    Returns:
        whether there was something.
    """
    part = f"|{name}|"
    gone = [key for key in declared if isinstance(key, str) and part in key]
    declared.difference_update(gone)
    return bool(gone)


#: In the place of the reason why a link is not open: its construction failed.
_NEVER_BEGUN: Final = RecoverableConnectionError("the connection was never opened")


class Link:
    """One life of a connection: open until it is closed by us or lost.

    A connection without references closes by itself: its reader and its timers refer to it weakly.
    A greenlet that waits on it keeps it alive.

    Arguments:
        client: the ``Connection`` that asked for it.
    """

    #: Whether what was declared here goes with the connection or the broker, and may be declared again.
    records_topology: bool = False
    #: Why the link is not open; None while it is.
    lost: BaseException | None = _NEVER_BEGUN
    #: Whether to warn when it is dropped without a close.
    warns_when_dropped: ClassVar[bool] = True

    def __init__(self, client: Any) -> None:
        self.client = client
        #: The thread that it belongs to.
        self.hub_affinity = HubAffinity()
        _note_new(self)
        #: ``(function, argument)`` pairs for ``drain_events``.
        self.events: Inbox[Event] = Inbox()
        self.lost = None
        #: Called once with the reason, in a greenlet of its own, when the link is lost.
        self.on_lost: Callable[[BaseException], None] | None = None
        #: What channels tell of exchanges, queues and bindings that they have made or deleted, if
        #: the link says that they do.
        self.topology: Any = None
        #: Keys of what is known to be declared in this life, each with its names between bars.
        self.declared_entities: set[Any] = set()
        self._returned_bytes = 0
        self._has_dropped_returns = False

    @property
    def is_open(self) -> bool:
        """Whether channels may be opened and used."""
        return self.lost is None

    def __del__(self) -> None:
        # In any thread, in the middle of anything: only a note is taken.
        if self.lost is None:
            call_in_hub(self.hub_affinity.hub, _close_dropped, self)

    def revive(self) -> None:
        """Prepare a link that was dropped for its close: weak references to it were cleared."""

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """Note that this life is over and tell everybody who waits.  Never switches.

        Arguments:
            exc: what waiters and later callers get.
            closed: we ended it ourselves, so ``on_lost`` is not called.
        """
        if self.lost is not None:
            return
        self.lost = exc
        _alive.discard(self)
        self.events.clear()
        self.events.fail(exc)
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None and not closed:
            # A listener may switch, and we may be in the reader or in the hub.
            spawn("link-lost", on_lost, exc)

    def note_refusal(self, exc: BaseException) -> None:
        """Forget that what a 404 names was declared: the next use declares it again.  Never switches."""
        if not isinstance(exc, NotFound) or is_unavailable(exc):
            return
        kind, name = missing_entity(exc)
        if not name:
            self.declared_entities.clear()
        elif forget_declared(self.declared_entities, name) and kind == "exchange":
            spawn(
                "log",
                logger.warning,
                "exchange %r was deleted by others: it is declared again when it is used next, and "
                "what was bound to it receives nothing until it is bound again",
                name,
                extra={"connection": self.client.as_uri()},
            )

    def put_return(
        self, callback: Callable[[Any], object], returned: Any, size: int, *, has_listener: bool
    ) -> None:
        """Have the next who drains call ``callback(returned)``: a message came back.  Never switches.

        A program that only publishes may never drain, so what waits for that is bounded; the log
        tells once of those that are dropped.

        Arguments:
            size: bytes of its body.
            has_listener: whether a listener is registered for it.
        """
        size += RETURN_OVERHEAD
        if has_listener and self._returned_bytes + size <= RETURNS_LIMIT:
            self._returned_bytes += size
            self.events.put((self._call_handlers, (callback, returned, size)))
        elif not self._has_dropped_returns:
            self._has_dropped_returns = True
            why = "drain_events() is not called" if has_listener else "on_return is not set"
            text = "%s: mandatory messages were returned as unroutable, and %s: they are dropped"
            spawn(
                "log",
                logger.warning,
                text,
                self.client.as_uri(),
                why,
                extra={"connection": self.client.as_uri()},
            )

    def _call_handlers(self, event: tuple[Callable[[Any], object], Any, int]) -> None:
        # In the greenlet that drains.
        callback, returned, size = event
        self._returned_bytes -= size
        callback(returned)

    def check_open(self) -> None:
        """Raise unless open.

        Raises:
            RecoverableConnectionError: with the reason as ``__cause__``.
        """
        if self.lost is not None:
            raise RecoverableConnectionError(f"connection is closed ({self.lost})") from self.lost

    def drain(self, timeout: float | Deadline | None) -> None:
        """Run the next event in the calling greenlet.  May switch.

        Arguments:
            timeout: seconds, or a deadline that runs already; None waits.

        Raises:
            TimeoutError: no event before the deadline.
            RecoverableConnectionError, OSError: the link is lost.
        """
        self.check_open()
        function, argument = self.events.get(timeout)
        function(argument)

    def flush(self, deadline: Deadline) -> None:
        """Return when what was written on this connection is on its way.  May switch.

        Raises:
            TimeoutError: the broker took too little before the deadline.
            RecoverableConnectionError: the link is lost.
        """
        self.check_open()

    def flush_settlements(self, deadline: Deadline) -> None:
        """Return when the broker has all acks and requeues.  May switch.

        Those of RabbitMQ are on their way: what it does not hear of it requeues when the link ends.
        What a cancelled consumer was about to get is requeued, too.  After a loss of the link this does
        nothing: what is left goes to the next life, or back when the leases end.

        Raises:
            TimeoutError: the broker did not take or answer them before the deadline.
            RecoverableConnectionError: the link is lost meanwhile.
        """

    def close(self) -> None:
        """Close in good order, within a bounded time.  May switch.  A second call does nothing."""
        self.end(RecoverableConnectionError("connection was closed"), closed=True)

    def collect(self) -> None:
        """Drop everything at once, without a word to the peer.  Never switches."""
        self.end(RecoverableConnectionError("connection was dropped"), closed=True)

    def end_with_thread(self) -> None:
        """Close it with the thread that it belongs to.  Never switches; it may block for a moment."""
        self.collect()


def is_open(part: Any) -> bool:
    """Return whether a channel or link may be used.  One that cannot tell counts as open."""
    return bool(getattr(part, "is_open", True))


def drop(link: object) -> None:
    """Drop *link* at once, without a word to the peer.

    One of a transport that is written to kombu's contract may be any object: its transport closes it.
    """
    end = getattr(link, "collect", None) or getattr(link, "close", None)
    if end is not None:
        end()


#: Links that are open, or on their way to be: dropped ones only until they are collected.
_alive: Final[WeakSet[Link]] = WeakSet()
#: Number of connections below which there is no search for dropped ones.
LEAST_ALIVE: Final = 32
_collect_at = LEAST_ALIVE


def open_links() -> list[Link]:
    """Return the links of this process that are open, or on their way to be.  Never switches."""
    return list(_alive)


def _note_new(link: Link) -> None:
    """Note a link; the collector runs now if there are many: some of them may be dropped ones.

    They are parts of circles, and in a large program the collector by itself comes for these only
    after thousands of links.  With the doubling one that has many on purpose pays for it rarely.
    """
    global _collect_at
    _alive.add(link)
    close_at_thread_end(link)
    if len(_alive) > _collect_at:
        gc.collect()
        _collect_at = max(LEAST_ALIVE, 2 * len(_alive))


#: Seconds between two warnings about dropped connections to the same broker.
DROPPED_INTERVAL: Final = 60.0
#: Broker -> when that was said last, and how many connections were dropped since.
_dropped: Final[dict[str, tuple[float, int]]] = {}


def _close_dropped(link: Link) -> None:
    # In the hub.
    spawn("close-dropped", _close_and_log, link)


def _close_and_log(link: Link) -> None:
    """Close a link whose program has let go of it.  May switch."""
    if link.lost is not None:
        return
    where = str(getattr(link, "where", None) or link.client.as_uri())
    now = monotonic()
    last, count = _dropped.get(where, (-DROPPED_INTERVAL, 0))
    if not link.warns_when_dropped or now - last < DROPPED_INTERVAL:
        _dropped[where] = last, count + 1
        logger.debug(
            "%s: a connection was dropped without close(), and is closed now",
            where,
            extra={"connection": where},
        )
    else:
        _dropped[where] = now, 0
        more = f" ({count} more since the last warning)" if count else ""
        logger.warning(
            "%s: a connection was dropped without close(), and is closed now%s: close it, or share "
            "one connection",
            where,
            more,
            extra={"connection": where},
        )
    try:
        link.revive()
        link.close()
    except Exception as exc:
        logger.debug(
            "%s: closing a dropped connection: %s", where, exc, extra={"connection": where}
        )
    finally:
        if link.lost is None:
            link.collect()


class Management:
    """The management interface of a transport to its broker."""

    def __init__(self, transport: Transport[Any]) -> None:
        self.transport = transport

    def get_bindings(self) -> Any:
        """Return all bindings of the virtual host."""
        raise NotImplementedError(f"{type(self.transport).__name__} has no management API")


class TransportState:
    """Objects that outlive a link and its transport, one of each kind for each place."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Callable[..., Any], str], Any] = {}

    def get(self, kind: Callable[..., T], place: str, *arguments: Any) -> T:
        """Return the object of *kind* for *place*, made now if there is none.  Never switches.

        Arguments:
            kind: its class.
            place: the same for connections that share it.
            arguments: of the class.
        """
        key = (kind, place)
        if key not in self._kept:
            self._kept[key] = kind(*arguments)
        found: T = self._kept[key]
        return found


class Transport(Generic[L]):
    """Base of all transports (kombu 5.7, ``kombu.transport.base.Transport``), for one kind of link.

    Arguments:
        client: the ``Connection`` whose host, login and options are used.
    """

    Management: ClassVar[type[Management]] = Management
    client: Any = None
    can_parse_url: ClassVar[bool] = False
    #: What may follow the plus sign in the scheme of its URLs; None: the transport checks it.
    inner_schemes: ClassVar[frozenset[str] | None] = None
    default_port: int | None = None
    #: Whether its brokers are on hosts; else the address is a path.
    has_host: ClassVar[bool] = True
    #: Whether a publish may have properties that are not known here.
    takes_any_property: ClassVar[bool] = False
    connection_errors: tuple[type[BaseException], ...] = (ConnectionError,)
    channel_errors: tuple[type[BaseException], ...] = (ChannelError,)
    # A transport that can tell has ``recoverable_connection_errors`` (after which a new connection may
    # help) and ``recoverable_channel_errors``; for another one all may be recovered from, once.
    driver_type: ClassVar[str] = "N/A"
    driver_name: ClassVar[str] = "N/A"
    implements: ClassVar[Implements] = default_transport_capabilities.extend()
    #: For a client without a session.
    _kept_state: TransportState | None = None

    def __init__(self, client: Any, **kwargs: Any) -> None:
        self.client = client

    @property
    def kept_state(self) -> TransportState:
        """Return what a life of a connection leaves to the next.  Never switches.

        A walk over a failover list makes transports anew, so the session keeps it.
        """
        session: Session | None = getattr(self.client, "session", None)
        if session is not None:
            return session.services.transport_state
        if self._kept_state is None:
            self._kept_state = TransportState()
        return self._kept_state

    def establish_connection(self, deadline: Deadline | None = None) -> L:
        """Open a link.  May switch.

        Arguments:
            deadline: of the caller; ``client.connect_timeout`` bounds one host beside it.
        """
        raise NotImplementedError

    def close_connection(self, connection: L) -> None:
        """Close a link.  May switch."""
        _part(self, connection, "close_connection", "close")()

    def create_channel(self, connection: L) -> Any:
        """Open a channel.  May switch."""
        raise NotImplementedError

    def close_channel(self, channel: Channel) -> None:
        """Close a channel.  May switch."""
        _part(self, channel, "close_channel", "close")()

    def drain_events(self, connection: L, timeout: float | None = None) -> None:
        """Run the next event of a link in the calling greenlet; see :meth:`Link.drain`."""
        try:
            drain = connection.drain
        except AttributeError:
            drain = _part(self, connection, "drain_events", "drain")
        drain(timeout)

    def heartbeat_check(self, connection: L, rate: int = 2) -> None:
        """Raise an error if the peer is dead; heartbeats are sent in the background."""

    def driver_version(self) -> str:
        """Return the version of the library below."""
        return "N/A"

    def get_heartbeat_interval(self, connection: L) -> float:
        """Return the seconds between heartbeats as negotiated; 0 is off."""
        return 0

    def register_with_event_loop(self, connection: L, loop: Any) -> None:
        """Do nothing: no event loop is needed."""

    def unregister_from_event_loop(self, connection: L, loop: Any) -> None:
        """Do nothing: no event loop is needed."""

    def verify_connection(self, connection: L) -> bool:
        """Return whether the link can be used; one that cannot tell can."""
        return bool(getattr(connection, "is_open", True))

    def qos_semantics_matches_spec(self, connection: L) -> bool:
        """Return whether ``basic_qos(apply_global=True)`` is for the connection, as in the spec."""
        return True

    def update_secret(
        self, connection: L, secret: str, reason: str = "", deadline: Deadline | None = None
    ) -> None:
        """Tell the broker a new secret for the login of an open link.  May switch.

        Raises:
            NotImplementedError: the transport has no such thing.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot change the login of a connection")

    def on_readable(self, connection: L, loop: Any) -> None:
        """Nothing to do: the link reads by itself."""

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Mask a URL of a transport that parses its URLs itself."""
        raise NotImplementedError

    def get_manager(self, *args: Any, **kwargs: Any) -> Any:
        """Return the management interface (kombu's name for a client of it)."""
        return self.Management(self)

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """The defaults for what a URL and the keywords leave out."""
        return {}

    @property
    def manager(self) -> Any:
        """The management interface of this transport."""
        return self.get_manager()

    @property
    def supports_heartbeats(self) -> bool:
        """Whether the protocol has heartbeats."""
        return bool(self.implements.heartbeats)

    @property
    def supports_ev(self) -> bool:
        """False: no event loop is needed to drive this transport."""
        return bool(self.implements.asynchronous)


def _part(transport: Transport[Any], of: Any, method: str, name: str) -> Callable[..., Any]:
    """Return what *of* has as *name*, which is how ours implement *method*."""
    found: Callable[..., Any] | None = getattr(of, name, None)
    if found is None:
        raise NotImplementedError(f"{type(transport).__name__} does not define {method}()")
    return found
