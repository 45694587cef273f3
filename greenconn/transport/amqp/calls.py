"""The methods that a channel sends, and the wait for their replies: first in, first out.

Every switch (waiting for the writer) comes before the first byte.  Writing a method and appending its
call to the pending ones is one step without a switch, so replies reach their callers in order.

The broker answers the methods of a channel in the order in which they were sent, so a reply belongs to
the oldest call.  There is one exception: the queue itself (in RabbitMQ a process of its own) replies to
``basic.consume`` and ``basic.cancel``, so replies to later methods may overtake them.  They name the
consumer, by which they are matched.

The call of a greenlet that is killed while it waits stays pending: its late reply is matched to it, and
undone where it left something behind (see ``Call.undo``).

A greenlet that has many requests sends them through a :class:`Pipeline`: they take the time of few round
trips together.

What a channel begins with (its opening, a prefetch, confirm mode) is written ahead of the first request
without a wait for its reply: see ``Call.leads``.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from amqp.serialization import dumps
from gevent import get_hub

from greenconn.exceptions import (
    ChannelError,
    ContentTooLarge,
    FrameError,
    FrameSyntaxError,
    RecoverableChannelError,
)
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.wire.amqp import (
    Ids,
    Reply,
    Signature,
    expected_of,
    ids_of,
    is_finite,
    method_frame,
    reply_arguments,
)

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from greenconn.transport.amqp.acks import Acks
    from greenconn.transport.amqp.channel import Channel
    from greenconn.transport.amqp.link import AmqpLink

#: Called with a reply whose caller has left, by the reader or by a caller that was killed
#: when the reply had come but it had not run: it must not switch.
Undo: TypeAlias = "Callable[[Reply], None]"
#: Called by the reader with each reply, before its caller runs: it must not switch.
OnReply: TypeAlias = "Callable[[Reply], None]"

_ENDED = Deadline(0.0)


class Call:
    """A method that was sent and whose reply is due.

    Arguments:
        request: ids of the method that was sent.
        expected: ids of its possible replies.
        undo: called with the reply when its caller has left.
        on_reply: called with the reply as soon as it comes.
        tag: the consumer, where the queue replies: later calls may have their reply before this one.

    Attributes:
        leads: no greenlet waits for the reply, since calls follow that need what this one asks for.  If
            the broker refuses it, they get the error as their own.
    """

    __slots__ = ("expected", "leads", "on_reply", "request", "slot", "tag", "undo")

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
        self.leads = False
        self.slot: Slot[Reply] = Slot()

    def expects(self, reply: Reply) -> bool:
        """Return whether *reply* may be the reply to this call."""
        ids, payload, _, _ = reply
        tag = self.tag
        return ids in self.expected and (tag is None or payload[5 : 5 + payload[4]] == tag)

    def undo_late_reply(self) -> None:
        """Undo the reply if it has come although the caller was killed."""
        if self.undo is not None and self.slot.has_value:
            self.undo(self.slot.value)

    def abandon(self) -> None:
        """Wait no more: the call keeps its place, so that its reply is not taken for another one's."""
        if self.slot.is_filled:
            return
        try:
            self.slot.wait(_ENDED)
        except TimeoutError:
            pass


class PendingCalls:
    """The calls of one channel without a reply yet, oldest first."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def append(self, call: Call) -> None:
        """Append *call*, in the same step as its method is written."""
        self._calls.append(call)

    def settle(self, reply: Reply) -> bool:
        """Hand *reply* to its call.  False if there is none.  Never switches."""
        for call in self._calls:
            if call.expects(reply):
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
        """Hand *reply* to the last call: no other reply will come.  Never switches."""
        calls, self._calls = self._calls, deque()
        if calls:
            calls[-1].slot.offer(reply)

    def release(self, cause: BaseException) -> None:
        """Raise *cause* in all callers, as we close the channel; replies are noted.  Never switches."""
        for call in self._calls:
            call.slot.fail(cause)

    def are_led_by(self, request: Ids) -> bool:
        """Return whether the oldest call sent *request* for those behind it: see ``Call.leads``."""
        call = self._calls[0] if self._calls else None
        return call is not None and call.leads and call.request == request

    def fail(self, cause: BaseException, request: Ids | None = None) -> bool:
        """End all calls: the channel is gone.  Never switches.

        Arguments:
            cause: the broker's error, or the reason why the connection ended.
            request: ids of the method that the broker blames.  The oldest call without a reply gets
                *cause* itself if it sent that method; the others get an error that names it: it is
                not theirs.  None gives *cause* to all.

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
                call.slot.fail(bystander_error(cause))
                # The queue may have done it, and its reply be on the way.
                may_be_it = may_be_it and call.tag is not None
        return owned


