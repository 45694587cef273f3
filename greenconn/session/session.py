"""A session: one logical connection, which survives the loss of its links.

A session has at most one link (one open socket and its state) at a time.  The time of one link is a
*life*.  These rules hold:

- Opening is single-flight: a greenlet that finds no link joins the attempt under way, or begins one.
  A thousand greenlets that find the connection dead cause one pass through the failover list.
- A life is replaced as a whole.  Late events of a former life are dropped, by its identity.
- A session with members (consumers, say) replaces a lost link in the background until ``close()``, and
  restores its members in the order of registration.  Without members the next use opens a link.
- What was declared is declared again on a new link before the link is used.
- When every broker of the list refuses the login in turn (wrong password, no such virtual host)
  recovery ends with that error.  All waiters get it, and members with a method ``failed(exc)`` do, too.
  They are restored if a later explicit use succeeds.
- Nothing switches while the state is half changed: decide first, wait after.

All attributes belong to the session's hub; none is touched from a hub callback.

Channels
--------
A program keeps channels for longer than they live: the broker closes a channel at an error, and all
channels of a connection at its loss.  So a dead channel has a *successor*, and each holder of the dead
one gets the same.

- There is at most one default channel in each life of the connection.  It is opened at its first use;
  a dead default channel is replaced by the present default channel.
- The other channels form *lines*: a channel, the one that replaced it, and so on.  Each member of a
  line leads to its latest.  A line lives as long as a dead channel of it is referenced; it refers
  only to its latest, so no other channel is kept alive.
- Greenlets that need the same channel at the same time share one opening (``life.flight``).  If the
  link is lost meanwhile, they try again on the next one, three times in all.
- A new channel takes over the prefetch and the confirm mode of the one that it replaces.

Calls that may fail at the broker run on *utility channels*, since an error closes the channel that it
came on.  One greenlet uses such a channel at a time, and a channel whose call failed is not used
again.

``default``, ``successor`` and ``UtilityChannels.run`` may switch; nothing else does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from weakref import WeakKeyDictionary, WeakSet, ref

from gevent import Greenlet, get_hub
from greenlet import getcurrent

from greenconn.exceptions import RecoverableConnectionError, error_text, raise_error
from greenconn.green.deadline import NEVER, Deadline, is_thrown
from greenconn.green.hub import HubAffinity, PerHub, forget_at_fork, yield_to_hub
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.slot import Condition, SingleFlight
from greenconn.green.supervisor import State, moved, spawn
from greenconn.listeners import LISTENERS, ConnectEvent, DisconnectEvent, notify
from greenconn.session.broker import Broker
from greenconn.session.connect import Connector, ConnectOutcome
from greenconn.session.topology import Topology
from greenconn.transport.base import Link, TransportState, drop, is_open

if TYPE_CHECKING:
    from greenconn.abc import Channel, Recoverable
    from greenconn.connection import Connection
    from greenconn.green.pool import FairPool
    from greenconn.limits.store import LimitStore
    from greenconn.publishing.publisher import Publisher
    from greenconn.service.rpc import _RpcClient as RpcClient
    from greenconn.transport.base import Transport
    from greenconn.worker.group import ConsumerGroup


logger = logging.getLogger("greenconn.session")

T = TypeVar("T")

#: Links on which a channel is tried before the caller gets the error.
TRIES: Final = 3
#: Utility channels of one connection.  A lookup that misses costs its channel: 1,000 misses take 3.5 s
#: on one channel and about 1.5 s on eight.
UTILITY_LIMIT: Final = 8


def begin_channel(transport: Transport[Any], link: object) -> Any:
    """Return a channel of *link* for requests that follow at once.  May switch.

    Where the transport can, they are sent behind the opening of the channel without a wait for the
    broker's reply to that.  If the broker refuses the channel, they raise its error.
    """
    # One that a program has written has no such method.
    begin = getattr(transport, "begin_channel", transport.create_channel)
    return begin(link)


class _Successors:
    """A channel, the one that replaced it, the one after that: all stand for the latest."""

    __slots__ = ("__weakref__", "latest")

    def __init__(self, latest: Any) -> None:
        self.latest = latest


class Channels:
    """The default channel, and which channel stands for which dead one.

    All channels of a line stand for the same open one.  A line lives as long as the program holds a
    dead channel of it, and it keeps none of them alive itself, only its latest.

    Arguments:
        session: gives the current life.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        #: The lines of dead channels.
        self._lines: WeakKeyDictionary[Any, _Successors] = WeakKeyDictionary()
        #: The lines of those that are the latest; a line refers to its latest, so they are weak.
        self._ends: WeakKeyDictionary[Any, ref[_Successors]] = WeakKeyDictionary()
        #: All that are or were the default channel, and the latest of them.
        self._defaults: WeakSet[Any] = WeakSet()
        self._latest_default: Any = None

    def default(self, deadline: Deadline, *, reopen: bool) -> Any:
        """Return the default channel, opened anew if it is not open.  May switch."""
        return self._opened(deadline, reopen, "default", _default_of, self._open_default)

    def successor(self, old: Any, deadline: Deadline) -> Any:
        """Return the channel that stands for *old*: itself while it is open.  May switch."""
        if is_open(old):
            return old
        if old in self._defaults:
            return self.default(deadline, reopen=False)
        return self._opened(
            deadline,
            False,
            ("successor", id(self._line(old).latest)),
            lambda life: self._line(old).latest,
            partial(self._open_successor, old),
        )

    def set_default(self, channel: Channel | None) -> Any:
        """Make *channel* the default one, and return the open one that it replaces, or None.

        One of another life, or None, is not taken: the next use opens the default channel anew.
        Never switches.
        """
        life = self._session.life
        former = life.default_channel
        if former is channel:
            return None
        if channel is None or getattr(channel, "connection", None) is not life.link:
            channel = None
        else:
            self._defaults.add(channel)
            self._latest_default = channel
        life.default_channel = channel
        return former if former is not None and is_open(former) else None

    def forget(self) -> None:
        """After a close or a fork: no channel stands for another any more."""
        self._lines.clear()
        self._ends.clear()
        self._latest_default = None

    def _opened(
        self,
        deadline: Deadline,
        reopen: bool,
        key: Any,
        find: Callable[[Life], Any],
        open_on: Callable[[Life], Any],
    ) -> Any:
        """Return the channel that *find* sees, or the one that *open_on* opens; once for all callers."""
        for tries_left in reversed(range(TRIES)):
            self._session.link(deadline, reopen=reopen)
            life = self._session.life
            if life.link is None:
                # It was lost, or closed, before this greenlet had it.
                if tries_left and not deadline.has_ended:
                    continue
                label = self._session.broker.label
                raise RecoverableConnectionError(
                    f"connection to {label} was lost while a channel was opened"
                )
            channel = find(life)
            if channel is not None and is_open(channel):
                return channel
            try:
                return life.flight.run(key, partial(open_on, life), deadline)
            except self._session.broker.connection_errors as exc:
                # The link may have been lost meanwhile: then the next one will do.
                if is_thrown(exc) or life.is_open or not tries_left or deadline.has_ended:
                    raise
        raise AssertionError("unreachable")

    def _open_default(self, life: Life) -> Any:
        channel = self._open(life, self._latest_default)
        self._defaults.add(channel)
        self._latest_default = life.default_channel = channel
        return channel

    def _open_successor(self, old: Any, life: Life) -> Any:
        line = self._line(old)
        last = line.latest
        if is_open(last):
            return last
        channel = self._open(life, last)
        self._lines[last] = self._lines[old] = line
        line.latest = channel
        self._ends[channel] = ref(line)
        return channel

    def _open(self, life: Life, old: Any) -> Any:
        """Return a channel that works as *old* did (prefetch, confirm mode)."""
        channel = self._session.broker.transport.create_channel(life.link)
        # Failing over may have led to another transport.
        if type(old) is type(channel) and hasattr(channel, "take_over"):
            try:
                channel.take_over(old)
            except BaseException:
                with suppress(Exception):
                    channel.close()
                raise
        return channel

    def _line(self, channel: Channel) -> _Successors:
        """Return the line that *channel* belongs to; its latest may be dead, too."""
        line = self._lines.get(channel)
        if line is None and (end := self._ends.get(channel)) is not None:
            line = end()
        return _Successors(channel) if line is None else line


