"""Messages from the envelopes that hooks returned, and kombu's ``QoS``."""

from __future__ import annotations

import logging
import os
import pickle
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pprint import pformat
from tempfile import mkstemp
from typing import IO, TYPE_CHECKING, Any, Final, TextIO

from greenconn.broker.envelope import WHAT, Envelope, checked
from greenconn.broker.leases import Handover
from greenconn.broker.port import Claimed, Settlement
from greenconn.exceptions import DecodeError, error_text
from greenconn.jsoncodec import dumps
from greenconn.message import Message as BaseMessage
from greenconn.serialization import decode_error

if TYPE_CHECKING:
    from greenconn.broker.consuming import Consumer

logger = logging.getLogger("greenconn.transport.virtual")


class TakenMessage(BaseMessage, ABC):
    """A message that a hook has taken out of its broker.

    Attributes:
        queue: where it was taken from, if known: it is given back there.
        consumer: who gets it; None for ``basic_get``.
    """

    __slots__ = ("consumer", "queue")

    #: Whether its channel holds it until it is settled.
    is_held = True
    #: A ``QoS`` has noted it, gets its outcome, and puts it back in the end.
    is_noted: bool

    queue: str | None
    consumer: Consumer | None

    @property
    def claimed(self) -> Claimed:
        """The claim of the store."""
        return Claimed(self.queue or "", None, self)

    @property
    @abstractmethod
    def link(self) -> object:
        """The link that took it out."""

    @property
    @abstractmethod
    def is_gone_from_broker(self) -> bool:
        """Whether we must requeue it, since neither the broker nor a ``QoS`` of its own does."""

    @abstractmethod
    def serializable(self) -> Envelope:
        """Return the envelope with which it can be put back."""

    @abstractmethod
    def settle(self, settlement: Settlement) -> None:
        """Settle it at the broker.  May switch."""


class Message(TakenMessage):
    """A message out of its envelope.

    Arguments:
        payload: the envelope.
        channel: decodes the body.
        queue: where it was taken from, if known.
    """

    __slots__ = ("_raw", "is_noted")

    def __init__(
        self, payload: Envelope, channel: Any = None, queue: str | None = None, **kwargs: Any
    ) -> None:
        self._raw = payload
        self.queue = queue
        self.consumer = None
        self.is_noted = False
        error: DecodeError | None = None
        try:
            properties, headers, content_type, content_encoding, body = checked(payload)
        except Exception as exc:
            super().__init__(body=payload, channel=channel, **kwargs)
            self._note(decode_error(exc, WHAT))
            return
        try:
            if body is not None and not isinstance(body, (str, bytes)):
                body = dumps(body)  # its publisher did not serialize it
            elif body and channel is not None:
                body = channel.decode_body(body, properties.get("body_encoding"))
        except Exception as exc:
            error = decode_error(exc, WHAT)
        tag = properties.get("delivery_tag")
        super().__init__(
            body=body,
            channel=channel,
            delivery_tag=tag if isinstance(tag, (str, int)) else None,
            content_type=content_type,
            content_encoding=content_encoding,
            headers=headers,
            properties=properties,
            delivery_info={
                **(properties.get("delivery_info") or {}),
                "redelivered": bool(payload.get("redelivered")),
            },
            postencode="utf-8",
            **kwargs,
        )
        if error is not None:
            self._note(error)

    def _note(self, error: DecodeError) -> None:
        """Have decoding raise *error*, as the message cannot be read."""
        self.errors.append((DecodeError, error, None))

    @property
    def link(self) -> object:
        return self.channel.connection

    @property
    def is_gone_from_broker(self) -> bool:
        channel = self.channel
        return bool(channel.do_restore) and (not self.is_noted or keeps_only_here(channel.qos))

    def settle(self, settlement: Settlement) -> None:
        """Settle it at the ``QoS``; requeue one that it does not know itself.  May switch."""
        channel = self.channel
        if not self.is_noted:
            if settlement is Settlement.REQUEUE:
                channel._restore_at_beginning(self)
        elif settlement is Settlement.ACK:
            channel.qos.ack(self.delivery_tag)
        else:
            channel.qos.reject(self.delivery_tag, requeue=settlement is Settlement.REQUEUE)
        if channel.asks_qos:
            channel.serve()

    def serializable(self) -> Envelope:
        if self.errors:
            return dict(self._raw) if isinstance(self._raw, dict) else {"body": self._raw}
        properties = self.properties
        body = self.body
        if body is not None:
            body, _ = self.channel.encode_body(body, properties.get("body_encoding"))
        # The body was decompressed on its way in.
        headers = {name: each for name, each in self.headers.items() if name != "compression"}
        return {
            "body": body,
            "properties": properties,
            "content-type": self.content_type,
            "content-encoding": self.content_encoding,
            "headers": headers,
        }