def bystander_error(cause: BaseException) -> ChannelError:
    """Return the error of a bystander: its channel was closed because of another call."""
    error = RecoverableChannelError(f"the channel was closed because of another call: {cause}")
    error.__cause__ = cause
    return error


class Calls:
    """The methods that one channel sends.

    Arguments:
        channel: the channel.
        link: the connection of the channel.
        acks: the acks of the channel; those that are pending are written before each method.

    Attributes:
        payload_limit: bytes that a frame may hold.
        pending: the calls without a reply yet.
    """

    __slots__ = (
        "_acks",
        "_channel",
        "_hub",
        "_link",
        "_number",
        "_writer",
        "payload_limit",
        "pending",
    )

    def __init__(self, channel: Channel, link: AmqpLink, acks: Acks) -> None:
        self.pending = PendingCalls()
        self.payload_limit = (link.frame_max or 0xFFFFFFFF) - 8
        self._channel = channel
        self._number = channel.channel_id
        self._link = link
        self._hub = link.hub_affinity.hub
        self._writer = link.writer
        self._acks = acks

    def send(
        self,
        sig: Signature,
        form: str,
        args: tuple[Any, ...],
        *,
        wait: Signature | list[Signature],
        returns_tuple: bool = False,
        undo: Undo | None = None,
        on_reply: OnReply | None = None,
        abandons: bool | Pipeline = False,
    ) -> Any:
        """Write a method and return its reply.  May switch.

        Arguments:
            form: the types of *args*, as amqp's codec has them.
            wait, returns_tuple, undo, on_reply, abandons: see :meth:`call`.
        """
        self._channel.check_open()
        arguments = self.pack(sig, form, args)
        self.wait_writable()
        return self.call(
            sig,
            arguments,
            wait=wait,
            returns_tuple=returns_tuple,
            undo=undo,
            on_reply=on_reply,
            abandons=abandons,
        )

    def wait_writable(self) -> None:
        """Wait for the turn to write.  May switch.

        Raises:
            WrongHub: the caller is in another thread than the connection.
            RecoverableChannelError, RecoverableConnectionError: the channel is gone by then.
        """
        if get_hub() is not self._hub:
            self._channel.check_hub()
        if self._writer.must_wait:
            self._link.flow_control.wait()
        if self._channel.cause is not None:
            self._channel.check_open()

    def pack(self, sig: Signature, form: str, args: tuple[Any, ...]) -> bytes:
        """Return the arguments of a method, so that nothing can go wrong between the wait and the write.

        Raises:
            ValueError: one does not fit its field.
            ContentTooLarge: all together do not fit into a frame.
        """
        try:
            arguments: bytes = dumps(form, args)
            if not is_finite(args):
                raise FrameSyntaxError("a float in a table must be finite")
        except (struct.error, FrameSyntaxError) as exc:
            # The latter, of amqp, would pass for an error of the connection.
            raise ValueError(f"an argument of method {sig} does not fit its field: {exc}") from exc
        if len(arguments) + 4 > self.payload_limit:
            # The broker would close the whole connection.
            raise ContentTooLarge(
                f"arguments of {len(arguments)} bytes do not fit into one frame", sig
            )
        return arguments

    def call(
        self,
        sig: Signature,
        arguments: bytes = b"",
        *,
        wait: Signature | list[Signature] | None = None,
        returns_tuple: bool = False,
        undo: Undo | None = None,
        on_reply: OnReply | None = None,
        tag: bytes | None = None,
        abandons: bool | Pipeline = False,
    ) -> Any:
        """Write a method after :meth:`wait_writable`.  Switches only to wait for the reply.

        Arguments:
            arguments: those of the method, packed.
            wait: the method of its reply, or a list of them; None: it has no reply.
            returns_tuple: return all arguments of the reply, not the first one.
            undo: called with the reply when the caller was killed before it had it.
            on_reply: called by the reader with the reply.
            tag: see :class:`Call`.
            abandons: do not wait for the reply, and return None; its error is dropped, save in a
                pipeline, which waits.
        """
        call = self.begin(sig, arguments, wait, undo, on_reply, tag)
        if call is None:
            return None
        if abandons:
            if isinstance(abandons, Pipeline):
                abandons.add(call)
            else:
                call.abandon()
            return None
        return self.end(call, returns_tuple=returns_tuple)

    def begin(
        self,
        sig: Signature,
        arguments: bytes,
        wait: Signature | list[Signature] | None = None,
        undo: Undo | None = None,
        on_reply: OnReply | None = None,
        tag: bytes | None = None,
        *,
        leads: bool = False,
    ) -> Call | None:
        """Write a method and append its call in one step.  Never switches.

        Arguments:
            leads: do not wait for the reply, which is not undone; see :class:`Call`.

        Returns:
            The call whose reply is to be waited for; None if there is none to wait for.
        """
        if self._acks.ledger.pending:
            self._acks.flush()
        frame = method_frame(self._number, sig, arguments)
        call = None
        if wait:
            call = Call(ids_of(sig), expected_of(wait), undo, on_reply, tag)
            self.write(frame, call)
        else:
            self._writer.write(frame)
        if self._channel.cause is not None:
            self._channel.check_open()  # the connection ended in that very write
        if call is not None and leads:
            call.leads = True
            call.undo = None
            call.abandon()
            return None
        return call

    def write(self, frame: bytes, call: Call) -> None:
        """Append *call* and write its method in one step.  Never switches."""
        try:
            self.pending.append(call)
            self._writer.write(frame)
        except BaseException as exc:
            # From a signal: replies to others might be taken for this one's.
            self._link.interruption = exc
            call.abandon()
            self._channel.interrupted("a call", exc)
            raise

    def end(self, call: Call, *, returns_tuple: bool = False) -> Any:
        """Wait for the reply to *call*, and return it.  May switch."""
        try:
            ids, payload, header, body = self._link.wait_reply(call.slot, self._number, None)
        except BaseException:
            call.undo_late_reply()
            raise
        try:
            args = reply_arguments(ids, payload)
        except FrameError as exc:
            self._link.end(exc)  # the two sides no longer agree
            raise
        if header is not None:
            args.append((payload, header, body))
        return args if returns_tuple else (args and args[0])


