"""What a measurement on Redis Cluster finds: lists, each at its node, and messages in them."""

from __future__ import annotations

from typing import Any

from redis.cluster import RedisCluster

from benchmarks.redis import stage
from greenconn.transport.redis.cluster import tag_of


class Stage(stage.Stage):
    """The queues of one measurement.

    Arguments:
        url: of the cluster.
    """

    def _connect(self, url: str) -> Any:
        return RedisCluster.from_url(url.replace("redis+cluster://", "redis://"))

    def key(self, queue: str) -> str:
        """The list of a queue: its hash tag says where it is."""
        return f"{{{tag_of(queue)}}}{queue}"
