"""The channels of a session: the default one, replacements of dead ones, and utility channels.

Theory
------
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

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary, WeakSet, ref

from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.transport.base import is_open

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.green.pool import FairPool
    from greenconn.session.session import Life, Session
    from greenconn.transport.base import Transport

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
            except self._session.broker.connection_errors:
                # The link may have been lost meanwhile: then the next one will do.
                if life.is_open or not tries_left or deadline.has_ended:
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