class UtilityChannels:
    """Channels for what may fail: looking queues up, declaring, binding, deleting.

    A broker's error closes the channel that it came on, so none of this may run where others consume or
    publish.  A connection has at most eight of these channels, and each serves one greenlet at a time.

    Arguments:
        session: opens links.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        #: Made, and its class imported, when it is first needed: many connections never do.
        self._pool: FairPool[Any] | None = None

    def run(self, function: Callable[[Any], T], deadline: Deadline) -> T:
        """Return ``function(channel)``, with exclusive use of that channel.  May switch.

        Arguments:
            deadline: for a free channel; its calls have the connection's ``reply_timeout``.

        Raises:
            LimitExceeded: no channel was free in time.
            Exception: what opening the channel, or *function*, raised.
        """
        pool = self._pool
        if pool is None:
            from greenconn.green.pool import FairPool

            pool = self._pool = FairPool(self._open, _close, is_open, UTILITY_LIMIT, self._name)
        channel = pool.acquire(True, deadline)
        is_idle = False
        try:
            result = function(channel)
            is_idle = is_open(channel)
            return result
        finally:
            if is_idle:
                pool.release(channel)
            else:
                # A late reply may close it: that must not hit the next borrower.
                pool.remove(channel)

    def drop(self) -> None:
        """After a close: they belonged to a former life.  Never switches."""
        if self._pool is not None:
            self._pool.clear()

    def forget(self) -> None:
        """After a fork, in the child: begin anew.  Never switches."""
        if self._pool is not None:
            self._pool.forget()

    def _name(self) -> str:
        return f"utility channels of {self._session.broker.label}"

    def _open(self, deadline: Deadline) -> Any:
        link = self._session.link(deadline)
        return begin_channel(self._session.broker.transport, link)


def _default_of(life: Life) -> Any:
    return life.default_channel


def _close(channel: Channel) -> None:
    if is_open(channel):
        channel.close()


class SessionState(State):
    """The stages in the life of a logical connection."""

    #: No link, and none is needed: never used, lost without anything to recover, or dropped.
    IDLE = "idle"
    #: An attempt to open a link is under way or about to begin.
    OPENING = "opening"
    #: There is a link, and everything that belongs on it is there.
    OPEN = "open"
    #: A link was lost and what belonged on it is being brought back, in the background.
    RECOVERING = "recovering"
    #: Closed by the user; explicit use opens it again.
    CLOSED = "closed"


MOVES: Final[Mapping[SessionState, frozenset[SessionState]]] = {
    SessionState.IDLE: frozenset({SessionState.OPENING, SessionState.CLOSED}),
    SessionState.OPENING: frozenset(
        {
            SessionState.OPEN,
            # Members of a former life wait for the link that was just opened.
            SessionState.RECOVERING,
            SessionState.IDLE,
            SessionState.CLOSED,
        }
    ),
    SessionState.OPEN: frozenset({SessionState.RECOVERING, SessionState.IDLE, SessionState.CLOSED}),
    SessionState.RECOVERING: frozenset(
        {
            SessionState.OPEN,
            # The last member left, or the broker refuses us, while another greenlet still waits.
            SessionState.OPENING,
            SessionState.IDLE,
            SessionState.CLOSED,
        }
    ),
    # IDLE: pointed at another broker, or about to be used again.
    SessionState.CLOSED: frozenset({SessionState.OPENING, SessionState.IDLE}),
}


class Life:
    """All that begins with a link and ends with it.

    Arguments:
        link: what ``Transport.establish_connection`` returned; None for the time between two lives,
            in which nothing is open and nothing is declared.
        generation: number of this life, from 1; 0 between two lives.
        transport: that of the link.
    """

    def __init__(
        self, link: object | None = None, generation: int = 0, transport: object | None = None
    ) -> None:
        self.link: Any = link
        self.transport: Any = transport
        #: Whether the link knows when it is lost: that of a transport written for kombu is any object.
        self.can_tell = hasattr(link, "is_open")
        #: Whether its attribute ``lost`` says so, which takes no call.
        self.keeps_lost = isinstance(link, Link)
        self.generation = generation
        #: Entities known to exist at the broker; a new life may find another broker.
        self.declared_entities: set[Any] = set()
        if isinstance(link, Link):
            link.declared_entities = self.declared_entities  # a 404 takes out what is gone
        #: Quorum queues that turned out to be deleted, by name, and when.
        self.deleted_at: dict[str, float] = {}
        #: For ``maybe_declare``: one declaration at a time of each entity.
        self.declare_flight = SingleFlight("declare")
        #: For opening channels that several greenlets want.
        self.flight = SingleFlight("open-channel")
        self.default_channel: Any = None

    @property
    def is_open(self) -> bool:
        """Whether the link may be used."""
        return bool(self.link.is_open) if self.can_tell else self.link is not None

    @property
    def is_over(self) -> bool:
        """Whether the link may not be used any more, or there was none."""
        return not self.is_open

    def forget(self) -> None:
        """Reset in the child of a fork, where no greenlet waits for an attempt."""
        self.declare_flight.forget()
        self.flight.forget()

    def __repr__(self) -> str:
        if self.link is None:
            return "<Life: none>"
        return f"<Life {self.generation}: {'open' if self.is_open else 'over'}>"


class _Own(Enum):
    CONNECTION = "the connection itself"


#: Publishing needs no second connection.
OWN_CONNECTION: Literal[_Own.CONNECTION] = _Own.CONNECTION


class SessionServices:
    """One of each, over all lives of a session; after a fork the child begins with none.

    Who makes an object sets its attribute, and finds it there the next time.

    Attributes:
        consumers: set by the first consumer.
        limit_store: set by the first that needs limits.
        publisher: set by the first confirmed publish.
        publishing_connection: the connection that publishes for this one, until this one is closed.
        rpc_client: set by the first call.
        transport_state: kept for transports.
    """

    def __init__(self) -> None:
        self.consumers: ConsumerGroup | None = None
        self.limit_store: LimitStore | None = None
        self.publisher: Publisher | None = None
        self.publishing_connection: Connection | Literal[_Own.CONNECTION] | None = None
        self.rpc_client: RpcClient | None = None
        self.transport_state = TransportState()


class Listeners(list[Callable[..., Any]]):
    """A list of callbacks; an error of one does not keep the others from being called."""

    def notify(self, *args: Any) -> None:
        """Call each in a greenlet of its own.  Never switches."""
        for listener in self:
            spawn("listener", self._call, listener, args)

    def call(self, *args: Any) -> None:
        """Call each in this greenlet, to the last.  May switch.

        Raises:
            BaseException: the first error that a callback raised, or that was thrown in meanwhile.
        """
        first: BaseException | None = None
        for listener in list(self):
            try:
                listener(*args)
            except BaseException as exc:
                first = first or exc
        if first is not None:
            raise first

    def _call(self, listener: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            listener(*args)
        except Exception:
            logger.exception("a listener of a connection failed: %r", listener)


#: Seconds that one member may take to be restored: a few round trips, each bounded by the transport.
RESTORE_TIMEOUT: Final = 30.0
#: For a member that cannot be restored now, as long as the life lasts.
RESTORING: Final = RetryPolicy(first=0.2, longest=10.0)


class Members:
    """Objects with ``recover(deadline)``, kept by strong reference in the order of registration.

    When a life ends all of them are *due*: they have to be restored on the next one.  A member whose
    restoring fails for a temporary reason (an exclusive queue that the broker still holds for the
    old connection, a reply that did not come) is tried again by itself, with back-off, as long as
    the life lasts, so that it does not delay the others.  A member that cannot be restored is
    removed: its ``failed(exc)`` is called, if it has one, else ``drain_events`` raises the error.

    After a loss one greenlet opens links until one stays open, and recovers the members on it.  It ends
    when no member is due, when the session is closed, or when an error is final.

    Arguments:
        session: opens the links, with its own pace.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._broker = session.broker
        self._greenlet: Greenlet[..., Any] | None = None
        # By identity: a member need not be hashable, and equal ones are not the same.
        self._all: dict[int, Recoverable] = {}
        self._due: dict[int, Recoverable] = {}
        self._retries: set[Greenlet[..., Any]] = set()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def are_due(self) -> bool:
        """Whether there is an object to recover."""
        return bool(self._due)

    def add(self, member: Recoverable) -> None:
        """Register *member*; again: changes nothing."""
        self._all.setdefault(id(member), member)

    def discard(self, member: Recoverable) -> None:
        """Forget *member*."""
        self._all.pop(id(member), None)
        self._due.pop(id(member), None)

    def clear(self) -> None:
        """Forget all."""
        self._all.clear()
        self._due.clear()
        self.stop_retries()

    def mark_due(self) -> None:
        """Mark all members as due, as a life has ended.  Never switches."""
        self.stop_retries()
        self._due = dict(self._all)

    def stop_retries(self) -> None:
        """Give up what is tried again apart.  Never switches."""
        retries, self._retries = self._retries, set()
        for greenlet in retries:
            if greenlet is not getcurrent():
                greenlet.kill(block=False)

    @property
    def is_running(self) -> bool:
        """Whether recovery has begun and not ended."""
        return self._greenlet is not None and not self._greenlet.dead

    def begin(self) -> None:
        """Begin to recover unless that has begun.  Never switches."""
        if not self.is_running:
            self._greenlet = spawn("recovery", self._run)

    def stop(self) -> None:
        """End recovery without a word to the session.  Never switches."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None and greenlet is not getcurrent():
            greenlet.kill(block=False)

    def _run(self) -> None:
        began = monotonic()
        error: BaseException | None = None
        try:
            error = self._recover_all()
        except Exception as exc:
            # In another greenlet: a log handler may switch, and a loss meanwhile would find this one.
            spawn("log", logger.error, "recovery failed", exc_info=exc)
            error = exc
        except BaseException:
            # It was killed: its waiters must not wait forever.
            error = RecoverableConnectionError("recovery was interrupted")
            raise
        finally:
            if self._greenlet is getcurrent():
                self._greenlet = None
                self._session.end_recovery(error, monotonic() - began)

    def _recover_all(self) -> BaseException | None:
        """Open links and restore members until none is due; the error if that is of no use."""
        session = self._session
        while self._due:
            if session.life.is_open:
                self._recover(session.life)
                session.notice_loss()
                continue
            outcome = session.attempt()
            if outcome.error is not None and session.is_final(outcome.error):
                return outcome.error
        return None

    def _recover(self, life: Life) -> None:
        """Restore all that are due, in order, while *life* lasts.  May switch."""
        while self._due and life.is_open:
            key, member = next(iter(self._due.items()))
            try:
                member.recover(Deadline(RESTORE_TIMEOUT))
            except Exception as exc:
                if life.is_over:
                    return  # lost again: it stays due
                self._due.pop(key, None)
                if self._broker.is_transient(exc):
                    logger.info(
                        "recovery of %r failed, and is tried again: %s",
                        member,
                        error_text(exc),
                        extra={"connection": self._broker.label},
                    )
                    self._retry_apart(life, member, exc)
                else:
                    self.fail(life, member, exc)
            else:
                # A life that was lost in the last moment has made it due again.
                if life.is_open:
                    self._due.pop(key, None)

    def fail_all(self, exc: BaseException) -> None:
        """Tell the members that have ``failed`` that recovery was given up; they stay members."""
        for member in list(self._due.values()):
            _notify_failure(member, exc)

    def fail(self, life: Life, member: Recoverable, exc: BaseException) -> None:
        """Part with a member that cannot be restored.  May switch."""
        logger.error(
            "%r cannot be recovered: %s",
            member,
            error_text(exc),
            extra={"connection": self._broker.label},
        )
        self.discard(member)
        if not _notify_failure(member, exc):
            events = getattr(life.link, "events", None)
            if events is not None:
                events.put((raise_error, exc))

    def _retry_apart(self, life: Life, member: Recoverable, failure: Exception) -> None:
        greenlet = spawn("recover-again", self._retry, life, member, failure)
        self._retries.add(greenlet)
        greenlet.rawlink(self._retries.discard)

    def _retry(self, life: Life, member: Recoverable, failure: Exception) -> None:
        def may_pass(exc: Exception) -> bool:
            return not life.is_over and self._broker.is_transient(exc)

        try:
            for attempt in attempts(RESTORING, NEVER, may_pass, failure=failure):
                if not life.is_open or id(member) not in self._all:
                    return
                with attempt:
                    member.recover(Deadline(RESTORE_TIMEOUT))
                    logger.info(
                        "%r was recovered", member, extra={"connection": self._broker.label}
                    )
                    return
                logger.debug(
                    "recovery of %r failed again: %s",
                    member,
                    attempt.error,
                    extra={"connection": self._broker.label},
                )
        except Exception as exc:
            if not life.is_over:
                self.fail(life, member, exc)


def _notify_failure(member: Recoverable, exc: BaseException) -> bool:
    failed = getattr(member, "failed", None)
    if failed is None:
        return False
    try:
        failed(exc)
    except Exception:
        logger.exception("the failure callback of %r failed", member)
    return True


#: Used for each event that is drained: looking up a member of an Enum has a cost.
_OPEN: Final = SessionState.OPEN
_CLOSED: Final = SessionState.CLOSED


class Session:
    """One logical connection to *broker*.

    Attributes:
        life: the current life; between two lives one that is not open.
        generation: the number of links so far.
        changed_at: when the session has reached its state (``time.time()``).
        limits: where an application keeps limits; None: where all do.
        lost: the error that ended the last life; None before, and while a link is open.
        purpose: use of the connection, for the log, where the library made it for one alone.
        services: objects of other modules that live as long as this session.
        utility: channels for calls that may fail and so close their channel.
        topology: the declarations, which are repeated on the next link.
        on_connection_lost, on_recovered: see ``Connection``.
        on_closed: called without arguments at the end of ``close``, in its greenlet.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.life = Life()
        self.generation = 0
        self.lost: BaseException | None = None
        self.on_connection_lost = Listeners()
        self.on_recovered = Listeners()
        self.on_closed = Listeners()
        self.purpose = ""
        self.limits: Connection | str | None = None
        self._state = SessionState.IDLE
        self.changed_at = time()
        self._hub_affinity: HubAffinity | None = None
        self._connector = Connector(self)
        self.topology = Topology(lambda: broker.label)
        self._members = Members(self)
        #: Made when it is first needed: a connection whose channels the program opens needs none.
        self._made_channels: Channels | None = None
        self.utility = UtilityChannels(self)
        self.services = SessionServices()
        self._changed = Condition()

    def __repr__(self) -> str:
        return f"<Session {self.broker.label}: {self._state.value}, life {self.generation}>"

    @property
    def state(self) -> SessionState:
        """The stage that the session has reached."""
        return self._state

    @property
    def is_open(self) -> bool:
        """Whether there is a link that may be used."""
        return self.life.is_open

    @property
    def is_lost(self) -> bool:
        """Whether the last link was lost and is not replaced yet."""
        return self.lost is not None or (self.life.link is not None and self.life.is_over)

    @property
    def may_be_lost(self) -> bool:
        """Whether the last link was lost, or cannot tell, as those of kombu's contract."""
        life = self.life
        return self.is_lost or (life.link is not None and not life.can_tell)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed and has not been used since."""
        return self._state is _CLOSED

    def link(
        self,
        deadline: Deadline | None = None,
        *,
        reopen: bool = False,
        rounds: int | None = None,
        interval: float | None = None,
    ) -> Any:
        """Return the open link, or open one.  May switch.

        It does not wait until members are restored; see :meth:`wait_ready`.

        Arguments:
            deadline: for trying all brokers; without an end it is ``connect_timeout`` for each, and the
                shares of the first round.
            reopen: open a closed session again.
            rounds: failed rounds through the failover list after which to give up, even before the
                deadline.
            interval: seconds between rounds, if that is shorter than the session's own back-off.

        Raises:
            TimeoutError: no attempt ended before the deadline.
            RecoverableConnectionError: the session was closed, before or meanwhile.
            Exception: the error of the last attempt.
        """
        life = self.life
        if life.is_open:
            self._bind_to_hub()
            return life.link
        deadline, rounds = self._connector.limits(deadline, rounds)
        failures = 0
        last: ConnectOutcome | None = None
        while True:
            try:
                outcome = self.attempt(deadline, reopen=reopen, interval=interval)
            except TimeoutError:
                if last is None or not deadline.has_ended:
                    raise
                return last.result()  # its error says more than a timeout
            last = outcome
            if outcome.error is None or self.is_final(outcome.error) or deadline.has_ended:
                return outcome.result()
            failures += 1
            if self.is_closed or (rounds and failures >= rounds * self.broker.hosts):
                return outcome.result()

    def attempt(
        self,
        deadline: Deadline | None = None,
        *,
        reopen: bool = False,
        interval: float | None = None,
    ) -> ConnectOutcome:
        """Return the open link, or the outcome of the next attempt to open one.  May switch.

        An attempt that had only a share of ``connect_timeout`` is followed by the next one.

        Arguments:
            deadline: how long to wait for that attempt.
            reopen: open a closed session again.
            interval: seconds to wait after the last failure, if that is shorter than the session's
                own back-off.

        Raises:
            TimeoutError: the attempt did not end before the deadline; it goes on.
            RecoverableConnectionError: the session is closed.
        """
        self._bind_to_hub()
        deadline = deadline or Deadline()
        cut: ConnectOutcome | None = None
        while True:
            if self.life.is_open:
                return ConnectOutcome(self.life.link)
            self.notice_loss()
            if self.is_closed and (cut is not None or not reopen):
                raise self._closed_error()
            if self._state is not SessionState.RECOVERING:
                self._move(SessionState.OPENING)
            try:
                outcome = self._connector.join(deadline, interval)
            except TimeoutError:
                if cut is None or not deadline.has_ended:
                    raise
                return cut  # its error says more than a timeout
            if not outcome.is_cut:
                return outcome
            cut = outcome

    def ready_life(self) -> Life | None:
        """Return the current life if its members are restored, else None.  Never switches."""
        life = self.life
        # For each event that is drained, so without a call of life.is_open.
        if self._state is _OPEN and (life.link.lost is None if life.keeps_lost else life.is_open):
            affinity = self._hub_affinity
            if affinity is not None and get_hub() is not affinity.hub:
                affinity.check(self)
            return life
        return None

    def wait_ready(self, deadline: Deadline) -> Life:
        """Return the current life once its members are restored.  May switch.

        Raises:
            TimeoutError: recovery was still under way at the deadline.
            RecoverableConnectionError: the session was closed, before or meanwhile.
            Exception: the error of opening a link, where there is no member to restore.
        """
        while True:
            life = self.ready_life()
            if life is not None:
                return life
            self._bind_to_hub()
            if deadline.has_ended or self.is_closed:
                yield_to_hub()  # the caller may poll, or ignore the error, and other greenlets must run
            self.notice_loss()
            if self._state is SessionState.RECOVERING:
                self._changed.wait(deadline)
            elif not self.is_open:
                self.link(deadline)

    def wait_settled(self, deadline: Deadline) -> None:
        """Wait until no opening or recovery is under way, whatever its outcome.  May switch.

        Raises:
            TimeoutError: it was still under way at the deadline.
            RecoverableConnectionError: the session was closed meanwhile.
        """
        while self._state is SessionState.OPENING:
            self.attempt(deadline)
        while self._state is SessionState.RECOVERING:
            self._changed.outcome(deadline)

    def pause(self, seconds: float) -> None:
        """Wait until there is a link, but not longer than *seconds*.  May switch.

        Raises:
            RecoverableConnectionError: the session was closed meanwhile.
        """
        deadline = Deadline(seconds)
        while not self.is_open and not deadline.has_ended:
            try:
                self._changed.wait(deadline)
            except TimeoutError:
                if not deadline.has_ended:
                    raise  # a timeout of the caller's, around this call

    def is_final(self, exc: BaseException) -> bool:
        """Return whether another attempt would be useless after this error."""
        return self._connector.is_final(exc)

    def add(self, member: Recoverable) -> None:
        """Restore *member* after each reconnect, from the next one on."""
        self._members.add(member)

    def discard(self, member: Recoverable) -> None:
        """Do not restore *member* any more."""
        self._members.discard(member)

    def default_channel(self, deadline: Deadline | None = None, *, reopen: bool = False) -> Any:
        """Return the shared default channel, opened if it is not open.  May switch.

        Raises:
            Exception: as :meth:`link`, or an error of the transport.
        """
        channel = self.life.default_channel
        if channel is not None and is_open(channel) and self.life.is_open:
            self._bind_to_hub()
            return channel
        return self._channels().default(deadline or Deadline(), reopen=reopen)

    def set_default_channel(self, channel: Channel) -> Any:
        """Make *channel* the default channel, and return the open one that it replaces, or None.

        Never switches.
        """
        return self._channels().set_default(channel)

    def _channels(self) -> Channels:
        channels = self._made_channels
        if channels is None:
            channels = self._made_channels = Channels(self)
        return channels

    def successor(self, old_channel: Any, deadline: Deadline | None = None) -> Any:
        """Return the channel that replaces *old_channel*.  May switch.

        That is itself while it is open, the default channel if it was that, else one opened in its
        place, with the same prefetch and confirm mode.  Raises as :meth:`link`.
        """
        return self._channels().successor(old_channel, deadline or Deadline())

    def close(self) -> None:
        """Close the link and end recovery; all waiters get an error.  May switch.

        Explicit use (``link(reopen=True)``) opens the session again, without its former members.
        """
        if self.is_closed:
            return
        self.check_hub()
        life = self._end(SessionState.CLOSED)
        try:
            if life.link is not None:
                self.broker.close(life.link)
        finally:
            self.on_closed.call()

    def note_use(self) -> None:
        """Note an explicit use, which opens a closed session later unless it is closed before that.

        Never switches.
        """
        if self.is_closed:
            self._move(SessionState.IDLE)

    def collect(self) -> None:
        """Drop the link at once, without a close on the wire; the next use opens a new one.

        Raises:
            WrongHub: the session belongs to another thread.
        """
        self.check_hub()
        self._drop(SessionState.CLOSED if self.is_closed else SessionState.IDLE)

    def restart(self) -> None:
        """Drop a link that was opened since a close, as another broker was chosen after it."""
        self._drop(SessionState.IDLE)

    def _drop(self, state: SessionState) -> None:
        link = self._end(state).link
        if link is not None:
            self._discard(link)

    def _discard(self, link: object) -> None:
        if hasattr(link, "is_open"):
            drop(link)
        else:
            self.broker.close(link)  # only its transport knows how

    def forget(self) -> None:
        """Forget all state in the child of a fork.  Never switches.

        Descriptors are closed by a hook of their own.
        """
        self.life.forget()
        self._connector.forget()
        self._members.clear()
        self.topology.clear()
        if self._made_channels is not None:
            self._made_channels.forget()
        self.utility.forget()
        self.services = SessionServices()
        self.life = Life()
        self._members.stop()
        self._changed.forget()
        self._hub_affinity = None
        _in_use.get().discard(self)
        if not self.is_closed:
            self._state = SessionState.IDLE

    def prepare(self, link: object) -> None:
        """Declare what was declared before on a new link; drop it if that fails.  May switch."""
        self.topology.restore(link, partial(begin_channel, self.broker.transport, link))

    def begin_life(self, link: object) -> None:
        """Begin a life with a link that was opened.  Never switches."""
        self.generation += 1
        life = self.life = Life(link, self.generation, self.broker.transport)
        was_lost, self.lost = self.lost is not None, None
        self.topology.record(link, partial(begin_channel, self.broker.transport, link))
        if hasattr(link, "on_lost"):
            link.on_lost = lambda exc: self._end_life(life, exc)
        self._log(logging.INFO, "connected to %s")
        if (calls := LISTENERS.connect) is not None:
            opened = ConnectEvent(self.broker.label, life.generation, self._connector.duration)
            spawn("listener", notify, calls, opened)
        is_open = self._arrive()
        if was_lost and is_open:
            self.on_recovered.notify()

    def _arrive(self) -> bool:
        """Begin to recover the members on a new link, or be open without; return whether it is open.

        Never switches.
        """
        is_recovering = self._state is SessionState.RECOVERING and self._members.is_running
        if self._members.are_due:
            self._begin_recovery()
        elif not is_recovering:
            self._move(_OPEN)
        self._changed.wake_all()
        return self._state is _OPEN

    def attempt_failed(self) -> None:
        """Note that an attempt ended without a link.  Never switches."""
        if self._state is SessionState.OPENING:
            self._move(SessionState.IDLE)

    def notice_loss(self) -> None:
        """End the life of a link that is lost, if its callback has not come yet.

        The handler of a signal may raise amid a change of the life and the state.  What was left of it
        then is done here, too.
        """
        life = self.life
        is_abandoned = self._state is SessionState.RECOVERING and not self._members.is_running
        if life.link is None:
            if self._state is _OPEN or is_abandoned:
                self._move(SessionState.IDLE)
        elif not life.is_open:
            self._end_life(life, getattr(life.link, "lost", None) or self._closed_error())
        elif self._state is SessionState.OPENING or is_abandoned:
            self._arrive()

    def note_error(self, exc: BaseException) -> None:
        """End the life of a link without callbacks, after an error that means its loss.

        Never switches.
        """
        life = self.life
        if life.link is None or life.can_tell or isinstance(exc, TimeoutError):
            return
        if isinstance(exc, self.broker.connection_errors):
            self._end_life(life, exc)
            spawn("close-lost-link", self.broker.close, life.link)

    def _end_life(self, life: Life, exc: BaseException) -> None:
        """End the life of a lost link, if it is the current one.  Never switches."""
        if life is not self.life or life.link is None:
            return
        self.lost = exc
        self._connector.fail_over()
        self.topology.stop()
        self._members.mark_due()
        text = "connection to %s lost: %s; %d objects to recover"
        self._log(logging.WARNING, text, exc, len(self._members))
        if self._members.are_due:
            self._begin_recovery()
        elif self._state is not SessionState.RECOVERING:
            self._move(SessionState.IDLE)
        # Behind the changes that are done again if a signal interrupts them.
        self.life = Life()
        self.on_connection_lost.notify(exc)
        self._notify_end(life, exc)
        self._changed.wake_all()

    def _begin_recovery(self) -> None:
        self._move(SessionState.RECOVERING)
        self._members.begin()

    def end_recovery(self, error: BaseException | None, seconds: float) -> None:
        """End the recovery: all is restored, or *error* says why it was given up."""
        if self._state is not SessionState.RECOVERING:
            return
        if self.life.is_open:
            state = SessionState.OPEN
        elif self._connector.is_under_way:
            state = SessionState.OPENING
        else:
            state = SessionState.IDLE
        self._move(state)
        self._changed.wake_all(error)
        if error is not None:
            self._log(logging.ERROR, "connection to %s: recovery failed: %s", error)
            self._members.fail_all(error)
        elif self.life.is_open:
            self._log(logging.WARNING, "connection to %s recovered after %.1f s", seconds)
            self.on_recovered.notify()

    def _end(self, state: SessionState) -> Life:
        """End the current life without a switch, and return it."""
        # The state last: what a signal interrupts can be called again.
        exc = self._closed_error()
        self._hub_affinity = None
        _in_use.get().discard(self)
        self.lost = None
        self._members.clear()
        self.topology.clear()
        if self._made_channels is not None:
            self._made_channels.forget()
        self.utility.drop()
        self._connector.reset(exc)
        self._members.stop()
        self._changed.wake_all(exc)
        life, self.life = self.life, Life()
        self._move(state)
        if life.link is not None:
            self._notify_end(life, None)
        return life

    def _notify_end(self, life: Life, error: BaseException | None) -> None:
        if (calls := LISTENERS.disconnect) is not None:
            ended = DisconnectEvent(self.broker.label, life.generation, error)
            spawn("listener", notify, calls, ended)

    def _move(self, state: SessionState) -> None:
        if state is not self._state:
            self.changed_at = time()
        self._state = moved(self._state, state, MOVES, "a session")

    def _log(self, level: int, text: str, *args: object) -> None:
        """Log *text*, which names the broker first, in another greenlet.  Never switches.

        A log handler may switch, and the state must not be left half changed meanwhile.
        """
        if logger.isEnabledFor(level):
            label = self.broker.label
            shown = f"{label} ({self.purpose})" if self.purpose else label
            spawn("log", logger.log, level, text, shown, *args, extra={"connection": label})

    def _closed_error(self) -> RecoverableConnectionError:
        return RecoverableConnectionError(f"connection to {self.broker.label} was closed")

    def check_hub(self) -> None:
        """Raise if it is in use by another thread.  Never switches.

        Raises:
            WrongHub: names both threads and the remedy.
        """
        affinity = self._hub_affinity
        if affinity is not None and get_hub() is not affinity.hub:
            affinity.check(self)

    def _bind_to_hub(self) -> None:
        if self._hub_affinity is None:
            self._hub_affinity = HubAffinity()
            forget_at_fork(self)
            _in_use.get().add(self)
        else:
            self._hub_affinity.check(self)


_in_use: Final[PerHub[WeakSet[Session]]] = PerHub(WeakSet)


def sessions_in_use() -> list[Session]:
    """Return the sessions of this thread that were used and not closed since.  Never switches."""
    # One that is only looked at after its end is there again.
    return [each for each in _in_use.get() if not each.is_closed]
