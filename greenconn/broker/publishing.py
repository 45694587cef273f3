"""Publishing to a store: where a message goes, and waiting until it is there.

What many greenlets publish meanwhile leaves together.  Nobody waits for others: the first message leaves
at once, and what comes while its call is on its way makes up the next call.  A caller that is killed
leaves nothing behind: what is not on its way yet is dropped, what is on its way is stored, and nobody is
told.
"""

from __future__ import annotations

import warnings
from binascii import b2a_base64
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from greenconn.abc import DeadlineLike
from greenconn.broker.port import Entry, NoQueue, QueueFull
from greenconn.exceptions import ChannelError, PublishNacked, PublishTimeout
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.limit import Limit
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.transport.refusal import Method, invalid_argument
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.headers import check_headers
from greenconn.transport.virtual.life import ChannelLife
from greenconn.transport.virtual.publishing import (
    Decided,
    Envelope,
    no_immediate,
    prepared,
    return_message,
    too_large,
    undeliverable,
    unroutable,
)

if TYPE_CHECKING:
    from gevent import Greenlet

    from greenconn.broker.channel import PublishResult
    from greenconn.broker.link import StoreLink

__all__ = ["Putting", "StorePublisher", "Stored"]

#: Bytes that a message takes beside its body, about.
OVERHEAD: Final = 256


class Stored:
    """A publish whose outcome is waited for.

    Arguments:
        slot: gets why it was not stored, or None.
        is_confirmed: somebody wants to know what became of it, beyond errors of the connection.
    """

    __slots__ = ("_is_confirmed", "_link", "_mandatory", "_slot", "_what")

    def __init__(
        self,
        link: StoreLink,
        slot: Slot[Exception | None],
        what: tuple[str, str],
        mandatory: bool,
        is_confirmed: bool,
    ) -> None:
        self._link = link
        self._slot = slot
        self._what = what
        self._mandatory = mandatory
        self._is_confirmed = is_confirmed

    def wait(self, deadline: DeadlineLike | None = None) -> None:
        """Return when the message is stored.  May switch.

        Raises:
            Unroutable: it was mandatory, and reached no queue.
            PublishNacked: a queue is full and refuses more.
            PublishTimeout: nothing was heard before the deadline; it may be stored.
            RecoverableConnectionError: the connection went first; it may be stored.
        """
        link = self._link
        limit = deadline if deadline is not None else Deadline(link.options.reply_timeout)
        try:
            error = self._slot.wait(limit)  # type: ignore[arg-type]
        except TimeoutError as exc:
            if not self._slot.has_left:
                raise
            if deadline is None:
                raise link.no_answer("storing a message") from exc
            raise PublishTimeout(
                f"{link.where} did not store a message to {self._where()} within "
                f"{deadline.timeout:g} s: it may have it",
                maybe_delivered=True,
            ) from exc
        if error is None:
            return
        if isinstance(error, NoQueue):
            if self._mandatory:
                raise unroutable(*self._what)
        elif not isinstance(error, QueueFull):
            raise error
        elif self._is_confirmed:
            raise PublishNacked(f"a queue is full and refused the message ({self._where()})")

    def _where(self) -> str:
        exchange, routing_key = self._what
        return f"exchange {exchange!r}, routing key {routing_key!r}"


