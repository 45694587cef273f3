"""Publishing on a channel: the fast path, confirms, returns, and messages that were not sent.

A message is one ``bytes.join`` and one append: the method frame with the start of the next one is kept
for each (exchange, routing key) and size of properties, the property block for each kind of message.

A publish without confirm returns when its message was written; until the socket has taken it, it waits
in this process.  No record is kept of it, so that this costs nothing: when the connection is lost, the
messages are parsed from the bytes that were not sent.  A mark behind a message distinguishes two kinds:
those whose caller awaits the confirm and so gets an error, and those whose caller asked for retries.
The latter are sent again, in order, on the channel that replaces theirs, before it can be used
otherwise.  For all others the next publish on the channel raises.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from amqp import spec
from amqp.exceptions import error_for_code
from amqp.serialization import dumps, loads

from greenconn.exceptions import (
    ChannelError,
    ConnectionBlocked,
    ContentTooLarge,
    PublishNacked,
    PublishTimeout,
    RecoverableChannelError,
    RecoverableConnectionError,
    Unroutable,
)
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.transport.amqp.calls import bystander_error
from greenconn.transport.amqp.message import Outgoing, ReturnedMessage, split_route, text_of
from greenconn.wire.amqp import (
    BASIC_PUBLISH,
    FrameParser,
    Reply,
    content_frames,
    ids_of,
    method_frame,
)

if TYPE_CHECKING:
    from greenconn.green.writer import Writer
    from greenconn.session.session import Session
    from greenconn.transport.amqp.calls import Calls
    from greenconn.transport.amqp.channel import Channel
    from greenconn.transport.amqp.link import AmqpLink

logger = logging.getLogger("greenconn.transport.amqp")
_tag_and_flags = Struct(">QB")
# The header frame up to the last 4 of the 8 bytes of the body's size, and the end of that frame with the
# start of the body frame up to its size.
_header = Struct(">BHIHHI")
_body = Struct(">BBH")
_ACK: Final = ids_of(spec.Basic.Ack)
# Of a return: its code, and how long its text is.
_code_and_size = Struct(">HB")
_HEADS_KEPT: Final = 1024
#: Bodies of this size or more are not copied into one piece with their frames.
_LARGE: Final = 65536

#: Marks behind a message: send it again; its caller gets the outcome.
RESEND: Final = memoryview(b"")
AWAITED: Final = memoryview(b"")

#: A message and its mark: ``(arguments with their 4 bytes of ids, header, body, mark or None)``.
UnsentMessage: TypeAlias = "tuple[bytes, bytes, bytes, memoryview | None]"


class PendingConfirm(msgspec.Struct, eq=False):
    """A publish that the broker has not confirmed; one greenlet calls ``wait``, once.

    Attributes:
        link: the connection.
        exchange, routing_key, mandatory: those of the publish.
        properties: the property block of the message.
        body: its body.
        is_awaited: a caller gets the outcome from ``wait``.
        returned: ``(code, text)`` of the broker's return, or None.
        slot: filled with True for an ack, False for a nack.
    """

    link: AmqpLink
    exchange: str | bytes
    routing_key: str | bytes
    mandatory: bool
    properties: bytes
    body: bytes
    is_awaited: bool = True
    returned: tuple[int, str] | None = None
    slot: Slot[bool] = msgspec.field(default_factory=Slot)

    @property
    def route(self) -> tuple[str, str]:
        """Exchange and routing key as text, as a return names them."""
        exchange, key = self.exchange, self.routing_key
        return (
            text_of(exchange) if isinstance(exchange, bytes) else exchange,
            text_of(key) if isinstance(key, bytes) else key,
        )

    def wait(self, deadline: Deadline) -> None:
        """Wait until the broker has confirmed the message.  May switch.

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
            if not slot.has_expired:
                raise
            blocked = self.link.flow_control.blocked
            reason = "" if blocked is None else f", as it blocks publishing ({blocked})"
            raise PublishTimeout(
                f"{self.link.where} did not confirm {self._what()} within {deadline.timeout:g} s"
                f"{reason}: it may have the message",
                maybe_delivered=True,
            ) from (None if blocked is None else ConnectionBlocked(blocked))
        finally:
            budget.end_wait()
        if self.returned is not None:
            code, text = self.returned
            exchange, key = self.route
            raise Unroutable(
                f"{text}: {self._what()} reached no queue",
                code=code,
                exchange=exchange,
                routing_key=key,
            )
        if not is_taken:
            text = f"{self.link.where} refused (nack) {self._what()}"
            raise PublishNacked(text, has_reason=False)

    def _what(self) -> str:
        exchange, key = self.route
        return f"a message to exchange {exchange!r} with routing key {key!r}"