class Pipeline:
    """Requests of one greenlet on one channel, sent without a wait for each reply; a context manager.

    The broker handles them in order, and ignores all behind the one for which it closes the channel.
    So an error belongs to the oldest request without a reply, and none behind it was handled.  Where
    the broker ends the whole connection, replies to earlier ones may be lost with it.

    Each reply has ``reply_timeout`` from the one before.  What is still due at the end, as when the
    greenlet was killed, is abandoned: its reply is undone where it left something behind.

    Arguments:
        channel: the channel, for its methods.
        calls: the calls of the channel.
    """

    __slots__ = ("_calls", "_due", "channel")

    def __init__(self, channel: Channel, calls: Calls) -> None:
        self.channel = channel
        self._calls = calls
        self._due: deque[Call] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        due, self._due = self._due, deque()
        for call in due:
            call.undo_late_reply()
            call.abandon()

    @property
    def due(self) -> int:
        """The number of requests whose reply was not received."""
        return len(self._due)

    def send(self, method: Callable[..., object], **arguments: Any) -> None:
        """Send a request.  May switch, before the first byte only.

        Arguments:
            method: of the channel, one that has ``nowait`` and asks the broker for a reply.
            arguments: those of *method*.

        Raises:
            Exception: nothing was sent; of an earlier request that failed, :meth:`receive` tells.
        """
        method(**arguments, nowait=self)

    def add(self, call: Call) -> None:
        """Have :meth:`receive` wait for *call*, which was just written.  Never switches."""
        self._due.append(call)

    def receive(self) -> list[Any]:
        """Wait for the reply to the oldest request, and return its arguments.  May switch.

        Raises:
            ChannelError: the broker's, if it blames this request.
            TimeoutError: it did not reply in time.
            ConnectionError: the connection is gone.
        """
        reply: list[Any] = self._calls.end(self._due.popleft(), returns_tuple=True)
        return reply

    def finish(self) -> None:
        """Wait for all replies.  May switch.

        Raises:
            Exception: as :meth:`receive`, for the oldest request that failed.
        """
        while self._due:
            self.receive()
