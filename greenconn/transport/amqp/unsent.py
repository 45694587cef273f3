"""Messages that nobody confirms and that had not left when their connection was lost.

A publish without confirm returns when its message was written; until the socket has taken it, it waits
in this process.  Each is noted with the position in the output at which it ends.  When the connection
is lost, those that end beyond what has left are known to be lost.  Where their caller asked for retries
they are sent again, in their order, on the channel that takes this one's place, before anybody else
gets that; of the others the next publish there is told.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from greenconn.abc import DeadlineLike
from greenconn.green.deadline import Deadline

if TYPE_CHECKING:
    from greenconn.green.writer import Writer

__all__ = ["Resending", "Unsent", "sentence"]


class Unsent:
    """The unconfirmed messages of one channel that may not have left.

    Arguments:
        writer: of its connection.

    Attributes:
        positions: where each message ends in the output; appended to after each that leaves output
            pending, pruned or cleared now and then.
    """

    __slots__ = ("_kept", "_writer", "positions")

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.positions: deque[int] = deque()
        #: Those that are sent again, by their position, with their arguments.
        self._kept: deque[tuple[int, tuple[Any, ...]]] = deque()

    def prune(self) -> None:
        """Forget those that have left.  Never switches."""
        positions, kept, left = self.positions, self._kept, self._writer.left
        while positions and positions[0] <= left:
            positions.popleft()
        while kept and kept[0][0] <= left:
            kept.popleft()

    def keep(self, publish: tuple[Any, ...]) -> None:
        """Send what was written last again if it is lost; without a switch in between.

        Arguments:
            publish: the arguments of ``basic_publish``.
        """
        position = self._writer.written
        if self.positions and self.positions[-1] == position:
            self._kept.append((position, publish))

    def lost(self) -> tuple[int, deque[tuple[Any, ...]]]:
        """After the end of the connection: how many are lost, and those to be sent again, once."""
        count = self.count
        kept = deque(publish for _, publish in self._kept)
        self.forget()
        return count - len(kept), kept

    @property
    def count(self) -> int:
        """How many have not left."""
        self.prune()
        return len(self.positions)

    @property
    def hint(self) -> str:
        """The end of a message for who uses the channel after its end."""
        return f"; {sentence(count)}" if (count := self.count) else ""

    @property
    def has_kept(self) -> bool:
        """Whether there are some to be sent again if the connection has ended now."""
        self.prune()
        return bool(self._kept)

    def put_back(self, kept: deque[tuple[Any, ...]]) -> None:
        """Sending these again has failed: the channel after the next one has to."""
        beyond = self._writer.written + 1  # what was to be sent again has not left
        self.positions.extend(beyond for _ in kept)
        self._kept.extend((beyond, publish) for publish in kept)

    def forget(self) -> None:
        """All have left, or are no business of ours."""
        self.positions.clear()
        self._kept.clear()


def sentence(count: int) -> str:
    """What to tell of *count* lost messages."""
    which = "1 message that was" if count == 1 else f"{count} messages that were"
    return f"{which} published without confirm had not left when the connection ended"


class Resending:
    """What a session restores of a channel that has messages to be sent again.

    Arguments:
        channel: that is lost.
        session: of its connection.
    """

    __slots__ = ("_channel", "_session")

    def __init__(self, channel: Any, session: Any) -> None:
        self._channel = channel
        self._session = session

    def __repr__(self) -> str:
        return f"<messages of {self._channel!r}>"

    def recover(self, deadline: DeadlineLike) -> None:
        """Have the channel's successor send them.  May switch."""
        self._session.successor(self._channel, Deadline(deadline.left()))
        self._session.discard(self)
