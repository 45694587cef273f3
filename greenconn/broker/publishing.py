"""Publishing to a store: routing a message, and waiting until it is stored.

Messages that many greenlets publish at the same time are stored together, and no greenlet waits for
another: the first message is sent at once, and those that come while that call is under way make up the
next call.  A killed caller leaves nothing behind: its message is dropped if it was not sent yet, else it
is stored.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gevent import get_hub

from greenconn.broker.dead_letters import visible_headers
from greenconn.broker.port import Entry, NoQueue
from greenconn.broker.publisher import (
    ChannelPublisher,
    Completion,
    CopyOutcomes,
)
from greenconn.broker.settlement_port import HeldMessage
from greenconn.delays import delay_of
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import current, end_all, spawn
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.envelope import check_headers
from greenconn.transport.virtual.publishing import Envelope, encoded, prepared

if TYPE_CHECKING:
    from gevent import Greenlet

    from greenconn.broker.link import StoreLink

#: Bytes that a message takes beside its body, about.
OVERHEAD: Final = 256


class StorePublisher(ChannelPublisher["StoreLink", Envelope, Sequence[Entry]]):
    """The publisher of one channel to a store."""

    #: Makes a message to publish.
    prepare = staticmethod(prepared)

    def _put(
        self,
        target: Sequence[Entry],
        queue: str,
        done: Completion,
        deadline: Deadline | None,
    ) -> None:
        self.link.put_batcher.put(target, done)

    def _target(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline | None,
    ) -> Sequence[Entry] | None:
        size, headers = len(message["body"]), message["headers"]
        if headers:
            check_headers(headers)  # here, since the store takes those of others along
        if (
            exchange
            or size > self._limit
            or not self.link.directory.is_known(routing_key)
            or (headers and ("CC" in headers or "BCC" in headers))
        ):
            return self._routed(message, size, headers, exchange, routing_key, mandatory, deadline)
        return self._addressed(message, "", routing_key, (routing_key,))

    def replacement(self, message: Envelope, queue: str) -> Callable[[HeldMessage], object] | None:
        link = self.link
        if not link.store.replaces_at_once:
            return None
        entries = self._target(message, "", queue, True, None)
        if entries is None or len(entries) != 1 or not entries[0].delay:
            return None
        return partial(link.settlements.replace, entries)

    def _addressed(
        self, message: Envelope, exchange: str, routing_key: str, queues: Sequence[str]
    ) -> Sequence[Entry]:
        headers = message["headers"]
        delay = delay_of(headers) if headers else 0.0
        return self.link.entries(self._envelope(message, exchange, routing_key), queues, delay)

    def _begin_last_resort(self, queue: str) -> None:
        if not self.link.directory.is_there(queue):
            self.link.directory.declare(queue, Declaration(durable=True))

    def _envelope(self, message: Envelope, exchange: str, routing_key: str) -> Envelope:
        """Return the stored form of a message."""
        body, headers = message["body"], message["headers"]
        link = self.link
        encoding = link.store.body_encoding
        raw = encoded(body, message["content-encoding"]) if isinstance(body, str) else body
        properties = message["properties"]
        info = {"exchange": exchange, "routing_key": routing_key}
        given = properties.get("delivery_info")
        if given:  # of a message that is sent on
            info = {**given, **info}
            info.pop("redelivered", None)
        return {
            "body": b2a_base64(raw, newline=False).decode() if encoding else raw,
            "content-encoding": message["content-encoding"],
            "content-type": message["content-type"],
            "headers": visible_headers(headers) if headers else headers,
            "properties": {
                **properties,
                "body_encoding": encoding,
                "delivery_info": info,
                "delivery_tag": link.tags.next().decode(),
            },
        }


class PutBatcher:
    """The messages that the channels of one link publish."""

    def __init__(self, link: StoreLink) -> None:
        self._link = link
        self._pending: deque[tuple[CopyOutcomes, Entry]] = deque()
        self._greenlets: set[Greenlet[..., Any]] = set()
        #: What is being stored, one list for each greenlet.
        self._batches: list[list[tuple[CopyOutcomes, Entry]]] = []

    def put(self, entries: Sequence[Entry], done: Completion) -> None:
        """Store the entries of one message; *done* gets None, or why it is not.  Never switches."""
        outcomes = CopyOutcomes(len(entries), done)
        for entry in entries:
            self._pending.append((outcomes, entry))
        if len(self._greenlets) < self._link.store.put_calls:
            self._greenlets.add(spawn("put", self._run))

    @property
    def is_busy(self) -> bool:
        """Whether something is not stored yet."""
        return bool(self._greenlets)

    def stop(self, exc: BaseException) -> None:
        """Stop, as the link has ended: no message is stored any more.  Never switches."""
        pending, self._pending = self._pending, deque()
        for batch in (*self._batches, pending):
            for outcomes, _ in batch:
                outcomes.done.offer(exc)
        end_all(self._greenlets)

    def _take(self) -> list[tuple[CopyOutcomes, Entry]]:
        """Take what one call may store; a publisher that has left wants nothing any more."""
        store, pending = self._link.store, self._pending
        batch: list[tuple[CopyOutcomes, Entry]] = []
        size = 0
        while pending and len(batch) < store.put_limit:
            outcomes, entry = pending[0]
            if outcomes.done.has_left and not outcomes.is_begun:
                pending.popleft()
                continue
            size += len(entry.envelope["body"]) + OVERHEAD
            if batch and size > store.put_bytes:
                break
            outcomes.is_begun = True
            batch.append(pending.popleft())
        return batch

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._store(batch)
        finally:
            self._greenlets.discard(current())

    def _store(self, batch: list[tuple[CopyOutcomes, Entry]]) -> None:
        link = self._link
        watch = self._watch()
        self._batches.append(batch)
        try:
            errors = link.store.put([entry for _, entry in batch])
        except BaseException as exc:
            failure = link.failed(exc, "storing messages", is_raised=True)
            for outcomes, _ in batch:
                outcomes.done.offer(failure)
            if not isinstance(exc, Exception):
                raise
            return
        finally:
            self._batches.remove(batch)
            if watch is not None:
                watch.close()
        for (outcomes, entry), error in zip(batch, errors, strict=True):
            outcomes.note(error)
            if error is None:
                if not entry.delay:
                    link.wake(entry.queue)
            elif isinstance(error, NoQueue):
                link.directory.forget(entry.queue)

    def _watch(self) -> Any:
        """Begin to watch that the store answers within ``reply_timeout``; None: it need not."""
        seconds = self._link.options.reply_timeout
        if seconds is None:
            return None
        timer = get_hub().loop.timer(seconds)
        timer.start(self._link.no_reply, "storing messages", update=True)
        return timer
