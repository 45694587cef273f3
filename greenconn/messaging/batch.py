"""A batch of publishes (kombu's interface)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from gevent import getcurrent

if TYPE_CHECKING:
    from typing_extensions import Self

    from greenconn.abc import Channel
    from greenconn.messaging.producer import Producer


class ChannelBatch(Protocol):
    """Messages that a channel holds back: what its ``create_publish_batch(max_size=...)`` returns."""

    channel: Any

    def publish(self, message: Any, **kwargs: Any) -> Any:
        """Take a message; the arguments are those of ``basic_publish``."""
        ...

    def flush(self) -> None:
        """Publish what was taken.  May switch."""
        ...

    def discard(self) -> None:
        """Forget what was taken and not published."""
        ...

    def close(self) -> None:
        """End the batch; what is left is not published."""
        ...


class BatchState:
    """The state that nested batches of one producer in one greenlet share.

    Arguments:
        max_size: of the outermost batch.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._channel_batch: ChannelBatch | None = None
        self._is_immediate = False
        self._is_aborted = False

    def publish(self, channel: Channel, message: Any, **kwargs: Any) -> Any:
        """Publish *message* by the batch of *channel*, or at once if it makes none.  May switch.

        Raises:
            RuntimeError: a nested batch has failed, or the producer has got another channel.
        """
        self._check()
        batch = self._batch_of(channel)
        if batch is None:
            return channel.basic_publish(message, **kwargs)
        return batch.publish(message, **kwargs)

    def _batch_of(self, channel: Channel) -> ChannelBatch | None:
        batch = self._channel_batch
        if batch is None and not self._is_immediate:
            create = getattr(channel, "create_publish_batch", None)
            if create is None or not getattr(channel, "supports_batch_publish", True):
                self._is_immediate = True
            else:
                batch = self._channel_batch = create(max_size=self._max_size)
        if batch is not None and batch.channel is not channel:
            raise RuntimeError(
                "the producer's channel changed while a batch of its messages was open"
            )
        return batch

    def _check(self) -> None:
        if self._is_aborted:
            raise RuntimeError("this is part of an aborted batch: a batch inside it has failed")

    def flush(self) -> None:
        """Publish what is held back.  May switch."""
        self._check()
        if self._channel_batch is not None:
            self._channel_batch.flush()

    def end(self, *, has_failed: bool, is_outermost: bool) -> None:
        """Leave a ``with`` block.  May switch.

        Raises:
            Exception: why what was held back could not be published.
        """
        batch = self._channel_batch
        steps: list[Callable[[], None]] = []
        if batch is not None:
            if has_failed and not self._is_aborted:
                steps.append(batch.discard)
            elif is_outermost and not self._is_aborted:
                steps.append(batch.flush)
            if is_outermost:
                steps.append(batch.close)
        self._is_aborted = self._is_aborted or has_failed
        _call_each(steps)


def _call_each(steps: list[Callable[[], None]]) -> None:
    """Make all calls; the first error is raised in the end."""
    if steps:
        try:
            steps[0]()
        except BaseException:
            with suppress(Exception):
                _call_each(steps[1:])
            raise
        _call_each(steps[1:])


class ProducerBatch:
    """The context that ``Producer.batch()`` returns.

    Channels of greenconn hold nothing back.  One of another kind that has ``create_publish_batch``
    (kombu 5.7) gets what this greenlet publishes with the producer until the end of the ``with`` block.

    Arguments:
        producer: whose messages.
        max_size: messages that a channel holds back at most; at least 1.

    Raises:
        ValueError: *max_size* is no such number.
    """

    def __init__(self, producer: Producer, max_size: int) -> None:
        if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 1:
            raise ValueError(f"max_size must be a positive integer, got {max_size!r}")
        self.max_size = max_size
        self._producer = producer
        self._was_entered = False
        self._is_outermost = False
        self._state: BatchState | None = None

    def __enter__(self) -> Self:
        if self._was_entered:
            raise RuntimeError("a batch cannot be re-entered: ask the producer for another")
        self._was_entered = True
        batches = self._producer.batches
        if batches is None:
            batches = self._producer.batches = {}
        greenlet = getcurrent()
        state = batches.get(greenlet)
        if state is None:
            self._is_outermost = True
            state = batches[greenlet] = BatchState(self.max_size)
        self._state = state
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        state, self._state = self._state, None
        assert state is not None
        if self._is_outermost:
            self._forget()
        try:
            state.end(has_failed=exc is not None, is_outermost=self._is_outermost)
        except Exception:
            if exc is None:
                raise  # else the error of the block is the one to tell

    def _forget(self) -> None:
        batches = self._producer.batches
        assert batches is not None
        del batches[getcurrent()]
        if not batches:
            self._producer.batches = None

    def flush(self) -> None:
        """Have what was published so far leave now.  May switch.

        Raises:
            RuntimeError: outside of the ``with`` block.
        """
        if self._state is None:
            raise RuntimeError("the batch is not active: flush() belongs into its with block")
        self._state.flush()
