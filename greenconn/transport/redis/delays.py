"""Delayed messages: they wait in a sorted set until they are due, then go into their lists.

``greenconn.delayed`` has them by the time at which they are due, on the server's clock, so they outlive
clients and, as far as the server keeps its data, the server.  Each is one text: the list that it goes
to, the declaration of its queue if that may end by itself, and the message.

A link that knows of delayed messages moves what is due: one that has published some, and one whose
sweeper has found some that another process left behind, which it looks for a few times in a lease.  Of
several that do so the script lets one move each message.  A link that knows of none asks for nothing.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Final

from gevent.event import Event

from greenconn.green.supervisor import OnDemand
from greenconn.transport.redis.commands import Commands
from greenconn.transport.redis.errors import PASSING, CommandRefused
from greenconn.transport.redis.scripts import CLAIM_BYTES, CLAIM_COUNT, DELAY, PROMOTE
from greenconn.wire.resp import pack

__all__ = ["Delays", "delayed_text"]

logger = logging.getLogger("greenconn.transport.redis")

#: Seconds between two looks at least, and after the server has refused one.
LEAST_PAUSE: Final = 0.01
AFTER_REFUSAL: Final = 5.0
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

    __slots__ = ("_commands", "_due_at", "_has_failed", "_is_sooner", "_keys", "_moving")

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._moving = OnDemand("redis-delays", self._move)
        #: When the next one is due, by the monotonic clock.
        self._due_at = 0.0
        self._is_sooner = Event()
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
        """Look after a message that is due in so long.  Never switches."""
        due_at = monotonic() + seconds
        if self._moving.greenlet is None:
            self._due_at = due_at
            self._moving.start()
        elif due_at < self._due_at:
            self._due_at = due_at
            self._is_sooner.set()

    def find(self) -> None:
        """Look after what other processes have left behind, if there is something.  May switch."""
        if self._moving.greenlet is None:
            delayed = self._commands.keys.delayed
            if self._commands.call(pack(b"EXISTS", delayed), what="sweeping"):
                self.expect(0.0)

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
        # What is stored from now on may be missed by the script, but not by ``expect``.
        self._due_at = float("inf")
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
        own = max(self._due_at - monotonic(), 0.0)
        if left_ms < 0:
            return None if own == float("inf") else own
        return min(left_ms / 1000, own)

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
