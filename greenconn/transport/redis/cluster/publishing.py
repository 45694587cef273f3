"""Publishing to the queues of a cluster, each over the socket to its node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from greenconn.broker.publisher import Completion
from greenconn.green.deadline import Deadline
from greenconn.transport.redis.commands import CommandPipeline
from greenconn.transport.redis.envelope import Outgoing
from greenconn.transport.redis.fanout import topic_of
from greenconn.transport.redis.keys import Keys
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.publishing import RedisPublisher, Routed

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.transport.redis.cluster.placement import ClusterPlacement
    from greenconn.transport.redis.link import RedisLink


class _Passing:
    """A sending side that never waits: each partition has one that does."""

    must_wait = False

    def before_flush(self, callback: object) -> None:
        """Not used: publishers leave at once."""
        raise NotImplementedError


_PASSING: Final = _Passing()


class Copy:
    """The receiver of the outcome of one copy of a message.

    Arguments:
        take: gets it.
        done: gets the outcome of all copies.
    """

    __slots__ = ("_done", "_take")

    def __init__(self, take: Callable[[Any], object], done: Completion) -> None:
        self._take = take
        self._done = done

    @property
    def has_left(self) -> bool:
        """Whether the message is not to be stored any more."""
        return self._done.has_left

    def offer(self, value: Any) -> bool:
        """Take the outcome.  In the reader."""
        self._take(value)
        return True


class Divided(Routed):
    """Commands that store one message in queues of several partitions.

    Arguments:
        names: the queue or exchange of each command.
        partitions: of the link.
    """

    __slots__ = ("_names", "_partitions")

    def __init__(
        self,
        pipeline: CommandPipeline,
        commands: list[bytes],
        queues: list[str],
        may_end: bool,
        names: Sequence[str],
        partitions: ClusterPlacement,
    ) -> None:
        super().__init__(pipeline, commands, queues, may_end)
        self._names = names
        self._partitions = partitions

    def _send(self, take: Callable[[Any], object], done: Completion) -> None:
        for name, command in zip(self._names, self.commands, strict=True):
            self._partitions.post_stored(name, command, Copy(take, done))


class ClusterPublisher(RedisPublisher):
    """The publisher of one channel.

    Arguments:
        channel: is closed by what the broker refuses.
        link: has the parts that all its channels share.
        partitions: of the link.
    """

    def __init__(
        self, channel: StoreChannel[Any], link: RedisLink, partitions: ClusterPlacement
    ) -> None:
        super().__init__(channel, link)
        self._partitions = partitions
        self._writer = _PASSING

    def _pipeline_of(self, name: str) -> CommandPipeline:
        return self._partitions.of(name).commands.pipeline

    def _keys_of(self, queue: str) -> Keys:
        return self._partitions.of(queue).commands.keys

    def _target(
        self,
        message: Outgoing | dict[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline | None,
    ) -> bytes | Routed | None:
        if not exchange:
            self._wait_writable(self._pipeline_of(routing_key), deadline)
        return super()._target(message, exchange, routing_key, mandatory, deadline)

    def _wait_writable(self, pipeline: CommandPipeline, deadline: Deadline | None) -> None:
        if pipeline.writer.must_wait:
            pipeline.wait_writable(deadline or ENDLESS)

    def _put(
        self,
        target: bytes | Routed,
        queue: str,
        done: Completion,
        deadline: Deadline | None,
    ) -> None:
        if isinstance(target, bytes):
            self._partitions.post_stored(queue, target, done)
            self._pushed(queue)
        else:
            super()._put(target, queue, done, deadline)

    def _placed(
        self, copies: list[tuple[str, bytes]], size: int, lists: list[str], may_end: bool
    ) -> Routed:
        names = [name if (topic := topic_of(name)) is None else topic[0] for name, _ in copies]
        for each in dict.fromkeys(map(self._pipeline_of, names)):
            self._wait_writable(each, None)
        commands = [command for _, command in copies]
        return Divided(self._pipeline, commands, lists, may_end, names, self._partitions)