class StorePublisher:
    """What one channel publishes with.

    Arguments:
        channel: is closed by what the broker refuses.
        link: stores the messages.
    """

    #: Makes a message to publish.
    prepare = staticmethod(prepared)

    def __init__(self, channel: ChannelLife, link: StoreLink) -> None:
        self._channel = channel
        self._link = link

    def publish(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> None:
        """Publish *message* and return when it is stored.  May switch."""
        slot = self._put(message, exchange, routing_key, mandatory, immediate, deadline)
        if slot is not None:
            what = (exchange, routing_key)
            Stored(self._link, slot, what, mandatory, is_confirmed=False).wait(deadline)
        elif mandatory:
            return_message(self._channel, message, exchange, routing_key)

    def begin(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: DeadlineLike | None,
    ) -> PublishResult:
        """Publish *message*; the result's ``wait`` tells what became of it.  May switch."""
        slot = self._put(message, exchange, routing_key, mandatory, immediate, deadline)
        if slot is None:
            return Decided(unroutable(exchange, routing_key) if mandatory else None)
        return Stored(self._link, slot, (exchange, routing_key), mandatory, is_confirmed=True)

    def flush(self, timeout: float | None) -> None:
        """Return when the store was told all answers.  (A publish returns when it has the message.)

        May switch.
        """
        self._channel.check_open()
        self._link.flush(Deadline(timeout))

    def end(self) -> None:
        """Note that the channel has ended: nothing was begun that it would have to finish."""

    def _put(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: DeadlineLike | None,
    ) -> Slot[Exception | None] | None:
        """Begin to store a message; None: it has no queue to go to.  May switch."""
        self._channel.check_open()
        if immediate:
            raise no_immediate()
        link = self._link
        limit = link.options.max_message_size
        if len(message["body"]) > limit:
            raise too_large(len(message["body"]), limit)
        headers = message["headers"]
        if headers:
            check_headers(headers)  # here, since the store takes those of others along
        try:
            if (
                exchange
                or not link.directory.is_known(routing_key)
                or (headers and ("CC" in headers or "BCC" in headers))
            ):
                # The store is asked something first.
                within: Deadline = deadline or NEVER  # type: ignore[assignment]
                with Limit(within, f"publishing to {link.where}"):
                    entries = self._routed(message, exchange, routing_key, mandatory)
                self._channel.check_open()  # it may have been closed meanwhile
            else:
                entries = self._routed(message, exchange, routing_key, mandatory)
        except ChannelError as exc:
            self._channel.fail(exc)
            raise
        return link.putting.put(entries) if entries else None

    def _routed(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool
    ) -> list[Entry]:
        """A message for each queue that it goes to."""
        link, headers = self._link, message["headers"]
        queues = link.routing.routes(exchange, routing_key, headers)
        if mandatory:
            queues = [each for each in queues if link.directory.is_there(each)]
        if not queues:
            if mandatory or link.options.deadletter_queue is None:
                return []
            queues = [self._last_resort(exchange, routing_key, link.options.deadletter_queue)]
        envelope, delay = self._envelope(message, exchange, routing_key), _delay(headers)
        try:
            return link.entries(envelope, queues, delay)
        except ValueError:
            expiration = envelope["properties"].get("expiration")
            raise invalid_argument(
                f"invalid expiration {expiration!r}", Method.BASIC_PUBLISH
            ) from None

    def _last_resort(self, exchange: str, routing_key: str, queue: str) -> str:
        """A message has no queue to go to but that one: see that it is there.  May switch."""
        warnings.warn(undeliverable(exchange, routing_key, queue), stacklevel=6)
        if not self._link.directory.is_there(queue):
            self._link.directory.declare(queue, Declaration(durable=True))
        return queue

    def _envelope(self, message: Envelope, exchange: str, routing_key: str) -> Envelope:
        """The stored form of a message."""
        headers = message["headers"]
        if "BCC" in headers:
            headers = {name: each for name, each in headers.items() if name != "BCC"}
        body = message["body"]
        link = self._link
        encoding = link.store.body_encoding
        raw = _as_bytes(body, message["content-encoding"]) if isinstance(body, str) else body
        properties = message["properties"]
        info = {
            **(properties.get("delivery_info") or {}),
            "exchange": exchange,
            "routing_key": routing_key,
        }
        return {
            "body": b2a_base64(raw, newline=False).decode() if encoding else raw,
            "content-encoding": message["content-encoding"],
            "content-type": message["content-type"],
            "headers": headers,
            "properties": {
                **properties,
                "body_encoding": encoding,
                "delivery_info": info,
                "delivery_tag": link.tags.next().decode(),
            },
        }


def _delay(headers: Mapping[str, Any]) -> float:
    """Seconds before a message may be delivered: the header of RabbitMQ's plug-in, in milliseconds.

    Raises:
        ValueError: it is no number.
    """
    given = headers.get("x-delay") if headers else None
    if given is None:
        return 0.0
    try:
        return max(float(given), 0.0) / 1000
    except (TypeError, ValueError):
        raise ValueError(
            f"header x-delay must be a number of milliseconds, got {given!r}"
        ) from None


def _as_bytes(text: str, encoding: str | None) -> bytes:
    try:
        return text.encode(encoding or "utf-8")
    except LookupError:
        return text.encode()


class _Parcel:
    """The entries of one publish, and who waits for what becomes of them."""

    __slots__ = ("errors", "is_begun", "left", "slot")

    def __init__(self, count: int) -> None:
        #: Gets None, or why it was not stored.
        self.slot: Slot[Exception | None] = Slot()
        self.left = count
        self.errors: list[Exception] = []
        self.is_begun = False

    def answer(self, count: int, error: Exception | None) -> None:
        """One of its entries was stored, or not."""
        self.left -= 1
        if error is not None:
            self.errors.append(error)
        if not self.left:
            self.slot.offer(self._outcome(count))

    def _outcome(self, count: int) -> Exception | None:
        for error in self.errors:
            if not isinstance(error, NoQueue):
                return error
        # Where others have it, it was not in vain.
        return self.errors[0] if len(self.errors) == count else None


class Putting:
    """What the channels of one link publish."""

    __slots__ = ("_greenlets", "_link", "_pending")

    def __init__(self, link: StoreLink) -> None:
        self._link = link
        self._pending: deque[tuple[_Parcel, Entry, int]] = deque()
        self._greenlets: set[Greenlet[..., Any]] = set()

    def put(self, entries: Sequence[Entry]) -> Slot[Exception | None]:
        """Store the entries of one message; what the result gets is why it is not.  Never switches."""
        parcel = _Parcel(len(entries))
        for entry in entries:
            self._pending.append((parcel, entry, len(entries)))
        if len(self._greenlets) < self._link.store.put_calls:
            self._greenlets.add(spawn("put", self._run))
        return parcel.slot

    @property
    def is_busy(self) -> bool:
        """Whether something is not stored yet."""
        return bool(self._greenlets)

    def stop(self, exc: BaseException) -> None:
        """The link is gone: nobody's message is stored any more.  Never switches."""
        pending, self._pending = self._pending, deque()
        for parcel, _, _ in pending:
            parcel.slot.fail(exc)
        self._link.kill(self._greenlets)

    def _take(self) -> list[tuple[_Parcel, Entry, int]]:
        """Take what one call may store; a publisher that has left wants nothing any more."""
        store, pending = self._link.store, self._pending
        batch: list[tuple[_Parcel, Entry, int]] = []
        size = 0
        while pending and len(batch) < store.put_limit:
            parcel, entry, _ = pending[0]
            if parcel.slot.has_left and not parcel.is_begun:
                pending.popleft()
                continue
            size += len(entry.envelope["body"]) + OVERHEAD
            if batch and size > store.put_bytes:
                break
            parcel.is_begun = True
            batch.append(pending.popleft())
        return batch

    def _run(self) -> None:
        current = self._link.current()
        try:
            while batch := self._take():
                self._store(batch)
        finally:
            self._greenlets.discard(current)

    def _store(self, batch: list[tuple[_Parcel, Entry, int]]) -> None:
        link = self._link
        try:
            outcomes = link.store.put([entry for _, entry, _ in batch])
        except BaseException as exc:
            failure = link.failed(exc, "storing messages", is_told=True)
            for parcel, _, _ in batch:
                parcel.slot.fail(failure)
            if not isinstance(exc, Exception):
                raise
            return
        for (parcel, entry, count), error in zip(batch, outcomes, strict=True):
            parcel.answer(count, error)
            if error is None:
                if not entry.delay:
                    link.ripen(entry.queue)
            elif isinstance(error, NoQueue):
                link.directory.forget(entry.queue)
