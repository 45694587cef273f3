"""Publishing: where a message goes, and waiting until it is stored."""

from __future__ import annotations

import warnings
from binascii import b2a_base64
from collections.abc import Mapping
from typing import Any, NamedTuple

from greenconn.abc import DeadlineLike
from greenconn.broker.link import LeasedLink
from greenconn.broker.port import Entry, NoQueue, QueueFull
from greenconn.encoding import plain_text
from greenconn.exceptions import PublishNacked, PublishTimeout
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.limit import Limit
from greenconn.green.slot import Slot
from greenconn.transport.refusal import Method, invalid_argument
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.headers import check_headers
from greenconn.transport.virtual.life import closes_channel
from greenconn.transport.virtual.publishing import (
    Decided,
    Envelope,
    PublishingMethods,
    _no_immediate,
    _unroutable,
    too_large,
    undeliverable,
)

__all__ = ["How", "PublishingToStore", "Stored"]


class Stored:
    """A publish whose outcome is waited for.

    Arguments:
        slot: gets why it was not stored, or None.
        is_confirmed: somebody wants to know what became of it, beyond errors of the connection.
    """

    __slots__ = ("_is_confirmed", "_link", "_mandatory", "_slot", "_what")

    def __init__(
        self,
        link: LeasedLink,
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
                raise _unroutable(*self._what)
        elif not isinstance(error, QueueFull):
            raise error
        elif self._is_confirmed:
            raise PublishNacked(f"a queue is full and refused the message ({self._where()})")

    def _where(self) -> str:
        exchange, routing_key = self._what
        return f"exchange {exchange!r}, routing key {routing_key!r}"


class How(NamedTuple):
    """How a message is published.

    Attributes:
        is_confirmed: somebody wants to know what became of it.
        deadline: for all of it; None: the link's.
    """

    mandatory: bool
    immediate: bool
    is_confirmed: bool
    deadline: DeadlineLike | None


class PublishingToStore(PublishingMethods):
    """What a channel does to publish."""

    connection: LeasedLink

    def basic_publish(
        self,
        message: dict[str, Any],
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Publish *message*, and return when it is stored.  May switch.

        Arguments:
            message: of ``prepare_message``.
            mandatory: one that reaches no queue comes back: an event calls the handlers in
                ``events['basic_return']`` with ``(exc, exchange, routing_key, message)``.
            timeout: seconds for all of it; None is the connection's ``reply_timeout``.
            confirm_timeout: seconds until it is stored, within *timeout*.

        Raises:
            NotFound: there is no such exchange; the channel is closed.
            PublishTimeout: nothing was heard in time; it may be stored.
        """
        exchange, routing_key = plain_text(exchange), plain_text(routing_key)
        deadline = None if timeout is None else Deadline(timeout)
        if confirm_timeout is not None:
            deadline = (deadline or NEVER).within(confirm_timeout)
        how = How(mandatory, immediate, False, deadline)
        sent = self._begin(message, exchange or "", routing_key or "", how)
        if sent is None:
            if mandatory:
                self._return(message, exchange, routing_key)
        else:
            sent.wait(deadline)

    def begin_publish(
        self,
        message: dict[str, Any],
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        deadline: DeadlineLike | None = None,
    ) -> Any:
        """Publish *message*; the result's ``wait`` tells what became of it.  May switch.

        Raises:
            NotFound: there is no such exchange; the channel is closed.
            ContentTooLarge: the body is above ``max_message_size``.
        """
        exchange, routing_key = plain_text(exchange), plain_text(routing_key)
        how = How(mandatory, immediate, True, deadline)
        sent = self._begin(message, exchange or "", routing_key or "", how)
        if sent is None:
            return Decided(_unroutable(exchange, routing_key) if mandatory else None)
        return sent

    def _begin(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        how: How,
    ) -> Stored | None:
        """Begin to store a message; None: it has no queue to go to."""
        self.check_open()
        if how.immediate:
            raise _no_immediate()
        link = self.connection
        limit = link.options.max_message_size
        if len(message["body"]) > limit:
            raise too_large(len(message["body"]), limit)
        if message["headers"]:
            check_headers(message["headers"])  # here, since the store takes those of others along
        if exchange or not link.directory.is_known(routing_key):
            # The store is asked something first.
            deadline: Deadline = how.deadline or NEVER  # type: ignore[assignment]
            with Limit(deadline, f"publishing to {link.where}"):
                entries = self._routed(message, exchange, routing_key, how.mandatory)
        else:
            entries = self._routed(message, exchange, routing_key, how.mandatory)
        if not entries:
            return None
        self.check_open()  # it may have been closed meanwhile
        slot = link.putting.put(entries)
        return Stored(link, slot, (exchange, routing_key), how.mandatory, how.is_confirmed)

    def _routed(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool
    ) -> list[Entry]:
        """A message for each queue that it goes to."""
        link, headers = self.connection, message["headers"]
        queues = self._queues(exchange, routing_key, headers, mandatory)
        if not queues:
            if mandatory or link.options.deadletter_queue is None:
                return []
            queues = [self._last_resort(exchange, routing_key, link.options.deadletter_queue)]
        envelope = self._envelope(message, exchange, routing_key)
        return self._entries(envelope, queues, _delay(headers))

    @closes_channel
    def _entries(self, envelope: Envelope, queues: list[str], delay: float) -> list[Entry]:
        try:
            return self.connection.entries(envelope, queues, delay)
        except ValueError:
            expiration = envelope["properties"].get("expiration")
            raise invalid_argument(
                f"invalid expiration {expiration!r}", Method.BASIC_PUBLISH
            ) from None

    @closes_channel
    def _queues(
        self, exchange: str, routing_key: str, headers: Mapping[str, Any], mandatory: bool
    ) -> list[str]:
        link = self.connection
        queues = link.routing.routes(exchange, routing_key, headers)
        if mandatory:
            queues = [each for each in queues if link.directory.is_there(each)]
        return queues

    def _last_resort(self, exchange: str, routing_key: str, queue: str) -> str:
        """A message has no queue to go to but that one: see that it is there.  May switch."""
        warnings.warn(undeliverable(exchange, routing_key, queue), stacklevel=5)
        if not self.connection.directory.is_there(queue):
            self.connection.directory.declare(queue, Declaration(durable=True))
        return queue

    def _envelope(self, message: Envelope, exchange: str, routing_key: str) -> Envelope:
        """The stored form of a message."""
        headers = message["headers"]
        if "BCC" in headers:
            headers = {name: each for name, each in headers.items() if name != "BCC"}
        body = message["body"]
        link = self.connection
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
        raise ValueError(f"header x-delay is {given!r}: it is a number of milliseconds") from None


def _as_bytes(text: str, encoding: str | None) -> bytes:
    try:
        return text.encode(encoding or "utf-8")
    except LookupError:
        return text.encode()
