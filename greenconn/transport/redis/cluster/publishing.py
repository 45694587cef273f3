"""Publishing to the queues of a cluster, each over the socket to its node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from greenconn.abc import DeadlineLike
from greenconn.broker.publisher import Completion
from greenconn.transport.redis.cluster.queues import Partitions
from greenconn.transport.redis.commands import CommandPipeline
from greenconn.transport.redis.envelope import Outgoing
from greenconn.transport.redis.fanout import topic_of
from greenconn.transport.redis.keys import Keys
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.publishing import RedisPublisher, RedisPublishingLink, Routed
from greenconn.transport.virtual.channel import ChannelPort

__all__ = ["ClusterPublisher"]


class _Passing:
    """A sending side that never waits: each partition has one that does."""

    must_wait = False

    def before_flush(self, callback: object) -> None:
        """Not used: publishers leave at once."""
        raise NotImplementedError


_PASSING: Final = _Passing()


class Divided(Routed):
    """Commands that store one message in queues of several partitions.

    Arguments:
        pipelines: where each command is sent.
    """

    __slots__ = ("_pipelines",)

    def __init__(
        self,
        pipeline: CommandPipeline,
        commands: list[bytes],
        queues: list[str],
        may_end: bool,
        pipelines: Sequence[CommandPipeline],
    ) -> None:
        super().__init__(pipeline, commands, queues, may_end)
        self._pipelines = pipelines

    def _ways(self) -> Sequence[CommandPipeline]:
        return self._pipelines


class ClusterPublisher(RedisPublisher):
    """The publisher of one channel.

    Arguments:
        channel: is closed by what the broker refuses.
        link: has the parts that all its channels share.
        partitions: of the link.
    """

    def __init__(
        self, channel: ChannelPort, link: RedisPublishingLink, partitions: Partitions
    ) -> None:
        super().__init__(channel, link)
        self._partitions = partitions
        self._writer = _PASSING

    def _pipeline_of(self, name: str) -> CommandPipeline:
        topic = topic_of(name)
        return self._partitions.of(name if topic is None else topic[0]).commands.pipeline

    def _keys_of(self, queue: str) -> Keys:
        return self._partitions.of(queue).commands.keys

    def _target(
        self,
        message: Outgoing | dict[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: DeadlineLike | None,
    ) -> bytes | Routed | None:
        if not exchange:
            self._wait_writable(self._pipeline_of(routing_key), deadline)
        return super()._target(message, exchange, routing_key, mandatory, deadline)

    def _wait_writable(self, pipeline: CommandPipeline, deadline: DeadlineLike | None) -> None:
        if pipeline.writer.must_wait:
            pipeline.wait_writable(deadline or ENDLESS)  # type: ignore[arg-type]

    def _put(
        self,
        target: bytes | Routed,
        queue: str,
        done: Completion,
        deadline: DeadlineLike | None,
    ) -> None:
        if isinstance(target, bytes):
            self._pipeline_of(queue).post(target, done.offer)
            self._pushed(queue)
        else:
            super()._put(target, queue, done, deadline)

    def _placed(
        self, copies: list[tuple[str, bytes]], size: int, lists: list[str], may_end: bool
    ) -> Routed:
        pipelines = [self._pipeline_of(name) for name, _ in copies]
        for each in dict.fromkeys(pipelines):
            self._wait_writable(each, None)
        commands = [command for _, command in copies]
        return Divided(self._pipeline, commands, lists, may_end, pipelines)