class ConfirmSequencer:
    """The outstanding publishes of one channel in confirm mode, by number.

    RabbitMQ numbers the publishes of a channel from 1 after ``confirm.select`` and confirms each number
    once, singly or with ``multiple`` for all up to it.  A return precedes the ack of its message but has
    no number: it is matched to the oldest outstanding mandatory publish with the same exchange, routing
    key, raw property block and body, and if none has all four (the broker strips ``BCC``), to the oldest
    mandatory one with the same exchange and routing key.

    A number is taken before its message is written.  So the writer notices an exception that is raised
    between the two (``KeyboardInterrupt``, a signal handler that raises), and no two messages ever get
    the same number.
    """

    __slots__ = ("_confirmed", "_skipped", "last", "outstanding")

    def __init__(self) -> None:
        #: The number of the last publish.
        self.last = 0
        self._skipped = 0  # the last number whose confirm is not awaited
        self._confirmed = 0  # the highest number that the broker has confirmed
        self.outstanding: dict[int, PendingConfirm] = {}

    def expect(self, publish: PendingConfirm) -> int:
        """Assign the next number to a publish whose confirm is awaited."""
        self.last = tag = self.last + 1
        self.outstanding[tag] = publish
        return tag

    def skip(self) -> None:
        """Assign the next number to a publish whose confirm is not awaited."""
        self._skipped = self.last = self.last + 1

    @property
    def all_are_awaited(self) -> bool:
        """Whether the confirm of each publish is awaited that the broker may not have processed yet.

        It processes them in order, whatever the order of its confirms.
        """
        return self._skipped <= self._confirmed

    def settle(self, tag: int, multiple: bool) -> list[PendingConfirm]:
        """Remove and return the publishes that an ack or nack of the broker is for, oldest first."""
        outstanding = self.outstanding
        if tag > self._confirmed:
            self._confirmed = tag
        if not multiple:
            publish = outstanding.pop(tag, None)
            return [] if publish is None else [publish]
        tags = []
        for each in outstanding:
            if tag and each > tag:
                break
            tags.append(each)
        return [outstanding.pop(each) for each in tags]

    def restore(self, publishes: Iterable[PendingConfirm]) -> None:
        """Take back what was settled and not told, as the channel is about to end."""
        for publish in publishes:
            self.outstanding[-len(self.outstanding)] = publish  # no number of a publish

    def give_up(self) -> list[PendingConfirm]:
        """Remove and return all publishes, as the channel has ended."""
        left = list(self.outstanding.values())
        self.outstanding.clear()
        return left

    def match_return(
        self, exchange: str, routing_key: str, properties: bytes, body: bytes
    ) -> PendingConfirm | None:
        """Return the outstanding publish that a return is for, or None."""
        route, similar = (exchange, routing_key), None
        for publish in self.outstanding.values():
            if publish.mandatory and publish.returned is None and publish.route == route:
                if publish.properties == properties and publish.body == body:
                    return publish
                if similar is None:
                    similar = publish
        return similar


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
        "_middle",
        "_number",
        "_prefixes",
        "_room",
        "_small",
        "confirms",
        "unsent",
    )

    def __init__(self, channel: Channel, link: AmqpLink, calls: Calls) -> None:
        self.confirms: ConfirmSequencer | None = None
        self.unsent = Unsent()
        self._channel = channel
        self._number = channel.channel_id
        self._link = link
        self._calls = calls
        self._heads: dict[tuple[str, str, bool, bool], bytes] = {}
        #: The heads, each with the start of a header frame whose properties have the given size.
        self._prefixes: dict[tuple[str, str, bool, bool, int], bytes] = {}
        self._middle = _body.pack(0xCE, 3, self._number)
        self._room = calls.payload_limit
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
            pending: in confirm mode, the object that waits for the confirm, or None.
        """
        body, packed, confirms = message.body, message.packed, self.confirms
        size, block = len(body), 12 + len(packed)
        frames: bytes | list[Any]
        if size and size + block <= self._small:
            prefix = self._prefixes.get((exchange, routing_key, mandatory, immediate, block))
            if prefix is None:
                prefix = self._make_prefix(exchange, routing_key, mandatory, immediate, block)
            raw_size = size.to_bytes(4, "big")
            frames = b"".join((prefix, raw_size, packed, self._middle, raw_size, body, b"\xce"))
            if confirms is None:
                writer.write(frames)
                return
            write: Callable[[Any], None] = writer.write
        else:
            if block > self._room:
                raise ContentTooLarge(
                    f"headers and properties of {block} bytes do not fit into a frame", (60, 40)
                )
            self._link.check_size(size)
            write = writer.write_many
            head = self._head(exchange, routing_key, mandatory, immediate)
            frames = content_frames(head, self._number, packed, body, self._link.frame_max)
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
            self._link.interruption = exc
            self._channel.interrupted("a publish", exc)
            raise

    @property
    def has_published(self) -> bool:
        """Whether something was published here."""
        return bool(self._heads)

    def _head(self, exchange: str, routing_key: str, mandatory: bool, immediate: bool) -> bytes:
        """Return the method frame."""
        head = self._heads.get((exchange, routing_key, mandatory, immediate))
        if head is not None:
            return head
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

    def _make_prefix(
        self, exchange: str, routing_key: str, mandatory: bool, immediate: bool, block: int
    ) -> bytes:
        """Return what precedes the size of a small body, where its properties take *block* bytes."""
        head = self._head(exchange, routing_key, mandatory, immediate)
        prefix = head + _header.pack(2, self._number, block, 60, 0, 0)
        if len(self._prefixes) >= _HEADS_KEPT:
            self._prefixes.clear()
        self._prefixes[exchange, routing_key, mandatory, immediate, block] = prefix
        return prefix

    def select_confirms(self, *, nowait: bool = False, leads: bool = False) -> None:
        """Have the broker confirm from now on, for a caller that has waited for the writer.

        May switch, not with *nowait* or *leads*.  Nothing switches up to the write, so that no other
        publish is counted before it.

        Arguments:
            nowait: ask for no reply.
            leads: do not wait for the reply; see :class:`Call`.
        """
        arguments = dumps("b", (nowait,))
        call = None
        try:
            self.confirms = ConfirmSequencer()
            call = self._calls.begin(
                spec.Confirm.Select,
                arguments,
                None if nowait else spec.Confirm.SelectOk,
                leads=leads,
            )
        except BaseException as exc:
            # From a signal: it is unknown whether the broker counts.
            self._link.interruption = exc
            self._channel.interrupted("a call", exc)
            raise
        if call is not None:
            self._calls.end(call)

    def leave(self, found: Iterable[UnsentMessage], closed: bool) -> None:
        """Note the messages that had not been sent when the connection ended.  Never switches.

        Arguments:
            found: those messages.
            closed: it was closed by us, so that no other one follows.
        """
        unsent = self.unsent
        unsent.take(found)
        session = getattr(self._link.client, "session", None)
        if closed or session is None:
            if count := unsent.count + len(unsent.to_resend):
                spawn(
                    "log",
                    logger.warning,
                    "%s: %s",
                    self._link.where,
                    unsent_text(count),
                    extra={"connection": self._link.where},
                )
        elif unsent.to_resend:
            session.add(UnsentRecovery(self._channel, session))

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
        if blamed == BASIC_PUBLISH and not (
            left and is_clear and all(each.is_awaited for each in left)
        ):
            # It may have no waiter: the next publish raises it, otherwise it is logged.
            self.unsent.refusal = cause
            spawn(
                "log",
                logger.warning,
                "%s",
                self.unsent.error(self._link.where),
                extra={"connection": self._link.where},
            )
        # If there is only one, it is the one that the broker refused; otherwise that is unknown.
        mine = blamed is None or (blamed == BASIC_PUBLISH and len(left) == 1 and is_clear)
        for publish in left:
            publish.slot.fail(cause if mine else bystander_error(cause))
        return mine and bool(left)

    # In the reader: nothing here may switch or run user code.

    def on_confirm(self, reply: Reply) -> None:
        """Settle the publishes that the broker acks or nacks."""
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
            settled = confirms.settle(tag, bool(flags & 1))
            try:
                for publish in settled:
                    publish.slot.offer(ids == _ACK)
            except BaseException:
                confirms.restore(settled)  # a signal, for which the connection ends
                raise


class Returns:
    """The messages of one channel that the broker returns as unroutable.

    Arguments:
        channel: the channel.
        link: the connection of the channel.
        publisher: the publisher of the channel.
    """

    __slots__ = ("_channel", "_link", "_publisher")

    def __init__(self, channel: Channel, link: AmqpLink, publisher: Publisher) -> None:
        self._channel = channel
        self._link = link
        self._publisher = publisher

    # In the reader: nothing here may switch or run user code.

    def on_return(self, reply: Reply) -> None:
        """Hand a returned message to its publish, to the sink or to the handlers."""
        _, payload, header, body = reply
        assert header is not None
        assert body is not None
        code, text, exchange, routing_key = _read_return(payload)
        confirms = self._publisher.confirms
        if confirms is not None:
            publish = confirms.match_return(exchange, routing_key, header[12:], body)
            if publish is not None:
                publish.returned = (code, text)
                if publish.is_awaited:
                    return
        exc = error_for_code(code, text, spec.Basic.Return, ChannelError)
        channel = self._channel
        message = ReturnedMessage(channel, exchange, routing_key, header, body)
        if channel.return_sink is not None:
            channel.return_sink(exc, exchange, routing_key, message)
            return
        returned = (exc, exchange, routing_key, message)
        has_listener = bool(channel.events["basic_return"])
        size = len(header) + len(body)
        self._link.put_return(self._call_handlers, returned, size, has_listener=has_listener)

    # In the greenlet that drains, or that publishes.

    def give_back(self, error: Unroutable, publish: PendingConfirm) -> bool:
        """Call the handlers for a publish whose message was returned; False: there are none."""
        exchange, routing_key = publish.route
        # What is before the properties of a header frame is not looked at.
        header = bytes(12) + publish.properties
        message = ReturnedMessage(self._channel, exchange, routing_key, header, publish.body)
        return self._call_handlers((error, exchange, routing_key, message))

    def _call_handlers(self, returned: tuple[Any, ...]) -> bool:
        handlers = list(self._channel.events["basic_return"])
        for handler in handlers:
            handler(*returned)
        return bool(handlers)


def _read_return(payload: bytes) -> tuple[int, str, str, str]:
    """Code, text, exchange and routing key of a ``basic.return``; names may be no UTF-8."""
    code, size = _code_and_size.unpack_from(payload, 4)
    return code, text_of(payload[7 : 7 + size]), *split_route(payload[7 + size :])


def find_unsent(
    buffers: Iterable[bytes | memoryview], begun: int
) -> dict[int, list[UnsentMessage]]:
    """Return the messages that have not wholly left, by channel.  Never switches.

    Arguments:
        buffers: as they were written, from the beginning of a frame.
        begun: how many bytes of them have left.
    """
    parser, end = FrameParser(0, body_limit=1 << 62), 0
    found: dict[int, list[UnsentMessage]] = {}
    mine: list[UnsentMessage] | None = None
    for buffer in buffers:
        if buffer is RESEND or buffer is AWAITED:
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
    """The messages of one channel without a waiting caller that were not sent.

    Attributes:
        refusal: why the broker closed the channel, if it was for such a message.
        count: messages that had not left when the connection was lost.
        to_resend: those to be sent again, as arguments of ``basic_publish``.
    """

    __slots__ = ("count", "refusal", "to_resend")

    def __init__(self) -> None:
        self.refusal: BaseException | None = None
        self.count = 0
        self.to_resend: deque[tuple[Any, ...]] = deque()

    def take(self, found: Iterable[UnsentMessage]) -> None:
        """Take over what has not left: to be sent again, or to be counted as lost."""
        for payload, header, body, mark in found:
            if mark is RESEND:
                _, exchange, routing_key, mandatory, immediate = loads("Bssbb", payload, 4)[0]
                message = Outgoing(header[12:], body)
                self.to_resend.append((message, exchange, routing_key, mandatory, immediate))
            elif mark is None:
                self.count += 1

    def discard_last(self) -> None:
        """Drop the last one from the count: its caller gets an error, and it has no mark yet."""
        self.count = max(self.count - 1, 0)

    @property
    def hint(self) -> str:
        """End of the error text for callers after the end of the channel."""
        count = self.count + len(self.to_resend)
        return f"; {unsent_text(count)}" if count else ""

    def error(self, where: str) -> Exception | None:
        """Return the error for the next publish; None: there is none."""
        if self.refusal is not None:
            error: Exception = RecoverableChannelError(
                f"{where}: a message published without confirm is lost, and those after it, since "
                f"the broker closed the channel because of it: {self.refusal}"
            )
            error.__cause__ = self.refusal
        elif self.count:
            text = f"{where}: {unsent_text(self.count)}: publish again, or with confirms"
            error = RecoverableConnectionError(text)
        else:
            return None
        return error

    def forget(self) -> None:
        """Forget all of them."""
        self.refusal = None
        self.count = 0
        self.to_resend.clear()


def unsent_text(count: int) -> str:
    """Return the text about *count* lost messages."""
    which = "1 message that was" if count == 1 else f"{count} messages that were"
    return f"{which} published without confirm had not been sent when the connection was lost"


class UnsentRecovery:
    """Recovery of a session's member: the messages of a lost channel are sent again.

    Arguments:
        channel: that is lost.
        session: of its connection.
    """

    def __init__(self, channel: Any, session: Session) -> None:
        self._channel = channel
        self._session = session

    def __repr__(self) -> str:
        return f"<messages of {self._channel!r}>"

    def recover(self, deadline: Deadline) -> None:
        """Have the channel that replaces the lost one send them.  May switch."""
        self._session.successor(self._channel, Deadline(deadline.left()))
        self._session.discard(self)