#: Modules of the ``QoS`` that keep deliveries in a dict: ours, and kombu's.
_KEEP_HERE: Final = frozenset({__name__, "kombu.transport.virtual.base"})


class _Delivered(OrderedDict[Any, Any]):
    """Delivery tag -> message, the oldest first."""

    #: Whether all was given back, as it is once when a channel closes (kombu's).
    restored = False


def dump_messages(messages: Iterable[Any], stderr: TextIO | None = None) -> None:
    """Write messages that no queue takes back, and that no consumer has, into a file of this user's.

    The log, or *stderr*, names it; it is no place for bodies.
    """
    state = [
        message.serializable() if hasattr(message, "serializable") else message
        for message in messages
    ]
    try:
        emergency_dump_state(state, stderr=stderr)
    except Exception:
        logger.exception("%d message(s) could not be dumped, and are lost", len(state))


def keeps_only_here(qos: Any) -> bool:
    """Return whether the deliveries that a ``QoS`` has are in this process, and nowhere else.

    One that keeps them at its broker overrides ``append``.
    """
    return bool(qos.restore_at_shutdown) and type(qos).append.__module__ in _KEEP_HERE


class _Finalizer:
    """The place of what kombu calls when a program ends; channels do that work here."""

    def cancel(self) -> None:
        """Do nothing."""


