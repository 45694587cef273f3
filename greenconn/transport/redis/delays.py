"""Delayed messages: they wait in a sorted set until they are due, then go into their lists.

``greenconn.delayed`` has them by the time at which they are due, on the server's clock, so they outlive
clients and, as far as the server keeps its data, the server.  Each is one text: the list that it goes
to, the declaration of its queue if that may end by itself, and the message.

A link that has stored delayed messages, or that consumes, moves what is due.  Another process may store
an earlier one than those that it waits for, and end.  So it looks again whenever the server announces
that the key has changed, as it does for keys that the link has read (see ``invalidations``), and every
few seconds in case it did not; where the server cannot push, every second.

The script lets one link move each message.  Those who have stored none that is due leave the first
attempt to those who have, and look twenty times a second at most, however many messages come.
"""

from __future__ import annotations

import logging
from random import uniform
from time import monotonic
from typing import Any, Final

from gevent.event import Event

from greenconn.green.supervisor import OnDemand
from greenconn.transport.redis.commands import Commands
from greenconn.transport.redis.errors import PASSING, CommandRefused
from greenconn.transport.redis.scripts import CLAIM_BYTES, CLAIM_COUNT, DELAY, PROMOTE
from greenconn.wire.resp import pack

logger = logging.getLogger("greenconn.transport.redis")

#: Seconds between two looks at least, and after the server has refused one.
LEAST_PAUSE: Final = 0.01
AFTER_REFUSAL: Final = 5.0
#: Seconds between two looks because of what others have stored.
OTHERS_PAUSE: Final = 0.1
#: Seconds between two looks at most, where the server announces changes, and where it cannot.
SAFETY: Final = (5.0, 10.0)
POLL: Final = 1.0
#: The operation, for messages.
_WHAT: Final = "moving delayed messages"


def delayed_text(key: bytes, declaration: bytes | None, raw: bytes) -> bytes:
    """Return what is stored of a delayed message; see :meth:`Delays.put_command`."""
    needed = declaration or b""
    return b"%d:%d:%b%b%b" % (len(key), len(needed), key, needed, raw)


class Delays:
    """The delayed messages that one link looks after.

    Arguments:
        commands: of the link.
    """

    __slots__ = (
        "_commands",
        "_due_at",
        "_has_failed",
        "_is_consuming",
        "_is_sooner",
        "_keys",
        "_looked_at",
        "_moving",
        "_own_until",
    )

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._moving = OnDemand("redis-delays", self._move)
        #: When it looks next, looked last, and when the last is due that this link has stored, by the
        #: monotonic clock.
        self._due_at = self._looked_at = self._own_until = 0.0
        self._is_sooner = Event()
        self._is_consuming = False
        self._has_failed = False
        #: The lists and declarations of what was due last.
        self._keys: tuple[bytes, ...] = ()

    def put_command(
        self, key: bytes, declaration: bytes | None, raw: bytes, seconds: float
    ) -> bytes:
        """Return the command that stores a delayed message; it does not need a loaded script.

        Arguments:
            key: of the list.
            declaration: key of the declaration that there must be when it is due; None: it need not.
            seconds: of the delay.
        """
        delayed = self._commands.keys.delayed
        text = delayed_text(key, declaration, raw)
        return pack(b"EVAL", DELAY.text, 1, delayed, round(seconds * 1000), text)

    def expect(self, seconds: float) -> None:
        """Look after a message that was stored, and is due in so long.  Never switches."""
        due_at = monotonic() + seconds
        self._own_until = max(self._own_until, due_at)
        if self._moving.greenlet is None:  # others may have stored earlier ones
            due_at = min(due_at, self._looked_at + OTHERS_PAUSE)
        self._look_at(due_at)

    def find(self) -> None:
        """Look after what others store from now on, and what they have left behind.  Never switches."""
        self._is_consuming = True
        if self._moving.greenlet is None:
            self._commands.pipeline.post(pack(b"EXISTS", self._commands.keys.delayed), self._found)

    def _found(self, reply: Any) -> None:
        # In the reader.  An error is that of the first look, too, which tells it.
        if reply and self._commands.lost is None:
            self.changed()

    def changed(self) -> None:
        """Look again soon, as others may have stored an earlier message.  Never switches."""
        if self._moving.greenlet is None:
            if not self._is_consuming:
                return
        elif self._has_failed:
            return
        self._look_at(self._looked_at + OTHERS_PAUSE)

    def _look_at(self, at: float) -> None:
        if self._moving.greenlet is None:
            self._due_at = at
            self._moving.start()
        elif at < self._due_at:
            self._due_at = at
            self._is_sooner.set()

    def stop(self) -> None:
        """End.  Never switches."""
        self._moving.end()

    def _move(self) -> None:
        commands = self._commands
        while commands.lost is None:
            left = self._due_at - monotonic()
            self._is_sooner.clear()
            if left > 0 and self._is_sooner.wait(left):
                continue
            seconds = self._promote()
            if seconds is None:
                return
            self._due_at = monotonic() + max(seconds, LEAST_PAUSE)

    def _promote(self) -> float | None:
        """Move what is due, and return the seconds until there is more; None: none is left."""
        commands = self._commands
        # What is stored from now on may be missed by the script, but not by ``expect`` and ``changed``.
        self._due_at = float("inf")
        self._looked_at = monotonic()
        try:
            left_ms = self._run_script()
        except PASSING as exc:
            if commands.lost is not None:
                return None
            if not self._has_failed:
                logger.error(
                    "%s: delayed messages are not delivered: %s",
                    commands.where,
                    exc,
                    extra={"connection": commands.where},
                )
            self._has_failed = True
            return AFTER_REFUSAL
        except Exception:
            if commands.lost is None:
                raise
            return None  # it ended with an error of another kind
        self._has_failed = False
        now = monotonic()
        own = max(self._due_at - now, 0.0)
        if left_ms < 0:
            return None if own == float("inf") else own
        seconds = left_ms / 1000
        if seconds and now + seconds > self._own_until:
            seconds += uniform(0.5, 1.0) * OTHERS_PAUSE
        return min(seconds, own, uniform(*SAFETY) if commands.is_tracking else POLL)

    def _run_script(self) -> int:
        """Move what is due, and return the milliseconds until there is more; -1: none is left."""
        commands = self._commands
        refused: frozenset[bytes] = frozenset()
        while True:
            try:
                reply: int | list[bytes] = commands.run(
                    PROMOTE,
                    (commands.keys.delayed, *self._keys),
                    CLAIM_COUNT,
                    CLAIM_BYTES,
                    *refused,
                    what=_WHAT,
                )
            except CommandRefused:
                found = frozenset(key for key in self._keys if self._is_refused(key))
                if not found:
                    raise  # not because of a queue
                refused |= found
                self._keys = tuple(key for key in self._keys if key not in found)
                continue
            if isinstance(reply, int):
                return reply
            self._keys, refused = tuple(dict.fromkeys(reply)), frozenset()

    def _is_refused(self, key: bytes) -> bool:
        """Return whether a script of this user may not have a key.  May switch."""
        try:
            self._commands.call(pack(b"EVAL", b"return 1", 1, key), what=_WHAT)
        except CommandRefused:
            return True
        return False
