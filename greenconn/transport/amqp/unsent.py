"""Messages without confirms that were not sent when their connection was lost.

A publish without confirm returns when its message was written; until the socket has taken it, it waits
in this process.  No record is kept of it, so that this costs nothing: when the connection is lost, the
messages are parsed from the bytes that were not sent.  A mark behind a message distinguishes two kinds:
those whose caller awaits the confirm and so gets an error, and those whose caller asked for retries.
The latter are sent again, in order, on the channel that replaces theirs, before it can be used
otherwise.  For all others the next publish on the channel raises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from amqp.serialization import loads

from greenconn.abc import DeadlineLike, Session
from greenconn.exceptions import RecoverableChannelError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.transport.amqp.message import Outgoing
from greenconn.wire.amqp import BASIC_PUBLISH, FrameParser

__all__ = ["AGAIN", "AWAITED", "Found", "Resending", "Unsent", "find_unsent", "sentence"]

#: Marks behind a message: send it again; its caller gets the outcome.
AGAIN: Final = memoryview(b"")
AWAITED: Final = memoryview(b"")

#: A message and its mark: ``(arguments with their 4 bytes of ids, header, body, mark or None)``.
Found: TypeAlias = "tuple[bytes, bytes, bytes, memoryview | None]"


def find_unsent(buffers: Iterable[bytes | memoryview], begun: int) -> dict[int, list[Found]]:
    """Return the messages that have not wholly left, by channel.  Never switches.

    Arguments:
        buffers: as they were written, from the beginning of a frame.
        begun: how many bytes of them have left.
    """
    parser, end = FrameParser(0, body_limit=1 << 62), 0
    found: dict[int, list[Found]] = {}
    mine: list[Found] | None = None
    for buffer in buffers:
        if buffer is AGAIN or buffer is AWAITED:
            if mine is not None:
                mine[-1] = (*mine[-1][:3], buffer)
            continue
        mine, end = None, end + len(buffer)
        for channel, ids, payload, header, body in parser.feed(bytes(buffer)):
            if ids == BASIC_PUBLISH and end > begun:
                assert header is not None
                assert body is not None
                mine = found.setdefault(channel, [])
                mine.append((payload, header, body, None))
    return found


class Unsent:
    """Messages of one channel that nobody awaits and that have not left.

    Attributes:
        refusal: why the broker closed the channel, if it was for such a message.
        count: messages that had not left when the connection was lost.
        again: those to be sent again, as arguments of ``basic_publish``.
    """

    __slots__ = ("again", "count", "refusal")

    def __init__(self) -> None:
        self.refusal: BaseException | None = None
        self.count = 0
        self.again: deque[tuple[Any, ...]] = deque()

    def take(self, found: Iterable[Found]) -> None:
        """Take over what was found."""
        for payload, header, body, mark in found:
            if mark is AGAIN:
                _, exchange, routing_key, mandatory, immediate = loads("Bssbb", payload, 4)[0]
                message = Outgoing.packed_as(header[12:], body)
                self.again.append((message, exchange, routing_key, mandatory, immediate))
            elif mark is None:
                self.count += 1

    def forgive_last(self) -> None:
        """Forget the last one: its caller gets an error, and it has no mark yet."""
        self.count = max(self.count - 1, 0)

    @property
    def hint(self) -> str:
        """End of the error text for callers after the end of the channel."""
        count = self.count + len(self.again)
        return f"; {sentence(count)}" if count else ""

    def error(self, where: str) -> Exception | None:
        """Return the error for the next publish; None: there is none."""
        if self.refusal is not None:
            error: Exception = RecoverableChannelError(
                f"{where}: a message published without confirm is lost, and those after it, since "
                f"the broker closed the channel because of it: {self.refusal}"
            )
            error.__cause__ = self.refusal
        elif self.count:
            text = f"{where}: {sentence(self.count)}: publish again, or with confirms"
            error = RecoverableConnectionError(text)
        else:
            return None
        return error

    def forget(self) -> None:
        """Forget all of them."""
        self.refusal = None
        self.count = 0
        self.again.clear()


def sentence(count: int) -> str:
    """Return the text about *count* lost messages."""
    which = "1 message that was" if count == 1 else f"{count} messages that were"
    return f"{which} published without confirm had not been sent when the connection was lost"


class Resending:
    """Member of a session that has the messages of a lost channel sent again.

    Arguments:
        channel: that is lost.
        session: of its connection.
    """

    __slots__ = ("_channel", "_session")

    def __init__(self, channel: Any, session: Session) -> None:
        self._channel = channel
        self._session = session

    def __repr__(self) -> str:
        return f"<messages of {self._channel!r}>"

    def recover(self, deadline: DeadlineLike) -> None:
        """Have the channel's successor send them.  May switch."""
        self._session.successor(self._channel, Deadline(deadline.left()))
        self._session.discard(self)
