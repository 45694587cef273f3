"""Clusters in a storm: one node after another ends, freezes, and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from greenconn.entity import Queue
from tests.brokers.cluster import RabbitMQCluster
from tests.brokers.keeper import Keeper
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_cluster import ClusterNode, RedisCluster
from tests.quality.faults.kinds import Kind
from tests.quality.faults.targets.base import Place, Served, places_of

C = TypeVar("C", RabbitMQCluster, RedisCluster)

QUORUM = {
    "x-queue-type": "quorum",
    # RabbitMQ 4.3 keeps what the consumers of a killed node have for so many milliseconds, 60,000 by
    # default.
    "x-consumer-disconnected-timeout": 1000,
}
#: The first RabbitMQ that loses nothing when a node is killed under load: docs/rabbitmq.rst.
SAFE_FROM_KILLS = 4


class _BusiestNode:
    """The node with most connections, each time, when all queues do without it."""

    def __init__(self, cluster: RabbitMQCluster) -> None:
        self._cluster = cluster
        self._node = cluster.nodes[0]

    @property
    def is_running(self) -> bool:
        return self._node.is_running

    def _choose(self) -> RabbitMQ:
        self._node = max(self._cluster, key=_connections)
        self._cluster.await_quorum(self._node)
        return self._node

    def start(self) -> None:
        self._node.start()

    def stop(self) -> None:
        self._choose().stop()

    def kill(self) -> None:
        node = self._choose()
        # It may have noted a queue that was declared within the last second in memory alone.
        node.evaluate("mnesia:dump_log()")
        node.kill()

    def pause(self) -> None:
        self._choose().pause()

    def resume(self) -> None:
        self._node.resume()


def _connections(node: RabbitMQ) -> int:
    return int(node.evaluate("length(rabbit_networking:local_connections())"))


class RabbitMQClusterTarget(Served):
    """Three nodes of RabbitMQ; what is kept is in quorum queues."""

    name = "rabbitmq-cluster"
    transport = "amqp"
    heartbeat: float | None = 2
    rate = 100.0
    is_ordered = False

    def __init__(self, cluster: RabbitMQCluster) -> None:
        super().__init__(_BusiestNode(cluster))
        self.url = cluster.url
        version = cluster.nodes[0].evaluate("rabbit_misc:version()").strip('"')
        if int(version.partition(".")[0]) < SAFE_FROM_KILLS:
            self.kinds = self.kinds - {Kind.KILL}

    @property
    def direct_url(self) -> str:
        return self.url

    def places(self) -> list[Place]:
        """Quorum queues, besides those that are not kept."""
        return places_of([Queue(f"q-{each}", queue_arguments=QUORUM) for each in (1, 2, 3, 4)])


class _NextMaster:
    """The next master of a Redis Cluster, each time, when all replicas follow."""

    def __init__(self, cluster: RedisCluster) -> None:
        self._cluster = cluster
        self._count = 0
        self._node: ClusterNode = cluster.nodes[0]

    @property
    def is_running(self) -> bool:
        return self._node.is_running

    def _choose(self) -> ClusterNode:
        self._cluster.wait_ready()
        masters = self._cluster.masters
        self._node = masters[self._count % len(masters)]
        self._count += 1
        return self._node

    def start(self) -> None:
        """Start it as a replica: it has nothing on disk."""
        masters = len(self._cluster.nodes) // 2
        self._cluster.until(lambda: len(self._cluster.masters) == masters, "no replica follows")
        self._node.start()

    def stop(self) -> None:
        self._choose().stop()

    def kill(self) -> None:
        self._choose().kill()

    def pause(self) -> None:
        self._choose().pause()

    def resume(self) -> None:
        self._node.resume()


class RedisClusterTarget(Served):
    """Three masters of Redis Cluster with a replica each; a publish waits for the replica."""

    name = "redis-cluster"
    transport = "redis"
    is_ordered = False

    def __init__(self, cluster: RedisCluster) -> None:
        super().__init__(_NextMaster(cluster))
        self._cluster = cluster
        self.url = cluster.urls
        self.options = {
            "lease": 3.0,
            "health_check_interval": 2,
            "reply_timeout": 5.0,
            "replicas": 1,
        }

    @property
    def direct_url(self) -> str:
        return self.url

    def places(self) -> list[Place]:
        """Lists."""
        return places_of([Queue(f"list-{number}") for number in (1, 2, 3, 4)])

    def held(self) -> int:
        """All of them, in each partition."""
        return sum(
            int(node.ask("HLEN", key))
            for node in self._cluster.masters
            for key in node.ask("KEYS", "*unacked").split()
        )

    def heal(self) -> None:
        """Let all go on, and wait until they agree."""
        self._cluster.mend()


@contextmanager
def _started(cluster: C) -> Iterator[C]:
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def rabbitmq_cluster_target() -> Iterator[RabbitMQClusterTarget]:
    """Start a cluster of RabbitMQ; it ends with the block.  May switch."""
    with Keeper() as keeper, _started(RabbitMQCluster(keeper)) as cluster:
        yield RabbitMQClusterTarget(cluster)


@contextmanager
def redis_cluster_target() -> Iterator[RedisClusterTarget]:
    """Start a Redis Cluster; it ends with the block.  May switch."""
    with Keeper() as keeper, _started(RedisCluster(keeper)) as cluster:
        yield RedisClusterTarget(cluster)
