"""Publishing on a channel: the fast path, and confirms.

A message is one ``bytes.join`` and one append: the method frame with the start of the next one is kept
for each (exchange, routing key), the property block for each kind of message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import amqp
from amqp import spec
from amqp.serialization import dumps
from gevent import get_hub
from gevent.hub import Hub

from greenconn.exceptions import (
    ContentTooLarge,
    PublishNacked,
    PublishTimeout,
    RecoverableChannelError,
    Unroutable,
)
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.transport.amqp.calls import not_yours
from greenconn.transport.amqp.message import Outgoing
from greenconn.transport.amqp.methods import Reply, ids_of
from greenconn.transport.amqp.properties import text_of
from greenconn.transport.amqp.returns import Returning
from greenconn.transport.amqp.unsent import AGAIN, AWAITED, Found, Resending, Unsent, sentence
from greenconn.wire.amqp import content_frames, method_frame
from greenconn.wire.confirms import ConfirmSequencer, Outstanding

if TYPE_CHECKING:
    from greenconn.green.writer import Writer
    from greenconn.transport.amqp.port import LinkPort

__all__ = ["PendingConfirm", "Publisher"]

logger = logging.getLogger("greenconn.transport.amqp")
_tag_and_flags = Struct(">QB")
# End of the method frame's payload is in the head; then: header frame, and the body frame's start.
_header = Struct(">BHIHHQ")
_body = Struct(">BBHI")
_PUBLISH: Final = ids_of(spec.Basic.Publish)
_HEADS_KEPT: Final = 1024
#: Bodies of this size or more are not copied into one piece with their frames.
_LARGE: Final = 65536


class PendingConfirm(Outstanding):
    """What ``begin_publish`` returns: one greenlet calls ``wait``, once."""

    __slots__ = ("is_awaited", "link", "slot")

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
        super().__init__(exchange, routing_key, mandatory, properties, body)
        self.link = link
        #: Whether anybody is told by ``wait`` what became of it.
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
                f"{text}: no queue takes {self._what()}",
                code=code,
                exchange=self.exchange,
                routing_key=self.routing_key,
            )
        if not is_taken:
            raise PublishNacked(f"{self.link.where} refused (nack) {self._what()}")

    def _what(self) -> str:
        return f"a message to exchange {self.exchange!r} with routing key {self.routing_key!r}"


class Publisher(Returning):
    """What a channel does to publish; mixed into ``Channel``."""

    connection: LinkPort
    channel_id: int
    abort: Callable[[Any], None]
    begin_call: Callable[..., Any]
    check_hub: Callable[[], None]
    end_call: Callable[..., Any]
    interrupted: Callable[[str, BaseException], None]
    pass_gate: Callable[[], None]
    is_open: bool
    _room: int
    _gone: BaseException | None
    _hub: Hub

    def _init_publisher(self, link: LinkPort) -> None:
        self._writer: Writer = link.writer
        self._gate = link.gate
        self._heads: dict[tuple[str, str, bool, bool], bytes] = {}
        self._confirms: ConfirmSequencer[PendingConfirm] | None = None
        self._unsent = Unsent()
        self._room = (link.frame_max or 0xFFFFFFFF) - 8
        # What is larger takes the way on which its size is checked.
        self._small = min(self._room, _LARGE, link.options.max_message_size)
        if link.confirm_publish:
            self.basic_publish = self.basic_publish_confirm  # type: ignore[method-assign]

    def check_open(self) -> None:
        raise NotImplementedError

    def prepare_message(
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: MutableMapping[str, Any] | None = None,
        _Message: Any = None,  # noqa: N803 - kombu's name
    ) -> Outgoing:
        """Pack a message for ``basic_publish``.  Never switches.

        Raises:
            ValueError: a property does not fit its field.
        """
        return Outgoing(body, priority, content_type, content_encoding, headers, properties)

    def basic_publish(
        self,
        message: Outgoing | amqp.Message,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Send a message; the broker does not confirm it.  May switch, before the first byte only.

        Arguments:
            timeout: seconds to wait while the broker blocks us or takes nothing; None is the
                connection's ``blocked_timeout``.

        Raises:
            ConnectionBlocked: it waited in vain; nothing was sent.
            RecoverableConnectionError, RecoverableChannelError: the channel is gone.
        """
        if get_hub() is not self._hub:
            self.check_hub()
        writer = self._writer
        if writer.gate or self._gate.blocked is not None:
            self.connection.gate.pass_through(Deadline(timeout), publishing=True)
        if self._gone is not None:
            self.check_open()
        if message.__class__ is not Outgoing:
            message = Outgoing.of(message)
        pending = None
        if self._confirms is not None and (mandatory or immediate):
            # Its return must not be taken for that of a like message which somebody awaits.
            pending = PendingConfirm(
                self.connection, exchange, routing_key, True, message.packed, message.body
            )
            pending.is_awaited = False
        self._write(writer, message, exchange, routing_key, mandatory, immediate, pending)
        if self._gone is not None:
            self._failed_write()

    def request(
        self,
        message: Outgoing | amqp.Message,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline,
    ) -> None:
        """Send a message whose sender learns by an answer what became of it.  May switch, as above.

        If the broker returns it, ``return_sink`` is told; it is not counted among the lost ones.

        Arguments:
            deadline: for the wait while the broker takes nothing.
        """
        Publisher.basic_publish(
            self, message, exchange, routing_key, mandatory, timeout=deadline.left()
        )
        self._writer.mark(AWAITED)

    def keep_publish(self) -> None:
        """Send the message that was published last again if the connection is lost before it left.

        Nothing may have switched since.  What was published with a confirm has left.
        """
        if not self.connection.confirm_publish:
            self._writer.mark(AGAIN)

    def _failed_write(self) -> None:
        """The connection ended in that very write.  Raise for it."""
        self._unsent.forgive_last()
        self.check_open()

    def _publish_for(self, old: Publisher) -> None:
        """Send what *old*, of a lost connection, was to send; tell of what it has lost.  May switch."""
        left = old._unsent
        try:
            while left.again:
                Publisher.basic_publish(self, *left.again[0])
                self.keep_publish()
                left.again.popleft()
        except BaseException:
            # Lost again, or killed: what has not left from here comes first on the next one.
            left.again.extendleft(reversed(self._unsent.again))
            self._unsent.forget()
            raise
        error = left.error(self.connection.where)
        if error is not None:
            if left.refusal is None:  # else the log has it since then
                logger.warning("%s", error)
            left.forget()
            self._tell_next(error)

    def _tell_next(self, error: Exception) -> None:
        """Have the next publish that nobody confirms raise; one with retries tries again then."""

        def raise_once(*args: Any, **kwargs: Any) -> None:
            self.__dict__.pop("basic_publish", None)
            raise error

        if not self.connection.confirm_publish:
            self.basic_publish = raise_once  # type: ignore[method-assign]

    def _leave_unsent(self, found: Iterable[Found], closed: bool) -> None:
        """The connection has ended with what was *found* not to have left.  Never switches.

        Arguments:
            closed: it was closed by us, so that there is no other.
        """
        unsent = self._unsent
        unsent.take(found)
        session = getattr(self.connection.client, "session", None)
        if closed or session is None:
            if count := unsent.count + len(unsent.again):
                spawn("log", logger.warning, "%s: %s", self.connection.where, sentence(count))
        elif unsent.again:
            session.add(Resending(self, session))

    def _write(
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
        size, block, channel = len(body), 12 + len(message.packed), self.channel_id
        frames: bytes | list[Any]
        if size and size + block <= self._small:
            write: Callable[[Any], None] = writer.write
            frames = b"".join(
                (
                    head,
                    _header.pack(2, channel, block, 60, 0, size),
                    packed,
                    _body.pack(0xCE, 3, channel, size),
                    body,
                    b"\xce",
                )
            )
        else:
            if block > self._room:
                raise ContentTooLarge(
                    f"headers and properties of {block} bytes do not fit into a frame", (60, 40)
                )
            self.connection.check_size(size)
            write = writer.write_many
            frames = content_frames(head, channel, packed, body, self.connection.frame_max)
        confirms = self._confirms
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
            self.interrupted("a publish", exc)
            raise

    def _make_head(
        self, exchange: str, routing_key: str, mandatory: bool, immediate: bool
    ) -> bytes:
        names: tuple[tuple[str, Any], ...] = (("exchange", exchange), ("routing_key", routing_key))
        for name, value in names:
            if not isinstance(value, (str, bytes)):
                raise TypeError(f"{name} is text, not {value!r}")
            raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
            if len(raw) > 255:
                raise ValueError(f"{name} of {len(value)} characters: AMQP allows 255 bytes")
        head = method_frame(
            self.channel_id,
            spec.Basic.Publish,
            dumps("Bssbb", (0, exchange, routing_key, mandatory, immediate)),
        )
        if len(self._heads) >= _HEADS_KEPT:
            self._heads.clear()
        self._heads[exchange, routing_key, mandatory, immediate] = head
        return head

    def confirm_select(self, nowait: bool = False) -> None:
        """Have the broker confirm each publish from now on (RabbitMQ's extension).

        May switch, not with *nowait*.  Again: does nothing.
        """
        self.pass_gate()
        if self._confirms is None:
            self._select_confirms(nowait)

    def _select_confirms(self, nowait: bool) -> None:
        # Nothing switches up to the write, so that no other publish is counted before it.
        arguments = dumps("b", (nowait,))
        call = None
        try:
            self._confirms = ConfirmSequencer()
            call = self.begin_call(
                spec.Confirm.Select, arguments, None if nowait else spec.Confirm.SelectOk
            )
        except BaseException as exc:
            # From a signal: nobody knows whether the broker counts.
            self.interrupted("a call", exc)
            raise
        if call is not None:
            self.end_call(call)

    def basic_publish_confirm(
        self,
        message: Outgoing | amqp.Message,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Send a message and wait until the broker has taken it over.  May switch.

        Only the calling greenlet waits; any number of them may publish on one channel, and each gets
        the answer to its own message.

        Arguments:
            timeout: seconds for all of it.
            confirm_timeout: seconds for the confirm, and for the wait while the broker blocks us, within
                *timeout*.  With neither given it is the connection's ``confirm_timeout``.

        Raises:
            PublishNacked: the broker refused it.
            Unroutable: it was mandatory and reached no queue.
            PublishTimeout: no answer in time; the broker may have it.
            ConnectionBlocked: the broker takes nothing; nothing was sent.
            ChannelError, ConnectionError: what ended the channel before the answer came.
        """
        deadline = NEVER if timeout is None else Deadline(timeout)
        if confirm_timeout is not None:
            deadline = deadline.within(confirm_timeout)
        pending = self.begin_publish(message, exchange, routing_key, mandatory, immediate, deadline)
        pending.wait(deadline)

    def begin_publish(
        self,
        message: Outgoing | amqp.Message,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        deadline: Deadline | None = None,
    ) -> PendingConfirm:
        """Send a message whose confirm is waited for later.  May switch, before the first byte only.

        Messages of one greenlet leave in the order of its calls.

        Arguments:
            deadline: for the wait while the broker takes nothing.

        Raises:
            As :meth:`basic_publish_confirm`, save what only the broker's answer can tell.
        """
        if get_hub() is not self._hub:
            self.check_hub()
        writer = self._writer
        if writer.gate or self._gate.blocked is not None:
            self._gate.pass_through(deadline, publishing=True)
        if self._gone is not None:
            self.check_open()
        if self._confirms is None:
            # Nothing switches up to the write: the first publish after it has count 1.
            self._select_confirms(nowait=True)
        if message.__class__ is not Outgoing:
            message = Outgoing.of(message)
        pending = PendingConfirm(
            self.connection,
            exchange,
            routing_key,
            mandatory or immediate,
            message.packed,
            message.body,
        )
        self._write(writer, message, exchange, routing_key, mandatory, immediate, pending)
        if self._gone is not None:
            self._failed_write()
        writer.mark(AWAITED)
        return pending

    # In the reader: nothing here may switch or run user code.

    def _on_ack(self, reply: Reply) -> None:
        self._settle_publishes(reply[1], True)

    def _on_nack(self, reply: Reply) -> None:
        self._settle_publishes(reply[1], False)

    def _settle_publishes(self, payload: bytes, is_taken: bool) -> None:
        confirms = self._confirms
        if confirms is not None:
            tag, flags = _tag_and_flags.unpack_from(payload, 4)
            if tag > confirms.last:
                self.abort(
                    RecoverableChannelError(
                        f"the broker confirmed publish {tag} of channel {self.channel_id}, where "
                        f"{confirms.last} were sent: confirms cannot be told apart any more"
                    )
                )
                return
            for publish in confirms.settle(tag, bool(flags & 1)):
                publish.slot.offer(is_taken)

    def _fail_publishes(self, cause: BaseException, blamed: int | None) -> bool:
        """The channel is gone: nobody will hear of the outstanding publishes.

        Returns:
            Whether one waiting publisher got *cause* as its own.
        """
        confirms = self._confirms
        is_clear = confirms is not None and confirms.all_are_awaited
        left = [] if confirms is None else confirms.give_up()
        if blamed == _PUBLISH and not (left and is_clear and all(each.is_awaited for each in left)):
            # It may be one that nobody awaits: the next publish is told, or else the log.
            self._unsent.refusal = cause
            spawn("log", logger.warning, "%s", self._unsent.error(self.connection.where))
        # Alone, it is the one that the broker means; among others nobody can tell which it was.
        mine = blamed is None or (blamed == _PUBLISH and len(left) == 1 and is_clear)
        for publish in left:
            publish.slot.fail(cause if mine else not_yours(cause))
        return mine and bool(left)
