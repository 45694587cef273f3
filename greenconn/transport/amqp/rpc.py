"""Calls of a channel that wait for a reply: first in, first out.

The broker answers the methods of a channel in the order in which they were sent, so a reply belongs to
the oldest call.  There is one exception: ``basic.consume`` and ``basic.cancel`` are answered by the
queue (in RabbitMQ a process of its own), so their replies may be overtaken by those to later methods.
They name the consumer, which tells whose they are.

A greenlet that is killed while it waits leaves its call in the line: its late reply is taken, and
undone where it left something behind (see ``Call.undo``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from greenconn.exceptions import ChannelError, RecoverableChannelError
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot

__all__ = ["Call", "CallLine", "Ids", "OnReply", "Reply", "Undo"]

#: ``class_id << 16 | method_id``
Ids: TypeAlias = int
#: ``(ids, arguments with their 4 bytes of ids, header, body)``
Reply: TypeAlias = "tuple[Ids, bytes, bytes | None, bytes | None]"
#: Called with a reply that nobody waits for any more, by the reader or by a caller that was killed
#: when the reply had come but it had not run: it must not switch.
Undo: TypeAlias = "Callable[[Reply], None]"
#: Called by the reader with each reply, before its caller runs: it must not switch.
OnReply: TypeAlias = "Callable[[Reply], None]"


class Call:
    """A method that was sent and whose reply is due.

    Arguments:
        request: ids of the method that was sent.
        expected: ids of the replies that answer it.
        undo: what to do with a reply when its caller has left.
        on_reply: what to note as soon as it comes.
        tag: the consumer, where a queue answers: later calls may be answered before this one.
    """

    __slots__ = ("expected", "on_reply", "request", "slot", "tag", "undo")

    def __init__(
        self,
        request: Ids,
        expected: frozenset[Ids],
        undo: Undo | None = None,
        on_reply: OnReply | None = None,
        tag: bytes | None = None,
    ) -> None:
        self.request = request
        self.expected = expected
        self.undo = undo
        self.on_reply = on_reply
        self.tag = tag
        self.slot: Slot[Reply] = Slot()

    def takes(self, reply: Reply) -> bool:
        """Whether *reply* may be the answer to this call."""
        ids, payload, _, _ = reply
        tag = self.tag
        return ids in self.expected and (tag is None or payload[5 : 5 + payload[4]] == tag)

    def give_up(self) -> None:
        """The caller was killed: if the reply has come nevertheless, it is undone."""
        if self.undo is not None and self.slot.has_value:
            self.undo(self.slot.value)

    def abandon(self) -> None:
        """Nobody will wait for this one: it only keeps its place in the line."""
        try:
            self.slot.wait(_ENDED)
        except TimeoutError:
            pass


class CallLine:
    """The calls of one channel that have not been answered, oldest first."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def append(self, call: Call) -> None:
        """Put *call* in line; in the same step as its method is written."""
        self._calls.append(call)

    def settle(self, reply: Reply) -> bool:
        """Hand *reply* to the call that it answers.  False if there is none.  Never switches."""
        for call in self._calls:
            if call.takes(reply):
                break
            if call.tag is None:
                return False
        else:
            return False
        self._calls.remove(call)
        if call.on_reply is not None:
            call.on_reply(reply)
        if not call.slot.offer(reply) and call.undo is not None:
            call.undo(reply)
        return True

    def settle_last(self, reply: Reply) -> None:
        """Hand *reply* to the last call: nothing else will be answered.  Never switches."""
        calls, self._calls = self._calls, deque()
        if calls:
            calls[-1].slot.offer(reply)

    def release(self, cause: BaseException) -> None:
        """Tell all who wait *cause*: we close the channel.  Replies are still noted.  Never switches."""
        for call in self._calls:
            call.slot.fail(cause)

    def fail(self, cause: BaseException, request: Ids | None = None) -> bool:
        """End all calls: the channel is gone.  Never switches.

        Arguments:
            cause: the broker's error, or the reason why the connection ended.
            request: ids of the method that the broker blames.  The oldest call that awaits an answer
                gets *cause* itself if it sent that method; the others get an error that names it: it
                is not theirs.  None gives *cause* to all.

        Returns:
            Whether a caller that still waits got the broker's error as its own.
        """
        calls, self._calls = self._calls, deque()
        owned, may_be_it = False, request is not None
        for call in calls:
            if request is None:
                call.slot.fail(cause)
            elif may_be_it and call.request == request:
                owned = call.slot.fail(cause)
                may_be_it = False
            else:
                call.slot.fail(not_yours(cause))
                # What a queue answers may have been done, and the answer be on its way.
                may_be_it = may_be_it and call.tag is not None
        return owned


def not_yours(cause: BaseException) -> ChannelError:
    """The error of a bystander: its channel was closed because of another call."""
    error = RecoverableChannelError(f"the channel was closed because of another call: {cause}")
    error.__cause__ = cause
    return error


_ENDED = Deadline(0.0)


def ids_of(method: tuple[int, int]) -> Ids:
    """Class and method id as one number."""
    return method[0] << 16 | method[1]


def expected_of(methods: Any) -> frozenset[Ids]:
    """The ids of one method or of a list of them."""
    if isinstance(methods, list):
        return frozenset(ids_of(each) for each in methods)
    return frozenset((ids_of(methods),))
