"""The channels of a session that outlive a link: the default one, and those that replace others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary, WeakSet

from greenconn.green.deadline import Deadline
from greenconn.session.life import Life, is_open
from greenconn.session.walk import BrokerLike

__all__ = ["Channels"]

#: Links on which a channel is tried before the caller gets the error.
TRIES: Final = 3


class _SessionLike(Protocol):
    @property
    def life(self) -> Life: ...

    @property
    def broker(self) -> BrokerLike: ...

    def link(self, deadline: Deadline, *, reopen: bool = False) -> Any: ...


class Channels:
    """The default channel, and which channel stands for which dead one.

    A channel leads to the one that replaced it, that one to the next, and so on; all who hold any
    of them end at the same open channel.  Only channels that somebody still holds are remembered.

    Arguments:
        session: gives the current life.
    """

    def __init__(self, session: _SessionLike) -> None:
        self._session = session
        self._next: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
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
            ("successor", id(self._last(old))),
            lambda life: self._last(old),
            partial(self._open_successor, old),
        )

    def forget(self) -> None:
        """After a close or a fork: no channel stands for another any more."""
        self._next.clear()
        self._latest_default = None

    def _opened(
        self,
        deadline: Deadline,
        reopen: bool,
        key: Any,
        find: Callable[[Life], Any],
        open_on: Callable[[Life], Any],
    ) -> Any:
        """The channel that *find* sees, or the one that *open_on* opens; once for all callers."""
        for tries_left in reversed(range(TRIES)):
            self._session.link(deadline, reopen=reopen)
            life = self._session.life
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
        last = self._last(old)
        if is_open(last):
            return last
        channel = self._open(life, last)
        self._next[last] = self._next[old] = channel
        return channel

    def _open(self, life: Life, old: Any) -> Any:
        """A channel that works as *old* did (prefetch, confirm mode)."""
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

    def _last(self, channel: Any) -> Any:
        """The end of the line that begins with *channel*: it may be dead, too."""
        last = channel
        while (following := self._next.get(last)) is not None:
            last = following
        if last is not channel:
            # Shorten the way, so that nothing holds the dead ones in between.
            self._next[channel] = last
        return last


def _default_of(life: Life) -> Any:
    return life.default_channel
