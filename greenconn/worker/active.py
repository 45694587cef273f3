"""The right to read a stream, which one reader of a name has at a time.

RabbitMQ knows a single active consumer of a stream in its stream protocol only.  Of a queue it knows it
in AMQP 0-9-1, too, so each reader also consumes from a queue of its name.  There the broker gives the
*token*, a message without a body, to the consumer that is active, which keeps it unacked.  When that
consumer, its connection or its program ends, the broker redelivers the token to the next one at once.

Every reader publishes a token when it begins, and again every few minutes.  The active one keeps the
newest and acks the one before, so that none grows older than the broker's consumer timeout, and none is
delivered so often that a quorum queue drops it.  More than one does no harm: all go to the active one.

A reader whose connection was lost may still run a handler when the next one begins: for that moment a
message may be handled twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import Unroutable, error_text
from greenconn.green.deadline import Deadline, TimeLimit
from greenconn.green.supervisor import spawn
from greenconn.green.ticker import Ticker
from greenconn.publishing import publish
from greenconn.worker.channels import SharedChannels, Subscription
from greenconn.worker.options import ConsumerOptions, QueueLike

if TYPE_CHECKING:
    from greenconn.message import Message
    from greenconn.session.session import Session

logger = logging.getLogger("greenconn.worker")

#: Messages that an active reader may have: the token, and the one that replaces it.
PREFETCH: Final = 2
#: Seconds after which a reader publishes another token; the consumer timeout is 30 minutes.
RENEWAL_INTERVAL: Final = 300.0
#: Seconds that the broker may take to confirm a token.
TIMEOUT: Final = 30.0


def token_queue(stream: str, reader: str) -> Queue:
    """Return the queue that makes one reader of a name active.  Never switches."""
    return Queue(
        f"active.{reader}@{stream}",
        max_length=1,
        queue_arguments={"x-queue-type": "quorum", "x-single-active-consumer": True},
    )


class ActiveReader(Subscription):
    """The right to read a stream, as one reader has it or waits for it.

    Arguments:
        options: the consumer's.
        connection: of the consumer; another one publishes for it.
        stream: the stream.
        on_held: called by the connection's reader when this reader may begin.  Must not switch.
        on_change, on_closing: as for :class:`Subscription`.
    """

    __slots__ = ("__weakref__", "_on_held", "_publish", "_ticker", "_token")

    def __init__(
        self,
        options: ConsumerOptions,
        connection: Connection,
        stream: QueueLike,
        on_held: Callable[[], None],
        on_change: Callable[[Subscription, Any, BaseException], None],
        on_closing: Callable[[Any], None],
    ) -> None:
        stream_name = stream.name if isinstance(stream, Queue) else stream
        queue = token_queue(stream_name, options.name or "")
        own = ConsumerOptions(queues=(queue,), handler=options.handler, name=options.name)
        super().__init__(own, queue, PREFETCH, self._take, on_change, on_closing)
        self._on_held = on_held
        self._publish = partial(publish, queue, "", connection=connection, timeout=TIMEOUT)
        self._ticker = Ticker(RENEWAL_INTERVAL, self._on_tick, f"token of {queue.name}")
        self._token: Message | None = None

    @property
    def is_held(self) -> bool:
        """Whether this reader is the active one."""
        return self._token is not None and self.is_confirmed

    def start(self, session: Session, channels: SharedChannels) -> None:
        """Publish a token, and wait for one; see :meth:`Subscription.start`.  May switch."""
        self._token = None  # what a former life had the broker has redelivered
        try:
            self._publish()
        except Unroutable:
            self._publish()  # the queue was deleted, and is declared again
        self._ticker.start()
        super().start(session, channels)

    def _take(self, message: Message) -> None:
        # In the connection's reader.
        former, self._token = self._token, message
        if former is None:
            self._on_held()
        else:
            with suppress(Exception):  # its channel is gone
                former.ack(flush=False)

    def _on_tick(self, lag: float) -> None:
        # In the hub.
        spawn("renew-token", self._renew)

    def _renew(self) -> None:
        try:
            self._publish()
        except Exception as exc:
            logger.debug(
                "token of queue %s was not renewed: %s",
                self.name,
                error_text(exc),
                extra={"queue": self.name},
            )

    def release(self, channels: SharedChannels, deadline: Deadline) -> None:
        """Let another reader begin.  May switch, until *deadline* at most."""
        self._ticker.stop()
        try:
            # First, or the broker would redeliver the token here.
            with TimeLimit(deadline, "cancelling"):
                self.cancel(channels)
        except Exception as exc:
            logger.debug("cancelling %r: %s", self, error_text(exc), extra={"queue": self.name})
        token, self._token = self._token, None
        if token is not None:
            with suppress(Exception):  # its channel is gone
                token.put_back()

    def forget(self) -> None:
        """Renew nothing after a fork, in the child.  Never switches."""
        super().forget()
        self._ticker.stop()
