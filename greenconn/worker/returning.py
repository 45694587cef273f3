"""Returned messages: messages that a consumer has put back or given up, and that come back at once.

Whatever puts a message back (``on_error="requeue"``, the handler itself, a kill of the handler, a
dead-letter exchange that leads to the same queue), the broker may deliver it again at once, without end.
That would keep the process, the broker and the log busy.  So a message that comes back waits, each
time twice as long.
"""

from __future__ import annotations

from collections.abc import Hashable
from time import monotonic
from typing import TYPE_CHECKING, Final

from greenconn.worker.failures import ATTEMPTS

if TYPE_CHECKING:
    from greenconn.message import Message

#: Seconds of the first pause and of the longest.
FIRST: Final = 0.01
LONGEST: Final = 5.0
#: Seconds after which a message that comes back is one that came for the first time.
FORGOTTEN_AFTER: Final = 60.0
#: Messages that are remembered.
KEPT: Final = 1000
#: Headers of messages that came before.
_OF_RETURNED: Final = (ATTEMPTS, "x-death", "x-delivery-count")


class ReturnedMessages:
    """The messages of one consumer that may come back, each with its pause.  Nothing here switches."""

    def __init__(self) -> None:
        #: Message -> seconds of its pause, and the end of the pause on the monotonic clock.
        self._pauses: dict[Hashable, tuple[float, float]] = {}

    def note(self, message: Message) -> None:
        """Note that *message* goes back now, or elsewhere."""
        key, now = _key_of(message), monotonic()
        pause, end = self._pauses.pop(key, (0.0, 0.0))
        pause = min(2 * pause, LONGEST) if pause and now < end + FORGOTTEN_AFTER else FIRST
        if len(self._pauses) >= KEPT:
            del self._pauses[next(iter(self._pauses))]  # the one that was noted first
        self._pauses[key] = pause, now + pause

    def left(self, message: Message) -> float:
        """Return the seconds that *message* must wait until it may be handled."""
        # The bodies of two messages may be the same.
        if message.properties.get("message_id") is None and not (
            message.delivery_info.get("redelivered")
            or any(name in message.headers for name in _OF_RETURNED)
        ):
            return 0.0
        _, end = self._pauses.get(_key_of(message), (0.0, 0.0))
        return max(0.0, end - monotonic()) if end else 0.0


def _key_of(message: Message) -> Hashable:
    """Return what a message has in common with the same message when it comes back."""
    message_id = message.properties.get("message_id")
    if message_id is not None:
        return str(message_id)
    body = message.body
    return hash(body if isinstance(body, (bytes, str)) else bytes(body or b""))
