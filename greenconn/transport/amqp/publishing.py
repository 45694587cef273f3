"""Publishing on a channel: the fast path, and confirms.

A message is one ``bytes.join`` and one append: the method frame with the start of the next one is kept
for each (exchange, routing key), the property block for each kind of message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from amqp import spec
from amqp.serialization import dumps

from greenconn.exceptions import (
    ContentTooLarge,
    PublishNacked,
    PublishTimeout,
    RecoverableChannelError,
    Unroutable,
)
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.transport.amqp.calls import not_yours
from greenconn.transport.amqp.message import Outgoing
from greenconn.transport.amqp.methods import Reply, ids_of
from greenconn.transport.amqp.properties import text_of
from greenconn.transport.amqp.unsent import Found, Resending, Unsent, sentence
from greenconn.wire.amqp import content_frames, method_frame
from greenconn.wire.confirms import ConfirmSequencer

if TYPE_CHECKING:
    from greenconn.green.writer import Writer
    from greenconn.transport.amqp.calls import Calls
    from greenconn.transport.amqp.port import ChannelPort, LinkPort

__all__ = ["PendingConfirm", "Publisher"]

logger = logging.getLogger("greenconn.transport.amqp")
_tag_and_flags = Struct(">QB")
# End of the method frame's payload is in the head; then: header frame, and the body frame's start.
_header = Struct(">BHIHHQ")
_body = Struct(">BBHI")
_PUBLISH: Final = ids_of(spec.Basic.Publish)
_ACK: Final = ids_of(spec.Basic.Ack)
_HEADS_KEPT: Final = 1024
#: Bodies of this size or more are not copied into one piece with their frames.
_LARGE: Final = 65536


class PendingConfirm:
    """A publish that the broker has not confirmed; one greenlet calls ``wait``, once.

    Arguments:
        link: the connection.
        exchange, routing_key, mandatory: those of the publish.
        properties: the property block of the message.
        body: its body.
    """

    __slots__ = (
        "body",
        "exchange",
        "is_awaited",
        "link",
        "mandatory",
        "properties",
        "returned",
        "routing_key",
        "slot",
    )

    def __init__(
        self,
        link: LinkPort,
        exchange: str | bytes,
        routing_key: str | bytes,
        mandatory: bool,
        properties: bytes,
        body: bytes,
    ) -> None:
        # A return names them as text.
        if isinstance(exchange, bytes):
            exchange = text_of(exchange)
        if isinstance(routing_key, bytes):
            routing_key = text_of(routing_key)
        self.exchange = exchange
        self.routing_key = routing_key
        self.mandatory = mandatory
        self.properties = properties
        self.body = body
        self.link = link
        #: ``(code, text)`` of the broker's return, or None.
        self.returned: tuple[int, str] | None = None
        #: Whether a caller gets the outcome from ``wait``.
        self.is_awaited = True
        #: Filled with True for an ack, False for a nack.
        self.slot: Slot[bool] = Slot()

    def wait(self, deadline: Deadline) -> None:
        """Wait until the broker has taken the message over.  May switch.

        Arguments:
            deadline: one without an end is the connection's ``confirm_timeout``.

        Raises:
            PublishNacked, Unroutable, PublishTimeout, ChannelError, ConnectionError: see
                ``Channel.basic_publish_confirm``.
        """
        slot, budget = self.slot, self.link.budget
        if deadline.timeout is None:
            deadline = Deadline(self.link.options.confirm_timeout)
        budget.begin_wait()
        try:
            is_taken = slot.wait(deadline)
        except TimeoutError:
            if not slot.has_left:
                raise
            raise PublishTimeout(
                f"{self.link.where} did not confirm {self._what()} within {deadline.timeout:g} s: "
                f"it may have the message",
                maybe_delivered=True,
            ) from None
        finally:
            budget.end_wait()
        if self.returned is not None:
            code, text = self.returned
            raise Unroutable(
                f"{text}: {self._what()} reached no queue",
                code=code,
                exchange=self.exchange,
                routing_key=self.routing_key,
            )
        if not is_taken:
            raise PublishNacked(f"{self.link.where} refused (nack) {self._what()}")

    def _what(self) -> str:
        return f"a message to exchange {self.exchange!r} with routing key {self.routing_key!r}"


class Publisher:
    """The messages that leave on one channel, and the broker's confirms.

    Arguments:
        channel: the channel.
        link: the connection of the channel.
        calls: the calls of the channel.

    Attributes:
        confirms: the publishes that the broker counts; None: it does not confirm.
        unsent: what is left behind when the connection ends.
    """

    __slots__ = (
        "_calls",
        "_channel",
        "_heads",
        "_link",
        "_number",
        "_room",
        "_small",
        "confirms",
        "unsent",
    )

    def __init__(self, channel: ChannelPort, link: LinkPort, calls: Calls) -> None:
        self.confirms: ConfirmSequencer[PendingConfirm] | None = None
        self.unsent = Unsent()
        self._channel = channel
        self._number = channel.channel_id
        self._link = link
        self._calls = calls
        self._heads: dict[tuple[str, str, bool, bool], bytes] = {}
        self._room = calls.room
        # What is larger takes the way on which its size is checked.
        self._small = min(self._room, _LARGE, link.options.max_message_size)

    def write(
        self,
        writer: Writer,
        message: Outgoing,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        pending: PendingConfirm | None,
    ) -> None:
        """Frame a message, count it and append it in one step.  Never switches.

        Arguments:
            pending: in confirm mode, what waits for its answer; None: nobody does.
        """
        head = self._heads.get((exchange, routing_key, mandatory, immediate))
        if head is None:
            head = self._make_head(exchange, routing_key, mandatory, immediate)
        body, packed = message.body, message.packed
        size, block, number = len(body), 12 + len(message.packed), self._number
        frames: bytes | list[Any]
        if size and size + block <= self._small:
            write: Callable[[Any], None] = writer.write
            frames = b"".join(
                (
                    head,
                    _header.pack(2, number, block, 60, 0, size),
                    packed,
                    _body.pack(0xCE, 3, number, size),
                    body,
                    b"\xce",
                )
            )
        else:
            if block > self._room:
                raise ContentTooLarge(
                    f"headers and properties of {block} bytes do not fit into a frame", (60, 40)
                )
            self._link.check_size(size)
            write = writer.write_many
            frames = content_frames(head, number, packed, body, self._link.frame_max)
        confirms = self.confirms
        if confirms is None:
            write(frames)
            return
        try:
            if pending is None:
                confirms.skip()
            else:
                confirms.expect(pending)
            write(frames)
        except BaseException as exc:
            # From a signal: the broker's count may not be ours any more.
            self._channel.interrupted("a publish", exc)
            raise

    def _make_head(
        self, exchange: str, routing_key: str, mandatory: bool, immediate: bool
    ) -> bytes:
        names: tuple[tuple[str, Any], ...] = (("exchange", exchange), ("routing_key", routing_key))
        for name, value in names:
            if not isinstance(value, (str, bytes)):
                raise TypeError(f"{name} must be text, got {value!r}")
            raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
            if len(raw) > 255:
                raise ValueError(f"{name} must have at most 255 bytes, got {len(value)} characters")
        head = method_frame(
            self._number,
            spec.Basic.Publish,
            dumps("Bssbb", (0, exchange, routing_key, mandatory, immediate)),
        )
        if len(self._heads) >= _HEADS_KEPT:
            self._heads.clear()
        self._heads[exchange, routing_key, mandatory, immediate] = head
        return head

    def select_confirms(self, *, nowait: bool) -> None:
        """Have the broker confirm from now on, for a caller that has passed the gate.

        May switch, not with *nowait*.  Nothing switches up to the write, so that no other publish is
        counted before it.
        """
        arguments = dumps("b", (nowait,))
        call = None
        try:
            self.confirms = ConfirmSequencer()
            call = self._calls.begin(
                spec.Confirm.Select, arguments, None if nowait else spec.Confirm.SelectOk
            )
        except BaseException as exc:
            # From a signal: nobody knows whether the broker counts.
            self._channel.interrupted("a call", exc)
            raise
        if call is not None:
            self._calls.end(call)

    def leave(self, found: Iterable[Found], closed: bool) -> None:
        """Take over what was *found* not to have left when the connection ended.  Never switches.

        Arguments:
            closed: it was closed by us, so that there is no other.
        """
        unsent = self.unsent
        unsent.take(found)
        session = getattr(self._link.client, "session", None)
        if closed or session is None:
            if count := unsent.count + len(unsent.again):
                spawn("log", logger.warning, "%s: %s", self._link.where, sentence(count))
        elif unsent.again:
            session.add(Resending(self._channel, session))

    def fail(self, cause: BaseException, blamed: int | None) -> bool:
        """Fail the outstanding publishes: the channel is gone.

        Arguments:
            blamed: ids of the method that the broker has closed the channel for; None: it has not.

        Returns:
            Whether one waiting publisher got *cause* as its own.
        """
        confirms = self.confirms
        is_clear = confirms is not None and confirms.all_are_awaited
        left = [] if confirms is None else confirms.give_up()
        if blamed == _PUBLISH and not (left and is_clear and all(each.is_awaited for each in left)):
            # It may be one that nobody awaits: the next publish gets it, or else the log.
            self.unsent.refusal = cause
            spawn("log", logger.warning, "%s", self.unsent.error(self._link.where))
        # Alone, it is the one that the broker means; among others nobody can tell which it was.
        mine = blamed is None or (blamed == _PUBLISH and len(left) == 1 and is_clear)
        for publish in left:
            publish.slot.fail(cause if mine else not_yours(cause))
        return mine and bool(left)

    # In the reader: nothing here may switch or run user code.

    def on_confirm(self, reply: Reply) -> None:
        """Take over that the broker has messages (``basic.ack``), or has refused them (``nack``)."""
        ids, payload, _, _ = reply
        confirms = self.confirms
        if confirms is not None:
            tag, flags = _tag_and_flags.unpack_from(payload, 4)
            if tag > confirms.last:
                self._channel.abort(
                    RecoverableChannelError(
                        f"the broker confirmed publish {tag} of channel {self._number}, where "
                        f"{confirms.last} were sent: confirms cannot be matched to publishes any more"
                    )
                )
                return
            for publish in confirms.settle(tag, bool(flags & 1)):
                publish.slot.offer(ids == _ACK)