class QoS:
    """Unacked deliveries of one channel, in order (kombu's).

    Arguments:
        channel: requeues what is not settled.
        prefetch_count: deliveries that may be unacked at once; 0 is no limit.
    """

    prefetch_count = 0
    #: Whether what is left is given back when the channel closes.
    restore_at_shutdown = True

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        self.channel = channel
        self.prefetch_count = prefetch_count or 0
        self._delivered = _Delivered()
        #: kombu's finalizer, which subclasses cancel: here the channel gives back what is left.
        self._on_collect = _Finalizer()
        #: Settled and still in there: subclasses look at it after the ack.
        self._dirty: set[Any] = set()

    def can_consume(self) -> bool:
        """Return whether one more may be delivered.

        Asked by the channel where a subclass has its own; else its consumers have their bounds.
        """
        return not self.prefetch_count or len(self) < self.prefetch_count

    def can_consume_max_estimate(self) -> int | None:
        """Return the number of messages that may still be delivered; None: no limit."""
        if not self.prefetch_count:
            return None
        return max(self.prefetch_count - len(self), 0)

    def append(self, message: Any, delivery_tag: Any) -> None:
        """Note a delivery."""
        self._flush()
        self._quick_append(delivery_tag, message)

    def get(self, delivery_tag: Any) -> Any:
        """Return an unacknowledged message, or the one that was settled last.

        Raises:
            KeyError: there is none of that tag.
        """
        return self._delivered[delivery_tag]

    def ack(self, delivery_tag: Any) -> None:
        """Acknowledge a message; may switch in subclasses."""
        self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Reject a message; with *requeue* put it back.  May switch."""
        if requeue:
            self.channel._restore_at_beginning(self._delivered[delivery_tag])
        self._quick_ack(delivery_tag)

    def _quick_append(self, delivery_tag: Any, message: Any) -> None:
        self._delivered[delivery_tag] = message

    def _quick_ack(self, delivery_tag: Any) -> None:
        self._flush()
        if delivery_tag in self._delivered:
            self._dirty.add(delivery_tag)
        self.channel.note_settled(delivery_tag)

    def _flush(self) -> None:
        """Remove what was settled."""
        while self._dirty:
            self._delivered.pop(self._dirty.pop(), None)

    def __len__(self) -> int:
        return len(self._delivered) - len(self._dirty)

    def restore_unacked(self) -> list[tuple[Exception, Any]]:
        """Put everything back, and return what could not be, with the reasons.  May switch."""
        self._flush()
        failed = []
        # Oldest first, so that their order holds; acks may come in between.
        for tag in list(self._delivered):
            message = self._delivered.pop(tag, None)
            if message is None or tag in self._dirty:
                continue
            self.channel.note_settled(tag)
            try:
                self.channel._restore(message)
            except Exception as exc:
                failed.append((exc, message))
        return failed

    def restore_unacked_once(self, stderr: TextIO | None = None) -> None:
        """Put everything back when the channel closes.  May switch.

        What cannot be put back is dumped into a file.

        Arguments:
            stderr: where the path is written to; None logs it.
        """
        if not len(self) or not self.restore_at_shutdown or not self.channel.do_restore:
            return
        logger.info("restoring %d unacknowledged message(s)", len(self))
        failed = self.restore_unacked()
        self._delivered.restored = True
        if failed:
            logger.error(
                "%d unacknowledged message(s) could not be restored: %r", len(failed), failed[0][0]
            )
            dump_messages((message for _, message in failed), stderr)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Requeue what others left unacknowledged, where there is a visibility timeout; else nothing."""


class UnreturnedMessages:
    """Dumps what is left of one connection when it is forgotten, or the program ends.

    Arguments:
        handover: has what former lives have left.
    """

    def __init__(self, handover: Handover) -> None:
        weakref.finalize(self, _dump, os.getpid(), handover)


def _dump(process: int, handover: Handover) -> None:
    if os.getpid() != process:
        return  # the parent of this process has them
    messages = [each.handle for each in handover.left() if each.handle.is_gone_from_broker]
    if messages:
        logger.error("%d message(s) were not requeued before the end", len(messages))
        dump_messages(messages)


def emergency_dump_state(
    state: Any,
    open_file: Callable[[str, str], IO[Any]] = open,
    dump: Callable[..., Any] | None = None,
    stderr: IO[str] | None = None,
) -> str:
    """Write *state* to a new temporary file that only this user may read, and return its path.

    Arguments:
        open_file: called as ``open_file(path, mode)``.
        dump: called as ``dump(state, file, protocol=0)`` with a text file; None pickles into a
            binary one.
        stderr: where the path is written to; None logs it.
    """
    descriptor, path = mkstemp()
    os.close(descriptor)
    _report(f"EMERGENCY DUMP STATE TO FILE -> {path} <-", stderr)
    with open_file(path, "wb" if dump is None else "w") as file:
        try:
            (dump or pickle.dump)(state, file, protocol=0)
        except Exception as exc:
            _report(
                f"Cannot pickle state. Falling back to pformat. ({error_text(exc, repr)})", stderr
            )
            _rewind(file)
            text = pformat(state)
            try:
                file.write(text.encode())
            except TypeError:  # a text file
                file.write(text)
    return path


def _rewind(file: IO[Any]) -> None:
    try:
        file.seek(0)
        file.truncate()
    except (OSError, ValueError):
        # What was written in part stays before the text.
        with suppress(OSError, ValueError):
            file.seek(0, os.SEEK_END)


def _report(text: str, stderr: IO[str] | None) -> None:
    if stderr is None:
        logger.error("%s", text)
    else:
        print(text, file=stderr)
