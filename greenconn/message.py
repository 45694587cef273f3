"""A received message.

A transport that wants to be quick subclasses :class:`Message`, skips this ``__init__``, fills at
least the slots of :data:`ESSENTIAL_SLOTS`, and computes the others when they are first asked for, in
properties of the same names: :func:`staged_slot`, :func:`computed_slot`.  (With a ``__getattr__`` the
interpreter would read no slot of the message directly.)
Nothing here touches ``headers``, ``properties``, ``delivery_info`` or ``body`` before a caller
does, save ``ack`` on a channel that has no-ack consumers.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Container
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic

from greenconn.compression import decompress
from greenconn.exceptions import KombuError, MessageStateError, reraise
from greenconn.listeners import LISTENERS, SettleEvent, notify
from greenconn.serialization import decode_error, loads

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["ACK_STATES", "ESSENTIAL_SLOTS", "Message", "computed_slot", "staged_slot"]

#: The states of a message that was settled.
ACK_STATES: Final = frozenset({"ACK", "REJECTED", "REQUEUED"})

#: What a subclass with an ``__init__`` of its own must fill; the rest it may compute when asked.
ESSENTIAL_SLOTS: Final = ("channel", "delivery_tag", "accept", "_state", "_decoded_cache")

_ErrorTriple = tuple[type[BaseException], BaseException, TracebackType | None]


class Message(Generic[T]):
    """A received message (kombu's); its type argument is that of the decoded body.

    Arguments:
        body: the raw body.
        delivery_tag: what the channel calls this delivery.
        content_type: MIME type of the body; it selects the decoder.
        content_encoding: character set of the body, or ``binary``.
        delivery_info: where the message came from (exchange, routing key, consumer tag...).
        properties: the AMQP properties.
        headers: the application's headers; ``compression`` names how the body is compressed.
        postencode: character set to encode a body of type str with.
        accept: content types that ``decode`` accepts; None accepts all that are not disabled.
        channel: the channel that ``ack``, ``reject`` and ``requeue`` use.

    Attributes:
        errors: ``sys.exc_info()`` of what went wrong while the body was unpacked.
    """

    MessageStateError = MessageStateError

    __slots__ = (
        "__dict__",
        "_decoded_cache",
        "_state",
        "accept",
        "body",
        "channel",
        "content_encoding",
        "content_type",
        "delivery_info",
        "delivery_tag",
        "errors",
        "headers",
        "properties",
    )

    channel: Any
    delivery_tag: Any
    content_type: str | None
    content_encoding: str | None
    delivery_info: dict[str, Any]
    headers: dict[str, Any]
    properties: dict[str, Any]
    body: Any
    accept: Container[str] | None
    errors: list[_ErrorTriple]
    _state: str
    #: None: not decoded yet, or the body means None, which costs nothing to decode again.
    _decoded_cache: Any

    def __init__(
        self,
        body: Any = None,
        delivery_tag: Any = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        delivery_info: dict[str, Any] | None = None,
        properties: dict[str, Any] | None = None,
        headers: dict[str, Any] | None = None,
        postencode: str | None = None,
        accept: Container[str] | None = None,
        channel: Any = None,
        **kwargs: Any,
    ) -> None:
        self.channel = channel
        self.delivery_tag = delivery_tag
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.delivery_info = delivery_info or {}
        self.headers = headers or {}
        self.properties = properties or {}
        self.accept = accept
        self.errors = []
        self._state = "RECEIVED"
        self._decoded_cache = None
        if self.headers:
            body = self._unpacked(body, self.headers.get("compression"), self.errors)
        if postencode and not self.errors and isinstance(body, str):
            try:
                body = body.encode(postencode)
            except (UnicodeError, LookupError) as exc:
                error = decode_error(exc, f"as {postencode}")
                self.errors.append((type(error), error, None))
        self.body = body

    @staticmethod
    def _unpacked(body: Any, compression: str | None, errors: list[_ErrorTriple]) -> Any:
        """Return *body* without its compression; what fails is noted in *errors*.

        May switch where that takes long.
        """
        if not compression or errors:
            return body
        try:
            return decompress(body, compression)
        except Exception:
            errors.append(_current_error())
            return body

    def _note_error(self) -> None:
        self.errors.append(_current_error())

    def _reraise_error(self, callback: Callable[[Message, Exception], Any] | None = None) -> None:
        """Raise the first of ``errors``, or hand it to ``callback(message, exc)``."""
        try:
            reraise(*self.errors[0])
        except Exception as exc:
            if callback is None:
                raise
            callback(self, exc)

    def ack(self, multiple: bool = False, *, flush: bool | None = None) -> None:
        """Tell the broker that this message is done.  May switch.

        Nothing is sent for a message of a no-ack consumer.

        Arguments:
            multiple: also acknowledge all earlier ones of the channel.
            flush: return when it is on its way to the broker, so that it arrives also if the program
                blocks or dies in its next line.  False: it leaves with others, when the hub has its next
                turn.  None: at once for messages of ``spawn_consumer``, else with others.

        Raises:
            MessageStateError: it was acknowledged, rejected or requeued before, or has no channel.
            TimeoutError: the broker took too little in time; the ack leaves as soon as it does.
        """
        channel = self.channel
        if channel is None:
            raise self._no_channel()
        no_ack_consumers = channel.no_ack_consumers
        if no_ack_consumers and self.delivery_info.get("consumer_tag") in no_ack_consumers:
            return
        state = self._state
        if state in ACK_STATES and not self._is_rolled_back():
            raise self._already_settled()
        try:
            # Set first, so that of two greenlets that settle at once the second one is refused.
            self._state = "ACK"
            channel.basic_ack(self.delivery_tag, multiple=multiple)
        except BaseException:
            self._state = state
            raise
        if (calls := LISTENERS.settle) is not None:
            notify(calls, SettleEvent(self, "ack"))
        if flush is None:
            try:
                flush = channel.flushes_acks
            except AttributeError:  # a channel of the program's own
                return
        if flush is True:  # what stands in for a channel in tests may say anything
            channel.flush_acks()

    def reject(self, requeue: bool = False, *, flush: bool | None = None) -> None:
        """Refuse this message: it is dropped, or goes to the dead-letter exchange.  May switch.

        Arguments:
            requeue: put it back into its queue instead.
            flush: as for :meth:`ack`.

        Raises:
            MessageStateError: it was acknowledged, rejected or requeued before, or has no channel.
            TimeoutError: as for :meth:`ack`.
        """
        self._refuse("REJECTED", requeue, flush)

    def requeue(self, *, flush: bool | None = None) -> None:
        """Put this message back into its queue.  May switch.

        Arguments:
            flush: as for :meth:`ack`.

        Raises:
            MessageStateError: it was acknowledged, rejected or requeued before, or has no channel.
            TimeoutError: as for :meth:`ack`.
        """
        self._refuse("REQUEUED", True, flush)

    def _refuse(self, new_state: str, requeue: bool, flush: bool | None) -> None:
        channel = self.channel
        if channel is None:
            raise self._no_channel()
        state = self._state
        if state in ACK_STATES and not self._is_rolled_back():
            raise self._already_settled()
        try:
            self._state = new_state
            self._send_refusal(requeue)
        except BaseException:
            self._state = state
            raise
        if (calls := LISTENERS.settle) is not None:
            notify(calls, SettleEvent(self, "requeue" if requeue else "reject"))
        if flush is None:
            try:
                flush = channel.flushes_acks
            except AttributeError:
                return
        if flush is True:
            channel.flush_acks()

    def put_back(self) -> None:
        """Requeue this message, as no handler has seen it.  May switch.

        Settled before: does nothing.  :meth:`requeue` says that it failed, and may be counted as a
        delivery; this is not, where the broker can tell the two apart.
        """
        if self.channel is None:
            raise self._no_channel()
        state = self._state
        if state in ACK_STATES and not self._is_rolled_back():
            return
        self._state = "REQUEUED"
        try:
            self._send_back()
        except BaseException:
            self._state = state
            raise

    def replace(self, prepared: Any, queue: str) -> bool:
        """Have the broker store another message in the place of this one, in one step.  May switch.

        Arguments:
            prepared: by the channel's ``prepare_message``.
            queue: that both belong to.

        Returns:
            False: it has no such step, and nothing was done.

        Raises:
            MessageStateError: it was acknowledged, rejected or requeued before.
        """
        replace = getattr(self.channel, "replace_delivery", None)
        if replace is None:
            return False
        state = self._state
        if state in ACK_STATES and not self._is_rolled_back():
            raise self._already_settled()
        is_replaced: Any = False
        self._state = "ACK"
        try:
            is_replaced = replace(self.delivery_tag, prepared, queue)
        finally:
            if is_replaced is not True:  # what stands in for a channel in tests may say anything
                self._state = state
        if is_replaced is not True:
            return False
        if (calls := LISTENERS.settle) is not None:
            notify(calls, SettleEvent(self, "ack"))
        return True

    def _send_back(self) -> None:
        self._send_refusal(True)

    def _send_refusal(self, requeue: bool) -> None:
        self.channel.basic_reject(self.delivery_tag, requeue)

    def _no_channel(self) -> KombuError:
        return self.MessageStateError(
            "the message cannot be acknowledged or rejected: it has no channel"
        )

    def _already_settled(self) -> KombuError:
        return self.MessageStateError(
            f"message {self.delivery_tag!r} is already acknowledged or rejected: its state is "
            f"{self._state}"
        )

    def ack_log_error(
        self,
        logger: logging.Logger,
        errors: tuple[type[BaseException], ...] | type[BaseException],
        multiple: bool = False,
    ) -> None:
        """Acknowledge, and log what of *errors* is raised.  A broken pipe is raised all the same.

        May switch.
        """
        try:
            self.ack(multiple=multiple)
        except BrokenPipeError as exc:
            logger.critical("Couldn't ack %r, reason:%r", self.delivery_tag, exc, exc_info=True)
            raise
        except errors as exc:
            logger.critical("Couldn't ack %r, reason:%r", self.delivery_tag, exc, exc_info=True)

    def reject_log_error(
        self,
        logger: logging.Logger,
        errors: tuple[type[BaseException], ...] | type[BaseException],
        requeue: bool = False,
    ) -> None:
        """Reject, and log what of *errors* is raised.  May switch."""
        try:
            self.reject(requeue=requeue)
        except errors as exc:
            logger.critical("Couldn't reject %r, reason: %r", self.delivery_tag, exc, exc_info=True)

    def decode(self) -> T:
        """Return the body as the publisher sent it, or as the handler declares it; decoded once.

        Raises:
            ContentDisallowed: its content type is not accepted.
            DecodeError: it cannot be decoded or decompressed.
        """
        decoded: T | None = self._decoded_cache
        if decoded is None:
            decoded = self._decoded_cache = self._decode()
        return decoded

    def _decode(self) -> Any:
        body = self.body
        if self.errors:
            # The body is still compressed, so that decoding it could only mislead.
            self._reraise_error()
        return loads(body, self.content_type, self.content_encoding, accept=self.accept)

    @property
    def delivery_count(self) -> int:
        """Number of deliveries before this one; 0 at the first.

        Quorum queues count (``x-delivery-count``; a queue's ``x-delivery-limit`` is about it).  Others
        only tell that it was delivered before: that is 1 here, however often it was.
        """
        if not self.delivery_info.get("redelivered"):
            return 0  # a header that another queue's message left behind says nothing
        count = self.headers.get("x-delivery-count")
        return count if isinstance(count, int) and count > 0 else 1

    def _came_with(self, name: str) -> bool:
        """Return whether the message was published with a header, without reading all where possible."""
        return name in self.headers

    @property
    def acknowledged(self) -> bool:
        """Whether it was acknowledged, rejected or requeued."""
        return self._state in ACK_STATES and not self._is_rolled_back()

    def _is_rolled_back(self) -> bool:
        """Return whether it was settled in a transaction that was rolled back."""
        return False

    @property
    def payload(self) -> T:
        """The decoded body; see :meth:`decode`."""
        decoded: T | None = self._decoded_cache
        return self.decode() if decoded is None else decoded

    def __repr__(self) -> str:
        details = {
            "state": self._state,
            "content_type": self.content_type,
            "delivery_tag": self.delivery_tag,
            "body_length": self._body_length(),
            "properties": _chosen(self.properties, "correlation_id", "type"),
            "delivery_info": _chosen(self.delivery_info, "exchange", "routing_key"),
        }
        known = {name: value for name, value in details.items() if value is not None}
        return f"<{type(self).__name__} object at {id(self):#x} with details {known!r}>"

    def _body_length(self) -> int | None:
        return len(self.body) if isinstance(self.body, (str, bytes)) else None


def _current_error() -> _ErrorTriple:
    """Return the exception that is being handled, as ``sys.exc_info()`` gives it."""
    exc_type, exc, traceback = sys.exc_info()
    assert exc_type is not None
    assert exc is not None
    return exc_type, exc, traceback


def _chosen(mapping: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return those of *names* that *mapping* has a value for."""
    return {name: mapping[name] for name in names if mapping.get(name) is not None}


def staged_slot(name: str, stage: int) -> Any:
    """Return a slot of a message that is filled when it is first asked for or written to.

    Its class has an attribute ``_stage``, and ``_read(stage)``, which fills the slots up to that stage.
    """
    slot = vars(Message)[name]

    def read(self: Any) -> Any:
        if self._stage < stage:
            self._read(stage)
        return slot.__get__(self)

    def write(self: Any, value: Any) -> None:
        if self._stage < stage:
            self._read(stage)
        slot.__set__(self, value)

    return property(read, write)


def computed_slot(name: str) -> Any:
    """Return a slot of a message whose first value its class computes in a method, ``_`` and *name*."""
    slot, method = vars(Message)[name], f"_{name}"

    def read(self: Any) -> Any:
        try:
            return slot.__get__(self)
        except AttributeError:
            value = getattr(self, method)()
            slot.__set__(self, value)
            return value

    return property(read, slot.__set__)
